"""plumbing/stop.py: a signal, or a rank that is killed, loses no step that was saved."""

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from forks import torchrun
from runs import TINY, from_m1, interrupted, refuse, same, trace, weights

import train_wmss
from plumbing import stop
from plumbing.run import Ranks, Run
from train_wmss import Config


def rank_1_gets(number, before, *flags, last=1):
    """What a rank does: train_wmss.main(flags), but that rank 1 gets this signal before a step;
    the rank `last` takes a second more than the other to say what it has to say."""
    def act():
        real, tell = train_wmss.lr_at, stop.tell_torchrun
        if os.environ["RANK"] == str(last):
            stop.tell_torchrun = lambda message: (time.sleep(1), tell(message))

        def lr_at(step, *args):
            if step == before and os.environ["RANK"] == "1" and not os.path.exists("done"):
                open("done", "w").close()
                os.kill(os.getpid(), number)
            return real(step, *args)

        train_wmss.lr_at = lr_at
        sys.argv = ["train_wmss.py", *flags]
        train_wmss.main()
    return act


@pytest.fixture
def heard():
    """Signals as a terminal has them, also where the tests run under nohup or in the background."""
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL,
             signal.SIGINT: signal.default_int_handler}
    former = {number: signal.signal(number, how) for number, how in usual.items()}
    yield
    for number, how in former.items():
        signal.signal(number, how)


@pytest.mark.parametrize("name", ("SIGTERM", "SIGINT", "SIGHUP"))
def test_a_signal_finishes_the_step_saves_and_names_the_command(run, trained, monkeypatch, capfd,
                                                                heard, name):
    """Bug: Ctrl-C or a job's time limit that loses a whole stage; an exit code that a scheduler
    takes for success; a command that does not go on."""
    number, real = getattr(signal, name), train_wmss.lr_at
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", *TINY, "--name", "a", "--overwrite",
                                      "--stages", "base,sft"])

    def lr_at(step, *args):
        if step == 1:
            os.kill(os.getpid(), number)
        return real(step, *args)

    former = signal.getsignal(number)
    with monkeypatch.context() as m:
        m.setattr(train_wmss, "lr_at", lr_at)
        with pytest.raises(SystemExit) as e:
            train_wmss.main()
    assert e.value.code == 128 + number and signal.getsignal(number) == former
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{name}: base is saved after step 2 of 4; go on with: python train_wmss.py" in said
    words = said.split("train_wmss.py ")[1].split()
    assert words == [*TINY, "--name", "a", "--stages", "base,sft", "--resume"]
    train_wmss.main(words)
    assert same("out/a/base.pt", trained / "base.pt") and same("out/a/sft.pt", trained / "sft.pt")


def test_outside_of_training_a_signal_ends_at_once(run, monkeypatch, capfd):
    """Bug: Ctrl-C that waits for the end of scoring; one in the last step that is forgotten."""
    real = train_wmss.find_gaps
    monkeypatch.setattr(train_wmss, "find_gaps",
                        lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM) or real(*a, **k))
    with pytest.raises(SystemExit) as e:
        run("--name", "a", "--stages", "base,sft,entropy")
    assert e.value.code == 143 and "finished stages are kept" in capfd.readouterr().err
    assert sorted(os.listdir("out/a")) == ["base.pt", "config.json", "log.jsonl", "report.html",
                                           "sft.pt", "snapshots"]
    rate = train_wmss.lr_at
    monkeypatch.setattr(train_wmss, "lr_at", lambda step, *a: (
        step == 3 and os.kill(os.getpid(), signal.SIGTERM), rate(step, *a))[1])
    with pytest.raises(SystemExit) as e:
        run("--name", "b", "--stages", "base,sft")
    assert e.value.code == 143
    assert sorted(os.listdir("out/b")) == ["base.pt", "config.json", "log.jsonl", "report.html"]


