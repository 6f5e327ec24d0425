"""Tokenizers from files: the oracle is `tokenizers` itself, on tokenizers of every kind that are trained here, in seconds, with each
family's own normalizer and pre-tokenizer. Where it is not installed, golden ids remain.

WMSS_TOKENIZERS=FOLDER:FILE.tiktoken:... adds real ones, on all of GSM8K and MBPP (../shared/data) and for speed.
"""

import functools
import itertools
import json
import os
import pickle
import random
import statistics
import time
import unicodedata
from pathlib import Path

import pytest
import tiktoken

import tokenizer
from tokenizer import LLAMA3, O200K, QWEN2, fingerprint, load_tokenizer, tokenizer_files, toy_encoding

HERE = Path(__file__).parent
GOLDEN = (HERE / "data" / "tokenizer.json").read_text("utf-8")
SHARED = HERE.parent.parent / "shared" / "data"
REAL = [p for p in os.environ.get("WMSS_TOKENIZERS", "").split(os.pathsep) if p]

HOSTILE = [
    "", " ", "\n", "\0", "a\0b\0\0c", "'", "''", " '", "\ufeffBOM", "\u2028line\u2029paragraph\x85next\x0bvt\x0cff",
    "".join(map(chr, range(32))), "".join(map(chr, range(127, 161))), "lone \x04 control!\x04! \x06\x13\x14\x16\x1d(\x1d)a\x1db 1\x041",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪🇫🇷 3️⃣ ❤️ ☺︎ \U0001f9d1\u200d\U0001f680", "x\u200by\u200cz\u200d\u2060 \u180e\u00ad\u00a0\u00a0 \u3000\u2003 end",
    "one\r\ntwo\r\n\r\nthree\rfour\n\r five \r\n  six  \r\n", "def f(x):\r\n\treturn x ** 2  # comment\r\n\r\n\r\nprint(f(3))\r\n", "a\t \tb \t\n \t c",
    "e\u0301 \u00e9 E\u0301\u0323 a\u0302\u0301 a\u0301\u0302 \u1ea5 q\u0323\u0307 q\u0307\u0323 \u0344 \u0958 \u0301alone \u0338\u0338",
    "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f\u0334\u0319\u0324a\u034d\u0355l\u034e\u0317g\u0329\u0347\u0301o", "o\u0308ffnen Å\u212b\u2126\u212a\u1fef\u037e \u2000\u2001 ≮ <\u0338",
    "汉字かなカナ漢字、。「」 \uf900\uf90a\u2f800 한국어 \u1112\u1161\u11ab\u1100\u1161 ㄱㅏ 한\u11a8 가\u11a7", "בְּרֵאשִׁית مرحبا بِسْمِ ٱللَّٰهِ ‮RTL‬ ١٢٣٤ ۱۲۳ १२३ ไทย ກຂ தமிழ்",
    "½ ² ³¹ Ⅷ ⅷ ① ㊿ 〇 𝟘𝟙 1,234.567e-89 0x1F 007 1 22 333 4444 55555 a1b22c333 12:34 3.14.15", "7" * 100, " " * 100 + "x", " " * 99, "\n" * 50 + "x", "  \n  \n\n  x  \n",
    "a" * 300, "!" * 77 + "?!" * 40, "=-" * 50, "_" * 9 + "snake_case__CamelCaseHTTPServer_ID", "x  1  y   22   z    !    ", "tab\t1\t\t2\n 3\r\n  4",
    "I'm I'M you're YOU'RE we'Ve they'LL he'd it's IT'S 'S 'ſ x'ſ 'K o'\u212a 'ſt 'Tis 'reve rock'n'roll ''s '' 'll'll d'd's ŉ ǅ ﬁ ß ẞ İi ı Σςσ",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈𐌰 𠜎𠜱 \U00010ffff \U00040000\U0008abcd!\U000f0000 \ue000 \uffff\ufffe \ufdd0 \ufffd \U000e0041", "√(x²+y²)≤∑∞ ∂ƒ/∂x → ⇒ ≠ € £ © ™ «» “q” ‘q’ – — … ¿¡",
    "<|im_end|> <|im_end| |im_end|> <|IM_END|> < |im_end|> <|im_end|><|im_end|>\u0338 x<|im_end|>\n\n<|im_start|>  user", "  <|im_end|>  1 \n <|endoftext|>'s<|im_start|>'s e\u0301<|im_end|>\u0301",
    "<think>\n\nhm \u212a</think>\n\n<think\u0338> <|\u212a|> </think >", "```python\nfor i in range(10):\n    print(f'{i:>3}')\n```", "\\boxed{\\frac{3}{4}} $x_{i}^{2}$ #### 72 <<48/2=24>>24",
]
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FLAGS = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)


