"""Rows of sweep.py -> the tables in results/README.md and its figures. Pure functions of the rows: nothing is trained or scored.

    python results/analyse.py                                   # results/toy.jsonl, results/regimes.jsonl -> README.md, *.svg
    python results/analyse.py --rows try.jsonl --into try       # any file of rows; tables to try/README.md, figures beside it

Intervals of a difference between two arms are t intervals for seeds and problems as crossed random effects. Seeds differ by several
points and are few (so no normal or bootstrap tails, which five seeds make too short), and all seeds answer the same problems (so the
seeds' means alone would leave the choice of the problems out). Both arms of a pair share base, M1, order of data and problems: only
what is left of the difference counts.

Shapes: S seeds, P problems.
"""

import argparse
import html
import json
import math
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(HERE)]

from eval_math import mcnemar, write_text

REFERENCES = ("sft", "sft-flops", "d0", "permuted")                             # what an arm has to beat
KEY = ("regime", "task", "seed", "arm", "lr", "lam", "mu", "split")
SETTING = ("lr", "lam", "mu")

# ----------------------------------------------------------------------------------------------------------------------
# rows


def read_rows(path):
    """The rows of a .jsonl file, each with where it was made (the last line {"made": ...} before it) and its whole setting.

    A line that a crash left half-written is none.
    """
    rows, made = [], {}
    with open(path) as f:
        for line in f:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if "made" in row:
                made = row["made"]
            else:
                rows.append(dict.fromkeys(SETTING) | made | row)
    return rows


def key_of(cell):
    """What makes two cells one: hashable; of a row or of a job that is still to be done."""
    return (*(cell[k] for k in KEY), json.dumps(cell["config"], sort_keys=True))


def pack(bits):
    """Booleans -> hex digits, four to a digit, the last one filled up with zeros.

    >>> pack([True, False, False, True, True])
    '98'
    """
    return "".join(f"{sum(b << 3 - j for j, b in enumerate(bits[i:i + 4])):x}" for i in range(0, len(bits), 4))


