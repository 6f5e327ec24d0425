"""Checkpoints: a .pt of ours, a Hugging Face folder or a hub name -> a model, and what it says.

A .pt holds tensors and primitives only, so that loading one never runs code. Everything that can be
checked without reading a weight is checked first. The model's class (GPT, with its config_class) is
an argument: model.py imports this file, not the other way round.
"""

import hashlib
import math
import os
import zipfile
from dataclasses import asdict, fields

import torch

from plumbing import hf, tokenizer
from plumbing.bar import bar
from plumbing.files import write_atomically

FORMAT = "wmss-checkpoint-1"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MOST = 1 << 24          # of anything that a config counts
MOST_ANGLES = 1 << 27   # positions times head_dim: their tables are computed, in 2 GB at most


def check_config(cfg):
    """ValueError where the fields of a GPTConfig are no numbers of their types or make no model."""
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        kind = (int, float) if f.type is float else f.type
        if not isinstance(value, kind) or (isinstance(value, bool) and f.type is not bool):
            raise ValueError(f"model: {f.name} should be a number of type {f.type}, "
                             f"found {value!r:.60}")
        if f.type in (int, int | None) and value is not None and not 1 <= value <= MOST:
            raise ValueError(f"model: {f.name} should be at least 1 and at most {MOST:,}, found "
                             f"{value!r:.60}")
        if f.type is float and not 0 < value < math.inf:
            raise ValueError(f"model: {f.name} should be a positive number, found {value!r:.60}")
    if cfg.head_dim is None and cfg.dim % cfg.n_heads:
        raise ValueError(f"model: dim {cfg.dim} is no multiple of n_heads {cfg.n_heads}; "
                         "set head_dim")
    if cfg.n_heads % (cfg.n_kv_heads or cfg.n_heads):
        raise ValueError(f"model: n_heads {cfg.n_heads} is no multiple of "
                         f"n_kv_heads {cfg.n_kv_heads}")
    head_dim = cfg.head_dim or cfg.dim // cfg.n_heads
    if head_dim % 2:
        raise ValueError(f"model: RoPE rotates pairs, so head_dim must be even, found {head_dim}")
    if cfg.max_seq_len * head_dim > MOST_ANGLES:
        raise ValueError(f"model: max_seq_len {cfg.max_seq_len:,} times head_dim {head_dim} should "
                         f"be at most {MOST_ANGLES:,}")
    if cfg.rope_low >= cfg.rope_high:
        raise ValueError("model: expected rope_low < rope_high, "
                         f"found {cfg.rope_low} and {cfg.rope_high}")


def save(path: str, model, weights: dict | None = None, **meta) -> None:
    """Write a .pt with the model's weights, its config and **meta: whole or not at all.

    weights: name -> tensor, in place of the model's own, which may be cut into shards.
    """
    weights = model.state_dict() if weights is None else weights
    content = dict(format=FORMAT, model_config=asdict(model.cfg), model=weights, **meta)
    write_atomically(path, lambda f: torch.save(content, f))


def load(GPT, path: str, device: str | torch.device = "cpu", tokenizer: str | None = None,
         dtype: torch.dtype | None = torch.float32) -> tuple:
    """Read a .pt of ours, a Hugging Face folder or a hub name -> (GPT on device, meta).

    tokenizer: the fingerprint (plumbing.tokenizer) that it must have; None: any. dtype: of the
    weights; None keeps the file's. For meta and the errors see Checkpoint.
    """
    opened = Checkpoint(GPT, path, tokenizer)
    return opened.read(dtype, device), opened.meta


def read_config(GPT, path: str, tokenizer: str | None = None) -> tuple:
    """(config, meta) of whatever load() takes, with all its checks but without reading a weight."""
    opened = Checkpoint(GPT, path, tokenizer)
    return opened.model.cfg, opened.meta


