"""The controlled experiment on the built-in tasks: every arm from the same checkpoints and the same
order of data, each at its best.

For each task and seed one base and one M1 are trained. Stage 3 then runs for every arm with equally
many settings (learning rates x lambdas, or as many rates), scored on the validation split; the
setting with the best mean over seeds is trained again and reads the test split once. One JSONL row
per cell; whatever has a row is not done again, so a killed sweep goes on where it was.

    python experiments/sweep.py toy --seeds 5 --allow-code-execution     # -> toy.jsonl
    python experiments/sweep.py regimes --tasks toy-math                 # -> regimes.jsonl
    python experiments/sweep.py equal --seeds 10 --allow-code-execution  # -> equal.jsonl
    python experiments/sweep.py unsure --seeds 10 --tasks toy-math       # -> unsure.jsonl
    python experiments/sweep.py chains --seeds 10                        # -> chains.jsonl
    python experiments/sweep.py map --tasks toy-math --seeds 3           # -> map.jsonl
    python experiments/sweep.py rivals --tasks toy-math --seeds 3        # -> rivals.jsonl
    python experiments/analyse.py                                        # tables and figures

toy, regimes: each arm at its best of equally many settings. equal: the same rates for every arm;
unsure: the same, M1 being unsure where a mistake begins; chains: the same, of longer solutions.
map: where mixing wins if a share of the data is wrong; rivals: what else helps there (both on
validation, at one rate fixed in advance). Nothing of the training is written here again: a cell is
train_wmss.py's own stages in this process. Declared before any of their rows: the differences
analyse.EQUAL for `equal`, analyse.UNSURE for `unsure` and `chains`; ten seeds, Holm over a run's.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from unittest.mock import patch

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import analyse
import torch
from analyse import HERE, choices, ece, key_of, pack, read_rows, setting_of
from rules import RULES, by_sample, label_of, log_odds, log_p_of, marks

import eval_code
import eval_math
import train_wmss
from data import encode, toy_math
from model import load_checkpoint, read_config
from plumbing.files import append_lines, commit, whole_lines
from plumbing.run import FREE_ON_RESUME, Folder, Ranks, Run
from plumbing.tasks import TASKS
from plumbing.tokenizer import toy_encoding
from train_wmss import Config

ROOT = os.path.dirname(HERE)

# ---- a run of train_wmss.py, from here ---------------------------------------------------------

RATE_FLAGS = ("sft_steps_lr", "sft_flops_lr", "joint_lr", "wmss_lr", "mask_lr")  # one is the arm's


class Quiet(Run):
    """A run in any folder that says nothing; its log.jsonl is read when it is done."""

    def __init__(self, out, **flags):
        cfg = Config(threads=1, **flags)
        folder = Folder(cfg, path=out)
        folder.say = lambda *words: None
        super().__init__(cfg, Ranks(cfg), folder)
        os.makedirs(out, exist_ok=True)
        self.read_data()

    def train(self):
        train_wmss.run_stages(self)


# ---- the plan ----------------------------------------------------------------------------------

# Flags of stage 3 for each arm. sft-flops spends what joint spends, sft-flops-wmss what wmss-both
# spends, its entropy pass included. wmss is the paper's method; wmss-both adds the gap mask to it,
# with the weights of the authors' code, or of the paper's version 1 or 2.
NEIGHBOURS = ("dft", "focal", "gce", "confidence", "distilled", "averaged", "reweighted")
TRAINED = {arm: dict(arm=[arm], gap="none") for arm in (
    "sft-steps", "sft-flops", "temperature", "smoothing", "weights-only", "frozen", "permuted",
    "joint", *NEIGHBOURS)} | {
    "sft-flops-wmss": dict(arm=["sft-flops"], gap="both"),
    "permuted-frozen": dict(arm=["permuted"], gap="none", weak="frozen"),
    "wmss": dict(arm=["wmss"], gap="sample"), "wmss-mask": dict(arm=["wmss"], gap="token"),
    "wmss-both": dict(arm=["wmss"], gap="both"),
    "wmss-both-v1": dict(arm=["wmss"], gap="both", weights="v1"),
    "wmss-both-v2": dict(arm=["wmss"], gap="both", weights="v2", dedup=True)}
# where the data are wrong: other ways to soften or to be robust, stopping after a quarter, and
# masks of the mixing with a frozen weak model by the entropies or by another rule (rules.py)
TRAINED["sft-early"] = dict(arm=["sft-steps"], gap="none", share=0.25)
MASK = dict(arm=["wmss"], gap="token", weak="frozen")
TRAINED["rule-entropy"] = MASK
TRAINED |= {f"rule-{rule}": dict(MASK, rule=rule) for rule in RULES}
# no training: z + mu (z - z_weak) and theta + mu (theta - theta_weak), from M1 and its weak model
FREE = ("contrastive", "extrapolation")
START = ("weak", "sft")                          # what all arms start from; nothing to choose
MIXED = {"temperature", "frozen", "joint"}       # have a lambda
MIXED |= {arm for arm in TRAINED if arm.startswith(("permuted", "wmss", "rule", "distilled"))}

# flags of SFT, and those of stage 3 beside them
FEW = dict(clean=200, sft_epochs=19.2, sft_lr=1e-3)
REGIMES = {
    "default": ({}, {}),                                        # an epoch each, of 1,000 samples
    "short": (dict(sft_epochs=0.5), {}),                        # SFT: 8 steps, far from saturation
    "long": (dict(sft_epochs=4.0, sft_lr=3e-4), {}),            # near it
    "few": (FEW, dict(wmss_epochs=5.0)),                        # 60 steps on 200: far beyond it
    "more": ({}, dict(wmss_epochs=4.0)),                        # a long stage 3
    "snapshot": ({}, dict(weak_snapshot="early")),              # weak: an early SFT snapshot
    "two-rounds": ({}, dict(rounds=2))}
# The data carry the weak model's own mistakes: of the base's corpus a share w is right, of the
# fine-tuning set q (+ 1e-9: equal shares would draw the same problems). Stage 3 is long.
SHARES = {f"w{w:g}-q{q:g}": (dict(noise=1 - w, label_noise=round(1 - q, 2) + 1e-9 * (w == q)),
                             dict(wmss_epochs=12.0))
          for w in (0.02, 0.05, 0.2, 0.5) for q in (0.1, 0.3, 0.5, 0.7, 0.9)}
OWN = tuple(REGIMES)
REGIMES |= SHARES | {
    "unsure": (dict(noise=0.7, sft_epochs=2.0, sft_lr=2e-4), dict(wmss_epochs=2.0)),
    "chains": (dict(noise=0.7, sft_epochs=1.0, sft_lr=1.2e-4), dict(wmss_epochs=2.0))}
TASKS["long-math"] = functools.partial(toy_math, more=1)        # longer chains: a column more

# ---- the commands: what each of them trains, and how much of it --------------------------------
#
# rates: how many, over the whole range; or lrs: which, of a task or a regime. val, test: problems;
# k: those of them that are sampled eight times. test 0: validation alone.

FULL = dict(config={}, rates=6, lams=(0.3, 0.5, 0.7, 0.9), lrs={},
            val={"toy-math": 1400, "toy-code": 700}, test=2100, k=350)
SMALL = dict(FULL, val={"toy-math": 700, "toy-code": 480})
PLAIN = (*START, "sft-steps", "sft-flops")
PARTS = (*PLAIN, "temperature", "permuted", "weights-only", "frozen", "joint", "wmss", "wmss-mask")
COMMANDS = {
    "toy": dict(FULL, regimes=("default",), arms=(
        *START, *[arm for arm in TRAINED if arm not in NEIGHBOURS
                  and not arm.startswith(("rule", "sft-early"))], *FREE)),
    "regimes": dict(SMALL, rates=5, lams=(0.3, 0.6, 0.9), regimes=OWN, arms=(
        *PLAIN, "temperature", "frozen", "permuted", "joint", "wmss", "wmss-both", *FREE)),
    "equal": dict(FULL, regimes=("default",), lams=(0.5, 0.7, 0.9), arms=(
        *PLAIN, "temperature", "permuted", "frozen", "joint", "wmss"),
        lrs={"toy-math": (4.43e-5, 7.27e-5, 9.32e-5, 1.19e-4, 1.53e-4, 1.96e-4, 2.51e-4, 4.13e-4),
             "toy-code": (3.22e-4, 5.29e-4, 6.78e-4, 8.68e-4, 1.11e-3, 1.43e-3, 1.83e-3, 2.34e-3)}),
    "unsure": dict(SMALL, regimes=("unsure",), lams=(0.5, 0.8),
                   lrs={"unsure": (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3)},
                   arms=(*PARTS, "wmss-both")),
    "chains": dict(SMALL, config=dict(max_new_tokens=80), val={"long-math": 700}, arms=PARTS,
                   regimes=("chains",), lams=(0.5, 0.8), lrs={"chains": (1e-4, 2e-4, 4e-4, 8e-4)}),
    "map": dict(SMALL, test=0, regimes=tuple(SHARES), lams=(0.3, 0.5, 0.7),
                lrs=dict.fromkeys(SHARES, (3.1e-4,)), arms=(*PLAIN, "frozen", "joint")),
    "rivals": dict(SMALL, test=0, regimes=("w0.05-q0.3", "w0.05-q0.9"), lams=(0.5,),
                   lrs=dict.fromkeys(SHARES, (3.1e-4,)),
                   arms=(*PLAIN, "sft-early", "smoothing", "temperature", *NEIGHBOURS,
                         "permuted-frozen", "joint", "frozen", "rule-entropy",
                         *(f"rule-{rule}" for rule in RULES)))}
QUICK = dict(
    config=dict(corpus=64, clean=24, dim=16, n_heads=2, n_layers=1, base_steps=4, batch_size=8,
                max_new_tokens=6),
    rates=2, lams=(0.5,), val={"toy-math": 28, "toy-code": 16, "long-math": 28}, k=7)


def rates(n):
    """n learning rates from 1e-5 to 3e-3, evenly spaced on a log scale."""
    return [float(f"{1e-5 * 300 ** (i / (n - 1)):.3g}") for i in range(n)]


def settings(arm, size, task="", regime=""):
    """What is tried for an arm on validation -> list of {lr, lam, mu}, None: has none. Where a
    command does not say the rates: equally many settings for each arm but START."""
    n = size["rates"] * len(size["lams"])
    lrs = size["lrs"].get(regime, size["lrs"].get(task))
    if arm in START:
        tried = [{}]
    elif arm in FREE:                       # 1/16 ... 13; mu = 1 is what mixing at lam = 1/2 fits
        tried = [dict(mu=float(f"{2 ** (k / 3 - 4):.4g}")) for k in range(n)]
    elif arm in MIXED:
        tried = [dict(lam=lam, lr=lr) for lam in size["lams"] for lr in lrs or rates(size["rates"])]
    else:
        tried = [dict(lr=lr) for lr in lrs or rates(n)]
    return [dict(lr=None, lam=None, mu=None) | s for s in tried]


def plan(tasks, seeds, size):
    """All validation cells of a sweep -> list of dicts, see analyse.KEY, with their config."""
    cells = []
    for task in tasks:
        for regime in size["regimes"]:
            for arm in size["arms"]:
                if regime == "two-rounds" and arm == "permuted":          # has no rounds
                    continue
                for s in settings(arm, size, task, regime):
                    for seed in range(seeds):
                        cells.append(dict(kind="cell", regime=regime, task=task, seed=seed,
                                          arm=arm, **s, split="val", config=size["config"]))
    return sorted(cells, key=lambda c: c["seed"])       # a machine may not live to see them all


# ---- a worker: one process, one thread, many cells ---------------------------------------------


def places(job):
    """What a job's cells start from -> {"base": (folder, flags), "m1": (folder, flags)}."""
    of_sft = REGIMES[job["regime"]][0]
    noise = of_sft.get("noise", Config.noise)                        # of the base's corpus
    corpus = "" if noise == Config.noise else f"-noise-{noise:g}"
    folder = os.path.join(job["work"], f"{job['task']}-{job['seed']}{corpus}")
    flags = dict(job["size"]["config"], task=job["task"], seed=job["seed"], noise=noise,
                 allow_code_execution=job["consent"])
    name = next(r for r in REGIMES if REGIMES[r][0] == of_sft)       # regimes that share an M1
    sft = dict(flags, base=os.path.join(folder, "base.pt"), **of_sft)
    return dict(base=(folder, flags), m1=(os.path.join(folder, f"m1-{name}"), sft))


