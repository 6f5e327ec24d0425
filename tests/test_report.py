"""plumbing/report.py: tables and the page that a run shows, on gaps made by hand and on a run."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from runs import (
    answers,
    clean_set,
    gaps_of,
    records,
    scores,
)

import entropy
from data import FAMILIES, Sample
from entropy import Gaps, load_pair
from plumbing import colours
from plumbing.controls import ROWS
from plumbing.draw import CODES
from plumbing.pictures import Training, by_step, story_of
from plumbing.report import (
    TERMINAL_COLOURS,
    difference,
    gap_table,
    heaviest,
    page_of,
    problems_to_browse,
    score_table,
    show_samples,
    table_of,
    token_view,
    tokens_with_codes,
    visible,
    whole_characters,
)
from plumbing.tokenizer import toy_encoding

ROOT = Path(__file__).parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def by_hand():
    """(gaps, samples): codes 0, 1, 2, 3, 0, ... along each sample, weights 1, 2, 3, ..."""
    samples = clean_set(toy_encoding(), 9, 0)
    lengths = [int(s.loss[1:].sum()) for s in samples]
    codes = torch.cat([torch.arange(n) % 4 for n in lengths]).to(torch.uint8)
    weights = torch.arange(1.0, 10.0, dtype=torch.float64)
    gaps = Gaps(ids=torch.arange(9), offsets=torch.tensor([0, *lengths]).cumsum(0),
                ent_weak=codes.float() + 1, ent_live=codes.float() / 2,
                mean_weak=torch.full((9,), 2.0), mean_live=torch.full((9,), 0.5), codes=codes,
                weights=weights / weights.sum(), weak="a/base.pt", live="a<b>.pt")
    return gaps, samples


def test_gap_table_counts_tokens_and_means_by_code_and_family(by_hand):
    """Bug: a share of all tokens under the name of one family's, weak and live exchanged."""
    gaps, samples = by_hand
    table = gap_table(gaps, samples)
    n = len(gaps.codes)
    assert table.startswith(f"9 samples, {n:,} loss tokens | mean entropy (nats): "
                            f"weak {gaps.ent_weak.mean():.4f}, live {gaps.ent_live.mean():.4f} | "
                            f"effective samples when resampled: {45**2 / 285:.1f}\n")
    for code, name in enumerate(CODES):
        count = int((gaps.codes == code).sum())
        row = f"{code} {name:13s} {count:9,d} {count / n:7.1%} {code + 1:8.4f} {code / 2:8.4f}"
        assert row in table
    lines = {line.split()[0]: line.split() for line in table.splitlines() if line}
    for family in {s.family for s in samples}:
        own = [i for i, s in enumerate(samples) if s.family == family]
        words = lines[family]
        assert words[1] == str(len(own)) and words[2] == f"{sum(i + 1 for i in own) / 45:.1%}"
        codes = torch.cat([gaps.of_sample(i, "codes") for i in own])
        assert words[5:] == [f"{(codes == code).float().mean():.1%}" for code in range(4)]


def test_a_code_that_no_token_has_is_a_dash(by_hand):
    """Bug: the mean of nothing, NaN."""
    gaps, samples = by_hand
    settled = Gaps(**{**vars(gaps), "codes": torch.zeros_like(gaps.codes)})
    table = gap_table(settled, samples)
    assert "nan" not in table and f"3 {'hard':13s} {0:9,d} {0:7.1%} {'-':>8s} {'-':>8s}" in table


def test_the_heaviest_samples_come_family_by_family(by_hand):
    """Bug: three samples to look at, all of the same kind."""
    gaps, samples = by_hand
    picked = heaviest(gaps, samples, 9)
    assert sorted(picked) == list(range(9))
    families = [samples[i].family for i in picked]
    n = len(set(families))
    assert len(set(families[:n])) == n
    for first in picked[:n]:
        same_family = [i for i in range(9) if samples[i].family == samples[first].family]
        assert first == max(same_family)
    assert picked[:n] == sorted(picked[:n], reverse=True)


