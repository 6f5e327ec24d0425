"""Shared by all tests: the project's folder on the path, one thread, and a whole run small enough to repeat."""

import os
import sys

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import pytest
import torch

import train_wmss
from plumbing.export import export

torch.set_num_threads(1)
TINY = ("--corpus 64 --clean 24 --dim 16 --n-heads 2 --n-layers 1 --base-steps 4 --batch-size 8 --score-n 14 "
        "--max-new-tokens 6 --log-every 1 --save-every 1000 --threads 1").split()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("--name", "a", ...) -> folder of the run; every run of a test lives in its own temporary directory."""
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
def hf_folder(trained, tmp_path_factory):
    """The tiny run's SFT model as a Hugging Face folder: real files, no network."""
    folder = tmp_path_factory.mktemp("hf") / "tiny"
    export(trained / "sft.pt", folder)
    return folder
