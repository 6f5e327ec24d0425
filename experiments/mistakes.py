"""When does mixing help? Where the fine-tuning data still carry the weak model's own mistakes.

The optimum of the loss on mixed logits is z_s = (z* - (1 - lam) z_w) / lam. With q the share of
right solutions in the data and w the weak model's probability of the right one, plain SFT follows
the majority (right if q > 1/2), mixing is right as soon as logit(q) > (1 - lam) logit(w). This is
debiasing by a product of experts (Clark et al. 2019, He et al. 2019), seen from WMSS.

Declared before any row was made, in six rounds (a few seeds on validation had suggested each):
built-in tasks, math but for rounds 4 and 6, lambda 0.5, rate 3.1e-4 for all arms, stage 3 of 12
epochs, ten fresh seeds (10 to 19; round 3: 20 to 29), 1,400 test problems with true answers.
1. w = 0.05. Where q = 0.3 mixing must win: joint less sft-flops and joint less sft-steps (primary),
   frozen less both, joint less temperature and less permuted. At q = 0.7 theory sees no gain.
2. w = 0.05, q = 0.5: mixing must win, the same primary; frozen less both; and, with no sign
   foreseen, reweighted less sft-flops and less frozen: is it the mixing, or knowing which labels
   the weak model would have given? No gain at q = 0.9, where SFT is right, nor at w = 0.5, q = 0.3,
   where the weak model has no mistake of its own.
3. w = 0.05, mixing in entropy gaps alone, with a frozen weak model (wmss-mask): at q = 0.3 above
   sft-flops, sft-steps and frozen; at q = 0.9 above frozen. No sign is foreseen of wmss-mask less
   reweighted, of reweighted less sft-flops, and at q = 0.9 of wmss-mask less plain SFT.
4. Code, w = 0.05: at q = 0.3 and 0.5 joint and frozen must be above sft-flops and sft-steps (all
   four primary). No sign is foreseen of joint less permuted, of wmss-mask (frozen weak model) and
   reweighted less frozen, and of anything at q = 0.9, where both sides are right.
   Seen afterwards: the flag that froze the mask's weak model froze that of permuted, too, and gave
   sft-flops what frozen costs, 0.69 of joint. So both are made again as --weak joint has them (for
   the FLOPs of wmss, a little more than joint's), with wmss, the paper's method. Declared before
   these rows: joint above sft-flops-joint at q = 0.3 and 0.5; no sign is foreseen of joint less
   permuted-joint, nor of wmss less sft-flops-joint and less sft-steps. (Not declared: frozen less
   permuted, whose rows were there.)
5. and 6. (code, seeds 30 to 39: another machine made round 4's M1s otherwise) The full method by
   two formulas, w = 0.05: the released code's (wmss), version 1 of the paper's (wmss-v1). On seed
   50 nearly all samples have become less sure; the few others get 80 % of the draws by the first,
   as if D had 7 to 33 samples of 1,000, by the second 387 to 676. So wmss-v1 must be above wmss. No
   sign is foreseen less joint and SFT (5: both; 6: for wmss's FLOPs). Amended at 8a7b86c, unread.
Stars by Holm over the differences of a point where a gain is foreseen. All of it is published.

    python experiments/mistakes.py --allow-code-execution --seeds 10 11 12    # rows, resumable
    python experiments/mistakes.py --publish   # of points with all rows: mistakes.md, mistakes.svg
"""

import contextlib
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from analyse import HERE, crossed, declared, declared_table, pack, parser_of, table, verdicts
from figures import stacked

import train_wmss
from plumbing import draw
from plumbing.cli import program
from plumbing.files import append_lines, commit, whole_lines, write_text

ROWS = os.path.join(HERE, "mistakes.jsonl")
SEEDS = dict.fromkeys((1, 2, 4, 5), range(10, 20)) | {3: range(20, 30), 6: range(30, 40)}
# made with --weak joint, also at points where the mask has a frozen weak model
TRAINED_WEAK = ("sft-flops-joint", "permuted-joint", "wmss", "wmss-v1")
MODELS = ("base", "sft", "sft-steps", "sft-flops", "temperature", "permuted", "joint", "frozen",
          "wmss-mask", "reweighted", *TRAINED_WEAK)
PRIMARY = [("joint", "sft-flops"), ("joint", "sft-steps")]
COMMON = [*PRIMARY, ("frozen", "sft-flops"), ("frozen", "sft-steps")]
CODE = [("joint", "sft-flops-joint"), *COMMON[1:]]
FORMULAS = [("wmss-v1", "wmss"), ("wmss-v1", "joint"), ("wmss", "joint")]
MASK = [("wmss-mask", reference) for reference in ("frozen", "sft-flops", "sft-steps")]
ROUNDS = {1: [*COMMON, ("joint", "temperature"), ("joint", "permuted")],
          2: [*COMMON, ("reweighted", "sft-flops"), ("reweighted", "frozen")],
          3: [*MASK, ("wmss-mask", "reweighted"), ("reweighted", "sft-flops")],
          4: [*CODE, ("joint", "permuted-joint"), ("wmss", "sft-flops-joint"),
              ("wmss", "sft-steps"), ("frozen", "permuted"), ("wmss-mask", "frozen"),
              ("reweighted", "frozen")],
          5: [*FORMULAS, *((arm, ref) for arm in ("wmss-v1", "wmss")
                           for ref in ("sft-flops", "sft-steps"))],
          6: [*FORMULAS, *((arm, "sft-flops-joint") for arm in ("wmss-v1", "wmss", "joint"))]}


