"""When does mixing help? Where the fine-tuning data still carry the weak model's own mistakes.

The optimum of the loss on mixed logits is z_s = (z* - (1 - lam) z_w) / lam. With q the share of
right solutions in the data and w the weak model's probability of the right one, plain SFT follows
the majority (right if q > 1/2), mixing is right as soon as logit(q) > (1 - lam) logit(w). This is
debiasing by a product of experts (Clark et al. 2019, He et al. 2019), seen from WMSS.

Declared before any row was made (three seeds on validation had suggested it, with the rate):
- built-in math task, base trained on a corpus with 95 % mistakes, lambda 0.5, rate 3.1e-4 for all
  arms, stage 3 of 12 epochs, ten fresh seeds (10 to 19), 1,400 test problems with true answers;
- at q = 0.3 mixing must win: joint less sft-flops and joint less sft-steps (primary); frozen less
  both, joint less temperature and less permuted (secondary); stars by Holm over these six;
- at q = 0.7 theory sees no gain: the same differences, no star whatever they are.
Whatever comes out is published here.

    python experiments/mistakes.py --seeds 10 11 12 13 14 15 16 17 18 19      # rows, resumable
    python experiments/mistakes.py --table                                    # what they say
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from analyse import crossed, holm, pack, unpack

import train_wmss
from plumbing.files import commit

HERE = os.path.dirname(os.path.abspath(__file__))
ROWS = os.path.join(HERE, "mistakes.jsonl")
NOISES = (0.7, 0.3)                             # of the labels: q = 0.3 and 0.7
MODELS = ("base", "sft", "sft-steps", "sft-flops", "temperature", "permuted", "joint", "frozen")
DECLARED = [("joint", "sft-flops"), ("joint", "sft-steps"), ("frozen", "sft-flops"),
            ("frozen", "sft-steps"), ("joint", "temperature"), ("joint", "permuted")]


def read_rows(path=ROWS):
    if not os.path.exists(path):
        return []
    with open(path) as f:
        return [json.loads(line) for line in f]


def run_seed(seed, n, extra=()):
    """Both points of one seed, from one base -> rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        base = []
        for noise in NOISES:
            name = f"noise-{noise}"
            with contextlib.redirect_stdout(io.StringIO()):
                train_wmss.main(["--preset", "mistakes", "--seed", str(seed), "--name", name,
                                 "--label-noise", str(noise), "--threads", "1",
                                 "--score-n", str(n), *base, *extra])
            base = ["--base", f"out/noise-{NOISES[0]}/base.pt"]
            for model in MODELS:
                with open(f"out/{name}/answers/{model}.jsonl") as f:
                    right = [json.loads(line)["correct"] for line in f]
                rows.append(dict(seed=seed, label_noise=noise, model=model, n=len(right),
                                 accuracy=round(sum(right) / len(right), 6), correct=pack(right),
                                 commit=commit()))
        os.chdir(HERE)
    return rows


def differences(rows, noise):
    """{(arm, reference): (mean, half width, p)} at one share of mistakes, in points."""
    right = {(r["model"], r["seed"]): unpack(r["correct"], r["n"]) for r in rows
             if r["label_noise"] == noise}
    seeds = sorted({seed for _, seed in right})
    found = {}
    for arm, reference in DECLARED:
        d = [[int(a) - int(b) for a, b in zip(right[arm, s], right[reference, s], strict=True)]
             for s in seeds]
        mean, half, p = crossed(d)
        found[arm, reference] = (100 * mean, 100 * half, p)
    return found


def table(rows):
    """The rows as Markdown: accuracies, then the declared differences."""
    lines = []
    for noise in NOISES:
        here = [r for r in rows if r["label_noise"] == noise]
        if not here:
            continue
        seeds = len({r["seed"] for r in here})
        lines += [f"**q = {1 - noise:.1f}**, {seeds} seeds, {here[0]['n']:,} problems", "",
                  "| model | right, % (mean and range over seeds) |", "|---|---|"]
        for model in MODELS:
            values = [100 * r["accuracy"] for r in here if r["model"] == model]
            mean = sum(values) / len(values)
            lines.append(f"| {model} | {mean:.2f} ({min(values):.2f} to {max(values):.2f}) |")
        found = differences(rows, noise)
        adjusted = holm([p for _, _, p in found.values()])
        lines += ["", "| difference | points [95 % interval] | p (Holm) |", "|---|---|---|"]
        for (arm, reference), (mean, half, _), p in zip(found, found.values(), adjusted,
                                                        strict=True):
            star = "*" if noise == NOISES[0] and p < 0.05 else ""
            lines.append(f"| {arm} less {reference} | {mean:+.2f} [{mean - half:+.2f}, "
                         f"{mean + half:+.2f}]{star} | {p:.2g} |")
        lines.append("")
    return "\n".join(lines)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    parser.add_argument("--workers", type=int, default=1, help="seeds at a time (1)")
    parser.add_argument("-n", type=int, default=1400, help="test problems (1,400)")
    parser.add_argument("--table", action="store_true", help="print what the rows say")
    args = parser.parse_args(argv)
    done = {r["seed"] for r in read_rows()}
    seeds = [seed for seed in args.seeds if seed not in done]
    with ProcessPoolExecutor(args.workers) as pool:
        futures = [pool.submit(run_seed, seed, args.n) for seed in seeds]
        for future in futures:
            rows = future.result()
            with open(ROWS, "a") as f:
                f.write("".join(json.dumps(row) + "\n" for row in rows))
    if args.table:
        print(table(read_rows()))


if __name__ == "__main__":
    main()
