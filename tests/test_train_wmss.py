"""train_wmss.py: the loss module, one step, and whole tiny runs: equal whatever the split into
micro-batches, each flag at work, each fork a few lines."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from runs import (
    BASELINES,
    TINY,
    answers,
    clean_set,
    from_m1,
    gaps_of,
    records,
    refuse,
    same,
    scores,
    text_flags,
    trace,
    weights,
)

import data
import entropy
import eval_math
import train_wmss
from data import collate
from entropy import gap_weights
from model import GPT, GPTConfig, load_checkpoint, read_config
from plumbing.export import export
from plumbing.loss import linear_cross_entropy
from plumbing.report import score_table
from plumbing.run import step_flops
from plumbing.tasks import tokenizer_of
from plumbing.tokenizer import load_tokenizer, toy_encoding
from plumbing.toy_code import CODE_FAMILIES, toy_code
from train_wmss import Config, MixedLoss, lr_at

# -------------------------------------------------------------------------------------------------
# one step


def small(seed, **more):
    torch.manual_seed(seed)
    return GPT(GPTConfig(vocab_size=97, **{**dict(dim=16, n_layers=1, n_heads=2), **more}))


def loss_of(mixed_loss, batch, lam, mask=None, y=None):
    """The loss of a batch, as the training loop calls it."""
    mask = batch.loss_mask if mask is None else mask
    y = batch.y if y is None else y
    positions = mask.flatten().nonzero()[:, 0]
    return mixed_loss(batch.x, y.flatten()[positions], positions, lam)


def test_the_loss_is_the_papers_by_the_book():
    """Bug: hidden states of another position, lam on the weak model, a head of the other model."""
    b = collate(clean_set(toy_encoding(), 5, 0))
    strong, weak = small(0), small(1, dim=8, n_layers=2)
    for lam in (0.3, 0.5):
        z = lam * strong.logits(b.x) + (1 - lam) * weak.logits(b.x)
        want = torch.nn.functional.cross_entropy(z[b.loss_mask], b.y[b.loss_mask], reduction="sum")
        torch.testing.assert_close(loss_of(MixedLoss(strong, weak), b, lam), want)
    z = strong.logits(b.x)[b.loss_mask]
    want = torch.nn.functional.cross_entropy(z, b.y[b.loss_mask], reduction="sum")
    torch.testing.assert_close(loss_of(MixedLoss(strong), b, 1.0), want)


def test_a_batch_of_only_prompts_gives_zero_not_nan():
    """Bug: NaN weights after one unlucky micro-batch."""
    b = collate(clean_set(toy_encoding(), 4, 0))
    for weak in (None, small(1)):
        mixed_loss = MixedLoss(small(0), weak, True, 64)
        loss = loss_of(mixed_loss, b, 0.5, mask=torch.zeros_like(b.loss_mask))
        loss.backward()
        assert loss.item() == 0
        assert all(p.grad is None or not p.grad.any() for p in mixed_loss.parameters())


def test_labels_of_prompts_and_padding_change_nothing_and_every_completion_label_counts():
    """Bug: the official stage 3, which also trained on the prompt; a first or last completion
    token left out."""
    b = collate(clean_set(toy_encoding(), 3, 0))
    mixed_loss = MixedLoss(small(0), small(1), True, 64)
    with torch.no_grad():
        base = loss_of(mixed_loss, b, 0.5).item()
        assert loss_of(mixed_loss, b, 0.5, y=torch.where(b.loss_mask, b.y, 5)).item() == base
        for row, t in b.loss_mask.nonzero().tolist():
            y = b.y.clone()
            y[row, t] = 6
            assert y[row, t] == b.y[row, t] or loss_of(mixed_loss, b, 0.5, y=y).item() != base


def test_frozen_weak_gets_no_gradient_and_joint_weak_does():
    """Bug: `freeze` that freezes nothing, or `joint` that trains one branch."""
    b = collate(clean_set(toy_encoding(), 3, 0))
    for joint in (True, False):
        mixed_loss = MixedLoss(small(0), small(1), joint, 64)
        loss_of(mixed_loss, b, 0.5).backward()
        assert all(p.grad is not None for p in mixed_loss.strong.parameters())
        assert all((p.grad is not None) == joint for p in mixed_loss.weak.parameters())


def test_a_control_takes_the_place_of_the_loss():
    """Bug: a control that is stored and never called, or that is not told of the weak model."""
    b = collate(clean_set(toy_encoding(), 3, 0))
    seen = []

    def control(branches, y):
        seen.append([c for c, _, _ in branches])
        return 3 * linear_cross_entropy(branches, y)

    plain = loss_of(MixedLoss(small(0), small(1)), b, 0.25)
    tripled = loss_of(MixedLoss(small(0), small(1), control=control), b, 0.25)
    assert tripled.item() == pytest.approx(3 * plain.item()) and seen == [[0.25, 0.75]]


@pytest.mark.parametrize("joint", (True, False))
def test_packing_equals_padding_in_loss_and_gradients(joint):
    """Bug: packed rows whose loss tokens, labels or lam fall out of step; a gradient that depends
    on who shares a pass."""
    rows = sorted(clean_set(toy_encoding(), 40, 0), key=lambda s: (len(s.tokens), s.id))
    padded, (packed,) = collate(rows), data.micro_batches(rows, 40)
    assert len(packed.x) > 3 and len(packed.y) < 0.8 * padded.y.numel()
    lam = torch.where(torch.arange(int(padded.loss_mask.sum())) % 3 > 0, 0.5, 1.0)
    got = []
    for b in (padded, packed):
        mixed_loss = MixedLoss(small(0), small(1), joint, 64)
        loss = loss_of(mixed_loss, b, lam)
        (loss / len(lam)).backward()
        grads = [p.grad for p in mixed_loss.parameters() if p.grad is not None]
        got.append((loss.detach(), grads))
    torch.testing.assert_close(got[0], got[1], rtol=2e-5, atol=1e-7)


def test_learning_rate_rises_over_the_warmup_and_falls_to_almost_nothing():
    """Bug: a first step of 0, a last step of 0, a jump between the two branches."""
    lrs = [lr_at(s, 100, 2.0, 0.1) for s in range(100)]
    assert lrs[0] == pytest.approx(0.2) and max(lrs) == lrs[9] == 2.0
    assert lrs[-1] == pytest.approx(2 / 90)
    assert lrs[:10] == sorted(lrs[:10]) and lrs[9:] == sorted(lrs[9:], reverse=True)
    assert lr_at(0, 1, 1.0, 0.1) == 1.0
    assert all(lr_at(s, 3, 1.0, 0.0) > 0 for s in range(3))


# -------------------------------------------------------------------------------------------------
# whole runs

DEFAULT_ROWS = ["base", "sft", "sft-steps", "sft-flops", "joint", "wmss", "wmss-mask", "weak",
                "fused"]


def test_a_run_leaves_all_its_files_and_a_table(trained):
    """Bug: a row, an interval or a file that the README promises and the run forgets."""
    assert {"config.json", "log.jsonl", "base.pt", "sft.pt", "snapshots", "gaps.pt", "weak.pt",
            "wmss.pt", "wmss-mask.pt", "joint.pt", "sft-steps.pt", "sft-flops.pt", "scores.json",
            "answers", "report.html"} <= set(os.listdir(trained))
    assert not list(trained.glob("resume*"))
    rows = scores(trained)
    assert [r["model"] for r in rows] == DEFAULT_ROWS
    for r in rows:
        found = answers(trained, r["model"])
        assert len(found) == r["n"] == 14
        assert sum(a["correct"] for a in found) / 14 == r["accuracy"]
        assert r["low"] <= r["accuracy"] <= r["high"]
        assert set(r["families"]) == set(data.FAMILIES)
    table = score_table(rows)
    for word in ("wmss (strong)", "sft-flops", "95 % interval", "borrow", "TFLOPs", "seconds"):
        assert word in table
    assert {"commit", "versions", "device", "config"} <= set(records(trained)[0])
    snapshots = os.listdir(trained / "snapshots")
    assert len(snapshots) == 2
    for name in snapshots:
        assert weights(trained / "snapshots" / name).keys() == weights(trained / "sft.pt").keys()
    meta = load_checkpoint(trained / "wmss.pt")[1]
    assert {"step", "cursor", "rng", "config", "commit", "tokenizer"} <= set(meta)


def test_the_defaults_are_the_papers(trained):
    """Bug: a default that validation preferred in the place of the paper's, so that the main job
    shows another method."""
    cfg = Config()
    assert (cfg.lam, cfg.gap, cfg.weak, cfg.weights) == (0.5, "sample", "joint", "code")
    assert (cfg.alpha, cfg.beta, cfg.gamma, cfg.rounds) == (0.1, 0.8, 0.1, 1)
    draws = {r["draw"]: r for r in records(trained) if "draw" in r}
    assert list(draws) == ["wmss", "sft-steps", "sft-flops", "joint", "wmss-mask"]
    assert draws["wmss"]["unique"] < 24 == draws["joint"]["unique"] == draws["wmss-mask"]["unique"]


def test_the_code_task_runs_all_stages_and_executes_nothing_without_consent(
        trained_code, tmp_path, monkeypatch):
    """Bug: a stage that reads the math data whatever the task; model-written code run because a
    flag defaulted to it."""
    rows = scores(trained_code)
    assert [r["model"] for r in rows] == DEFAULT_ROWS
    for r in rows:
        assert set(r["families"]) == set(CODE_FAMILIES) and r["errors"] == 0
    assert "affine" in score_table(rows)
    found = answers(trained_code, "wmss")
    assert [r["prompt"] for r in found] == [p.prompt for p in toy_code("test", 14)]
    for r in found:
        assert r["status"] in ("pass", "fail") and r["correct"] == (r["status"] == "pass")
    assert json.loads((trained_code / "config.json").read_text())["task"] == "toy-code"
    monkeypatch.chdir(tmp_path)
    assert "pass --allow-code-execution if that is" in refuse(*TINY, "--task", "toy-code")
    assert os.listdir(tmp_path) == []
    train_wmss.main([*TINY, "--task", "toy-code", "--stages", "base"])
    assert "--task toy-code -> toy-math" in refuse(*TINY, "--resume", "--stages", "sft")


def test_fused_row_is_scored_with_both_models(trained):
    """Bug: the official release's wrong branch, here: a fused row that is the strong one under
    another name, or lam mirrored."""
    strong, weak = (load_checkpoint(trained / f"{n}.pt")[0] for n in ("wmss", "weak"))
    enc = toy_encoding()
    rows = answers(trained, "fused")
    prompts = [enc.encode_ordinary(r["prompt"]) for r in rows]
    fused = strong.generate(prompts, 6, stop_ids=[96], weak=weak, lam=Config.lam)
    assert [r["completion"] for r in rows] == [enc.decode(t) for t in fused]
    alone = weak.generate(prompts, 6, stop_ids=[96])
    assert [r["completion"] for r in answers(trained, "weak")] == [enc.decode(t) for t in alone]


def test_fused_row_takes_lam_from_the_run(run, trained, monkeypatch):
    """Bug: lam mirrored, which 0.5 cannot show."""
    seen, real = [], GPT.generate

    def generate(model, *args, **kw):
        seen.append((kw.get("weak"), kw.get("lam")))
        return real(model, *args, **kw)

    monkeypatch.setattr(GPT, "generate", generate)
    run("--name", "a", *from_m1(trained, "entropy,wmss,score"), "--lam", "0.3", "--arm", "wmss")
    assert [lam for weak, lam in seen if weak is not None] == [0.3]


def test_lam_one_trains_exactly_like_sft(run, trained):
    """Bug: another order of data, optimizer, clip or schedule in stage 3 than in its baseline."""
    flags = (*from_m1(trained), "--gap", "none", "--wmss-lr", "1e-3", "--sft-steps-lr", "1e-3")
    out = run("--name", "a", *flags, "--lam", "1", "--weak", "frozen", "--arm", "sft-steps", "wmss")
    assert same(out / "wmss.pt", out / "sft-steps.pt")
    assert same(out / "weak.pt", trained / "base.pt")
    assert trace(out, "wmss") == trace(out, "sft-steps")
    joint = run("--name", "b", *flags, "--arm", "wmss")
    assert not same(joint / "wmss.pt", out / "wmss.pt")
    assert not same(joint / "weak.pt", trained / "base.pt")


def test_zero_thresholds_put_every_token_in_the_mask(run, trained):
    """Bug: tau = h = 0 that still leaves tokens settled: then the paper cannot be reproduced with
    the mask on."""
    flags = (*from_m1(trained), "--wmss-lr", "1e-3", "--sft-steps-lr", "1e-3", "--mask-lr", "1e-3",
             "--arm", "sft-steps", "wmss")
    a = run("--name", "a", *flags, "--gap", "none")         # lam 0.5, a number that fp32 has
    b = run("--name", "b", *flags, "wmss-mask", "--gap", "token", "--tau", "0", "--h", "0")
    c = run("--name", "c", *flags, "--gap", "token", "--tau", "100", "--h", "100")
    assert trace(a, "wmss") == trace(b, "wmss") == trace(b, "wmss-mask") != trace(c, "wmss")
    assert same(a / "wmss.pt", b / "wmss.pt")
    # all settled: plain cross-entropy
    assert trace(c, "wmss") == pytest.approx(trace(c, "sft-steps"), rel=1e-6)


def test_each_gap_mode_uses_what_it_says(run, trained, some_settled):
    """Bug: a flag that is stored and never used."""
    runs = {}
    for gap in ("none", "sample", "token", "both"):
        runs[gap] = run("--name", gap, *from_m1(trained), "--gap", gap, *some_settled,
                        "--arm", "wmss")
    assert len({tuple(trace(folder, "wmss")) for folder in runs.values()}) == 4
    assert not (runs["none"] / "gaps.pt").exists()
    for kind in ("v1", "v2"):
        out = run("--name", kind, *from_m1(trained, "entropy"), "--weights", kind)
        gaps = gaps_of(out)
        want = gap_weights(gaps["mean_weak"], gaps["mean_live"], 0.1, 0.8, 0.1, kind)
        assert torch.equal(gaps["weights"], want)
    shares = run("--name", "shares", *from_m1(trained, "entropy"),
                 "--alpha", "0.3", "--beta", "0.2", "--gamma", "0.7")
    gaps = gaps_of(shares)
    want = gap_weights(gaps["mean_weak"], gaps["mean_live"], 0.3, 0.2, 0.7, "code")
    assert torch.equal(gaps["weights"], want)


def test_resampling_draws_by_the_weights(run, trained):
    """Bug: weights that are measured and never drawn with."""
    out = run("--name", "a", *from_m1(trained, "entropy"), "--arm", "wmss")
    gaps = gaps_of(out)
    gaps["weights"] = torch.zeros(24, dtype=torch.float64)
    gaps["weights"][[3, 7]] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    torch.save(gaps, out / "gaps.pt")
    run("--name", "a", *from_m1(trained, "wmss"), "--arm", "wmss", "joint", "--resume")
    draws = {r["draw"]: r for r in records(out) if "draw" in r}
    assert draws["wmss"]["unique"] == 2 and draws["joint"]["unique"] == 24
    lengths = [int(s.loss[1:].sum()) for s in clean_set(toy_encoding(), 24, 0)]
    threes = draws["wmss"]["loss_tokens"] - 24 * lengths[7]
    threes = threes / (lengths[3] - lengths[7])
    assert lengths[3] != lengths[7] and threes == round(threes) and 1 <= threes <= 12


def test_dedup_trains_on_fewer_samples_for_fewer_steps(run, trained):
    """Bug: v2's 123 steps run as 218, and a baseline that gets more steps than the method."""
    def steps(folder):
        return len(trace(folder, "wmss")), len(trace(folder, "sft-steps"))

    flags = (*from_m1(trained), "--arm", "sft-steps", "wmss")
    assert steps(run("--name", "a", *flags)) == (3, 3)
    out = run("--name", "b", *flags, "--gap", "both", "--dedup")
    assert steps(out) == (2, 2)
    draws = {r["draw"]: r for r in records(out) if "draw" in r}
    assert draws["wmss"]["drawn"] == 16 and 8 < draws["wmss"]["unique"] <= 16
    assert draws["sft-steps"]["unique"] == 16


