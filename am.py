"""The paper's data: the verified math rows of AM-DeepSeek-R1-Distilled-1.4M, streamed, counted by reason, resumable.

A row stays if its response is <think>..</think> <answer>..\\boxed{}..</answer> and the box equals the reference answer (the paper's
section 4.1). What is kept is JSONL that --data reads.

    python data.py am --source am_0.5M.jsonl.zst am_0.9M.jsonl.zst --out train.jsonl         # the table of counts at the end
    python data.py am --source am_0.5M.jsonl.zst am_0.9M.jsonl.zst --out train.jsonl --resume
"""

import argparse
import gzip
import hashlib
import importlib.util
import io
import json
import os
import re
import time
import zlib

import eval_math

# The authors publish their own counts over the 1,400,000 rows (hub: chhao/AM-DeepSeek-R1-Filtered-Math-Code, math_stats.json):
# 1,034,155 of another format, 94,575 more without a reference, 97,876 with one that math-verify cannot read, 61,737 wrong, 111,657
# kept. The questions here come in the same order. Ours are stricter on the format (theirs, one regular expression, lets tags
# repeat and a box be empty) and drop copies; on the answer, --grader official asks math-verify what they asked it.
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
SAVE_EVERY = 20_000    # rows between two saved states: seconds of work, all that a kill can cost


