"""What tests ask of a run: its weights, its loss curves, its records, what it refuses."""

import json
import os
from unittest.mock import patch

import pytest
import torch

import train_wmss
from plumbing.tasks import training_set

TINY = ("--corpus 64 --clean 24 --dim 16 --n-heads 2 --n-layers 1 --base-steps 4 --batch-size 8 "
        "--score-n 14 --max-new-tokens 6 --log-every 1 --save-every 1000 --threads 1").split()
# one peak learning rate for all arms of stage 3: then they differ in their loss and data alone
RATES = ("--wmss-lr 1e-3 --joint-lr 1e-3 --mask-lr 1e-3 --sft-steps-lr 1e-3 "
         "--sft-flops-lr 1e-3").split()
BASELINES = ("--arm", "sft-steps", "sft-flops", "wmss")


def clean_set(enc, n, seed, task="toy-math", noise=0.0):
    """D of a run on a built-in task: n samples, a share `noise` of them with the usual mistake."""
    flags = dict(task=task, clean=n, seed=seed, label_noise=noise)
    return training_set(flags, enc)


class Crash(Exception):
    pass


def interrupted(step, *flags):
    """A run of one arm that stops before that step of it, with no time to save."""
    real = train_wmss.lr_at

    def lr_at(s, *args):                    # called once a step, before its forward pass
        if s == step:
            raise Crash
        return real(s, *args)

    with patch.object(train_wmss, "lr_at", lr_at), pytest.raises(Crash):
        train_wmss.main(list(flags))


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same(a, b):
    """Whether two checkpoints hold the same bits."""
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def records(folder):
    with open(folder / "log.jsonl") as f:
        return [json.loads(line) for line in f]


def trace(folder, arm):
    """Logged losses of one arm, step by step."""
    return [r["loss"] for r in records(folder) if r.get("arm") == arm]


def scores(folder):
    return json.loads((folder / "scores.json").read_text())["rows"]


def answers(folder, model):
    with open(folder / "answers" / f"{model}.jsonl") as f:
        return [json.loads(line) for line in f]


def gaps_of(folder, name="gaps.pt"):
    """gaps.pt as it lies there: a dict."""
    return torch.load(folder / name, weights_only=True)


def from_m1(trained, stages="entropy,wmss"):
    """Flags of a run that starts from the base and the SFT model of another."""
    return ("--base", str(trained / "base.pt"), "--sft", str(trained / "sft.pt"),
            "--stages", stages)


def text_flags(hf_folder, text, name):
    return ["--name", name, "--base", str(hf_folder), "--data", text[0], "--score-data", text[1],
            "--max-len", "120"]


def refuse(*flags):
    """What main() says as it ends; it must end with a sentence."""
    with pytest.raises(SystemExit) as e:
        train_wmss.main(list(flags))
    assert isinstance(e.value.code, str), e.value.code
    return e.value.code


def files_of(folder):
    """{path: time of the last change} of all files in a folder."""
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(directory, name)
            found[path] = os.stat(path).st_mtime_ns
    return found
