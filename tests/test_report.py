"""plumbing/report.py: tables and the page that a run shows, on gaps made by hand and on a run."""

import re

import pytest
import torch
from runs import gaps_of, scores

from data import FAMILIES
from entropy import Gaps
from plumbing.report import (
    CODES,
    TERMINAL_COLOURS,
    gap_table,
    heaviest,
    html_report,
    loss_curves,
    score_table,
    show_samples,
    tokens_with_codes,
)
from plumbing.tasks import clean_set
from plumbing.tokenizer import toy_encoding


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
                            f"weak {gaps.ent_weak.mean():.4f}, live {gaps.ent_live.mean():.4f}")
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


def test_loss_curves_have_a_line_for_each_arm():
    """Bug: a curve that is missing, a logarithm of 0, a page that a NaN empties."""
    log = [dict(arm=arm, step=step, loss=loss) for arm in ("base", "a<b") for step, loss
           in ((1, 4.0), (2, 1.0), (3, 0.04))]
    svg = loss_curves([*log, dict(draw="base"), dict(arm="sft", step=1, loss=0.0)])
    assert svg.count("<polyline") == 2 and "a&lt;b" in svg and "nan" not in svg
    points = re.findall(r'points="([^"]*)"', svg)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights) and len(heights) == 3       # SVG counts from the top
    assert loss_curves([]) == ""


def test_page_stands_alone_without_gaps(by_hand):
    """Bug: a page that asks the network for a script or a font, a run with --gap none that has
    none."""
    gaps, samples = by_hand
    page = html_report("WMSS: <x>", "a < b", [], None)
    assert "WMSS: &lt;x&gt;" in page and "a &lt; b" in page and "Gaps between" not in page
    page = html_report("x", "table", [], gaps, samples, toy_encoding(), n=3)
    assert "a&lt;b&gt;.pt" in page and page.count("x uniform<br>") == 3
    assert 'title="1.000 -&gt; 0.000 nats"' in page


def test_report_of_a_run_stands_alone_and_shows_scores_curves_and_gaps(trained):
    """Bug: a page that asks the network for a script or a font, an unescaped <|end|>, a curve that
    is missing."""
    page = (trained / "report.html").read_text()
    assert not re.search(r"https?://|<script|<link", page)
    assert "<|end|>" not in page and "&lt;|end|&gt;" in page
    assert page.count("<polyline") == 7                 # base, sft and five arms
    assert score_table(scores(trained)) in page
    assert page.count("x uniform<br>") == 8
    assert all(name in page for name in CODES)


def test_table_of_gaps_is_that_of_the_file(trained):
    """Bug: a table that shows other numbers than training used."""
    gaps = Gaps(**gaps_of(trained))
    table = gap_table(gaps, clean_set(toy_encoding(), 24, 0))
    assert table.splitlines()[0] in (trained / "report.html").read_text()
    assert {line.split()[0] for line in table.splitlines()[-len(FAMILIES):]} == set(FAMILIES)
