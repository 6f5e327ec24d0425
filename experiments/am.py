"""The paper's data: the verified math rows of AM-DeepSeek-R1-Distilled-1.4M (paper, section 4.1).

A row stays if its response is <think>..</think> <answer>..\\boxed{}..</answer> and the box equals
the reference answer. What is kept is JSONL that --data reads; a table counts what was dropped, by
reason. Files are streamed, and an interrupted run goes on with --resume.

    python experiments/am.py --source am_0.5M.jsonl.zst am_0.9M.jsonl.zst --out train.jsonl
"""

import gzip
import hashlib
import json
import os
import re
import sys
import time
import zlib
from importlib.util import find_spec

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))    # the project

import eval_math
from plumbing import latex
from plumbing.cli import parser_of, program
from plumbing.files import write_text
from plumbing.notation import normalise

# The authors publish their own counts over the 1,400,000 rows (on the hub, math_stats.json of
# chhao/AM-DeepSeek-R1-Filtered-Math-Code): 1,034,155 of another format, 94,575 more without a
# reference, 97,876 with one that math-verify cannot read, 61,737 wrong, 111,657 kept. The questions
# here come in the same order. Those about the format are stricter (theirs is one regular expression
# that lets tags repeat and a box be empty), and copies are dropped. On the answer,
# --grader official asks math-verify what they asked it.
BLANK = "a blank line"
TURNS = "not one user turn and one assistant turn, each with text"
TAGS = "not exactly one each of <think> </think> <answer> </answer>"
OUTSIDE = "text outside of <think>..</think> <answer>..</answer>"
THOUGHT = "nothing between <think> and </think>"
BOX = r"no closed, non-empty \boxed{} in <answer>"
MISSING = "no reference_answer"
UNREADABLE = "a reference_answer that the grader cannot read"
WRONG = "another answer than the reference_answer"
SURROGATE = "half a surrogate pair, which is no text"
COPY = "prompt and response of an earlier kept row"
REASONS = (BLANK, TURNS, TAGS, OUTSIDE, THOUGHT, BOX, MISSING, UNREADABLE, WRONG, SURROGATE, COPY)
IN_ORDER = ["<think>", "</think>", "<answer>", "</answer>"]
SAVE_EVERY = 20_000     # rows between two saved states: a kill costs these seconds of work
ID = slice(8, 24)       # where a kept line, which begins {"id": "..., has its id


def _text(info, key):
    """A text that a row holds beside its turns, stripped; "" if there is none."""
    text = info.get(key) if isinstance(info, dict) else None
    return text.strip() if isinstance(text, str) else ""


