"""Text -> token ids: the encoding of the built-in tasks, and other people's tokenizers.

All are tiktoken encodings. A tokenizer.json of byte-level BPE (GPT-2, SmolLM2, Qwen2, Qwen3,
Llama-3) or a rank file gives the ids that the library `tokenizers` gives, text for text, or it is
refused with the reason.

    python -c "from plumbing.tokenizer import *; print(load_tokenizer('FOLDER').encode('2 + 2'))"
"""

import base64
import hashlib
import json
import unicodedata
from pathlib import Path

import regex  # comes with tiktoken
import tiktoken

from plumbing.files import parse_json, read_text

END = "<|end|>"         # of the built-in tasks' texts
PATIENCE = 10           # seconds that an unknown split pattern may take, and for 10,000 letters one
SETTINGS = "template_settings.json"     # ours: the date and the arguments of the chat template


def _check(fine, otherwise):
    if not fine:
        raise ValueError(f"tokenizer: {otherwise}")


class Tokenizer(tiktoken.Encoding):
    """A tiktoken Encoding that knows how its texts begin and end, and from which files it came.

    end_id: the token that closes a completion; it carries loss.
    stop_ids: the tokens that end generation, end_id among them.
    bos_id: the token that every text begins with, or None.
    chat_template: its Jinja source, or None.
    nfc: are texts normalised first, as Qwen's are?
    files: name -> text, from which load_tokenizer() makes it again, in checkpoints and exports.
    settings: what chat.with_template adds for the template: its date and its kwargs, or {}.
    Bytes that the vocabulary lacks (most in the toy's) are dropped, as `tokenizers` does.
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
        # a pattern of another's choice can take hours on some text; that engine has no time limit
        self._known = pat_str in SAFE
        self.settings = _json(self.files, SETTINGS)
        kinds = type(self.settings.get("date", "")), type(self.settings.get("kwargs", {}))
        _check(kinds == (str, dict), f"{SETTINGS} holds no date and kwargs")
        self._lacking = bytes(b for b in range(256) if bytes([b]) not in mergeable_ranks)

    def __reduce__(self):
        return load_tokenizer, (tokenizer_files(self),)

    def _plain(self, text):
        """Can tiktoken take the text as it is?"""
        if len(text) >= self.LONG or not self._known:
            return False
        if self.nfc and _nfc(text) != text:
            return False
        return self.spells(text)

    def spells(self, text):
        """Does the vocabulary have all bytes of the text? The ids would leave out the others."""
        raw = text.encode("utf-8", "surrogatepass")
        return len(raw) == len(raw.translate(None, self._lacking))

    def check(self, text, of=""):
        """ValueError on the first character of a text that the vocabulary cannot spell."""
        if not self.spells(text):
            c = next(c for c in text if not self.spells(c))
            raise ValueError(f"the model's vocabulary of {self.n_vocab:,} tokens cannot spell "
                             f"{c!r}{of}")

    def encode_ordinary(self, text):
        if self._plain(text):
            return super().encode_ordinary(text)
        # half surrogate pairs become U+FFFD, as in tiktoken
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if self.nfc:
            text = _nfc(text)
        # `tokenizers` splits the whole text first and drops bytes then. So the neighbours of a
        # dropped byte may merge inside of a piece, but not across pieces.
        ids = []
        try:
            for match in regex.finditer(self._pat_str, text, timeout=PATIENCE + len(text) / 10_000):
                piece = match.group().encode().translate(None, self._lacking)
                if piece:
                    ids += self._core_bpe.encode_single_piece(piece)
        except TimeoutError:
            _check(False, f"the split pattern {self._pat_str!r:.200} takes too long on "
                          f"{text!r:.60}; another pattern, or other text, is needed")
        return ids

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special="all"):
        if self._plain(text):
            return super().encode(text, allowed_special=allowed_special,
                                  disallowed_special=disallowed_special)
        known = self.special_tokens_set
        allowed = known if allowed_special == "all" else allowed_special
        forbidden = known - allowed if disallowed_special == "all" else disallowed_special
        for token in forbidden:
            _check(token not in text, f"special token {token!r} in a text; see allowed_special")
        # Special tokens come out of the raw text; each part between them is normalised alone.
        wanted = "|".join(map(regex.escape, allowed)) or "(?!)"         # which matches nothing
        ids = []
        for part in regex.split(f"({wanted})", text):
            ids += [self._special_tokens[part]] if part in allowed else self.encode_ordinary(part)
        return ids

    def decode(self, tokens, errors="replace"):
        try:
            return super().decode(tokens, errors=errors)
        except KeyError:
            # ids of no token, which a padded head (Qwen's) can write, have no text
            known = {*self._mergeable_ranks.values(), *self._special_tokens.values()}
            return super().decode([t for t in tokens if t in known], errors=errors)

    def encode_to_numpy(self, text, **special):
        import numpy as np
        return np.array(self.encode(text, **special), np.uint32)


# `tokenizers` normalises by Unicode 9. These spans hold letters that later versions let combine,
# and none that Unicode 9 does: each is a border there, what stands between is normalised alone.
LATER = regex.compile(
    "([\u05c8-\u05cf\u07f4-\u0815\u085c-\u08d3\u09e0-\u0a15\u0bd8-\u0c45\u0cd7-\u0d3d"
    "\u0eba-\u0ec7\u1715-\u1733\u1abe-\u1b04\u1df6-\u1dfa\ua807-\ua8c3\U0001037b-\U00010a0c"
    "\U00010ae7-\U00011045\U00011047-\U0001107e\U000112eb-\U0001133b\U00011375-\U00011441"
    "\U00011447-\U000114af\U0001172c-\U00011c3e\U00011c40-\U00016aef\U00016b37-\U0001bc9d"
    "\U0001bc9f-\U0001d156\U0001d245-\U0001dfff\U0001e02b-\U0001e8cf]+)")


def _nfc(text):
    """Text in NFC, as `tokenizers` makes it, whatever the version of Python's Unicode tables."""
    if text.isascii():
        return text
    parts = LATER.split(text)           # each second one is a span
    parts[::2] = [unicodedata.normalize("NFC", part) for part in parts[::2]]
    return "".join(parts)


