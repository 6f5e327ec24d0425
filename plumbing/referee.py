"""The referee: the process that runs the trusted tests of one program, which lives in another.

Each call of the tested function is a question to the candidate. Its answer is decoded into exact
built-in types, so that comparisons are ours: no foreign __eq__, no pickle, no exit status and no
printed marker counts. What is no plain data stays with the program, see plumbing/foreign.py. In
turn functions, objects and iterators of the test may be lent to the program: it may ask to call
them and read or set public attributes, and the answer is computed here.
"""

import builtins
import functools
import os
import sys

from plumbing.candidate import by_place, take_job
from plumbing.foreign import Breach, Made, MadeClass, Remote
from plumbing.talk import Talk, exception, find, operate
from plumbing.values import MB, MUTABLE, overwrite, receive, send

MAX_REPLY, MAX_MEMORY, MAX_CALLBACKS = 4 * MB, 200 * MB, 50   # an answer, ours, nested call-backs
TEST_MODULES = ("test", "prompt")               # __module__ of what a test and a prompt define
# special methods that may be asked of what a test lends
METHODS = """call iter next len getitem setitem delitem contains eq ne lt le gt ge bool str repr
hash int float index add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow
rpow neg abs and or xor iadd enter exit""".split()
# the few answers that Python itself wants to be of one type
ANSWERS = {"len": int, "str": str, "repr": str, "equal": bool, "iter": Remote}
WRONG = (ValueError, TypeError, LookupError, AttributeError, RecursionError, MemoryError,
         ArithmeticError)                       # what unpacking a message raises that is not right


def name_of(x):
    """[module, name] of a function or class of Python's own, which the candidate has too."""
    owner = getattr(x, "__objclass__", x)                    # of str.upper: str
    module = getattr(owner, "__module__", None) or getattr(x, "__module__", None)
    name = getattr(x, "__qualname__", None)
    both = isinstance(module, str) and isinstance(name, str)
    return [module, name] if both and find(module, name) is x else None


@functools.cache
def special_methods(kind):
    return [name for name in METHODS if getattr(kind, f"__{name}__", None)
            not in (None, getattr(object, f"__{name}__", None))]


def rights(x):
    """The special methods that the candidate may ask of x, or None if x may not be lent."""
    kind = type(x)
    if isinstance(x, type):
        return ["call"] if x.__module__ in TEST_MODULES else None
    own = special_methods(kind)
    if kind.__module__ in TEST_MODULES:
        return own
    own = [name for name in own if name in ("call", "iter", "next")]
    if kind.__name__ == "builtin_function_or_method":        # v.append, d.get
        plain = type(x.__self__).__name__ in (*MUTABLE, "str", "tuple", "bytes", "frozenset")
        return own if plain else None
    is_function = kind.__name__ in ("function", "method")
    is_function |= kind.__module__ in ("functools", "operator") and "call" in own    # partial
    return own if is_function or own[-2:] == ["iter", "next"] else None


def test_frames():
    """How many functions of the test are running, its own text included."""
    n, frame = 0, sys._getframe()
    while frame:
        n += frame.f_code.co_filename == "<test>"
        frame = frame.f_back
    return n