STAGE = dict(base="base", m1="sft")


def is_there(job):
    """Is the base, or the M1, of a job there, made with the flags that it would get now?"""
    folder, flags = places(job)[job["kind"]]
    path = os.path.join(folder, STAGE[job["kind"]] + ".pt")
    if not os.path.exists(path):
        return False
    made = read_config(path)[1]["config"]
    now = dataclasses.asdict(Config(threads=1, **flags))
    return all(made.get(k) == now[k] for k in now.keys() - FREE_ON_RESUME - {"name"})


def prepare(job):
    """Train the base, or the M1, of a job; what lay in its place goes."""
    folder, flags = places(job)[job["kind"]]
    shutil.rmtree(folder, ignore_errors=True)
    Quiet(folder, **flags, stages=STAGE[job["kind"]]).train()


def load(path):
    return load_checkpoint(path)[0].eval()


def train_cell(job, run_folder):
    """Stage 3 of a cell, or what stands in for it -> (model, how to decode, cost, log records)."""
    m1, sft = places(job)["m1"]
    arm, live = job["arm"], os.path.join(m1, "sft.pt")
    nothing = dict(steps=0, flops=0.0, seconds=0.0)
    weak = sft["base"]
    stage3 = REGIMES[job["regime"]][1]
    if stage3.get("weak_snapshot"):
        snapshots = os.path.join(m1, "snapshots")
        weak = os.path.join(snapshots, min(os.listdir(snapshots)))
        stage3 = dict(stage3, weak_snapshot=weak)
    if arm in START:
        return load(weak if arm == "weak" else live), {}, nothing, []
    if arm == "contrastive":
        return load(live), dict(weak=load(weak), lam=1 + job["mu"]), nothing, []
    if arm == "extrapolation":
        model = load(live)
        with torch.no_grad():
            for p, q in zip(model.parameters(), load(weak).parameters(), strict=True):
                p += job["mu"] * (p - q)
        return model, {}, nothing, []
    how = TRAINED[arm]
    if stage3.get("rounds", 1) > 1 and arm in ("joint", "frozen"):   # the same, but with rounds
        how = dict(how, arm=["wmss"], weak=arm)
    how = dict(how)
    share, rule = how.pop("share", 1), how.pop("rule", None)
    stage3 = dict(stage3, wmss_epochs=share * stage3.get("wmss_epochs", Config.wmss_epochs))
    lr = dict.fromkeys(RATE_FLAGS, job["lr"])
    lam = 0.5 if job["lam"] is None else job["lam"]                  # unused where it is None
    flags = {**sft, **stage3, **how, **lr, "lam": lam, "sft": live, "stages": "entropy,wmss"}
    run = Quiet(run_folder, **flags)
    kept = os.path.join(m1, f"gaps-{run.cfg.weights}-{os.path.basename(weak)}")
    path, log = run_stage3(run, kept, rule)
    model, meta = load_checkpoint(path)
    fused = None
    if os.path.exists(run.folder.path("weak.pt")):
        fused = dict(weak=load(run.folder.path("weak.pt")), lam=run.cfg.lam)
    return model.eval(), {}, dict(meta["spent"], fused=fused), log