def toy_encoding() -> Tokenizer:
    """Newline and printable ASCII, one token a character, and <|end|>.

    >>> enc = toy_encoding(); enc.decode(enc.encode_ordinary("7*8=56")), enc.n_vocab
    ('7*8=56', 97)
    """
    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    ranks = {c.encode(): i for i, c in enumerate(alphabet)}
    return Tokenizer("wmss-toy", pat_str=TOY, mergeable_ranks=ranks,
                     special_tokens={END: len(ranks)}, end=END)


def fingerprint(enc: tiktoken.Encoding) -> str:
    """Sixteen hex digits, in every checkpoint: where they are equal, ids mean equal text."""
    h = hashlib.sha256(enc._pat_str.encode())
    if getattr(enc, "nfc", False):
        h.update(b"NFC")
    special = {token.encode(): i for token, i in enc._special_tokens.items()}
    for token, i in sorted(enc._mergeable_ranks.items()) + sorted(special.items()):
        h.update(b"%d:%s=%d;" % (len(token), token, i))
    return h.hexdigest()[:16]


# ---- other people's tokenizers -----------------------------------------------------------------

# What a Hugging Face folder says about its tokenizer. generation_config.json belongs to the model,
# but names what ends a text.
GENERATION = "generation_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   GENERATION, "chat_template.jinja", SETTINGS)
# what its model may be
MODEL = {"type": ("BPE",), "dropout": (None, 0.0), "continuing_subword_prefix": (None, ""),
         "end_of_word_suffix": (None, ""), "byte_fallback": (None, False)}
# where no file says what ends a text
USUAL_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>")

# Split patterns as tokenizer.json files spell them. tiktoken spells the same with possessive
# quantifiers, which is no faster, and another thing to Oniguruma, the engine of `tokenizers`.
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
PATTERNS = {"GPT2": GPT2, "QWEN2": QWEN2, "LLAMA3": LLAMA3, "O200K": O200K}
TOY = r"[\s\S]"
# GPT2's, where digits part the text before the rest is split, so that (?!\S) ends at them, too
DIGITS = GPT2.replace(r"(?!\S)", r"(?![^\s\p{N}])")
DIGIT_PATTERNS = {True: DIGITS.replace(r" ?\p{N}+", r"\p{N}"),
                  False: DIGITS.replace(r" ?\p{N}+", r"\p{N}+")}
SAFE = {TOY, *PATTERNS.values(), *DIGIT_PATTERNS.values()}      # quick on any text

