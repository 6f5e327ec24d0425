"""eval_code.py: forged verdicts, harm to the machine, the clock, data readers, extraction, the command line.

Every hostile program is bounded and runs confined only. Where the kernel lacks a step (no Landlock, no seccomp) the tests that
rest on it check that Verdict.isolation says so instead. HumanEval and MBPP run in full where EVAL_CODE_DATA, or ../shared/data
beside the checkout, holds them; else a sample written below stands in for them.
"""
import concurrent.futures
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import pytest

import conftest
import eval_code
import eval_math
from plumbing.toy_code import toy_code
from eval_code import Runner, check, cut_at_stop, extract_code, judge, load_problems, pack, read_samples, score, unpack
from eval_math import summary
from plumbing.benchmarks import Item

ROOT = pathlib.Path(conftest.ROOT)
ADD = ('def add(a, b):\n    """Return the sum of a and b."""\n', "assert add(2, 3) == 5\nassert add(-1, 1) == 0\nassert add(10, 7) == 17")
CASES = [json.loads(line) for line in (ROOT / "tests/data/adversarial_programs.jsonl").read_text().splitlines()]
DATA = pathlib.Path(os.environ.get("EVAL_CODE_DATA", ROOT.parent / "shared/data"))
ISOLATION = check("", "def f(x): return x", "assert f(1) == 1", "f", 10).isolation
LOCKED = {"landlock", "seccomp"} <= set(ISOLATION)       # all that the hostile programs need to be harmless
print("in force here:", ", ".join(ISOLATION))


@pytest.fixture(scope="module")
def runner():
    with Runner() as r:
        yield r


def status(runner, program, test="assert f(2) == 3", entry_point="f", timeout=5, prompt=""):
    return runner.check(prompt, program, test, entry_point, timeout).status


def processes():
    """Python processes started by eval_code that are alive or unreaped."""
    found = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in found if "eval_code.zygote" in line and str(os.getpid()) in line.split()[:2]]


# ----------------------------------------------------------------------------------------------------------------------
# hostile programs

# what kill_parent and kill_own_group may hit is a disposable process, not pytest
HARNESS = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from eval_code import check
for line in sys.stdin:
    case, start = json.loads(line), time.monotonic()
    v = check(case["prompt"], case["completion"], case["test"], case["entry_point"], 1.0)
    print(json.dumps([case["name"], v.status, v.detail, time.monotonic() - start]), flush=True)
with open("/proc/self/status") as f:      # ru_maxrss would remember the process that started this one
    print(json.dumps(["memory", next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024]))
