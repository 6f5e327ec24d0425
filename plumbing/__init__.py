"""What a run needs and a reader of the method does not: see README.md in this folder."""

import sys

# Every program imports this first of its own files, so an old Python must be able to parse it.
if sys.version_info < (3, 11):  # noqa: UP036
    found = sys.version.split()[0]
    raise SystemExit("wmss: expected Python 3.11 or newer, found " + found + "; make the virtual "
                     "environment again with a newer one (python3.11 -m venv venv)")
