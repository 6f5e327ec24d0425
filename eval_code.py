"""Scores model-written code. Each program runs in a fresh confined interpreter and its tests run in another process, which
the program cannot reach: it can neither forge a verdict nor harm the machine. The paper's code rows are HumanEval and MBPP.

    python eval_code.py out/code/wmss.pt --allow-code-execution                              # the built-in task, no download
    python eval_code.py samples.jsonl --data humaneval=HumanEval.jsonl.gz --allow-code-execution --workers 4 --timeout 3
    python -c "from eval_code import *; print(check('', 'def f(x): return x + 1', 'assert f(2) == 3', 'f', 3).status)"  # pass

    this process   reads data, asks for verdicts, writes them; never touches a value that a program made
    zygote         a bare interpreter (no site, no environment) that forks the two below for each program, times and kills them;
                   no source and no test passes through its memory, so each fork of it is as good as a new interpreter
    candidate      is confined before the first byte of model-written code runs, then answers one question after another
    referee        runs the trusted tests: each call of the tested function is a question to the candidate, and the answer is
                   decoded into exact builtin types. No foreign __eq__, no pickle, no exit status, no printed marker counts.

A program's clock is its processor time plus the time it slept: a busy machine slows a program down but cannot fail it.
"""
import builtins
import ctypes
import json
import os
import re
import resource
import select
import signal
import struct
import sys
import time
from collections import namedtuple

# The zygote imports this file too, and its start is most of what a single check costs: imports that only readers and command
# line need (argparse, re, subprocess, eval_math, ...) stand where they are used. Together 50 ms that no check should pay.

