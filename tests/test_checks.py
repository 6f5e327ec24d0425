"""plumbing/checks.py: what can be refused is refused before the folder is touched and before any
costly work, with a sentence that says the way out."""

import json
import os
import re
import shutil

import pytest
import torch
from runs import TINY, from_m1, gaps_of, refuse, text_flags

import train_wmss
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from plumbing.checks import check_flags
from plumbing.cli import parse
from plumbing.tasks import TASKS
from train_wmss import Config


def wrong(*flags):
    """The sentences on flags that do not fit each other."""
    with pytest.raises(ValueError) as e:
        parse(Config, list(flags), check=check_flags)
    return str(e.value)


# -------------------------------------------------------------------------------------------------
# flags that do not fit each other


@pytest.mark.parametrize("flags, words", [
    (("--stages", "sft,base"), "--stages: expected some of base,sft,entropy,wmss,score, in this "
                               "order, found 'sft,base'"),
    (("--stages", "train"), "--stages: expected some of"),
    (("--name", "a/b"), "--name: expected letters"),
    (("--name", ".."), "--name: expected letters"),
    (("--resume", "--overwrite"), "pass one of the two, not both"),
    (("--threads", "10000"), "--threads: expected at most"),
    (("--resume", "maybe"), "'maybe' stands alone; behind --resume stands one of yes, auto"),
    (("--dim", "30"), "--dim: expected an even multiple of --n-heads 4, found 30"),
    (("--n-heads", "0"), "--n-heads: expected a number of at least 1, found 0"),
    (("--alpha", "0", "--beta", "0", "--gamma", "0"), "--alpha, --beta and --gamma are all 0"),
    (("--rounds", "2", "--arm", "temperature"), "--rounds: only the arm wmss has rounds; add it"),
    (("--rounds", "2", "--arm", "wmss", "wmss-mask"), "without wmss-mask"),
    (("--rounds", "2", "--arm", "wmss", "joint"), "--rounds: of the arms with a weak model only"),
    (("--task", "text"), "--task text needs --data"),
    (("--task", "text"), "--data needs --base"),
    (("--task", "toy-math", "--data", "a.jsonl"), "--task toy-math makes its own data"),
    (("--data", "a.jsonl"), "--data needs --base: the model that it is to train"),
    (("--data", "a.jsonl"), "--score-data: say what to score on"),
    (("--score-data", "a:exact=x", "a:math=y"), "--score-data: expected each set once"),
    (("--score-data", "mbpp", "mbpp-test=a", "--allow-code-execution"),
     "--score-data: expected each set once"),
    (("--task", "toy-code"), "pass --allow-code-execution if that is what you want"),
    (("--score-data", "humaneval"), "pass --allow-code-execution"),
    (("--base", "nowhere.pt"), "--base: there is no checkpoint or folder at nowhere.pt"),
    (("--sft", "nowhere"), "--sft: there is no checkpoint or folder at nowhere"),
    (("--weak-snapshot", "a/nowhere.pt"), "--weak-snapshot: there is no checkpoint or folder at"),
    (("--seed", "99999999999999999999"), "--seed: expected a number from 0 to 2147483647"),
    (("--arm", "sft-steps", "temprature"), "--arm: expected one of sft-steps, sft-flops, joint"),
    (("--weights", "v3"), "--weights: expected one of code, v1, v2, found 'v3'")])
def test_flags_that_do_not_fit_are_named_with_the_way_out(flags, words):
    """Bug: "expected consent", a flag named that is not the one to change."""
    assert words in wrong(*flags)


