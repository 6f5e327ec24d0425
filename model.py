"""The transformer: a decoder of the Llama/Qwen family written out by hand, its KV-cached generation, its weights in and out.

RMSNorm, rotary positions, grouped-query attention, SwiGLU: one class each. Parameters carry their Hugging Face names, so any
folder of the types llama (SmolLM2 too), qwen2 and qwen3 loads by name, and what was trained here loads in transformers. The
model returns hidden states, not logits: whoever needs logits applies the head, in row chunks and at loss positions only,
so that the (B*T, V) matrix never exists (at V = 151,936 and 4,096 tokens it would be 2.5 GB in fp32).

    python -c "from model import *; print(GPT(GPTConfig()))"                      # what the built-in task trains
    python -c "from model import *; m, meta = load_checkpoint('out/toy/wmss.pt'); print(meta['commit'])"
    python -c "from model import *; print(GPT.from_pretrained('Qwen3-0.6B', torch.bfloat16, 'cuda').cfg)"     # a local folder
    python model.py export out/toy/wmss.pt folder                                 # safetensors that transformers and vLLM load

Shapes: B batch, T time, C width (dim), H heads, K key/value heads, D head_dim, V vocabulary, S slots of the KV cache.
"""

import argparse
import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class GPTConfig:
    vocab_size: int = 98
    dim: int = 96                   # C, width of the residual stream
    n_layers: int = 2
    n_heads: int = 4                # H
    n_kv_heads: int | None = None   # K, None = H (plain multi-head attention)
    head_dim: int | None = None     # D, None = C / H; a field of its own, since Qwen3-0.6B has H * D = 2 C
    ffn_dim: int | None = None      # width inside SwiGLU, None = 8/3 C, rounded up to a multiple of 32
    max_seq_len: int = 256          # rows of the RoPE table; a longer input is refused
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0        # Llama 3.1's scaling: slow frequencies turn this many times slower, 1 leaves all alone;
    rope_low: float = 1.0           # slow: fewer than rope_low turns in rope_original_len positions,
    rope_high: float = 4.0          # fast, left alone: more than rope_high turns; linear in between
    rope_original_len: int = 8192   # positions that the model had seen before it was stretched
    norm_eps: float = 1e-6
    qk_norm: bool = False           # RMSNorm on each head's q and k, before RoPE (Qwen3)
    qkv_bias: bool = False          # bias on q, k and v (Qwen2)
    tie_embeddings: bool = True     # the head shares the embedding's matrix

    def forward_flops(self, n_tokens, n_pairs, n_loss):
        """FLOPs of a forward pass: matrix products only, 2 a multiply-add (Kaplan et al. 2020)."""
        heads = self.n_heads * self.head_dim
        attention = self.dim * (2 * heads + 2 * self.n_kv_heads * self.head_dim)
        trunk = self.n_layers * (attention + 3 * self.dim * self.ffn_dim)
        scores = 4 * self.n_layers * heads * n_pairs
        return 2 * trunk * n_tokens + scores + 2 * self.vocab_size * self.dim * n_loss

    def __post_init__(self):
        for f in fields(self):                # a config.json may hold anything
            value = getattr(self, f.name)
            if not isinstance(value, (int, float) if f.type is float else f.type):
                raise ValueError(f"model: {f.name} should be a number of type {f.type}, found {value!r}")
            if f.type in (int, int | None) and value is not None and value < 1:
                raise ValueError(f"model: {f.name} should be at least 1, found {value}")
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        if self.head_dim is None:
            if self.dim % self.n_heads:
                raise ValueError(f"model: dim {self.dim} is no multiple of n_heads {self.n_heads}; set head_dim")
            self.head_dim = self.dim // self.n_heads
        self.ffn_dim = self.ffn_dim or 32 * math.ceil(8 * self.dim / 3 / 32)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"model: n_heads {self.n_heads} is no multiple of n_kv_heads {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"model: RoPE rotates pairs, so head_dim must be even, found {self.head_dim}")
        if self.rope_low >= self.rope_high:
            raise ValueError(f"model: expected rope_low < rope_high, found {self.rope_low} and {self.rope_high}")


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight.to(x.dtype), self.eps)


def rope_tables(cfg):
    """cos and sin of position * theta^(-2i/D), each (max_seq_len, D), in fp32; both halves of D hold the same angles.

    rope_factor > 1 slows the frequencies as in Llama 3.1: those that turn less than rope_low times in rope_original_len
    positions by the factor, those that turn more than rope_high times not at all, the others in between.
    """
    freq = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, dtype=torch.float64, device="cpu") / cfg.head_dim)
    turns = cfg.rope_original_len * freq / (2 * math.pi)
    fast = ((turns - cfg.rope_low) / (cfg.rope_high - cfg.rope_low)).clamp(0, 1)
    freq = freq * (fast + (1 - fast) / cfg.rope_factor)
    angle = torch.outer(torch.arange(cfg.max_seq_len, dtype=torch.float64, device="cpu"), freq)     # float64: position 40,000
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)                       # still exact; (T, D)


