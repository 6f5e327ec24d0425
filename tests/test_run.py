"""plumbing/run.py: ranks, the folder of a run, and what happens to a run that was interrupted:
it goes on bit by bit as if nothing had been."""

import datetime
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import (
    BASELINES,
    RATES,
    TINY,
    Crash,
    answers,
    clean_set,
    files_of,
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

import eval_math
import train_wmss
from data import digest
from model import GPTConfig, load_checkpoint, read_config
from plumbing import run as run_file
from plumbing import tasks
from plumbing.cli import program
from plumbing.files import commit
from plumbing.run import Folder, Ranks, sample_flops, step_flops
from plumbing.tokenizer import toy_encoding
from train_wmss import Config

ALL = "base,sft,entropy,wmss"

# -------------------------------------------------------------------------------------------------
# ranks


WHOLE = ("--gap", "both", *RATES, "--arm", "sft-flops", "wmss", "permuted")
TWO_RUNS = """
import sys
sys.path.insert(0, {root!r})
import train_wmss
from plumbing.run import Ranks
close, Ranks.close = Ranks.close, Ranks.barrier         # the first run does not end the processes
train_wmss.main({first})
Ranks.close = close
train_wmss.main({second})
"""


@pytest.fixture(scope="module")
def two_ranks(trained, some_settled, tmp_path_factory):
    """Folder with the runs `whole` and `rowless` of two processes under one torchrun, and the
    flags of the second: with one row a step, one of its ranks never has any."""
    folder = tmp_path_factory.mktemp("ranks")
    rowless = (*from_m1(trained), "--batch-size", "1", "--clean", "6", "--gap", "token",
               *some_settled, "--arm", "wmss", "permuted")
    (folder / "two_runs.py").write_text(TWO_RUNS.format(
        root=str(ROOT), first=[*TINY, *WHOLE, "--name", "whole"],
        second=[*TINY, *rowless, "--name", "rowless"]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node",
                "2", "two_runs.py"]
    done = subprocess.run(torchrun, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "out", rowless


def test_two_gloo_ranks_train_as_one_process(run, two_ranks):
    """Bug: DDP's mean taken for a sum, ranks that see the same rows, a file written twice, a
    permutation that a rank decides, a rank that hangs at the end."""
    one, two = run("--name", "one", *WHOLE), two_ranks[0] / "whole"
    for arm in ("base", "sft", "wmss", "sft-flops", "permuted"):
        assert trace(one, arm) == pytest.approx(trace(two, arm), rel=2e-5)
    a, b = ([(r["model"], r["n"]) for r in scores(folder)] for folder in (one, two))
    assert a == b
    asked = [[r["prompt"] for r in answers(folder, "base")] for folder in (one, two)]
    assert asked[0] == asked[1]
    torch.testing.assert_close(gaps_of(one)["ent_live"], gaps_of(two)["ent_live"])


def test_a_rank_without_a_row_trains_along(run, two_ranks):
    """Bug: with fewer rows than ranks, codes of a sample for positions that carry no loss."""
    one, two = run("--name", "one", *two_ranks[1]), two_ranks[0] / "rowless"
    for arm in ("wmss", "permuted"):
        assert trace(one, arm) == pytest.approx(trace(two, arm), rel=2e-5)
        assert len(trace(one, arm)) == 6


def test_what_rank_0_refuses_it_says_once(monkeypatch):
    """Bug: a refusal that leaves the other ranks waiting, or that each of them prints."""
    def refuse_it():
        raise ValueError("no such file")

    ranks = Ranks(Config(threads=1))
    with pytest.raises(ValueError, match="no such file"):
        ranks.first(refuse_it)
    said = []
    ranks.first(lambda: said.append(1))
    assert said == [1]

    def broadcast(message):
        message[0] = "no such file"

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    ranks.rank, ranks.world = 1, 2
    with pytest.raises(ValueError, match="no such file"):
        ranks.first(lambda: said.append(2))
    assert said == [1]
    # torchrun ends the other ranks as they wait, before they say it once more
    monkeypatch.setattr(time, "sleep", said.append)
    for rank, waited in (("0", [1]), ("1", [1, 5])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="train_wmss: no such file"):
            program("train_wmss")(refuse_it)()
        assert said == waited


def test_shares_of_all_ranks_come_back_in_the_order_of_the_problems(monkeypatch):
    """Bug: answers in the order of ranks, laid over the problems in their own."""
    rows, shares = list("abcdefg"), [list("adg"), list("be"), list("cf")]

    def all_gather(out, mine):
        assert mine == shares[0]
        out[:] = shares

    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    ranks = Ranks(Config(threads=1))
    assert ranks.gather(rows) == rows
    ranks.world = 3
    assert ranks.gather(rows[0::3]) == rows


# -------------------------------------------------------------------------------------------------
# costs


def test_flops_of_a_step_are_three_forward_passes_of_what_is_trained():
    """Bug: a frozen model that is charged for a backward pass, a weak model at the price of the
    strong one."""
    strong, weak = (GPTConfig(vocab_size=97, dim=d, n_layers=n, n_heads=2)
                    for d, n in ((16, 1), (8, 3)))
    samples = clean_set(toy_encoding(), 6, 0)
    n = torch.tensor([len(s.tokens) - 1 for s in samples], dtype=torch.float64)
    n_loss = torch.tensor([int(s.loss[1:].sum()) for s in samples], dtype=torch.float64)
    forward = [m.forward_flops(n, n * (n + 1) / 2, n_loss) for m in (strong, weak)]
    assert torch.equal(sample_flops(strong, samples), forward[0])
    assert torch.equal(step_flops(samples, strong), 3 * forward[0])
    assert torch.equal(step_flops(samples, strong, weak), 3 * forward[0] + 3 * forward[1])
    assert torch.equal(step_flops(samples, strong, weak, joint=False), 3 * forward[0] + forward[1])


# -------------------------------------------------------------------------------------------------
# interrupted runs


def crash_before(monkeypatch, arm, step):
    """Training stops before that step of that arm; -> the steps that are done of each arm."""
    real_train, real_lr, now, done = train_wmss.train, train_wmss.lr_at, {}, []

    def train(run, name, *args, **kw):
        now["arm"] = name
        return real_train(run, name, *args, **kw)

    def lr_at(s, *args):                    # called once a step, before its forward pass
        done.append((now["arm"], s))
        if (now["arm"], s) == (arm, step):
            raise Crash
        return real_lr(s, *args)

    monkeypatch.setattr(train_wmss, "train", train)
    monkeypatch.setattr(train_wmss, "lr_at", lr_at)
    return done


@pytest.mark.parametrize("save_every", ("1", "1000"))
@pytest.mark.parametrize("arm, step", [
    ("base", 3), ("sft", 2), ("wmss", 2), ("wmss-mask", 1), ("sft-steps", 2), ("sft-flops", 3)])
def test_resume_after_a_crash_gives_the_same_bits(run, trained, monkeypatch, arm, step,
                                                  save_every):
    """Bug: an optimizer without its state, an order that starts again, a schedule counted from the
    resumed step; log records of steps that were done again, also where the crash came before the
    first save."""
    flags = ["--name", "a", "--save-every", save_every, *BASELINES, "--stages", ALL]
    names = ["base", "sft", "wmss", "weak", "sft-steps", "sft-flops"]
    if arm == "wmss-mask":
        flags[flags.index("sft-flops")] = names[-1] = "wmss-mask"
    if arm not in ("base", "sft"):          # the rest as quickly as it goes
        flags = [*flags[:-2], *from_m1(trained)]
        names = names[2:]
    with monkeypatch.context() as m:
        crash_before(m, arm, step)
        with pytest.raises(Crash):
            run(*flags)
    with open(os.path.join("out", "a", "log.jsonl"), "a") as f:
        f.write('{"arm": "base", "lo')      # the crash came in the middle of a line
    out = run(*flags, "--resume")
    for name in names:
        assert same(out / f"{name}.pt", trained / f"{name}.pt"), name
    for name in names:
        if name != "weak":
            assert trace(out, name) == trace(trained, name)
    assert not list(out.glob("resume*"))


@pytest.fixture
def interrupted(run, trained, monkeypatch):
    """Flags of a run of wmss that stopped after two of its three steps, and its interim state."""
    flags = ("--name", "a", *from_m1(trained), "--arm", "wmss", "--save-every", "1")
    with monkeypatch.context() as m:
        crash_before(m, "wmss", 2)
        with pytest.raises(Crash):
            run(*flags)
    return flags, os.path.join("out", "a", "resume-wmss.pt")


def by_parameters(path):
    """[(shape of a parameter, its optimizer state)] of an interim state."""
    strong, meta = load_checkpoint(path)
    shapes = 2 * [p.shape for p in strong.parameters()]          # the weak model has the same
    return list(zip(shapes, meta["optimizer"], strict=True))


def test_the_interim_state_holds_what_adamw_knows_of_each_parameter(interrupted):
    """Bug: moments in another order than the parameters', or those of one model only."""
    found = by_parameters(interrupted[1])
    assert len(found) == 2 * len(list(load_checkpoint(interrupted[1])[0].parameters()))
    for shape, state in found:
        assert set(state) == {"exp_avg", "exp_avg_sq", "step"} and state["step"] == 2
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == shape
        assert state["exp_avg"].any() and (state["exp_avg_sq"] >= 0).all()


def test_the_optimizer_takes_its_state_up_to_the_bit(run, trained, interrupted, monkeypatch):
    """Bug: moments that start again, a step count that does, weight decay that is coupled: against
    torch's own load_state_dict."""
    flags, path = interrupted
    saved = torch.load(path, weights_only=True)
    seen, real = {}, torch.optim.AdamW.step

    def step(opt, *args, **kw):
        if "equal" not in seen:
            params = opt.param_groups[0]["params"]
            (group,) = opt.state_dict()["param_groups"]
            seen["group"] = group
            twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
            peer = torch.optim.AdamW(twins, betas=(0.9, 0.95), fused=True)
            peer.load_state_dict({"state": dict(enumerate(saved["optimizer"])),
                                  "param_groups": [group]})
            for twin, p in zip(twins, params, strict=True):
                twin.grad = p.grad.clone()
            real(peer)
            real(opt, *args, **kw)
            seen["equal"] = [torch.equal(a, b) for a, b in zip(twins, params, strict=True)]
            seen["steps"] = [opt.state[p]["step"].item() for p in params]
        else:
            real(opt, *args, **kw)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(*flags, "--resume")
    assert all(seen["equal"]) and set(seen["steps"]) == {3.0}
    assert seen["group"]["betas"] == (0.9, 0.95) and seen["group"]["fused"]
    assert seen["group"]["weight_decay"] == Config.weight_decay
    assert same("out/a/wmss.pt", trained / "wmss.pt")


def to_the_old_form(path):
    """An interim state as the version with an optimizer of its own wrote it: for each parameter a
    dict of three tensors, the step a scalar, zeros where there was no gradient yet."""
    saved = torch.load(path, weights_only=True)
    old = []
    for shape, state in by_parameters(path):
        state = state or dict(exp_avg=torch.zeros(shape), exp_avg_sq=torch.zeros(shape), step=0.0)
        old.append(dict(exp_avg=state["exp_avg"].clone(), exp_avg_sq=state["exp_avg_sq"].clone(),
                        step=torch.tensor(float(state["step"]))))
    saved["optimizer"] = old
    saved["config"] = old_config(saved["config"])
    torch.save(saved, path)


def old_config(config):
    """The settings as a run of the old version wrote them."""
    config = {k: v for k, v in config.items() if k not in ("joint_lr", "mask_lr")}
    former = {"sft-steps": "sft", "temperature": "d0", "smoothing": "label-smoothing"}
    config["arm"] = [former.get(name, name) for name in config["arm"]]
    return {**config, "preset": "toy"}


def test_an_interim_state_of_the_old_version_is_taken_up_to_the_bit(run, trained, interrupted):
    """Bug: days of training that an update of the code throws away."""
    flags, path = interrupted
    to_the_old_form(path)
    run(*flags, "--resume")
    assert same("out/a/wmss.pt", trained / "wmss.pt") and same("out/a/weak.pt", trained / "weak.pt")
    assert trace(Path("out/a"), "wmss") == trace(trained, "wmss")


def test_a_folder_of_the_old_version_is_gone_on_with(run, trained):
    """Bug: a flag that the old version did not have, taken for one that has changed."""
    out = run("--name", "a", "--stages", "base,sft", "--arm", "sft-steps", "wmss")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(old_config(config)))
    for name in ("base.pt", "sft.pt"):
        saved = torch.load(out / name, weights_only=True)
        saved["config"] = old_config(saved["config"])
        torch.save(saved, out / name)
    run("--name", "a", "--resume", "--stages", "entropy,wmss", "--arm", "sft-steps", "wmss",
        "joint")
    for name in ("wmss", "weak", "sft-steps", "joint"):
        assert same(out / f"{name}.pt", trained / f"{name}.pt")
    old = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**old, "lam": 0.9, "gap": "token"}))
    said = refuse(*TINY, "--name", "a", "--resume")
    assert "--lam 0.9 -> 0.5" in said and "--gap token -> sample" in said