"""


def test_every_hostile_program_gets_an_acceptable_verdict_in_time_and_does_nothing(request):
    """Forgery by equality, exit codes, patches, frames, markers; bombs, floods, forks, signals; reading secrets; outliving."""
    canary = pathlib.Path(tempfile.gettempdir(), "adv_canary")
    (canary / "tree").mkdir(parents=True, exist_ok=True)
    request.addfinalizer(lambda: shutil.rmtree(canary))
    for name, text in (("keep.txt", "keep"), ("secret.txt", "ADV_FILE_SECRET"), ("tree/x.txt", "x")):
        (canary / name).write_text(text)
    cases = [c for c in CASES if LOCKED or c["category"] in ("control", "forge", "time")]
    done = subprocess.run([sys.executable, "-c", HARNESS, str(ROOT)], input="".join(json.dumps(c) + "\n" for c in cases), text=True,
                          capture_output=True, start_new_session=True, env={**os.environ, "ADV_SECRET": "ADV_SECRET_VALUE"}, timeout=120)
    *rows, (_, memory) = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0 and len(rows) == len(cases), done.stderr
    wrong = [(row, case["accept"]) for row, case in zip(rows, cases) if row[1] not in case["accept"]]
    assert not wrong
    if LOCKED:
        secrets = [row for row in rows if row[0] in ("read_parent_env", "read_secret_file", "network_udp_route") and row[1] != "pass"]
        assert not secrets
    assert max(row[3] for row in rows) < 3.0, max(rows, key=lambda row: row[3])     # timeout + 1 s, and 1 s for a busy machine
    assert memory < 200
    assert (canary / "keep.txt").read_text() == "keep" and (canary / "tree/x.txt").exists()
    for case in cases:
        effect = case.get("side_effect") or {}
        assert not os.path.exists(effect.get("absent", "/nonexistent")), case["name"]
    assert not processes()
    assert not list(pathlib.Path(tempfile.gettempdir()).glob(f"eval_code-*{os.getpid()}*"))


LIES = {
    "an int that equals all": "class I(int):\n  __eq__ = lambda a, b: True\n  __hash__ = int.__hash__\ndef f(x): return I(9)",
    "a float that equals all": "class I(float):\n  __eq__ = lambda a, b: True\ndef f(x): return I(9)",
    "an object that is true": "class I:\n  __bool__ = lambda s: True\n  __eq__ = lambda a, b: I()\ndef f(x): return I()",
    "a class with a lying metaclass": "class M(type):\n  __eq__ = lambda a, b: True\n  __hash__ = type.__hash__\nclass I(metaclass=M): pass\ndef f(x): return I",
    "a cycle": "def f(x):\n  a = []\n  a.append(a)\n  return a",
    "a tower": "def f(x):\n  a = []\n  for _ in range(10**5): a = [a]\n  return a",
    "a broken pipe": "import os\ndef f(x):\n  os.closerange(3, 64)\n  return 3",
    "a flood": "import os\ndef f(x):\n  for fd in range(3, 64):\n    try: os.write(fd, b'[' * 10**7)\n    except OSError: pass\n  return 3",
    "an error that cannot be shown": "class E(Exception):\n  def __str__(s): raise s\ndef f(x): raise E",
    "not a number": "def f(x): return float('nan')",
}


@pytest.mark.parametrize("name", LIES)
def test_no_lie_of_a_returned_value_passes(runner, name):
    """A value is decoded into exact builtin types of bounded size and depth; what cannot be is a fail, never an error."""
    assert status(runner, LIES[name]) == "fail"


RAW = """
import json, os, struct, sys
def speak(*frames):
    frame = sys._getframe()
    while "outbox" not in frame.f_locals: frame = frame.f_back
    here = frame.f_locals
    for frame in frames:
        data = json.dumps([here["nonce"] if frame[0] is None else frame[0], *frame[1:]]).encode()
        os.write(here["outbox"], struct.pack(">I", len(data)) + data)
    while True: here["nonce"]