def test_sft_flops_spends_what_wmss_spent_and_less_than_one_step_more(run, trained):
    """Bug: a compute-matched baseline that forgets the entropy pass, the weak branch, or the
    longer samples drawn."""
    # joint: twice SFT per token; frozen: 4/3; with gaps two forward passes over the data more,
    # which is 2/3 of an SFT epoch
    cases = {"joint": (("--gap", "token"), 2 + 2 / 3),
             "frozen": (("--gap", "token", "--weak", "frozen"), 4 / 3 + 2 / 3),
             "none": (("--gap", "none"), 2.0),
             "both": (("--gap", "both"), None)}
    for name, (flags, ratio) in cases.items():
        out = run("--name", name, *from_m1(trained), *flags, *BASELINES)
        wmss, more, plain = (load_checkpoint(out / f"{n}.pt")[1]
                             for n in ("wmss", "sft-flops", "sft-steps"))
        budget = wmss["spent"]["flops"]
        assert budget <= more["flops"] < budget + more["flops"] / more["step"] * 1.5
        if ratio:                       # not resampled: the same samples, here one epoch of 24
            assert budget / plain["flops"] == pytest.approx(ratio, rel=1e-9)


def unpack(flat, x):
    """A vector over all positions of a packed batch -> one vector for each row."""
    parts = flat.split([bucket.numel() for bucket in x])
    return [row for bucket, part in zip(x, parts, strict=True) for row in part.view(bucket.shape)]


