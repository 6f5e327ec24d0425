"""The figures of README.md as SVG: one column of panels, legible at 390 pixels and in the dark.

Pure functions of the rows (rates_svg, lambda_svg) or of differences (forest_svg); analyse.py calls
them. Rows carry today's names of the arms, see analyse.read_rows.
"""

import html
import math
import os
import sys
from itertools import cycle

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from plumbing.colours import ARMS as COLOURS

WIDTH = 390
LEFT, RIGHT = 44, 370                    # of a plot's area
SHADES = {0.3: "#7b6fd0", 0.5: "#2f86c9", 0.7: "#2e8b57", 0.9: "#d1432f"}        # of lambdas
DASHES = ("", "6 3", "2 3", "8 3 2 3")                 # a second cue beside colour
# Qwen3-4B-Base, the paper's v2: mean gain of WMSS over its SFT on 7 math and 4 code benchmarks
CLAIM = {"math": 4.9, "code": 4.4}

STYLE = """<style>
svg{background:#fff;font-family:sans-serif} text{fill:#222}
.grid{stroke:#ddd} .axis{stroke:#222} .soft{stroke:#777}
@media (prefers-color-scheme:dark){
svg{background:#0d1117} text{fill:#e6e6e6} .grid{stroke:#333} .axis{stroke:#e6e6e6}
.soft{stroke:#999}}
</style>"""


def text(x, y, words, size=12, anchor="start"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">'
            f'{html.escape(str(words))}</text>')


def line(x1, y1, x2, y2, css="axis", width=1.0, more=""):
    return (f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
            f'stroke-width="{width}" {more}/>')


def coloured(colour, dash=""):
    return f'style="stroke:{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def svg(height, parts, label):
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
            f'aria-label="{html.escape(label)}">{STYLE}{"".join(parts)}</svg>\n')


def ticks(low, high, n=5):
    """Round numbers from low to high, about n.

    >>> ticks(-3.2, 1.4)
    [-3.0, -2.0, -1.0, 0.0, 1.0]
    """
    raw = max(high - low, 1e-9) / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= 0.999 * raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def scale(low, high, start, end):
    """A function that maps low..high to start..end."""
    factor = (end - start) / max(1e-9, high - low)

    def place(v):
        return start + (v - low) * factor

    return place


