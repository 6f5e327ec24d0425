"""data.py: oracles are Python's own arithmetic, bytes, and counting."""

import collections
import re

import pytest
import torch

from data import (CODE_FAMILIES, FAMILIES, TASKS, Problem, clean_set, collate, corpus_set, encode, epoch_order, fingerprint,
                  micro_batches, schedule, split_of, toy_code, toy_encoding, toy_math)
from plumbing.tokenizer import END


def true_answer(prompt):
    assert re.fullmatch(r"[\d+*-]+:", prompt)
    return eval(prompt[:-1])


@pytest.mark.parametrize("split", ("train", "val", "test"))
def test_clean_solutions_are_right_in_every_step(split):
    """Bug: an error of the generator that the model would learn as truth."""
    for p in toy_math(split, 1400, seed=3):
        steps, result = p.completion.split(";")
        assert int(result) == true_answer(p.prompt) == int(p.answer)
        for equation in re.findall(r"[\d+*-]+=\d+", steps):
            left, right = equation.split("=")
            assert eval(re.sub(r"\b0+(\d)", r"\1", left)) == int(right), p


def test_noisy_corpus_is_wrong_half_the_time_where_the_bug_shows_and_keeps_the_true_answer():
    """Bug: noise that touches the gold answer, random noise instead of a procedure, noise in the clean families."""
    wrong, total, meant = collections.Counter(), collections.Counter(), {}
    for p in toy_math("train", 14_000, seed=1, noise=0.5):
        assert int(p.answer) == true_answer(p.prompt)
        total[p.family] += 1
        bad = p.completion.split(";")[1] != p.answer
        wrong[p.family] += bad
        if bad:                                                       # one bug per family: the same problem errs the same way
            assert meant.setdefault(p.prompt, p.completion) == p.completion
    assert wrong["add"] == wrong["sub"] == 0
    for family in ("carry", "borrow", "order"):
        assert 0.45 < wrong[family] / total[family] < 0.55
    for family in ("chain", "times"):                                 # some of these have nothing to carry or to borrow
        assert 0.3 < wrong[family] / total[family] < 0.55
    assert all(p.completion.split(";")[1] == p.answer for p in toy_math("train", 700, seed=1))


def test_splits_share_no_problem_not_even_with_operands_swapped():
    """Bug: 58+67 in training, 67+58 in the test."""
    key = lambda p: (p.prompt[-1] + re.sub(r"\d", "", p.prompt), tuple(sorted(re.findall(r"\d+", p.prompt))))
    sets = {split: {key(p) for p in toy_math(split, 2100)} for split in ("train", "val", "test")}
    sets["train"] |= {key(p) for p in toy_math("train", 12_000, 1, noise=0.5)}
    assert not (sets["train"] & sets["test"] or sets["train"] & sets["val"] or sets["val"] & sets["test"])
    assert split_of("58+67:") == split_of("67+58:") and split_of("12+3*4:") == split_of("12+4*3:")


def test_test_problems_are_distinct_and_families_even():
    """Bug: an interval over 2,100 problems of which 300 are copies."""
    problems = toy_math("test", 2100)
    assert len({p.prompt for p in problems}) == 2100
    assert set(collections.Counter(p.family for p in problems).values()) == {300} and {p.family for p in problems} == set(FAMILIES)
    assert max(len(p.completion) for p in toy_math("train", 12_000, 0, 0.5)) < 64, "max_new_tokens would cut it"


def test_asking_for_more_problems_than_there_are_is_refused():
    """Bug: an endless loop."""
    with pytest.raises(ValueError, match="too few"):
        toy_math("test", 20_000)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        toy_math("dev", 1)


