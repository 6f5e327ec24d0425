"""eval_math.py: statistics, scoring with a model that knows the answers, comparison of two runs.

Extraction and equality are tested in test_latex.py, data sets in test_benchmarks.py.
"""

import json
import math
import os
import pathlib
import sys
import types
from fractions import Fraction

import pytest
from test_benchmarks import ROWS

import eval_math as em
from data import toy_math
from eval_math import grade, mcnemar, pass_at_k, wilson
from model import GPT, GPTConfig, save_checkpoint
from plumbing import scoring, tasks
from plumbing.tokenizer import Tokenizer, fingerprint, tokenizer_files, toy_encoding

# ----------------------------------------------------------------------------------------------
# statistics


@pytest.mark.parametrize(
    "n, c, k, value",
    [
        (5, 2, 2, 0.7),
        (8, 3, 4, 13 / 14),
        (20, 2, 10, 29 / 38),
        (200, 13, 10, 0.49755111473060615),
        (1000000, 10, 1000, 0.0099551643871496),
        (8, 0, 8, 0.0),
        (8, 8, 1, 1.0),
        (8, 5, 4, 1.0),
    ],
)
def test_pass_at_k_has_its_reference_value(n, c, k, value):
    """Bug: float products that lose digits at large n, and 1 - 0 where n - c < k."""
    assert pass_at_k(n, c, k) == pytest.approx(value, rel=1e-15, abs=0)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    """Bug: the biased estimator 1-(1-p)^k: compares with the exact count of subsets for all
    small n, c, k."""
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                assert pass_at_k(n, c, k) == float(
                    1 - Fraction(math.comb(n - c, k), math.comb(n, k))
                )