def test_the_mask_lies_on_the_tokens_that_it_was_measured_on(
        run, trained, some_settled, monkeypatch):
    """Bug: codes of one row or token laid over another's, or a loss on the prompt: nothing fails,
    the method is just not the method any more."""
    flags = ("--name", "a", *some_settled, "--gap", "token", "--arm", "wmss")
    out = run(*flags, *from_m1(trained, "entropy"))
    gaps, samples, seen = gaps_of(out), clean_set(toy_encoding(), 24, 0), []
    of_row = {}
    for s in samples:
        codes = gaps["codes"][gaps["offsets"][s.id]:gaps["offsets"][s.id + 1]]
        of_row[s.tokens[:-1].numpy().tobytes()] = (s, codes)
    real = MixedLoss.forward

    def spy(mixed_loss, x, y, positions, lam):
        if mixed_loss.weak is not None:
            n = sum(bucket.numel() for bucket in x)
            plane, target = torch.full((n,), -1.0), torch.full((n,), -1)
            plane[positions], target[positions] = lam, y
            rows = [row for bucket in x for row in bucket]
            for row, got, said in zip(rows, unpack(plane, x), unpack(target, x), strict=True):
                length = int((said >= 0).nonzero()[-1]) + 1     # the sample's last token is a label
                s, codes = of_row[row[:length].numpy().tobytes()]
                assert torch.equal(got >= 0, said >= 0)
                assert torch.equal(said[:length], torch.where(s.loss[1:], s.tokens[1:], -1))
                want = torch.where(codes > 0, Config.lam, 1.0)
                assert torch.equal(got[got >= 0], want)
                seen.append(s.id)
        return real(mixed_loss, x, y, positions, lam)

    monkeypatch.setattr(MixedLoss, "forward", spy)
    run(*flags, *from_m1(trained, "wmss"), "--resume", "--micro-batch", "64")
    assert sorted(seen) == list(range(24))
    assert len({tuple(codes.tolist()) for _, codes in of_row.values()}) > 12


