"""experiments/am.py: rows of the AM schema that these tests write.

Oracles: a regular expression for the format, an uninterrupted run for every interrupted one,
math-verify for --grader official, the zstandard and gzip libraries for packed files.
"""

import fcntl
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

import eval_math
from experiments import am
from experiments.am import (
    BLANK,
    BOX,
    COPY,
    IN_ORDER,
    MISSING,
    OUTSIDE,
    REASONS,
    SURROGATE,
    TAGS,
    THOUGHT,
    TURNS,
    UNREADABLE,
    WRONG,
    exact,
    main,
    sift,
)

GOOD = r"<think>two and two</think>" + "\n" + r"<answer>So \boxed{4}.</answer>"


def row(response=GOOD, reference="4", prompt="2+2?", source="openR1Math_default"):
    """As on the data card: reference_answer and test_case with the user's turn, the response's
    parts with the assistant's.
    """
    return {"messages": [
        {"role": "user", "content": prompt,
         "info": {"source": source, "reference_answer": reference, "test_case": None,
                  "think_content": None, "answer_content": None}},
        {"role": "assistant", "content": response,
         "info": {"source": "am-0309", "reference_answer": None, "test_case": None,
                  "think_content": "two and two", "answer_content": r"So \boxed{4}."}}]}


def changed(**turn):
    """A good row with other keys in its assistant turn."""
    r = row()
    r["messages"][1].update(turn)
    return r


def boxed(answer):
    return rf"<think>t</think> <answer>{answer}</answer>"


