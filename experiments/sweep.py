"""The controlled experiment on the built-in tasks: every arm from the same checkpoints and the same order of data, each at its best.

For each task and seed one base and one M1 are trained. Stage 3 then runs for every arm with equally many settings (learning rates x
lambdas, or as many rates), scored on the validation split; the setting with the best mean over seeds is trained again and reads the
test split once. One JSONL row per cell; whatever has a row is not done again, so a killed sweep goes on where it was.

    python results/sweep.py toy --seeds 5 --allow-code-execution     # both tasks -> results/toy.jsonl, about 2.5 hours on two cores
    python results/sweep.py regimes --tasks toy-math                 # when could it help? -> results/regimes.jsonl, about 2.5 hours
    python results/sweep.py toy --quick --tasks toy-math --out try.jsonl         # to see it run: a minute, nothing is learned
    python results/analyse.py                                        # tables and figures from the rows

Nothing of the training is written here again: a cell is train_wmss.py's own stages under its own flags, in this process.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE)]

import torch

import eval_code
import eval_math
import train_wmss
from analyse import KEY, SETTING, choices, ece, key_of, pack, read_rows
from data import encode, micro_batches
from plumbing.tasks import TASKS
from plumbing.tokenizer import toy_encoding
from model import load_checkpoint, read_config
from train_wmss import Config

# flags of stage 3 for each arm. sft-flops spends what joint spends, sft-flops-wmss what wmss spends, its entropy pass included
TRAINED = {
    "sft": dict(arm=["sft"], gap="none"), "sft-flops": dict(arm=["sft-flops"], gap="none"), "sft-flops-wmss": dict(arm=["sft-flops"], gap="both"),
    "d0": dict(arm=["d0"], gap="none"), "label-smoothing": dict(arm=["label-smoothing"], gap="none"),
    "weights-only": dict(arm=["weights-only"], gap="none"), "frozen": dict(arm=["frozen"], gap="none"),
    "permuted": dict(arm=["permuted"], gap="none"), "permuted-frozen": dict(arm=["permuted"], gap="none", weak="frozen"),
    "joint": dict(arm=["joint"], gap="none"),
    "wmss": dict(arm=["wmss"], gap="both"), "wmss-sample": dict(arm=["wmss"], gap="sample"), "wmss-token": dict(arm=["wmss"], gap="token"),
    "wmss-v1": dict(arm=["wmss"], gap="both", weights="v1"),
    "wmss-v2": dict(arm=["wmss"], gap="both", weights="v2", dedup=True)}
FREE = ("contrastive", "extrapolation")     # no training: z + mu (z - z_weak), theta + mu (theta - theta_weak), from M1 and its weak model
START = ("weak", "m1")                      # what all arms start from; nothing to choose
MIXED = {"d0", "frozen", "joint", *(arm for arm in TRAINED if arm.startswith(("permuted", "wmss")))}         # have a lambda

# flags of SFT, and those of stage 3 beside them
FEW = dict(clean=200, sft_epochs=19.2, sft_lr=1e-3)
REGIMES = {
    "default": ({}, {}),                                                        # an epoch each, of 1,000 samples
    "short": (dict(sft_epochs=0.5), {}),                                        # SFT: 8 steps, long before saturation
    "long": (dict(sft_epochs=4.0, sft_lr=3e-4), {}),                            # near it
    "few": (FEW, dict(wmss_epochs=5.0)),                                        # 60 steps on 200 samples: far beyond it
    "more": ({}, dict(wmss_epochs=4.0)),                                        # a long stage 3
    "snapshot": ({}, dict(weak_snapshot="early")),                              # weak: an early SFT snapshot, not the base
    "few-snapshot": (FEW, dict(wmss_epochs=5.0, weak_snapshot="early")),
    "two-rounds": ({}, dict(rounds=2))}
REGIME_ARMS = ("sft", "sft-flops", "d0", "frozen", "permuted", "joint", "wmss", *FREE)

# val, test: problems; k: those of them that are sampled eight times; seconds: of one job on one core, for the estimate at start
FULL = dict(config={}, rates=6, lams=(0.3, 0.5, 0.7, 0.9), val={"toy-math": 1400, "toy-code": 700}, test=2100, k=350,
            seconds={"base": {"toy-math": 80, "toy-code": 110}, "m1": {"toy-math": 3, "toy-code": 3},
                     "val": {"toy-math": 3, "toy-code": 5}, "test": {"toy-math": 8, "toy-code": 20}})
REGIME = dict(FULL, rates=5, lams=(0.3, 0.6, 0.9), val={"toy-math": 700, "toy-code": 480})
QUICK = dict(config=dict(corpus=64, clean=24, dim=16, n_heads=2, n_layers=1, base_steps=4, batch_size=8, max_new_tokens=6),
             rates=2, lams=(0.5,), val={"toy-math": 28, "toy-code": 16}, test=28, k=7,
             seconds={kind: dict.fromkeys(TASKS, 0.3) for kind in ("base", "m1", "val", "test")})


def rates(n):
    """n learning rates from 1e-5 to 3e-3, evenly spaced on a log scale (on toy-code plain SFT still gains at 4e-4)."""
    return [float(f"{1e-5 * 300 ** (i / (n - 1)):.3g}") for i in range(n)]


def settings(arm, size):
    """What is tried for an arm on validation: equally many settings for each but START -> list of {lr, lam, mu}, None: has none."""
    n = size["rates"] * len(size["lams"])
    if arm in START:
        tried = [{}]
    elif arm in FREE:                       # 1/16 ... 13; mu = 1 is what mixing at lam = 1/2 fits
        tried = [dict(mu=float(f"{2 ** (k / 3 - 4):.4g}")) for k in range(n)]
    elif arm in MIXED:
        tried = [dict(lam=lam, lr=lr) for lam in size["lams"] for lr in rates(size["rates"])]
    else:
        tried = [dict(lr=lr) for lr in rates(n)]
    return [dict(lr=None, lam=None, mu=None) | s for s in tried]


def plan(command, tasks, seeds, size):
    """All validation cells of a sweep -> list of dicts: regime, task, seed, arm, lr, lam, mu, split, config."""
    regimes, arms = (["default"], (*START, *TRAINED, *FREE)) if command == "toy" else (list(REGIMES), (*START, *REGIME_ARMS))
    return [dict(regime=r, task=task, seed=seed, arm=arm, **s, split="val", config=size["config"])
            for task in tasks for r in regimes for arm in arms for s in settings(arm, size) for seed in range(seeds)
            if not (r == "two-rounds" and arm == "permuted")]                  # has no rounds


# ----------------------------------------------------------------------------------------------------------------------
# a worker: one process, one thread, many cells


class Quiet(train_wmss.Run):
    """A run in any folder that says nothing; its log.jsonl is read when it is done."""

    def __init__(self, out, **flags):
        super().__init__(Config(threads=1, **flags))
        self.out = out
        os.makedirs(out, exist_ok=True)
        open(self.path("log.jsonl"), "a").close()
        self.read_data()

    def say(self, *words):
        pass


def base_of(job):
    """Flags and folder of the base, and of the M1, of a job's task, seed and regime."""
    flags = dict(job["size"]["config"], task=job["task"], seed=job["seed"], allow_code_execution=job["consent"])
    folder = os.path.join(job["work"], f"{job['task']}-{job['seed']}")
    sft = dict(flags, base=os.path.join(folder, "base.pt"), **REGIMES[job["regime"]][0])
    name = next(r for r in REGIMES if REGIMES[r][0] == REGIMES[job["regime"]][0])           # regimes that share an M1
    return flags, folder, sft, os.path.join(folder, f"m1-{name}")