"""


def test_an_answer_before_its_question_is_a_fail(runner):
    """A program that writes the pipe itself could answer the second call, whose reply it guessed, while the first is open."""
    program = RAW + "def f(x): speak([None, 'value', 3, None], [0, 'value', 4, None])"
    assert status(runner, program, "assert f(2) == 3\nassert f(3) == 4") == "fail"


def test_changed_arguments_count_only_for_functions_that_return_none(runner):
    """In-place functions work; a program that empties its argument and returns [] does not equal sorted(argument) by that."""
    assert status(runner, "def f(v): v.sort()", "v = [3, 1, 2]\nf(v)\nassert v == [1, 2, 3]") == "pass"
    test = "v = [3, 1, 2]\nassert f(v) == sorted(v)"
    assert status(runner, "def f(v):\n  v.clear()\n  return []", test) == "fail"
    assert status(runner, RAW + "def f(v): speak([None, 'value', [], [[]]])", test) == "fail"


def test_a_helper_of_the_prompt_is_the_prompts_own(runner):
    """HumanEval/32: the test calls poly, which a program could redefine as 0.0 and then any answer is a root."""
    prompt = "def poly(xs, x):\n    return xs[0] + xs[1] * x\n\ndef root(xs):\n    '''Root of poly.'''\n"
    test = "def check(candidate):\n    assert abs(poly([1, 2], candidate([1, 2]))) < 1e-4"
    assert status(runner, "    return -xs[0] / xs[1]\n", test, "root", prompt=prompt) == "pass"
    assert status(runner, "    return 0.0\n\ndef poly(xs, x): return 0.0\n", test, "root", prompt=prompt) == "fail"


def test_no_except_clause_of_a_test_hides_a_breach(runner):
    """`except:` around a call would turn a dead or lying candidate into a pass of tests that expect an error."""
    test = "try:\n    f(2)\nexcept:\n    pass"
    for end in ("import os\n  os._exit(0)", "import sys\n  sys.exit(0)"):
        assert status(runner, f"def f(x):\n  {end}", test) == "fail"
    assert status(runner, "def f(x): return object()", "try:\n    assert f(2) == 3\nexcept:\n    pass") == "fail"


HARM = {      # program -> 3 where the harmful call was refused
    "write outside": "def f(x):\n  try: open('/var/tmp/eval_code_was_here', 'w')\n  except OSError: return 3",
    "chmod outside": f"import os\ndef f(x):\n  try: os.chmod({tempfile.gettempdir()!r}, 0o1777)\n  except OSError: return 3",
    "list processes": "import os\ndef f(x):\n  try: os.listdir('/proc')\n  except OSError: return 3",
    "link to a secret": "import os\ndef f(x):\n  try:\n    os.symlink('/etc/passwd', 'l')\n    open('l')\n  except OSError: return 3",
    "fork by libc": "import ctypes\ndef f(x):\n  pid = ctypes.CDLL(None).fork()\n  return 3 if pid < 0 else pid",
    "signal by libc": "import ctypes, os\ndef f(x): return 2 - ctypes.CDLL(None).kill(os.getppid(), 0)",
    "own signal target": "import fcntl, os\ndef f(x):\n  r, w = os.pipe()\n  try: fcntl.fcntl(r, 8, os.getppid())\n  except OSError: return 3",
    "raise a limit": "import resource as r\ndef f(x):\n  try: r.setrlimit(r.RLIMIT_AS, (1 << 40, 1 << 40))\n  except (ValueError, OSError): return 3",
    "limit another": "import os, resource as r\ndef f(x):\n  try: r.prlimit(os.getppid(), r.RLIMIT_NOFILE, (0, 0))\n  except OSError: return 3",
    "socket": "import socket\ndef f(x):\n  try: socket.socket()\n  except OSError: return 3",
    "environment": "import os\ndef f(x): return 3 if not set(os.environ) & {'ADV_SECRET', 'PATH', 'USER'} else 0",
}


@pytest.mark.parametrize("name", HARM)
def test_harm_is_refused(runner, name, monkeypatch):
    """One confinement step missing or one system call forgotten: files, processes, signals, limits, network, environment."""
    monkeypatch.setenv("ADV_SECRET", "x")
    if LOCKED or name == "environment":
        assert status(runner, HARM[name]) == "pass"
    else:
        assert not LOCKED, f"{name} needs landlock and seccomp; in force here: {ISOLATION}"
    assert not os.path.exists("/var/tmp/eval_code_was_here")


def test_a_filled_disk_is_a_fail_and_is_cleaned_up():
    """RLIMIT_FSIZE bounds one file, not their number."""
    with Runner() as r:
        program = "def f(x):\n  for i in range(40):\n    with open(str(i), 'wb') as h: h.write(bytes(8 << 20))\n  import time\n  time.sleep(1)\n  return 3"
        verdict = r.check("", program, "assert f(2) == 3", "f", 5)
        assert verdict.status == "fail" and "files" in verdict.detail
        assert os.listdir(r.folder) == []
    assert not os.path.exists(r.folder)


def test_without_seccomp_and_landlock_the_rest_still_holds(capfd):
    """Other platforms: a missing step is reported once, verdicts stay right, and orphans of a double fork are found and killed."""
    boot = eval_code.BOOT.replace("sys.path.pop();", "sys.path.pop(); eval_code.seccomp = eval_code.landlock = lambda *a: {}[0];")
    escape = "import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0: time.sleep(60)\n  os._exit(0)\ntime.sleep(0.1)\ndef f(x): return x + 1"
    with Runner(boot) as r:
        verdicts = [r.check("", program, "assert f(2) == 3", "f", 5) for program in (escape, "def f(x): return 2", "def f(x): return 3")]
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(r.process.pid)], capture_output=True, text=True).stdout
    assert [v.status for v in verdicts[1:]] == ["fail", "pass"]
    assert not {"landlock", "seccomp"} & set(verdicts[0].isolation) and "rlimit_nproc" in verdicts[0].isolation
    assert not children.strip()
    assert capfd.readouterr().err.count("landlock") == 1


# ----------------------------------------------------------------------------------------------------------------------
# the clock


def test_sleep_and_work_both_count_and_waiting_for_a_core_does_not():
    """Wall-clock limits fail right programs on a busy machine: eight at once, each within its limit only by processor time."""
    work = "import time\ndef f(x):\n  while time.process_time() < 0.4: pass\n  return x + 1"
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda _: check("", work, "assert f(2) == 3", "f", 0.8), range(8)))
    assert [v.status for v in verdicts] == ["pass"] * 8
    for slow in ("while True: pass", "import time; time.sleep(60)", "import time; [time.sleep(0.01) for _ in range(10**4)]"):
        start = time.monotonic()
        assert check("", f"def f(x):\n  {slow}", "assert f(2) == 3", "f", 0.5).status == "timeout"
        assert time.monotonic() - start < 2.5


def test_a_value_that_is_slow_to_read_is_the_programs_own_timeout(runner):
    """Hash collisions and endless iterators cost the referee, which the limit must cover too."""
    assert status(runner, "def f(x): return {(2**61 - 1) * i for i in range(2, 60000)}", timeout=0.5) == "timeout"
    assert status(runner, "def f(x):\n  while True: yield 1", "assert list(f(2)) == [3]", timeout=0.5) == "timeout"


def test_a_timeout_is_tried_again_alone(monkeypatch):
    """A machine that stalls must not cost a program its pass."""
    tries = []

    def flaky(self, *args):
        tries.append(args)
        return eval_code.Verdict("timeout" if len(tries) == 3 else "pass" if "+" in args[1] else "fail", "", 0.0, ())

    monkeypatch.setattr(Runner, "check", flaky)
    problem = Item("t/0", "t", "", "", "", "assert f(2) == 3", "f")
    assert [v.status for v in score([(problem, "x + 1")], allow_code_execution=True)] == ["pass"]
    assert len(tries) == 4                                  # two of the self-test, one, one again


def test_a_slow_machine_fails_no_program_that_is_as_quick_as_the_problems_own():
    """A limit in seconds alone: the solution of MBPP's 123 took 6 s on a slow machine, and 3 s is the usual limit."""
    busy = "import time\ndef f(x):\n  while time.process_time() < {}: pass\n  return x + 1".format
    quick, slow, wrong = (Item(f"t/{i}", "t", "", answer, "", "assert f(2) == 3", "f")
                          for i, answer in enumerate((busy(0), busy(0.5), busy(0.5) + " + 1")))
    jobs = [(quick, busy(0.5)), (slow, busy(0.7)), (slow, busy(60)), (wrong, busy(0.5))]
    assert [v.status for v in score(jobs, 0.25, allow_code_execution=True)] == ["timeout", "pass", "timeout", "timeout"]


