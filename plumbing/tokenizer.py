"""Text -> token ids: the tiktoken encoding of the built-in tasks, and other people's tokenizers as tiktoken encodings.

A tokenizer.json of byte-level BPE (GPT-2, SmolLM2, Qwen2, Qwen3, Llama-3) or a rank file gives, text for text, the ids that
`tokenizers` gives, or is refused with the reason.

    python -c "from tokenizer import *; print(load_tokenizer('hf_folder').encode('2 + 2 = 4', allowed_special='all'))"
"""

import base64
import hashlib
import json
import re
import unicodedata
from pathlib import Path

import regex            # comes with tiktoken
import tiktoken

# ----------------------------------------------------------------------------------------------------------------------
# the built-in tasks' tokens

END = "<|end|>"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken Encoding that knows how its texts begin and end, and the files that it came from.

    end_id: what closes a completion, and carries loss. stop_ids: what ends generation (end_id among them). bos_id: what every
    text begins with, or None. chat_template: its Jinja source, or None. nfc: normalise text first (Qwen). files: name -> text,
    from which load_tokenizer() makes it again: a checkpoint carries them, an export writes them.
    Bytes that the vocabulary lacks (21 in SmolLM2's, most in the toy's) are dropped, as `tokenizers` does.
    """

    LONG = 500_000          # characters: where it would step back through a million spaces, tiktoken's regex engine panics

    def __init__(self, name, *, pat_str, mergeable_ranks, special_tokens, end, stops=(), bos=None, chat_template=None, nfc=False,
                 files=None):
        super().__init__(name, pat_str=pat_str, mergeable_ranks=mergeable_ranks, special_tokens=special_tokens)
        self.end_id, self.bos_id = special_tokens[end], None if bos is None else special_tokens[bos]
        self.stop_ids = sorted({self.end_id, *(special_tokens[t] for t in stops)})
        self.chat_template, self.nfc, self.files = chat_template, nfc, files or {}
        self._lacking = bytes(b for b in range(256) if bytes([b]) not in mergeable_ranks)

    def __reduce__(self):
        return load_tokenizer, (tokenizer_files(self),)

    def _plain(self, text):
        """Whether tiktoken can take the text as it is."""
        if len(text) >= self.LONG or self.nfc and not unicodedata.is_normalized("NFC", text):
            return False
        return not self._lacking or len(raw := text.encode("utf-8", "replace")) == len(raw.translate(None, self._lacking))

    def encode_ordinary(self, text):
        if self._plain(text):
            return super().encode_ordinary(text)
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")      # lone surrogates, as tiktoken does
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        # `tokenizers` splits the whole text, then drops bytes: their neighbours may merge inside a piece, not across pieces.
        pieces = (m.group().encode().translate(None, self._lacking) for m in regex.finditer(self._pat_str, text))
        return [i for piece in pieces if piece for i in self._core_bpe.encode_single_piece(piece)]

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special="all"):
        if self._plain(text):
            return super().encode(text, allowed_special=allowed_special, disallowed_special=disallowed_special)
        allowed = self.special_tokens_set if allowed_special == "all" else allowed_special
        forbidden = self.special_tokens_set - allowed if disallowed_special == "all" else disallowed_special
        if found := [t for t in forbidden if t in text]:
            _refuse(f"special token {found[0]!r} in a text; allowed_special and disallowed_special can let it in")
        # Special tokens come out of the raw text; what lies between them is normalised, each part alone.
        parts = regex.split("(" + "|".join(map(regex.escape, allowed)) + ")", text) if allowed else [text]
        ids = ([self._special_tokens[part]] if n % 2 else self.encode_ordinary(part) for n, part in enumerate(parts))
        return [i for part in ids for i in part]

    def decode(self, tokens, errors="replace"):
        try:
            return super().decode(tokens, errors=errors)
        except KeyError:        # a head padded to a round number (Qwen: 151,936) wrote an id that is no token: no text, as in `tokenizers`
            known = {*self._mergeable_ranks.values(), *self._special_tokens.values()}
            return super().decode([t for t in tokens if t in known], errors=errors)

    def encode_to_numpy(self, text, **special):
        import numpy as np
        return np.array(self.encode(text, **special), np.uint32)

    def encode_ordinary_batch(self, text, *, num_threads=8):
        if num_threads == 1:                                       # a pool costs more than encoding a paragraph does
            return list(map(self.encode_ordinary, text))
        return super().encode_ordinary_batch(text, num_threads=num_threads)


def toy_encoding():
    """Newline and printable ASCII, one token a character, and <|end|>.

    >>> enc = toy_encoding(); enc.decode(enc.encode_ordinary("7*8=56")), enc.n_vocab
    ('7*8=56', 97)
    """
    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    ranks = {c.encode(): i for i, c in enumerate(alphabet)}
    return Tokenizer("wmss-toy", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={END: len(ranks)}, end=END)


def fingerprint(enc):
    """Sixteen hex digits that name an encoding's content, saved with every checkpoint: equal ids then mean equal text."""
    h = hashlib.sha256(enc._pat_str.encode() + b"NFC" * getattr(enc, "nfc", False))
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted((k.encode(), v) for k, v in enc._special_tokens.items()):
        h.update(b"%d:%s=%d;" % (len(token), token, rank))
    return h.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------------------
