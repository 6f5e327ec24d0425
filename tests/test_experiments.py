"""experiments/: the sweep end to end at toy size, killed and taken up again; its cells against
train_wmss.py's own command line; the statistics against hand values, tables and simulations.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import doctest
import io
import itertools
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import xml.dom.minidom

import numpy as np
import pytest
import torch
from conftest import ROOT

import eval_math
import train_wmss
from model import load_checkpoint, read_config
from plumbing import draw
from plumbing.tokenizer import toy_encoding

sys.path.insert(0, os.path.join(ROOT, "experiments"))
import analyse
import mistakes
import phase
import real
import rules
import sweep
import words

ARMS = ["sft", "sft-steps", "joint", "contrastive"]


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def job(
    work, arm, regime="default", task="toy-math", split="val", lr=None, lam=None, mu=None, seed=0
):
    return dict(
        kind="cell",
        regime=regime,
        task=task,
        seed=seed,
        arm=arm,
        lr=lr,
        lam=lam,
        mu=mu,
        split=split,
        work=str(work),
        size=sweep.COMMANDS["toy"] | sweep.QUICK | dict(test=28),
        config=sweep.QUICK["config"],
        consent=True,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with base and M1 of seed 0 for the math task, made by the sweep's own jobs."""
    folder = tmp_path_factory.mktemp("work")
    for regime in ("default", "short"):
        for kind in ("base", "m1")[regime != "default" :]:
            sweep.prepare(job(folder, "sft", regime) | dict(kind=kind))
    return folder


# ------------------------------------------------------------------------------------------------
# the sweep


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Path of the rows of a quick sweep that was killed in the middle, left half a line, and was
    started again."""
    folder = tmp_path_factory.mktemp("sweep")
    out = folder / "rows.jsonl"
    flags = [
        "toy",
        "--quick",
        "--seeds",
        "2",
        "--tasks",
        "toy-math",
        "--arms",
        *ARMS,
        "--out",
        str(out),
        "--work",
        str(folder / "work"),
    ]
    first = subprocess.Popen(
        [sys.executable, os.path.join(ROOT, "experiments", "sweep.py"), *flags, "--workers", "1"],
        stdout=subprocess.DEVNULL,
    )
    while not out.exists() or out.read_text().count("\n") < 6:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = out.read_text()
    with open(out, "a") as f:
        f.write('{"regime": "default", "task": "toy-m')
    with contextlib.redirect_stdout(io.StringIO()) as said:
        sweep.main([*flags, "--workers", "2"])
    assert out.read_text().startswith(kept), "what was done is done"
    assert (
        "base: 0 to do" in said.getvalue()
        and f"val: {15 - kept.count(chr(10))} to do" in said.getvalue()
    )
    return out


def test_on_another_machine_only_the_seeds_that_are_missing_are_begun(tmp_path, capsys):
    """Bug: rows by arm, of which no seed is whole when a machine is gone; bases of finished seeds
    trained once more."""
    flags = ["map", "--quick", "--tasks", "toy-math", "--regimes", "w0.05-q0.3", "--arms", "weak",
             "sft", "--out", f"{tmp_path}/rows.jsonl", "--workers", "1"]
    sweep.main([*flags, "--seeds", "1", "--work", f"{tmp_path}/first"])
    sweep.main([*flags, "--seeds", "2", "--work", f"{tmp_path}/second"])
    said = capsys.readouterr().out
    assert said.count("base: 1 to do") == said.count("m1: 1 to do") == 2
    seeds = [r["seed"] for r in analyse.read_rows(tmp_path / "rows.jsonl")]
    assert seeds == [0, 0, 1, 1]
    planned = [c["seed"] for c in sweep.plan(["toy-math"], 3, sweep.COMMANDS["rivals"])]
    assert planned == sorted(planned)


def test_no_point_of_the_map_fine_tunes_on_the_start_of_its_own_corpus():
    """Bug: w = q = 0.5, two shares that seed one draw: SFT sees nothing that the base has not."""
    for regime, (of_sft, _) in sweep.SHARES.items():
        d, corpus = (sweep.TASKS["toy-code"]("train", 100, 0, of_sft[k])
                     for k in ("label_noise", "noise"))
        same = {p.prompt for p in d} & {p.prompt for p in corpus}
        assert len(same) < 20, regime


def test_a_killed_sweep_goes_on_and_ends_with_one_whole_row_per_cell(rows):
    """Bug: cells done twice or never, a half line that ends the reading, a test split read at more
    settings than the chosen one."""
    lines = analyse.read_rows(rows)
    keys = [analyse.key_of(r) for r in lines]
    assert len(keys) == len(set(keys)) == (1 + 2 + 2 + 2) * 2 + len(ARMS) * 2
    tested = [(r["arm"], r["seed"]) for r in lines if r["split"] == "test"]
    assert sorted(tested) == sorted((arm, seed) for arm in ARMS for seed in (0, 1))
    chosen = analyse.choices(lines)
    for r in lines:
        assert {
            "commit",
            "versions",
            "hardware",
            "config",
            "total",
            "accuracy",
            "n",
        } <= r.keys() and r["config"] == sweep.QUICK["config"]
        assert (
            r["split"] == "val"
            or {k: r[k] for k in analyse.SETTING} == chosen["default", "toy-math", r["arm"]]
        )
        if r["split"] == "test":
            assert (
                len(analyse.unpack(r["correct"], r["n"])) == 28
                and sum(analyse.unpack(r["correct"], r["n"])) == r["accuracy"] * 28
            )
            assert {"flops", "families", "pass@1", "pass@8"} <= r.keys() and ("nll" in r) == (
                r["arm"] != "contrastive"
            )
            assert len(r["log"]) == (3 if r["arm"] in ("sft-steps", "joint") else 0) and all(
                "margin" in step for step in r["log"]
            )


def test_the_tables_and_figures_come_from_the_rows_alone_and_the_prose_stays(rows, tmp_path):
    """Bug: numbers typed by hand, prose lost, tables that grow with each run."""
    prose = tmp_path / "README.md"
    prose.write_text("# Before\n")
    command = ["--rows", str(rows), "--into", str(tmp_path)]
    analyse.main(command)
    text = (tmp_path / "TABLES.md").read_text()
    assert "## main toy-math\n" in text and prose.read_text() == "# Before\n"
    lines = analyse.read_rows(rows)
    for arm in ARMS:
        values = [r["accuracy"] for r in lines if r["split"] == "test" and r["arm"] == arm]
        assert f"| {arm} |" in text and analyse.mean_std(values) in text
    assert f"{len(lines)} rows" in text
    for name in ("differences.svg", "rates.svg", "lambda.svg"):
        picture = (tmp_path / name).read_text()
        assert picture.startswith("<svg") and xml.dom.minidom.parseString(picture)
    analyse.main(command)
    assert (tmp_path / "TABLES.md").read_text() == text
    assert "## regimes" not in text, "our tables among somebody's own"
    with pytest.raises(SystemExit, match="found none"):
        analyse.main(["--regimes", str(tmp_path / "none.jsonl"), "--into", str(tmp_path)])


def test_the_published_tables_and_figures_are_those_of_the_rows(tmp_path):
    """Bug: rows that nobody looked at again, a table of an earlier program."""
    analyse.main(["--into", str(tmp_path)])
    for name in ("TABLES.md", "differences.svg", "rates.svg", "lambda.svg"):
        assert (tmp_path / name).read_text() == open(os.path.join(analyse.HERE, name)).read(), name


def test_the_page_is_short_and_its_numbers_stand_in_the_tables():
    """Bug: a page that grows back to 17,000 words, a number that no row gives."""
    page, *tables = (
        open(os.path.join(analyse.HERE, name), encoding="utf-8").read()
        for name in ("README.md", "TABLES.md", "mistakes.md", "phase.md", "real.md")
    )
    assert len(page.replace("|", " ").split()) <= 900
    stated = set(re.findall(r"\d+\.\d+", page)) - {"0.9", "0.7", "0.5", "0.3", "2602.08222"}
    known = set(re.findall(r"\d+\.\d+", "".join(tables)))
    own = {line for line in page.splitlines() if "paper" in line}  # the paper's own numbers
    assert not {x for x in stated - known if not any(x in line for line in own)}


def test_old_names_of_arms_are_read_as_todays(tmp_path):
    """Bug: `wmss` of an old row (resampling and mask) taken for the paper's (resampling alone)."""
    path = tmp_path / "rows.jsonl"
    row = dict(regime="default", task="toy-math", seed=0, split="val", accuracy=0.5)
    old = (
        "m1",
        "sft",
        "sft-flops",
        "d0",
        "label-smoothing",
        "wmss",
        "wmss-sample",
        "wmss-token",
        "wmss-v1",
        "wmss-v2",
        "joint",
    )
    lines = [
        dict(made=dict(config={})),
        *(row | dict(arm=arm) for arm in old),
        dict(made=dict(config={}, vocabulary=2)),
        *(row | dict(arm=arm) for arm in ("sft", "wmss", "wmss-both")),
    ]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"regime": "def')
    assert [r["arm"] for r in analyse.read_rows(path)] == [
        "sft",
        "sft-steps",
        "sft-flops",
        "temperature",
        "smoothing",
        "wmss-both",
        "wmss",
        "wmss-mask",
        "wmss-both-v1",
        "wmss-both-v2",
        "joint",
        "sft",
        "wmss",
        "wmss-both",
    ]
    assert set(analyse.OLD_NAMES.values()) <= {*sweep.START, *sweep.TRAINED}
    for arm, flags in (("wmss", "sample"), ("wmss-mask", "token"), ("wmss-both", "both")):
        assert sweep.TRAINED[arm]["gap"] == flags


