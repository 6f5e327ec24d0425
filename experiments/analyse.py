"""Rows of sweep.py -> TABLES.md and the figures. Nothing is trained or scored here.

    python experiments/analyse.py                              # the rows beside this file
    python experiments/analyse.py --rows try.jsonl --into try  # any rows of `sweep.py toy`

Intervals of a difference between two arms are t intervals with seeds and problems as crossed
random effects. Seeds differ by several points and are few, so normal or bootstrap tails would be
too short. All seeds answer the same problems, so the seeds' means alone would leave the choice of
the problems out. Both arms of a pair share base, M1, order of data and problems: only what is left
of the difference counts.

Shapes: S seeds, P problems.
"""

import json
import math
import os
import sys
from itertools import product

import mpmath  # it comes with torch
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from figures import forest_svg, lambda_svg, rates_svg

from eval_math import mcnemar
from plumbing.cli import parser_of
from plumbing.files import write_text

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCES = ("sft-steps", "sft-flops", "temperature", "permuted")      # what an arm has to beat
MIXING = ("joint", "frozen", "wmss-mask", "wmss", "wmss-both")
SETTING = ("lr", "lam", "mu")
PLACE = ("regime", "task", "arm")
KEY = (*PLACE, "seed", *SETTING, "split")
NAMES = ("toy", "regimes", "equal", "unsure", "chains")         # files of rows

# ---- rows --------------------------------------------------------------------------------------

# Rows written before `made` had a vocabulary -> today's names. `wmss` meant resampling and the gap
# mask together then; it now means the paper's method, resampling alone (then `wmss-sample`).
VOCABULARY = 2
OLD_NAMES = {"m1": "sft", "sft": "sft-steps", "d0": "temperature", "label-smoothing": "smoothing",
             "wmss": "wmss-both", "wmss-sample": "wmss", "wmss-token": "wmss-mask",
             "wmss-v1": "wmss-both-v1", "wmss-v2": "wmss-both-v2"}


def read_rows(path):
    """The rows of a .jsonl file, under today's names of the arms.

    Each row has where it was made (the last line {"made": ...} before it) and its whole setting. A
    line that a crash left half-written is none.
    """
    rows = []
    made = {}
    with open(path) as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "made" in row:
                made = row["made"]
                continue
            row = dict.fromkeys(SETTING) | made | row
            if made.get("vocabulary", 1) < VOCABULARY:
                row["arm"] = OLD_NAMES.get(row["arm"], row["arm"])
            rows.append(row)
    return rows


def key_of(cell):
    """What makes two cells one: hashable; of a row or of a job that is still to be done."""
    return (*(cell[k] for k in KEY), json.dumps(cell["config"], sort_keys=True))


