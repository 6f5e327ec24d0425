"""Saving and loading: what comes back, what is refused, and what loading costs."""

import json
import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from runs import TINY, refuse
from safetensors.torch import save_file
from tiny_models import folder, tiny

from model import GPT, GPTConfig, load_checkpoint, read_config, save_checkpoint
from plumbing import tokenizer
from plumbing.export import export
from plumbing.files import write_atomically
from plumbing.hf import config_to_hf
from plumbing.tokenizer import fingerprint, toy_encoding


def test_loading_draws_no_random_numbers(tmp_path):
    """Bug: seconds and twice the memory spent on random weights that the file overwrites."""
    folder(tmp_path / "a", tiny())
    save_checkpoint(tmp_path / "a.pt", tiny())
    before = torch.get_rng_state()
    (
        GPT.from_pretrained(tmp_path / "a"),
        GPT.from_pretrained(tmp_path / "a.pt"),
        read_config(tmp_path / "a"),
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_loading_costs_little_more_memory_than_the_weights(tmp_path):
    """Bug: the file's tensors, their fp32 copies and a random network all at once: three times
    the weights."""
    cfg = GPTConfig(vocab_size=8192, dim=512, n_layers=8, n_heads=8)
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in GPT(cfg).state_dict().items() if k != "lm_head.weight"}
    tmp_path.joinpath("config.json").write_text(json.dumps(config_to_hf(cfg)))
    save_file(
        {k: torch.ones(s, dtype=torch.bfloat16) for k, s in shapes.items()},
        tmp_path / "model.safetensors",
    )
    code = (
        "import re, sys, model\n"  # not ru_maxrss, which a child inherits from its parent
        "status = lambda: open('/proc/self/status').read()\n"
        "peak = lambda: 1024 * int(re.search(r'VmHWM:\\s+(\\d+)', status())[1])\n"
        "before = peak()\n"
        "weights = sum(p.nbytes for p in model.GPT.from_pretrained(sys.argv[1]).parameters())\n"
        "print((peak() - before) / weights)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, text=True, capture_output=True, check=True
    )
    assert 0.5 < float(done.stdout) < 1.3


def test_checkpoint_round_trip_and_contents(tmp_path):
    """Bug: a tied head saved twice and loaded apart, meta lost, a file that needs pickle to
    read."""
    model = tiny(qk_norm=True)
    save_checkpoint(tmp_path / "a.pt", model, step=3, commit="abc")
    back, meta = load_checkpoint(tmp_path / "a.pt")
    assert meta["step"] == 3 and meta["commit"] == "abc" and back.cfg == model.cfg
    assert back.lm_head.weight is back.embed_tokens.weight
    x = torch.arange(9)[None]
    assert torch.equal(back.logits(x), model.logits(x))


