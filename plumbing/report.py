"""What a run shows: the table of scores, the table of gaps, samples coloured by gap code, and the
page report.html, which needs no network.

`gaps` is an entropy.Gaps throughout.
"""

import html
import math

import torch

CODES = ("settled", "consolidating", "regressing", "hard")
TERMINAL_COLOURS = ("\x1b[90m", "\x1b[32m", "\x1b[31m", "\x1b[33m")     # grey, green, red, yellow
PAGE_COLOURS = ("#999999", "#2e7d32", "#c62828", "#b26a00")             # the same on white
CURVE_COLOURS = ("#777", "#1565c0", "#c62828", "#2e7d32", "#b26a00", "#6a1b9a")
STYLE = """body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}
svg{max-width:100%}pre,.sample{font:13px/1.6 monospace;overflow-x:auto}
.key span{margin-right:1.5em}"""


def score_table(rows):
    """The rows of scores.json as text.

    FLOPs and seconds are those of the training of a row after the checkpoint that it starts from.
    """
    families = list(rows[0]["families"])
    head = f"{'model':14s}" + "".join(f"{family:>8s}" for family in families)
    lines = [head + f"{'all':>8s}   {'95 % interval':14s}{'TFLOPs':>8s}{'seconds':>9s}"]
    for r in rows:
        spent = f"{'-':>8s}{'-':>9s}"
        if r["flops"] is not None:
            spent = f"{r['flops'] / 1e12:8.3f}{r['seconds']:9.1f}"
        name = "wmss (strong)" if r["model"] == "wmss" else r["model"]
        shares = "".join(f"{100 * r['families'][family]:8.1f}" for family in families)
        interval = f"{100 * r['low']:5.2f} - {100 * r['high']:5.2f}"
        lines.append(f"{name:14s}{shares}{100 * r['accuracy']:8.2f}   {interval} {spent}")
    return "\n".join(lines)


def gap_table(gaps, samples):
    """Tokens and mean entropies by gap code; shares of tokens and of sampling weight by family."""
    family_of_token = [s.family for s in samples for _ in range(int(s.loss[1:].sum()))]
    weak, live, codes = gaps.ent_weak, gaps.ent_live, gaps.codes
    lines = [f"{len(samples):,} samples, {len(weak):,} loss tokens | mean entropy (nats): "
             f"weak {weak.mean():.4f}, live {live.mean():.4f}",
             f"{'code':15s} {'tokens':>9s} {'share':>7s} {'H weak':>8s} {'H live':>8s}"]
    for code, name in enumerate(CODES):
        here = codes == code
        means = f"{'-':>8s} {'-':>8s}"
        if here.any():
            means = f"{weak[here].mean():8.4f} {live[here].mean():8.4f}"
        share = here.float().mean()
        lines.append(f"{code} {name:13s} {int(here.sum()):9,d} {share:7.1%} {means}")
    names = " ".join(f"{name:>13s}" for name in CODES)
    lines.append(f"\n{'family':15s} {'samples':>9s} {'mass':>7s} {'H weak':>8s} {'H live':>8s} "
                 f"{names}")
    for family in dict.fromkeys(s.family for s in samples):
        here = torch.tensor([f == family for f in family_of_token])
        own = torch.tensor([s.family == family for s in samples])
        shares = " ".join(f"{(codes[here] == code).float().mean():13.1%}" for code in range(4))
        lines.append(f"{family:15s} {int(own.sum()):9,d} {gaps.weights[own].sum():7.1%} "
                     f"{weak[here].mean():8.4f} {live[here].mean():8.4f} {shares}")
    return "\n".join(lines)


def heaviest(gaps, samples, n):
    """Indices of n samples to look at: the one with the largest weight of each family first."""
    seen, ranked = {}, []
    for i in gaps.weights.argsort(descending=True).tolist():
        family = samples[i].family
        seen[family] = seen.get(family, 0) + 1
        ranked.append((seen[family], len(ranked), i))
    return [i for _, _, i in sorted(ranked)[:n]]


def tokens_with_codes(gaps, sample, i, enc):
    """(text, code, index into the flat vectors) of each token; code None: it carries no loss."""
    k = int(gaps.offsets[i])
    for token, counts in zip(sample.tokens.tolist(), sample.loss.tolist(), strict=True):
        text = enc.decode([token])
        if counts:
            yield text, int(gaps.codes[k]), k
            k += 1
        else:
            yield text, None, None