def test_code_answers_do_what_the_line_says_and_mistakes_do_not():
    """Bug: hidden inputs that a mistake survives; noise that touches answers or tests; a drawn boundary where both cases agree."""
    for p in toy_code("train", 4000, 5, 0.5):
        exec(p.test, names := {})
        names["check"](eval("lambda x: " + p.answer))
        with pytest.raises(AssertionError):
            names["check"](eval("lambda x: " + p.mistake))
        assert p.completion in (p.answer, p.mistake) and p.code == "def f(x): return " and len(p.completion) < 64
    flawed = sum(p.completion == p.mistake for p in toy_code("train", 4000, 5, 0.5))
    assert 1850 < flawed < 2150 and all(p.completion == p.answer for p in toy_code("train", 400, 5))


def test_code_problems_are_distinct_disjoint_and_enough():
    """Bug: an interval over 2,100 problems of which 300 are copies; a test problem met in training."""
    sets = {split: {p.prompt for p in toy_code(split, 2100)} for split in ("val", "test")}
    sets["train"] = {p.prompt for p in toy_code("train", 12_000, 1, noise=0.5)} | {p.prompt for p in toy_code("train", 1000)}
    assert len(sets["val"]) == len(sets["test"]) == 2100
    assert not (sets["train"] & sets["test"] or sets["train"] & sets["val"] or sets["val"] & sets["test"])
    counts = collections.Counter(p.family for p in toy_code("test", 2000))
    assert set(counts) == set(CODE_FAMILIES) and set(counts.values()) == {250} and all(len(f) < 8 for f in [*FAMILIES, *counts])


@pytest.mark.parametrize("task", TASKS)
def test_encoding_is_one_token_a_character_and_loses_nothing(task):
    """Bug: a vocabulary that lacks a character of some family, an end token that plain text can spell."""
    enc = toy_encoding()
    text = "".join(p.prompt + p.completion for p in TASKS[task]("train", 400, noise=0.5)) + "\n" + "".join(map(chr, range(32, 127)))
    assert len(enc.encode_ordinary(text)) == len(text) and enc.decode(enc.encode_ordinary(text)) == text
    assert enc.encode_single_token(END) == enc.n_vocab - 1 not in enc.encode_ordinary(END)


def test_fingerprint_tells_encodings_apart():
    """Bug: a checkpoint used with a vocabulary of the same size and other order."""
    import tiktoken
    enc = toy_encoding()
    ranks = dict(enc._mergeable_ranks)
    ranks[b"a"], ranks[b"b"] = ranks[b"b"], ranks[b"a"]
    other = tiktoken.Encoding("x", pat_str=enc._pat_str, mergeable_ranks=ranks, special_tokens=enc._special_tokens)
    assert fingerprint(enc) == fingerprint(toy_encoding()) != fingerprint(other)


def test_loss_falls_on_the_completion_and_the_end_token_only():
    """Bug: the off-by-one of the official code, an end token without loss, a prompt's last token with loss."""
    enc = toy_encoding()
    (s,) = encode([Problem("add", "1+2:", "3", "3")], enc)
    b = collate([s])
    assert enc.decode(b.x[0].tolist()) == "1+2:3" and enc.decode(b.y[0].tolist()) == "+2:3<|end|>"
    assert b.loss_mask[0].tolist() == [False, False, False, True, True]


def test_batches_shift_by_one_and_padding_never_counts():
    """Bug: y not the token after x, pads that carry loss."""
    samples = clean_set(toy_encoding(), 30, 0)
    b = collate(samples)
    assert b.x.shape == b.y.shape == b.loss_mask.shape and b.ids.tolist() == list(range(30))
    for row, s in enumerate(samples):
        n = len(s.tokens) - 1
        assert torch.equal(b.x[row, :n], s.tokens[:-1]) and torch.equal(b.y[row, :n], s.tokens[1:])
        assert torch.equal(b.loss_mask[row, :n], s.loss[1:]) and not b.loss_mask[row, n:].any()


def test_order_is_a_function_of_seed_and_epoch():
    """Bug: an order that depends on what was drawn before, so that resuming changes it; equal epochs."""
    a = epoch_order(100, seed=1, epoch=2)
    torch.manual_seed(123)
    assert torch.equal(a, epoch_order(100, 1, 2)) and sorted(a.tolist()) == list(range(100))
    assert not torch.equal(a, epoch_order(100, 1, 3)) and not torch.equal(a, epoch_order(100, 2, 1)) and not torch.equal(a, epoch_order(100, 2, 2))