def test_scores_of_the_wrong_scorer_are_gone():
    """Bug: scores of programs that were cut before they began, among the results or the claims."""
    for name in ("toy", "regimes"):
        rows = analyse.read_rows(os.path.join(analyse.HERE, f"{name}.jsonl"))
        assert {r["task"] for r in rows} <= {"toy-math", "toy-code"}


def test_a_cell_is_what_the_command_line_trains(run, work):
    """Bug: an experiment on a re-implementation: other data, other order, another loss than those
    of train_wmss.py."""
    m1 = [
        "--base",
        str(work / "toy-math-0" / "base.pt"),
        "--sft",
        str(work / "toy-math-0" / "m1-default" / "sft.pt"),
    ]
    size = [
        f for k, v in sweep.QUICK["config"].items() for f in ("--" + k.replace("_", "-"), str(v))
    ]
    cells = (
        ("joint", 0.3, "joint", ["--gap", "none"]),
        ("wmss", 0.5, "wmss", ["--gap", "sample"]),
        ("wmss-both-v2", 0.7, "wmss", ["--gap", "both", "--weights", "v2", "--dedup"]),
        ("sft-flops", None, "sft-flops", ["--gap", "none"]),
    )
    rates = [w for k in sweep.RATE_FLAGS for w in ("--" + k.replace("_", "-"), "1e-3")]
    for arm, lam, flag, flags in cells:
        folder = work / f"cell-{arm}"
        model, how, cost, log = sweep.train_cell(job(work, arm, lr=1e-3, lam=lam), str(folder))
        stage3 = ["--stages", "entropy,wmss", "--arm", flag, "--lam", str(lam or 0.5), *rates]
        out = run("--name", arm, *m1, *size, *flags, *stage3)
        want, meta = load_checkpoint(out / f"{flag}.pt")
        assert same_weights(model, want) and not how
        assert cost["flops"] == meta["spent"]["flops"]
        assert cost["steps"] == len(log) == meta["step"]
        again = sweep.train_cell(job(work, arm, lr=1e-3, lam=lam), str(work / f"again-{arm}"))[0]
        assert same_weights(model, again)  # with the kept gaps


def test_regimes_change_what_they_say(work):
    """Bug: a weak snapshot that is the base all the same, rounds that are one, a short SFT that is
    a whole one."""

    def cell(arm, regime, **kw):
        return sweep.train_cell(job(work, arm, regime, **kw), str(work / f"{regime}-{arm}"))

    base, early, m1, short = (
        cell("weak", "default")[0],
        cell("weak", "snapshot")[0],
        cell("sft", "default")[0],
        cell("sft", "short")[0],
    )
    assert (
        same_weights(m1, cell("sft", "snapshot")[0])
        and not same_weights(base, early)
        and not same_weights(early, m1)
        and not same_weights(short, m1)
    )
    for arm in ("joint", "frozen"):
        one, two = (cell(arm, r, lr=1e-3, lam=0.5) for r in ("default", "two-rounds"))
        assert two[2]["steps"] == 2 * one[2]["steps"] and not same_weights(one[0], two[0])
        assert two[2]["flops"] == 2 * one[2]["flops"] and [r["step"] for r in two[3]] == [
            1,
            2,
            3,
            1,
            2,
            3,
        ]
        assert not same_weights(one[0], cell(arm, "snapshot", lr=1e-3, lam=0.5)[0])
    assert (
        cell("sft-steps", "two-rounds", lr=1e-3)[2]["steps"] == 6
        and cell("sft-steps", "more", lr=1e-3)[2]["steps"] == 12
    )


def test_training_free_relatives_are_what_they_are_called(work):
    """Bug: mu of the wrong sign, or counted from the wrong model."""
    base, m1 = (sweep.train_cell(job(work, arm), "")[0] for arm in ("weak", "sft"))
    out = sweep.train_cell(job(work, "extrapolation", mu=0.5), "")[0]
    for p, q, r in zip(out.parameters(), m1.parameters(), base.parameters(), strict=True):
        torch.testing.assert_close(p, 1.5 * q - 0.5 * r)
    model, how, *_ = sweep.train_cell(job(work, "contrastive", mu=0.5), "")
    assert how["lam"] == 1.5 and torch.equal(
        how["weak"].embed_tokens.weight, base.embed_tokens.weight
    )
    assert torch.equal(model.embed_tokens.weight, m1.embed_tokens.weight)


