"""The charts of report.html, each with a sentence that says what one sees in this run."""

import math
from typing import NamedTuple

import torch

from plumbing import colours, draw
from plumbing.draw import CODES, DASHES, plain

REFERENCES = ("sft-steps", "sft-flops")


class Picture(NamedTuple):
    charts: list        # the text of an <svg> each
    says: str           # what one sees, computed from what is drawn


def of_model(name):
    """The name under which a model has its colour: that of joint-round2 is joint's."""
    return name.partition("-round")[0]


def number(v, digits=3):
    return f"{v:.{digits}f}".replace("-", "−")


# -------------------------------------------------------------------------------------------------
# training


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


class Training:
    """The charts of story_of(log). same: arms that read the batches that sft-steps reads."""

    def __init__(self, story, same, lam):
        self.story, self.same, self.lam = story, same, lam
        order = list(colours.ARMS)
        arms = [arm for arm in story if arm not in ("base", "sft")]
        arms.sort(key=lambda arm: order.index(of_model(arm)) if of_model(arm) in order else 99)
        self.mixing = [arm for arm in arms if "ent_mix" in story[arm]]
        self.unmixed = [arm for arm in arms if arm not in self.mixing]
        self.before = [arm for arm in ("sft",) if arm in story]
        # the arm of which the sentences speak
        self.chosen = "joint" if "joint" in self.mixing else (self.mixing or [""])[0]

    def mean(self, arm, name):
        """Mean over what is logged, or None."""
        values = [v for _, v in self.story.get(arm, {}).get(name, [])]
        return sum(values) / len(values) if values else None

    def means(self, name, digits):
        """The means of plain training and of each arm that mixes, in words."""
        found = {arm: self.mean(arm, name) for arm in ("sft-steps", *self.mixing)}
        return ", ".join(f"{arm} {number(v, digits)}" for arm, v in found.items() if v is not None)

    def curve(self, arm, name, dash=""):
        """What draw.curves draws: fine-tuning goes from 0 to 1, stage 3 from 1 to 2."""
        last = max(points[-1][0] for points in self.story[arm].values())
        points = [((arm != "sft") + step / last, v) for step, v in self.story[arm].get(name, [])]
        return of_model(arm), dash, points

    def row(self, groups, log=False, stages=True):
        """Charts {title: curves} side by side, of one height; stages: fine-tuning is drawn too."""
        marks, name = [(1, "start"), (2, "end")], "share of the steps"
        if stages and self.before:
            marks = [(0, "base"), (1, "M1"), (2, "end")]
            name = "fine-tuning, then stage 3"
        groups = {title: {words: c for words, c in drawn.items() if c[2]}
                  for title, drawn in groups.items()}
        values = [v for drawn in groups.values() for *_, points in drawn.values()
                  for _, v in points]
        if not values:
            return []
        low, high = min(values), max(values)
        if log:
            low = max(low, 1e-7) / 1.2
            high = max(high, low) * 1.2
        # what hardly changes is not blown up to fill its chart
        high = max(high, low + 1e-4 * abs(low), low + 1e-9)
        return [draw.inline(draw.curves(title, drawn, marks, name, low, high, log))
                for title, drawn in groups.items() if drawn]

    def three(self, name, titles, log=False, weak=""):
        """Plain training, mixing, and the difference of what can be compared step by step."""
        sides = []
        for arms in (self.unmixed, self.mixing):
            drawn = {}
            for arm in self.before if arms else ():
                drawn[arm] = self.curve(arm, name)
            for i, arm in enumerate(arms):
                drawn[arm] = self.curve(arm, name, DASHES[i % 4])
                drawn[f"{arm}, weak"] = self.curve(arm, weak, "1 5")
            sides.append(drawn)
        charts = self.row(dict(zip(titles, sides, strict=False)), log)
        reference = dict(self.curve("sft-steps", name)[2]) if "sft-steps" in self.story else {}
        less = {}
        for i, arm in enumerate(arm for arm in self.same if arm != "sft-steps"):
            _, _, points = self.curve(arm, name)
            both = [(x, v - reference[x]) for x, v in points if x in reference]
            if len(both) == len(reference):
                less[arm] = (of_model(arm), DASHES[i % 4], both)
        return charts + self.row({titles[2]: less}, stages=False)

    def pictures(self):
        """{place on the page: Picture}"""
        if not self.mixing and not self.unmixed:
            charts = []
            for arm in self.story:
                colour, dash, points = self.curve(arm, "loss")
                points = [(x + (arm == "sft"), v) for x, v in points]
                charts += self.row({f"Loss, nats: {arm}": {arm: (colour, dash, points)}}, True,
                                   False)
            return dict(loss=Picture(charts, ""))
        found = dict(
            entropy=self.entropy(), gradient=self.gradient(),
            target=Picture(self.three("p_target", self.titles("Right token's probability")),
                           f"Mean over stage 3: {self.means('p_target', 4)}."),
            margin=Picture(self.three("margin", self.titles("Margin")),
                           f"Mean over stage 3: {self.means('margin', 2)}."),
            loss=Picture(self.three("loss", ("Loss, nats: plain training",
                                             "Loss on mixed logits, nats",
                                             "Loss less that of sft-steps"), log=True),
                         f"Mean over stage 3: {self.means('loss', 4)}."))
        if self.mixing:
            drawn = {arm: self.curve(arm, "affinity", DASHES[i % 4])
                     for i, arm in enumerate(self.mixing)}
            found["affinity"] = Picture(self.row({"Affinity of weak and strong": drawn},
                                                 stages=False),
                                        f"Mean over stage 3: {self.means('affinity', 4)}.")
            found["codes"] = self.codes()
        return {name: picture for name, picture in found.items() if picture.charts}

    def titles(self, words):
        return f"{words}: plain training", f"{words}: mixing", f"{words}: less sft-steps"

    def entropy(self):
        def curve(arm, name, dash=""):
            return self.curve(arm, name, dash)

        groups = {"Entropy, nats: plain training": {
            arm: curve(arm, "ent_strong", DASHES[max(0, i - len(self.before)) % 4])
            for i, arm in enumerate(self.before + self.unmixed)}}
        for arm in self.mixing:
            groups[f"Entropy, nats: {arm}"] = {
                **{before: curve(before, "ent_strong") for before in self.before},
                "strong": curve(arm, "ent_strong"), "weak": curve(arm, "ent_weak", "1 5"),
                "mix": curve(arm, "ent_mix", "7 3")}
        says = ""
        if self.mixing:
            strong, mix = (self.mean(self.chosen, f"ent_{part}") for part in ("strong", "mix"))
            says = (f"Mean over stage 3 of {self.chosen}: strong {number(strong)}, mix "
                    f"{number(mix)}: ")
            says += "the mix doubts more." if mix > 1.1 * strong else "hardly any difference."
        return Picture(self.row(groups, log=True), says)

    def gradient(self):
        says = f"Mean over stage 3: {self.means('gnorm_strong', 3)}."
        ours, plain_one = (self.mean(arm, "gnorm_strong") for arm in (self.chosen, "sft-steps"))
        if ours and plain_one:
            ratio = ours / plain_one
            says += (f" With mixing ({self.chosen}) it is {ratio:.2f} times that of plain "
                     f"training: the gradient is {'back' if ratio > 1.1 else 'not back'}. "
                     f"Mixing also multiplies it by λ = {self.lam:g}; that apart it is "
                     f"{ratio / self.lam:.2f} times as large.")
        charts = self.three("gnorm_strong", self.titles("Gradient norm"), True, "gnorm_weak")
        return Picture(charts, says)

    def codes(self):
        """The gap codes over training as areas."""
        charts, ends = [], []
        for arm in self.mixing:
            _, _, points = self.curve(arm, "codes")
            if not points:
                continue
            shares = [[100 * n / sum(counts) for n in counts] for _, counts in points]
            layers = {CODES[code]: (CODES[code], [share[code] for share in shares])
                      for code in (3, 2, 1)}
            xs = [x for x, _ in points]
            marks = [(xs[0], "start"), (2, "end")]
            charts.append(draw.inline(draw.areas(f"Tokens in a gap, %: {arm}", layers, xs, marks,
                                                 "share of the steps")))
            ends.append(f"{arm} from {sum(shares[0][1:]):.0f} to {sum(shares[-1][1:]):.0f} %")
        return Picture(charts, f"Tokens in a gap, first and last logged step: {', '.join(ends)}.")

    def in_words(self):
        """What mixing changed, for the head of the page."""
        if not self.mixing:
            return ""
        parts = {part: self.mean(self.chosen, f"ent_{part}") for part in ("weak", "strong", "mix")}
        return (f"In this run, over stage 3 of {self.chosen}: the weak model's entropy is "
                f"{number(parts['weak'])} nats, the model's {number(parts['strong'])}, the mix's "
                f"{number(parts['mix'])}.")


