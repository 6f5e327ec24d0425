"""Files of other people and broken ones: one sentence each, in seconds, with bounded memory."""

import gzip
import json
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import folder, tiny

from model import load_checkpoint, read_config, save_checkpoint
from plumbing import files, owner, text
from plumbing.chat import render
from plumbing.checks import read_gaps
from plumbing.files import read_rows
from plumbing.run import Folder
from plumbing.tokenizer import load_tokenizer, toy_encoding
from train_wmss import Config

DEEP = "[" * 200_000
SPEC = json.loads((Path(__file__).parent / "data" / "tokenizer.json").read_text("utf-8"))
# the same ones at every run, so that a finding is one for everybody; few, so that CI is quick
BOUNDED = settings(max_examples=25, deadline=None, derandomize=True,
                   suppress_health_check=list(HealthCheck))
WORD = st.text("aZ0 .-_\n\u00e9\u0120\U0001f600", max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORD
    | st.sampled_from([10**30, -1, 0, 1e999, "BPE", "1e999"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=6)


def refused(act, *args):
    """The sentence with which act(*args) refuses them, in seconds; "" if it takes them."""
    begun = time.time()
    try:
        act(*args)
        return ""
    except ValueError as e:
        assert time.time() - begun < 60
        return str(e)


# -------------------------------------------------------------------------------------------------
# folders and checkpoints


@pytest.mark.parametrize("change, words", [
    (dict(rms_norm_eps=float("inf")), "norm_eps should be a positive number, found inf"),
    (dict(rope_theta=float("nan")), "rope_theta should be a positive number, found nan"),
    (dict(max_position_embeddings=10**9), "at most 16,777,216, found 1000000000"),
    (dict(max_position_embeddings=10**7, head_dim=128), "times head_dim 128 should be at most"),
    (dict(num_hidden_layers=10**6), "1,000,000 layers, the file 20 tensors"),
    (dict(vocab_size=10**30), "vocab_size should be at least 1 and at most"),
    (dict(hidden_size=True), "dim should be a number of type"),
    (dict(hidden_size="32" * 10**5), "found '32323232"),
    (dict(model_type=[]), "holds a value of another kind"),
    (dict(rope_scaling=["llama3"]), "holds a value of another kind"),
])
def test_a_config_with_absurd_numbers_is_refused(tmp_path, change, words):
    """Bug: 8 TB for the tables of 10^9 positions, an hour for 10^6 layers, inf for a norm."""
    said = refused(read_config, folder(tmp_path, tiny(), **change))
    assert words in said and len(said) < 400


def test_json_that_is_nested_too_deep_is_refused(tmp_path):
    """Bug: RecursionError, and a traceback of the json module."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = folder(tmp_path / name.replace(".", "-"), tiny())
        (path / "tokenizer.json").write_text(json.dumps(SPEC))
        (path / name).write_text(DEEP)
        assert "nested too deep" in refused(read_config, path), name
    (tmp_path / "rows.jsonl").write_text('{"a": ' + DEEP)
    assert "rows.jsonl:1: expected one JSON object" in refused(
        lambda: list(read_rows(str(tmp_path / "rows.jsonl"))))
    (tmp_path / "rows.jsonl").write_text(DEEP)
    assert "nested too deep" in refused(lambda: list(read_rows(str(tmp_path / "rows.jsonl"))))
    (tmp_path / "config.json").write_text(DEEP)
    assert not owner.is_run(tmp_path)


def test_an_index_that_leaves_its_folder_is_refused(tmp_path):
    """Bug: weights of a file that another model, or another user, has."""
    path = folder(tmp_path / "a", tiny())
    (path / "model.safetensors").rename(tmp_path / "b.safetensors")
    for name in ("../b.safetensors", str(tmp_path / "b.safetensors")):
        index = {"weight_map": {"model.norm.weight": name}}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "names files outside of its folder" in refused(read_config, path)
    for names in ({"a": 3}, [3], None, {"a": ["b"]}):
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        assert "holds a value of another kind" in refused(read_config, path)


@pytest.mark.parametrize("header", [
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    '"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    '"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
    '{"a":{"dtype":"F32","shape":[1000000000000000000,1000000000000000000],"data_offsets":[0,8]}}',
    '{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,8]}}',
    '{"a":{"dtype":"I8","shape":[8],"data_offsets":[0,8]}}',
    DEEP[:50_000]])
def test_a_safetensors_header_that_lies_is_refused(tmp_path, header):
    """Bug: two tensors of one memory, one tensor named twice, a quantised one taken as it is."""
    path = folder(tmp_path, tiny())
    raw = header.encode()
    (path / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(8))
    said = refused(read_config, path)
    assert said.startswith("checkpoint: ") and len(said) < 500


def shared(weights):
    one = torch.zeros(10**5)
    return {name: one[:w.numel()].view(w.shape) for name, w in weights.items()}


TENSORS = {
    "expanded": lambda w: {name: torch.zeros(()).expand(t.shape) for name, t in w.items()},
    "overlapping": shared,
    "on the meta device": lambda w: {name: t.to("meta") for name, t in w.items()},
    "sparse": lambda w: {name: t.to_sparse() for name, t in w.items()},
    "whole numbers": lambda w: {name: t.to(torch.int8) for name, t in w.items()},
    "quantised": lambda w: {name: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)
                            for name, t in w.items()},
    "turned": lambda w: {name: t.t().contiguous().t() if t.dim() == 2 else t
                         for name, t in w.items()},
    "no tensors": lambda w: {name: t.tolist() for name, t in w.items()},
    "a list": lambda w: list(w.values()),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_checkpoint_of_other_tensors_is_refused(tmp_path, kind):
    """Bug: terabytes for a tensor of one number, two weights trained as one, a traceback."""
    model = tiny(tie_embeddings=False)
    save_checkpoint(tmp_path / "a.pt", model)
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**saved, "model": TENSORS[kind](saved["model"])}, tmp_path / "b.pt")
    assert "it is not a whole wmss-checkpoint-1 file" in refused(load_checkpoint, tmp_path / "b.pt")


def test_a_packed_archive_is_refused(tmp_path):
    """Bug: a zip bomb of 10 MB that is 10 GB in memory; an entry that is there twice."""
    save_checkpoint(tmp_path / "a.pt", tiny())
    for name, how in (("bomb.pt", zipfile.ZIP_DEFLATED), ("twice.pt", zipfile.ZIP_STORED)):
        with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(
                tmp_path / name, "w", how) as new, pytest.warns() if how == 0 else \
                pytest.MonkeyPatch.context():
            for part in old.namelist() * (2 if how == 0 else 1):
                new.writestr(part, old.read(part))
        assert "it is not a whole" in refused(load_checkpoint, tmp_path / name), name


@BOUNDED
@given(st.dictionaries(st.sampled_from(
    ["tokenizer", "tokenizer_files", "config", "spent", "arm", "step", "flops", "format"]), JSON),
    st.dictionaries(st.sampled_from(["dim", "n_layers", "n_heads", "head_dim", "norm_eps", "x",
                                     "max_seq_len", "rope_low", "tie_embeddings"]), JSON))
def test_any_values_in_a_checkpoint_are_taken_or_refused(tmp_path, meta, config):
    model = tiny(dim=8, n_layers=1, n_heads=2)
    save_checkpoint(tmp_path / "a.pt", model)
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**saved, **meta, "model_config": {**saved["model_config"], **config}},
               tmp_path / "b.pt")
    refused(load_checkpoint, tmp_path / "b.pt")


@BOUNDED
@given(st.binary(max_size=40), st.integers(0, 3000), st.booleans())
def test_any_bytes_in_a_file_are_taken_or_refused(tmp_path, noise, at, cut):
    """Of a .pt, a safetensors file, a config.json, a gaps.pt: where some of them are others."""
    path = folder(tmp_path / "f", tiny(dim=8, n_layers=1, n_heads=2))
    save_checkpoint(tmp_path / "a.pt", tiny(dim=8, n_layers=1, n_heads=2))
    for file in (path / "model.safetensors", path / "config.json", tmp_path / "a.pt"):
        raw = file.read_bytes()
        file.write_bytes(raw[:at] + noise + (b"" if cut else raw[at + len(noise):]))
    for source in (path, tmp_path / "a.pt"):
        refused(load_checkpoint, source)
    refused(read_gaps, tmp_path / "a.pt", dict)


@BOUNDED
@given(st.dictionaries(st.sampled_from(
    ["model_type", "hidden_size", "rope_scaling", "rope_parameters", "layer_types", "head_dim",
     "num_attention_heads", "vocab_size", "quantization_config", "max_position_embeddings"]), JSON))
def test_any_values_in_config_json_are_taken_or_refused(tmp_path, change):
    refused(read_config, folder(tmp_path / "f", tiny(dim=8, n_layers=1, n_heads=2), **change))


# -------------------------------------------------------------------------------------------------
# tokenizers, templates, texts


@st.composite
def other_spec(draw):
    """A tokenizer.json in which one value, anywhere, is another."""
    spec = json.loads(json.dumps(SPEC))
    here = spec
    while True:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        key = draw(st.sampled_from(list(keys)))
        if not (isinstance(here[key], (dict, list)) and here[key]) or draw(st.integers(0, 4)) == 0:
            here[key] = draw(JSON)
            return spec
        here = here[key]


@BOUNDED
@given(other_spec(), st.dictionaries(st.sampled_from(
    ["eos_token", "bos_token", "add_bos_token", "chat_template"]), JSON))
def test_any_values_in_tokenizer_json_are_taken_or_refused(spec, config):
    """Bug: KeyError, AttributeError, and a panic of Rust."""
    made = []
    sources = {"tokenizer.json": json.dumps(spec), "tokenizer_config.json": json.dumps(config)}
    said = refused(lambda: made.append(load_tokenizer(sources)))
    assert said.startswith("tokenizer: ") if said else made[0].encode_ordinary("2 + 2") is not None


@pytest.mark.parametrize("token, words", [("a" * 50_000, "so long that their merges"),
                                          (None, "too many added tokens")])
def test_a_vocabulary_that_takes_hours_to_check_is_refused(token, words):
    """Bug: a check that is quadratic in a token, or cubic in the added ones."""
    spec = json.loads(json.dumps(SPEC))
    if token:
        own = {t["content"]: t["id"] for t in spec["added_tokens"]}
        spec["model"]["vocab"] |= own | {token: 10**6}
    else:
        spec["normalizer"] = None
        spec["added_tokens"] = [dict(spec["added_tokens"][0], id=len(spec["model"]["vocab"]) + i,
                                     content=f"<{i:09d}>", normalized=False) for i in range(9000)]
        for t in spec["added_tokens"][::2]:
            t["normalized"] = True
    assert words in refused(load_tokenizer, {"tokenizer.json": json.dumps(spec)})


def test_a_split_pattern_has_a_time_limit(monkeypatch):
    """Bug: a tokenizer that splits a line of 40 letters until the end of the world."""
    spec = json.loads(json.dumps(SPEC))
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"(?=(?:a|a)+b)a|\s+"}, "behavior": "Isolated",
         "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
         "use_regex": False}]}
    enc = load_tokenizer({"tokenizer.json": json.dumps(spec)})
    assert enc.decode(enc.encode_ordinary("a b")) == "a b"
    monkeypatch.setattr("plumbing.tokenizer.PATIENCE", 0.2)
    assert "takes too long on 'aaaa" in refused(enc.encode_ordinary, "a" * 60)


@pytest.mark.parametrize("source", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 10 ** 10 ** 9 }}", "{{ 'a' * 10 ** 11 }}", "{{ [0] * 10000000 }}", "{{ " + "(" * 10**5])
def test_a_chat_template_has_a_time_limit(monkeypatch, source):
    """Bug: a model's own template that never ends, or fills the memory."""
    talk = [{"role": "user", "content": "1+1?"}]
    with monkeypatch.context() as m:
        m.setattr("plumbing.chat.SECONDS", 0.5)
        assert "the chat template fails" in refused(render, talk, toy_encoding(), source)
    assert render(talk, toy_encoding(), "{{ '-' * 3 }}{{ 2 * 3 }}{{ 2 ** 3 }}") == "---68"


def test_rows_that_are_huge_are_refused_or_dropped(tmp_path, monkeypatch):
    """Bug: minutes for a line of 100 MB that is dropped in the end."""
    monkeypatch.setattr(text, "MOST_OF_A_ROW", 1000)
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "1" * 2000, "completion": "2"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    enc, lines = toy_encoding(), []
    for flags in (dict(), dict(max_len=9), dict(max_len=9, long="truncate")):
        said = refused(lambda flags=flags: text.load_text([str(path)], enc, **flags))
        assert "rows.jsonl:2: a row of more than 1,000 characters; shorten it" in said
    samples = text.load_text([str(path)], enc, max_len=9, long="drop", say=lines.append)
    assert len(samples) == 1 and "1 dropped" in lines[0]


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    """Bug: a few bytes that are gigabytes in memory; a traceback where it was cut short."""
    monkeypatch.setattr(files, "MOST", 100)
    path = str(tmp_path / "rows.jsonl.gz")
    with gzip.open(path, "wt") as f:
        f.write('{"a": "' + "a" * 30_000_000 + '"}\n')
    assert "packed 200 times smaller" in refused(lambda: list(read_rows(path)))
    Path(path).write_bytes(Path(path).read_bytes()[:-20])
    assert "expected a .jsonl" in refused(lambda: list(read_rows(path)))
    (tmp_path / "config.json").write_text("1" * 101)
    assert "has 101 bytes, expected at most 100" in refused(read_config, tmp_path)


# -------------------------------------------------------------------------------------------------
# what a run has written itself


@BOUNDED
@given(st.lists(JSON.map(json.dumps) | WORD), st.lists(
    st.dictionaries(st.sampled_from(["arm", "step", "loss"]), JSON)))
def test_any_lines_in_a_log_are_kept_or_dropped(tmp_path, lines, dicts):
    run_folder = Folder(Config(), 0, str(tmp_path))
    text_of = "\n".join([*lines, *map(json.dumps, dicts), '{"arm": "sft", "step": 3}', ""])
    (tmp_path / "log.jsonl").write_text(text_of, errors="replace")
    run_folder.keep_log(lambda record: record.get("step", 0) <= 3)
    assert {"arm": "sft", "step": 3} in run_folder.read_log()


@BOUNDED
@given(st.dictionaries(st.sampled_from(["name", "stages", "seed", "lam", "model_type"]), JSON))
def test_any_config_of_a_run_is_one_or_is_not(tmp_path, config):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert owner.is_run(tmp_path) in (True, False)
