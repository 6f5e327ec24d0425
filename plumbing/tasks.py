"""The tasks and the data sets that are made of them: what base, SFT and stage 3 are trained on."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from data import Problem, Sample, encode, toy_math
from plumbing.text import load_text
from plumbing.tokenizer import Tokenizer, load_tokenizer, toy_encoding
from plumbing.toy_code import toy_code

# name -> draw(split, n, seed=0, noise=0.0), which gives n Problems: the same ones for the same
# arguments, and none that another split has. To add a task of your own, write such a function
# (data.draw_problems does most of it), and add one entry here.
TASKS = {"toy-math": toy_math, "toy-code": toy_code}


def corpus_set(enc: Tokenizer, n: int, seed: int, noise: float, task: str = "toy-math",
               label_noise: float = 0.0) -> list[Sample]:
    """What the base is trained on: n samples of the train split, a share `noise` of them flawed.
    label_noise: that of D, whose very problems an equal share would draw."""
    noise = max(noise, 1e-9)
    noise += 1e-9 * (noise == label_noise)
    return encode(TASKS[task]("train", n, seed, noise), enc)


def training_set(cfg: dict, enc: Tokenizer) -> list[Sample]:
    """The paper's D, which SFT, the entropy pass and WMSS read. cfg: flags of its run; enc: what
    with_template gave, or the checkpoint's tokenizer."""
    return data_sets(cfg, enc)[0]


def data_sets(cfg: dict, enc: Tokenizer, say: Callable[[str], object] = lambda line: None
              ) -> tuple[list[Sample], list[Sample]]:
    """(D of a run, the samples that are held out for the validation loss), each with ids from 0.

    The built-in tasks hold out fresh problems of their split val, a share val_share of D's number.
    Of text they are val_data, or drawn by the seed: whole rows, since the turns of one may be
    several samples. What equals a held-out sample is not left in D.
    """
    task, share = cfg.get("task", "toy-math"), cfg.get("val_share", 0.0)
    if task != "text":
        flawed = cfg.get("label_noise", 0.0)        # 0 is the paper; more asks when it helps
        samples = encode(TASKS[task]("train", cfg["clean"], cfg["seed"], flawed), enc)
        return samples, encode(TASKS[task]("val", math.ceil(share * len(samples))), enc)
    flags = {name: cfg[name] for name in ("prompt_column", "completion_column", "max_len", "long")}
    samples, held_out = load_text(cfg["data"], enc, say=say, **flags), []
    if cfg.get("val_data"):
        held_out = load_text(cfg["val_data"], enc, say=say, **flags)
    elif share:
        rows = list(dict.fromkeys(s.where for s in samples))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(cfg["seed"]))
        drawn = {rows[i] for i in order[:math.ceil(share * len(rows))].tolist()}
        held_out = [s for s in samples if s.where in drawn]
    if not held_out:
        return samples, []
    known = {s.tokens.numpy().tobytes() for s in held_out}
    kept = [s for s in samples if s.tokens.numpy().tobytes() not in known]
    if not kept:
        raise ValueError(f"all {len(samples):,} samples of --data are held out for validation; "
                         "pass more data, or less of it to --val-data or --val-share")
    say(f"validation: {len(held_out):,} samples held out, {len(samples) - len(kept):,} of --data "
        "are not trained on")
    return number(kept), number(held_out)


def number(samples: list[Sample]) -> list[Sample]:
    """The samples with ids 0..N-1."""
    return [replace(s, id=i) for i, s in enumerate(samples)]


def task_of(meta: dict) -> str:
    """The task that a checkpoint was trained on, by its meta (model.read_config), or "text"."""
    default = "text" if meta.get("tokenizer_files") else "toy-math"
    return meta.get("config", {}).get("task", default)


def tokenizer_of(meta: dict) -> Tokenizer:
    """The tokenizer that a checkpoint carries; that of the built-in tasks if it carries none."""
    files = meta.get("tokenizer_files")
    return load_tokenizer(files) if files else toy_encoding()


def built_in(task: str, split: str, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a task, 2,100 by default; ValueError if it has not so many."""
    return TASKS[task](split, limit or 2100)
