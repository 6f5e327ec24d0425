"""Text in: forms of rows, sources, every refusal, the cache that is never stale, the command line.
"""

import datetime
import gzip
import json
import os
import subprocess
import sys

import pyarrow.parquet
import pytest
import torch
from chats import CHATML, LLAMA3, MISTRAL, ONE, QWEN2, QWEN3, THINK, encoding, load, say, write
from conftest import ROOT

from data import Problem, collate, encode
from plumbing import text
from plumbing.text import load_text, main, marked
from plumbing.tokenizer import toy_encoding

ROW = {"question": "q", "answer": "a"}


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")


def test_every_form_of_row_is_read_and_texts_stay_as_they_are():
    """Bug: GSM8K's calculator marks lost, a stripped answer, a column swapped, ShareGPT's names
    unknown.
    """
    enc = encoding()
    gold = "48/2 = <<48/2=24>>24\n#### 24 "
    rows = [{"question": "q", "answer": gold},
            {"messages": [say("user", "q"), say("assistant", gold)]},
            {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": gold}]}]
    for s in load(rows, enc):
        assert enc.decode(s.tokens.tolist()) == f"<|begin|>Question: q\nAnswer: {gold}<|im_end|>"
    rows = [{"prompt": "p: ", "completion": gold, "answer": "never", "question": "never"}]
    assert marked(load(rows, enc)[0], enc, False) == f"<|begin|>p: ⟦{gold}<|im_end|>⟧"
    chat = encoding(CHATML)
    start = "<|im_start|>user\np: <|im_end|>\n<|im_start|>assistant\n⟦48/2"
    assert marked(load(rows, chat)[0], chat, False).startswith(start)
    (s,) = load(rows, chat, template="none")
    assert marked(s, chat, False) == f"<|begin|>p: ⟦{gold}<|im_end|>⟧"
    (s,) = load([{"a": "x", "b": "y", "question": "q", "answer": "z"}], enc, prompt_column="a",
                completion_column="b")
    assert marked(s, enc, False) == "<|begin|>Question: x\nAnswer:⟦ y<|im_end|>⟧"
    toy = toy_encoding()
    (s,) = load([{"prompt": "1+2:", "completion": "3"}], toy)
    (t,) = encode([Problem("rows", "1+2:", "3", "3")], toy)
    assert s.tokens.tolist() == t.tokens.tolist() and s.loss.tolist() == t.loss.tolist()
    assert s.family == t.family
    assert collate([s]).x.dtype == collate([s]).y.dtype == torch.int64


def test_a_system_column_opens_the_conversation():
    """Bug: instructions beside the turns that the model is trained without."""
    enc, rest = encoding(CHATML), {"prompt": "q", "completion": "a"}
    for row in ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
                {"messages": [say("system", "Be."), say("user", "q"), say("assistant", "a")]},
                rest, {"question": "q", "answer": "a"}):
        for name in ("system", "system_prompt"):
            (s,) = load([{**row, name: "Be."}], enc)
            start = "<|im_start|>system\nBe.<|im_end|>\n<|im_start|>user\nq<|im_end|>"
            assert marked(s, enc, False).startswith(start)
    (s,) = load([{**rest, "system": "Be."}], encoding())
    assert marked(s, enc, False) == "<|begin|>Be.\n\nQuestion: q\nAnswer:⟦ a<|im_end|>⟧"
    for empty in ("", None):
        assert same(load([{**rest, "system": empty}], encoding()), load([rest], encoding()))
    with pytest.raises(ValueError, match="rows.jsonl:1: the column system and the system message"):
        load([{"messages": [say("system", "Do."), *ONE], "system": "Be."}], enc)
    with pytest.raises(ValueError, match="expected text as the system's content, found list"):
        load([{**rest, "system": ["Be."]}], enc)


def test_columns_that_are_not_read_are_named():
    """Bug: Alpaca's input dropped without a word, so that "Sort these:" is answered from nothing.
    """
    enc, lines = encoding(), []
    row = {"instruction": "Sort these:", "input": "b, a", "output": "a, b"}
    how = dict(prompt_column="instruction", completion_column="output", say=lines.append)
    joined, alone = load([row, {**row, "input": ""}], enc, **how)
    assert marked(joined, enc, False).startswith("<|begin|>Question: Sort these:\nb, a\nAnswer:⟦")
    assert marked(alone, enc, False).startswith("<|begin|>Question: Sort these:\nAnswer:⟦")
    assert lines[-1].endswith("; also read: input; not read: input"), lines
    load([{**ROW, "url": "x", "id": 1, "source": "s", "none": None, "tools": []}], enc,
         say=lines.append)
    assert lines[-1].endswith("loss; not read: url")
    load([{"messages": [{**ONE[0], "name": "Ann", "a(b": 1}, ONE[1]]}], enc, say=lines.append)
    assert lines[-1].endswith("loss; not read: messages.a(b, messages.name")
    with pytest.raises(ValueError, match="rows.jsonl:1: expected text in instruction and input"):
        load([{**row, "input": ["b"]}], enc, **how)


def test_nulls_that_parquet_fills_in_are_no_values():
    """Bug: {"city": "Rome", "a": null, "b": null} trained on where the row says one argument."""
    import datasets
    def asked(**arguments):
        call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
        return {"messages": [say("user", "q"), say("assistant", "", tool_calls=[call]),
                             say("tool", "r"), say("assistant", "a")]}
    rows = [asked(city="Rome"), asked(a=1, b=[1, 2]), {"messages": ONE}]
    enc = encoding(QWEN2)
    expected = [marked(s, enc, False) for s in load(rows, enc)]
    assert "null" not in "".join(expected) and '"arguments": {"city": "Rome"}' in expected[0]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, "p.parquet")
    datasets.Dataset(table).save_to_disk("saved")
    for spec in ("p.parquet", "saved"):
        assert [marked(s, enc, False) for s in load_text([spec], enc)] == expected


