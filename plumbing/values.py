"""Values that cross between two processes that do not trust each other: plain data as tagged JSON.

None, bool, float, str and most ints are themselves, and a list is a list. Everything else is an
object of exactly one key, its type: (1, {2}) is {"tuple": [1, {"set": [2]}]}. What is read is built
by the functions of BUILD alone: no pickle, no class and no code of the other side's choice.
"""

import builtins
import json
import os
import struct
import sys

MB = 1 << 20
MAX_DEPTH = 64                                  # how deeply a value may be nested
# types and functions of Python itself that can do no harm, and are the same on both sides
BUILTINS = {name: getattr(builtins, name) for name in (
    "bool int float complex str bytes bytearray list tuple set frozenset dict range slice object "
    "type enumerate filter map reversed zip abs all any ascii bin callable chr divmod format hex "
    "isinstance iter len max min next oct ord pow print repr round sorted sum").split()}
MUTABLE = {"list", "dict", "set", "bytearray", "deque", "Counter", "OrderedDict"}


def _pairs(x):
    return [list(pair) for pair in dict.items(x)]


def _offset(x):
    """Seconds east of UTC of a time or datetime; None if it knows no zone."""
    offset = x.utcoffset()
    return None if offset is None else offset.total_seconds()


def _clock(x):
    return [x.hour, x.minute, x.second, x.microsecond, x.fold, _offset(x)]


# type -> the parts that it is built from, as plainer data
PARTS = {
    "builtins.int": hex,                        # int() reads 4,300 decimal digits at most
    "builtins.complex": lambda x: [x.real, x.imag],
    "builtins.bytes": list,
    "builtins.bytearray": list,
    "builtins.tuple": list,
    "builtins.set": list,
    "builtins.frozenset": list,
    "builtins.dict": _pairs,
    "builtins.range": lambda x: [x.start, x.stop, x.step],
    "builtins.slice": lambda x: [x.start, x.stop, x.step],
    "builtins.dict_keys": list,
    "builtins.dict_values": list,
    "builtins.dict_items": lambda x: [list(pair) for pair in x],
    "builtins.ellipsis": lambda x: 0,
    "builtins.NotImplementedType": lambda x: 0,
    "collections.deque": lambda x: [list(x), x.maxlen],
    "collections.Counter": _pairs,
    "collections.OrderedDict": _pairs,
    "fractions.Fraction": lambda x: [x.numerator, x.denominator],
    "decimal.Decimal": str,
    "datetime.date": lambda x: [x.year, x.month, x.day],
    "datetime.time": _clock,
    "datetime.datetime": lambda x: [x.year, x.month, x.day, *_clock(x)],
    "datetime.timedelta": lambda x: [x.days, x.seconds, x.microseconds],
}


def _module(name):
    """A standard module, imported when the first value needs it."""
    return sys.modules.get(name) or __import__(name)


def _zone(seconds):
    datetime = _module("datetime")
    return None if seconds is None else datetime.timezone(datetime.timedelta(seconds=seconds))


def _time(hour, minute, second, microsecond, fold, offset):
    kind = _module("datetime").time
    return kind(hour, minute, second, microsecond, _zone(offset), fold=fold)


def _datetime(year, month, day, hour, minute, second, microsecond, fold, offset):
    kind = _module("datetime").datetime
    return kind(year, month, day, hour, minute, second, microsecond, _zone(offset), fold=fold)


def _named_tuple(name, fields, values):
    if (name, *fields) not in NAMED_TUPLES:
        NAMED_TUPLES[(name, *fields)] = _module("collections").namedtuple(name, fields)
    return NAMED_TUPLES[(name, *fields)](*values)


NAMED_TUPLES = {}                               # (name, fields) -> class