def test_overhead_is_less_than_two_interpreter_starts(runner):
    """Bug: an interpreter started, and its imports done, anew for each program; measured side by side, so load cancels."""
    def least(action):
        times = []
        for _ in range(15):
            start = time.monotonic()
            action()
            times.append(time.monotonic() - start)
        return min(times)

    start_up = least(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True))
    assert least(lambda: status(runner, "def f(x): return x + 1")) < 2 * start_up


# ----------------------------------------------------------------------------------------------------------------------
# what tests may do

FINE = {
    "generator": ("def f(n):\n  yield from range(n)", "assert list(f(3)) == [0, 1, 2] and next(f(2)) == 0"),
    "exception": ("def f(n): raise ValueError('odd')", "try:\n  f(1)\n  assert False\nexcept ValueError as e:\n  assert 'odd' in str(e)"),
    "own exception": ("class E(KeyError): pass\ndef f(n): raise E(n)", "try:\n  f(1)\n  assert False\nexcept KeyError:\n  pass"),
    "class": ("class f:\n  def __init__(s, n): s.n = n\n  def add(s, k): return s.n + k", "a = f(1)\na.n = 4\nassert a.add(2) == 6 and a.n == 4"),
    "object passed back": ("class N:\n  def __init__(s, v): s.v = v\ndef f(n): return n.v", "assert f(N(7)) == 7"),
    "modules": ("def f(n): return n / 3", "assert math.isclose(f(1), 1 / 3) and sys.getsizeof(f(1)) > 0"),
    "types": ("def f(t, x): return isinstance(x, t)", "assert f(int, 3) is True and isinstance(f(str, 3), bool)"),
    "subclasses": ("import collections\ndef f(s): return collections.Counter(s)", "assert f('aab') == {'a': 2, 'b': 1}"),
    "numbers": ("def f(n): return (10 ** n, 2.5, 1j, True, None, b'x')", "assert f(5000) == (10 ** 5000, 2.5, 1j, True, None, b'x')"),
    "int for float": ("def f(n): return n * 1.0", "assert f(5) == 5"),
    "keywords": ("def f(a, *, b): return a - b", "assert f(5, b=2) == 3"),
    "surrogate": ("def f(n): return '\\ud800'", "assert f(1) == '\\ud800'"),
    "dataclass": ("import dataclasses\n@dataclasses.dataclass\nclass P:\n  x: 'int'\ndef f(n): return P(n).x", "assert f(3) == 3"),
    "named like a builtin": ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),
    "patched builtins": ("import builtins\nbuiltins.len = builtins.isinstance = None\ndef f(n): return n", "assert f(3) == 3"),
    "asyncio": ("import asyncio\nasync def g(n): return n\ndef f(n): return asyncio.run(g(n))", "assert f(3) == 3"),
    "own file": ("def f(n):\n  open('a', 'w').write('x')\n  return open('a').read()", "assert f(1) == 'x'"),
    "list of asserts": ("def f(n): return n", ["assert f(3) == 3", "assert f(4) == 4"]),
}