def test_every_arm_is_tried_as_often_on_the_same_range():
    """Bug: the method tuned harder than its controls, or a control harder than the method."""
    toy, quick = sweep.COMMANDS["toy"], sweep.FULL | sweep.QUICK
    for size, n in ((toy, 24), (sweep.COMMANDS["regimes"], 15), (quick, 2)):
        for arm in (*sweep.TRAINED, *sweep.FREE):
            tried = sweep.settings(arm, size)
            assert len(tried) == len({tuple(s.values()) for s in tried}) == n, arm
            assert arm in sweep.FREE or {tried[0]["lr"], tried[-1]["lr"]} == {1e-5, 3e-3}
            assert (arm in sweep.FREE) == (tried[0]["mu"] is not None) and (
                tried[0]["lam"] is None
            ) == (arm not in sweep.MIXED)
    assert any(s["mu"] == 1 for s in sweep.settings("contrastive", toy))
    cells = sweep.plan(["toy-math"], 5, toy)
    assert {c["arm"] for c in cells} == set(toy["arms"]) >= {"joint", "wmss", *sweep.FREE}
    assert len({analyse.key_of(c) for c in cells}) == len(cells)


def test_where_rates_are_equal_they_are_equal_for_every_arm():
    """Bug: plain SFT at more rates than what it is compared with, which then looks worse."""
    for command in ("equal", "unsure", "chains", "map", "rivals"):
        size = sweep.COMMANDS[command]
        tried = {}
        for c in sweep.plan(list(size["val"]), 1, size):
            if c["arm"] not in sweep.START:
                key = (c["task"], c["regime"], c["arm"], c["lam"])
                tried.setdefault(key[:2], {}).setdefault(key[2:], set()).add(c["lr"])
        for by_arm in tried.values():
            assert len({tuple(sorted(lrs)) for lrs in by_arm.values()}) == 1
            assert {lam for arm, lam in by_arm if arm == "joint"} == set(size["lams"])


class Fixed(torch.nn.Module):
    """A model whose logits are a table of the token that it reads, and its head the identity."""

    def __init__(self, seed):
        super().__init__()
        n = toy_encoding().n_vocab
        self.table = torch.randn(n, n, generator=torch.Generator().manual_seed(seed))
        self.lm_head = torch.nn.Identity()

    def forward(self, buckets):
        return torch.cat([self.table[x].flatten(0, 1) for x in buckets])


def test_a_rule_marks_the_tokens_that_its_sentence_names():
    """Bug: marks that belong to another sample once batches are sorted by length; a weak and a live
    model that have changed places."""
    samples = sweep.encode(sweep.TASKS["toy-math"]("val", 21), toy_encoding())
    weak, live = Fixed(0), Fixed(1)
    for rule in rules.RULES:
        expected = []
        for s in samples:
            for before, y, counts in zip(s.tokens, s.tokens[1:], s.loss[1:], strict=False):
                p, q = (m.table[before].softmax(-1) for m in (weak, live))
                expected += [dict(divergence=(p * (p / q).log()).sum() > 0.01,
                                  moved=abs((q[y] / p[y]).log()) > 0.1,
                                  surprise=-p[y].log() > 0.05,
                                  agreement=p.argmax() == y)[rule]] * bool(counts)
        assert rules.marks(rule, weak, live, samples).tolist() == [int(m) for m in expected]
    assert len(set(rules.marks("agreement", weak, live, samples).tolist())) == 2


def test_log_odds_are_read_where_the_two_solutions_part():
    """Bug: odds of a later token, which both solutions share; a problem without a mistake in it."""
    enc, model = toy_encoding(), Fixed(0)
    problems = sweep.TASKS["toy-math"]("val", 21)
    shown = []
    for p in problems:
        right, wrong = (enc.encode_ordinary(p.prompt + c) + [enc.end_id]
                        for c in (p.completion, p.mistake))
        if right != wrong:
            at = next(i for i, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b)
            row = model.table[right[at - 1]]
            shown.append((row[right[at]] - row[wrong[at]]).item())
    assert 0 < len(shown) < len(problems)
    assert rules.log_odds(model, problems, enc) == pytest.approx(np.mean(shown), rel=1e-5)


def test_remembered_verdicts_are_those_of_running_the_programs(work, monkeypatch):
    """Bug: a verdict of another problem, or of another completion."""
    problems = sweep.TASKS["toy-code"]("val", 8)
    right = [
        dict(
            id=p.id,
            prompt=p.prompt,
            family=p.family,
            completion=p.completion,
            gold="",
            truncated=False,
        )
        for p in problems
    ]
    wrong = [r | dict(completion="x + 0.125") for r in right]
    there = job(work, "sft", task="toy-code")
    assert [r["correct"] for r in sweep.judge(there, right + wrong, problems)] == [True] * 8 + [
        False
    ] * 8
    monkeypatch.setattr(sweep.eval_code, "judge", None)  # nothing is run a second time
    assert [r["correct"] for r in sweep.judge(there, wrong + right, problems)] == [False] * 8 + [
        True
    ] * 8


def test_a_test_cell_looks_closer_and_its_numbers_are_those_of_torch(work):
    """Bug: prompt tokens in the likelihood, confidences laid on other answers, pass@k of greedy
    samples."""
    r = sweep.do_cell(job(work, "joint", split="test", lr=1e-3, lam=0.5))
    model = sweep.train_cell(job(work, "joint", lr=1e-3, lam=0.5), str(work / "closer"))[0]
    samples = sweep.encode(sweep.TASKS["toy-math"]("test", 28), sweep.toy_encoding())
    loss = [
        torch.nn.functional.cross_entropy(
            model.logits(s.tokens[None, :-1])[0][s.loss[1:]],
            s.tokens[1:][s.loss[1:]],
            reduction="sum",
        ).item()
        for s in samples
    ]
    assert r["nll"] == pytest.approx(sum(loss) / sum(int(s.loss.sum()) for s in samples), rel=1e-5)
    assert (
        r["nll_solution"] == pytest.approx(sum(loss) / 28, rel=1e-5)
        and 0 <= r["ece_token"] <= 1
        and 0 <= r["pass@1"] <= r["pass@8"] <= 1
    )
    logp, confidence, right = sweep.likelihoods(model, samples)
    assert [-x for x in logp] == pytest.approx(loss, rel=1e-5) and len(confidence) == len(
        right
    ) == sum(int(s.loss.sum()) for s in samples)


def test_a_cell_that_diverges_is_a_row_not_the_end_of_the_sweep(work):
    """Bug: a night's sweep that ends at the largest rate."""
    r = sweep.do_cell(job(work, "sft-steps", lr=3e38))
    assert r["accuracy"] == 0 and "diverged" in r["error"]
    r = sweep.do_cell(job(work, "sft-steps", lr=3e38, split="test"))
    assert (
        r["accuracy"] == 0
        and not any(analyse.unpack(r["correct"], r["n"]))
        and set(r["families"].values()) == {0.0}
    )
    with pytest.raises(
        (SystemExit, ValueError), match="no whole|is not|expected"
    ):  # while what is missing is no result
        sweep.do_cell(job(work / "nowhere", "sft-steps", lr=1e-4))