@pytest.mark.parametrize("n, c, k", [(4, 2, 5), (4, 5, 1), (4, -1, 1), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    """Bug: pass@8 reported from 4 samples."""
    with pytest.raises(ValueError, match="1 <= k <= n"):
        pass_at_k(n, c, k)


def test_wilson_has_its_reference_value_and_its_limits():
    """Bug: the normal interval (which leaves [0, 1]) and a wrong z."""
    assert wilson(660, 1319) == pytest.approx((0.47343385, 0.52732210), abs=5e-9)
    assert wilson(0, 10)[1] == pytest.approx(0.2775327998628892)
    for n in range(1, 400):
        assert (
            wilson(0, n)[0] == 0
            and wilson(n, n)[1] == 1
            and wilson(n / 3, n)[0] <= 1 / 3 <= wilson(n / 3, n)[1]
        )
    with pytest.raises(ValueError, match="n=0"):
        wilson(0, 0)


def test_mcnemar_has_its_reference_value_and_is_exact():
    """Bug: the chi-square approximation and a one-sided p; the other values are sums of
    binomials."""
    assert mcnemar(25, 10) == mcnemar(10, 25) == pytest.approx(0.01667384780012071, rel=1e-14)
    assert (
        mcnemar(0, 0) == mcnemar(3, 3) == 1
        and mcnemar(0, 5) == 2 / 32
        and 0 < mcnemar(0, 1000) < 1e-300
    )


# ----------------------------------------------------------------------------------------------
# scoring


class Knows:
    """A model that answers the built-in task: right if greedy, right or wrong by the seed of
    the very sample if not."""

    def __init__(self, answers, say=";{}"):
        self.answers, self.say, self.calls, self.enc = answers, say, [], toy_encoding()

    def parameters(self):
        yield types.SimpleNamespace(dtype="torch.float32")

    def generate(
        self, prompts, max_new_tokens, temperature=0.0, stop_ids=(), seed=0, weak=None, lam=1.0
    ):
        self.calls.append((len(prompts), max_new_tokens, temperature, stop_ids))
        says = [
            self.say.format(int(self.answers[self.enc.decode(p)]) + (temperature > 0 and s % 2))
            for p, s in zip(prompts, seed, strict=True)
        ]
        return [self.enc.encode_ordinary(text)[:max_new_tokens] for text in says]


PROBLEMS = toy_math("test", 14)
ENC = toy_encoding()


def knows(**kw):
    return Knows({p.prompt: p.answer for p in toy_math("test", 2100)}, **kw)


def scored(**how):
    return em.judge(em.complete(knows(), ENC, PROBLEMS, **how))


def test_rows_do_not_depend_on_the_batch_size():
    """Bug: generators shared over a batch: a sample's draw must depend on (seed, problem,
    sample) alone."""
    runs = [scored(batch_size=b, temperature=0.5, n=4) for b in (1, 3, 100)]
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 56
    assert len({r["seed"] for r in runs[0]}) == 56 and 0 < sum(r["correct"] for r in runs[0]) < 56
    assert runs[0] != scored(temperature=0.5, n=4, seed=1)
    assert [(r["id"], r["sample"]) for r in runs[0]] == [
        (p.id, s) for p in PROBLEMS for s in range(4)
    ]


def test_one_long_prompt_does_not_make_the_cache_of_all_others_long():
    """Bug: a batch's cache is as wide as its longest prompt: among MBPP's prompts of 130
    tokens is one of 3,737, which took 30 times the memory."""

    class Echo:
        def generate(self, prompts, max_new_tokens, **_):
            batches.append([len(p) + max_new_tokens for p in prompts])
            return [p[:2] for p in prompts]

    batches, lengths = [], [6, 100, 7, 30, 5, 31, 6, 400]
    rows = em.complete(
        Echo(),
        ENC,
        [
            types.SimpleNamespace(id=n, family="f", prompt=str(k) * n, answer="")
            for k, n in enumerate(lengths)
        ],
        max_new_tokens=10,
        batch_size=3,
    )
    assert batches == [[15, 16, 16], [17], [40, 41], [110], [410]]
    assert [r["completion"] for r in rows] == [str(k) * 2 for k in range(8)], (
        "each row gets what was said to its own prompt"
    )


def test_a_base_model_is_graded_on_its_own_question():
    """Bug: a model without a template goes on with the next question, and that answer counts."""
    says = knows(say=" So {}.\n#### {}\n\nQuestion: 1 + 1?\nAnswer: 2\n#### 2")
    says.say, says.answers = says.say.replace("{}", "9"), dict.fromkeys(("q",), "9")
    enc = types.SimpleNamespace(
        check=lambda text, of: None,
        encode=lambda text, **_: text,
        decode=lambda text: text,
        stop_ids=[],
    )
    says.generate = lambda prompts, *_, **__: [says.say for _ in prompts]
    one = [types.SimpleNamespace(id="1", family="f", prompt="q", answer="9")]
    for template, right in (("Question: {}\nAnswer:", True), ("<user>{}<bot>", False)):
        (row,) = em.judge(em.complete(says, enc, one, wrap=template.format), "gsm8k")
        assert row["correct"] is right and ("Question" in row["completion"]) is not right


def test_sample_seeds_are_stable_over_processes():
    """Bug: Python's salted hash() in a seed."""
    assert em.sample_seed(0, "gsm8k/1", 0) == 406885344802642555 != em.sample_seed(0, "gsm8k/1", 1)


@pytest.mark.parametrize(
    "text, answer, correct",
    [
        ("8+7=15,5+6+1=12;125", "125", True),
        ("8+7=15;5;125", "125", True),
        ("125", None, False),
        ("8+7=15,5+6+1=12;", None, False),
        ("8+7=15,5+6+1=12;12", "12", False),
        (";125,", "125,", True),
        ("", None, False),
        (";125;1", "1", False),
        (";63+62", "63+62", False),  # the question again, or a step: no answer
        (";x=125", "x=125", False),
    ],
)
def test_the_answer_of_the_built_in_task_follows_the_last_semicolon(text, answer, correct):
    """Bug: the last number of a truncated solution taken for its answer."""
    g = grade(text, "125", "toy-math")
    assert (g.answer, g.correct) == (answer, correct)


def test_a_summary_reports_families_truncation_and_extractors():
    """Bug: averages over generations of unequal families, and truncated completions counted as
    ordinary ones."""
    s = em.summary(scored())
    assert (
        (s["n"], s["accuracy"], s["high"]) == (14, 1.0, 1.0)
        and s["low"] == wilson(14, 14)[0]
        and len(s["families"]) == 7
    )
    assert s["extractors"] == {"last ;": 1.0} and s["truncated"] == s["no_answer"] == 0
    cut = em.summary(scored(max_new_tokens=1))
    assert cut["truncated"] == cut["no_answer"] == 1 and cut["accuracy"] == cut["low"] == 0


def test_mean_and_pass_at_k_come_from_the_same_samples():
    """Bug: pass@k of the whole file instead of the mean over problems."""
    row = {"family": "f", "answer": "1", "extractor": "boxed", "truncated": False}
    rows = [
        {"id": i, "sample": s, "correct": s < c, **row}
        for i, c in enumerate((0, 1, 4))
        for s in range(4)
    ]
    s = em.summary(rows, ks=(1, 2))
    assert s["accuracy"] == s["pass@1"] == pytest.approx(5 / 12) and s["pass@2"] == pytest.approx(
        (0 + 0.5 + 1) / 3
    )
    broken = em.summary(rows + [{"id": 9, "sample": 0, "correct": None, **row}], ks=(1, 2))
    assert broken == {**s, "errors": 1}, "harness trouble must count neither way"


def test_prompts_are_those_of_training():
    """Bug: a system prompt dropped on the way, a chat model asked in plain text, a function to
    complete wrapped in a chat."""
    assert em.chat(ENC)("Why?") == "Question: Why?\nAnswer:" and "SYS" in em.chat(ENC, "SYS")(
        "Why?"
    )
    assert em.chat(ENC, raw=True)("f") == "f"
    ours = toy_encoding()
    ours.bos_id = ours.end_id
    assert (
        em.chat(ours, raw=True)("f") == "<|end|>f"
        and em.chat(ours)("f") == "<|end|>Question: f\nAnswer:"
    )
    ours = toy_encoding()
    ours.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[bot]{% endif %}"
    )
    assert (
        em.chat(ours, "SYS")("Why?") == "[system]SYS[user]Why?[bot]"
        and em.chat(ours, raw=True)("f") == "[user]f[bot]"
    )


def test_a_model_stops_where_its_template_closes_a_turn(tmp_path):
    """Bug: Qwen3-4B-Base ends texts with one token and turns with another; scored by hand it
    wrote on, in its run's table not."""
    chat = "{% for m in messages %}{{ m.content }}<|turn|>{% endfor %}"
    enc = Tokenizer(
        "two ends",
        pat_str=r"[\s\S]",
        mergeable_ranks=ENC._mergeable_ranks,
        chat_template=chat,
        special_tokens={"<|end|>": 96, "<|turn|>": 97},
        end="<|end|>",
    )
    save_checkpoint(
        tmp_path / "m.pt",
        GPT(GPTConfig()),
        tokenizer=fingerprint(enc),
        tokenizer_files=tokenizer_files(enc),
    )
    assert enc.stop_ids == [96] and em.load_model(tmp_path / "m.pt")[1].stop_ids == [96, 97]


@pytest.fixture
def fake(monkeypatch):
    """The command line with a model that knows the answers."""
    model = knows()
    monkeypatch.setattr(em, "load_model", lambda path, device: (model, ENC, "toy-math"))
    return model


def test_the_command_line_scores_writes_and_compares(tmp_path, fake, capsys):
    """Bug: settings missing from the record, rows that cannot be compared, a table that is not
    printed."""
    flags = {
        "a": ["--limit", "10"],
        "b": ["--limit", "10", "--n", "2", "--temperature", "1", "--k", "1", "2"],
        "c": ["--limit", "5"],
        "d": ["--limit", "10", "--batch", "3"],
        "v": ["--limit", "10", "--split", "val"],
    }
    for out in "abcd":
        em.main([str(tmp_path / "m.pt"), "--out", str(tmp_path / out), *flags[out]])
    printed = capsys.readouterr().out
    assert (
        "accuracy 100.00% of 10 (95 % interval 72.25% - 100.00%)" in printed and "pass@2" in printed
    )
    run = json.loads((tmp_path / "a" / "toy-math.json").read_text())
    assert {
        "seed",
        "batch_size",
        "data_sha256",
        "commit",
        "dtype",
        "protocol",
        "temperature",
        "max_new_tokens",
        "checkpoint",
    } <= set(run)
    a, b, c, d = (tmp_path / out / "toy-math.jsonl" for out in "abcd")
    rows = [json.loads(line) for line in a.read_text().splitlines()]
    assert len(rows) == 10 and rows[0]["id"] == "test/0" and "official" not in rows[0]
    assert a.read_text() == d.read_text()
    em.main(["--compare", str(a), str(d)])
    assert json.loads(capsys.readouterr().out)["mcnemar_p"] == 1
    for other, first in ((b, "test/0"), (c, "test/5")):
        with pytest.raises(SystemExit, match=f"first difference is .*{first}'"):
            em.main(["--compare", str(a), str(other)])


def test_scores_of_other_settings_are_not_overwritten(tmp_path, fake, capsys):
    """Bug: the greedy rows that --compare wants gone after eight samples per problem."""
    flags = (
        [],
        ["--limit", "10"],
        ["--limit", "10", "--n", "2", "--temperature", "0.5"],
        ["--limit", "10"],
    )
    for more in (["--limit", "5"], *flags[1:]):
        em.main([str(tmp_path / "m.pt"), *more])
    assert sorted(os.listdir(tmp_path / "m")) == [
        f"toy-math{tag}.json{end}"
        for tag in ("-first10", "-n2-t0.5-seed0-first10", "")
        for end in ("", "l")
    ]
    rows = {
        name: (tmp_path / "m" / name).read_text().count("\n")
        for name in os.listdir(tmp_path / "m")
        if name.endswith("l")
    }
    assert rows == {
        "toy-math.jsonl": 5,
        "toy-math-first10.jsonl": 10,
        "toy-math-n2-t0.5-seed0-first10.jsonl": 20,
    }


def test_scores_of_another_model_or_set_of_that_name_are_not_overwritten(tmp_path, monkeypatch):
    """Bug: /runs/sft/final and /runs/wmss/final both in out/final; mine=a.jsonl, then mine=b.jsonl
    or mine:exact=a.jsonl."""
    monkeypatch.chdir(tmp_path)

    def stem(checkpoint, **record):
        a = types.SimpleNamespace(
            checkpoint=checkpoint, out=None, n=1, temperature=0.0, seed=0, limit=None,
            max_new_tokens=None, split="test")
        record = {**vars(a), "data": "mine", "data_sha256": "a", "graded_as": "math", **record}
        path = scoring.stem_of(a, "mine", record)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        pathlib.Path(path + ".json").write_text(json.dumps(record))
        return path

    runs = [("/runs/sft/final", {}), ("/runs/wmss/final", {}), ("/runs/dft/final", {}),
            ("/runs/sft/final", dict(data_sha256="b")),
            ("/runs/sft/final", dict(graded_as="exact"))]
    paths = [stem(checkpoint, **record) for checkpoint, record in runs]
    assert len(set(paths)) == 5 and all(p.startswith("out/final/mine") for p in paths)
    assert [stem(checkpoint, **record) for checkpoint, record in runs] == paths


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--device", "foo"], "--device foo: expected auto, or one that this machine has"),
        (["--data", "gsm8k=a", "gsm8k=b"], "--data: expected each set once, found gsm8k, gsm8k"),
    ],
)
def test_wrong_values_are_told_in_a_line(flags, said):
    """Bug: torch's traceback; of two files of one set the first dropped without a word."""
    with pytest.raises(SystemExit) as told:
        em.main(["m.pt", *flags])
    assert said in str(told.value)