def test_schedule_sees_every_sample_once_an_epoch_in_batches_of_one_size():
    """Bug: a dropped or doubled remainder at the epoch's end; a small last batch that weighs as much as the others."""
    batches = schedule(50, 8, seed=0, epochs=4)
    assert len(batches) == 25 and all(len(b) == 8 for b in batches)
    stream = torch.cat(batches).tolist()
    assert all(sorted(stream[50 * e:50 * e + 50]) == list(range(50)) for e in range(4))
    assert stream[50:100] == epoch_order(50, 0, 1).tolist()
    for a, b in zip(schedule(50, 8, 0, steps=7), schedule(50, 8, 0, steps=20)):
        assert torch.equal(a, b)                                      # a longer run begins as the shorter one did
    assert len(schedule(50, 8, 0, epochs=0.5)) == 4 and len(schedule(3, 8, 0, epochs=1)) == 1


def test_resampling_draws_by_weight_and_dedup_drops_the_copies():
    """Bug: weights ignored, drawing without replacement, dedup that sorts away the order."""
    w = torch.zeros(1000, dtype=torch.float64)
    w[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0]) / 10
    drawn = epoch_order(1000, 0, 0, w)
    counts = torch.bincount(drawn, minlength=1000)
    assert len(drawn) == 1000 and counts[4:].sum() == 0
    assert ((counts[:4] - 1000 * w[:4]).abs() < 5 * (1000 * w[:4]).sqrt()).all()
    assert epoch_order(1000, 0, 0, w, dedup=True).tolist() == list(dict.fromkeys(drawn.tolist()))


def test_clean_set_is_not_the_head_of_a_clean_corpus():
    """Bug: --noise 0 that draws the corpus with the seed of the clean set, so that SFT sees nothing new."""
    enc = toy_encoding()
    tokens = lambda samples: {tuple(s.tokens.tolist()) for s in samples}
    assert len(tokens(corpus_set(enc, 200, 0, 0.0)) & tokens(clean_set(enc, 200, 0))) < 20


@pytest.mark.parametrize("world", (1, 2, 3, 11))
def test_ranks_and_micro_batches_share_out_a_step_without_loss_or_copy(world):
    """Bug: a sample trained twice or not at all, a rank without rows that leaves the others waiting in the sync."""
    samples = corpus_set(toy_encoding(), 400, 0, 0.5)[17:27]
    ids = []
    for rank in range(world):
        parts = micro_batches(samples, 4, rank, world)
        assert parts and all(1 <= len(b.ids) <= 4 for b in parts)
        for b in parts:
            masks = [m for x, part in zip(b.x, b.loss_mask.split([x.numel() for x in b.x])) for m in part.view(x.shape)]
            ids += [i for i, m in zip(b.ids.tolist(), masks, strict=True) if m.any()]
    assert sorted(ids) == list(range(17, 27))


def test_little_is_padding():
    """Bug: a step padded to its longest row (half of the positions on this task)."""
    samples = corpus_set(toy_encoding(), 2000, 0, 0.5)
    positions = real = whole = 0
    for batch in schedule(len(samples), 64, 0, steps=30):
        rows = [samples[i] for i in batch.tolist()]
        for b in micro_batches(rows, 64):
            positions += len(b.y)
        whole += collate(rows).x.numel()
        real += sum(len(s.tokens) - 1 for s in rows)
    assert real <= positions < 1.08 * real and 1 - real / whole == pytest.approx(0.485, abs=0.02)       # README: 49 %


def test_empty_data_is_refused():
    """Bug: a division by zero, or a loop that never ends."""
    with pytest.raises(ValueError, match="empty"):
        schedule(0, 8, 0, epochs=1)