def test_an_interim_state_of_the_moments_that_adamw_has_not_made_yet_is_taken_up(
        run, trained, monkeypatch):
    """Bug: an entry of none for a parameter that no gradient has reached yet."""
    flags = ("--name", "a", *from_m1(trained), "--arm", "joint", "--save-every", "1")
    with monkeypatch.context() as m:
        crash_before(m, "joint", 1)
        with pytest.raises(Crash):
            run(*flags)
    saved = torch.load("out/a/resume-joint.pt", weights_only=True)
    saved["optimizer"][0] = None
    torch.save(saved, "out/a/resume-joint.pt")
    out = run(*flags, "--resume")
    assert all(w.isfinite().all() for w in weights(out / "joint.pt").values())


def test_an_interrupted_arm_keeps_its_state_while_another_is_trained(run, trained, interrupted,
                                                                     monkeypatch):
    """Bug: --resume --arm sft-steps deleted what --resume was to go on from: days of the joint
    arm."""
    flags, _ = interrupted
    out = run(*flags, "--resume", "--arm", "sft-steps", "--stages", "wmss")
    assert (out / "sft-steps.pt").exists() and not (out / "wmss.pt").exists()
    done = crash_before(monkeypatch, "", 0)
    run(*flags, "--resume")
    assert done == [("wmss", 2)] and same(out / "wmss.pt", trained / "wmss.pt")