@pytest.mark.parametrize("name", FINE)
def test_ordinary_python_works_on_both_sides(runner, name):
    """A runner that is safe because it supports nothing: each line is something that published tests or solutions do."""
    program, test = FINE[name]
    verdict = runner.check("", program, test, "sum" if "builtin" in name and "sum" in program else "f", 5)
    assert verdict.status == "pass", verdict


@pytest.mark.parametrize("test", ["x = 1", "assert f(2) ==", "assert f(lambda: 0) == 3"])
def test_trouble_with_a_test_is_an_error_not_a_fail(runner, test):
    """A test that calls nothing, does not compile or needs more than plain data says nothing about the program."""
    assert status(runner, "def f(x): return 3", test) == "error"


def test_a_dead_zygote_is_an_error_and_the_next_check_recovers():
    """Harness trouble must show as error; the runner must not stay broken after it."""
    with Runner("raise SystemExit(1)") as r:
        assert status(r, "def f(x): return 3") == "error"
        r.boot = eval_code.BOOT
        assert status(r, "def f(x): return 3") == "pass"


def test_pack_and_unpack_are_inverse_and_exact():
    """True is not 1, a tuple is not a list, -0.0 and 10**4000 survive, keys need not be strings."""
    value = [True, 1, 1.0, -0.0, (1, [2]), {3}, frozenset({"x"}), {(1, 2): {"a": None}}, 10**4000, -2**63, 1 + 2j, b"\0\xff", "\ud800", int]
    back = unpack(json.loads(json.dumps(pack(value, None))), None)
    assert back == value and repr(back) == repr(value)
    for bad in ({"a": 1, "b": 2}, {"eval": "1"}, {"type": "eval"}, {"int": 5}, {"set": [[1]]}):
        with pytest.raises((ValueError, TypeError, KeyError)):
            unpack(bad, None)


# ----------------------------------------------------------------------------------------------------------------------
# data sets

HUMANEVAL, MBPP = DATA / "humaneval/HumanEval.jsonl.gz", DATA / "mbpp/mbpp.jsonl"
CHECK = f"def check(candidate):\n    {ADD[1].replace('add', 'candidate').replace(chr(10), chr(10) + '    ')}"
SAMPLE = [Item("sample/0", "sample", "", "    return a + b\n", ADD[0], CHECK, "add"),
          Item("sample/1", "sample", "", "def add(a, b):\n    return a + b\n", "", ADD[1], "add")]
SETS = [(name, path) for name, path in (("humaneval", HUMANEVAL), ("mbpp", MBPP)) if path.exists()] or [("sample", None)]


