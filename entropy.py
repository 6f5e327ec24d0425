"""Entropy dynamics: where did the model's uncertainty move between a weak snapshot and the live model?

Token entropies of both models over exactly the training batches (paper v2, section 3.2 and eq. 7), from them one sampling
weight per sample and one gap code per token: settled, consolidating, regressing, hard.

    python entropy.py --weak out/toy/base.pt --live out/toy/sft.pt            # counts and entropies per code and family
    python entropy.py --weak out/toy/base.pt --live out/toy/sft.pt --show 3   # and three samples, coloured by code

Shapes: N samples, M loss tokens of all samples together, C width, V vocabulary. Entropies are in nats.
"""

import argparse
import html
import math
import os

import torch
import torch.distributed as dist
import torch.nn.functional as F

from data import fingerprint, micro_batches, tokenizer_of, training_set
from model import chunk_of, load_checkpoint, read_config, tiles

CODES = ("settled", "consolidating", "regressing", "hard")


@torch.no_grad()
def token_entropy(hidden, weight, chunk_rows=None):
    """Entropy of softmax(hidden @ weight.T) per row, paper v2 eq. 7 -> hidden.shape[:-1], nats.

    hidden (..., C), weight (V, C). At most chunk_rows * V logits exist at a time (default: 128 MB of them). Half precision
    is raised to fp32 before the head, also under autocast: a logit rounded to bf16 moves the entropy by more than a gap is wide.
    H = log sum e^z - sum softmax(z) z, with z shifted so that its largest is 0: then both terms are >= 0, and a
    distribution sharpened to 1e-30 still has a positive entropy. log(p + eps) would report eps instead.

    Both sums run over tiles of the vocabulary, rescaled whenever a tile brings a new maximum: logits that never leave the
    cache make entropies cost 3 % more than the matrix product alone (CPU, V 49,152; all of V at once: 20 % more).

    >>> token_entropy(torch.zeros(1, 8), torch.ones(4, 8)).exp()
    tensor([4.])
    """
    rows, out = hidden.reshape(-1, hidden.size(-1)), []
    exact = torch.promote_types(hidden.dtype, torch.float32)                  # float64 stays float64
    weight = weight.to(exact)
    with torch.autocast(hidden.device.type, enabled=False):
        for h in rows.split(chunk_of(len(weight)) if chunk_rows is None else chunk_rows):
            top = total = dot = None                                          # so far: max z, sum e^(z - top), sum e^(z - top) (z - top)
            for w in tiles(weight):
                z = F.linear(h.to(exact), w)                                  # (chunk, tile)
                high = z.amax(-1, keepdim=True) if top is None else torch.maximum(z.amax(-1, keepdim=True), top)
                z = z.sub_(high).clamp_(min=-1e4)                             # p is 0 there, and 0 * -inf would be NaN
                p = z.exp()
                sums = p.sum(-1, keepdim=True), p.mul_(z).sum(-1, keepdim=True)
                if top is not None:
                    fall = (top - high).clamp_(min=-1e4)
                    sums = sums[0] + total * fall.exp(), sums[1] + (dot + total * fall) * fall.exp()
                top, (total, dot) = high, sums
            out.append((total.log() - dot / total)[:, 0])
    return torch.cat(out).reshape(hidden.shape[:-1]) if out else hidden.new_zeros(hidden.shape[:-1])


def token_statistics(z_strong, y, z_weak=None, lam=0.5, tau=0.0, h=0.0):
    """What a model knows of n tokens, as means over them -> dict of numbers, for the log.

    z_* (n, V) logits, y (n,) targets, n >= 1. margin: logit of the target less the best other; p_target; ent_strong in nats. With
    z_weak also ent_weak, ent_mix of softmax(lam z_strong + (1 - lam) z_weak), affinity C = sum_v p_weak^(1-lam) p_strong^lam,
    1 where both models are one (T9), and codes: how many tokens have which gap code between the two models as they are now.
    """
    entropy = lambda logp: -(logp.exp() * logp).sum(-1)
    strong, of_y = z_strong.log_softmax(-1), z_strong.gather(-1, y[:, None])[:, 0]
    others = z_strong.scatter(-1, y[:, None], -math.inf).amax(-1)
    found = dict(margin=of_y - others, p_target=strong.gather(-1, y[:, None]).exp(), ent_strong=entropy(strong))
    if z_weak is not None:
        weak = z_weak.log_softmax(-1)
        mix = lam * strong + (1 - lam) * weak
        log_c = mix.logsumexp(-1, keepdim=True)
        found.update(ent_weak=entropy(weak), ent_mix=entropy(mix - log_c), affinity=log_c.exp())
    out = {k: v.mean().item() for k, v in found.items()}
    if z_weak is not None:
        codes = gap_mask(found["ent_weak"], found["ent_strong"], tau, h)
        out["codes"] = torch.bincount(codes.long(), minlength=len(CODES)).tolist()
    return out