def crash(*args, **kw):
    raise Crash


def test_crash_in_the_entropy_stage_or_while_scoring_loses_nothing(run, trained, monkeypatch):
    """Bug: a half-written gaps.pt taken for a whole one; checkpoints saved only after the
    scores."""
    with monkeypatch.context() as m:
        m.setattr("plumbing.run.gap_table", crash)
        with pytest.raises(Crash):
            run("--name", "a", *BASELINES)
    with monkeypatch.context() as m:
        m.setattr(train_wmss.eval_math, "complete", crash)
        with pytest.raises(Crash):
            run("--name", "a", "--resume", *BASELINES)
    out = run("--name", "a", "--resume", *BASELINES)
    assert same(out / "wmss.pt", trained / "wmss.pt")

    def what_counts(folder):
        return {r["model"]: (r["accuracy"], r["n"], r["flops"]) for r in scores(folder)}

    assert what_counts(out).items() <= what_counts(trained).items() and len(scores(out)) == 7


def test_interim_state_that_is_none_is_refused(run, trained):
    """Bug: a KeyError from a resume-sft.pt that is another checkpoint."""
    out = run("--name", "a", "--stages", "base")
    (out / "resume-sft.pt").write_bytes((trained / "sft.pt").read_bytes())
    said = refuse(*TINY, "--name", "a", "--stages", "sft", "--resume")
    assert "no interim state" in said and "delete it" in said