def texts(n=150, seed=0):
    """The page, and n mixtures of its fragments: seams that nobody thought of."""
    rng, bits = random.Random(seed), [t[i:i + k] for t in HOSTILE for k in (1, 2, 3, 7) for i in range(0, min(len(t), 200), k)]
    return HOSTILE + ["".join(rng.choices(bits + SPECIALS * 20 + ["<think>"] * 20, k=rng.randint(2, 40))) for _ in range(n)]


def corpus():
    words = " ".join(Path(p).read_text("utf-8") for p in (HERE.parent / "data.py", HERE.parent / "README.md", __file__))
    return [words] + [t.replace("\x04", "").replace("\U0008abcd", "") for t in HOSTILE]


def train(kind):
    """tokenizer.json of one kind, about 1,200 tokens, as text."""
    tk = pytest.importorskip("tokenizers", reason="the oracle")
    pre, split = tk.pre_tokenizers, lambda p: tk.pre_tokenizers.Split(tk.Regex(p), "isolated")
    level = lambda use_regex: pre.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tok = tk.Tokenizer(tk.models.BPE())
    tok.pre_tokenizer = {"gpt2": level(True), "smollm2": pre.Sequence([pre.Digits(individual_digits=True), level(True)]),
                         "digit-runs": pre.Sequence([pre.Digits(individual_digits=False), level(True)]),
                         "qwen": pre.Sequence([split(QWEN2), level(False)]), "llama3": pre.Sequence([split(LLAMA3), level(False)]),
                         "o200k": pre.Sequence([split(O200K), level(False)]),
                         "gaps": pre.Sequence([split(r"\p{Lu}?\p{Ll}+|\d{2,3}|(?<=\.) [^\s\w]".replace(r"\w", r"\p{L}")), level(False)]),
                         "removed": pre.Sequence([pre.Split(tk.Regex(r"[\p{L}\p{M}]+|\p{N}|\s+"), "removed", invert=True), level(False)])}[kind]
    tok.decoder = tk.decoders.ByteLevel()
    if kind == "qwen":
        tok.normalizer = tk.normalizers.NFC()
    inside = SPECIALS if kind == "smollm2" else []                    # SmolLM2: at the front of a vocabulary that lacks bytes
    alphabet = [] if kind in ("smollm2", "gaps") else pre.ByteLevel.alphabet()
    tok.train_from_iterator(corpus(), tk.trainers.BpeTrainer(vocab_size=1200, special_tokens=inside, initial_alphabet=alphabet, show_progress=False))
    tok.add_special_tokens(SPECIALS)
    tok.add_tokens([tk.AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>", "<|K|>")])
    spec = json.loads(tok.to_str())
    if kind == "llama3":                                             # every way to part a token is a merge, and one token has none
        spec["model"]["ignore_merges"], vocab = True, spec["model"]["vocab"]
        tokens = sorted((t for t in vocab if len(t) > 1 and t not in SPECIALS), key=vocab.get)
        spec["model"]["merges"] = [[t[:i], t[i:]] for t in tokens for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
        vocab["Ġunreachable!Ġword"], vocab["xqzj"] = len(vocab), len(vocab) + 1
        for t in spec["added_tokens"]:
            t["id"] += 2
        tok.post_processor = tk.processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", spec["added_tokens"][1]["id"])])
        spec["post_processor"] = json.loads(tok.to_str())["post_processor"]
    if kind == "gpt2":                                               # the older format
        spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]
    return json.dumps(spec, ensure_ascii=False)


KINDS = ("gpt2", "smollm2", "digit-runs", "qwen", "llama3", "o200k", "gaps", "removed")


@pytest.fixture(scope="module")
def made():
    cache = {}
    return lambda kind: cache.setdefault(kind, train(kind)) if kind not in cache else cache[kind]


def oracles(text):
    """(tokenizers' reading of the file, the same without its added tokens)"""
    from tokenizers import Tokenizer
    return Tokenizer.from_str(text), Tokenizer.from_str(json.dumps(json.loads(text) | {"added_tokens": []}))


def mismatches(enc, text, cases):
    whole, ordinary = oracles(text)
    ids = lambda tok, t: tok.encode(t, add_special_tokens=False).ids
    return [t for t in cases if enc.encode(t, allowed_special="all") != ids(whole, t) or enc.encode_ordinary(t) != ids(ordinary, t)]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_tokenizers_on_a_hostile_page(made, kind):
    """Bug: a split pattern, a normalisation, a dropped byte or an added token that differs from the original in one text of a thousand."""
    enc = load_tokenizer({"tokenizer.json": made(kind)})
    assert not mismatches(enc, made(kind), texts())
    assert enc.n_vocab == oracles(made(kind))[0].get_vocab_size() and enc.nfc == (kind == "qwen")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_encoded_decodes_to_itself(made, kind):
    """Bug: bytes lost or doubled between ids and text where the vocabulary has them all."""
    enc = load_tokenizer({"tokenizer.json": made(kind)})
    for t in texts(50, seed=1):
        if enc._lacking or kind == "removed":
            t = "".join(c for c in t if not set(c.encode()) & set(enc._lacking) and (kind != "removed" or c.isalpha()))
        expected = unicodedata.normalize("NFC", t) if enc.nfc else t
        assert enc.decode(enc.encode_ordinary(t)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data")
def test_ids_are_those_of_tokenizers_on_real_questions_and_programs(made, kind):
    """Bug: as above, in the texts that models are trained on. (Every eighth text for each kind; all of them for WMSS_TOKENIZERS.)"""
    enc = load_tokenizer({"tokenizer.json": made(kind)})
    cases = real_texts()
    assert len(cases) > 20_000 and not mismatches(enc, made(kind), cases[KINDS.index(kind)::8])


@functools.cache
def real_texts():
    rows = [json.loads(line) for f in ("gsm8k/train", "gsm8k/test", "mbpp/mbpp") for line in (SHARED / f"{f}.jsonl").open(encoding="utf-8")]
    return [t for r in rows for v in r.values() for t in (v if isinstance(v, list) else [v]) if isinstance(t, str)]


def test_every_way_to_encode_normalises_and_drops_alike(made):
    """Bug: NFC or missing bytes handled by encode() but not by the batch or numpy forms."""
    for kind in ("qwen", "smollm2"):
        enc = load_tokenizer({"tokenizer.json": made(kind)})
        t = "a\u0301 e\u0301!\x04!\x04 x"
        ids = enc.encode_ordinary(t)
        assert ids == enc.encode_ordinary("á é!! x" if kind == "smollm2" else "á é!\x04!\x04 x") or kind == "smollm2"
        assert enc.encode(t) == ids and enc.encode_to_numpy(t).tolist() == ids and enc.encode_batch([t, t]) == [ids, ids]
        assert enc.encode_ordinary_batch([t] * 3, num_threads=1) == enc.encode_ordinary_batch([t] * 3) == [ids] * 3
        assert enc.encode_ordinary("lone \ud800 surrogate") == enc.encode_ordinary("lone \ufffd surrogate")
        for bad in ("<|im_end|>", "e\u0301\x04<|im_end|>"):
            with pytest.raises(ValueError, match="im_end"):
                enc.encode(bad)
            assert enc.encode(bad, disallowed_special=()) == enc.encode_ordinary(bad)


def test_a_million_spaces_do_not_bring_the_process_down(made):
    """Bug: the regex engine's stack overflows in tiktoken, a panic that `except Exception` does not catch."""
    enc, tok = load_tokenizer({"tokenizer.json": made("qwen")}), oracles(made("qwen"))[0]
    for t in ("a" + " " * 1_050_000 + "b", "\t " * 300_000 + "e\u0301"):
        assert enc.encode_ordinary(t) == tok.encode(t).ids


def test_a_pickled_tokenizer_is_the_same():
    """Bug: worker processes (datasets with num_proc) that cannot be handed a tokenizer."""
    for enc in (toy_encoding(), load_tokenizer({"tokenizer.json": GOLDEN})):
        again = pickle.loads(pickle.dumps(enc))
        assert fingerprint(again) == fingerprint(enc) and (again.end_id, again.stop_ids, again.nfc) == (enc.end_id, enc.stop_ids, enc.nfc)


# ---- golden: what `tokenizers` 0.23 gave for tests/data/tokenizer.json


def test_golden_ids():
    """Bug: any, where the oracle is not installed."""
    enc = load_tokenizer({"tokenizer.json": GOLDEN})
    assert enc.decode([enc.end_id]) == "<|im_end|>" and enc.nfc and enc._lacking
    for t, ids in GOLDEN_IDS:
        assert enc.encode(t, allowed_special="all") == ids, t
    tk = pytest.importorskip("tokenizers", reason="the golden ids hold, the oracle is not installed")
    for t, ids in GOLDEN_IDS:
        assert tk.Tokenizer.from_str(GOLDEN).encode(t).ids == ids, t


GOLDEN_IDS = [
    ("Natalia's 48 clips: it'\u017f 72\r\n\r\n  in  the land.", [173, 129, 190, 127, 108, 19, 23, 138, 200, 82, 25, 141, 83, 6, 108, 22, 17, 107, 106, 107, 106, 108, 125, 108, 122, 108, 199, 13]),
    ('cafe\u0301 re\u0301sume\u0301 \u212a \u1112\u1161\u11ab', [66, 183, 119, 142, 119, 82, 84, 202, 108, 42, 108]),
    ('<|im_start|>the<think>\n\n 1<|im_end|>\u0338<|im_end|', [211, 145, 213, 106, 106, 108, 16, 212, 102, 99, 27, 91, 72, 76, 62, 68, 77, 67, 91]),
    ('!\x04! a\x04b \x00\x04', [0, 0, 108, 64, 65, 108]),
    ('\u6f22\u5b57 \U0001f600\U00040000   1   x', [104, 100, 94, 103, 114, 110, 108, 105, 112, 111, 109, 109, 109, 109, 115, 108, 16, 115, 108, 87]),
]


# ---- refusals


def changed(**changes):
    """GOLDEN with parts replaced: model_x="..." sets model.x; a function is applied."""
    spec = json.loads(GOLDEN)
    for key, value in changes.items():
        at, key = (spec["model"], key[6:]) if key.startswith("model_") else (spec, key)
        at[key] = value(at[key]) if callable(value) else value
    return {"tokenizer.json": json.dumps(spec)}


def level(**kw):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False} | kw


def split(pattern, how="Isolated", invert=False, last=level()):
    return {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": pattern, "behavior": how, "invert": invert}, last]}


def token(content, id, **kw):
    return lambda tokens: [*tokens, FLAGS | {"content": content, "id": id} | kw]


N = len(json.loads(GOLDEN)["model"]["vocab"]) + 4                   # the first free id: four tokens are added
REFUSED = {
    "WordPiece": dict(model_type="WordPiece"), "Unigram": dict(model_type="Unigram"), "dropout": dict(model_dropout=0.1),
    "byte_fallback": dict(model_byte_fallback=True), "continuing_subword_prefix": dict(model_continuing_subword_prefix="##"),
    "end_of_word_suffix": dict(model_end_of_word_suffix="</w>"), "unk_token '<unk>'": dict(model_unk_token="<unk>"),
    "normalizer NFKC": dict(normalizer={"type": "NFKC"}),
    r"normalizer NFC \+ Lowercase": dict(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
    "pre-tokenizer Metaspace": dict(pre_tokenizer={"type": "Metaspace", "replacement": "▁"}), "pre-tokenizer none": dict(pre_tokenizer=None),
    "add_prefix_space": dict(pre_tokenizer=level(add_prefix_space=True)), "pre-tokenizer ByteLevel as it is set": dict(pre_tokenizer=level()),
    r"Split \+ ByteLevel as": dict(pre_tokenizer=split({"String": " "})), r"Split \+ ByteLevel  *as": dict(pre_tokenizer=split({"Regex": QWEN2}, "MergedWithNext")),
    r"Split \+ ByteLevel as it": dict(pre_tokenizer=split({"Regex": QWEN2}, last=level(use_regex=True))),
    r"Split \+ ByteLevel as it is": dict(pre_tokenizer=split({"Regex": QWEN2}, invert=True)),
    r"Split \+ Split \+ ByteLevel": dict(pre_tokenizer=lambda p: p | {"pretokenizers": p["pretokenizers"][:1] + p["pretokenizers"]}),
    **{f"split pattern {i}": dict(pre_tokenizer=split({"Regex": p})) for i, p in enumerate((
        r"\p{N}{1,3}+|\s+", r"^\s+|\S+$", r"\w+|\W+", r"(?i:ss)|\s+", r"(?m:.)", r"[a-z&&[^b]]+", r"\h+", r"\p{L}*", r"(?>a)(?<n>b)"))},
    "post-processor BertProcessing": dict(post_processor={"type": "BertProcessing"}),
    "makes A <s> of a text": dict(post_processor={"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<s>"}}]}),
    "'<s>' is lstrip and rstrip": dict(added_tokens=token("<s>", N, lstrip=True, rstrip=True)), "single_word": dict(added_tokens=token("<s>", N, single_word=True)),
    "'<s>' is normalized": dict(added_tokens=token("<s>", N, normalized=True)), "'' is empty": dict(added_tokens=token("", N)),
    f"'<s>' has id {N + 1}, but `tokenizers` gives it {N}": dict(added_tokens=token("<s>", N + 1)),
    "begins with '<think>'": dict(added_tokens=token("<think>>", N)),
    "overlaps '<think>'": dict(normalizer=None, added_tokens=token("x<th", N, normalized=True)),
    "'中' in the vocabulary is not of the byte alphabet": dict(model_vocab=lambda v: v | {"中": 9999}, added_tokens=[]),
    "have one id": dict(model_vocab=lambda v: v | {"zz": 3}, added_tokens=[]),
    "no merges lead to 'zqzq'": dict(model_vocab=lambda v: v | {"zqzq": 999}, added_tokens=[]),
    "'zz' is merged from 'z' and 'z', but": dict(model_vocab=lambda v: v | {"zz": 999}, added_tokens=[]),
    "the merges name 'qq'": dict(model_merges=lambda m: [*m, ["q", "q"]]), "rank is not id": dict(model_merges=lambda m: [m[1], m[0], *m[2:]]),
    "the merges do not say so": dict(model_merges=lambda m: m[1:]),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_exact_is_refused_by_name(why):
    """Bug: ids that differ from the model's own without a word."""
    files = changed(**REFUSED[why])
    with pytest.raises(ValueError, match="tokenizer: .*" + ("split pattern" if why.startswith("split pattern") else why)):
        load_tokenizer(files)


def test_no_end_is_an_error_that_says_how_to_set_it_and_other_files_name_it(tmp_path):
    """Bug: a completion without end token; an eos of one file that another contradicts."""
    none = changed(added_tokens=lambda tokens: [t for t in tokens if t["content"] == "<think>"] and [], model_vocab=lambda v: v)
    with pytest.raises(ValueError, match='set "eos_token" in tokenizer_config.json'):
        load_tokenizer(none)
    name = lambda enc, ids: [enc.decode([i]) for i in ids]
    base = {"tokenizer.json": GOLDEN}
    for files, end, stops in (({}, "<|im_end|>", ["<|im_end|>"]), ({"tokenizer_config.json": {"eos_token": "<|endoftext|>"}}, "<|endoftext|>", ["<|endoftext|>"]),
                              ({"tokenizer_config.json": {"eos_token": {"content": "<think>"}}}, "<think>", ["<think>"]),
                              ({"tokenizer_config.json": {}, "special_tokens_map.json": {"eos_token": "<|endoftext|>"}}, "<|endoftext|>", ["<|endoftext|>"]),
                              ({"generation_config.json": {"eos_token_id": N - 2}}, "<|im_end|>", ["<|im_end|>"]),
                              ({"tokenizer_config.json": {"eos_token": "<|im_end|>"}, "generation_config.json": {"eos_token_id": [N - 4, N - 2]}}, "<|im_end|>", ["<|endoftext|>", "<|im_end|>"])):
        enc = load_tokenizer(base | {k: json.dumps(v) for k, v in files.items()})
        assert name(enc, [enc.end_id]) == [end] and name(enc, enc.stop_ids) == stops and enc.bos_id is None
    for files, message in (({"tokenizer_config.json": "{}"}, "set \"eos_token\""), ({"tokenizer_config.json": '{"eos_token": "</s>"}'}, "'</s>' begins or ends texts"),
                           ({"generation_config.json": '{"eos_token_id": 7}'}, "7 begins or ends texts"), ({"tokenizer_config.json": "{,"}, "tokenizer_config.json is not JSON")):
        with pytest.raises(ValueError, match=message):
            load_tokenizer(base | files)
    for source in (tmp_path, tmp_path / "tokenizer.json", tmp_path / "x.tiktoken", {}):
        with pytest.raises(ValueError, match="no tokenizer.json in"):
            load_tokenizer(source)
    (tmp_path / "x.tiktoken").write_text("YQ== 0\n")
    with pytest.raises(ValueError, match="RANK_FILES"):
        load_tokenizer(tmp_path / "x.tiktoken")


def test_bos_is_what_the_original_puts_before_a_text(made):
    """Bug: a bos that a file merely names (SmolLM2) put before texts, or Llama-3's left away."""
    files, name = {"tokenizer.json": made("llama3")}, lambda enc: enc.bos_id and enc.decode([enc.bos_id])
    tok = oracles(made("llama3"))[0]
    assert tok.encode("x").ids == [load_tokenizer(files).bos_id, *load_tokenizer(files).encode_ordinary("x")]
    config = lambda **kw: {"tokenizer_config.json": json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|endoftext|>"} | kw)}
    assert name(load_tokenizer(files | config())) == "<|im_start|>" and name(load_tokenizer(files | config(add_bos_token=False))) is None
    files = {"tokenizer.json": GOLDEN}
    assert name(load_tokenizer(files | config())) is None and name(load_tokenizer(files | config(add_bos_token=True))) == "<|endoftext|>"


def test_chat_template_comes_from_the_config_or_its_own_file(tmp_path):
    """Bug: a list of templates taken for one, a chat_template.jinja overlooked."""
    for template, found in (("T", "T"), ([{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}], "D"), (None, None)):
        (tmp_path / "tokenizer.json").write_text(GOLDEN, "utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": template}))
        enc = load_tokenizer(tmp_path)
        assert enc.chat_template == found == load_tokenizer(tmp_path / "tokenizer.json").chat_template == load_tokenizer(enc.files).chat_template
    (tmp_path / "chat_template.jinja").write_text("J")
    assert load_tokenizer(str(tmp_path)).chat_template == "J" and set(load_tokenizer(tmp_path).files) == {p.name for p in tmp_path.iterdir()}


# ---- merges


def test_last_merges_are_those_of_tiktoken():
    """Bug: a merge in the wrong order, so that a good tokenizer is refused or a bad one is not. The oracle is tiktoken without the token."""
    rng, made, strays = random.Random(5), 0, 0
    for _ in range(60):
        ranks = {c: i for i, c in enumerate([b"a", b"b", b"c"])}
        for _ in range(rng.randint(3, 40)):
            parts = rng.choices(list(ranks), k=2) if rng.random() < 0.8 else rng.choices([b"a", b"b", b"c"], k=4)
            ranks.setdefault(b"".join(parts), len(ranks))
        halves = tokenizer._halves(ranks)
        for token in (t for t in ranks if len(t) > 1):
            others = {t: rank for t, rank in ranks.items() if t != token}
            enc = tiktoken.Encoding("x", pat_str=r"\w+", mergeable_ranks=others, special_tokens={})
            parts = tuple(enc.decode_tokens_bytes(enc.encode_ordinary(token.decode())))
            assert halves.get(token) == (parts if len(parts) == 2 else None)
            made, strays = made + (len(parts) == 2), strays + (len(parts) > 2)
    assert made > 500 and strays > 50, (made, strays)


def test_random_merges_are_exact_or_refused():
    """Bug: an accepted tokenizer.json, of merges in odd order, with strange tokens, that tiktoken reads otherwise than `tokenizers`."""
    tk = pytest.importorskip("tokenizers", reason="the oracle")
    rng, accepted, refused = random.Random(7), 0, 0
    words = ["".join(w) for n in range(1, 7) for w in itertools.product("abc", repeat=n)][:800] + ["".join(rng.choices("abc", k=20)) for _ in range(200)]
    for _ in range(250):
        tokens, merges = ["a", "b", "c"], []
        for _ in range(rng.randint(2, 14)):
            a, b = rng.choice(tokens), rng.choice(tokens)
            merges.append([a, b])
            tokens += [a + b] * (a + b not in tokens)
        if rng.random() < 0.3:
            tokens.append("".join(rng.choices("abc", k=4))) if rng.random() < 0.5 else rng.shuffle(merges)
        tokens = list(dict.fromkeys(tokens))
        if rng.random() < 0.2:
            i, j = rng.sample(range(len(tokens)), 2)
            tokens[i], tokens[j] = tokens[j], tokens[i]
        spec = {"version": "1.0", "added_tokens": [FLAGS | {"id": len(tokens), "content": "<|im_end|>"}], "normalizer": None, "pre_tokenizer": level(use_regex=True),
                "post_processor": None, "decoder": None, "truncation": None, "padding": None,
                "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": merges, "ignore_merges": rng.random() < 0.5}}
        try:
            enc = load_tokenizer({"tokenizer.json": json.dumps(spec)})
        except ValueError as error:
            refused += 1
            assert "merge" in str(error), error
            continue
        accepted += 1
        tok = tk.Tokenizer.from_str(json.dumps(spec))
        assert [enc.encode_ordinary(w) for w in words] == [tok.encode(w).ids for w in words], spec
    assert accepted > 80 and refused > 40, (accepted, refused)


