"""plumbing/sandbox: forged verdicts, harm to the machine, the clock, what honest tests may do.

Every hostile program is bounded and runs confined only. Where the kernel lacks a step (no Landlock,
no seccomp) the tests that rest on it check that Verdict.isolation says so instead.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import conftest
import pytest

from eval_code import score
from plumbing import sandbox
from plumbing.benchmarks import Item
from plumbing.sandbox import Runner, check
from plumbing.values import pack, unpack

ROOT = pathlib.Path(conftest.ROOT)


def read_cases(name):
    lines = (ROOT / "tests/data" / name).read_text().splitlines()
    return {case["name"]: case for case in map(json.loads, lines)}


ADVERSARIAL = read_cases("adversarial_programs.jsonl")       # bombs, floods, forks, forged verdicts
PROGRAMS_2 = read_cases("programs_2.jsonl")                  # honest shapes, and a few hostile ones
HONEST = read_cases("honest_programs.jsonl")                 # own cases: each must pass
FORGED = read_cases("forged_programs.jsonl")                 # own cases: none may pass
ISOLATION = check("", "def f(x): return x", "assert f(1) == 1", "f", 10).isolation
# all that the hostile programs need to be harmless
LOCKED = {"landlock", "seccomp"} <= set(ISOLATION)
print("in force here:", ", ".join(ISOLATION))


@pytest.fixture(scope="module")
def runner():
    with Runner() as r:
        yield r


def status(runner, program, test="assert f(2) == 3", entry_point="f", timeout=5, prompt=""):
    return runner.check(prompt, program, test, entry_point, timeout).status


def test_a_caller_that_is_killed_leaves_no_folder(tmp_path):
    """Bug: /tmp fills with the files of programs whose judge was killed."""
    program = "open('junk', 'w').write('x' * 100)\nfor _ in iter(int, 1): pass"
    for wait in ("", "import time; time.sleep(60)"):          # while a program runs, between two
        caller = subprocess.Popen(
            [sys.executable, "-c", f"""if 1:
                from plumbing.sandbox import Runner
                runner = Runner()
                runner.check("", "def f(x): return x", "assert f(1) == 1", "f", 9)
                print(runner.folder, flush=True)
                {wait or f'runner.check("", {program!r}, "assert f(1) == 1", "f", 30)'}"""],
            cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "TMPDIR": str(tmp_path)})
        folder = caller.stdout.readline().strip()
        assert folder
        patience = time.time() + 60
        while not wait and not os.path.exists(f"{folder}/junk") and time.time() < patience:
            time.sleep(0.01)
        caller.kill()
        caller.communicate()
        while os.path.exists(folder) and time.time() < patience:
            time.sleep(0.01)
        assert os.listdir(tmp_path) == []


def test_a_runner_that_was_stopped_judges_on(tmp_path):
    """Bug: the zygote takes stop() inside of a check for the death of its caller, and its folder
    is gone for the next one."""
    with Runner() as runner:
        def ring(*_):
            raise KeyboardInterrupt
        former = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            runner.check("", "def f(x):\n  while True: pass", "assert f(2) == 3", "f", 30)
        signal.signal(signal.SIGALRM, former)
        runner.stop()
        assert status(runner, "def f(x): return x + 1") == "pass"


def processes():
    """Python processes started by the sandbox that are alive or unreaped."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout
    return [line for line in found.splitlines()
            if "sandbox.zygote" in line and str(os.getpid()) in line.split()[:2]]


# ------------------------------------------------------------------------------------------------
# hostile programs

# what kill_parent and kill_own_group may hit is a disposable process, not pytest
HARNESS = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from plumbing.sandbox import check
for line in sys.stdin:
    case, start = json.loads(line), time.monotonic()
    v = check(case["prompt"], case["completion"], case["test"], case["entry_point"], 1.0)
    print(json.dumps([case["name"], v.status, v.detail, time.monotonic() - start]), flush=True)
with open("/proc/self/status") as f:      # ru_maxrss would remember the process that started this
    memory = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
