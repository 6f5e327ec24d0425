"""plumbing/controls.py: permutations, the arms of stage 3, and what the log says of training."""

import itertools
import json
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from runs import (
    RATES,
    Crash,
    clean_set,
    files_of,
    from_m1,
    gaps_of,
    records,
    same,
    scores,
    trace,
)
from tensors import mix_logits, rand, softmax

import data
import plumbing.controls
import train_wmss
from entropy import gap_mask
from model import load_checkpoint
from plumbing.controls import (
    ARMS,
    FORMER_NAMES,
    ROWS,
    Permuted,
    hash_ids,
    loss_counts,
    permute_logits,
    token_statistics,
)
from plumbing.tokenizer import toy_encoding

# -------------------------------------------------------------------------------------------------
# permutations


def test_permutation_keeps_the_target_moves_all_else_and_forgets_no_value():
    """Bug: a fixed point, a value twice, a target that moves; a permutation that the batch, the
    chunk or the order decides."""
    n, v = 400, 11
    z, y = rand(n, v, seed=0), torch.randint(0, v, (n,))
    keys = hash_ids(0, 3, torch.arange(n), 2)
    moved, source = permute_logits(z, y, keys)
    onto = F.one_hot(y, v).bool()
    assert torch.equal(moved[onto], z[onto])
    assert (source != torch.arange(v))[~onto].all()
    assert torch.equal(moved.sort(-1).values, z.sort(-1).values)
    assert torch.equal(moved, z.gather(-1, source))
    for rows in (torch.arange(n - 1, -1, -1), torch.tensor([7])):
        assert torch.equal(permute_logits(z[rows], y[rows], keys[rows])[0], moved[rows])
    # with target 0, each of the 9 places that are neither 0 nor 1 is as likely as any other to
    # send its value to place 1: chi2 with 8 degrees of freedom, p = 0.001
    keys = hash_ids(torch.arange(4000))
    z, y = torch.zeros(4000, v), torch.zeros(4000, dtype=torch.long)
    counts = torch.bincount(permute_logits(z, y, keys)[1][:, 1], minlength=v)
    assert counts[:2].sum() == 0
    assert ((counts[2:] - 4000 / 9) ** 2 / (4000 / 9)).sum() < 26.1


def test_hash_is_splitmix64_and_each_id_counts():
    """Bug: a shift that copies the sign bit; a step, a sample or a position that changes
    nothing."""
    first = 0xE220A8397B1DCDAF              # the published generator's first output for seed 0
    assert hash_ids(0).item() % 2 ** 64 == first
    seen = {hash_ids(*ids).item() for ids in itertools.product(range(4), repeat=4)}
    assert len(seen) == 256
    one_by_one = torch.stack([hash_ids(1, i) for i in range(5)])
    assert torch.equal(hash_ids(1, torch.arange(5)), one_by_one)


def test_keys_are_those_of_seed_step_sample_and_place_whatever_the_micro_batches():
    """Bug: keys of one sample's tokens laid over another's; a key that a batch decides."""
    samples = clean_set(toy_encoding(), 12, 0)
    want = {}
    for s in samples:
        for place in range(int(s.loss[1:].sum())):
            want[s.id, place] = hash_ids(5, 3, s.id, place).item()
    for most in (12, 5, 1):
        micros = data.micro_batches(samples, most)
        control = Permuted(train_wmss.Config(seed=5))
        control.begin(3, micros)
        assert len(control.keys) == len(micros)
        found = {}
        for batch, keys in zip(micros, control.keys, strict=True):
            keys = iter(keys.tolist())
            for i, count in zip(batch.ids.tolist(), loss_counts(batch).tolist(), strict=True):
                found.update({(i, place): next(keys) for place in range(count)})
            assert next(keys, None) is None
        assert found == want


# -------------------------------------------------------------------------------------------------
# arms