def run_stage3(run, kept, rule=None):
    """Stages 2 and 3 of a run -> (path of the arm's checkpoint, its log).

    kept: where the gaps lie that all cells of an M1 share. rule: marks the tokens to mix, instead
    of the entropies.
    """
    path = run.folder.path("gaps.pt")
    if os.path.exists(kept):
        shutil.copy(kept, path)
    elif run.cfg.gap != "none":
        train_wmss.stage_entropy(run, 1)
        beside = f"{kept}.{os.getpid()}"
        shutil.copy(path, beside)
        os.replace(beside, kept)
    if rule:
        gaps = train_wmss.load_gaps(run, 1)
        gaps.codes = marks(rule, load(gaps.weak), load(gaps.live), run.samples)
        gaps.save(path)
    run.train()
    log = [{k: v for k, v in r.items() if k != "arm"} for r in run.folder.read_log() if "loss" in r]
    return run.folder.path(f"{run.cfg.arm[0]}.pt"), log


def row_of(rows, cost):
    """What judged rows say, and what training them cost."""
    s = eval_math.summary(rows)
    row = {k: s[k] for k in ("accuracy", "n", "families", "truncated", "errors")}
    return row | dict(correct=pack([r["correct"] is True for r in rows]), steps=cost["steps"],
                      flops=cost["flops"], train_seconds=cost["seconds"])