print(json.dumps(["memory", memory / 1024]))
"""


def test_every_hostile_program_gets_an_acceptable_verdict_in_time_and_does_nothing(request):
    """Forgery by equality, exit codes, patches, frames, markers; bombs, floods, forks, signals;
    reading secrets; outliving."""
    canary = pathlib.Path(tempfile.gettempdir(), "adv_canary")
    (canary / "tree").mkdir(parents=True, exist_ok=True)
    request.addfinalizer(lambda: shutil.rmtree(canary))
    secrets = (("keep.txt", "keep"), ("secret.txt", "ADV_FILE_SECRET"), ("tree/x.txt", "x"))
    for name, text in secrets:
        (canary / name).write_text(text)
    cases = [c for c in ADVERSARIAL.values()
             if LOCKED or c["category"] in ("control", "forge", "time")]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, str(ROOT)], text=True, capture_output=True,
        input="".join(json.dumps(c) + "\n" for c in cases), start_new_session=True, timeout=240,
        env={**os.environ, "ADV_SECRET": "ADV_SECRET_VALUE"})
    *rows, (_, memory) = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0 and len(rows) == len(cases), done.stderr
    wrong = [row for row, case in zip(rows, cases, strict=True) if row[1] not in case["accept"]]
    assert not wrong
    if LOCKED:
        spies = ("read_parent_env", "read_secret_file", "network_udp_route")
        assert not [row for row in rows if row[0] in spies and row[1] != "pass"]
    # timeout + 1 s, and 1 s for a busy machine, or more if others keep it busier than that
    busy = max(1, os.getloadavg()[0] / os.cpu_count())
    assert max(row[3] for row in rows) < 3.0 * busy, max(rows, key=lambda row: row[3])
    assert memory < 200
    assert (canary / "keep.txt").read_text() == "keep" and (canary / "tree/x.txt").exists()
    for case in cases:
        effect = case.get("side_effect") or {}
        assert not os.path.exists(effect.get("absent", "/nonexistent")), case["name"]
    assert not processes()
    assert not list(pathlib.Path(tempfile.gettempdir()).glob(f"eval_code-*{os.getpid()}*"))


# What a program can say that speaks the protocol itself, instead of leaving that to the loop.
RAW = """
import json, os, struct, sys
def talk():
    frame = sys._getframe()
    while type(frame.f_locals.get("self")).__name__ != "Candidate":
        frame = frame.f_back
    return frame.f_locals["self"]
def say(*messages):
    t = talk()
    for first, *rest in messages:
        data = json.dumps([t.nonces[-1] if first is None else first, *rest]).encode()
        os.write(t.outbox, struct.pack(">I", len(data)) + data)
def hear():
    t = talk()
    n = struct.unpack(">I", os.read(t.inbox, 4))[0]
    return json.loads(os.read(t.inbox, n))
def patch(op, tree):
    t = talk()
    perform = t.perform
    t.perform = lambda o, packed: [tree, None, None] if o == op else perform(o, packed)