def test_crash_while_saving_leaves_the_old_checkpoint(tmp_path):
    """Bug: a half-written file in the place of a whole one."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, tiny(), step=1)

    def crash(f):
        f.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        write_atomically(path, crash)
    assert load_checkpoint(path)[1]["step"] == 1 and os.listdir(tmp_path) == ["a.pt"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb-went-off",)


def test_foreign_files_are_refused_and_never_run(tmp_path, monkeypatch):
    """Bug: torch.load that unpickles whatever it is given."""
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.zeros(2)}, "other.pt")
    torch.save(torch.zeros(2), "tensor.pt")
    torch.save({"format": "wmss-checkpoint-1", "model": {}}, "half.pt")
    torch.save(Bomb(), "bomb.pt")
    with open("text.pt", "w") as f:
        f.write("hello")
    with open("pickle.pt", "wb") as f:
        pickle.dump(Bomb(), f)
    open("empty.pt", "w").close()
    with open("flags.json", "w") as f:
        f.write('{"name": "toy"}')
    kinds = {
        "other.pt": "another file of PyTorch",
        "tensor.pt": "another file",
        "half.pt": "another file",
        "bomb.pt": "another file",
        "text.pt": "of another kind",
        "pickle.pt": "of another kind",
        "empty.pt": "the file is empty",
        "flags.json": "it holds JSON",
    }
    for name, kind in kinds.items():
        words = f"{name}: it is not a whole wmss-checkpoint-1 .*{kind}"
        with pytest.raises(ValueError, match=words):
            load_checkpoint(name)
    assert not os.path.exists("bomb-went-off")
    with pytest.raises(ValueError, match="found none"):
        load_checkpoint("nowhere.pt")


def test_a_checkpoint_cut_anywhere_is_refused_in_one_sentence(tmp_path):
    """Bug: a traceback from the archive reader, different for each place where a copy was cut
    short."""
    save_checkpoint(tmp_path / "a.pt", tiny(), tokenizer="aaaa")
    data = (tmp_path / "a.pt").read_bytes()
    for cut in (0, 1, 1000, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.pt").write_bytes(data[:cut])
        with pytest.raises(ValueError, match="cut.pt: it is not a whole wmss-checkpoint-1"):
            load_checkpoint(tmp_path / "cut.pt", tokenizer="aaaa")


def test_tensors_that_do_not_fit_and_foreign_tokenizers_are_refused(tmp_path):
    """Bug: token ids of another vocabulary read as if they were ours."""
    model = tiny()
    save_checkpoint(tmp_path / "a.pt", model, tokenizer="aaaa")
    words = "it has the tokenizer aaaa; another tokenizer is used here .bbbb"
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path / "a.pt", tokenizer="bbbb")
    for name, value in (("dim", 64), ("n_heads", 5), ("n_layers", 3)):
        before = getattr(model.cfg, name)
        setattr(model.cfg, name, value)
        save_checkpoint(tmp_path / "b.pt", model, tokenizer="aaaa")
        setattr(model.cfg, name, before)
        with pytest.raises(ValueError, match="not fit its own config|no multiple"):
            load_checkpoint(tmp_path / "b.pt")


def test_a_loaded_pt_is_trained_without_changing_its_file(tmp_path):
    """Bug: a mapping of the file that writes through; or a file that grows with each save, as a
    whole mapping is pickled."""
    save_checkpoint(tmp_path / "a.pt", tiny())
    before = (tmp_path / "a.pt").read_bytes()
    model, _ = load_checkpoint(tmp_path / "a.pt")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    assert (tmp_path / "a.pt").read_bytes() == before
    save_checkpoint(tmp_path / "b.pt", model)
    assert os.path.getsize(tmp_path / "b.pt") == len(before)


def test_folders_carry_their_tokenizer_into_meta(tmp_path, monkeypatch):
    """Bug: a folder whose token ids are taken for another's."""
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: toy_encoding())
    folder(tmp_path, tiny(vocab_size=97))
    assert read_config(tmp_path)[1] == dict(tokenizer=None, tokenizer_files={}, config={})
    with pytest.raises(
        ValueError,
        match="no tokenizer.json lies there, .*; another tokenizer is used here .0123",
    ):
        load_checkpoint(tmp_path, tokenizer="0123")
    files = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{ }",
        "chat_template.jinja": "{{ x }}",
    }
    for name, text in {**files, "merges.txt": "a b"}.items():
        (tmp_path / name).write_text(text)
    mark = fingerprint(toy_encoding())
    for meta in (read_config(tmp_path)[1], load_checkpoint(tmp_path, tokenizer=mark)[1]):
        assert meta == dict(tokenizer=mark, tokenizer_files=files, config={})
    words = "this is a checkpoint of the built-in toy tasks; another tokenizer is used here .0123"
    with pytest.raises(ValueError, match=words):
        load_checkpoint(tmp_path, tokenizer="0123")


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(tmp_path, monkeypatch):
    """Bug: an index out of range in the middle of an epoch, on a GPU an assertion that names
    nothing."""
    monkeypatch.setattr(tokenizer, "load_tokenizer", lambda files: toy_encoding())
    (folder(tmp_path, tiny(vocab_size=96)) / "tokenizer.json").write_text("{}")
    for load in (read_config, load_checkpoint, lambda path: export(path, tmp_path / "out")):
        with pytest.raises(
            ValueError, match="^checkpoint: .*: tokenizer.json has 97 ids, the model embeds 96; "
        ):
            load(tmp_path)


def test_a_checkpoint_of_nan_is_refused_by_name_wherever_it_is_read(run, trained, tmp_path):
    """Bug: a diverged model scored with exit 0, or called one whose config ties the head."""
    out = run("--name", "a", "--stages", "base,sft")
    saved = torch.load(out / "sft.pt", weights_only=True)
    saved["model"]["embed_tokens.weight"][0, 0] = float("nan")
    torch.save(saved, out / "sft.pt")
    again = (*TINY, "--name", "a", "--resume", "--arm", "sft-steps", "--stages")
    for stages in ("score", "entropy", "wmss"):
        said = refuse(*again, stages, "--gap", "sample")
        if stages != "wmss":            # which asks for gaps.pt first
            assert "sft.pt: embed_tokens.weight holds NaN or infinity" in said
    with pytest.raises(ValueError, match="embed_tokens.weight holds NaN.*has diverged"):
        load_checkpoint(out / "sft.pt")
    (out / "sft.pt").write_bytes((trained / "sft.pt").read_bytes()[:9000])
    said = refuse(*again, "entropy")
    assert "if it is one of them, delete it, and --resume makes its stage again" in said
    os.remove(out / "sft.pt")
    run("--name", "a", "--resume", "--stages", "sft", "--arm", "sft-steps")
    assert (out / "sft.pt").exists()