def test_samples_of_a_trained_model_do_not_depend_on_the_batch(trained, tmp_path, capsys):
    """Bug: a generator shared over a batch, an order that changes the draw; and two runs that
    cannot be compared."""
    for batch in ("7", "100"):
        em.main(
            [
                str(trained / "wmss.pt"),
                "--limit",
                "21",
                "--n",
                "8",
                "--temperature",
                "0.5",
                "--k",
                "1",
                "8",
                "--batch",
                batch,
                "--max-new-tokens",
                "12",
                "--out",
                str(tmp_path / batch),
            ]
        )
    a, b = (tmp_path / batch / "toy-math.jsonl" for batch in ("7", "100"))
    rows = [json.loads(line) for line in a.read_text().splitlines()]
    assert (
        a.read_text() == b.read_text()
        and len(rows) == 168
        and len({r["completion"] for r in rows}) > 84
    )
    capsys.readouterr()
    em.main(
        [
            "--compare",
            str(trained / "answers" / "sft.jsonl"),
            str(trained / "answers" / "wmss.jsonl"),
        ]
    )
    assert json.loads(capsys.readouterr().out)["problems"] == 14


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--k", "8", "--n", "4", "--temperature", "1"], "1 <= k <= n"),
        (["--n", "4"], "greedy samples are equal"),
        (["--n", "0"], "1 or more"),
        (["--protocol", "paper", "--temperature", "0.5"], "greedy with its own lengths"),
        (["--temperature", "-1"], "--temperature -1"),
    ],
)
def test_bad_flags_are_refused_before_any_work(fake, flags, message):
    """Bug: pass@8 of 4 samples found out after hours of generation."""
    with pytest.raises(SystemExit) as told:
        em.main(["m.pt", *flags])
    assert message in str(told.value) and not fake.calls