def test_tokens_are_shown_with_the_codes_they_have(by_hand):
    """Bug: codes that begin at the prompt, or that are those of the sample before."""
    gaps, samples = by_hand
    enc, s = toy_encoding(), samples[4]
    parts = list(tokens_with_codes(gaps, s, 4, enc))
    assert "".join(text for text, _, _ in parts) == enc.decode(s.tokens.tolist())
    assert [code is not None for _, code, _ in parts] == s.loss.tolist()
    codes = [code for _, code, _ in parts if code is not None]
    assert codes == gaps.of_sample(4, "codes").tolist()
    assert [k for _, _, k in parts if k is not None] == list(range(*gaps.offsets[4:6].tolist()))


def test_samples_are_coloured_or_marked(by_hand):
    """Bug: escape sequences in a file, a colour that runs on."""
    gaps, samples = by_hand
    enc = toy_encoding()
    text = show_samples(gaps, samples, enc, 2, plain=False)
    assert all(colour in text for colour in TERMINAL_COLOURS)
    assert text.count("\x1b[0m") == text.count("\x1b[") / 2
    plain = show_samples(gaps, samples, enc, 2, plain=True)
    assert "\x1b" not in plain and "settled^0  consolidating^1  regressing^2  hard^3" in plain
    assert plain.count("x uniform, entropy 2.000 -> 0.500") == 2
    without = re.sub(r"\^\d", "", plain)
    shown = heaviest(gaps, samples, 2)
    assert all(enc.decode(samples[i].tokens.tolist()) in without for i in shown)


def test_score_table_has_each_number_where_it_belongs():
    """Bug: an interval of another row, FLOPs in another unit, wmss under another name."""
    row = dict(model="wmss", families=dict(add=0.5, times=0.25), accuracy=0.375, low=0.2, high=0.6,
               flops=2.5e12, seconds=61.25)
    table = score_table([row, dict(row, model="fused", flops=None, seconds=None)])
    head, wmss, fused = table.splitlines()
    assert head.split() == ["model", "add", "times", "all", "95", "%", "interval", "TFLOPs",
                            "seconds"]
    assert wmss.split() == ["wmss", "(strong)", "50.0", "25.0", "37.50", "20.00", "-", "60.00",
                            "2.500", "61.2"]
    assert fused.split()[-2:] == ["-", "-"] and len(head) == len(wmss) == len(fused)
    head, wmss = score_table([dict(row, truncated=0.125, no_answer=0.5)]).splitlines()
    assert head.endswith("truncated  no answer") and wmss.split()[-2:] == ["12.5", "50.0"]
    assert len(head) == len(wmss)


