"""The candidate: the process that runs a program which a model wrote, and answers for it.

It hears questions, [nonce, op, packed arguments], and answers each with one message:

    [nonce, "value", packed value, changed arguments, which argument the value is]
    [nonce, "raise", packed description of the exception]

While it answers it may ask back about what the test lent it (a function, an object, an iterator):
[nonce, "ask", op, packed arguments], and hears ["answer", kind, packed value], or first another
question. Model-written code may rewrite all of this and speak in its place: whatever it says is
only what its function claims to return. The nonce, which is new in each question, keeps it from
answering a question before it has heard it.
"""

import _thread
import builtins
import os
import sys

from plumbing.confine import confine
from plumbing.values import MUTABLE, pack, receive, send, unpack

MAX_STATE = 16, 1_000                           # attributes are sent with an object: depth, objects


def take_job():
    """The next message on stdin, which the zygote has not read.

    From then on 0, 1 and 2 are the null device.
    """
    job, null = receive(0), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return job


class Lent:
    """Something of the test's, by its number in the referee. Its class has those special methods
    that the test's own has; each is a question to the referee, and so are attributes."""

    __slots__ = ("_talk", "_number", "__name__", "__weakref__")

    def __getattr__(self, name):
        return self._talk.ask("get", self, name)

    def __setattr__(self, name, value):
        self._talk.ask("set", self, name, value)

    def __delattr__(self, name):
        self._talk.ask("delete", self, name)


def forward(method):
    def forwarded(self, *args, **kwargs):
        return self._talk.ask("method", self, method, args, kwargs)
    return forwarded