def show_samples(gaps, samples, enc, n, plain):
    """The n heaviest samples as text, each loss token coloured by its code; plain: token^code."""
    def paint(text, code):
        if code is None:
            return text
        return f"{text}^{code}" if plain else f"{TERMINAL_COLOURS[code]}{text}\x1b[0m"

    lines = ["colours: " + "  ".join(paint(name, code) for code, name in enumerate(CODES))]
    for i in heaviest(gaps, samples, n):
        s = samples[i]
        parts = tokens_with_codes(gaps, s, i, enc)
        text = "".join(paint(text, code) for text, code, _ in parts)
        lines.append(f"#{s.id} {s.family}, weight {gaps.weights[i] * len(samples):.1f}x uniform, "
                     f"entropy {gaps.mean_weak[i]:.3f} -> {gaps.mean_live[i]:.3f}\n  {text}")
    return "\n".join(lines)


def loss_curves(log, width=760, height=260):
    """SVG: training loss of each arm over the share of its steps done, from log.jsonl's records."""
    arms = {}
    for r in log:
        if r.get("loss"):
            arms.setdefault(r["arm"], []).append((r["step"], math.log10(r["loss"])))
    if not arms:
        return ""
    values = [y for curve in arms.values() for _, y in curve]
    low, high = min(values), max(values)

    def scale(y):
        return 20 + (high - y) / max(1e-9, high - low) * (height - 50)

    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss">']
    ticks = [m * 10.0 ** e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)]
    for value in ticks:
        tick = math.log10(value)
        if low <= tick <= high:
            y = scale(tick)
            out.append(f'<line x1="45" x2="{width - 130}" y1="{y:.1f}" y2="{y:.1f}" '
                       f'stroke="#ddd"/><text x="40" y="{y + 4:.1f}" font-size="11" '
                       f'text-anchor="end">{value:g}</text>')
    for k, (arm, curve) in enumerate(arms.items()):
        colour, last = CURVE_COLOURS[k % len(CURVE_COLOURS)], curve[-1][0]
        points = []
        for step, y in curve:
            points.append(f"{45 + step / last * (width - 175):.1f},{scale(y):.1f}")
        y = 24 + 18 * k
        out.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" '
                   f'stroke-width="2"/><line x1="{width - 118}" x2="{width - 98}" y1="{y}" '
                   f'y2="{y}" stroke="{colour}" stroke-width="3"/><text x="{width - 92}" '
                   f'y="{y + 4}" font-size="12">{html.escape(arm)}</text>')
    out.append(f'<text x="45" y="{height - 8}" font-size="11">share of the steps done, 0 to 1; '
               "loss per token in nats</text></svg>")
    return "".join(out)


def html_report(title, table, log, gaps=None, samples=(), enc=None, n=8):
    """report.html: the table of scores, the loss curves, the gap table, n samples with their codes.

    The tooltip of a token shows its two entropies. gaps None: a run that measured none.
    """
    title = html.escape(title)
    page = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>",
            f"<h1>{title}</h1><h2>Scores</h2><pre>{html.escape(table)}</pre>",
            f"<h2>Training loss</h2>{loss_curves(log)}"]
    if gaps is None:
        return "\n".join(page)

    def paint(text, code, tip=""):
        colour = PAGE_COLOURS[code]
        return f'<b style="color:{colour}" title="{tip}">{html.escape(text)}</b>'

    key = " ".join(f"<span>{paint(name, code)}</span>" for code, name in enumerate(CODES))
    page.append(f"<h2>Gaps between {html.escape(gaps.weak)} and {html.escape(gaps.live)}</h2>"
                f"<pre>{html.escape(gap_table(gaps, samples))}</pre><p class=key>{key}</p>")
    for i in heaviest(gaps, samples, n):
        s, parts = samples[i], []
        for text, code, k in tokens_with_codes(gaps, s, i, enc):
            if code is None:
                parts.append(html.escape(text))
            else:
                tip = f"{gaps.ent_weak[k]:.3f} -&gt; {gaps.ent_live[k]:.3f} nats"
                parts.append(paint(text, code, tip))
        times = gaps.weights[i] * len(samples)
        page.append(f"<p class=sample>#{s.id} {html.escape(s.family)}, {times:.1f}x uniform<br>"
                    f"{''.join(parts)}</p>")
    return "\n".join(page)
