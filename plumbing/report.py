"""What a run shows: tables for the terminal, samples coloured by gap code, and report.html, one
page that needs no network.

The page's words and styles stand in report.html beside this file, a Jinja template; pictures.py
draws its charts. `gaps` is an entropy.Gaps throughout.
"""

import functools
import json
import math
import os
import sys
from collections import Counter

import torch

from model import load_checkpoint, read_config
from plumbing import colours, pictures
from plumbing.controls import ARMS, ROWS, arm_of
from plumbing.draw import CODES
from plumbing.files import read_json, read_rows, write_text
from plumbing.pictures import REFERENCES

TERMINAL_COLOURS = ("\x1b[90m", "\x1b[32m", "\x1b[31m", "\x1b[33m")     # grey, green, red, yellow
MOST_TOKENS = 3000      # of the token view, to keep page and time small
MOST_TEXT = 500_000     # characters of the answers to browse


# ---- for the terminal --------------------------------------------------------------------------


def score_table(rows):
    """The rows of scores.json as text, shares in %: right answers, and those that were cut off at
    max_new_tokens or give no answer.

    FLOPs and seconds are those of the training of a row after the checkpoint that it starts from.
    """
    families = list(rows[0]["families"])
    head = f"{'model':14s}" + "".join(f"{family:>8s}" for family in families)
    head += f"{'all':>8s}   {'95 % interval':14s}{'TFLOPs':>8s}{'seconds':>9s}"
    shares_of = [key for key in ("truncated", "no_answer") if key in rows[0]]
    lines = [head + "".join(f"{key.replace('_', ' '):>11s}" for key in shares_of)]
    for r in rows:
        spent = f"{'-':>8s}{'-':>9s}"
        if r["flops"] is not None:
            spent = f"{r['flops'] / 1e12:8.3f}{r['seconds']:9.1f}"
        name = "wmss (strong)" if r["model"] == "wmss" else r["model"]
        shares = "".join(f"{100 * r['families'][family]:8.1f}" for family in families)
        interval = f"{100 * r['low']:5.2f} - {100 * r['high']:5.2f}"
        odd = "".join(f"{100 * r[key]:11.1f}" for key in shares_of)
        lines.append(f"{name:14s}{shares}{100 * r['accuracy']:8.2f}   {interval} {spent}{odd}")
    return "\n".join(lines)


def code_rows(gaps):
    """(name, tokens, share, mean weak entropy, mean live entropy) of each gap code."""
    rows = []
    for code, name in enumerate(CODES):
        here = gaps.codes == code
        means = ["-", "-"]
        if here.any():
            means = [f"{ent[here].mean():.4f}" for ent in (gaps.ent_weak, gaps.ent_live)]
        rows.append((name, f"{int(here.sum()):,}", f"{here.float().mean():.1%}", *means))
    return rows


def family_rows(gaps, samples):
    """(name, samples, share of samples, share of weight, mean weak and live entropy, shares of the
    four codes) of each family."""
    families = list(dict.fromkeys(s.family for s in samples))
    number = {family: i for i, family in enumerate(families)}
    of_sample = torch.tensor([number[s.family] for s in samples])
    of_token = of_sample.repeat_interleave(gaps.offsets.diff())
    rows = []
    for i, family in enumerate(families):
        own, here = of_sample == i, of_token == i
        counts = torch.bincount(gaps.codes[here].long(), minlength=4)
        rows.append((family, int(own.sum()), float(own.float().mean()),
                     float(gaps.weights[own].sum()), float(gaps.ent_weak[here].mean()),
                     float(gaps.ent_live[here].mean()), (counts / counts.sum()).tolist()))
    return rows


