"""Runs a program that a model wrote against trusted tests: it can neither forge a verdict nor harm
the machine. Three kinds of processes beside the caller's:

    zygote     a bare interpreter that forks the two below for each program, times and kills them;
               no source and no test passes through its memory
    candidate  is confined before the first byte of model-written code runs, then answers questions
    referee    runs the trusted tests; each call of the tested function is a question

A program's clock is its processor time plus the time it slept: a busy machine slows a program down
but cannot fail it. The zygote imports this file, and its start is most of what a single check
costs: what only the caller needs is imported where it is used.
"""

import functools
import os
import select
import signal
import stat
import struct
import sys
import time
from collections import namedtuple

from plumbing.candidate import candidate
from plumbing.confine import LIBC, LIMITS, STEPS, UNABLE, libc, resource
from plumbing.referee import referee
from plumbing.values import MB, read, receive, send

MAX_FOLDER, MAX_FILES = 64 * MB, 1_000          # what a program may keep in its folder
Verdict = namedtuple("Verdict", "status detail seconds isolation")   # pass, fail, timeout, error

# ---- the zygote --------------------------------------------------------------------------------


def fork(role, keep, *args):
    """A child that runs role(*keep, *args), with descriptors 0 to 2 and keep, and dies with us."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        for below, above in zip((2, *sorted(keep)), (*sorted(keep), 64), strict=True):
            os.closerange(below + 1, above)
        if hasattr(LIBC, "prctl"):
            libc("prctl", 1, signal.SIGKILL, 0, 0, 0)        # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            role(*keep, *args)
    finally:
        os._exit(0)                             # past atexit, threads and whatever else could hang


def used(pid):
    """(processor seconds of pid, does a thread of it run or wait for a core?)"""
    try:
        seconds, states = time.clock_gettime(~pid << 3 | 2), set()      # Linux: clock of a process
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/stat", "rb") as f:
                states.add(f.read().rpartition(b") ")[2][:1])
        return seconds, b"R" in states
    except OSError:              # no such clock or no /proc, or it has ended: then all is sleep
        return 0.0, False


def size(path, follow):
    """{inode: bytes} of a plain file, or, to follow what a process has open, of a removed one."""
    try:
        file = os.stat(path, follow_symlinks=follow)
    except OSError:
        return {}
    counts = stat.S_ISREG(file.st_mode) and (file.st_nlink == 0 or not follow)
    return {file.st_ino: file.st_blocks * 512} if counts else {}


def full(pid, folder):
    """Does the process keep over MAX_FOLDER bytes or MAX_FILES files, those included that it has
    removed and still has open, or in its memory?"""
    sizes, files = {}, 0
    for path, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        if files > MAX_FILES or len(path) > 1_000:
            return True
        for name in names:
            sizes |= size(os.path.join(path, name), False)
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            for fd in os.listdir(f"/proc/{pid}/task/{thread}/fd"):
                sizes |= size(f"/proc/{pid}/task/{thread}/fd/{fd}", True)
        with open(f"/proc/{pid}/maps", "rb") as f:
            for line in f:
                if line.endswith(b"(deleted)\n"):            # a page may keep the largest file
                    sizes.setdefault(int(line.split()[4]), LIMITS["FSIZE"])
    except OSError:                             # no /proc, or the process has ended
        pass
    return sum(sizes.values()) > MAX_FOLDER


def supervise(pids, done, timeout, folder):
    """Wait for the referee to end. Returns "", or why not: timeout, full, gone (our caller)."""
    poll, start = select.poll(), time.monotonic()
    poll.register(done, 0)                      # both only for their hang-up
    poll.register(0, 0)
    last, slept, looks = start, 0.0, 0
    while True:
        ended = dict(poll.poll(20))
        if ended:
            return "gone" if 0 in ended else ""
        now, looks, use = time.monotonic(), looks + 1, [used(pid) for pid in pids]
        if not any(runs for _, runs in use):
            slept += min(now - last, 0.05)      # a late look says nothing about the time before it
        if sum(seconds for seconds, _ in use) + slept > timeout or now - start > 20 * timeout + 10:
            return "timeout"
        if looks % 5 == 0 and full(pids[0], folder):
            return "full"
        last = now


def bury(pids):
    """Kill and reap pids, and all their orphans, which come to us; seccomp lets there be none."""
    try:
        os.killpg(pids[0], signal.SIGKILL)
    except OSError:                             # it died before it had a group, or left none
        pass
    try:
        while pids:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
            with open(f"/proc/self/task/{os.getpid()}/children") as f:
                pids = [int(pid) for pid in f.read().split()]
    except OSError:                             # no /proc: then no orphans come to us either
        return


def zygote(folder):
    """Serve programs until stdin closes. Each comes as 8 bytes of timeout, a message for the
    candidate, and one for the referee. Where our caller has died we remove its folder."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)   # where seccomp is missing a program may send them
    if hasattr(LIBC, "prctl"):
        libc("prctl", 36, 1, 0, 0, 0)           # PR_SET_CHILD_SUBREAPER
        libc("prctl", 4, 0, 0, 0, 0)            # PR_SET_DUMPABLE: no process may trace us
    while True:
        head = read(0, 8)
        if len(head) < 8:                       # stop() says a byte before it closes our stdin
            return head or remove(folder)
        timeout, = struct.unpack("d", head)
        before, in_force = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), []
        (c_in, r_out), (r_in, c_out), (ready, c_ready), (done, r_done) = (
            os.pipe() for _ in range(4))
        pids, reason = [fork(candidate, (c_in, c_out, c_ready), folder, timeout)], "broken"
        for fd in (c_in, c_out, c_ready):
            os.close(fd)
        try:
            in_force = receive(ready)           # written before any model-written code runs
            stdout = os.dup(1)
            pids.append(fork(referee, (r_out, r_in, r_done, stdout)))
            for fd in (r_out, r_in, r_done, stdout):
                os.close(fd)
            reason = supervise(pids, done, timeout, folder)
        except EOFError:                        # it could not even be confined: harness trouble
            return
        finally:
            bury(pids)
        seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
        if reason == "gone":
            return read(0, 1) or remove(folder)
        send(1, ["end", "timeout" if seconds > timeout else reason, seconds, in_force])
        for fd in (ready, done):
            os.close(fd)