def sift(row, verdict, system=None):
    r"""A row of the AM schema -> (reason to drop it or None, its source, its kept line or None).

    verdict(response, boxed, reference) is True, False, or None if it cannot read the reference.
    system: a prompt to put before the user's turn. Prompt and response stay as they are, blanks
    too, and the id is a hash of both, whatever file they come from. The line is JSON in bytes.

    >>> user = {"role": "user", "content": "3+4?", "info": {"source": "s", "reference_answer": "7"}}
    >>> said = {"role": "assistant", "content": r"<think>3+4</think> <answer>\boxed{7}</answer>"}
    >>> sift({"messages": [user, said]}, exact)[:2], sift({"messages": [user]}, exact)[0] == TURNS
    ((None, 's'), True)
    """
    turns = row.get("messages") if isinstance(row, dict) else None
    turns = turns if isinstance(turns, list) else []
    turns = [turn if isinstance(turn, dict) else {} for turn in turns]
    info = turns[0].get("info") if turns else None
    source, reference = _text(info, "source"), _text(info, "reference_answer")
    if [turn.get("role") for turn in turns] != ["user", "assistant"]:
        return TURNS, source, None
    prompt, response = (turn.get("content") for turn in turns)
    for content in (prompt, response):
        if not isinstance(content, str) or not content.strip():
            return TURNS, source, None
    parts = re.split("(</?(?:think|answer)>)", response)        # text, tag, text, tag, ...
    if sorted(parts[1::2]) != sorted(IN_ORDER):
        return TAGS, source, None
    before, thought, between, answer, after = parts[::2]
    if parts[1::2] != IN_ORDER or (before + between + after).strip():
        return OUTSIDE, source, None
    if not thought.strip():
        return THOUGHT, source, None
    boxed, how = eval_math.find_answer(answer) if r"\boxed{" in answer else (None, "none")
    if how != "boxed":
        return BOX, source, None
    if not reference:
        return MISSING, source, None
    right = verdict(response, boxed, reference)
    if not right:
        return UNREADABLE if right is None else WRONG, source, None
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        id = hashlib.sha256(f"{len(prompt)} {prompt}{response}".encode()).hexdigest()[:16]
        kept = {"id": id, "source": source, "reference_answer": reference, "messages": messages}
        return None, source, json.dumps(kept, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return SURROGATE, source, None


def exact(response, boxed, reference):
    """The last box against the reference by eval_math's exact equality."""
    if eval_math.is_equal(boxed, reference):
        return True
    if len(reference) > latex.MAX_CHARS or latex.read(normalise(reference)) is None:
        return None
    return False


def official():
    r"""The verdict that the authors asked for: math-verify, on the response's boxes.

    It reads the reference as it stands. The scorer of their evaluation, eval_math.official_grader,
    is another one: it wraps the reference in $ and knows letters A-E. Without the $, math-verify
    takes the reference 9\sqrt{3} for 9, 2\pi for 2 and 1,2 for 1.2. So this one drops right rows,
    and keeps wrong ones.
    """
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        raise ValueError("--grader official needs math-verify: pip install "
                         "math-verify[antlr4_13_2], or leave it out") from None
    how = NormalizationConfig(nits=False, malformed_operators=False, basic_latex=True, boxed="all",
                              units=True)
    boxes = [LatexExtractionConfig(normalization_config=how, boxed_match_priority=0,
                                   try_extract_without_anchor=False)]

    def verdict(response, boxed, reference):
        gold = parse(reference, extraction_mode="first_match")
        if not gold:
            return None
        return bool(verify(gold, parse(response.strip(), boxes, extraction_mode="first_match")))
    return verdict


def chunks_of(path):
    """The unpacked bytes of a .jsonl, .jsonl.gz or .jsonl.zst file, piece by piece.

    A .zst file that ends inside a frame is an error; zstandard's own reader ends there in silence.
    """
    if not path.endswith(".zst"):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as f:
            while chunk := f.read(1 << 20):
                yield chunk
        return
    import zstandard
    # --ultra --long=31 writes windows of 2 GB; the library's limit is 128 MB
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**31)
    frame, packed = None, b""
    with open(path, "rb") as f:
        # 1 kB at once: the densest packing, 32,768 to 1, makes 32 MB of them
        while packed := packed or f.read(1 << 10):
            frame = frame or decompressor.decompressobj()
            try:
                yield frame.decompress(packed)
            except zstandard.ZstdError as e:
                raise OSError(e) from None
            packed = frame.unused_data
            if frame.eof:
                frame = None
    if frame:
        raise EOFError("the end inside a compressed frame")


def lines_of(path, skip=0):
    """The lines, as bytes, of such a file after `skip` bytes of text."""
    begun = []                          # pieces of a line that has not ended yet
    try:
        for chunk in chunks_of(path):
            skipped = min(skip, len(chunk))
            skip -= skipped
            *lines, rest = chunk[skipped:].split(b"\n")
            for line in lines:
                yield b"".join([*begun, line, b"\n"])
                begun = []
            begun.append(rest)
    except (OSError, EOFError, zlib.error) as e:
        raise ValueError(f"{path}: expected a whole file, found {e or type(e).__name__}; "
                         "fetch it again") from None
    if any(begun):
        yield b"".join(begun)


