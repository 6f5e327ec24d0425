"""Hugging Face's formats: config.json, folders of safetensors, names on the hub.

Nothing here imports the model: configurations come and go as dictionaries of GPTConfig's fields.
"""

import os
import re
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from plumbing.files import parse_json, read_text
from plumbing.tokenizer import folder_files

# field of GPTConfig -> key in config.json
KEYS = dict(vocab_size="vocab_size", dim="hidden_size", n_layers="num_hidden_layers",
            n_heads="num_attention_heads", n_kv_heads="num_key_value_heads", head_dim="head_dim",
            ffn_dim="intermediate_size", max_seq_len="max_position_embeddings",
            norm_eps="rms_norm_eps", tie_embeddings="tie_word_embeddings", rope_theta="rope_theta")
ROPE_KEYS = dict(rope_factor="factor", rope_low="low_freq_factor", rope_high="high_freq_factor",
                 rope_original_len="original_max_position_embeddings")
# model_type -> the fields that tell it from the other types
FAMILIES = {"llama": dict(qkv_bias=False, qk_norm=False),
            "qwen2": dict(qkv_bias=True, qk_norm=False),
            "qwen3": dict(qkv_bias=False, qk_norm=True)}
# The values that transformers uses where config.json leaves a key out. A key is not listed where
# transformers falls back on the size of one released model (qwen2: 32 key/value heads): such a
# guess would be wrong for the others, so a config.json without that key is refused.
ABSENT = dict(rms_norm_eps=1e-6, tie_word_embeddings=False, rope_theta=10_000.0)
ABSENT_IN = {"llama": dict(num_key_value_heads=None, head_dim=None), "qwen2": dict(head_dim=None),
             "qwen3": {}}
# key in config.json -> the values that our model computes; it may always be absent, null or false
COMPUTED = dict(hidden_act=["silu"], rope_type=["default", "llama3"], partial_rotary_factor=[1],
                layer_types=["full_attention"], use_sliding_window=[], attention_bias=[],
                mlp_bias=[], quantization_config=[])
GEMMA = "; Gemma's SentencePiece tokenizer, norms, gates and scaled embeddings are not here"
DTYPES = ("F64", "F32", "F16", "BF16")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


# ---- config.json -------------------------------------------------------------------------------