def gap_table(gaps, samples):
    """Tokens and mean entropies by gap code, by family; Kish's effective number of samples."""
    lines = [f"{len(samples):,} samples, {len(gaps.codes):,} loss tokens | mean entropy (nats): "
             f"weak {gaps.ent_weak.mean():.4f}, live {gaps.ent_live.mean():.4f} | "
             f"effective samples when resampled: {1 / gaps.weights.square().sum():,.1f}",
             f"{'code':15s} {'tokens':>9s} {'share':>7s} {'H weak':>8s} {'H live':>8s}"]
    for code, (name, count, share, weak, live) in enumerate(code_rows(gaps)):
        lines.append(f"{code} {name:13s} {count:>9s} {share:>7s} {weak:>8s} {live:>8s}")
    names = "".join(f" {name:>13s}" for name in CODES)
    lines += ["", f"{'family':15s}{'samples':>10s}{'mass':>8s}{'H weak':>9s}{'H live':>9s}{names}"]
    for family, n, _, mass, weak, live, codes in family_rows(gaps, samples):
        shares = " ".join(f"{share:13.1%}" for share in codes)
        lines.append(f"{family:15s} {n:9,d} {mass:7.1%} {weak:8.4f} {live:8.4f} {shares}")
    if torch.equal(gaps.ent_weak, gaps.ent_live):
        lines.append("both models have the same entropies everywhere, as one model has with itself")
    if not gaps.codes.any():
        lines.append("no token is in the gap mask: it mixes nothing; lower --tau and --h")
    return "\n".join(lines)


def heaviest(gaps, samples, n):
    """Indices of n samples to look at: the one with the largest weight of each family first."""
    seen, ranked = {}, []
    for i in gaps.weights.argsort(descending=True).tolist():
        family = samples[i].family
        seen[family] = seen.get(family, 0) + 1
        ranked.append((seen[family], len(ranked), i))
    return [i for _, _, i in sorted(ranked)[:n]]


def whole_characters(tokens, enc):
    """(text, how many tokens it takes) along a list of ids; no character is taken apart."""
    start = 0
    for end in range(1, len(tokens) + 1):
        text = enc.decode(tokens[start:end])
        # no character has more than four bytes, so no more than four tokens
        if not text.endswith("\ufffd") or end - start == 4 or end == len(tokens):
            yield text, end - start
            start = end


def tokens_with_codes(gaps, sample, i, enc):
    """(text, code, index into the flat vectors) of each token; code None: it carries no loss.

    Tokens that are parts of one character come as one, with the code of the part that moved most.
    """
    k, place = int(gaps.offsets[i]), 0
    loss = sample.loss.tolist()
    for text, n in whole_characters(sample.tokens.tolist(), enc):
        parts = range(k, k + sum(loss[place:place + n]))
        if parts:
            most = max(parts, key=lambda j: abs(float(gaps.ent_live[j] - gaps.ent_weak[j])))
            yield text, int(gaps.codes[most]), most
        else:
            yield text, None, None
        k, place = parts.stop, place + n


def show_samples(gaps, samples, enc, n, plain=None):
    """The n heaviest samples as text, each loss token coloured by its code; plain: token^code.

    plain None: as NO_COLOR says, and where the text goes into a file or a pipe.
    """
    if plain is None:
        plain = bool(os.environ.get("NO_COLOR")) or not sys.stdout.isatty()

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


# ---- the token view ----------------------------------------------------------------------------


@torch.no_grad()
def token_view(gaps, samples, enc, weak, live, lam, n=24):
    """The n heaviest samples for the page, each token with what the models expected there.

    weak, live: the models. lam: of the mix. At most MOST_TOKENS tokens, so that time and page stay
    small.
    """
    shown, room = [], MOST_TOKENS
    for i in heaviest(gaps, samples, n):
        s = samples[i]
        expected = candidates(s, enc, weak, live, lam, room)
        first, tokens = int(gaps.offsets[i]), []
        for text, code, k in tokens_with_codes(gaps, s, i, enc):
            token = [text]
            if code is not None:
                entropies = [round(float(ent[k]), 6) for ent in (gaps.ent_weak, gaps.ent_live)]
                token += [code, *entropies]
                token += expected[k - first] if k - first < len(expected) else []
            tokens.append(token)
        room -= len(tokens)
        shown.append(dict(id=s.id, family=s.family, times=float(gaps.weights[i]) * len(samples),
                          weak=float(gaps.mean_weak[i]), live=float(gaps.mean_live[i]),
                          tokens=tokens[:max(0, room + len(tokens))]))
        if room <= 0:
            break
    return sorted(shown, key=lambda s: -s["times"])