@pytest.mark.parametrize("flags", [
    ("--clip", "1e-6"), ("--weight-decay", "0.5"), ("--warmup", "0.9"), ("--noise", "0"),
    ("--seed", "3"), ("--base-lr", "1e-3"), ("--corpus", "32"), ("--n-heads", "1")])
def test_each_flag_of_the_base_changes_the_base(run, trained, flags):
    """Bug: a flag that is stored and never used."""
    out = run("--name", "a", "--stages", "base", *flags)
    assert not same(out / "base.pt", trained / "base.pt")


@pytest.mark.parametrize("flags, changed", [
    (("--lam", "0.3"), {"wmss", "joint", "wmss-mask"}),
    (("--weak", "frozen"), {"wmss", "wmss-mask", "sft-flops"}),
    (("--tau", "1", "--h", "1"), set()),
    (("--h", "100", "--tau", "100"), {"wmss-mask"}),
    (("--gap", "token"), {"wmss"}),
    (("--wmss-lr", "1e-3"), {"wmss"}),
    (("--joint-lr", "1e-3"), {"joint"}),
    (("--mask-lr", "1e-3"), {"wmss-mask"}),
    (("--sft-steps-lr", "1e-3"), {"sft-steps"}),
    (("--sft-flops-lr", "1e-3"), {"sft-flops"}),
    (("--wmss-epochs", "2"), {"wmss", "joint", "wmss-mask", "sft-steps", "sft-flops"})])