def is_there(job):
    """Is the base, or the M1, of a job there, made with the flags that it would be made with now?"""
    flags, folder, sft, m1 = base_of(job)
    path, flags = (os.path.join(folder, "base.pt"), flags) if job["kind"] == "base" else (os.path.join(m1, "sft.pt"), sft)
    if not os.path.exists(path):
        return False
    made, free = read_config(path)[1]["config"], train_wmss.FREE_ON_RESUME | {"name"}
    return all(made.get(k) == v for k, v in dataclasses.asdict(Config(threads=1, **flags)).items() if k not in free)


def prepare(job):
    """Train the base, or the M1, of a job; another one in its place goes, and what was made of it too."""
    started, (flags, folder, sft, m1) = time.time(), base_of(job)
    folder, flags, stage = (folder, flags, "base") if job["kind"] == "base" else (m1, sft, "sft")
    shutil.rmtree(folder, ignore_errors=True)
    run = Quiet(folder, **flags, stages=stage)
    train_wmss.run_stages(run, run.samples)
    return dict(total=time.time() - started)


def train_cell(job, run_folder):
    """Stage 3 of a cell, or what stands in for it -> (model, how to decode, what it cost, log records)."""
    _, folder, sft, m1 = base_of(job)
    base, live, nothing = sft["base"], os.path.join(m1, "sft.pt"), dict(steps=0, flops=0.0, seconds=0.0)
    stage3 = REGIMES[job["regime"]][1]
    weak = base
    if stage3.get("weak_snapshot"):
        weak = os.path.join(m1, "snapshots", min(os.listdir(os.path.join(m1, "snapshots"))))
        stage3 = dict(stage3, weak_snapshot=weak)
    load = lambda path: load_checkpoint(path)[0].eval()
    if job["arm"] in START:
        return load(weak if job["arm"] == "weak" else live), {}, nothing, []
    if job["arm"] == "contrastive":
        return load(live), dict(weak=load(weak), lam=1 + job["mu"]), nothing, []
    if job["arm"] == "extrapolation":
        model, old = load(live), load(weak)
        with torch.no_grad():
            for p, q in zip(model.parameters(), old.parameters()):
                p += job["mu"] * (p - q)
        return model, {}, nothing, []
    arm = dict(TRAINED[job["arm"]])
    if stage3.get("rounds", 1) > 1 and arm["arm"][0] in ("joint", "frozen"):    # what the two are, but with rounds
        arm = dict(arm, arm=["wmss"], weak=arm["arm"][0])
    lr = dict.fromkeys(("wmss_lr", "sft_steps_lr", "sft_flops_lr"), job["lr"])
    flags = {**sft, **stage3, **arm, **lr, "sft": live, "stages": "entropy,wmss"}
    run = Quiet(run_folder, **(flags if job["lam"] is None else dict(flags, lam=job["lam"])))
    path, log, mass = run_stage3(run, arm["arm"][0], os.path.join(m1, f"gaps-{run.cfg.weights}-{os.path.basename(weak)}"))
    model, meta = load_checkpoint(path)
    fused = dict(weak=load(run.path("weak.pt")), lam=run.cfg.lam) if os.path.exists(run.path("weak.pt")) else None
    return model.eval(), {}, dict(meta["spent"], fused=fused, mass=mass), log


