"""Checkpoints: a .pt of ours, a Hugging Face folder or a hub name -> a model, and what it says.

A .pt holds tensors and primitives only, so that loading one never runs code. Everything that can be
checked without reading a weight is checked first. The functions get the model's class (GPT, with
its config_class) as an argument: model.py imports this file, not the other way round.
"""

import os
from dataclasses import asdict, fields
from functools import partial
from typing import NamedTuple

import torch

from plumbing import hf
from plumbing.files import write_atomically

FORMAT = "wmss-checkpoint-1"


class Opened(NamedTuple):
    """What is known of a checkpoint before a weight is read."""
    path: str           # where it is on this machine
    model: object       # a GPT on the meta device: shapes without memory
    stored: dict        # parameter -> (shape, function (dtype, device) -> tensor that reads it)
    meta: dict          # everything else that the checkpoint says


def check_config(cfg):
    """ValueError where the fields of a GPTConfig are no numbers of their types or make no model."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        kind = (int, float) if f.type is float else f.type
        if not isinstance(value, kind):
            raise ValueError(f"model: {f.name} should be a number of type {f.type}, "
                             f"found {value!r}")
        if f.type in (int, int | None) and value is not None and value < 1:
            raise ValueError(f"model: {f.name} should be at least 1, found {value}")
    if cfg.head_dim is None and cfg.dim % cfg.n_heads:
        raise ValueError(f"model: dim {cfg.dim} is no multiple of n_heads {cfg.n_heads}; "
                         "set head_dim")
    if cfg.n_heads % (cfg.n_kv_heads or cfg.n_heads):
        raise ValueError(f"model: n_heads {cfg.n_heads} is no multiple of "
                         f"n_kv_heads {cfg.n_kv_heads}")
    head_dim = cfg.head_dim or cfg.dim // cfg.n_heads
    if head_dim % 2:
        raise ValueError(f"model: RoPE rotates pairs, so head_dim must be even, found {head_dim}")
    if cfg.rope_low >= cfg.rope_high:
        raise ValueError("model: expected rope_low < rope_high, "
                         f"found {cfg.rope_low} and {cfg.rope_high}")


def save(path, model, **meta):
    """Write a .pt with the model's weights, its config and **meta: whole or not at all."""
    content = dict(format=FORMAT, model_config=asdict(model.cfg), model=model.state_dict(), **meta)
    write_atomically(path, lambda f: torch.save(content, f))


def load(GPT, path, device="cpu", tokenizer=None, dtype=torch.float32):
    """Read a .pt of ours, a Hugging Face folder or a hub name -> (GPT on device, meta).

    tokenizer: the fingerprint (plumbing.tokenizer) that the checkpoint must have; None: any.
    dtype: of the weights; None keeps the file's.
    meta: tokenizer (its fingerprint), tokenizer_files (name -> text), config (the run's flags; {}
    for a folder) and, of a .pt, all that was saved with it.

    A .pt stays mapped into memory: the file may be replaced (renamed over) while the model lives,
    but not overwritten in place. A folder's weights are copied, its files may change afterwards.

    Raises ValueError, before a weight is read, for: no such file; a file that is not ours or not
    whole; a missing shard; a model type, RoPE, activation or quantisation that we do not have; a
    name or shape that does not fit the config; another tokenizer.
    """
    opened = open_checkpoint(GPT, path)
    check_tokenizer(opened, tokenizer)
    return read_weights(opened, dtype, device), opened.meta


def load_model(GPT, path, dtype=torch.float32, device="cpu"):
    """The model alone: load() without a look at the tokenizer."""
    return read_weights(open_checkpoint(GPT, path), dtype, device)


def read_config(GPT, path, tokenizer=None):
    """(config, meta) of whatever load() takes, with all its checks but without reading a weight."""
    opened = open_checkpoint(GPT, path)
    check_tokenizer(opened, tokenizer)
    return opened.model.cfg, opened.meta


def open_checkpoint(GPT, path):
    """A path or hub name -> Opened: all that is known before a weight is read, and checked."""
    path = hf.local(path)
    try:
        config, stored, meta = hf.open_folder(path) if os.path.isdir(path) else _open_pt(path)
        model = _without_memory(GPT, config)
        _check_shapes(model, stored)
    except ValueError as e:
        raise ValueError(f"checkpoint: {path}: {e}") from None
    return Opened(path, model, stored, meta)