@pytest.mark.parametrize("flag", ([], ["--overwrite"]))
def test_a_signal_before_the_run_has_begun_names_the_same_command(run, monkeypatch, capfd, flag):
    """Bug: a command that resumes what is not there, or the old run that was to be deleted."""
    if flag:
        run("--name", "a", "--stages", "base")
    before = sorted(os.listdir("out/a")) if flag else None
    words = [*TINY, "--name", "a", *flag, "--stages", "base"]
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", *words])
    with monkeypatch.context() as m:
        m.setattr(Run, "read_data", lambda run: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            train_wmss.main()
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "stopped before anything was written" in said
    assert said.split("train_wmss.py ")[1].split() == words
    assert (sorted(os.listdir("out/a")) if flag else os.path.exists("out")) == (before or False)


def test_on_several_nodes_the_command_of_one_is_not_said(monkeypatch):
    """Bug: a sentence that starts one process where there were sixteen."""
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", "--name", "a"])
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert stop.command("--resume") == \
        "torchrun (as before, on every node) train_wmss.py --name a --resume"


def test_two_ranks_stop_at_the_same_step_and_a_killed_rank_restarts_them(run, tmp_path, capsys):
    """Bug: a rank that saves while the other waits in the exchange of gradients; restarts that are
    refused because the folder is there; steps lost or done twice."""
    flags = [*TINY, "--name", "a", "--stages", "base", "--base-steps", "12", "--save-every", "2"]
    killed = rank_1_gets(signal.SIGKILL, 5, *flags, "--resume", "auto")
    done = torchrun(killed, tmp_path, 2, "--max-restarts", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "base: resumed after step 4" in done.stdout
    sentence = "SIGTERM: base is saved after step 6 of 12; go on with: torchrun --nproc_per_node 2"
    for name, last in (("b", 0), ("c", 1)):
        os.remove(tmp_path / "done")
        told = rank_1_gets(signal.SIGTERM, 5, *flags, "--name", name, last=last)
        done = torchrun(told, tmp_path, 2)
        assert done.returncode != 0 and "exitcode  : 143" in done.stderr
        assert sentence in " ".join(done.stderr.splitlines()[-2:]), "stands under torchrun's words"
    run("--name", "b", *flags[len(TINY) + 2:], "--resume")
    assert "base: resumed after step 6" in capsys.readouterr().out
    one = run("--name", "one", *flags[len(TINY) + 2:])
    for name in ("a", "b"):
        found = trace(tmp_path / "out" / name, "base")
        assert len(found) == 12 and found == pytest.approx(trace(one, "base"), rel=2e-5)


def test_what_nohup_ignores_stays_ignored():
    """Bug: a run under nohup that ends with its terminal."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stops = stop.Stop(Ranks(Config(threads=1)))
        stops.listen()
        os.kill(os.getpid(), signal.SIGHUP)
        stops.restore()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, former)


def test_the_state_is_saved_by_time_as_well(run, monkeypatch):
    """Bug: --save-every 200 on a stage of 117 steps of a minute each: nothing to go on from."""
    saved, real, now = [], torch.save, [0.0]
    monkeypatch.setattr(torch, "save", lambda content, f: (
        saved.append((content["arm"], content["step"])), real(content, f)))
    monkeypatch.setattr(time, "time", lambda: now.__setitem__(0, now[0] + 7) or now[0])
    run("--name", "a", "--stages", "base", "--base-steps", "6", "--save-minutes", "0.6")
    assert 1 < len(saved) < 6 and saved[-1] == ("base", 6) and saved[0][1] < 6
    assert len(trace(Path("out/a"), "base")) == 6


def test_what_diverged_is_started_again_with_the_command_that_is_named(run, monkeypatch):
    """Bug: "start it again with a lower rate", which --resume refuses and --overwrite pays for
    with all that went before."""
    flags = [*TINY, "--name", "a", "--stages", "base,sft", "--sft-epochs", "4"]
    bad = ["--sft-lr", "1e30"]
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", *flags, *bad])
    for save_every in ("1000", "1"):
        said = refuse(*flags, *bad, "--save-every", save_every, "--resume", "auto")
        assert "sft has diverged" in said and "--sft-lr 3e+29" in said
        interim = re.search("rm (out/a/resume-sft.pt) && python", said)
        if interim:
            assert "--sft-lr 1e+30 -> 0.001" in refuse(*flags, "--resume", "--sft-lr", "1e-3")
            os.remove(interim[1])
        words = said.split("train_wmss.py ")[1].split()
        assert words[-3:] == ["--resume", "--sft-lr", "3e+29"]
        before = weights("out/a/base.pt")
    train_wmss.main([*words[:-1], "1e-3"])
    assert all(w.isfinite().all() for w in weights("out/a/sft.pt").values())
    assert all(torch.equal(before[k], w) for k, w in weights("out/a/base.pt").items())
    assert "--sft-lr 0.001 -> 0.1" in refuse(*flags, "--resume", "--sft-lr", "0.1")


def test_a_model_made_anew_that_diverges_names_a_command_there_is(run, monkeypatch):
    """Bug: "--arm sft" and an --sft that is not there, since an arm of the old M1 is."""
    flags = ["--name", "a", "--stages", "base,sft,wmss", "--arm", "sft-steps", "--gap", "none"]
    os.remove(run(*flags) / "sft.pt")
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", *TINY, *flags])
    monkeypatch.setattr(train_wmss, "lr_at", lambda *a: 1e30)
    said = refuse(*TINY, *flags, "--resume")
    assert "sft has diverged" in said and "--arm sft " not in said and "--resume --sft-lr" in said


def test_an_arm_that_shares_its_rate_is_started_again_beside_the_run(run, trained, monkeypatch):
    """Bug: a command with a lower rate, refused since another arm was trained with the old one."""
    flags = [*TINY, "--name", "a", *from_m1(trained), "--arm", "wmss", "permuted"]
    monkeypatch.setattr(sys, "argv", ["train_wmss.py", *flags])
    real = train_wmss.lr_at
    with monkeypatch.context() as m:
        m.setattr(train_wmss, "lr_at", lambda *a: 1e30 if os.path.exists("out/a/wmss.pt")
                  else real(*a))
        said = refuse(*flags)
    assert "permuted has diverged" in said
    train_wmss.main(said.split("train_wmss.py ")[1].split())
    assert sorted(name for name in os.listdir("out/a-permuted") if name.endswith(".pt")) == [
        "gaps.pt", "permuted.pt"]


# what is wrong with an interim state: (its key, what makes it wrong)
BROKEN = {
    "NaN": ("optimizer", lambda o: [{**o[0], "exp_avg": o[0]["exp_avg"] * float("nan")}, *o[1:]]),
    "infinity": ("weak", lambda weak: {name: w / 0 for name, w in weak.items()}),
    "no weak model": ("weak", lambda weak: None),
    "shapes": ("weak", lambda weak: {name: w[:1] for name, w in weak.items()}),
    "a step behind the end": ("step", lambda step: 10**9),
    "a step in words": ("step", str),
    "no cost": ("flops", lambda flops: None),
    "a short state of the generator": ("rng", lambda rng: rng[:8]),
    "another optimizer": ("optimizer", lambda o: [{"momentum": s["exp_avg"]} for s in o]),
    "fewer parameters": ("optimizer", lambda o: o[:-1]),
}


def test_an_interim_state_that_is_broken_is_refused_by_its_name(run, trained):
    """Bug: training that goes on from NaN; KeyError, TypeError, and a traceback."""
    flags = ["--name", "a", *from_m1(trained), "--arm", "joint", "--save-every", "1"]
    interrupted(2, *TINY, *flags)
    good = torch.load("out/a/resume-joint.pt", weights_only=True)
    for what, (key, broken) in BROKEN.items():
        torch.save({**good, key: broken(good[key])}, "out/a/resume-joint.pt")
        said = refuse(*TINY, *flags, "--resume")
        assert "out/a/resume-joint.pt" in said and re.search("delete it, and .*stage", said), what
        assert ("NaN or infinity" in said) == (what in ("NaN", "infinity")), what
    torch.save(good, "out/a/resume-joint.pt")
    run(*flags, "--resume")