def failed(problems, error):
    """The row of an arm that diverged, which is a result too; any other error stays one."""
    if "has diverged" not in str(error):
        raise error
    return dict(accuracy=0.0, n=len(problems), error=str(error),
                correct=pack([False] * len(problems)),
                families=dict.fromkeys((p.family for p in problems), 0.0))


@functools.lru_cache                                     # drawing them takes a tenth of a cell
def problems_of(task, split, n):
    return TASKS[task](split, n)


# (problem, completion) -> verdict: arms mostly write the same programs, and running one costs 7 ms
VERDICTS = {}


def judge(job, rows, problems):
    if job["task"] != "toy-code":
        return eval_math.judge(rows)
    unseen = {(r["id"], r["completion"]): dict(r) for r in rows}
    unseen = [r for key, r in unseen.items() if key not in VERDICTS]
    if unseen:
        for r in eval_code.judge(unseen, problems, job["consent"], workers=1):
            verdict = {k: r[k] for k in ("correct", "answer", "extractor")}
            VERDICTS[r["id"], r["completion"]] = verdict
    return [r | VERDICTS[r["id"], r["completion"]] for r in rows]


def likelihoods(model, samples):
    """Of each sample the log-probability of its completion, in the order given; and of all loss
    tokens (confidence, was the top right)."""
    def measured(b, y):                                  # (n, 3)
        logp = log_p_of(model, b)
        return torch.stack([label_of(logp, y), logp.amax(-1).exp(), logp.argmax(-1) == y], -1)

    found = by_sample(measured, samples)
    _, confidence, right = torch.cat(found).T
    return [part[:, 0].double().sum().item() for part in found], confidence, right