def validation(story):
    """Held-out loss against the step, where the log has it -> Picture, or None."""
    found = {arm: numbers["val_loss"] for arm, numbers in story.items() if "val_loss" in numbers}
    if not found:
        return None
    charts = []
    for title, arms in (("Held-out loss, nats: before stage 3", ("base", "sft")),
                        ("Held-out loss, nats: stage 3", set(found) - {"base", "sft"})):
        drawn = {arm: (of_model(arm), DASHES[i % 4], points)
                 for i, (arm, points) in enumerate(found.items()) if arm in arms}
        values = [v for *_, points in drawn.values() for _, v in points]
        if drawn:
            last = max(points[-1][0] for *_, points in drawn.values())
            low, high = min(values), max(values)
            charts.append(draw.inline(draw.curves(
                title, drawn, [(0, "0"), (last, plain(last))], "step", low,
                max(high, low + 1e-9), log=low > 0 and high > 5 * low)))
    best = min(found, key=lambda arm: min(v for _, v in found[arm]))
    step, least = min(found[best], key=lambda point: point[1])
    return Picture(charts, f"The least is {number(least, 4)}, {best} at step {step}.")


# -------------------------------------------------------------------------------------------------
# scores and gaps


def percent(ends):
    return [100 * v for v in ends]


def of_scores(rows):
    """Bars of each model, and their differences to plain training -> Pictures scores, families."""
    def bars(title, values, intervals):
        shown = [(r["model"], r["model"], 100 * value, percent(ends), None)
                 for r, value, ends in zip(rows, values, intervals, strict=True)]
        return draw.inline(draw.bars(title, shown, 100))

    charts = [bars("Right answers, %", [r["accuracy"] for r in rows],
                   [(r["low"], r["high"]) for r in rows])]
    compared = []
    for r in rows:
        less = {ref: mark for ref, mark in r["less"].items() if ref != r["model"]}
        if less and r["model"] not in ("base", "weak"):
            compared.append((r["model"], r["model"], less))
    best = max(rows, key=lambda r: r["accuracy"])
    says = f"Most right: {best['model']}, {100 * best['accuracy']:.1f} %."
    if compared:
        charts.append(draw.inline(draw.forest("Less plain training, points", {"": compared},
                                              REFERENCES)))
        marks = [mark for *_, less in compared for mark in less.values()]
        above, below = (sum(side * m > h for m, h in marks) for side in (1, -1))
        says += (f" Of {len(marks)} differences {above} lie above 0 with their interval, "
                 f"{below} below.")
    families = list(rows[0]["families"])
    pictures = dict(scores=Picture(charts, says))
    if len(families) > 1:
        trained = [r for r in rows if r["less"] and r["model"] not in ("base", "weak")] or rows
        spread = {f: max(r["families"][f] for r in trained) - min(r["families"][f] for r in trained)
                  for f in families}
        widest = max(spread, key=spread.get)
        low, high = (f(trained, key=lambda r: r["families"][widest]) for f in (min, max))
        pictures["families"] = Picture(
            [bars(f"{f}: right answers, %", [r["families"][f] for r in rows],
                  [r["intervals"][f] for r in rows]) for f in families],
            f"The trained models part most in {widest}: {low['model']} has "
            f"{100 * low['families'][widest]:.1f} %, {high['model']} "
            f"{100 * high['families'][widest]:.1f} %.")
    return pictures