def gap_weights(ent_weak, ent_live, alpha=0.1, beta=0.8, gamma=0.1, kind="code"):
    """Sampling weights from the samples' mean entropies, section 1.2 of the method -> (N,) float64, sums to 1.

    ent_weak, ent_live (N,) nats; d_ent = ent_live - ent_weak. Three published readings of (alpha, beta, gamma):
    code: each term divided by its own sum, so that alpha, beta and gamma are exactly its shares of the mass;
    v1: the same terms as they are; v2: alpha [-d_ent]+ + beta ent_live + gamma [d_ent]+, close to uncertainty sampling.
    A term whose sum is 0 contributes 0; where all are 0 there is no gap to prefer and the weights are uniform.
    Raises ValueError on shapes that differ, values that are no entropies, negative shares, an unknown kind.

    >>> gap_weights(torch.tensor([1., 1.]), torch.tensor([0., 1.5])).numpy().round(6).tolist()      # .05 + .8, .05 + .1
    [0.85, 0.15]
    """
    w, s = ent_weak.double(), ent_live.double()
    if w.shape != s.shape or w.dim() != 1:
        raise ValueError(f"gap_weights: expected two vectors of one length, found {tuple(w.shape)} and {tuple(s.shape)}")
    if not (torch.isfinite(w).all() and torch.isfinite(s).all() and (w >= 0).all() and (s >= 0).all()):
        raise ValueError("gap_weights: entropies must be finite and >= 0; a NaN here means that a checkpoint has diverged")
    if not (alpha >= 0 and beta >= 0 and gamma >= 0):
        raise ValueError(f"gap_weights: alpha, beta, gamma must be >= 0, found {alpha}, {beta}, {gamma}")
    d_ent = s - w
    consolidating, regressing = (-d_ent).clamp_min(0), d_ent.clamp_min(0)
    share = lambda term: term / term.sum() if term.sum() > 0 else term
    if kind == "code":
        out = alpha * share(w) + beta * share(consolidating) + gamma * share(regressing)
    elif kind == "v1":
        out = alpha * w + beta * consolidating + gamma * regressing
    elif kind == "v2":
        out = alpha * consolidating + beta * s + gamma * regressing
    else:
        raise ValueError(f"gap_weights: unknown kind {kind!r}; expected code, v1 or v2")
    return out / out.sum() if out.sum() > 0 else torch.full_like(out, 1 / len(out))


def gap_mask(ent_weak, ent_live, tau=0.0, h=0.0):
    """Gap code per token, section 1.3 of the method -> uint8, indices into CODES; the mask is code > 0.

    ent_weak, ent_live: any one shape, nats; tau, h >= 0: thresholds in nats. tau = h = 0 puts every token with any
    entropy at all into the mask, which is the paper.

    >>> gap_mask(torch.tensor([.1, 2., .1, 2.]), torch.tensor([.1, 1., 1., 2.]), tau=.5, h=1.).tolist()
    [0, 1, 2, 3]
    """
    if not (tau >= 0 and h >= 0):
        raise ValueError(f"gap_mask: tau and h must be >= 0 nats, found {tau} and {h}")
    if ent_weak.shape != ent_live.shape or (ent_live - ent_weak).isnan().any():
        raise ValueError(f"gap_mask: expected entropies of one shape without NaN, found {tuple(ent_weak.shape)} "
                         f"and {tuple(ent_live.shape)}")
    d_ent = ent_live - ent_weak
    code = torch.zeros_like(d_ent, dtype=torch.uint8)
    code[(d_ent.abs() <= tau) & (ent_weak > h)] = 3
    code[d_ent < -tau] = 1
    code[d_ent > tau] = 2
    return code


