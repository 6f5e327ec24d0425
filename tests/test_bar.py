"""plumbing/bar.py: what a user sees of work that takes its time."""

import io
import re
import time

import pytest

from plumbing import bar
from plumbing.bar import Bar, tick


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def shown(monkeypatch):
    """show(terminal, work) -> what was written while work(bar) went on; times are a tenth."""
    for name in ("FIRST", "EVERY", "LINES"):
        monkeypatch.setattr(bar, name, getattr(bar, name) / 10)
    monkeypatch.setattr(bar, "LINES", 0.2)

    def show(terminal, work):
        out = Terminal() if terminal else io.StringIO()
        with monkeypatch.context() as m:
            m.setattr("sys.stderr", out)
            with Bar(40, "answers", "answer") as b:
                work(b)
        return out.getvalue()

    return show


def long_batch(b):
    """Half of a batch of 20, by ticks, and nothing more for a while."""
    tick(10)
    time.sleep(0.35)


def test_a_bar_with_an_eta_is_there_before_the_first_batch_is_done(shown):
    """Bug: the whole of GSM8K scored without a byte on the screen; a bar that stands still."""
    assert bar.FIRST * 10 <= 2
    written = shown(True, long_batch)
    bars = written.split("\r")
    assert re.search(r"answers:  25%\|.*\| 10/40 \[00:00<00:0\d, .*answer/s\]", bars[1])
    assert len(bars) >= 4 and bars[-1] == "\x1b[K", "the line is empty again"


def test_in_a_pipe_it_is_a_plain_line_now_and_then(shown):
    """Bug: a log file of carriage returns, thousands of them."""
    written = shown(False, long_batch)
    assert written.count("\n") == 1 and "\r" not in written and "10/40" in written


def test_what_is_quick_shows_nothing(shown):
    """Bug: a flash of bars on every small file."""
    assert shown(True, lambda b: b.add(40)) == ""


def test_only_the_first_rank_shows_a_bar(shown, monkeypatch):
    """Bug: eight bars in one terminal."""
    monkeypatch.setenv("RANK", "1")
    assert shown(True, long_batch) == ""


def test_the_innermost_bar_is_told(monkeypatch):
    """Bug: the steps of generation counted as programs; a tick without a bar that fails."""
    tick(3)
    with Bar(10, "answers", "answer") as outer:
        with Bar(5, "programs", "program") as inner:
            tick(2)
            assert (outer.share, inner.share) == (0, 2)
        assert list(bar.bar([1, 2, 3], "x", "y")) == [1, 2, 3] and bar.OPEN == [outer]
        outer.add(2)
        assert (outer.done, outer.share) == (2, 0)
    assert bar.OPEN == []
