"""model.py against a float64 reference, transformers and the FLOPs that torch counts."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from tiny_models import CONFIGS, PARITY, close, theirs, tiny

from model import GPT, Attention, GPTConfig


def reference_logits(model, tokens):
    """The same network in numpy float64, position by position and head by head; RoPE as a
    product of complex numbers."""
    c, w = model.cfg, {k: v.double().numpy() for k, v in model.state_dict().items()}
    half = c.head_dim // 2
    freq = c.rope_theta ** (-np.arange(half) * 2 / c.head_dim)

    def norm(x, g):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.norm_eps) * g

    def cut(a, head):
        return a[:, head * c.head_dim : (head + 1) * c.head_dim]

    def rope(x, pos):
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * pos * freq)
        return np.concatenate([z.real, z.imag])

    x = w["embed_tokens.weight"][tokens]
    for i in range(c.n_layers):
        p = f"layers.{i}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = (
            h @ w[f"{p}self_attn.{n}_proj.weight"].T + w.get(f"{p}self_attn.{n}_proj.bias", 0)
            for n in "qkv"
        )
        y = np.zeros((len(tokens), c.n_heads * c.head_dim))
        for head in range(c.n_heads):
            group = head // (c.n_heads // c.n_kv_heads)
            qh, kh, vh = cut(q, head), cut(k, group), cut(v, group)
            if c.qk_norm:
                qh, kh = (
                    norm(qh, w[p + "self_attn.q_norm.weight"]),
                    norm(kh, w[p + "self_attn.k_norm.weight"]),
                )
            qh, kh = (np.stack([rope(a[t], t) for t in range(len(tokens))]) for a in (qh, kh))
            for t in range(len(tokens)):
                s = kh[: t + 1] @ qh[t] / np.sqrt(c.head_dim)
                a = np.exp(s - s.max())
                y[t, head * c.head_dim : (head + 1) * c.head_dim] = (a / a.sum()) @ vh[: t + 1]
        x = x + y @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = (h @ w[f"{p}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["norm.weight"]) @ w["lm_head.weight"].T


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_a_float64_reference(name):
    """Bug: RoPE interleaved or of the wrong sign, QK-norm after RoPE, a kv head given to the
    wrong query heads, eps, scale."""
    model = tiny(**CONFIGS[name]).double()
    tokens = np.random.default_rng(1).integers(0, 23, 17)
    with torch.no_grad():
        ours = model.logits(torch.from_numpy(tokens)[None])[0].numpy()
    np.testing.assert_allclose(
        ours, reference_logits(model, tokens), rtol=2e-5, atol=2e-5
    )  # RoPE tables are fp32


# Weights by a formula, read by transformers 5.23 (fp32, CPU): its logits of ids 0 to 4 after 40
# tokens
GOLDEN = {
    "llama, rope scaled, tied": (
        dict(
            n_heads=4,
            n_kv_heads=2,
            rope_theta=500.0,
            rope_factor=8.0,
            rope_original_len=24,
            tie_embeddings=True,
        ),
        [-0.36629, -0.43068, 0.15657, 0.12765, -0.93300],
    ),
    "qwen2": (
        dict(n_heads=2, head_dim=8, qkv_bias=True, norm_eps=1e-5, tie_embeddings=False),
        [-1.50055, -2.19757, -0.65813, 1.59675, 2.11958],
    ),
    "qwen3": (
        dict(n_heads=2, n_kv_heads=1, head_dim=12, qk_norm=True, tie_embeddings=False),
        [-0.34846, 1.04342, 0.86962, -0.67913, -1.16548],
    ),
}


def by_formula(**kw):
    """A model whose i-th weight is a fixed function of i, whatever torch's generators do."""
    model, at = (
        GPT(GPTConfig(vocab_size=31, dim=16, n_layers=2, ffn_dim=24, max_seq_len=64, **kw)),
        0,
    )
    for name, p in sorted(model.named_parameters()):
        wave = torch.sin(1.7 * torch.arange(at, at + p.numel(), dtype=torch.float64) ** 1.1)
        p.data = ((1 + 0.3 * wave) if "norm" in name else 0.6 * wave).float().view(p.shape)
        at += p.numel()
    return model.eval(), torch.arange(40)[None] * 7 % 31