# the inverse: type -> what makes it from its parts; each raises ValueError, TypeError or KeyError
BUILD = {
    "int": lambda v: int(v, 16),
    "complex": lambda v: complex(*v),
    "bytes": bytes,
    "bytearray": bytearray,
    "tuple": tuple,
    "namedtuple": lambda v: _named_tuple(*v),
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "range": lambda v: range(*v),
    "slice": lambda v: slice(*v),
    "dict_keys": lambda v: dict.fromkeys(v).keys(),
    "dict_values": lambda v: dict(enumerate(v)).values(),
    "dict_items": lambda v: dict(v).items(),
    "ellipsis": lambda v: ...,
    "NotImplementedType": lambda v: NotImplemented,
    "deque": lambda v: _module("collections").deque(*v),
    "Counter": lambda v: _module("collections").Counter(dict(v)),
    "OrderedDict": lambda v: _module("collections").OrderedDict(v),
    "Fraction": lambda v: _module("fractions").Fraction(*v),
    "Decimal": lambda v: _module("decimal").Decimal(v),
    "date": lambda v: _module("datetime").date(*v),
    "time": lambda v: _time(*v),
    "datetime": lambda v: _datetime(*v),
    "timedelta": lambda v: _module("datetime").timedelta(*v),
    "builtin": BUILTINS.__getitem__,
}


KNOWN = {}                                      # type -> what tag_and_parts says of it


def tag_and_parts(kind):
    """The tag of a type's values and the function that takes them apart; (None, None) if other."""
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return "namedtuple", lambda x: [kind.__name__, list(kind._fields), list(x)]
    for base in kind.__mro__:
        parts = PARTS.get(f"{base.__module__}.{base.__qualname__}")
        if parts:
            return base.__name__, parts
    return None, None


def pack(x, other, depth=0):
    """Value -> tagged JSON tree. other(x, depth) packs what is not plain data, or raises.

    An object of a subclass (namedtuple, defaultdict, a str with an __eq__ of its own) is packed as
    the plain value that it holds.

    >>> pack((1, {2}), None)
    {'tuple': [1, {'set': [2]}]}
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if x is None or isinstance(x, (bool, float, str)):
        return x
    if isinstance(x, int) and -2**63 < x < 2**63:
        return x
    if isinstance(x, list):
        return [pack(v, other, depth + 1) for v in x]
    if type(x) not in KNOWN:
        KNOWN[type(x)] = tag_and_parts(type(x))
    tag, parts = KNOWN[type(x)]
    if tag:
        return {tag: pack(parts(x), other, depth + 1)}
    if type(x) in (type, type(len)) and BUILTINS.get(x.__name__) is x:
        return {"builtin": x.__name__}
    return other(x, depth)


def unpack(x, other, depth=0):
    """The inverse of pack. other: {tag: function of the packed parts and the depth}, for what is
    not plain data. Raises ValueError, TypeError, KeyError and the like on what pack does not write.
    """
    if depth > 2 * MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if type(x) is list:
        return [unpack(v, other, depth + 1) for v in x]
    if type(x) is not dict:
        return x                                # None, bool, int, float, str: json makes only these
    (tag, parts), = x.items()
    if tag in other:
        return other[tag](parts, depth + 1)
    return BUILD[tag](unpack(parts, other, depth + 1))


def overwrite(old, new):
    """Give the container old the content of new, which has the same type; inner ones too."""
    if isinstance(old, list) and len(old) == len(new):
        for i, (a, b) in enumerate(zip(old, new, strict=True)):
            old[i] = kept_or_new(a, b)
    elif isinstance(old, dict):
        content = {key: kept_or_new(old.get(key), value) for key, value in new.items()}
        old.clear()
        old.update(content)
    elif isinstance(old, set):
        old.clear()
        old.update(new)
    else:                                       # list, bytearray, deque
        old.clear()
        old.extend(new)


def kept_or_new(old, new):
    """old with the content of new if both are the same kind of container, else new."""
    if type(old) is type(new) and type(old).__name__ in MUTABLE:
        overwrite(old, new)
        return old
    return new


def read(fd, n):
    """n bytes from fd (fewer at its end), and not one more: what follows is for another process."""
    parts = []
    while n:
        part = os.read(fd, min(n, MB))
        if not part:
            break
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def send(fd, obj):
    """Write one message. Its JSON is ASCII: a lone surrogate travels as \\udXXX."""
    data = json.dumps(obj).encode()
    os.write(fd, struct.pack(">I", len(data)) + data)        # a pipe that blocks takes all of it


def receive(fd, limit=1 << 32):
    """Read one message. EOFError if the other side is gone, or if it says more than limit bytes."""
    head = read(fd, 4)
    n = struct.unpack(">I", head)[0] if len(head) == 4 else 0
    data = read(fd, n) if 0 < n <= limit else b""
    if not data or len(data) < n:
        raise EOFError(f"expected a message of 1 to {limit:,} bytes, found {n:,}")
    return json.loads(data)
