"""The referee: the process that runs the trusted tests of one program, which lives in another.

Each call of the tested function is a question to the candidate (see plumbing/candidate.py). Its
answer is decoded into exact built-in types, so that comparisons are ours: no foreign __eq__, no
pickle, no exit status and no printed marker counts. What is not plain data stays on its side:

    Remote   something of the program's, by its number. A test may call it, pass it back, iterate
             it, index it, ask for its length, text and attributes. Its truth, and whether it equals
             a value of the test's, would be the program's own verdict: the test fails.
    Made     an object that the test makes of a class which only the program defines. It is kept
             here, as class and arguments, until it is passed to the program; a Remote equals it by
             the attributes that the program sent along before it could know what is expected.
    lent     functions, objects and iterators of the test that were passed to the program. It may
             ask to call them and read or set public attributes; the answer is computed here.
"""

import builtins
import os
import resource
import sys

from plumbing.candidate import take_job
from plumbing.foreign import OURS, Breach, Made, MadeClass, Remote
from plumbing.statements import ONLY_TREE, missing_modules, rewrite, test_frames
from plumbing.values import MB, MUTABLE, kept_or_new, pack, receive, send, unpack

MAX_REPLY, MAX_MEMORY, MAX_CALLBACKS = 4 * MB, 200 * MB, 50   # an answer, ours, nested call-backs
# special methods that may be asked of what a test lends
METHODS = """call iter next len getitem setitem delitem contains eq ne lt le gt ge bool str repr
hash int float index add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow
rpow neg abs and or xor iadd enter exit""".split()
METHODS = [f"__{name}__" for name in METHODS]
TEST_MODULES = ("test", "prompt")               # __module__ of what a test and a prompt define


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
            # helpers that call the tested function call the candidate's
            found.update(self.helpers)
            self.helpers = found
            return