# What a pattern may be made of, so that Oniguruma and Rust's regex read it alike. Not among these
# are ^ and $ (of a line to one, of the text to the other), \w \h \b, (?m), nested or subtracted
# classes, {1,3}+, and ignored case (to Oniguruma ß is ss).
_ESCAPE = r"\\(?:[rntsSdD]|[pP]\{\w+\}|[^\w\s])"
_CLASS = rf"\[\^?(?:{_ESCAPE}|(?!&&|--|~~)[^\\\[\]])+\]"
_COMMON = regex.compile(
    rf"(?:{_ESCAPE}|{_CLASS}|[^\\\[\](){{}}^$*+?]|\((?:\?(?:[:=!]|<[=!])|(?!\?))|\)"
    r"|[?*+][?+]?|\{\d+(?:,\d*)?\}(?![?+]))+")

HERE = Path(__file__).parent
RANK_FILES = HERE / "rank_files.json"   # a file's sha256 -> its pattern, special tokens and more
EMPTY = HERE / "empty_tokenizer.json"   # into which tokenizer_files() writes an encoding

# The letters in which tokenizer.json writes bytes, GPT-2's: printable Latin-1 stands for itself,
# the other bytes for U+0100 and on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_NOT_PRINTED = [b for b in range(256) if b not in _PRINTED]
BYTE_CHARS = {b: chr(b) for b in _PRINTED} | {b: chr(256 + i) for i, b in enumerate(_NOT_PRINTED)}
CHAR_BYTES = {ord(c): b for b, c in BYTE_CHARS.items()}


def load_tokenizer(source: str | Path | dict) -> Tokenizer:
    """The Tokenizer of a Hugging Face folder, a tokenizer.json, a rank file (*.tiktoken) or a dict.

    The dict is what checkpoints carry, name of a file -> its text. ValueError names what in the
    files cannot be done exactly. encode(text, allowed_special="all") treats special tokens in a
    text as `tokenizers` does; encode_ordinary reads them as text.
    """
    if isinstance(source, dict):
        files = {name: source[name] for name in TOKENIZER_FILES if name in source}
    elif Path(source).is_file() and Path(source).suffix != ".json":
        return _from_ranks(Path(source))
    else:
        files = _read_files(Path(source))
    _check("tokenizer.json" in files, "no tokenizer.json in "
           f"{'the checkpoint' if isinstance(source, dict) else source}; transformers writes one: "
           "AutoTokenizer.from_pretrained(X).save_pretrained(X)")
    try:
        return _from_files(files)
    except (TypeError, AttributeError, LookupError, OverflowError, TimeoutError,
            regex.error) as e:
        _check(False, f"a value of another kind than expected in {', '.join(files)} "
                      f"({type(e).__name__}: {e!s:.200}); take them from the model's makers")


def _from_files(files):
    spec, config = _json(files, "tokenizer.json"), _json(files, "tokenizer_config.json")
    model = spec.get("model") or {}
    for key, known in MODEL.items():
        _check(model.get(key, known[0]) in known,
               f"{key} {model.get(key)!r} of the model; only byte-level BPE is exact here")
    _check(model.keys() >= {"vocab", "merges"}, "no vocab and merges in tokenizer.json")
    normalizers = [step["type"] for step in _steps(spec, "normalizer", "normalizers")]
    _check(not set(normalizers) - {"NFC"},
           f"normalizer {' + '.join(normalizers)}; only NFC is known")
    pattern = _pattern(_steps(spec, "pre_tokenizer", "pretokenizers"))
    bos = _begins_with(_steps(spec, "post_processor", "processors"))
    special = special_tokens(config, _json(files, "special_tokens_map.json"))
    _check(not config.get("split_special_tokens"), "split_special_tokens true is not supported")
    tokens = _listed(spec.get("added_tokens") or [], config, special, model["vocab"])
    added = _added_tokens(tokens, model["vocab"], bool(normalizers))
    ranks = _ranks(model, added)
    end, stops, bos = _ends(files, config, special, added, bos)
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {t["name"]: t["template"] for t in template}.get("default")
    template = files.get("chat_template.jinja", template)
    return Tokenizer("tokenizer.json", pat_str=pattern, mergeable_ranks=ranks,
                     special_tokens=added, end=end, stops=stops, bos=bos, chat_template=template,
                     nfc=bool(normalizers), files=files)