def pack(bits):
    """Booleans -> hex digits, four to a digit, the last one filled up with zeros.

    >>> pack([True, False, False, True, True])
    '98'
    """
    return np.packbits(np.array(bits, dtype=bool)).tobytes().hex()[:(len(bits) + 3) // 4]


def unpack(digits, n):
    """The first n booleans that pack() packed.

    >>> unpack("98", 5)
    [True, False, False, True, True]
    """
    whole = bytes.fromhex(digits + "0" * (len(digits) % 2))
    return np.unpackbits(np.frombuffer(whole, dtype=np.uint8))[:n].astype(bool).tolist()


def grouped(rows, *keys):
    """{values of these keys: rows}, in the order of the rows.

    >>> grouped([dict(arm="joint", seed=0), dict(arm="joint", seed=1)], "arm").keys()
    dict_keys([('joint',)])
    """
    found = {}
    for r in rows:
        found.setdefault(tuple(r[k] for k in keys), []).append(r)
    return found


def by_setting(rows):
    """Accuracy in points -> {(lr, lam, mu): {seed: accuracy}}"""
    return {s: {r["seed"]: 100 * r["accuracy"] for r in own}
            for s, own in grouped(rows, *SETTING).items()}


def mean_of(by_seed):
    return float(np.mean(list(by_seed.values())))


def on(split, rows, regime=None):
    return [r for r in rows if r["split"] == split and regime in (None, r["regime"])]


def setting_of(row):
    return {k: row[k] for k in SETTING}


def choices(rows):
    """The setting of each arm: best mean validation accuracy over seeds.

    -> {(regime, task, arm): {lr, lam, mu}}. Only settings that every seed of the arm has count, so
    that an unfinished sweep chooses nothing by the luck of a seed; equal means: the first in the
    order of the file.
    """
    chosen = {}
    for place, own in grouped(on("val", rows), *PLACE).items():
        found = by_setting(own)
        most = max(map(len, found.values()))
        means = {s: mean_of(v) for s, v in found.items() if len(v) == most}
        chosen[place] = dict(zip(SETTING, max(means, key=means.get), strict=True))
    return chosen


def tested(rows, regime="default"):
    """Test rows at the chosen settings -> {task: {arm: {seed: row}}}.

    A row's `edge`: which of its settings are the least or the largest that were tried, so that a
    better one may lie beyond. Where nothing was tried on validation, all test rows are taken.
    """
    rows = [r for r in rows if r["regime"] == regime]
    chosen, groups = choices(rows), grouped(rows, *PLACE)
    tried = {place: {k: {r[k] for r in own} for k in SETTING} for place, own in groups.items()}
    out = {}
    for r in on("test", rows):
        place = tuple(r[k] for k in PLACE)
        if setting_of(r) == chosen.get(place, setting_of(r)):
            edge = [k for k, values in tried[place].items()
                    if len(values) > 1 and r[k] in (min(values), max(values))]
            out.setdefault(r["task"], {}).setdefault(r["arm"], {})[r["seed"]] = dict(r, edge=edge)
    return out


# ---- statistics --------------------------------------------------------------------------------


def t_tail(t, df):
    """Two-sided p of Student's t with df >= 1 degrees of freedom, which need not be whole.

    >>> round(t_tail(2.776445, 4), 6)
    0.05
    """
    return float(mpmath.betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True))


def t_quantile(df, p=0.05):
    """The t whose two-sided tail is p.

    >>> round(t_quantile(4), 4)
    2.7764
    """
    low, high = 0.0, 2.0
    while t_tail(high, df) > p:
        low, high = high, 2 * high
    return float(mpmath.findroot(lambda t: t_tail(t, df) / p - 1, (low, high), "illinois"))


def error_of(d):
    """Differences d (S, P) or (S,) -> (mean, its standard error, degrees of freedom).

    Random effects of seeds and of problems, crossed (Searle 1971): with mean squares of seeds,
    problems and the rest, the mean's variance is (MS_s + MS_p - MS_r) / (S P), its degrees of
    freedom Satterthwaite's; not below what either factor alone says. One seed: the problems'
    variance alone, as the paired bootstrap of eval_math --compare; (S,): that of the seeds alone.
    """
    d = np.asarray(d, dtype=float)
    d = d.reshape(len(d), -1)
    S, P = d.shape
    mean, seeds, problems = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    ms_s = P * ((seeds - mean) ** 2).sum() / max(1, S - 1)
    ms_p = S * ((problems - mean) ** 2).sum() / max(1, P - 1)
    if S == 1 or P == 1:
        ms, df = max(ms_s, ms_p), max(S, P) - 1
    else:
        ms_r = ((d - seeds - problems + mean) ** 2).sum() / ((S - 1) * (P - 1))
        ms = max(ms_s + ms_p - ms_r, ms_s, ms_p)
        parts = ms_s ** 2 / (S - 1) + ms_p ** 2 / (P - 1) + ms_r ** 2 / ((S - 1) * (P - 1))
        df = min(max(ms ** 2 / parts, 1.0), 1e4) if parts else 1.0
    return float(mean), math.sqrt(ms / (S * P)), df


def crossed(d):
    """Differences d, see error_of -> (mean, half width of its 95 % interval, p of a mean of 0).

    >>> crossed([[1, 0, 0, 1]] * 2)[0]
    0.5
    """
    mean, error, df = error_of(d)
    if df < 1:                                   # one number
        return mean, math.inf, 1.0
    if error == 0:                               # no difference anywhere, or the same everywhere
        return mean, 0.0, 1.0 if mean == 0 else 0.0
    return mean, t_quantile(df) * error, t_tail(mean / error, df)


def holm(ps):
    """Holm's adjusted p values, in the order given.

    The chance of one false alarm or more among all of them stays below each.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = worst
    return out


def ece(confidence, correct, bins=15):
    """Expected calibration error: mean distance of confidence and accuracy, over bins of equal
    width, weighted by their size.

    >>> ece([0.75, 0.75, 0.25, 0.25], [True, False, False, False])
    0.25
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, confidence - correct, bins)
    return float(np.abs(gap).sum() / len(confidence))