@torch.no_grad()
def measure(weak, live, samples, micro_batch=64, chunk_rows=None, rank=0, world=1, tokens_per_batch=0):
    """Token entropies of both models over the samples, teacher-forced, in fp32 -> gaps: dict of tensors keyed by sample id.

    ids (N,); offsets (N + 1,): the loss tokens of sample n are offsets[n]:offsets[n + 1] of the flat vectors ent_weak and
    ent_live (M,); mean_weak, mean_live (N,). Positions are the loss positions of training, found by the same collate().
    Each rank measures its share; all ranks return the whole. Raises ValueError where a sample has no loss token.
    """
    n_loss = {s.id: int(s.loss[1:].sum()) for s in samples}
    for i, n in n_loss.items():
        if not n:
            raise ValueError(f"entropy: sample {i} has no loss token; expected a completion in every sample")
    device, found = next(live.parameters()).device, {}
    for batch in micro_batches(samples, micro_batch, rank, world, tokens_per_batch):
        b = batch.to(device)
        ent = [token_entropy(m(b.x)[b.loss_mask], m.lm_head.weight, chunk_rows).cpu() for m in (weak, live)]
        counts = [n_loss.get(i, 0) for i in batch.ids.tolist()]               # 0: the row that a rank without any gets
        found.update(zip(batch.ids.tolist(), zip(ent[0].split(counts), ent[1].split(counts))))
    if world > 1:
        shares = [None] * world
        dist.all_gather_object(shares, found)
        found = {k: v for share in shares for k, v in share.items()}
    pairs = [found[s.id] for s in samples]
    return dict(ids=torch.tensor([s.id for s in samples]),
                offsets=torch.tensor([0] + [len(w) for w, _ in pairs]).cumsum(0),
                ent_weak=torch.cat([w for w, _ in pairs]), ent_live=torch.cat([l for _, l in pairs]),
                mean_weak=torch.stack([w.double().mean() for w, _ in pairs]),
                mean_live=torch.stack([l.double().mean() for _, l in pairs]))


def find_gaps(weak, live, samples, *, tau, h, alpha, beta, gamma, kind, **kw):
    """measure(), and from it `codes` (M,) uint8 and `weights` (N,) float64: all that gaps.pt holds."""
    gaps = measure(weak, live, samples, **kw)
    gaps["codes"] = gap_mask(gaps["ent_weak"], gaps["ent_live"], tau, h)
    gaps["weights"] = gap_weights(gaps["mean_weak"], gaps["mean_live"], alpha, beta, gamma, kind)
    gaps["settings"] = dict(tau=tau, h=h, alpha=alpha, beta=beta, gamma=gamma, kind=kind)
    return gaps


def codes_of(gaps, ids):
    """Gap codes of a batch's loss tokens in the order of hidden[loss_mask], that is row by row -> (n,) uint8.

    ids (B,): sample ids, which number the rows of gaps (0..N-1, checked when gaps.pt is read); -1: a row without loss.
    """
    o = gaps["offsets"]
    return torch.cat([gaps["codes"][o[i]:o[i + 1]] if i >= 0 else gaps["codes"][:0] for i in ids.tolist()])


# ----------------------------------------------------------------------------------------------------------------------
# the report


def report(gaps, samples):
    """The table that the CLI prints: tokens and mean entropies per code, shares of tokens and of sampling mass per family."""
    token_family = [s.family for s in samples for _ in range(int(s.loss[1:].sum()))]
    w, l, codes = gaps["ent_weak"], gaps["ent_live"], gaps["codes"]
    lines = [f"{len(samples):,} samples, {len(w):,} loss tokens | mean entropy (nats): weak {w.mean():.4f}, live {l.mean():.4f}",
             f"{'code':15s} {'tokens':>9s} {'share':>7s} {'H weak':>8s} {'H live':>8s}"]
    for c, name in enumerate(CODES):
        k = codes == c
        mean = lambda x: f"{x[k].mean():8.4f}" if k.any() else f"{'-':>8s}"
        lines.append(f"{c} {name:13s} {int(k.sum()):9,d} {k.float().mean():7.1%} {mean(w)} {mean(l)}")
    lines.append(f"\n{'family':15s} {'samples':>9s} {'mass':>7s} {'H weak':>8s} {'H live':>8s} " +
                 " ".join(f"{name:>13s}" for name in CODES))
    for family in dict.fromkeys(s.family for s in samples):
        k = torch.tensor([f == family for f in token_family])
        n = torch.tensor([s.family == family for s in samples])
        lines.append(f"{family:15s} {int(n.sum()):9,d} {gaps['weights'][n].sum():7.1%} {w[k].mean():8.4f} {l[k].mean():8.4f} " +
                     " ".join(f"{(codes[k] == c).float().mean():13.1%}" for c in range(4)))
    return "\n".join(lines)