def tokens_of(page):
    """What the page's script is given: the tokens of each sample."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1))


def tables_of(page):
    """{first cell: {head of a column: cell}} of all tables of the page."""
    rows = {}
    for row in re.findall(r"<tr>(<td.*?)(?=<tr>|</table>)", page, re.DOTALL):
        cells = {}
        for name, cell in re.findall(r'<td data-name="([^"]*)">(.*?)(?=<td|\n|$)', row):
            cells[name] = html.unescape(re.sub("<small>.*|<[^>]*>", "", cell)).strip()
        rows[next(iter(cells.values()))] = cells
    return rows


# -------------------------------------------------------------------------------------------------
# what the page is given


class Bytes:
    """An encoding of one token a byte."""

    def decode(self, tokens):
        return bytes(tokens).decode("utf-8", "replace")


def test_characters_of_several_tokens_come_whole():
    """Bug: kanji and umlauts as two or three question marks; a broken end that swallows a text."""
    text = "aä漢🙂\n b"
    parts = list(whole_characters(list(text.encode()), Bytes()))
    assert [part for part, _ in parts] == list(text)
    assert [n for _, n in parts] == [len(c.encode()) for c in text]
    broken = list(whole_characters([0xE6, 0xBC, 97, 98, 99], Bytes()))
    assert "".join(part for part, _ in broken).endswith("abc") and sum(n for _, n in broken) == 5


def test_a_character_has_the_code_of_its_part_that_moved_most():
    """Bug: codes of all tokens behind a kanji that belong to the ones before."""
    tokens = torch.tensor(list("x漢y".encode()))
    sample = Sample(0, "f", tokens, torch.tensor([False, True, True, True, True]))
    gaps = Gaps(ids=torch.tensor([0]), offsets=torch.tensor([0, 4]),
                ent_weak=torch.tensor([1.0, 1.0, 3.0, 2.0]), ent_live=torch.ones(4),
                mean_weak=torch.ones(1), mean_live=torch.ones(1),
                codes=torch.tensor([0, 2, 1, 3], dtype=torch.uint8))
    assert list(tokens_with_codes(gaps, sample, 0, Bytes())) == [("x", None, None), ("漢", 1, 2),
                                                                 ("y", 3, 3)]


def test_candidates_are_what_the_models_expect(trained):
    """Bug: the candidates of the next token, or of the token itself one place off; a mix whose
    lambda is that of the weak model."""
    enc, samples = toy_encoding(), clean_set(toy_encoding(), 24, 0)
    gaps = Gaps(**gaps_of(trained))
    weak, live, _ = load_pair(trained / "base.pt", trained / "sft.pt", None)
    shown = token_view(gaps, samples, enc, weak, live, 0.3, n=2)
    assert [s["times"] for s in shown] == sorted((s["times"] for s in shown), reverse=True)
    for s in shown:
        sample = samples[s["id"]]
        assert "".join(token[0] for token in s["tokens"]) == enc.decode(sample.tokens.tolist())
        x = sample.tokens[None, :-1]
        z = [model.logits(x)[0].detach() for model in (weak, live)]
        z.append(0.3 * z[1] + 0.7 * z[0])
        for place, token in enumerate(s["tokens"]):
            if len(token) == 1:
                assert not sample.loss[place]
                continue
            ps = [each[place - 1].softmax(-1) for each in z]
            target = sample.tokens[place]
            assert token[4] == pytest.approx([float(p[target]) for p in ps], abs=2e-6)
            for p, best in zip(ps, token[5], strict=True):
                assert best[0][0] == enc.decode([int(p.argmax())]) and len(best) == 5
                assert [q for _, q in best] == pytest.approx(p.topk(5)[0].tolist(), abs=1e-5)
            assert token[6] == pytest.approx(float(-(ps[2] * ps[2].log()).sum()), abs=1e-5)


def test_a_difference_goes_problem_by_problem():
    """Bug: the interval of two independent samples; a verdict of None that counts as wrong."""
    def rows(*verdicts):
        return [dict(id=i, sample=0, correct=v) for i, v in enumerate(verdicts)]

    a, b = [True, True, True, False, None, True], [True, False, True, False, True, False]
    gains = torch.tensor([0.0, 100, 0, 0, 100], dtype=torch.float64)
    mean, half = difference(rows(*a), rows(*b))
    assert mean == pytest.approx(40)
    assert half == pytest.approx(1.96 * float(gains.std(correction=0)) / 5 ** 0.5)
    # no problem on which they differ: the rule of three, of 5 problems
    assert difference(rows(*a), rows(*a)) == (0, 60)
    assert difference(rows(True), rows(False)) == (100, 100), "one gain of one is no certainty"
    assert difference(rows(None), rows(True)) == (0, 100)


def test_problems_on_which_models_differ_come_first():
    """Bug: a page full of what nobody can do."""
    def rows(*verdicts):
        return [dict(id=i, sample=0, family="f", prompt="p" * 9000, gold=1, completion=f"{v}",
                     correct=v) for i, v in enumerate(verdicts)]

    found = problems_to_browse(dict(a=rows(False, True, True), b=rows(False, True, False)))
    assert [p["id"] for p in found] == [2, 0]
    assert found[0]["wrote"] == [["a", "True", True], ["b", "False", False]]
    assert len(found[0]["prompt"]) == 1000 and problems_to_browse({}) == []


def test_long_logs_are_thinned_out_from_the_end():
    """Bug: a page of 20 MB after a long run; a curve that ends before training does."""
    log = [dict(draw="x"), *(dict(arm="sft", step=i, loss=1 / i) for i in range(1, 1001))]
    points = story_of(log)["sft"]["loss"]
    assert len(points) <= 200 and points == sorted(points)
    assert points[-1] == (1000, 1 / 1000)


def test_a_text_cannot_end_the_script_it_stands_in(by_hand):
    """Bug: a sample that speaks of </script> and empties the page."""
    text = "</script><b> \n\t&漢"
    sample = dict(id=0, family=text, times=1.0, weak=1.0, live=1.0, tokens=[["q"], [text, 1, 1, 0]])
    page = page_of(view=[sample], title=text, lam=0.5)
    assert page.count("</script>") == 2 and tokens_of(page)[0][1][0] == text and "<b> " not in page
    assert visible(text) == "&lt;/script&gt;&lt;b&gt;<s>·</s><s>⏎</s>\n<s>⇥</s>&amp;漢"


def test_every_model_of_a_run_has_a_colour_of_its_own():
    """Bug: two arms in one colour, an arm without one."""
    assert set(ROWS) <= set(colours.ARMS)
    assert len({colours.ARMS[name] for name in ROWS}) == len(ROWS)


def luminance(colour):
    parts = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_stand_out_by_day_and_by_night():
    """Bug: a curve that one does not see on the dark page, grey on a grey card."""
    papers = [colours.PAPER[name] for name in ("paper", "card")]
    for name, pair in colours.TABLE.items():
        for paper in papers if name not in ("paper", "card", "grid") else ():
            for mode, colour in enumerate(pair):
                low, high = sorted([luminance(colour), luminance(paper[mode])])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (name, paper[mode])


# -------------------------------------------------------------------------------------------------
# pages of runs


def test_report_of_a_run_stands_alone_and_has_all_of_it(trained):
    """Bug: a page that asks the network for a script or a font, an arm or a score that is missing,
    numbers of another run."""
    page = (trained / "report.html").read_text()
    assert not re.search(r"https?://|<link|src=|@import|url\(", page)
    assert len(page) < 2_000_000
    rows = tables_of(page)
    by_model = {model: {r["id"]: r["correct"] for r in answers(trained, model)}
                for model in ("joint", "wmss", "sft-steps", "sft-flops")}
    for r in scores(trained):
        row = rows[r["model"]]
        assert row["right, %"] == f"{100 * r['accuracy']:.2f}"
        assert row["95 % interval"] == f"{100 * r['low']:.1f} – {100 * r['high']:.1f}"
        for family, share in r["families"].items():
            assert row[family] == f"{100 * share:.1f}"
    for arm in ("joint", "wmss"):
        for ref in ("sft-steps", "sft-flops"):
            gains = [by_model[arm][i] - by_model[ref][i] for i in by_model[arm]]
            mean = f"{100 * sum(gains) / len(gains):+.2f} ±".replace("-", "−")
            assert rows[arm][f"minus {ref}"].startswith(mean)
    assert rows["sft-steps"]["minus sft-steps"] == "–"
    for arm in ("base", "sft", "sft-steps", "sft-flops", "joint", "wmss", "wmss-mask"):
        assert f'class="swatch {arm}"' in page
    codes = gaps_of(trained)["codes"]
    for code, name in enumerate(CODES):
        assert rows[name]["tokens"] == f"{int((codes == code).sum()):,}"
    assert all(len(token) == 7 for tokens in tokens_of(page) for token in tokens if token[1:])


def test_the_story_is_that_of_the_log(trained):
    """Bug: values of one step at another's place, arms compared that read other batches."""
    story = story_of(records(trained))
    for arm, numbers in story.items():
        logged = [r for r in records(trained) if r.get("arm") == arm]
        assert numbers["loss"] == [(r["step"], r["loss"]) for r in logged]
    training = Training(story, ["joint", "sft-steps", "wmss-mask"], 0.5)
    assert training.mixing == ["joint", "wmss", "wmss-mask"]
    assert training.unmixed == ["sft-steps", "sft-flops"]
    mean = sum(v for _, v in story["joint"]["margin"]) / len(story["joint"]["margin"])
    pictures = training.pictures()
    assert f"joint {mean:.2f}".replace("-", "−") in pictures["margin"].says
    *_, less = pictures["margin"].charts
    assert "minus sft-steps" in less and ">joint<" in less and ">wmss<" not in less
    assert set(pictures) == {"entropy", "gradient", "target", "margin", "affinity", "codes", "loss"}