def test_a_run_is_not_resumed_on_other_samples(run, hf_folder, text, tmp_path):
    """Bug: a training file rewritten under its name, or another template in the same file: the
    rest of the run trains on it."""
    file = tmp_path / "d.jsonl"
    with open(text[0]) as f:
        file.write_text(f.read())
    flags = [*text_flags(hf_folder, (str(file), text[1]), "r"), "--stages", "sft"]
    out = run(*flags)
    os.remove(out / "sft.pt")
    run(*flags, "--resume")
    os.remove(out / "sft.pt")
    file.write_text(file.read_text().replace("is 5", "is 6"))
    assert "was started on other samples" in refuse(*TINY, *flags, "--resume")
    assert not (out / "sft.pt").exists()


def on_day(monkeypatch, day):
    """The calendar says that it is this day."""
    calendar = types.SimpleNamespace(today=lambda: datetime.date.fromisoformat(day))
    monkeypatch.setattr(run_file, "datetime", types.SimpleNamespace(date=calendar))


def test_a_date_in_the_prompts_stays_that_of_the_first_day(run, hf_folder, text, tmp_path,
                                                           monkeypatch):
    """Bug: a run that cannot be resumed tomorrow; a control started tomorrow on other prompts than
    its M1; an entropy pass or scores on those of today."""
    file = tmp_path / "dated.jinja"
    file.write_text("{% for m in messages %}{% if m.role == 'user' %}{{ strftime_now('%d %b %Y') }}"
                    "{{ '!' if loud }} {{ m.content }}{% else %} {{ m.content }}{{ eos_token }}"
                    "{% endif %}{% endfor %}")
    flags = text_flags(hf_folder, text, "r") + ["--template", str(file)]
    on_day(monkeypatch, "2026-02-03")
    out = run(*flags, "--stages", "sft")
    first = json.loads((out / "config.json").read_text())
    assert first["template_date"] == "2026-02-03"
    on_day(monkeypatch, "2026-02-04")
    run(*flags, "--stages", "base,sft,entropy,wmss,score", "--arm", "wmss", "--resume")
    said = refuse(*TINY, *flags, "--resume", "--template-date", "2026-02-04")
    assert "--template-date 2026-02-03 -> 2026-02-04" in said
    enc = tasks.tokenizer_of(read_config(out / "wmss.pt")[1])
    assert eval_math.chat(enc)("why?") == "03 Feb 2026 why?"
    assert digest(tasks.training_set(first, enc)) == first["digest"]    # as entropy.py reads them
    flags[1] = "control"
    more = run(*flags, "--sft", str(out / "sft.pt"), "--stages", "wmss", "--arm", "joint",
               "--gap", "none")
    control = json.loads((more / "config.json").read_text())
    assert (control["digest"], control["template_date"]) == (first["digest"], "2026-02-03")
    flags[1] = "new"
    new = run(*flags, "--stages", "base", "--template-kwargs", '{"loud": true}')
    found = json.loads((new / "config.json").read_text())
    assert found["template_date"] == "2026-02-04" and found["digest"] != first["digest"]
    flags[1] = "loud"
    said = refuse(*TINY, *flags, "--sft", str(out / "sft.pt"), "--template-kwargs", '{"loud": 1}')
    assert f"(--template {file}) than this run's (--template {file} {{\"loud\": 1}})" in said