COLOURS = ("\x1b[90m", "\x1b[32m", "\x1b[31m", "\x1b[33m")       # grey, green, red, yellow


def heaviest(gaps, samples, n):
    """Indices of n samples to look at: the one with the largest weight of each family first, then the next of each."""
    seen, ranked = {}, []
    for i in gaps["weights"].argsort(descending=True).tolist():
        seen[samples[i].family] = place = seen.get(samples[i].family, 0) + 1
        ranked.append((place, len(ranked), i))
    return [i for *_, i in sorted(ranked)[:n]]


def show(gaps, samples, enc, n):
    """The n heaviest samples, each loss token coloured by its code (NO_COLOR set: written as token^code)."""
    plain = bool(os.environ.get("NO_COLOR"))
    paint = lambda text, c: f"{text}^{c}" if plain else f"{COLOURS[c]}{text}\x1b[0m"
    lines = ["colours: " + "  ".join(paint(name, c) for c, name in enumerate(CODES))]
    for i in heaviest(gaps, samples, n):
        s, codes = samples[i], iter(codes_of(gaps, torch.tensor([i])).tolist())
        text = "".join(paint(enc.decode([t]), next(codes)) if k else enc.decode([t])
                       for t, k in zip(s.tokens.tolist(), s.loss.tolist()))
        lines.append(f"#{s.id} {s.family}, weight {gaps['weights'][i] * len(samples):.1f}x uniform, entropy "
                     f"{gaps['mean_weak'][i]:.3f} -> {gaps['mean_live'][i]:.3f}\n  {text}")
    return "\n".join(lines)


HTML_COLOURS = ("#999999", "#2e7d32", "#c62828", "#b26a00")      # the same four, dark enough to read on white
STYLE = """body{font:15px/1.5 sans-serif;max-width:62em;margin:2em auto;padding:0 1em}svg{max-width:100%}
pre,.sample{font:13px/1.6 monospace;overflow-x:auto}.key span{margin-right:1.5em}"""


def curves_svg(log, width=760, height=260):
    """Training loss of each arm against its share of steps done, on a log scale, from the records of log.jsonl."""
    arms = {}
    for r in log:
        if r.get("loss"):
            arms.setdefault(r["arm"], []).append((r["step"], math.log10(r["loss"])))
    if not arms:
        return ""
    low, high = (f(y for curve in arms.values() for _, y in curve) for f in (min, max))
    scale = lambda y: 20 + (high - y) / max(1e-9, high - low) * (height - 50)
    out = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="training loss">']
    for value in (m * 10.0 ** e for e in range(math.floor(low), math.ceil(high) + 1) for m in (1, 2, 5)):
        if low <= (tick := math.log10(value)) <= high:
            out.append(f'<line x1="45" x2="{width - 130}" y1="{scale(tick):.1f}" y2="{scale(tick):.1f}" stroke="#ddd"/>'
                       f'<text x="40" y="{scale(tick) + 4:.1f}" font-size="11" text-anchor="end">{value:g}</text>')
    for k, (arm, curve) in enumerate(arms.items()):
        colour, last = ("#777", "#1565c0", "#c62828", "#2e7d32", "#b26a00", "#6a1b9a")[k % 6], curve[-1][0]
        points = " ".join(f"{45 + step / last * (width - 175):.1f},{scale(y):.1f}" for step, y in curve)
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                   f'<line x1="{width - 118}" x2="{width - 98}" y1="{24 + 18 * k}" y2="{24 + 18 * k}" stroke="{colour}" stroke-width="3"/>'
                   f'<text x="{width - 92}" y="{28 + 18 * k}" font-size="12">{html.escape(arm)}</text>')
    out.append(f'<text x="45" y="{height - 8}" font-size="11">share of the steps done, 0 to 1; loss per token in nats</text></svg>')
    return "".join(out)