def test_each_flag_of_stage_3_changes_its_arms_and_no_other(run, trained, flags, changed):
    """Bug: a flag that is stored and never used, or one that moves a baseline too."""
    arms = set(Config().arm)
    if not changed & {"sft-steps", "sft-flops"}:
        arms -= {"sft-flops"}
    out = run("--name", "a", *from_m1(trained), *flags, "--arm", *sorted(arms))
    moved = {arm for arm in arms if not same(out / f"{arm}.pt", trained / f"{arm}.pt")}
    # the steps of sft-flops follow from what wmss drew and spent
    assert changed <= moved <= changed | {"sft-flops"}


def test_the_table_counts_what_each_row_cost(trained):
    """Bug: a wmss row without its entropy pass, a baseline with the cost of another."""
    rows = {r["model"]: r for r in scores(trained)}
    for name in ("base", "sft", "sft-steps", "sft-flops", "joint"):
        assert rows[name]["flops"] == load_checkpoint(trained / f"{name}.pt")[1]["flops"]
    gaps = gaps_of(trained)
    for name in ("wmss", "wmss-mask"):
        meta = load_checkpoint(trained / f"{name}.pt")[1]
        assert rows[name]["flops"] == meta["spent"]["flops"] == meta["flops"] + gaps["flops"]
    assert rows["fused"]["flops"] is None and rows["weak"]["flops"] is None
    samples, model = clean_set(toy_encoding(), 24, 0), load_checkpoint(trained / "sft.pt")[0]
    total = 0
    for s in samples:
        pairs = sum(range(1, len(s.tokens)))                # query t sees t + 1 keys
        total += model.cfg.forward_flops(len(s.tokens) - 1, pairs, int(s.loss.sum()))
    assert gaps["flops"] == 2 * total


@pytest.mark.parametrize("micro", (4, 2, 1))
def test_loss_trace_does_not_depend_on_micro_batches(run, trained, micro):
    """Bug: a mean of micro-batch means, which weighs short micro-batches too much."""
    split = run("--name", "b", "--stages", "base,sft,entropy,wmss", "--micro-batch", str(micro),
                "--arm", "sft-steps", "joint", "wmss", "wmss-mask")
    for arm in ("base", "sft", "sft-steps", "joint", "wmss", "wmss-mask"):
        assert trace(trained, arm) == pytest.approx(trace(split, arm), rel=2e-5)


def test_bf16_autocast_runs_every_stage_close_to_fp32(run, trained):
    """Bug: a stage that only works in fp32, which is never what a GPU runs."""
    out = run("--name", "a", "--dtype", "bf16", *BASELINES)
    for arm in ("base", "sft", "wmss", "sft-flops"):
        assert trace(out, arm) == pytest.approx(trace(trained, arm), rel=5e-3)
        assert trace(out, arm) != trace(trained, arm)
    for w in weights(out / "wmss.pt").values():
        assert torch.isfinite(w).all() and w.dtype == torch.float32


