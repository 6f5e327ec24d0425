"""data.py: oracles are Python's own arithmetic, bytes, and counting."""

import collections
import re

import pytest
import torch
from runs import clean_set

from data import (
    FAMILIES,
    Problem,
    add_columns,
    collate,
    encode,
    epoch_order,
    main,
    micro_batches,
    mul_columns,
    schedule,
    send,
    split_of,
    sub_columns,
    toy_math,
)
from plumbing.tasks import corpus_set
from plumbing.tokenizer import toy_encoding


def true_answer(prompt):
    assert re.fullmatch(r"[\d+*-]+:", prompt)
    return eval(prompt[:-1])


@pytest.mark.parametrize("split, more", [("train", 0), ("val", 0), ("test", 0), ("train", 1),
                                         ("test", 2)])
def test_clean_solutions_are_right_in_every_step(split, more):
    """Bug: an error of the generator that the model would learn as truth."""
    for p in toy_math(split, 1400, seed=3, more=more):
        steps, result = p.completion.split(";")
        assert int(result) == true_answer(p.prompt) == int(p.answer)
        for equation in re.findall(r"[\d+*-]+=\d+", steps):
            left, right = equation.split("=")
            assert eval(re.sub(r"\b0+(\d)", r"\1", left)) == int(right), p


@pytest.mark.parametrize("more", (0, 1))
def test_noisy_corpus_is_wrong_half_the_time_where_the_bug_shows_and_keeps_the_true_answer(more):
    """Bug: noise that touches the gold answer, random noise instead of a procedure, noise in the
    clean families.
    """
    wrong, total, meant = collections.Counter(), collections.Counter(), {}
    for p in toy_math("train", 14_000, seed=1, noise=0.5, more=more):
        assert int(p.answer) == true_answer(p.prompt)
        total[p.family] += 1
        bad = p.completion.split(";")[1] != p.answer
        wrong[p.family] += bad
        # one bug per family: the same problem errs the same way
        if bad:
            assert meant.setdefault(p.prompt, p.completion) == p.completion
    assert wrong["add"] == wrong["sub"] == 0
    for family in ("carry", "borrow", "order"):
        assert 0.45 < wrong[family] / total[family] < 0.55
    # some of these have nothing to carry or to borrow
    for family in ("chain", "times"):
        assert 0.3 < wrong[family] / total[family] < 0.55
    assert all(p.completion.split(";")[1] == p.answer
               for p in toy_math("train", 700, seed=1, more=more))