# --------------------------------------------------------------------------------------------------
# sources


def test_files_of_all_kinds_and_folders_at_once_keep_their_order_and_names(tmp_path):
    """Bug: one file read twice or not at all, ids that start again, a test split trained on since
    it lies beside the train split.
    """
    import datasets
    def row(q):
        return {"question": q, "answer": "a"}
    table = datasets.Dataset.from_list
    table([{"messages": [say("user", q), say("assistant", "a", tool_calls=None)]}
           for q in "df"]).to_parquet("p.parquet")
    table([row("h")]).save_to_disk("saved")
    datasets.DatasetDict({"train": table([row("i")]),
                          "test": table([row("o")])}).save_to_disk("dict")
    write("folder/train.jsonl", [row("j")])
    write("folder/test.jsonl", [row("k")])
    write("folder/LICENSE", [row("no")])
    write("z.jsonl.gz", [row("l"), {**row("m"), "source": "amc"}])
    (tmp_path / "list.json").write_text(json.dumps([{**row("n"), "family": "sums",
                                                     "source": "no"}]))
    enc, lines = encoding(), []
    specs = ["p.parquet", "saved", "dict", "dict@test", "folder", "folder@test", "z.jsonl.gz",
             "list.json"]
    samples = load_text(specs, enc, say=lines.append)
    texts = [enc.decode(s.tokens.tolist()) for s in samples]
    assert [t.split(": ")[1][0] for t in texts] == list("dfhiojklmn")
    assert [s.id for s in samples] == list(range(10))
    assert [s.where for s in samples] == ["p.parquet:1", "p.parquet:2", "saved:1", "dict:1",
                                          "dict:1", "folder/train.jsonl:1",
                                          "folder/test.jsonl:1", "z.jsonl.gz:1", "z.jsonl.gz:2",
                                          "list.json:1"]
    assert [s.family for s in samples] == ["p", "p", "saved", "dict", "dict", "folder", "folder",
                                           "z", "amc", "sums"]
    assert len(lines) == 8 and lines[0].startswith("data: p.parquet: 2 rows -> 2 samples of ")


def test_a_folder_with_files_of_other_kinds_is_refused():
    """Bug: one of three shards read, since the others are packed in another way."""
    for name in ("train-1.jsonl.zst", "train-1.csv"):
        write(f"{name}.d/train-0.jsonl", [ROW])
        write(f"{name}.d/{name}", [ROW])
        with pytest.raises(ValueError, match=r"train-1\.\S+ is no \.jsonl, .*; convert it"):
            load_text([f"{name}.d"], encoding())


