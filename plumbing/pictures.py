"""The charts of report.html, each with a sentence that says what one sees in this run."""

import math
from typing import NamedTuple

import torch

from plumbing import draw
from plumbing.colours import ARMS
from plumbing.controls import UNMIXED
from plumbing.draw import CODES, dash, plain

REFERENCES = ("sft-steps", "sft-flops")
MIXING = ("joint", "frozen", "wmss", "wmss-mask")


class Picture(NamedTuple):
    charts: list        # the text of an <svg> each
    says: str           # what one sees, computed from what is drawn


def of_model(name):
    """The name under which a model has its colour: that of joint-round2 is joint's."""
    return name.partition("-round")[0]


def in_order(story):
    """The arms of a log in the order that all tables have."""
    known = [*ARMS, *map(of_model, story)]
    return sorted(story, key=lambda arm: (known.index(of_model(arm)), arm))


def row_of(groups, marks, name, log=False):
    """Charts {title: what draw.curves draws} of one height -> texts; nothing of empty ones."""
    kept = {title: {words: curve for words, curve in drawn.items() if curve[2]}
            for title, drawn in groups.items()}
    values = [v for drawn in kept.values() for *_, points in drawn.values() for _, v in points]
    if not values:
        return []
    low, high = min(values), max(values)
    log = log and high > 3 * max(low, 0)
    if log:
        low = max(low, 1e-7) / 1.2
        high = max(high, low) * 1.2
    # what hardly changes is not blown up to fill its chart
    high = max(high, low + 1e-2 * abs(low), low + 1e-9)
    return [draw.inline(draw.curves(title, drawn, marks, name, low, high, log))
            for title, drawn in kept.items() if drawn]


# ---- training ----------------------------------------------------------------------------------


def story_of(log):
    """{arm: {name of a number: [(step, value), ...]}} of the log, at most 200 of each."""
    story = {}
    for r in log:
        for name, value in r.items() if "arm" in r and "step" in r else ():
            if isinstance(value, list) or (name != "arm" and math.isfinite(value)):
                numbers = story.setdefault(r["arm"], {})
                numbers.setdefault(name, []).append((r["step"], value))
    for numbers in story.values():
        for name, points in numbers.items():
            every = math.ceil(len(points) / 200)
            # from the end: the last one says how many steps there were
            numbers[name] = points[::-1][::every][::-1]
    return story


def by_step(story, name, title):
    """A number of the log against the step -> Picture: base, sft, and the arms of stage 3."""
    groups, charts = {}, []
    for arm in in_order(story):
        own = groups.setdefault(arm if arm in ("base", "sft") else "stage 3", {})
        own[arm] = (of_model(arm), dash(len(own)), story[arm].get(name, []))
    for group, drawn in groups.items():
        last = max((points[-1][0] for *_, points in drawn.values() if points), default=0)
        marks = [(0, "0"), (last, plain(last))]
        charts += row_of({f"{title}: {group}": drawn}, marks, "step", True)
    ends = {arm: points[-1][1] for drawn in groups.values()
            for arm, (*_, points) in drawn.items() if points}
    words = ", ".join(f"{arm} {v:.4f}" for arm, v in ends.items())
    least = f"; the least: {min(ends, key=ends.get)}" if len(ends) > 1 else ""
    return Picture(charts, f"At the end: {words}{least}.")


