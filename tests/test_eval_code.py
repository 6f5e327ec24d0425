"""eval_code.py: data readers, extraction, the cut behind the function, the command line.

HumanEval and MBPP run in full where EVAL_CODE_DATA, or ../shared/data beside the checkout, holds
them; else a sample written below stands in for them.
"""
import gzip
import json
import os
import pathlib
import sys
import time

import conftest
import pytest

import eval_code
import eval_math
from eval_code import (
    check,
    cut,
    cut_at_stop,
    extract_code,
    judge,
    load_problems,
    read_samples,
    score,
)
from eval_math import summary
from plumbing.benchmarks import Item
from plumbing.sandbox import Verdict
from plumbing.toy_code import toy_code

ROOT = pathlib.Path(conftest.ROOT)
DATA = pathlib.Path(os.environ.get("EVAL_CODE_DATA", ROOT.parent / "shared/data"))
ISOLATION = check("", "def f(x): return x", "assert f(1) == 1", "f", 10).isolation
ADD = ('def add(a, b):\n    """Return the sum of a and b."""\n',
       "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert add(10, 7) == 17")

# ------------------------------------------------------------------------------------------------
# data sets

HUMANEVAL, MBPP = DATA / "humaneval/HumanEval.jsonl.gz", DATA / "mbpp/mbpp.jsonl"
IN_CHECK = ADD[1].replace("add", "candidate").replace("\n", "\n    ")
CHECK = f"def check(candidate):\n    {IN_CHECK}"
SAMPLE = [Item("sample/0", "sample", "", "    return a + b\n", ADD[0], CHECK, "add"),
          Item("sample/1", "sample", "", "def add(a, b):\n    return a + b\n", "", ADD[1], "add")]
SETS = [(name, path) for name, path in (("humaneval", HUMANEVAL), ("mbpp", MBPP)) if path.exists()]
SETS = SETS or [("sample", None)]


@pytest.mark.parametrize("name, path", SETS)
def test_canonical_solutions_pass_and_none_passes_nothing(name, path):
    """The reference of every problem passes; `return None` passes none: no test is vacuous, no
    proxy lies."""
    problems = load_problems(f"{name}={path}") if path else SAMPLE
    if not path:
        print(f"no files below {DATA}; set EVAL_CODE_DATA for the full sets")
    cores = os.cpu_count()
    right = score([(p, p.answer) for p in problems], 10, cores, allow_code_execution=True)
    assert not [(p.id, v) for p, v in zip(problems, right, strict=True) if v.status != "pass"]
    nothing = [(p, "    return None\n" if p.code else
                f"def {p.entry_point}(*a, **k):\n    return None\n") for p in problems]
    verdicts = score(nothing, 5, cores, allow_code_execution=True)
    assert not [p.id for p, v in zip(problems, verdicts, strict=True) if v.status != "fail"]


def test_bad_data_is_refused_with_file_and_line(tmp_path):
    """A skipped row changes the denominator of a score without a word."""
    row = {"task_id": "HumanEval/0", "prompt": ADD[0], "test": ADD[1], "entry_point": "add",
           "canonical_solution": " return a + b"}
    mbpp = {"task_id": 11, "text": "Add.", "code": "def add(a, b): return a + b",
            "test_list": ADD[1].split("\n"), "test_setup_code": ""}
    other_key = json.dumps({**row, "test": 0}).replace('"prompt"', '"promt"')
    ninth = json.dumps({**mbpp, "task_id": 9})
    path = tmp_path / "data.jsonl.gz"
    for name, lines, expected in (
            ("humaneval", [json.dumps(row), "{"], f"{path}:2: expected one JSON object"),
            ("humaneval", [other_key], f"{path}:1: expected a row"),
            ("humaneval", [json.dumps(row)] * 2, f"{path}:2: expected each task once"),
            ("humaneval", [json.dumps(row)], "expected 164 problems, found 1"),
            ("mbpp", [json.dumps({**mbpp, "test_list": ["assert 1"]})],
             f"{path}:1: expected a row of mbpp"),
            ("mbpp-test", [ninth, json.dumps(mbpp)], "expected 500 problems, found 1"),
            ("gsm8k", [], "expected toy-code")):
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        with pytest.raises(ValueError) as error:
            load_problems(f"{name}={path}")
        assert expected in str(error.value)
    samples = tmp_path / "samples.jsonl"
    empty = {"task_id": "sample/0", "completion": ""}
    for lines, expected in (
            ([{"task_id": "sample/9", "completion": ""}], ":1: expected a task_id"),
            ([{"task_id": "sample/0"}], ":1: expected a task_id"),
            ([empty], "found 0 of sample/1, 1 of sample/0")):
        samples.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(ValueError) as error:
            read_samples(str(samples), SAMPLE)
        assert expected in str(error.value)


