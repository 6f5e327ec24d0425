"""plumbing/benchmarks.py: one reader per data set, and no row that is skipped in silence."""

import csv
import json
import sys
import types

import pytest

import eval_math as em
from eval_math import grade
from plumbing import benchmarks
from plumbing.tokenizer import toy_encoding

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


# ----------------------------------------------------------------------------------------------
# multiple choice with options in a list

LOGIQA = {"id": 7, "answer": 2, "text": "A vitamin A. It is so.", "question": "Which?",
          "options": ["one", "vitamin A. B", "All of  them", "none\nof them"],
          "type": {"Categorical Reasoning": True}}
RECLOR = {"context": "All cats.", "question": "Which?", "answers": ["a", "b", "c", "d"],
          "label": 3, "id_string": "val_0"}


@pytest.mark.parametrize("name, row, question, gold", [
    ("logiqa", LOGIQA, "A vitamin A. It is so. Which? Answer Choices:\n(A) one\n(B) vitamin A. B\n"
     "(C) All of them\n(D) none of them", "C"),
    ("reclor", RECLOR, "All cats. Which? Answer Choices:\n(A) a\n(B) b\n(C) c\n(D) d", "D")])
def test_the_papers_logic_sets_are_read_as_published(tmp_path, name, row, question, gold):
    """Bug: options that begin at 1, an option that opens with a letter taken for another one."""
    count = benchmarks.SOURCES[name].counts[0]
    lines = [json.dumps(row)] * count
    whole = "\n".join(lines) if name == "logiqa" else f"[{','.join(lines)}]"
    (tmp_path / "a.txt").write_text(whole)
    items = benchmarks.load_problems(f"{name}={tmp_path / 'a.txt'}")
    assert len(items) == count and (items[0].prompt, items[0].answer) == (question, gold)
    assert items[0].grader == "letter"
    text = items[0].prompt.split("\n")["ABCD".index(gold) + 1]
    for said in (f"The answer is ({gold}).", f"Answer: {gold}", text, text[4:], f"Hence ({gold}).",
                 f"{gold}. {text[4:]}\n\nFor that is so.", f"The best answer is {gold}: {text[4:]}",
                 f"<answer>{text}</answer>", f"\\boxed{{{gold}}}",
                 f"The answer is {gold} since 12 are."):
        assert grade(f"<think>So (A) is correct.</think>{said}", gold, "letter", question).correct
    for said in ("So (A) is correct.", "I do not know.", f"({gold}) one of three",
                 "(A) " + text[4:], "\n".join(question.split("\n")[1:]),
                 f"The answer is not {gold}.", "A a one."):
        assert not grade(said, gold, "letter", question).correct, said
    with pytest.raises(ValueError, match=f"expected {count} rows, found 1; .*--any-count"):
        (tmp_path / "b.json").write_text(json.dumps([row]))
        benchmarks.load_problems(f"{name}={tmp_path / 'b.json'}")
    for bad in ({"answer": 4, "label": 4}, {"answer": None, "label": None},
                {"options": list("abcdef"), "answers": list("abcdef")}):
        (tmp_path / "b.json").write_text(json.dumps([{**row, **bad}]))
        with pytest.raises(ValueError, match="b.json:1: "):
            benchmarks.load_problems(f"{name}={tmp_path / 'b.json'}", any_count=True)
    with pytest.raises(ValueError, match=f"expected {name}=FILE, as it is published"):
        benchmarks.load_problems(name)


# ----------------------------------------------------------------------------------------------
# files of one's own


def own(tmp_path, rows, spec="mine", name="a.jsonl", **how):
    file = tmp_path / name
    if name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif name.endswith(".csv"):
        with open(file, "w", newline="") as f:
            writer = csv.DictWriter(f, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".json"):
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return benchmarks.load_problems(f"{spec}={file}", **how)


def turns(*contents):
    roles = ("user", "assistant") * 3
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_an_own_file_of_any_size_is_read_in_each_format(tmp_path, name):
    """Bug: only published sets, of their published size; a number that is no text."""
    rows = [{"question": f"{i} and\n{i}, \"all\"?", "answer": 2 * i} for i in range(3)]
    items = own(tmp_path, rows, name=name)
    assert [(p.id, p.family, p.prompt, p.answer, p.grader) for p in items] == [
        (f"mine/{i + 1}", "mine", f"{i} and\n{i}, \"all\"?", str(2 * i), "math") for i in range(3)]
    assert len(own(tmp_path, rows, name=name, limit=2)) == 2


def test_each_form_of_a_row_and_named_columns_are_taken(tmp_path):
    """Bug: a file that trains and cannot be scored; the columns' names of one file asked of all."""
    columns = ("q", "a")
    for row in ({"question": "2+2?", "answer": "So\n#### 4"}, {"prompt": "2+2?", "completion": "4"},
                {"messages": turns("2+2?", r"It is \boxed{4}.")}, {"q": "2+2?", "a": 4}):
        (p,) = own(tmp_path, [row], columns=columns)
        assert (p.prompt, p.answer) == ("2+2?", "4")
        bare = [{"role": "user", "content": "2+2?", "bare": True}]
        assert p.messages == (bare if "prompt" in row else ())
    (p,) = own(tmp_path, [{"messages": turns("Hi", "Hello", "2+2?", "4")}])
    assert p.answer == "4" and p.prompt == "Hi\n\nHello\n\n2+2?"
    assert [m["content"] for m in p.messages] == ["Hi", "Hello", "2+2?"]
    asked = em.chat(toy_encoding(), "SYS")(p.messages)
    assert asked.index("SYS") < asked.index("Hello") < asked.index("2+2?")