class Training:
    """The charts of story_of(log). same: arms that read the batches that sft-steps reads."""

    def __init__(self, story, same, lam):
        self.story, self.same, self.lam = story, same, lam
        arms = [arm for arm in in_order(story) if arm not in ("base", "sft")]
        self.mixing = [arm for arm in arms if "ent_mix" in story[arm]
                       and of_model(arm) not in UNMIXED]
        self.unmixed = [arm for arm in arms if arm not in self.mixing]
        self.before = ["sft"] if "sft" in story else []
        # the arm of which the sentences speak
        self.chosen = "joint" if "joint" in self.mixing else (self.mixing or [""])[0]

    def mean(self, arm, name):
        """Mean over what is logged; NaN where nothing is."""
        values = [v for _, v in self.story.get(arm, {}).get(name, [])]
        return sum(values) / len(values) if values else math.nan

    def means(self, name, digits):
        """The means of plain training and of the arms that mix, in words."""
        found = {arm: self.mean(arm, name) for arm in ("sft-steps", *self.mixing)}
        words = [f"{arm} {plain(round(v, digits))}" for arm, v in found.items() if v == v]
        return f"Mean over stage 3: {', '.join(words)}."

    def curve(self, arm, name, dash=""):
        """What draw.curves draws: fine-tuning goes from 0 to 1, stage 3 from 1 to 2."""
        last = max(points[-1][0] for points in self.story[arm].values())
        points = [((arm != "sft") + step / last, v) for step, v in self.story[arm].get(name, [])]
        return of_model(arm), dash, points

    def curves(self, arms, name, weak=""):
        """A curve of fine-tuning and of each of the arms; weak: of their weak models too."""
        drawn = {arm: self.curve(arm, name) for arm in (self.before if arms else ())}
        for i, arm in enumerate(arms):
            drawn[arm] = self.curve(arm, name, dash(i))
            drawn[f"{arm}, weak"] = self.curve(arm, weak, "1 5")
        return drawn

    def row(self, groups, log=False):
        if self.before:
            stages = [(0, "base"), (1, "M1"), (2, "end")]
            return row_of(groups, stages, "fine-tuning, then stage 3", log)
        return self.stage3(groups, log)

    def stage3(self, groups, log=False):
        return row_of(groups, [(1, "start"), (2, "end")], "share of the steps", log)

    def three(self, name, title, log=False, weak="", mixing="mixing"):
        """Plain training, mixing, and the difference of what can be compared step by step."""
        charts = self.row({f"{title}: plain training": self.curves(self.unmixed, name),
                           f"{title}: {mixing}": self.curves(self.mixing, name, weak)}, log)
        reference, less = {}, {}
        if "sft-steps" in self.story:
            reference = dict(self.curve("sft-steps", name)[2])
        for i, arm in enumerate(arm for arm in self.same if arm != "sft-steps"):
            _, _, points = self.curve(arm, name)
            both = [(x, v - reference[x]) for x, v in points if x in reference]
            if len(both) == len(reference):
                less[arm] = (of_model(arm), dash(i), both)
        return charts + self.stage3({f"{title}: minus sft-steps": less})

    def pictures(self):
        """{place on the page: Picture}"""
        if not self.mixing and not self.unmixed:
            return dict(loss=by_step(self.story, "loss", "Loss, nats"))
        affinity = {arm: self.curve(arm, "affinity", dash(i))
                    for i, arm in enumerate(self.mixing)}
        return dict(
            entropy=self.entropy(), gradient=self.gradient(), codes=self.codes(),
            target=Picture(self.three("p_target", "Right token's probability"),
                           self.means("p_target", 4)),
            margin=Picture(self.three("margin", "Margin"), self.means("margin", 2)),
            affinity=Picture(self.stage3({"Affinity of weak and strong": affinity}),
                             self.means("affinity", 4)),
            loss=Picture(self.three("loss", "Loss, nats", True, mixing="on mixed logits"),
                         self.means("loss", 4)))

    def entropy(self):
        groups = {"plain training": self.curves(self.unmixed, "ent_strong")}
        for arm in self.mixing:
            groups[arm] = {before: self.curve(before, "ent_strong") for before in self.before}
            for part, how in (("strong", ""), ("weak", "1 5"), ("mix", "7 3")):
                groups[arm][part] = self.curve(arm, f"ent_{part}", how)
        strong, mix = (self.mean(self.chosen, f"ent_{part}") for part in ("strong", "mix"))
        says = f"Mean over stage 3 of {self.chosen}: strong {strong:.3f}, mix {mix:.3f}: "
        says += self.doubt()
        charts = self.row({f"Entropy, nats: {name}": drawn for name, drawn in groups.items()}, True)
        return Picture(charts, says if self.mixing else "")

    def doubt(self):
        strong, mix = (self.mean(self.chosen, f"ent_{part}") for part in ("strong", "mix"))
        more = mix > 1.1 * strong
        return "the mix doubts more." if more else "mixing brings hardly any doubt back."

    def gradient(self):
        says = self.means("gnorm_strong", 3)
        ours, plain_one = (self.mean(arm, "gnorm_strong") for arm in (self.chosen, "sft-steps"))
        if ours > 0 and plain_one > 0 and self.lam > 0:
            ratio = ours / plain_one
            alone = ratio / self.lam
            back = "has more left" if alone > 1.1 else "brings back next to nothing"
            says += (f" With mixing ({self.chosen}) it is {ratio:.2f} times that of plain "
                     f"training. Equation 5 multiplies it by λ = {self.lam:g}; without this factor "
                     f"it would be {alone:.2f} times: mixing {back}.")
        return Picture(self.three("gnorm_strong", "Gradient norm", True, "gnorm_weak"), says)

    def codes(self):
        """The gap codes over training as areas."""
        charts, ends = [], []
        for arm in self.mixing:
            points = self.curve(arm, "codes")[2]
            if points:
                shares = [[100 * n / max(1, sum(counts)) for n in counts] for _, counts in points]
                layers = {CODES[code]: [share[code] for share in shares] for code in (3, 2, 1)}
                charts.append(draw.inline(draw.areas(
                    f"Tokens in a gap, %: {arm}", layers, [x for x, _ in points],
                    [(points[0][0], "start"), (2, "end")], "share of the steps")))
                ends.append(f"{arm} {sum(shares[0][1:]):.0f} → {sum(shares[-1][1:]):.0f} %")
        return Picture(charts, f"Tokens in a gap, first and last logged step: {', '.join(ends)}.")