MB = 1 << 20
LIMITS = {"AS": 512 * MB, "FSIZE": 8 * MB, "NOFILE": 64, "CORE": 0}     # per program; CPU follows from the timeout
MAX_FOLDER, MAX_FILES = 64 * MB, 1_000                    # what a program may keep in its folder: bytes, files
MAX_REPLY, MAX_DEPTH, REFEREE_AS = 4 * MB, 64, 200 * MB   # an answer's bytes and nesting; what the trusted side may spend on it
EXPECTED = {"humaneval": 164, "mbpp": 974, "mbpp-test": 500}            # mbpp-test: task ids 11 to 510, the split that is reported
STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\n```")    # where a continued function has ended
Verdict = namedtuple("Verdict", "status detail seconds isolation")      # status: pass, fail, timeout, error (harness trouble)

# ----------------------------------------------------------------------------------------------------------------------
# values: plain data as tagged JSON. A list is itself; whatever else JSON lacks is an object of exactly one key, its type

TYPES = {t.__name__: t for t in (bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict)}
PARTS = {int: hex, complex: lambda x: [x.real, x.imag], tuple: list, set: list, frozenset: list, bytes: list, bytearray: list,
         dict: lambda x: list(map(list, x.items()))}     # hex: int() reads 4,300 decimal digits at most
BUILD = {**TYPES, "bytearray": bytearray, "complex": lambda v: complex(*v), "int": lambda v: int(v, 16), "type": TYPES.__getitem__}


def pack(x, other, depth=0):
    """Value -> tagged JSON tree: (1, {2}) -> {"tuple": [1, {"set": [2]}]}. other(x) packs what is not plain data, or raises.

    An object of a subclass (Counter, namedtuple, a str with an __eq__ of its own) is packed as the plain value that it holds.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if x is None or isinstance(x, (bool, float, str)) or isinstance(x, int) and -2**63 < x < 2**63:
        return x
    if isinstance(x, list):
        return [pack(v, other, depth + 1) for v in x]
    for kind, parts in PARTS.items():
        if isinstance(x, kind):
            return {kind.__name__: pack(parts(x), other, depth + 1)}
    return {"type": x.__name__} if isinstance(x, type) and x in TYPES.values() else other(x)


def unpack(x, handle, depth=0):
    """Inverse of pack; {"handle": n} -> handle(n). Raises ValueError, TypeError, KeyError on what pack does not write."""
    if depth > 2 * MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if type(x) is list:
        return [unpack(v, handle, depth + 1) for v in x]
    if type(x) is not dict:
        return x                                 # None, bool, int, float, str: json makes exactly these
    (tag, v), = x.items()
    return handle(v) if tag == "handle" else BUILD[tag](unpack(v, handle, depth + 1))


def read(fd, n):
    """n bytes from fd (fewer at its end) and not one more: what follows in the pipe is for another process."""
    parts = []
    while n and (part := os.read(fd, min(n, MB))):
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def send(fd, obj):
    data = json.dumps(obj).encode()              # ASCII: a lone surrogate travels as \udXXX
    os.write(fd, struct.pack(">I", len(data)) + data)      # a pipe that blocks takes all of it


def receive(fd, limit=1 << 32):
    """One message. Raises EOFError where the other side is gone, or its message is over limit bytes (then it is not read)."""
    head = read(fd, 4)
    n = struct.unpack(">I", head)[0] if len(head) == 4 else 0
    if not 0 < n <= limit or len(data := read(fd, n)) < n:
        raise EOFError(f"expected a message of 1 to {limit:,} bytes, found {n:,}")
    return json.loads(data)


# ----------------------------------------------------------------------------------------------------------------------
# confinement of the candidate

LIBC = ctypes.CDLL(None, use_errno=True)
STEPS = ("session", *(f"rlimit_{n.lower()}" for n in (*LIMITS, "CPU")), "no_new_privs", "landlock", "capabilities", "seccomp")
# System calls refused with EPERM, x86_64 | aarch64. The rest is harmless within the other limits, or newer than 449, the last
# number that was reviewed, and answered ENOSYS, on which libc falls back to an older call.
DENIED = {
    "sockets, but for socketpair, which asyncio opens": "41-52 54-55 288 299 307 | 198 200-212 242-243 269",
    "processes; clone is below": "57-59 322 | 221 281",
    "signals to others": "62 129 200 234 297 424 434 | 129-131 138 240 424 434",
    "memory, files, scheduling of others":
        "101 141-142 144 203 251 310-312 314 438 440 448 | 30 117-119 122 140 270-272 274 438 440 448",
    "owner, mode, times, size, attributes of files, which Landlock lets pass":
        "76 90-94 132 188-190 197-199 235 260-261 268 280 | 5-7 14-16 45 52-55 88",
    "ids, capabilities, sessions, prctl":
        "105-106 109 112-114 116-117 119 122-123 126 157 | 91 143-147 149 151-152 154 157 159 167",
    "memory outside the limits": "29-31 64-71 240-245 319 447 | 180-197 279 447",
    "io_uring: file calls unseen by filters": "425-427 | 425-427",
    "the kernel":
        "103 133-136 139 153-156 159 161-185 212 227 236-239 246 248-250 256 259 272 279 298 300-301 303-306 308 313 320-321 323 "
        "428-433 442-443 | 18 33 39-42 51 58 60 81 89 92 97 104-106 112 116 142 161-162 170-171 217-219 224-225 235-239 241 "
        "262-268 273 280 282 294 428-433 442-443"}
JSET, JEQ, JGE, JGT, LOAD, RETURN = 0x45, 0x15, 0x35, 0x25, 0x20, 0x06             # of the kernel's packet filter language
BY_ARGUMENT = (((56, 220), 0, JSET, 0x10000, True),        # clone: threads (CLONE_THREAD) yes, processes no
               ((302, 261), 0, JEQ, 0, True),              # prlimit64: of oneself yes, of others no
               ((72, 25), 1, JSET, 8, False))              # fcntl 8 to 15, F_SETOWN and kin: they send signals to others


def libc(name, *args):
    """Call a libc function; raises OSError, AttributeError where there is none. (ctypes would pass a bare int as 32 bits.)"""
    if (result := getattr(LIBC, name)(*(ctypes.c_long(a) if isinstance(a, int) else a for a in args))) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def landlock(folder):
    """Write below folder only; read there and what Python itself reads. TCP from ABI 4, no signals to others from ABI 6."""
    abi = libc("syscall", 444, None, 0, 1)
    rights = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    ruleset = libc("syscall", 444, struct.pack("QQQ", rights, 3, 3), 8 if abi < 4 else 16 if abi < 6 else 24, 0)
    write, look, manage = 1 << 1 | 1 << 14, 1 << 2 | 1 << 3, 1 << 5 | 1 << 8     # manage: make and remove files
    rules = {folder: write | look | manage, os.devnull: write | look}
    for path in (os.path.dirname(os.__file__), sys.base_prefix + "/lib", "/lib", "/lib64", "/usr/lib", "/usr/lib64",
                 "/usr/share/zoneinfo", "/etc/ld.so.cache", "/dev/urandom", *rules):
        if os.path.exists(path):
            fd = os.open(path, os.O_PATH)
            allowed = rules.get(path, look) & rights & (-1 if os.path.isdir(path) else write | 1 << 2)
            libc("syscall", 445, ruleset, 1, struct.pack("=Qi", allowed, fd), 0)
            os.close(fd)
    libc("syscall", 446, ruleset, 0)


def seccomp():
    """Install the filter of DENIED and BY_ARGUMENT for this and all later threads. Raises KeyError on other machines."""
    column, arch = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}[os.uname().machine]
    allow, deny, no_such_call, kill = 0x7FFF0000, 0x50001, 0x50026, 0x80000000               # EPERM, ENOSYS
    code = [(LOAD, 0, 0, 4), (JEQ, 1, 0, arch), (RETURN, 0, 0, kill), (LOAD, 0, 0, 0),       # 32-bit calls have other numbers
            (JGE, 1, 0, 450), (JEQ, 0, 1, 435), (RETURN, 0, 0, no_such_call)]                # clone3 hides its flags
    for numbers, argument, jump, constant, good in BY_ARGUMENT:
        code += [(JEQ, 0, 4, numbers[column]), (LOAD, 0, 0, 16 + 8 * argument), (jump, 0, 1, constant),
                 (RETURN, 0, 0, allow if good else deny), (RETURN, 0, 0, deny if good else allow)]
    for span in " ".join(group.split("|")[column] for group in DENIED.values()).split():
        first, _, last = span.partition("-")
        code += [(JGE, 0, 2, int(first)), (JGT, 1, 0, int(last or first)), (RETURN, 0, 0, deny)]
    code = b"".join(struct.pack("HBBI", *line) for line in code + [(RETURN, 0, 0, allow)])
    buffer = ctypes.create_string_buffer(code)
    libc("prctl", 22, 2, struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)), 0, 0)


def confine(folder, timeout):
    """Give up, for good, what a small function does not need; returns which of STEPS are in force.

    Each step stands alone: where kernel, platform or container refuse one, the others hold. Root keeps its uid (its Python
    may lie where nobody else can read) but no capability, so it can neither trace nor override anything.
    """
    in_force = []

    def step(name, action, *args):
        try:
            action(*args)
            in_force.append(name)
        except (OSError, ValueError, KeyError, AttributeError):    # not to be had here, which its absence from in_force reports
            return

    def limit(name, value):
        hard = resource.getrlimit(which := getattr(resource, f"RLIMIT_{name}"))[1]
        resource.setrlimit(which, (value if hard == resource.RLIM_INFINITY else min(value, hard),) * 2)

    os.chdir(folder)
    step("session", os.setsid)
    for name, value in {**LIMITS, "CPU": int(timeout) + 2}.items():      # CPU: in case the zygote itself is held up
        step(f"rlimit_{name.lower()}", limit, name, value)
    step("no_new_privs", libc, "prctl", 38, 1, 0, 0, 0)
    step("landlock", landlock, folder)
    step("capabilities", libc, "capset", struct.pack("Ii", 0x20080522, 0), bytes(24))
    step("seccomp", seccomp)
    if "seccomp" not in in_force:                # second best: it stops threads as well, since it counts all of a user's
        step("rlimit_nproc", limit, "NPROC", 0)
    return in_force


# ----------------------------------------------------------------------------------------------------------------------
# the candidate's process


def take_job():
    """The next message on stdin, which the zygote has not read; from then on 0, 1 and 2 are the null device."""
    job, null = receive(0), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return job


def candidate(inbox, outbox, ready, folder, timeout):
    """Confine this process, then answer questions: [nonce, op, target, args] -> [nonce, kind, value, changed arguments].

    Model-written code may rewrite all of this and speak in its place: whatever it says is only what its function claims to
    return. The nonce keeps it from answering a question before it has heard it.
    """
    program = take_job()
    send(ready, confine(folder, timeout))
    os.close(ready)
    module = sys.modules["candidate"] = type(sys)("candidate")           # dataclasses look their module up by name
    private = sys.modules["builtins"] = type(sys)("builtins")            # to patch as it likes, without breaking this loop
    vars(private).update(vars(builtins))
    vars(module)["__builtins__"] = private
    kept = []                                    # what is not plain data stays here, the referee gets its number

    def keep(x):
        kept.append(x)
        return {"handle": len(kept) - 1}

    run = {"load": lambda target, *args: exec(compile(program, "<candidate>", "exec"), vars(module)),
           "name": lambda target, *args: vars(module)[target],
           "get": lambda target, name: getattr(kept[target], name),
           "set": lambda target, name, value: setattr(kept[target], name, value),
           "call": lambda target, args, kwargs: kept[target](*args, **kwargs)}
    while True:
        nonce, op, target, packed = receive(inbox)
        try:
            args = unpack(packed, kept.__getitem__)
            value = run[op](target, *args)       # a function that works in place returns None, as list.sort does:
            changed = pack(list(args[0]), keep) if op == "call" and value is None else None    # only then its arguments are results
            reply = [nonce, "value", pack(value, keep), changed]
        except BaseException as e:               # SystemExit too: how a program ends is no verdict
            known = next(k.__name__ for k in type(e).__mro__ if k.__module__ == "builtins")
            reply = [nonce, "raise", known, f"{type(e).__name__}: {e}"[:200]]
        send(outbox, reply)


# ----------------------------------------------------------------------------------------------------------------------
# the referee's process


class Breach(BaseException):
    """The candidate is gone, broke the protocol, or has no plain data where a test needs some. No `except Exception` hides it."""


class Remote:
    """What is not plain data, by its number in the candidate: function, class, object, generator. A test may call it, pass it
    back, iterate, read and set attributes; not compare it or ask for its truth, which would be the candidate's own verdict."""

    def __init__(self, ask, handle):
        vars(self).update(_ask=ask, _handle=handle)

    def __call__(self, *args, **kwargs):
        return self._ask("call", self._handle, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__iter__", "__next__"):
            raise AttributeError(name)           # copy and pickle probe for such names
        return self._ask("get", self._handle, name)

    def __setattr__(self, name, value):
        self._ask("set", self._handle, name, value)

    def _refuse(self, *_):
        self._ask("refuse", None)

    __iter__, __next__ = (lambda self: self.__getattr__("__iter__")()), (lambda self: self.__getattr__("__next__")())
    __eq__ = __ne__ = __bool__ = __hash__ = _refuse


class Names(dict):
    """Globals of a test. What it does not set itself is: the tested function; else a builtin; else a helper in the prompt, run
    here (or a program could redefine `poly` of HumanEval/32 and so grade itself); else a standard module; else the candidate's."""

    def __init__(self, ask, prompt, entry_point):
        super().__init__({entry_point: ask("name", entry_point), "__name__": "test"})
        self.ask, self.prompt, self.helpers = ask, prompt, dict(self)

    def __missing__(self, name):                 # CPython asks it for the globals of functions too
        if hasattr(builtins, name):
            raise KeyError(name)                 # the interpreter goes on to the builtin
        for text in (self.prompt + "\n    pass\n", self.prompt) if self.prompt else ():      # with a body for an open function
            try:
                exec(compile(text, "<prompt>", "exec"), found := {"__name__": "prompt"})
            except SyntaxError:                  # words, or code that leaves no function open
                continue
            found.update(self.helpers)           # helpers that call the tested function call the candidate's
            self.helpers, self.prompt = found, ""
            break
        if name in self.helpers:
            return self.helpers[name]
        return __import__(name) if name in sys.stdlib_module_names else self.ask("name", name)


def referee(outbox, inbox, done, stdout):
    """Run a job's tests against the candidate; sends ["verdict", status, detail] to stdout. `done` closes at its end."""
    job, calls, stands = take_job(), 0, ()       # stands: status and reason that hold even if a bare `except:` in a test goes on
    if sys.platform == "linux":                  # elsewhere the kernel refuses or ignores it
        resource.setrlimit(resource.RLIMIT_AS, (REFEREE_AS, REFEREE_AS))

    def end(status, why):
        nonlocal stands
        stands = stands or (status, why)
        raise Breach(why)

    def argument(x):
        if type(x) is Remote:
            return {"handle": x._handle}
        end("error", f"the test passes a {type(x).__name__}; expected plain data, or something from the candidate")

    def ask(op, target, *args):
        nonlocal calls
        if op == "refuse" or stands:
            end("fail", "a value that is not plain data, where the test compares or weighs one")
        calls, nonce = calls + (op == "call"), int.from_bytes(os.urandom(7), "big")
        question = [nonce, op, target, pack(args, argument)["tuple"]]
        try:
            send(outbox, question)
            number, kind, value, changed = (unpack(v, lambda n: Remote(ask, int(n))) for v in receive(inbox, MAX_REPLY))
            if number != nonce or kind not in ("value", "raise"):
                raise ValueError("it answers no question")
        except (OSError, EOFError) as e:
            end("fail", f"the program ended or said too much: {e}")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError) as e:
            end("fail", f"an answer that is not plain data: {type(e).__name__}")
        if kind == "raise":                      # as the builtin exception that it is or derives from
            error = getattr(builtins, str(value), None)
            if not (isinstance(error, type) and issubclass(error, Exception)):
                end("fail", f"the program raised {changed}")
            raise Exception(changed) if issubclass(error, UnicodeError) else error(changed)
        for old, new in zip(args[0], changed) if value is None and type(changed) is list else ():
            if type(old) is type(new) and type(old) in (list, dict, set):
                old.clear()
                (old.extend if type(old) is list else old.update)(new)
        return value

    status, detail, code = "pass", "", None
    try:
        code = compile(job["test"], "<test>", "exec")
        ask("load", None)
        names = Names(ask, job["prompt"], job["entry_point"])
        function = names[job["entry_point"]]
        exec(code, names)
        if names.get("check", function) is not function:                          # HumanEval's way
            names["check"](function)
        if not calls:
            status, detail = "error", f"the test never calls {job['entry_point']}, so it proves nothing"
    except BaseException as e:
        line, tb = 0, e.__traceback__
        while tb:
            line, tb = tb.tb_lineno if tb.tb_frame.f_code.co_filename == "<test>" else line, tb.tb_next
        status, detail = "fail" if code else "error", f"test line {line}: {type(e).__name__}: {e}"
    status, detail = stands or (status, detail)
    send(stdout, ["verdict", status, detail[:300]])               # under 4,096 bytes: a pipe takes it whole or not at all


# ----------------------------------------------------------------------------------------------------------------------
# the zygote's process


def fork(role, keep, *args):
    """A child that runs role(*keep, *args) and dies with this process; of its descriptors it has 0 to 2 and keep."""
    parent = os.getpid()
    if pid := os.fork():
        return pid
    try:
        for below, above in zip((2, *sorted(keep)), (*sorted(keep), 64)):
            os.closerange(below + 1, above)
        if hasattr(LIBC, "prctl"):
            libc("prctl", 1, signal.SIGKILL, 0, 0, 0)                             # PR_SET_PDEATHSIG
        if os.getppid() == parent:
            role(*keep, *args)
    finally:
        os._exit(0)                              # past atexit, threads and whatever else could hang


def used(pid):
    """(processor seconds of pid, does a thread of it run or wait for a core?); (0, False), so that all is sleep, if unknown."""
    try:
        seconds, states = time.clock_gettime(~pid << 3 | 2), set()                # Linux: the processor clock of a process
        for tid in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{tid}/stat", "rb") as f:
                states.add(f.read().rpartition(b") ")[2][:1])
        return seconds, b"R" in states
    except OSError:                              # no such clock or no /proc, or it ended while we looked
        return 0.0, False


def folder_full(folder):
    """Does it hold more than MAX_FOLDER bytes or MAX_FILES files? (Landlock grants no subfolders: to remove one can take 3 ms.)"""
    size, files = 0, list(os.scandir(folder))
    for file in files:
        try:
            size += file.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:                # it was removed while we looked
            continue
    return size > MAX_FOLDER or len(files) > MAX_FILES


def supervise(pids, done, timeout, folder):
    """Wait for the referee to end. Returns "", or why not: timeout, full (its folder), gone (our caller)."""
    poll, start = select.poll(), time.monotonic()
    poll.register(done, 0), poll.register(0, 0)                                   # both only for their hang-up
    last, slept, looks = start, 0.0, 0
    while not (ended := dict(poll.poll(20))):
        now, looks, use = time.monotonic(), looks + 1, [used(pid) for pid in pids]
        if not any(runs for _, runs in use):
            slept += min(now - last, 0.05)       # a late look says nothing about the time before it
        if sum(seconds for seconds, _ in use) + slept > timeout or now - start > 20 * timeout + 10:
            return "timeout"
        if looks % 5 == 0 and folder_full(folder):
            return "full"
        last = now
    return "" if done in ended else "gone"


def bury(pids):
    """Kill and reap pids, and all their orphans, for whom we are the subreaper (there are none where seccomp holds)."""
    try:
        os.killpg(pids[0], signal.SIGKILL)
    except OSError:                              # it died before it had a group, or left none
        pids = list(pids)
    try:
        while True:
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            for pid in pids:
                os.waitpid(pid, 0)
            with open(f"/proc/self/task/{os.getpid()}/children") as f:
                pids = [int(pid) for pid in f.read().split()]
            if not pids:
                return
    except OSError:                              # no /proc: then no orphans come to us either
        return


def zygote(folder):
    """Serve one program after another until stdin closes: 8 bytes of timeout, a message for the candidate, one for the referee."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)    # where seccomp is missing a program may send them
    if hasattr(LIBC, "prctl"):
        libc("prctl", 36, 1, 0, 0, 0)            # PR_SET_CHILD_SUBREAPER
        libc("prctl", 4, 0, 0, 0, 0)             # PR_SET_DUMPABLE, inherited: processes of the same user cannot trace us
    while len(head := read(0, 8)) == 8:
        timeout, = struct.unpack("d", head)
        before, in_force = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]), []
        (c_in, r_out), (r_in, c_out), (ready, c_ready), (done, r_done) = (os.pipe() for _ in range(4))
        pids, reason = [fork(candidate, (c_in, c_out, c_ready), folder, timeout)], "broken"
        for fd in (c_in, c_out, c_ready):
            os.close(fd)
        try:
            in_force = receive(ready)            # written before any model-written code runs
            pids.append(fork(referee, (r_out, r_in, r_done, stdout := os.dup(1))))
            for fd in (r_out, r_in, r_done, stdout):
                os.close(fd)
            reason = supervise(pids, done, timeout, folder)
        except EOFError:                         # it could not even be confined: harness trouble
            return
        finally:
            bury(pids)
        seconds = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - before
        if reason == "gone":
            return
        send(1, ["end", "timeout" if seconds > timeout else reason, seconds, in_force])
        for fd in (ready, done):
            os.close(fd)


# ----------------------------------------------------------------------------------------------------------------------
# the caller's side

BOOT = "import sys; sys.path.append(sys.argv[1]); import eval_code; sys.path.pop(); eval_code.zygote(sys.argv[2])"
BOOT += "; eval_code.os._exit(0)"                # taking an interpreter down in good order costs 3 ms
TOLD = set()                                     # steps of confinement whose absence has been reported


class Runner:
    """One zygote and one folder, for many programs one after another: `with Runner() as r: r.check(...)`. Not thread-safe."""

    def __init__(self, boot=BOOT):
        import tempfile
        self.boot, self.process, self.folder = boot, None, tempfile.mkdtemp(prefix="eval_code-")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()
        clear(self.folder)                       # after Ctrl-C the program wrote on until the line above
        os.rmdir(self.folder)

    def stop(self):
        """Closing its stdin makes the zygote kill what it has and leave."""
        if self.process:
            self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
        self.process = None

    def check(self, prompt, completion, test, entry_point, timeout):
        """As the function `check`, without its new zygote each time."""
        import subprocess
        if not timeout > 0:
            raise ValueError(f"check: expected a timeout over 0 seconds, found {timeout}")
        said = "error", "the referee died without a verdict"
        env = {"HOME": self.folder, "TMPDIR": self.folder, "TZ": "UTC", "LC_ALL": "C.UTF-8",
               "PYTHONHASHSEED": "0"}            # sets in one order, so that a verdict repeats
        try:
            self.process = self.process or subprocess.Popen(
                [sys.executable, "-s", "-S", "-P", "-c", self.boot, os.path.dirname(os.path.abspath(__file__)), self.folder],
                env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, cwd=self.folder, start_new_session=True)
            inbox, outbox = self.process.stdout.fileno(), self.process.stdin.fileno()
            os.write(outbox, struct.pack("d", timeout))
            send(outbox, prompt + completion)
            send(outbox, dict(prompt=prompt, test=test if isinstance(test, str) else "\n".join(test), entry_point=entry_point))
            while (message := receive(inbox))[0] == "verdict":
                said = message[1:]
        except (OSError, EOFError) as e:
            self.stop()
            return Verdict("error", f"the confined interpreter did not start, or its zygote died ({e})", 0.0, ())
        finally:
            clear(self.folder)
        _, reason, seconds, in_force = message
        if (missing := set(STEPS) - set(in_force)) - TOLD:
            TOLD.update(missing)
            print(f"eval_code: this platform lacks, and programs run without: {', '.join(sorted(missing))}", file=sys.stderr)
        status, detail = {"timeout": ("timeout", f"over {timeout} s of processor time and sleep"),
                          "full": ("fail", f"over {MAX_FOLDER // MB} MB or {MAX_FILES:,} files in its folder")}.get(reason, said)
        return Verdict(status, detail, seconds, tuple(in_force))


def clear(folder):
    """Delete what a program left in its folder; no link is followed."""
    import subprocess
    os.chmod(folder, 0o700)
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):            # only where there is no Landlock
            subprocess.run(["rm", "-rf", entry.path])
        else:
            os.unlink(entry.path)


def check(prompt, completion, test, entry_point, timeout):
    """Does the program prompt + completion pass test? Leaves no process and no file.

    timeout: seconds of processor time and sleep. A machine with a free core decides within timeout + 1 s; where the program has
    to wait for a core it may take longer, at most 20 timeouts and 10 s.
    test: asserts that call entry_point (MBPP), or such a `check(candidate)` (HumanEval). Returns a Verdict; .isolation names the
    steps of confinement that were in force. Runs the code: calling this function is the consent that the command line asks
    for. check("", "def f(x): return x + 1", "assert f(2) == 3", "f", 3).status == "pass".
    """
    with Runner() as runner:
        return runner.check(prompt, completion, test, entry_point, timeout)


# ----------------------------------------------------------------------------------------------------------------------
# problems and answers


def load_problems(spec, limit=None, split="test"):
    """humaneval, mbpp, mbpp-test: from the hub, or NAME=FILE (.jsonl, .jsonl.gz); toy-code: built in. -> list of problems.

    Of each problem `prompt` is for the model, `code` is what stands before its completion in the program, `answer` the
    published solution. Raises SystemExit, with file and line, on a row that lacks a field, an id seen before, a wrong count.
    """
    from eval_math import Item, built_in, hub_rows, read_rows
    name, _, path = spec.partition("=")
    if spec == "toy-code":
        return built_in(spec, split, limit)
    if name not in EXPECTED:
        raise SystemExit(f"--data: expected toy-code, or {', '.join(EXPECTED)} with or without =FILE; found {spec!r}")
    hub = [("openai/openai_humaneval", None, "test")] if name == "humaneval" else [
        ("google-research-datasets/mbpp", "full", part) for part in ("train", "test", "validation", "prompt")]
    problems = {}
    for where, row in read_rows(path) if path else (pair for part in hub for pair in hub_rows(*part)):
        try:
            if name == "humaneval":
                id, code, test, entry_point, answer = (
                    row[key] for key in ("task_id", "prompt", "test", "entry_point", "canonical_solution"))
                p = Item(id, name, code, answer, code, test, entry_point)
            else:
                tests, defined = "\n".join(row["test_list"]), re.findall(r"^def\s+(\w+)", row["code"], re.M)
                entry_point, = {n for n in defined if re.search(rf"\b{n}\s*\(", row["test_list"][0])}    # what the first test calls
                p = Item(f"mbpp/{int(row['task_id'])}", name, f'"""\n{row["text"]}\n{tests}\n"""\n', row["code"], "",
                         f"{row['test_setup_code']}\n{tests}", entry_point)
        except (KeyError, TypeError, ValueError, IndexError) as e:
            raise SystemExit(f"{where}: expected a row of {name} as published, found none ({type(e).__name__}: {e})") from None
        if name == "mbpp-test" and not 11 <= row["task_id"] <= 510:
            continue
        if problems.setdefault(p.id, p) is not p:
            raise SystemExit(f"{where}: expected each task once, found {p.id} again")
    if len(problems) != EXPECTED[name]:
        raise SystemExit(f"{spec}: expected {EXPECTED[name]} problems, found {len(problems)}; is the download complete?")
    return list(problems.values())[:limit]


def cut_at_stop(text, stops=STOPS):
    """text up to the first stop string, wherever tokens begin: cut_at_stop(" return 1\\ndef g", ["\\ndef"]) == " return 1"."""
    return text[:min((i for i in map(text.find, stops) if i >= 0), default=len(text))]


def extract(text, prompt, entry_point):
    """As extract_code, and where the code was found: "fence" or "text"."""
    import textwrap
    from plumbing.python_text import fences_of
    text = text.rpartition("</think>")[2]
    function = re.compile(rf"^\s*(async\s+)?(def|class)\s+{re.escape(entry_point)}\b", re.M)
    before, blocks = fences_of(text)
    with_function = [block for block in blocks if function.search(block)]
    if blocks and not with_function:
        # a model that goes on in a block which its prompt opened closes it behind the function
        if function.search(before) or (prompt and re.match(r"\s*[\r\n]*[ \t]+\S", before)):
            text, blocks = before, []
    if blocks:
        code = textwrap.dedent(with_function[-1] if with_function else blocks[0])
        if function.search(prompt) and not function.search(code):
            code = textwrap.indent(code, "    ")       # a bare body, to fit below the prompt's def
        code = "\n" + code
    else:
        code = text.removeprefix(prompt)
    if prompt.rstrip().endswith(":") and re.match(r"\s*\n\S|\S", code):
        code = "    pass\n" + code                     # a whole function: the prompt's def stays empty
    return code, "fence" if blocks else "text"


def extract_code(text, prompt="", entry_point=""):
    """Chat answer -> what to run after prompt: the last fenced block that defines entry_point, else
    the first; without a fence the whole text.

    An unclosed fence counts, thoughts before </think> do not.
    extract_code("Sure:\\n```python\\ndef f(x):\\n    return x\\n```", "", "f")
    is "\\ndef f(x):\\n    return x\\n".
    """
    return extract(text, prompt, entry_point)[0]


def cut(text, prompt, entry_point, stops=STOPS):
    """What of an unfenced answer to run below prompt: up to its function's end, and what that needs.

    A base model goes on after its function with prose, tests, the next function. Stops apply only
    behind the first complete definition of entry_point; all that stands before it is kept. Of what
    is cut, definitions that the kept part reads come back. A text in which the function is never
    complete stays whole, and fails by itself.
    """
    from plumbing.python_text import defines, is_prose, longest_program, needed
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    n_prompt, lines = prompt.count("\n"), (prompt + text).split("\n")
    tree, n_lines = longest_program(lines, n_prompt)
    statements = tree.body if tree and stops else []
    ends = [s.end_lineno for s in statements
            if s.end_lineno > n_prompt and entry_point in defines(s)]
    if not ends:
        return text
    n_lines = min([s.lineno - 1 for s in statements if s.lineno > ends[0] and is_prose(s)],
                  default=n_lines)
    function = "\n".join(lines[:ends[0]])
    kept = function + cut_at_stop("\n".join(["", *lines[ends[0]:n_lines]]), stops)
    n_kept = kept.count("\n") + 1
    later = [s for s in statements if s.lineno > n_kept]
    for s in needed([s for s in statements if s.lineno <= n_kept], later):
        first = min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))])
        kept = "\n".join([kept, *lines[first - 1:s.end_lineno]])
    return kept[len(prompt):] + "\n"


def read_samples(path, problems, skip=()):
    """A file of {task_id, completion} -> rows like eval_math.complete()'s. Each problem needs as many samples, at least one; rows
    whose task_id is in `skip` are left out."""
    from plumbing.files import read_rows
    known, rows = {p.id: p for p in problems}, []
    count = dict.fromkeys(known, 0)
    for where, row in read_rows(path):
        if row.get("task_id") in skip:
            continue
        if row.get("task_id") not in known or not isinstance(row.get("completion"), str):
            raise SystemExit(f"{where}: expected a task_id of the data and a completion in text, found {str(row)[:80]}")
        p = known[row["task_id"]]
        rows.append(dict(id=p.id, family=p.family, sample=count[p.id], gold=p.answer, completion=row["completion"],
                         truncated=False))
        count[p.id] += 1
    few, many = min(count, key=count.get), max(count, key=count.get)
    if not 0 < count[few] == count[many]:
        raise SystemExit(f"{path}: expected equally many samples of all {len(known)} problems, found {count[few]} of {few}, "
                         f"{count[many]} of {many}")
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# scoring


def score(jobs, timeout=3.0, workers=None, allow_code_execution=False):
    """[(problem, code)] -> verdicts in that order. A timeout is believed where the program, run alone, times out again; its limit
    then is twice the time that the problem's own solution takes here, if that is more: a slow machine is no reason to fail.

    workers: programs at a time, default cores / 2. Raises SystemExit without allow_code_execution, and where a right program
    does not pass, or a wrong one not fail: then no verdict of this machine would mean anything.
    """
    from concurrent.futures import ThreadPoolExecutor
    from functools import cache
    if not allow_code_execution:
        raise SystemExit("eval_code: this runs code that a model wrote; pass --allow-code-execution if that is what you want")

    def run(part, limit=timeout):
        with Runner() as runner:
            return [runner.check(p.code, code, p.test, p.entry_point, limit) for p, code in part]

    @cache
    def limit_of(p):                             # its own solution may take ten limits: what is slower is broken, not slow
        own = run([(p, p.answer)], 10 * timeout)[0] if p.answer else None
        return max(timeout, 2 * own.seconds) if own and own.status == "pass" else timeout

    for body, expected in (("x + 1", "pass"), ("x - 1", "fail")):
        if (v := check("", f"def f(x): return {body}", "assert f(2) == 3", "f", 10)).status != expected:
            raise SystemExit(f"self-test: expected {expected} of `return {body}`, found {v.status} ({v.detail})")
    workers, verdicts = workers or max(1, (os.cpu_count() or 1) // 2), [None] * len(jobs)
    parts = [jobs[w::workers] for w in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        try:
            for w, part in enumerate(pool.map(run, parts)):
                verdicts[w::workers] = part
        finally:                                 # after Ctrl-C an emptied list ends its worker's loop
            for part in parts:
                part.clear()
    return [run([(p, code)], limit_of(p))[0] if v.status == "timeout" else v for (p, code), v in zip(jobs, verdicts)]


def judge(rows, problems, allow_code_execution=False, timeout=3.0, workers=None, stops=STOPS):
    """Add the verdict to rows of eval_math.complete() or read_samples(): answer (the code that ran, after the problem's own),
    status, detail, seconds, and correct: True, False, or None for an error, which eval_math.summary() counts neither way.

    stops: where the text of a model that goes on after its function is cut; a fenced block is taken whole.
    """
    known, jobs = {p.id: p for p in problems}, []
    for r in rows:
        p = known[r["id"]]
        code, r["extractor"] = extract(r["completion"], p.code, p.entry_point)
        jobs.append((p, cut(code, p.code, p.entry_point, stops) if r["extractor"] == "text" else code))
    for r, (_, code), v in zip(rows, jobs, score(jobs, timeout, workers, allow_code_execution)):
        r.update(answer=code if code.strip() else None, status=v.status, detail=v.detail, seconds=v.seconds, isolation=v.isolation,
                 correct=None if v.status == "error" else v.status == "pass")
    return rows


def main(argv=None):
    import argparse
    import hashlib
    from eval_math import complete, show, summary
    from plumbing.files import commit, write_rows, write_text
    from plumbing.scoring import chat, load_model, sampling_flags, stem_of, wrong_flags
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="source", help="checkpoint (.pt file, Hugging Face folder or hub name), or samples: .jsonl or .jsonl.gz of {task_id, completion}")
    parser.add_argument("--data", default="toy-code", help="toy-code (default); humaneval, mbpp, mbpp-test, with or without =FILE")
    parser.add_argument("--allow-code-execution", action="store_true", help="run the code; nothing happens without it")
    parser.add_argument("--workers", type=int, help="programs at a time, default: cores / 2")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds of processor time and sleep for each program (3), "
                        "or twice what the problem's own solution takes here where that is more")
    sampling_flags(parser, "toy-code")
    args = parser.parse_args(argv)
    if not args.allow_code_execution:
        score([])                                # refuses, before any costly work
    start, trained = time.time(), not args.checkpoint.endswith((".jsonl", ".jsonl.gz"))
    wrong = wrong_flags(args) if trained else ["--limit: expected 1 or more"] * (args.limit is not None and args.limit < 1)
    wrong += ["--timeout and --workers: expected more than 0"] * (args.timeout <= 0 or args.workers is not None and args.workers < 1)
    if wrong:
        parser.error("\n  ".join(wrong))
    every, (name, _, path) = load_problems(args.data, args.limit if trained else None, args.split), args.data.partition("=")
    problems = every[:args.limit]
    if trained:
        model, enc, task = load_model(args.checkpoint, args.device)
        if name == "toy-code" != task:
            raise SystemExit(f"eval_code: {args.checkpoint} was trained on {task}; score it with python eval_math.py {args.checkpoint}")
        try:
            toy = name == "toy-code"
            rows = complete(model, enc, problems, max_new_tokens=args.max_new_tokens or (64 if toy else 512), n=args.n,
                            batch_size=args.batch or (700 if toy else 32), temperature=args.temperature, seed=args.seed,
                            wrap=None if toy else chat(enc, raw=True))
        except ValueError as e:                  # too long for the model
            raise SystemExit(f"eval_code: {name}: {e}") from None
    else:
        rows = read_samples(args.checkpoint, problems, {p.id for p in every[len(problems):]})
    n = len(rows) // len(problems)
    if not all(1 <= k <= n for k in args.k):
        raise SystemExit(f"--k {args.k}: expected 1 to {n}, the samples per problem")
    judge(rows, problems, args.allow_code_execution, args.timeout, args.workers, STOPS if trained else ())
    sha = {}
    for file in filter(os.path.isfile, (args.checkpoint, path)):                 # not a model's folder or name, not a name on the hub
        with open(file, "rb") as f:
            sha[file] = hashlib.file_digest(f, "sha256").hexdigest()
    scores, count = summary(rows, args.k), {s: sum(r["status"] == s for r in rows) for s in ("pass", "fail", "timeout", "error")}
    record = {**vars(args), "sha256": sha, "commit": commit(), "python": sys.version.split()[0], "isolation": rows[0]["isolation"],
              "samples": n, "counts": count, "seconds": round(time.time() - start, 1), "scores": scores}
    args.out = args.out or (None if trained else args.checkpoint.removesuffix(".gz").removesuffix(".jsonl"))
    stem = stem_of(args, name, record)
    write_rows(stem + ".jsonl", rows)
    write_text(stem + ".json", json.dumps(record, indent=1))
    print(f"{name}: {stem}.jsonl | {count}\n{show(scores)}")
    return 1 if count["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
