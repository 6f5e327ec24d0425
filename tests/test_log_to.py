"""--log-to: the records of log.jsonl in TensorBoard and Weights & Biases; docs of their keys."""

import doctest
import json
import os
import re
import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import ROOT
from runs import TINY, interrupted, records, refuse

from plumbing import log_to

SHORT = (*TINY, "--name", "a")


def test_worked_examples_in_docstrings_are_true():
    """Bug: an example that nobody has run."""
    assert doctest.testmod(log_to) == (0, 1)


class Wandb(ModuleType):
    """The part of wandb that is used; it keeps what it is told."""

    def __init__(self):
        super().__init__("wandb")
        self.inits, self.logged, self.finished = [], [], 0

    def init(self, **how):
        self.inits.append(how)
        return SimpleNamespace(id="abc", log=self.logged.append, finish=self.finish,
                               define_metric=lambda name, step_metric: None)

    def finish(self):
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch):
    module = Wandb()
    module.__spec__ = SimpleNamespace(name="wandb")
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb_gets_what_the_log_gets_and_a_resumed_run_goes_on_in_it(run, wandb):
    """Bug: another record than the log's; a second run in wandb after each crash; a run that
    wandb shows as crashed because nobody has finished it."""
    flags = (*SHORT, "--stages", "base", "--log-to", "wandb", "--save-every", "2")
    interrupted(3, *flags)
    folder = run(*flags, "--resume")
    first, second = wandb.inits
    assert first["id"] is None and second["id"] == "abc" and second["resume"] == "allow"
    assert first["name"] == "a" and first["config"]["seed"] == 0 and wandb.finished == 2
    sent = {}
    for values in wandb.logged:
        arm = next(iter(values)).split("/")[0]
        sent[arm, values[f"{arm}/step"]] = {key.split("/", 1)[1]: x for key, x in values.items()}
    logged = [r for r in records(folder) if "step" in r]
    assert {(r["arm"], r["step"]) for r in logged} == sent.keys()
    for r in logged:
        got = sent[r["arm"], r["step"]]
        assert got.pop("step") == r["step"] and got == log_to.numbers_of(r)


def test_tensorboard_gets_what_the_log_gets(run):
    """Bug: a writer that is never flushed; arms in one curve; steps that begin anew."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    folder = run(*SHORT, "--stages", "base,sft", "--log-to", "tensorboard")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for arm in ("base", "sft"):
        want = [(r["step"], r["loss"]) for r in records(folder) if r.get("arm") == arm]
        got = [(e.step, e.value) for e in events.Scalars(f"{arm}/loss")]
        assert [step for step, _ in got] == [step for step, _ in want]
        assert [x for _, x in got] == pytest.approx([x for _, x in want])


@pytest.mark.parametrize("name", log_to.SERVICES)
def test_a_service_that_is_not_installed_is_named_before_anything_is_written(
        name, monkeypatch, tmp_path):
    """Bug: an ImportError after the base is trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(log_to.importlib.util, "find_spec", lambda package: None)
    assert f"pip install {name}" in refuse(*SHORT, "--log-to", name)
    assert not os.listdir(tmp_path)


def test_without_the_flag_no_service_is_touched(run, wandb):
    """Bug: an import of seconds, or an account asked for, in every run."""
    run(*SHORT, "--stages", "base")
    assert not wandb.inits


def test_every_key_of_the_log_is_documented_and_no_other(arms):
    """Bug: "affinity", of which no page says what it is; a key that was renamed."""
    with open(os.path.join(ROOT, "docs", "settings.md")) as f:
        section = f.read().partition("## The log")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section, re.M)
    documented = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    with open(arms / "log.jsonl") as f:
        logged = {key for line in f for key in json.loads(line)}
    assert logged - documented == set()
    assert documented - logged <= {"val_loss", "val_tokens"}