def candidates(sample, enc, weak, live, lam, most):
    """Of each loss token, at most `most`: [probability of the target, five best tokens with theirs,
    each in weak, live and mix; entropy of the mix]."""
    device = next(live.parameters()).device
    x, loss = sample.tokens[:-1][:most], sample.loss[1:][:most]
    y = sample.tokens[1:][:most][loss].to(device)
    log_p = []
    for model in (weak, live):
        hidden = model(x[None].to(device))[0][loss.to(device)]
        log_p.append((hidden @ model.lm_head.weight.T).float().log_softmax(-1))       # (n, V)
    log_p.append((lam * log_p[1] + (1 - lam) * log_p[0]).log_softmax(-1))
    tables = [each.exp() for each in log_p]
    ent_mix = -(tables[2] * log_p[2]).sum(-1)
    targets = torch.stack([p.gather(1, y[:, None])[:, 0] for p in tables], 1).tolist()
    found = [[[round(p, 6) for p in target], [], round(entropy, 6)]
             for target, entropy in zip(targets, ent_mix.tolist(), strict=True)]
    for p in tables:
        for place, (values, ids) in enumerate(zip(*p.topk(min(5, p.size(1))), strict=True)):
            words = [enc.decode([token]) for token in ids.tolist()]
            chances = [round(p, 5) for p in values.tolist()]
            found[place][1].append(list(zip(words, chances, strict=True)))
    return found


# ---- scores and answers ------------------------------------------------------------------------


def difference(rows, reference):
    """Right answers of a model less those of another, in points -> (mean, half its interval).

    It goes problem by problem: that some are hard for both does not widen the interval. What could
    not be judged is left out.
    """
    a, b = ({(r["id"], r["sample"]): r["correct"] for r in side if r["correct"] is not None}
            for side in (rows, reference))
    gains = torch.tensor([100.0 * (a[k] - b[k]) for k in a if k in b], dtype=torch.float64)
    if not len(gains):
        return 0.0, 100.0
    if len(gains.unique()) == 1:                # rule of three: 0 of n may be up to 3 in n
        return gains[0].item(), min(100.0, 300 / len(gains))
    return gains.mean().item(), 1.96 * gains.std(correction=0).item() / math.sqrt(len(gains))


def scores_of(folder, wilson):
    """What the page says of scores.json and answers/; {} before there are any.

    wilson(right, n) -> 95 % interval: of eval_math, which this module may not import.
    """
    rows, answers = read_json(folder.path("scores.json"), {}).get("rows"), {}
    if not rows:
        return {}
    for r in rows:
        path = folder.path("answers", f"{r['model']}.jsonl")
        answers[r["model"]] = [row for _, row in read_rows(path)]
    for r in rows:
        own = answers[r["model"]]
        sizes = Counter(row["family"] for row in own)
        r["intervals"] = {family: wilson(share * sizes[family], sizes[family])
                          for family, share in r["families"].items()}
        r["less"] = {ref: difference(own, answers[ref]) for ref in REFERENCES if ref in answers}
    return dict(scores=rows, browse=problems_to_browse(answers))


