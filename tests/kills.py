"""Kill runs at random places, resume them, and compare what they leave with an undisturbed run.

    python tests/kills.py --kills 30 --ranks 1 2 4               # a table: docs/reliability.md
    python tests/kills.py --kills 30 --ranks 2 --modes fsdp
    python tests/kills.py --kills 30 --ranks 1 2 4 --modes ddp fsdp --cross    # they change

A try is `train_wmss.py --resume auto` (the first one --overwrite, over the run before), in forked
processes, so that none waits for imports. When its log has grown to a random length, or after a
random time, all ranks get SIGKILL, or one does and the others later. Then the next try goes on. A
run ends when a try ends by itself; then no file may be missing or left over, no step may be logged
twice, and every weight must be the undisturbed run's: the same bits at one or two ranks, and to
1e-5 where ranks or modes change (sums are in another order).
"""

import argparse
import collections
import itertools
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch
import torch.distributed.fsdp  # noqa: F401  before the forks: it takes seconds

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


def names(folder="out/k"):
    """The paths of all files, without the digits of interim names."""
    return {os.path.join(directory, name) for directory, _, files in os.walk(folder)
            for name in files}


def content():
    """{path of a .pt: its tensors}"""
    found = {}
    for path in names():
        if path.endswith(".pt"):
            saved = torch.load(path, weights_only=True)
            found[path] = saved.get("model") or {"entropies": saved["ent_live"]}
    return found


def difference(a, b):
    """The largest difference between two lots of checkpoints; infinite where a file is missing."""
    if a.keys() != b.keys():
        return float("inf")
    return max((a[f][k].double() - b[f][k].double()).abs().max().item() for f in a for k in a[f])


def steps():
    """(arm, step) of the log, in order."""
    found = []
    if os.path.exists("out/k/log.jsonl"):
        with open("out/k/log.jsonl") as f:
            for line in f:
                try:
                    record = json.loads(line)
                except ValueError:          # half a line, after a kill
                    continue
                if "step" in record:
                    found.append((record["arm"], record["step"]))
    return found


def has_begun(since):
    """Whether a try that was started then has opened the folder, and written its log anew."""
    log = "out/k/log.jsonl"
    return os.path.exists(log) and os.path.getmtime(log) > since


def place(wanted, since):
    """The stage that a killed try had come to."""
    if not has_begun(since):
        return "start"
    if "out/k/answers/base.jsonl" in names():
        return "scoring"
    there = steps()
    if there and there[-1][0] in ("base", "sft") and there[-1] in wanted[1:]:
        following = wanted[wanted.index(there[-1]) + 1:]
        if following and following[0][0] != there[-1][0]:
            return f"between {there[-1][0]} and {following[0][0]}"
    return there[-1][0] if there else "start"


def disturb(pids, rng, begun, length, at):
    """Kill all ranks at a random time or step -> False; exit codes if they end before."""
    until = begun + rng.uniform(0, length) if rng.random() < 0.25 and at < 10**9 else begun + 600
    codes = {}
    while time.time() < until and not codes and not (has_begun(begun) and len(steps()) >= at):
        codes = wait(pids, time.time() + 0.02)
    codes = codes or wait(pids, time.time() + rng.uniform(0, 0.5))
    if codes:
        return {**codes, **wait(list(set(pids) - set(codes)), time.time() + 120)}
    if rng.random() < 0.5:                      # one rank dies first
        os.kill(rng.choice(pids), signal.SIGKILL)
        codes = wait(pids, time.time() + rng.uniform(0, 0.3))
    kill(pids, codes)
    return False


def main():
    cli = argparse.ArgumentParser(description=__doc__,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--kills", type=int, default=30, help="for each number of ranks and mode")
    cli.add_argument("--ranks", type=int, nargs="+", default=[1])
    cli.add_argument("--modes", nargs="+", default=["ddp"], help="of --parallel")
    cli.add_argument("--cross", action="store_true", help="ranks and mode change at each try")
    cli.add_argument("--seed", type=int, default=0)
    a = cli.parse_args()
    rng, bad = random.Random(a.seed), 0
    os.chdir(tempfile.mkdtemp())
    print(f"in {os.getcwd()}")
    torch.set_num_threads(1)
    kinds = list(itertools.product(a.ranks, a.modes))
    for kind in [kinds] if a.cross else [[kind] for kind in kinds]:
        bad += series(kind, a.kills, rng)
    raise SystemExit(bool(bad))


def series(kinds, n_kills, rng):
    """Print a line of the table -> what went wrong."""
    def command(kind, *mode):
        return start(kind[0], [*FLAGS, "--parallel", kind[1], *mode])

    begun = time.time()
    codes = wait(command(kinds[0], "--overwrite"), begun + 600)
    assert set(codes.values()) == {0}, open("said.txt").read()[-2000:]
    length, wanted, files, logged = time.time() - begun, content(), names(), steps()
    kills = runs = refused = lost = left = doubled = tries = 0
    worst, where = 0.0, collections.Counter()
    while (kills < n_kills or tries) and refused < 5:
        tried, done = time.time(), len(steps()) if tries else 0
        at = rng.randint(done, max(done, len(logged)) + 5) if kills < n_kills else 10**9
        pids = command(rng.choice(kinds), *(["--resume", "auto"] if tries else ["--overwrite"]))
        tries += 1
        codes = disturb(pids, rng, tried, length, at)
        if codes is False:
            where[place(logged, tried)] += 1
            kills += 1
            continue
        kill(pids, codes)
        if any(codes.values()):
            refused += 1
            print(open("said.txt").read()[-1000:])
            continue
        runs, tries = runs + 1, 0
        lost += len(files - names())
        left += len(names() - files)
        doubled += len(steps()) != len(logged) or set(steps()) != set(logged)
        worst = max(worst, difference(wanted, content()))
    kind = ", ".join(f"{ranks} {mode}" for ranks, mode in kinds)
    print(f"| {kind} | {kills} | {runs} | {refused} | {lost} | {left} | {doubled} | {worst:.1g} |  "
          f"{time.time() - begun:.0f} s\n   killed in: "
          + ", ".join(f"{name} {n}" for name, n in where.most_common()), flush=True)
    # three ranks or more add in an order that DDP changes after its first step; others are exact
    exact = len(kinds) == 1 and kinds[0][0] <= 2
    return refused + lost + left + doubled + (worst > (0 if exact else 1e-5))


if __name__ == "__main__":
    main()
