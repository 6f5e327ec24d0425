"""The tasks and the data sets that are made of them: what base, SFT and stage 3 are trained on."""

from collections.abc import Callable

from data import Problem, Sample, encode, toy_math
from plumbing.text import load_text
from plumbing.tokenizer import Tokenizer, load_tokenizer, toy_encoding
from plumbing.toy_code import toy_code

# name -> draw(split, n, seed=0, noise=0.0), which gives n Problems: the same ones for the same
# arguments, and none that another split has. To add a task of your own, write such a function
# (data.draw_problems does most of it), and add one entry here.
TASKS = {"toy-math": toy_math, "toy-code": toy_code}


def corpus_set(enc: Tokenizer, n: int, seed: int, noise: float,
               task: str = "toy-math") -> list[Sample]:
    """What the base is trained on: n samples of the train split, a share `noise` of them flawed."""
    noise = max(noise, 1e-9)            # with 0 it would draw the very problems of the clean set
    return encode(TASKS[task]("train", n, seed, noise), enc)


def clean_set(enc: Tokenizer, n: int, seed: int, task: str = "toy-math",
              noise: float = 0.0) -> list[Sample]:
    """The paper's D: n samples of the train split. SFT, the entropy pass and WMSS read it.

    noise: share of flawed ones; 0 is the paper, more asks when the method helps.
    """
    return encode(TASKS[task]("train", n, seed, noise), enc)


def training_set(cfg: dict, enc: Tokenizer,
                 say: Callable[[str], object] = lambda line: None) -> list[Sample]:
    """D of a run. cfg: its flags; enc: what with_template gave, or the checkpoint's tokenizer."""
    task = cfg.get("task", "toy-math")
    if task != "text":
        return clean_set(enc, cfg["clean"], cfg["seed"], task, cfg.get("label_noise", 0.0))
    flags = {name: cfg[name] for name in ("prompt_column", "completion_column", "max_len", "long")}
    return load_text(cfg["data"], enc, say=say, **flags)


def task_of(meta: dict) -> str:
    """The task that a checkpoint was trained on, by its meta (model.read_config), or "text"."""
    default = "text" if meta.get("tokenizer_files") else "toy-math"
    return meta.get("config", {}).get("task", default)


def tokenizer_of(meta: dict) -> Tokenizer:
    """The tokenizer that a checkpoint carries; that of the built-in tasks if it carries none."""
    files = meta.get("tokenizer_files")
    return load_tokenizer(files) if files else toy_encoding()


def built_in(task: str, split: str, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a task, 2,100 by default."""
    try:
        return TASKS[task](split, limit or 2100)
    except ValueError as e:
        raise ValueError(f"--limit {limit}: {e}") from None