def test_times_and_dates_in_a_message_are_read():
    """Bug: a chat log with the time of each message ends in a TypeError of JSON."""
    import datasets
    now = datetime.datetime(2026, 1, 1)
    messages = [say("user", "a", time=now), say("assistant", "b", time=now)]
    datasets.Dataset.from_list([{"messages": messages}]).to_parquet("p.parquet")
    enc = encoding(CHATML)
    (sample,) = load_text(["p.parquet"], enc)
    assert enc.decode(sample.tokens.tolist()).count("<|im_start|>") == 2


def test_the_hub_is_asked_for_name_configuration_and_split(monkeypatch):
    """Bug: a configuration taken for a split, the test split as default."""
    import datasets
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k))
                        or datasets.Dataset.from_list(
        [{"question": "q", "answer": "a"}]))
    samples = load_text(["openai/gsm8k:main@train+test", "a/b", "a/c@x", "a/d:y"], encoding())
    assert asked == [(("openai/gsm8k", "main"), {"split": "train+test"}),
                     (("a/b", None), {"split": "train"}),
                     (("a/c", None), {"split": "x"}), (("a/d", "y"), {"split": "train"})]
    assert samples[0].where == "openai/gsm8k:main@train+test:1"
    assert [s.family for s in samples] == ["gsm8k", "b", "c", "d"]


def test_sources_that_are_not_there_are_refused_with_the_way_out(tmp_path):
    """Bug: a traceback from the hub client for a mistyped file name."""
    row = {"question": "q", "answer": "a"}
    write("data.csv", [row])
    write("fine.jsonl", [row])
    write("texts/readme.txt", [row])
    (tmp_path / "bad.parquet").write_text("nope")
    os.mkdir("void")
    for spec, error in (("nix.jsonl", "nix.jsonl: no such file"),
                        ("../x/nix.jsonl", "no such file or folder"), ("", "no such file"),
                        ("gsm8k", "OWNER/NAME"), ("data.csv", "data.csv: no file named .jsonl"),
                        ("bad.parquet", "expected a parquet"),
                        ("fine.jsonl@train", "no :CONFIG or @SPLIT may follow a file"),
                        ("void:main", "no :CONFIG a folder"), ("texts@nix", "split: nix"),
                        ("void", "--data void: .* any data files"),
                        ("texts", "texts: no file named .jsonl")):
        with pytest.raises(ValueError, match=error):
            load_text([spec], encoding())


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    """Bug: a page of traceback, or minutes of retries that end in one."""
    code = "from plumbing.text import main; main(['--data', 'openai/gsm8k:main'])"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
           "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ROOT}
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env,
                       timeout=60)
    assert r.returncode == 1
    assert "--data openai/gsm8k:main: no such file or folder here, nor from the hub" in r.stderr
    assert "; pass a file" in r.stderr and "Traceback" not in r.stderr


# --------------------------------------------------------------------------------------------------
# refusals



