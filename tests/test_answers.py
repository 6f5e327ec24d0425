"""plumbing/answers.py and plumbing/scores.py: rows are appended as they come, a scoring that was
killed goes on where it was, and scores on other data are put aside."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from runs import Crash, answers, scores, text_flags

import eval_math
import train_wmss
from model import GPT
from plumbing.answers import Answers

ROWS = [dict(id=f"p/{i}", sample=s) for i in range(3) for s in range(2)]


def judge(rows):
    for row in rows:
        row["correct"] = row["id"] == "p/1"
    return rows


def opened(folder, **made_of):
    return Answers(folder, "set", judge, **dict(dict(weights="w", seed=0), **made_of))


def test_rows_are_taken_up_batch_by_batch_and_half_a_line_is_none(tmp_path):
    """Bug: rows lost with the process, a half line that is read, a batch that is half there and
    therefore made of other rows."""
    kept = opened(tmp_path)
    assert kept.said == "" and not kept.take([dict(r) for r in ROWS[:2]])
    kept.add([dict(r) for r in ROWS[:2]])
    kept.add([dict(ROWS[2])])
    with open(kept.path, "a") as f:
        f.write('{"id": "p/1", "sam')
    again, batch = opened(tmp_path), [dict(r) for r in ROWS[:2]]
    assert again.take(batch) and batch == judge([dict(r) for r in ROWS[:2]])
    assert not again.take([dict(r) for r in ROWS[2:4]]) and "3 rows are there" in again.said
    again.add([dict(r) for r in ROWS[2:4]])
    assert opened(tmp_path).take([dict(r) for r in ROWS[2:4]])
    again.remove()
    assert not tmp_path.exists() and opened(tmp_path).said == ""


@pytest.mark.parametrize("other", [
    dict(weights="v"), dict(seed=1), dict(data="d"), dict(code=1)])
def test_rows_of_another_origin_are_never_gone_on_with(tmp_path, monkeypatch, other):
    """Bug: half of a score by yesterday's checkpoint, settings, data or code."""
    opened(tmp_path).add([dict(ROWS[0])])
    if "code" in other:
        monkeypatch.setattr("plumbing.answers.code_digest", lambda: "other")
        other = {}
    assert opened(tmp_path, **other).said == ""


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import eval_math
from model import GPT
real, calls = GPT.generate, []
def generate(self, *args, **how):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args, **how)
GPT.generate = generate
eval_math.main({flags})
"""


def count_calls(monkeypatch):
    real, calls = GPT.generate, []

    def generate(self, prompts, *args, **how):
        calls.append(len(prompts))
        return real(self, prompts, *args, **how)

    monkeypatch.setattr(GPT, "generate", generate)
    return calls


def test_a_killed_scoring_goes_on_with_the_rows_of_one_in_one_go(trained, tmp_path, monkeypatch):
    """Bug: hours of answers gone with the process; other draws or batches after it."""
    flags = [str(trained / "sft.pt"), *"--limit 21 --n 2 --temperature 0.8 --batch 10 "
             "--max-new-tokens 6 --device cpu --out".split()]
    calls = count_calls(monkeypatch)
    eval_math.main([*flags, str(tmp_path / "whole")])
    in_one_go, killed = len(calls), [*flags, str(tmp_path / "killed")]
    assert in_one_go > 3
    code = KILLED.format(root=ROOT, flags=killed)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (unfinished,) = (tmp_path / "killed" / "unfinished").iterdir()
    assert len(unfinished.read_text().splitlines()) > 10
    with open(unfinished, "a") as f:
        f.write('{"id": "test/')
    calls.clear()
    eval_math.main(killed)
    assert len(calls) == in_one_go - 2
    a, b = ((tmp_path / name / "toy-math.jsonl").read_text() for name in ("whole", "killed"))
    assert a == b and os.listdir(tmp_path / "killed").count("unfinished") == 0


def test_a_run_goes_on_scoring_where_it_was(run, hf_folder, text, monkeypatch):
    """Bug: nine models scored again because the last one was interrupted; rows of another rank's
    share, or of a model with the same name in another run."""
    flags = [*text_flags(hf_folder, text, "a"), "--arm", "sft-steps", "--eval-batch", "4"]
    calls = count_calls(monkeypatch)
    whole = run(*flags)
    rows, wanted = scores(whole), {m: answers(whole, m) for m in ("base", "sft", "sft-steps")}
    in_one_go = len(calls)
    run(*flags, "--arm", "sft-steps", "temperature", "--resume")
    assert in_one_go < len(calls) < 2 * in_one_go, "old models answer again for a new arm"
    os.remove(whole / "temperature.pt")
    shutil.rmtree(whole / "rows")
    with monkeypatch.context() as m:
        counted, left = GPT.generate, [in_one_go // 2]

        def generate(self, *args, **how):
            left[0] -= 1
            if left[0] < 0:
                raise Crash
            return counted(self, *args, **how)

        m.setattr(GPT, "generate", generate)
        with pytest.raises(Crash):
            run(*flags, "--resume", "--stages", "score")
    calls.clear()
    run(*flags, "--resume", "--stages", "score")
    assert len(calls) == in_one_go - in_one_go // 2
    assert scores(whole) == rows
    assert wanted == {m: answers(whole, m) for m in wanted}


def test_a_finished_run_is_scored_on_other_data_later(run, hf_folder, text, capsys):
    """Bug: --score-data refused on resume; the first scores overwritten by the second."""
    flags = [*text_flags(hf_folder, text, "b"), "--stages", "sft,score"]
    out = run(*flags)
    first, old = scores(out), answers(out, "sft")
    own = out.parent.parent / "own.jsonl"
    own.write_text("".join(json.dumps({"question": f"Who, {i}?", "answer": "I"}) + "\n"
                           for i in range(5)))
    flags[flags.index("--score-data") + 1] = f"own={own}"
    capsys.readouterr()
    run(*flags, "--resume", "--stages", "score")
    said = capsys.readouterr().out
    assert "own: 5 problems, graded as exact" in said and "scores-amc23-1.json" in said
    assert [(r["n"], list(r["families"])) for r in scores(out)] == 2 * [(5, ["own"])]
    assert {"truncated", "no_answer"} <= scores(out)[0].keys() and "no answer" in said
    aside = json.loads((out / "scores-amc23-1.json").read_text())
    assert aside["rows"] == first and aside["sets"][0]["graded_as"] == "math"
    lines = (out / "answers-amc23-1" / "sft.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == old
    run(*flags, "--resume", "--stages", "score")
    assert len(list(out.glob("scores*"))) == 2, "the same data again take no new name"


def test_scores_of_a_version_without_sets_are_put_aside(run, trained):
    """Bug: a run of an older version that cannot be scored again."""
    flags = ("--base", str(trained / "base.pt"), "--stages", "score")
    out = run(*flags)
    record = json.loads((out / "scores.json").read_text())
    del record["sets"]
    (out / "scores.json").write_text(json.dumps(record))
    run(*flags, "--resume")
    assert len(list(out.glob("scores*"))) == 1
    del record["config"]
    (out / "scores.json").write_text(json.dumps(record))
    run(*flags, "--resume", "--score-split", "val")
    assert (out / "scores-test-1.json").exists() and scores(out)[0]["split"] == "val"
    assert train_wmss.Config.score_split == "test"