@pytest.mark.parametrize("name, path", SETS)
def test_canonical_solutions_pass_and_none_passes_nothing(name, path):
    """The reference of every problem passes; `return None` passes none: no test is vacuous, no proxy lies."""
    problems = load_problems(f"{name}={path}") if path else SAMPLE
    print(f"{name}: {len(problems)} problems" + ("" if path else f" (no files below {DATA}; set EVAL_CODE_DATA for the full sets)"))
    right = score([(p, p.answer) for p in problems], 10, os.cpu_count(), allow_code_execution=True)
    assert [(p.id, v) for p, v in zip(problems, right) if v.status != "pass"] == []
    nothing = [(p, "    return None\n" if p.code else f"def {p.entry_point}(*a, **k):\n    return None\n") for p in problems]
    assert [p.id for (p, _), v in zip(nothing, score(nothing, 5, os.cpu_count(), allow_code_execution=True)) if v.status != "fail"] == []


def test_bad_data_is_refused_with_file_and_line(tmp_path):
    """A skipped row changes the denominator of a score without a word."""
    row = {"task_id": "HumanEval/0", "prompt": ADD[0], "test": ADD[1], "entry_point": "add", "canonical_solution": " return a + b"}
    mbpp = {"task_id": 11, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": ADD[1].split("\n"), "test_setup_code": ""}
    path = tmp_path / "data.jsonl.gz"
    for name, lines, expected in (("humaneval", [json.dumps(row), "{"], f"{path}:2: expected one JSON object"),
                                  ("humaneval", [json.dumps({**row, "test": 0} | {"x": 1}).replace('"prompt"', '"promt"')], f"{path}:1: expected a row"),
                                  ("humaneval", [json.dumps(row)] * 2, f"{path}:2: expected each task once"),
                                  ("humaneval", [json.dumps(row)], "expected 164 problems, found 1"),
                                  ("mbpp", [json.dumps({**mbpp, "test_list": ["assert 1"]})], f"{path}:1: expected a row of mbpp"),
                                  ("mbpp-test", [json.dumps({**mbpp, "task_id": 9}), json.dumps(mbpp)], "expected 500 problems, found 1"),
                                  ("gsm8k", [], "expected toy-code")):
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
        with pytest.raises(SystemExit) as error:
            load_problems(f"{name}={path}")
        assert expected in str(error.value)
    samples = tmp_path / "samples.jsonl"
    for lines, expected in (([{"task_id": "sample/9", "completion": ""}], ":1: expected a task_id"), ([{"task_id": "sample/0"}], ":1: expected a task_id"),
                            ([{"task_id": "sample/0", "completion": ""}], "found 0 of sample/1, 1 of sample/0")):
        samples.write_text("\n".join(map(json.dumps, lines)))
        with pytest.raises(SystemExit) as error:
            read_samples(str(samples), SAMPLE)
        assert expected in str(error.value)


def test_hub_rows_are_read_like_files(monkeypatch):
    """The hub serves MBPP in four splits; all of them are the 974."""
    rows = [{"task_id": i, "text": "t", "code": "def add(a, b): return a + b", "test_list": ["assert add(1, 2) == 3"], "test_setup_code": ""} for i in range(1, 975)]
    fake = type(sys)("datasets")
    parts = {"train": rows[600:], "test": rows[10:510], "prompt": rows[:10], "validation": rows[510:600]}
    fake.load_dataset = lambda path, config, split: parts[split]
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert len(load_problems("mbpp")) == 974 and [p.id for p in load_problems("mbpp-test")][::499] == ["mbpp/11", "mbpp/510"]


# ----------------------------------------------------------------------------------------------------------------------
# extraction

F = "def f(x):\n    return x\n"
CHAT = {
    f"Sure:\n```python\n{F}```\nIt is short.": "\n" + F,
    f"<think>```python\nwrong\n```</think>\n```py\n{F}```": "\n" + F,
    f"```python\n{F}```\nUse it:\n```python\nprint(f(1))\n```": "\n" + F,
    f"First try:\n```python\ndef f(x):\n    pass\n```\nBetter:\n```python\n{F}```": "\n" + F,
    f"Cut off:\n```python\n{F}": "\n" + F,
    f"~~~~\n{F}~~~~": "\n" + F,
    "1. So:\n   ```python\n   def f(x):\n       return x\n   ```": "\n" + F,
    "```python\ndef f(x):\n    '''\n    ```x``` is x\n    '''\n    return x\n```": "\ndef f(x):\n    '''\n    ```x``` is x\n    '''\n    return x\n",
    "    return x\n": "    return x\n",
    "": "",
}


@pytest.mark.parametrize("text", CHAT)
def test_code_is_extracted_from_chat_answers(text):
    """Fences: thoughts, usage examples, second tries, cut-off, tildes, lists, back quotes inside; and text without a fence."""
    assert extract_code(text, "", "f") == CHAT[text]


def test_a_bare_body_and_a_repeated_prompt_fit_below_the_prompt():
    """Base models continue the prompt, chat models answer with the body or the whole function; each must run."""
    for answer in ("    return a + b\n", ADD[0] + "    return a + b\n", "```python\nreturn a + b\n```", f"```python\n{ADD[0]}    return a + b\n```"):
        assert check(ADD[0], extract_code(answer, ADD[0], "add"), ADD[1], "add", 5).status == "pass", answer


def test_text_is_cut_at_the_first_stop_in_text_space():
    """The stop that stands first in the list is not the one that stands first in the text, and none may be cut by tokens."""
    assert cut_at_stop("  return 1\n\nprint(2)\ndef g", ("\ndef ", "\nprint(")) == "  return 1\n"
    assert cut_at_stop(" return 1\ndef g", ["\ndef"]) == " return 1" and cut_at_stop("x", ["\ndef"]) == "x"


# ----------------------------------------------------------------------------------------------------------------------
# the command line and the built-in task


def test_nothing_runs_without_consent(tmp_path):
    """Neither flag nor argument may default to running code."""
    with pytest.raises(SystemExit, match="allow-code-execution"):
        score([(SAMPLE[0], "")])
    with pytest.raises(SystemExit, match="allow-code-execution"):
        eval_code.main([str(tmp_path / "absent.jsonl"), "--data", "toy-code"])


def test_the_command_line_writes_rows_and_a_summary(tmp_path, monkeypatch, capsys):
    """pass@k from counts, the exit status where a verdict is an error, which counts neither way; k over n refused."""
    problems = SAMPLE + [SAMPLE[1]._replace(id="sample/2", test="assert add(lambda: 0) == 3")]
    monkeypatch.setattr(eval_code, "load_problems", lambda *args: problems)
    path, args = tmp_path / "s.jsonl", ["--data", "humaneval", "--allow-code-execution", "--workers", "2", "--timeout", "5"]

    def run(n, *more):
        path.write_text("".join(json.dumps({"task_id": p.id, "completion": c}) + "\n" for p in problems[:n] for c in (p.answer, "bad")))
        problems[n:] = []
        return eval_code.main([str(path), *args, *more])

    def record():
        return json.loads((tmp_path / "s" / "humaneval.json").read_text())

    assert run(3) == 1 and "'error': 1" in capsys.readouterr().out
    assert (record()["scores"]["n"], record()["scores"]["accuracy"], record()["scores"]["errors"]) == (2, 0.5, 1)
    assert run(2, "--k", "2") == 0 and "pass@2 100.00%" in capsys.readouterr().out
    assert record()["counts"] == {"pass": 2, "fail": 2, "timeout": 0, "error": 0} and record()["timeout"] == 5.0
    assert record()["samples"] == 2 and record()["scores"]["pass@2"] == 1.0 and len(record()["sha256"][str(path)]) == 64
    rows = [json.loads(line) for line in (tmp_path / "s" / "humaneval.jsonl").read_text().splitlines()]
    assert [r["status"] for r in rows] == ["pass", "fail"] * 2 and rows[0]["isolation"] == list(ISOLATION)
    with pytest.raises(SystemExit, match="expected 1 to 2"):
        run(2, "--k", "3")
    assert run(2, "--limit", "1") == 0 and "of 1 (" in capsys.readouterr().out, "a whole file, of which a part is wanted"
    for wrong, said in ((("--limit", "0"), "--limit: expected 1"), (("--timeout", "0"), "--timeout and --workers"), (("--workers", "0"), "--timeout and --workers")):
        with pytest.raises(SystemExit):
            run(2, *wrong)
        assert said in capsys.readouterr().err


def test_checkpoints_are_scored_on_the_task_they_were_trained_on(trained, trained_code, tmp_path, capsys):
    """A table of zeros from a model that never saw the task; wrong values found out after hours."""
    with pytest.raises(SystemExit, match=r"wmss\.pt was trained on toy-math; score it with python eval_math.py"):
        eval_code.main([str(trained / "wmss.pt"), "--allow-code-execution", "--limit", "8"])
    with pytest.raises(SystemExit, match="wmss.pt was trained on toy-code; score it with python eval_code.py"):
        eval_math.main([str(trained_code / "wmss.pt"), "--limit", "7"])
    with pytest.raises(SystemExit):
        eval_code.main([str(trained_code / "wmss.pt"), "--allow-code-execution", "--n", "2", "--k", "3"])
    err = capsys.readouterr().err
    assert "--k: expected" in err and "--temperature 0.0: greedy" in err
    for batch in ("3", "100"):
        flags = "--allow-code-execution --limit 8 --n 2 --temperature 0.5 --max-new-tokens 8".split()
        flags += ["--batch", batch, "--out", str(tmp_path / batch)]
        assert eval_code.main([str(trained_code / "wmss.pt"), *flags]) == 0
    rows = [[json.loads(line) for line in open(tmp_path / batch / "toy-code.jsonl")] for batch in ("3", "100")]
    assert [{**r, "seconds": 0} for r in rows[0]] == [{**r, "seconds": 0} for r in rows[1]] and len(rows[0]) == 16


def test_a_folder_is_scored_and_what_was_scored_is_written(hf_folder, tmp_path):
    """A model folder opened like a file of samples, once all its programs have been run: a traceback instead of scores."""
    task = dict(prompt="def f(x):\n", entry_point="f", canonical_solution="    return x\n", test="def check(f):\n    f(1)\n")
    (tmp_path / "human.jsonl").write_text("".join(json.dumps(dict(task, task_id=f"HumanEval/{i}")) + "\n" for i in range(164)))
    flags = "--allow-code-execution --limit 2 --max-new-tokens 4".split()
    eval_code.main([str(hf_folder), "--data", f"humaneval={tmp_path / 'human.jsonl'}", *flags, "--out", str(tmp_path / "o")])
    record = json.loads((tmp_path / "o" / "humaneval.json").read_text())
    assert record["counts"]["fail"] == 2 and list(record["sha256"]) == [str(tmp_path / "human.jsonl")]


def test_stops_cut_plain_text_and_fences_are_taken_whole():
    """A second function after the answer that breaks it; a stop string inside a fenced answer that cuts it in half."""
    problem = SAMPLE[1]._replace(code="")
    texts = ["def add(a, b):\n    return a + b\n\nprint(add(", "```python\nimport math\n\ndef add(a, b):\n    return a + b\n```"]
    rows = [dict(id=problem.id, family="s", sample=i, gold="", completion=text, truncated=False) for i, text in enumerate(texts)]
    for row, extractor in zip(judge(rows, [problem], True, stops=("\nprint(", "\ndef ")), ("text", "fence")):
        assert (row["correct"], row["extractor"]) == (True, extractor), row
    assert summary(rows, ks=(2,))["pass@2"] == 1


def test_a_self_test_that_goes_wrong_stops_the_scoring(monkeypatch):
    """A sandbox that fails everything (or passes it) would score every model alike."""
    monkeypatch.setattr(eval_code, "check", lambda *a: eval_code.Verdict("fail", "", 0.0, ()))
    with pytest.raises(SystemExit, match="self-test: expected pass"):
        score([], allow_code_execution=True)


def test_toy_programs_pass_and_the_usual_mistakes_fail():
    """A mistake that the hidden inputs miss would teach and score wrong code."""
    problems = toy_code("train", 160, 2, 0.5)
    verdicts = score([(p, p.completion) for p in problems], allow_code_execution=True)
    assert [p for p, v in zip(problems, verdicts) if v.status != ("fail" if p.completion == p.mistake else "pass")] == []