def test_a_saturated_run_and_a_lambda_of_0_have_their_charts():
    """Bug: a run that ends in a division by zero once its model is sure of everything."""
    names = ("loss", "gnorm_strong", "ent_strong", "ent_weak", "ent_mix", "margin", "p_target")
    log = [dict.fromkeys(names, 0.0) | dict(arm=arm, step=1, codes=[0, 0, 0, 0])
           for arm in ("sft-steps", "joint")]
    del log[0]["ent_mix"]
    found = Training(story_of(log), ["sft-steps", "joint"], 0.0)
    assert all(picture.says for picture in found.pictures().values()) and found.doubt()


def test_an_arm_that_has_a_weak_model_does_not_always_mix():
    """Bug: the losses of a teacher's pupil in the chart of mixed logits; sft-flops, which reads
    other batches, minus sft-steps."""
    log = [dict(arm=arm, step=1, loss=1.0, ent_mix=0.5, margin=1.0)
           for arm in ("frozen", "frozen-round2", "reweighted", "distilled")]
    training = Training(story_of(log), [], 0.5)
    assert training.mixing == ["frozen", "frozen-round2"]
    assert training.unmixed == ["distilled", "reweighted"]


def test_losses_on_held_out_text_are_drawn_where_the_log_has_them():
    """Bug: a run without scores that has nothing to show; values of some steps at others."""
    log = [dict(arm="sft", step=s, loss=1.0, **({"val_loss": 2.0 / s} if s % 2 else {}))
           for s in range(1, 6)]
    log += [dict(arm="joint", step=s, val_loss=0.5 - s / 100, loss=1.0) for s in (1, 2)]
    story = story_of(log)
    assert story["sft"]["val_loss"] == [(1, 2.0), (3, 2.0 / 3), (5, 0.4)]
    picture = by_step(story, "val_loss", "Held-out loss")
    assert picture.says == "At the end: sft 0.4000, joint 0.4800; the least: sft."
    assert len(picture.charts) == 2 and not by_step(story_of(log[1:2]), "val_loss", "").charts
    head, lines = table_of(dict(sft=dict(flops=None, seconds=1.0)), [], story, {})
    assert dict(zip(head, lines[0], strict=True))["least, at step"] == "0.4000, 5"
    page = page_of(title="t", lam=0.5, pictures=dict(validation=picture), models=(head, lines))
    assert picture.says in page and "0.4000, 5" in page