# other people's tokenizers

# What a Hugging Face folder says about its tokenizer. generation_config.json is the model's, but names what ends a text.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json",
                   "chat_template.jinja")
USUAL_ENDS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>")      # where nothing says what ends a text

# Split patterns as tokenizer.json files spell them. tiktoken's spelling, with possessive quantifiers, gives the same pieces no
# faster; and to Oniguruma, which `tokenizers` uses, its `\p{N}{1,3}+` is another thing.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")                 # and cl100k
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTIONS + "?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTIONS + "?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# What a pattern may be made of, so that Oniguruma and Rust's regex read it alike. Not ^ and $ (of a line to one, of the text to
# the other), \w \h \b, (?m), nested or subtracted classes, {1,3}+, nor ignored case (to Oniguruma ß is ss).
_ESCAPE = r"\\(?:[rntsSdD]|[pP]\{\w+\}|[^\w\s])"
_CLASS = rf"\[\^?(?:{_ESCAPE}|(?!&&|--|~~)[^\\\[\]])+\]"
_COMMON = re.compile(rf"(?:{_ESCAPE}|{_CLASS}|[^\\\[\](){{}}^$*+?]|\((?:\?(?:[:=!]|<[=!])|(?!\?))|\)"
                     r"|[?*+][?+]?|\{\d+(?:,\d*)?\}(?![?+]))+")

# A rank file holds neither pattern nor special tokens. sha256 -> name, pattern, end, other stops, bos, NFC, special tokens by id
_NAMED = lambda first, names: {t if t[0] == "<" else f"<|{t}|>": first + i for i, t in enumerate(names.split())}
RANK_FILES = {
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7": (
        "cl100k_base", LLAMA3, "<|endoftext|>", (), None, False,
        _NAMED(100257, "endoftext fim_prefix fim_middle fim_suffix") | {"<|endofprompt|>": 100276}),
    "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d": (
        "o200k_base", O200K, "<|endoftext|>", (), None, False, {"<|endoftext|>": 199999, "<|endofprompt|>": 200018}),
    "b2b1b8dfb5cc5f024bafc373121c6aba3f66f9a5a0269e243470a1de16a33186": (      # Qwen3's; Qwen2 and 2.5 lack the last ones
        "qwen", QWEN2, "<|im_end|>", ("<|endoftext|>",), None, True, _NAMED(151643,
            "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start quad_end vision_start "
            "vision_end vision_pad image_pad video_pad <tool_call> </tool_call> fim_prefix fim_middle fim_suffix fim_pad "
            "repo_name file_sep <tool_response> </tool_response> <think> </think>")),
    "82e9d31979e92ab929cd544440f129d9ecd797b69e327f80f17e1c50d5551b55": (      # Llama 3.1's and later
        "llama3", LLAMA3, "<|end_of_text|>", ("<|eom_id|>", "<|eot_id|>"), "<|begin_of_text|>", False, _NAMED(128000,
            "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id "
            "reserved_special_token_2 start_header_id end_header_id eom_id eot_id python_tag "
            + " ".join(f"reserved_special_token_{i}" for i in range(3, 248)))),
}

# The alphabet in which tokenizer.json writes bytes (GPT-2's): printable Latin-1 stands for itself, the rest for U+0100 and on
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTE_CHARS = {b: chr(b) for b in _PRINTED} | {b: chr(256 + i) for i, b in enumerate(sorted({*range(256)} - {*_PRINTED}))}
CHAR_BYTES = {c: b for b, c in BYTE_CHARS.items()}
_TO_BYTES = str.maketrans(CHAR_BYTES)