class Referee:
    """The referee's end of the conversation: questions, and answers to what is asked back."""

    def __init__(self, outbox, inbox):
        self.outbox, self.inbox = outbox, inbox
        self.calls, self.depth = 0, 0           # questions of the kind call; nested call-backs
        self.stands = ()                        # status and reason, once no test can change them
        self.remotes, self.classes, self.errors = {}, {}, []
        self.lent, self.numbers, self.n_made = [], {}, 0     # objects, id -> place there
        self.pending, self.twins = [], []       # changes to apply; (returned value, argument)
        self.unused = {}                        # Made objects that the test has not used yet, by id
        self.special = {"handle": self.remote, "object": self.object, "lent": self.unlend,
                        "class": self.made_class, "exception": lambda v, depth: self.error_class(v)}

    def end(self, status, why):
        self.stands = self.stands or (status, why)
        raise Breach(why)

    def refuse(self, what):
        self.end("fail", f"{what}: the program's own verdict")

    # values out

    def pack(self, x):
        return pack(x, self.other)

    def other(self, x, depth):
        """What is not plain data, for the candidate."""
        if type(x) is Remote:
            return {"handle": x._number}
        if type(x) is MadeClass:
            return {"handle": x._number}
        if type(x) is Made:
            return {"made": self.pack_made(x, depth)}
        if isinstance(x, type) and x in self.errors:
            return {"handle": next(n for n, kind in self.classes.items() if kind is x)}
        if any(x is kind for kind in OURS):
            self.refuse("the type of an object of the program's")
        named = self.library_name(x)
        if named:
            return {"global": named}
        if not self.may_lend(x):
            raise TypeError(f"the test passes a {type(x).__name__}; expected plain data, a "
                            "function, an object of its own, or something of the program's")
        number = self.numbers.get(id(x))
        if number is None:
            number = self.numbers[id(x)] = len(self.lent)
            self.lent.append(x)
        return {"lent": [number, self.methods(x), str(getattr(x, "__name__", ""))]}

    def pack_made(self, x, depth):
        self.unused.pop(id(x), None)
        first = x._passed is None
        if first:
            vars(x).update(_passed=self.ask, _index=self.n_made)
            self.n_made += 1
        values, args, kwargs = (x._set.items(), x._args, x._kwargs) if first else ((), (), {})
        return [x._index, x._kind._number, pack(tuple(args), self.other, depth + 1),
                pack(kwargs, self.other, depth + 1),
                [[name, pack(value, self.other, depth + 1)] for name, value in values]]

    def library_name(self, x):
        """[module, name] of a function or class of Python's own, which the candidate has too."""
        owner = getattr(x, "__objclass__", x)                # of str.upper: str
        module = getattr(owner, "__module__", None) or getattr(x, "__module__", None)
        name = getattr(x, "__qualname__", None)
        if not isinstance(name, str) or not isinstance(module, str):
            return None
        if module.partition(".")[0] not in sys.stdlib_module_names and module != "builtins":
            return None
        found = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return [module, name] if found is x else None

    def may_lend(self, x):
        kind = type(x)
        if isinstance(x, type):
            return x.__module__ in TEST_MODULES
        if kind.__module__ in TEST_MODULES or kind.__name__ in ("function", "method"):
            return True
        if kind.__name__ == "builtin_function_or_method":    # v.append, d.get
            return type(x.__self__).__name__ in (*MUTABLE, "str", "tuple", "bytes", "frozenset")
        if kind.__module__ in ("functools", "operator"):     # partial, itemgetter
            return callable(x)
        return hasattr(kind, "__next__") and hasattr(kind, "__iter__")

    def methods(self, x):
        """The special methods of something lent that the candidate may ask for."""
        kind = type(x)
        if isinstance(x, type):
            return ["__call__"]
        own = [name for name in METHODS
               if getattr(kind, name, None) not in (None, getattr(object, name, None))]
        if kind.__module__ in TEST_MODULES:
            return own
        return [name for name in own if name in ("__call__", "__iter__", "__next__")]

    # values in

    def unpack(self, tree):
        return unpack(tree, self.special)

    def remote(self, number, depth):
        if type(number) is not int:
            raise ValueError("no number of an object")
        if number not in self.remotes:
            self.remotes[number] = Remote(self.ask, number)
        return self.remotes[number]

    def object(self, parts, depth):
        number, classes, state = parts
        x = self.remote(number, depth)
        known = None
        if state is not None:
            known = {str(name): unpack(value, self.special, depth) for name, value in state}
        vars(x).update(_classes=tuple(int(n) for n in classes), _state=known)
        return x

    def unlend(self, number, depth):
        if type(number) is not int or number < 0:
            raise ValueError("no number of something lent")
        return self.lent[number]

    def made_class(self, parts, depth):
        number, name, fields, is_tuple, members = parts
        if number not in self.classes:
            self.classes[int(number)] = MadeClass(self, int(number), str(name),
                                                  [str(f) for f in fields], bool(is_tuple),
                                                  [str(m) for m in members])
        return self.classes[number]

    def error_class(self, lineage):
        """The class of an exception: a builtin, one of the standard library, or one of ours that
        stands for the program's and derives from the builtin that it derives from.

        lineage: its classes up to the first builtin: [number, name], [module, name], or a name.
        """
        first, *rest = lineage
        if isinstance(first, str):
            kind = getattr(builtins, first, None)
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                self.end("fail", f"the program raised {first}")
            return kind
        where, name = first
        if isinstance(where, str):
            is_standard = where.partition(".")[0] in sys.stdlib_module_names
            kind = sys.modules.get(where) if is_standard else None
            for part in str(name).split("."):
                kind = getattr(kind, part, None)
            if isinstance(kind, type) and issubclass(kind, Exception):
                return kind
            return self.error_class(rest)
        if where not in self.classes:
            # neither true nor equal to anything: a helper of that name must not pass a test
            def not_a_value(*_):
                self.refuse("an exception of the program's as a value")

            def init(*_, **__):
                if not self.depth:              # a call-back may raise it
                    not_a_value()

            body = {"__module__": "candidate", "__init__": init, "__str__": text_of,
                    "__eq__": not_a_value, "__ne__": not_a_value, "__bool__": not_a_value,
                    "__hash__": None}
            kind = self.classes[int(where)] = type(str(name), (self.error_class(rest),), body)
            self.errors.append(kind)
        return self.classes[where]

    def error(self, description):
        """The exception that the candidate describes, to be raised in the test."""
        if "lent" in description:
            return self.lent[description["lent"]]
        kind = self.error_class(description["lineage"])
        args = description["args"]
        args = (description["text"],) if args is None else tuple(self.unpack(args))
        try:
            e = kind(*args) if kind.__module__ == "builtins" else kind.__new__(kind, *args)
        except Exception:                       # a class that wants other arguments
            e = Exception(description["text"])
        if kind.__module__ != "builtins":
            vars(e).update(self.unpack(description["attributes"] or {"dict": []}))
            vars(e)["_text"] = description["text"]
        return e

    # the conversation

    def ask(self, op, *args):
        """One question to the candidate, and its answer; raises what the candidate raised."""
        if op == "refuse":
            self.refuse("a value that is not plain data, where the test compares or weighs one")
        if self.stands:
            raise Breach(self.stands[1])
        self.calls += op == "call"
        nonce = int.from_bytes(os.urandom(7), "big")
        try:
            packed = self.pack(list(args))
        except TypeError as e:
            self.end("fail" if self.depth else "error", str(e))
        try:
            send(self.outbox, [nonce, op, packed])
            kind, rest = self.listen(nonce)
            if kind == "raise":
                error = self.error(rest[0])
            else:
                packed, changed, which = rest
                value = self.unpack(packed)
                self.check_type(op, value)
                changed = self.unpack(changed)
        except (OSError, EOFError) as e:
            self.end("fail", f"the program ended or said too much: {e}")
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError,
                MemoryError, ArithmeticError) as e:
            self.end("fail", f"an answer that is not plain data: {type(e).__name__}")
        if kind == "raise":
            if isinstance(error, StopIteration) and op != "next":
                # it would end a loop of the test's own, as if all had gone well
                raise RuntimeError("the program raised StopIteration")
            raise error
        if op == "call":
            self.note_changes(args, changed, which, value)
        return value

    def listen(self, nonce):
        """Wait for the answer to a question, and meanwhile answer what is asked back."""
        while True:
            message = receive(self.inbox, MAX_REPLY)
            number, kind, *rest = message
            if number != nonce or kind not in ("value", "raise", "ask"):
                raise ValueError("it answers no question")
            if kind != "ask":
                return kind, rest
            send(self.outbox, ["answer", *self.call_back(*rest)])

    def check_type(self, op, value):
        """The few answers that Python itself wants to be of one type."""
        expected = {"len": int, "str": str, "repr": str, "eq": bool, "iter": Remote}.get(op)
        if expected and type(value) is not expected:
            raise TypeError(op)

    def note_changes(self, args, changed, which, value):
        """Arguments that the function changed: now if it returned None, else behind the statement
        of the test (or `assert f(v) == sorted(v)` would compare with what f made of v)."""
        _, positional, named = args
        given = {**dict(enumerate(positional)), **named}
        given = {key: x for key, x in given.items() if type(x).__name__ in MUTABLE}
        if type(which) in (int, str) and which in given and type(value) is type(given[which]):
            self.twins.append((value, given[which]))
        if type(changed) is not dict:
            return
        for key, x in given.items():
            if key in changed:
                self.pending.append((test_frames(sys._getframe()), x, changed[key]))
        if value is None:
            self.apply(0)

    def apply(self, depth):
        """Apply the changes that calls at this depth of the test's functions, or deeper, made."""
        waiting, self.pending = self.pending, []
        for entry in waiting:
            if entry[0] >= depth:
                kept_or_new(entry[1], entry[2])
            else:
                self.pending.append(entry)

    def settle(self, discarded=False):
        """A statement of the test is over: see rewrite. In functions that the test calls, only if
        it was nothing but a call, since the statement that called them is still running."""
        depth = test_frames(sys._getframe())
        if self.pending and (discarded or depth == 1):
            self.apply(depth)

    def same(self, a, b):
        """`a is b`, also where the function returned the very argument that it got."""
        if any(type(x) is Made or type(x) in self.errors and "_text" not in vars(x)
               for x in (a, b)):
            self.refuse("an object that the test made of a class of the program's")
        pairs = [(a, b), (b, a)]
        return a is b or any(x is value and y is argument for x, y in pairs
                             for value, argument in self.twins)

    # call-backs

    def call_back(self, op, packed):
        """Answer a question of the candidate's about something lent: [kind, packed value]."""
        x, *rest = self.unpack(packed)
        if id(x) not in self.numbers:
            raise ValueError("it asks about what was not lent")
        if self.depth >= MAX_CALLBACKS:
            return "raise", self.lend_error(RecursionError("call-backs nested too deeply"))
        self.depth += 1
        try:
            return "value", self.pack(self.operate(op, x, rest))
        except AssertionError as e:
            self.end("fail", f"an assert of the test, called by the program: {e}")
        except Exception as e:
            return "raise", self.lend_error(e)
        finally:
            self.depth -= 1

    def operate(self, op, x, rest):
        if op == "method":
            method, args, kwargs = rest
            if method not in self.methods(x):
                raise AttributeError(method)
            if method == "__call__":
                return x(*args, **kwargs)
            return getattr(type(x), method)(x, *args)
        name, *value = rest
        if type(x).__module__ not in TEST_MODULES or type(name) is not str or name[:1] == "_":
            raise AttributeError(name)
        if op == "get":
            return getattr(x, name)
        if callable(getattr(x, name, None)):                 # the test may call it later
            raise AttributeError(f"{name} is a function of the test's")
        if op == "set":
            return setattr(x, name, *value)
        if op == "delete":
            return delattr(x, name)
        raise ValueError(op)

    def lend_error(self, e):
        """[number, builtin class, packed arguments] of an exception that the test raised."""
        self.lent.append(e)
        name = next(kind.__name__ for kind in type(e).__mro__ if kind.__module__ == "builtins")
        try:
            args = self.pack(list(e.args))
        except (TypeError, ValueError):
            args = [str(e)]
        return [len(self.lent) - 1, name, args]