def tokenizer_files(enc: Tokenizer) -> dict[str, str]:
    """name -> text of files from which transformers, tokenizers and load_tokenizer() make `enc`."""
    if enc.files:
        return enc.files
    spec, names = json.loads(EMPTY.read_text("utf-8")), {}
    for token, i in sorted(enc._special_tokens.items(), key=lambda item: item[1]):
        names[i] = token
        spec["added_tokens"].append({"id": i, "content": token, "single_word": False,
                                     "lstrip": False, "rstrip": False, "normalized": False,
                                     "special": True})
    if enc.nfc:
        spec["normalizer"] = {"type": "NFC"}
    # "Removed" in EMPTY: what no match covers is lost, as in tiktoken
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = enc._pat_str
    ranks = {token.decode("latin-1").translate(BYTE_CHARS): i
             for token, i in enc._mergeable_ranks.items()}
    # special tokens stand in the vocabulary, too: `tokenizers` would number them otherwise
    spec["model"] |= {"vocab": ranks | enc._special_tokens, "merges": [*_halves(ranks).values()]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": names[enc.end_id],
              "clean_up_tokenization_spaces": False}
    if enc.bos_id is not None:
        bos = config["bos_token"] = names[enc.bos_id]
        post = spec["post_processor"]
        post["special_tokens"][bos] = {"id": bos, "ids": [enc.bos_id], "tokens": [bos]}
        for steps in (post["single"], post["pair"]):
            steps.insert(0, {"SpecialToken": {"id": bos, "type_id": 0}})
    if enc.chat_template:
        config["chat_template"] = enc.chat_template
    files = {"tokenizer.json": spec, "tokenizer_config.json": config,
             "generation_config.json": {"eos_token_id": enc.stop_ids}}
    return {name: json.dumps(content, ensure_ascii=False) for name, content in files.items()}


# ---- what can be read exactly, and what is refused ---------------------------------------------


def _read_files(path):
    """name -> text of the tokenizer's files in a folder, or beside a tokenizer.json."""
    if path.suffix == ".json" and path.name != "tokenizer.json":
        # a file of another name: those beside it belong to another tokenizer
        return {"tokenizer.json": read_text(path)} if path.is_file() else {}
    return folder_files(path if path.is_dir() else path.parent)


def folder_files(folder: str | Path) -> dict[str, str]:
    """name -> text of the tokenizer's files in a Hugging Face folder.

    What ends generation stands in generation_config.json. Where there is none, transformers makes
    one of config.json, and so does this.
    """
    there = [name for name in TOKENIZER_FILES if Path(folder, name).is_file()]
    files = {name: read_text(Path(folder, name)) for name in there}
    if GENERATION not in files and Path(folder, "config.json").is_file():
        ids = _json({"config.json": read_text(Path(folder, "config.json"))}, "config.json")
        if ids.get("eos_token_id") is not None:
            files[GENERATION] = json.dumps({"eos_token_id": ids["eos_token_id"]})
    return files


def _json(files, name):
    try:
        content = parse_json(files.get(name, "{}"))
    except ValueError as error:
        raise ValueError(f"tokenizer: {name} is not JSON ({error})") from None
    _check(isinstance(content, dict), f"{name} holds no JSON object")
    return content


def _steps(spec, part, members):
    """The steps of a part of tokenizer.json: a Sequence's members, or itself, or none."""
    step = spec.get(part) or {"type": "Sequence", members: []}
    return step[members] if step["type"] == "Sequence" else [step]


def special_tokens(config, named):
    """{"eos_token": "<|im_end|>", ...}: named beside the tokenizer, by the file that wins there."""
    if "added_tokens_decoder" in config:
        config, named = named, config   # as in transformers, which then reads no other file
    return {key: value for key, value in {**config, **named}.items()
            if value and key.endswith(("_token", "special_tokens"))}


def _listed(tokens, config, special, vocab):
    """The added tokens of tokenizer.json, and those that transformers adds from its other files."""
    found = {token["content"]: token for token in tokens}
    decoder = config.get("added_tokens_decoder") or {}
    for i, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        found[token["content"]] = {"normalized": not token.get("special"), **token, "id": int(i)}
    for value in special.values():      # texts, or tokens with their traits
        if isinstance(value, dict) and "content" not in value:          # {name: token}
            value = list(value.values())
        for token in value if isinstance(value, list) else [value]:
            token = token if isinstance(token, dict) else {"content": token}
            name = token.get("content")
            if name in vocab and name not in found:
                found[name] = {**token, "id": vocab[name], "normalized": False}
    return list(found.values())


