"""Exported folders, read back by us and by transformers."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file
from test_tokenizer import made
from tiny_models import close, folder, tiny

from model import GPT, save_checkpoint
from plumbing import export as export_file
from plumbing import tasks, tokenizer
from plumbing.export import export, main
from plumbing.hf import stored_tensors
from plumbing.tokenizer import fingerprint, toy_encoding

TOY = dict(tokenizer=fingerprint(toy_encoding()))


@pytest.fixture
def toy_files(monkeypatch):
    """The tokenizer's part of a folder, which is not what these tests are about."""
    files = {"tokenizer.json": "{}", "generation_config.json": '{"top_k": 20, "eos_token_id": 5}'}
    monkeypatch.setattr(export_file, "tokenizer_files", lambda enc: files)
    for module in (tokenizer, tasks):
        monkeypatch.setattr(module, "load_tokenizer", lambda files: toy_encoding())


EXPORTS = {
    "llama": dict(n_heads=4, n_kv_heads=2),
    "llama, untied, own head_dim": dict(head_dim=12, tie_embeddings=False),
    "llama, rope scaled": dict(
        rope_theta=500.0, rope_factor=8.0, rope_original_len=24, head_dim=16
    ),
    "qwen2": dict(qkv_bias=True, n_kv_heads=2, rope_theta=1e5, norm_eps=1e-5),
    "qwen3": dict(qk_norm=True, head_dim=12),
}


@pytest.mark.parametrize("shard_bytes", (10**9, 10_000))
@pytest.mark.parametrize("name", EXPORTS)
def test_exported_models_come_back_and_are_the_same_in_transformers(
    name, shard_bytes, tmp_path, toy_files
):
    """Bug: "no extra inference cost" that nobody can load, or that computes something else where
    it is loaded."""
    model, x = tiny(vocab_size=97, **EXPORTS[name]), torch.randint(0, 97, (2, 50))
    save_checkpoint(tmp_path / "a.pt", model, **TOY)
    export(tmp_path / "a.pt", tmp_path / "hf", shard_bytes=shard_bytes)
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == (shard_bytes < 10**9)
    written = [k for file in (tmp_path / "hf").glob("*.safetensors") for k in stored_tensors(file)]
    assert len(written) == len(set(written)) == len(list(model.parameters()))
    back = GPT.from_pretrained(tmp_path / "hf")
    assert back.cfg == model.cfg
    assert all(torch.equal(w, back.state_dict()[k]) for k, w in model.state_dict().items())
    hf = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype="auto"
    )
    assert (
        hf.dtype == torch.float32
        and hf.generation_config.eos_token_id == 96
        and hf.generation_config.top_k == 20
    )
    with torch.no_grad():
        close(hf(x).logits, model.logits(x))


def test_export_takes_a_dtype_and_a_folder(tmp_path, toy_files, capsys):
    """Bug: --dtype that converts config.json only; a folder that cannot be converted again."""
    save_checkpoint(tmp_path / "a.pt", tiny(vocab_size=97), **TOY)
    main([str(tmp_path / "a.pt"), str(tmp_path / "half"), "--dtype", "bf16"])
    assert (
        "half: config.json, generation_config.json, model.safetensors, tokenizer.json"
        in capsys.readouterr().out
    )
    main([str(tmp_path / "half"), str(tmp_path / "same")])
    main([str(tmp_path / "half"), str(tmp_path / "full"), "--dtype", "fp32"])
    for name, dtype in dict(half=torch.bfloat16, same=torch.bfloat16, full=torch.float32).items():
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["torch_dtype"], config["eos_token_id"]) == (
            str(dtype).removeprefix("torch."),
            96,
        )
        written = load_file(tmp_path / name / "model.safetensors")
        assert {w.dtype for w in written.values()} == {dtype}