def test_flags_that_do_not_fit_are_reported_together(tmp_path, monkeypatch):
    """Bug: typos ignored (the official code), one error per run, a bad value noticed after an
    hour."""
    monkeypatch.chdir(tmp_path)
    said = refuse("--stages", "sft,base", "--dim", "30", "--base", "nowhere.pt", "--rounds", "2",
                  "--task", "text", "--name", "a b", "--resume", "--overwrite")
    for words in ("--stages:", "--dim:", "--base:", "--rounds:", "--task text needs --data",
                  "--name:", "not both"):
        assert words in said, words
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("low, flags", [
    ("1", "corpus clean dim n-layers n-heads batch-size micro-batch base-steps rounds save-every "
          "log-every eval-batch max-new-tokens max-len"),
    ("0", "score-n alpha beta gamma tau h weight-decay snapshots threads tokens-per-batch "
          "chunk-rows lam noise warmup seed")])
def test_each_count_and_share_has_a_lower_bound(low, flags):
    """Bug: a batch of no rows, a weight below 0: an error, or none, from the middle of a run."""
    for flag in flags.split():
        below = str(int(low) - 1)
        assert f"--{flag}: expected" in wrong(f"--{flag}", below), flag
        assert f"--{flag}: expected" in wrong(f"--{flag}", "nan"), flag


def test_each_rate_is_a_finite_number_above_0():
    """Bug: a learning rate of 0 that trains for a night, or of infinity."""
    for flag in ("sft-epochs wmss-epochs base-lr sft-lr wmss-lr joint-lr mask-lr sft-steps-lr "
                 "sft-flops-lr clip").split():
        for value in ("0", "-1", "inf", "nan"):
            assert f"--{flag}: expected a number above 0" in wrong(f"--{flag}", value), flag
    for flag in ("lam", "noise", "warmup"):
        assert f"--{flag}: expected a number from 0 to 1" in wrong(f"--{flag}", "1.1")


def test_data_alone_means_text():
    """Bug: --data passed over because --task was left at its default."""
    cfg, _ = parse(Config, ["--data", "a.jsonl", "--base", "acme/tiny", "--score-data", "gsm8k"],
                   check=check_flags)
    assert cfg.task == "text"
    for stages in ("sft", "base,sft,entropy,wmss"):
        parse(Config, ["--data", "a", "--base", "acme/tiny", "--stages", stages],
              check=check_flags)
        parse(Config, ["--task", "toy-code", "--stages", stages], check=check_flags)


def test_a_model_of_text_gets_no_value_that_was_tuned_for_the_toy(tmp_path, monkeypatch):
    """Bug: 64 new tokens on GSM8K, of whose solutions 91 % are longer; learning rates of a model
    of 0.2 million parameters in silence; a resumed run that changes its rates with the version."""
    monkeypatch.chdir(tmp_path)
    flags = ["--data", "a", "--base", "acme/tiny", "--score-data", "gsm8k", "--name", "a"]

    def read(*more):
        return parse(Config, [*flags, *more], check=check_flags)[0]

    cfg, toy = read(), parse(Config, [], check=check_flags)[0]
    assert (cfg.max_new_tokens, cfg.eval_batch, cfg.score_n) == (512, 32, 0)
    rates = "sft_lr sft_steps_lr sft_flops_lr joint_lr wmss_lr mask_lr".split()
    assert {getattr(cfg, rate) for rate in rates} == {1e-5}
    assert (toy.max_new_tokens, toy.eval_batch, toy.score_n, toy.wmss_lr) == (64, 700, 2100, 3e-5)
    (tmp_path / "p.txt").write_text("--wmss-lr 3e-5 --max-new-tokens 64")
    cfg = read("--preset", "p.txt", "--sft-lr", "1e-4")
    assert (cfg.wmss_lr, cfg.max_new_tokens, cfg.sft_lr, cfg.joint_lr) == (3e-5, 64, 1e-4, 1e-5)
    os.makedirs("out/a")
    old = {"sft_lr": 1e-4, "wmss_lr": 3e-5, "max_new_tokens": 64}
    (tmp_path / "out" / "a" / "config.json").write_text(json.dumps(old))
    cfg = read("--resume", "--max-new-tokens", "300")
    assert (cfg.sft_lr, cfg.wmss_lr, cfg.joint_lr, cfg.max_new_tokens) == (1e-4, 3e-5, 1e-5, 300)