def test_rounds_mix_the_previous_model_into_the_current_one(run, trained):
    """Bug: round 2 that starts again from M1, or that takes the trained weak branch for
    M_{t-1}."""
    flags = ("--wmss-lr", "1e-3", "--arm", "wmss")
    out = run("--name", "a", *from_m1(trained), *flags, "sft-steps", "--rounds", "2")
    again = run("--name", "b", "--stages", "entropy", "--base", str(trained / "sft.pt"),
                "--sft", str(out / "wmss-round1.pt"), *flags)
    one = run("--name", "c", *from_m1(trained), *flags, "sft-steps")
    assert same(out / "wmss-round1.pt", one / "wmss.pt")
    two, by_hand = gaps_of(out, "gaps-round2.pt"), gaps_of(again)
    assert torch.equal(two["ent_live"], by_hand["ent_live"])
    assert torch.equal(two["ent_weak"], by_hand["ent_weak"])
    assert not same(out / "wmss.pt", out / "wmss-round1.pt")
    steps = [load_checkpoint(folder / "sft-steps.pt")[1]["step"] for folder in (out, one)]
    assert steps[0] == 2 * steps[1]
    spent = [load_checkpoint(out / f"{name}.pt")[1]["spent"] for name in ("wmss-round1", "wmss")]
    assert spent[1]["steps"] == 2 * spent[0]["steps"] and spent[1]["flops"] > spent[0]["flops"]


def test_weak_snapshot_is_the_model_that_is_mixed_in(run, trained):
    """Bug: a flag stored and never used."""
    snapshot = sorted((trained / "snapshots").iterdir())[0]
    out = run("--name", "a", *from_m1(trained), "--weak-snapshot", str(snapshot),
              "--weak", "frozen", "--arm", "wmss")
    assert same(out / "weak.pt", snapshot) and not same(out / "weak.pt", trained / "base.pt")
    assert gaps_of(out)["weak"] == str(snapshot)


@pytest.mark.parametrize("module", (
    "data", "entropy", "eval_math", "plumbing.benchmarks", "plumbing.cli", "plumbing.controls",
    "plumbing.extract", "plumbing.loss", "plumbing.tokenizer"))
def test_worked_examples_in_docstrings_are_true(module):
    """Bug: an example that nobody has run."""
    import doctest
    import importlib
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0 and result.attempted > 0


# -------------------------------------------------------------------------------------------------
# text and weights of others


def test_a_model_of_the_hub_goes_through_all_stages_by_its_name(run, hf_folder, text, monkeypatch):
    """Bug: a name that is no path, for which a toy base was trained, or an SFT that was thrown
    away: every preset of real models ended there."""
    import huggingface_hub

    def snapshot_download(name, allow_patterns):
        return {"acme/tiny": str(hf_folder)}[name]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    out = run(*text_flags("acme/tiny", text, "hub"), "--arm", "wmss")
    rows = scores(out)
    assert [r["model"] for r in rows][:2] == ["base", "sft"]
    assert rows[0]["checkpoint"] == "acme/tiny" and not (out / "base.pt").exists()
    local = run(*text_flags(hf_folder, text, "local"), "--arm", "wmss")
    for name in ("sft", "wmss", "weak"):
        assert same(out / f"{name}.pt", local / f"{name}.pt")
    named = run(*text_flags("acme/tiny", text, "named"), "--sft", "acme/tiny", "--arm", "wmss")
    assert not (named / "sft.pt").exists() and (named / "wmss.pt").exists()


def test_what_is_scored_is_asked_with_the_system_prompt(run, hf_folder, text, monkeypatch):
    """Bug: a model that was trained under the paper's system prompt and is scored without."""
    asked, real = [], eval_math.chat

    def chat(enc, system=None, raw=False):
        asked.append(system)
        return real(enc, system, raw)

    # the paper's own has 333 characters, too many for 256 positions
    monkeypatch.setattr(eval_math, "PAPER_SYSTEM", "Think.")
    monkeypatch.setattr(eval_math, "chat", chat)
    for system in ("paper", "Be brief.", ""):
        run(*text_flags(hf_folder, text, "s"), "--stages", "score", "--overwrite",
            "--system", system)
    assert set(asked) == {"Think.", "Be brief.", ""}


def test_text_and_foreign_weights_run_through_all_stages_and_out_again(
        run, hf_folder, text, tmp_path):
    """Bug: a stage that still takes the built-in tokenizer or data; a folder trained on that
    cannot be exported or scored."""
    out = run(*text_flags(hf_folder, text, "t"), *BASELINES)
    names = {p.name for p in out.iterdir()}
    assert {"sft.pt", "gaps.pt", "wmss.pt", "weak.pt", "sft-steps.pt", "sft-flops.pt",
            "scores.json"} <= names
    assert "base.pt" not in names
    rows = {r["model"]: r for r in scores(out)}
    assert rows["base"]["n"] == 14 and list(rows["wmss"]["families"]) == ["amc23"]
    assert rows["base"]["flops"] is None
    base, tuned = (load_checkpoint(p)[0].state_dict() for p in (hf_folder, out / "wmss.pt"))
    assert any((base[k] != tuned[k]).any() for k in base)
    export(out / "wmss.pt", tmp_path / "hf")
    eval_math.main([str(tmp_path / "hf"), "--data", text[1], "--max-new-tokens", "6",
                    "--limit", "14", "--out", str(tmp_path / "scores")])
    again = (tmp_path / "scores" / "amc23.jsonl").read_text().splitlines()
    again = [json.loads(line)["completion"] for line in again]
    assert again == [r["completion"] for r in answers(out, "wmss")]
    entropy.main(["--weak", str(hf_folder), "--live", str(out / "sft.pt"), "--show", "1"])