def closer_look(job, model, how, problems, rows, enc):
    """What only test cells measure: calibration on clean solutions and on the model's own answers,
    pass@k, the fused pair."""
    out = {}
    if not how:                        # two models at once have no teacher-forced pass of their own
        clean = encode(problems, enc)
        logp, confidence, right = likelihoods(model, clean)
        written = [dataclasses.replace(p, completion=r["completion"])
                   for p, r in zip(problems, rows, strict=True)]
        sure = torch.tensor(likelihoods(model, encode(written, enc))[0]).exp()
        tokens = sum(int(s.loss[1:].sum()) for s in clean)
        out = dict(nll=-sum(logp) / tokens, nll_solution=-sum(logp) / len(clean),
                   ece_token=ece(confidence.tolist(), right.tolist()),
                   ece_answer=ece(sure.tolist(), [r["correct"] is True for r in rows]))
    some = problems[:job["size"]["k"]]
    drawn = eval_math.complete(model, enc, some, n=8, temperature=1.0,
                               max_new_tokens=job["tokens"], **how)
    found = eval_math.summary(judge(job, drawn, some), (1, 4, 8))
    return out | {k: v for k, v in found.items() if k.startswith("pass@")}


def do_cell(job):
    """Train and score one cell -> its result."""
    enc, size, split = toy_encoding(), job["size"], job["split"]
    n = size["val"][job["task"]] if split == "val" else size["test"]
    problems = problems_of(job["task"], split, n)
    job = job | dict(tokens=size["config"].get("max_new_tokens", Config.max_new_tokens))
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, how, cost, log = train_cell(job, folder)
        except ValueError as e:
            return failed(problems, e)

    def answer(**how):
        written = eval_math.complete(model, enc, problems, max_new_tokens=job["tokens"], **how)
        return judge(job, written, problems)

    rows = answer(**how)
    result = row_of(rows, cost) | dict(log=log)
    if not size["test"]:                             # how far the usual mistake is unlearned
        result["log_odds"] = log_odds(model, problems, enc)
    if split == "test":
        result |= closer_look(job, model, how, problems, rows, enc)
        if cost.get("fused"):
            result["fused"] = eval_math.summary(answer(**cost["fused"]))["accuracy"]
    return result