class Referee(Talk):
    caught = Exception

    def __init__(self, outbox, inbox):
        super().__init__(inbox, outbox)
        self.calls, self.compiled = 0, False    # of the tested function; is the test Python?
        self.stands = ()                        # status and reason, once no test can change them
        self.classes, self.errors = {}, []      # the program's, by number; its exceptions' classes
        self.pending, self.twins = [], []       # changes to apply; (returned value, argument)
        self.unused = {}                        # what the test made of them and did not use, by id
        self.n_made = 0                         # Made objects that the program knows

    def end(self, status, why):
        self.stands = self.stands or (status, why)
        raise Breach(why)

    def refuse(self, what):
        self.end("fail", f"{what}: the program's own verdict")

    def refer(self, x, depth):
        """What is not plain data, for the candidate."""
        if type(x) in (Remote, MadeClass) or isinstance(x, type) and x in self.errors:
            return {"yours": x._number}
        if type(x) is Made:
            return {"made": self.made(x, depth)}
        if any(x is kind for kind in (Remote, Made, MadeClass)):
            self.refuse("the type of an object of the program's")
        named = name_of(x)
        if named:
            return {"global": named}
        methods = rights(x)
        if methods is None:
            raise TypeError(f"the test passes a {type(x).__name__}; expected plain data, a "
                            "function, an object of its own, or something of the program's")
        return {"mine": [self.number(x), [methods, str(getattr(x, "__name__", ""))]]}

    def made(self, x, depth):
        self.unused.pop(id(x), None)
        if x._number is not None:
            return [x._number]
        vars(x)["_number"] = self.n_made
        self.n_made += 1
        # in the order in which the candidate reads it
        how = [self.pack(part, depth + 1) for part in (x._kind, list(x._args), x._kwargs)]
        attributes = [[name, self.pack(value, depth + 1)] for name, value in x._set.items()]
        return [x._number, *how, attributes]

    def proxy(self, parts, depth):
        number, about = parts
        if type(number) is not int:
            raise ValueError("no number of an object")
        if number not in self.proxies:
            self.proxies[number] = Remote(_talk=self, _number=number, _about=((), None))
        if about is not None:
            classes, state = about
            if state is not None:
                state = {str(name): self.unpack(value, depth) for name, value in state}
            about = tuple(int(n) for n in classes), state
            object.__setattr__(self.proxies[number], "_about", about)
        return self.proxies[number]

    def class_of(self, lineage, fields=(), members=()):
        """A class of the program's, by its lineage: a standard one, or one of ours that stands for
        it. An exception's derives from the builtin that it derives from."""
        (where, name), *rest = lineage
        if type(where) is str:
            kind = find(where, name)
            if kind in (SystemExit, KeyboardInterrupt, GeneratorExit, BaseException):
                self.end("fail", f"the program raised {name}")
            # what unittest raises may end a test well
            if isinstance(kind, type) and not where.startswith("unittest"):
                return kind
            return self.class_of(rest)
        if type(where) is not int:
            raise ValueError("no number of a class")
        root = find(*lineage[-1])
        if where not in self.classes and issubclass(root, BaseException):
            base = exception(self.class_of(rest))
            self.classes[where] = self.error_class(where, str(name), base)
        elif where not in self.classes:
            self.classes[where] = MadeClass(
                self, where, str(name), [str(field) for field in fields],
                [str(member) for member in members], issubclass(root, tuple))
        return self.classes[where]

    def error_class(self, number, name, base):
        """Neither true nor equal to anything: a helper of that name must not pass a test."""
        def not_a_value(*_):
            self.refuse("an exception of the program's as a value")

        def init(e, *_, **__):
            if not self.nonces:                 # a call-back may raise it
                not_a_value()
            self.unused[id(e)] = e

        body = {"__module__": "candidate", "_number": number, "_text": "", "__init__": init,
                "__str__": lambda e: e._text or Exception.__str__(e), "__eq__": not_a_value,
                "__ne__": not_a_value, "__bool__": not_a_value, "__hash__": None}
        self.errors.append(type(name, (base,), body))
        return self.errors[-1]

    def lineage(self, kind):
        return [["builtins", base.__name__] for base in kind.__mro__
                if base.__module__ == "builtins"]

    def describe(self, e):
        self.unused.pop(id(e), None)
        return super().describe(e, self.number(e))

    def ask(self, op, *args):
        """One question to the candidate, and its answer; raises what the candidate raised."""
        if self.stands:
            raise Breach(self.stands[1])
        self.calls += op == "call"
        try:
            packed = self.pack(list(args))
        except TypeError as e:
            self.end("fail" if self.nonces else "error", str(e))
        try:
            kind, said = self.exchange(int.from_bytes(os.urandom(7), "big"), op, packed)
            if kind == "raise":
                value = self.revive(*said)
                exception(type(value))
            else:
                value, changed, which = [self.unpack(tree) for tree in said]
                if type(value) is not ANSWERS.get(op, type(value)):
                    raise TypeError(op)
                if op == "call":
                    self.note_changes(args, value, changed, which)
                if op == "name":
                    value = self.class_of(*value)
        except (OSError, EOFError) as e:
            self.end("fail", f"the program ended or said too much: {e}")
        except WRONG as e:
            self.end("fail", f"an answer that is not plain data: {type(e).__name__}")
        if kind == "value":
            return value
        if isinstance(value, (StopIteration, StopAsyncIteration)) and op != "next":
            # it would end a loop of the test's own, as if all had gone well
            raise RuntimeError("the program raised StopIteration")
        raise value

    def hear(self, nonce):
        message = receive(self.inbox, MAX_REPLY)
        if message[0] != nonce or message[1] not in ("value", "raise", "ask"):
            raise ValueError("it answers no question")
        return message

    def perform(self, op, packed):
        """Answer a question of the candidate's about something lent: [packed value]."""
        try:
            x, args, kwargs = self.unpack(packed)
        except WRONG as e:
            self.end("fail", f"a question that is not plain data: {type(e).__name__}")
        if id(x) not in self.numbers:
            self.end("fail", "it asks about what was not lent")
        if len(self.nonces) > MAX_CALLBACKS:
            raise RecursionError("call-backs nested too deeply")
        try:
            if op not in (rights(x) or ()):
                self.check_attribute(op, x, args[0])
            return [self.pack(operate(op, x, args, kwargs))]
        except AssertionError as e:
            self.end("fail", f"an assert of the test, called by the program: {e}")

    def check_attribute(self, op, x, name):
        if type(x).__module__ not in TEST_MODULES or type(name) is not str or name[:1] == "_":
            raise AttributeError(name)
        if op not in ("get", "set", "delete"):
            raise AttributeError(op)
        if op != "get" and callable(getattr(x, name, None)):     # the test may call it later
            raise AttributeError(f"{name} is a function of the test's")

    def note_changes(self, args, value, changed, which):
        """To apply now if it returned None, else behind the statement of the test (or `assert f(v)
        == sorted(v)` would compare with what f made of v)."""
        given = {key: x for key, x in by_place(*args[1:]).items() if type(x).__name__ in MUTABLE}
        if type(which) in (int, str) and which in given and type(value) is type(given[which]):
            self.twins.append((value, given[which]))
        for key in given.keys() & (changed or {}).keys():
            self.pending.append((test_frames(), given[key], changed[key]))
        if value is None:
            self.apply(0)

    def apply(self, depth):
        """Apply the changes that calls at this depth of the test's functions, or deeper, made."""
        due = [change for change in self.pending if change[0] >= depth]
        self.pending = [change for change in self.pending if change[0] < depth]
        for _, old, new in due:
            overwrite(old, new, set())

    def settle(self, discarded=False):
        """A statement of the test is over: see rewrite. In functions that the test calls, only if
        it was nothing but a call, since the statement that called them is still running."""
        depth = test_frames() if self.pending else 0
        if depth and (discarded or depth == 1):
            self.apply(depth)

    def same(self, a, b):
        """`a is b`, also where the function returned the very argument that it got."""
        twins = [(id(value), id(argument)) for value, argument in self.twins]
        return a is b or (id(a), id(b)) in twins or (id(b), id(a)) in twins


