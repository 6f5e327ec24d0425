"""The conversation of two processes, of which one runs a program and the other tests it.

Both send messages of three kinds, and while one waits for an answer it hears questions:

    [nonce, "ask", op, [object, arguments, named arguments]]
    [nonce, "value", packed value, ...]
    [nonce, "raise", number of the hearer's exception or None,
            its classes, arguments, attributes, text, number of the speaker's]

Plain data crosses as plumbing/values.py packs it. What is none stays on its side, and the other
gets its number, {"mine": [number, more about it]}, by which it may ask for it, or name it when it
gives it back, {"yours": number}. The nonce is the referee's, new in each of its questions: it keeps
a program from answering before it has heard the question.
"""

import _thread
import operator
import sys

from plumbing.values import pack, receive, send, unpack

# what may be asked of an object, besides its special methods: op -> function
OPERATIONS = {"call": operator.call, "get": getattr, "set": setattr, "delete": delattr,
              "iter": iter, "next": next, "len": len, "str": str, "repr": repr,
              "equal": lambda a, b: bool(a == b)}


def operate(op, x, args, kwargs):
    function = OPERATIONS.get(op) or getattr(type(x), f"__{op}__")
    return function(x, *args, **kwargs)


def forward(op):
    """A method that asks the other side."""
    def method(self, *args, **kwargs):
        return self._talk.ask(op, self, list(args), kwargs)
    return method


def find(module, name):
    """A function or class of a standard module that is loaded, by its qualified name, or None."""
    if module.partition(".")[0] not in sys.stdlib_module_names:
        return None
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def exception(kind):
    if not issubclass(kind, Exception):
        raise TypeError("no class of exceptions")
    return kind


class Proxy:
    """Stands for an object of the other side's: what is done to it is a question."""

    __slots__ = ("_talk", "_number", "_about", "__name__", "__weakref__")

    def __init__(self, **slots):
        for slot, value in slots.items():
            object.__setattr__(self, slot, value)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)          # copy and pickle probe for such names
        return self._talk.ask("get", self, [name], {})

    __setattr__, __delattr__ = forward("set"), forward("delete")


class Talk:
    caught = BaseException                      # what is told to the other side if it is raised

    def __init__(self, inbox, outbox):
        self.inbox, self.outbox = inbox, outbox
        self.lock = _thread.RLock()             # of two threads that ask one waits
        self.nonces = []                        # of the questions to us that are open
        self.kept, self.numbers = [], {}        # objects the other side knows; id -> place there
        self.proxies = {}                       # number -> what stands for the other side's object
        self.raised = {}                        # id -> (number, exception of the other side's)
        self.references = {"yours": self.own, "mine": self.proxy}

    def number(self, x):
        """By what the other side knows x from now on. x is kept, so that its id stays its own."""
        if id(x) not in self.numbers:
            self.numbers[id(x)] = len(self.kept)
            self.kept.append(x)
        return self.numbers[id(x)]

    def own(self, number, depth=0):
        if type(number) is not int or number < 0:
            raise ValueError("no number of an object")
        return self.kept[number]

    def pack(self, x, depth=0):
        return pack(x, self.refer, depth)

    def unpack(self, tree, depth=0):
        return unpack(tree, self.references, depth)

    def describe(self, e, number=None):
        """What a message says of an exception. The other side's own goes back to it as itself."""
        theirs, _ = self.raised.get(id(e), (None, None))
        try:
            text = str(e)[:10_000]
        except self.caught:
            text = ""
        try:
            args, attributes = self.pack(list(e.args)), self.pack(dict(vars(e)))
        except self.caught:                     # nested too deeply, say
            args, attributes = [text], {"dict": [[]]}
        return [theirs, self.lineage(type(e)), args, attributes, text, number]

    def revive(self, ours, lineage, args, attributes, text, number):
        """The exception of which describe said that."""
        if ours is not None:
            return self.own(ours)
        kind = exception(self.class_of(lineage))
        args, attributes = self.unpack([args, attributes])
        try:
            e = kind(*args) if kind.__module__ == "builtins" else kind.__new__(kind, *args)
        except Exception:                       # a class that wants other arguments
            e = kind.__new__(kind)
        vars(e).update(attributes, _text=text)
        if number is not None:
            self.raised[id(e)] = number, e
        return e

    def exchange(self, nonce, op, packed):
        """One question and its answer: (its kind, what it says)."""
        with self.lock:
            send(self.outbox, [nonce, "ask", op, packed])
            while True:
                number, kind, *rest = self.hear(nonce)
                if kind != "ask":
                    return kind, rest
                self.answer(number, *rest)

    def hear(self, nonce):
        return receive(self.inbox)

    def answer(self, nonce, op, packed):
        self.nonces.append(nonce)
        try:
            reply = ["value", *self.perform(op, packed)]
        except self.caught as e:
            reply = ["raise", *self.describe(e)]
        self.nonces.pop()
        send(self.outbox, [nonce, *reply])