def test_longer_solutions_have_a_column_more_and_no_digit_grows():
    """Bug: `more` that lengthens some families only, or a factor of two digits, of which the
    procedure knows nothing; carries that are seen in two columns alone."""
    def digits(more):
        return {p.family: [len(n) for n in re.findall(r"\d+", p.prompt)]
                for p in toy_math("train", 7, more=more)}

    longer = {family: [d + (d > 1) for d in ds] for family, ds in digits(0).items()}
    assert digits(1) == longer and longer["chain"] == [4, 4, 4] and longer["times"] == [4, 1]
    for p in toy_math("train", 1400, more=1):
        a, b = map(int, re.findall(r"\d+", p.prompt)[:2])
        columns = [(a // 10**i % 10, b // 10**i % 10) for i in range(4)]
        if p.family in ("add", "carry"):        # of the last column both digits are written anyway
            assert any(x + y > 9 for x, y in columns[:3]) == (p.family == "carry")
        if p.family in ("sub", "borrow"):
            assert any(x < y for x, y in columns) == (p.family == "borrow")


def test_splits_share_no_problem_not_even_with_operands_swapped():
    """Bug: 58+67 in training, 67+58 in the test."""
    def key(p):
        return (p.prompt[-1] + re.sub(r"\d", "", p.prompt),
                tuple(sorted(re.findall(r"\d+", p.prompt))))
    sets = {split: {key(p) for p in toy_math(split, 2100)} for split in ("train", "val", "test")}
    sets["train"] |= {key(p) for p in toy_math("train", 12_000, 1, noise=0.5)}
    assert not (sets["train"] & sets["test"] or sets["train"] & sets["val"]
                or sets["val"] & sets["test"])
    assert split_of("58+67:") == split_of("67+58:") and split_of("12+3*4:") == split_of("12+4*3:")


def test_test_problems_are_distinct_and_families_even():
    """Bug: an interval over 2,100 problems of which 300 are copies."""
    problems = toy_math("test", 2100)
    assert len({p.prompt for p in problems}) == 2100
    assert set(collections.Counter(p.family for p in problems).values()) == {300}
    assert {p.family for p in problems} == set(FAMILIES)
    assert max(len(p.completion)
               for p in toy_math("train", 12_000, 0, 0.5)) < 64, "max_new_tokens would cut it"


def test_asking_for_more_problems_than_there_are_is_refused():
    """Bug: an endless loop."""
    with pytest.raises(ValueError, match="too few"):
        toy_math("test", 20_000)
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        toy_math("dev", 1)


def test_loss_falls_on_the_completion_and_the_end_token_only():
    """Bug: the off-by-one of the official code, an end token without loss, a prompt's last token
    with loss.
    """
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
    """Bug: an order that depends on what was drawn before, so that resuming changes it; equal
    epochs.
    """
    a = epoch_order(100, seed=1, epoch=2)
    torch.manual_seed(123)
    assert torch.equal(a, epoch_order(100, 1, 2)) and sorted(a.tolist()) == list(range(100))
    assert not torch.equal(a, epoch_order(100, 1, 3)) and not torch.equal(a, epoch_order(100, 2, 1))
    assert not torch.equal(a, epoch_order(100, 2, 2))


def test_schedule_sees_every_sample_once_an_epoch_in_batches_of_one_size():
    """Bug: a dropped or doubled remainder at the epoch's end; a small last batch that weighs as
    much as the others.
    """
    batches = schedule(50, 8, seed=0, epochs=4)
    assert len(batches) == 25 and all(len(b) == 8 for b in batches)
    stream = torch.cat(batches).tolist()
    assert all(sorted(stream[50 * e:50 * e + 50]) == list(range(50)) for e in range(4))
    assert stream[50:100] == epoch_order(50, 0, 1).tolist()
    for a, b in zip(schedule(50, 8, 0, steps=7), schedule(50, 8, 0, steps=20), strict=False):
        # a longer run begins as the shorter one did
        assert torch.equal(a, b)
    assert len(schedule(50, 8, 0, epochs=0.5)) == 4 and len(schedule(3, 8, 0, epochs=1)) == 1


def test_a_schedule_of_a_million_million_steps_begins_at_once():
    """Bug: all batches made before the first step; another order, or a lost remainder, where they
    are made one by one; an earlier step that is read from the middle of the stream."""
    long, short = schedule(50, 8, 0, steps=10**12), schedule(50, 8, 0, steps=60)
    assert len(long) == 10**12
    for step in (0, 1, 1, 30, 59, 7):
        assert torch.equal(long[step], short[step]), step
    first = [batch for _, batch in zip(range(60), long, strict=False)]
    assert torch.equal(torch.cat(first), torch.cat(short))
    with pytest.raises(IndexError):
        long[10**12]
    few = schedule(3, 8, 0, steps=10**9)            # an epoch is smaller than a batch
    assert torch.equal(torch.cat([few[0], few[1]]), torch.cat(schedule(3, 8, 0, steps=2)))


def test_half_an_epoch_of_distinct_draws_is_half_of_those_of_that_epoch():
    """Bug: the share of the last epoch taken from the size of the data set."""
    w = torch.ones(50, dtype=torch.float64)
    sizes = [len(epoch_order(50, 0, e, w, dedup=True)) for e in (2, 3)]
    batches = schedule(50, 1, 0, 2, epochs=1.5, weights=w, dedup=True)
    assert len(batches) == sum(sizes) - round(sizes[1] / 2)


def test_resampling_draws_by_weight_and_dedup_drops_the_copies():
    """Bug: weights ignored, drawing without replacement, dedup that sorts away the order."""
    w = torch.zeros(1000, dtype=torch.float64)
    w[:4] = torch.tensor([1.0, 2.0, 3.0, 4.0]) / 10
    drawn = epoch_order(1000, 0, 0, w)
    counts = torch.bincount(drawn, minlength=1000)
    assert len(drawn) == 1000 and counts[4:].sum() == 0
    assert ((counts[:4] - 1000 * w[:4]).abs() < 5 * (1000 * w[:4]).sqrt()).all()
    assert epoch_order(1000, 0, 0, w, dedup=True).tolist() == list(dict.fromkeys(drawn.tolist()))


@pytest.mark.parametrize("world", (1, 2, 3, 11))
def test_ranks_and_micro_batches_share_out_a_step_without_loss_or_copy(world):
    """Bug: a sample trained twice or not at all, a rank without rows that leaves the others waiting
    in the sync.
    """
    samples = corpus_set(toy_encoding(), 400, 0, 0.5)[17:27]
    ids = []
    for rank in range(world):
        parts = micro_batches(samples, 4, rank, world)
        assert parts and all(1 <= len(b.ids) <= 4 for b in parts)
        for b in parts:
            masks = [m for x,
                     part in zip(b.x, b.loss_mask.split([x.numel() for x in b.x]), strict=False)
                     for m in part.view(x.shape)]
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
    # README: 49 %
    assert real <= positions < 1.08 * real and 1 - real / whole == pytest.approx(0.485, abs=0.02)


def test_empty_data_is_refused():
    """Bug: a division by zero, or a loop that never ends."""
    with pytest.raises(ValueError, match="empty"):
        schedule(0, 8, 0, epochs=1)


def test_send_reaches_what_lists_and_tuples_hold_and_leaves_numbers():
    """Bug: buckets of a packed batch left on another device, a tuple that comes back as a list."""
    x, y, lam = send(([torch.ones(2), torch.ones(3)], torch.ones(1), 0.5), "meta")
    assert isinstance(x, list) and [t.device.type for t in (*x, y)] == ["meta"] * 3 and lam == 0.5


def test_columns_are_python_s_arithmetic_and_bugs_those_of_pupils():
    """Bug: a carry or a borrow lost at some place; a mistake that is not the one its name says."""
    for a in range(0, 1000, 7):
        for b in range(0, 1000, 11):
            assert add_columns(a, b)[1] == a + b
            assert mul_columns(a, b % 10)[1] == a * (b % 10)
            if a >= b:
                assert sub_columns(a, b)[1] == a - b
                digits = zip(f"{a:03}", f"{b:03}", strict=True)
                differences = "".join(str(abs(int(x) - int(y))) for x, y in digits)
                assert sub_columns(a, b, bug=True)[1] == int(differences)


def test_the_command_shows_as_many_problems_as_asked_for(capsys):
    """Bug: a family that is left out, the problems of another split."""
    main(["-n", "2", "--split", "val"])
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(FAMILIES)