def config_from_hf(c):
    """config.json as a dict -> GPTConfig's fields; ValueError names what we do not compute."""
    kind = c.get("model_type")
    if kind not in FAMILIES:
        why = GEMMA if str(kind).startswith("gemma") else ""
        raise ValueError(f"model_type {kind!r} is not one that we have "
                         f"({', '.join(FAMILIES)}){why}")
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}    # transformers 4 and 5
    nested = [layers for layers in rope if isinstance(rope[layers], dict)]
    if nested:
        raise ValueError(f"config.json has RoPE parameters for {', '.join(nested)} apart; here all "
                         "layers have the same: put them into rope_parameters itself")
    c = {**ABSENT, **ABSENT_IN[kind], **c, **rope}
    c["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "qwen2":
        c["attention_bias"] = False           # the type alone says it: on q, k and v, not on o_proj
    for key, ours in COMPUTED.items():
        found = c.get(key)
        for value in found if isinstance(found, list) else [found]:
            if value and value not in ours:
                raise ValueError(f"config.json asks for {key} {value!r:.60}; we have "
                                 f"{', '.join(map(str, ours)) or 'none'}")
    keys = KEYS | ROPE_KEYS if c["rope_type"] == "llama3" else KEYS
    missing = [key for key in keys.values() if key not in c]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    return {field: c[key] for field, key in keys.items()} | FAMILIES[kind]


def config_to_hf(cfg):
    """GPTConfig -> config.json as a dict, in the layout that transformers 4 and 5 and vLLM read."""
    flags = dict(qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm)
    kinds = [kind for kind in FAMILIES if FAMILIES[kind] == flags]
    if not kinds:
        raise ValueError("qkv_bias together with qk_norm is no model type that transformers has; "
                         "export one or the other")
    scaling = None
    if cfg.rope_factor != 1:
        numbers = {key: getattr(cfg, field) for field, key in ROPE_KEYS.items()}
        scaling = dict(rope_type="llama3", **numbers)
    sizes = {key: getattr(cfg, field) for field, key in KEYS.items()}
    sizes["rope_theta"] = float(cfg.rope_theta)
    return dict(architectures=[f"{kinds[0].capitalize()}ForCausalLM"], model_type=kinds[0],
                hidden_act="silu", **sizes, rope_scaling=scaling, attention_bias=False,
                use_cache=True)


# ---- folders -----------------------------------------------------------------------------------

def local(name):
    """A path that is there: `name`, or the folder that the hub's model `name` was downloaded to."""
    name = os.fspath(name)
    if os.path.exists(name):
        return name
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.endswith(".pt")
    if not on_hub or os.path.isdir(name.split("/")[0]):
        raise ValueError(f"checkpoint: expected a .pt file or a Hugging Face folder at {name}, "
                         "found none; train one first (python train_wmss.py -h)")
    from huggingface_hub import snapshot_download  # comes with `datasets`
    try:
        return snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja"])
    except Exception as e:      # no network, no such model, no permission: a dozen kinds of error
        raise ValueError(f"checkpoint: there is no {name} here, and the hub did not give it: "
                         f"{why(e)}") from None


# a class of error of huggingface_hub, datasets or their network -> what it means, and the way out
HUB_ERRORS = {
    "GatedRepoError": "its owners want their terms accepted first; do so on its page, then log in "
                      "with `hf auth login`",
    "RepositoryNotFoundError": "it has none of that name, or a private one; check the name, or log "
                               "in with `hf auth login`",
    "DatasetNotFoundError": "it has no data set of that name, or a private one; check the name",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set, and there is no earlier download; unset it",
    "LocalEntryNotFoundError": "no connection to it, and no earlier download; check the network, "
                               "or download it where there is one and pass the folder",
    "ConnectionError": "no connection to it; check the network, or download it where there is one "
                       "and pass the file or folder"}


def why(error):
    """What an error of the hub means, in a sentence that says what to do."""
    for kind in type(error).__mro__:
        if kind.__name__ in HUB_ERRORS:
            return HUB_ERRORS[kind.__name__]
    return f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"


def open_folder(path):
    """A folder -> (fields of GPTConfig, {parameter: Stored}, meta); reads no weight.

    meta: tokenizer_files (name -> text) and config (the flags of the run that made it: {}).
    """
    _check_is_model(path)
    try:
        config = config_from_hf(_read_json(path, "config.json"))
        weight_files = _weight_files(path)
    except (TypeError, AttributeError) as e:               # a list for a name, a name for an object
        raise ValueError(f"config.json or {INDEX} holds a value of another kind ({e})") from None
    stored = {}
    for name in weight_files:
        for key, tensor in stored_tensors(os.path.join(path, name)).items():
            ours = key.removeprefix("model.")
            if ours in stored:
                raise ValueError(f"{key} is there twice, the second time in {name}")
            if not ours.endswith("rotary_emb.inv_freq"):   # in old exports; we compute it ourselves
                stored[ours] = tensor
    if config["tie_embeddings"] and "lm_head.weight" in stored:        # either may be left out
        stored.setdefault("embed_tokens.weight", stored["lm_head.weight"])
    return config, stored, dict(tokenizer_files=folder_files(path), config={})


def _check_is_model(path):
    names = sorted(os.listdir(path))
    ours = [f for f in names if f.endswith(".pt") and not f.startswith(("resume-", "gaps"))]
    if ours and not {WEIGHTS, INDEX} & set(names):
        raise ValueError("the folder is that of a run, no Hugging Face model; pass one of the "
                         f"checkpoints in it ({', '.join(ours[:5])})")
    if "config.json" not in names:
        raise ValueError("the folder has no config.json, so it is no Hugging Face model; pass the "
                         "folder that holds config.json, the tokenizer and the weights")


def _read_json(folder, name):
    try:
        content = parse_json(read_text(os.path.join(folder, name)))
    except (OSError, ValueError) as e:
        raise ValueError(f"{name} cannot be read ({e})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no JSON object")
    return content


def _weight_files(path):
    """Names of a folder's safetensors files: the one, or all shards that the index names."""
    if os.path.isfile(os.path.join(path, WEIGHTS)):
        return [WEIGHTS]
    if not os.path.isfile(os.path.join(path, INDEX)):
        raise ValueError(f"expected {WEIGHTS} or {INDEX}, found neither; transformers' "
                         "save_pretrained writes one")
    names = sorted(set(_read_json(path, INDEX).get("weight_map").values()))
    if any(os.path.basename(name) != name for name in names):
        raise ValueError(f"{INDEX} names files outside of its folder ({', '.join(names):.60}); "
                         "copy them here, and write their names alone")
    missing = [name for name in names if not os.path.isfile(os.path.join(path, name))]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} shards are missing: "
                         f"{', '.join(missing)}; copy them here")
    return names


# ---- safetensors -------------------------------------------------------------------------------

class Stored(NamedTuple):
    """A tensor of a safetensors file that is not read yet; shape and to() are like a tensor's."""
    path: str
    key: str
    shape: tuple

    def to(self, device=None, dtype=None):
        """Read it into memory of its own: the file may be overwritten while the model lives.

        The library maps the file, and what was read counts as memory until it is closed. So it is
        opened for each tensor, and loading needs little more than the weights.
        """
        try:
            with safe_open(self.path, framework="pt") as f:
                return f.get_tensor(self.key).to(device=device, dtype=dtype, copy=True)
        except (SafetensorError, OSError) as e:
            raise ValueError(f"checkpoint: {self.path} changed while it was read ({e})") from None


def stored_tensors(path):
    """A safetensors file -> {name: Stored}: reads the header, which says if the file is whole."""
    name = os.path.basename(path)
    found = {}
    try:
        with safe_open(path, framework="pt") as f:
            for key in f.keys():
                header = f.get_slice(key)
                if header.get_dtype() not in DTYPES:
                    raise ValueError(f"{key} in {name} is of dtype {header.get_dtype()}; "
                                     f"we read {', '.join(DTYPES)}")
                found[key] = Stored(path, key, tuple(header.get_shape()))
    except SafetensorError as e:
        raise ValueError(f"{name} is no whole safetensors file ({e}): it was cut short, or is "
                         "another kind of file; copy it again") from None
    return found
