"""When does mixing win? Rows of `sweep.py map` and `sweep.py rivals` -> phase.md and phase.svg.

Also when.svg, the figure of README.md: accuracy against q, of the declared rows of mistakes.py;
dashed the borders that lie within.

Theory, for a frozen weak model: where training ends the mix fits the data. With the log-odds of the
right token against the usual mistake's that is

    lam * (strong model's) + (1 - lam) * (weak model's) = those in the data = log(q / (1 - q)),

q being the share of right solutions. The strong model is right where its own log-odds are above 0:
for plain SFT (lam = 1) where q > 1/2, for mixing as soon as q is above border(). Nothing is trained
here, and everything is on the validation split: this is a map, the test of it is mistakes.py.

    python experiments/phase.py                  # of map.jsonl and rivals.jsonl beside it
"""

import math
import os

import analyse
import mistakes
import numpy as np
from analyse import HERE, grouped, interval_of, less, table
from figures import stacked

from plumbing import draw
from plumbing.cli import program
from plumbing.files import write_text

PLAIN = ("sft-steps", "sft-flops")


def log_odds(share):
    return math.log(share / (1 - share))


def expected(q, weak, lam):
    """Log-odds of the strong model where training ends, weak: those of the weak one, in nats.

    >>> expected(0.5, -3.0, 0.5), expected(0.5, -3.0, 1.0)
    (3.0, 0.0)
    """
    return (log_odds(q) - (1 - lam) * weak) / lam


def border(weak, lam):
    """The share q of right solutions above which the strong model is right.

    >>> border(-3.0, 1.0), round(border(-3.0, 0.5), 3)
    (0.5, 0.182)
    """
    return 1 / (1 + math.exp(-(1 - lam) * weak))


def shares_of(regime):
    """w0.05-q0.3 -> (0.05, 0.3)"""
    w, q = regime.split("-")
    return float(w[1:]), float(q[1:])


class Map:
    """The rows of one task: of each (regime, arm, lam) one for each seed."""

    def __init__(self, rows):
        self.cells = {key: {r["seed"]: r for r in own}
                      for key, own in grouped(rows, "regime", "arm", "lam").items()}
        self.lams = sorted({lam for _, arm, lam in self.cells if arm == "frozen"})
        self.regimes = sorted({regime for regime, *_ in self.cells}, key=shares_of)
        self.weak = {w: np.mean([self.mean(regime, "weak", key="log_odds")
                                 for regime in self.regimes if shares_of(regime)[0] == w])
                     for w in sorted({shares_of(regime)[0] for regime in self.regimes})}

    def mean(self, regime, arm, lam=None, key="accuracy"):
        return float(np.mean([r[key] for r in self.cells[regime, arm, lam].values()]))

    def less(self, regime, arm, lam, reference):
        """The differences in points (S, P), see analyse.less."""
        return 100 * less(self.cells[regime, arm, lam], self.cells[regime, reference, None])


def map_table(found):
    lines = []
    for regime in found.regimes:
        w, q = shares_of(regime)
        for lam in found.lams:
            line = [w, q, lam, "mixing" if border(found.weak[w], lam) < q <= 0.5 else
                    "both" if q > 0.5 else "neither"]
            line += [f"{100 * found.mean(regime, arm):.1f}" for arm in ("weak", *PLAIN)]
            for arm in ("frozen", "joint"):
                if (regime, arm, lam) not in found.cells:
                    line += ["", "", ""]
                    continue
                line.append(f"{100 * found.mean(regime, arm, lam):.1f}")
                line += [interval_of(found.less(regime, arm, lam, ref)) for ref in PLAIN]
            line.append(f"{expected(q, found.weak[w], lam):+.1f}")
            line.append(f"{found.mean(regime, 'frozen', lam, 'log_odds'):+.1f}")
            lines.append(line)
    head = ["w", "q", "lam", "right by theory", "base", *PLAIN]
    for arm in ("frozen", "joint"):
        head += [arm, *(f"less {ref}" for ref in PLAIN)]
    return table([*head, "log-odds expected", "log-odds of frozen"], lines)