def html_report(title, table, log, gaps=None, samples=(), enc=None, n=8):
    """A page that needs no network: the table of scores, the loss curves, the gap report, n samples coloured by gap code.

    A token's tooltip shows its two entropies. gaps None (a run with --gap none) leaves the gap part away.
    """
    title = html.escape(title)
    page = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>",
            f"<h2>Scores</h2><pre>{html.escape(table)}</pre><h2>Training loss</h2>{curves_svg(log)}"]
    if gaps is not None:
        paint = lambda text, c, tip="": f'<b style="color:{HTML_COLOURS[c]}" title="{tip}">{html.escape(text)}</b>'
        page.append(f"<h2>Gaps between {html.escape(gaps['weak'])} and {html.escape(gaps['live'])}</h2>"
                    f"<pre>{html.escape(report(gaps, samples))}</pre>"
                    f'<p class=key>{" ".join(f"<span>{paint(name, c)}</span>" for c, name in enumerate(CODES))}</p>')
        for i in heaviest(gaps, samples, n):
            s, k = samples[i], int(gaps["offsets"][i])
            text = ""
            for token, counts in zip(s.tokens.tolist(), s.loss.tolist()):
                tip = f"{gaps['ent_weak'][k]:.3f} -&gt; {gaps['ent_live'][k]:.3f} nats" if counts else ""
                text += paint(enc.decode([token]), int(gaps["codes"][k]), tip) if counts else html.escape(enc.decode([token]))
                k += counts
            times = gaps["weights"][i] * len(samples)
            page.append(f"<p class=sample>#{s.id} {html.escape(s.family)}, {times:.1f}x uniform<br>{text}</p>")
    return "\n".join(page)


def check_pair(weak_path, live_path, tokenizer):
    """The live checkpoint's (GPTConfig, meta), or one sentence on why the two cannot be compared; reads no weights."""
    (weak, _), (live, meta) = read_config(weak_path, tokenizer), read_config(live_path, tokenizer)
    if weak != live:
        diff = [f"{k} {v} / {getattr(live, k)}" for k, v in vars(weak).items() if v != getattr(live, k)]
        raise SystemExit(f"entropy: {weak_path} and {live_path} are models of different shape ({', '.join(diff)}); "
                         "the weak snapshot must be an earlier state of the same model")
    return live, meta


def load_pair(weak_path, live_path, tokenizer, device="cpu"):
    """Both models and the live one's meta; what check_pair refuses is refused here."""
    check_pair(weak_path, live_path, tokenizer)
    return load_checkpoint(weak_path, device, tokenizer)[0], *load_checkpoint(live_path, device, tokenizer)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--weak", required=True, help="checkpoint of the weak snapshot")
    parser.add_argument("--live", required=True, help="checkpoint of the live model; its config names the data")
    parser.add_argument("--tau", type=float, help="gap threshold on |d_ent|, nats (default: the live run's)")
    parser.add_argument("--h", type=float, help="threshold on the weak entropy of a hard token, nats (default: the live run's)")
    parser.add_argument("--weights", choices=("code", "v1", "v2"), help="reading of the weight formula (default: the live run's)")
    parser.add_argument("--show", type=int, default=0, metavar="N",
                        help="print the N heaviest samples, one per family first, coloured by gap code")
    args = parser.parse_args(argv)
    if args.show < 0:
        parser.error(f"--show: expected a number of samples, found {args.show}")
    enc = tokenizer_of(read_config(args.live)[1])
    weak, live, meta = load_pair(args.weak, args.live, fingerprint(enc))
    cfg = meta["config"]
    if "tau" not in cfg:
        raise SystemExit(f"entropy: {args.live} says nothing of its training data; expected a checkpoint that train_wmss.py wrote")
    pick = lambda flag, name: cfg[name] if flag is None else flag
    samples = training_set(cfg, enc)
    try:
        gaps = find_gaps(weak, live, samples, tau=pick(args.tau, "tau"), h=pick(args.h, "h"), alpha=cfg["alpha"],
                         beta=cfg["beta"], gamma=cfg["gamma"], kind=pick(args.weights, "weights"),
                         tokens_per_batch=cfg.get("tokens_per_batch", 0))
    except ValueError as e:
        raise SystemExit(f"entropy: {e}") from None
    print(report(gaps, samples))
    if args.show:
        print("\n" + show(gaps, samples, enc, args.show))


if __name__ == "__main__":
    main()