# ---- the caller's side -------------------------------------------------------------------------

BOOT = ("import sys; sys.path.append(sys.argv[1]); import plumbing.sandbox as sandbox; "
        "sys.path.pop(); sandbox.zygote(sys.argv[2]); "
        "sandbox.os._exit(0)")                  # taking an interpreter down costs 3 ms
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@functools.cache
def tell_once(sentence):
    print(f"eval_code: {sentence}", file=sys.stderr)


def folders_of_modules(text):
    """Folders outside the standard library that hold what a test imports: numpy, say."""
    import re
    found = re.findall(r"^\s*(?:import|from)\s+(\w+)", text, re.M)
    names = set(found) - set(sys.stdlib_module_names)
    folders = [path for path in sys.path for name in sorted(names)
               if os.path.exists(os.path.join(path, name)) and path != ROOT]
    return sorted(set(folders))


class Runner:
    """One zygote and one folder, for many programs one after another. Not thread-safe."""

    def __init__(self, boot=BOOT):
        import tempfile
        if UNABLE:
            raise ValueError(UNABLE)
        self.boot, self.process = boot, None
        self.folder = tempfile.mkdtemp(prefix="eval_code-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        if os.path.isdir(self.folder):          # after Ctrl-C the program wrote on until stop()
            remove(self.folder)

    def start(self):
        import subprocess
        env = {"HOME": self.folder, "TMPDIR": self.folder, "TZ": "UTC", "LC_ALL": "C.UTF-8",
               "OPENBLAS_NUM_THREADS": "1",
               "PYTHONHASHSEED": "0"}           # sets in one order, so that a verdict repeats
        command = [sys.executable, "-s", "-S", "-P", "-c", self.boot, ROOT, self.folder]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            cwd=self.folder, start_new_session=True)

    def stop(self):
        """A byte, and the end of its stdin, make the zygote kill what it has, and leave."""
        if self.process:
            try:
                self.process.stdin.write(b"\0")
            except OSError:                     # it is dead
                pass
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
        self.process = None

    def check(self, prompt, completion, test, entry_point, timeout):
        """As the function `check`, without its new zygote each time."""
        if not 0 < timeout <= 1e6:
            raise ValueError(f"check: expected a timeout from 0 to 1e6 seconds, found {timeout}")
        test = test if isinstance(test, str) else "\n".join(test)
        for _ in range(2):                      # what dies is judged once more, by a new zygote
            verdict = self.judge(prompt, completion, test, entry_point, timeout)
            if verdict.status != "dead":
                return verdict
            self.stop()
        # twice: by the program's hand, if a harmless one lives
        alive = self.judge("", "def f(x): return x + 1", "assert f(2) == 3", "f", 10)
        if alive.status == "pass":
            why = f"the program ended its judge, twice ({verdict.detail})"
            return alive._replace(status="fail", detail=why, seconds=0.0)
        self.stop()
        return verdict._replace(status="error")

    def judge(self, prompt, completion, test, entry_point, timeout):
        """A verdict, or one of status dead where zygote or referee gave none."""
        said = "dead", "the referee died without a verdict"
        try:
            if self.process is None:
                self.start()
            inbox, outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
            os.write(outbox, struct.pack("d", timeout))
            send(outbox, prompt + completion)
            send(outbox, dict(prompt=prompt, test=test, entry_point=entry_point,
                              modules=folders_of_modules(f"{prompt}\n{test}")))
            while (message := receive(inbox))[0] == "verdict":
                said = message[1:]
        except (OSError, EOFError) as e:
            self.stop()
            why = f"the confined interpreter did not start, or its zygote died ({e})"
            return Verdict("dead", why, 0.0, ())
        finally:
            clear(self.folder)
        _, reason, seconds, in_force = message
        missing = [step for step in STEPS if step not in in_force]
        if missing:
            tell_once(f"this platform lacks, and programs run without: {', '.join(missing)}")
        if reason == "timeout":
            said = "timeout", f"over {timeout} s of processor time and sleep"
        elif reason == "full":
            said = "fail", f"over {MAX_FOLDER // MB} MB or {MAX_FILES:,} files in its folder"
        if said[0] == "error":
            tell_once(said[1])
        return Verdict(*said, seconds, tuple(in_force))


def clear(folder):
    """Delete what a program left in its folder; no link is followed."""
    os.chmod(folder, 0o700)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            import subprocess
            # rm copes with any depth; chmod is for what was made without rights
            for command in (["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
                subprocess.run([*command, entry.path], stderr=subprocess.DEVNULL)
        else:
            os.unlink(entry.path)


def remove(folder):
    clear(folder)
    os.rmdir(folder)


def check(prompt, completion, test, entry_point, timeout):
    """Does the program prompt + completion pass test? Leaves no process and no file.

    timeout: seconds of processor time and sleep; where the program has to wait for a core it may
    take longer, at most 20 timeouts and 10 s. test: asserts that call entry_point (MBPP), or a
    function check(candidate) of such (HumanEval). Returns a Verdict; .isolation names the steps of
    confinement in force. Calling this function is the consent that the command line asks for.

    >>> check("", "def f(x): return x + 1", "assert f(2) == 3", "f", 3).status
    'pass'
    """
    with Runner() as runner:
        return runner.check(prompt, completion, test, entry_point, timeout)