# ---- scores and gaps ---------------------------------------------------------------------------


def of_scores(rows):
    """Bars of each model, and their differences to plain training -> Pictures scores, families."""
    def bars(title, shares, intervals):
        shown = [(r["model"], r["model"], 100 * share, [100 * v for v in ends], None)
                 for r, share, ends in zip(rows, shares, intervals, strict=True)]
        return draw.inline(draw.bars(title, shown, 100))

    charts = [bars("Right answers, %", [r["accuracy"] for r in rows],
                   [(r["low"], r["high"]) for r in rows])]
    best = max(rows, key=lambda r: r["accuracy"])
    says = f"Most right: {best['model']}, {100 * best['accuracy']:.1f} %."
    if all(r["accuracy"] == best["accuracy"] for r in rows):
        says = f"All models answer equally many: {100 * best['accuracy']:.1f} %."
    trained = [r for r in rows if r["less"] and r["model"] not in ("base", "weak")]
    compared = [(r["model"], r["model"], {ref: mark for ref, mark in r["less"].items()
                                          if ref != r["model"]}) for r in trained]
    if compared:
        charts.append(draw.inline(draw.forest("Minus plain training, points", {"": compared},
                                              REFERENCES)))
        marks = [mark for *_, less in compared for mark in less.values()]
        above, below = (sum(side * mean > half for mean, half in marks) for side in (1, -1))
        says += (f" Of the {len(marks)} differences in the second chart {above} lie above 0 with "
                 f"their interval, {below} below.")
    found = dict(scores=Picture(charts, says))
    families = list(rows[0]["families"])

    def spread(family):
        shares = [r["families"][family] for r in trained or rows]
        return max(shares) - min(shares)

    widest = max(families, key=spread)
    low, high = (end(trained or rows, key=lambda r: r["families"][widest]) for end in (min, max))
    found["families"] = Picture(
        [bars(f"{family}: right answers, %", [r["families"][family] for r in rows],
              [r["intervals"][family] for r in rows]) for family in families],
        f"The models part most in {widest}: {high['model']} has {high['families'][widest]:.1%}, "
        f"{low['model']} {low['families'][widest]:.1%}.")
    return found


def bought(rows):
    """What mixing bought, in a sentence on the differences of the arms that mix."""
    marks = [mark for r in rows if r["model"] in MIXING for mark in r["less"].values()]
    above, below = (sum(side * mean > half for mean, half in marks) for side in (1, -1))
    if above == below == 0:
        return f"Nothing that shows (comparisons with plain training: {len(marks)}, all open)."
    worth = "Something" if above > below else "Nothing" if not above else "It depends"
    return (f"{worth}: of {len(marks)} comparisons of arms that mix with plain training {above} "
            f"speak for mixing, {below} against it, {len(marks) - above - below} leave it open.")


def of_gaps(gaps, by_family):
    """Histogram of the entropy change, weak against live, where the sampling weight went."""
    tau, moved = gaps.settings["tau"], gaps.ent_live - gaps.ent_weak
    reach = max(2 * tau, 1e-6, moved.abs().max().item())

    def colour(low, high):
        return CODES[1] if high < -tau else CODES[2] if low > tau else CODES[0]

    clouds = []
    for code in range(4):
        here = (gaps.codes == code).nonzero()[:, 0]
        here = here[::max(1, len(here) // 400)]             # some of many, evenly
        clouds.append(torch.stack([gaps.ent_weak[here], gaps.ent_live[here]], 1).tolist())
    highest = max(1.0, gaps.ent_weak.max().item(), gaps.ent_live.max().item())
    rows = [(family, CODES[1], 100 * mass, None, 100 * share)
            for family, _, share, mass, *_ in by_family]
    charts = [draw.histogram("Tokens by change of entropy", torch.histc(moved, 41, -reach, reach),
                             reach, "live less weak, nats", colour),
              draw.scatter("Entropy of the live model, nats", clouds, 1e-4, highest,
                           "entropy of the weak model, nats"),
              draw.bars("Share of the sampling weight, %", rows,
                        max(max(mass, share) for _, _, mass, _, share in rows))]
    family, _, share, mass, *_ = max(by_family, key=lambda row: row[3] / row[2])
    says = (f"{(moved.abs() <= tau).float().mean():.0%} of the tokens moved by no more than "
            f"{tau:g} nats; of all, the live model is surer at {(moved < 0).float().mean():.0%}. "
            f"Most is gained by {family}: {mass:.0%} of the drawing instead of {share:.0%}.")
    return Picture([draw.inline(chart) for chart in charts], says)
