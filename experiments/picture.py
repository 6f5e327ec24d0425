"""The README's picture: samples of the data, each token coloured by its entropy gap -> an SVG.

    python experiments/picture.py --weak out/toy/base.pt --live out/toy/sft.pt --ids 877 26 \\
        --out docs/gaps.svg

Above each token stand its two entropies, the weak model's as an outline and the live model's
filled; below it a mark says again what the colour says.
"""

import html
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from figures import stacked

from entropy import find_gaps, load_pair
from model import read_config
from plumbing import draw
from plumbing.cli import parser_of, program
from plumbing.draw import CODES, shape, text
from plumbing.files import write_text
from plumbing.report import tokens_with_codes
from plumbing.tasks import tokenizer_of, training_set
from plumbing.tokenizer import fingerprint

MEANING = ("both are sure", "surer than the weak model was",
           "less sure than the weak model was", "neither of the two is sure")
MARGIN, CELL, BARS = 12, 9.6, 36   # pixels; BARS: the tallest bar
PER_LINE = int((draw.WIDTH - 2 * MARGIN) / CELL)                 # tokens


def token(x, y, shown, code):
    """One token on the base line y, in a box of its colour where it is in a gap."""
    back = ""
    if code:
        back = draw.box(x + .4, y - 14, CELL - .8, 18, CODES[code], 'rx="2" fill-opacity=".25"')
    css = ' class="soft" style="fill:currentColor"' if code is None else ""
    return (f'{back}<text x="{x + CELL / 2:.1f}" y="{y}" font-size="15" text-anchor="middle" '
            f'font-family="monospace"{css}>{html.escape(shown)}</text>')


def bars(x, y, weak, live, code, highest):
    """The two entropies of a token, standing on y."""
    out = []
    for left, entropy, css in ((x + 1, weak, 'fill-opacity="0" stroke="currentColor"'),
                               (x + CELL / 2, live, "")):
        height = entropy / highest * BARS
        if height >= 0.5:
            out.append(draw.box(left, y - height, CELL / 2 - 1, height, CODES[code], css))
    return "".join(out)


def picture(gaps, samples, enc, chosen):
    """SVG of the samples with these indices."""
    shown = [list(tokens_with_codes(gaps, samples[i], i, enc)) for i in chosen]
    here = [k for parts in shown for _, _, k in parts if k is not None]
    highest = float(max(gaps.ent_weak[here].max(), gaps.ent_live[here].max()))
    out, y = [], 18
    for i, parts in zip(chosen, shown, strict=True):
        out.append(text(MARGIN, y, f"sample {samples[i].id}, family {samples[i].family}"))
        for start in range(0, len(parts), PER_LINE):
            y += BARS + 26
            for place, (word, code, k) in enumerate(parts[start:start + PER_LINE]):
                x = MARGIN + place * CELL
                out.append(token(x, y, "⏎" if word == enc.decode([enc.end_id]) else word, code))
                if code is not None:
                    out.append(bars(x, y - 18, float(gaps.ent_weak[k]), float(gaps.ent_live[k]),
                                    code, highest))
                    out.append(shape(code, [(x + CELL / 2, y + 12)]) if code else "")
        y += 38
    for code in (1, 2, 3, 0):
        out.append(shape(code, [(MARGIN + 5, y - 4)]) if code else "")
        out.append(text(MARGIN + 18, y, f"{CODES[code]}: {MEANING[code]}"))
        y += 18
    out.append(text(MARGIN + 18, y, "paler: the question, which is not trained on"))
    out.append(text(MARGIN, y + 24, "bars: entropy of the weak model (outline) and of"))
    out.append(text(MARGIN, y + 40, f"the live one (filled); the tallest is {highest:.2f} nats"))
    title = "solutions of the built-in task, each token coloured by entropy gap"
    return stacked([(y + 52, out, "")], title)


@program("picture")
def main(argv=None):
    parser = parser_of(__doc__)
    parser.add_argument("--weak", required=True, help="checkpoint of the weak snapshot")
    parser.add_argument("--live", required=True, help="checkpoint of the live model")
    parser.add_argument("--ids", type=int, nargs="+", required=True, metavar="ID",
                        help="ids of the samples, as entropy.py --show gives them")
    parser.add_argument("--out", required=True, help="file.svg")
    args = parser.parse_args(argv)
    enc = tokenizer_of(read_config(args.live)[1])
    weak, live, meta = load_pair(args.weak, args.live, fingerprint(enc))
    cfg = meta["config"]
    samples = training_set(cfg, enc)
    flags = {name: cfg[name] for name in ("tau", "h", "alpha", "beta", "gamma")}
    gaps = find_gaps(weak, live, samples, kind=cfg["weights"], **flags)
    strangers = [i for i in args.ids if not 0 <= i < len(samples)]
    if strangers:
        raise ValueError(f"--ids: expected numbers from 0 to {len(samples) - 1}, found {strangers}")
    write_text(args.out, picture(gaps, samples, enc, args.ids))


if __name__ == "__main__":
    main()