def verdicts(row):
    return np.array(unpack(row["correct"], row["n"]), dtype=int)


def less(ours, theirs):
    """{seed: row} of two arms -> differences of their verdicts (S, P), on the seeds of both."""
    seeds = sorted(ours.keys() & theirs.keys())
    return np.array([verdicts(ours[s]) - verdicts(theirs[s]) for s in seeds])


def pairs_of(arms, references=REFERENCES):
    """Every arm against every reference, on the seeds that both have -> {(arm, ref): dict}."""
    out = {}
    for arm, ref in product(arms, references):
        d = less(arms[arm], arms.get(ref, {}))
        if arm in (ref, "weak") or not len(d):   # nobody asks whether the weak one is worse
            continue
        mean, half, p = crossed(d)
        by_seed = [mcnemar(int((row > 0).sum()), int((row < 0).sum())) for row in d]
        out[arm, ref] = dict(mean=mean, half=half, p=p, mcnemar=by_seed, seeds=d.mean(1).tolist())
    return out


def declared(arms, pairs):
    """The differences that an experiment declared before its rows -> {(arm, reference): (mean, half
    width of its 95 % interval, Holm's p over all of them)}, in points.

    arms: {arm: {seed: row}}; a pair is compared on the seeds that both have.
    """
    found = {}
    for arm, ref in pairs:
        d = less(arms.get(arm, {}), arms.get(ref, {}))
        if len(d):
            found[arm, ref] = crossed(100 * d)
    adjusted = holm([p for _, _, p in found.values()])
    return {pair: (mean, half, p)
            for (pair, (mean, half, _)), p in zip(found.items(), adjusted, strict=True)}


def compare(by_task):
    """{task: arms} -> {task: pairs_of(arms)}, adjusted over all pairs, tasks and seeds (Holm).

    Of each pair: `holm`, the adjusted p; `better` and `worse`, in how many seeds by McNemar at 5 %,
    adjusted too. Two references that are held against each other both ways count once.
    """
    found = {task: pairs_of(arms) for task, arms in by_task.items()}
    every = [((task, frozenset(names)), pair) for task, pairs in found.items()
             for names, pair in pairs.items()]
    once = dict(every)
    of_pairs = dict(zip(once, holm([pair["p"] for pair in once.values()]), strict=True))
    adjusted = iter(holm([p for pair in once.values() for p in pair["mcnemar"]]))
    by_seed = {key: [next(adjusted) for _ in pair["seeds"]] for key, pair in once.items()}
    for key, pair in every:
        pair["holm"] = of_pairs[key]
        sure = [d for d, p in zip(pair["seeds"], by_seed[key], strict=True) if p < 0.05]
        pair["better"], pair["worse"] = sum(d > 0 for d in sure), sum(d < 0 for d in sure)
    return found


# ---- tables ------------------------------------------------------------------------------------


def table(head, rows):
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def mean_std(values, scale=100.0, digits=2):
    values = [scale * v for v in values if v is not None]
    if not values:
        return "-"
    std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{std}"


def interval(mean, half):
    return f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}]"


def interval_of(d):
    """Differences in points, see error_of -> "mean [low, high]"."""
    mean, half, _ = crossed(d)
    return interval(mean, half)


def setting(seeds):
    """The setting of an arm's rows {seed: row}, in words."""
    row = next(iter(seeds.values()))
    words = [f"{k} {row[k]:g}" + " (edge)" * (k in row["edge"])
             for k in ("lam", "lr", "mu") if row[k] is not None]
    return ", ".join(words) or "-"


def declared_table(found, starred=True):
    """What declared() finds; a star where Holm's p is below 0.05."""
    return table(["difference", "points", "p (Holm)"], [
        [f"{arm} less {ref}", interval(mean, half) + "*" * bool(starred and p < 0.05),
         f"{p:.2g}"]
        for (arm, ref), (mean, half, p) in found.items()])


def difference(pair):
    """+0.94 [+0.03, +1.85]* 2/0: points, interval, star, seeds better / worse by McNemar."""
    if pair is None:
        return ""
    star = "*" if pair["holm"] < 0.05 else ""
    words = interval(100 * pair["mean"], 100 * pair["half"])
    return f"{words}{star} {pair['better']}/{pair['worse']}"