def write(path, rows, ending="\n"):
    text = "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + ending
                   for r in rows)
    text = text.encode("utf-8", "surrogatepass")
    if path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        text = zstandard.ZstdCompressor().compress(text)
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def kept(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def counts(path):
    c = json.loads((path.parent / (path.name + ".counts.json")).read_text())
    assert c["kept"] + sum(c["dropped"].values()) == c["rows"]
    assert c["rows"] == sum(n for n, _ in c["sources"].values())
    assert c["kept"] == sum(n for _, n in c["sources"].values())
    assert c["bytes"] == path.stat().st_size
    return c


# --------------------------------------------------------------------------------------------------
# which rows are kept, and why the others are not

USER, SAID = row()["messages"]
HOSTILE = [(reason, r) for reason, rows in {
    None: [
        row(), row(reference=" 4.0 "), row(reference="$4$"), row(boxed(r"\boxed{\frac{8}{2}}")),
        changed(info=None),
        row(source=None), row("\n " + GOOD.replace("\n", "\r\n") + " \r\n"),
        row(prompt="é̂ 数学 🙂\u2028\x00"),
        row(boxed(r"\boxed{5} no, \boxed{4}")), row(boxed(r"\boxed{4} and \boxed{}")),
        row(boxed(r"\boxed{\{1, {2}\}} or \boxed{1}, no: "
                  r"\boxed{ \left\{ \frac{1}{{1}}, 2 \right\} }"), r"\{2,1\}"),
        row("<think>a < b, </ think> <Answer> \\boxed{5}</think><answer>\\boxed{4}</answer>")],
    TURNS: [
        7, None, [], '"text"', {}, {"messages": None}, {"messages": "ab"}, {"messages": []},
        {"messages": [None, 3]},
        {"messages": [USER]}, {"messages": [USER, SAID, USER, SAID]},
        {"messages": [USER, SAID, USER]}, {"messages": [SAID, USER]},
        {"messages": [{"role": "system", "content": "s"}, USER, SAID]}, changed(role="user"),
        changed(role=None),
        changed(role=["assistant"]), changed(content=None), changed(content=[GOOD]),
        changed(content={"text": GOOD}),
        changed(content=" \n"), row(prompt="")],
    TAGS: [row(text) for text in (
        "4", GOOD[7:], GOOD[:-9], GOOD + "</think>", GOOD + GOOD, GOOD.upper(),
        "<think>a<think>b</think> <answer>\\boxed{4}",
        "<think>a</think> b </think> <answer>\\boxed{4}</answer>",
        "<think><think>a</think> <answer>\\boxed{4}</answer>",
        "<think>a <answer>5</answer> b</think> <answer>\\boxed{4}</answer>")],
    OUTSIDE: [row(text) for text in (
        "Well: " + GOOD, GOOD + " Done.", GOOD.replace("\n", "so"),
        "<answer>\\boxed{4}</answer><think>a</think>",
        "<think><answer>a</think>\\boxed{4}</answer>",
        "</think>a<think> <answer>\\boxed{4}</answer>")],
    THOUGHT: [row("<think></think><answer>\\boxed{4}</answer>"),
              row("<think> \n\t</think><answer>\\boxed{4}</answer>")],
    BOX: [row(boxed(answer)) for answer in (
        "", "4", "boxed{4}", r"\boxed{}", r"\boxed{ }", r"\boxed 4", r"\boxed{4", r"\boxed{{4}",
        "{" * 100_000 + r"\boxed{")]
        + [row("<think>\\boxed{4}</think><answer>4</answer>")],
    MISSING: [row(reference=r) for r in (None, " ", True, ["4"], {"answer": "4"})]
        + [{"messages": [{**USER, "info": info}, SAID]} for info in (None, "4", ["4"])],
    UNREADABLE: [row(reference=r)
                 for r in ("Yes, since 4 is even.", "4" * 5000 + "x", "{" * 9999, "1, " * 1200
                           + "1")],
    WRONG: [row(reference=r) for r in ("5", "-4", "(4, 5)")]
        + [row(boxed(r"\boxed{4} no, \boxed{5}")), row(boxed(r"\boxed{" + "9^" * 500 + "9}"))],
    SURROGATE: [row(prompt="2+2? \ud83d"), row(GOOD.replace("two", "\udc00"))],
}.items() for r in rows]


@pytest.mark.parametrize("reason, r", HOSTILE, ids=range(len(HOSTILE)))
def test_each_hostile_row_has_its_reason(reason, r):
    """Bug: a row that crashes the run hours in, that is lost without a count, or kept with a broken
    answer.
    """
    started = time.perf_counter()
    got, source, line = sift(r, exact)
    assert got == reason and (line is None) == (reason is not None) and isinstance(source, str)
    assert time.perf_counter() - started < 2


def test_the_format_is_that_of_a_regular_expression():
    """Bug: tags in another order, a second tag, text between, that one splitting by hand lets
    through.
    """
    rng, plain = random.Random(0), r"(?:(?!</?(?:think|answer)>).)*"
    oracle = re.compile(rf"\s*<think>({plain})</think>\s*<answer>({plain})</answer>\s*", re.S)
    seen = {True: 0, False: 0}
    for _ in range(20_000):
        pieces = ["<think>", "x", "</think>", "<answer>", r"\boxed{4}", "</answer>"]
        for _ in range(rng.randint(0, 3)):
            at, what = rng.randrange(len(pieces)
                                     + 1), rng.choice([*IN_ORDER, "x", " ", "\n", "<", r"\boxed{4}",
                                                       "", ""])
            pieces[at:at + (not what)] = [what]
        text = "".join(pieces)
        m = oracle.fullmatch(text)
        fits = bool(m and m[1].strip() and r"\boxed{4}" in m[2])
        seen[fits] += 1
        assert (sift(row(text), exact)[0] is None) == fits, text
    assert min(seen.values()) > 2000


def test_a_kept_row_is_the_text_as_it_was(tmp_path):
    """Bug: stripped or re-encoded text, a changed role, a lost source; ids that repeat, or change
    with the file.
    """
    prompts = ["2+2?", " 2 + 2 =\r\n", "数学 🙂 \u2028 \x85 \x00 \"\\n\" \\", "2+2? "]
    response = "\n<think>\r\n é \u2029</think>\r\n\r\n<answer>\t\\boxed{4}  </answer>\n "
    rows = [row(response, prompt=p, source="NuminaMath_1.5") for p in prompts]
    main(["--source", write(tmp_path / "a.jsonl", rows, "\r\n"), "--out",
          str(tmp_path / "t.jsonl")])
    got = kept(tmp_path / "t.jsonl")
    said = {"role": "assistant", "content": response}
    assert [g["messages"] for g in got] == [[{"role": "user", "content": p}, said] for p in prompts]
    assert {(g["source"], g["reference_answer"]) for g in got} == {("NuminaMath_1.5", "4")}
    assert len({g["id"] for g in got}) == 4
    main(["--source", write(tmp_path / "b.jsonl", rows[::-1]), "--out", str(tmp_path / "u.jsonl"),
          "--system"])
    other = kept(tmp_path / "u.jsonl")
    assert [g["id"] for g in other] == [g["id"] for g in got][::-1]
    system = {"role": "system", "content": eval_math.PAPER_SYSTEM}
    assert [g["messages"] for g in other] == [[system, *g["messages"]] for g in got[::-1]]


def test_counts_are_those_of_the_rows_and_add_up(tmp_path, capsys):
    """Bug: rows that vanish from the table, copies kept twice, another response to a known prompt
    taken for a copy.
    """
    rows = [r for _, r in HOSTILE] + [row(), row(GOOD.replace("two", "2")), "", "  "]
    first = write(tmp_path / "a.jsonl", rows)
    second = write(tmp_path / "b.jsonl.gz", [row(source="other"), row(prompt="3+1?")])
    main(["--source", first, second, "--out", str(tmp_path / "t.jsonl")])
    c = counts(tmp_path / "t.jsonl")
    expected = {r: sum(reason == r for reason, _ in HOSTILE) for r in (None, *REASONS)}
    distinct = {sift(r, exact)[2][8:24] for reason, r in HOSTILE if reason is None}
    assert c["kept"] == len(distinct) + 2 and c["dropped"] == {
        **{r: expected[r] for r in REASONS}, BLANK: 2, COPY: expected[None] - len(distinct) + 2}
    table = capsys.readouterr().out
    for reason, n in c["dropped"].items():
        assert re.search(rf"^  {re.escape(reason)} +{n} ", table, re.M), reason
    assert c["sources"]["other"] == [1, 0] and re.search(r"\(no source\) +\d", table)


def test_ten_thousand_sources_are_counted_as_a_thousand(tmp_path):
    """Bug: a state file that grows with the data; a known source no longer counted as itself."""
    rows = [row(prompt=str(i), source="s" * 10_000 if i % 3 == 0 else f"{i} \ud800")
            for i in range(4000)]
    main(["--source", write(tmp_path / "a.jsonl", rows), "--out", str(tmp_path / "t.jsonl")])
    c = counts(tmp_path / "t.jsonl")["sources"]
    assert len(c) == 1001 and c["s" * 80] == [1334, 1334] and c["(others)"][0] == 4000 - 1334 - 999


def test_numbers_in_json_are_read_as_they_are_written(tmp_path):
    """Bug: a crash at 5,000 digits, a reference 0.50 or 1e400 that becomes a float, NaN."""
    def bare(number, box):
        return json.dumps(row(boxed(rf"\boxed{{{box}}}"), "REF")).replace('"REF"', number)
    lines = [bare("4", "4"), bare("0.50", r"\frac12"),
             bare("12345678901234567890.5", "12345678901234567890.5"), bare("NaN", "4"),
             bare("9" * 5000, "4"), bare("1e400", "4"), bare("-Infinity", "4")]
    main(["--source", write(tmp_path / "a.jsonl", lines), "--out", str(tmp_path / "t.jsonl")])
    answers = [g["reference_answer"] for g in kept(tmp_path / "t.jsonl")]
    assert answers == ["4", "0.50", "12345678901234567890.5"]
    c = counts(tmp_path / "t.jsonl")["dropped"]
    assert c[MISSING] == 2 and c[UNREADABLE] + c[WRONG] == 2


def test_ten_megabytes_in_a_row_take_seconds(tmp_path):
    """Bug: a search that goes back over the text again and again."""
    long = ["<think>" + "a < b </ \\boxed{ { " * 600_000 + "</think><answer>\\boxed{4}</answer>",
            "<think>" * 1_500_000,
            boxed("{" * 10_000_000 + "\\boxed{4}"), boxed("\\boxed{" * 1_500_000),
            boxed("\\boxed{4}" + "} " * 5_000_000),
            boxed("\\boxed{" + "4" * 10_000_000 + "}")]
    started = time.perf_counter()
    assert [sift(row(text), exact)[0] for text in long] == [None, TAGS, None, BOX, BOX, BOX]
    assert time.perf_counter() - started < 20


def test_the_official_grader_asks_what_the_authors_asked():
    """Bug: another reading of the reference than theirs (letters and prose it cannot read, $ not
    added), boxes in the thought.
    """
    pytest.importorskip("math_verify")
    verdict = am.official()
    def ask(response, reference):
        return sift(row(response, reference), verdict)[0]
    assert ask(boxed(r"\boxed{\frac{1}{2}}"), "0.5") is None
    assert ask(boxed(r"\boxed{x=5}"), "5") is None
    assert ask(boxed(r"\boxed{4}"), "5") == WRONG
    assert ask(boxed(r"\boxed{4}"), r"\frac{1}{3}") == WRONG
    assert ask(boxed(r"\boxed{A}"), "A") == UNREADABLE
    assert sift(row(boxed(r"\boxed{A}"), "A"), exact)[0] is None
    assert ask(boxed(r"\boxed{4}"), "The cat sat.") == UNREADABLE
    for box, reference, theirs, ours in ((r"9\sqrt{3}", r"9\sqrt{3}", WRONG, None),
                                         ("9", r"9\sqrt{3}", None, WRONG),
                                         (r"2\pi", r"2\pi", WRONG, None),
                                         ("1,2", "1,2", WRONG, None)):
        r = row(boxed(rf"\boxed{{{box}}}"), reference)
        assert (sift(r, verdict)[0], sift(r, exact)[0]) == (theirs, ours), (box, reference)
    assert ask("<think>\\boxed{4}</think><answer>\\boxed{5}</answer>", "4") == WRONG


# --------------------------------------------------------------------------------------------------
# files


def test_packed_files_read_as_plain_ones(tmp_path):
    """Bug: lines cut where a block or a frame ends, a last line without a newline lost, line
    numbers of another file.
    """
    zstandard = pytest.importorskip("zstandard")
    rng = random.Random(0)
    def asked():
        return "?" + "".join(rng.choices("ab 数", k=rng.choice([1, 9000])))
    rows = [row(boxed(rf"\boxed{{{i}}}"), str(i), asked()) for i in range(200)]
    text = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode()
    assert len(text) > 1_000_000 and not text.endswith(b"\n")
    def pack(part):
        return zstandard.ZstdCompressor(write_content_size=rng.random() < 0.5).compress(part)
    frames = b"".join(pack(text[i:i + 99_999]) for i in range(5, len(text), 99_999))
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=28)
    wide = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"        # as pzstd writes
    forms = {"a.jsonl": text, "a.jsonl.gz": gzip.compress(text[:77_777])
             + gzip.compress(text[77_777:]), "a.jsonl.zst": pack(text),
             # zstd --long=28: refused unless allowed
             "c.jsonl.zst": wide.compress(text) + wide.flush(),
             "b.jsonl.zst": pack(text[:5]) + skippable + frames + pack(b"")}
    for name, packed in forms.items():
        (tmp_path / name).write_bytes(packed)
        assert b"".join(am.lines_of(str(tmp_path / name))) == text
        for skip in (1, 4096, 77_777, len(text) - 1, len(text)):
            assert b"".join(am.lines_of(str(tmp_path / name), skip)) == text[skip:]
        main(["--source", str(tmp_path / name), "--out", str(tmp_path / f"{name}.out.jsonl")])
        assert counts(tmp_path / f"{name}.out.jsonl")["kept"] == 200
    assert len({(tmp_path / f"{name}.out.jsonl").read_bytes() for name in forms}) == 1