class Checkpoint:
    """A .pt of ours, a Hugging Face folder or a hub name: checked, no weight read yet.

    model: a GPT on the meta device, which has shapes and no memory. read() gives it its weights.
    stored: parameter -> a tensor that is mapped into memory (.pt) or hf.Stored (folder).
    meta: tokenizer (its fingerprint), tokenizer_files (name -> text), config (the run's flags; {}
        for a folder) and, of a .pt, all that was saved with it.

    Raises ValueError for files that are missing, foreign or not whole, models that we do not have,
    names or shapes that do not fit the config, and, unless weights_only, another tokenizer than
    the expected one or one with more ids than the model embeds.
    """

    def __init__(self, GPT, path, expected=None, weights_only=False):
        self.path = hf.local(path)
        open_it = hf.open_folder if os.path.isdir(self.path) else open_pt
        try:
            config, self.stored, self.meta = open_it(self.path)
            config = GPT.config_class(**config)
            if config.n_layers > len(self.stored):
                raise ValueError(f"its config has {config.n_layers:,} layers, the file "
                                 f"{len(self.stored):,} tensors")
            with torch.device("meta"), _NoInit():
                self.model = GPT(config)
            self._check_shapes()
            if not weights_only:
                self._check_tokenizer(expected)
        except (TypeError, ValueError) as e:               # TypeError: a field that we lack
            raise ValueError(f"checkpoint: {self.path}: {e}") from None

    def _check_shapes(self):
        expected = {name: tuple(w.shape) for name, w in self.model.state_dict().items()}
        found = {name: tuple(w.shape) for name, w in self.stored.items()}
        if self.model.cfg.tie_embeddings and "lm_head.weight" not in found:
            del expected["lm_head.weight"]                 # a tied head may be stored, or not
        wrong = [f"{name} is missing" for name in expected if name not in found]
        wrong += [f"{name} is unexpected" for name in found if name not in expected]
        for name, shape in expected.items():
            if found.get(name, shape) != shape:
                wrong.append(f"{name} is {found[name]}, expected {shape}")
        if wrong:
            more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
            raise ValueError(f"its tensors do not fit its own config: {', '.join(wrong[:3])}{more}")

    def _check_tokenizer(self, expected):
        """A folder's fingerprint is that of its tokenizer.json; a .pt carries its own."""
        found, files = self.meta.get("tokenizer"), self.meta.get("tokenizer_files", {})
        if "tokenizer" not in self.meta and "tokenizer.json" in files:
            enc, embedded = tokenizer.load_tokenizer(files), self.model.cfg.vocab_size
            if enc.n_vocab > embedded:                     # fewer is usual: heads are padded
                raise ValueError(f"tokenizer.json has {enc.n_vocab:,} ids, the model embeds "
                                 f"{embedded:,}; put the tokenizer there that it was trained with")
            found = tokenizer.fingerprint(enc)
        self.meta["tokenizer"] = found
        if expected not in (None, found):
            toy = tokenizer.fingerprint(tokenizer.toy_encoding())
            here = {toy: "this is a checkpoint of the built-in toy tasks",
                    None: "no tokenizer.json lies there, so its tokens are not known"}
            there = {toy: "the tokens of the built-in toy tasks are used here",
                     None: "the other model has no tokenizer"}
            one = here.get(found, f"it has the tokenizer {found}")
            other = there.get(expected, f"another tokenizer is used here ({expected})")
            raise ValueError(f"{one}; {other}. Their token ids mean other texts: pass models of "
                             "one family, and the data that they were made for")

    def read(self, dtype, device):
        """The model with its weights, read one by one, so that at most one is held twice.

        A .pt stays mapped into memory: replace its file (by renaming), do not overwrite it. On the
        device "meta" the model gets no weights: none is read.
        """
        if device == "meta":
            return self.model
        weights = {}
        for name, stored in bar(self.stored.items(), "loading", "tensor"):
            w = weights[name] = stored.to(device=device, dtype=dtype)
            if not is_finite(w):
                raise ValueError(f"checkpoint: {self.path}: {name} holds NaN or infinity, so its "
                                 "training has diverged; use another, or delete it and train it "
                                 "again with a lower learning rate")
        tied = self.model.cfg.tie_embeddings
        if tied:
            embed = weights["embed_tokens.weight"]
            if not torch.equal(weights.get("lm_head.weight", embed), embed):
                raise ValueError(f"checkpoint: {self.path}: lm_head.weight, tied by the config, "
                                 "differs from embed_tokens.weight; correct tie_word_embeddings")
            weights["lm_head.weight"] = embed
        self.model.load_state_dict(weights, assign=True)
        if tied:                                           # assign made two parameters of it
            self.model.lm_head.weight = self.model.embed_tokens.weight
        return self.model.to(device)                       # the RoPE tables