"""


@pytest.mark.parametrize("name", FORGED)
def test_no_lie_passes(runner, name):
    """Objects that equal, contain or order all; helpers of a test that the program defines;
    exceptions that pretend; attributes that learn; call-backs misused; messages out of order.

    Each is a fail, or a timeout of its own making; never an error, which counts neither way."""
    case = FORGED[name]
    program = RAW + case["program"] if name.startswith("raw") else case["program"]
    verdict = runner.check("", program, case["test"], "f", 2)
    assert verdict.status in ("fail", "timeout"), verdict


def test_raw_messages_are_what_the_protocol_says(runner):
    """The programs above would prove nothing if their messages were not understood at all."""
    program = RAW + "def f(x): say([None, 'value', 3, None, None]); hear()"
    assert status(runner, program) == "pass"
    question = "[{'yours': 0}, [], {'dict': [[]]}]"
    program = RAW + f"def f(g):\n  say([None, 'ask', 'call', {question}])\n  return hear()[2]"
    assert status(runner, program, "assert f(lambda: 42) == 42") == "pass"


def test_changed_arguments_count_from_the_next_statement_on(runner):
    """In-place functions work; a program that empties its argument and returns [] does not equal
    sorted(argument) by that."""
    test = "v = [3, 1, 2]\nf(v)\nassert v == [1, 2, 3]"
    assert status(runner, "def f(v): v.sort()", test) == "pass"
    assert status(runner, "def f(v): v.sort(); return v", test) == "pass"
    test = "v = [3, 1, 2]\nassert f(v) == sorted(v)"
    assert status(runner, "def f(v):\n  v.clear()\n  return []", test) == "fail"
    raw = RAW + "def f(v): say([None, 'value', [], {'dict': [[[0, []]]]}, 0]); hear()"
    assert status(runner, raw, test) == "fail"


def test_a_helper_of_the_prompt_is_the_prompts_own(runner):
    """HumanEval/32: the test calls poly, which a program could redefine as 0.0 and then any answer
    is a root."""
    prompt = "def poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef root(xs):\n    '''Root.'''\n"
    test = "def check(candidate):\n    assert abs(poly([1, 2], candidate([1, 2]))) < 1e-4"
    right = "    return -xs[0] / xs[1]\n"
    assert status(runner, right, test, "root", prompt=prompt) == "pass"
    wrong = "    return 0.0\n\ndef poly(xs, x): return 0.0\n"
    assert status(runner, wrong, test, "root", prompt=prompt) == "fail"


def test_no_except_clause_of_a_test_hides_a_breach(runner):
    """`except:` around a call would turn a dead or lying candidate into a pass of tests that expect
    an error."""
    test = "try:\n    f(2)\nexcept:\n    pass"
    for end in ("import os\n  os._exit(0)", "import sys\n  sys.exit(0)"):
        assert status(runner, f"def f(x):\n  {end}", test) == "fail"
    test = "try:\n    assert f(2) == 3\nexcept:\n    pass"
    assert status(runner, "def f(x): return object()", test) == "fail"


def tries(call, imports="os"):
    """A program whose f returns 3 where the call was refused."""
    return f"import {imports}\ndef f(x):\n  try: {call}\n  except OSError: return 3"


SELF = "os.getppid()"
HARM = {
    "write outside": tries("open('/var/tmp/eval_code_was_here', 'w')"),
    "chmod outside": tries(f"os.chmod({tempfile.gettempdir()!r}, 0o1777)"),
    "make a folder outside": tries(f"os.mkdir({tempfile.gettempdir()!r} + '/eval_code_was_here')"),
    "remove its own folder": tries("os.rmdir(os.getcwd())"),
    "list processes": tries("os.listdir('/proc')"),
    "link to a secret": tries("os.symlink('/etc/passwd', 'l'); open('l')"),
    "fork by libc": "import ctypes\ndef f(x):\n  pid = ctypes.CDLL(None).fork()\n"
                    "  return 3 if pid < 0 else pid",
    "signal by libc": "import ctypes, os\ndef f(x):\n"
                      f"  return 2 - ctypes.CDLL(None).kill({SELF}, 0)",
    "environment": "import os\ndef f(x):\n"
                   "  return 0 if set(os.environ) & {'ADV_SECRET', 'PATH', 'USER'} else 3",
    "raise a limit": tries("r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40))", "resource as r")
        .replace("OSError", "(OSError, ValueError)"),
    "limit another": tries(f"r.prlimit({SELF}, r.RLIMIT_NOFILE, (0, 0))", "os, resource as r"),
    "socket": tries("socket.socket()", "socket"),
}
FCNTL = {"F_SETOWN": (8, SELF), "F_SETSIG": (10, 9), "F_SETOWN_EX": (15, SELF),
         "F_SETLEASE": (1024, 1), "F_NOTIFY": (1026, 1), "F_SETPIPE_SZ": (1031, 1 << 20)}
for name, (command, value) in FCNTL.items():
    HARM[name] = tries(f"r, w = os.pipe(); fcntl.fcntl(r, {command}, {value})", "fcntl, os")
IOCTL = {"FIOSETOWN": 0x8901, "SIOCSPGRP": 0x8902, "FIOASYNC": 0x5452, "TIOCSTI": 0x5412,
         "TIOCSCTTY": 0x540E, "TIOCSPGRP": 0x5410}
for name, request in IOCTL.items():
    call = f"fcntl.ioctl(socket.socketpair()[0], {request}, struct.pack('i', {SELF}))"
    HARM[name] = tries(call, "fcntl, os, socket, struct") + "\n  return -1"
    high = f"libc.ioctl(socket.socketpair()[0].fileno(), ctypes.c_long({request} | 1 << 40), b)"
    HARM[f"{name}, high bits"] = (
        "import ctypes, os, socket, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"def f(x):\n  b = struct.pack('i', {SELF})\n"
        f"  return 3 if {high} < 0 and ctypes.get_errno() == 1 else -1")
INOTIFY = "import ctypes\ndef f(x): return 3 if ctypes.CDLL(None).{}(0, 0, 0) < 0 else -1"
for name in ("inotify_init", "inotify_init1", "fanotify_init"):
    HARM[name] = INOTIFY.format(name)


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(runner, name, monkeypatch):
    """One confinement step missing or one system call forgotten: files, processes, signals, limits,
    network, environment."""
    monkeypatch.setenv("ADV_SECRET", "x")
    if LOCKED or name == "environment":
        assert status(runner, HARM[name]) == "pass"
    else:
        assert not LOCKED, f"{name} needs landlock and seccomp; in force here: {ISOLATION}"
    assert not os.path.exists("/var/tmp/eval_code_was_here")
    assert not os.path.exists(os.path.join(tempfile.gettempdir(), "eval_code_was_here"))


def boot_with(patch):
    """The start of a zygote in which something of the confinement is replaced."""
    return sandbox.BOOT.replace("sys.path.pop();", "sys.path.pop(); "
                                f"import plumbing.confine as c; {patch};")


@pytest.mark.skipif(not LOCKED, reason="needs landlock and seccomp")
@pytest.mark.parametrize("abi", [1, 2, 4])
def test_older_landlocks_leave_no_way_to_signal_others(abi):
    """Before ABI 6 Landlock lets signals pass: FIOSETOWN and FIOASYNC on a socket then end any
    process of the user by SIGIO, the referee too, and a wrong program became an error."""
    with Runner(boot_with(f"c.landlock_abi = lambda: {abi}")) as r:
        case = PROGRAMS_2["fiosetown_set"]
        verdict = r.check("", case["completion"], case["test"], "f", 5)
        assert verdict.status == "fail" and "landlock" in verdict.isolation
        for name in (*FCNTL, *IOCTL, "signal by libc", "write outside"):
            assert status(r, HARM[name]) == "pass", name
        case = PROGRAMS_2["tempdir"]
        assert status(r, case["completion"], case["test"]) == "pass"


FILL = {
    "files": "for i in range(40):\n    with open(str(i), 'wb') as h: h.write(bytes(8 << 20))",
    "files below": "os.mkdir('d')\n  for i in range(40):\n"
                   "    with open(f'd/{i}', 'wb') as h: h.write(bytes(8 << 20))",
    "many files": "for i in range(1100): open(str(i), 'w').close()",
    "many folders": "for i in range(1100): os.mkdir('x'); os.chdir('x')",
    "removed files": "kept = [open(str(i), 'wb', 0) for i in range(40)]\n"
                     "  for i, h in enumerate(kept): os.unlink(str(i)); h.write(bytes(8 << 20))",
    "removed files in memory":
        "kept = []\n  for i in range(40):\n    h = open('x', 'w+b', 0); h.write(bytes(8 << 20))\n"
        "    kept.append(mmap.mmap(h.fileno(), 4096)); h.close(); os.unlink('x')",
}


@pytest.mark.parametrize("name", FILL)
def test_a_filled_disk_is_a_fail_and_is_cleaned_up(name):
    """RLIMIT_FSIZE bounds one file, not their number; removed files that are open are in no folder
    and take as much."""
    with Runner() as r:
        program = f"import mmap, os, time\ndef f(x):\n  {FILL[name]}\n  time.sleep(1)\n  return 3"
        verdict = r.check("", program, "assert f(2) == 3", "f", 5)
        assert verdict.status == "fail" and "files" in verdict.detail, verdict
        assert os.listdir(r.folder) == []
    assert not os.path.exists(r.folder)


def test_without_seccomp_and_landlock_the_rest_still_holds(capfd):
    """Other platforms: a missing step is reported once, verdicts stay right, and orphans of a
    double fork are found and killed."""
    escape = ("import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: "
              "time.sleep(60)\n  os._exit(0)\ntime.sleep(0.1)\ndef f(x): return x + 1")
    programs = (escape, "def f(x): return 2", "def f(x): return 3")
    with Runner(boot_with("c.seccomp = c.landlock = lambda *a: {}[0]")) as r:
        verdicts = [r.check("", program, "assert f(2) == 3", "f", 5) for program in programs]
        ps = ["ps", "-o", "pid=", "--ppid", str(r.process.pid)]
        children = subprocess.run(ps, capture_output=True, text=True).stdout
    assert [v.status for v in verdicts[1:]] == ["fail", "pass"]
    assert not {"landlock", "seccomp"} & set(verdicts[0].isolation)
    assert "rlimit_nproc" in verdicts[0].isolation
    assert not children.strip()
    assert capfd.readouterr().err.count("landlock") == 1


def test_a_program_that_ends_its_judge_fails():
    """An error counts neither way: a wrong program that kills what judges it would improve the
    score. Here without confinement, so that it can."""
    kill = "import os\ndef f(x): os.kill(os.getppid(), 9)"
    with Runner(boot_with("c.seccomp = c.landlock = lambda *a: {}[0]")) as r:
        verdict = r.check("", kill, "assert f(2) == 3", "f", 5)
        assert (verdict.status, "twice" in verdict.detail) == ("fail", True)
        assert status(r, "def f(x): return 3") == "pass"
    silent = boot_with("sandbox.referee = lambda *a: None")
    with Runner(silent) as r:
        assert status(r, "def f(x): return 3") == "error"    # nothing that this program did


# ------------------------------------------------------------------------------------------------
# the clock


def test_sleep_and_work_both_count_and_waiting_for_a_core_does_not():
    """Wall-clock limits fail right programs on a busy machine: eight at once, each within its limit
    only by processor time."""
    work = "import time\ndef f(x):\n  while time.process_time() < 0.4: pass\n  return x + 1"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        verdicts = pool.map(lambda _: check("", work, "assert f(2) == 3", "f", 0.8), range(8))
        assert [v.status for v in verdicts] == ["pass"] * 8
    for slow in ("while True: pass", "import time; time.sleep(60)",
                 "import time; [time.sleep(0.01) for _ in range(10**4)]"):
        start = time.monotonic()
        program = f"def f(x):\n  {slow}"
        assert check("", program, "assert f(2) == 3", "f", 0.5).status == "timeout"
        assert time.monotonic() - start < 2.5 * max(1, os.getloadavg()[0] / os.cpu_count())


def test_a_value_that_is_slow_to_read_is_the_programs_own_timeout(runner):
    """Hash collisions and endless iterators cost the referee, which the limit must cover too."""
    collisions = "def f(x): return {(2**61 - 1) * i for i in range(2, 60000)}"
    assert status(runner, collisions, timeout=0.5) == "timeout"
    endless = "def f(x):\n  while True: yield 1"
    assert status(runner, endless, "assert list(f(2)) == [3]", timeout=0.5) == "timeout"


def test_a_timeout_is_tried_again_alone(monkeypatch):
    """A machine that stalls must not cost a program its pass."""
    tries = []

    def flaky(self, *args):
        tries.append(args)
        status = "pass" if "+" in args[1] else "fail"
        return sandbox.Verdict("timeout" if len(tries) == 3 else status, "", 0.0, ())

    monkeypatch.setattr(Runner, "check", flaky)
    problem = Item("t/0", "t", "", "", "", "assert f(2) == 3", "f")
    verdicts = score([(problem, "x + 1")], allow_code_execution=True)
    assert [v.status for v in verdicts] == ["pass"]
    assert len(tries) == 4                                  # two of the self-test, one, one again


def test_a_slow_machine_fails_no_program_that_is_as_quick_as_the_problems_own():
    """A limit in seconds alone: the solution of MBPP's 123 took 6 s on a slow machine, and 3 s is
    the usual limit."""
    busy = "import time\ndef f(x):\n  while time.process_time() < {}: pass\n  return x + 1".format
    answers = busy(0), busy(0.5), busy(0.5) + " + 1"
    quick, slow, wrong = (Item(f"t/{i}", "t", "", answer, "", "assert f(2) == 3", "f")
                          for i, answer in enumerate(answers))
    jobs = [(quick, busy(0.5)), (slow, busy(0.7)), (slow, busy(60)), (wrong, busy(0.5))]
    verdicts = score(jobs, 0.25, allow_code_execution=True)
    assert [v.status for v in verdicts] == ["timeout", "pass", "timeout", "timeout"]


def test_overhead_is_less_than_two_interpreter_starts(runner):
    """Bug: an interpreter started, and its imports done, anew for each program; measured side by
    side, so load cancels."""
    def least(action):
        times = []
        for _ in range(15):
            start = time.monotonic()
            action()
            times.append(time.monotonic() - start)
        return min(times)

    command = [sys.executable, "-I", "-S", "-c", "pass"]
    start_up = least(lambda: subprocess.run(command, check=True))
    assert least(lambda: status(runner, "def f(x): return x + 1")) < 2 * start_up


# ------------------------------------------------------------------------------------------------
# what tests may do


@pytest.mark.parametrize("name", HONEST)
def test_ordinary_python_works_on_both_sides(runner, name):
    """A runner that is safe because it supports nothing: each case is something that published
    tests or solutions do."""
    case = HONEST[name]
    if "numpy" in case["test"]:
        pytest.importorskip("numpy")
    entry_point = case.get("entry_point", "f")
    verdict = runner.check("", case["program"], case["test"], entry_point, 5)
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("name", PROGRAMS_2)
def test_the_second_set_of_programs_gets_its_verdicts(runner, name):
    """Honest shapes of forks' test sets, and four programs that once got through."""
    case = PROGRAMS_2[name]
    if not LOCKED and name in ("fiosetown_set", "inotify_tmp"):
        return
    verdict = runner.check(case["prompt"], case["completion"], case["test"], case["entry_point"],
                           case["timeout"])
    assert verdict.status in case["accept"], verdict