# -------------------------------------------------------------------------------------------------
# checkpoints


def test_foreign_missing_and_unfitting_checkpoints_are_refused_before_work(
        tmp_path, monkeypatch, trained):
    """Bug: an error from the middle of stage 3, an hour after the flag was read."""
    monkeypatch.chdir(tmp_path)
    torch.save({"a": 1}, "foreign.pt")
    model, meta = load_checkpoint(trained / "base.pt")
    wide = GPT(GPTConfig(vocab_size=97, dim=32, n_layers=1, n_heads=2))
    large = GPT(GPTConfig(vocab_size=128, dim=16, n_layers=1, n_heads=2))
    save_checkpoint("wide.pt", wide, **meta)
    save_checkpoint("large.pt", large, **meta)
    save_checkpoint("words.pt", model, **{**meta, "tokenizer": "0123456789abcdef"})
    files = sorted(os.listdir(tmp_path))
    base, sft = ("--base", str(trained / "base.pt")), ("--sft", str(trained / "sft.pt"))
    cases = [
        (("--base", "foreign.pt"), "not a whole wmss-checkpoint-1"),
        ((*base, "--sft", "wide.pt"), "wide.pt is a model of another shape than this run's; pass "
                                      "--dim 32"),
        ((*base, "--sft", "large.pt"), "have vocabularies of 97 and 128 logits"),
        ((*base, "--weak-snapshot", "large.pt"), "have vocabularies of 97 and 128 logits"),
        ((*base, "--weak-snapshot", "words.pt"), "tokenizer 0123456789abcdef"),
        ((*base, "--task", "toy-code", "--allow-code-execution"), "was trained on toy-math"),
        (("--stages", "sft"), "need out/toy/base.pt"),
        ((*base, "--stages", "entropy,wmss"), "need out/toy/sft.pt"),
        ((*base, *sft, "--stages", "wmss"), "add the stage entropy"),
        (sft, "which base was it fine-tuned from?"),
        ((*base, "--dim", "32", "--n-layers", "2"), "pass --dim 16 --n-layers 1"),
        (("--max-new-tokens", "250"), "--max-new-tokens: expected at most"),
        (("--stages", "score"), "no checkpoint in"),
    ]
    for flags, words in cases:
        assert words in refuse(*TINY, *flags).replace(os.sep, "/"), words
    (tmp_path / "out").write_text("a file")
    assert "out" in refuse(*TINY)
    os.remove("out")
    assert sorted(os.listdir(tmp_path)) == files


def test_a_weak_model_of_another_shape_is_no_error(run, trained, monkeypatch):
    """Bug: a refusal of what works: mixing needs one vocabulary, and no more."""
    wide = GPT(GPTConfig(vocab_size=97, dim=32, n_layers=2, n_heads=2))
    save_checkpoint("wide.pt", wide, **load_checkpoint(trained / "base.pt")[1])
    out = run(*from_m1(trained, "entropy"), "--weak-snapshot", "wide.pt")
    assert gaps_of(out)["weak"] == "wide.pt"


