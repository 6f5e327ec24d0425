"""Text -> token ids: the encoding of the built-in tasks, and other people's tokenizers.

All are tiktoken encodings. A tokenizer.json of byte-level BPE (GPT-2, SmolLM2, Qwen2, Qwen3,
Llama-3) or a rank file gives the ids that the library `tokenizers` gives, text for text, or it is
refused with the reason.

    python -c "from plumbing.tokenizer import *; print(load_tokenizer('FOLDER').encode('2 + 2'))"
"""

import base64
import hashlib
import json
import re
import unicodedata
from pathlib import Path
from typing import NamedTuple

import regex  # comes with tiktoken
import tiktoken

# --------------------------------------------------------------------------------------------------
# the built-in tasks' tokens

END = "<|end|>"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken Encoding that knows how its texts begin and end, and from which files it came.

    end_id: the token that closes a completion; it carries loss.
    stop_ids: the tokens that end generation, end_id among them.
    bos_id: the token that every text begins with, or None.
    chat_template: its Jinja source, or None.
    nfc: are texts normalised first, as Qwen's are?
    files: name -> text, from which load_tokenizer() makes it again. Checkpoints carry them and
        exports write them.

    Bytes that the vocabulary lacks (21 in SmolLM2's, most in the toy's) are dropped, as
    `tokenizers` does.
    """

    LONG = 500_000      # characters; on longer runs of spaces tiktoken's regex engine panics

    def __init__(self, name, *, pat_str, mergeable_ranks, special_tokens, end, stops=(), bos=None,
                 chat_template=None, nfc=False, files=None):
        super().__init__(name, pat_str=pat_str, mergeable_ranks=mergeable_ranks,
                         special_tokens=special_tokens)
        self.end_id = special_tokens[end]
        self.bos_id = None if bos is None else special_tokens[bos]
        self.stop_ids = sorted({self.end_id, *(special_tokens[token] for token in stops)})
        self.chat_template = chat_template
        self.nfc = nfc
        self.files = files or {}
        self._lacking = bytes(b for b in range(256) if bytes([b]) not in mergeable_ranks)

    def __reduce__(self):
        return load_tokenizer, (tokenizer_files(self),)

    def _plain(self, text):
        """Can tiktoken take the text as it is?"""
        if len(text) >= self.LONG:
            return False
        if self.nfc and not unicodedata.is_normalized("NFC", text):
            return False
        if not self._lacking:
            return True
        raw = text.encode("utf-8", "replace")
        return len(raw) == len(raw.translate(None, self._lacking))

    def encode_ordinary(self, text):
        if self._plain(text):
            return super().encode_ordinary(text)
        # half surrogate pairs become U+FFFD, as in tiktoken
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        # `tokenizers` splits the whole text first and drops bytes then. So the neighbours of a
        # dropped byte may merge inside of a piece, but not across pieces.
        ids = []
        for match in regex.finditer(self._pat_str, text):
            piece = match.group().encode().translate(None, self._lacking)
            if piece:
                ids += self._core_bpe.encode_single_piece(piece)
        return ids

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special="all"):
        if self._plain(text):
            return super().encode(text, allowed_special=allowed_special,
                                  disallowed_special=disallowed_special)
        allowed = self.special_tokens_set if allowed_special == "all" else allowed_special
        forbidden = disallowed_special
        if disallowed_special == "all":
            forbidden = self.special_tokens_set - allowed
        for token in forbidden:
            if token in text:
                _refuse(f"special token {token!r} in a text; allowed_special and "
                        "disallowed_special can let it in")
        if not allowed:
            return self.encode_ordinary(text)
        # Special tokens come out of the raw text; each part between them is normalised alone.
        ids = []
        for part in regex.split("(" + "|".join(map(regex.escape, allowed)) + ")", text):
            if part in allowed:
                ids.append(self._special_tokens[part])
            else:
                ids += self.encode_ordinary(part)
        return ids

    def decode(self, tokens, errors="replace"):
        try:
            return super().decode(tokens, errors=errors)
        except KeyError:
            # A head that is padded to a round number (Qwen's to 151,936) can write ids that are no
            # tokens. They have no text, as in `tokenizers`.
            known = {*self._mergeable_ranks.values(), *self._special_tokens.values()}
            return super().decode([t for t in tokens if t in known], errors=errors)

    def encode_to_numpy(self, text, **special):
        import numpy as np
        return np.array(self.encode(text, **special), np.uint32)

    def encode_ordinary_batch(self, text, *, num_threads=8):
        if num_threads == 1:            # a pool costs more than encoding a paragraph does
            return list(map(self.encode_ordinary, text))
        return super().encode_ordinary_batch(text, num_threads=num_threads)


def toy_encoding() -> Tokenizer:
    """Newline and printable ASCII, one token a character, and <|end|>.

    >>> enc = toy_encoding(); enc.decode(enc.encode_ordinary("7*8=56")), enc.n_vocab
    ('7*8=56', 97)
    """
    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    ranks = {c.encode(): i for i, c in enumerate(alphabet)}
    return Tokenizer("wmss-toy", pat_str=r"[\s\S]", mergeable_ranks=ranks,
                     special_tokens={END: len(ranks)}, end=END)


def fingerprint(enc: tiktoken.Encoding) -> str:
    """Sixteen hex digits that name an encoding's content: if they are equal, ids mean equal text.

    Every checkpoint carries those of its tokenizer.
    """
    h = hashlib.sha256(enc._pat_str.encode())
    if getattr(enc, "nfc", False):
        h.update(b"NFC")
    special = {token.encode(): i for token, i in enc._special_tokens.items()}
    for token, i in sorted(enc._mergeable_ranks.items()) + sorted(special.items()):
        h.update(b"%d:%s=%d;" % (len(token), token, i))
    return h.hexdigest()[:16]


# --------------------------------------------------------------------------------------------------
# other people's tokenizers

# What a Hugging Face folder says about its tokenizer. generation_config.json belongs to the model,
# but names what ends a text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "generation_config.json", "chat_template.jinja")
# where no file says what ends a text
USUAL_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>")

# Split patterns as tokenizer.json files spell them. tiktoken spells them with possessive
# quantifiers. These give the same pieces, no faster; and to Oniguruma, which `tokenizers` uses,
# tiktoken's `\p{N}{1,3}+` is another thing.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")             # and cl100k
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
         + CONTRACTIONS + "?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
         + CONTRACTIONS + "?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# What a pattern may be made of, so that Oniguruma and Rust's regex read it alike. Not among these
# are ^ and $ (of a line to one, of the text to the other), \w \h \b, (?m), nested or subtracted
# classes, {1,3}+, and ignored case (to Oniguruma ß is ss).
_ESCAPE = r"\\(?:[rntsSdD]|[pP]\{\w+\}|[^\w\s])"
_CLASS = rf"\[\^?(?:{_ESCAPE}|(?!&&|--|~~)[^\\\[\]])+\]"
_COMMON = re.compile(
    rf"(?:{_ESCAPE}|{_CLASS}|[^\\\[\](){{}}^$*+?]|\((?:\?(?:[:=!]|<[=!])|(?!\?))|\)"
    r"|[?*+][?+]?|\{\d+(?:,\d*)?\}(?![?+]))+")


class RankFile(NamedTuple):
    """What a rank file does not say itself."""
    name: str
    pattern: str
    end: str
    special_tokens: dict[str, int]
    stops: tuple[str, ...] = ()         # other tokens that end generation
    bos: str | None = None
    nfc: bool = False


def _numbered(first, names):
    """The special tokens of these names, with ids from `first` on; <|a|> is written as a."""
    tokens = [name if name[0] == "<" else f"<|{name}|>" for name in names.split()]
    return {token: first + i for i, token in enumerate(tokens)}


_LLAMA3_NAMES = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 "
    "finetune_right_pad_id reserved_special_token_2 start_header_id end_header_id eom_id eot_id "
    "python_tag " + " ".join(f"reserved_special_token_{i}" for i in range(3, 248)))
_QWEN_NAMES = (
    "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start "
    "quad_end vision_start vision_end vision_pad image_pad video_pad <tool_call> </tool_call> "
    "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep <tool_response> </tool_response> "
    "<think> </think>")                 # Qwen2 and 2.5 lack the last four

RANK_FILES = {          # by the sha256 of the file
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": RankFile(
        "cl100k_base", LLAMA3, "<|endoftext|>",
        {**_numbered(100257, "endoftext fim_prefix fim_middle fim_suffix"),
         "<|endofprompt|>": 100276}),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": RankFile(
        "o200k_base", O200K, "<|endoftext|>",
        {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": RankFile(
        "qwen", QWEN2, "<|im_end|>", _numbered(151643, _QWEN_NAMES), stops=("<|endoftext|>",),
        nfc=True),
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": RankFile(
        "llama3", LLAMA3, "<|end_of_text|>", _numbered(128000, _LLAMA3_NAMES),
        stops=("<|eom_id|>", "<|eot_id|>"), bos="<|begin_of_text|>"),       # of 3.1 and later
}

# The letters in which tokenizer.json writes bytes, GPT-2's: printable Latin-1 stands for itself,
# the other bytes for U+0100 and on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_NOT_PRINTED = [b for b in range(256) if b not in _PRINTED]
BYTE_CHARS = {b: chr(b) for b in _PRINTED} | {b: chr(256 + i) for i, b in enumerate(_NOT_PRINTED)}
CHAR_BYTES = {c: b for b, c in BYTE_CHARS.items()}
_TO_BYTES = str.maketrans(CHAR_BYTES)


def load_tokenizer(source: str | Path | dict) -> Tokenizer:
    """The Tokenizer of a Hugging Face folder, a tokenizer.json, a rank file (*.tiktoken) or a dict.

    The dict is what checkpoints carry, name of a file -> its text. The Tokenizer gives the ids that
    `tokenizers` gives, text for text; ValueError names what in the files it cannot do exactly.
    encode(text, allowed_special="all") treats special tokens in a text as `tokenizers` does;
    encode_ordinary reads them as text.
    """
    if not isinstance(source, dict):
        path = Path(source)
        if path.is_file() and path.suffix != ".json":
            return _from_ranks(path)
        files = _read_files(path)
    else:
        files = {name: source[name] for name in TOKENIZER_FILES if name in source}
    if "tokenizer.json" not in files:
        where = "the checkpoint" if isinstance(source, dict) else source
        _refuse(f"no tokenizer.json in {where}; transformers writes one: "
                "AutoTokenizer.from_pretrained(X).save_pretrained(X)")
    spec = _json(files, "tokenizer.json")
    config = _json(files, "tokenizer_config.json")

    model = spec.get("model") or {}
    _check_model(model)
    normalizer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    kinds = [n["type"] for n in normalizer.get("normalizers", [normalizer])]
    if set(kinds) - {"NFC"}:
        _refuse(f"normalizer {' + '.join(kinds)}; only NFC is known")
    nfc = bool(kinds)
    pattern = _pattern(spec.get("pre_tokenizer") or {"type": "none"})
    bos = _begins_with(spec.get("post_processor"))
    added = _added_tokens(spec.get("added_tokens") or [], model["vocab"], nfc)
    ranks = _ranks(model, added)

    end, stops, bos = _ends(files, config, added, bos)
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    template = files.get("chat_template.jinja", template)
    return Tokenizer("tokenizer.json", pat_str=pattern, mergeable_ranks=ranks,
                     special_tokens=added, end=end, stops=stops, bos=bos, chat_template=template,
                     nfc=nfc, files=files)


def tokenizer_files(enc: Tokenizer) -> dict[str, str]:
    """name -> text of files from which transformers, tokenizers and load_tokenizer() make `enc`."""
    if enc.files:
        return enc.files
    name = {i: token for token, i in enc._special_tokens.items()}
    bos = None if enc.bos_id is None else name[enc.bos_id]
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True} for i, token in sorted(name.items())],
        "normalizer": {"type": "NFC"} if enc.nfc else None,
        # what no match covers is lost, as in tiktoken
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": enc._pat_str}, "behavior": "Removed",
             "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
             "use_regex": False}]},
        "post_processor": _post_processor(bos, enc.bos_id),
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False,
                    "use_regex": False},
        "model": _bpe_model(enc),
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": name[enc.end_id],
              "clean_up_tokenization_spaces": False}
    if bos:
        config["bos_token"] = bos
    if enc.chat_template:
        config["chat_template"] = enc.chat_template
    files = {"tokenizer.json": spec, "tokenizer_config.json": config,
             "generation_config.json": {"eos_token_id": enc.stop_ids}}
    return {name: json.dumps(content, ensure_ascii=False) for name, content in files.items()}


def _post_processor(bos, bos_id):
    """The part of tokenizer.json that puts the token `bos`, if there is one, before every text."""
    start, tokens = [], {}
    if bos:
        start = [{"SpecialToken": {"id": bos, "type_id": 0}}]
        tokens = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {"type": "TemplateProcessing", "single": [*start, first],
            "pair": [*start, first, second], "special_tokens": tokens}


def _bpe_model(enc):
    """The part of tokenizer.json that holds vocabulary and merges."""
    # special tokens stand in the vocabulary, too: `tokenizers` would number them otherwise
    vocab = {_written(token): i for token, i in enc._mergeable_ranks.items()} | enc._special_tokens
    merges = [[_written(a), _written(b)] for a, b in _halves(enc._mergeable_ranks).values()]
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True,      # as tiktoken, which looks whole pieces up first
            "vocab": vocab, "merges": merges}


def _written(token):
    """Bytes as tokenizer.json writes them."""
    return "".join(BYTE_CHARS[b] for b in token)


# --------------------------------------------------------------------------------------------------
# what can be read exactly, and what is refused


def _refuse(what):
    raise ValueError(f"tokenizer: {what}")


def _read_files(path):
    """name -> text of the tokenizer's files in a folder, or beside a tokenizer.json."""
    folder = path if path.is_dir() else path.parent
    files = {}
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            files[name] = (folder / name).read_text("utf-8")
    if path.suffix == ".json" and path.name != "tokenizer.json":
        # a file of another name: those beside it belong to another tokenizer
        files = {"tokenizer.json": path.read_text("utf-8")} if path.is_file() else {}
    return files