def test_who_may_read_the_text_files_may_read_the_weights(tmp_path, toy_files):
    """Bug: weights that only their owner can read: a server of another user cannot load them."""
    save_checkpoint(tmp_path / "a.pt", tiny(vocab_size=97), **TOY)
    export(tmp_path / "a.pt", tmp_path / "hf")
    modes = {name: os.stat(tmp_path / "hf" / name).st_mode for name in os.listdir(tmp_path / "hf")}
    assert "model.safetensors" in modes and len(set(modes.values())) == 1, modes


def test_all_that_ends_generation_is_exported(tmp_path, toy_files, monkeypatch):
    """Bug: a chat model that stops at <|im_end|> here and babbles on in vLLM."""
    enc = tokenizer.Tokenizer(
        "two",
        pat_str=".",
        mergeable_ranks={b"a": 0},
        special_tokens={"<e>": 1, "<s>": 2, "<b>": 3},
        end="<e>",
        stops=("<s>",),
        bos="<b>",
    )
    monkeypatch.setattr(tasks, "load_tokenizer", lambda files: enc)
    save_checkpoint(
        tmp_path / "a.pt",
        tiny(),
        tokenizer=fingerprint(enc),
        tokenizer_files={"tokenizer.json": "{}"},
    )
    export(tmp_path / "a.pt", tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((tmp_path / "hf" / name).read_text())
        assert (ids["eos_token_id"], ids["bos_token_id"]) == ([1, 2], 3)


def test_an_export_of_a_bare_tokenizer_gives_the_same_ids_in_transformers(tmp_path):
    """Bug: without tokenizer_config.json transformers guesses a class, splits numbers anew and ends
    texts with another token."""
    transformers = pytest.importorskip("transformers", reason="the oracle")
    source = made("gpt2")
    enc = tokenizer.load_tokenizer({"tokenizer.json": source})
    folder(tmp_path / "from", tiny(vocab_size=enc.n_vocab, qk_norm=True))
    (tmp_path / "from" / "tokenizer.json").write_text(source, "utf-8")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(tmp_path / "from", tmp_path / "link")            # a link to an empty folder is one
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "real")
    text = "In 2024, 12345 clips: it's 72\n\n  in the land."
    assert theirs(text).input_ids == enc.encode(text) and theirs.eos_token_id == enc.end_id


def full_disk(path, text):
    raise OSError("disk full")


def test_failed_exports_leave_nothing(tmp_path, toy_files, monkeypatch):
    """Bug: half a model under a good name; an export into somebody's folder."""
    pt, out = tmp_path / "a.pt", tmp_path / "hf"
    for words, kw, meta in (
        ("qkv_bias together with qk_norm", dict(qkv_bias=True, qk_norm=True), TOY),
        ("carries no tokenizer files", dict(), dict(tokenizer="0123")),
        ("carries no tokenizer files", dict(), {}),
    ):
        save_checkpoint(pt, tiny(vocab_size=97, **kw), **meta)
        with pytest.raises(ValueError, match=words):
            export(pt, out)
    save_checkpoint(pt, tiny(vocab_size=97), **TOY)
    with pytest.raises(ValueError, match="found none"):
        export(tmp_path / "b.pt", out)
    with monkeypatch.context() as m, pytest.raises(OSError):
        m.setattr(export_file, "write_text", full_disk)
        export(pt, out, shard_bytes=10_000)
    assert os.listdir(tmp_path) == ["a.pt"]
    out.mkdir()
    export(pt, out)  # an empty folder is filled
    before = {p: p.read_bytes() for p in out.iterdir()}
    for there in (out, pt):
        with pytest.raises(ValueError, match="exists and is not an empty folder"):
            export(pt, there)
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_a_refusal_of_the_command_is_one_sentence(tmp_path):
    """Bug: a page of traceback for a mistyped path."""
    with pytest.raises(SystemExit, match="^export: checkpoint: expected a .pt file or"):
        main([str(tmp_path / "none.pt"), str(tmp_path / "out")])