def sift(row, verdict, system=None):
    r"""A row of the AM schema -> (the reason to drop it or None, its source, its line of train.jsonl as bytes or None).

    verdict(response, boxed, reference) is True, False, or None where it cannot read the reference. `system` is put before the
    user's turn; prompt and response stay as they are, blanks too. The id names these two, whatever file they come from.

    >>> user = {"role": "user", "content": "3+4?", "info": {"source": "s", "reference_answer": "7"}}
    >>> said = {"role": "assistant", "content": r"<think>3+4</think> <answer>\boxed{7}</answer>"}
    >>> sift({"messages": [user, said]}, exact)[:2], sift({"messages": [user]}, exact)[0] == TURNS
    ((None, 's'), True)
    """
    turns = row.get("messages") if isinstance(row, dict) else None
    turns = [t if isinstance(t, dict) else {} for t in turns] if isinstance(turns, list) else []
    info = turns[0].get("info") if turns else None
    text = lambda key: info[key].strip() if isinstance(info, dict) and isinstance(info.get(key), str) else ""
    source, reference = text("source"), text("reference_answer")
    contents = [t.get("content") for t in turns]
    if [t.get("role") for t in turns] != ["user", "assistant"] or not all(isinstance(c, str) and c.strip() for c in contents):
        return TURNS, source, None
    prompt, response = contents
    parts = re.split("(</?(?:think|answer)>)", response)        # text, tag, text, tag, ...
    if sorted(parts[1::2]) != sorted(IN_ORDER):
        return TAGS, source, None
    before, thought, between, answer, after = parts[::2]
    if parts[1::2] != IN_ORDER or (before + between + after).strip():
        return OUTSIDE, source, None
    if not thought.strip():
        return THOUGHT, source, None
    boxed, how = eval_math._extract(answer) if r"\boxed{" in answer else (None, "none")
    if how != "boxed":
        return BOX, source, None
    if not reference:
        return MISSING, source, None
    right = verdict(response, boxed, reference)
    if not right:
        return UNREADABLE if right is None else WRONG, source, None
    messages = [("system", system)] * bool(system) + [("user", prompt), ("assistant", response)]
    try:                                                        # the id stands first: resuming reads it there
        kept = {"id": hashlib.sha256(f"{len(prompt)} {prompt}{response}".encode()).hexdigest()[:16], "source": source,
                "reference_answer": reference, "messages": [{"role": r, "content": c} for r, c in messages]}
        return None, source, json.dumps(kept, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return SURROGATE, source, None


def exact(response, boxed, reference):
    """The last box against the reference by eval_math's exact equality."""
    if eval_math.is_equal(boxed, reference):
        return True
    readable = len(reference) <= eval_math.MAX_CHARS and eval_math._read(eval_math._normalise(reference)) is not None
    return False if readable else None


def official():
    r"""The authors' question -> verdict: math-verify, the reference read as it stands, the response by its boxes.

    Not eval_math.official_grader, the scorer of their evaluation: that one wraps the reference in $ and knows letters A-E. Without
    the $, math-verify takes the reference 9\sqrt{3} for 9, 2\pi for 2 and 1,2 for 1.2: it drops right rows, and keeps wrong ones.
    """
    try:
        from latex2sympy2_extended import NormalizationConfig
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        raise SystemExit("--grader official needs math-verify: pip install math-verify[antlr4_13_2], or leave it out") from None
    how = NormalizationConfig(nits=False, malformed_operators=False, basic_latex=True, boxed="all", units=True)
    boxes = [LatexExtractionConfig(normalization_config=how, boxed_match_priority=0, try_extract_without_anchor=False)]

    def verdict(response, boxed, reference):
        gold = parse(reference, extraction_mode="first_match")
        return bool(verify(gold, parse(response.strip(), boxes, extraction_mode="first_match"))) if gold else None
    return verdict


class ZstdFile(io.RawIOBase):
    """The unpacked bytes of a .zst file. One that ends inside a frame is an error; zstandard's own reader ends in silence."""

    def __init__(self, path):
        import zstandard
        # --ultra --long=31 writes windows of 2 GB; the library's limit is 128 MB
        self.frames = lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        self.file, self.frame, self.packed, self.ready, self.error = open(path, "rb"), None, b"", b"", zstandard.ZstdError

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.ready:
            self.packed = self.packed or self.file.read(1 << 11)    # at its worst 1:32,768, so 64 MB
            if not self.packed and self.frame:
                raise EOFError("the end inside a compressed frame")
            if not self.packed:
                return 0
            self.frame = self.frame or self.frames()
            try:
                self.ready = memoryview(self.frame.decompress(self.packed))
            except self.error as e:
                raise OSError(e) from None
            self.packed = self.frame.unused_data
            self.frame = None if self.frame.eof else self.frame
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n

    def close(self):
        self.file.close()
        super().close()


def lines_of(path, skip=0):
    """The lines of a .jsonl, .jsonl.gz or .jsonl.zst file as bytes, but for the first `skip` bytes of its (unpacked) text."""
    try:
        with (gzip.open(path) if path.endswith(".gz") else io.BufferedReader(ZstdFile(path), 1 << 20) if path.endswith(".zst")
              else open(path, "rb")) as f:
            if path.endswith(".jsonl"):
                f.seek(skip)
            else:                                               # what is packed can only be read through
                while skip > 0 and (skipped := len(f.read(min(skip, 1 << 20)))):
                    skip -= skipped
            yield from f
    except (OSError, EOFError, zlib.error) as e:
        raise SystemExit(f"{path}: expected a whole file, found {e or type(e).__name__}; fetch it again") from None


def filter_rows(sources, out, run, verdict, system, resume):
    """Read the sources, write the kept lines to `out` and the counts beside it -> the counts.

    Every SAVE_EVERY rows the output is synced and a state written: place in the sources, counts, length and CRC of the output.
    Resuming cuts the output back to that length, so it ends byte for byte as if never interrupted. In memory are one line
    and an id per kept row, whatever the size of the files.
    """
    import fcntl
    part, saved = out + ".part", out + ".state.json"
    state = {"run": run, "file": 0, "line": 0, "skip": 0, "bytes": 0, "crc": 0, "rows": 0, "kept": 0,
             "dropped": dict.fromkeys(REASONS, 0), "sources": {}}
    if resume and os.path.exists(saved):
        state = read_record(saved, run)
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    with open(part, "a+b") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"am: another process is writing {part}; wait for it, or end it first") from None
        if state["rows"] == 0 and os.path.exists(saved):
            os.remove(saved)
        f.seek(0)
        ids, size, crc = set(), 0, 0
        while size < state["bytes"] and (line := f.readline()):
            ids.add(line[8:24])
            size, crc = size + len(line), zlib.crc32(line, crc)
        if (size, crc) != (state["bytes"], state["crc"]):
            raise SystemExit(f"am: {part} no longer begins with the {state['bytes']:,} bytes of which {saved} tells; "
                             "--overwrite starts again")
        f.truncate(size)
        start, first = time.time(), state["rows"]

        def save():
            f.flush()
            os.fsync(f.fileno())
            eval_math.write_text(saved, json.dumps(state))
            speed = (state["rows"] - first) / max(time.time() - start, 1e-9)
            print(f"am: {state['rows']:,} rows | {state['kept']:,} kept | files done {state['file']}/{len(sources)} | "
                  f"{speed:,.0f} rows/s", flush=True)

        for path in sources[state["file"]:]:
            for line in lines_of(path, state["skip"]):
                state["line"], state["skip"], state["rows"] = state["line"] + 1, state["skip"] + len(line), state["rows"] + 1
                reason, source, kept = BLANK, "", None
                if line.strip():
                    try:                                        # numbers stay as written: 0.50, or 5,000 digits
                        row = json.loads(line, parse_int=str, parse_float=str)
                    except (ValueError, RecursionError):        # not counted: who knows what else a damaged file lacks?
                        cut = "" if line.endswith(b"\n") else " and there the end of the file"
                        raise SystemExit(f"{path}:{state['line']}: expected one JSON value, found {line[:60]!r}{cut}; fetch "
                                         "the file again, or remove that line; then --overwrite") from None
                    reason, source, kept = sift(row, verdict, system)
                if kept and kept[8:24] in ids:
                    reason, kept = COPY, None
                if kept:
                    f.write(kept)
                    ids.add(kept[8:24])
                    state["kept"], state["bytes"] = state["kept"] + 1, state["bytes"] + len(kept)
                    state["crc"] = zlib.crc32(kept, state["crc"])
                else:
                    state["dropped"][reason] += 1
                known = source[:80] in state["sources"] or len(state["sources"]) < 1000
                of = state["sources"].setdefault(source[:80] if known else "(others)", [0, 0])
                of[:] = of[0] + 1, of[1] + bool(kept)
                if state["rows"] % SAVE_EVERY == 0:
                    save()
            state.update(file=state["file"] + 1, line=0, skip=0)
            save()
        counts = {k: state[k] for k in ("run", "rows", "kept", "dropped", "sources", "bytes", "crc")}
        eval_math.write_text(out + ".counts.json", json.dumps(counts, indent=1))
        os.replace(part, out)
        os.remove(saved)                                        # last: a kill before it leaves a finished file and one too many
    return counts