def problems_to_browse(answers):
    """Problems that some model got wrong, those on which models differ first; some per family."""
    by_id = {}
    for model, rows in answers.items():
        for r in rows:
            if r["sample"] == 0:
                by_id.setdefault(r["id"], {})[model] = r
    ranked, seen, room, shown = [], {}, MOST_TEXT, []
    for models in by_id.values():
        right = [r["correct"] for model, r in models.items() if model != "base"]
        if not all(right):
            family = next(iter(models.values()))["family"]
            all_wrong = not any(right)
            seen[family, all_wrong] = seen.get((family, all_wrong), 0) + 1
            ranked.append((all_wrong, seen[family, all_wrong], len(ranked), models))
    for *_, models in sorted(ranked, key=lambda r: r[:3])[:200]:
        r = next(iter(models.values()))
        wrote = [[model, own["completion"][:600], own["correct"]] for model, own in models.items()]
        shown.append(dict(id=r["id"], family=r["family"], prompt=r["prompt"][:1000],
                          gold=str(r["gold"])[:600], wrote=wrote))
        room -= len(shown[-1]["prompt"]) + sum(len(text) for _, text, _ in wrote)
        if room < 0:
            break
    return shown


# ---- the page ----------------------------------------------------------------------------------


def visible(text):
    """The text as HTML in which one sees spaces, tabs and line breaks."""
    from markupsafe import Markup, escape  # of jinja2, which comes with torch
    shown = str(escape(text)).replace("\n", "<s>⏎</s>\n").replace("\t", "<s>⇥</s>")
    return Markup(shown.replace(" ", "<s>·</s>"))


def few(v, unit=1):
    """A number with three digits that say something; a dash for None."""
    if v is None:
        return "–"
    return f"{v * unit:.0f}" if v * unit >= 100 else f"{v * unit:.3g}"


@functools.cache
def template():
    """report.html, compiled once: that takes longer than to fill it in."""
    from jinja2 import Environment, FileSystemLoader
    env = Environment(loader=FileSystemLoader(os.path.dirname(__file__)), autoescape=True)
    env.filters |= dict(visible=visible, few=few)
    return env.get_template("report.html")


def page_of(gaps=None, samples=(), view=None, **data):
    """The text of report.html; gaps None: before they are measured."""
    data = {"pictures": {}} | data
    if gaps is not None:
        by_family = family_rows(gaps, samples)[:30]
        data["pictures"]["gaps"] = pictures.of_gaps(gaps, by_family)
        names = {side: os.path.basename(getattr(gaps, side)).removesuffix(".pt")
                 for side in ("weak", "live")}
        data["gaps"] = dict(names, tokens=len(gaps.codes), by_code=code_rows(gaps),
                            tau=gaps.settings["tau"], h=gaps.settings["h"])
    # "<" would let a text end the element of the page that it stands in
    tokens = json.dumps([s["tokens"] for s in view or []], ensure_ascii=False)
    return template().render(
        data, samples=view, codes=CODES, colours=colours.css(), example=example_of(view or []),
        tokens=tokens.replace("<", "\\u003c"))


def example_of(view):
    """The token to whose loss mixing adds most, among those that the live model is surer of."""
    found, most = None, 0.0
    for s in view:
        for k, token in enumerate(s["tokens"]):
            if len(token) > 4 and token[1] == 1 and token[4][1] / max(token[4][2], 1e-9) > most:
                most = token[4][1] / max(token[4][2], 1e-9)
                before = "".join(t[0] for t in s["tokens"][max(0, k - 40):k])
                losses = [f"{-math.log(max(p, 1e-9)):.2f}" for p in token[4][1:]]
                found = dict(before=before, text=token[0], losses=losses,
                             entropies=[f"{v:.2f}" for v in token[2:4]],
                             percent=[f"{100 * p:.0f}" for p in token[4]])
    return found


def token_page(gaps, samples, enc, weak, live, lam):
    """The page of entropy.py --report: gaps and tokens, nothing of a run."""
    view = token_view(gaps, samples, enc, weak, live, lam)
    return page_of(gaps, samples, view, title="Entropy gaps", lam=lam)