def of_gaps(gaps, by_family):
    """Histogram of the entropy change, weak against live, where the sampling weight went."""
    tau = gaps.settings["tau"]
    moved = gaps.ent_live - gaps.ent_weak
    reach = max(2 * tau, 1e-6, moved.abs().max().item())

    def colour(low, high):
        return CODES[1] if high < -tau else CODES[2] if low > tau else CODES[0]

    counts = torch.histc(moved, 41, -reach, reach).tolist()
    clouds = []
    for code in range(4):
        here = (gaps.codes == code).nonzero()[:, 0]
        here = here[::max(1, len(here) // 400)]             # some of many, evenly
        clouds.append(torch.stack([gaps.ent_weak[here], gaps.ent_live[here]], 1).tolist())
    highest = max(1.0, gaps.ent_weak.max().item(), gaps.ent_live.max().item())
    rows = [(family, CODES[1], 100 * mass, None, 100 * share)
            for family, _, share, mass, *_ in by_family]
    most = 100 * max(max(share, mass) for _, _, share, mass, *_ in by_family)
    charts = [draw.histogram("Tokens by change of entropy", counts, reach, "live less weak, nats",
                             colour),
              draw.scatter("Entropy of the live model, nats", clouds, 1e-4, highest,
                           "entropy of the weak model, nats"),
              draw.bars("Share of the sampling weight, %", rows, most)]
    family, _, share, mass, *_ = max(by_family, key=lambda row: row[3] / row[2])
    says = (f"{(moved.abs() <= tau).float().mean():.0%} of the tokens moved by no more than "
            f"{tau:g} nats; of all, the live model is surer at {(moved < 0).float().mean():.0%}. "
            f"Most is gained by {family}: {mass:.0%} of the drawing instead of {share:.0%}.")
    return Picture([draw.inline(chart) for chart in charts], says)
