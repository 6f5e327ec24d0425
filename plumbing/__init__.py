"""What a run needs and a reader of the method does not: see README.md in this folder."""

import os
import sys

# Before torch is imported. Threads that spin at barriers make a busy machine ten times slower,
# threads that sleep at once make two of them slower than one: let them spin for 10 us. Large
# tensors in pages of 2 MB.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Every program imports this first of its own files, so an old Python must be able to parse it.
if sys.version_info < (3, 11):  # noqa: UP036
    found = sys.version.split()[0]
    raise SystemExit("wmss: expected Python 3.11 or newer, found " + found + "; make the virtual "
                     "environment again with a newer one (python3.11 -m venv venv)")