def test_gaps_of_another_data_set_are_refused(run, trained):
    """Bug: missing entropies that silently weigh 0 (the official code)."""
    out = run("--name", "a", *from_m1(trained, "entropy"))
    again = (*TINY, "--name", "a", *from_m1(trained, "wmss"), "--resume")
    gaps = gaps_of(out)
    gaps["ids"] = torch.cat([gaps["ids"][:17], gaps["ids"][18:]])
    torch.save(gaps, out / "gaps.pt")
    words = "24 samples in the data but 23 in .*first missing id 17.*rerun the stage `entropy`"
    assert re.search(words, refuse(*again))
    for other in (("--seed", "1"), ("--weak-snapshot", str(trained / "sft.pt"))):
        foreign = run("--name", "b", *from_m1(trained, "entropy"), "--overwrite", *other)
        (out / "gaps.pt").write_bytes((foreign / "gaps.pt").read_bytes())
        assert "was made for other samples or models" in refuse(*again)
    for name, value in (("ent_live", float("nan")), ("weights", -1.0), ("codes", 7)):
        gaps = gaps_of(trained)
        gaps |= dict(weak=str(trained / "base.pt"), live=str(trained / "sft.pt"))
        gaps[name][0] = value
        torch.save(gaps, out / "gaps.pt")
        words = "codes are not uint8 below 4" if name == "codes" else f"{name} has NaN, infinity"
        assert words in refuse(*again) and "rerun the stage `entropy`" in refuse(*again)
    for name, value in (("codes", [0]), ("ids", None), ("weak", 3), ("flops", "many"),
                        ("weights", torch.ones(3, 2)), ("settings", []), ("offsets", "words")):
        torch.save({**gaps_of(trained), name: value}, out / "gaps.pt")
        assert "not a gaps file" in refuse(*again), name
    (out / "gaps.pt").write_bytes(b"half")
    assert "not a gaps file" in refuse(*again)


def test_more_problems_than_there_are_is_refused_before_work(tmp_path, monkeypatch):
    """Bug: a score that fails after the training that it is to judge."""
    real = TASKS["toy-math"]

    def too_few(split, n, *more):       # to find that out takes the real one seconds
        if split == "test":
            raise ValueError(f"split {split!r} has too few problems for n = {n}; ask for fewer")
        return real(split, n, *more)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(TASKS, "toy-math", too_few)
    assert "'test' has too few problems for n = 14" in refuse(*TINY)
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------------------
# text


def test_weights_of_text_without_text_say_what_is_missing(hf_folder, tmp_path, monkeypatch):
    """Bug: --data forgotten, and a sentence on fingerprints of tokenizers in answer."""
    monkeypatch.chdir(tmp_path)
    spec = json.loads((hf_folder / "tokenizer.json").read_text())
    shutil.copytree(hf_folder, "m")
    splits = spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    splits["Regex"] = r"\s|\S"                          # another tokenizer than the toy's
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps(spec))
    said = refuse(*TINY, "--base", "m")
    assert "m was trained on text, this run is on toy-math; pass --data" in said


@pytest.mark.parametrize("flags, said", [
    (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--data", "empty.jsonl"], "empty.jsonl"),
    (["--max-len", "5"], "--long"),
    (["--max-len", "100000"], "--max-len: expected at most"),
    (["--base", "nobody/nothing"], "nobody/nothing"),
    (["--max-new-tokens", "256"], "--max-new-tokens: expected at most"),
    (["--score-data", "amc23=nowhere.jsonl"], "nowhere.jsonl"),
    (["--task", "toy-math"], "leave --task away to train on --data"),
    (["--score-data", "mbpp"], "--allow-code-execution"),
    (["--template", "nowhere.jinja"], "nowhere.jinja")])
def test_wrong_text_is_refused_before_anything_is_written(
        run, hf_folder, text, tmp_path, flags, said):
    """Bug: a refusal after an hour of training, or one that has deleted the old run."""
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "out" / "t").mkdir(parents=True)
    (tmp_path / "out" / "t" / "config.json").write_text("{}")
    with pytest.raises(SystemExit, match=re.escape(said)):
        run(*text_flags(hf_folder, text, "t"), "--overwrite", *flags)
    assert (tmp_path / "out" / "t" / "config.json").read_text() == "{}"


def test_checks_read_no_weights(run, trained, monkeypatch):
    """Bug: a checkpoint of many gigabytes read twice, only to see that it fits."""
    loaded, real = [], train_wmss.load_checkpoint

    def load(path, *args):
        loaded.append(str(path))
        return real(path, *args)

    monkeypatch.setattr(train_wmss, "load_checkpoint", load)
    run(*from_m1(trained, "wmss"), "--gap", "none", "--arm", "sft-steps")
    assert loaded == [str(trained / "sft.pt")]