def test_a_template_given_for_training_is_kept_for_scoring_and_export(
        run, hf_folder, text, tmp_path):
    """Bug: trained on one chat format, scored on another, exported with none."""
    (tmp_path / "my.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'user' %}Q {{ m.content }} A"
        "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}")
    out = run(*text_flags(hf_folder, text, "j"), "--template", str(tmp_path / "my.jinja"),
              "--arm", "wmss")
    enc = tokenizer_of(load_checkpoint(out / "wmss.pt")[1])
    assert eval_math.chat(enc)("why?") == "Q why? A"
    export(out / "wmss.pt", tmp_path / "hf")
    assert eval_math.chat(load_tokenizer(tmp_path / "hf"))("why?") == "Q why? A"
    config = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_small_forward_passes_and_recomputed_activations_change_no_loss(run, hf_folder, text):
    """Bug: a mean of micro-batch means, a dropped micro-batch, a gradient lost in
    recomputation."""
    flags = ["--stages", "sft,entropy,wmss", *BASELINES]
    plain = run(*text_flags(hf_folder, text, "p"), *flags)
    small = run(*text_flags(hf_folder, text, "s"), *flags, "--tokens-per-batch", "64",
                "--checkpointing")
    for arm in ("sft", "wmss", "sft-flops"):
        assert trace(small, arm) == pytest.approx(trace(plain, arm), rel=2e-5)
        assert len(trace(plain, arm)) >= 3


def test_another_arm_takes_the_chat_format_of_its_sft_model(run, hf_folder, text):
    """Bug: --template forgotten in a second arm, whose stage 3 then trains M1 on a format that it
    never saw."""
    flags = text_flags(hf_folder, text, "u")
    first = run(*text_flags(hf_folder, text, "t"), "--stages", "sft", "--template", "none")
    sft = str(first / "sft.pt")
    said = refuse(*TINY, *flags, "--sft", sft, "--stages", "entropy")
    assert ("sft.pt was trained in another chat format (--template none) than this run's "
            "(--template auto)") in said
    run(*flags, "--sft", sft, "--stages", "entropy", "--template", "none")


# -------------------------------------------------------------------------------------------------
# forks: what a stranger would change, and what it takes


@pytest.mark.parametrize("weak_is", ("joint", "frozen"))
def test_the_weak_model_may_have_another_size(run, trained, weak_is):
    """Bug: two widths in one buffer, FLOPs of the wrong model, a fused row that cannot be scored:
    mixing needs the same vocabulary and no more."""
    other = run("--name", "small", "--stages", "base", "--dim", "8", "--n-layers", "2") / "base.pt"
    out = run("--name", "a", *from_m1(trained, "entropy,wmss,score"), "--weak-snapshot", str(other),
              "--weak", weak_is, "--gap", "both", *BASELINES, "wmss-mask")
    config = read_config(out / "weak.pt")[0]
    assert (config.dim, config.n_layers) == (8, 2) and read_config(out / "wmss.pt")[0].dim == 16
    assert same(out / "weak.pt", other) == (weak_is == "frozen")
    assert [r["model"] for r in scores(out)] == ["base", "sft", "sft-steps", "sft-flops", "wmss",
                                                 "wmss-mask", "weak", "fused"]
    # its cost is its own
    strong, samples = read_config(out / "wmss.pt")[0], clean_set(toy_encoding(), 24, 0)
    meta, plain = (load_checkpoint(out / f"{n}.pt")[1] for n in ("wmss-mask", "sft-steps"))
    cost = step_flops(samples, strong, config, weak_is == "joint")
    assert meta["flops"] == float(cost.sum())
    ratio = float(cost.sum() / step_flops(samples, strong).sum())
    assert 1 < ratio < 2 and meta["flops"] == pytest.approx(ratio * plain["flops"])
    gaps, spent = gaps_of(out), load_checkpoint(out / "wmss.pt")[1]["spent"]["flops"]
    assert gaps["weak"] == str(other)
    assert gaps["flops"] * 3 == float(step_flops(samples, strong, config).sum())
    more = load_checkpoint(out / "sft-flops.pt")[1]
    assert spent <= more["flops"] < spent + more["flops"] / more["step"] * 1.5
    # the fused row is that of both models
    strong, weak = (load_checkpoint(out / f"{n}.pt")[0] for n in ("wmss", "weak"))
    enc = toy_encoding()
    prompts = [enc.encode_ordinary(r["prompt"]) for r in answers(out, "fused")]
    fused = strong.generate(prompts, 6, stop_ids=[96], weak=weak, lam=Config.lam)
    assert [r["completion"] for r in answers(out, "fused")] == [enc.decode(t) for t in fused]


