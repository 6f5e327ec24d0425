"""plumbing/tasks.py: built-in tasks, and one of your own by a single entry in TASKS."""

import json
import random

import pytest
from runs import clean_set

from data import Problem, draw_problems, toy_math
from plumbing.tasks import (
    TASKS,
    built_in,
    corpus_set,
    data_sets,
    task_of,
    tokenizer_of,
    training_set,
)
from plumbing.tokenizer import END, fingerprint, tokenizer_files, toy_encoding


@pytest.mark.parametrize("task", TASKS)
def test_encoding_is_one_token_a_character_and_loses_nothing(task):
    """Bug: a vocabulary that lacks a character of some family, an end token that plain text can
    spell.
    """
    enc = toy_encoding()
    problems = TASKS[task]("train", 400, noise=0.5)
    text = "".join(p.prompt + p.completion for p in problems)
    text += "\n" + "".join(map(chr, range(32, 127)))
    assert len(enc.encode_ordinary(text)) == len(text)
    assert enc.decode(enc.encode_ordinary(text)) == text
    assert enc.encode_single_token(END) == enc.n_vocab - 1 not in enc.encode_ordinary(END)


def test_clean_set_is_not_the_head_of_a_clean_corpus():
    """Bug: --noise 0 that draws the corpus with the seed of the clean set, so that SFT sees nothing
    new; --noise 0.5 --label-noise 0.5, whose D is the start of the corpus.
    """
    enc = toy_encoding()
    def tokens(samples):
        return {tuple(s.tokens.tolist()) for s in samples}
    assert len(tokens(corpus_set(enc, 200, 0, 0.0)) & tokens(clean_set(enc, 200, 0))) < 20
    corpus = tokens(corpus_set(enc, 200, 0, 0.5, label_noise=0.5))
    assert len(corpus & tokens(clean_set(enc, 200, 0, noise=0.5))) < 20
    assert corpus != tokens(corpus_set(enc, 200, 0, 0.5)) == tokens(
        corpus_set(enc, 200, 0, 0.5, label_noise=0.3)), "others stay as they were"


def draw_echo(family, rng):
    """The task of a fork: repeat a number; the mistake is to turn it round."""
    n = str(rng.randint(1000, 99999))
    prompt = f"{family} {n}:"
    return Problem(family, prompt, n, n, n[::-1])


def echo(split, n, seed=0, noise=0.0):
    rng = random.Random(f"echo {split} {seed} {noise}")
    return draw_problems(split, n, rng, noise, ["say", "write"], draw_echo)


def test_an_own_task_is_one_entry(monkeypatch):
    """Bug: a second place that knows the built-in tasks by name, so that a fork's is refused."""
    monkeypatch.setitem(TASKS, "echo", echo)
    enc = toy_encoding()
    flags = {"task": "echo", "clean": 50, "seed": 3}
    clean = training_set(flags, enc)
    assert [s.id for s in clean] == list(range(50))
    assert {s.family for s in clean} == {"say", "write"}
    for s in clean:
        prompt, completion = enc.decode(s.tokens.tolist()).split(":")
        assert prompt.split()[1] + END == completion
        assert enc.decode(s.tokens[s.loss].tolist()) == completion
    noisy = corpus_set(enc, 400, 3, 0.5, "echo")
    right = 0
    for s in noisy:
        prompt, completion = enc.decode(s.tokens.tolist()).removesuffix(END).split(":")
        right += prompt.split()[1] == completion
    assert 150 < right < 250
    problems = built_in("echo", "test", 30)
    assert len({p.prompt for p in problems}) == 30
    assert not {p.prompt for p in problems} & {p.prompt for p in echo("train", 2000)}
    assert task_of({"config": flags}) == "echo"


def test_training_set_takes_text_or_a_task_by_the_flags(tmp_path, monkeypatch):
    """Bug: a flag of text files that does not reach them, or old checkpoints read as text."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{i}:", "completion": "x" * i} for i in range(1, 6)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"task": "text", "data": ["a.jsonl"], "prompt_column": "", "completion_column": "",
             "max_len": 5, "long": "drop"}
    lines = []
    samples = data_sets(flags, toy_encoding(), lines.append)[0]
    assert len(samples) == 3 and len(lines) == 1 and "2 dropped" in lines[0]
    old = training_set({"clean": 5, "seed": 0}, toy_encoding())
    new = clean_set(toy_encoding(), 5, 0)
    assert [s.tokens.tolist() for s in old] == [s.tokens.tolist() for s in new]


def test_built_in_gives_2100_problems_and_says_that_a_flag_asks_for_too_many():
    """Bug: a message that speaks of a flag which the user never gave; fewer problems than asked."""
    assert len(built_in("toy-math", "test")) == 2100
    with pytest.raises(ValueError, match="data: split 'test' has too few .* n = 20000"):
        built_in("toy-math", "test", 20_000)


def test_a_checkpoint_names_its_task_and_its_tokenizer():
    """Bug: a model of other text scored on the built-in task, or decoded with its letters."""
    files = tokenizer_files(toy_encoding())
    assert task_of({}) == "toy-math" and task_of({"tokenizer_files": files}) == "text"
    assert task_of({"tokenizer_files": files, "config": {"task": "toy-code"}}) == "toy-code"
    for meta in ({}, {"tokenizer_files": files}):
        assert fingerprint(tokenizer_of(meta)) == fingerprint(toy_encoding())


def test_label_noise_flaws_the_clean_set_and_leaves_the_answers_right():
    """Bug: a flag that is stored and never used; answers that follow the mistake."""
    enc = toy_encoding()
    plain, flawed = ({s.id: enc.decode(s.tokens.tolist()) for s in training_set(cfg, enc)}
                     for cfg in (dict(clean=140, seed=0), dict(clean=140, seed=0, label_noise=1.0)))
    right = toy_math("train", 140, 0, 1.0)
    assert all(p.mistake in flawed[i] for i, p in enumerate(right)) and plain != flawed
    assert sum(p.mistake.rpartition(";")[2] != p.answer for p in right) > 70