def _json(files, name):
    try:
        content = json.loads(files.get(name, "{}"))
    except ValueError as error:
        _refuse(f"{name} is not JSON ({error})")
    if not isinstance(content, dict):
        _refuse(f"{name} holds no JSON object")
    return content


def _check_model(model):
    known = {"type": ("BPE",), "dropout": (None, 0.0), "continuing_subword_prefix": (None, ""),
             "end_of_word_suffix": (None, ""), "byte_fallback": (None, False)}
    for key, fine in known.items():
        if model.get(key, fine[0]) not in fine:
            _refuse(f"{key} {model[key]!r} of the model in tokenizer.json; only byte-level BPE is "
                    "exact here")
    if not model.keys() >= {"vocab", "merges"}:
        _refuse("no vocab and merges in tokenizer.json")


def _ends(files, config, added, bos):
    """The tokens (end, stops, bos), by all files that name them. bos: the post_processor's."""
    named = _json(files, "special_tokens_map.json")

    def text_of(key):
        for token in (config.get(key), named.get(key)):
            if token:
                return token["content"] if isinstance(token, dict) else token
        return None

    name_of = {i: token for token, i in added.items()}
    ids = _json(files, "generation_config.json").get("eos_token_id")
    if not isinstance(ids, list):
        ids = [] if ids is None else [ids]
    stops = [name_of.get(i, i) for i in ids]
    end = text_of("eos_token")
    if end is None and stops:
        end = stops[0]
    if end is None and "tokenizer_config.json" not in files:
        end = next((token for token in USUAL_ENDS if token in added), None)
    if config.get("add_bos_token") is not None:         # has the last word, as in transformers
        bos = text_of("bos_token") if config["add_bos_token"] else None
    if end is None:
        _refuse('nothing says which token ends a text; set "eos_token" in tokenizer_config.json')
    begins = [bos] if bos else []
    for token in (end, *stops, *begins):
        if token not in added:
            _refuse(f"{token!r} begins or ends texts, but is not among the added tokens of "
                    "tokenizer.json")
    return end, stops, bos