def filter_rows(sources, out, run, verdict, system, resume):
    """Read the sources, write the kept lines to `out` and the counts beside it -> the counts.

    Every SAVE_EVERY rows the output is synced and a state is written: the place in the sources, the
    counts, length and CRC of the output. Resuming cuts the output back to that length, so that it
    ends byte for byte as if never interrupted. Memory holds one line, and an id for each kept row,
    whatever the size of the files.
    """
    import fcntl
    part, saved = out + ".part", out + ".state.json"
    state = {"run": run, "file": 0, "line": 0, "skip": 0, "bytes": 0, "crc": 0, "rows": 0,
             "kept": 0, "dropped": dict.fromkeys(REASONS, 0), "sources": {}}
    if resume and os.path.exists(saved):
        state = read_record(saved, run)
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    with open(part, "a+b") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"am: another process is writing {part}; wait for it, or end it "
                             "first") from None
        if state["rows"] == 0 and os.path.exists(saved):
            os.remove(saved)
        ids = _take_up(f, state, saved)
        start, first = time.time(), state["rows"]

        def save():
            f.flush()
            os.fsync(f.fileno())
            write_text(saved, json.dumps(state))
            speed = (state["rows"] - first) / max(time.time() - start, 1e-9)
            print(f"am: {state['rows']:,} rows | {state['kept']:,} kept | files done "
                  f"{state['file']}/{len(sources)} | {speed:,.0f} rows/s", flush=True)

        for path in sources[state["file"]:]:
            for line in lines_of(path, state["skip"]):
                state["line"] += 1
                state["skip"] += len(line)
                state["rows"] += 1
                reason, source, kept = BLANK, "", None
                if line.strip():
                    row = _parse(line, f"{path}:{state['line']}")
                    reason, source, kept = sift(row, verdict, system)
                if kept and kept[ID] in ids:
                    reason, kept = COPY, None
                if kept:
                    f.write(kept)
                    ids.add(kept[ID])
                    state["kept"] += 1
                    state["bytes"] += len(kept)
                    state["crc"] = zlib.crc32(kept, state["crc"])
                else:
                    state["dropped"][reason] += 1
                count = state["sources"].get(source[:80])
                if count is None:       # the state must stay small: at most 1,000 sources
                    name = source[:80] if len(state["sources"]) < 1000 else "(others)"
                    count = state["sources"].setdefault(name, [0, 0])
                count[0] += 1
                count[1] += bool(kept)
                if state["rows"] % SAVE_EVERY == 0:
                    save()
            state.update(file=state["file"] + 1, line=0, skip=0)
            save()
        names = ("run", "rows", "kept", "dropped", "sources", "bytes", "crc")
        counts = {name: state[name] for name in names}
        write_text(out + ".counts.json", json.dumps(counts, indent=1))
        os.replace(part, out)
        os.remove(saved)                # last, so that a kill before it leaves a finished file
    return counts


def _take_up(f, state, saved):
    """Cut the output back to what the state tells of -> the ids of its rows."""
    f.seek(0)
    ids, size, crc = set(), 0, 0
    while size < state["bytes"]:
        line = f.readline()
        if not line:
            break
        ids.add(line[ID])
        size += len(line)
        crc = zlib.crc32(line, crc)
    if (size, crc) != (state["bytes"], state["crc"]):
        raise ValueError(f"am: {f.name} no longer begins with the {state['bytes']:,} bytes of "
                         f"which {saved} tells; --overwrite starts again")
    f.truncate(size)
    return ids


