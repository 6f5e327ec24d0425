"""Values that cross between two processes that do not trust each other: plain data as tagged JSON.

None, bool, float, str and most ints are themselves, and a list is a list. Everything else is an
object of one key, its type, with the arguments that make it: (1, 2) is {"tuple": [[1, 2]]}. What is
read is made by the types of ARGUMENTS alone: no pickle, no class and no code of the other's choice.
"""

import builtins
import functools
import json
import operator
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


def pairs(x):
    ordered = sys.modules["collections"].OrderedDict        # whose order is not that of dict
    return [list(pair) for pair in (ordered if isinstance(x, ordered) else dict).items(x)]


def of_dict(x):
    return dict(x.mapping)


def zone(x):
    """The zone of a time or datetime, as one with a fixed offset."""
    offset = x.utcoffset()
    return None if offset is None else sys.modules["datetime"].timezone(offset)


# type -> the arguments that make an equal value: names of attributes, or functions of the value
ARGUMENTS = {
    "int": [hex, lambda x: 16],                 # int() reads 4,300 decimal digits at most
    "complex": ["real", "imag"],
    "bytes": [list], "bytearray": [list], "tuple": [list], "set": [list], "frozenset": [list],
    "dict": [pairs], "collections.Counter": [dict], "collections.OrderedDict": [pairs],
    "collections.deque": [list, "maxlen"],
    "range": ["start", "stop", "step"], "slice": ["start", "stop", "step"],
    "dict_keys": [of_dict], "dict_values": [of_dict], "dict_items": [of_dict],
    "ellipsis": [], "NotImplementedType": [],
    "fractions.Fraction": ["numerator", "denominator"],
    "decimal.Decimal": [str],
    "datetime.date": ["year", "month", "day"],
    "datetime.time": ["hour", "minute", "second", "microsecond", zone],
    "datetime.datetime": ["year", "month", "day", "hour", "minute", "second", "microsecond", zone],
    "datetime.timedelta": ["days", "seconds", "microseconds"],
    "datetime.timezone": [lambda x: x.utcoffset(None)],
}


@functools.cache
def named_tuple(name, *fields):
    return __import__("collections").namedtuple(name, fields)


# what makes a value where that is not its type
MAKERS = {
    "dict_keys": dict.keys, "dict_values": dict.values, "dict_items": dict.items,
    "ellipsis": type(...), "NotImplementedType": type(NotImplemented),
    "namedtuple": lambda name, fields, values: named_tuple(name, *fields)(*values),
    "builtin": BUILTINS.__getitem__,
}


@functools.cache
def maker(tag):
    """What makes a value of its arguments, by the tag of its type."""
    if tag in MAKERS:
        return MAKERS[tag]
    if tag not in ARGUMENTS:
        raise ValueError(f"no tag of a value: {tag}")
    module, _, name = tag.rpartition(".")
    return getattr(__import__(module) if module else builtins, name)


@functools.cache
def tag_and_arguments(kind):
    """The tag of a type's values, and functions that give their arguments; None of other types."""
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return "namedtuple", [lambda x: kind.__name__, lambda x: list(kind._fields), list]
    for base in kind.__mro__:
        tag = f"{base.__module__}.{base.__qualname__}".removeprefix("builtins.")
        if tag in ARGUMENTS:
            return tag, [operator.attrgetter(part) if isinstance(part, str) else part
                         for part in ARGUMENTS[tag]]
    return None


def pack(x, refer, depth=0):
    """Value -> tagged JSON tree. refer(x, depth) packs what is not plain data, or raises.

    An object of a subclass (defaultdict, a str with an __eq__ of its own) is packed as the plain
    value that it holds.

    >>> pack((1, {2}), None)
    {'tuple': [[1, {'set': [[2]]}]]}
    """
    if isinstance(x, int) and -2**63 < x < 2**63 or x is None or isinstance(x, (float, str)):
        return x
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if isinstance(x, list):
        return [pack(v, refer, depth + 1) for v in x]
    if type(x) in (tuple, set):                 # the usual ones, without a look at the table
        return {type(x).__name__: [pack(list(x), refer, depth + 1)]}
    known = tag_and_arguments(type(x))
    if known:
        tag, arguments = known
        return {tag: [pack(argument(x), refer, depth + 1) for argument in arguments]}
    if type(x) in (type, type(len)) and BUILTINS.get(x.__name__) is x:
        return {"builtin": [x.__name__]}
    return refer(x, depth)


def unpack(tree, references, depth=0):
    """The inverse of pack. references: {tag: function of the parts and the depth}, for what is not
    plain data. Raises ValueError, TypeError, KeyError and the like on what pack does not write.
    """
    if depth > 2 * MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if type(tree) is list:
        return [unpack(v, references, depth + 1) if type(v) in (list, dict) else v for v in tree]
    if type(tree) is not dict:
        return tree                             # None, bool, int, float, str: json makes only these
    (tag, parts), = tree.items()
    if tag in references:
        return references[tag](parts, depth + 1)
    return maker(tag)(*unpack(parts, references, depth))


def overwrite(old, new, done):
    """old with the content of new if both are one kind of container, inner ones too; else new.
    done: ids of what has been overwritten; what stands in two places gets one content."""
    if type(old) is not type(new) or type(old).__name__ not in MUTABLE:
        return new
    if id(old) in done:
        return old if old == new else new
    done.add(id(old))
    if isinstance(old, dict):
        new = {key: overwrite(old.get(key), value, done) for key, value in new.items()}
    elif isinstance(old, list) and len(old) == len(new):
        new = [overwrite(a, b, done) for a, b in zip(old, new, strict=True)]
    old.clear()
    fill = old.update if isinstance(old, (dict, set)) else old.extend
    fill(new)
    return old


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