@pytest.mark.parametrize("row, error", (
    ({"problem": "x", "solution": "y"},
     "messages or prompt and completion or question and answer, found problem, solution;"),
    ({"question": "x", "answer": None}, "found question; name yours with --prompt-column"),
    ({}, "found none"),
    ({"question": "x", "answer": 42}, "expected text as the assistant's content, found int 42"),
    ({"question": "x", "answer": ["42"]}, "found list"),
    ({"question": "x", "answer": " \n"}, "empty completion"),
    ({"messages": "hello"}, "expected messages to be a list of {role, content}, found 'hello'"),
    ({"messages": []}, "expected messages to be a list"),
    ({"messages": ["a"]}, "expected messages to be a list"),
    ({"messages": [say("user", "a"), say("critic", "b")]},
     "unknown role 'critic' in messages; expected one of system, user"),
    ({"messages": [{"content": "a"}]}, "unknown role None"),
    ({"messages": [say(["user"], "a"), say("assistant", "b")]}, "unknown role ['user']"),
    ({"messages": [say("user", "a"), {"role": "assistant"}]},
     "expected text as the assistant's content, found NoneType"),
    ({"messages": [say("user", "a"), say("assistant", "")]}, "empty completion"),
    ({"messages": [say("user", "a")]}, "no assistant's turn"),
    ({"messages": [say("assistant", "a"), say("user", "b")]}, "no assistant's turn"),
    ({"messages": ONE, "tools": [{"name": "f"}]}, "tools are not passed"),
    ({"question": "x<|im_end|>", "answer": "y"},
     "the user's message spells the control token <|im_end|>"),
    ({"prompt": "x", "completion": "y<|endoftext|>"},
     "the assistant's message spells the control token <|endoftext|>"),
    ({"messages": [*ONE, say("tool", "x", name="<|eot_id|>"), ONE[1]]},
     "the tool's message spells the control token <|eot_id|>"),
    ({"question": "x", "answer": "\ud800"}, "surrogates not allowed"),
    ({**ROW, "id": 7}, "id 7 is also that of first.jsonl.gz:2"),
))
def test_a_malformed_row_is_named_by_file_and_line(row, error):
    """Bug: a row that is skipped, mended in silence, or refused without a word on where it stands.
    """
    write("first.jsonl.gz", [{**ROW, "id": 6}, {**ROW, "id": 7}])
    write("second.jsonl", [ROW, {**ROW, "id": "7"}, row, ROW])
    with pytest.raises(ValueError) as e:
        load_text(["first.jsonl.gz", "second.jsonl"], encoding(CHATML))
    assert str(e.value).startswith("second.jsonl:3: ") and error in str(e.value), e.value


def test_a_null_is_no_value():
    """Bug: a parquet file, whose structs have every key, rendered otherwise than the same rows as
    JSONL.
    """
    enc = encoding("{% for m in messages %}{% if m.tool_calls is defined %}CALL{% endif %}"
                   "{{ m.content }}<|im_end|>{% endfor %}")
    for messages in (ONE,
                     [{**m, "tool_calls": None, "from": None, "value": None, "thinking": None}
                      for m in ONE]):
        (s,) = load([{"messages": messages, "prompt": None, "id": None, "family": None}], enc)
        assert marked(s, enc, False) == "1+1?<|im_end|>⟦2<|im_end|>⟧"


def test_broken_json_and_empty_files_are_refused():
    """Bug: an empty data set that trains on nothing."""
    with open("broken.jsonl", "w") as f:
        f.write(json.dumps(ROW) + "\n{'question': 1}\n")
    with pytest.raises(ValueError, match="broken.jsonl:2: expected one JSON object"):
        load_text(["broken.jsonl"], encoding())
    open("empty.jsonl", "w").close()
    with pytest.raises(ValueError, match="--data empty.jsonl: no row in it"):
        load_text([write("some.jsonl", [ROW]), "empty.jsonl"], encoding())


def test_what_editors_and_downloads_do_to_files_is_read_or_named_with_its_line(tmp_path):
    """Bug: a byte-order mark refused, a traceback for a cut download, a page of binary for Latin-1.
    """
    line = json.dumps(ROW).encode() + b"\n"
    def file(name, content):
        (tmp_path / name).write_bytes(content)
        return name
    for content in (b"\xef\xbb\xbf" + line, line.replace(b"\n", b"\r\n"),
                    b"\xef\xbb\xbf[" + line + b"]"):
        assert len(load_text([file("fine.jsonl", content)], encoding())) == 1
    deep = b'{"question": "q", "answer": "a", "x": ' + b"[" * 99_999 + b"]" * 99_999 + b"}\n"
    packed = gzip.compress(line * 9_999)
    for name, content, error in (
            ("a.jsonl", line + line.replace(b"q", b"\xe9"), "a.jsonl:2: .* found byte 0xe9; save"),
            ("b.jsonl", (line * 2).decode().encode("utf-16"), "b.jsonl:1: .* found byte 0xff;"),
            ("c.jsonl", line * 2 + deep, "c.jsonl:3: .* nested too deep"),
            ("d.json", b"[" + deep + b"]", "d.json: expected a JSON array, .*nested too deep"),
            ("e.jsonl.gz", packed[:-20], r"e.jsonl.gz:\d+: .* found damage .*; copy it again"),
            ("f.jsonl.gz", packed[:99] + b"x" + packed[100:], r"f.jsonl.gz:\d+: .*copy it again"),
            ("g.jsonl.gz", line, "g.jsonl.gz: .*Not a gzipped file"),
            ("h.jsonl.gz", packed[:10], "h.jsonl.gz: .* found .*end-of-stream")):
        with pytest.raises(ValueError, match=error):
            load_text([file(name, content)], encoding())
    questions = pyarrow.array([b"a"] * 1500 + [b"\xe9"]).view(pyarrow.string())
    table = pyarrow.table({"question": questions, "answer": ["a"] * 1501})
    pyarrow.parquet.write_table(table, "i.parquet")
    with pytest.raises(ValueError, match="i.parquet:1501: expected text in UTF-8, found .*0xe9"):
        load_text(["i.parquet"], encoding())