def test_weights_that_changed_between_runs_are_noticed(run, hf_folder, text, tmp_path):
    """Bug: a base that was trained on under its name: the rest of the run starts from another."""
    base = tmp_path / "base"
    shutil.copytree(hf_folder, base)
    flags = [*text_flags(base, text, "r"), "--stages", "base,sft"]
    out = run(*flags)
    assert {*json.loads((out / "config.json").read_text())["models"]} == {"base"}
    os.utime(base / "model.safetensors")
    run(*flags, "--resume")                             # a copy of it is no other model
    file = base / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    said = refuse(*TINY, *flags, "--resume")
    assert f"--base {base} is another model than when" in said and "bring the old" in said
    file.write_bytes(content)
    config = (base / "config.json").read_text()
    (base / "config.json").write_text(config.replace('"rope_theta": ', '"rope_theta": 1'))
    assert "is another model" in refuse(*TINY, *flags, "--resume")


# -------------------------------------------------------------------------------------------------
# the folder


def test_existing_run_is_neither_overwritten_nor_resumed_with_other_values(run, trained):
    """Bug: a night's checkpoints gone, or half a run at one lambda and half at another."""
    out = run("--name", "a", "--stages", "base")
    before = files_of(out)
    flags = (*TINY, "--name", "a")
    assert "--resume goes on with it, --overwrite deletes it" in refuse(*flags)
    said = refuse(*flags, "--resume", "--lam", "0.3", "--base-lr", "1e-2")
    assert "--lam 0.5 -> 0.3" in said and "--base-lr 0.003 -> 0.01" in said
    said = refuse(*flags, "--overwrite", "--base", str(out / "base.pt"))
    assert "would delete" in said
    (out / "mine.txt").write_text("--lam 0.3\n")
    before = files_of(out)
    assert "would delete" in refuse(*flags, "--overwrite", "--preset", str(out / "mine.txt"))
    os.symlink(out / "base.pt", out.parent / "link.pt")
    os.symlink(trained / "base.pt", out / "m0.pt")
    before = files_of(out)
    for base in (out.parent / "link.pt", out / "m0.pt"):
        assert "would delete" in refuse(*flags, "--overwrite", "--base", str(base))
    assert "not both" in refuse(*flags, "--overwrite", "--resume")
    assert files_of(out) == before
    os.mkdir(os.path.join("out", "mine"))
    thesis = os.path.join("out", "mine", "thesis.tex")
    open(thesis, "w").close()
    assert "not a run of ours" in refuse(*TINY, "--name", "mine", "--overwrite")
    assert os.path.exists(thesis)
    assert "nothing to resume" in refuse(*TINY, "--name", "new", "--resume")
    run("--name", "a", "--stages", "base", "--overwrite", "--base-lr", "1e-2")
    assert json.loads((out / "config.json").read_text())["base_lr"] == 0.01