@pytest.mark.parametrize("name", GOLDEN)
def test_logits_equal_golden_ones(name):
    """Bug: a change of the network on a machine that has no transformers to notice it."""
    kw, want = GOLDEN[name]
    model, x = by_formula(**kw)
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(x)[0, -1, :5], torch.tensor(want), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", PARITY)
def test_logits_and_gradients_equal_those_of_transformers(name, tmp_path):
    """Bug: a network that agrees with its own authors' reading of the paper but not with the
    released weights' code."""
    hf, x = (
        theirs(name, tmp_path),
        torch.randint(0, 50, (2, 61)),
    )  # beyond LLAMA3's 24 original positions
    model = GPT.from_pretrained(tmp_path)
    want, ours = hf(x).logits, model.logits(x)
    close(ours, want)
    for z in (want, ours):
        F.cross_entropy(z[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
    grads = {k: p.grad for k, p in model.named_parameters()}
    assert len(grads) == len(list(hf.parameters()))
    for k, p in hf.named_parameters():
        close(grads[k.removeprefix("model.")], p.grad)


@pytest.mark.parametrize("kw", (dict(), dict(n_heads=4, n_kv_heads=2, qk_norm=True)))
def test_checkpointing_changes_memory_and_nothing_else(kw):
    """Bug: gradients of another function; a flag that recomputes and yet keeps every activation."""
    model, x, found = tiny(**kw).train(), torch.arange(60).view(2, 30) % 23, {}
    for model.checkpointing in (False, True):
        kept = {}

        def pack(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t.nbytes
            return t

        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            z = model.logits(x)
        for p in model.parameters():
            kept.pop(p.data_ptr(), None)
        z.square().mean().backward()
        found[model.checkpointing] = (
            sum(kept.values()),
            z.detach(),
            [p.grad for p in model.parameters()],
        )
    (much, z0, g0), (little, z1, g1) = found[False], found[True]
    assert torch.equal(z0, z1) and all(torch.equal(a, b) for a, b in zip(g0, g1, strict=True))
    assert little < 0.3 * much, (little, much)
    with torch.no_grad():
        assert torch.equal(model.logits(x), z0)


@pytest.mark.parametrize(
    "bad",
    (
        dict(dim=30, n_heads=4),
        dict(n_heads=4, n_kv_heads=3),
        dict(dim=12, n_heads=4),
        dict(rope_low=4.0),
        dict(dim=32.0),
        dict(n_heads=0),
        dict(vocab_size="97"),
        dict(max_seq_len=None),
    ),
)
def test_impossible_shapes_are_refused(bad):
    """Bug: a view() error from the middle of the first forward pass."""
    with pytest.raises(ValueError, match="model: "):
        GPTConfig(**bad)


def test_flops_equal_the_matrix_products_counted_by_torch():
    """Bug: a hand formula that forgets the head, a projection or grouped queries."""
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny(n_heads=4, n_kv_heads=2, head_dim=12)
    x, k = torch.zeros(3, 16, dtype=torch.long), 7
    with (
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model.lm_head(model(x)[0, :k])
    # torch counts all T*T pairs, the causal half and the other
    assert counter.get_total_flops() == model.cfg.forward_flops(3 * 16, 3 * 16 * 16, k)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_end_to_end_give_what_each_row_alone_gives(name):
    """Bug: a packed row that sees its neighbour, positions that run on across rows, a gradient
    lost where buckets are joined."""
    model, g = tiny(scale=3.0, **CONFIGS[name]), torch.Generator().manual_seed(1)
    x = [torch.randint(23, shape, generator=g) for shape in ((2, 9), (3, 4), (1, 1), (2, 17))]
    grads, outs = [], []
    for forward in (
        model,
        lambda buckets: torch.cat([model(row[None])[0] for bucket in buckets for row in bucket]),
    ):
        model.zero_grad()
        h = forward(x)
        (h * torch.linspace(-1, 1, h.numel()).view(h.shape)).sum().backward()
        outs.append(h.detach())
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


def test_one_compiled_graph_serves_all_layers_models_and_buckets(monkeypatch):
    """Bug: compiled layers that compute something else, or are compiled again for each layer,
    model or number of buckets."""
    from torch._dynamo.utils import counters

    plain, compile_ = [tiny(seed) for seed in (0, 1)], torch.nn.Module.compile
    batches = [[torch.randint(23, (B, 10 - B)) for B in range(1, n)] for n in range(2, 8)]
    want = [m(x) for m in plain for x in batches]
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **how: compile_(self, backend="eager", **how)
    )  # inductor takes 40 s
    # compile_layers() replaces it: put back afterwards
    monkeypatch.setattr(Attention, "call", staticmethod(Attention.call))
    torch.compiler.reset()
    counters.clear()
    for m in plain:
        m.compile_layers()
    torch.testing.assert_close([m(x) for m in plain for x in batches], want)
    assert (
        0 < counters["stats"]["unique_graphs"] <= 4
    )  # before and after attention, for static and for changing P


def test_model_py_run_as_a_program_names_the_place_of_export(tmp_path):
    """Bug: the command of old notes ends without a word, or with a traceback."""
    command = [sys.executable, f"{ROOT}/model.py", "export", "a.pt", "folder"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "python -m plumbing.export CHECKPOINT FOLDER" in done.stderr