def test_wrong_flags_are_refused():
    """Bug: half a pair of columns that is ignored, a file given twice that counts double."""
    f = write("f.jsonl", [ROW])
    for specs, kw in (([f], {"prompt_column": "question"}), ([f], {"long": "cut"}), ([f, f], {}),
                      ([], {}), ([f], {"max_len": 0})):
        with pytest.raises(ValueError, match="data: expected --data once or more, none twice"):
            load_text(specs, encoding(), **kw)


def test_long_rows_are_dropped_cut_or_named_and_always_counted():
    """Bug: off by one at the limit, a cut sample without a loss token that divides by zero, a count
    that is not said.
    """
    enc, lines = toy_encoding(), []
    rows = [{"prompt": "abc", "completion": "d" * n}
            for n in (6, 7, 8, 20)] + [{"prompt": "a" * 11, "completion": "b"}]
    for how in text.LONG[:2]:
        # the row of 7: 11 tokens with its end, 10 are read
        samples = load(rows, enc, max_len=10, long=how, say=lines.append)
        assert [len(s.tokens) - 1 for s in samples] == {"drop": [9, 10],
                                                        "truncate": [9, 10, 10, 10]}[how]
        assert [s.id for s in samples] == list(range(len(samples)))
        assert all(s.loss[1:].any() for s in samples)
    assert "5 rows -> 2 samples" in lines[0]
    assert "over --max-len 10: 3 dropped, 0 truncated" in lines[0]
    assert "5 rows -> 4 samples" in lines[1]
    assert "over --max-len 10: 1 dropped, 2 truncated" in lines[1]
    with pytest.raises(ValueError,
                       match=r"rows.jsonl:4: 23 tokens, the longest of 3 samples that exceed "
                             "--max-len 10; pass --long"):
        load(rows, enc, max_len=10)
    with pytest.raises(ValueError,
                       match="no sample with a loss token is left: 5 exceed --max-len 2"):
        load(rows, enc, max_len=2, long="truncate")
    (s,) = load([{"prompt": "", "completion": "ab"}], enc)
    # nothing predicts the first token
    assert s.loss.tolist() == [False, True, True]


def test_a_character_that_the_vocabulary_lacks_is_named():
    """Bug: a panic inside the tokenizer."""
    with pytest.raises(ValueError,
                       match="rows.jsonl:2: the vocabulary lacks 'ü'; take it out of the row, or "
                             "take a tokenizer"):
        load([ROW, {"question": "ü", "answer": "a"}], toy_encoding())


# --------------------------------------------------------------------------------------------------
# the cache


@pytest.fixture
def caching(monkeypatch):
    """Every size of data set is cached; returns the list of what was tokenised."""
    monkeypatch.setattr(text, "CACHED_ROWS", 1)
    calls, real = [], text._tokenise
    monkeypatch.setattr(text, "_tokenise", lambda *a: calls.append(a) or real(*a))
    return calls


def same(a, b):
    def fields(s):
        return (s.id, s.family, s.where, s.tokens.tolist(), s.loss.tolist(), s.tokens.dtype)
    return list(map(fields, a)) == list(map(fields, b))