def _pattern(pre):
    """The one split pattern of a pre_tokenizer; every match is a piece, every character in one."""
    *splits, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    kinds = [s["type"] for s in (*splits, last)]
    if last["type"] != "ByteLevel":
        _refuse(f"pre-tokenizer {' + '.join(kinds)}; only those that end in ByteLevel are known")
    if last.get("add_prefix_space", True):
        _refuse("ByteLevel with add_prefix_space: a text's first word is not the word that was "
                "written")
    if last.get("use_regex", True):
        if not splits:
            return GPT2
        if kinds == ["Digits", "ByteLevel"]:
            # digits part the text before the rest is split, so (?!\S) ends at them, too
            digits = r"\p{N}" if splits[0]["individual_digits"] else r"\p{N}+"
            return GPT2.replace(r" ?\p{N}+", digits).replace(r"(?!\S)", r"(?![^\s\p{N}])")
    elif kinds == ["Split", "ByteLevel"] and "Regex" in splits[0]["pattern"]:
        pattern = splits[0]["pattern"]["Regex"]
        how = (splits[0]["behavior"], splits[0].get("invert", False))
        if how in (("Isolated", False), ("Removed", True)):
            common = _COMMON.fullmatch(pattern.replace(CONTRACTIONS, "x"))
            if not common or regex.match(pattern, ""):
                _refuse(f"the split pattern {pattern!r}: `tokenizers` and tiktoken may read it "
                        "differently")
            # tiktoken drops what no match covers. "Isolated" makes it a piece of its own, so the
            # pattern needs a last resort. The known patterns cover everything.
            if how[0] == "Removed" or pattern in (GPT2, QWEN2, LLAMA3, O200K):
                return pattern
            return pattern + rf"|(?:(?!{pattern})[\s\S])+"
    _refuse(f"pre-tokenizer {' + '.join(kinds)} as it is set in tokenizer.json cannot be put into "
            "one split pattern")