@pytest.mark.parametrize("test", ["x = 1", "assert f(2) ==", "import sys\nassert f(sys) == 3"])
def test_trouble_with_a_test_is_an_error_not_a_fail(runner, test):
    """A test that calls nothing, does not compile, or passes what no other process can have, says
    nothing about the program."""
    assert status(runner, "def f(x): return 3", test) == "error"


def test_a_module_that_only_the_test_needs_and_nobody_has_is_an_error_with_a_sentence(capfd):
    """Each program would fail such a test, the right ones too."""
    with Runner() as r:
        for program in ("def f(x): return 3", "def f(x): return 4", "syntax error"):
            test = "import numpy_of_another_world as np\nassert np.allclose(f(2), 3)"
            verdict = r.check("", program, test, "f", 5)
            assert verdict.status == "error", verdict
            assert "pip install numpy_of_another_world" in verdict.detail
    assert capfd.readouterr().err.count("numpy_of_another_world, which is not installed") == 1


def test_a_dead_zygote_is_an_error_and_the_next_check_recovers():
    """Harness trouble must show as error; the runner must not stay broken after it."""
    with Runner("raise SystemExit(1)") as r:
        assert status(r, "def f(x): return 3") == "error"
        r.boot = sandbox.BOOT
        assert status(r, "def f(x): return 3") == "pass"