def test_there_is_a_page_after_every_stage(run):
    """Bug: nothing to look at before the scores, which a long run may never reach."""
    folder = run("--stages", "base")
    page = (folder / "report.html").read_text()
    assert "Loss, nats: base" in page and "No model has answered problems yet" in page
    run("--stages", "sft,entropy", "--resume")
    page = (folder / "report.html").read_text()
    assert "Loss, nats: sft" in page and tokens_of(page) and 'id="gaps"' in page
    made = (folder / "tokens.json").stat().st_mtime_ns
    run("--stages", "wmss", "--arm", "joint", "--resume")
    page = (folder / "report.html").read_text()
    assert "Entropy, nats: joint" in page and "joint" in tables_of(page)
    assert 'id="scores"' in page and "95 % interval" not in page
    assert (folder / "tokens.json").stat().st_mtime_ns == made, "the models were read again"


def test_a_run_without_gaps_has_a_page(run):
    """Bug: a page that asks for a file that no arm needed."""
    folder = run("--gap", "none", "--arm", "joint", "--stages", "base,sft,entropy,wmss")
    page = (folder / "report.html").read_text()
    assert 'id="gaps"' not in page and "Entropy, nats: joint" in page


def test_table_of_gaps_is_that_of_the_file(trained):
    """Bug: a table that shows other numbers than training used."""
    gaps = Gaps(**gaps_of(trained))
    table = gap_table(gaps, clean_set(toy_encoding(), 24, 0))
    assert {line.split()[0] for line in table.splitlines()[-len(FAMILIES):]} == set(FAMILIES)
    rows = tables_of((trained / "report.html").read_text())
    for name in CODES:
        assert re.search(rf"{name} +{rows[name]['tokens']} +{rows[name]['share']}", table)


