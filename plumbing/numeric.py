"""Numbers and formulas as values that can be compared: exact where rational, else to many digits.

A scalar is a Fraction or an Expr: a tree whose variables stand for numbers. Two trees are the same
if they agree wherever both have a value: at rational points, small and large, of either sign,
integers among them. Arithmetic is exact as long as all is rational, else mpmath's (it comes with
torch; imported when first needed): to 60 digits, and to 240 or more to confirm what they say.

Every size is bounded before anything is computed, and a Calculator has a budget for all it
evaluates, so that a hostile answer costs a fraction of a second. In doubt two values differ.
"""

import math
import operator
import random
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

MAX_BITS = 4096          # of numerators and denominators
MAX_EXPONENT = 1 << 16   # binary digits before or after the point of an inexact number
FEW, MANY = 60, 240      # decimal digits: a first look, and what confirms it
BUDGET = 60_000          # operations for a pair of answers; one at 240 digits counts as 36 or more


class Undecided(ValueError):
    """No value: a pole, a size out of bounds, digits that do not suffice."""


class Irrational(Undecided):
    """No rational value."""


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    op: str        # what Arithmetic.apply knows, or var, pi, e, i
    args: tuple    # Fractions and Exprs
    names: frozenset = frozenset()     # of its variables


def variable(name):
    return Expr("var", (), frozenset([name]))


PI, EULER, IMAGINARY = (Expr(name, ()) for name in ("pi", "e", "i"))


def make(op, *args):
    """op of args: an exact Fraction where possible, else an Expr; ValueError past a limit."""
    kinds = {type(a) for a in args}
    if kinds == {Fraction}:
        try:
            return arithmetic(0).apply(op, args)
        except Irrational:
            pass
    elif not kinds <= {Fraction, Expr}:
        raise ValueError("arithmetic on a container")
    return Expr(op, args, names_of(*args))


def names_of(*scalars):
    return frozenset().union(*(x.names for x in scalars if type(x) is Expr))


def parts(*formulas):
    """All that formulas consist of: Fractions and Exprs."""
    todo = list(formulas)
    while todo:
        x = todo.pop()
        yield x
        todo += getattr(x, "args", ())


def substitute(x, values):
    """A formula with scalars in place of its variables."""
    if not names_of(x):
        return x
    if x.op == "var":
        return values[min(x.names)]
    return make(x.op, *(substitute(a, values) for a in x.args))


def bits_of(x):
    return max(x.numerator.bit_length(), x.denominator.bit_length())


# ---- arithmetic --------------------------------------------------------------------------------