def load_tokenizer(source):
    """The Tokenizer of a Hugging Face folder, a tokenizer.json, a rank file (*.tiktoken), or a checkpoint's dict name -> text.

    It gives the ids that `tokenizers` gives, text for text, or none: ValueError names what in the files it cannot do exactly.
    encode(text, allowed_special="all") is what `tokenizers` does with added tokens in a text; encode_ordinary reads them as text.
    """
    if isinstance(source, dict):
        files = {name: source[name] for name in TOKENIZER_FILES if name in source}
    else:
        path = Path(source)
        if path.is_file() and path.suffix != ".json":
            return _from_ranks(path)
        folder = path if path.is_dir() else path.parent
        files = {name: (folder / name).read_text("utf-8") for name in TOKENIZER_FILES if (folder / name).is_file()}
        if path.suffix == ".json" and path.name != "tokenizer.json":       # another name: what lies beside it is another's
            files = {"tokenizer.json": path.read_text("utf-8")} if path.is_file() else {}
    if "tokenizer.json" not in files:
        where = "the checkpoint" if isinstance(source, dict) else source
        _refuse(f"no tokenizer.json in {where}; transformers writes one: AutoTokenizer.from_pretrained(X).save_pretrained(X)")
    spec, config, named, generation = (_json(files, name) for name in TOKENIZER_FILES[:4])
    model = spec.get("model") or {}

    known = {"type": ("BPE",), "dropout": (None, 0.0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, ""),
             "byte_fallback": (None, False)}
    for key, fine in known.items():
        if model.get(key, fine[0]) not in fine:
            _refuse(f"{key} {model[key]!r} of the model in tokenizer.json; only byte-level BPE is exact here")
    if not model.keys() >= {"vocab", "merges"}:
        _refuse("no vocab and merges in tokenizer.json")
    normalizer = spec.get("normalizer") or {"type": "Sequence", "normalizers": []}
    kinds = [n["type"] for n in normalizer.get("normalizers", [normalizer])]
    if {*kinds} - {"NFC"}:
        _refuse(f"normalizer {' + '.join(kinds)}; only NFC is known")
    pattern, bos = _pattern(spec.get("pre_tokenizer") or {"type": "none"}), _begins_with(spec.get("post_processor"))
    added = _added_tokens(spec.get("added_tokens") or [], model["vocab"], bool(kinds))
    ranks = _ranks(model, added)

    name_of = {i: token for token, i in added.items()}
    stops = generation.get("eos_token_id")
    stops = [name_of.get(i, i) for i in (stops if isinstance(stops, list) else [stops] if stops is not None else [])]
    text_of = lambda key: next((t["content"] if isinstance(t, dict) else t for t in (config.get(key), named.get(key)) if t), None)
    end = text_of("eos_token") or next(iter(stops), None)
    if end is None and "tokenizer_config.json" not in files:
        end = next((t for t in USUAL_ENDS if t in added), None)
    if config.get("add_bos_token") is not None:                    # has the last word, as in transformers
        bos = text_of("bos_token") if config["add_bos_token"] else None
    if end is None:
        _refuse('nothing says which token ends a text; set "eos_token" in tokenizer_config.json')
    for token in (end, *stops, *([bos] if bos else [])):
        if token not in added:
            _refuse(f"{token!r} begins or ends texts, but is not among the added tokens of tokenizer.json")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    return Tokenizer("tokenizer.json", pat_str=pattern, mergeable_ranks=ranks, special_tokens=added, end=end, stops=stops, bos=bos,
                     chat_template=files.get("chat_template.jinja", template), nfc=bool(kinds), files=files)