def _begins_with(post):
    """The token that a post_processor puts before every text, or None."""
    steps = []
    if post is not None:
        steps = post["processors"] if post["type"] == "Sequence" else [post]
    order = []                          # names of tokens, and A for the text
    for step in steps:
        if step["type"] == "TemplateProcessing":
            for part in step["single"]:
                order.append(part.get("SpecialToken", {}).get("id", "A"))
        elif step["type"] != "ByteLevel":               # that one only trims offsets
            _refuse(f"post-processor {step['type']}; only TemplateProcessing with a token before "
                    "the text is known")
    if not order or order == ["A"]:
        return None
    if len(order) > 2 or order[-1] != "A":
        _refuse(f"a post-processor that makes {' '.join(order)} of a text A; only one token before "
                "it is known")
    return order[0]


def _added_tokens(tokens, vocab, nfc):
    """content -> id. Refuses tokens that match other text than their own, or get another id."""
    free, ids = len(vocab), {}
    for t in tokens:
        name = t["content"]
        odd = [flag for flag in ("lstrip", "rstrip", "single_word") if t.get(flag)]
        if nfc and t.get("normalized"):
            odd.append("normalized")
        if not name:
            odd.append("empty")
        if odd:
            _refuse(f"added token {name!r} is {' and '.join(odd)}; set that to false in "
                    "tokenizer.json if it need not be")
        ids[name] = vocab.get(name, free)               # `tokenizers` ignores the file's own id
        if ids[name] != t["id"]:
            _refuse(f"added token {name!r} has id {t['id']}, but `tokenizers` gives it {ids[name]};"
                    " list them by id, without gaps")
        free = max(free, ids[name] + 1)
    names = sorted(ids)                 # what begins with a name stands right behind it
    for first, second in zip(names, names[1:], strict=False):
        if second.startswith(first):
            _refuse(f"added token {second!r} begins with {first!r}: which one is meant is not "
                    "defined")
    # `tokenizers` looks for normalized ones last, when the others are taken out of the text
    late = {t["content"] for t in tokens if t.get("normalized")}
    for first in ids.keys() - late:
        for second in late:
            for i in range(1, len(second)):
                if first.startswith(second[i:]) or second.startswith(first, i):
                    _refuse(f"added token {second!r} (normalized) overlaps {first!r} (not): which "
                            "one is meant is not defined")
    return ids