def test_every_arm_leaves_its_checkpoint_its_curve_and_its_row(arms):
    """Bug: an arm that trains another's model, that is left out of the table, or that overwrites
    M1."""
    names = tuple(ARMS)
    assert [r["model"] for r in scores(arms)] == ["base", "sft", *names, "weak", "fused"]
    assert ROWS == ("base", "sft", *names, "weak", "fused")
    traces = {name: trace(arms, name) for name in names}
    # what is averaged are the weights, after the losses
    assert traces["averaged"] == traces["sft-steps"]
    assert len({tuple(t) for t in traces.values()}) == len(names) - 1
    assert all(len(traces[name]) == 3 for name in names if name != "sft-flops")
    first = {name: t[0] for name, t in traces.items()}  # the same samples and M1, another loss
    assert first["sft-steps"] == first["sft-flops"]
    assert first["joint"] == first["frozen"] != first["permuted"]
    for a, b in itertools.combinations(names, 2):
        assert not same(arms / f"{a}.pt", arms / f"{b}.pt"), (a, b)
    assert not (arms / "sft.pt").exists()


def test_arms_are_what_the_flags_make_of_wmss(run, trained, arms, some_settled):
    """Bug: an arm of another definition than its own: each equals the full method with the other
    parts switched off."""
    def go(name, *flags):
        return run("--name", name, *from_m1(trained), *RATES, *flags)

    none = go("a", "--arm", "sft-steps", "sft-flops", "wmss", "--gap", "none")
    assert same(none / "wmss.pt", arms / "joint.pt")
    assert trace(none, "wmss") == trace(arms, "joint")
    frozen = go("b", "--arm", "wmss", "--gap", "none", "--weak", "frozen")
    assert same(frozen / "wmss.pt", arms / "frozen.pt")
    assert same(none / "sft-steps.pt", arms / "sft-steps.pt")
    assert not same(none / "sft-flops.pt", arms / "sft-flops.pt")
    # nothing else is trained, wmss neither; at lam 1 temperature is plain cross-entropy
    alone = go("c", "--arm", "sft-flops", "temperature", "weights-only", "--lam", "1",
               "--gap", "both")
    assert same(alone / "sft-flops.pt", arms / "sft-flops.pt")
    assert same(alone / "temperature.pt", arms / "sft-steps.pt")
    assert not (alone / "wmss.pt").exists() and not (alone / "weak.pt").exists()
    cost = load_checkpoint(alone / "weights-only.pt")[1]
    assert cost["spent"]["flops"] > cost["flops"]
    # T8: at lam 1 only the curriculum is left
    sampled = go("d", "--arm", "wmss", "--gap", "sample", "--lam", "1")
    assert same(sampled / "wmss.pt", arms / "weights-only.pt")
    frozen = go("e", "--arm", "permuted", "--weak", "frozen", "--gap", "none")
    assert not same(frozen / "permuted.pt", arms / "permuted.pt")
    assert not (frozen / "gaps.pt").exists()
    # the paper's method and this project's mask are the two uses of the gaps
    masked = go("f", "--arm", "wmss", "--gap", "token", *some_settled)
    assert same(masked / "wmss.pt", arms / "wmss-mask.pt")
    both = go("g", "--arm", "wmss", "--gap", "both", *some_settled)
    assert same(both / "wmss.pt", arms / "wmss.pt")


def crash_at(monkeypatch, crash_on):
    """Training stops as its learning rate is asked for crash_on(steps asked so far)."""
    real, seen = train_wmss.lr_at, []

    def lr_at(step, *args):
        seen.append(step)
        if crash_on(seen):
            raise Crash
        return real(step, *args)

    monkeypatch.setattr(train_wmss, "lr_at", lr_at)
    return seen


def test_permuted_is_joint_where_nothing_moves_and_the_same_whatever_micro_batches_and_crashes(
        run, trained, arms, monkeypatch):
    """Bug: a permutation drawn from a stream, so that batching or a restart changes it; one that
    also does something else."""
    flags = (*from_m1(trained), *RATES, "--arm", "permuted", "--gap", "none")
    small = run("--name", "m", *flags, "--micro-batch", "3")
    assert trace(small, "permuted") == pytest.approx(trace(arms, "permuted"), rel=2e-5)
    with monkeypatch.context() as m:
        m.setattr(plumbing.controls, "permute_logits",
                  lambda z, y, keys: (z, torch.arange(z.size(-1)).expand_as(z)))
        assert same(run("--name", "0", *flags) / "permuted.pt", arms / "joint.pt")
    seen = crash_at(monkeypatch, lambda seen: seen == [0, 1, 2])
    with pytest.raises(Crash):
        run("--name", "c", *flags, "--save-every", "1")
    again = run("--name", "c", *flags, "--save-every", "1", "--resume")
    assert same(again / "permuted.pt", arms / "permuted.pt") and seen == [0, 1, 2, 2]