def test_a_second_look_reads_the_cache_and_sees_the_same(caching):
    """Bug: a cache that loses a field, an order, or the line of counts."""
    lines, rows = [], [{"messages": THINK}, {"messages": ONE, "family": "sums"}]
    once, twice = (load(rows, encoding(QWEN3), say=lines.append) for _ in range(2))
    assert len(caching) == 1 and same(once, twice) and lines[0] == lines[1]
    assert len(os.listdir("out/cache")) == 1


def test_the_cache_depends_on_all_that_the_samples_depend_on(caching, monkeypatch, tmp_path):
    """Bug: a stale cache: a changed file, tokenizer, template, flag, or code that gives the old
    samples.
    """
    import datasets
    rows = [{"question": "q", "answer": "a", "p": "x", "c": "y"}]
    (tmp_path / "t.jinja").write_text(CHATML + "{# 1 #}")
    other = encoding()
    other._mergeable_ranks[b"zz"] = 999
    changes = [
        lambda: load(rows, encoding()),
        lambda: load(rows + rows, encoding()),
        lambda: load(rows, encoding(CHATML)),
        lambda: load(rows, encoding(QWEN2)),
        lambda: load(rows, encoding(), template="t.jinja"),
        lambda: (tmp_path / "t.jinja").write_text(CHATML + "{# 2 #}")
        and load(rows, encoding(), template="t.jinja"),
        lambda: load(rows, encoding(end="<|endoftext|>")),
        lambda: load(rows, encoding(stops=[])),
        lambda: load(rows, encoding(bos=None)),
        lambda: load(rows, other),
        lambda: load(rows, encoding(MISTRAL)),
        lambda: load(rows, encoding(MISTRAL, bos=None)),
        lambda: load(rows,
                     encoding(MISTRAL, bos=None,
                              files={"tokenizer_config.json": '{"bos_token": "<|begin|>"}'})),
        lambda: load(rows,
                     encoding(MISTRAL, end="<|eot_id|>", stops=["<|endoftext|>", "<|im_end|>"])),
        lambda: load(rows, encoding(), template="none"),
        lambda: load(rows, encoding(), template="plain"),
        lambda: load(rows, encoding(), prompt_column="p", completion_column="c"),
        lambda: load(rows, encoding(), prompt_column="question", completion_column="c"),
        lambda: load(rows, encoding(), prompt_column="p", completion_column="answer"),
        lambda: load(rows, encoding(), max_len=100),
        lambda: load(rows, encoding(), max_len=100, long="drop"),
        lambda: load_text([write("other.jsonl", rows)], encoding()),
        lambda: load_text([os.path.dirname(write("folder/train.jsonl", rows))], encoding()),
        lambda: load_text([os.path.dirname(write("folder/train.jsonl", rows * 2))], encoding()),
        lambda: datasets.Dataset.from_list(rows).save_to_disk("saved")
        or load_text(["saved"], encoding()),
        lambda: datasets.Dataset.from_list(rows * 2).save_to_disk("saved")
        or load_text(["saved"], encoding()),
        lambda: load_text(["rows.jsonl", "other.jsonl"], encoding()),
        lambda: load_text(["other.jsonl", "rows.jsonl"], encoding())]
    for n, change in enumerate(changes, 1):
        change()
        assert len(caching) == n, f"change {n - 1} was answered from the cache"
    load(rows, encoding())
    assert len(caching) == len(changes)
    real = text.sha256_of
    modules = ("data.py", "text.py", "chat.py", "files.py", "tokenizer.py")
    for name in modules:
        monkeypatch.setattr(text, "sha256_of", lambda path, name=name: real(path)
                            + name[:path.endswith("/" + name)])
        load(rows, encoding())
    assert len(caching) == len(changes) + len(modules)


def test_a_hub_data_set_is_known_by_its_fingerprint(caching, monkeypatch):
    """Bug: a revision of the hub that gives the old samples."""
    import datasets
    sets = [datasets.Dataset.from_list([{"question": q, "answer": "a"}]) for q in "xxy"]
    sets[1]._fingerprint = sets[0]._fingerprint
    seen = []
    for hub in sets:
        monkeypatch.setattr(datasets, "load_dataset", lambda *a, hub=hub, **k: hub)
        seen.append(load_text(["a/b"], encoding()))
    first, again, new = seen
    assert len(caching) == 2 and same(first, again) and not same(first, new)