class Point(NamedTuple):
    """Shares of mistakes in the base's corpus (1 - w) and in the fine-tuning set (1 - q)."""
    noise: float
    label_noise: float
    round: int
    wins: list | None           # the differences that must be above 0; None: no sign is foreseen
    task: str = "toy-math"

    def __str__(self):
        more = {3: ", round 3", 4: ", code", 5: ", resampled", 6: ", code, resampled"}
        return f"w = {1 - self.noise:.2g}, q = {1 - self.label_noise:.1f}{more.get(self.round, '')}"

    @property
    def models(self):
        compared = {"base", "sft"}.union(*ROUNDS[self.round])
        return [model for model in MODELS if model in compared]

    def flags(self, model):
        """Flags of the run that makes a model, apart from its arm."""
        frozen = "wmss-mask" in self.models and model not in TRAINED_WEAK
        more = ("--weights", "v1") if model == "wmss-v1" else ()
        return "--weak", "frozen" if frozen else "joint", *more

    def of(self, rows):
        older = dict(noise=0.95, task="toy-math")               # rows of which do not say so
        mine = dict(noise=self.noise, label_noise=self.label_noise, task=self.task)
        return [r for r in rows if (older | r).items() >= mine.items()
                and r["seed"] in SEEDS[self.round]]

    def differences(self, rows):
        """{(arm, reference): (mean, half width, Holm's p)}, in points."""
        models = {}
        for r in self.of(rows):
            models.setdefault(r["model"], {})[r["seed"]] = r
        return declared(models, ROUNDS[self.round])

    def accuracies(self, rows):
        """{model: (mean, half its 95 % interval over seeds and problems)} in %."""
        return {model: crossed(100 * np.array([verdicts(r) for r in self.of(rows)
                                               if r["model"] == model]))[:2]
                for model in self.models}

    def verdict(self, rows):
        """What was foreseen for this point, and whether the rows say so."""
        found = self.differences(rows)
        if self.wins is None:
            return "no sign was foreseen"
        if self.wins:
            words = "above 0: " + ", ".join(f"{arm} less {ref}" for arm, ref in self.wins)
            holds = all(found[pair][0] > 0 and found[pair][2] < 0.05 for pair in self.wins)
        else:
            words = "mixing gains nothing"
            holds = not any(mean - half > 0 for mean, half, _ in map(found.get, PRIMARY))
        return f"{words}; this **{'holds' if holds else 'is not confirmed'}**"


POINTS = (Point(0.95, 0.7, 1, PRIMARY), Point(0.95, 0.3, 1, []), Point(0.95, 0.5, 2, PRIMARY),
          Point(0.95, 0.1, 2, []), Point(0.5, 0.7, 2, []), Point(0.95, 0.7, 3, MASK),
          Point(0.95, 0.1, 3, MASK[:1]), Point(0.95, 0.7, 4, CODE, "toy-code"),
          Point(0.95, 0.5, 4, CODE, "toy-code"), Point(0.95, 0.1, 4, None, "toy-code"),
          *(Point(0.95, noise, 5, FORMULAS[:1]) for noise in (0.7, 0.5, 0.3, 0.1)),
          *(Point(0.95, noise, 6, FORMULAS[:1], "toy-code") for noise in (0.7, 0.5, 0.1)))


def read_rows(path=ROWS):
    return [json.loads(line) for line in whole_lines(path)]


def run_seed(seed, n, rows, save, extra=()):
    """What a seed still lacks -> its rows, saved point by point in a file; one base a corpus."""
    made = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        bases = {}
        for point, flags in [(p, f) for p in POINTS             # base and sft are in the first
                             for f in dict.fromkeys(map(p.flags, p.models))]:
            known = point.of([*rows, *made])
            there = {r["model"]: r["correct"] for r in known if r["seed"] == seed}
            models = [m for m in point.models if point.flags(m) == flags and m not in there]
            if seed not in SEEDS[point.round] or not models:
                continue
            corpus = point.task, point.noise
            name = "-".join(map(str, (*corpus, point.label_noise, *flags[1::2], point.round)))
            arms = [m.removesuffix("-joint").removesuffix("-v1") for m in models]
            with contextlib.redirect_stdout(io.StringIO()):
                train_wmss.main(["--preset", "mistakes", "--seed", str(seed), "--name", name,
                                 "--noise", str(point.noise), "--label-noise",
                                 str(point.label_noise), *flags, "--arm",
                                 *[arm for arm in arms if arm not in ("base", "sft")],
                                 "--threads", "1", "--task", point.task, "--score-n", str(n),
                                 *bases.get(corpus, ()), *extra])
            bases.setdefault(corpus, ("--base", f"out/{name}/base.pt"))
            for model, arm in dict.fromkeys([("sft", "sft"), *zip(models, arms, strict=True)]):
                with open(f"out/{name}/answers/{arm}.jsonl") as f:
                    right = [json.loads(line)["correct"] for line in f]
                if there.get(model, pack(right)) != pack(right):
                    raise ValueError(f"seed {seed}, {point}: expected the M1 of the rows that are "
                                     "there, found another (other hardware?); make all anew")
                if model in models:
                    made.append(dict(seed=seed, noise=point.noise, label_noise=point.label_noise,
                                     task=point.task, model=model, n=len(right),
                                     correct=pack(right), commit=commit(),
                                     accuracy=round(sum(right) / len(right), 6)))
            append_lines(save, [json.dumps(r) for r in made[-len(models):]])
    return made