TEMPERED = '''
class Tempered:
    """Tokens that the model is sure of count less."""

    def __init__(self, cfg):
        self.temp = cfg.my_temp

    def __call__(self, branches, y):
        _, h, w = branches[0]
        return nn.functional.cross_entropy(h @ w.T / self.temp, y, reduction="sum")


'''
HARDEST = '''
def weights_hardest(w, s, alpha, beta, gamma):
    """Samples on which the live model is least sure, squared."""
    return s ** 2


'''
HARDER_HALF = '''
def gap_mask(ent_weak, ent_live, tau=0.0, h=0.0):
    """The half of the tokens on which the weak model is less sure."""
    return (ent_weak > ent_weak.median()).to(torch.uint8) * 2


'''
HEAVY = ("datasets", "transformers", "huggingface_hub", "wandb", "pandas", "pyarrow")


def insert(path, text, before=None, after=None):
    """A stranger's edit: text in front of a line, or behind one, that is there once."""
    source = path.read_text()
    anchor = before or after
    assert source.count(anchor) == 1, (path, anchor)
    new = text + anchor if before else anchor + text
    path.write_text(source.replace(anchor, new))


@pytest.fixture(scope="module")
def fork(tmp_path_factory, trained):
    """A copy of the program with a flag, an arm, a weight formula and a gap rule of one's own, and
    the folder of a run with it: each is one edit in one place, and nothing else is told of it."""
    copy = tmp_path_factory.mktemp("fork")
    for name in os.listdir(ROOT):
        if name.endswith(".py"):
            shutil.copy(os.path.join(ROOT, name), copy)
    shutil.copytree(os.path.join(ROOT, "plumbing"), copy / "plumbing")
    insert(copy / "train_wmss.py", "    my_temp: float = 1.0\n", before="    seed: int = ")
    insert(copy / "plumbing" / "controls.py", TEMPERED, before="\nARMS = {")
    insert(copy / "plumbing" / "controls.py", '    "tempered": Arm(control=Tempered),\n',
           after="\nARMS = {\n")
    insert(copy / "entropy.py", HARDEST + HARDER_HALF, before="\n# a formula of your own")
    # the project's own rule makes room for the new one of its name
    source = (copy / "entropy.py").read_text()
    old = "def gap_mask(ent_weak: Tensor"
    assert source.count(old) == 1
    source = source.replace(old, "def paper_mask(ent_weak: Tensor")
    source = source.replace("WEIGHTS = {", 'WEIGHTS = {"hardest": weights_hardest, ')
    (copy / "entropy.py").write_text(source)
    flags = [*TINY, "--name", "f", *from_m1(trained, "entropy,wmss,score"), "--my-temp", "2.5",
             "--weights", "hardest", "--arm", "wmss", "wmss-mask", "joint", "tempered",
             "temperature", "--lam", "0.4", "--tau", "0"]
    code = (f"import sys; sys.path.insert(0, {str(copy)!r}); import train_wmss; "
            f"train_wmss.main({flags}); print([m for m in {HEAVY} if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (copy / "heavy.txt").write_text(done.stdout.splitlines()[-1])
    return copy / "out" / "f"


def test_a_run_needs_none_of_the_heavy_and_optional_packages(fork):
    """Bug: `datasets` imported (and slow) for a task that does not use it."""
    assert (fork.parent.parent / "heavy.txt").read_text() == "[]"


def test_a_field_of_ones_own_is_a_flag(fork):
    """Bug: a KeyError at every start, because the new field has no comment."""
    assert json.loads((fork / "config.json").read_text())["my_temp"] == 2.5


def test_an_own_arm_is_a_function_and_a_line(fork):
    """Bug: an arm that the table, the flags or the loop have to be told of."""
    assert "tempered" in [r["model"] for r in scores(fork)] and (fork / "tempered.pt").exists()
    # 1 / 2.5 is the 0.4 of the temperature: the own loss was the one that was trained on
    assert trace(fork, "tempered") == pytest.approx(trace(fork, "temperature"), rel=1e-5)


def test_an_own_weight_formula_is_a_function_and_a_name(fork):
    """Bug: a formula that has to be told to flags, checks and loaders."""
    gaps = gaps_of(fork)
    want = gaps["mean_live"] ** 2
    torch.testing.assert_close(gaps["weights"], want / want.sum())
    assert gaps["settings"]["kind"] == "hardest"


def test_an_own_gap_rule_is_one_function(fork):
    """Bug: a rule that the diagnostics or the training know in another place."""
    gaps = gaps_of(fork)
    want = (gaps["ent_weak"] > gaps["ent_weak"].median()) * 2
    assert torch.equal(gaps["codes"].long(), want) and want.any() and not want.all()
    for r in records(fork):
        if r.get("arm") == "wmss-mask":
            assert r["codes"][1] == r["codes"][3] == 0 < min(r["codes"][0], r["codes"][2])
    # and it is trained on: with the rule of the project every token would be mixed
    assert trace(fork, "wmss-mask") != trace(fork, "joint")