def apply_rope(x, cos, sin):
    """Rotate the pairs (i, i + D/2) of x (..., T, D). Half-split as in Hugging Face's weights, not interleaved as in Meta's."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class Rows:
    """Where rows begin and end among P positions: buckets of (B_i, T_i), end to end. Only attention needs to know."""

    def __init__(self, shapes, device):
        self.shapes, self.starts = shapes, None
        if device.type == "cuda" and len(shapes) > 1:
            starts = torch.tensor([0] + [T for B, T in shapes for _ in range(B)], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            self.starts, self.longest = starts.pin_memory().to(device, non_blocking=True), max(T for _, T in shapes)

    def _attend(self, q, k, v, cache=None):
        """Causal attention within each row; q (P, H, D), k and v (P, K, D), which fill the cache -> (P, H, D)."""
        gqa, sizes, out, b = q.size(1) != k.size(1), [B * T for B, T in self.shapes], [], 0
        if self.starts is not None and cache is None and q.dtype in (torch.bfloat16, torch.float16):
            from torch.nn.attention.varlen import varlen_attn         # FlashAttention over all rows at once: launches cost, not FLOPs
            return varlen_attn(q, k, v, self.starts, self.starts, self.longest, self.longest, window_size=(-1, 0), enable_gqa=gqa)
        for (B, T), *qkv in zip(self.shapes, q.split(sizes), k.split(sizes), v.split(sizes)):
            q, k, v = (t.unflatten(0, (B, T)).transpose(1, 2) for t in qkv)                   # (B, H or K, T, D)
            if cache is not None:
                cache[0][b:b + B, :, :T], cache[1][b:b + B, :, :T], b = k, v, b + B
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
            out.append(y.transpose(1, 2).flatten(0, 1))
        return torch.cat(out)

    attend = _attend               # GPT.compile_layers() puts one in its place that the compiler leaves alone


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        H, K, D, C = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.dim
        self.head_dim = D
        self.q_proj = nn.Linear(C, H * D, bias=cfg.qkv_bias)
        self.k_proj = nn.Linear(C, K * D, bias=cfg.qkv_bias)
        self.v_proj = nn.Linear(C, K * D, bias=cfg.qkv_bias)
        self.o_proj = nn.Linear(H * D, C, bias=False)
        self.q_norm = RMSNorm(D, cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    def forward(self, x, cos, sin, rows, cache=None, slots=None, seen=None):
        heads = lambda proj: proj(x).unflatten(-1, (-1, self.head_dim))       # (P, H or K, D)
        q, k, v = heads(self.q_proj), heads(self.k_proj), heads(self.v_proj)
        q = apply_rope(self.q_norm(q), cos, sin).type_as(v)                   # autocast may have raised the norm to fp32
        k = apply_rope(self.k_norm(k), cos, sin).type_as(v)
        if slots is None:                                                     # training and prefill: plain causal attention
            y = rows.attend(q, k, v, cache)
        else:                                                                 # decoding: row b writes slot slots[b]
            b, n = torch.arange(len(x), device=x.device), seen.size(-1)       # and sees those before: (B, 1, 1, n);
            cache[0][b, :, slots], cache[1][b, :, slots] = k, v               # is_causal would align top-left. The queries of
            q = q.unflatten(1, (k.size(1), -1))                               # a group read their k and v as rows of one product
            y = F.scaled_dot_product_attention(q, cache[0][:, :, :n], cache[1][:, :, :n], attn_mask=seen).flatten(1, 2)
        return self.o_proj(y.flatten(1))


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.up_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.down_proj = nn.Linear(cfg.ffn_dim, cfg.dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x, cos, sin, rows, cache=None, slots=None, seen=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, rows, cache, slots, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


def tiles(t, dim=0):
    """t cut along the vocabulary: on the CPU into parts that stay in the cache, where MKL would first copy the whole matrix and
    later passes would fetch the logits from memory (V 49,152, 32 rows: a product takes 27 ms instead of 36); else t whole."""
    return t.split(1024, dim) if t.device.type == "cpu" else (t,)


def chunk_of(vocab_size):
    """Rows whose logits fill 128 MB in fp32: what losses and entropies hold at a time, so that neither V nor the tokens make it more.

    >>> chunk_of(151936)
    220
    """
    return max(1, 2 ** 25 // vocab_size)


def buckets(order, lens):
    """Cut items in ascending order of length so that none is padded by more than 15 % -> lists of items.

    >>> buckets([0, 2, 1], [10, 13, 11])
    [[0, 2], [1]]
    """
    out = []
    for i in order:
        if not out or lens[i] > 1.15 * lens[out[-1][0]]:
            out.append([])
        out[-1].append(i)
    return out


class GPT(nn.Module):
    """model(x) -> hidden states (B, T, C); model.logits(x) -> logits (B, T, V); model.generate(prompts, n) -> new tokens."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.checkpointing = False                # keep only each block's input for backward, and compute the rest again
        cos, sin = rope_tables(cfg)               # on the CPU even where the model is built on the meta device, without memory
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:      # writers to the residual stream start smaller, so that depth does not inflate it (GPT-2)
                writer = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layers) if writer else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @classmethod
    def from_pretrained(cls, path, dtype=torch.float32, device="cpu"):
        """The model of a Hugging Face folder, of a name on the hub, or of a .pt of ours; errors as load_checkpoint's."""
        path, model, stored, _ = _open(path)
        return _load(path, model, stored, dtype, device)

    def forward(self, x, cache=None, slots=None, width=None):
        """Hidden states after the last norm.

        x (B, T) token ids. Right padding needs no mask: attention is causal, so real tokens never see what comes after.
        Or a list of such buckets, each with its own B and T: all their positions share every matrix product, laid end to
        end, and only attention looks at one bucket at a time. Then the result is (P, C), P positions in that order.
        cache: one (k, v) pair per layer, each (B, K, S, D), B all rows; filled from slot 0 (prefill) or, when `slots` (B,) is given and
        T = 1, at slot slots[b] of row b (decoding). A token's slot is its position. Returns (B, T, C).
        width: slots that decoding looks at, more than the largest of `slots`; None: all S.
        """
        buckets = x if isinstance(x, list) else [x]
        rows = Rows([tuple(b.shape) for b in buckets], self.cos.device)
        if slots is None:
            longest = max(T for _, T in rows.shapes)
            if longest > self.cfg.max_seq_len:
                raise ValueError(f"model: {longest} tokens in a row, max_seq_len is {self.cfg.max_seq_len}; "
                                 "shorten the data or raise max_seq_len")
            at, seen = torch.cat([torch.arange(T, device=self.cos.device).repeat(B) for B, T in rows.shapes]), None
        else:
            width = width or cache[0][0].size(2)
            at, seen = slots, (torch.arange(width, device=slots.device) <= slots[:, None])[:, None, None]
        cos, sin = self.cos[at][:, None], self.sin[at][:, None]               # (P, 1, D)
        h = self.embed_tokens(torch.cat([b.flatten() for b in buckets]))      # (P, C)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for i, layer in enumerate(self.layers):
            if recompute:                         # no dropout, so no random state to bring back
                h = checkpoint(layer, h, cos, sin, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                h = layer(h, cos, sin, rows, cache[i] if cache else None, slots, seen)
        h = self.norm(h)
        return h if isinstance(x, list) else h.unflatten(0, rows.shapes[0])   # (B, T, C)

    def compile_layers(self):
        """torch.compile each layer in place: one graph for the layers of all models of a shape.

        It sees P alone, attention stays outside: another number of buckets is no reason to compile again. Said here, not by a
        decorator, which would import the compiler: two of six seconds, for which a wrong flag or a score would wait.
        """
        Rows.attend = torch.compiler.disable(Rows._attend)
        for layer in self.layers:
            layer.compile(dynamic=True)

    def logits(self, x):
        return self.lm_head(self(x))                                          # (B, T, V): small use only

    def forward_flops(self, n_tokens, n_pairs, n_loss):
        """FLOPs of one forward pass; backward costs twice that again, so training costs 3x.

        n_tokens: tokens through the trunk; n_pairs: (query, key) pairs that attention scores, T(T+1)/2 a row; n_loss:
        rows through the head; numbers, or tensors with an entry per sample. Counts matrix products only, 2 FLOPs a
        multiply-add (Kaplan et al. 2020, appendix B).
        """
        c = self.cfg
        trunk = sum(p.numel() for p in self.layers.parameters() if p.dim() == 2)
        return 2 * trunk * n_tokens + 4 * c.n_layers * c.n_heads * c.head_dim * n_pairs + 2 * c.vocab_size * c.dim * n_loss

    # ------------------------------------------------------------------------------------------------------------------
    # generation

    def new_cache(self, batch, slots):
        shape = (batch, self.cfg.n_kv_heads, slots, self.cfg.head_dim)
        p = self.embed_tokens.weight
        dtype = torch.get_autocast_dtype(p.device.type) if torch.is_autocast_enabled(p.device.type) else p.dtype
        return [(p.new_zeros(shape, dtype=dtype), p.new_zeros(shape, dtype=dtype)) for _ in self.layers]

    @torch.inference_mode()
    def generate(self, prompts, max_new_tokens, temperature=0.0, stop_ids=(), seed=0, weak=None, lam=1.0):
        """Continue each prompt; batched, cached, and in fp32 token for token what one-by-one uncached decoding gives.

        prompts: token lists of any lengths >= 1. temperature 0 is greedy (ties: lowest id). stop_ids end a row and are not
        returned, so a row of max_new_tokens tokens was truncated. seed: an int, or one per prompt; every row draws from
        its own generator, so a result depends on neither batch size nor order when seeds are given per prompt.
        weak, lam: decode from lam * z_self + (1 - lam) * z_weak instead: 0 < lam < 1 is WMSS's fused model (eq. 5),
        lam = 1 + mu is contrastive decoding z + mu (z - z_weak). Returns one list of new tokens per prompt.
        Raises ValueError on an empty prompt, where prompt + new tokens exceed max_seq_len, on a negative temperature, and
        where there are not as many seeds as prompts.
        """
        if not prompts:
            return []
        lens = [len(p) for p in prompts]
        if min(lens) == 0:
            raise ValueError(f"generate: prompt {lens.index(0)} is empty; expected at least one token")
        if max(lens) + max_new_tokens > self.cfg.max_seq_len:
            raise ValueError(f"generate: longest prompt {max(lens)} + max_new_tokens {max_new_tokens} exceed "
                             f"max_seq_len {self.cfg.max_seq_len}; ask for fewer or raise max_seq_len")
        seeds = seed if isinstance(seed, (list, tuple)) else [seed + 1_000_003 * i for i in range(len(prompts))]
        if temperature < 0 or len(seeds) != len(prompts):
            raise ValueError(f"generate: expected temperature >= 0 and one seed or {len(prompts)}, "
                             f"found {temperature} and {len(seeds)}")
        device = self.embed_tokens.weight.device
        branches = [self] if weak is None else [self, weak]
        if temperature > 0:
            draws = torch.stack([torch.rand(max_new_tokens, dtype=torch.float64,
                                            generator=torch.Generator().manual_seed(int(s))) for s in seeds]).to(device)

        def head(hs):                                                         # one (n, C) per branch -> logits (n, V)
            z = [torch.cat([F.linear(h, w) for w in tiles(m.lm_head.weight)], -1).float() for m, h in zip(branches, hs)]
            return z[0] if weak is None else lam * z[0] + (1 - lam) * z[1]

        # Prefill in order of length, bucketed and padded on the right: a token's slot is its position, pads lie beyond every
        # real token, and decoding overwrites them one by one before anybody may look at them.
        order = sorted(range(len(prompts)), key=lens.__getitem__)
        x = [torch.nn.utils.rnn.pad_sequence([torch.tensor(prompts[i]) for i in bucket], batch_first=True).to(device)
             for bucket in buckets(order, lens)]
        rows, pos = torch.tensor(order, device=device), torch.tensor(sorted(lens), device=device) - 1     # slot of the newest token
        starts = torch.tensor([0] + [b.size(1) for b in x for _ in b], device=device).cumsum(0)[:-1]
        slots = max(lens) + max_new_tokens
        caches = [m.new_cache(len(prompts), slots) for m in branches]
        z = head([m(x, cache)[starts + pos] for m, cache in zip(branches, caches)])
        step = Decoder(lambda token, pos, width: head(
            [m(token[:, None], cache, pos, width)[:, 0] for m, cache in zip(branches, caches)]), slots, device)
        out, stop, done = [[] for _ in prompts], set(stop_ids), [False] * len(prompts)
        for t in range(max_new_tokens):
            if temperature == 0:
                token = z.argmax(-1)
            else:                                                             # inverse CDF in float64
                cdf = torch.softmax(z.double() / temperature, -1).cumsum(-1)
                token = (cdf <= draws[rows, t, None] * cdf[:, -1:]).sum(-1)
            alive = []
            for i, (row, tok) in enumerate(zip(order, token.tolist())):
                done[row] = done[row] or tok in stop
                if not done[row]:
                    out[row].append(tok)
                    alive.append(i)
            if t == max_new_tokens - 1 or not alive:
                break
            if len(alive) <= 0.75 * len(token):       # finished rows leave the batch; not one by one, each time copies the cache
                keep, order = torch.tensor(alive, device=device), [order[i] for i in alive]
                rows, pos, token = rows[keep], pos[keep], token[keep]
                caches = [[(k[keep], v[keep]) for k, v in cache] for cache in caches]
            pos = pos + 1
            z = step(token, pos, lens[order[-1]] + t + 1)                     # the longest prompt is last
        return out


class Decoder:
    """Calls step(token (n,), pos (n,), width) -> logits (n, V); on a GPU, where some 600 launches take longer than their work,
    replays it as a CUDA graph: as it is the first time that a shape comes, which warms it up, captured the second time.

    Widths are rounded up there, so that a shape lasts for many tokens. The logits are overwritten by the next call.
    """
    graphs = True               # bench.py measures without, too

    def __init__(self, step, slots, device):
        self.step, self.slots, self.graphs = step, slots, self.graphs and device.type == "cuda"
        self.shape, self.graph = None, None

    def __call__(self, token, pos, width):
        if not self.graphs:
            return self.step(token, pos, width)
        width = min(self.slots, -(-width // 128) * 128)
        if self.shape != (len(token), width):
            self.shape, self.graph = (len(token), width), None
            return self.step(token, pos, width)
        if self.graph is None:
            self.token, self.pos, self.graph = token.clone(), pos.clone(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.z = self.step(self.token, self.pos, width)
        self.token.copy_(token)
        self.pos.copy_(pos)
        self.graph.replay()
        return self.z


# ----------------------------------------------------------------------------------------------------------------------
# Hugging Face's config.json

# our field -> its key
KEYS = dict(vocab_size="vocab_size", dim="hidden_size", n_layers="num_hidden_layers", n_heads="num_attention_heads",
            n_kv_heads="num_key_value_heads", head_dim="head_dim", ffn_dim="intermediate_size",
            max_seq_len="max_position_embeddings", norm_eps="rms_norm_eps", tie_embeddings="tie_word_embeddings")
# what transformers takes a missing key for; not where that is one released model's number (qwen2: 32 kv heads): refused
ABSENT = {"llama": dict(num_key_value_heads=None, head_dim=None), "qwen2": dict(head_dim=None), "qwen3": {}}
# model_type -> what tells it from the others
FAMILIES = {"llama": dict(qkv_bias=False, qk_norm=False), "qwen2": dict(qkv_bias=True, qk_norm=False),
            "qwen3": dict(qkv_bias=False, qk_norm=True)}
ROPE_KEYS = dict(rope_factor="factor", rope_low="low_freq_factor", rope_high="high_freq_factor",
                 rope_original_len="original_max_position_embeddings")


def config_from_hf(c):
    """config.json as a dict -> GPTConfig. Raises ValueError that names whatever this model does not compute."""
    kind = c.get("model_type")
    if kind not in FAMILIES:
        why = ("; Gemma has a SentencePiece tokenizer, norms on both sides of each block, GELU gates and scaled embeddings, "
               "none of which is here") * str(kind).startswith("gemma")
        raise ValueError(f"model_type {kind!r} is not one that we have ({', '.join(FAMILIES)}){why}")
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}            # before and since transformers 5
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    for wrong, what in (
        (c.get("hidden_act", "silu") != "silu", f"hidden_act {c.get('hidden_act')!r}; we have silu"),
        (c.get("attention_bias") and kind != "qwen2", "attention_bias true, also on o_proj; we have one on q, k and v (qwen2)"),
        (c.get("mlp_bias"), "mlp_bias true; our MLP has no bias"),
        (c.get("use_sliding_window") or "sliding_attention" in (c.get("layer_types") or ()),
         "sliding windows (use_sliding_window, layer_types); our attention sees everything before it"),
        (c.get("quantization_config"), "quantization_config; we read fp32, bf16 and fp16 weights"),
        (rope_type not in ("default", "llama3"), f"rope_type {rope_type!r}; we have default and llama3"),
        ((rope.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1) != 1, "partial_rotary_factor; ours is 1"),
    ):
        if wrong:
            raise ValueError(f"config.json asks for {what}")
    full = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, **ABSENT[kind], **c}
    missing = [k for k in KEYS.values() if k not in full] + [
        f"rope_scaling.{k}" for k in ROPE_KEYS.values() if rope_type == "llama3" and k not in rope]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    theta = rope.get("rope_theta", c.get("rope_theta", 10_000.0))
    scaling = {ours: rope[theirs] for ours, theirs in ROPE_KEYS.items()} if rope_type == "llama3" else {}
    return GPTConfig(**{ours: full[theirs] for ours, theirs in KEYS.items()}, rope_theta=theta, **scaling, **FAMILIES[kind])


def config_to_hf(cfg):
    """GPTConfig -> config.json, in the layout that transformers 4 and 5 and vLLM read. ValueError where no type fits."""
    flags = dict(qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm)
    kind = next((k for k, f in FAMILIES.items() if f == flags), None)
    if kind is None:
        raise ValueError("qkv_bias together with qk_norm is no model type that transformers has; export one or the other")
    scaling = dict(rope_type="llama3", **{theirs: getattr(cfg, ours) for ours, theirs in ROPE_KEYS.items()})
    return dict(architectures=[f"{kind.capitalize()}ForCausalLM"], model_type=kind, hidden_act="silu",
                **{theirs: getattr(cfg, ours) for ours, theirs in KEYS.items()}, rope_theta=float(cfg.rope_theta),
                rope_scaling=scaling if cfg.rope_factor != 1 else None, attention_bias=False, use_cache=True)


# ----------------------------------------------------------------------------------------------------------------------
# safetensors: 8 bytes that say how long the header is, the header in JSON, the tensors' bytes. Thirty lines instead of the
# package: each tensor is read straight to where it stays, so that loading costs the weights' own memory and one tensor more.

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_header(path):
    """A safetensors file -> {name: (shape, function that reads the tensor)}. ValueError if it is not whole."""
    name, size = os.path.basename(path), os.path.getsize(path)
    try:
        with open(path, "rb") as f:
            start = 8 + int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(start - 8)) if start <= size else None
        header.pop("__metadata__", None)
        entries = {k: (e["dtype"], tuple(map(int, e["shape"])), *map(int, e["data_offsets"])) for k, e in header.items()}
        end = start + max(stop for *_, stop in entries.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name} has no whole safetensors header: it was cut short, or is another kind of file") from None
    if size != end:
        raise ValueError(f"{name} is {size:,} bytes, its header speaks of {end:,}: it was cut short, copy it again")
    found = {}
    for key, (kind, shape, begin, stop) in entries.items():
        if kind not in DTYPES:
            raise ValueError(f"{key} in {name} is of dtype {kind}; we read {', '.join(DTYPES)}")
        if not 0 <= begin <= stop == begin + math.prod(shape) * DTYPES[kind].itemsize:
            raise ValueError(f"{key} in {name} does not have the bytes of its shape {shape}")
        found[key] = shape, lambda d=DTYPES[kind], s=shape, at=start + begin: _read_tensor(path, d, s, at)
    return found


def _read_tensor(path, dtype, shape, at):
    w = torch.empty(shape, dtype=dtype)
    with open(path, "rb") as f:
        f.seek(at)
        if f.readinto(w.view(-1).view(torch.uint8).numpy()) != w.nbytes:
            raise SystemExit(f"checkpoint: {path} became shorter while it was read")
    return w


def write_safetensors(path, tensors):
    """{name: tensor} -> file at path, atomically; the header's "format" is what transformers asks for."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors.items():
        kind = next(k for k, d in DTYPES.items() if d == t.dtype)
        header[name] = dict(dtype=kind, shape=list(t.shape), data_offsets=[at, at := at + t.nbytes])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)                                           # so that mapped tensors lie aligned

    def write(f):
        f.write(len(text).to_bytes(8, "little") + text)
        for t in tensors.values():
            f.write(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    write_atomically(path, write)


# ----------------------------------------------------------------------------------------------------------------------
# checkpoints: a .pt of ours, tensors and primitives only, so that loading one never runs code; or a Hugging Face folder

FORMAT = "wmss-checkpoint-1"


def save_checkpoint(path, model, **meta):
    """Write {model, model_config, **meta} to path: beside it, fsynced, renamed, so that a crash leaves old or new, never half."""
    obj = dict(format=FORMAT, model_config=asdict(model.cfg), model=model.state_dict(), **meta)
    write_atomically(path, lambda f: torch.save(obj, f))


def write_atomically(path, write):
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    tmp = f"{path}.tmp{os.getpid()}"
    try:
        with open(tmp, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        if os.path.exists(tmp):
            os.remove(tmp)


def _open_pt(path):
    try:
        meta = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if meta.pop("format") != FORMAT:
            raise ValueError
        cfg, weights, _ = meta.pop("model_config"), meta.pop("model"), meta.setdefault("tokenizer", None)
        stored = {name: (tuple(w.shape), lambda w=w: w) for name, w in weights.items()}
    except Exception as e:               # a truncated archive, another program's file, text: torch raises seven kinds of error
        raise SystemExit(f"checkpoint: {path} is not a whole {FORMAT} file written by train_wmss.py ({type(e).__name__}); "
                         "pass one of the .pt files in an out/<name>/ folder") from None
    try:
        return GPTConfig(**cfg), stored, meta
    except (TypeError, ValueError) as e:
        raise ValueError(f"its tensors do not fit its own config: {e}") from None


def _read_json(folder, name):
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            content = json.load(f)
        if isinstance(content, dict):
            return content
    except (OSError, ValueError) as e:
        raise ValueError(f"{name} cannot be read ({e})") from None
    raise ValueError(f"{name} is no JSON object")


def _open_folder(path):
    try:
        cfg = config_from_hf(_read_json(path, "config.json"))
    except (TypeError, AttributeError) as e:                                  # a list for a name, a name for an object
        raise ValueError(f"config.json holds a value of another kind than expected ({e})") from None
    names, index = ["model.safetensors"], "model.safetensors.index.json"
    if not os.path.isfile(os.path.join(path, names[0])):
        if not os.path.isfile(os.path.join(path, index)):
            raise ValueError(f"expected model.safetensors or {index}, found neither; transformers' save_pretrained writes one")
        weight_map = _read_json(path, index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index} has no weight_map, tensor -> file")
        names = sorted(set(weight_map.values()))
        missing = [n for n in names if not os.path.isfile(os.path.join(path, n))]
        if missing:
            raise ValueError(f"{len(missing)} of {len(names)} shards are missing: {', '.join(missing)}; copy them here")
    stored = {}
    for name in names:
        for key, entry in read_header(os.path.join(path, name)).items():
            ours = key.removeprefix("model.")
            if ours in stored:
                raise ValueError(f"{key} is there twice, the second time in {name}")
            if not ours.endswith("rotary_emb.inv_freq"):                      # old exports: we compute these ourselves
                stored[ours] = entry
    from plumbing.tokenizer import TOKENIZER_FILES                                     # here, as weights alone need none of it
    files = {}
    for name in TOKENIZER_FILES:
        if os.path.isfile(os.path.join(path, name)):
            with open(os.path.join(path, name), encoding="utf-8") as f:
                files[name] = f.read()
    return cfg, stored, dict(tokenizer_files=files, config={})


def _local(name):
    """A path that is there: `name` itself, or the folder into which the hub's model of that name was downloaded."""
    name = os.fspath(name)
    if os.path.exists(name):
        return name
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.endswith(".pt") or os.path.isdir(name.split("/")[0]):
        raise SystemExit(f"checkpoint: expected a .pt file or a Hugging Face folder at {name}, found none; "
                         "train one first (python train_wmss.py -h)")
    from huggingface_hub import snapshot_download                             # comes with `datasets`
    try:
        return snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.txt", "*.jinja"])
    except Exception as e:               # no network, no such model, no permission: the hub raises a dozen kinds of error
        raise SystemExit(f"checkpoint: there is no {name} here, and the hub did not give it ({type(e).__name__}); "
                         "check the name and the network, or pass a folder that holds it") from None


class _NoInit(torch.overrides.TorchFunctionMode):
    """nn.init returns at once: the file brings the values (and normal_ on the meta device alone imports 70 MB, for 1.5 s)."""

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if getattr(f, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return f(*args, **(kwargs or {}))


def _open(path):
    """-> (path, model without memory, {name: (shape, read)}, meta): all that is known before a weight is read, and checked."""
    path = _local(path)
    try:
        cfg, stored, meta = _open_folder(path) if os.path.isdir(path) else _open_pt(path)
        with torch.device("meta"), _NoInit():
            model = GPT(cfg)
        want, found = ({k: tuple(v.shape) for k, v in model.state_dict().items()}, {k: s for k, (s, _) in stored.items()})
        if cfg.tie_embeddings and "lm_head.weight" not in found:              # tied: the head may be stored again, or not
            del want["lm_head.weight"]
        wrong = [f"{k} is missing" for k in want if k not in found] + [f"{k} is unexpected" for k in found if k not in want] + [
            f"{k} is {found[k]}, expected {want[k]}" for k in want if found.get(k, want[k]) != want[k]]
        if wrong:
            more = f", and {len(wrong) - 3} more" * (len(wrong) > 3)
            raise ValueError(f"its tensors do not fit its own config: {', '.join(wrong[:3])}{more}")
    except ValueError as e:
        raise SystemExit(f"checkpoint: {path}: {e}") from None
    return path, model, stored, meta


def _load(path, model, stored, dtype, device):
    """Fill a model of _open(): tensor by tensor, so that at most one is held twice; dtype None keeps the file's."""
    weights = {name: read().to(device=device, dtype=dtype) for name, (_, read) in stored.items()}
    if model.cfg.tie_embeddings:
        embed = weights["embed_tokens.weight"]
        if not torch.equal(weights.setdefault("lm_head.weight", embed), embed):
            raise SystemExit(f"checkpoint: {path}: its config ties the head to the embeddings, and yet lm_head.weight "
                             "differs from embed_tokens.weight; set tie_word_embeddings to what it should be")
        weights["lm_head.weight"] = embed
    model.load_state_dict(weights, assign=True)
    if model.cfg.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight                      # assign made two parameters of it
    return model.to(device)                                                   # the RoPE tables


def _fingerprint(path, cfg, meta, tokenizer=None):
    """Set meta["tokenizer"] of a folder: that of its tokenizer.json, None where it has none. A .pt carries its own."""
    if "tokenizer" not in meta:
        meta["tokenizer"] = None
        if "tokenizer.json" in meta["tokenizer_files"]:
            from plumbing.tokenizer import fingerprint, load_tokenizer
            try:
                enc = load_tokenizer(meta["tokenizer_files"])
                if enc.n_vocab > cfg.vocab_size:                              # fewer is usual: heads are padded to round numbers
                    raise ValueError(f"tokenizer.json has {enc.n_vocab:,} ids, the model embeds {cfg.vocab_size:,}; "
                                     "put the tokenizer there that it was trained with")
            except ValueError as e:
                raise SystemExit(f"checkpoint: {path}: {e}") from None
            meta["tokenizer"] = fingerprint(enc)
    if tokenizer is not None and meta["tokenizer"] != tokenizer:
        raise SystemExit(f"checkpoint: {path} was trained with tokenizer {meta['tokenizer']}, this run uses {tokenizer}; "
                         "token ids would mean other text, so use the data and code that it was trained with")
    return meta


def read_config(path, tokenizer=None):
    """(GPTConfig, meta) of whatever load_checkpoint takes, with all its checks but without reading a weight."""
    path, model, _, meta = _open(path)
    return model.cfg, _fingerprint(path, model.cfg, meta, tokenizer)


def load_checkpoint(path, device="cpu", tokenizer=None, dtype=torch.float32):
    """Read a .pt of ours, a Hugging Face folder or a hub name -> (GPT on device, meta: everything else that is there).

    meta: tokenizer (data.fingerprint), tokenizer_files (name -> text), config (the run's flags, {} for a folder) and more
    from a .pt. tokenizer: fingerprint that it must have. dtype: None keeps the file's. A .pt stays mapped into memory: the
    file may be replaced (a rename) while the model lives, but not overwritten in place.
    Raises SystemExit with one sentence, before a weight is read, for: no such file; one that is not ours or not whole; a
    missing shard; a model type, RoPE, activation or quantisation that we do not have; a key or shape that does not fit the
    config; a foreign tokenizer.
    """
    path, model, stored, meta = _open(path)
    _fingerprint(path, model.cfg, meta, tokenizer)
    return _load(path, model, stored, dtype, device), meta


def export(source, folder, dtype=None, shard_bytes=5_000_000_000):
    """Write a checkpoint as a Hugging Face folder: safetensors, config.json, generation_config.json, the tokenizer's files.

    source: whatever load_checkpoint takes. dtype None keeps the file's. Above shard_bytes the weights are cut into shards
    with an index. The folder is written beside its place and renamed: whole or not there. SystemExit if it is there already
    with something in it, if no model type has the config's flags, or if the checkpoint does not say what its tokens mean.
    """
    if os.path.lexists(folder) and not (os.path.isdir(folder) and not os.listdir(folder)):
        raise SystemExit(f"export: {folder} exists and is not an empty folder; name another")
    path, model, stored, meta = _open(source)
    from plumbing.tokenizer import fingerprint, load_tokenizer, tokenizer_files, toy_encoding
    trained_with = _fingerprint(path, model.cfg, meta)["tokenizer"]
    if meta.get("tokenizer_files") and trained_with:
        enc = load_tokenizer(meta["tokenizer_files"])
    elif trained_with == fingerprint(toy_encoding()):
        enc = toy_encoding()
    else:
        raise SystemExit(f"export: {path} carries no tokenizer files, and its tokens are not the built-in task's; "
                         "nobody could read what the exported model writes")
    try:
        config = config_to_hf(model.cfg)
    except ValueError as e:
        raise SystemExit(f"export: {path}: {e}") from None
    files = dict(tokenizer_files(enc))
    if "tokenizer_config.json" in files:       # a class of its own, GPT2Tokenizer say, rebuilds the splits of tokenizer.json by guess:
        files["tokenizer_config.json"] = json.dumps(           # transformers 5.23 leaves SmolLM2's numbers whole, 83 GSM8K rows differ
            {**json.loads(files["tokenizer_config.json"]), "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2)
    ids = dict(bos_token_id=enc.bos_id, eos_token_id=enc.stop_ids if len(enc.stop_ids) > 1 else enc.end_id)
    model = _load(path, model, stored, dtype, "cpu")
    weights = {name if name.startswith("lm_head.") else f"model.{name}": w for name, w in model.state_dict().items()
               if not (name == "lm_head.weight" and model.cfg.tie_embeddings)}
    config.update(ids, torch_dtype=str(model.embed_tokens.weight.dtype).removeprefix("torch."))
    files["config.json"] = json.dumps(config, indent=2)
    files["generation_config.json"] = json.dumps({**json.loads(files.get("generation_config.json", "{}")), **ids}, indent=2)

    shards, room = [], 0
    for name, w in weights.items():
        if w.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = w
        room -= w.nbytes
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    else:
        files["model.safetensors.index.json"] = json.dumps(dict(
            metadata=dict(total_size=sum(w.nbytes for w in weights.values())),
            weight_map={key: name for name, shard in zip(names, shards) for key in shard}), indent=2)
    folder = os.path.normpath(folder)                                         # a/ and a are one place
    half = f"{folder}.tmp{os.getpid()}"
    try:
        for name, shard in zip(names, shards):
            write_safetensors(os.path.join(half, name), shard)
        for name, text in files.items():
            write_atomically(os.path.join(half, name), lambda f: f.write(text.encode()))
        os.replace(half, folder)
    finally:
        shutil.rmtree(half, ignore_errors=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command = parser.add_subparsers(required=True, metavar="export").add_parser("export", help=export.__doc__.splitlines()[0])
    command.add_argument("checkpoint", help="a .pt of out/<name>/, or a Hugging Face folder")
    command.add_argument("folder", help="the folder to write; must not exist, or be empty")
    command.add_argument("--dtype", choices=("keep", "fp32", "bf16"), default="keep", help="of the weights (%(default)s)")
    args = parser.parse_args(argv)
    export(args.checkpoint, args.folder, dict(keep=None, fp32=torch.float32, bf16=torch.bfloat16)[args.dtype])
    print(f"wrote {args.folder}: " + ", ".join(sorted(os.listdir(args.folder))))


if __name__ == "__main__":
    main()