def test_each_step_and_token_has_its_own_permutation(run, trained, monkeypatch):
    """Bug: one permutation for all tokens, or the same again each step, which a model could
    learn."""
    seen, real = [], plumbing.controls.permute_logits

    def spy(z, y, keys):
        seen.extend(keys.tolist())
        return real(z, y, keys)

    monkeypatch.setattr(plumbing.controls, "permute_logits", spy)
    run("--name", "a", *from_m1(trained), "--arm", "permuted", "--gap", "none",
        "--wmss-epochs", "2")
    n_loss = sum(int(s.loss[1:].sum()) for s in clean_set(toy_encoding(), 24, 0))
    assert len(seen) == len(set(seen)) == 2 * n_loss


def test_more_arms_can_join_a_finished_run(run, trained):
    """Bug: a night's run that has to be repeated for one more control."""
    flags = ("--name", "a", *from_m1(trained), *RATES, "--gap", "none", "--arm", "sft-steps")
    out = run(*flags)
    before = files_of(out)[str(out / "sft-steps.pt")]
    run(*flags, "temperature", "--resume")
    assert (out / "temperature.pt").exists()
    assert files_of(out)[str(out / "sft-steps.pt")] == before


def test_each_arm_has_its_rate_and_controls_have_that_of_wmss(run, trained):
    """Bug: an arm at the rate that was chosen for another."""
    rates = dict(sft_steps=1e-4, sft_flops=2e-4, joint=3e-4, wmss=4e-4, mask=5e-4)
    flags = []
    for name, rate in rates.items():
        flags += [f"--{name.replace('_', '-')}-lr", str(rate)]
    own = {"sft-steps": 1e-4, "sft-flops": 2e-4, "joint": 3e-4, "wmss-mask": 5e-4}
    out = run("--name", "a", *from_m1(trained), *flags, "--warmup", "0", "--arm", *ARMS)
    for name in ARMS:
        first = next(r for r in records(out) if r.get("arm") == name)
        assert first["lr"] == pytest.approx(own.get(name, 4e-4)), name


def test_checkpoints_of_earlier_versions_are_those_of_todays_arms(run, trained):
    """Bug: an arm that a folder of an older version has already, trained once more under its new
    name."""
    flags = ("--name", "a", *from_m1(trained), *RATES, "--gap", "none", "--arm",
             *FORMER_NAMES.values())
    out = run(*flags)
    before = {name: files_of(out)[str(out / f"{name}.pt")] for name in FORMER_NAMES.values()}
    for former, name in FORMER_NAMES.items():
        (out / f"{name}.pt").rename(out / f"{former}.pt")
    run(*flags, "--resume")
    for former, name in FORMER_NAMES.items():
        assert files_of(out)[str(out / f"{name}.pt")] == before[name]
        assert not (out / f"{former}.pt").exists()


# -------------------------------------------------------------------------------------------------
# diagnostics


def entropy_of(p):
    return -(p * p.log()).sum(-1)


