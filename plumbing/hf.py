"""Hugging Face's formats: config.json, folders of safetensors, names on the hub.

Nothing here imports the model: configurations come and go as dictionaries of GPTConfig's fields.
"""

import json
import os
import re
from functools import partial

import torch
from safetensors import SafetensorError, safe_open

# field of GPTConfig -> key in config.json
KEYS = dict(vocab_size="vocab_size", dim="hidden_size", n_layers="num_hidden_layers",
            n_heads="num_attention_heads", n_kv_heads="num_key_value_heads", head_dim="head_dim",
            ffn_dim="intermediate_size", max_seq_len="max_position_embeddings",
            norm_eps="rms_norm_eps", tie_embeddings="tie_word_embeddings")
ROPE_KEYS = dict(rope_factor="factor", rope_low="low_freq_factor", rope_high="high_freq_factor",
                 rope_original_len="original_max_position_embeddings")
# The values that transformers uses where config.json leaves a key out. A key is not listed where
# transformers falls back on the size of one released model (qwen2: 32 key/value heads): such a
# guess would be wrong for the others, so a config.json without that key is refused.
ABSENT = {"llama": dict(num_key_value_heads=None, head_dim=None), "qwen2": dict(head_dim=None),
          "qwen3": {}}
# model_type -> the fields that tell it from the other types
FAMILIES = {"llama": dict(qkv_bias=False, qk_norm=False),
            "qwen2": dict(qkv_bias=True, qk_norm=False),
            "qwen3": dict(qkv_bias=False, qk_norm=True)}
GEMMA = ("; Gemma has a SentencePiece tokenizer, norms on both sides of each block, GELU gates and "
         "scaled embeddings, none of which is here")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.jinja"]


# ----------------------------------------------------------------------------------------------
# config.json

def config_from_hf(c):
    """config.json as a dict -> the fields of GPTConfig, as a dict.

    Raises ValueError that names whatever our model does not compute, and what is missing.
    """
    kind = c.get("model_type")
    if kind not in FAMILIES:
        why = GEMMA if str(kind).startswith("gemma") else ""
        raise ValueError(f"model_type {kind!r} is not one that we have "
                         f"({', '.join(FAMILIES)}){why}")
    rope = c.get("rope_scaling") or c.get("rope_parameters") or {}    # transformers 4 and 5
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    _refuse_what_we_lack(c, kind, rope, rope_type)
    full = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, **ABSENT[kind], **c}
    missing = [key for key in KEYS.values() if key not in full]
    scaling = {}
    if rope_type == "llama3":
        missing += [f"rope_scaling.{key}" for key in ROPE_KEYS.values() if key not in rope]
        scaling = {field: rope.get(key) for field, key in ROPE_KEYS.items()}
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    theta = rope.get("rope_theta", c.get("rope_theta", 10_000.0))
    sizes = {field: full[key] for field, key in KEYS.items()}
    return dict(**sizes, rope_theta=theta, **scaling, **FAMILIES[kind])


def _refuse_what_we_lack(c, kind, rope, rope_type):
    layers = c.get("layer_types") or ()
    rotated = rope.get("partial_rotary_factor") or c.get("partial_rotary_factor") or 1
    refusals = [
        (c.get("hidden_act", "silu") != "silu",
         f"hidden_act {c.get('hidden_act')!r}; we have silu"),
        (c.get("attention_bias") and kind != "qwen2",
         "attention_bias true, also on o_proj; we have one on q, k and v (qwen2)"),
        (c.get("mlp_bias"),
         "mlp_bias true; our MLP has no bias"),
        (c.get("use_sliding_window") or "sliding_attention" in layers,
         "sliding windows (use_sliding_window, layer_types); our attention sees all tokens before"),
        (c.get("quantization_config"),
         "quantization_config; we read fp32, bf16 and fp16 weights"),
        (rope_type not in ("default", "llama3"),
         f"rope_type {rope_type!r}; we have default and llama3"),
        (rotated != 1,
         "partial_rotary_factor; ours is 1"),
    ]
    for wrong, what in refusals:
        if wrong:
            raise ValueError(f"config.json asks for {what}")