class Talk:
    """The candidate's end of the conversation."""

    def __init__(self, inbox, outbox, program):
        self.inbox, self.outbox, self.program = inbox, outbox, program
        self.nonces = []                        # of the questions that are open, the last innermost
        self.kept, self.numbers = [], {}        # objects the referee knows by number; id -> number
        self.lent, self.kinds, self.made, self.errors = {}, {}, {}, {}
        self.lock = _thread.RLock()           # of two threads that ask back one waits
        self.told = None                        # objects whose attributes this message has sent
        self.module = sys.modules["candidate"] = type(sys)("candidate")
        # builtins to patch as it likes, without breaking this loop
        private = sys.modules["builtins"] = type(sys)("builtins")
        vars(private).update(vars(builtins))
        vars(self.module)["__builtins__"] = private
        self.special = {"handle": lambda v, depth: self.kept[v], "lent": self.lend,
                        "made": self.make, "global": self.look_up}
        self.operations = {
            "call": lambda f, args, kwargs: f(*args, **kwargs),
            "get": getattr, "set": setattr, "delete": delattr,
            "iter": iter, "next": next, "len": len, "str": str, "repr": repr,
            "getitem": lambda x, key: x[key],
            "eq": lambda a, b: bool(a == b),
            "isinstance": isinstance,
            "load": self.load, "entry": self.entry, "name": self.name,
        }

    # values out

    def pack(self, x):
        self.told = set()
        return pack(x, self.other)

    def other(self, x, depth):
        """What is not plain data stays here; the referee gets its number, and what it is."""
        if isinstance(x, Lent):
            return {"lent": object.__getattribute__(x, "_number")}
        number = self.numbers.get(id(x))
        if number is None:
            number = self.numbers[id(x)] = len(self.kept)
            self.kept.append(x)                 # kept alive, so that its id stays its own
        if number in self.told or isinstance(x, type) or type(x).__module__ != "candidate":
            return {"handle": number}
        self.told.add(number)
        classes = [self.other(kind, depth)["handle"] for kind in type(x).__mro__
                   if kind.__module__ == "candidate"]
        return {"object": [number, classes, self.state(x, depth)]}

    def state(self, x, depth):
        """The attributes of an object, packed: by these the referee compares it with another."""
        if depth > MAX_STATE[0] or len(self.told) > MAX_STATE[1]:
            return None
        try:
            if hasattr(x, "_value_") and hasattr(x, "_name_"):              # a member of an Enum
                state = {"name": x._name_, "value": x._value_}
            elif hasattr(x, "__dataclass_fields__"):
                state = {name: getattr(x, name) for name in x.__dataclass_fields__}
            else:
                state = vars(x)
            return [[name, pack(value, self.other, depth + 1)] for name, value in state.items()]
        except Exception:                       # no attributes, or none that can be read
            return None

    def exception(self, e):
        """How an exception is described: where it comes from, arguments, text, attributes."""
        if id(e) in self.errors:
            return {"lent": self.errors[id(e)][0]}
        lineage = []                            # its classes, from its own up to the first builtin
        for kind in type(e).__mro__:
            if kind.__module__ == "builtins":
                lineage.append(kind.__name__)
                break
            if kind.__module__ == "candidate":
                lineage.append([self.other(kind, 0)["handle"], kind.__name__])
            elif kind.__module__ in sys.modules:
                lineage.append([kind.__module__, kind.__qualname__])
        try:
            args, attributes = self.pack(list(e.args)), self.pack(dict(vars(e)))
        except Exception:
            args, attributes = None, None
        return {"lineage": lineage, "args": args, "attributes": attributes, "text": str(e)[:10_000]}

    # values in

    def unpack(self, tree):
        return unpack(tree, self.special)

    def lend(self, parts, depth):
        number, methods, name = parts
        if number not in self.lent:
            kind = self.kinds.get(tuple(methods))
            if kind is None:
                body = {"__slots__": (), **{method: forward(method) for method in methods}}
                if "__eq__" in methods and "__hash__" not in methods:
                    body["__hash__"] = None
                kind = self.kinds[tuple(methods)] = type("Lent", (Lent,), body)
            x = object.__new__(kind)
            for slot, value in (("_talk", self), ("_number", number), ("__name__", name)):
                object.__setattr__(x, slot, value)
            self.lent[number] = x
        return self.lent[number]

    def make(self, parts, depth):
        """An object that the test made of one of our classes: [number, class, args, kwargs,
        attributes set since]; made at its first mention, so that it is one object on both sides."""
        number, kind, args, kwargs, attributes = parts
        if number not in self.made:
            kind = self.kept[kind]
            args, kwargs = unpack([args, kwargs], self.special, depth)
            if hasattr(kind, "__members__"):    # of an Enum nothing new is made
                self.made[number] = kind[kwargs["name"]]
            else:
                self.made[number] = kind(*args, **kwargs)
        for name, value in attributes:
            setattr(self.made[number], name, unpack(value, self.special, depth))
        return self.made[number]

    def look_up(self, parts, depth):
        """A function or class of the standard library: [module, qualified name]."""
        module, name = parts
        found = builtins if module == "builtins" else None
        if found is None:
            __import__(module)
            found = sys.modules[module]
        for part in name.split("."):
            found = getattr(found, part)
        return found

    # operations that are not one of Python's own

    def load(self):
        exec(compile(self.program, "<candidate>", "exec"), vars(self.module))

    def entry(self, name):
        """The tested function: always by its number, also where it is a builtin like int."""
        x = vars(self.module)[name]
        return Exact(self.other(x, 0))

    def name(self, name):
        """A class of the program that the test names, as what it is made of; else NameError."""
        x = vars(self.module).get(name)
        if not isinstance(x, type) or x.__module__ != "candidate":
            raise NameError(f"name {name!r} is not defined in the test")
        if issubclass(x, Exception):
            return Exact({"exception": self.exception(x.__new__(x))["lineage"]})
        members = list(getattr(x, "__members__", ()))
        fields = getattr(x, "_fields", None)    # of a namedtuple
        if fields is None:
            code = getattr(x.__init__, "__code__", None)
            fields = code.co_varnames[1:code.co_argcount + code.co_kwonlyargcount] if code else ()
        is_tuple = issubclass(x, tuple)
        return Exact({"class": [self.other(x, 0)["handle"], name, list(fields), is_tuple, members]})

    # the conversation

    def answer(self, question):
        """Answer one question of the referee's."""
        nonce, op, packed = question
        self.nonces.append(nonce)
        try:
            args = self.unpack(packed)
            value = self.operations[op](*args)
            changed, which = None, None
            if op == "call":
                changed, which = self.changes(args, packed, value)
            packed_value = value.tree if type(value) is Exact else self.pack(value)
            reply = [nonce, "value", packed_value, changed, which]
        except BaseException as e:              # SystemExit too: how a program ends is no verdict
            try:
                reply = [nonce, "raise", self.exception(e)]
            except BaseException:               # it cannot even be shown
                reply = [nonce, "raise", {"lineage": ["Exception"], "args": None,
                                          "attributes": None, "text": ""}]
        self.nonces.pop()
        send(self.outbox, reply)

    def changes(self, args, packed, value):
        """What a call made of the containers among its arguments: ({position or name: content},
        packed, or None if all is as before; which of them the value is, or None)."""
        _, given, named = args
        before = dict(enumerate(packed[1]["tuple"])) | dict(packed[2]["dict"])
        given = dict(enumerate(given)) | named
        given = {key: x for key, x in given.items() if type(x).__name__ in MUTABLE}
        which = next((key for key, x in given.items() if x is value), None)
        self.told = set()
        try:
            after = {key: pack(x, self.other) for key, x in given.items()}
        except Exception:                       # nested too deeply, say
            return None, which
        changed = [[key, tree] for key, tree in after.items() if tree != before[key]]
        return {"dict": changed} if changed else None, which

    def ask(self, op, *args):
        """Ask the referee about something that the test lent."""
        with self.lock:
            if not self.nonces:
                raise RuntimeError("the call is over, to which this was lent")
            self.told = set()
            send(self.outbox, [self.nonces[-1], "ask", op, pack(list(args), self.other)])
            while True:
                message = receive(self.inbox)
                if message[0] != "answer":
                    self.answer(message)
                    continue
                _, kind, packed = message
                if kind == "raise":
                    raise self.error(*packed)
                return self.unpack(packed)

    def error(self, number, name, args):
        """An exception of the test's: its builtin class here, and itself again where it returns."""
        kind = getattr(builtins, name)
        try:
            e = kind(*self.unpack(args))
        except Exception:                       # a class that wants other arguments
            e = kind.__new__(kind)
        self.errors[id(e)] = number, e
        return e


class Exact:
    """A packed value that is sent as it is."""

    def __init__(self, tree):
        self.tree = tree


def candidate(inbox, outbox, ready, folder, timeout):
    """Confine this process, then load the program and answer questions until we are killed."""
    program = take_job()
    send(ready, confine(folder, timeout))
    os.close(ready)
    talk = Talk(inbox, outbox, program)
    while True:
        talk.answer(receive(inbox))