def test_checkpoints_of_other_flags_are_made_anew(work, tmp_path):
    """Bug: an M1 of an earlier configuration that half of the seeds start from."""
    there = job(work, "sft") | dict(kind="m1")
    assert (
        sweep.is_there(there)
        and sweep.is_there(there | dict(kind="base"))
        and not sweep.is_there(job(tmp_path, "sft") | dict(kind="m1"))
    )
    assert not sweep.is_there(
        there | dict(size=dict(there["size"], config=sweep.QUICK["config"] | dict(base_steps=5)))
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (["toy"], "--allow-code-execution"),
        (["toy", "--quick", "--tasks", "toy-math"], "name its --out"),
        (["chains", "--tasks", "toy-math"], "--tasks: chains is of long-math"),
        (["map", "--tasks", "long-math"], "--tasks: map is of toy-math and toy-code"),
        (["toy", "--tasks", "toy-math", "--arms", "sfd"], "found sfd"),
        (["toy", "--tasks", "toy-math", "--seeds", "0"], "1 or more"),
        (["toy", "--tasks", "toy-math", "--regimes", "few"], "some of default, found few"),
    ],
)
def test_wrong_flags_are_refused_before_work(capsys, flags, said):
    """Bug: programs run without consent, quick rows among those of the experiment."""
    with pytest.raises(SystemExit):
        sweep.main(flags)
    assert said in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------
# statistics


def test_worked_examples_are_true():
    """Bug: an example that nobody has run."""
    for module, n in ((analyse, 8), (draw, 2), (phase, 2), (words, 2)):
        result = doctest.testmod(module)
        assert result.failed == 0 and result.attempted == n


@pytest.mark.parametrize(
    "df, p, t",
    [
        (1, 0.05, 12.7062),
        (2, 0.05, 4.30265),
        (4, 0.05, 2.77645),
        (10, 0.01, 3.16927),
        (30, 0.05, 2.04227),
        (120, 0.05, 1.97993),
        (10000, 0.05, 1.96020),
        (10, 0.001, 4.5869),
        (4, 0.001, 8.6103),
        (1, 1e-8, 63661977.2),
    ],
)
def test_t_agrees_with_the_printed_tables(df, p, t):
    """Bug: a one-sided quantile, or a normal one."""
    assert analyse.t_quantile(df, p) == pytest.approx(t, rel=2e-5) and analyse.t_tail(
        -t, df
    ) == pytest.approx(p, rel=2e-4)


def test_t_with_a_broken_number_of_degrees_agrees_with_its_density():
    """Bug: degrees of freedom rounded to a whole number."""
    df, t = 4.5, analyse.t_quantile(4.5)
    x = np.linspace(-t, t, 200_001)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    assert np.trapezoid(scale * (1 + x**2 / df) ** (-(df + 1) / 2), x) == pytest.approx(
        0.95, abs=1e-6
    )


def test_crossed_interval_by_hand():
    """Bug: a mean square divided by the wrong count; seeds and problems mixed up."""
    d = [
        [4.0, 1.0],
        [1.0, 1.0],
        [1.0, 0.0],
    ]  # means of seeds 5/2, 1, 1/2, of problems 2, 2/3, of all 4/3
    mean, half, p = analyse.crossed(d)
    ms_s, ms_p, ms_r = 2 * (49 + 4 + 25) / 36 / 2, 3 * (4 + 4) / 9 / 1, 2 * (25 + 16 + 1) / 36 / 2
    ms = ms_s + ms_p - ms_r
    df = ms**2 / (ms_s**2 / 2 + ms_p**2 / 1 + ms_r**2 / 2)
    assert (
        df > 1
        and mean == pytest.approx(4 / 3)
        and half == pytest.approx(analyse.t_quantile(df) * (ms / 6) ** 0.5)
    )
    assert p == pytest.approx(analyse.t_tail(mean / (ms / 6) ** 0.5, df))
    assert analyse.crossed([[0, 0], [0, 0]])[1:] == (0.0, 1.0)
    one = np.array([1, 0, 0, 1, -1, 0, 1, 1])  # one seed: the ordinary paired t interval
    assert analyse.crossed([one])[1] == pytest.approx(2.364624 * one.std(ddof=1) / 8**0.5, rel=1e-5)
    assert analyse.crossed([[1.0]])[1] == float("inf")


@pytest.mark.parametrize("seeds, problems", [(0.05, 0.0), (0.0, 0.2), (0.03, 0.2)])
def test_crossed_intervals_cover_the_truth_as_often_as_they_say(seeds, problems):
    """Bug: intervals over seeds alone or problems alone, which cover 60 % where the other factor
    varies."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(200):
        d = (
            0.1
            + rng.normal(0, seeds, (5, 1))
            + rng.normal(0, problems, (1, 150))
            + rng.normal(0, 0.4, (5, 150))
        )
        mean, half, _ = analyse.crossed(d)
        hits += abs(mean - 0.1) <= half
    assert 0.91 <= hits / 200 <= 0.995


def fake(accuracy, bits, seed, **more):
    return dict(
        dict(
            regime="default",
            task="toy-math",
            seed=seed,
            arm="sft-steps",
            lr=1e-4,
            lam=None,
            mu=None,
            split="val",
            config={},
            n=len(bits),
            correct=analyse.pack(bits),
            accuracy=accuracy,
        ),
        **more,
    )


def test_choice_is_by_the_mean_over_seeds_and_not_by_a_lucky_seed():
    """Bug: the best single seed; a setting that only one seed has finished; the test split looked
    at."""
    found = [
        fake(a, [], s, lr=lr)
        for lr, values in ((1e-5, (0.5, 0.9)), (1e-4, (0.8, 0.8)), (1e-3, (0.95,)))
        for s, a in enumerate(values)
    ]
    found += [fake(1.0, [], s, lr=1e-5, split="test") for s in (0, 1)]
    assert analyse.choices(found) == {
        ("default", "toy-math", "sft-steps"): dict(lr=1e-4, lam=None, mu=None)
    }
    assert analyse.tested(found) == {}
    found.append(fake(0.7, [], 1, split="test"))
    assert [(s, r["edge"]) for s, r in analyse.tested(found)["toy-math"]["sft-steps"].items()] == [
        (1, [])
    ]
    found[2:4] = []  # without 1e-4 on validation, 1e-5, the least of what is left, wins
    assert {s: r["edge"] for s, r in analyse.tested(found)["toy-math"]["sft-steps"].items()} == {
        0: ["lr"],
        1: ["lr"],
    }


def test_differences_at_one_lambda_are_paired_over_seeds_at_the_best_rate_of_each():
    """Bug: another lambda's cells, seeds that are not the same, a rate that only one seed likes."""
    found = [
        fake(a, [], s, arm=arm, lr=lr, lam=lam)
        for arm, lam, lr, values in (
            ("joint", 0.5, 1e-4, (0.8, 0.9, 0.7)),
            ("joint", 0.5, 1e-3, (0.95, 0.1, 0.1)),
            ("joint", 0.9, 1e-4, (1, 1, 1)),
            ("frozen", 0.5, 1e-4, (0.7, 0.8, 0.6)),
            ("temperature", 0.5, 1e-4, (0.7, 0.7, 0.7)),
            ("sft-steps", None, 1e-3, (0.8, 0.9, 0.7)),
        )
        for s, a in enumerate(values)
    ]
    half = 4.302653 * 10 / 3**0.5
    few = [dict(r, regime="few") for r in found]
    mixed = f"+10.00 [{10 - half:+.2f}, {10 + half:+.2f}]"
    frozen = f"+0.00 [{-half:+.2f}, {half:+.2f}]"
    expected = []
    for regime in ("default", "few"):
        expected += [
            f"| {regime} | 0.5 | toy-math | joint | +0.00 [+0.00, +0.00] | - | {mixed} | - |  |",
            f"| {regime} | 0.5 | toy-math | frozen | -10.00 [-10.00, -10.00] | - | {frozen} | - "
            "| -10.00 [-10.00, -10.00] |",
            f"| {regime} | 0.9 | toy-math | joint | +20.00 [-4.84, +44.84] | - | - | - |  |",
        ]
    assert analyse.controls_table([*found, *few]).splitlines()[2:] == expected