def tokenizer_files(enc):
    """name -> text of the files from which transformers, tokenizers and load_tokenizer() make this Tokenizer."""
    if enc.files:
        return enc.files
    name = {i: token for token, i in enc._special_tokens.items()}
    written = lambda token: "".join(map(BYTE_CHARS.get, token))
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    # Special tokens stand in the vocabulary too: `tokenizers` would number them otherwise
    vocab = {written(token): i for token, i in enc._mergeable_ranks.items()} | enc._special_tokens
    bos = [] if enc.bos_id is None else [name[enc.bos_id]]
    start = [{"SpecialToken": {"id": token, "type_id": 0}} for token in bos]
    text = lambda which, kind: {"Sequence": {"id": which, "type_id": kind}}
    spec = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": token, **flags} for i, token in sorted(name.items())],
        "normalizer": {"type": "NFC"} if enc.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [   # what no match covers is lost, as in tiktoken
            {"type": "Split", "pattern": {"Regex": enc._pat_str}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}]},
        "post_processor": {"type": "TemplateProcessing", "single": [*start, text("A", 0)],
                           "pair": [*start, text("A", 0), text("B", 1)],
                           "special_tokens": {t: {"id": t, "ids": [enc.bos_id], "tokens": [t]} for t in bos}},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,      # tiktoken looks whole pieces up first
                  "vocab": vocab, "merges": [list(map(written, pair)) for pair in _halves(enc._mergeable_ranks).values()]},
    }
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": name[enc.end_id], "clean_up_tokenization_spaces": False}
    config |= {"bos_token": bos[0]} if bos else {}
    config |= {"chat_template": enc.chat_template} if enc.chat_template else {}
    files = {"tokenizer.json": spec, "tokenizer_config.json": config, "generation_config.json": {"eos_token_id": enc.stop_ids}}
    return {name: json.dumps(content, ensure_ascii=False) for name, content in files.items()}


def _refuse(what):
    raise ValueError(f"tokenizer: {what}")


def _json(files, name):
    try:
        content = json.loads(files.get(name, "{}"))
    except ValueError as error:
        _refuse(f"{name} is not JSON ({error})")
    return content if isinstance(content, dict) else _refuse(f"{name} holds no JSON object")


def _pattern(pre):
    """The one split pattern of a pre_tokenizer: every piece a match, every character in a piece."""
    *splits, last = pre["pretokenizers"] if pre["type"] == "Sequence" else [pre]
    kinds = [s["type"] for s in (*splits, last)]
    if last["type"] != "ByteLevel":
        _refuse(f"pre-tokenizer {' + '.join(kinds)}; only those that end in ByteLevel are known")
    if last.get("add_prefix_space", True):
        _refuse("ByteLevel with add_prefix_space: a text's first word is not the word that was written")
    if last.get("use_regex", True):
        if not splits:
            return GPT2
        if kinds == ["Digits", "ByteLevel"]:                       # digits part the text first, so (?!\S) ends at them too
            digits = r"\p{N}" + "+" * (not splits[0]["individual_digits"])
            return GPT2.replace(r" ?\p{N}+", digits).replace(r"(?!\S)", r"(?![^\s\p{N}])")
    elif kinds == ["Split", "ByteLevel"] and "Regex" in splits[0]["pattern"]:
        pattern, how = splits[0]["pattern"]["Regex"], (splits[0]["behavior"], splits[0].get("invert", False))
        if how in (("Isolated", False), ("Removed", True)):
            if not _COMMON.fullmatch(pattern.replace(CONTRACTIONS, "x")) or regex.match(pattern, ""):
                _refuse(f"the split pattern {pattern!r}: `tokenizers` and tiktoken may read it differently")
            # tiktoken drops what no match covers; isolated, it is a piece of its own. The known patterns cover all.
            rest = "" if how[1] or pattern in (GPT2, QWEN2, LLAMA3, O200K) else rf"|(?:(?!{pattern})[\s\S])+"
            return pattern + rest
    _refuse(f"pre-tokenizer {' + '.join(kinds)} as it is set in tokenizer.json cannot be put into one split pattern")


def _begins_with(post):
    """The token that a post_processor puts before every text, or None."""
    steps = [] if post is None else post["processors"] if post["type"] == "Sequence" else [post]
    before = []
    for step in steps:
        if step["type"] == "TemplateProcessing":
            before += [*(part.get("SpecialToken", {}).get("id", "A") for part in step["single"])]
        elif step["type"] != "ByteLevel":                          # that one only trims offsets
            _refuse(f"post-processor {step['type']}; only TemplateProcessing with a token before the text is known")
    if before[-1:] not in ([], ["A"]) or len(before) > 2:
        _refuse(f"a post-processor that makes {' '.join(before)} of a text A; only one token before it is known")
    return before[0] if len(before) == 2 else None


