"""The figures of README.md as SVG: charts of plumbing/draw.py below each other.

Pure functions of the rows (rates_svg, lambda_svg) or of differences (forest_svg); analyse.py calls
them. Rows carry today's names of the arms, see analyse.read_rows.
"""

import numpy as np

from plumbing import colours, draw

# Qwen3-4B-Base, the paper's v2: mean gain of WMSS over its SFT on 7 math and 4 code benchmarks
CLAIM = {"math": 4.9, "code": 4.4}


def means_of(rows):
    """Validation accuracy, %, mean over seeds -> {(arm, lam, lr): value}."""
    found = {}
    for r in rows:
        found.setdefault((r["arm"], r["lam"], r["lr"]), {})[r["seed"]] = 100 * r["accuracy"]
    return {key: float(np.mean(list(by_seed.values()))) for key, by_seed in found.items()}


def best_at(means, arm, lam=None):
    """The arm's best mean over the rates at one lambda, or None."""
    return max((v for (a, at, _), v in means.items() if (a, at) == (arm, lam)), default=None)


def panels_of(rows, curves_of, levels, name, rates=False):
    """A panel for each task of the default regime, code before math, validation accuracy in %.

    curves_of(means) -> {words: (colour, {x: accuracy})}; levels: arms that are drawn as a level.
    """
    panels = []
    for task in sorted({r["task"] for r in rows}):
        own = [r for r in rows if r["task"] == task]
        means = means_of([r for r in own if (r["regime"], r["split"]) == ("default", "val")])
        curves, drawn = curves_of(means), {}
        if not curves:
            continue
        xs = sorted({x for _, points in curves.values() for x in points})
        for i, (words, (colour, points)) in enumerate(curves.items()):
            drawn[words] = (colour, draw.dash(i), sorted(points.items()))
        for arm in levels:
            level = best_at(means, arm)
            if level is not None:
                words, dash = ("sft (M1)", "1 3") if arm == "sft" else (arm, "")
                drawn[words] = (arm, dash, [(xs[0], level), (xs[-1], level)])
        values = [v for *_, points in drawn.values() for _, v in points]
        highest = max(values)
        low = max(min(values) - 0.5, highest - max(8, 1.5 * (highest - best_at(means, "sft"))))
        title = f"{task}, {len({r['seed'] for r in own})} seeds: validation accuracy, %"
        marks = [(v, draw.plain(v)) for v in (draw.ticks(xs[0], xs[-1], True) if rates else xs)]
        panels.append(draw.curves(title, drawn, marks, name, low, highest + 0.5, x_log=rates))
    return panels


def rates_svg(rows):
    """Accuracy against the learning rate of stage 3: plain SFT, and joint at each lambda."""
    def curves_of(means):
        curves = {}
        for (arm, lam, lr), v in sorted(means.items(), key=lambda item: item[0][1] or 0):
            if arm == "sft-steps":
                curves.setdefault(arm, (arm, {}))[1][lr] = v
            if arm == "joint":
                colour = f"lam{10 * lam:.0f}"
                curves.setdefault(f"joint, λ {lam:g}", (colour, {}))[1][lr] = v
        return curves

    panels = panels_of(rows, curves_of, ["sft"], "peak learning rate of stage 3", rates=True)
    return stacked(panels, "validation accuracy against the learning rate of stage 3")


def lambda_svg(rows):
    """Accuracy against lambda, each arm at its best rate there; plain SFT as a level."""
    def curves_of(means):
        curves = {}
        for arm in ("joint", "wmss-mask", "temperature", "permuted", "frozen", "wmss-both"):
            lams = sorted({lam for a, lam, _ in means if a == arm and lam is not None})
            if lams:
                curves[arm] = (arm, {lam: best_at(means, arm, lam) for lam in lams})
        return curves

    panels = panels_of(rows, curves_of, ["sft", "sft-steps"], "lambda (1 = plain SFT)")
    return stacked(panels, "validation accuracy against lambda")


def forest_svg(groups):
    """Differences to plain SFT in points, with the paper's claim.

    groups: {"math" or "code": [(label, {reference: (mean, half width)})]}.
    """
    rows = {group: [(label, label.split(": ")[1], marks) for label, marks in lines]
            for group, lines in groups.items()}
    title = "Test accuracy less that of plain SFT, points"
    return stacked([draw.forest(title, rows, ("sft-steps", "sft-flops"), CLAIM)], title)


def stacked(charts, title):
    """The charts one below the other as the text of a file.svg that stands alone."""
    parts, top = [], 0
    for height, own, words in charts:
        head = draw.text(draw.WIDTH / 2, 18, words, "middle", 13) if words else ""
        parts.append(f'<g transform="translate(0 {top:.0f})">{head}{"".join(own)}</g>')
        top += height + 10
    used = [name for name in colours.TABLE if f'class="{name}"' in "".join(parts)]
    style = colours.css((*dict.fromkeys(("paper", "ink", *used)),))
    parts.append(f"<style>{style}svg{{background:var(--paper);font-family:sans-serif}}"
                 "text{fill:var(--ink)}</style>")
    more = f' xmlns="http://www.w3.org/2000/svg" width="{draw.WIDTH}" height="{top:.0f}"'
    return draw.whole(top, parts, title, more) + "\n"