class Names(dict):
    """Globals of a test. What it does not set itself is, in this order: the tested function; a
    builtin; a helper in the prompt, run here (or a program could redefine `poly` of HumanEval/32,
    and so grade itself); a standard module; a class of the program's, of which only Made objects
    and exceptions are made. Functions never come from the program."""

    def __init__(self, referee, prompt, entry_point):
        function = referee.ask("entry", entry_point)
        if type(function) is not Remote:
            referee.end("fail", "the program broke the protocol")
        super().__init__({entry_point: function, "__name__": "test",
                          "__settle__": referee.settle, "__same__": referee.same})
        self.referee, self.prompt, self.helpers = referee, prompt, dict(self, __name__="prompt")

    def __missing__(self, name):                # CPython asks it for the globals of functions too
        if hasattr(builtins, name):
            raise KeyError(name)                # the interpreter goes on to the builtin
        self.run_prompt()
        if name in self.helpers:
            return self.helpers[name]
        if name in sys.stdlib_module_names:
            return __import__(name)
        found = self.referee.ask("name", name)
        if type(found) is not MadeClass and found not in self.referee.errors:
            self.referee.end("fail", f"name {name!r} is not defined in the test")
        self[name] = found
        return found

    def run_prompt(self):
        """Once: run the prompt, with a body for a function that it leaves open."""
        prompt, self.prompt = self.prompt, ""
        for text in (prompt + "\n    pass\n", prompt) if prompt else ():
            found = {"__name__": "prompt"}
            try:
                exec(compile(text, "<prompt>", "exec"), found)
            except SyntaxError:                 # words, or code that leaves no function open
                continue
            found.update(self.helpers)          # so that helpers call the candidate's function
            self.helpers = found
            return