def write_report(run, load_gaps, wilson):
    """out/NAME/report.html: what there is to see by now. load_gaps(run, round) -> gaps.

    A run of another program, whose log has no head, gets no page.
    """
    cfg, folder = run.cfg, run.folder
    log, same = folder.read_log(), []
    heads = [r for r in log if "versions" in r]
    if not heads:
        return
    gaps = load_gaps(run, 1) if os.path.exists(folder.gaps(1)) else None
    for name, path in folder.models(ROWS).items():
        if name not in folder.spent:            # by an earlier page of this process
            meta = {} if name in ("weak", "fused") else read_config(path)[1]
            cost = meta.get("spent") or meta
            folder.spent[name] = dict(flops=cost.get("flops"), seconds=cost.get("seconds"))
    spent = {name: folder.spent[name] for name in ROWS if name in folder.spent}
    # arms that read the same batches as sft-steps can be compared with it step by step
    for arm in {r["arm"] for r in log if "arm" in r}:
        name = arm.partition("-round")[0]
        if name in {*ARMS} - {"sft-flops"} and arm_of(cfg, name).gap not in ("sample", "both"):
            same.append(arm)
    training = pictures.Training(pictures.story_of(log), sorted(same), cfg.lam)
    data = scores_of(folder, wilson)
    rows, drawn = data.get("scores", []), training.pictures()
    drawn["validation"] = pictures.by_step(training.story, "val_loss", "Held-out loss, nats")
    if rows:
        drawn |= pictures.of_scores(rows)
    page = page_of(
        gaps, run.samples, None if gaps is None else kept_view(run, gaps), pictures=drawn,
        title=f"WMSS: {cfg.name}", lam=cfg.lam, head=heads[-1], training=training, spent=spent,
        models=table_of(spent, rows, training.story, losses_of(folder)),
        bought=pictures.bought(rows), **data)
    write_text(folder.path("report.html"), page)


def losses_of(folder):
    """{model: held-out loss} of val.json, or {}."""
    rows = read_json(folder.path("val.json"), [])
    return {row["model"]: row["val_loss"] for row in rows}


def table_of(spent, rows, story, losses):
    """(head, lines) of the table of models: what they cost, and their scores if there are."""
    lines, scores = [], {r["model"]: r for r in rows}
    for name, cost in spent.items():
        line = {"model": name, "TFLOPs": few(cost["flops"], 1e-12), "s": few(cost["seconds"])}
        r = scores.get(name)
        if r:
            line["right, %"] = f"{100 * r['accuracy']:.2f}"
            line["95 % interval"] = f"{100 * r['low']:.1f} – {100 * r['high']:.1f}"
            for ref in REFERENCES if name != "base" else ():
                if ref in r["less"] and ref != name:
                    mean, half = r["less"][ref]
                    line[f"minus {ref}"] = f"{mean:+.2f} ± {half:.2f}".replace("-", "−")
            line |= {family: f"{100 * share:.1f}" for family, share in r["families"].items()}
        if name in losses:
            line["held-out loss"] = f"{losses[name]:.4f}"
        points = story.get(name, {}).get("val_loss")
        if points:
            step, least = min(points, key=lambda point: point[1])
            line["held-out loss"] = f"{points[-1][1]:.4f}"
            line["least, at step"] = f"{least:.4f}, {step}"
        lines.append(line)
    head = list(dict.fromkeys(key for line in sorted(lines, key=len)[::-1] for key in line))
    return head, [[line.get(key, "–") for key in head] for line in lines]


def kept_view(run, gaps):
    """token_view of the run's gaps; the models are read once for all pages of a run."""
    folder, path = run.folder, run.folder.path("tokens.json")
    made_of = [gaps.weak, gaps.live, gaps.commit, gaps.seconds]
    folder.view = folder.view or read_json(path, {})
    if folder.view.get("made_of") != made_of:
        weak, live = (load_checkpoint(p, run.ranks.device, run.tokenizer)[0].eval()
                      for p in (gaps.weak, gaps.live))
        view = token_view(gaps, run.samples, run.enc, weak, live, run.cfg.lam)
        folder.view = dict(made_of=made_of, view=view)
        write_text(path, json.dumps(folder.view))
    return folder.view["view"]
