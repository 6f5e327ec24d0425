"""A run's folder belongs to one run at a time; what dead runs left in it is removed."""

import os
import re
import shutil
import socket
import time

from plumbing.files import read_json

_locks = {}         # path -> open file; the kernel takes a lock back when its process ends


def _beside(out, ending):
    """The path .NAME.ending beside the folder `out`."""
    parent, name = os.path.split(os.path.abspath(out))
    return os.path.join(os.path.realpath(parent), f".{name}.{ending}")


def lock(out):
    """Hold the folder `out` until unlock() or death -> "", or why there is no lock here.

    ValueError if another process holds it. The lock is on a file beside the folder, since
    --overwrite moves the folder away, and POSIX's (lockf): NFS knows it, and processes that this
    one forks do not inherit it.
    """
    path = _beside(out, "lock")
    if path in _locks:
        return ""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        import fcntl
    except ImportError:                         # Windows
        return f"this system has no file locks; start no second run on {out} beside this one"
    file = open(path, "a+")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise ValueError(f"{out} is in use by {file.read() or 'another run'}; wait until that "
                         "ends, or choose another --name") from None
    except OSError as e:
        return f"no file locks here ({e.strerror}); start no second run on {out} beside this one"
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    _locks[path] = file
    return ""


def unlock(out):
    """Give the folder back, before this process ends."""
    file = _locks.pop(_beside(out, "lock"), None)
    if file is not None:
        file.close()


def has_begun(out):
    """Whether anything lies there beyond a config.json that a kill has left half-written."""
    names = os.listdir(out) if os.path.exists(out) else []
    return any(not name.startswith("config.json.tmp") for name in names)


def is_run(out):
    """Whether its config.json is one of this program, and not that of a Hugging Face folder."""
    config = read_json(os.path.join(out, "config.json"), {})
    return {"name", "stages", "seed", "lam"} <= config.keys() and "model_type" not in config


def remove(out):
    """Delete a folder: it is moved away first, so that a kill leaves no half of a run."""
    if os.path.islink(out):
        raise ValueError(f"{out} is a link to another place; not deleted, choose another --name")
    shutil.rmtree(_beside(out, "deleted"), ignore_errors=True)
    os.rename(out, _beside(out, "deleted"))
    shutil.rmtree(_beside(out, "deleted"), ignore_errors=True)


def sweep_up(out, age=0):
    """Remove what a killed run has left: half-written files, interim states of finished arms, a
    folder that was about to be deleted. age: seconds that such a file must have lain there."""
    shutil.rmtree(_beside(out, "deleted"), ignore_errors=True)
    for folder, _, names in os.walk(out):
        for name in names:
            half = re.search(r"\.tmp(\d+)$", name)
            arm = re.fullmatch(r"resume-(.+\.pt)", name)
            path = os.path.join(folder, name)
            if half and not _lives(int(half[1])) or arm and arm[1] in names:
                if time.time() - os.path.getmtime(path) >= age:
                    os.remove(path)


def _lives(pid):
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:             # it is another user's
        pass
    return pid != os.getpid()   # in this process nothing is being written now


def check_disk(out, arm, needed):
    """ValueError where so many bytes are not free -> a sentence on what an arm will take."""
    free = shutil.disk_usage(out if os.path.isdir(out) else ".").free
    sizes = f"up to {needed / 1e9:,.3g} GB in {out}, {free / 1e9:,.3g} GB are free"
    if needed > free:
        raise ValueError(f"{arm} needs {sizes}; make room, or let out/ be a link to a larger disk")
    return f"{arm}: {sizes}"