def run_stage3(run, arm, kept):
    """Stages 2 and 3 of a run -> (path of the arm's checkpoint, its log, mass_of()). kept: where the gaps lie that all cells share."""
    if os.path.exists(kept):
        shutil.copy(kept, run.path("gaps.pt"))
    train_wmss.run_stages(run, run.samples)
    if os.path.exists(run.path("gaps.pt")) and not os.path.exists(kept):
        shutil.copy(run.path("gaps.pt"), f"{kept}.{os.getpid()}")
        os.replace(f"{kept}.{os.getpid()}", kept)
    log = [{k: v for k, v in r.items() if k != "arm"} for r in run.read_log() if "loss" in r]
    return run.path(f"{train_wmss.FILES.get(arm, arm)}.pt"), log, mass_of(run, arm)


def failed(problems, error, split, started):
    """The row of an arm that diverged: a result too."""
    more = dict(families=dict.fromkeys((p.family for p in problems), 0.0), correct=pack([False] * len(problems)))
    return dict(accuracy=0.0, n=len(problems), error=str(error), **(more if split == "test" else {}), total=time.time() - started)


def mass_of(run, arm):
    """{family: share of the sampling weights} where the arm draws by them; beside it stands each family's share of the data."""
    if train_wmss.arm_of(run.cfg, arm).gap not in ("sample", "both"):
        return None
    mass = {}
    for s, w in zip(run.samples, torch.load(run.path("gaps.pt"), weights_only=True)["weights"].tolist()):
        weight, share = mass.get(s.family, (0.0, 0.0))
        mass[s.family] = weight + w, share + 1 / len(run.samples)
    return mass