def test_pairs_are_of_the_same_seed_and_problem_and_corrected_for_their_number():
    """Bug: unpaired differences, p values that forget how many were looked at."""
    rng = np.random.default_rng(1)
    reference = rng.random((3, 400)) < 0.5
    better = reference.copy()
    better[:, :40] = True  # right wherever the other is, and on most of 40 problems more
    arms = {
        name: {s: fake(0, row.tolist(), s) for s, row in enumerate(bits)}
        for name, bits in (("sft-steps", reference), ("temperature", reference), ("joint", better))
    }
    found = analyse.compare({"toy-math": arms})["toy-math"]
    assert set(found) == {
        ("sft-steps", "temperature"),
        ("temperature", "sft-steps"),
        ("joint", "sft-steps"),
        ("joint", "temperature"),
    }
    pair = found["joint", "sft-steps"]
    assert (
        pair["mean"] == pytest.approx((better.sum() - reference.sum()) / 1200)
        and pair["better"] == 3
        and pair["worse"] == 0
    )
    assert pair["mcnemar"] == [
        eval_math.mcnemar(int((better[s] & ~reference[s]).sum()), 0) for s in range(3)
    ]
    assert (
        pair["holm"] == pytest.approx(3 * pair["p"])  # a less b and b less a are one question
        and pair["holm"] < 0.05
        and found["sft-steps", "temperature"]["holm"] == 1
        and found["sft-steps", "temperature"]["better"] == 0
    )


def test_diagnostics_are_shares_of_the_first_and_last_step():
    """Bug: counts of steps with more tokens that weigh more; the middle of the curve; a diagnostic
    that sft does not have."""

    def log(*codes):
        return dict(log=[dict(margin=float(i), codes=c) for i, c in enumerate(codes)])

    seeds = {
        0: log([8, 2, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1]),
        1: log([0, 0, 10, 90], [1, 0, 0, 0], [4, 0, 0, 0]),
    }
    (line,) = analyse.watch_table({"joint": seeds, "sft": {0: {}}}).splitlines()[2:]
    assert (
        line == "| joint | 0.000 → 2.000 | - | - | - | - | - | - | - "
        "| 40 / 10 / 5 / 45 → 62 / 12 / 12 / 12 |"
    )