def test_all_bad_flags_are_reported_together():
    """Bug: one error a run."""
    with pytest.raises(SystemExit) as told:
        em.main(["--n", "0", "--k", "3"])
    for part in ("checkpoint:", "--n, --limit", "--k"):
        assert part in str(told.value)


def test_a_question_too_long_for_the_model_is_one_sentence(trained, tmp_path):
    """Bug: a traceback where a public data set meets the tiny model."""
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"id": 0, "question": "Miles? " * 40, "answer": "27.0"}) + "\n"
    )
    with pytest.raises(
        SystemExit, match="eval_math: amc23: generate: longest prompt .* exceed max_seq_len 256"
    ):
        em.main(
            [str(trained / "wmss.pt"), "--data", f"amc23={tmp_path / 'a.jsonl'}", "--any-count"]
        )


def test_a_task_of_ones_own_is_scored_as_the_built_in_ones(trained, tmp_path, monkeypatch):
    """Bug: a forked task is asked in a chat's words, or its checkpoint is sent to eval_code.py."""
    monkeypatch.setitem(tasks.TASKS, "double", tasks.toy_math)
    em.main([str(trained / "sft.pt"), "--data", "double", "--limit", "7", "--out", str(tmp_path)])
    record = json.loads((tmp_path / "double.json").read_text())
    assert record["system"] is None and record["max_new_tokens"] == 64
    assert record["graded_as"] == "double" and record["scores"]["n"] == 7
    with pytest.raises(SystemExit, match="--data toy-code: eval_code.py scores programs"):
        em.main([str(trained / "sft.pt"), "--data", "toy-code"])
    a = types.SimpleNamespace(checkpoint="a.pt", data=["toy-math"])
    with pytest.raises(ValueError, match="trained on double; score it with --data double"):
        scoring.check_task(a, "double")


