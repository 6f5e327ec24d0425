"""Hugging Face's config.json, folders, safetensors and hub names."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import close, folder, theirs, tiny

from model import GPT, GPTConfig, load_checkpoint, read_config
from plumbing import hf
from plumbing.hf import Stored, config_from_hf, stored_tensors


def test_sharded_weights_are_the_same_weights(tmp_path):
    """Bug: only the first shard read, or the index taken for a list of tensors."""
    theirs("qwen2", tmp_path / "one")
    theirs("qwen2", tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = (GPT.from_pretrained(tmp_path / n).state_dict() for n in ("one", "many"))
    assert one.keys() == many.keys() and all(torch.equal(one[k], many[k]) for k in one)


def test_both_layouts_of_the_rope_scaling_are_read(tmp_path):
    """Bug: rope_theta 10,000 for every Llama 3 that was saved before transformers 5."""
    theirs("llama, rope scaled", tmp_path)
    new, _ = read_config(tmp_path)
    c = json.loads((tmp_path / "config.json").read_text())
    rope = c.pop("rope_parameters")
    c["rope_theta"] = rope.pop("rope_theta")
    (tmp_path / "config.json").write_text(json.dumps({**c, "rope_scaling": rope}))
    old, _ = read_config(tmp_path)
    assert old == new and (new.rope_theta, new.rope_factor, new.rope_original_len) == (
        500.0,
        8.0,
        24,
    )


@pytest.mark.parametrize("kind", ("Llama", "Qwen2", "Qwen3"))
def test_what_config_json_leaves_out_is_what_transformers_takes_it_for(kind, tmp_path):
    """Bug: LLaMA-1, which names no rope_theta and no kv heads, loaded with other ones; a head
    tied because ours are."""
    short = dict(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    short |= {
        "Llama": dict(),
        "Qwen2": dict(num_key_value_heads=2),
        "Qwen3": dict(num_key_value_heads=2, head_dim=8),
    }[kind]
    got = GPTConfig(**config_from_hf(dict(short, model_type=kind.lower())))
    want = getattr(pytest.importorskip("transformers"), kind + "Config")(**short)
    assert (
        got.n_kv_heads,
        got.norm_eps,
        got.rope_theta,
        got.tie_embeddings,
        got.head_dim,
        got.max_seq_len,
    ) == (
        want.num_key_value_heads,
        want.rms_norm_eps,
        want.rope_parameters["rope_theta"],
        want.tie_word_embeddings,
        8,
        64,
    )


def test_weights_are_converted_and_rope_tables_are_not(tmp_path):
    """Bug: cos and sin in bf16, where positions 256 and 257 are one angle; a bf16 file loaded as
    noise."""
    model = tiny()
    folder(tmp_path / "a", model)
    half = GPT.from_pretrained(tmp_path / "a", torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {
        torch.bfloat16
    } and half.cos.dtype == torch.float32
    folder(tmp_path / "b", half)
    back = GPT.from_pretrained(tmp_path / "b")
    for k, w in model.state_dict().items():
        assert torch.equal(half.state_dict()[k], w.bfloat16()) and torch.equal(
            back.state_dict()[k], w.bfloat16().float()
        )
    assert torch.equal(back.cos, model.cos) and torch.equal(half.sin, model.sin)


def reword(change):
    """A refusal made by other entries in config.json."""
    return lambda path, model: folder(path, model, **change)


def retensor(change):
    """A refusal made by other tensors: change(tensors) edits the dict that is written."""

    def make(path, model):
        folder(path, model)
        found = load_file(path / "model.safetensors")
        change(found)
        save_file(found, path / "model.safetensors")

    return make


def rebyte(change):
    """A refusal made by other bytes in the safetensors file."""

    def make(path, model):
        folder(path, model)
        file = path / "model.safetensors"
        file.write_bytes(change(file.read_bytes()))

    return make


def shards(path, model):
    folder(path, model)
    os.rename(path / "model.safetensors", path / "model-00001-of-00002.safetensors")
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (path / "model.safetensors.index.json").write_text(
        json.dumps(dict(weight_map=dict(zip("ab", files, strict=True))))
    )


def remove(name):
    def make(path, model):
        folder(path, model)
        os.remove(path / name)

    return make


def rewrite(name, text):
    def make(path, model):
        folder(path, model)
        (path / name).write_text(text)

    return make


NORM, EMBED, O_BIAS = (
    "model.norm.weight",
    "model.embed_tokens.weight",
    "model.layers.1.self_attn.o_proj.bias",
)

NOT_WHOLE = (
    "model.safetensors is no whole safetensors file .*: it was cut short, or is another kind"
)
REFUSED = {
    "another type": (
        reword(dict(model_type="mistral")),
        "model_type 'mistral' is not one that we have .llama, qwen2, qwen3.$",
    ),
    "no type": (reword(dict(model_type=...)), "model_type None"),
    "Gemma": (reword(dict(model_type="gemma3_text")), "gemma3_text.*SentencePiece"),
    "GELU": (reword(dict(hidden_act="gelu")), "hidden_act 'gelu'"),
    "bias on o_proj": (reword(dict(attention_bias=True)), "attention_bias"),
    "bias on o_proj, qwen3": (
        reword(dict(model_type="qwen3", attention_bias=True)),
        "attention_bias",
    ),
    "bias in the MLP": (reword(dict(mlp_bias=True)), "mlp_bias"),
    "sliding windows": (
        reword(dict(model_type="qwen2", use_sliding_window=True)),
        "asks for use_sliding_window True; we have none",
    ),
    "a sliding layer": (
        reword(dict(model_type="qwen2", layer_types=["full_attention", "sliding_attention"])),
        "asks for layer_types 'sliding_attention'; we have full_attention",
    ),
    "quantised": (
        reword(dict(quantization_config=dict(quant_method="awq"))),
        "quantization_config",
    ),
    "yarn by its old name": (
        reword(dict(rope_scaling=dict(rope_type=None, type="yarn", factor=4.0))),
        "rope_type 'yarn'",
    ),
    "yarn": (reword(dict(rope_scaling=dict(rope_type="yarn", factor=4.0))), "rope_type 'yarn'"),
    "linear, in the oldest layout": (
        reword(dict(rope_scaling=dict(type="linear", factor=4.0))),
        "rope_type 'linear'",
    ),
    "dynamic": (
        reword(dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4))),
        "rope_type 'dynamic'",
    ),
    "longrope": (
        reword(dict(rope_parameters=dict(rope_type="longrope", rope_theta=1e4))),
        "rope_type 'longrope'",
    ),
    "a RoPE for each kind of layer": (
        reword(dict(rope_parameters=dict(full_attention=dict(rope_theta=1e6)))),
        "RoPE parameters for full_attention apart; .* put them into rope_parameters",
    ),
    "half of a llama3 rope": (
        reword(dict(rope_scaling=dict(rope_type="llama3", factor=8.0))),
        "lacks low_freq_factor, high_freq_factor",
    ),
    "partial rotation": (reword(dict(partial_rotary_factor=0.5)), "partial_rotary_factor"),
    "no width": (reword(dict(hidden_size=...)), "lacks hidden_size"),
    "no kv heads, which qwen2 takes for 32": (
        reword(dict(model_type="qwen2", num_key_value_heads=...)),
        "num_key_value_heads",
    ),
    "a word for a number": (reword(dict(vocab_size="many")), "vocab_size .*'many'"),
    "a list for a type": (reword(dict(model_type=["llama"])), "value of another kind"),
    "a word for an object": (reword(dict(rope_scaling="llama3")), "value of another kind"),
    "no layers": (reword(dict(num_hidden_layers=-1)), "n_layers should be at least 1"),
    "more layers than tensors": (
        reword(dict(num_hidden_layers=3)),
        "layers.2.input_layernorm.weight is missing.* and 6 more",
    ),
    "biases left out": (
        reword(dict(model_type="qwen2")),
        "layers.0.self_attn.q_proj.bias is missing",
    ),
    "untied, no head": (reword(dict(tie_word_embeddings=False)), "lm_head.weight is missing"),
    "a wrong shape": (
        reword(dict(intermediate_size=64)),
        r"mlp.gate_proj.weight is \(96, 32\), expected \(64, 32\)",
    ),
    "a missing tensor": (retensor(lambda t: t.pop(NORM)), "norm.weight is missing"),
    "an unexpected tensor": (
        retensor(lambda t: t.update({"model.mtp.weight": torch.ones(2)})),
        "mtp.weight is unexpected",
    ),
    "a bias on o_proj, not in config.json": (
        retensor(lambda t: t.update({O_BIAS: t[NORM].clone()})),
        "o_proj.bias is unexpected",
    ),
    "a tensor twice": (
        retensor(lambda t: t.update({"norm.weight": t[NORM].clone()})),
        "norm.weight is there twice",
    ),
    "another head though tied": (
        retensor(lambda t: t.update({"lm_head.weight": t[EMBED] + 1})),
        "differs from",
    ),
    "cut in the weights": (rebyte(lambda b: b[:-1]), NOT_WHOLE),
    "cut in the header": (rebyte(lambda b: b[:100]), NOT_WHOLE),
    "too long": (rebyte(lambda b: b + b"!"), NOT_WHOLE),
    "empty": (rebyte(lambda b: b""), NOT_WHOLE),
    "text": (rebyte(lambda b: b"version https://git-lfs"), NOT_WHOLE),
    "a dtype that nobody has": (rebyte(lambda b: b.replace(b'"F32"', b'"F8 "', 1)), NOT_WHOLE),
    "a shape that its bytes are not": (
        rebyte(lambda b: b.replace(b"[23,32]", b"[23,31]")),
        NOT_WHOLE,
    ),
    "fp8": (
        retensor(lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})),
        "model.norm.weight in model.safetensors is of dtype F8_E4M3; we read F64, F32, F16, BF16",
    ),
    "integers": (retensor(lambda t: t.update({NORM: t[NORM].int()})), "of dtype I32"),
    "a missing shard": (shards, "1 of 2 shards are missing: model-00002-of-00002.safetensors"),
    "no weights": (
        remove("model.safetensors"),
        "expected model.safetensors or model.safetensors.index.json, found neither",
    ),
    "no config": (remove("config.json"), "the folder has no config.json, so it is no Hugging Face"),
    "a broken config": (rewrite("config.json", '{"model_type": '), "config.json cannot be read"),
    "a config that is a list": (rewrite("config.json", "[]"), "config.json is no JSON object"),
}


def never(stored, device, dtype):
    raise AssertionError(f"{stored.key} was read")


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_model_does_not_compute_is_refused_by_name(name, tmp_path, monkeypatch):
    """Bug: a model that loads, runs, and computes something else than the network that was
    released."""
    make, words = REFUSED[name]
    make(tmp_path / "m", tiny())
    if (
        name != "another head though tied"
    ):  # all others are told from headers, before a weight is read
        monkeypatch.setattr(Stored, "to", never)
    with pytest.raises(ValueError, match="(?s)^checkpoint: .*" + words):
        GPT.from_pretrained(tmp_path / "m")


def test_what_other_programs_leave_in_a_folder_is_read(tmp_path):
    """Bug: a released model refused for a buffer, for a tied head that is stored too, or for
    names without the prefix."""
    model = tiny()
    folder(tmp_path, model, rename=lambda k: k)
    found = load_file(tmp_path / "model.safetensors")
    found["lm_head.weight"] = found["embed_tokens.weight"].clone()
    found["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(found, tmp_path / "model.safetensors")
    back = GPT.from_pretrained(tmp_path)
    assert back.lm_head.weight is back.embed_tokens.weight and back.cfg == model.cfg
    x = torch.arange(9)[None]
    assert torch.equal(back.logits(x), model.logits(x))


def test_tied_weights_may_be_stored_as_the_head_alone(tmp_path):
    """Bug: "embed_tokens.weight is missing" for a folder that transformers loads."""
    theirs("qwen3, tied", tmp_path)
    whole = GPT.from_pretrained(tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    found["lm_head.weight"] = found.pop("model.embed_tokens.weight")
    save_file(found, tmp_path / "model.safetensors", metadata={"format": "pt"})
    back = GPT.from_pretrained(tmp_path)
    assert back.lm_head.weight is back.embed_tokens.weight
    x = torch.arange(9)[None]
    assert torch.equal(back.logits(x), whole.logits(x))
    transformers = pytest.importorskip("transformers")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        close(back.logits(x), hf(x).logits)


def test_safetensors_bytes_are_read_by_hand(tmp_path):
    """Bug: offsets from the wrong origin, dtypes mixed up: bytes that no library of ours wrote."""
    header = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}'
    )
    file = len(header).to_bytes(8, "little") + header + b"\x80\x3f\x40\xc0"
    (tmp_path / "f").write_bytes(file)
    (stored,) = stored_tensors(tmp_path / "f").values()
    assert (stored.key, stored.shape) == ("w", (2, 1))
    w = stored.to()
    assert (w.tolist(), w.dtype) == ([[1.0], [-3.0]], torch.bfloat16)


@pytest.mark.parametrize("dtype", (None, torch.bfloat16, torch.float32))
def test_a_loaded_folder_does_not_hang_on_its_files(dtype, tmp_path):
    """Bug: weights mapped from a file that somebody overwrites: the model changes, or crashes."""
    folder(tmp_path, tiny())
    model, _ = load_checkpoint(tmp_path, dtype=dtype)
    before = {k: w.clone() for k, w in model.state_dict().items()}
    with open(tmp_path / "model.safetensors", "rb+") as f:
        f.write(b"\xff" * os.path.getsize(tmp_path / "model.safetensors"))
    assert all(torch.equal(w, before[k]) for k, w in model.state_dict().items())
    with open("/proc/self/maps") as f:
        assert str(tmp_path) not in f.read()


def test_a_file_that_is_cut_while_it_is_read_is_an_error_in_one_sentence(tmp_path):
    """Bug: a bus error, or noise for weights, where a download replaces the file meanwhile."""
    folder(tmp_path, tiny())
    stored = stored_tensors(tmp_path / "model.safetensors")[NORM]
    assert stored.to().shape == (32,)
    (tmp_path / "short").write_bytes(b"short")
    os.replace(tmp_path / "short", tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="^checkpoint: .*model.safetensors changed while it was"):
        stored.to()


def test_a_name_on_the_hub_is_refused_in_one_sentence_where_there_is_no_hub(tmp_path, monkeypatch):
    """Bug: a page of traceback for a typing error; a local path that was mistyped, sent to the
    network."""
    monkeypatch.chdir(tmp_path)
    import huggingface_hub

    asked = []

    def offline(name, allow_patterns):
        asked.append(name)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError,
        match="no nobody/no-such-model here, and the hub did not give it: no connection to it",
    ):
        GPT.from_pretrained("nobody/no-such-model")
    os.mkdir("out")
    for typo in ("out/toy", "models/wmss.pt", "wmss.pt", "a/b/c", "/etc/nothing"):
        with pytest.raises(ValueError, match=f"at {typo}, found none"):
            read_config(typo)
    assert asked == ["nobody/no-such-model"]
    folder(tmp_path / "cached", tiny())
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, allow_patterns: str(tmp_path / "cached")
    )
    assert GPT.from_pretrained("somebody/a-model").cfg == tiny().cfg


def test_what_the_hub_says_comes_in_words():
    """Bug: "LocalEntryNotFoundError", which tells a newcomer nothing; an empty reason."""
    import datasets
    import huggingface_hub.errors as hub

    errors = {
        hub.LocalEntryNotFoundError: "no connection",
        hub.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set",
        datasets.exceptions.DatasetNotFoundError: "no data set of that name",
        ConnectionError: "no connection",
    }
    for kind, words in errors.items():
        assert words in hf.why(kind("x")) and kind.__name__ not in hf.why(kind("x"))
    gated = hub.GatedRepoError.__new__(hub.GatedRepoError)
    assert "terms accepted" in hf.why(gated)
    gone = hub.RepositoryNotFoundError.__new__(hub.RepositoryNotFoundError)
    assert "none of that name" in hf.why(gone)
    assert hf.why(RuntimeError("a\nb")) == "a" and hf.why(RuntimeError()) == "RuntimeError"


def test_a_folder_of_a_run_names_the_checkpoints_in_it(tmp_path):
    """Bug: out/toy, of which a newcomer is told that config.json cannot be read."""
    run = tmp_path / "toy"
    run.mkdir()
    for name in ("sft.pt", "wmss.pt"):
        (run / name).write_bytes(b"")
    (run / "config.json").write_text('{"name": "toy"}')
    with pytest.raises(ValueError, match="pass one of the checkpoints in it .sft.pt, wmss.pt."):
        read_config(run)