@pytest.mark.parametrize("harm",
                         (lambda b: b"", lambda b: b[:-200], lambda b: b[:len(b) // 2],
                          lambda b: b"text", None))
def test_a_broken_cache_is_made_again(caching, harm):
    """Bug: a killed disk that trains on other tokens, or a traceback that a user must answer by
    deleting files.
    """
    rows = [{"question": f"{i} an", "answer": "4 " * i + "a"} for i in range(1, 40)]
    once = load(rows, encoding())
    (name,) = os.listdir("out/cache")
    path = os.path.join("out", "cache", name)
    with open(path, "rb") as f:
        whole = f.read()
    # where harm is None one bit of one token flips, which torch.load does not see
    at = whole.index(once[20].tokens.numpy().tobytes())
    with open(path, "wb") as f:
        f.write(harm(whole) if harm else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert same(once, load(rows, encoding())) and len(caching) == 2
    assert same(once, load(rows, encoding())) and len(caching) == 2


def test_a_file_that_changes_while_it_is_read_is_not_cached(monkeypatch):
    """Bug: new samples under the hash of the old file, or the other way round, for good."""
    monkeypatch.setattr(text, "CACHED_ROWS", 1)
    real = text._tokenise
    monkeypatch.setattr(text, "_tokenise", lambda *a: (write("rows.jsonl", [ROW] * 3), real(*a))[1])
    assert len(load([ROW])) == 3 and not os.path.exists("out")
    monkeypatch.undo()


def test_what_should_not_be_cached_is_not(caching, monkeypatch):
    """Bug: a template that writes the date, answered on the next day with the day before; a cache
    for a handful of rows.
    """
    for _ in range(2):
        load([ROW], encoding(LLAMA3))
    assert len(caching) == 2 and not os.path.exists("out")
    monkeypatch.setattr(text, "CACHED_ROWS", 2)
    load([ROW], encoding())
    assert not os.path.exists("out")
    with pytest.raises(ValueError):
        load([ROW, {}], encoding())
    assert not os.path.exists("out")


# --------------------------------------------------------------------------------------------------
# the command line


def test_show_marks_what_counts_and_says_where_it_stands(capsys, monkeypatch):
    """Bug: marks that a pipe swallows, a sample without its origin, escape codes in a file."""
    write("a.jsonl", [{**ROW, "source": "amc"}, {"prompt": "1+1=", "completion": "2"}, ROW])
    main(["--data", "a.jsonl", "-n", "2"])
    out = capsys.readouterr().out
    assert out == ("data: a.jsonl: 3 rows -> 3 samples of 50 tokens, 8 with loss\n\n"
                   "--- id 0 | a.jsonl:1 | amc | 22 tokens, 3 with loss\n"
                   "Question: q\nAnswer:⟦ a<|end|>⟧\n\n"
                   "--- id 1 | a.jsonl:2 | a | 6 tokens, 2 with loss\n1+1=⟦2<|end|>⟧\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["--data", "a.jsonl", "-n", "2"])
    assert "1+1=\033[32m2<|end|>\033[0m\n" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["--data", "a.jsonl", "-n", "2"])
    assert "⟦2<|end|>⟧" in capsys.readouterr().out


def test_show_passes_its_flags_on(capsys, monkeypatch):
    """Bug: a flag that is parsed and forgotten."""
    write("a.jsonl", [{"p": "x", "c": "yyyy"}, {"p": "x", "c": "y"}])
    flags = ("--data a.jsonl --prompt-column p --completion-column c --template none "
             "--max-len 4 --long").split()
    main([*flags, "truncate"])
    assert "\nx⟦yyyy⟧\n" in capsys.readouterr().out
    main([*flags, "drop"])
    assert "yyyy" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="a.jsonl:1: 5 tokens"):
        main([*flags, "error"])
    monkeypatch.setattr(text, "load_tokenizer", lambda path: {"tok": encoding(CHATML)}[path],
                        raising=False)
    main(["--tokenizer", "tok", "--data", write("b.jsonl", [{"question": "ü", "answer": "é"}])])
    said = "<|im_start|>user\nü<|im_end|>\n<|im_start|>assistant\n⟦é<|im_end|>⟧\n"
    assert said in capsys.readouterr().out