def test_holm_and_ece_by_hand():
    """Bug: Bonferroni or Benjamini-Hochberg under Holm's name, adjusted values out of order; bins
    that weigh the same."""
    assert (
        analyse.holm([0.02, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
        and analyse.holm([]) == []
    )
    assert analyse.ece([1.0, 1.0, 1.0, 0.0], [True, True, False, False]) == pytest.approx(0.25)
    assert analyse.ece([0.5] * 10, [True, False] * 5) == 0 and analyse.ece(
        [0.61, 0.99], [True, True], 2
    ) == pytest.approx(0.2)


@pytest.mark.parametrize("n", (0, 1, 4, 7, 2100))
def test_packed_verdicts_come_back(n):
    """Bug: a last digit that is filled up from the wrong side."""
    bits = (np.random.default_rng(n).random(n) < 0.5).tolist()
    assert analyse.unpack(analyse.pack(bits), n) == bits and len(analyse.pack(bits)) == -(-n // 4)


# ------------------------------------------------------------------------------------------------
# real weights, and what regimes and real rows say


def test_rows_of_two_machines_are_not_said_to_come_from_either():
    """Bug: hours and hardware of the first row, said of all."""
    made = dict(versions="v", commit="c")
    rows = [dict(made, hardware="two cores", total=3600)] * 5
    rows += [dict(made, hardware="a card", total=1800)]
    assert analyse.places(rows) == ("5 rows, 5.0 h of one process (two cores, v, commit c);\n"
                                    "1 rows, 0.5 h of one process (a card, v, commit c).")


@pytest.mark.parametrize("run, regime, n", [("equal", "default", 6), ("unsure", "unsure", 11),
                                            ("chains", "chains", 11)])
def test_what_was_declared_for_a_run_is_the_family_of_its_stars(run, regime, n):
    """Bug: a run whose regime has another name leaves an empty page; Holm over all pairs, or over
    fewer than were declared."""
    arms = [*sweep.COMMANDS[run]["arms"]]
    rows = []
    for seed in range(4):
        for k, arm in enumerate(arms):
            bits = [(7 * i + seed * k) % 20 < k + 2 for i in range(40)]
            found = fake(sum(bits) / 40, bits, seed, arm=arm, regime=regime, split="test",
                         families={"add": sum(bits) / 40}, truncated=0.0, hardware="h",
                         versions="v", commit="c", total=1.0)
            rows += [found, dict(found, split="val")]
    blocks = analyse.blocks([], [], **{run: rows})
    name = {"equal": "equal rates"}.get(run, run)
    assert {f"main {name}, toy-math", f"controls, {name}"} <= blocks.keys()
    lines = blocks[f"declared, {name}"].splitlines()[2:]
    pairs = [line.split(" | ")[0][2:].replace("toy-math ", "").split(" less ") for line in lines]
    tests = []
    for arm, other in pairs:
        ours, theirs = ({r["seed"]: r for r in rows if (r["arm"], r["split"]) == (which, "test")}
                        for which in (arm, other))
        tests.append(analyse.crossed(analyse.less(ours, theirs))[2])
    assert len(pairs) == n and {"joint", "frozen", "wmss"} <= {arm for arm, _ in pairs}
    assert [line.split(" | ")[2][:-2] for line in lines] == [f"{p:.2g}" for p in
                                                            analyse.holm(tests)]


def test_steps_and_flops_are_those_of_all_seeds():
    """Bug: steps or FLOPs of one seed printed for all."""
    arms = {"joint": {s: fake(0.5, [1, 0, 1, 0], s, arm="joint", flops=2e12 + s * 1e12,
                              steps=16 + s, edge=[]) for s in (0, 1)}}
    assert "| 16-17 | 2.500 |" in analyse.main_table(arms, {})


WORDS = [("Tom has number0 nuts and gets number1 .", "6.0 3.0", "+ number0 number1", "9.0"),
         ("number0 and number1 nuts for number0 boys .", "8.0 16.0",
          "/ + number0 number1 number0", "3.0"),
         ("Tom has number0 nuts , and gets number1", "7.0 3.0", "+ number0 number1", "10.0"),
         ("Another sum of number0 and number1 .", "1.0 2.0", "+ number0 number1", "4.0")]


def words_csv(path, rows):
    with open(path, "w", newline="") as f:
        csv.writer(f).writerows([("Question", "Numbers", "Equation", "Answer"), *rows])


def test_word_problems_are_worked_once_each_and_only_if_the_answer_is_right(tmp_path, monkeypatch):
    """Bug: a question twice with other numbers, in training and in the test; a wrong equation."""
    words_csv(tmp_path / "train.csv", WORDS)
    monkeypatch.setattr(words, "FOLDS", (0, 0))
    train, *_ = words.read_words(tmp_path / "train.csv")
    assert {(p.prompt, p.completion, p.answer) for p in train} == {
        ("Tom has 6 nuts and gets 3 .", "6 + 3 = 9", "9"),
        ("8 and 16 nuts for 8 boys .", "8 + 16 = 24; 24 / 8 = 3", "3")}


def test_the_temperature_and_the_loss_are_those_of_the_solutions():
    """Bug: prompts counted in, a temperature that multiplies, the confidence of the label."""
    samples = sweep.encode(sweep.TASKS["toy-math"]("val", 14), toy_encoding())
    model = Fixed(0)
    losses, confidence, right, entropy = real.calibration(model, samples, 100)
    logits, y = [], []
    for s in samples:
        at = s.loss[1:].nonzero()[:, 0]
        logits.append(model.table[s.tokens[at]])
        y.append(s.tokens[at + 1])
    logits, y = torch.cat(logits), torch.cat(y)
    for t, loss in zip(real.TEMPERATURES, losses, strict=True):
        p = (logits / t).softmax(-1)[torch.arange(len(y)), y]
        assert loss == pytest.approx(-p.log().mean().item(), rel=1e-5)
    assert sorted(confidence) == pytest.approx(sorted(logits.softmax(-1).amax(-1).tolist()))
    p = logits.double().softmax(-1)
    assert entropy == pytest.approx(-(p * p.log()).sum(-1).mean().item(), rel=1e-5)
    assert sum(right) == int((logits.argmax(-1) == y).sum())


def test_real_models_are_not_trained_without_data(capsys, tmp_path):
    """Bug: a file that is missed only after an hour of training."""
    flags = ["--base", str(tmp_path), "--data", str(tmp_path), "--out", str(tmp_path / "out.jsonl")]
    with pytest.raises(SystemExit):
        real.main(flags)
    said = capsys.readouterr().err
    assert "config.json" in said and "SVAMP.json" in said
    assert not (tmp_path / "out.jsonl").exists()
    with pytest.raises(SystemExit):
        real.main([*flags[:4], "--quick"])
    assert "name its --out" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        real.main(["--table", *flags[4:]])
    assert "--out: expected" in capsys.readouterr().err


@contextlib.contextmanager
def in_this_process(_n):
    class Pool:
        def submit(self, do, job):
            done = concurrent.futures.Future()
            done.set_result(do(job))
            return done

    yield Pool()


@pytest.fixture
def word_flags(hf_folder, tmp_path, monkeypatch):
    """Flags of a small run of real.py over made-up problems, in this process."""
    for folder in ("mawps_asdiv", "svamp"):
        (tmp_path / folder).mkdir()
    names = "ann bob cat dan eve fay gus hal ivy jan kit lea max ned ona pia".split()
    rows = [(f"{a} and {b} own number0 and number1 .", f"{i} 3.0", "+ number0 number1", i + 3.0)
            for i, (a, b) in enumerate(itertools.permutations(names, 2))]
    words_csv(tmp_path / "mawps_asdiv" / "train.csv", rows)
    monkeypatch.setattr(words, "FOLDS", (20, 30))
    real.read_problems.cache_clear()
    svamp = [dict(ID=str(i), Body="So.", Question=f"{i}?", Answer=i) for i in range(20)]
    (tmp_path / "svamp" / "SVAMP.json").write_text(json.dumps(svamp))
    monkeypatch.setattr(sweep, "workers", in_this_process)
    return ["--base", str(hf_folder), "--data", str(tmp_path), "--quick", "--out",
            str(tmp_path / "rows.jsonl"), "--work", str(tmp_path / "work")]


def test_a_real_run_ends_with_a_row_per_cell_and_does_none_twice(word_flags, tmp_path,
                                                                 monkeypatch):
    """Bug: flags that no stage takes, a rate that no arm gets, a job that crashes after an hour; a
    second start that trains again; a rate that was chosen on the test, or that is chosen anew when
    other seeds follow; the model of validation trained once more for the test; an arm that has
    diverged and is the best, as 0 is above all losses."""
    trained, train = [], train_wmss.train

    def counting(run, *how, **more):
        trained.append((run.cfg.seed, *run.cfg.arm, run.cfg.wmss_lr))
        if run.cfg.stages != "sft" and (*run.cfg.arm, run.cfg.wmss_lr) == ("joint", 1e-5):
            raise ValueError("joint has diverged")
        return train(run, *how, **more)

    monkeypatch.setattr(train_wmss, "train", counting)
    arms, seeds = ("sft-steps", "wmss", "joint"), (0, 1, 2)
    for these in ("0", "12", "012"):
        with contextlib.redirect_stdout(io.StringIO()) as said:
            real.main([*word_flags, "--arms", *arms, "permuted", "--seeds", *these])
    assert "val: 0 to do" in said.getvalue() and said.getvalue().count("test: 0 to do") == 1
    assert len(trained) == 3 + len(arms) * 3 + len(arms) * 2 + 2
    found = analyse.read_rows(tmp_path / "rows.jsonl")
    val = [r for r in found if r["split"] == "val"]
    assert sorted((r["arm"], r["lr"]) for r in val) == sorted(
        itertools.product(arms, real.RATES)) and {r["seed"] for r in val} == {0}
    best = {arm: max((r["accuracy"], r["lr"]) for r in val if r["arm"] == arm)[1] for arm in arms}
    assert best["joint"] != 1e-5
    test = [r for r in found if r["split"] == "test"]
    expected = [(arm, seed, best[arm]) for arm in arms for seed in seeds]
    expected += [("permuted", seed, best["joint"]) for seed in (0, 1)]
    assert sorted((r["arm"], r["seed"], r["lr"]) for r in test if r["lr"]) == sorted(expected)
    assert sorted((r["arm"], r["seed"]) for r in test if not r["lr"]) == [
        *(("sft", seed) for seed in seeds), ("weak", 0)]
    for r in test:
        assert r["n"] == 16 and set(r["families"]) == {"words", "svamp"}
        assert r["nll_fitted"] > 0 and r["temperature"] in real.TEMPERATURES
        assert 0 <= r["top1"] <= 1 and r["entropy"] > 0
        assert ("pass@8" in r) == (r["seed"] == 0 and r["arm"] != "weak")
    older = [dict(r, config={}, seed=r["seed"] + 3) for r in found]     # of another design
    assert real.page(older + found) == real.page(found)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        real.main([*word_flags[4:], "--table"])
    assert "| sft-steps | lr" in said.getvalue()
    monkeypatch.setattr(real, "SEEDS", seeds)
    monkeypatch.setitem(real.DECLARED, "real", [("wmss", "sft-steps")])
    matched = [dict(r, arm=real.MATCHED) for r in found if r["arm"] == "sft-steps"]
    assert "wmss less sft-flops-wmss" not in real.page(found)
    assert real.page(found).endswith("too (not run).")      # not an empty table
    whole = real.page(found + matched)      # a gain of wmss never stands alone
    assert whole.index("wmss less sft-steps |") < whole.index("wmss less sft-flops-wmss |")


def test_own_mistakes_are_the_weak_models_and_its_right_answers_stay(word_flags, tmp_path,
                                                                      monkeypatch):
    """Bug: mistakes of M1 or of the base; a problem that the weak model learned; its words only
    where it is wrong, so that style tells; half an answer; arms that start from the folder's model;
    a p that is read before all seeds are there."""
    real_judge, asked = eval_math.judge, []

    def judge(rows, *how):
        if len(rows) == 4:                              # the weak model's answers
            asked.extend(rows)
            return [r | dict(completion=f"mine {i}", correct=i == 0, truncated=i == 3)
                    for i, r in enumerate(rows)]
        return real_judge(rows, *how)

    monkeypatch.setattr(eval_math, "judge", judge)
    monkeypatch.setattr(real, "GOLD", 0.8)              # draws of seed 0: .84, .76
    flags = [*word_flags, "--own", "--seeds", "0"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        for _ in range(2):
            real.main([*flags, "--arms", "sft-flops", "frozen", "permuted-frozen"])
        real.main([*flags, "--table"])
        monkeypatch.setattr(real, "SEEDS", (0,))
        monkeypatch.setitem(real.DECLARED, "own", [("frozen", "sft-flops")])
        real.main([*flags, "--table"])
    said, part, whole = said.getvalue().split("# Real weights")
    assert said.count("test: 0 to do") == 1 and "right 1; gold 1; mistakes 1." in whole
    assert "frozen less" not in part and "seeds 0, 1, 2, 3, 4 are there" in part
    assert "| frozen less sft-flops |" in whole and "pass@8" not in whole
    (own,) = (tmp_path / "work").glob("own-0-*")
    read = {name: [json.loads(line) for line in (own / f"{name}.jsonl").read_text().splitlines()]
            for name in ("gold", "own")}
    assert [r["prompt"] for r in read["own"]] == [r["prompt"] for r in asked[:3]]
    assert not {r["prompt"] for r in read["gold"]} & {r["prompt"] for r in read["own"]}
    right, mistake, gold = (r["completion"] for r in read["own"])
    assert (right, mistake) == ("mine 0", "mine 1") and "=" in gold
    m1 = read_config(own / "sft.pt")[1]["config"]
    assert m1["base"] == str(own / "weak" / "sft.pt") and m1["data"] == [str(own / "own.jsonl")]
    found = analyse.read_rows(tmp_path / "rows.jsonl")
    assert {(r["arm"], r["lr"]) for r in found} == {
        ("weak", None), ("sft", None), *((arm, real.OWN_RATE) for arm in
                                         ("sft-flops", "frozen", "permuted-frozen"))}
    assert all(r["data"] == dict(right=1, gold=1, mistakes=1) and r["nll_data"] > 0 for r in found)
    assert {r["regime"] for r in found} == {"own"} and {r["split"] for r in found} == {"test"}
    both = real.page([*found, *(dict(r, regime="real") for r in found)])    # not one of them alone
    assert both.count("| frozen | lam 0.5") == 2 and "Clean" not in real.page(found)


DATA = os.path.join(os.path.dirname(ROOT), "shared", "data")


@pytest.mark.skipif(not os.path.isdir(DATA), reason="reads the public data sets in ../shared/data")
def test_what_real_models_are_chosen_on_is_neither_trained_on_nor_reported():
    """Bug: validation problems among the training rows or the test problems."""
    real.read_problems.cache_clear()
    found = real.read_problems(DATA, False)
    assert (len(found["val"]), len(found["test"])) == (200, 1500) and len(found["train"]) > 1700
    asked = {split: {words.masked(p.prompt) for p in found[split]} for split in found}
    assert not asked["train"] & asked["val"] and not asked["val"] & asked["test"]
    assert not asked["train"] & {words.masked(p.prompt) for p in found["test"][:500]}


# ------------------------------------------------------------------------------------------------
# the declared experiment


def made_up(gain):
    """Rows of all declared seeds: mixing has `gain` more of 40 right where it must win."""
    rows = {}
    for point in mistakes.POINTS:
        better = {arm for arm, _ in point.wins or ()}
        for seed, model in itertools.product(mistakes.SEEDS[point.round], point.models):
            n = 20 + seed % 3 + (gain if model in better else 0)
            right = [i < n for i in range(40)]
            row = dict(seed=seed, noise=point.noise, label_noise=point.label_noise,
                       task=point.task, model=model, n=40, accuracy=n / 40, commit="c",
                       correct=analyse.pack(right))
            rows.setdefault((seed, *point[:2], point.task, model), row)     # rounds share some
    return list(rows.values())


def test_a_declared_point_is_published_whole_or_not_at_all(tmp_path):
    """Bug: a figure of half the seeds, a star where none was declared, a verdict typed by hand."""
    rows = made_up(8)
    with pytest.raises(ValueError, match="found none"):
        mistakes.publish(rows[1:50:2], tmp_path)
    assert not list(tmp_path.iterdir())
    mistakes.publish(rows[:-1], tmp_path)
    text = (tmp_path / "mistakes.md").read_text()
    assert "q = 0.9, code" in text and "q = 0.9, code, resampled" not in text
    mistakes.publish(rows, tmp_path)
    text = (tmp_path / "mistakes.md").read_text()
    assert "+20.00" in text and ("w = 0.05, q = 0.3: above 0: joint less sft-flops, joint less "
                                 "sft-steps; this **holds**") in text
    for point in mistakes.POINTS:
        part = text.split(f"**{point}**")[1].split("problems\n")[1].split("\n**")[0]
        better, stars = {arm for arm, _ in point.wins or ()}, 0
        for arm, reference in mistakes.ROUNDS[point.round]:
            stars += bool(better) and (arm in better) != (reference in better)
        assert part.count("]* |") == stars, part
        right = [100 * r["accuracy"] for r in point.of(rows) if r["model"] == "sft"]
        assert f"| sft | {np.mean(right):.2f} [" in part
    picture = (tmp_path / "mistakes.svg").read_text()
    assert xml.dom.minidom.parseString(picture)
    assert all(str(point) in picture for point in mistakes.POINTS)
    for arm, reference in sum(mistakes.ROUNDS.values(), []):
        assert f"{arm} less {reference}" in picture
    none = mistakes.in_words(mistakes.POINTS, made_up(0))
    assert none.count("**is not confirmed**") == 13 and none.count("**holds**") == 3
    assert none.count("no sign was foreseen") == 1
    against = [r | dict(accuracy=0.9, correct="ffffffffff") if r["model"] == "joint" else r
               for r in rows]
    said = mistakes.in_words(mistakes.POINTS, against)
    assert said.count("mixing gains nothing; this **is not confirmed**") == 3


def test_a_seed_makes_what_its_rows_lack_with_the_weak_model_that_each_arm_needs(monkeypatch,
                                                                                 tmp_path):
    """Bug: sft-flops with the FLOPs of a cheaper arm; one arm's answers under another's name; a row
    made twice; arms of two machines' M1s side by side."""
    calls = []

    def train(argv):
        parser = argparse.ArgumentParser()
        for flag in ("--name", "--weak", "--task", "--base", "--weights"):
            parser.add_argument(flag)
        parser.add_argument("--arm", nargs="+")
        flags = parser.parse_known_args(argv)[0]
        calls.append(flags)
        for model in ("base", "sft", *flags.arm):
            path = pathlib.Path("out", flags.name, "answers", f"{model}.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            n = 20 + 10 % 3 + 3 * (model == "wmss")
            path.write_text("".join(f'{{"correct": {json.dumps(i < n)}}}\n' for i in range(40)))

    monkeypatch.setattr(train_wmss, "main", train)
    rows = made_up(0)
    assert mistakes.run_seed(10, 40, rows, tmp_path / "rows") == [] and not calls
    lacking = [r for r in rows if r["model"] not in mistakes.TRAINED_WEAK]
    made = mistakes.run_seed(10, 40, lacking, tmp_path / "rows")
    trained = mistakes.TRAINED_WEAK[:3]
    assert sorted((r["task"], r["label_noise"], r["model"]) for r in made) == sorted([
        *itertools.product(["toy-code"], (0.1, 0.5, 0.7), trained),
        *itertools.product(["toy-math"], (0.1, 0.3, 0.5, 0.7), ["wmss", "wmss-v1"])])
    assert {r["accuracy"] for r in made if "wmss" in r["model"]} == {24 / 40}
    code, math = ([c for c in calls if c.task == task] for task in ("toy-code", "toy-math"))
    assert [(c.weak, c.arm) for c in code] == [("joint", ["sft-flops", "permuted", "wmss"])] * 3
    assert not any(c.weights for c in code)
    flags = [("joint", None, ["wmss"]), ("joint", "v1", ["wmss"])] * 4      # sft is in the first
    assert [(c.weak, c.weights, c.arm) for c in math] == flags
    for own in (code, math):
        assert [c.base for c in own] == [None] + [f"out/{own[0].name}/base.pt"] * (len(own) - 1)
    calls.clear()
    point = next(p for p in mistakes.POINTS if p.round == 4 and p.wins is None)
    mistakes.run_seed(10, 40, [r for r in rows if r["label_noise"] != point.label_noise
                               or r["task"] != point.task], tmp_path / "rows")
    weak = {arm: call.weak for call in calls for arm in call.arm}
    assert weak["wmss-mask"] == weak["frozen"] == weak["reweighted"] == "frozen"
    assert weak["wmss"] == "joint" and [c.weak for c in calls] == ["frozen", "joint"]
    calls.clear()
    made = mistakes.run_seed(30, 40, [], tmp_path / "fresh.jsonl")
    assert mistakes.read_rows(tmp_path / "fresh.jsonl") == made
    assert len({(r["label_noise"], r["model"]) for r in made}) == len(made) == 3 * 6
    assert [c.weights for c in calls] == [None, "v1"] * 3
    with pytest.raises(ValueError, match="found another"):
        mistakes.run_seed(10, 40, [r | dict(correct="0000000000") if r["model"] == "sft" else r
                                   for r in lacking], tmp_path / "rows")


def map_rows(path, differs):
    """Made-up rows of two seeds: `differs` of 8 problems go to mixing at q = 0.3, none at 0.7."""
    lines = [dict(made=dict(commit="abc", versions="v", hardware="h", config={}, vocabulary=2))]
    for q, seed, arm in itertools.product((0.3, 0.7), (0, 1), ("weak", "sft-steps", "sft-flops",
                                                               "frozen", "joint")):
        n_right = 4 + (differs if q == 0.3 and arm == "frozen" else 0)
        mixes = arm in ("frozen", "joint")
        lines.append(dict(
            kind="cell", regime=f"w0.05-q{q}", task="toy-math", seed=seed, arm=arm, split="val",
            accuracy=n_right / 8, n=8, correct=analyse.pack([i < n_right for i in range(8)]),
            log_odds=-3.0 if arm == "weak" else 0.5, total=1.0, **dict(lam=0.5) if mixes else {}))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_map_tells_of_each_point_who_is_right_and_by_how_much(tmp_path):
    """Bug: seeds or arms that are paired wrongly; a border on the wrong side of its theory."""
    map_rows(tmp_path / "map.jsonl", differs=2)
    (tmp_path / "mistakes.jsonl").write_text("\n".join(map(json.dumps, made_up(8))))
    phase.main(["--map", f"{tmp_path}/map.jsonl", "--rivals", f"{tmp_path}/none.jsonl",
                "--mistakes", f"{tmp_path}/mistakes.jsonl", "--into", str(tmp_path)])
    table = (tmp_path / "phase.md").read_text()
    low, high = (line for line in table.splitlines() if line.startswith("| 0.05 |"))
    # a weak model 3 nats on the wrong side: the border of lam 0.5 is 1 / (1 + e^1.5) = 0.18
    assert "| mixing | 50.0 | 50.0 | 50.0 | 75.0 | +25.00" in low and "| both |" in high
    assert "| 50.0 | +0.00 [" in high.split("both")[1]
    for name, drawing in (("phase.svg", "mixing right, SFT wrong"), ("when.svg", "SFT →")):
        drawn = (tmp_path / name).read_text()
        assert xml.dom.minidom.parseString(drawn) and drawing in drawn
    assert "mixing →" not in drawn, "all declared points are right of 0.18"


def test_the_published_page_of_real_weights_is_that_of_the_rows():
    """Bug: rows were made again, or joined, and the page is the old one."""
    rows = analyse.read_rows(os.path.join(analyse.HERE, "real.jsonl"))
    published = pathlib.Path(analyse.HERE, "real.md").read_text(encoding="utf-8")
    assert published == real.page(rows) + "\n" and published.count("points | p (Holm)") == 2


def test_the_published_mistakes_and_map_are_those_of_the_rows(tmp_path):
    """Bug: rows were made again, and the pages and the first page's figure are the old ones."""
    mistakes.publish(mistakes.read_rows(), into=str(tmp_path))
    phase.main(["--into", str(tmp_path)])
    for path in tmp_path.iterdir():
        published = pathlib.Path(analyse.HERE, path.name)
        assert path.read_text(encoding="utf-8") == published.read_text(encoding="utf-8"), path.name