def test_hub_rows_are_read_like_files(monkeypatch):
    """The hub serves MBPP in four splits; all of them are the 974."""
    rows = [{"task_id": i, "text": "t", "code": "def add(a, b): return a + b",
             "test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""} for i in range(1, 975)]
    fake = type(sys)("datasets")
    parts = {"train": rows[600:], "test": rows[10:510], "prompt": rows[:10],
             "validation": rows[510:600]}
    fake.load_dataset = lambda path, config, split: parts[split]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(load_problems("mbpp")) == 974
    assert [p.id for p in load_problems("mbpp-test")][::499] == ["mbpp/11", "mbpp/510"]


# ------------------------------------------------------------------------------------------------
# extraction

F = "def f(x):\n    return x\n"
QUOTES = "def f(x):\n    '''\n    ```x``` is x\n    '''\n    return x\n"
CHAT = {
    f"Sure:\n```python\n{F}```\nIt is short.": "\n" + F,
    f"<think>```python\nwrong\n```</think>\n```py\n{F}```": "\n" + F,
    f"```python\n{F}```\nUse it:\n```python\nprint(f(1))\n```": "\n" + F,
    f"First try:\n```python\ndef f(x):\n    pass\n```\nBetter:\n```python\n{F}```": "\n" + F,
    f"Cut off:\n```python\n{F}": "\n" + F,
    f"~~~~\n{F}~~~~": "\n" + F,
    "1. So:\n   ```python\n   def f(x):\n       return x\n   ```": "\n" + F,
    f"```python\n{QUOTES}```": "\n" + QUOTES,
    f"{F}```\n\nThis closes the prompt's own fence.": F,
    "    return x\n": "    return x\n",
    "": "",
}


@pytest.mark.parametrize("text", CHAT)
def test_code_is_extracted_from_chat_answers(text):
    """Fences: thoughts, usage examples, second tries, cut-off, tildes, lists, back quotes inside, a
    fence that only closes; and text without a fence."""
    assert extract_code(text, "", "f") == CHAT[text]


def test_a_bare_body_and_a_repeated_prompt_fit_below_the_prompt():
    """Base models continue the prompt, chat models answer with the body or the whole function; each
    must run."""
    whole = ADD[0] + "    return a + b\n"
    for answer in ("    return a + b\n", whole, "```python\nreturn a + b\n```",
                   f"```python\n{whole}```", f"\n{whole}", "    return a + b\n```\nDone."):
        code = extract_code(answer, ADD[0], "add")
        assert check(ADD[0], code, ADD[1], "add", 5).status == "pass", answer
    open_prompt = "def add(a, b):\n"
    for answer in (whole, "\n" + whole, f"```python\n{whole}```", "    return a + b\n"):
        code = extract_code(answer, open_prompt, "add")
        assert check(open_prompt, code, ADD[1], "add", 5).status == "pass", answer


def test_text_is_cut_at_the_first_stop_in_text_space():
    """The stop that stands first in the list is not the one that stands first in the text, and none
    may be cut by tokens."""
    text = "  return 1\n\nprint(2)\ndef g"
    assert cut_at_stop(text, ("\ndef ", "\nprint(")) == "  return 1\n"
    assert cut_at_stop(" return 1\ndef g", ["\ndef"]) == " return 1"
    assert cut_at_stop("x", ["\ndef"]) == "x"


BODY = "    return helper(a) + b\n"
HELPER = "def helper(x):\n    return int(x)\n"
WHOLE = "def add(a, b):\n" + BODY
# what may stand around a right function: each is right, with and without a fence
AROUND = {
    "alone": f"{HELPER}\n{WHOLE}",
    "newline": f"\n{HELPER}\n{WHOLE}",
    "import": f"import math\nfrom typing import List\n{HELPER}\n{WHOLE}",
    "prompt repeated": f"{HELPER}\n{ADD[0]}{BODY}",
    "helper behind": f"{WHOLE}\n\n{HELPER}",
    "constant behind": "def add(a, b):\n    return a + b + ZERO\n\n# neutral element\nZERO = 0",
    "helper of a helper behind":
        f"{WHOLE}\n@staticmethod\ndef helper(x):\n    return inner(x)\n\ndef inner(x): return x\n",
    "class": "class Adder:\n    def add(self, a, b):\n        return a + b\n\n"
             "def add(a, b):\n    return Adder().add(a, b)\n",
    "class of that name": "class add(int):\n    def __new__(cls, a, b):\n        return a + b\n",
    "decorated": "import functools\n\n@functools.cache\ndef add(a, b):\n    return a + b\n",
    "decorated later": "def add(a, b):\n    return a + b\nfrom functools import cache\n"
                       "add = cache(add)\n",
    "assigned": "add = lambda a, b: a + b\n",
    "imported": "from operator import add\n",
    "under a condition": "import sys\nif sys.version_info > (3,):\n    def add(a, b):\n"
                         "        return a + b\n",
    "comment at column 0": "def add(a, b):\n    a += 1\n# back again\n    return a + b - 1\n",
    "text at column 0": "def add(a, b):\n    '''\nclass and\ndef and\n# more\n'''\n"
                        "    return a + b\n",
    "fence in the text": "def add(a, b):\n    '''\n    ```\n    1\n    ```\n    '''\n"
                         "    return a + b\n",
    "main part": f"{HELPER}\n{WHOLE}\nif __name__ == '__main__':\n    print(add(1, input()))\n",
    "second function": f"{HELPER}\n{WHOLE}\ndef mul(a, b):\n    return a * b\n",
    "carriage returns": f"{HELPER}\n{WHOLE}".replace("\n", "\r\n"),
}
# what a model may put into fences of their own behind its fenced answer
MORE_FENCES = ("from solution import add\nprint(add(1, 2))\n",
               "class Calculator:\n    def add(self, a, b):\n        return a * b\n")
# what a model that goes on may write behind it, where no fence ends the answer
BEHIND = {
    "prose": "\nThis works because it's short (see above.\n",
    "prose that is quoted": '\n"""\nSo far\n',
    "one word": "\nDone\n",
    "note": "\nNote: well\n",
    "half a function": "\ndef mul(a, b):\n    return a *\n",
    "the function again": "\ndef add(a, b):\n    return a * b\n",
    "tests": "\nassert add(1, 1) == 3\nprint(add(undefined))\n",
    "fence": "\n```\n\nThat is all.\n",
    "a question": "\nQ: What is this?\nA: A function.\n",
}


def verdict_of(completion, problem, stops=eval_code.STOPS):
    row = dict(id=problem.id, completion=completion)
    return judge([row], [problem], True, 10, 1, stops)[0]["status"]


@pytest.mark.parametrize("name", [*AROUND, *BEHIND])
def test_an_answer_gets_the_same_verdict_with_and_without_a_fence(name):
    """Stop strings that cut an answer before its function began: 392 of MBPP's 500 published
    solutions passed, and none of those that began with a newline or an import."""
    for problem in SAMPLE:
        if name in AROUND:
            assert verdict_of(AROUND[name], problem) == "pass"
            assert verdict_of(f"So:\n```python\n{AROUND[name]}\n```\n", problem) == "pass"
            continue
        for answer in (problem.answer, f"\n{HELPER}\n{WHOLE}"):
            assert verdict_of(answer + BEHIND[name], problem) == "pass"


def test_a_fence_that_only_uses_the_function_is_not_taken_for_it():
    """Bug: right programs that fail because an example of their use, or a method of that name,
    stands in the last fence; an answer with blank lines that takes minutes to read."""
    for problem in SAMPLE:
        for name, own in AROUND.items():
            for more in MORE_FENCES[name == "imported":]:
                answer = f"```python\n{own}\n```\nUse it:\n```python\n{more}```\n"
                assert verdict_of(answer, problem) == "pass", (name, more)
    draft = "```python\ndef add(a, b):\n    return 0\n```\n"
    assert verdict_of(f"{draft}Better:\n```python\n{AROUND['under a condition']}```", SAMPLE[1]) \
        == "pass", "a later answer, under a condition, is no method"
    began = time.process_time()
    for blank in ("\n" * 32_768, " " * 32_768, "\t\n" * 16_384):
        for text in (f"```python\n{blank}{WHOLE}```", f"{blank}```python\n{WHOLE}```"):
            assert "return helper(a) + b" in extract_code(text, ADD[0], "add")
    assert time.process_time() - began < 2


@pytest.mark.parametrize("text", [
    "def add(a, b):\n    total = a + b\n    return total +",
    "def add(a, b):\n    return (a + b\n\ndef mul(a, b):\n    return a * b\n",
    "def add(a, b):\n    a += b\n    if a:\n# all is well\n    return a\n",
    "def add(a, b):\n    '''Sum.\n    return a + b\n",
    "    return a +\n\ndef mul(a, b):\n    return a * b\n",
    "def mul(a, b):\n    return a * b\n",
    "import os\n",
    "I cannot.\n",
    "",
    "(" * 50_000,
    "-" * 50_000 + "1",
    "def add(a, b):\n    return a + b\0\n",
])
def test_half_a_function_is_not_cut_to_a_shorter_one(text):
    """An error in the tested function itself is a fail, whatever stands around it."""
    for problem in SAMPLE:
        assert cut(text, problem.code, "add") == text
        assert verdict_of(text, problem) == "fail"


def test_the_part_of_a_truncated_function_that_runs_is_no_solution():
    """A completion that ends in the middle of a line must not lose that line."""
    problem = SAMPLE[1]._replace(test="v = [2, 1]\nadd(v, 0)\nassert v == [1, 2]")
    right = "def add(a, b):\n    a.sort()\n    return None\n"
    assert verdict_of(right, problem) == "pass"
    assert verdict_of(right.replace("return None\n", "return No +"), problem) == "fail"


@pytest.mark.parametrize("name, path", SETS)
def test_published_solutions_pass_in_other_wordings(name, path):
    """A sample of the problems (each tenth) in the wordings above."""
    problems = (load_problems(f"{name}={path}") if path else SAMPLE)[::10]
    rows = []
    for p in problems:
        whole = p.code + p.answer
        for text in (p.answer, "\n" + p.answer, "\n" + p.prompt + p.answer, p.prompt + p.answer,
                     "import math\n" + whole, p.answer.rstrip() + BEHIND["prose"],
                     p.answer.rstrip() + BEHIND["half a function"]):
            rows.append(dict(id=p.id, completion=text))
    judge(rows, problems, True)
    assert not [(r["id"], r["completion"], r["detail"]) for r in rows if r["status"] != "pass"]


# ------------------------------------------------------------------------------------------------
# the command line and the built-in task


def test_nothing_runs_without_consent(tmp_path):
    """Neither flag nor argument may default to running code."""
    with pytest.raises(ValueError, match="allow-code-execution"):
        score([(SAMPLE[0], "")])
    with pytest.raises(SystemExit, match="eval_code: .*allow-code-execution"):
        eval_code.main([str(tmp_path / "absent.jsonl"), "--data", "toy-code"])


def test_the_command_line_writes_rows_and_a_summary(tmp_path, monkeypatch, capsys):
    """pass@k from counts; the exit status where a verdict is an error, which counts neither way;
    k over n refused."""
    broken = SAMPLE[1]._replace(id="sample/2", test="import sys\nassert add(sys) == 3")
    problems = [*SAMPLE, broken]
    monkeypatch.setattr(eval_code, "load_problems", lambda *args: problems)
    path = tmp_path / "s.jsonl"
    flags = "--data humaneval --allow-code-execution --workers 2 --timeout 5".split()

    def run(n, *more):
        rows = [{"task_id": p.id, "completion": c} for p in problems[:n] for c in (p.answer, "bad")]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        problems[n:] = []
        return eval_code.main([str(path), *flags, *more])

    def record():
        return json.loads((tmp_path / "s" / "humaneval.json").read_text())

    assert run(3) == 1 and "'error': 1" in capsys.readouterr().out
    scores = record()["scores"]
    assert (scores["n"], scores["accuracy"], scores["errors"]) == (2, 0.5, 1)
    assert run(2, "--k", "2") == 0 and "pass@2 100.00%" in capsys.readouterr().out
    assert record()["counts"] == {"pass": 2, "fail": 2, "timeout": 0, "error": 0}
    assert record()["timeout"] == 5.0 and record()["samples"] == 2
    assert record()["scores"]["pass@2"] == 1.0 and len(record()["sha256"][str(path)]) == 64
    lines = (tmp_path / "s" / "humaneval.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["status"] for r in rows] == ["pass", "fail"] * 2
    assert rows[0]["isolation"] == list(ISOLATION)
    with pytest.raises(SystemExit, match="expected 1 to 2"):
        run(2, "--k", "3")
    assert run(2, "--limit", "1") == 0, "a whole file, of which a part is wanted"
    assert "of 1 (" in capsys.readouterr().out
    for flag, said in (("--limit", "--limit: expected 1"), ("--timeout", "--timeout and --workers"),
                       ("--workers", "--timeout and --workers")):
        with pytest.raises(SystemExit, match=said):
            run(2, flag, "0")


def test_checkpoints_are_scored_on_the_task_they_were_trained_on(trained, trained_code, tmp_path):
    """A table of zeros from a model that never saw the task; wrong values found out after hours."""
    model, consent = str(trained_code / "wmss.pt"), "--allow-code-execution"
    said = r"wmss\.pt was trained on toy-math; score it with python eval_math.py"
    with pytest.raises(SystemExit, match=said):
        eval_code.main([str(trained / "wmss.pt"), consent, "--limit", "8"])
    said = "wmss.pt was trained on toy-code; score it with python eval_code.py"
    with pytest.raises(SystemExit, match=said):
        eval_math.main([model, "--limit", "7"])
    with pytest.raises(SystemExit) as error:
        eval_code.main([model, consent, "--n", "2", "--k", "3"])
    assert "--k: expected" in str(error.value) and "--temperature 0.0: greedy" in str(error.value)
    rows = []
    for batch in ("3", "100"):
        flags = f"{consent} --limit 8 --n 2 --temperature 0.5 --max-new-tokens 8".split()
        flags += ["--batch", batch, "--out", str(tmp_path / batch)]
        assert eval_code.main([model, *flags]) == 0
        lines = (tmp_path / batch / "toy-code.jsonl").read_text().splitlines()
        rows.append([{**json.loads(line), "seconds": 0} for line in lines])
    assert rows[0] == rows[1] and len(rows[0]) == 16


def test_a_folder_is_scored_and_what_was_scored_is_written(hf_folder, tmp_path):
    """A model folder opened like a file of samples, once all its programs have been run: a
    traceback instead of scores."""
    task = dict(prompt="def f(x):\n", entry_point="f", canonical_solution="    return x\n",
                test="def check(f):\n    f(1)\n")
    path = tmp_path / "human.jsonl"
    rows = [dict(task, task_id=f"HumanEval/{i}") for i in range(164)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = "--allow-code-execution --limit 2 --max-new-tokens 4 --data".split()
    eval_code.main([str(hf_folder), *flags, f"humaneval={path}", "--out", str(tmp_path / "o")])
    record = json.loads((tmp_path / "o" / "humaneval.json").read_text())
    assert record["counts"]["fail"] == 2 and list(record["sha256"]) == [str(path)]


def test_stops_cut_plain_text_and_fences_are_taken_whole():
    """A second function after the answer that breaks it; a stop string inside a fenced answer that
    cuts it in half."""
    problem = SAMPLE[1]._replace(code="")
    texts = ["def add(a, b):\n    return a + b\n\nprint(add(",
             "```python\nimport math\n\ndef add(a, b):\n    return a + b\n```"]
    rows = [dict(id=problem.id, family="s", sample=i, gold="", completion=text, truncated=False)
            for i, text in enumerate(texts)]
    judge(rows, [problem], True, stops=("\nprint(", "\ndef "))
    assert [(r["correct"], r["extractor"]) for r in rows] == [(True, "text"), (True, "fence")]
    assert summary(rows, ks=(2,))["pass@2"] == 1


def test_a_self_test_that_goes_wrong_stops_the_scoring(monkeypatch):
    """A sandbox that fails everything (or passes it) would score every model alike."""
    monkeypatch.setattr(eval_code, "check", lambda *a: Verdict("fail", "", 0.0, ()))
    with pytest.raises(ValueError, match="self-test: expected pass"):
        score([], allow_code_execution=True)


def test_toy_programs_pass_and_the_usual_mistakes_fail():
    """A mistake that the hidden inputs miss would teach and score wrong code."""
    problems = toy_code("train", 160, 2, 0.5)
    verdicts = score([(p, p.completion) for p in problems], allow_code_execution=True)
    for p, v in zip(problems, verdicts, strict=True):
        assert v.status == ("fail" if p.completion == p.mistake else "pass"), p
