"""The rows of a scoring, in a file to which they are appended as they come.

What was interrupted, even in the middle of a line, goes on where it was, with the rows that it
would have had in one go: prompts are put into the same batches, and each batch is there as a whole
or made again. Rows of another model, other data, settings or code are never gone on with: a digest
of all that made them is a part of the file's name.
"""

import contextlib
import hashlib
import json
import os
import re
from importlib.metadata import version

from plumbing.files import append_lines, code_digest, whole_lines


def weights(path):
    """A digest of a checkpoint or a file of samples; "" where a caller brings the model himself."""
    from plumbing.checkpoints import digest_of  # imports torch: graders do not need it
    is_missing = path.endswith(".pt") and not os.path.exists(path)
    return "" if is_missing else digest_of(path)


class Answers:
    """The finished rows of one model on one set of problems (on one rank).

    folder, name: of the file. judge(rows) -> rows: adds the verdicts. made_of: all that the rows
    depend on beside the code, in values that JSON can hold. said: words on what is there already.
    """

    def __init__(self, folder, name, judge, **made_of):
        made_of.update(code=code_digest(), torch=version("torch"))
        head = json.dumps(made_of, sort_keys=True)
        mark = hashlib.sha256(head.encode()).hexdigest()[:12]
        self.path, self.judge = os.path.join(folder, f"{name}-{mark}.jsonl"), judge
        self.there = {}
        lines = whole_lines(self.path)
        for line in lines[1:]:
            row = json.loads(line)
            self.there[row["id"], row["sample"]] = row
        if not lines:
            append_lines(self.path, [head])
        self.said = f", {len(self.there):,} rows are there" if self.there else ""

    def take(self, rows):
        """Fill in the rows of a batch if all of them are in the file -> whether they are."""
        kept = [self.there.get((row["id"], row["sample"])) for row in rows]
        if None in kept:
            return False
        for row, known in zip(rows, kept, strict=True):
            row.update(known)
        return True

    def add(self, rows):
        """Judge the rows of a batch and append them."""
        append_lines(self.path, map(json.dumps, self.judge(rows)))

    def remove_others(self):
        """Delete the files of the same name that another setting, checkpoint or code has made."""
        folder, own = os.path.split(self.path)
        name = re.escape(own.rpartition("-")[0])
        for other in os.listdir(folder):
            if re.fullmatch(rf"{name}-[0-9a-f]{{12}}\.jsonl", other) and other != own:
                os.remove(os.path.join(folder, other))

    def remove(self):
        """Once all is written elsewhere: delete the file, and its folder with the last one."""
        os.remove(self.path)
        with contextlib.suppress(OSError):              # there are others
            os.rmdir(os.path.dirname(self.path))
