"""Shared by all tests: the project's folder on the path, one thread, and whole runs small enough
to repeat."""

import json
import os
import sys

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import pytest
import torch
from runs import RATES, TINY, from_m1, gaps_of

import train_wmss
from plumbing.export import export

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("--name", "a", ...) -> folder of the run, in this test's own temporary directory."""
    monkeypatch.chdir(tmp_path)

    def go(*flags):
        train_wmss.main([*TINY, *flags])
        name = flags[flags.index("--name") + 1] if "--name" in flags else "toy"
        return tmp_path / "out" / name

    return go


def whole_run(tmp_path_factory, *flags):
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(folder)
    try:
        train_wmss.main([*TINY, "--name", "m", *flags])
    finally:
        os.chdir(before)
    return folder / "out" / "m"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Folder of one finished tiny run (name m: all stages), read by many tests, written by none."""
    return whole_run(tmp_path_factory)


@pytest.fixture(scope="session")
def trained_code(tmp_path_factory):
    """The same on the code task."""
    return whole_run(tmp_path_factory, "--task", "toy-code", "--allow-code-execution")


@pytest.fixture(scope="session")
def some_settled(trained):
    """Flags of a gap mask in which half of the tokens of the tiny run are settled."""
    gaps = gaps_of(trained)
    moved = (gaps["ent_live"] - gaps["ent_weak"]).abs()
    return ("--tau", str(moved.median().item()), "--h", "100")


@pytest.fixture(scope="session")
def arms(tmp_path_factory, trained, some_settled):
    """Folder of one run of every arm from the tiny run's M1, at one rate, and scored."""
    return whole_run(tmp_path_factory, *from_m1(trained, "entropy,wmss,score"), "--gap", "both",
                     *some_settled, *RATES, "--arm", *train_wmss.ARMS)


@pytest.fixture(scope="session")
def hf_folder(trained, tmp_path_factory):
    """The tiny run's SFT model as a Hugging Face folder: real files, no network."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    export(trained / "sft.pt", folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """(training file, scoring spec): 24 questions with answers, 40 problems of amc23's schema."""
    folder = tmp_path_factory.mktemp("text")
    rows = []
    for a in range(24):
        answer = f"{a}+{a + 3}={2 * a + 3}\n#### {2 * a + 3}"
        rows.append({"question": f"What is {a} and {a + 3}?", "answer": answer})
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    rows = [{"question": f"{a} and {a}?", "answer": str(2 * a)} for a in range(40)]
    (folder / "amc.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(folder / "train.jsonl"), f"amc23={folder / 'amc.jsonl'}"