def rivals_table(rows):
    """Of each regime every arm, best first, and what it has over plain SFT for equal steps."""
    parts = []
    for (task, regime), own in grouped(rows, "task", "regime").items():
        found = {arm: {r["seed"]: r for r in some} for (arm,), some in grouped(own, "arm").items()}
        means = {arm: np.mean([r["accuracy"] for r in some.values()])
                 for arm, some in found.items()}
        lines = []
        for arm in sorted(means, key=means.get, reverse=True):
            line = [arm, f"{100 * means[arm]:.2f}"]
            for ref in ("sft-steps", "frozen"):
                line.append("" if arm == ref else interval_of(100 * less(found[arm], found[ref])))
            line.append(f"{np.mean([r['log_odds'] for r in found[arm].values()]):+.2f}")
            lines.append(line)
        head = ["arm", "accuracy, %", "less sft-steps", "less frozen", "log-odds"]
        parts.append(f"**{task}, {regime}**, {len(found['sft-steps'])} seeds\n\n"
                     + table(head, lines))
    return "\n\n".join(parts)


def curves_chart(task, points, weak):
    """Accuracy against q; SFT for joint's FLOPs. points: {q: accuracies}; weak: its log-odds."""
    flops = "sft-flops" + "-joint" * any("sft-flops-joint" in own for own in points.values())
    drawn = {arm: (arm.removesuffix("-joint"), draw.dash(i),
                   [(q, points[q][arm][0]) for q in sorted(points) if arm in points[q]])
             for i, arm in enumerate(("sft-steps", flops, "frozen", "joint", "wmss", "reweighted"))
             if any(arm in found for found in points.values())}
    tens = [right / 10 for *_, line in drawn.values() for _, right in line]
    height, parts, title = draw.curves(
        f"{task}: right answers, % (w 0.05, λ 0.5)", drawn,
        [(q, draw.plain(q)) for q in sorted(points)],
        "share q that is right, of the labels that can be wrong", 10 * math.floor(min(tens)),
        10 * math.ceil(max(tens)))
    x = draw.scale(min(points), max(points), draw.LEFT, draw.RIGHT)
    for words, q, y in (("mixing", border(weak, 0.5), 42), ("SFT", 0.5, 172)):
        if min(points) < q < max(points):            # from here on right, by theory
            parts.append(draw.line(x(q), 30, x(q), 30 + draw.TALL, "ink", 1, "4 3"))
            parts.append(draw.text(x(q) + 4, y, f"{words} →"))
    return height, parts, title


def map_chart(found, lam, reference):
    """Points of frozen over plain SFT at each (w, q), and theory's border."""
    title = f"frozen less {reference}, points, λ {lam:g}"
    ws = list(found.weak)
    x = draw.scale(0, 1, draw.LEFT, draw.RIGHT)
    y = draw.scale(0, len(ws), 30 + draw.TALL, 30)
    parts = []
    for k, w in enumerate(ws):
        parts.append(draw.text(draw.LEFT - 6, y(k + 0.5) + 4, f"w {w:g}", "end"))
        parts.append(draw.line(draw.LEFT, y(k), draw.RIGHT, y(k)))
        edge = border(found.weak[w], lam)
        if edge < 0.5:                  # between the two borders only mixing is right
            parts.append(draw.box(x(edge), y(k + 1), x(0.5) - x(edge), y(k) - y(k + 1), "frozen",
                                  'fill-opacity=".25"', "theory: mixing right, SFT wrong"))
    for regime in found.regimes:
        w, q = shares_of(regime)
        mean = found.less(regime, "frozen", lam, reference).mean()
        words = f"{mean:+.0f}".replace("-", "−")
        parts.append(draw.text(x(q), y(ws.index(w) + 0.5) + 4, words, "middle"))
    for q in sorted({shares_of(regime)[1] for regime in found.regimes}):
        parts.append(draw.text(x(q), draw.TALL + 46, draw.plain(q), "middle"))
    parts.append(draw.text(draw.WIDTH / 2, draw.TALL + 63,
                           "share q that is right, of the labels that can be wrong", "middle"))
    sign = draw.box(2, -5, 22, 10, "frozen", 'fill-opacity=".25"')
    height, signs = draw.legend({"theory: mixing right, SFT wrong": sign}, draw.TALL + 72)
    return height, parts + signs, title