def do(job):
    """A job, in a worker -> its result, with the seconds that it took."""
    started = time.time()
    result = {}
    if job["kind"] != "cell":
        prepare(job)
    else:
        result = do_cell(job)
        if job["split"] == "val":                # such cells choose, and that is all
            kept = ("accuracy", "n", "error")
            if not job["size"]["test"]:          # of these commands they are the result
                kept += ("correct", "log_odds", "steps", "flops")
            result = {k: result[k] for k in kept if k in result}
    return result | dict(total=time.time() - started)


def rounded(x):
    """Floats to six digits, all the way down; what is not finite becomes None."""
    def to_six(digits):
        return float(f"{float(digits):.6g}")

    return json.loads(json.dumps(x), parse_float=to_six, parse_constant=dict().get)


# ---- the sweep ---------------------------------------------------------------------------------


def cpu_name():
    found = None
    if os.path.exists("/proc/cpuinfo"):         # a Linux
        with open("/proc/cpuinfo") as f:
            found = re.search(r"^model name\s*:\s*(.*?)\s*$", f.read(), re.M)
    return found[1] if found else platform.machine()


def hardware():
    gpu = torch.cuda.get_device_name() + ", " if torch.cuda.is_available() else ""
    return f"{gpu}{cpu_name()}, {os.cpu_count()} cores, one thread per process"


