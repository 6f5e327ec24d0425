"""Processes that are forked from the tests' own, so that none of them waits for imports: alone, or
as the ranks that torchrun starts, watches and restarts."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace
from unittest.mock import patch

import torch.distributed.fsdp  # noqa: F401  before the forks: it takes seconds
import torch.distributed.run
from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import (
    SubprocessHandler,
)

LONGEST = 300           # seconds; what takes more hangs


class Forked(multiprocessing.get_context("fork").Process):
    """A process that calls act(); said: the files for what it prints and for its errors, or None:
    those of its parent. Of what a Popen can do, it has what torchrun asks for."""

    def __init__(self, act, env=(), said=None):
        super().__init__()
        self.act, self.env, self.files = act, env, said

    def run(self):
        os.setsid()                         # torchrun ends a rank's whole group
        os.environ.update(self.env)
        torch.set_num_threads(1)            # a team of the parent's would be waited for
        for number, path in enumerate(self.files or (), 1):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        faulthandler.register(signal.SIGUSR1, file=2)       # says where it is, see start()
        self.act()

    def poll(self):
        return self.exitcode

    def wait(self, timeout=None):
        self.join(timeout)


def start(act, folder):
    """act() in a process of its own -> what subprocess.run would tell of it."""
    said = [os.path.join(folder, name) for name in ("stdout.txt", "stderr.txt")]
    process = Forked(act, said=said)
    process.start()
    process.join(LONGEST)
    if process.is_alive():
        with open(f"/proc/{process.pid}/task/{process.pid}/children") as f:
            for pid in (process.pid, *map(int, f.read().split())):
                os.kill(pid, signal.SIGUSR1)
        time.sleep(1)
        process.terminate()
        process.join()
    out, errors = (open(path).read() for path in said)
    return SimpleNamespace(returncode=process.exitcode, stdout=out, stderr=errors)


def torchrun(act, folder, ranks, *flags):
    """torchrun with these flags, each of whose ranks calls act() in that folder -> as start()."""
    def begin(_handler, _command, env):
        rank = Forked(act, env)
        rank.start()
        return rank

    def agent():
        os.chdir(folder)
        with patch.object(SubprocessHandler, "_popen", begin):
            torch.distributed.run.main(["--standalone", "--nproc_per_node", str(ranks), *flags,
                                        "act"])

    return start(agent, folder)