def _ranks(model, added):
    """bytes -> id, for vocabularies on which BPE by ids gives what BPE by merges gives.

    tiktoken goes by ids, `tokenizers` by merges. On every text they agree if, for each token that
    the ids build, the last merge of its own BPE is among the merges, and if those merges stand in
    the order of the ids. For any two neighbours in a text came about as they do in the BPE of the
    two alone, so no other merge is ever met.
    """
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    vocab = model["vocab"]
    built = {a + b for a, b in merges}
    lost = {token for merge in merges for token in merge}.union(built) - vocab.keys()
    if lost:
        _refuse(f"the merges name {min(lost)!r}, which is not in the vocabulary")
    ranks = {}
    for token, i in vocab.items():
        if token not in added or token in built or token in CHAR_BYTES:
            ranks[token] = i
    foreign = set("".join(ranks)) - CHAR_BYTES.keys()
    if foreign:
        _refuse(f"{min(foreign)!r} in the vocabulary is not of the byte alphabet; only byte-level "
                "BPE is exact here")
    ids = [*ranks.values(), *(i for token, i in added.items() if token not in ranks)]
    if len(set(ids)) < len(ids):
        _refuse("two tokens of tokenizer.json have one id")
    lacking = CHAR_BYTES.keys() - ranks.keys()
    if lacking and model.get("unk_token"):
        _refuse(f"unk_token {model['unk_token']!r} for {len(lacking)} bytes that the vocabulary "
                "lacks")

    halves = _halves(ranks)
    order = {merge: i for i, merge in enumerate(merges)}
    last = -1
    for token, pair in halves.items():
        at = order.get(pair)
        if at is None:
            _refuse(f"by ids {token!r} is merged from {pair[0]!r} and {pair[1]!r}, but the merges "
                    "do not say so")
        if at < last:
            _refuse(f"the merge that makes {token!r} (id {ranks[token]}) comes before one of a "
                    "lower id: rank is not id")
        last = at
    if not model.get("ignore_merges"):
        for token in ranks:
            if len(token) > 1 and token not in halves:
                _refuse(f"no merges lead to {token!r} (id {ranks[token]}) of the vocabulary, but "
                        "tiktoken would use it")
    return {token.translate(_TO_BYTES).encode("latin-1"): i for token, i in ranks.items()}