def _added_tokens(tokens, vocab, nfc):
    """content -> id. Refused is what would match another text than the content's letters, or get another id."""
    free, ids = len(vocab), {}
    for t in tokens:
        name, odd = t["content"], [flag for flag in ("lstrip", "rstrip", "single_word") if t.get(flag)]
        odd += ["normalized"] * bool(nfc and t.get("normalized")) + ["empty"] * (not t["content"])
        if odd:
            _refuse(f"added token {name!r} is {' and '.join(odd)}; set that to false in tokenizer.json if it need not be")
        ids[name] = vocab.get(name, free)                          # `tokenizers` counts on, whatever the file says
        if ids[name] != t["id"]:
            _refuse(f"added token {name!r} has id {t['id']}, but `tokenizers` gives it {ids[name]}; list them by id, without gaps")
        free = max(free, ids[name] + 1)
    names = sorted(ids)
    for first, second in zip(names, names[1:]):                    # sorted: what begins with a name stands right behind it
        if second.startswith(first):
            _refuse(f"added token {second!r} begins with {first!r}: which one is meant is not defined")
    late = {t["content"] for t in tokens if t.get("normalized")}   # `tokenizers` looks for these when the others are taken out
    for first, second in ((a, b) for a in {*ids} - late for b in late):
        if any(first.startswith(second[i:]) or second.startswith(first, i) for i in range(1, len(second))):
            _refuse(f"added token {second!r} (normalized) overlaps {first!r} (not): which one is meant is not defined")
    return ids


def _ranks(model, added):
    """bytes -> id, where BPE by ids (tiktoken) is BPE by merges (tokenizers), of every text.

    It is if, for each token that the ids build, the last merge of its own BPE is among the merges, and those merges stand in the
    order of the ids. For two neighbours in any text have come about as in the BPE of the two alone, so no other merge is ever met.
    """
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    vocab, built = model["vocab"], {a + b for a, b in merges}
    lost = next(iter({t for m in merges for t in m}.union(built) - vocab.keys()), None)
    if lost is not None:
        _refuse(f"the merges name {lost!r}, which is not in the vocabulary")
    ranks = {t: i for t, i in vocab.items() if t not in added or t in built or t in CHAR_BYTES}
    if foreign := set("".join(ranks)) - CHAR_BYTES.keys():
        _refuse(f"{min(foreign)!r} in the vocabulary is not of the byte alphabet; only byte-level BPE is exact here")
    ids = [*ranks.values(), *(i for t, i in added.items() if t not in ranks)]
    if len({*ids}) < len(ids):
        _refuse("two tokens of tokenizer.json have one id")
    lacking = CHAR_BYTES.keys() - ranks.keys()
    if lacking and model.get("unk_token"):
        _refuse(f"unk_token {model['unk_token']!r} for {len(lacking)} bytes that the vocabulary lacks")

    halves, order, last = _halves(ranks), {m: i for i, m in enumerate(merges)}, -1
    for token, pair in halves.items():
        at = order.get(pair)
        if at is None:
            _refuse(f"by ids {token!r} is merged from {pair[0]!r} and {pair[1]!r}, but the merges do not say so")
        if at < last:
            _refuse(f"the merge that makes {token!r} (id {ranks[token]}) comes before one of a lower id: rank is not id")
        last = at
    stray = next((t for t in ranks if len(t) > 1 and t not in halves), None)
    if stray is not None and not model.get("ignore_merges"):
        _refuse(f"no merges lead to {stray!r} (id {ranks[stray]}) of the vocabulary, but tiktoken would use it")
    return {t.translate(_TO_BYTES).encode("latin-1"): i for t, i in ranks.items()}


def _halves(ranks):
    """token -> the two parts that BPE by ranks joins last, in the order of ranks, for each token that BPE makes of its bytes.

    150,000 tokens take a second: short as they are, a list beats a heap.
    """
    never, halves = 1 << 32, {}
    for token in sorted(ranks, key=ranks.get):
        parts = [token[i:i + 1] for i in range(len(token))]
        pairs = [ranks.get(a + b, never) for a, b in zip(parts, parts[1:])]
        while len(pairs) > 1 and (lowest := min(pairs)) < never:
            i = pairs.index(lowest)                                # of equals the leftmost
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
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in RANK_FILES:
        _refuse(f"{path} (sha256 {digest}) is not one of the rank files whose split pattern and special tokens are known: "
                f"{', '.join(r[0] for r in RANK_FILES.values())}; give a tokenizer.json, or add it to RANK_FILES in data.py")
    name, pattern, end, stops, bos, nfc, special = RANK_FILES[digest]
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, content.splitlines())}
    return Tokenizer(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special, end=end, stops=stops, bos=bos, nfc=nfc)
