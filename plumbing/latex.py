r"""Whether two answers are the same: read as values, then compared; no eval, no sympy, no signal.

plumbing.notation brings "\frac12", "x = 5", "(3, \infty)" into one spelling; a Reader makes values
of them: scalars (Fraction or Expr of plumbing.numeric) and Nodes (containers, relations and so on);
_same compares these element by element. What the Reader refuses, as not in the grammar or past a
limit (ValueError), is compared as a string. In doubt the verdict is "different": a wrong accept
inflates a score in silence, a wrong reject can be seen.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from plumbing import numeric
from plumbing.notation import FUNCTIONS, GREEK, normalise
from plumbing.numeric import Calculator, Expr, make, names_of, variable

MAX_CHARS, MAX_STEPS, MAX_DEPTH = 3000, 3000, 30


@dataclass(frozen=True)
class Node:
    kind: str  # list, set, union, matrix, row, ratio, clock, rel, unit, text, or brackets: "[)"
    items: tuple


CONSTANTS = {"pi": numeric.PI, "\\pi": numeric.PI, "e": numeric.EULER, "i": numeric.IMAGINARY}
FENCES = {"|": ("|", "abs"), "\\lfloor": ("\\rfloor", "floor"), "\\lceil": ("\\rceil", "ceil")}
COMMANDS, INFIX = {"\\frac": "/", "\\binom": "binomial"}, {"\\over": "/", "\\choose": "binomial"}
DEFINITIONS = {  # of functions that plumbing.numeric does not have
    "exp": "e^x", "log": r"\frac{\ln x}{\ln 10}", "lg": r"\frac{\ln x}{\ln 10}",
    "cot": r"\frac{1}{\tan x}", "sec": r"\frac{1}{\cos x}", "csc": r"\frac{1}{\sin x}",
    "tanh": r"1-\frac{2}{e^{2x}+1}", "sqrt": "x^{1/2}"}
RELATIONS = {"=": "=", "≠": "≠", "∈": "∈", "≈": "≈",        # and what they are read backwards
             "<": ">", "≤": "≥", ">": "<", "≥": "≤"}
HEADS = "|".join(sorted([*FUNCTIONS, "pi"], key=len, reverse=True))
TOKEN = re.compile(
    r"\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+|\\.|‹[^›]*›|⟦[^⟧]*⟧"
    r"|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    rf"|(?<![A-Za-z])(?:{HEADS})(?=[A-Za-z]{{0,2}}(?![A-Za-z]))"       # sin, and the sin of sinx
    r"|(?<![A-Za-z])[A-Za-z]{4,}|\S")                      # up to three letters are a product
FACTOR = re.compile(r"[A-Za-z⟦({\[]|\\(?!end|rfloor|rceil|over|choose)[A-Za-z{]")  # starts a factor
NAME = (r"(?:\\(?:" + "|".join(sorted(GREEK)) + r")|[A-Za-z]|⟦\w+⟧)"
        r"(?:_\{?[\w,⟦⟧]+\}?)?'?")
SEGMENT = r"(?:[A-Z]{2,3}|⟦\w+⟧)"                       # AB, in AB:BC = 7:3
SYMBOL = re.compile(r"[A-Za-z]'?(?:_\w)?\([^()]*\)|[-+(),|'⟦⟧A-Za-z\s]+"
                    f"|{NAME}(?::{NAME})*|{SEGMENT}(?:[:/]{SEGMENT})+"
                    rf"|\\frac\{{{SEGMENT}\}}\{{{SEGMENT}\}}")
# "p is q": a word of two or three letters between others; as a product it would be "q is p"
PROSE = re.compile(r"[A-Za-z] +(?!(?:sin|cos|tan|log|exp|cot|sec) )(?=[a-z]*[aeiou])[a-z]{2,3} +"
                   r"[A-Za-z]|[\w)}]\s*⟦[^⟧]*⟧\s*[\w({\\]")
CHOICE = re.compile(r"(?:\(([A-E])\)[.:]?|([A-E])[.)])\s+(?=\S)(.*)")       # (A) 5
LETTER = re.compile(r"\(?([A-E])[).]?")


def kind(x):
    return x.kind if isinstance(x, Node) else ""


def amount(x):
    """5 of 5 cm."""
    return x.items[0] if kind(x) == "unit" else x


def is_constant(x):
    return not kind(x) and not names_of(x)


def times(a, b):
    for x, y in ((a, b), (b, a)):
        if kind(x) in ("matrix", "row") and not kind(y):
            return Node(x.kind, tuple(times(y, part) for part in x.items))
    return make("*", a, b)


def minus(x):
    return times(Fraction(-1), x)


class Reader:
    """Recursive descent: one method per level of precedence, each returns a value."""

    def __init__(self, s):
        if PROSE.search(re.sub("‹[^›]*›", "‹›", s)):           # a unit may have three words
            raise ValueError("prose is compared as a string only")
        self.tokens = [f"⟦{t}⟧" if len(t) > 3 and t.isalpha() and t not in FUNCTIONS else t
                       for t in TOKEN.findall(s)]
        if "⟦⟦" in "".join(token[0] for token in self.tokens):
            raise ValueError("prose: two words in a row are compared as strings only")
        self.at, self.steps, self.depth, self.bars = 0, 0, 0, 0      # bars: open |
        self.sign, self.pm = 1, False       # which branch of plus-minus is read; was one met

    @property
    def next(self):
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted):
        token = self.next if not wanted or self.next in wanted else ""
        self.at += token != ""
        return token

    def expect(self, *wanted):
        if self.next not in wanted:
            raise ValueError(f"expected {wanted}, found {self.next!r}")
        return self.take()

    def items(self, split=True):
        """Comma-separated relations; one with a plus-minus is read twice, with either sign."""
        out, sign, pm = [], self.sign, self.pm
        while not out or self.take(",", ";"):
            start, self.pm = self.at, self.pm and not split
            out.append(self.relation())
            if split and self.pm:
                self.at, self.sign = start, -sign
                out.append(self.relation())
                self.sign = sign
        self.pm = pm if split else self.pm
        return out

    def relation(self):
        sides, ops, names = [], [], []
        while not sides or self.next in RELATIONS:
            if sides:
                ops.append(self.take())
            start = self.at
            sides.append(self.chain("∪", "union", self.quantity))
            name = "".join(self.tokens[start:self.at])
            names.append(name if SYMBOL.fullmatch(name) else "")
        if "≈" in ops:             # 5/9 ≈ 0.556 says 5/9; x ≈ 3 says nothing exact
            first = ops.index("≈")
            exact, *rounded = [amount(side) for side in sides[first:]]
            others = {*ops[:first]} - {"="} | {*ops[first:]} - {"≈"}
            if others or not near(exact, rounded):
                raise ValueError("not near what it approximates")
            del ops[first:], sides[first + 1:], names[first + 1:]
        if set(ops) & {">", "≥"}:                             # 5 > x is x < 5
            sides, names, ops = sides[::-1], names[::-1], [RELATIONS[op] for op in ops[::-1]]
        if set(ops) == {"="}:
            numbers, calculator = [amount(side) for side in sides], Calculator()
            if all(map(is_constant, numbers)):                # 5 + 6 = 11 apples says 11 apples
                if all(calculator.same(x, numbers[-1]) for x in numbers[:-1]):
                    return sides[-1]
            if names[0] and not any(names[1:-1]):             # y = 4 + 5 = 9 says y = 9
                ops, sides, names = ["="], [sides[0], sides[-1]], [names[0], names[-1]]
        return Node("rel", (tuple(ops), tuple(sides), tuple(names))) if ops else sides[0]

    def quantity(self):
        start = self.at
        value = self.chain(":", "ratio", self.infix)
        if kind(value) == "ratio" and re.search(r":0\d(?!\d)", "".join(self.tokens[start:self.at])):
            value = Node("clock", value.items)                # 3:05 is no 3:5
        if self.next[:1] == "⟦":  # 4:00⟦pm⟧ is no product: 0 times pm would be 0 times am
            return Node("text", (value, variable(self.take().casefold())))
        return Node("unit", (value, self.take())) if self.next[:1] == "‹" else value

    def chain(self, separator, kind, part):
        parts = [part()]
        while self.take(separator):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Node(kind, tuple(parts))

    def infix(self):
        value, op = self.sum(), self.take(*INFIX)             # {1 \over 2}
        return make(INFIX[op], value, self.sum()) if op else value

    def sum(self):
        terms = []
        while not terms or self.next in ("+", "-", "±", "∓"):
            op = self.take("+", "-", "±", "∓")
            self.pm |= op in ("±", "∓")
            is_minus = op == "-" or (op == "±" and self.sign < 0) or (op == "∓" and self.sign > 0)
            term = self.product()
            terms.append(minus(term) if is_minus else term)
        return terms[0] if len(terms) == 1 else make("add", *terms)

    def product(self):
        start, value = self.at, self.power()
        is_whole = self.at == start + 1 and self.tokens[start].isdigit()
        if is_whole and self.next == "\\frac":                        # 1\frac{4}{5}
            part = self.power()
            is_part = type(part) is Fraction and 0 < part < 1
            value = value + part if is_part else times(value, part)
        elif is_whole and self.next.isdigit() and self.tokens[self.at + 1:self.at + 2] == ["/"]:
            top, _, bottom = self.take(), self.take(), self.take()    # 7 3/4
            value += Fraction(int(top), int(bottom))
        while True:
            if self.take("*"):
                value = times(value, self.signed())
            elif self.take("/"):
                value = make("/", value, self.signed())
            elif self.starts_factor(value):
                value = times(value, self.power())
            else:
                return value

    def starts_factor(self, value):
        """Whether what follows is one more factor of value, without a sign between them."""
        before = self.tokens[self.at - 1]
        if self.next == "|":
            return not self.bars
        if re.match(r"\.?\d", self.next):          # (n-2)2^n, \pi 2; but x2 is in doubt
            return before in (")", "\\pi", "pi") and isinstance(value, Expr)
        return FACTOR.match(self.next) and not (self.next[0] == "⟦" and before.isdigit())

    def signed(self):
        return minus(self.power()) if self.take("-") else self.power()

    def power(self):
        self.depth, self.steps = self.depth + 1, self.steps + 1   # every recursion passes here
        if self.depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise ValueError("too deep or too long")
        value = self.atom()
        while op := self.take("^", "!", "º"):
            if op == "^":
                in_braces = self.next == "{"
                value = make("power", value, self.atom() if in_braces else self.signed())
                if self.tokens[self.at - 1] == "!" or (in_braces and self.next in ("^", "!")):
                    raise ValueError("2^{3}! and x^{2}^{3}: one cannot know what is meant")
            elif op == "º":
                value = make("*", value, make("/", numeric.PI, Fraction(180)))
            elif self.next == "!":
                raise ValueError("5!! is not (5!)!")
            else:
                value = make("factorial", value)
        self.depth -= 1
        return value

    def atom(self):
        token = self.take()
        name = token.lstrip("\\")
        if re.match(r"\.?\d", token):
            if len(token) > 1000 or abs(int(token.lower().partition("e")[2] or 0)) > 1000:
                raise ValueError("number too long")
            base = self.subscript()  # 52_8, a numeral in base 8, equals itself only
            return variable(token + base) if base else Fraction(token)
        if token in ("(", "[", "{", "\\{"):
            return self.bracket(token)
        if token in FENCES:
            closing, op = FENCES[token]
            self.bars += token == "|"
            value = self.sum()
            self.bars -= self.expect(closing) == "|"
            return minus(make("floor", minus(value))) if op == "ceil" else make(op, value)
        if token in COMMANDS:
            return make(COMMANDS[token], self.argument(), self.argument())
        if token == "\\sqrt":
            index = self.bracket("[") if self.take("[") else Fraction(2)
            return make("power", self.argument(), make("/", Fraction(1), index))
        if token.startswith("\\begin"):
            return self.matrix(token)
        if name in FUNCTIONS:
            return self.call(name)
        if token in CONSTANTS:
            return CONSTANTS[token]
        is_letter = token.isalpha() and token.isascii()
        if is_letter or token[:1] == "⟦" or (token[:1] == "\\" and name in GREEK):
            name = name.strip("⟦⟧ ").casefold() if len(name) > 4 else name
            name += self.subscript()
            while self.take("'"):
                name += "'"
            return variable(name)
        raise ValueError(f"expected a number or a name, found {token!r}")

    def subscript(self):
        text = self.take("_") and "_" + self.take()
        if text == "_{":
            end = self.tokens.index("}", self.at)
            text, self.at = "_" + "".join(self.tokens[self.at:end]), end + 1
        return text

    def bracket(self, opening):
        bars, self.bars = self.bars, 0
        is_set = opening == "\\{"
        items = () if is_set and self.next == "\\}" else tuple(self.items(split=is_set))
        self.bars = bars
        closing = self.expect(*{"{": "}", "\\{": ["\\}"]}.get(opening, ")]"))
        if is_set:
            return Node("set", items)
        brackets = opening + closing
        if len(items) == 1 and brackets in ("()", "[]", "{}"):
            return items[0]
        return Node("list" if brackets == "{}" else brackets, items)

    def argument(self):
        r"""An argument of a TeX command: {...} or a token, of a number a digit (\frac12)."""
        if self.next.isdigit():
            self.tokens[self.at:self.at + 1] = [*self.next]
        return self.atom()

    def call(self, name):
        base = self.argument() if name == "log" and self.take("_") else None
        power = self.signed() if self.take("^") else None
        if power == -1 and "arc" + name in FUNCTIONS:
            name, power = "arc" + name, None
        x = self.atom() if self.next in ("(", "[", "{", "|") else self.power()
        # sin 2x takes the x too; sin x cos x is a product
        while self.next not in FUNCTIONS and (
                self.next.isalpha() or self.next == "\\pi" or self.next[1:] in GREEK):
            x = times(x, self.power())
        if base is not None:
            y = make("/", make("ln", x), make("ln", base))
        elif name in DEFINITIONS:
            y = numeric.substitute(read(DEFINITIONS[name]), {"x": x})
        else:
            y = make(name, x)
        return y if power is None else make("power", y, power)

    def matrix(self, begin):
        if not re.fullmatch(r"\\begin\{(?:[pbBvV]?|small)matrix\*?\}", begin):
            raise ValueError(f"unknown {begin}")
        rows = [[]]
        while not self.next.startswith("\\end"):
            rows[-1].append(self.sum())
            if self.next.startswith("\\end") or self.expect("&", "\\\\") == "\\\\":
                rows.append([])
        self.expect(begin.replace("begin", "end"), "\\end{array}")
        rows = [Node("row", tuple(row)) for row in rows if row]
        return Node("vmatrix" if "vmatrix" in begin else "matrix", tuple(rows))


def near(exact, rounded):
    """Whether decimals could be roundings of a number: within one of the last place, or 2 %."""
    if not is_constant(exact) or not all(type(x) is Fraction for x in rounded):
        return False
    numbers, calculator = numeric.arithmetic(numeric.FEW), Calculator()
    value = numbers.inexact(calculator.value(exact, {}, numeric.FEW))
    gaps = [(abs(value - x), x.denominator) for x in rounded]
    return all(gap * places < 1 or gap * 50 <= abs(value) for gap, places in gaps)


@lru_cache(4096)
def read(s):
    """A normalised answer as a value; None if it cannot be read."""
    if not re.search(r"[(\[]|\\\{", s):  # 100,200 is a number, (100,200) a pair
        s = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)", lambda m: m[0].replace(",", ""), s)
    try:
        reader = Reader(s)
        items = reader.items()
        reader.expect("")
        return items[0] if len(items) == 1 else Node("list", tuple(items))
    except (ValueError, ArithmeticError, TypeError, LookupError, RecursionError):
        return None


# ---- equality ----------------------------------------------------------------------------------


def is_equal(pred: str | None, gold: str) -> bool:
    r"""Whether two answers are the same: as strings, as numbers, element by element, as functions.

    >>> is_equal(r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"), is_equal("0.333", r"\frac{1}{3}")
    (True, False)
    """
    if pred is None:                       # no answer
        return False
    pred, gold = pred.strip(), gold.strip()
    if pred == gold or max(len(pred), len(gold)) > MAX_CHARS:
        return pred == gold != ""
    pred, gold = normalise(pred), normalise(gold)
    if _equal(pred, gold):
        return True
    for whole, bare in ((pred, gold), (gold, pred)):       # (B) 12 is 12, and is B
        option, letter = CHOICE.fullmatch(whole), LETTER.fullmatch(bare)
        if option and not CHOICE.fullmatch(bare):
            return letter[1] in option.groups()[:2] if letter else _equal(option[3], bare)
    return False


def _equal(pred, gold):
    """Two normalised answers."""
    if _flat(pred) == _flat(gold) != "":
        return True
    words = [bool(re.fullmatch(r"⟦[A-Za-z]{2,3}⟧", s)) for s in (pred, gold)]
    if sum(words) == 1 and not (pred[:1] == gold[:1] == "⟦"):        # ab is a * b beside a \cdot b
        pred, gold = (" ".join(s[1:-1]) if is_word else s
                      for s, is_word in zip((pred, gold), words, strict=True))
    a, b = read(pred), read(gold)
    try:
        return None not in (a, b) and _same(a, b, Calculator())
    except (ArithmeticError, ValueError, RecursionError):            # past a limit
        return False


def _flat(s):
    s = re.sub(r" (?![\w.])|(?<![\w.]) ", "", re.sub("[⟦⟧]", "", s))
    return re.sub(r"[A-Za-z]{3,}", lambda m: m[0].lower(), s)


def _same(a, b, calculator):
    """Two values."""
    ka, kb = kind(a), kind(b)
    if ka == kb == "rel":
        return _same_relation(a, b, calculator)
    if "rel" in (ka, kb):
        a, b = (_right(x, y) if kind(x) == "rel" else x for x, y in ((a, kb), (b, ka)))
        return None not in (a, b) and _same(a, b, calculator)
    if "unit" in (ka, kb):
        if ka == kb:
            return a.items[1] == b.items[1] and _same(amount(a), amount(b), calculator)
        if _same(amount(a), amount(b), calculator):       # only one names its unit
            return True
        (value, unit), other = (a.items, b) if ka == "unit" else (b.items, a)
        if unit != "‹%›" or kind(value):                  # 10% is 10 or 1/10
            return False
        return _same(make("*", value, Fraction(1, 100)), other, calculator)
    if not ka and not kb:
        return calculator.same(a, b)
    if {ka, kb} in ({"set", ""}, {"set"}, {"list"}, {"list", "set"}, {"union"}):      # {5} is 5
        items = [x.items if kind(x) else (x,) for x in (a, b)]
        return _same_items(*items, calculator, as_set=ka == kb == "set")
    return ka == kb and _same_in_order(a.items, b.items, calculator)


def _same_in_order(a, b, calculator):
    return len(a) == len(b) and all(
        _same(x, y, calculator) for x, y in zip(a, b, strict=True))


def _same_items(a, b, calculator, as_set):
    """In any order; a list keeps its repetitions, a set does not."""
    if as_set:
        return all(any(_same(x, y, calculator) for y in q) for p, q in ((a, b), (b, a)) for x in p)
    about = []    # what the relations among the items say something of; x_1 and x_2 are both x
    for items in (a, b):
        relations = [x.items[2] for x in items if kind(x) == "rel"]
        about.append({tuple(re.sub(r"_.*", "", name) for name in names) for names in relations})
    if len(a) != len(b) or (not all(about) and max(map(len, about)) > 1):
        return False                                                 # x=1, y=2 is not 2, 1
    left = list(b)
    for x in a:
        match = next((i for i, y in enumerate(left) if _same(x, y, calculator)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _right(rel, other_kind):
    """What a relation says its symbol is: 5 for x = 5 and 5 = x; None for 2x = 10 and x < 5."""
    ops, sides, names = rel.items
    if ops == ("≠",) and other_kind == "union" and names[0] and is_constant(sides[1]):
        infinity = variable("infty")                                 # x ≠ 2 beside a union
        low = Node("()", (minus(infinity), sides[1]))
        return Node("union", (low, Node("()", (sides[1], infinity))))
    if set(ops) - {"=", "∈"} or (len(ops) > 1 and not all(names[:-1])):
        return None
    if names[0]:
        return sides[-1]
    return sides[0] if names[-1] and ops == ("=",) else None


def _same_relation(a, b, calculator):
    """Same relation up to a factor (2x+4y=3 is y=-x/2+3/4), positive for an inequality."""
    (ops, left, _), (other_ops, right, _) = a.items, b.items
    if ops != other_ops:
        return False
    if len(left) > 2 or any(map(kind, left + right)):
        return _same_in_order(left, right, calculator)
    d, e = (make("add", x, minus(y)) for x, y in (left, right))
    if not (names_of(d) and names_of(e)):
        return False  # no variable: 1 = 2 is not 3 = 5
    ratio = calculator.ratio(d, e)
    return ratio is not None and (ops[0] in "=≠" or ratio > 0)
