"""The validation loss: which samples, which number, and that it changes no bit of training."""

import json
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from runs import TINY, from_m1, interrupted, records, refuse, same, text_flags

import train_wmss
from model import load_checkpoint
from plumbing.tasks import data_sets, training_set
from plumbing.text import load_text
from plumbing.tokenizer import toy_encoding

ENC = toy_encoding()
TEXT = dict(task="text", prompt_column="", completion_column="", max_len=64, long="error", seed=0)


def mean_loss(model, samples):
    """By plain torch, one sample at a time."""
    total = n = 0
    for s in samples:
        tokens, loss = s.tokens.long(), s.loss[1:]
        with torch.no_grad():
            z = model.logits(tokens[None, :-1])[0][loss]
        total += F.cross_entropy(z, tokens[1:][loss], reduction="sum").item()
        n += int(loss.sum())
    return total / n


def rows_in(tmp_path, name, rows):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(samples):
    return [ENC.decode(s.tokens.tolist()) for s in samples]


def chat(*turns):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": text}
                         for i, text in enumerate(turns)]}


def test_a_share_of_text_is_held_out_by_rows_and_nothing_equal_stays(tmp_path):
    """Bug: other samples after a restart; a turn of a held-out conversation, or a copy of a
    held-out row, that is trained on; ids with holes, by which gaps are looked up."""
    rows = [chat(f"{i}?", str(i), f"{i} again?", "yes") for i in range(20)]
    path = rows_in(tmp_path, "a.jsonl", rows + rows[:10])
    cfg = dict(TEXT, data=[path], val_share=0.25)
    kept, held = data_sets(cfg, ENC)
    assert len(kept) and len(held) and not set(texts(kept)) & set(texts(held))
    assert {s.where for s in held}.isdisjoint(s.where for s in kept)
    assert len({s.where for s in held}) == 8            # of 30 rows
    assert set(texts(kept)) | set(texts(held)) == set(texts(load_text([path], ENC)))
    for part in (kept, held):
        assert [s.id for s in part] == list(range(len(part)))
    again = data_sets(cfg, ENC)
    assert [texts(part) for part in again] == [texts(kept), texts(held)]
    assert texts(data_sets(dict(cfg, seed=1), ENC)[1]) != texts(held)
    assert texts(training_set(cfg, ENC)) == texts(kept)
    assert len(data_sets(dict(cfg, val_share=0.0), ENC)[0]) == len(load_text([path], ENC))


def test_a_file_of_its_own_is_held_out_too(tmp_path):
    """Bug: rows of --val-data that stand in --data as well are trained on."""
    data = rows_in(tmp_path, "a.jsonl", [chat(f"{i}?", str(i)) for i in range(9)])
    held = rows_in(tmp_path, "b.jsonl", [chat("3?", "3"), chat("77?", "77")])
    lines = []
    kept, validation = data_sets(dict(TEXT, data=[data], val_data=[held]), ENC, lines.append)
    assert len(kept) == 8 and texts(validation) == texts(load_text([held], ENC))
    assert "2 samples held out, 1 of --data are not trained on" in lines[-1]
    with pytest.raises(ValueError, match="all 9 samples of --data are held out"):
        data_sets(dict(TEXT, data=[data], val_data=[data]), ENC)


def test_built_in_tasks_hold_out_fresh_problems():
    """Bug: D that shrinks, and with it every number of the paper's toy."""
    cfg = dict(task="toy-math", clean=40, seed=3)
    plain, held = data_sets(dict(cfg, val_share=0.1), ENC)
    assert texts(plain) == texts(training_set(cfg, ENC)) and len(held) == 4
    assert not set(texts(held)) & set(texts(plain))