def config_to_hf(cfg):
    """GPTConfig -> config.json as a dict, in the layout that transformers 4 and 5 and vLLM read.

    Raises ValueError where no model type has the config's flags.
    """
    kinds = [kind for kind, flags in FAMILIES.items()
             if flags == dict(qkv_bias=cfg.qkv_bias, qk_norm=cfg.qk_norm)]
    if not kinds:
        raise ValueError("qkv_bias together with qk_norm is no model type that transformers has; "
                         "export one or the other")
    kind = kinds[0]
    scaling = None
    if cfg.rope_factor != 1:
        numbers = {key: getattr(cfg, field) for field, key in ROPE_KEYS.items()}
        scaling = dict(rope_type="llama3", **numbers)
    sizes = {key: getattr(cfg, field) for field, key in KEYS.items()}
    return dict(architectures=[f"{kind.capitalize()}ForCausalLM"], model_type=kind,
                hidden_act="silu", **sizes, rope_theta=float(cfg.rope_theta), rope_scaling=scaling,
                attention_bias=False, use_cache=True)


# ----------------------------------------------------------------------------------------------
# folders

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
        return snapshot_download(name, allow_patterns=HUB_FILES)
    except Exception as e:      # no network, no such model, no permission: a dozen kinds of error
        raise ValueError(f"checkpoint: there is no {name} here, and the hub did not give it "
                         f"({type(e).__name__}); check the name and the network, or pass a folder "
                         "that holds it") from None


def open_folder(path):
    """A folder -> (fields of GPTConfig, {parameter: (shape, function that reads it)}, meta).

    Reads no weight; the functions do, they take (dtype, device). meta: tokenizer_files (name ->
    text) and config (the flags of the run that made it: {}). Raises ValueError on a config.json
    that asks for another model than ours, on missing shards and on files that are not whole.
    """
    try:
        config = config_from_hf(_read_json(path, "config.json"))
    except (TypeError, AttributeError) as e:               # a list for a name, a name for an object
        raise ValueError("config.json holds a value of another kind than expected "
                         f"({e})") from None
    stored = {}
    for name in _weight_files(path):
        weights = Weights(os.path.join(path, name))
        for key, shape in weights.shapes.items():
            ours = key.removeprefix("model.")
            if ours in stored:
                raise ValueError(f"{key} is there twice, the second time in {name}")
            if not ours.endswith("rotary_emb.inv_freq"):   # in old exports; we compute it ourselves
                stored[ours] = shape, partial(weights.read, key)
    from plumbing.tokenizer import TOKENIZER_FILES  # here: a .pt alone needs none of it
    files = {}
    for name in TOKENIZER_FILES:
        if os.path.isfile(os.path.join(path, name)):
            with open(os.path.join(path, name), encoding="utf-8") as f:
                files[name] = f.read()
    return config, stored, dict(tokenizer_files=files, config={})


def _read_json(folder, name):
    try:
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            content = json.load(f)
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
    weight_map = _read_json(path, INDEX).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(f"{INDEX} has no weight_map, tensor -> file")
    names = sorted(set(weight_map.values()))
    missing = [n for n in names if not os.path.isfile(os.path.join(path, n))]
    if missing:
        raise ValueError(f"{len(missing)} of {len(names)} shards are missing: "
                         f"{', '.join(missing)}; copy them here")
    return names


# ----------------------------------------------------------------------------------------------
# safetensors

class Weights:
    """The tensors of one safetensors file: their shapes from its header, then each by its name.

    Raises ValueError if the file is not whole or holds other than floating-point tensors.
    """
    PAGES = 2 ** 24         # bytes

    def __init__(self, path):
        self.path = path
        self.shapes = {}
        name = os.path.basename(path)
        try:
            self._open()
        except SafetensorError as e:
            raise ValueError(f"{name} is no whole safetensors file ({e}): it was cut short, or is "
                             "another kind of file; copy it again") from None
        for key in self.file.keys():
            header = self.file.get_slice(key)
            if header.get_dtype() not in DTYPES:
                raise ValueError(f"{key} in {name} is of dtype {header.get_dtype()}; "
                                 f"we read {', '.join(DTYPES)}")
            self.shapes[key] = tuple(header.get_shape())

    def _open(self):
        self.file = safe_open(self.path, framework="pt")
        self.touched = 0

    def read(self, key, dtype=None, device="cpu"):
        """One tensor, in memory of its own: the file may be overwritten while the model lives.

        The library maps the file into memory, and what was read stays there until it is closed: so
        it is opened again after every 16 MB, and loading needs little more than the weights.
        """
        try:
            if self.touched > self.PAGES:
                self._open()
            w = self.file.get_tensor(key)
        except (SafetensorError, OSError) as e:
            raise ValueError(f"checkpoint: {self.path} changed while it was read ({e})") from None
        self.touched += w.nbytes
        return w.to(device=device, dtype=dtype, copy=True)