def accuracies(seeds):
    return [r["accuracy"] for r in seeds.values()]


def tflops(seeds):
    return float(np.mean([r.get("flops") or 0 for r in seeds.values()])) / 1e12


def steps_of(seeds):
    """Steps of training over the seeds: 16, or 8-9; "-" for what was not trained."""
    found = sorted(r["steps"] for r in seeds.values() if r.get("steps"))
    return "-".join(map(str, dict.fromkeys(found[:1] + found[-1:]))) or "-"


def main_table(arms, pairs):
    head = ["arm", "setting", "steps", "TFLOPs", "test accuracy"]
    head += [f"against {r}" for r in REFERENCES]
    lines = []
    for arm, seeds in arms.items():
        line = [arm, setting(seeds), steps_of(seeds), f"{tflops(seeds):.3f}"]
        line.append(mean_std(accuracies(seeds)))
        lines.append(line + [difference(pairs.get((arm, r))) for r in REFERENCES])
    return table(head, lines)


def family_table(arms):
    """Accuracy of each family, %; answers that the limit cut off, where they are 1 % or more."""
    rows = {arm: [r["families"] | {"cut off": r["truncated"]} for r in seeds.values()]
            for arm, seeds in arms.items()}
    columns = list(next(iter(rows.values()))[0])
    if max(r["cut off"] for own in rows.values() for r in own) < 0.01:
        columns.remove("cut off")
    return table(["arm", *columns], [
        [arm, *(f"{100 * np.mean([r[c] for r in own]):.1f}" for c in columns)]
        for arm, own in rows.items()])


def closer_table(arms):
    columns = {"pass@1": ("pass@1", 100, 1), "pass@4": ("pass@4", 100, 1),
               "pass@8": ("pass@8", 100, 1), "fused": ("fused, greedy", 100, 2),
               "nll": ("NLL, mnat a token", 1000, 2),
               "nll_solution": ("NLL, nats a solution", 1, 3),
               "ece_token": ("ECE of tokens", 100, 2), "ece_answer": ("ECE of answers", 100, 1)}
    return table(["arm", *(name for name, *_ in columns.values())], [
        [arm, *(mean_std([r.get(k) for r in seeds.values()], scale, digits)
                for k, (_, scale, digits) in columns.items())]
        for arm, seeds in arms.items()])


def ends(seeds, k):
    """First and last logged value of diagnostic k, mean over seeds: "0.979 → 0.985"."""
    values = [[r["log"][i].get(k) for r in seeds.values() if r.get("log")] for i in (0, -1)]
    if not all(v and None not in v for v in values):
        return "-"
    if k != "codes":
        return " → ".join(f"{np.mean(v):.3f}" for v in values)
    shares = [np.mean([np.array(c) / sum(c) for c in v], 0) for v in values]
    return " → ".join(" / ".join(f"{100 * x:.0f}" for x in share) for share in shares)


def watch_table(arms):
    """The diagnostics of the first and the last logged step, means over seeds.

    codes: % of the loss tokens that are settled, consolidating, regressing, hard between the two
    models as they are then.
    """
    columns = ("margin", "p_target", "ent_strong", "ent_weak", "ent_mix", "affinity",
               "gnorm_strong", "gnorm_weak", "codes")
    lines = []
    for arm, seeds in arms.items():
        if any(r.get("log") for r in seeds.values()):
            lines.append([arm, *(ends(seeds, k) for k in columns)])
    return table(["arm", *columns], lines)


def controls_table(rows):
    """Of each regime, lambda and task, on validation, each arm at its best rate there: mixing less
    its controls and less joint, points, t intervals over seeds.

    Less permuted: with the weak model trained; where there is permuted-frozen, frozen is held
    against that.
    """
    rows = on("val", rows)
    lines = []
    for regime, lam in grouped(rows, "regime", "lam"):
        if lam is None:
            continue
        fits = [r for r in on("val", rows, regime) if r["lam"] == lam or r["arm"] in REFERENCES[:2]]
        best = {place: max(by_setting(own).values(), key=mean_of)
                for place, own in grouped(fits, "task", "arm").items()}
        for task, arm in best:
            if arm not in MIXING:
                continue
            line = [regime, f"{lam:g}", task, arm]
            for ref in (*REFERENCES, "joint"):
                if ref == "permuted" and arm == "frozen" and (task, "permuted-frozen") in best:
                    ref = "permuted-frozen"
                other = best.get((task, ref), {})
                d = [v - other[s] for s, v in best[task, arm].items() if s in other]
                line.append("" if ref == arm else interval_of(d) if d else "-")
            lines.append(line)
    head = ["regime", "lam", "task", "arm", *(f"less {r}" for r in (*REFERENCES, "joint"))]
    return table(head, lines)