def unpack(digits, n):
    """The first n booleans that pack() packed.

    >>> unpack("98", 5)
    [True, False, False, True, True]
    """
    return [bool(int(digits[i // 4], 16) >> 3 - i % 4 & 1) for i in range(n)]


def choices(rows):
    """The setting of each arm: best mean validation accuracy over seeds -> {(regime, task, arm): {lr, lam, mu}}.

    Only settings that every seed of the arm has count, so that an unfinished sweep chooses nothing by the luck of a seed; equal
    means: the first in the order of the file.
    """
    found = {}
    for r in rows:
        if r["split"] == "val":
            by_setting = found.setdefault((r["regime"], r["task"], r["arm"]), {})
            by_setting.setdefault(tuple(r[k] for k in SETTING), {})[r["seed"]] = r["accuracy"]
    chosen = {}
    for arm, by_setting in found.items():
        most = max(map(len, by_setting.values()))
        means = {s: sum(v.values()) / len(v) for s, v in by_setting.items() if len(v) == most}
        chosen[arm] = dict(zip(SETTING, max(means, key=means.get)))
    return chosen


def tested(rows, regime="default"):
    """Test rows at the chosen settings -> {task: {arm: {seed: row}}}; a row's `edge`: which of its settings are the least or the
    largest that were tried, so that a better one may lie beyond. Where nothing was tried on validation, all test rows are."""
    chosen, tried, out = choices(rows), {}, {}
    for r in rows:
        for k in SETTING:
            tried.setdefault((r["regime"], r["task"], r["arm"], k), set()).add(r[k])
    for r in rows:
        if r["split"] == "test" and r["regime"] == regime and (own := {k: r[k] for k in SETTING}) == chosen.get((regime, r["task"], r["arm"]), own):
            all_of = {k: tried[regime, r["task"], r["arm"], k] for k in SETTING}
            edge = [k for k, v in all_of.items() if len(v) > 1 and r[k] in (min(v), max(v))]
            out.setdefault(r["task"], {}).setdefault(r["arm"], {})[r["seed"]] = dict(r, edge=edge)
    return out


# ----------------------------------------------------------------------------------------------------------------------
# statistics


def t_tail(t, df):
    """Two-sided p of Student's t with df >= 1 degrees of freedom, which need not be whole.

    With x = sqrt(df) tan(a) the density becomes cos(a)^(df - 1), which Simpson's rule integrates over a finite range.

    >>> round(t_tail(2.776445, 4), 6)
    0.05
    """
    def area(end, n=1000):
        y = np.cos(np.linspace(0, end, n + 1)).clip(0) ** (df - 1)
        return (y[0] + 4 * y[1:-1:2].sum() + 2 * y[2:-1:2].sum() + y[-1]) * end / (3 * n)
    return max(0.0, float(1 - area(math.atan(abs(t) / math.sqrt(df))) / area(math.pi / 2)))


def t_quantile(df, p=0.05):
    """The t whose two-sided tail is p.

    >>> round(t_quantile(4), 4)
    2.7764
    """
    low, high = 0.0, 1e4
    for _ in range(50):                          # to 1e-11
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, df) > p else (low, middle)
    return high


def crossed(d):
    """Differences d (S, P), one per seed and problem -> (mean, half width of its 95 % interval, two-sided p of mean 0).

    Random effects of seeds and of problems, crossed (Searle 1971): with mean squares of seeds, problems and the rest, the mean's
    variance is (MS_s + MS_p - MS_r) / (S P), its degrees of freedom Satterthwaite's; not below what either factor alone says.
    One seed: the problems' variance alone, as the paired bootstrap of eval_math --compare.

    >>> crossed([[1, 0, 0, 1]] * 2)[0]
    0.5
    """
    d = np.asarray(d, dtype=float)
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
    if df < 1 or ms == 0:                                                       # one number, or no difference anywhere
        return float(mean), 0.0 if df >= 1 else math.inf, 1.0 if mean == 0 or df < 1 else 0.0
    error = math.sqrt(ms / (S * P))
    return float(mean), t_quantile(df) * error, t_tail(mean / error, df)


def holm(ps):
    """Holm's adjusted p values, in the order given: the chance of one false alarm or more among all of them stays below each.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    out, worst = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        worst = max(worst, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = worst
    return out


def ece(confidence, correct, bins=15):
    """Expected calibration error: mean distance of confidence and accuracy over bins of equal width, weighted by their size.

    >>> ece([0.75, 0.75, 0.25, 0.25], [True, False, False, False])
    0.25
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, confidence - correct, bins)
    return float(np.abs(gap).sum() / len(confidence))


def pairs_of(arms, references=REFERENCES):
    """Every arm against every reference, on the seeds that both have -> {(arm, ref): dict}, adjusted over all of them by compare()."""
    out = {}
    for arm in arms:
        for ref in references if arm != "weak" else ():                         # nobody asks whether that one is worse
            seeds = sorted(set(arms[arm]) & set(arms.get(ref, ())))
            if arm == ref or not seeds:
                continue
            bits = [[np.array(unpack(arms[k][s]["correct"], arms[k][s]["n"]), dtype=int) for s in seeds] for k in (arm, ref)]
            d = np.stack(bits[0]) - np.stack(bits[1])
            mean, half, p = crossed(d)
            out[arm, ref] = dict(mean=mean, half=half, p=p, seeds=d.mean(1).tolist(),
                                 mcnemar=[mcnemar(int((row > 0).sum()), int((row < 0).sum())) for row in d])
    return out


def compare(by_task):
    """{task: arms} -> {task: pairs_of(arms)}, with p and McNemar's ps adjusted over all pairs, tasks and seeds (Holm): `holm`;
    `better`, `worse`: in how many seeds by McNemar at 5 %."""
    found = {task: pairs_of(arms) for task, arms in by_task.items()}
    every = [pair for pairs in found.values() for pair in pairs.values()]
    for pair, p in zip(every, holm([pair["p"] for pair in every])):
        pair["holm"] = p
    adjusted = iter(holm([p for pair in every for p in pair["mcnemar"]]))
    for pair in every:
        sure = [(next(adjusted) < 0.05, d) for d in pair["seeds"]]
        pair.update(better=sum(s and d > 0 for s, d in sure), worse=sum(s and d < 0 for s, d in sure))
    return found


# ----------------------------------------------------------------------------------------------------------------------
# tables


def table(head, rows):
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [head, ["---"] * len(head), *rows])


def mean_std(values, scale=100.0, digits=2):
    values = [scale * v for v in values if v is not None]
    if not values:
        return "-"
    std = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{std}"


def setting(row):
    return ", ".join(f"{name} {row[k]:g}{' (edge)' * (k in row['edge'])}" for k, name in (("lam", "lam"), ("lr", "lr"), ("mu", "mu")) if row[k] is not None) or "-"


def difference(pair):
    """+0.94 [+0.03, +1.85]* 2/0: points, 95 % interval, * where Holm's p < 0.05, seeds better / worse by McNemar."""
    if pair is None:
        return ""
    m, h = 100 * pair["mean"], 100 * pair["half"]
    return f"{m:+.2f} [{m - h:+.2f}, {m + h:+.2f}]{'*' * (pair['holm'] < 0.05)} {pair['better']}/{pair['worse']}"


def main_table(arms, pairs):
    head = ["arm", "setting", "steps", "TFLOPs", "test accuracy", *(f"against {r}" for r in REFERENCES)]
    one = lambda arm: next(iter(arms[arm].values()))
    def steps(arm):
        found = sorted(r["steps"] for r in arms[arm].values() if r.get("steps"))
        return "-".join(map(str, dict.fromkeys(found[:1] + found[-1:]))) or "-"             # of all seeds: 8-9; "-": no training
    return table(head, [[arm, setting(one(arm)), steps(arm), f"{np.mean([r.get('flops') or 0 for r in arms[arm].values()]) / 1e12:.3f}",
                         mean_std([r["accuracy"] for r in seeds.values()]), *(difference(pairs.get((arm, r))) for r in REFERENCES)]
                        for arm, seeds in arms.items()])


def flops_table(by_task):
    """What mixes against plain SFT for the same FLOPs, the entropy pass counted where the arm needs one; intervals as in crossed()."""
    lines, spent = [], lambda seeds: np.mean([r.get("flops") or 0 for r in seeds.values()]) / 1e12
    for task, arms in by_task.items():
        for arm, ref in (("joint", "sft-flops"), ("wmss-token", "sft-flops-wmss"), ("wmss-sample", "sft-flops-wmss"), ("wmss", "sft-flops-wmss")):
            if (arm, ref) in (pairs := pairs_of({k: arms[k] for k in (arm, ref) if k in arms}, (ref,))):
                m, half = 100 * pairs[arm, ref]["mean"], 100 * pairs[arm, ref]["half"]
                lines.append([task, arm, f"{spent(arms[arm]):.3f}", ref, f"{spent(arms[ref]):.3f}", f"{m:+.2f} [{m - half:+.2f}, {m + half:+.2f}]"])
    return table(["task", "arm", "TFLOPs", "plain SFT", "TFLOPs", "difference"], lines)


def family_table(arms):
    """Accuracy of each family and, where they are 1 % or more, the answers that the limit of new tokens cut off, %."""
    shares = {(arm, seed): r["families"] | {"cut off": r["truncated"]} for arm, seeds in arms.items() for seed, r in seeds.items()}
    columns = list(next(iter(shares.values())))
    if max(s["cut off"] for s in shares.values()) < 0.01:
        columns.remove("cut off")
    return table(["arm", *columns], [[arm, *(f"{100 * np.mean([shares[arm, seed][c] for seed in seeds]):.1f}" for c in columns)]
                                     for arm, seeds in arms.items()])


def closer_table(arms):
    columns = (("pass@1", "pass@1", 100, 1), ("pass@4", "pass@4", 100, 1), ("pass@8", "pass@8", 100, 1), ("fused", "fused, greedy", 100, 2),
               ("nll", "NLL, mnat a token", 1000, 2), ("nll_solution", "NLL, nats a solution", 1, 3), ("ece_token", "ECE of tokens", 100, 2),
               ("ece_answer", "ECE of answers", 100, 1))
    return table(["arm", *(name for _, name, *_ in columns)],
                 [[arm, *(mean_std([r.get(k) for r in seeds.values()], scale, digits) for k, _, scale, digits in columns)]
                  for arm, seeds in arms.items()])


def watch_table(arms):
    """The diagnostics of the first and the last logged step, means over seeds; codes: % of the loss tokens that are settled,
    consolidating, regressing, hard between the two models as they are then."""
    columns = ("margin", "p_target", "ent_strong", "ent_weak", "ent_mix", "affinity", "gnorm_strong", "gnorm_weak", "codes")
    def cell(seeds, k):
        ends = [[r["log"][i].get(k) for r in seeds.values() if r.get("log")] for i in (0, -1)]
        if not all(e and None not in e for e in ends):
            return "-"
        if k == "codes":
            shares = [np.mean([np.array(c) / sum(c) for c in e], 0) for e in ends]
            return " → ".join(" / ".join(f"{100 * x:.0f}" for x in share) for share in shares)
        return " → ".join(f"{np.mean(e):.3f}" for e in ends)
    return table(["arm", *columns], [[arm, *(cell(seeds, k) for k in columns)] for arm, seeds in arms.items()
                                     if any(r.get("log") for r in seeds.values())])


def lam_table(rows):
    """Mean validation accuracy of the default regime at each lambda, best rate for each; lambda = 1 is `sft`. Beside it contrastive
    decoding of M1 at the mu = (1 - lam) / lam that mixing fits (nearest of the grid), which should predict what mixing does to M1."""
    values, lines = {}, []
    for r in rows:
        if r["split"] == "val" and r["regime"] == "default":
            values.setdefault((r["task"], r["arm"]), {}).setdefault(tuple(r[k] for k in SETTING), []).append(100 * r["accuracy"])
    lams = sorted({s[1] for by_setting in values.values() for s in by_setting} - {None})
    for (task, arm), by_setting in values.items():
        means = {s: np.mean(v) for s, v in by_setting.items()}
        at = {lam: max((m for s, m in means.items() if s[1] == lam), default=None) for lam in lams}
        if arm == "contrastive":
            at = {lam: min((abs(math.log(s[2] * lam / (1 - lam))), m) for s, m in means.items())[1] for lam in lams}
        elif arm in ("m1", "sft"):
            lines.append([task, arm, *[""] * len(lams), f"{max(means.values()):.2f}"])
            continue
        if None not in at.values():
            lines.append([task, arm, *(f"{v:.2f}" for v in at.values()), ""])
    return table(["task", "arm", *(f"lam {lam:g}" for lam in lams), "no mixing"], lines)


def controls_lines(rows, lam, regime):
    """At one lambda, on validation, each arm at its best rate there: mixing less its controls and less joint, points, t intervals over seeds.

    Less permuted: with the weak model trained; where there is permuted-frozen, frozen is held against that.
    """
    found, lines = {}, []
    for r in rows:
        if r["split"] == "val" and r["regime"] == regime and (r["lam"] == lam or r["arm"] in ("sft", "sft-flops")):
            found.setdefault((r["task"], r["arm"]), {}).setdefault(r["lr"], {})[r["seed"]] = 100 * r["accuracy"]
    best = {arm: max(by_rate.values(), key=lambda v: np.mean(list(v.values()))) for arm, by_rate in found.items()}
    for task, arm in best:
        if arm not in ("joint", "frozen", "wmss", "wmss-token"):
            continue
        cells = []
        frozen = arm == "frozen" and (task, "permuted-frozen") in best
        for ref in ("sft", "sft-flops", "d0", "permuted-frozen" if frozen else "permuted", "joint"):
            if ref == arm:
                cells.append("")
                continue
            d = [v - best[task, ref][s] for s, v in best[task, arm].items() if s in best.get((task, ref), ())]
            half = t_quantile(len(d) - 1) * np.std(d, ddof=1) / len(d) ** 0.5 if len(d) > 1 else math.inf
            cells.append(f"{np.mean(d):+.2f} [{np.mean(d) - half:+.2f}, {np.mean(d) + half:+.2f}]" if d else "-")
        lines.append([task, arm, *cells])
    return lines


def controls_table(rows):
    """controls_lines() of every regime and lambda that the rows have."""
    pairs = dict.fromkeys((r["regime"], r["lam"]) for r in rows if r["split"] == "val" and r["lam"] is not None)
    return table(["regime", "lam", "task", "arm", *(f"less {r}" for r in (*REFERENCES, "joint"))],
                 [[regime, f"{lam:g}", *line] for regime, lam in pairs for line in controls_lines(rows, lam, regime)])


def regime_table(rows):
    """Of each regime and task: M1, the best control, and the arms that mix, against it and against each reference."""
    controls, lines = ("sft", "sft-flops", "d0", "permuted", "contrastive", "extrapolation"), []
    for regime in dict.fromkeys(r["regime"] for r in rows):
        by_task = tested(rows, regime)
        pairs = compare(by_task)
        for task, arms in by_task.items():
            mean = {arm: np.mean([r["accuracy"] for r in seeds.values()]) for arm, seeds in arms.items()}
            for arm in arms:
                if arm not in controls:
                    lines.append([regime, task, arm, setting(next(iter(arms[arm].values()))), mean_std([r["accuracy"] for r in arms[arm].values()]),
                                  *(difference(pairs[task].get((arm, ref))) for ref in REFERENCES)])
            lines.append([regime, task, "best control", "", *(f"{c} {100 * mean[c]:.2f}" for c in sorted(set(controls) & set(mean), key=mean.get)[-1:]),
                          "", "", "", ""])
    return table(["regime", "task", "arm", "setting", "test accuracy", *(f"against {r}" for r in REFERENCES)], lines)


def rates_table(rows):
    """Validation accuracy of each arm at every rate tried, and the mean over the rates less that of each reference, paired over the
    problems (one seed: what another order of data would give is not in these intervals)."""
    found, lines = {}, []
    for r in rows:
        if r["split"] == "val":
            found.setdefault((r["task"], r["arm"]), {})[r["lr"]] = np.array(unpack(r["correct"], r["n"]), dtype=float)
    rates = sorted({lr for by_rate in found.values() for lr in by_rate})
    mean = {key: np.mean(list(by_rate.values()), 0) for key, by_rate in found.items() if len(by_rate) == len(rates)}
    for task, arm in sorted(mean, key=lambda key: (key[0], -mean[key].mean())):
        cells = []
        for ref in REFERENCES:
            m, half, _ = crossed([100 * (mean[task, arm] - mean[task, ref])]) if ref != arm and (task, ref) in mean else (None, None, None)
            cells.append("" if m is None else f"{m:+.2f} [{m - half:+.2f}, {m + half:+.2f}]")
        lines.append([task, arm, *(f"{100 * found[task, arm][lr].mean():.2f}" for lr in rates), f"{100 * mean[task, arm].mean():.2f}", *cells])
    return table(["task", "arm", *(f"lr {lr:g}" for lr in rates), "mean", *(f"less {r}" for r in REFERENCES)], lines)


def mass_table(rows):
    """Share of the sampling mass on each family over its share of the data, means over seeds: 1 is plain sampling."""
    found = {}
    for r in rows:
        if r.get("mass"):
            found.setdefault((r["regime"], r["task"], r["arm"]), []).append(r["mass"])
    return table(["regime", "task", "arm", "mass on a family / its share of the data"],
                 [[*key, ", ".join(f"{f} {np.mean([m[f][0] / m[f][1] for m in masses]):.2f}" for f in masses[0])] for key, masses in found.items()])


# ----------------------------------------------------------------------------------------------------------------------
# figures

COLOURS = {"sft": "#555555", "sft-flops": "#000000", "sft-flops-wmss": "#999999", "d0": "#1565c0", "permuted": "#6a1b9a", "label-smoothing": "#00838f",
           "frozen": "#b26a00", "joint": "#c62828", "wmss": "#2e7d32"}


def text(x, y, words, size=12, anchor="start", colour="#222"):
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{html.escape(str(words))}</text>'


def line(x1, y1, x2, y2, colour="#222", width=1.5):
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def svg(width, height, parts, label):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" role="img" '
            f'aria-label="{html.escape(label)}"><rect width="{width}" height="{height}" fill="white"/>{"".join(parts)}</svg>\n')