def _parse(line, where):
    try:                                # numbers stay as they are written: 0.50, or 5,000 digits
        return json.loads(line, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        # Not counted as dropped: who knows what else a damaged file lacks?
        cut = "" if line.endswith(b"\n") else " and there the end of the file"
        raise ValueError(f"{where}: expected one JSON value, found {line[:60]!r}{cut}; fetch the "
                         "file again, or remove that line; then --overwrite") from None


def read_record(path, run):
    """A saved state or counts file, if it is of this very run."""
    try:
        with open(path) as f:
            record = json.load(f)
        changed = [k for k in run if record["run"][k] != run[k]]
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise ValueError(f"am: cannot read {path} ({e!r}), so there is nothing to resume; "
                         "--overwrite starts again") from None
    if changed:
        raise ValueError(f"am: {path} is of a run with other {' and '.join(changed)}: "
                         f"{[record['run'][k] for k in changed]}, now {[run[k] for k in changed]}; "
                         "resume with the same, or --overwrite")
    return record


def table(counts):
    """The counts as text, with shares: of all rows, and of each source's own."""
    def line(name, n, of):
        return f"{name:62s}{n:>11,}{100 * n / max(of, 1):8.2f} %"

    lines = [f"{'rows':62s}{counts['rows']:>11,}"]
    for reason, n in counts["dropped"].items():
        lines.append(line("  " + reason, n, counts["rows"]))
    lines += [line("kept", counts["kept"], counts["rows"]), "", "of which from (of so many)"]
    sources = [(-kept, -rows, name) for name, (rows, kept) in counts["sources"].items()]
    sources.sort()                      # first those that most rows were kept from
    for kept, rows, name in sources[:15]:
        name = ascii(name)[1:-1] or "(no source)"
        lines.append(line(f"  {name:44.44s} {-rows:>14,}", -kept, -rows))
    if len(sources) > 15:
        lines.append(f"  and {len(sources) - 15:,} more sources")
    return "\n".join(lines)


def wrong_flags(a):
    """What is wrong with the flags, each in a sentence."""
    wrong = []
    for path in a.source:
        if not path.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
            wrong.append(f"--source {path}: expected a name that ends in .jsonl, .jsonl.gz or "
                         ".jsonl.zst")
        if not os.path.isfile(path):
            wrong.append(f"--source {path}: no such file")
        if os.path.realpath(path) == os.path.realpath(a.out):
            wrong.append(f"--source {path}: is also --out")
    if any(path.endswith(".zst") for path in a.source) and not find_spec("zstandard"):
        wrong.append("--source FILE.zst needs zstandard: pip install zstandard (or unpack with: "
                     "zstd -d FILE.zst)")
    if not a.out.endswith(".jsonl"):
        wrong.append(f"--out {a.out}: expected a name that ends in .jsonl")
    if a.resume and a.overwrite:
        wrong.append("not both --resume and --overwrite")
    there = [path for path in (a.out, a.out + ".state.json") if os.path.exists(path)]
    if there and not (a.resume or a.overwrite):
        wrong.append(f"{there[0]} exists; --resume goes on with a run, --overwrite starts again, "
                     "or name another --out")
    return wrong


@program("am")
def main(argv=None):
    """The command line around filter_rows."""
    cli = parser_of(__doc__, "python experiments/am.py")
    cli.add_argument("--source", nargs="+", required=True, metavar="FILE",
                     help="am_0.5M.jsonl.zst am_0.9M.jsonl.zst; .jsonl and .jsonl.gz too, in the "
                     "order given")
    cli.add_argument("--out", required=True, metavar="FILE.jsonl",
                     help="the counts go to FILE.jsonl.counts.json")
    cli.add_argument("--grader", choices=("exact", "official"), default="exact",
                     help="eval_math's equality, or math-verify as the authors used it")
    cli.add_argument("--system", action="store_true",
                     help="the paper's system prompt before each question, as its SFT had it")
    cli.add_argument("--resume", action="store_true",
                     help="go on where an interrupted run stopped, if there is one")
    cli.add_argument("--overwrite", action="store_true",
                     help="start again, replace --out when done")
    a = cli.parse_args(argv)
    wrong = wrong_flags(a)
    if wrong:
        raise ValueError("am: " + "\nam: ".join(wrong))
    run = {"sources": [[os.path.basename(path), os.path.getsize(path), os.stat(path).st_mtime_ns]
                       for path in a.source], "grader": a.grader, "system": a.system}
    if a.resume and os.path.exists(a.out) and not os.path.exists(a.out + ".part"):
        counts = read_record(a.out + ".counts.json", run)
        print(f"am: {a.out} is finished already")
    else:
        verdict = official() if a.grader == "official" else exact
        system = eval_math.PAPER_SYSTEM if a.system else ""
        try:
            counts = filter_rows(a.source, a.out, run, verdict, system, a.resume)
        except OSError as e:
            raise ValueError(f"am: {e}; mend that, then --resume goes on") from None
    print(table(counts))
    if not counts["kept"]:
        raise ValueError(f"am: no row was kept, {a.out} is empty; the table says why")


if __name__ == "__main__":
    main()