def test_any_two_checkpoints_and_any_text_make_a_page(trained, tmp_path, hf_folder, text, capsys):
    """Bug: a token view for the built-in tasks alone."""
    page = tmp_path / "page.html"
    entropy.main(["--weak", str(trained / "base.pt"), "--live", str(trained / "wmss.pt"),
                  "--report", str(page)])
    written = page.read_text()
    assert "(wmss)" in written and 'id="training"' not in written and tokens_of(written)
    entropy.main(["--weak", str(hf_folder), "--live", str(hf_folder), "--data", text[0],
                  "--report", str(page)])
    written = page.read_text()
    assert tables_of(written)["consolidating"]["tokens"] == "0", "a model is as sure as itself"
    assert any("What is" in "".join(t[0] for t in tokens) for tokens in tokens_of(written))
    capsys.readouterr()


# -------------------------------------------------------------------------------------------------
# the page in a browser

# what is told by a page of 390 and one of 1280 pixels: what stands out of it, the worst contrast of
# a text, the smallest letters, texts of a chart that lie on each other or leave it, and what the
# box of the token view says before and after the focus comes
ASK = """<script>addEventListener("load", () => {
  document.querySelectorAll("details").forEach((e) => { e.open = true; });
  const shown = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility());
  const out = shown.filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => e.tagName + "." + e.className);
  const rgba = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith("color") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a]; };
  const over = ([r, g, b, a], c) => [r, g, b].map((v, i) => v * a + c[i] * (1 - a));
  const paper = (e) => (e ? over(rgba(getComputedStyle(e).backgroundColor), paper(e.parentElement))
    : [255, 255, 255]);
  const light = (c) => c.map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4)).reduce((t, v, i) => t + v * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = [99, ""];
  for (const e of shown) {
    if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
    if (/SCRIPT|STYLE/.test(e.tagName)) continue;
    const style = getComputedStyle(e), back = paper(e);
    const ink = over(rgba(e.closest("svg") ? style.fill : style.color), back);
    const [low, high] = [light(ink), light(back)].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < worst[0]) worst = [ratio, e.tagName + "." + e.className + ": " + e.textContent];
  }
  let small = 99;
  const clash = [];
  for (const e of shown.filter((e) => e.textContent.trim() && !e.closest("svg")))
    small = Math.min(small, parseFloat(getComputedStyle(e).fontSize));
  for (const svg of document.querySelectorAll("svg[role=img]")) {
    const whole = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((e) => [e, e.getBoundingClientRect()]);
    texts.forEach(([e, a], i) => {
      const size = e.getAttribute("font-size") * whole.width / svg.viewBox.baseVal.width;
      small = Math.min(small, size);
      if (a.left < whole.left - 1 || a.right > whole.right + 1 || a.top < whole.top - 1
          || a.bottom > whole.bottom + 1) clash.push("out: " + e.textContent);
      for (const [f, b] of texts.slice(i + 1))
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
            && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
          clash.push(e.textContent + " / " + f.textContent);
    });
  }
  const box = document.getElementById("inspect"), before = box && box.textContent;
  const token = document.querySelector("[data-t]");
  if (token) token.focus();
  const after = box && box.textContent, first = document.activeElement;
  const right = new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true });
  if (token) token.dispatchEvent(right);
  const moved = document.activeElement !== first, kept = [];
  const choose = (id, place) => {
    const select = document.getElementById(id);
    select.selectedIndex = place;
    select.dispatchEvent(new Event("change"));
    return select.value;
  };
  if (token) {
    choose("by-code", 3);
    for (const e of document.querySelectorAll(".sample"))
      kept.push(e.hidden === !e.querySelector(".c3"));
  }
  if (document.getElementById("problems")) {
    const model = choose("wrong-in", 2);
    for (const e of document.querySelectorAll(".problem:not([hidden])")) {
      const name = [...e.querySelectorAll("span")].find((s) => s.textContent === model);
      kept.push(name.nextElementSibling.textContent === "✗");
    }
  }
  parent.postMessage({ page: location.pathname, width: innerWidth, out, worst, small, clash,
    wide: document.documentElement.scrollWidth, before, after, moved, kept,
    h1: document.querySelector("h1").textContent,
    bad: /NaN|undefined|Infinity/.test(document.body.innerHTML.split("<script")[0]),
    svgs: document.querySelectorAll("svg[role=img]").length }, "*");
});</script>"""
FRAME = """<iframe src="{0}.html" style="width:390px;height:900px;border:0"></iframe>
<iframe src="{0}.html" style="width:1280px;height:900px;border:0"></iframe>"""
TELL = """<pre></pre><script>const found = [];
addEventListener("message", (e) => { found.push(e.data);
document.querySelector("pre").textContent = JSON.stringify(found); });</script>"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    """browser(pages, dark) -> (what two frames of each page tell, what the console says)."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no chromium here (Debian: apt-get install chromium)")

    def look(pages, dark=False):
        folder = tmp_path_factory.mktemp("browser")
        for i, page in enumerate(pages):
            (folder / f"{i}.html").write_text(page + ASK)
        frames = "".join(FRAME.format(i) for i in range(len(pages)))
        (folder / "frame.html").write_text(TELL + frames)
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync",
                 "--hide-scrollbars", "--enable-logging=stderr",
                 f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000",
                 "--window-size=1400,1000"]
        if dark:
            flags.append("--blink-settings=preferredColorScheme=0")
        done = subprocess.run([path, *flags, "--dump-dom", f"file://{folder / 'frame.html'}"],
                              capture_output=True, text=True, timeout=120)
        told = json.loads(html.unescape(re.search(r"<pre>(.*?)</pre>", done.stdout).group(1)))
        told.sort(key=lambda each: (each["page"], each["width"]))
        assert [each["width"] for each in told] == [390, 1280] * len(pages)
        return told, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return look