def test_pack_and_unpack_are_inverse_and_exact():
    """True is not 1, a tuple is not a list, -0.0 and 10**4000 survive, keys need not be strings."""
    value = [True, 1, 1.0, -0.0, (1, [2]), {3}, frozenset({"x"}), {(1, 2): {"a": None}}, 10**4000,
             -2**63, 1 + 2j, b"\0\xff", "\ud800", int, bytearray(b"x"), range(1, 9, 2), ..., len]
    back = unpack(json.loads(json.dumps(pack(value, None))), {})
    assert back == value and repr(back) == repr(value)
    for bad in ({"a": 1, "b": 2}, {"eval": ["1"]}, {"builtin": ["eval"]}, {"int": 5},
                {"set": [[[1]]]}, {"builtins.eval": ["1"]}, {"os.system": ["true"]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            unpack(bad, {})


def test_verdicts_are_the_same_with_one_worker_and_with_many():
    """A program that leaves something behind for the next one would be judged by its place."""
    cases = [case for case in [*HONEST.values(), *FORGED.values()]
             if "entry_point" not in case and isinstance(case["test"], str)][::6]
    jobs = [(Item(f"t/{i}", "t", "", "", "", case["test"], "f"), case["program"])
            for i, case in enumerate(cases)]
    one, many = (score(jobs, 5, n, allow_code_execution=True) for n in (1, 16))
    told = [[(v.status, re.sub(r"(?<=bytes, found )[\d,]+", "", v.detail)) for v in verdicts]
            for verdicts in (one, many)]        # of a long message the number of a process is part
    assert told[0] == told[1]