def _ends(files, config, special, added, bos):
    """The tokens (end, stops, bos), by all files that name them. bos: the post_processor's."""
    def text_of(key):
        token = special.get(key)
        return token["content"] if isinstance(token, dict) else token

    name_of = {i: token for token, i in added.items()}
    ids = _json(files, GENERATION).get("eos_token_id")
    if not isinstance(ids, list):
        ids = [] if ids is None else [ids]
    for i in ids:
        _check(i in name_of, f"eos_token_id {i} in {GENERATION} (or config.json, if that is "
                             "missing) is no special token of this tokenizer; correct it there")
    stops = [name_of[i] for i in ids]
    usual = () if "tokenizer_config.json" in files else USUAL_ENDS
    ends = [text_of("eos_token"), *stops, *(token for token in usual if token in added)]
    end = next(filter(None, ends), None)
    _check(end, 'nothing says which token ends a text; set "eos_token" in tokenizer_config.json')
    for token in (end, bos or end):
        _check(token in added, f"{token!r} begins or ends texts, but is not among added_tokens; "
                               "correct tokenizer_config.json, or add it there")
    return end, stops, bos


def _pattern(steps):
    """The one split pattern of a pre_tokenizer; every match is a piece, every character in one."""
    kinds = " + ".join(step["type"] for step in steps) or "none"
    _check(kinds.endswith("ByteLevel"),
           f"pre-tokenizer {kinds}; only those that end in ByteLevel are known")
    first, last = steps[0], steps[-1]
    _check(not last.get("add_prefix_space", True),
           "ByteLevel with add_prefix_space, which changes the first word of a text")
    as_gpt2 = last.get("use_regex", True)
    if as_gpt2 and kinds == "ByteLevel":
        return GPT2
    if as_gpt2 and kinds == "Digits + ByteLevel":
        return DIGIT_PATTERNS[bool(first["individual_digits"])]
    how = first.get("behavior"), first.get("invert", False)
    _check(kinds == "Split + ByteLevel" and not as_gpt2 and "Regex" in first["pattern"]
           and how in (("Isolated", False), ("Removed", True)),
           f"pre-tokenizer {kinds} as it is set; it cannot be put into one split pattern")
    pattern = first["pattern"]["Regex"]
    common = _COMMON.fullmatch(pattern.replace(CONTRACTIONS, "x"), timeout=10)
    _check(common and not regex.match(pattern, "", timeout=10),
           f"split pattern {pattern!r}, which `tokenizers` and tiktoken may read differently")
    # tiktoken drops what no match covers. "Isolated" makes it a piece of its own, so the pattern
    # needs a last resort. The known patterns cover everything.
    if how[0] == "Removed" or pattern in PATTERNS.values():
        return pattern
    return pattern + rf"|(?:(?!{pattern})[\s\S])+"


def _begins_with(steps):
    """The token that a post_processor puts before every text, or None."""
    order = []                          # names of tokens, and A for the text
    for step in steps:
        _check(step["type"] in ("TemplateProcessing", "ByteLevel"),
               f"post-processor {step['type']}; only TemplateProcessing is known")
        if step["type"] == "TemplateProcessing":        # the other one only trims offsets
            order += [part.get("SpecialToken", {}).get("id", "A") for part in step["single"]]
    if order in ([], ["A"]):
        return None
    _check(order[1:] == ["A"], f"a post-processor that makes {' '.join(order)} of a text A; only "
                               "one token before it is known")
    return order[0]