class Arithmetic:
    """Operations on numbers: exact on Fractions where possible, else with so many digits.

    With 0 digits an operation that would leave the rational numbers raises Irrational.
    """

    def __init__(self, digits):
        self.digits = digits
        self.cost = 4 + digits // 15 + (digits // 60) ** 2
        if digits:
            import mpmath
            self.mp = mpmath.mp.clone()      # a context of its own; the global one is left alone
            self.mp.dps = digits
            self.tiny = self.mp.mpf(10) ** (10 - digits)     # what cancels down to this is 0

    def apply(self, op, args):
        """A Fraction, mpf or mpc; ValueError or ArithmeticError where there is none."""
        if op in PLAIN:
            if any(type(a) is not Fraction for a in args):
                args = [self.inexact(a) for a in args]
            return self.tidy(PLAIN[op](*args))
        if op in FUNCTIONS:
            return self.tidy(self.function(op, *args))
        return self.tidy(getattr(self, op)(*args))

    def inexact(self, x):
        """A Fraction as an mpf, the others as they are."""
        if not self.digits:
            raise Irrational
        return self.mp.convert(x)

    def tidy(self, y):
        """Rounding noise in the real or imaginary part goes; so do digits past the limits."""
        if type(y) is Fraction:
            if bits_of(y) <= MAX_BITS:
                return y
            if not self.digits:
                raise ValueError("number too long")
            return self.inexact(y)
        if y.imag:
            if abs(y.imag) <= self.tiny * abs(y):
                y = y.real
            elif abs(y.real) <= self.tiny * abs(y):
                y = self.mp.mpc(0, y.imag)
        if not self.mp.isfinite(y) or (y and abs(self.mp.mag(y)) > MAX_EXPONENT):
            raise Undecided
        return y.real if not y.imag else y

    def add(self, *terms):
        if all(type(t) is Fraction for t in terms):
            return sum(terms)
        terms = [self.inexact(t) for t in terms]
        noise = self.tiny * max(map(abs, terms))
        if any(t and abs(t) < noise for t in terms):    # it would vanish, and 1 - e^{-999} be 1
            raise Undecided
        y = self.mp.fsum(terms)
        return y if abs(y) >= noise else Fraction(0)

    def power(self, a, b):
        """a to the b: of a negative number the odd roots are real, as (-8)^{1/3} is -2."""
        if a == 0:
            if b.imag or b <= 0:
                raise Undecided
            return Fraction(0)
        sign, is_rational = 1, type(b) is Fraction
        if is_rational and b.denominator == 1:
            if type(a) is Fraction and abs(b) * bits_of(a) <= MAX_BITS:
                return a ** b.numerator
        elif is_rational and b.denominator % 2 and not a.imag and a < 0:
            a, sign = -a, (-1) ** (b.numerator % 2)
        a, b = self.inexact(a), self.inexact(b)
        if abs(self.mp.mag(a)) * abs(b) > MAX_EXPONENT or self.mp.mag(b) > 64:
            raise Undecided
        return sign * self.mp.power(a, b)

    def floor(self, x):
        """A number that half the digits cannot tell from a whole one is that; a complex number
        has no floor, and stays what it is."""
        if type(x) is Fraction:
            return Fraction(math.floor(x))
        if x.imag:
            return x
        if self.mp.mag(x) > MAX_BITS:
            raise Undecided
        return Fraction(int(self.mp.floor(x + self.mp.mpf(10) ** (-self.digits // 2))))

    def factorial(self, x):
        """Gamma(x + 1), so that n! is n (n-1)! between the whole numbers too."""
        if type(x) is Fraction and x.denominator == 1 and 0 <= x <= 300:
            return Fraction(math.factorial(int(x)))
        if abs(x) > 10 ** 5 or self.digits > 300:           # seconds
            raise Undecided
        x = self.inexact(x + 1)
        return self.mp.gamma(x)

    def binomial(self, n, k):
        if type(k) is Fraction and k.denominator == 1 and 0 <= k <= 200:
            return math.prod(((n - j) / (j + 1) for j in range(int(k))), start=Fraction(1))
        below = self.factorial(k) * self.factorial(self.add(n, -k))
        return self.inexact(self.factorial(n)) / below

    def function(self, name, x):
        x = self.inexact(x)
        if name != "ln" and self.mp.mag(x) > 1000:
            raise Undecided
        y = getattr(self.mp, name.replace("arc", "a"))(x)
        return y if abs(y) >= self.tiny else Fraction(0)     # sin(pi) is 0


PLAIN = {"*": operator.mul, "/": operator.truediv, "abs": abs}
FUNCTIONS = ("ln", "sin", "cos", "tan", "sinh", "cosh", "arcsin", "arccos", "arctan")
COSTS = {**dict.fromkeys(PLAIN, 1), "add": 1, "binomial": 10, "factorial": 20}     # the others: 3
arithmetic = cache(Arithmetic)


# ---- where formulas are evaluated --------------------------------------------------------------


# from, to, denominator, signs: small numbers first, where most formulas are defined; then whole,
# negative, large and mixed ones
BOTH = (1, -1)
CORE = ((1, 3, 128, [1]), (0, 1, 128, [1]), (3, 12, 128, [1]), (0, 3, 128, BOTH), (2, 12, 1, [1]),
        (2, 12, 128, [-1]), (100, 999, 1, [1]), (100, 999, 128, [-1]), (13, 60, 1, BOTH),
        (13, 2000, 128, BOTH), (12, 40, 128, [1]), (1000, 9999, 1, BOTH))


@lru_cache(4096)
def core_values(name):
    """The numbers that a variable stands for at the core points, the same in every process."""
    rng, values = random.Random(name), []
    for low, high, denominator, signs in CORE:
        numerator = rng.randrange(low * denominator, high * denominator)
        if denominator > 1:
            numerator |= 1      # a power of 2 stays below: x^{a/3} must not meet an odd root
        values.append(Fraction(numerator, denominator) * rng.choice(signs))
    return values


def points(*formulas):
    """Values of the variables: the core points, then those that a formula in pieces needs."""
    names = sorted(names_of(*formulas))
    for i in range(len(CORE)):
        yield {name: core_values(name)[i] for name in names}
    if any(type(x) is Expr and x.op in ("abs", "floor") for x in parts(*formulas)):
        pool = piece_values(*formulas)
        tries = len(pool) if len(names) == 1 else min(60, len(pool))
        chosen = [random.Random(name).sample(pool, tries) for name in names]
        for values in zip(*chosen, strict=True):
            yield dict(zip(names, values, strict=True))


def piece_values(*formulas):
    """Whole numbers, and both sides of where |ax - b|, floor(x / a), |x^2 - b| change."""
    pool = {*range(-12, 13)}
    for n in (1_000_003, 300_000_007, 10 ** 20 + 39):              # floors of logarithms
        pool |= {n, -n}
    constants = {abs(x) for x in parts(*formulas) if type(x) is Fraction}
    numbers = sorted(x for x in constants if x and bits_of(x) < 40)[:6]
    places = set(numbers)
    for a in numbers:
        places.add(Fraction(math.isqrt(math.floor(a))))
        for b in numbers:
            places |= {b / a, a * b}
    for place in sorted(places)[:40]:
        for shift in (0, Fraction(1, 8), Fraction(-1, 8)):
            pool |= {place + shift, shift - place}
    return sorted(map(Fraction, pool))


def places_of(x):
    return x.denominator if type(x) is Fraction else 0


class Calculator:
    """Compares scalars, for one pair of answers, within one budget."""

    def __init__(self):
        self.left = BUDGET
        self.known = {}     # (formula, number of a core point, digits) -> value

    def spend(self, cost):
        self.left -= cost
        if self.left < 0:
            raise ValueError("too much to compute")

    def value(self, x, values, digits, number=None):
        """Fraction, mpf or mpc of a scalar; Undecided.

        Constants are remembered, and the core points' values: items of a list meet many others.
        """
        if type(x) is Fraction:
            return x
        if x.op == "var":
            return values[min(x.names)]
        key, numbers = (x, number if x.names else 0, digits), arithmetic(digits)
        if key in self.known:
            return self.known[key]
        if not x.args:
            return numbers.mp.j if x.op == "i" else +getattr(numbers.mp, x.op)
        args = [self.value(a, values, digits, number) for a in x.args]
        self.spend(2)
        try:
            y = numbers.apply(x.op, args)
        except (ArithmeticError, ValueError) as e:      # a pole
            raise Undecided from e
        if type(y) is not Fraction:
            self.spend(numbers.cost * COSTS.get(x.op, 3))
        if key[1] is not None:
            self.known[key] = y
        return y

    def same(self, a, b, is_complex=False):
        """Whether two scalars are one number, or one function of their variables.

        Where both leave the real line they may be on other branches, which says nothing; unless
        they are about complex values, as an answer that names i: then these have to agree.
        """
        is_complex |= any(type(x) is Expr and x.op == "i" for x in parts(a, b))
        self.spend(1 if type(a) is type(b) is Fraction else 20)
        is_constant = not names_of(a, b)
        if is_constant and self.is_printed(*sorted((a, b), key=places_of)):
            return True
        longest = max((bits_of(x) for x in parts(a, b) if type(x) is Fraction), default=0)
        many = max(MANY, longest * 2 // 3 + 60)          # numbers of 4,096 bits are told apart
        agree = 0
        for number, values in enumerate([{}] if is_constant else points(a, b)):
            number = number if number < len(CORE) else None
            verdict = self.agree(a, b, values, number, many, not agree, is_complex)
            if verdict is False:
                return False
            agree += verdict is True
        return agree >= (1 if is_constant else 3)

    def is_printed(self, x, decimal):
        """Whether a decimal is a number as a computer prints it: 12 places of a rational number, 12
        digits of another. Its last digit may be off, by half a unit or by rounding to a double."""
        places, size = places_of(decimal), places_of(decimal)
        if type(x) is not Fraction:
            size = abs(getattr(decimal, "numerator", 0))
        if places < 10 ** 3 or 10 ** 18 % places or size < 10 ** 11:
            return False
        shorter = places_of(x)
        is_decimal = shorter > 10 ** 11 and 10 ** 18 % shorter == 0
        try:
            x, decimal = (arithmetic(FEW).inexact(self.value(v, {}, FEW, 0)) for v in (x, decimal))
        except Undecided:
            return False
        gap = abs(decimal - x)
        if is_decimal:                                  # two printed numbers: one rounds the other
            return 2 * gap * shorter < 1
        return 2 * gap * places < 1 or gap <= abs(x) / 2 ** 51

    def agree(self, a, b, values, number, many, confirm, is_complex):
        """True, False, or None where a point says nothing, as a pole."""
        for digits in (FEW, many):
            try:
                x, y = (self.value(v, values, digits, number) for v in (a, b))
            except Undecided:
                continue
            if type(x) is Fraction and type(y) is Fraction:
                return x == y
            numbers = arithmetic(digits)
            x, y = numbers.inexact(x), numbers.inexact(y)
            if abs(x - y) <= numbers.tiny * 10 ** 5 * max(abs(x), abs(y)):
                if digits == many or not confirm:
                    return True
            elif digits == many:
                return None if x.imag and y.imag and not is_complex else False
        return None

    def ratio(self, a, b):
        """a / b where that is the same at all points: 1 or -1 for its sign, None if it is not.

        A complex sign counts as -1: as an equation, but not as an inequality.
        """
        for values in points(a, b):
            try:
                x, y = (self.value(v, values, FEW) for v in (a, b))
            except Undecided:
                continue
            if x and y:
                factor = make("/", substitute(a, values), substitute(b, values))
                if not self.same(a, make("*", factor, b), is_complex=True):
                    return None
                sign = self.value(factor, {}, FEW)
                return 1 if not sign.imag and sign > 0 else -1
        return None