def ticks(low, high, n=5):
    """Round numbers from low to high, about n.

    >>> ticks(-3.2, 1.4)
    [-3.0, -2.0, -1.0, 0.0, 1.0]
    """
    raw = max(high - low, 1e-9) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def forest_svg(found, ref="sft-flops"):
    """Each arm's difference to `ref` with its 95 % interval, points, one panel per task."""
    parts, left, panel = [], 130, 360
    arms = list(dict.fromkeys(arm for pairs in found.values() for arm, r in pairs if r == ref))
    bottom = 40 + 22 * len(arms)
    for k, (task, pairs) in enumerate(found.items()):
        drawn = {arm: (100 * pairs[arm, ref]["mean"], 100 * min(pairs[arm, ref]["half"], 1)) for arm in arms if (arm, ref) in pairs}
        ends = [m + s * h for m, h in drawn.values() for s in (-1, 1)] + [-0.5, 0.5]
        low, high, x0 = min(ends), max(ends), left + k * (panel + 30)
        x = lambda v: x0 + (v - low) / (high - low) * panel
        parts.append(text(x0 + panel / 2, 18, f"{task}: test accuracy less that of {ref}, points", anchor="middle"))
        for v in ticks(low, high):
            parts += [line(x(v), 30, x(v), bottom, "#222" if v == 0 else "#ddd", 1), text(x(v), bottom + 16, f"{v:g}", 11, "middle")]
        for arm, (m, h) in drawn.items():
            y, colour = 46 + 22 * arms.index(arm), COLOURS.get(arm, "#777")
            parts += [line(x(m - h), y, x(m + h), y, colour, 2.5), f'<circle cx="{x(m):.1f}" cy="{y}" r="4" fill="{colour}"/>']
    parts += [text(left - 8, 50 + 22 * i, arm, anchor="end") for i, arm in enumerate(arms)]
    return svg(left + len(found) * (panel + 30), bottom + 24, parts, f"differences to {ref} with 95 % intervals")