def curves_svg(panels, label, x_name, x_words, logarithmic=False):
    """Curves over one quantity, a panel below the other.

    panels: list of (title, curves {name: (colour, {x: value})}, levels {name: value}), values in %.
    Curves that fall below the panel leave it.
    """
    parts = []
    top = 0
    for number, (title, curves, levels) in enumerate(panels):
        values = [v for _, points in curves.values() for v in points.values()] + [*levels.values()]
        xs = sorted({x for _, points in curves.values() for x in points})
        styles = {}
        for (name, (colour, _)), dash in zip(curves.items(), cycle(DASHES), strict=False):
            styles[name] = coloured(colour, dash)
        high = max(values) + 0.5
        low = max(min(values), min(high - 8, min(levels.values(), default=high) - 5))
        low -= 0.08 * (high - low)                     # room for the name of a level
        y = scale(low, high, top + 210, top + 30)
        at = scale(*(map(math.log, (xs[0], xs[-1])) if logarithmic else (xs[0], xs[-1])),
                   LEFT, RIGHT)

        def x(v, at=at):
            return at(math.log(v)) if logarithmic else at(v)

        parts.append(f'<clipPath id="panel{number}"><rect x="{LEFT}" y="{top + 30}" '
                     f'width="{RIGHT - LEFT}" height="180"/></clipPath>')
        parts.append(text(WIDTH / 2, top + 18, title, 13, "middle"))
        for v in ticks(low, high):
            parts += [line(LEFT, y(v), RIGHT, y(v), "grid"),
                      text(LEFT - 5, y(v) + 4, f"{v:g}", 11, "end")]
        for v in x_words(xs):
            parts.append(text(x(v), top + 225, f"{v:g}", 11, "middle"))
        parts.append(text(WIDTH / 2, top + 240, x_name, 12, "middle"))
        for name, v in levels.items():
            parts += [line(LEFT, y(v), RIGHT, y(v), "soft", 1.5, 'stroke-dasharray="1 3"'),
                      text(LEFT + 4, y(v) + (13 if "M1" in name else -4), name, 11)]
        for name, (_, points) in curves.items():
            where = " ".join(f"{x(k):.1f},{y(v):.1f}" for k, v in sorted(points.items()))
            parts.append(f'<polyline points="{where}" clip-path="url(#panel{number})" fill="none" '
                         f'stroke-width="2" {styles[name]}/>')
        top += 250
        for i, (name, style) in enumerate(styles.items()):       # the legend, three to a line
            left, y = 20 + 122 * (i % 3), top + 18 * (i // 3)
            parts += [line(left, y + 6, left + 24, y + 6, "axis", 2.5, style),
                      text(left + 30, y + 10, name)]
        top += 18 * math.ceil(len(curves) / 3)
        top += 14
    return svg(top, parts, label)


def means_of(rows):
    """Validation accuracy, %, mean over seeds -> {(arm, lam, lr): value}."""
    found = {}
    for r in rows:
        found.setdefault((r["arm"], r["lam"], r["lr"]), {})[r["seed"]] = 100 * r["accuracy"]
    return {key: float(np.mean(list(by_seed.values()))) for key, by_seed in found.items()}


def best_at(means, arm, lam=None):
    """The arm's best mean over the rates at one lambda, or None."""
    return max((v for (a, at, _), v in means.items() if (a, at) == (arm, lam)), default=None)


def panels_of(rows, curves_of, levels):
    """A panel for each task of the default regime, code before math; M1 is `sft`."""
    panels = []
    for task in sorted({r["task"] for r in rows}):
        own = [r for r in rows if r["task"] == task]
        means = means_of([r for r in own if (r["regime"], r["split"]) == ("default", "val")])
        curves = curves_of(means)
        if curves:
            title = f"{task}, {len({r['seed'] for r in own})} seeds: validation accuracy, %"
            named = {"sft (M1)" if arm == "sft" else arm: best_at(means, arm) for arm in levels}
            panels.append((title, curves, {k: v for k, v in named.items() if v is not None}))
    return panels


def round_rates(xs):
    wanted = [m * 10.0 ** e for e in range(-6, 0) for m in (1, 3)]
    return [float(f"{v:.6g}") for v in wanted if 0.999 * xs[0] <= v <= 1.001 * xs[-1]]


def rates_svg(rows):
    """Accuracy against the learning rate of stage 3: plain SFT, and joint at each lambda."""
    def curves_of(means):
        curves = {}
        for (arm, lam, lr), v in sorted(means.items(), key=lambda item: item[0][1] or 0):
            if arm == "sft-steps":
                curves.setdefault(arm, (COLOURS[arm], {}))[1][lr] = v
            if arm == "joint":
                colour = SHADES.get(lam, COLOURS["joint"])
                curves.setdefault(f"joint, λ {lam:g}", (colour, {}))[1][lr] = v
        return curves

    return curves_svg(panels_of(rows, curves_of, ["sft"]),
                      "validation accuracy against the learning rate of stage 3",
                      "peak learning rate of stage 3", round_rates, logarithmic=True)


def lambda_svg(rows):
    """Accuracy against lambda, each arm at its best rate there; plain SFT as a level."""
    def curves_of(means):
        curves = {}
        for arm in ("joint", "wmss-mask", "temperature", "permuted", "frozen", "wmss-both"):
            lams = sorted({lam for a, lam, _ in means if a == arm and lam is not None})
            if lams:
                curves[arm] = (COLOURS[arm], {lam: best_at(means, arm, lam) for lam in lams})
        return curves

    return curves_svg(panels_of(rows, curves_of, ["sft", "sft-steps"]),
                      "validation accuracy against lambda", "lambda (1 = plain SFT)", list)


def forest_svg(groups):
    """Differences to plain SFT with 95 % intervals, in points: filled mark for equal steps, hollow
    mark for equal FLOPs; a vertical line where the paper's claim lies.

    groups: {"math" or "code": [(label, {reference: (mean, half width)})]}.
    """
    left = 158
    parts = [text(8, 18, "Test accuracy less that of plain SFT, points, 95 % intervals"),
             '<circle cx="14" cy="32" r="4" style="fill:#d1432f"/>',
             text(24, 36, "less sft-steps"),
             '<circle cx="124" cy="32" r="3.5" style="fill:none;stroke:#d1432f;stroke-width:2"/>',
             text(134, 36, "less sft-flops"),
             line(232, 26, 232, 40, "axis", 2, coloured("#3b7dd8")),
             text(240, 36, "the paper's claim")]
    top = 56
    for group, lines in groups.items():
        if not lines:
            continue
        drawn = [mark for _, marks in lines for mark in marks.values()]
        ends = [m + side * min(h, 100) for m, h in drawn for side in (-1, 1)]
        low, high = min([-0.5, *ends]), max([*ends, CLAIM[group] + 0.5])
        x = scale(low, high, left, RIGHT)
        bottom = top + 14 + 20 * len(lines)
        parts.append(text(8, top + 8, group, 13))
        for v in ticks(low, high):
            parts += [line(x(v), top + 12, x(v), bottom, "axis" if v == 0 else "grid"),
                      text(x(v), bottom + 14, f"{v:g}", 11, "middle")]
        claim = x(CLAIM[group])
        parts.append(line(claim, top + 12, claim, bottom, "axis", 2, coloured("#3b7dd8")))
        for i, (label, marks) in enumerate(lines):
            y = top + 24 + 20 * i
            parts.append(text(left - 8, y + 4, label, 11, "end"))
            colour = COLOURS[label.split(": ")[1]]
            for ref, (m, h) in marks.items():
                at, h = (y - 3 if ref == "sft-steps" else y + 4), min(h, 100)
                parts.append(line(x(m - h), at, x(m + h), at, "axis", 1.5, coloured(colour)))
                fill = colour if ref == "sft-steps" else "none"
                parts.append(f'<circle cx="{x(m):.1f}" cy="{at}" r="3" '
                             f'style="fill:{fill};stroke:{colour};stroke-width:1.5"/>')
        top = bottom + 32
    return svg(top, parts, "differences to plain SFT with 95 % intervals")
