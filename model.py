"""The transformer: a decoder of the Llama/Qwen family written out by hand, its KV-cached generation, its checkpoints.

RMSNorm, rotary positions, grouped-query attention, SwiGLU: one class each. Parameters carry their Hugging Face names. The
model returns hidden states, not logits: whoever needs logits applies the head, in row chunks and at loss positions only,
so that the (B*T, V) matrix never exists (at V = 151,936 and 4,096 tokens it would be 2.5 GB in fp32).

    python -c "from model import *; print(GPT(GPTConfig()))"                      # what the built-in task trains
    python -c "from model import *; m, meta = load_checkpoint('out/toy/wmss.pt'); print(meta['commit'])"

Shapes: B batch, T time, C width (dim), H heads, K key/value heads, D head_dim, V vocabulary, S slots of the KV cache.
"""

import math
import os
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


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
    norm_eps: float = 1e-6
    qk_norm: bool = False           # RMSNorm on each head's q and k, before RoPE (Qwen3)
    qkv_bias: bool = False          # bias on q, k and v (Qwen2)
    tie_embeddings: bool = True     # the head shares the embedding's matrix

    def __post_init__(self):
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


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight.to(x.dtype), self.eps)


def rope_tables(length, head_dim, theta):
    """cos and sin of position * theta^(-2i/D), each (length, D), in fp32; both halves of D hold the same angles."""
    freq = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), freq)      # float64: position 40,000 still exact
    angle = torch.cat([angle, angle], dim=-1)                                 # (length, D)
    return angle.cos().float(), angle.sin().float()


