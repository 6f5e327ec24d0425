"""Files that are written whole or not at all, rows of JSON, and the commit of this checkout."""

import gzip
import json
import os
import subprocess


def in_words(error):
    """What an error says; one of the system without its number, the file first.

    >>> in_words(FileNotFoundError(2, "No such file or directory", "a.jsonl"))
    'a.jsonl: No such file or directory'
    """
    if isinstance(error, OSError) and error.strerror:
        where = error.filename2 or error.filename
        return f"{where}: {error.strerror}" if where else error.strerror
    return str(error)


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


def read_rows(path):
    """Yield ("file:line", row) of a .jsonl or .jsonl.gz file, or of a JSON array.

    No row is skipped: ValueError, with file and line, on what is no JSON object.
    """
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as f:
            text = f.read()
        if text.lstrip()[:1] == "[":
            lines = list(enumerate(json.loads(text), 1))
        else:
            lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, ValueError) as e:
        raise ValueError(f"{path}: expected a .jsonl or .jsonl.gz file or a JSON array, found "
                         f"{getattr(e, 'strerror', None) or e}; check the path") from None
    for i, row in lines:
        try:
            row = json.loads(row) if isinstance(row, str) else row
        except ValueError:
            pass
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{i}: expected one JSON object, found {str(row)[:60]!r}; "
                             "mend or remove that line")
        yield f"{path}:{i}", row


def commit():
    """Commit of this checkout, with -dirty where it has changes; "unknown" without git."""
    here = os.path.dirname(os.path.abspath(__file__))
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, cwd=here)
    except OSError:              # no git on this machine
        return "unknown"
    return git.stdout.strip() or "unknown"