@pytest.mark.parametrize("golds, grader, answers", [
    (["1,000", "-3/4", "$5", "7%"], "math", ["1,000", "-3/4", "$5", "7%"]),
    ([r"\frac{1}{2}", "3"], "math", [r"\frac{1}{2}", "3"]),
    (["Paris", "3"], "exact", ["Paris", "3"]),
    (["The answer is Paris.", "####  New  York"], "exact", ["Paris", "New York"]),
    (["A", "B"], "exact", ["A", "B"])])
def test_the_grader_is_chosen_by_all_gold_answers(tmp_path, golds, grader, answers):
    """Bug: one number among names that turns mathematics on."""
    items = own(tmp_path, [{"question": "q", "answer": g} for g in golds])
    assert [p.answer for p in items] == answers and {p.grader for p in items} == {grader}


def test_letters_are_graded_as_letters(tmp_path):
    """Bug: an option's letter compared as a text with all that was said around it."""
    rows = [{"question": "Which? A) 1 B) 2 C) 3", "answer": "(B)"},
            {"question": "Which?", "options": ["x", "y", "z"], "answer": "The answer is C."}]
    items = own(tmp_path, rows)
    assert [(p.answer, p.grader) for p in items] == [(x, "letter") for x in "BC"]
    assert grade("I choose (C).", "C", "letter", items[1].prompt).correct
    with pytest.raises(ValueError, match=r"a\.jsonl:1: expected at most 5 options, found 6"):
        own(tmp_path, [{**rows[1], "options": list("uvwxyz")}])
    (p,) = own(tmp_path, [{"question": "Which?", "answer": "d"}], "mine:letter")
    assert (p.answer, p.grader) == ("D", "letter")


def test_exact_match_reads_what_is_marked_or_the_whole():
    """Bug: exact match with a chain of thought, which nothing ever equals."""
    for text, right in (("Paris", True), (" Paris.\n", True), ("paris", False),
                        ("Hm.\nThe answer is Paris.\nOr so.", True), ("x #### Paris", True),
                        ("<think>The answer is Rome</think>Paris", True), ("In Paris", False)):
        assert grade(text, "Paris", "exact").correct == right, text
    assert grade("", "Paris", "exact").answer is None


@pytest.mark.parametrize("spec, row, message", [
    ("mine:maths", {"question": "q", "answer": "1"}, "expected one of math, exact, letter behind"),
    ("gsm8k:exact", {"question": "q", "answer": "#### 1"}, "gsm8k has its own grader"),
    ("mbpp", {"question": "q", "answer": "1"}, "with a NAME that no other set has"),
    ("toy-math", {"question": "q", "answer": "1"}, "with a NAME that no other set has"),
    ("mine:math", {"question": "q", "answer": "  "}, r"a\.jsonl:1: empty completion"),
    ("mine:letter", {"question": "q", "answer": "7"}, r"a\.jsonl:1: .*grader letter can read"),
    ("mine", {"text": "q"}, r"a\.jsonl:1: expected columns messages or prompt and completion"),
    ("mine", {"messages": turns("q", "a", "b")}, r"a\.jsonl:1: expected the assistant's turn")])
def test_an_own_file_that_cannot_be_graded_is_one_sentence(tmp_path, spec, row, message):
    """Bug: a row that no answer can be right on, found in the table of scores, or never."""
    with pytest.raises(ValueError, match=message):
        own(tmp_path, [row], spec)


def test_one_answer_that_is_no_number_does_not_make_all_others_texts(tmp_path):
    """Bug: a NaN of pandas as the gold answer "nan", and 3.0 compared with "3" by characters."""
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": 3.0}\n'
                                      '{"question": "r", "answer": NaN}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: .*found float nan"):
        benchmarks.load_problems(f"mine={tmp_path / 'a.jsonl'}")


def test_a_torn_csv_and_an_empty_file_are_refused(tmp_path):
    """Bug: a row with a comma too many, whose gold answer is half of it; a long text refused;
    another encoding as an error of line 0."""
    (tmp_path / "long.csv").write_text(f"question,answer\n{'x' * 140_000},3\n")
    (long,) = benchmarks.load_problems(f"mine={tmp_path / 'long.csv'}")
    assert long.answer == "3" and len(long.prompt) == 140_000
    (tmp_path / "latin.csv").write_bytes("question,answer\ncafé,3\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.csv:2: .*found byte 0xe9; save it as UTF-8"):
        benchmarks.load_problems(f"mine={tmp_path / 'latin.csv'}")
    (tmp_path / "a.csv").write_text("question,answer\nq,1\nq,1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv:3: expected 2 columns as in its first line"):
        benchmarks.load_problems(f"mine={tmp_path / 'a.csv'}")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="no row in it"):
        benchmarks.load_problems(f"mine={tmp_path / 'a.jsonl'}")