def test_an_m1_and_a_weak_snapshot_need_no_base(run, trained):
    """Bug: a base trained for an hour that nothing reads, and that the table calls M0."""
    weak = next(str(path) for path in (trained / "snapshots").iterdir())
    out = run("--name", "a", "--sft", str(trained / "sft.pt"), "--weak-snapshot", weak, "--arm",
              "joint")
    assert not (out / "base.pt").exists()
    assert [row["model"] for row in scores(out)] == ["sft", "joint"]


def test_what_a_kill_has_left_half_done_is_scored_and_said(run, trained):
    """Bug: a run whose wmss.pt is gone cannot be scored; stages that fail at the end of the first
    round; entropies logged twice."""
    out = run("--name", "a", *from_m1(trained, "entropy,wmss,score"), "--arm", "sft-steps", "wmss")
    os.remove(out / "wmss.pt")
    os.remove(out / "gaps.pt")
    run("--name", "a", *from_m1(trained, "score"), "--arm", "sft-steps", "wmss", "--resume")
    assert [row["model"] for row in scores(out)] == ["base", "sft", "sft-steps"]
    run("--name", "a", *from_m1(trained, "entropy"), "--arm", "sft-steps", "wmss", "--resume")
    assert len([r for r in records(out) if "gaps" in r]) == 1
    said = refuse(*TINY, "--name", "r", *from_m1(trained, "entropy"), "--rounds", "2", "--arm",
                  "wmss")
    assert "entropy of round 2 needs out/r/wmss-round1.pt" in said and not os.path.exists("out/r")


def test_a_model_from_which_others_were_made_is_not_made_anew_with_another_rate(run):
    """Bug: a new M1 beside gaps, arms and scores of the old one, in one table."""
    flags = ("--name", "a", "--arm", "sft-steps", "joint")
    out = run(*flags, "--stages", "base,sft,entropy")
    os.remove(out / "sft.pt")
    assert "--sft-lr" in refuse(*TINY, *flags, "--resume", "--sft-lr", "3e-2")
    os.remove(out / "gaps.pt")                              # now nothing is left of it
    run(*flags, "--stages", "sft,entropy,wmss", "--resume", "--sft-lr", "3e-2")
    os.remove(out / "base.pt")
    assert "--base-lr" in refuse(*TINY, *flags, "--resume", "--base-lr", "3e-2")


def test_an_interim_state_counts_as_room(run, interrupted, monkeypatch):
    """Bug: --resume refused for want of a disk that had carried the run."""
    asked = []
    monkeypatch.setattr(run_file.owner, "check_disk", lambda out, arm, needed: asked.append(
        (arm, needed)) or "")
    flags, interim = interrupted
    size = os.path.getsize(interim)
    run(*flags, "--resume")
    os.remove("out/a/wmss.pt")
    run(*flags, "--resume")
    again, first = (needed for arm, needed in asked if arm == "wmss")
    assert again == first - size > 0


def test_what_changes_no_weight_may_change_on_resume(run, trained):
    """Bug: a run that cannot be gone on with because it is to be scored in another way."""
    out = run("--name", "a", "--stages", "base")
    run("--name", "a", "--stages", "base,sft", "--resume", "--score-n", "7", "--log-every", "2",
        "--save-every", "5", "--eval-batch", "3", "--max-new-tokens", "5", "--threads", "1",
        "--arm", "joint", "--score-split", "val")
    assert same(out / "sft.pt", trained / "sft.pt")