def rates_svg(rows, regime="default"):
    """Mean validation accuracy against the stage-3 rate, for each arm the best lambda at each rate, one panel per task."""
    parts, panel, height = [], 360, 300
    for k, task in enumerate(dict.fromkeys(r["task"] for r in rows)):
        curves, start = {}, [r["accuracy"] for r in rows if (r["task"], r["arm"], r["split"], r["regime"]) == (task, "m1", "val", regime)]
        for r in rows:
            if (r["task"], r["split"], r["regime"]) == (task, "val", regime) and r["lr"] and r["arm"] in COLOURS:
                curves.setdefault(r["arm"], {}).setdefault(r["lr"], {}).setdefault(r["lam"], []).append(r["accuracy"])
        if not curves:
            continue
        best = {arm: {lr: 100 * max(np.mean(v) for v in lams.values()) for lr, lams in by_lr.items()} for arm, by_lr in curves.items()}
        values = sorted(v for by_lr in best.values() for v in by_lr.values())
        low, high = max(values[0], min(values[-1] - 15, *(100 * v - 3 for v in start))), values[-1] + 0.2
        rates = sorted({lr for by_lr in best.values() for lr in by_lr})
        x0 = 50 + k * (panel + 60)
        x = lambda lr: x0 + math.log(lr / rates[0]) / max(1e-9, math.log(rates[-1] / rates[0])) * panel
        y = lambda v: 30 + (high - v) / max(1e-9, high - low) * (height - 70)
        parts.append(f'<clipPath id="panel{k}"><rect x="{x0}" y="30" width="{panel}" height="{height - 70}"/></clipPath>')   # what collapses leaves it
        parts.append(text(x0 + panel / 2, 18, f"{task}: validation accuracy, % (best lambda at each rate)", anchor="middle"))
        for v in ticks(low, high):
            parts += [line(x0, y(v), x0 + panel, y(v), "#ddd", 1), text(x0 - 6, y(v) + 4, f"{v:g}", 11, "end")]
        if start and low <= 100 * np.mean(start) <= high:
            parts += [line(x0, y(100 * np.mean(start)), x0 + panel, y(100 * np.mean(start)), "#888", 1), text(x0 + 4, y(100 * np.mean(start)) - 4, "M1", 11, colour="#888")]
        for lr in (m * 10.0 ** e for e in range(-6, 0) for m in (1, 3)):
            if 0.999 * rates[0] <= lr <= 1.001 * rates[-1]:
                parts.append(text(x(lr), height - 24, f"{lr:g}", 11, "middle"))
        parts.append(text(x0 + panel / 2, height - 8, "peak learning rate of stage 3", 11, "middle"))
        for arm, by_lr in best.items():
            points = " ".join(f"{x(lr):.1f},{y(v):.1f}" for lr, v in sorted(by_lr.items()))
            parts.append(f'<polyline points="{points}" clip-path="url(#panel{k})" fill="none" stroke="{COLOURS[arm]}" stroke-width="2"/>')
    at = 50
    for arm, colour in COLOURS.items():
        parts += [line(at, height + 8, at + 16, height + 8, colour, 3), text(at + 20, height + 12, arm, 11)]
        at += 36 + 6.5 * len(arm)
    return svg(940, height + 20, parts, "validation accuracy against the learning rate of stage 3")


