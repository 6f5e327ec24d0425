"""What a newcomer reads when a flag names the wrong thing: one sentence without Python's words."""

import re

import pytest

import entropy
import eval_code
import eval_math
import sample
import train_wmss

PROGRAMS = {"train_wmss": train_wmss.main, "entropy": entropy.main, "eval_math": eval_math.main,
            "eval_code": eval_code.main, "sample": sample.main}
RUN = "--allow-code-execution"
CASES = {
    "sample": ["sample {bad} 1+1:", "sample {sft} 1+1: --weak {bad}"],
    "entropy": ["entropy --weak {bad} --live {sft}", "entropy --weak {sft} --live {bad}",
                "entropy --weak {hf} --live {hf} --data {bad}"],
    "eval_math": ["eval_math {bad} --limit 7", "eval_math {hf} --data gsm8k={bad}",
                  "eval_math --compare {bad} {bad}"],
    "eval_code": ["eval_code {bad} --limit 7 " + RUN, "eval_code {hf} --data mbpp={bad} " + RUN],
    "train_wmss": ["train_wmss --base {bad}", "train_wmss --base {bad} --data {bad}",
                   "train_wmss --base {hf} --data {bad} --stages sft",
                   "train_wmss --base {hf} --data {fine} --val-data {bad} --stages sft",
                   "train_wmss --base {hf} --data {fine} --score-data gsm8k={bad} --stages score",
                   "train_wmss --base {hf} --data {fine} --template {bad} --stages sft"],
}


@pytest.fixture
def bad(tmp_path, monkeypatch, trained, hf_folder):
    """Names of things that are not what is asked for; the working folder holds them."""
    monkeypatch.chdir(tmp_path)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    (tmp_path / "void").mkdir()
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "cols.jsonl").write_text('{"foo": "x"}\n')
    (tmp_path / "thing.json").write_text('{"a": 1}')
    (tmp_path / "fine.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    return {"sft": trained / "sft.pt", "hf": hf_folder, "fine": "fine.jsonl"}


@pytest.mark.parametrize("program", CASES)
def test_a_wrong_file_is_told_in_words(program, bad, trained, capsys):
    """Bug: LocalEntryNotFoundError, KeyError, [Errno 2], a traceback."""
    wrong = ["nowhere.jsonl", "void", "cols.jsonl", trained]
    if not program.startswith("eval"):          # these look at the data first, which takes longer
        wrong += ["nowhere.pt", "empty.jsonl", "thing.json", trained / "gaps.pt",
                  trained / "config.json"]
    for line in CASES[program]:
        for name in wrong:
            words = line.format(bad=name, **bad).split()
            with pytest.raises(SystemExit) as e:
                PROGRAMS[program](words[1:])
            message = str(e.value.code)
            assert not re.search(r"Errno|\w+Error\b|Traceback", message), (words, message)
            assert len(message) > 40 and message.count("\n") < 4, (words, message)