def apply_rope(x, cos, sin):
    """Rotate the pairs (i, i + D/2) of x (..., T, D). Half-split as in Hugging Face's weights, not interleaved as in Meta's."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


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

    def forward(self, x, cos, sin, cache=None, slots=None, seen=None):
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)      # (B, H, T, D)
        k = self.k_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)      # (B, K, T, D)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q = apply_rope(self.q_norm(q), cos, sin).type_as(v)                   # autocast may have raised the norm to fp32
        k = apply_rope(self.k_norm(k), cos, sin).type_as(v)
        gqa = q.size(1) != k.size(1)
        if slots is None:                                                     # training and prefill: plain causal attention
            if cache is not None:
                cache[0][:, :, :T], cache[1][:, :, :T] = k, v
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
        else:                                                                 # decoding: row b writes slot slots[b]
            rows, n = torch.arange(B, device=x.device), seen.size(-1)         # and sees those before: (B, 1, 1, n);
            cache[0][rows, :, slots], cache[1][rows, :, slots] = k[:, :, 0], v[:, :, 0]     # is_causal would align top-left
            y = F.scaled_dot_product_attention(q, cache[0][:, :, :n], cache[1][:, :, :n], attn_mask=seen, enable_gqa=gqa)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


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

    def forward(self, x, cos, sin, cache=None, slots=None, seen=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, slots, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


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
        cos, sin = rope_tables(cfg.max_seq_len, cfg.head_dim, cfg.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:      # writers to the residual stream start smaller, so that depth does not inflate it (GPT-2)
                writer = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layers) if writer else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x, cache=None, slots=None):
        """Hidden states after the last norm.

        x (B, T) token ids. Right padding needs no mask: attention is causal, so real tokens never see what comes after.
        cache: one (k, v) pair per layer, each (B, K, S, D); filled from slot 0 (prefill) or, when `slots` (B,) is given and
        T = 1, at slot slots[b] of row b (decoding). A token's slot is its position. Returns (B, T, C).
        """
        if slots is None:
            if x.size(1) > self.cfg.max_seq_len:
                raise ValueError(f"model: {x.size(1)} tokens in a row, max_seq_len is {self.cfg.max_seq_len}; "
                                 "shorten the data or raise max_seq_len")
            cos, sin, seen = self.cos[:x.size(1)], self.sin[:x.size(1)], None             # (T, D)
        else:                                                                 # nobody has written beyond the last slot in use
            cos, sin = self.cos[slots][:, None, None], self.sin[slots][:, None, None]     # (B, 1, 1, D)
            seen = (torch.arange(int(slots.max()) + 1, device=x.device) <= slots[:, None])[:, None, None]
        h = self.embed_tokens(x)                                              # (B, T, C)
        for i, layer in enumerate(self.layers):
            h = layer(h, cos, sin, cache[i] if cache else None, slots, seen)
        return self.norm(h)

    def logits(self, x):
        return self.lm_head(self(x))                                          # (B, T, V): small use only

    def forward_flops(self, n_tokens, n_pairs, n_loss):
        """FLOPs of one forward pass; backward costs twice that again, so training costs 3x.

        n_tokens: tokens through the trunk; n_pairs: (query, key) pairs that attention scores, T(T+1)/2 a row; n_loss:
        rows through the head. Counts matrix products only, 2 FLOPs a multiply-add (Kaplan et al. 2020, appendix B).
        """
        c = self.cfg
        trunk = sum(p.numel() for n, p in self.layers.named_parameters() if p.dim() == 2)
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
        branches = [(self, 1.0)] if weak is None else [(self, lam), (weak, 1 - lam)]
        if temperature > 0:
            draws = torch.stack([torch.rand(max_new_tokens, dtype=torch.float64,
                                            generator=torch.Generator().manual_seed(int(s))) for s in seeds]).to(device)

        def head(hs):                                                         # one (n, C) per branch -> logits (n, V)
            return sum(c * m.lm_head(h).float() for (m, c), h in zip(branches, hs))

        # Prefill, padded on the right: a token's slot is its position, pads lie beyond every real token, and decoding
        # overwrites them one by one before anybody may look at them.
        x = torch.zeros(len(prompts), max(lens), dtype=torch.long, device=device)
        for row, p in zip(x, prompts):
            row[:len(p)] = torch.tensor(p)
        pos = torch.tensor(lens, device=device) - 1                           # slot of each row's newest token
        rows = torch.arange(len(prompts), device=device)
        caches = [m.new_cache(len(prompts), max(lens) + max_new_tokens) for m, _ in branches]
        z = head([m(x, cache)[rows, pos] for (m, _), cache in zip(branches, caches)])
        out, stop, done = [[] for _ in prompts], set(stop_ids), [False] * len(prompts)
        for t in range(max_new_tokens):
            if temperature == 0:
                token = z.argmax(-1)
            else:                                                             # inverse CDF in float64
                cdf = torch.softmax(z.double() / temperature, -1).cumsum(-1)
                token = (cdf <= draws[rows, t, None] * cdf[:, -1:]).sum(-1)
            alive = []
            for i, (row, tok) in enumerate(zip(rows.tolist(), token.tolist())):
                done[row] = done[row] or tok in stop
                if not done[row]:
                    out[row].append(tok)
                    alive.append(i)
            if t == max_new_tokens - 1 or not alive:
                break
            if len(alive) <= 0.75 * len(token):       # finished rows leave the batch; not one by one, each time copies the cache
                keep = torch.tensor(alive, device=device)
                rows, pos, token = rows[keep], pos[keep], token[keep]
                caches = [[(k[keep], v[keep]) for k, v in cache] for cache in caches]
            pos = pos + 1
            z = head([m(token[:, None], cache, pos)[:, 0] for (m, _), cache in zip(branches, caches)])
        return out


# ----------------------------------------------------------------------------------------------------------------------
# checkpoints: tensors and primitives only, so that loading one never runs code

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


def load_checkpoint(path, device="cpu", tokenizer=None):
    """Read a checkpoint -> (GPT on device, meta: everything else in the file).

    tokenizer: fingerprint that the file must carry (data.fingerprint). Raises SystemExit with one sentence for a missing
    file, one that is not ours or not whole, a model whose tensors do not fit its config, a foreign tokenizer.
    """
    if not os.path.isfile(path):
        raise SystemExit(f"checkpoint: expected a file at {path}, found none; train it first (python train_wmss.py -h)")
    try:
        meta = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if meta.pop("format") != FORMAT:
            raise ValueError
        cfg, weights, trained_with = meta.pop("model_config"), meta.pop("model"), meta.get("tokenizer")
    except Exception as e:               # a truncated archive, another program's file, text: torch raises seven kinds of error
        raise SystemExit(f"checkpoint: {path} is not a whole {FORMAT} file written by train_wmss.py ({type(e).__name__}); "
                         "pass one of the .pt files in an out/<name>/ folder") from None
    if tokenizer is not None and trained_with != tokenizer:
        raise SystemExit(f"checkpoint: {path} was trained with tokenizer {trained_with}, this run uses {tokenizer}; "
                         "token ids would mean other text, so use the data and code that it was trained with")
    try:
        model = GPT(GPTConfig(**cfg))
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AttributeError) as e:
        reason = str(e).splitlines()[-1].strip()
        raise SystemExit(f"checkpoint: the tensors of {path} do not fit its own config: {reason}") from None
    return model.to(device), meta
