"""Generation in batches, with a cache of keys and values and, on a GPU, with CUDA graphs.

In fp32 it gives, token for token, what GPT.generate_plain gives for each prompt alone. The prompts
go through the model once (prefill); then each step takes one new token per row.

Shapes: B rows, P positions of all prompts end to end, S slots of the cache, H query heads,
K key/value heads, D head_dim, C width, V vocabulary.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from plumbing.loss import tiles


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, temperature=0.0, stop_ids=(), seed=0, weak=None,
             lam=1.0):
    """Continue each prompt -> one list of new tokens per prompt.

    prompts: token lists of any lengths >= 1.
    temperature: 0 is greedy (of equal logits the lowest id wins).
    stop_ids: they end a row and are not returned; so a row of max_new_tokens tokens was cut off.
    seed: an int, or one per prompt. Every row draws from a generator of its own: with one seed per
        prompt a result depends on neither the batch's size nor its order.
    weak, lam: decode from lam * z_model + (1 - lam) * z_weak. 0 < lam < 1 is WMSS's fused model
        (paper v2, eq. 5); lam = 1 + mu is contrastive decoding, z + mu (z - z_weak). The weak model
        may have another shape, but needs the same vocabulary.
    Raises ValueError on an empty prompt, where prompt and new tokens exceed max_seq_len, on a
    negative temperature, where there are not as many seeds as prompts, and on two vocabularies.
    """
    if not prompts:
        return []
    models = [model] if weak is None else [model, weak]
    lens = [len(p) for p in prompts]
    seeds = seed
    if not isinstance(seed, (list, tuple)):
        seeds = [seed + 1_000_003 * i for i in range(len(prompts))]
    _check(models, lens, max_new_tokens, temperature, seeds)
    device = model.embed_tokens.weight.device
    if temperature > 0:
        draws = torch.stack([_uniform(max_new_tokens, s) for s in seeds]).to(device)

    # Prefill in order of length, in buckets that are padded on the right. A token's slot is its
    # position: pads lie beyond every real token, and decoding overwrites each pad before any token
    # may look at it.
    order = sorted(range(len(prompts)), key=lens.__getitem__)
    x = []
    for bucket in buckets(order, lens):
        rows = [torch.tensor(prompts[i]) for i in bucket]
        x.append(pad_sequence(rows, batch_first=True).to(device))             # (B_i, T_i)
    row_of = torch.tensor(order, device=device)
    pos = torch.tensor(sorted(lens), device=device) - 1                       # (B,) newest token's
    lengths = [b.size(1) for b in x for _ in b]
    starts = torch.tensor([0] + lengths, device=device).cumsum(0)[:-1]
    slots = max(lens) + max_new_tokens
    caches = [Cache(m, len(prompts), slots) for m in models]
    z = mixed_logits(models, [cache.prefill(x)[starts + pos] for cache in caches], lam)

    def next_logits(token, pos, width):
        return mixed_logits(models, [cache.step(token, pos, width) for cache in caches], lam)

    step = Decoder(next_logits, slots, device)
    out = [[] for _ in prompts]
    done = [False] * len(prompts)
    stop = set(stop_ids)
    for t in range(max_new_tokens):
        token = z.argmax(-1) if temperature == 0 else sample(z, temperature, draws[row_of, t])
        alive = []
        for i, (row, tok) in enumerate(zip(order, token.tolist(), strict=True)):
            done[row] = done[row] or tok in stop
            if not done[row]:
                out[row].append(tok)
                alive.append(i)
        if t == max_new_tokens - 1 or not alive:
            break
        if len(alive) <= 0.75 * len(token):
            # finished rows leave the batch; not one by one, as each time copies the cache
            keep = torch.tensor(alive, device=device)
            order = [order[i] for i in alive]
            row_of, pos, token = row_of[keep], pos[keep], token[keep]
            for cache in caches:
                cache.keep(keep)
        pos = pos + 1
        z = step(token, pos, lens[order[-1]] + t + 1)                         # the last is longest
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


def _uniform(n, seed):
    """n numbers of [0, 1) in float64, a function of the seed."""
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(int(seed)))


def sample(z, temperature, draws):
    """Tokens (B,) of logits z (B, V): the first whose cumulative probability exceeds draws (B,).

    In float64, since a sum of 151,936 probabilities in fp32 would be off by more than many of them.
    """
    cdf = torch.softmax(z.double() / temperature, -1).cumsum(-1)
    return (cdf <= draws[:, None] * cdf[:, -1:]).sum(-1)


def mixed_logits(models, hidden, lam):
    """Logits (B, V) in fp32 from one hidden state (B, C) per model: lam of the first, if two."""
    logits = []
    for m, h in zip(models, hidden, strict=True):
        parts = [F.linear(h, w) for w in tiles(m.lm_head.weight)]
        logits.append(torch.cat(parts, -1).float())
    return logits[0] if len(models) == 1 else lam * logits[0] + (1 - lam) * logits[1]


def buckets(order, lens):
    """Cut items in ascending order of length so that none is padded by more than 15 %.

    >>> buckets([0, 2, 1], [10, 13, 11])
    [[0, 2], [1]]
    """
    out = []
    for i in order:
        if not out or lens[i] > 1.15 * lens[out[-1][0]]:
            out.append([])
        out[-1].append(i)
    return out


class Cache:
    """Keys and values of one model, per layer a pair of (B, K, S, D).

    A token's slot is its position. The cache gives the model one attention function per layer,
    which stores k and v before it attends.
    """

    def __init__(self, model, rows, slots):
        p = model.embed_tokens.weight
        kind = p.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else p.dtype
        shape = (rows, model.cfg.n_kv_heads, slots, model.cfg.head_dim)
        self.model = model
        self.layers = [(p.new_zeros(shape, dtype=dtype), p.new_zeros(shape, dtype=dtype))
                       for _ in model.layers]

    def prefill(self, x):
        """Hidden states (P, C) of whole prompts, x a list of (B_i, T_i); fills slots from 0 on."""
        shapes = [tuple(b.shape) for b in x]
        attends = [partial(attend_and_store, shapes, layer) for layer in self.layers]
        return self.model(x, attends=attends)

    def step(self, token, pos, width):
        """Hidden states (B, C) of one token (B,) per row at pos (B,).

        width: how many slots attention looks at, more than the largest pos.
        """
        rows = torch.arange(len(token), device=token.device)
        seen = torch.arange(width, device=pos.device) <= pos[:, None]         # (B, width)
        seen = seen[:, None, None]                                            # (B, 1, 1, width)
        attends = [partial(attend_to_cache, rows, pos, seen, layer) for layer in self.layers]
        return self.model(token[:, None], pos, attends)[:, 0]

    def keep(self, rows):
        """Keep only these rows, in this order."""
        self.layers = [(k[rows], v[rows]) for k, v in self.layers]


def attend_and_store(shapes, layer, q, k, v):
    """As Rows.attend of model.py, bucket by bucket, and writes k and v (P, K, D) to the cache."""
    gqa = q.size(1) != k.size(1)
    sizes = [B * T for B, T in shapes]
    out = []
    first = 0
    for (B, T), *qkv in zip(shapes, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        q, k, v = (t.unflatten(0, (B, T)).transpose(1, 2) for t in qkv)       # (B, H or K, T, D)
        layer[0][first:first + B, :, :T] = k
        layer[1][first:first + B, :, :T] = v
        first += B
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        out.append(y.transpose(1, 2).flatten(0, 1))                           # (B * T, H, D)
    return torch.cat(out)


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


class Decoder:
    """Calls step(token (B,), pos (B,), width) -> logits (B, V), on a GPU as a CUDA graph.

    There some 600 kernel launches take longer than their work. The first call of a shape runs as
    it is, which warms up; the second is captured; the others replay it. Widths are rounded up to a
    multiple of 128, so that a shape lasts for many tokens. The next call overwrites the logits.
    """
    graphs = True               # class-wide, so that benchmarks can measure without, too

    def __init__(self, step, slots, device):
        self.step, self.slots = step, slots
        self.graphs = self.graphs and device.type == "cuda"
        self.shape, self.graph = None, None

    def __call__(self, token, pos, width):
        if not self.graphs:
            return self.step(token, pos, width)
        width = min(self.slots, -(-width // 128) * 128)
        if self.shape != (len(token), width):
            self.shape, self.graph = (len(token), width), None
            return self.step(token, pos, width)
        if self.graph is None:
            self.token, self.pos = token.clone(), pos.clone()
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.z = self.step(self.token, self.pos, width)
        self.token.copy_(token)
        self.pos.copy_(pos)
        self.graph.replay()
        return self.z