def is_finite(tensor):
    return all(map(math.isfinite, tensor.aminmax()))


class _NoInit(torch.overrides.TorchFunctionMode):
    """Lets nn.init return at once: the file brings the values.

    On the meta device there is nothing to fill, and yet normal_ would import 70 MB, for 1.5 s.
    """

    def __torch_function__(self, f, types, args=(), kwargs=None):
        if getattr(f, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return f(*args, **(kwargs or {}))


def _kind_of(path, error):
    """What is there instead of a checkpoint, in a few words."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    with open(path, "rb") as f:
        start = f.read(64).lstrip()
    if not start:
        return "the file is empty"
    if start[:1] in (b"{", b"["):
        return "it holds JSON"
    if start[:2] == b"PK":
        return "it is another file of PyTorch's, or one that was cut short"
    return "it is of another kind"


def open_pt(path):
    """A .pt of ours -> (fields of GPTConfig, {parameter: tensor}, meta)."""
    try:
        check_archive(path)
        meta = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if meta.pop("format") != FORMAT:
            raise ValueError
        meta.setdefault("tokenizer", None)
        config, weights = meta.pop("model_config"), meta.pop("model")
        _check_kinds(weights, meta)
        return config, weights, meta
    except Exception as e:      # cut short, another program's, text: seven kinds of error
        if path.endswith(".safetensors"):
            raise ValueError("it is weights alone; pass the folder in which it lies, with its "
                             "config.json and tokenizer.json") from None
        raise ValueError(f"it is not a whole {FORMAT} file written by train_wmss.py "
                         f"({_kind_of(path, e)}); pass one of the .pt files in an out/<name>/ "
                         "folder; if it is one of them, delete it, and --resume makes its stage "
                         "again") from None


def check_archive(path):
    """A .pt is a zip archive that packs nothing and holds each name once, or it is not ours."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
    packed = [part for part in parts if part.compress_type != zipfile.ZIP_STORED]
    names = {part.filename for part in parts}
    if packed or len(names) < len(parts) or sum(p.file_size for p in parts) > os.path.getsize(path):
        raise ValueError


# what else lies in a .pt, where it does
KINDS = dict(tokenizer=(str, type(None)), tokenizer_files=dict, config=dict, spent=dict, arm=str,
             step=int, flops=(int, float), seconds=(int, float))


def _check_kinds(weights, meta):
    """Plain tensors of numbers, each with memory of its own, and values of the kinds that we save.

    One that shares memory would be trained twice; one that is expanded would be as large as it
    says it is only once it is read.
    """
    for w in weights.values():
        if not (type(w) in (torch.Tensor, torch.nn.Parameter) and w.dtype in DTYPES
                and w.layout == torch.strided and w.device.type == "cpu" and w.is_contiguous()):
            raise TypeError
    spans = sorted((w.data_ptr(), w.data_ptr() + w.nbytes, name) for name, w in weights.items())
    for (_, end, first), (begin, _, second) in zip(spans, spans[1:], strict=False):
        if begin < end and {first, second} != {"embed_tokens.weight", "lm_head.weight"}:
            raise ValueError
    for name, kind in KINDS.items():
        if name in meta and not isinstance(meta[name], kind):
            raise TypeError
    texts = [meta.get("config", {}).get(name, "") for name in ("task", "template")]
    texts += meta.get("tokenizer_files", {}).values()
    if not all(isinstance(text, str) for text in texts):
        raise TypeError


def digest_of(path):
    """Sixteen hex digits that name what a checkpoint's files hold: a .pt, a folder, a hub name."""
    path, names = hf.local(path), [""]
    if os.path.isdir(path):
        names = sorted(n for n in os.listdir(path) if n.endswith((".json", ".safetensors")))
    whole = hashlib.sha256()
    for name in bar(names, "checksum", "file"):
        with open(os.path.join(path, name) if name else path, "rb") as f:
            whole.update(hashlib.file_digest(f, "sha256").digest())
    return whole.hexdigest()[:16]