def regime_table(rows):
    """Of each regime and task: M1, the arms that mix against each reference, the best control."""
    controls = (*REFERENCES, "contrastive", "extrapolation")
    lines = []
    for regime in dict.fromkeys(r["regime"] for r in rows):
        by_task = tested(rows, regime)
        pairs = compare(by_task)
        for task, arms in by_task.items():
            for arm, seeds in arms.items():
                if arm not in controls:
                    line = [regime, task, arm, setting(seeds), mean_std(accuracies(seeds))]
                    lines.append(line + [difference(pairs[task].get((arm, r))) for r in REFERENCES])
            mean = {arm: np.mean(accuracies(arms[arm])) for arm in controls if arm in arms}
            if mean:
                best = max(mean, key=mean.get)
                lines.append([regime, task, "best control", "", f"{best} {100 * mean[best]:.2f}"]
                             + [""] * len(REFERENCES))
    head = ["regime", "task", "arm", "setting", "test accuracy"]
    return table(head + [f"against {r}" for r in REFERENCES], lines)


def places(rows):
    """Where rows were made, and what they cost."""
    made = grouped(rows, "hardware", "versions", "commit")
    return ";\n".join(
        f"{len(own):,} rows, {sum(r['total'] for r in own) / 3600:.1f} h of one process "
        f"({hardware}, {versions}, commit {commit})"
        for (hardware, versions, commit), own in made.items()) + "."


# ---- the page ----------------------------------------------------------------------------------

EQUAL = [(arm, ref) for ref in REFERENCES[:2] for arm in ("joint", "frozen", "wmss")]  # declared
UNSURE = [*EQUAL, ("wmss-mask", "sft-steps"), ("wmss-mask", "sft-flops"), ("joint", "temperature"),
          ("joint", "permuted"), ("weights-only", "sft-steps")]
HEAD = """# Tables

Written by `python experiments/analyse.py` from the rows beside it; do not edit. What the arms and
regimes are, and what was found: [README.md](README.md), [NOTES.md](NOTES.md).

Main tables and families: test split, each arm at the setting that validation chose, accuracy in %.
"Against X" and "less X" are points. A difference stands with its 95 % interval (t, seeds and
problems as crossed random effects), a `*` where Holm's adjusted p is below 0.05 among all
differences of its family (one run's tasks together; one regime), and in how many seeds the arm was
better / worse by McNemar's exact test, adjusted too. Tables on validation are not
adjusted. (edge): the least or the largest value that was tried.
"""
NOTE = {
    "closer": "Eight samples at temperature 1 of 350 problems; likelihood of the clean solutions; "
              "calibration (15 bins).",
    "watch": "What training did to the tokens, first logged step → last (codes: % settled / "
             "consolidating / regressing / hard, of both models as they are then).",
    "controls": "At one lambda, validation, each arm at its best rate there, t intervals over "
                "seeds (`frozen` is held against `permuted-frozen` where that was trained).",
    "regimes": "Test split; the stars of a regime are adjusted over its own differences."}


def run_blocks(rows, before, behind, pairs=()):
    """The tables of a run of one regime -> {heading: Markdown}.

    before, behind: the run's name in the headings, where a task follows and where none does.
    pairs: of arms, declared before the rows, for each task.
    """
    by_task, out, every, declares = tested(rows, rows[0]["regime"] if rows else ""), {}, {}, []
    found = compare(by_task)
    for task, arms in by_task.items():
        name = before + task
        out[f"main {name}"] = main_table(arms, found[task])
        out[f"families {name}"] = family_table(arms)
        out[f"closer {name}"] = closer_table(arms)
        out[f"watch {name}"] = watch_table(arms)
        every |= {f"{task} {arm}": seeds for arm, seeds in arms.items()}
        declares += [(f"{task} {arm}", f"{task} {ref}") for arm, ref in pairs]
    if declares:
        out[f"declared{behind}"] = declared_table(declared(every, declares))
    if rows:
        out[f"controls{behind}"] = controls_table(rows)
    return out