# ----------------------------------------------------------------------------------------------------------------------
# the page


def blocks(toy, regimes, real=()):
    """Name of a block in README.md -> its Markdown."""
    by_task = tested(toy)
    found, out = compare(by_task), {}
    for task, arms in by_task.items():
        out |= {f"main {task}": main_table(arms, found[task]), f"families {task}": family_table(arms),
                f"closer {task}": closer_table(arms), f"watch {task}": watch_table(arms)}
    if toy:
        out |= {"equal FLOPs": flops_table(by_task), "lambda": lam_table(toy), "controls": controls_table(toy)}
    if regimes:
        out |= {"regimes": regime_table(regimes), "regime controls": controls_table(regimes), "mass": mass_table(regimes)}
    if any(r["split"] == "val" for r in real):
        out["real"] = rates_table(real)
    for regime in ("real", "reduced"):
        order = ("weak", "m1", "sft", "sft-flops", "d0", "frozen", "permuted", "joint", "wmss").index
        by_task = {task: {arm: arms[arm] for arm in sorted(arms, key=order)} for task, arms in tested(real, regime).items() if "sft" in arms}
        for task, pairs in compare(by_task).items():
            out[f"{regime} {task}"] = "\n\n".join((main_table(by_task[task], pairs), family_table(by_task[task]), watch_table(by_task[task])))
    for name, rows in (("toy", toy), ("regimes", regimes), ("real", real)):
        if rows:
            by_place = {}
            for r in rows:
                by_place.setdefault(f"{r['hardware']}, {r['versions']}, commit {r['commit']}", []).append(r["total"])
            out[f"rows {name}"] = ";\n".join(f"{len(t):,} rows, {sum(t) / 3600:.1f} h of one process ({place})" for place, t in by_place.items()) + "."
    return out


