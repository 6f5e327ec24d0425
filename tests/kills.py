"""Kill runs at random times, resume them, and compare what they leave with an undisturbed run.

    python tests/kills.py --kills 60 --ranks 1 2 4          # a table: docs/reliability.md
    python tests/kills.py --kills 30 --ranks 1 2 4 --cross  # another number of ranks at each try
    python tests/kills.py --kills 30 --ranks 2 --flags "--parallel fsdp"

A try is `train_wmss.py --resume auto` (the first one --overwrite, over the run before), in forked
processes, so that none waits for imports. Some time into it all ranks get SIGKILL, or one does and
the others later. Then the next try goes on. A run ends when a try ends by itself.
"""

import argparse
import collections
import json
import os
import random
import shlex
import signal
import socket
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch

import train_wmss

FLAGS = ("--corpus 64 --clean 24 --dim 16 --n-heads 2 --n-layers 1 --base-steps 8 --batch-size 8 "
         "--score-n 7 --max-new-tokens 4 --log-every 1 --save-every 1 --threads 1 --name k "
         "--arm wmss sft-flops joint").split()


def start(ranks, flags, silent=True):
    """-> the process ids of so many ranks that run train_wmss.main(flags)."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                          LOCAL_WORLD_SIZE=str(ranks), MASTER_ADDR="localhost",
                          MASTER_PORT=str(port))
        os.dup2(os.open("said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
        os.dup2(1, 2)
        code = 1
        try:
            train_wmss.main(flags)
            code = 0
        except BaseException as e:
            print(f"rank {rank}: {e}", flush=True)
        os._exit(code)
    return pids


def wait(pids, until):
    """-> {pid: exit code} of those that have ended by then; -9 is a kill."""
    codes = {}
    while len(codes) < len(pids) and time.time() < until:
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return codes


def kill(pids, codes):
    living = [pid for pid in pids if pid not in codes]
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    for pid in living:
        os.waitpid(pid, 0)


def content(folder="out/k"):
    """{path of a .pt: its tensors}"""
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            if name.endswith(".pt"):
                path = os.path.join(directory, name)
                saved = torch.load(path, weights_only=True)
                found[path] = saved.get("model") or {"codes": saved["codes"]}
    return found


def difference(a, b):
    """The largest difference between two lots of checkpoints; infinite where a file is missing."""
    if a.keys() != b.keys():
        return float("inf")
    return max((a[f][k].double() - b[f][k].double()).abs().max().item() for f in a for k in a[f])


def at(folder="out/k"):
    """The stage that a killed run had come to."""
    arm = "before the first step"
    try:
        with open(os.path.join(folder, "log.jsonl")) as f:
            for line in f:
                arm = json.loads(line).get("arm", arm)
    except (OSError, ValueError):
        pass
    return "scores" if os.path.exists(os.path.join(folder, "answers")) else arm


def main():
    cli = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--kills", type=int, default=30, help="for each number of ranks")
    cli.add_argument("--ranks", type=int, nargs="+", default=[1])
    cli.add_argument("--cross", action="store_true", help="ranks change from try to try")
    cli.add_argument("--flags", default="", help="more flags of train_wmss.py")
    cli.add_argument("--seed", type=int, default=0)
    a = cli.parse_args()
    rng, flags = random.Random(a.seed), FLAGS + shlex.split(a.flags)
    os.chdir(tempfile.mkdtemp())
    print(f"in {os.getcwd()}")
    torch.set_num_threads(1)
    bad = 0
    for ranks in [max(a.ranks)] if a.cross else a.ranks:
        begun = time.time()
        codes = wait(start(ranks, [*flags, "--overwrite"]), begun + 600)
        assert set(codes.values()) == {0}, open("said.txt").read()[-2000:]
        length, wanted = time.time() - begun, content()
        kills, runs, refused, left, worst = 0, 0, 0, 0, 0.0
        where, tries = collections.Counter(), 0
        while kills < a.kills:
            mode = "--overwrite" if not tries else "--resume"
            world = rng.choice(a.ranks) if a.cross else ranks
            pids = start(world, [*flags, mode, *(["auto"] if tries else [])])
            tries += 1
            codes = wait(pids, time.time() + rng.uniform(0, 1.1 * length))
            if not codes:
                if rng.random() < 0.5:          # one rank dies first
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    codes = wait(pids, time.time() + rng.uniform(0, 0.3))
                kill(pids, codes)
                where[at()] += 1
                kills += 1
                continue
            codes = {**codes, **wait(list(set(pids) - set(codes)), time.time() + 60)}
            kill(pids, codes)
            refused += any(codes.values())
            if not any(codes.values()):
                runs, tries = runs + 1, 0
                names = [name for _, _, names in os.walk("out/k") for name in names]
                left += sum(".tmp" in name or name.startswith("resume-") for name in names)
                worst = max(worst, difference(wanted, content()))
            elif refused > 5:
                print(open("said.txt").read()[-2000:])
                break
        bad += refused + left + (worst > (1e-5 if a.cross else 0))
        print(f"{'changing' if a.cross else ranks} ranks: {kills} kills, {runs} runs ended, "
              f"{refused} tries refused, {left} stale files, largest difference {worst:g}, "
              f"{time.time() - begun:.0f} s\n   killed in: "
              + ", ".join(f"{name} {n}" for name, n in where.most_common()), flush=True)
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