def odds_chart(found):
    """Log-odds after training against those that theory expects; the line is equality."""
    points = []
    for regime in found.regimes:
        w, q = shares_of(regime)
        points.append(("sft-flops", log_odds(q), found.mean(regime, "sft-flops", key="log_odds")))
        for lam in found.lams:
            points.append(("frozen", expected(q, found.weak[w], lam),
                           found.mean(regime, "frozen", lam, "log_odds")))
    ends = [v for _, *pair in points for v in pair]
    low, high = math.floor(min(ends)), math.ceil(max(ends))
    x = draw.scale(low, high, draw.LEFT, draw.RIGHT)
    marks = [(v, draw.plain(v)) for v in draw.ticks(low, high)]
    parts, y = draw.frame(low, high, x, marks, "log-odds that theory expects, nats")
    parts.append(draw.line(x(low), y(low), x(high), y(high), "soft", 1, "4 3"))
    parts += [draw.circle(x(a), y(b), arm, arm == "frozen") for arm, a, b in points]
    signs = {arm: draw.circle(15, 0, arm, arm == "frozen") for arm in ("frozen", "sft-flops")}
    height, signs = draw.legend(signs, draw.TALL + 72)
    return height, parts + signs, "log-odds of right over mistaken, after training"


def figure(found):
    charts = [map_chart(found, lam, reference) for reference in PLAIN for lam in found.lams]
    return stacked([*charts, odds_chart(found)], "when mixing wins")


@program("phase")
def main(argv=None):
    parser = analyse.parser_of(__doc__)
    for name in ("map", "rivals", "mistakes"):
        parser.add_argument(f"--{name}", default=os.path.join(HERE, f"{name}.jsonl"))
    parser.add_argument("--into", default=HERE, help="folder of phase.md and phase.svg")
    a = parser.parse_args(argv)
    parts = ["# When does mixing win?\n\nWritten by `python experiments/phase.py`; do not edit. "
             "Validation split; one rate, fixed in advance. Of one seed an interval knows the "
             "problems alone; of two or three it is rough. Words: experiments/phase.py."]
    made, curves = mistakes.read_rows(a.mistakes), []
    for (task,), rows in grouped(analyse.read_rows(a.map), "task").items():
        found = Map(rows)
        name = "phase.svg" if task == "toy-math" else f"phase-{task}.svg"
        write_text(os.path.join(a.into, name), figure(found))
        points = {}
        for p in mistakes.whole(made):
            if (p.task, p.noise, mistakes.SEEDS[p.round][0]) == (task, 0.95, 10):
                points.setdefault(round(1 - p.label_noise, 2), {}).update(p.accuracies(made))
        if points and 0.05 in found.weak:
            curves.append(curves_chart(task, points, found.weak[0.05]))
        n_seeds = {shares_of(regime)[0]: len(own) for (regime, *_), own in found.cells.items()}
        seeds = "; ".join(f"w {w:g}: {n_seeds[w]}" for w in found.weak)
        parts.append(f"## {task}\n\nSeeds, {seeds}.\n\n![The map]({name})\n\n"
                     f"{map_table(found)}\n\n{analyse.places(rows)}")
    if curves:
        write_text(os.path.join(a.into, "when.svg"), stacked(curves, "when mixing wins"))
    if os.path.exists(a.rivals):
        rows = analyse.read_rows(a.rivals)
        parts.append(f"## What else helps\n\n{rivals_table(rows)}\n\n{analyse.places(rows)}")
    write_text(os.path.join(a.into, "phase.md"), "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