def test_a_question_in_a_foreign_alphabet_is_one_sentence(trained, tmp_path):
    """Bug: a panic of the tokenizer's Rust code."""
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"id": 0, "question": "Miles\u2019?", "answer": "27.0"}) + "\n"
    )
    with pytest.raises(SystemExit, match="97 tokens cannot spell '\u2019' of problem amc23/1"):
        em.main(
            [
                str(trained / "wmss.pt"),
                "--data",
                f"amc23={tmp_path / 'a.jsonl'}",
                "--any-count",
                "--max-new-tokens",
                "5",
            ]
        )


def test_the_paper_protocol_sets_prompt_and_lengths(tmp_path, monkeypatch):
    """Bug: 4,096 tokens on AIME25, sampling, or a missing system prompt under the paper's name."""
    seen, model = [], Knows({"2+2=": "4"})

    def wrap(enc, system=None):
        return lambda question: seen.append(system) or question

    monkeypatch.setattr(em, "chat", wrap)
    monkeypatch.setattr(em, "load_model", lambda path, device: (model, ENC, "toy-math"))
    for name, length in (("aime25", 8192), ("math500", 4096)):
        (tmp_path / "a.jsonl").write_text(json.dumps({**ROWS[name][0], "problem": "2+2="}) + "\n")
        em.main(
            [
                "m.pt",
                "--protocol",
                "paper",
                "--any-count",
                "--data",
                f"{name}={tmp_path / 'a.jsonl'}",
                "--out",
                str(tmp_path),
            ]
        )
        assert (
            model.calls[-1] == (1, length, 0.0, [ENC.encode_single_token("<|end|>")])
            and seen[-1] == em.PAPER_SYSTEM
        )


