"""How much memory a GPU needs: formulas over GPTConfig, which bench.py compares with measurements.

    python experiments/bench.py plan                # the table, then peaks measured on this CPU
    python -c "from experiments.plan import *; print(table(tokens=16384, checkpointing=True))"

P parameters cost 16 bytes each in training: weights, gradients and AdamW's two moments in fp32.
DDP keeps all of them on each GPU. FSDP2 keeps a shard, of all but the gradients where a step takes
several passes: between passes ranks exchange nothing, so each keeps whole sums of its own; and
embedding and head (R parameters) are whole while a step computes. A frozen weak model costs its
weights alone.

Shapes: C width, H query and K key/value heads, D head_dim, F ffn_dim, L layers, V vocabulary;
tokens: those of one pass, padding included. All results in bytes.
"""

from model import GPTConfig
from plumbing.loss import chunk_of

QWEN3 = dict(vocab_size=151936, head_dim=128, n_kv_heads=8, rope_theta=1e6, qk_norm=True,
             max_seq_len=4096)
MODELS = {
    "SmolLM2-135M": GPTConfig(vocab_size=49152, dim=576, n_layers=30, n_heads=9, n_kv_heads=3,
                              ffn_dim=1536, max_seq_len=4096),
    "Qwen3-0.6B": GPTConfig(dim=1024, n_layers=28, n_heads=16, ffn_dim=3072, **QWEN3),
    "Qwen3-4B": GPTConfig(dim=2560, n_layers=36, n_heads=32, ffn_dim=9728, **QWEN3),
    "Qwen3-8B": GPTConfig(dim=4096, n_layers=36, n_heads=32, ffn_dim=12288, tie_embeddings=False,
                          **QWEN3),
}
ARMS = ("sft-steps", "frozen", "joint")
COLUMNS = ("weights", "gradients", "adamw", "weak", "copies", "activations", "logits")
GB = 1e9


def block_parameters(c):
    heads, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    norms = 2 * c.dim + (2 * c.head_dim if c.qk_norm else 0)
    biases = heads + 2 * kv if c.qkv_bias else 0
    return c.dim * (2 * heads + 2 * kv) + 3 * c.dim * c.ffn_dim + norms + biases


def root_parameters(c):
    """Those outside the blocks: embedding, head and last norm."""
    return c.vocab_size * c.dim * (1 if c.tie_embeddings else 2) + c.dim


def parameters(c):
    return c.n_layers * block_parameters(c) + root_parameters(c)


def saved_by_a_block(c, kind):
    """Bytes a token that a block keeps for its backward pass.

    kind: "fp32" on a CPU; "autocast" on a GPU, where the residual stream is fp32 and each product
    keeps a bf16 copy of its input; "bf16" on a GPU, where all is bf16 (FSDP2's policy).
    """
    C, F, D = c.dim, c.ffn_dim, c.head_dim
    heads, kv = c.n_heads * D, c.n_kv_heads * D
    qk = heads + kv if c.qk_norm else 0
    if kind == "fp32":          # a norm on the CPU keeps its input twice; y of attention, too
        return 4 * (6 * C + 3 * heads + 2 * kv + 4 * F + 2 * qk)
    attention_and_mlp = 2 * (2 * heads + 2 * kv + 4 * F)
    if kind == "autocast":
        return 4 * 2 * C + 2 * 5 * C + attention_and_mlp + 4 * qk + 2 * 4 * D
    return 2 * 4 * C + attention_and_mlp + 2 * qk + 2 * 2 * D


def activations(c, tokens, kind, checkpointing, trained=True):
    """Bytes between forward and backward; of a frozen model those of one block."""
    block = tokens * saved_by_a_block(c, kind)
    if not trained:
        return block // 2
    if not checkpointing:
        return c.n_layers * block
    residual = (2 if kind == "bf16" else 4) * c.dim         # each block's input, then one block
    return c.n_layers * tokens * residual + block


def logits(c, kind, models, trained, chunk_rows):
    """Bytes of the loss: one chunk of logits, the gradients of the trained heads, bf16 copies."""
    head = c.vocab_size * c.dim
    chunk = 4 * c.vocab_size * (chunk_rows or chunk_of(c.vocab_size))
    if kind == "fp32":
        return chunk + 4 * head * trained
    return 2 * chunk + (4 * trained + 2 * models + 2) * head


def memory(c, arm="sft-steps", parallel="ddp", ranks=1, tokens=16384, passes=2, checkpointing=False,
           kind=None, weak=None, chunk_rows=None):
    """A model in training -> {column: bytes of one rank at the peak of a step}.

    c: GPTConfig of the strong model, weak: of the weak one (default: the same). passes: forward
    passes in a step; with one, no gradients of other passes are there while it computes.
    """
    sharded = parallel == "fsdp" and ranks > 1
    kind = kind or ("bf16" if sharded else "autocast")
    models = [(c, True)]
    if arm != "sft-steps":
        models.append((weak or c, arm == "joint"))
    share = 1 / ranks if sharded else 1
    found = dict.fromkeys(COLUMNS, 0)
    for i, (m, trained) in enumerate(models):
        P, R, block = parameters(m), root_parameters(m), block_parameters(m)
        kept = dict(weights=4 * P * share)
        if trained:
            kept["adamw"] = 8 * P * share
            kept["gradients"] = 4 * P * (share if passes == 1 else 1)
        for name, size in kept.items():
            found["weak" if i else name] += size
        if sharded:             # gathered: the root, this block and the next one, and their buffers
            found["copies"] += 4 * R + 4 * block * (4 if kind == "fp32" else 2)
        elif kind == "autocast" and trained:
            found["copies"] += 2 * m.n_layers * block
        found["activations"] += activations(m, tokens, kind, checkpointing, trained)
    trained = sum(t for _, t in models)
    found["logits"] = logits(c, kind, len(models), trained, chunk_rows)
    return found


def peak(c, arm="sft-steps", parallel="ddp", ranks=1, passes=2, **how):
    """Bytes at the peak: while the loss is computed, or after the backward pass."""
    found = memory(c, arm, parallel, ranks, passes=passes, **how)
    at_loss = sum(found.values())
    if passes > 1 or (parallel == "ddp" and ranks > 1):     # DDP keeps its buckets
        return at_loss
    trained = [c, how.get("weak") or c][:2 if arm == "joint" else 1]
    share = 1 / ranks if parallel == "fsdp" else 1
    gradients = sum(4 * parameters(m) * share for m in trained)
    after = at_loss - found["activations"] - found["logits"] + 4 * c.vocab_size * c.dim
    return max(at_loss - gradients, after)


def table(tokens=16384, checkpointing=True):
    """The memory of a GPU, in GB, for models, arms, and numbers of GPUs -> text."""
    head = "".join(f"{name:>12s}" for name in (*COLUMNS, "sum"))
    lines = [f"GB a GPU; passes of {tokens:,} tokens, several a step, checkpointing "
             f"{'on' if checkpointing else 'off'}", f"{'':42s}{head}"]
    for name, c in MODELS.items():
        for arm in ARMS:
            for parallel, ranks in (("ddp", 1), ("fsdp", 8), ("fsdp", 64)):
                found = memory(c, arm, parallel, ranks, tokens, checkpointing=checkpointing)
                gpus = "1, 8, 64" if parallel == "ddp" else str(ranks)
                row = [*found.values(), sum(found.values())]
                lines.append(f"{name:14s}{arm:10s}{parallel:5s}{gpus + ' GPUs':13s}" +
                             "".join(f"{x / GB:12.1f}" for x in row))
    return "\n".join(lines)