def figures():
    """The committed figures as a page, as wide as GitHub shows them."""
    paths = sorted((ROOT / "experiments").glob("*.svg")) + [ROOT / "docs/gaps.svg"]
    assert len(paths) >= 4
    return """<style>svg[width] { width: 100%; max-width: 480px; height: auto; display: block }
        body { margin: 0 16px }</style><h1>Figures</h1>""" + "".join(p.read_text() for p in paths)


@pytest.mark.parametrize("dark", [False, True])
def test_page_and_figures_are_whole_on_a_phone_and_on_a_desk(trained, browser, dark):
    """Bug: a column that is cut off, labels on each other, letters of 8 pixels, grey on grey, a
    token that tells nothing, a script's error."""
    told, console = browser([(trained / "report.html").read_text(), figures()], dark)
    assert not console
    for page in told:
        assert not page["bad"] and page["wide"] <= page["width"] and not page["out"]
        assert page["worst"][0] >= 4.5, page["worst"]
        assert not page["clash"] and page["small"] >= 11
    for page in told[:2]:
        assert page["h1"] == "WMSS: m" and page["svgs"] > 20
        assert page["before"] == "Choose a token." and page["moved"]
        assert len(page["kept"]) > 20 and all(page["kept"]), "a filter hides or shows the wrong"
        assert all(word in page["after"] for word in ("entropy", "weak", "live", "mix"))


def test_pages_of_unfinished_runs_are_whole(trained, browser, run, tmp_path, capsys):
    """Bug: a page that stops at what is not there yet."""
    folder = run("--stages", "base")
    pages = [(folder / "report.html").read_text()]
    run("--stages", "sft,entropy", "--resume")
    pages.append((folder / "report.html").read_text())
    entropy.main(["--weak", str(trained / "base.pt"), "--live", str(trained / "sft.pt"),
                  "--report", str(tmp_path / "page.html")])
    pages.append((tmp_path / "page.html").read_text())
    capsys.readouterr()
    told, console = browser(pages)
    assert not console
    for page in told:
        assert page["svgs"] and not page["bad"] and not page["out"] and not page["clash"]


def test_what_leaves_nothing_to_mix_or_prefer_is_said_once(run, trained, capsys):
    """Bug: weak and live that are one model, a mask without a token, --lam 0: no sign of it but a
    table of scores that are all the same."""
    same_model = ("--base", str(trained / "sft.pt"), "--sft", str(trained / "sft.pt"))
    run("--name", "a", *same_model, "--stages", "entropy", "--h", "100")
    said = capsys.readouterr().out
    assert said.count("both models have the same entropies everywhere") == 1
    assert said.count("no token is in the gap mask: it mixes nothing") == 1
    run("--name", "b", *same_model, "--stages", "wmss", "--lam", "0", "--gap", "none",
        "--arm", "wmss", "joint")
    assert capsys.readouterr().out.count("--lam 0: mixed logits are the weak model's alone") == 1