# ---- files out


@pytest.mark.parametrize("kind", ("toy", "smollm2", "qwen", "llama3", "gaps"))
def test_files_out_load_in_transformers_and_here(made, kind, tmp_path):
    """Bug: an exported folder whose tokenizer is another: ids, end, bos, template."""
    enc = toy_encoding() if kind == "toy" else load_tokenizer({"tokenizer.json": made(kind), "tokenizer_config.json": json.dumps(
        {"eos_token": "<|im_end|>", "chat_template": "{{ messages[0].content }}"}), "generation_config.json": json.dumps({"eos_token_id": [json.loads(made(kind))["added_tokens"][0]["id"]]})})
    assert tokenizer_files(enc) is enc.files or not enc.files
    enc.files = {}                                                   # made from the ranks, as for a rank file
    files = tokenizer_files(enc)
    again = load_tokenizer(files)
    facts = lambda e: (fingerprint(e), e.end_id, e.stop_ids, e.bos_id, e.chat_template, e.nfc, e.n_vocab)
    assert facts(again) == facts(enc)
    whole = oracles(files["tokenizer.json"])[0]
    assert not [t for t in texts() if whole.encode(t, add_special_tokens=False).ids != enc.encode(t, allowed_special="all")]
    transformers = pytest.importorskip("transformers", reason="the oracle")
    for name, content in files.items():
        (tmp_path / name).write_text(content, "utf-8")
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (tok.eos_token_id, tok.bos_token_id, tok.chat_template) == (enc.end_id, enc.bos_id, enc.chat_template)
    for t in HOSTILE:
        assert tok(t).input_ids == [enc.bos_id] * (enc.bos_id is not None) + enc.encode(t, allowed_special="all"), t