def _open_pt(path):
    try:
        meta = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if meta.pop("format") != FORMAT:
            raise ValueError
        config, weights = meta.pop("model_config"), meta.pop("model")
        meta.setdefault("tokenizer", None)
        stored = {name: (tuple(w.shape), partial(_convert, w)) for name, w in weights.items()}
    except Exception as e:      # cut short, another program's, text: seven kinds of error
        raise ValueError(f"it is not a whole {FORMAT} file written by train_wmss.py "
                         f"({type(e).__name__}); pass one of the .pt files in an out/<name>/ "
                         "folder") from None
    return config, stored, meta


def _convert(w, dtype, device):
    return w.to(device=device, dtype=dtype)


class _NoInit(torch.overrides.TorchFunctionMode):
    """Lets nn.init return at once: the file brings the values.

    On the meta device there is nothing to fill, and yet normal_ would import 70 MB, for 1.5 s.
    """

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if getattr(f, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return f(*args, **(kwargs or {}))


def _without_memory(GPT, config):
    try:
        with torch.device("meta"), _NoInit():
            return GPT(GPT.config_class(**config))
    except (TypeError, ValueError) as e:                   # a field that we lack; a bad value
        raise ValueError(f"its config does not fit our model: {e}") from None


def _check_shapes(model, stored):
    expected = {name: tuple(w.shape) for name, w in model.state_dict().items()}
    if model.cfg.tie_embeddings and "lm_head.weight" not in stored:
        del expected["lm_head.weight"]                     # a tied head may be stored, or not
    missing = [f"{name} is missing" for name in expected if name not in stored]
    unexpected = [f"{name} is unexpected" for name in stored if name not in expected]
    wrong = missing + unexpected
    for name, shape in expected.items():
        if name in stored and stored[name][0] != shape:
            wrong.append(f"{name} is {stored[name][0]}, expected {shape}")
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"its tensors do not fit its own config: {', '.join(wrong[:3])}{more}")


def read_weights(opened, dtype, device):
    """The model of an Opened, its weights read one by one, so that at most one is held twice."""
    model = opened.model
    weights = {}
    for name, (_, read) in opened.stored.items():
        weights[name] = read(dtype, device)
    if model.cfg.tie_embeddings:
        embed = weights["embed_tokens.weight"]
        if not torch.equal(weights.get("lm_head.weight", embed), embed):
            raise ValueError(f"checkpoint: {opened.path}: its config ties the head to the "
                             "embeddings, and yet lm_head.weight differs from embed_tokens.weight; "
                             "set tie_word_embeddings to what it should be")
        weights["lm_head.weight"] = embed
    model.load_state_dict(weights, assign=True)
    if model.cfg.tie_embeddings:
        model.lm_head.weight = model.embed_tokens.weight   # assign made two parameters of it
    return model.to(device)                                # the RoPE tables


def check_tokenizer(opened, expected=None):
    """Set meta["tokenizer"] of a folder, and compare it with the fingerprint `expected`, if any.

    A folder's is that of its tokenizer.json, None without one; a .pt carries its own. Raises
    ValueError where they differ, and where the tokenizer has more ids than the model embeds.
    """
    path, model, _, meta = opened
    if "tokenizer" not in meta:
        meta["tokenizer"] = None
        if "tokenizer.json" in meta["tokenizer_files"]:
            from plumbing import tokenizer  # here: weights alone need none of it
            try:
                enc = tokenizer.load_tokenizer(meta["tokenizer_files"])
            except ValueError as e:
                raise ValueError(f"checkpoint: {path}: {e}") from None
            if enc.n_vocab > model.cfg.vocab_size:         # fewer is usual: heads are padded
                raise ValueError(f"checkpoint: {path}: tokenizer.json has {enc.n_vocab:,} ids, the "
                                 f"model embeds {model.cfg.vocab_size:,}; put the tokenizer there "
                                 "that it was trained with")
            meta["tokenizer"] = tokenizer.fingerprint(enc)
    if expected is not None and meta["tokenizer"] != expected:
        raise ValueError(f"checkpoint: {path} was trained with tokenizer "
                         f"{describe(meta['tokenizer'])}, this run uses {describe(expected)}; "
                         "token ids would mean other text, so use the data and code that it was "
                         "trained with")


def describe(mark):
    """A tokenizer's fingerprint, with what it is in words where that is known."""
    from plumbing.tokenizer import fingerprint, toy_encoding
    if mark is None:
        return "None (no tokenizer.json lies there)"
    if mark == fingerprint(toy_encoding()):
        return f"{mark} (the one of the built-in toy tasks)"
    return mark