def test_the_folder_knows_which_model_is_which(tmp_path):
    """Bug: the weak model of round 2 taken from a flag, M_1 read where the flag names another."""
    cfg = Config(rounds=3, weak_snapshot="snap.pt")
    folder = Folder(cfg, path=str(tmp_path))
    names = [os.path.basename(folder.checkpoint(t)) for t in range(5)]
    assert names == ["base.pt", "sft.pt", "wmss-round1.pt", "wmss-round2.pt", "wmss.pt"]
    assert folder.weak(1) == "snap.pt"
    assert folder.weak(2) == folder.checkpoint(1) and folder.weak(3) == folder.checkpoint(2)
    assert not folder.has(0) and not folder.has(1)
    (tmp_path / "base.pt").write_bytes(b"")
    assert folder.has(0) and list(folder.models(("base", "sft", "wmss"))) == ["base"]
    cfg.base, cfg.sft, cfg.weak_snapshot = "acme/base", "acme/tuned", ""
    assert folder.has(0) and folder.has(1) and folder.weak(1) == "acme/base"
    assert folder.models(("base", "sft")) == {"base": "acme/base", "sft": "acme/tuned"}
    with pytest.raises(ValueError, match="no checkpoint in"):
        folder.models(("wmss", "fused"))


def test_only_rank_0_writes(tmp_path):
    """Bug: a log line of each rank."""
    for rank, lines in ((1, 0), (0, 1)):
        Folder(Config(), rank, str(tmp_path)).log(step=1)
        found = tmp_path / "log.jsonl"
        assert (len(found.read_text().splitlines()) if found.exists() else 0) == lines


# -------------------------------------------------------------------------------------------------
# divergence


@pytest.mark.parametrize("steps", ("30", "1"))
def test_divergence_stops_the_run_and_saves_no_wreck(run, steps):
    """Bug: hours of NaN; a base.pt of NaN after its last step, for which the next stage's rate is
    blamed."""
    with pytest.raises(SystemExit, match="base has diverged at step .*start it again with a lower "
                                         "learning rate"):
        run("--name", "a", "--stages", "base", "--base-lr", "3e38", "--base-steps", steps,
            "--weight-decay", "1e30")
    assert not os.path.exists("out/a/base.pt")


def test_divergence_leaves_no_wreck_among_the_snapshots(run, trained):
    """Bug: a snapshot of NaN, the weak model of a later run, from a step between two lines of the
    log."""
    with pytest.raises(SystemExit, match="sft has diverged at step .*it has no checkpoint"):
        run("--name", "a", "--stages", "sft", "--base", str(trained / "base.pt"),
            "--sft-lr", "1e30", "--sft-epochs", "20", "--snapshots", "50", "--log-every", "100")
    found = os.listdir("out/a/snapshots")
    for name in found:
        for w in weights(os.path.join("out/a/snapshots", name)).values():
            assert w.isfinite().all(), name
    assert found


def test_log_lines_say_the_peak_rate_and_the_time_left(run, capsys):
    """Bug: a field that a reader's script looks for and does not find."""
    out = run("--name", "a", "--stages", "base", "--warmup", "0.5")
    said = capsys.readouterr().out
    assert "base      step    4/4 | loss " in said and "| eta 0:00" in said
    logged = [r for r in records(out) if r.get("arm") == "base"]
    assert [r["step"] for r in logged] == [1, 2, 3, 4]
    assert [r["lr"] for r in logged] == pytest.approx([1.5e-3, 3e-3, 3e-3, 1.5e-3])
    for r in logged:
        assert {"loss", "gnorm", "loss_tokens", "tok_s", "gnorm_strong", "margin"} <= set(r)


def test_checkpoints_say_where_they_come_from(trained):
    """Bug: a model whose data, rate or cost nobody knows any more."""
    for name in ("base", "sft", "wmss"):
        meta = load_checkpoint(trained / f"{name}.pt")[1]
        assert meta["arm"] == name and meta["cursor"] == meta["step"] * 8 and meta["flops"] > 0
        assert meta["config"]["clean"] == 24
        assert meta["commit"] == records(trained)[0]["commit"]
    assert commit()


def test_no_git_is_no_reason_not_to_run(monkeypatch):
    """Bug: FileNotFoundError: git, on a cluster node."""
    monkeypatch.setenv("PATH", "")
    assert commit.__wrapped__() == "unknown"