ONLY_TREE = 0x400                               # ast.PyCF_ONLY_AST, without importing ast


def statement(text):
    return compile(text, "<test>", "exec", ONLY_TREE).body[0]


SETTLE, SETTLE_CALL = statement("__settle__()"), statement("__settle__(True)")


def rewrite(node, imported):
    """A test with __settle__() behind each statement, and __same__(a, b) for `a is b`.

    The candidate works on copies: a statement of the test sees an argument unchanged while it runs,
    changed from then on; not seen are changes before an exception, and one object in two places.
    Adds the names of the modules that the test imports to the set `imported`.
    """
    kind = type(node).__name__
    if kind == "Import":
        imported.update(alias.name.partition(".")[0] for alias in node.names)
    if kind == "ImportFrom" and not node.level:
        imported.add(node.module.partition(".")[0])
    for field in getattr(node, "_fields", ()):
        value = getattr(node, field, None)
        if not isinstance(value, list):
            setattr(node, field, rewrite(value, imported))
            continue
        is_block = field in ("body", "orelse", "finalbody") and kind not in ("Module", "ClassDef")
        new = [SETTLE] if value and is_block else []
        for item in value:
            new.append(rewrite(item, imported))
            what = "" if kind == "ClassDef" else type(item).__name__
            if what == "Expr" and type(item.value).__name__ == "Call":
                new.append(SETTLE_CALL)
            elif what in ("Assign", "AugAssign", "AnnAssign", "Assert"):
                new.append(SETTLE)
        setattr(node, field, new)
    if kind == "Compare" and [type(op).__name__ for op in node.ops] in (["Is"], ["IsNot"]):
        negated = "not " if type(node.ops[0]).__name__ == "IsNot" else ""
        same = statement(f"{negated}__same__(0, 0)").value
        (same.operand if negated else same).args = [node.left, *node.comparators]
        return same
    return node


def run_test(job, referee):
    """Run the test of a job; returns status and detail, unless a Breach or an error ends it."""
    imported = set()
    tree = rewrite(compile(job["test"], "<test>", "exec", ONLY_TREE), imported)
    sys.path += job["modules"]
    for name in sorted(imported - sys.stdlib_module_names):
        from importlib.util import find_spec
        if find_spec(name) is None:
            return "error", (f"the test imports {name}, which is not installed here: "
                             f"pip install {name}")
    code = compile(tree, "<test>", "exec")
    referee.compiled = True
    referee.ask("load")
    names = Names(referee, job["prompt"], job["entry_point"])
    function = names[job["entry_point"]]
    exec(code, names)
    if names.get("check", function) is not function:         # HumanEval's way
        names["check"](function)
    if referee.unused:
        return "fail", "the test makes an object of a class that only the program defines, in vain"
    if not referee.calls:
        return "error", f"the test never calls {job['entry_point']}, so it proves nothing"
    return "pass", ""


def referee(outbox, inbox, done, stdout):
    """Run a job's tests against the candidate; sends ["verdict", status, detail] to stdout.

    done: a descriptor that closes at our end, by which the zygote sees that we are through.
    """
    job = take_job()
    if sys.platform == "linux":                 # elsewhere the kernel refuses or ignores it
        import resource
        memory = MAX_MEMORY * (10 if job["modules"] else 1)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    judge = Referee(outbox, inbox)
    try:
        status, detail = run_test(job, judge)
    except BaseException as e:
        line, traceback = 0, e.__traceback__
        while traceback:
            if traceback.tb_frame.f_code.co_filename == "<test>":
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        status = "fail" if judge.compiled else "error"
        try:
            detail = f"test line {line}: {type(e).__name__}: {e}"
        except BaseException:
            detail = f"test line {line}"
    status, detail = judge.stands or (status, detail)
    # under 4,096 bytes: a pipe takes it whole or not at all
    send(stdout, ["verdict", status, detail[:300]])
