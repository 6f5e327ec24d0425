"""experiments/plan.py: the formulas for memory, beside what PyTorch keeps; and what is quoted of
them."""

import os
import re
import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, os.path.join(ROOT, "experiments"))
import plan

from model import GPT, GPTConfig
from plumbing.cli import preset_notes

SHAPE = dict(vocab_size=100, dim=160, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32,
             ffn_dim=448)
SHAPES = [dict(), dict(qk_norm=True), dict(qkv_bias=True, tie_embeddings=False)]


@pytest.mark.parametrize("more", SHAPES)
def test_parameters_are_counted(more):
    """Bug: a tied head counted twice, norms or biases forgotten."""
    cfg = GPTConfig(**SHAPE, **more)
    assert plan.parameters(cfg) == sum(p.numel() for p in GPT(cfg).parameters())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("more", SHAPES[:2])
def test_activations_are_what_a_forward_pass_keeps(more, checkpointing):
    """Bug: a tensor of each token that the formula forgets, or that two operations share."""
    model = GPT(GPTConfig(**SHAPE, **more)).train()
    model.checkpointing = checkpointing
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    x = [torch.randint(100, (8, 25)), torch.randint(100, (8, 50))]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(x)
    found = sum(storage.nbytes() for storage in kept.values())
    want = plan.activations(model.cfg, 600, "fp32", checkpointing)
    if checkpointing:                           # in backward, one block more
        want -= 600 * plan.saved_by_a_block(model.cfg, "fp32")
        found -= 600 * 2 * (160 + 32) * 4       # the last norm, cos and sin
    assert want == pytest.approx(found, rel=0.1)


def test_the_formulas_give_the_peaks_that_were_measured_on_a_gpu():
    """Bug: a formula that fits the CPU alone. docs/speed.md has the peaks of an H200: passes of 64
    samples of GSM8K's lengths, 12,600 positions with padding."""
    measured = {("SmolLM2-135M", "sft-steps"): 12.5, ("SmolLM2-135M", "joint"): 24.5,
                ("SmolLM2-135M", "frozen"): 13.1, ("Qwen3-0.6B", "sft-steps"): 32.0,
                ("Qwen3-0.6B", "joint"): 63.4}
    for (model, arm), gb in measured.items():
        peak = plan.peak(plan.MODELS[model], arm, passes=1, tokens=12600)
        assert peak / 1e9 == pytest.approx(gb, rel=0.1), (model, arm)


def test_shards_divide_what_can_be_divided():
    """Bug: AdamW's state of a frozen model, a shard of what every rank holds whole."""
    c = plan.MODELS["Qwen3-4B"]
    one, eight = plan.memory(c, "joint"), plan.memory(c, "joint", "fsdp", 8)
    assert eight["weights"] == one["weights"] / 8 and eight["adamw"] == one["adamw"] / 8
    assert eight["gradients"] == one["gradients"]                   # sums over passes
    assert plan.memory(c, "joint", "fsdp", 8, passes=1)["gradients"] == one["gradients"] / 8
    assert plan.memory(c, "frozen")["weak"] == one["weights"]
    assert plan.memory(c, "sft-steps")["weak"] == 0
    assert plan.memory(c, "joint", "ddp", 8) == one


def read(path):
    with open(os.path.join(ROOT, path)) as f:
        return f.read()


def test_quoted_rows_are_those_of_the_table():
    """Bug: a preset or a page that promises another memory than the formulas do."""
    text = plan.table()
    for model, arm, row in (("Qwen3-4B", "joint", "65.0"), ("Qwen3-4B", "sft-steps", "33.0"),
                            ("Qwen3-4B", "frozen", "39.2")):
        (line,) = re.findall(rf"^{model} +{arm} +fsdp 8 GPUs.*$", text, re.M)
        assert line.endswith(f" {row}")
    notes = preset_notes("qwen3-4b-am")
    assert "65 GB (SFT 33, --weak frozen 39; whole models on each GPU: 167)" in notes
    assert "65 GB joint, 33 GB SFT" in read("docs/real_models.md")
    page = read("docs/speed.md")
    for model, c in plan.MODELS.items():
        cells = []
        for arm in plan.ARMS:
            sums = [sum(plan.memory(c, arm, parallel, ranks, checkpointing=True).values()) / 1e9
                    for parallel, ranks in (("ddp", 1), ("fsdp", 8), ("fsdp", 64))]
            cells.append(" / ".join(f"{gb:.1f}" for gb in sums))
        assert f"| {model} | {' | '.join(cells)} |" in page
