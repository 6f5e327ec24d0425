"""The transformer of the Llama/Qwen family: RMSNorm, RoPE, grouped-query attention, SwiGLU.

The parameters carry their Hugging Face names: folders of the types llama (SmolLM2 too), qwen2 and
qwen3 load by name. The model returns hidden states; whoever needs logits applies the head
to a few rows at a time, so that the (B * T, V) matrix never exists (Qwen3, 4,096 tokens: 2.5 GB).

    python -c "from model import *; print(GPT(GPTConfig()))"
    python -c "from model import *; print(load_checkpoint('out/toy/wmss.pt')[0].cfg)"

Shapes: B rows, T tokens a row, P positions of all rows, end to end; C width (dim), H query heads,
K key/value heads, D head_dim, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plumbing import checkpoints, decode
from plumbing.devices import has_varlen


@dataclass
class GPTConfig:
    vocab_size: int = 98            # V; the tokenizer says how many (the built-in one 97)
    dim: int = 96                   # C, width of the residual stream
    n_layers: int = 2               # blocks, one after the other
    n_heads: int = 4                # H
    n_kv_heads: int | None = None   # K; None: H, plain multi-head attention
    head_dim: int | None = None     # D; None: C / H. Not always that: Qwen3-0.6B has H * D = 2 C
    ffn_dim: int | None = None      # width inside SwiGLU; None: 8/3 C, up to a multiple of 32
    max_seq_len: int = 256          # rows of the RoPE table; a longer input is refused
    rope_theta: float = 10_000.0    # base of RoPE's frequencies
    rope_factor: float = 1.0        # Llama 3.1 divides low frequencies by this; 1: as they are
    rope_low: float = 1.0           # low: fewer turns than this in rope_original_len positions
    rope_high: float = 4.0          # high, left alone: more turns than this; linear in between
    rope_original_len: int = 8192   # positions that the model had seen before it was stretched
    norm_eps: float = 1e-6          # added to the mean square in RMSNorm
    qk_norm: bool = False           # RMSNorm on each head's q and k, before RoPE (Qwen3)
    qkv_bias: bool = False          # bias on q, k and v (Qwen2)
    tie_embeddings: bool = True     # the head shares the embedding's matrix

    def __post_init__(self):
        checkpoints.check_config(self)     # a config.json may hold anything
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.head_dim = self.head_dim or self.dim // self.n_heads
        self.ffn_dim = self.ffn_dim or 32 * math.ceil(8 * self.dim / 3 / 32)

    def forward_flops(self, n_tokens: float | Tensor, n_pairs: float | Tensor,
                      n_loss: float | Tensor) -> float | Tensor:
        """FLOPs of one forward pass; backward costs twice that again, so training costs 3x.

        n_tokens: tokens through the blocks; n_pairs: (query, key) pairs that attention scores,
        T (T + 1) / 2 a row; n_loss: rows through the head; numbers, or (n,) with one per sample.
        Only matrix products count, 2 FLOPs a multiply-add (Kaplan et al. 2020, appendix B).
        """
        width = self.n_heads * self.head_dim                # of q: C in most models
        attention = self.dim * (2 * width + 2 * self.n_kv_heads * self.head_dim)
        weights = self.n_layers * (attention + 3 * self.dim * self.ffn_dim)
        scores = 4 * self.n_layers * width * n_pairs
        return 2 * weights * n_tokens + scores + 2 * self.vocab_size * self.dim * n_loss


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, (x.size(-1),), self.weight.to(x.dtype), self.eps)


def rope_tables(cfg: GPTConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/D), each (max_seq_len, D), fp32 but computed in fp64.

    Both halves of D hold the same angles. With rope_factor > 1 (Llama 3.1), frequencies that turn
    fewer than rope_low times in rope_original_len positions are divided by it, those that turn more
    than rope_high times stay as they are, and the others lie in between.
    """
    exact = dict(dtype=torch.float64, device="cpu")        # the CPU: also under the meta device
    freq = cfg.rope_theta ** (-torch.arange(0, cfg.head_dim, 2, **exact) / cfg.head_dim)  # (D/2,)
    turns = cfg.rope_original_len * freq / (2 * math.pi)
    fast = ((turns - cfg.rope_low) / (cfg.rope_high - cfg.rope_low)).clamp(0, 1)
    freq = freq * (fast + (1 - fast) / cfg.rope_factor)
    angle = torch.outer(torch.arange(cfg.max_seq_len, **exact), freq)
    return angle.cos().float().repeat(1, 2), angle.sin().float().repeat(1, 2)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x (P, H, D); Meta's own Llama weights pair neighbours."""
    a, b = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat([-b, a], dim=-1) * sin.to(x.dtype)