def tables(points, rows):
    """The rows as Markdown: of each point the accuracies, then the declared differences."""
    parts = []
    for point in points:
        models = [[model, f"{mean:.2f} [{mean - half:.2f}, {mean + half:.2f}]"]
                  for model, (mean, half) in point.accuracies(rows).items()]
        n = point.of(rows)[0]["n"]
        parts += [f"**{point}**, {len(SEEDS[point.round])} seeds, {n:,} problems",
                  table(["model", "right, %"], models),
                  declared_table(point.differences(rows), point.wins)]
    return "\n\n".join(parts) + "\n"


def figure(points, rows):
    """The declared differences at each point -> text of an SVG."""
    groups = {str(point): [(f"{arm} less {reference}", arm.removesuffix("-v1"), {"": (mean, half)})
                           for (arm, reference), (mean, half, _) in point.differences(rows).items()]
              for point in points}
    return stacked([draw.forest("Declared differences, points", groups, ("",))],
                   "mixing less plain training where the data carry mistakes")


def in_words(points, rows):
    """What the rows say of each prediction."""
    lines = [f"- {point}: {point.verdict(rows)}" for point in points]
    return ("**Predictions declared before any row** (`mistakes.py`): w is the share of right "
            "solutions in the base's corpus, q that in the fine-tuning set, of those that can be "
            "wrong (math: two thirds); all else makes the family's usual mistake. Stars: Holm over "
            "a point's differences, where a gain is foreseen. It holds if all that were named have "
            "one; no gain, if neither `joint` less `sft-flops` nor less `sft-steps` has its "
            "interval above 0. On code `frozen` less `permuted` was not declared; "
            "`sft-flops-joint` and `permuted-joint` were, but after the rows of `joint`, which is "
            "held against them.\n\n" + "\n".join(lines))


def whole(rows):
    """The points that have all their rows."""
    found = []
    for point in POINTS:
        wanted = {(seed, model) for seed in SEEDS[point.round] for model in point.models}
        if wanted <= {(r["seed"], r["model"]) for r in point.of(rows)}:
            found.append(point)
    return found


def publish(rows, into=HERE):
    """mistakes.md and mistakes.svg of the points that have all rows; ValueError if none has."""
    points = whole(rows)
    if not points:
        raise ValueError("--publish: expected all rows of a point, found none; run the seeds first")
    commits, seeds = ({r[key] for point in points for r in point.of(rows)}
                      for key in ("commit", "seed"))
    text = ("# Where the data carry the weak model's mistakes\n\nWritten by `python experiments/"
            f"mistakes.py --publish` from mistakes.jsonl (made by `--seeds {min(seeds)} ... "
            f"{max(seeds)}`, commit {', '.join(sorted(commits))}); do not edit.\n\n"
            f"{in_words(points, rows)}\n\n![The differences below, with their intervals]"
            f"(mistakes.svg)\n\n{tables(points, rows)}")
    write_text(os.path.join(into, "mistakes.md"), text)
    write_text(os.path.join(into, "mistakes.svg"), figure(points, rows))


@program("mistakes")
def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--workers", type=int, default=1, help="seeds at a time (1)")
    parser.add_argument("-n", type=int, default=1400, help="test problems (1,400)")
    parser.add_argument("--allow-code-execution", action="store_true",
                        help="rounds 4 and 6 run the programs that models write, confined")
    parser.add_argument("--publish", action="store_true",
                        help="write mistakes.md and mistakes.svg of the points that are whole")
    args = parser.parse_args(argv)
    if {*args.seeds} & {*SEEDS[4], *SEEDS[6]} and not args.allow_code_execution:
        raise ValueError("--allow-code-execution: rounds 4 and 6 run programs of models; allow it")
    consent = ["--allow-code-execution"] * args.allow_code_execution
    run = partial(run_seed, n=args.n, rows=read_rows(), save=ROWS, extra=consent)
    with ProcessPoolExecutor(args.workers) as pool:
        list(pool.map(run, dict.fromkeys(args.seeds)))
    if args.publish:
        publish(read_rows())


if __name__ == "__main__":
    main()