def _halves(ranks):
    """token -> the two parts that BPE by ranks joins last; only tokens that BPE makes of its bytes.

    In the order of ranks. 150,000 tokens take a second: tokens are short, so a list beats a heap.
    """
    never = 1 << 32
    halves = {}
    for token in sorted(ranks, key=ranks.get):
        parts = [token[i:i + 1] for i in range(len(token))]
        pairs = [ranks.get(a + b, never) for a, b in zip(parts, parts[1:], strict=False)]
        while len(pairs) > 1:
            lowest = min(pairs)
            if lowest == never:
                break
            i = pairs.index(lowest)     # of equals the leftmost
            parts[i] += parts.pop(i + 1)
            del pairs[i]
            if i < len(pairs):
                pairs[i] = ranks.get(parts[i] + parts[i + 1], never)
            if i:
                pairs[i - 1] = ranks.get(parts[i - 1] + parts[i], never)
        if len(pairs) == 1:
            halves[token] = tuple(parts)
    return halves


def _from_ranks(path):
    """The Tokenizer of a rank file, one of RANK_FILES."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in RANK_FILES:
        names = ", ".join(known.name for known in RANK_FILES.values())
        _refuse(f"{path} (sha256 {digest}) is not one of the rank files whose split pattern and "
                f"special tokens are known: {names}; give a tokenizer.json, or add it to "
                "RANK_FILES in plumbing/tokenizer.py")
    known = RANK_FILES[digest]
    ranks = {}
    for line in content.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    return Tokenizer(known.name, pat_str=known.pattern, mergeable_ranks=ranks,
                     special_tokens=known.special_tokens, end=known.end, stops=known.stops,
                     bos=known.bos, nfc=known.nfc)