@pytest.mark.parametrize("name", ("a.jsonl.gz", "a.jsonl.zst"))
def test_a_packed_file_that_is_cut_or_damaged_is_an_error(tmp_path, name):
    """Bug: half a download that passes for the whole data set (zstandard's stream_reader ends
    without a word).
    """
    rng = random.Random(0)
    path = tmp_path / name
    write(path, [row(prompt="".join(rng.choices("abcdefgh", k=30_000))) for _ in range(20)])
    whole = path.read_bytes()
    for cut in (len(whole) - 1, len(whole) // 2, 100, 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(SystemExit, match=r"a\.jsonl\.\w+(:\d+)?: expected .* found .*fetch"):
            main(["--source", str(path), "--out", str(tmp_path / "t.jsonl"), "--overwrite"])
        assert not (tmp_path / "t.jsonl").exists()
    path.write_bytes(whole[:9] + b"damage" + whole[15:])
    with pytest.raises(SystemExit, match="fetch"):
        main(["--source", str(path), "--out", str(tmp_path / "t.jsonl"), "--overwrite"])


@pytest.mark.parametrize("line",
                         ('{"messages": [', "{'messages': 1}", '{"a": "\x01"}', "[" * 100_000, "[",
                          '{"a": 1} {"a": 2}',
                                  "\ufeff\ufeff{}", '"caf\udce9"'), ids=range(8))
def test_a_broken_line_is_named_and_ends_the_run(tmp_path, line):
    """Bug: rows skipped in silence, a traceback, the number of another line."""
    good = write(tmp_path / "good.jsonl", [row()] * 5)
    write(tmp_path / "bad.jsonl", [row(), "", row(prompt="x")])
    with open(tmp_path / "bad.jsonl", "ab") as f:
        f.write(line.encode("utf-8", "surrogateescape") + b"\n" + json.dumps(row()).encode())
    with pytest.raises(SystemExit,
                       match=r"bad\.jsonl:4: expected one JSON value, found b.*fetch the file"):
        main(["--source", good, str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "t.jsonl")])
    assert not (tmp_path / "t.jsonl").exists()


