"""Generation in batches, with a cache of keys and values and, on a GPU, with CUDA graphs.

In fp32 it gives, token for token, what GPT.generate_plain gives for each prompt alone. The prompts
go through the model once (prefill); then each step takes one new token per row.

Shapes: B rows, P positions of all prompts end to end, S slots of the cache, H query heads,
K key/value heads, D head_dim, C width, V vocabulary.
"""

from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from plumbing.bar import tick
from plumbing.batches import by_length
from plumbing.devices import exact
from plumbing.loss import tiles


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, temperature=0.0, stop_ids=(), seed=0, weak=None,
             lam=1.0, ends=None):
    """Continue each prompt -> one list of new tokens per prompt.

    prompts: token lists of any lengths >= 1.
    temperature: 0 is greedy (of equal logits the lowest id wins).
    stop_ids: they end a row and are not returned; so a row of max_new_tokens tokens was cut off.
    seed: an int, or one per prompt. Every row draws from a generator of its own: with one seed per
        prompt a result depends on neither the batch's size nor its order.
    weak, lam: decode from lam * z_model + (1 - lam) * z_weak. 0 < lam < 1 is WMSS's fused model
        (paper v2, eq. 5); lam = 1 + mu is contrastive decoding, z + mu (z - z_weak). The weak model
        may have another shape, but needs the same vocabulary.
    ends: None, or a function of a row's new tokens so far: where it is true, the row ends.
    Raises ValueError on arguments that do not fit each other or the models.
    """
    if not prompts:
        return []
    models = [model] if weak is None else [model, weak]
    lens = [len(p) for p in prompts]
    spread = [1_000_003 * i for i in range(len(prompts))]
    seeds = seed if isinstance(seed, (list, tuple)) else [seed + s for s in spread]
    _check(models, lens, max_new_tokens, temperature, seeds)
    device = model.embed_tokens.weight.device

    # Prefill in order of length, in buckets that are padded on the right. A token's slot is its
    # position: pads lie beyond every real token, and decoding overwrites each pad before any token
    # may look at it.
    buckets = by_length(lens, 1.15)                     # no row is padded by more than 15 %
    order = [i for bucket in buckets for i in bucket]
    x = [pad_sequence([torch.tensor(prompts[i]) for i in bucket], batch_first=True).to(device)
         for bucket in buckets]                                               # (B_i, T_i) each
    chances = [torch.Generator().manual_seed(int(seeds[i])) for i in order]
    draws = torch.stack([torch.rand(max_new_tokens, dtype=torch.float64, generator=chance)
                         for chance in chances]).to(exact(device))
    pos = torch.tensor(sorted(lens), device=device) - 1                       # (B,) newest token's
    decoder = Decoder(models, lam, len(prompts), max(lens) + max_new_tokens)
    # progress in answers: by the tokens that are read and written, as if no answer ended early
    work = sum(lens) + len(prompts) * max_new_tokens
    z = decoder.prefill(x, pos, len(prompts) * sum(lens) / work)
    out = [[] for _ in prompts]
    done = [False] * len(prompts)
    stop = set(stop_ids)
    for t in range(max_new_tokens):
        token = z.argmax(-1) if temperature == 0 else sample(z, temperature, draws[:, t])
        alive = []
        for i, (row, tok) in enumerate(zip(order, token.tolist(), strict=True)):
            done[row] = done[row] or tok in stop
            if not done[row]:
                out[row].append(tok)
                done[row] = ends is not None and ends(out[row])
            if not done[row]:
                alive.append(i)
        tick(len(prompts) * (1 - len(alive) * (max_new_tokens - t - 1) / work))
        if t == max_new_tokens - 1 or not alive:
            break
        if len(alive) <= 0.75 * len(token):
            # finished rows leave the batch; not one by one, as each time copies the cache
            order = [order[i] for i in alive]
            keep = torch.tensor(alive, device=device)
            pos, token, draws = pos[keep], token[keep], draws[alive]
            decoder.keep(keep)
        pos = pos + 1
        z = decoder.step(token, pos, lens[order[-1]] + t + 1)                 # the last is longest
    return out


def _check(models, lens, max_new_tokens, temperature, seeds):
    if min(lens) == 0:
        raise ValueError(f"generate: prompt {lens.index(0)} is empty; expected at least one token")
    longest = min(m.cfg.max_seq_len for m in models)
    if max(lens) + max_new_tokens > longest:
        raise ValueError(f"generate: longest prompt {max(lens)} + max_new_tokens {max_new_tokens} "
                         f"exceed max_seq_len {longest}; ask for fewer or raise max_seq_len")
    if temperature < 0 or len(seeds) != len(lens):
        raise ValueError(f"generate: expected temperature >= 0 and one seed or {len(lens)}, "
                         f"found {temperature} and {len(seeds)}")
    sizes = {m.cfg.vocab_size for m in models}
    if len(sizes) > 1:
        raise ValueError(f"generate: expected two models of one vocabulary, found {sorted(sizes)} "
                         "ids; their logits cannot be mixed")


