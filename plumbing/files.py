"""Files that are written whole or not at all, rows of JSON, and the commit of this checkout."""

import csv
import functools
import glob
import gzip
import hashlib
import io
import json
import os
import subprocess
import zlib

from plumbing.bar import tick

MOST = 1 << 28          # bytes of a JSON file: 25 times the largest tokenizer.json that is known


def reason(error):
    """What an error says; one of the system without its number and the file."""
    return getattr(error, "strerror", None) or str(error)


def in_words(error):
    """reason(), behind the file where the error names one.

    >>> in_words(FileNotFoundError(2, "No such file or directory", "a.jsonl"))
    'a.jsonl: No such file or directory'
    """
    where = isinstance(error, OSError) and error.strerror and (error.filename2 or error.filename)
    return f"{where}: {reason(error)}" if where else reason(error)


def write_atomically(path, write):
    """Call write(file) on a file beside `path`, fsync it, rename it: a crash leaves old or new."""
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    beside = f"{path}.tmp{os.getpid()}"
    try:
        with open(beside, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        if os.path.exists(beside):
            os.remove(beside)


def write_text(path, text):
    """Write a text file, whole or not at all."""
    write_atomically(path, lambda f: f.write(text.encode()))


def write_rows(path, rows):
    """Write dictionaries as JSON, one a line."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def append_lines(path, lines):
    """Append lines to a file, in one write; a crash leaves a half one at most, see whole_lines."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "a") as f:
        f.write("".join(line + "\n" for line in lines))
        f.flush()
        os.fsync(f.fileno())


def whole_lines(path):
    """The lines of a file, if there is one; a half one at its end goes from the file, too."""
    if not os.path.exists(path):
        return []
    with open(path, "r+b") as f:
        content = f.read()
        whole = content.rfind(b"\n") + 1
        f.truncate(whole)
    return content[:whole].decode().splitlines()


def read_text(path):
    """The text of a file that another program has written; ValueError if it is too large."""
    if os.path.getsize(path) > MOST:
        raise ValueError(f"{os.path.basename(path)} has {os.path.getsize(path):,} bytes, expected "
                         f"at most {MOST:,}")
    with open(path, encoding="utf-8") as f:
        return f.read()


def parse_json(text):
    """json.loads; ValueError, and no RecursionError, on what is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_json(path, default):
    """What a JSON file holds; the default where it is not there, damaged, or of another type."""
    try:
        found = parse_json(read_text(path))
        return found if type(found) is type(default) else default
    except (OSError, ValueError):
        return default


def _read_all(path):
    """The text of a file in UTF-8, with or without a byte-order mark, packed if it ends in .gz.

    ValueError, with the line where it breaks, also if a few packed bytes blow up to gigabytes.
    """
    raw, line, opener = bytearray(), "", gzip.open if path.endswith(".gz") else open
    try:
        most = 200 * os.path.getsize(path) + MOST       # text is packed 3 to 30 times smaller
        with opener(path, "rb") as f:
            while part := f.read1(1 << 20):
                raw += part
                if len(raw) > most:
                    raise OSError(f"more than {most:,} bytes, packed 200 times smaller")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[:e.start].count(b"\n") + 1
        found = f"byte 0x{e.object[e.start]:02x}; save it as UTF-8"
    except (OSError, EOFError, zlib.error) as e:
        found = f"{reason(e)}; check the path"
        if raw:
            line, found = raw.count(b"\n") + 1, f"damage ({e}); copy it again"
    raise ValueError(f"{path}{line and f':{line}'}: expected a .jsonl or .jsonl.gz file or a JSON "
                     f"array in UTF-8, found {found}")


def read_rows(path):
    """Yield ("file:line", row) of a .jsonl or .jsonl.gz file, or of a JSON array.

    No row is skipped: ValueError, with file and line, on what is no JSON object.
    """
    text = _read_all(path).replace("\r\n", "\n").replace("\r", "\n")
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip()[:1] == "[":
        try:
            lines = list(enumerate(parse_json(text), 1))
        except ValueError as e:
            raise ValueError(f"{path}: expected a JSON array, found {e}; mend it, or write one "
                             "object a line") from None
    for done, (i, row) in enumerate(lines):
        tick(done / len(lines))
        wrong = ""
        try:
            row = parse_json(row) if isinstance(row, str) else row
        except ValueError as e:
            wrong = f" ({e})"
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{i}: expected one JSON object, found {str(row)[:60]!r}"
                             f"{wrong}; mend or remove that line")
        yield f"{path}:{i}", row


def read_csv(path):
    """Yield ("file:line", row) of a .csv file, whose first line names the columns."""
    csv.field_size_limit(10_000_000)
    reader = csv.DictReader(io.StringIO(_read_all(path), newline=""), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(f"{len(reader.fieldnames)} columns as in its first line")
            yield f"{path}:{reader.line_num}", row
    except (ValueError, csv.Error) as e:
        raise ValueError(f"{path}:{reader.line_num}: expected {e}") from None


def sha256_of(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def code_digest():
    """SHA-256 of this program's own code."""
    here = glob.escape(os.path.dirname(os.path.abspath(__file__)))
    code = [*glob.glob(f"{here}/*.py"), *glob.glob(f"{os.path.dirname(here)}/*.py")]
    return hashlib.sha256("".join(map(sha256_of, sorted(code))).encode()).hexdigest()


@functools.cache                # what a process runs is what it has imported; git takes 20 ms
def commit():
    """Commit of this checkout, with -dirty where it has changes; "unknown" without git."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, cwd=here)
    except OSError:              # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"