# ---- speed, and the real ones


def seconds(*ways, repeats=5):
    """Median seconds of each way, interleaved, so that a busy moment meets all of them."""
    times = [[] for _ in ways]
    for _ in range(repeats):
        for way, spent in zip(ways, times):
            start = time.perf_counter()
            way()
            spent.append(time.perf_counter() - start)
    return [statistics.median(spent) for spent in times]


def test_encoding_is_no_slower_than_tokenizers_in_one_thread(made):
    """Bug: a thread pool for each batch, a slow path that every text takes."""
    for kind in ("smollm2", "qwen"):
        enc, tok = load_tokenizer({"tokenizer.json": made(kind)}), oracles(made(kind))[0]
        cases = [line for line in corpus()[0].split("\n\n") if line.isascii()]
        ours, theirs = seconds(lambda: enc.encode_ordinary_batch(cases, num_threads=1), lambda: [tok.encode(t).ids for t in cases])
        assert ours < theirs, (kind, ours, theirs)


@pytest.mark.skipif(not REAL, reason="no real tokenizers named in WMSS_TOKENIZERS")
@pytest.mark.parametrize("path", REAL)
def test_real_tokenizers(path):
    """Bug: any of the above at full size. Prints what it measured (pytest -s)."""
    start = time.process_time()
    enc = load_tokenizer(path)
    text, loading = tokenizer_files(enc)["tokenizer.json"], time.process_time() - start
    if enc.files == {}:                                              # a rank file: written as published ones are, merges not ignored
        text = text.replace('"Removed", "invert": true', '"Isolated", "invert": false').replace('"ignore_merges": true', '"ignore_merges": false')
        assert fingerprint(load_tokenizer({"tokenizer.json": text})) == fingerprint(enc) == fingerprint(load_tokenizer(tokenizer_files(enc)))
    cases = real_texts() if SHARED.is_dir() else []
    wrong = mismatches(enc, text, texts(500) + cases)
    lossy = [t for t in cases if enc.decode(enc.encode_ordinary(t)) != (unicodedata.normalize("NFC", t) if enc.nfc else t)]
    tok, train_texts = oracles(text)[0], cases[:2 * 7473]
    ours, theirs = seconds(lambda: enc.encode_ordinary_batch(train_texts, num_threads=1), lambda: [tok.encode(t).ids for t in train_texts])
    print(f"\n{path}: {len(cases)} texts, {len(wrong)} wrong, {len(lossy)} lossy; loaded in {loading:.1f} s of CPU; GSM8K train {ours:.2f} s, tokenizers {theirs:.2f} s ({theirs / ours:.1f}x)")
    assert not wrong and not lossy and ours <= theirs