def test_the_official_grader_is_math_verify():
    """Bug: the paper's scorer called with another extraction, or never called at all."""
    verdict = em.official_grader()
    assert (
        verdict(r"so \boxed{\frac{1}{2}}", "0.5")
        and verdict(r"\boxed{x^2+1}", "1+x^2")
        and verdict("The answer is (B)", "B")
    )
    assert not verdict(r"\boxed{3}", "4") and not verdict("The answer is (C)", "B")


def test_the_official_grader_is_optional_and_stands_beside_ours(tmp_path, fake, monkeypatch):
    """Bug: a hard dependency on math-verify, and its verdict overwriting ours."""
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(SystemExit, match="pip install math-verify"):
        em.main(["m.pt", "--grader", "official"])
    monkeypatch.setitem(
        sys.modules,
        "math_verify",
        types.SimpleNamespace(
            LatexExtractionConfig=dict,
            parse=lambda text, extraction_config=None: text,
            verify=lambda gold, pred: False,
        ),
    )
    em.main(["m.pt", "--grader", "official", "--limit", "7", "--out", str(tmp_path)])
    run = json.loads((tmp_path / "toy-math.json").read_text())
    assert (run["scores"]["accuracy"], run["official_scores"]["accuracy"]) == (1, 0)


# ----------------------------------------------------------------------------------------------
# compare


def rows_file(path, verdicts):
    path.write_text(
        "".join(
            json.dumps({"id": f"t/{i}", "gold": "5", "sample": 0, "correct": bool(v)}) + "\n"
            for i, v in enumerate(verdicts)
        )
    )
    return str(path)


def test_compare_counts_discordant_pairs_and_bounds_the_difference(tmp_path):
    """Bug: unpaired statistics: 25 and 10 discordant of 100, difference -0.15, p of the exact
    test."""
    a = rows_file(tmp_path / "a", [1] * 60 + [0] * 40)
    b = rows_file(tmp_path / "b", [1] * 35 + [0] * 25 + [1] * 10 + [0] * 30)
    c = em.compare(a, b)
    assert (c["only_a"], c["only_b"], c["problems"]) == (25, 10, 100) and c["mcnemar_p"] == mcnemar(
        25, 10
    )
    assert (
        c["difference"] == pytest.approx(-0.15)
        and c["a"]["interval"] == wilson(60, 100)
        and c["b"]["accuracy"] == 0.45
    )
    low, high = c["bootstrap_95"]  # standard error sqrt((0.35 - 0.15^2) / 100) = 0.0572
    assert low == pytest.approx(-0.15 - 1.96 * 0.0572, abs=0.02) and high == pytest.approx(
        -0.15 + 1.96 * 0.0572, abs=0.02
    )
    assert em.compare(a, b) == c


def test_compare_does_not_depend_on_the_order_of_rows(tmp_path):
    """Bug: pairing by line number."""
    a, b = rows_file(tmp_path / "a", [1, 0, 1, 0, 1]), rows_file(tmp_path / "b", [1, 1, 0, 0, 1])
    lines = (tmp_path / "b").read_text().splitlines()
    (tmp_path / "r").write_text("\n".join(lines[::-1]) + "\n")
    assert em.compare(a, str(tmp_path / "r")) == em.compare(a, b)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"id": "t/0", "gold": "6", "sample": 0, "correct": true}\n', "first difference is .*t/0"),
        ('{"id": "t/0"}\n', "b:1: expected a judged row"),
        ("", "first difference"),
    ],
)
def test_compare_refuses_files_about_other_problems(tmp_path, text, message):
    """Bug: a comparison of two different test sets, with the first difference named."""
    (tmp_path / "b").write_text(text)
    with pytest.raises(ValueError, match=message):
        em.compare(rows_file(tmp_path / "a", [1]), str(tmp_path / "b"))
