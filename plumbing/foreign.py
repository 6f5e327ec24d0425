"""What a test sees of the program's objects and classes, which stay in the other process."""

from plumbing.talk import Proxy, forward


class Breach(BaseException):
    """The verdict stands: the candidate is gone, broke the protocol, or gave no plain data where
    the test needs some. No `except Exception` of a test hides it."""


class Remote(Proxy):
    """Something of the program's. A test may call it, pass it back, iterate and index it, ask for
    its length, text and attributes. Its truth, and whether it equals a value of the test's, would
    be the program's own verdict: the test fails."""

    __slots__ = ()
    __call__, __iter__, __next__ = forward("call"), forward("iter"), forward("next")
    __len__, __getitem__, __enter__ = forward("len"), forward("getitem"), forward("enter")
    __str__, __repr__ = forward("str"), forward("repr")

    def __exit__(self, kind, error, traceback):
        if error is None:
            self._talk.ask("exit", self, [None, None, None], {})

    def __instancecheck__(self, x):
        return type(x) is Remote and self._number in x._about[0]

    def __eq__(self, other):
        if self is other:
            return True
        if type(other) is Made:
            return other == self
        if other is None:
            return False
        if type(other) is not Remote:
            self.__bool__()
        return self._talk.ask("equal", self, [other], {}) is True    # both are the program's own

    def __bool__(self):
        self._talk.refuse("a value that is not plain data, where the test compares or weighs one")

    __hash__ = __bool__


class MadeClass:
    """A class that only the program defines and the test names, known by what the program says."""

    def __init__(self, talk, number, name, fields, members, is_tuple):
        self._talk, self._number, self._name = talk, number, name
        self._fields, self._members, self._is_tuple = fields, members, is_tuple
        for member in members:
            if not member.startswith("_"):
                vars(self)[member] = Made(self, (), {"name": member})

    def __call__(self, *args, **kwargs):
        made = Made(self, args, kwargs)
        self._talk.unused[id(made)] = made
        return made

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self._talk.refuse(f"{self._name}.{name}, which the test does not define")

    def __instancecheck__(self, x):
        return type(x) in (Remote, Made) and self._number in x._about[0]


class Made:
    """An object that the test made of a class of the program's: class, arguments, attributes.

    It is kept here until it is passed to the program. A Remote equals it by the attributes that the
    program sent along before it could know what is expected.
    """

    def __init__(self, kind, args, kwargs):
        given = dict(zip(kind._fields, args, strict=False))
        vars(self).update(_kind=kind, _args=args, _kwargs=kwargs, _about=((kind._number,), None),
                          _given={**given, **kwargs}, _set={}, _number=None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if self._number is not None:            # the program has had it, and may have changed it
            return self._kind._talk.ask("get", self, [name], {})
        known = {**self._given, **self._set}
        if name not in known:
            self._kind._talk.refuse(f"{self._kind._name}().{name} before the program was called")
        return known[name]

    def __setattr__(self, name, value):
        self._set[name] = value
        if self._number is not None:
            self._kind._talk.ask("set", self, [name, value], {})

    def __eq__(self, other):
        """Is what the test gave all that the program said? By name, or by position."""
        kind = self._kind
        kind._talk.unused.pop(id(self), None)
        if len(self._given) < len(self._args) + len(self._kwargs):      # fields that it claims
            kind._talk.refuse("an object whose class has fewer fields than the test gives")
        if type(other) is Made:
            return (kind, self._given, self._set) == (other._kind, other._given, other._set)
        if kind._is_tuple:
            return isinstance(other, tuple) and tuple(self._given.values()) == other
        expected = {**self._given, **self._set}
        if type(other) is not Remote or not expected:
            kind._talk.refuse("an object, where the test compares values")
        classes, state = other._about
        if state is None or classes[:1] != (kind._number,):
            return False
        if len(state) > len(expected) and self._given.get("name") not in kind._members:
            kind._talk.refuse("an object with attributes that the test does not give")
        values = dict(enumerate(state.values()))
        for i, (name, value) in enumerate(expected.items()):
            if name not in state and i not in values:
                return False
            if not state.get(name, values.get(i)) == value:
                return False
        return True

    def __bool__(self):
        self._kind._talk.refuse("the truth of an object that only the program defines")

    __hash__ = __bool__