def leave_with_parent():
    """In a worker: end when the process that started it does, however that ends."""
    def wait():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def workers(n):
    """A pool of n processes of one thread."""
    with patch.dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE"):
        pool = ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), leave_with_parent)
        try:
            yield pool
        except BrokenProcessPool:
            raise SystemExit("a worker was killed (is there memory for --workers?); what is done "
                             "is kept, start it again to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


def run_jobs(pool, do, name, jobs, rows, keep):
    """do(job) of each job whose row is not there; says how far it is."""
    todo = [job for job in jobs if job["kind"] != "cell" or key_of(job) not in rows]
    print(f"{name}: {len(todo):,} to do", flush=True)
    futures = {pool.submit(do, job): job for job in todo}
    started = said = time.time()
    for count, future in enumerate(as_completed(futures), 1):
        job, result = futures[future], future.result()
        if job["kind"] == "cell":
            keep(job, rounded(result))
        now = time.time()
        if now - said > 60 or count == len(todo):
            said, minutes = now, (now - started) / 60
            print(f"  {count}/{len(todo)} | {minutes:.1f} min, "
                  f"{minutes / count * (len(todo) - count):.1f} to go", flush=True)


def open_rows(path, config):
    """Rows that are there -> ({key: row}, what is said of those to come, function that appends the
    row of a job)."""
    there = whole_lines(path)                   # a last line that a crash left half-written goes
    rows = {key_of(r): r for r in read_rows(path)} if there else {}
    versions = f"python {platform.python_version()}, torch {torch.__version__}"
    made = dict(commit=commit(), versions=versions, hardware=hardware(), config=config,
                vocabulary=analyse.VOCABULARY)
    others = sorted({r["commit"] for r in rows.values()} - {made["commit"]})
    if others:
        print(f"{path} has rows of other commits, which are kept: {', '.join(others)}")

    def keep(job, result):
        row = {k: job[k] for k in analyse.KEY if job[k] is not None} | result
        append_lines(path, [json.dumps(row)])
        rows[key_of(job)] = job | result | made

    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    append_lines(path, [json.dumps(dict(made=made, time=now))])     # holds for the rows that follow
    return rows, made, keep


def parser_of(doc, tasks, code):
    """The flags that sweeps share; code: which of the tasks runs programs, "" if none does."""
    parser = analyse.parser_of(doc)
    flag = parser.add_argument
    flag("--tasks", nargs="+", choices=tuple(tasks), default=list(tasks), help="(all it has)")
    flag("--arms", nargs="+", help="only these (all)")
    flag("--out", help="file of rows (named after the command, beside this file)")
    flag("--work", help="folder of checkpoints (in out/ beside train_wmss.py)")
    flag("--workers", type=int, default=os.cpu_count(), help="processes (%(default)s)")
    if code:
        flag("--allow-code-execution", action="store_true",
             help=f"{code}: run the programs that models write, confined")
    flag("--quick", action="store_true", help="as small as it gets, to see it run; needs --out")
    return parser


def wrong_flags(a, arms, code):
    """All that is wrong with the flags that sweeps share, in plain words."""
    wrong = [f"--arms: expected some of {', '.join(arms)}, found {arm}"
             for arm in a.arms or () if arm not in arms]
    if a.workers < 1:
        wrong.append("--workers: expected 1 or more")
    if a.quick and not a.out:
        wrong.append("--quick: name its --out, so that its rows do not mix with those of the "
                     "experiment")
    if code in a.tasks and not a.allow_code_execution:
        wrong.append(f"--allow-code-execution: {code} runs programs that models wrote (confined, "
                     "see eval_code.py); allow it, or leave it out of --tasks")
    return wrong


def set_paths(a, name, work):
    """Where rows and checkpoints go, if the flags do not say."""
    a.out = a.out or os.path.join(HERE, f"{name}.jsonl")
    a.work = os.path.abspath(a.work or os.path.join(ROOT, "out", work))


def main(argv=None):
    parser = parser_of(__doc__, TASKS, "toy-code")
    parser.add_argument("command", choices=tuple(COMMANDS))
    parser.add_argument("--seeds", type=int, default=5,
                        help="0, 1, ...: of base, data and order (%(default)s)")
    parser.add_argument("--regimes", nargs="+", help="only these (all)")
    a = parser.parse_args(argv)
    size = COMMANDS[a.command]
    a.tasks = [task for task in a.tasks if task in size["val"]]
    if a.quick:
        size = dict(size, **QUICK, test=min(28, size["test"]))
    cells = plan(a.tasks, a.seeds, size)
    wrong = wrong_flags(a, size["arms"], "toy-code")
    wrong += [f"--regimes: expected some of {', '.join(size['regimes'])}, found {regime}"
              for regime in a.regimes or () if regime not in size["regimes"]]
    if a.seeds < 1:
        wrong.append("--seeds: expected 1 or more")
    if not a.tasks:
        wrong.append(f"--tasks: {a.command} is of {' and '.join(COMMANDS[a.command]['val'])}")
    if wrong:
        parser.error("\n  ".join(wrong))
    set_paths(a, a.command, "sweep-quick" if a.quick else "sweep")
    arms, regimes = a.arms or size["arms"], a.regimes or size["regimes"]
    rows, made, keep = open_rows(a.out, size["config"])
    extra = dict(work=a.work, size=size, consent=a.allow_code_execution)
    cells = [c | extra for c in cells if c["arm"] in arms and c["regime"] in regimes]
    print(f"{a.command}: {len(cells):,} cells on validation, the chosen ones then on test; "
          f"{len(rows):,} rows are there", flush=True)
    with workers(a.workers) as pool:
        for split in ("val", "test")[:1 + bool(size["test"])]:
            if split == "test":
                chosen = choices(r for r in rows.values() if r["config"] == size["config"])
                cells = [dict(c, split=split) for c in cells
                         if setting_of(c) == chosen[c["regime"], c["task"], c["arm"]]]
            todo = [c for c in cells if key_of(c) not in rows]
            for kind in ("base", "m1"):                           # one job for each folder
                jobs = {places(c)[kind][0]: dict(c, kind=kind) for c in todo}.values()
                run_jobs(pool, do, kind, [job for job in jobs if not is_there(job)], rows, keep)
            run_jobs(pool, do, split, todo, rows, keep)


if __name__ == "__main__":
    main()