def runs_of(toy, regimes, equal, unsure, chains):
    """{run: what tested() finds}; those of ten seeds come first."""
    others = dict.fromkeys(r["regime"] for r in regimes if r["regime"] != "default")
    return {"equal rates": tested(equal), "unsure": tested(unsure, "unsure"),
            "long chains": tested(chains, "chains"), "ten seeds": tested(regimes),
            "five seeds": tested(toy), **{regime: tested(regimes, regime) for regime in others}}


def blocks(toy, regimes, equal=(), unsure=(), chains=()):
    """Heading in TABLES.md -> its Markdown."""
    again = [r for r in regimes if r["regime"] == "default"]
    others = [r for r in regimes if r["regime"] != "default"]
    out = run_blocks(equal, "equal rates, ", ", equal rates", EQUAL)
    out |= run_blocks(unsure, "unsure, ", ", unsure", UNSURE)
    out |= run_blocks(chains, "chains, ", ", chains", UNSURE)
    out |= run_blocks(again, "ten seeds, ", " ten seeds") | run_blocks(toy, "", "")
    if regimes:
        out |= {"regimes": regime_table(regimes), "controls, regimes": controls_table(others)}
    for name, rows in zip(NAMES, (toy, regimes, equal, unsure, chains), strict=True):
        if rows:
            out[f"rows {name}"] = places(rows)
    return out


def page(found):
    """{heading: Markdown} -> TABLES.md."""
    parts = [HEAD]
    for name, body in found.items():
        note = next((text + "\n\n" for start, text in NOTE.items() if name.startswith(start)), "")
        parts.append(f"## {name}\n\n{note}{body}\n")
    return "\n".join(parts)


def forest_lines(*rows):
    """What the forest shows -> {group: [(label, {ref: (mean, half)})]}, in points."""
    out = {"math": [], "code": []}
    for run, by_task in runs_of(*rows).items():
        for task, arms in by_task.items():
            pairs = pairs_of(arms, REFERENCES[:2])
            for arm in ("joint", "wmss" if "wmss" in arms else "wmss-both"):
                marks = {ref: (100 * pair["mean"], 100 * pair["half"])
                         for (a, ref), pair in pairs.items() if a == arm}
                if marks:
                    group = "code" if task == "toy-code" else "math"
                    out[group].append((f"{run}: {arm}", marks))
    return out


def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--rows", dest="toy", help="rows of `sweep.py toy` (where no rows are named"
                        f": all of {', '.join(NAMES)}.jsonl that lie beside this file)")
    for name in NAMES[1:]:
        parser.add_argument(f"--{name}", help=f"rows of `sweep.py {name}`")
    parser.add_argument("--into", default=HERE,
                        help="folder of TABLES.md and the figures (%(default)s)")
    a = parser.parse_args(argv)
    paths = [getattr(a, name) for name in NAMES]
    missing = [path for path in paths if path and not os.path.exists(path)]
    if missing:
        raise SystemExit(f"analyse: expected {', '.join(missing)}, found none; see sweep.py")
    if not any(paths):
        paths = [os.path.join(HERE, f"{name}.jsonl") for name in NAMES]
    found = [read_rows(path) if path and os.path.exists(path) else [] for path in paths]
    write_text(os.path.join(a.into, "TABLES.md"), page(blocks(*found)))
    toy, regimes, equal, *_ = found
    again = [r for r in regimes if r["regime"] == "default"]
    leading = [r for r in toy if (r["task"],) not in grouped(again, "task")] + again
    fairest = [r for r in leading if (r["task"],) not in grouped(equal, "task")] + equal
    drawn = {"rates.svg": rates_svg(fairest), "lambda.svg": lambda_svg(leading),
             "differences.svg": forest_svg(forest_lines(*found))}
    for name, picture in drawn.items():
        write_text(os.path.join(a.into, name), picture)
    counts = ", ".join(f"{len(rows):,} of {name}" for name, rows in
                       zip(NAMES, found, strict=True) if rows)
    print(f"wrote TABLES.md and {', '.join(drawn)} into {a.into} from rows: {counts}")


if __name__ == "__main__":
    main()