def read_record(path, run):
    """A saved state or counts file, if it is of this very run."""
    try:
        with open(path) as f:
            record = json.load(f)
        changed = [k for k in run if record["run"][k] != run[k]]
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise SystemExit(f"am: cannot read {path} ({e!r}), so there is nothing to resume; --overwrite starts again") from None
    if changed:
        raise SystemExit(f"am: {path} is of a run with other {' and '.join(changed)}: {[record['run'][k] for k in changed]}, now "
                         f"{[run[k] for k in changed]}; resume with the same, or --overwrite")
    return record


def table(counts):
    """The counts as text, with shares: of all rows, and of each source's own."""
    line = lambda name, n, of: f"{name:62s}{n:>11,}{100 * n / max(of, 1):8.2f} %"
    lines = [f"{'rows':62s}{counts['rows']:>11,}", *(line("  " + k, n, counts["rows"]) for k, n in counts["dropped"].items())]
    lines += [line("kept", counts["kept"], counts["rows"]), "", "of which from (of so many)"]
    sources = sorted(counts["sources"].items(), key=lambda item: (-item[1][1], -item[1][0], item[0]))
    for name, (rows, kept) in sources[:15]:
        lines.append(line(f"  {ascii(name)[1:-1] or '(no source)':44.44s} {rows:>14,}", kept, rows))
    return "\n".join(lines + [f"  and {len(sources) - 15:,} more sources"] * (len(sources) > 15))


def main(argv=None):
    """python data.py am: the command line around filter_rows."""
    cli = argparse.ArgumentParser(prog="python data.py am", description="The verified math rows of AM-DeepSeek-R1-Distilled-1.4M "
                                  "as JSONL that --data reads, and a count of what was dropped, and why.")
    cli.add_argument("--source", nargs="+", required=True, metavar="FILE", help="am_0.5M.jsonl.zst am_0.9M.jsonl.zst; "
                     ".jsonl and .jsonl.gz too, in the order given")
    cli.add_argument("--out", required=True, metavar="FILE.jsonl", help="the counts go to FILE.jsonl.counts.json")
    cli.add_argument("--grader", choices=("exact", "official"), default="exact",
                     help="eval_math's equality, or math-verify as the authors used it")
    cli.add_argument("--system", action="store_true", help="the paper's system prompt before each question, as its SFT had it")
    cli.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped, if there is one")
    cli.add_argument("--overwrite", action="store_true", help="start again, replace --out when done")
    a = cli.parse_args(argv)
    wrong = [f"--source {p}: expected a name that ends in .jsonl, .jsonl.gz or .jsonl.zst" for p in a.source
             if not p.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst"))]
    wrong += [f"--source {p}: no such file" for p in a.source if not os.path.isfile(p)]
    wrong += [f"--source {p}: is also --out" for p in a.source if os.path.realpath(p) == os.path.realpath(a.out)]
    if any(p.endswith(".zst") for p in a.source) and not importlib.util.find_spec("zstandard"):
        wrong.append("--source FILE.zst needs zstandard: pip install zstandard (or unpack with: zstd -d FILE.zst)")
    if not a.out.endswith(".jsonl"):
        wrong.append(f"--out {a.out}: expected a name that ends in .jsonl")
    if a.resume and a.overwrite:
        wrong.append("not both --resume and --overwrite")
    there = [p for p in (a.out, a.out + ".state.json") if os.path.exists(p)]
    if there and not (a.resume or a.overwrite):
        wrong.append(f"{there[0]} exists; --resume goes on with a run, --overwrite starts again, or name another --out")
    if wrong:
        raise SystemExit("am: " + "\nam: ".join(wrong))
    run = {"sources": [[os.path.basename(p), os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in a.source],
           "grader": a.grader, "system": a.system}
    if a.resume and os.path.exists(a.out) and not os.path.exists(a.out + ".part"):
        counts = read_record(a.out + ".counts.json", run)
        print(f"am: {a.out} is finished already")
    else:
        verdict = official() if a.grader == "official" else exact
        try:
            counts = filter_rows(a.source, a.out, run, verdict, eval_math.PAPER_SYSTEM * a.system, a.resume)
        except OSError as e:
            raise SystemExit(f"am: {e}; mend that, then --resume goes on") from None
    print(table(counts))
    if not counts["kept"]:
        raise SystemExit(f"am: no row was kept, {a.out} is empty; the table says why")
