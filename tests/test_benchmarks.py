"""plumbing/benchmarks.py: one reader per data set, and no row that is skipped in silence."""

import json
import sys
import types

import pytest

from plumbing import benchmarks

ROWS = {  # one row of each hub schema -> question, gold
    "gsm8k": ({"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 1,004"}, "2+2?", "1004"),
    "svamp": (
        {
            "ID": "chal-1",
            "Body": "Dan had 3",
            "Question": "How many?",
            "Equation": "( 3 )",
            "Answer": 0.0,
            "Type": "x",
        },
        "Dan had 3 How many?",
        "0.0",
    ),
    "mawps": (
        {
            "id": "m1",
            "question": "How many?",
            "chain": "<..>",
            "result": "1_500",
            "result_float": 1500.0,
        },
        "How many?",
        "1500",
    ),
    "aqua": (
        {
            "question": "Pick",
            "options": ["A)21", "B)22.5", "C)1/2", "D)x", "E)None"],
            "rationale": "r",
            "correct": "B",
        },
        "Pick Answer Choices: (A) 21 (B) 22.5 (C) 1/2 (D) x (E) None",
        "B",
    ),
    "math500": (
        {
            "problem": "Find $x$",
            "solution": "..",
            "answer": "\\frac{1}{2}",
            "subject": "Algebra",
            "level": 1,
            "unique_id": "t",
        },
        "Find $x$",
        "\\frac{1}{2}",
    ),
    "amc23": ({"id": 0, "question": "Miles?", "answer": "27.0", "url": "u"}, "Miles?", "27.0"),
    "aime25": ({"id": "0", "problem": "Find it", "answer": "336^\\circ"}, "Find it", "336^\\circ"),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_adapter_reads_its_schema_from_both_kinds_of_file(tmp_path, name):
    """Bug: a renamed field, and a gold of 0 taken for a missing one."""
    row, question, gold = ROWS[name]
    count = benchmarks.SOURCES[name].counts[0]
    (tmp_path / "a.jsonl").write_text("\n".join([json.dumps(row)] * count) + "\n\n")
    (tmp_path / "a.json").write_text(json.dumps([row] * count))
    for file in ("a.jsonl", "a.json"):
        items = benchmarks.load_problems(f"{name}={tmp_path / file}")
        assert len(items) == count == len({i.id for i in items})
        assert (items[0].prompt, items[0].answer, items[0].family) == (question, gold, name)


@pytest.mark.parametrize("name", ROWS)
def test_each_adapter_reads_the_hub(monkeypatch, name):
    """Bug: a wrong repository, configuration or split: they are handed to a stand-in of
    `datasets`."""
    calls = []
    fake = types.SimpleNamespace(
        load_dataset=lambda *a, **k: (
            calls.append((a, k)) or [ROWS[name][0]] * benchmarks.SOURCES[name].counts[0]
        )
    )
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(benchmarks.load_problems(name)) == benchmarks.SOURCES[name].counts[0]
    path, config, split = benchmarks.SOURCES[name].hub
    assert calls == [((path, config), {"split": split})]


def test_a_missing_datasets_package_names_the_pip_command(monkeypatch):
    """Bug: a bare ImportError."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        benchmarks.load_problems("gsm8k")


@pytest.mark.parametrize(
    "name, bad",
    [
        ("gsm8k", '{"question": "q", "answer": "no mark 5"}'),
        ("gsm8k", '{"question": "", "answer": "#### 5"}'),
        ("gsm8k", '{"answer": "#### 5"}'),
        ("gsm8k", '{"question": "q", "answer": "#### five"}'),
        ("gsm8k", "[1]"),
        ("gsm8k", "{broken"),
        ("gsm8k", '"text"'),
        ("svamp", '{"Body": "b", "Answer": 1}'),
        ("mawps", '{"question": "q", "result": null}'),
        ("aqua", '{"question": "q", "options": ["A)1", "B)2"], "correct": "C"}'),
        ("aqua", '{"question": "q", "correct": "A"}'),
        ("math500", '{"problem": "p", "answer": " "}'),
        ("aime25", '{"problem": "p", "answer": "x"}'),
    ],
)
def test_a_bad_row_is_refused_with_file_and_line(tmp_path, name, bad):
    """Bug: rows skipped in silence, which changes the score's denominator."""
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROWS[name][0]) + "\n\n" + bad + "\n")
    with pytest.raises(ValueError, match=r"rows\.jsonl:3: .*expected"):
        benchmarks.load_problems(f"{name}={file}", any_count=True)


def test_a_wrong_count_is_an_error_unless_asked_for(tmp_path):
    """Bug: a score on half a file published as the benchmark's."""
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS["amc23"][0]) + "\n")
    with pytest.raises(ValueError, match="expected 40 rows, found 1.*--any-count"):
        benchmarks.load_problems(f"amc23={tmp_path / 'a.jsonl'}")
    assert len(benchmarks.load_problems(f"amc23={tmp_path / 'a.jsonl'}", any_count=True)) == 1


def test_both_published_sizes_of_svamp_are_known(tmp_path):
    """Bug: the hub's test split of 300 being refused, or taken for the published 1,000 from
    the hub."""
    (tmp_path / "a.json").write_text(json.dumps([ROWS["svamp"][0]] * 300))
    assert len(benchmarks.load_problems(f"svamp={tmp_path / 'a.json'}")) == 300
    assert (
        benchmarks.SOURCES["svamp"].hub[2] == "train+test"
        and benchmarks.SOURCES["svamp"].counts[0] == 1000
    )


@pytest.mark.parametrize(
    "spec, message",
    [
        ("gsm9k", "toy-math or one of gsm8k"),
        ("gsm8k=/no/such/file", "/no/such/file.*check the path"),
    ],
)
def test_an_unknown_set_or_file_is_named(spec, message):
    """Bug: a typo ending in a traceback."""
    with pytest.raises(ValueError, match=message):
        benchmarks.load_problems(spec)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch):
    """Bug: thirty lines of another library's traceback, and no word of the way out."""
    import datasets

    def fail(*args, **kw):
        raise ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        ValueError, match="^openai/gsm8k: the hub did not give it: no connection .*NAME=PATH$"
    ):
        benchmarks.load_problems("gsm8k")
