"""Signals: the step that is being done is finished and saved, and the next command is said."""

import os
import shlex
import signal
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from plumbing.cli import tell_torchrun

# How long ranks wait for each other: rank 0 may tokenise, or write 100 GB, for hours. A rank that
# dies is noticed at once all the same, by torchrun.
PATIENCE = timedelta(hours=6)
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP")
           if hasattr(signal, name)]


def command(*more):
    """The command of this run, with other flags, as "--resume", in the place of its own."""
    words, keeps = [], True
    for word in sys.argv[1:]:
        if word.startswith("--"):
            keeps = not more or word.split("=")[0] not in ("--resume", "--overwrite", *more)
        if keeps:
            words.append(word)
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = "python" if ranks == "1" else f"torchrun --nproc_per_node {ranks}"
    if os.environ.get("WORLD_SIZE", ranks) != ranks:
        start = "torchrun (as before, on every node)"
    return f"{start} {shlex.join([sys.argv[0], *words, *more])}"


class Stop:
    """From listen() on, SIGTERM, SIGINT and SIGHUP end the program with 128 + their number.

    They do so at once, except in training (`waits`): there after the step, when its state is saved.
    has_begun: whether the run's folder is open, so that there is something to resume.
    """

    def __init__(self, ranks):
        self.ranks, self.number, self.former = ranks, 0, {}
        self.waits = self.has_begun = False
        if ranks.world > 1:     # on the CPU: a GPU need not be waited for
            self.group = dist.new_group(backend="gloo", timeout=PATIENCE)

    def listen(self):
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:      # as nohup and & have it
                self.former[number] = signal.signal(number, self._note)

    def restore(self):
        for number, handler in self.former.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.number and self.ranks.world == 1:               # the second time: at once
            self.waits = False
        self.number = number
        if not self.waits:
            self.leave("stopped; finished stages are kept" if self.has_begun else
                       "stopped before anything was written")

    def agree(self, due):
        """-> (number of a signal that a rank has got or 0, due on a rank): on all ranks alike."""
        if self.ranks.world == 1:
            return self.number, due
        both = torch.tensor([self.number, due])
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)
        number, due = both.tolist()             # one that comes just now is agreed on next time
        return number, bool(due)

    def leave_together(self, number, what):
        """All ranks end, once rank 0 has saved."""
        self.number = number
        if self.ranks.world > 1:
            dist.barrier(group=self.group)
        self.leave(what)

    def leave(self, what):
        name = signal.Signals(self.number).name
        again = command(*["--resume"] * (self.has_begun or self.waits))
        message = f"train_wmss: {name}: {what}; go on with: {again}"
        if self.waits or self.ranks.rank == 0:
            tell_torchrun(message)      # agreed: it shows that of whichever rank it first sees gone
        if self.ranks.rank == 0:
            # print would fail inside another print that the signal has interrupted
            start = b"\n" if os.isatty(2) else b""     # behind a bar
            os.write(2, start + message.encode() + b"\n")
        if self.ranks.world > 1:
            os._exit(128 + self.number)                         # as Ranks.close() does
        raise SystemExit(128 + self.number)

    def allow(self):
        """Training is over and saved: from here on a signal need not wait."""
        self.waits = False
        if self.number:
            self.leave("stopped; finished stages are kept")
