"""An end to what other people's files make a program do: a chat template is a program, too."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def time_limit(seconds):
    """TimeoutError inside `with` after so many seconds.

    In the main thread and where there is SIGALRM (not on Windows); elsewhere there is no limit. A
    single call into C is not interrupted, so see harmless() as well.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ring(number, frame):
        raise TimeoutError(f"it takes longer than {seconds} s")

    former = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def harmless(operator, left, right):
    """Whether * or ** of two values of a template stays small: no text of 10^11 characters."""
    if operator == "**":
        return all(isinstance(x, (int, float)) and abs(x) < 1000 for x in (left, right))
    size = 1
    for x in (left, right):
        size *= abs(x) if isinstance(x, (int, float)) else len(x)
    return size <= 10**6 or isinstance(left, float) or isinstance(right, float)