class Rows:
    """Keeps rows apart that lie end to end: buckets of shapes (B_i, T_i), P = sum B_i * T_i."""

    def __init__(self, shapes: list[tuple[int, int]], device: torch.device):
        self.shapes = shapes
        self.starts = None
        if len(shapes) > 1 and has_varlen(device):
            lengths = [T for B, T in shapes for _ in range(B)]
            starts = torch.tensor([0] + lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
            self.starts = starts.pin_memory().to(device, non_blocking=True)
            self.longest = max(lengths)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention within each row; q (P, H, D), k and v (P, K, D) -> (P, H, D)."""
        gqa = q.size(1) != k.size(1)
        half, D = q.dtype in (torch.bfloat16, torch.float16), q.size(-1)
        if self.starts is not None and half and D % 8 == 0 and D <= 256:
            # FlashAttention over all rows in one launch: short rows cost launches, not FLOPs
            from torch.nn.attention.varlen import varlen_attn
            return varlen_attn(q, k, v, self.starts, self.starts, self.longest, self.longest,
                               window_size=(-1, 0), enable_gqa=gqa)
        sizes = [B * T for B, T in self.shapes]
        out = []
        for shape, *qkv in zip(self.shapes, *(t.split(sizes) for t in (q, k, v)), strict=True):
            qkv = [t.unflatten(0, shape).transpose(1, 2) for t in qkv]        # (B, H or K, T, D)
            y = F.scaled_dot_product_attention(*qkv, is_causal=True, enable_gqa=gqa)
            out.append(y.transpose(1, 2).flatten(0, 1))                       # (B * T, H, D)
        return torch.cat(out)


class Attention(nn.Module):
    def __init__(self, cfg: GPTConfig):
        super().__init__()
        H, K, D, C = cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.dim
        self.head_dim = D
        self.q_proj = nn.Linear(C, H * D, bias=cfg.qkv_bias)
        self.k_proj = nn.Linear(C, K * D, bias=cfg.qkv_bias)
        self.v_proj = nn.Linear(C, K * D, bias=cfg.qkv_bias)
        self.o_proj = nn.Linear(H * D, C, bias=False)
        self.q_norm = RMSNorm(D, cfg.norm_eps) if cfg.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(D, cfg.norm_eps) if cfg.qk_norm else nn.Identity()

    @staticmethod
    def call(attend, q, k, v):     # compile_layers() tells the compiler to leave it alone
        return attend(q, k, v)

    def forward(self, x, cos, sin, attend):
        q = self.q_proj(x).unflatten(-1, (-1, self.head_dim))                 # (P, H, D)
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))                 # (P, K, D)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))                 # (P, K, D)
        q = apply_rope(self.q_norm(q), cos, sin).type_as(v)    # autocast may have made the norm's
        k = apply_rope(self.k_norm(k), cos, sin).type_as(v)    # result fp32 beside a bf16 v
        y = self.call(attend, q, k, v)                                        # (P, H, D)
        return self.o_proj(y.flatten(1))                                      # (P, C)


class MLP(nn.Module):
    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.gate_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.up_proj = nn.Linear(cfg.dim, cfg.ffn_dim, bias=False)
        self.down_proj = nn.Linear(cfg.ffn_dim, cfg.dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.self_attn = Attention(cfg)
        self.post_attention_layernorm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.mlp = MLP(cfg)

    def forward(self, x, cos, sin, attend):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class GPT(nn.Module):
    """model(x) -> hidden (B, T, C); model.logits(x) -> (B, T, V); model.generate(prompts, n)."""
    config_class, rows_class = GPTConfig, Rows

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.lm_head = nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.checkpointing = False    # True: keep each block's input only, recompute in backward
        cos, sin = rope_tables(cfg)                               # (max_seq_len, D) each
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                # writers to the residual stream start smaller: depth must not inflate it (GPT-2)
                writer = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * cfg.n_layers) if writer else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, x: Tensor | list[Tensor], places: Tensor | None = None,
                attends: Sequence[Callable] | None = None) -> Tensor:
        """Hidden states after the last norm.

        x: token ids (B, T) -> (B, T, C). Padding on the right needs no mask: attention is causal,
            so no real token sees it. Or a list of buckets, each with its own B and T -> (P, C):
            all P positions share every matrix product, only attention keeps the rows apart.
        places (P,), attends: each token's place in its row, and one function (q, k, v) -> y per
            layer. None: whole rows and Rows.attend; plumbing/decode.py passes those of its cache.
        """
        buckets = x if isinstance(x, list) else [x]
        rows = Rows([tuple(b.shape) for b in buckets], self.cos.device)
        longest = max(T for B, T in rows.shapes)
        if longest > self.cfg.max_seq_len:
            raise ValueError(f"model: {longest} tokens in a row, max_seq_len is "
                             f"{self.cfg.max_seq_len}; shorten the data or raise it")
        if places is None:
            parts = [torch.arange(T, device=self.cos.device).repeat(B) for B, T in rows.shapes]
            places = torch.cat(parts)                                             # (P,)
        attends = attends or [rows.attend] * len(self.layers)
        cos, sin = self.cos[places][:, None], self.sin[places][:, None]           # (P, 1, D)
        h = self.embed_tokens(torch.cat([b.flatten() for b in buckets]))          # (P, C)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for layer, attend in zip(self.layers, attends, strict=True):
            if recompute:             # without dropout there is no random state to bring back
                h = checkpoint(layer, h, cos, sin, attend,
                               use_reentrant=False, preserve_rng_state=False)
            else:
                h = layer(h, cos, sin, attend)
        h = self.norm(h)
        return h if isinstance(x, list) else h.unflatten(0, x.shape)              # (B, T, C)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (B, T, V) of token ids (B, T), stored whole: for small inputs."""
        return self.lm_head(self(x))

    def compile_layers(self) -> None:
        """torch.compile each layer in place: one graph for the layers of all models of a shape.

        Attention stays outside: the graph sees only P, so other buckets need no new one. A method,
        not a decorator, since importing the compiler takes two seconds.
        """
        Attention.call = staticmethod(torch.compiler.disable(Attention.call))
        for layer in self.layers:
            layer.compile(dynamic=True)

    @torch.inference_mode()
    def generate_plain(self, prompt: list[int], max_new_tokens: int, temperature: float = 0.0,
                       stop_ids: Sequence[int] = (), seed: int = 0,
                       weak: "GPT | None" = None, lam: float = 1.0) -> list[int]:
        """Continue one prompt, one token at a time: what generate() computes, without its speed."""
        tokens = list(prompt)
        generator = torch.Generator().manual_seed(seed)
        for draw in torch.rand(max_new_tokens, dtype=torch.float64, generator=generator).tolist():
            x = torch.tensor([tokens], device=self.cos.device)                    # (1, T)
            z = self.logits(x)[0, -1].float().cpu()                               # (V,)
            if weak is not None:                                                  # paper v2, eq. 5
                z = lam * z + (1 - lam) * weak.logits(x)[0, -1].float().cpu()
            token = int(z.argmax())
            if temperature > 0:       # the first id whose cumulative probability exceeds the draw
                cdf = torch.softmax(z.double() / temperature, -1).cumsum(-1)
                token = int((cdf <= draw * cdf[-1]).sum())
            if token in stop_ids:
                break
            tokens.append(token)
        return tokens[len(prompt):]

    def generate(self, prompts: list[list[int]], max_new_tokens: int, **how) -> list[list[int]]:
        """generate_plain() of many prompts, batched and cached; **how: see plumbing/decode.py."""
        return decode.generate(self, prompts, max_new_tokens, **how)

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype | None = torch.float32,
                        device: str | torch.device = "cpu") -> "GPT":
        """The model of whatever load_checkpoint takes; its tokenizer is not looked at."""
        return checkpoints.Checkpoint(cls, path, weights_only=True).read(dtype, device)


# Explained in plumbing/checkpoints.py, which cannot import this file and gets GPT as an argument.
save_checkpoint = checkpoints.save                   # (path, model, weights, **meta)
load_checkpoint = partial(checkpoints.load, GPT)     # (path, device, tokenizer, dtype) -> GPT, meta
read_config = partial(checkpoints.read_config, GPT)  # (path, tokenizer) -> GPTConfig, meta


if __name__ == "__main__":
    raise SystemExit("model: nothing to run here; a checkpoint becomes a Hugging Face folder by "
                     "python -m plumbing.export CHECKPOINT FOLDER [--dtype bf16]")