problems_of = functools.lru_cache(lambda task, split, n: TASKS[task](split, n))         # drawing them takes a tenth of a cell
VERDICTS = {}           # (problem, completion) -> correct: arms mostly write the same programs, and running one costs 7 ms


def judge(job, rows, problems):
    if job["task"] == "toy-math":
        return eval_math.judge(rows)
    unseen = list({(r["id"], r["completion"]): dict(r) for r in rows if (r["id"], r["completion"]) not in VERDICTS}.values())
    if unseen:
        for r in eval_code.judge(unseen, problems, job["consent"], workers=1):
            VERDICTS[r["id"], r["completion"]] = {k: r[k] for k in ("correct", "answer", "extractor")}
    return [r | VERDICTS[r["id"], r["completion"]] for r in rows]


@torch.no_grad()
def likelihoods(model, samples):
    """Of each sample the log-probability of its completion, in the order given; and of all loss tokens (confidence, was the top right)."""
    total, confidence, right, n_loss = {}, [], [], {s.id: int(s.loss[1:].sum()) for s in samples}
    for b in micro_batches(samples, 64):
        logp, y = model.lm_head(model(b.x)[b.loss_mask]).log_softmax(-1), b.y[b.loss_mask]      # the rows' loss tokens, end to end
        of_y = logp.gather(-1, y[:, None])[:, 0].double().split([n_loss[i] for i in b.ids.tolist()])
        total.update(zip(b.ids.tolist(), (row.sum().item() for row in of_y)))
        confidence.append(logp.amax(-1).exp())
        right.append(logp.argmax(-1) == y)
    return [total[s.id] for s in samples], torch.cat(confidence), torch.cat(right)


def closer_look(job, model, how, problems, rows, enc):
    """What only test cells measure: calibration on clean solutions and on the model's own answers, pass@k, the fused pair."""
    out = {}
    if not how:                                 # two models at once have no teacher-forced pass of their own here
        clean = encode(problems, enc)
        logp, confidence, right = likelihoods(model, clean)
        own = encode([dataclasses.replace(p, completion=r["completion"]) for p, r in zip(problems, rows)], enc)
        sure = torch.tensor(likelihoods(model, own)[0]).exp()
        out.update(nll=-sum(logp) / sum(int(s.loss[1:].sum()) for s in clean), nll_solution=-sum(logp) / len(clean),
                   ece_token=ece(confidence.tolist(), right.tolist()), ece_answer=ece(sure.tolist(), [r["correct"] is True for r in rows]))
    some = problems[:job["size"]["k"]]
    drawn = judge(job, eval_math.complete(model, enc, some, n=8, temperature=1.0, max_new_tokens=job["tokens"], **how), some)
    return out | {k: v for k, v in eval_math.summary(drawn, (1, 4, 8)).items() if k.startswith("pass@")}