def fill(page, found):
    """Put each block between its marks <!-- NAME --> and <!-- end -->; one that has no marks is appended with them."""
    for name, body in found.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        if begin not in page:
            page += f"\n{begin}{end}\n"
        head, _, rest = page.partition(begin)
        if end not in rest:
            raise SystemExit(f"analyse: the block <!-- {name} --> of README.md has no <!-- end --> after it; put one in")
        page = head + begin + body + "\n" + end + rest.partition(end)[2]
    return page


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--rows", help="rows of sweep.py toy (results/toy.jsonl, regimes.jsonl and real.jsonl, where none of the three is given)")
    parser.add_argument("--regimes", help="rows of sweep.py regimes")
    parser.add_argument("--real", help="rows of real.py")
    parser.add_argument("--into", default=HERE, help="folder of README.md and the figures (%(default)s)")
    a = parser.parse_args(argv)
    paths = a.rows, a.regimes, a.real
    if not any(paths):
        paths = [os.path.join(HERE, f"{name}.jsonl") for name in ("toy", "regimes", "real")]
    if missing := [path for path in paths if path and not os.path.exists(path)]:
        raise SystemExit(f"analyse: {', '.join(missing)} is not there; sweep.py and real.py write such files")
    toy, regimes, real = (read_rows(path) if path else [] for path in paths)
    page = os.path.join(a.into, "README.md")
    old = open(page, encoding="utf-8").read() if os.path.exists(page) else ""
    write_text(page, fill(old, blocks(toy, regimes, real)))
    write_text(os.path.join(a.into, "differences.svg"), forest_svg(compare(tested(toy))))
    write_text(os.path.join(a.into, "rates.svg"), rates_svg(toy))
    print(f"wrote {page}, differences.svg, rates.svg from {len(toy):,} rows, {len(regimes):,} of regimes, {len(real):,} of real.py")


if __name__ == "__main__":
    main()
