"""What a test sees of a program that lives in another process, where that is not plain data."""


class Breach(BaseException):
    """The verdict stands: the candidate is gone, broke the protocol, or gave no plain data where
    the test needs some. No `except Exception` of a test hides it."""


class Remote:
    """What is not plain data, by its number in the candidate."""

    def __init__(self, ask, number):
        vars(self).update(_ask=ask, _number=number, _classes=(), _state=None)

    def __call__(self, *args, **kwargs):
        return self._ask("call", self, args, kwargs)

    def __getattr__(self, name):
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)          # copy and pickle probe for such names
        return self._ask("get", self, name)

    def __setattr__(self, name, value):
        self._ask("set", self, name, value)

    def __delattr__(self, name):
        self._ask("delete", self, name)

    def __iter__(self):
        return self._ask("iter", self)

    def __next__(self):
        return self._ask("next", self)

    def __len__(self):
        return self._ask("len", self)

    def __getitem__(self, key):
        return self._ask("getitem", self, key)

    def __str__(self):
        return self._ask("str", self)

    def __repr__(self):
        return self._ask("repr", self)

    def __enter__(self):
        return self._ask("get", self, "__enter__")()

    def __exit__(self, kind, error, traceback):
        if error is None:
            self._ask("get", self, "__exit__")(None, None, None)

    def __instancecheck__(self, x):
        if type(x) is not Remote:
            return False
        return self._number in x._classes

    def __eq__(self, other):
        if self is other:
            return True
        if type(other) is Made:
            return other.equals(self)
        if other is None:
            return False
        if type(other) is not Remote:
            self.__bool__()
        return self._ask("eq", self, other) is True         # both are the program's own

    def __ne__(self, other):
        return not self == other

    def __bool__(self):
        return self._ask("refuse")

    __hash__ = __bool__


class MadeClass:
    """A class that only the program defines and the test names.

    What is known of it is what the program says: its number, its name, the parameters of its
    constructor, is it a namedtuple, its members if it is an Enum.
    """

    def __init__(self, referee, number, name, fields, is_tuple, members):
        self._referee, self._refuse = referee, referee.refuse
        self._number, self._name = number, name
        self._fields, self._is_tuple = fields, is_tuple
        for member in members:
            if not member.startswith("_"):
                vars(self)[member] = Made(self, (), {"name": member})

    def __call__(self, *args, **kwargs):
        made = Made(self, args, kwargs)
        self._referee.unused[id(made)] = made
        return made

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse(f"{self._name}.{name}, which the test does not define")

    def __instancecheck__(self, x):
        return type(x) in (Remote, Made) and self._number in x._classes


class Made:
    """An object that the test made of a class of the program's: class, arguments, attributes."""

    def __init__(self, kind, args, kwargs):
        given = dict(zip(kind._fields, args, strict=False))
        vars(self).update(_kind=kind, _args=args, _kwargs=kwargs, _classes=(kind._number,),
                          _given={**given, **kwargs}, _set={}, _passed=None)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        if self._passed:                        # the program has had it, and may have changed it
            return self._passed("get", self, name)
        if name in self._set:
            return self._set[name]
        if name in self._given:
            return self._given[name]
        self._kind._refuse(f"{self._kind._name}().{name} before the program was called")

    def __setattr__(self, name, value):
        self._set[name] = value
        if self._passed:
            self._passed("set", self, name, value)

    def equals(self, other):
        """Was everything that the test gave said by the program too? By name, or by position."""
        self._kind._referee.unused.pop(id(self), None)
        if type(other) is Made:
            return (self._kind is other._kind and self._given == other._given
                    and self._set == other._set)
        if self._kind._is_tuple:
            return isinstance(other, tuple) and tuple(self._given.values()) == other
        expected = {**self._given, **self._set}
        if type(other) is not Remote or not expected or len(self._args) > len(self._kind._fields):
            return self._kind._refuse("an object, where the test compares values")
        state = other._state
        if state is None or other._classes[:1] != self._classes:
            return False
        values = list(state.values())
        for i, (name, value) in enumerate(expected.items()):
            if name not in state and i >= len(values):
                return False
            if not (state[name] if name in state else values[i]) == value:
                return False
        return True

    def __eq__(self, other):
        return self.equals(other)

    def __bool__(self):
        return self._kind._refuse("the truth of an object that only the program defines")

    __hash__ = __bool__


OURS = Remote, Made, MadeClass
