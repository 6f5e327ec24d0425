"""plumbing/toy_code.py: the oracle is Python, which runs every answer and every mistake."""

import collections

import pytest

from data import FAMILIES
from plumbing.toy_code import CODE_FAMILIES, main, toy_code


def test_code_answers_do_what_the_line_says_and_mistakes_do_not():
    """Bug: hidden inputs that a mistake survives; noise that touches answers or tests; a drawn
    boundary where both cases agree.
    """
    for p in toy_code("train", 4000, 5, 0.5):
        exec(p.test, names := {})
        names["check"](eval("lambda x: " + p.answer))
        with pytest.raises(AssertionError):
            names["check"](eval("lambda x: " + p.mistake))
        assert p.completion in (p.answer, p.mistake) and p.code == "def f(x): return "
        assert len(p.completion) < 64
    flawed = sum(p.completion == p.mistake for p in toy_code("train", 4000, 5, 0.5))
    assert 1850 < flawed < 2150 and all(p.completion == p.answer for p in toy_code("train", 400, 5))


def test_code_problems_are_distinct_disjoint_and_enough():
    """Bug: an interval over 2,100 problems of which 300 are copies; a test problem met in training.
    """
    sets = {split: {p.prompt for p in toy_code(split, 2100)} for split in ("val", "test")}
    train = toy_code("train", 12_000, 1, noise=0.5) + toy_code("train", 1000)
    sets["train"] = {p.prompt for p in train}
    assert len(sets["val"]) == len(sets["test"]) == 2100
    assert not (sets["train"] & sets["test"] or sets["train"] & sets["val"]
                or sets["val"] & sets["test"])
    counts = collections.Counter(p.family for p in toy_code("test", 2000))
    assert set(counts) == set(CODE_FAMILIES) and set(counts.values()) == {250}
    assert all(len(f) < 8 for f in [*FAMILIES, *counts])


def test_the_command_prints_a_problem_of_each_family(capsys):
    """Bug: a split that is ignored, a family left out."""
    main(["--split", "test"])
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out] == list(CODE_FAMILIES)
    assert [p.prompt in line for p,
            line in zip(toy_code("test", 8), out, strict=True)] == [True] * 8
