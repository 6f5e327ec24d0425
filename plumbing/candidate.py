"""The candidate: the confined process that runs a program which a model wrote, and answers for it.

Model-written code may rewrite all of this and speak in its place: whatever it says is only what its
function claims to return.
"""

import builtins
import os
import sys

from plumbing.confine import confine
from plumbing.talk import Proxy, Talk, find, forward, operate
from plumbing.values import MUTABLE, receive, send

MAX_STATE = 16, 1_000                           # attributes are sent with an object: depth, objects


def take_job():
    """The next message on stdin, which the zygote has not read. Then 0 to 2 are the null device."""
    job, null = receive(0), os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    return job


def by_place(args, kwargs):
    """Arguments by position or name."""
    return {**dict(enumerate(args)), **kwargs}


class Lent(Proxy):
    """Something that the test lent. A subclass has the special methods that its own class has."""

    __slots__ = ()


class Candidate(Talk):
    def __init__(self, inbox, outbox, program):
        super().__init__(inbox, outbox)
        self.program, self.kinds, self.made = program, {}, {}
        self.told = set()                       # objects whose attributes this message has sent
        self.module = sys.modules["candidate"] = type(sys)("candidate")
        # builtins to patch as it likes, without breaking this loop
        private = sys.modules["builtins"] = type(sys)("builtins")
        vars(private).update(vars(builtins))
        vars(self.module)["__builtins__"] = private
        self.references |= {"made": self.make, "global": self.look_up}
        # questions about the program; the answer is a tree
        self.about = {"load": self.load, "entry": self.entry, "name": self.name}

    def pack(self, x, depth=0):
        self.told = set() if depth == 0 else self.told
        return super().pack(x, depth)

    def refer(self, x, depth):
        """What is not plain data stays here; the referee gets its number, and what it is."""
        if isinstance(x, Lent):
            return {"yours": x._number}
        number = self.number(x)
        if number in self.told or isinstance(x, type) or type(x).__module__ != "candidate":
            return {"mine": [number, None]}
        self.told.add(number)
        classes = [where for where, _ in self.lineage(type(x)) if type(where) is int]
        return {"mine": [number, [classes, self.state(x, depth)]]}

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
            return [[name, self.pack(value, depth + 1)] for name, value in state.items()]
        except Exception:                       # no attributes, or none that can be read
            return None

    def lineage(self, kind):
        """[where, name] of a class and its bases up to a builtin; where: our number, or module."""
        lineage = []
        for base in kind.__mro__:
            ours = base.__module__ == "candidate"
            lineage.append([self.number(base) if ours else base.__module__, base.__qualname__])
            if base.__module__ == "builtins":
                break
        return lineage

    def proxy(self, parts, depth):
        number, (methods, name) = parts
        if number not in self.proxies:
            kind = self.kinds.get(tuple(methods))
            if kind is None:
                body = {"__slots__": (), **{f"__{method}__": forward(method) for method in methods}}
                if "eq" in methods and "hash" not in methods:
                    body["__hash__"] = None
                kind = self.kinds[tuple(methods)] = type("Lent", (Lent,), body)
            self.proxies[number] = kind(_talk=self, _number=number, __name__=name)
        return self.proxies[number]

    def make(self, parts, depth):
        """An object that the test made of one of our classes, when it is first mentioned:
        [number, class, arguments, named arguments, attributes set since]; later by its number."""
        number, *how = parts
        if how:
            kind, args, kwargs, attributes = how
            kind, args, kwargs = self.unpack([kind, args, kwargs], depth)
            if hasattr(kind, "__members__"):    # of an Enum nothing new is made
                x = kind[kwargs["name"]]
            else:
                x = kind(*args, **kwargs)
            self.made[number] = x
            for name, value in attributes:      # which may refer to it
                setattr(x, name, self.unpack(value, depth))
        return self.made[number]

    def look_up(self, parts, depth):
        __import__(parts[0])
        return find(*parts)

    def class_of(self, lineage):
        return find(*lineage[0])

    def load(self):
        exec(compile(self.program, "<candidate>", "exec"), vars(self.module))

    def entry(self, name):
        """The tested function: always by its number, also where it is a builtin like int."""
        return {"mine": [self.number(vars(self.module)[name]), None]}

    def name(self, name):
        """A class that the test names: [lineage, parameters, members of an Enum]."""
        x = vars(self.module).get(name)
        if not isinstance(x, type) or x.__module__ != "candidate":
            raise NameError(f"name {name!r} is not defined in the test")
        code = getattr(x.__init__, "__code__", None)
        fields = code.co_varnames[1:code.co_argcount + code.co_kwonlyargcount] if code else ()
        fields = getattr(x, "_fields", fields)  # of a namedtuple
        return [self.lineage(x), list(fields), list(getattr(x, "__members__", ()))]

    def perform(self, op, packed):
        """[packed value, changed arguments, which argument the value is]"""
        args = self.unpack(packed)
        if op in self.about:
            return [self.about[op](*args), None, None]
        value = operate(op, *args)
        changed, which = self.changes(args, packed, value) if op == "call" else (None, None)
        return [self.pack(value), changed, which]

    def changes(self, args, packed, value):
        """What a call made of the containers among its arguments: {position or name: content},
        packed, or None if all is as before; and which of them the value is, or None."""
        before = by_place(packed[1], dict(packed[2]["dict"][0]))
        given = {key: x for key, x in by_place(*args[1:]).items() if type(x).__name__ in MUTABLE}
        which = next((key for key, x in given.items() if x is value), None)
        try:
            after = [[key, self.pack(x)] for key, x in given.items()]
        except Exception:                       # nested too deeply, say
            return None, which
        changed = [[key, tree] for key, tree in after if tree != before[key]]
        return {"dict": [changed]} if changed else None, which

    def ask(self, op, *args):
        """Ask the referee about something that the test lent."""
        with self.lock:
            if not self.nonces:
                raise RuntimeError("the call is over, to which this was lent")
            kind, said = self.exchange(self.nonces[-1], op, self.pack(list(args)))
            if kind == "raise":
                raise self.revive(*said)
            return self.unpack(said[0])


def candidate(inbox, outbox, ready, folder, timeout):
    """Confine this process, then load the program and answer questions until we are killed."""
    program = take_job()
    send(ready, confine(folder, timeout))
    os.close(ready)
    talk = Candidate(inbox, outbox, program)
    while True:
        nonce, _, op, packed = receive(inbox)
        talk.answer(nonce, op, packed)