def sample(z, temperature, draws):
    """Tokens (B,) of logits z (B, V): the first whose cumulative probability exceeds draws (B,).

    In float64, since a sum of 151,936 probabilities in fp32 would be off by more than many of them,
    and where draws are: a Mac's GPU has no float64.
    """
    cdf = torch.softmax(z.to(draws.device).double() / temperature, -1).cumsum(-1)
    return (cdf <= draws[:, None] * cdf[:, -1:]).sum(-1).to(z.device)


class Decoder:
    """One model, or two that are mixed, and their caches: prefill() and step() give logits (B, V).

    On a GPU a step becomes a CUDA graph, as its 600 kernel launches take longer than their work.
    The first step of a shape runs as it is, which warms up; the second is captured; the others
    replay it, and each overwrites the logits of the one before.
    """
    graphs = True               # class-wide, so that benchmarks can measure without, too

    def __init__(self, models, lam, rows, slots):
        self.models, self.lam, self.slots = models, lam, slots
        self.caches = [new_cache(m, rows, slots) for m in models]
        self.graphs = self.graphs and self.caches[0].is_cuda
        self.shape, self.graph = None, None

    def prefill(self, x, newest, answers=0.0):
        """Read whole prompts, a list of buckets (B_i, T_i); newest (B,): each row's last token.
        answers: what the bar of progress shows for it, layer by layer."""
        rows = self.models[0].rows_class([tuple(b.shape) for b in x], newest.device)
        lengths = torch.tensor([T for B, T in rows.shapes for _ in range(B)], device=newest.device)
        starts = lengths.cumsum(0) - lengths                                  # (B,) in 0..P-1
        row = torch.arange(len(lengths), device=newest.device).repeat_interleave(lengths)
        slot = torch.arange(len(row), device=newest.device) - starts[row]
        n_layers, done = sum(map(len, self.caches)), count(1)

        def attend(layer, q, k, v):
            layer[0][row, :, slot], layer[1][row, :, slot] = k, v             # keys, values
            tick(answers * next(done) / n_layers)
            return rows.attend(q, k, v)

        return self._logits(x, None, attend, starts + newest)

    def step(self, token, pos, width):
        """Read one token (B,) per row, at pos (B,); attention looks at slots 0..width-1."""
        if not self.graphs:
            return self._step(token, pos, width)
        width = min(self.slots, -(-width // 128) * 128)    # so that a shape lasts for many tokens
        if self.shape != (len(token), width):
            self.shape, self.graph = (len(token), width), None
            return self._step(token, pos, width)
        if self.graph is None:
            self.token, self.pos = token.clone(), pos.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.z = self._step(self.token, self.pos, width)
        self.token.copy_(token)
        self.pos.copy_(pos)
        self.graph.replay()
        return self.z

    def _step(self, token, pos, width):
        rows = torch.arange(len(token), device=token.device)
        seen = torch.arange(width, device=pos.device) <= pos[:, None]         # (B, width)
        attend = partial(attend_to_cache, rows, pos, seen[:, None, None])
        return self._logits([token[:, None]], pos, attend, slice(None))

    def _logits(self, x, positions, attend, rows):
        """Logits (B, V) in fp32 of `rows` among the P positions: lam of the first model, if two."""
        logits = []
        for model, cache in zip(self.models, self.caches, strict=True):
            h = model(x, positions, [partial(attend, layer) for layer in cache])[rows]  # (B, C)
            parts = [F.linear(h, w) for w in tiles(model.lm_head.weight)]
            logits.append(torch.cat(parts, -1).float())
        return logits[0] if len(logits) == 1 else self.lam * logits[0] + (1 - self.lam) * logits[1]

    def keep(self, rows):
        """Keep only these rows, in this order."""
        for i, cache in enumerate(self.caches):
            self.caches[i] = cache[:, :, rows]


def new_cache(model, rows, slots):
    """Keys and values of all layers, (n_layers, 2, B, K, S, D); a token's slot is its position."""
    p, cfg = model.embed_tokens.weight, model.cfg
    kind = p.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else p.dtype
    return p.new_zeros(cfg.n_layers, 2, rows, cfg.n_kv_heads, slots, cfg.head_dim, dtype=dtype)


def attend_to_cache(rows, pos, seen, layer, q, k, v):
    """Attention of one new token per row: row b writes slot pos[b] and sees the slots up to it.

    A mask says which: is_causal would align the one query with the first slot. The queries of a
    group, which share k and v, become the rows of one product.
    """
    keys, values = layer
    keys[rows, :, pos] = k
    values[rows, :, pos] = v
    width = seen.size(-1)
    q = q.unflatten(1, (k.size(1), -1))                                       # (B, K, H / K, D)
    y = F.scaled_dot_product_attention(q, keys[:, :, :width], values[:, :, :width], attn_mask=seen)
    return y.flatten(1, 2)                                                    # (B, H, D)