@pytest.fixture(scope="module")
def pair(trained, tmp_path_factory):
    """Folders of two runs of stage 3, without and with a validation loss."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("pair"))
    folders = []
    try:
        for name, more in (("plain", ()), ("held", ("--val-share", "0.3"))):
            train_wmss.main([*TINY, *from_m1(trained, "entropy,wmss,score"), "--name", name,
                             "--arm", "wmss", "temperature", *more])
            folders.append(os.path.join(os.getcwd(), "out", name))
    finally:
        os.chdir(before)
    return [Path(folder) for folder in folders]


def test_measuring_changes_no_bit_of_training(pair):
    """Bug: a random state that is drawn from, a model that stays without its weak one, a loss or
    a step that differs."""
    plain, held = pair
    for name in ("wmss.pt", "weak.pt", "temperature.pt"):
        assert same(plain / name, held / name)
    logs = []
    for folder in pair:
        logs.append([{k: v for k, v in r.items() if k not in ("tok_s", "val_loss", "val_tokens")}
                     for r in records(folder) if "step" in r])
    assert logs[0] == logs[1]


def test_the_loss_is_that_of_the_strong_model_alone(pair, trained):
    """Bug: the loss of the mix, a control's loss, a mean of means; another number in the log than
    in the table; a fused model with its weights the wrong way round."""
    folder = pair[1]
    _, held = data_sets(dict(task="toy-math", clean=24, seed=0, val_share=0.3), ENC)
    n = sum(int(s.loss.sum()) for s in held)
    rows = {row["model"]: row for row in json.loads((folder / "val.json").read_text())}
    assert rows.keys() == {"base", "sft", "wmss", "temperature", "weak", "fused"}
    for name in ("base", "sft", "wmss", "temperature", "weak"):
        path = trained / f"{name}.pt" if name in ("base", "sft") else folder / f"{name}.pt"
        want = mean_loss(load_checkpoint(path)[0], held)
        assert rows[name]["val_loss"] == pytest.approx(want, rel=1e-6)
        assert rows[name]["val_tokens"] == n
        last = [r for r in records(folder) if r.get("arm") == name]
        if last:
            assert last[-1]["val_loss"] == pytest.approx(want, rel=1e-6)
            assert last[-1]["val_tokens"] == n
    weak, strong = (load_checkpoint(folder / f"{name}.pt")[0] for name in ("weak", "wmss"))
    strong.logits, plain = lambda x: 0.5 * plain(x) + 0.5 * weak.logits(x), strong.logits
    assert rows["fused"]["val_loss"] == pytest.approx(mean_loss(strong, held), rel=1e-5)
    assert "held-out loss" in (folder / "report.html").read_text()


def test_a_resumed_run_measures_on_the_same_samples(run, trained):
    """Bug: other held-out samples after a crash, so that the curve jumps."""
    flags = (*TINY, *from_m1(trained, "wmss"), "--arm", "joint", "--gap", "none", "--val-share",
             "0.2")
    whole = run(*flags, "--name", "whole")
    interrupted(2, *flags, "--name", "cut", "--save-every", "1")
    cut = run(*flags, "--name", "cut", "--save-every", "1", "--resume")
    curves = [[(r["step"], r["val_loss"]) for r in records(f) if "val_loss" in r]
              for f in (whole, cut)]
    assert curves[0] == curves[1] and curves[0]
    assert "--val-share 0.2 -> 0.3" in refuse(*flags[:-1], "0.3", "--name", "cut", "--resume")


def test_a_run_whose_held_out_file_has_changed_is_not_gone_on_with(run, hf_folder, tmp_path):
    """Bug: a curve whose first half is of other texts than its second."""
    data = rows_in(tmp_path, "a.jsonl", [chat(f"{i}?", str(i)) for i in range(9)])
    held = rows_in(tmp_path, "b.jsonl", [chat("77?", "77")])
    flags = (*TINY, "--name", "a", "--base", str(hf_folder), "--data", data, "--val-data", held,
             "--max-len", "120", "--stages", "sft")
    run(*flags)
    rows_in(tmp_path, "b.jsonl", [chat("78?", "78")])
    assert "was started on other samples" in refuse(*flags, "--resume")


def test_text_without_a_benchmark_ends_with_a_table_of_losses(run, hf_folder, text, capsys):
    """Bug: a run on own text that is refused without a benchmark, or ends without any number."""
    flags = text_flags(hf_folder, text, "own")
    at = flags.index("--score-data")
    del flags[at:at + 2]
    assert "--val-share 0.02 it is a table of losses" in " ".join(refuse(*flags).split())
    folder = run(*flags, "--val-share", "0.2", "--arm", "sft-steps", "--gap", "none")
    said = capsys.readouterr().out
    rows = json.loads((folder / "val.json").read_text())
    assert [row["model"] for row in rows] == ["base", "sft", "sft-steps"]
    for row in rows:
        assert f"{row['model']:14s}{row['val_loss']:.4f}" in said
    assert (folder / "report.html").exists() and not (folder / "scores.json").exists()


def test_both_ways_at_once_and_files_of_a_built_in_task_are_refused():
    """Bug: a flag that is passed over in silence."""
    for flags in (("--val-data", "a.jsonl"), ("--val-share", "0.7")):
        assert flags[0] in refuse(*TINY, *flags)