def test_token_statistics_agree_with_their_definitions():
    """Bug: a margin to the target itself, an affinity above 1, an entropy of unnormalised
    products."""
    z2, z1, y = rand(6, 9, seed=0), rand(6, 9), torch.randint(0, 9, (6,))
    rule = partial(gap_mask, tau=0.5, h=1.0)
    found, p2, p1 = token_statistics(z2, y, z1, 0.3, rule), softmax(z2), softmax(z1)
    margin = [z2[i, y[i]] - max(z2[i, k] for k in range(9) if k != y[i]) for i in range(6)]
    want = dict(margin=torch.stack(margin), p_target=p2[range(6), y],
                ent_strong=entropy_of(p2), ent_weak=entropy_of(p1),
                ent_mix=entropy_of(softmax(mix_logits(z2, z1, 0.3))),
                affinity=(p2 ** 0.3 * p1 ** 0.7).sum(-1))
    numbers = {name: value for name, value in found.items() if name != "codes"}
    assert numbers == pytest.approx({name: v.mean().item() for name, v in want.items()})
    codes = gap_mask(entropy_of(p1), entropy_of(p2), 0.5, 1.0)
    assert found["codes"] == torch.bincount(codes.int(), minlength=4).tolist()
    assert sum(found["codes"]) == 6
    assert token_statistics(z2, y, z2)["affinity"] == pytest.approx(1)
    assert list(token_statistics(z2, y)) == ["margin", "p_target", "ent_strong"]


def test_diagnostics_are_in_the_log_and_leave_training_alone(run, trained, arms, monkeypatch):
    """Bug: statistics of heads that a step has already changed, norms after the clip, a run that
    depends on how often it logs."""
    def logged(arm):
        return [r for r in records(arms) if r.get("arm") == arm]

    joint, plain = logged("joint")[0], logged("sft-steps")[0]
    whole = (joint["gnorm_strong"] ** 2 + joint["gnorm_weak"] ** 2) ** 0.5
    assert joint["gnorm"] == pytest.approx(whole, rel=1e-5)
    assert plain["gnorm"] == pytest.approx(plain["gnorm_strong"], rel=1e-5)
    assert "affinity" not in plain and "gnorm_weak" not in logged("frozen")[0]
    for r in logged("joint"):                           # of each step its own rows
        assert 100 < sum(r["codes"]) <= 128 + 8
    # step 1 looks at M1 as it was: at every n-th loss token of the first batch
    samples, model = clean_set(toy_encoding(), 24, 0), load_checkpoint(trained / "sft.pt")[0]
    first = data.schedule(24, 8, 0, 3, epochs=1)[0]
    every = -(-joint["loss_tokens"] // 128)
    logits, targets = [], []
    for b in data.micro_batches([samples[i] for i in first.tolist()], 64):
        logits.append(model.logits(b.x)[b.loss_mask][::every].detach())
        targets.append(b.y[b.loss_mask][::every])
    want = token_statistics(torch.cat(logits), torch.cat(targets))
    assert {k: joint[k] for k in ("margin", "p_target", "ent_strong")} == pytest.approx(
        want, rel=1e-4)
    mass = next(r["mass"] for r in records(arms) if "mass" in r)
    of_carry = [w for w, s in zip(gaps_of(arms)["weights"].tolist(), samples, strict=True)
                if s.family == "carry"]
    assert mass["carry"] == pytest.approx(sum(of_carry))
    monkeypatch.setattr(plumbing.controls.Watch, "read", lambda watch: {})
    monkeypatch.setattr(plumbing.controls.Watch, "begin", lambda watch, *args: None)
    quiet = run("--name", "a", *from_m1(trained), *RATES, "--arm", "joint", "--log-every", "1000")
    assert same(quiet / "joint.pt", arms / "joint.pt")


def test_diagnostics_say_the_same_of_small_micro_batches(run, trained, arms):
    """Bug: statistics of the last micro-batch only."""
    out = run("--name", "a", *from_m1(trained), *RATES, "--arm", "joint", "--micro-batch", "2")

    def first(folder):
        return next(r for r in records(folder) if r.get("arm") == "joint")

    whole, split = first(arms), first(out)
    assert split["gnorm_weak"] == pytest.approx(whole["gnorm_weak"], rel=1e-4)
    # every n-th loss token of each micro-batch: about the same number of them, not the same ones
    assert sum(split["codes"]) == pytest.approx(sum(whole["codes"]), abs=4)
    assert split["ent_strong"] == pytest.approx(whole["ent_strong"], rel=0.05)


def test_the_log_holds_plain_json(arms):
    """Bug: NaN or Infinity, which no other reader of JSON takes."""
    with open(arms / "log.jsonl") as f:
        for line in f:
            json.loads(line, parse_constant=pytest.fail)