def text_of(error):
    return vars(error).get("_text") or Exception.__str__(error)


# ----------------------------------------------------------------------------------------------
# the process


def run_test(job, referee):
    """Run the test of a job; returns status and detail, unless a Breach or an error ends it."""
    tree = compile(job["test"], "<test>", "exec", ONLY_TREE)
    if job["modules"]:
        sys.path += job["modules"]
    missing = missing_modules(tree)
    if missing:
        return "error", (f"the test imports {', '.join(missing)}, which is not installed here: "
                         f"pip install {' '.join(missing)}")
    code = compile(rewrite(tree), "<test>", "exec")
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
        memory = MAX_MEMORY * (10 if job["modules"] else 1)
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    judge = Referee(outbox, inbox)
    judge.compiled = False
    try:
        status, detail = run_test(job, judge)
    except BaseException as e:
        line, traceback = 0, e.__traceback__
        while traceback:
            if traceback.tb_frame.f_code.co_filename == "<test>":
                line = traceback.tb_lineno
            traceback = traceback.tb_next
        status = "fail" if judge.compiled else "error"
        detail = f"test line {line}: {type(e).__name__}: {text_or_nothing(e)}"
    status, detail = judge.stands or (status, detail)
    # under 4,096 bytes: a pipe takes it whole or not at all
    send(stdout, ["verdict", status, detail[:300]])


def text_or_nothing(e):
    try:
        return str(e)
    except BaseException:
        return ""