def test_a_file_cut_in_its_last_line_is_an_error(tmp_path):
    """Bug: a truncated download that passes for the whole data set."""
    path = tmp_path / "a.jsonl"
    write(path, [row()] * 3)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SystemExit, match=r"a\.jsonl:3: .*and there the end of the file"):
        main(["--source", str(path), "--out", str(tmp_path / "t.jsonl")])


def test_wrong_flags_are_named_together_before_any_work(tmp_path, monkeypatch):
    """Bug: hours of work, then a missing file; a source that is overwritten; a missing package
    found late.
    """
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [row()])
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    monkeypatch.setattr(am, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as e:
        main("--source a.jsonl none.jsonl a.parquet a.jsonl.zst --out ./a.jsonl --resume "
             "--overwrite".split())
    for said in ("none.jsonl: no such file", "a.parquet: expected a name", "is also --out",
                 "pip install zstandard", "not both"):
        assert said in str(e.value)
    with pytest.raises(SystemExit, match=r"--out t.jsonl.gz: expected a name that ends in .jsonl"):
        main("--source a.jsonl --out t.jsonl.gz".split())
    assert sorted(os.listdir()) == ["a.jsonl", "a.jsonl.zst"]


def test_no_row_kept_is_an_error(tmp_path, capsys):
    """Bug: an empty training set that is found empty hours later."""
    with pytest.raises(SystemExit, match="no row was kept"):
        main(["--source", write(tmp_path / "a.jsonl", [{"question": "2+2?", "answer": "4"}]),
              "--out", str(tmp_path / "t.jsonl")])
    assert re.search(re.escape(TURNS) + r" +1 +100\.00 %", capsys.readouterr().out)


# --------------------------------------------------------------------------------------------------
# interrupted, and resumed


@pytest.fixture
def sources(tmp_path):
    rng = random.Random(1)
    def one():
        return rng.choice([row(prompt=f"{rng.randint(0, 30)}?", source=rng.choice("ab")),
                           rng.choice(HOSTILE)[1], ""])
    def some(n):
        return [one() for _ in range(n)]
    return [write(tmp_path / "a.jsonl", some(17)), write(tmp_path / "b.jsonl.zst", some(11)),
            write(tmp_path / "empty.jsonl", []),
            write(tmp_path / "c.jsonl.gz", some(9))]


def test_killed_anywhere_it_resumes_to_the_same_bytes(tmp_path, monkeypatch, sources):
    """Bug: rows twice or never after a kill between output, state and rename; counts that are those
    of the last part only.
    """
    monkeypatch.setattr(am, "SAVE_EVERY", 4)
    out, disks, keep = tmp_path / "run" / "t.jsonl", [], []

    def observed(module, name):
        real = getattr(module, name)

        # the disk as a kill just before, or just after, would leave it
        def call(*args, **kwargs):
            for action in (lambda: None, lambda: keep.append(real(*args, **kwargs))):
                action()
                disks.append(shutil.copytree(out.parent, tmp_path / f"disk{len(disks)}",
                                             dirs_exist_ok=True))
        monkeypatch.setattr(module, name, call)

    with monkeypatch.context() as patched:
        monkeypatch = patched
        for module, name in ((os, "fsync"), (os, "replace"), (os, "remove"), (am, "write_text")):
            observed(module, name)
        main(["--source", *sources, "--out", str(out)])
    assert len(disks) > 60
    assert sorted(p.name for p in out.parent.iterdir()) == ["t.jsonl", "t.jsonl.counts.json"]
    whole, table = out.read_bytes(), counts(out)
    assert table["rows"] == 37 and table["dropped"][COPY] and table["kept"] > 3
    for i, disk in enumerate(disks):
        part = disk / "t.jsonl.part"
        # what may lie there since the last state: nothing more, half a line, a line
        if part.exists():
            with open(part, "ab") as f:
                f.write((b"", b'{"id": "0123', whole[:whole.index(b"\n") + 1])[i % 3])
        main(["--source", *sources, "--out", str(disk / out.name), "--resume"])
        assert (disk / out.name).read_bytes() == whole and counts(disk / out.name) == table, i
        assert not part.exists(), i


def test_kill_9_costs_nothing(tmp_path):
    """Bug: what only a real process loses: buffers, locks, half-written state."""
    rng = random.Random(2)
    def pad():
        return "pad " * rng.randint(0, 400)
    rows = [row(boxed(rf"\boxed{{{i}}}"), str(i if i % 3 else i + 1), f"{i}?" + pad())
            for i in range(6000)]
    source, out = write(tmp_path / "a.jsonl.gz", rows), tmp_path / "t.jsonl"
    main(["--source", source, "--out", str(tmp_path / "whole.jsonl")])
    code = (f"import sys; sys.path.insert(0, {ROOT!r}); from experiments import am; "
            "am.SAVE_EVERY = 200; am.main(sys.argv[1:])")
    state, seen = tmp_path / "t.jsonl.state.json", 0
    for stop in (1000, 3000):
        run = subprocess.Popen([sys.executable, "-c", code, "--source", source, "--out", str(out),
                                "--resume"],
                               stdout=subprocess.DEVNULL)
        while run.poll() is None and seen < stop:
            time.sleep(0.005)
            seen = json.loads(state.read_text())["rows"] if state.exists() else 0
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL and not out.exists() and stop <= seen < 6000
    subprocess.run([sys.executable, os.path.join(ROOT, "experiments", "am.py"), "--source", source,
                    "--out", str(out), "--resume"], check=True)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert counts(out) == counts(tmp_path / "whole.jsonl")


@pytest.fixture
def stopped(tmp_path, monkeypatch, sources):
    """The flags of a run that was interrupted after 8 rows."""
    monkeypatch.setattr(am, "SAVE_EVERY", 4)
    flags, real = ["--source", *sources, "--out", str(tmp_path / "t.jsonl")], am.sift
    rows = iter(range(10))

    def tired(*args):
        if next(rows, None) is None:
            raise KeyboardInterrupt
        return real(*args)
    with monkeypatch.context() as patched:
        patched.setattr(am, "sift", tired)
        with pytest.raises(SystemExit, match="130"):
            main(flags)
    return flags


def test_an_interrupted_run_goes_on_only_as_the_same_run(tmp_path, stopped):
    """Bug: half of the file by one grader, half by another; places in a file that has changed; an
    edited output.
    """
    part, state = tmp_path / "t.jsonl.part", tmp_path / "t.jsonl.state.json"
    with pytest.raises(SystemExit, match="state.json exists; --resume goes on.*--overwrite"):
        main(stopped)
    with pytest.raises(SystemExit, match="of a run with other system"):
        main([*stopped, "--resume", "--system"])
    with pytest.raises(SystemExit, match="of a run with other sources"):
        main(["--source", *stopped[2:5], *stopped[5:], "--resume"])
    os.utime(stopped[1], ns=(1, 1))
    with pytest.raises(SystemExit, match="of a run with other sources"):
        main([*stopped, "--resume"])
    os.utime(stopped[1], ns=tuple([json.loads(state.read_text())["run"]["sources"][0][2]] * 2))
    text, length = part.read_bytes(), json.loads(state.read_text())["bytes"]
    assert length > 100
    for other in (b"", text[:length - 1], text[:50] + b"X" + text[51:]):
        part.write_bytes(other)
        with pytest.raises(SystemExit, match="no longer begins with"):
            main([*stopped, "--resume"])
    part.write_bytes(text)
    for broken in ("", "[]", "{}", '{"run": 3}'):
        before = state.read_text()
        state.write_text(broken)
        with pytest.raises(SystemExit, match="nothing to resume; --overwrite"):
            main([*stopped, "--resume"])
        state.write_text(before)
    with open(part, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="another process is writing"):
            main([*stopped, "--resume"])
    main([*stopped, "--resume"])
    main([*stopped[:-1], str(tmp_path / "whole.jsonl")])
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_finished_file_is_not_overwritten_by_accident(tmp_path, stopped, capsys):
    """Bug: a second call that begins again over the first one's result; a loop of --resume that
    never ends.
    """
    main([*stopped, "--resume"])
    whole = (tmp_path / "t.jsonl").read_bytes()
    with pytest.raises(SystemExit, match="t.jsonl exists; --resume"):
        main(stopped)
    main([*stopped, "--resume"])
    assert "finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="of a run with other system"):
        main([*stopped, "--resume", "--system"])
    main([*stopped, "--overwrite", "--system"])
    assert (tmp_path / "t.jsonl").read_bytes() != whole
    main([*stopped, "--overwrite"])
    assert (tmp_path / "t.jsonl").read_bytes() == whole


def test_a_run_started_again_and_interrupted_before_its_first_state(tmp_path, stopped,
                                                                    monkeypatch):
    """Bug: the first run's state beside the second run's output."""
    with monkeypatch.context() as patched:
        patched.setattr(am, "lines_of", lambda path, skip: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main([*stopped, "--overwrite"])
    main([*stopped, "--resume"])
    main([*stopped[:-1], str(tmp_path / "whole.jsonl")])
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_full_disk_is_one_sentence_and_costs_nothing(tmp_path, stopped, monkeypatch):
    """Bug: a traceback; a state that tells of bytes which never reached the disk."""
    def full(fd):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(SystemExit,
                           match="No space left on device; mend that, then --resume goes on"):
            main([*stopped, "--resume"])
    main([*stopped, "--resume"])
    main([*stopped[:-1], str(tmp_path / "whole.jsonl")])
    assert (tmp_path / "t.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_memory_does_not_grow_with_the_files(tmp_path):
    """Bug: a file read whole, rows kept in a list: 30 GB do not fit. A file that packs 20,000 to
    one, unpacked in one piece.
    """
    def text(n, pad):
        return [row(boxed(r"\boxed{4}"), str(i % 40), f"{i}?" + pad()) for i in range(n)]
    paths = [write(tmp_path / "small.jsonl.zst", text(40, lambda: os.urandom(50_000).hex())),
             write(tmp_path / "big.jsonl.zst", text(400, lambda: os.urandom(50_000).hex())),
             write(tmp_path / "big.jsonl", text(400, lambda: "pad " * 25_000)),
             write(tmp_path / "bomb.jsonl.zst", text(400, lambda: "pad " * 25_000))]
    code = ("import sys, re; sys.path.insert(0, sys.argv[1]); from experiments import am\n"
            "for path in sys.argv[2:]:\n"
            "    am.main(['--source', path, '--out', path + '.out.jsonl'])\n"
            "    status = open('/proc/self/status').read()\n"
            "    print('peak', re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n")
    said = subprocess.run([sys.executable, "-c", code, ROOT, *paths], capture_output=True,
                          text=True, check=True).stdout
    small, packed, plain, bomb = (int(n) / 1024 for n in re.findall(r"peak (\d+)", said))
    assert os.path.getsize(paths[2]) > 40e6
    assert max(packed, plain) - small < 15, (small, packed, plain)
    assert bomb - small < 50, (small, bomb)