def _added_tokens(tokens, vocab, nfc):
    """content -> id. Refuses tokens that match other text than their own, or get another id."""
    free, ids = len(vocab), {}
    for t in tokens:
        name = t["content"]
        traits = {**t, "normalized": nfc and t.get("normalized"), "empty": not name}
        odd = [trait for trait in ("lstrip", "rstrip", "single_word", "normalized", "empty")
               if traits.get(trait)]
        _check(not odd, f"added token {name!r} is {' and '.join(odd)}; set that to false in "
                        "tokenizer.json if it need not be")
        i = ids[name] = vocab.get(name, free)           # `tokenizers` ignores the file's own id
        _check(i == t["id"], f"added token {name!r} has id {t['id']}, but `tokenizers` gives it "
                             f"{i}; list them by id, without gaps")
        free = max(free, i + 1)
    names = sorted(ids)                 # what begins with a name stands right behind it
    overlaps = [pair for pair in zip(names, names[1:], strict=False) if pair[1].startswith(pair[0])]
    # `tokenizers` looks for normalized ones last, when the others are taken out of the text
    late = {t["content"] for t in tokens if t.get("normalized")}
    _check(len(ids) * sum(map(len, late)) < 10**8, "too many added tokens that are normalized")
    for first in ids.keys() - late:
        for second in late:
            for i in range(1, len(second)):
                if first.startswith(second[i:]) or second.startswith(first, i):
                    overlaps.append((first, second))
    for first, second in overlaps:
        _check(False, f"added token {second!r} overlaps {first!r}: which is meant is not defined")
    return ids


def _ranks(model, added):
    """bytes -> id, for vocabularies on which BPE by ids gives what BPE by merges gives.

    tiktoken goes by ids, `tokenizers` by merges. On every text they agree if, for each token that
    the ids build, the last merge of its own BPE is among the merges, and if those merges stand in
    the order of the ids. For any two neighbours in a text came about as they do in the BPE of the
    two alone, so no other merge is ever met.
    """
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    vocab, letters = model["vocab"], set(BYTE_CHARS.values())
    built = {a + b for a, b in merges}
    lost = built.union(*merges) - vocab.keys()
    _check(not lost, f"the merges name {min(lost, default='')!r}, which is not in the vocabulary")
    apart = added.keys() - built - letters
    ranks = {token: i for token, i in vocab.items() if token not in apart}
    foreign = set("".join(ranks)) - letters
    _check(not foreign, f"{min(foreign, default='')!r} in the vocabulary is no letter for a byte")
    ids = [*ranks.values(), *(i for token, i in added.items() if token not in ranks)]
    _check(len(set(ids)) == len(ids), "two tokens of tokenizer.json have one id")
    _check(not model.get("unk_token") or ranks.keys() >= letters,
           f"unk_token {model.get('unk_token')!r} for bytes that the vocabulary lacks")
    _check(sum(len(token) ** 2 for token in ranks) < 10**9,         # 10**7 in the largest known
           "tokens of tokenizer.json so long that their merges would take hours to check")
    halves = _halves(ranks)
    order = {merge: i for i, merge in enumerate(merges)}
    last = 0
    for token, pair in halves.items():
        at = order.get(pair, -1)
        if at < last:
            _check(False, f"by ids {token!r} is merged from {pair[0]!r} and {pair[1]!r}, but the "
                          "merges do not say so, or say it too early: rank is not id")
        last = at
    unmade = {token for token in ranks if len(token) > 1 and token not in halves}
    _check(not unmade or model.get("ignore_merges"), f"no merges lead to "
           f"{min(unmade, default='')!r} of the vocabulary, but tiktoken would use it")
    return {token.translate(CHAR_BYTES).encode("latin-1"): i for token, i in ranks.items()}


def _halves(ranks):
    """token -> the two parts that BPE joins last, by rank; only tokens that BPE makes of bytes."""
    halves, never = {}, 1 << 32
    for token in sorted(ranks, key=ranks.get):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, never) for a, b in zip(parts, parts[1:], strict=False)]
            lowest = min(pairs)
            if lowest == never:
                break
            i = pairs.index(lowest)     # of equals the leftmost
            parts[i] += parts.pop(i + 1)
        if len(parts) == 2:
            halves[token] = tuple(parts)
    return halves


def _from_ranks(path):
    """The Tokenizer of a rank file that stands in RANK_FILES."""
    content = path.read_bytes()
    digest, known = hashlib.sha256(content).hexdigest(), json.loads(RANK_FILES.read_text("utf-8"))
    names = ", ".join(facts["name"] for facts in known.values())
    _check(digest in known, f"{path} (sha256 {digest}) is none of the rank files whose pattern and "
                            f"special tokens are known: {names}; give a tokenizer.json, or add it "
                            f"to {RANK_FILES}")
    ranks = {}
    for line in content.splitlines():
        token, rank = line.split()
        ranks[base64.b64decode(token)] = int(rank)
    facts = known[digest]
    pattern = PATTERNS[facts.pop("pattern")]
    return Tokenizer(pat_str=pattern, mergeable_ranks=ranks, **facts)