def do_cell(job):
    """Train and score one cell -> its result."""
    started, enc, size = time.time(), toy_encoding(), job["size"]
    problems = problems_of(job["task"], job["split"], size["val"][job["task"]] if job["split"] == "val" else size["test"])
    job["tokens"] = size["config"].get("max_new_tokens", Config.max_new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, how, cost, log = train_cell(job, folder)
        except SystemExit as e:
            if "has diverged" not in str(e):
                raise
            return failed(problems, e, job["split"], started)
    answer = lambda **kw: judge(job, eval_math.complete(model, enc, problems, max_new_tokens=job["tokens"], **kw), problems)
    rows = answer(**how)
    s = eval_math.summary(rows)
    result = dict(accuracy=s["accuracy"], n=s["n"])                             # thousands of validation cells choose, and that is all
    if job["split"] == "test":
        result |= dict(families=s["families"], truncated=s["truncated"], errors=s["errors"], correct=pack([r["correct"] is True for r in rows]),
                       steps=cost["steps"], flops=cost["flops"], train_seconds=cost["seconds"], log=log)
        result |= closer_look(job, model, how, problems, rows, enc)
        if cost.get("mass"):
            result["mass"] = cost["mass"]
        if cost.get("fused"):
            result["fused"] = eval_math.summary(answer(**cost["fused"]))["accuracy"]
    return result | dict(total=time.time() - started)


def answer_jobs(do):
    """Jobs come as JSON lines on stdin, results leave on stdout; the end of stdin is the end (the sweep is done, or was killed)."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                               # what a library prints is no answer
    for line in sys.stdin:
        print(json.dumps(rounded(do(json.loads(line)))), file=answers, flush=True)


def rounded(x):
    """Floats to six digits, all the way down."""
    if isinstance(x, dict):
        return {k: rounded(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v) for v in x]
    return float(f"{x:.6g}") if isinstance(x, float) and math.isfinite(x) else None if isinstance(x, float) else x


# ----------------------------------------------------------------------------------------------------------------------
# the sweep


def hardware():
    try:
        with open("/proc/cpuinfo") as f:
            name = next(line.split(":")[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.machine()
    gpu = torch.cuda.get_device_name() + ", " if torch.cuda.is_available() else ""
    return f"{gpu}{name}, {os.cpu_count()} cores, one thread per process"


class Workers:
    """n processes that take jobs until the end of the `with` block; they end with this process, however it ends."""

    def __init__(self, n, script=os.path.abspath(__file__)):
        env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")
        self.processes = [subprocess.Popen([sys.executable, script, "worker"], stdin=subprocess.PIPE,
                                           stdout=subprocess.PIPE, text=True, env=env) for _ in range(n)]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.processes:
            process.kill()
            process.wait()

    def run(self, jobs, done):
        """Each job to whoever is free; done(job, result) is called here, one at a time, in the order in which they are ready."""
        todo, results = queue.SimpleQueue(), queue.SimpleQueue()
        for job in jobs:
            todo.put(job)

        def feed(process):
            try:
                while True:
                    job = todo.get_nowait()
                    process.stdin.write(json.dumps(job) + "\n")
                    process.stdin.flush()
                    line = process.stdout.readline()
                    if not line:
                        raise OSError(f"a worker ended (status {process.wait()}) in {job}")
                    results.put((job, json.loads(line)))
            except queue.Empty:
                pass
            except (OSError, ValueError) as e:
                results.put((None, e))

        for process in self.processes:
            threading.Thread(target=feed, args=(process,), daemon=True).start()
        for _ in jobs:
            job, result = results.get()
            if job is None:
                raise SystemExit(f"sweep: {result}; what is done is kept, start it again to go on")
            done(job, result)


def mend(path):
    """Drop a last line that a crash left half-written."""
    if os.path.exists(path):
        with open(path, "rb+") as f:
            whole = f.read()
            f.truncate(whole.rfind(b"\n") + 1)


def open_rows(path, config):
    """Rows that are there -> ({key: row}, what is said of those to come, function that appends the row of a job)."""
    mend(path)
    rows = {key_of(r): r for r in read_rows(path)} if os.path.exists(path) else {}
    made = dict(commit=eval_math.commit(), versions=f"python {platform.python_version()}, torch {torch.__version__}", hardware=hardware(), config=config)
    others = sorted({r["commit"] for r in rows.values()} - {made["commit"]})
    if others:
        print(f"{path} has rows of other commits, which are kept: {', '.join(others)}")

    def append(line):
        with open(path, "a") as f:                                              # one write: whole or, after a crash, mended
            f.write(json.dumps(line) + "\n")
            f.flush()
            os.fsync(f.fileno())

    def keep(job, result):
        append({k: job[k] for k in KEY if job[k] is not None} | result)
        rows[key_of(job)] = job | result | made

    append(dict(made=made, time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())))         # holds for the rows that follow
    return rows, made, keep


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("command", choices=("toy", "regimes"))
    parser.add_argument("--seeds", type=int, default=5, help="0, 1, ...: of base, data and order (%(default)s)")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS), help="built-in tasks (both)")
    parser.add_argument("--arms", nargs="+", help="only these (all)")
    parser.add_argument("--regimes", nargs="+", choices=tuple(REGIMES), help="only these (all)")
    parser.add_argument("--out", help="file of rows (results/<command>.jsonl)")
    parser.add_argument("--work", help="folder of checkpoints (out/sweep beside train_wmss.py)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (one per core)")
    parser.add_argument("--allow-code-execution", action="store_true", help="toy-code: run the programs that models write, confined")
    parser.add_argument("--quick", action="store_true", help="tiny models and few settings, to see it run; needs --out")
    a = parser.parse_args(argv)
    size = QUICK if a.quick else FULL if a.command == "toy" else REGIME
    a.out = a.out or ("" if a.quick else os.path.join(HERE, f"{a.command}.jsonl"))
    a.work = os.path.abspath(a.work or os.path.join(os.path.dirname(HERE), "out", "sweep-quick" if a.quick else "sweep"))
    cells = plan(a.command, a.tasks, a.seeds, size)
    wrong = [f"--arms: expected some of {', '.join(dict.fromkeys(c['arm'] for c in cells))}, found {x}"
             for x in a.arms or () if x not in {c["arm"] for c in cells}]
    wrong += ["--regimes belongs to the command regimes"] * bool(a.regimes and a.command == "toy")
    wrong += ["--seeds and --workers: expected 1 or more"] * (min(a.seeds, a.workers) < 1)
    wrong += ["--quick: name its --out, so that its rows do not mix with those of the experiment"] * (not a.out)
    wrong += ["--allow-code-execution: toy-code runs programs that models wrote (confined, see eval_code.py); allow it, or pass "
              "--tasks toy-math"] * ("toy-code" in a.tasks and not a.allow_code_execution)
    if wrong:
        parser.error("\n  ".join(wrong))
    cells = [c for c in cells if c["arm"] in (a.arms or (c["arm"],)) and c["regime"] in (a.regimes or (c["regime"],))]
    rows, made, keep = open_rows(a.out, size["config"])
    extra = dict(work=a.work, size=size, consent=a.allow_code_execution)

    def hours(kind, task, n):
        """Of n jobs: at the mean of those that are done, or where there are none as elsewhere."""
        known = [r["total"] for r in rows.values() if (r["split"], r["task"]) == (kind, task)] or [size["seconds"][kind][task]]
        return n * sum(known) / len(known) / a.workers / 3600

    def phase(kind, jobs):
        """Run those jobs that are not done, and tell how far it is."""
        jobs = [job | extra for job in jobs if job["kind"] != "cell" or key_of(job) not in rows]
        cost = sum(hours(kind, task, sum(job["task"] == task for job in jobs)) for task in a.tasks)
        print(f"{kind}: {len(jobs):,} to do, about {60 * cost:.0f} min with {a.workers} workers", flush=True)
        started = said = time.time()
        count = 0

        def done(job, result):
            nonlocal count, said
            if job["kind"] == "cell":
                keep(job, result)
            count, spent = count + 1, time.time() - started
            if time.time() - said > 60 or count == len(jobs):
                said = time.time()
                print(f"  {count}/{len(jobs)} | {spent / 60:.1f} min, {spent / count * (len(jobs) - count) / 60:.1f} to go", flush=True)

        workers.run(jobs, done)

    arms = {task: len({(c["regime"], c["arm"]) for c in cells if c["task"] == task}) * a.seeds for task in a.tasks}
    cost = sum(hours("val", t, sum(c["task"] == t and key_of(c) not in rows for c in cells)) + hours("test", t, arms[t]) for t in a.tasks)
    print(f"{a.command}: {len(cells):,} cells on validation, then {sum(arms.values()):,} on test; {len(rows):,} rows are there; "
          f"at most {cost:.1f} h to go with {a.workers} workers, bases not counted", flush=True)
    with Workers(a.workers) as workers:
        for kind, of in (("base", 1), ("m1", 3)):                               # one job for each folder
            jobs = {base_of(c | extra)[of]: dict(c, kind=kind) for c in cells}.values()
            phase(kind, [job for job in jobs if not is_there(job | extra)])
        phase("val", [dict(c, kind="cell") for c in cells])
        chosen = choices(r for r in rows.values() if r["config"] == size["config"])
        phase("test", [dict(c, split="test", kind="cell") for c in cells
                       if {k: c[k] for k in SETTING} == chosen[c["regime"], c["task"], c["arm"]]])


if __name__ == "__main__":
    answer_jobs(lambda job: do_cell(job) if job["kind"] == "cell" else prepare(job)) if sys.argv[1:] == ["worker"] else main()
