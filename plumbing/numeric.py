"""Numbers and formulas as values that can be compared: exact where rational, else to many digits.

A scalar is a Fraction or an Expr. An Expr is a tree; its variables stand for numbers. Two trees are
the same if they agree wherever both are evaluated: at rational points, small and large, of either
sign, integers among them; exactly where arithmetic stays rational, and otherwise with mpmath (it
comes with torch), first to 60 digits, then to 240 or more where that has to be confirmed.
mpmath is imported when the first number needs it, so that starting stays quick.

Every size is bounded before anything is computed, and a Calculator has a budget for all it
evaluates, so that a hostile answer costs a fraction of a second. In doubt two values differ.
"""

import math
import random
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

MAX_BITS = 4096          # of numerators and denominators
MAX_EXPONENT = 1 << 16   # binary digits before or after the point of an inexact number
FEW, MANY = 60, 240      # decimal digits: a first look, and what confirms it
CORE_POINTS = 12         # of every formula; formulas with |x| or floors are tried at more
BUDGET = 60_000          # operations for one pair of answers; a function at 240 digits counts as 20


class Undecided(Exception):
    """No evidence at this point: a pole, a size out of bounds, digits that do not suffice."""


class Undefined(Exception):
    """No value on the real line at this point, as the floor of a complex number."""


@dataclass(frozen=True, slots=True, eq=False)
class Expr:
    op: str        # a key of OPERATIONS, or var, pi, e, i
    args: tuple    # Fractions and Exprs; the name of a var


def variable(name):
    return Expr("var", (name,))


PI, EULER, IMAGINARY = (Expr(name, ()) for name in ("pi", "e", "i"))


def make(op, *args):
    """op of args: an exact Fraction where possible, else an Expr; ValueError past a limit."""
    if all(type(a) is Fraction for a in args):
        y = _exact(op, *args)
        if y is not None:
            if bits_of(y) > MAX_BITS:
                raise ValueError("number too long")
            return y
    return Expr(op, args)


def bits_of(x):
    return max(x.numerator.bit_length(), x.denominator.bit_length())


def _exact(op, *args):
    """op of Fractions as a Fraction, or None where it is irrational or left to mpmath."""
    if op == "+":
        return sum(args)
    if op == "*":
        return args[0] * args[1]
    if op == "/":
        return args[0] / args[1]
    if op == "pow":
        return _exact_power(*args)
    if op == "abs":
        return abs(args[0])
    if op == "floor":
        return Fraction(math.floor(args[0]))
    if op == "ceil":
        return Fraction(math.ceil(args[0]))
    if op == "factorial":
        if args[0].denominator > 1 or not 0 <= args[0] <= 300:
            raise ValueError("factorial of a number that is negative, broken or too large")
        return Fraction(math.factorial(int(args[0])))
    if op == "binomial":
        n, k = args
        if n.denominator == 1 and k.denominator == 1 and n - k < k <= n:
            k = n - k                                   # the same, and a shorter product
        if k.denominator > 1 or not 0 <= k <= 200:
            raise ValueError("binomial")
        return math.prod(((n - j) / (j + 1) for j in range(int(k))), start=Fraction(1))
    return None


def _exact_power(a, b):
    n = b.denominator
    if n >= 100 or (n > 1 and a < 0):
        return None
    if abs(b) * bits_of(a) > MAX_BITS:
        raise ValueError("power too large")              # before computing it: 10^{1000000000}
    roots = []
    for v in (a.numerator, a.denominator):
        root = v if n == 1 else _root(v, n)
        if root ** n != v:
            return None
        roots.append(root)
    return Fraction(*roots) ** b.numerator


def _root(v, n):
    """The whole n-th root of v >= 0, or a number near it."""
    if n == 2:
        return math.isqrt(v)
    return round(v ** (1 / n)) if v.bit_length() < 1000 else 0


# ----------------------------------------------------------------------------------------------
# evaluation at one point


@cache
def _context(digits):
    """An mpmath context of its own with so many digits; the global one is left alone."""
    import mpmath
    context = mpmath.mp.clone()
    context.dps = digits
    return context


@cache
def tiny(digits, spared):
    """10^(spared - digits) in the context of so many digits."""
    return _context(digits).mpf(10) ** (spared - digits)


class Point:
    """Values of variables, and how many digits inexact numbers have."""

    def __init__(self, values, digits, calculator):
        self.values, self.digits, self.calculator = values, digits, calculator
        self.mp = _context(digits)
        self.tiny = tiny(digits, 10)     # what cancels down to this is 0
        self.cost = 4 + digits // 15 + (digits // 60) ** 2

    def evaluate(self, x):
        """Fraction, mpf or mpc of a Fraction or an Expr; Undecided, Undefined."""
        if type(x) is Fraction:
            return x
        if x.op == "var":
            return self.values[x.args[0]]
        if x.op in ("pi", "e"):
            return +getattr(self.mp, x.op)
        if x.op == "i":
            return self.mp.mpc(0, 1)
        args = [self.evaluate(a) for a in x.args]
        exact = all(type(a) is Fraction for a in args)
        is_slow = not exact or x.op.startswith("function")
        self.calculator.spend(self.cost * (1 + 2 * (x.op not in "+*/")) if is_slow else 2)
        try:
            if x.op == "+":
                return self.add(args)
            if x.op == "pow":
                return self.tidy(self.power(*args, type(x.args[1]) is Fraction))
            return self.tidy(getattr(self, OPERATIONS[x.op])(*args, *x.op.split()[1:]))
        except (ArithmeticError, ValueError) as e:      # a pole
            raise Undecided from e

    def real(self, x):
        """A Fraction as an mpf, the others as they are."""
        return inexact(x, self.mp) if type(x) is Fraction else x

    def tidy(self, y):
        """Rounding noise in the real or imaginary part goes; so do digits past the limits."""
        if type(y) is Fraction:
            return y if bits_of(y) <= MAX_BITS else self.real(y)
        if isinstance(y, self.mp.mpc):
            if abs(y.imag) <= self.tiny * abs(y):
                y = y.real
            elif abs(y.real) <= self.tiny * abs(y):
                y = self.mp.mpc(0, y.imag)
        if not self.mp.isfinite(y) or (y and abs(self.mp.mag(y)) > MAX_EXPONENT):
            raise Undecided
        return y

    def add(self, terms):
        if all(type(t) is Fraction for t in terms):
            return self.tidy(sum(terms))
        terms = [self.real(t) for t in terms]
        largest = max(map(abs, terms))
        for t in terms:                                 # it would vanish, and 1 - e^{-999} be 1
            if t and abs(t) < self.tiny * largest:
                raise Undecided
        y = self.mp.fsum(terms)
        return self.tidy(y) if abs(y) >= self.tiny * largest else Fraction(0)

    def multiply(self, a, b):
        if type(a) is Fraction and type(b) is Fraction:
            return a * b
        return self.real(a) * self.real(b)

    def divide(self, a, b):
        if type(a) is Fraction and type(b) is Fraction:
            return a / b
        return self.real(a) / self.real(b)

    def power(self, a, b, is_constant):
        """a to the b: exact where rational; real for constant odd roots, as x^{1/3} of -8."""
        if a == 0:
            if isinstance(b, self.mp.mpc) or b <= 0:
                raise Undecided
            return Fraction(0)
        whole = type(b) is Fraction and b.denominator == 1
        if whole and type(a) is Fraction and abs(b) * bits_of(a) <= MAX_BITS:
            return a ** b.numerator
        x, y, sign = self.real(a), self.real(b), 1
        if is_constant and not isinstance(x, self.mp.mpc) and x < 0 and b.denominator % 2:
            x, sign = -x, (-1) ** (b.numerator % 2)
        if abs(self.mp.mag(x)) * abs(y) > MAX_EXPONENT or self.mp.mag(y) > 64:
            raise Undecided
        return sign * self.mp.power(x, b.numerator if whole else y)

    def absolute(self, x):
        return abs(x)

    def _whole(self, x, rounding):
        """floor or ceil; a number within half its digits of a whole one is that."""
        if type(x) is Fraction:
            return Fraction(rounding(x))
        if isinstance(x, self.mp.mpc):
            raise Undefined
        if self.mp.mag(x) > MAX_BITS:
            raise Undecided
        near = int(self.mp.nint(x))
        if abs(x - near) < self.mp.mpf(10) ** (-self.digits // 2):
            return Fraction(near)
        return Fraction(int(self.mp.floor(x)) + (rounding is math.ceil))

    def floor(self, x):
        return self._whole(x, math.floor)

    def ceil(self, x):
        return self._whole(x, math.ceil)

    def factorial(self, x):
        """Gamma(x + 1), so that n! is n (n-1)! between the whole numbers too."""
        if type(x) is Fraction and x.denominator == 1 and 0 <= x <= 300:
            return Fraction(math.factorial(int(x)))
        self.check_gamma(x)
        return self.mp.gamma(self.real(x + 1))

    def check_gamma(self, x):
        if abs(x) > 10 ** 5 or self.digits > 300:           # seconds
            raise Undecided
        self.calculator.spend(20 * self.cost)

    def binomial(self, n, k):
        if type(k) is Fraction and k.denominator == 1 and 0 <= k <= 200:
            y = self.mp.one
            for j in range(int(k)):
                y = self.multiply(y, self.divide(n - j, Fraction(j + 1)))
            return y
        for x in (n, k):
            self.check_gamma(x)
            if type(x) is Fraction and x.denominator == 1 and x < 0:
                raise Undecided
        if n == int(abs(n)) and k == int(abs(k)) and k > n:
            raise Undecided                                 # 0 by one definition, a pole by another
        return self.mp.binomial(self.real(n), self.real(k))

    def function(self, x, name):
        """exp, ln, log, a trigonometric or hyperbolic function, or the inverse of one."""
        if name in ("ln", "log", "lg"):
            if x == 1:
                return Fraction(0)
            return self.mp.ln(self.real(x)) if name == "ln" else self.mp.log10(self.real(x))
        if x and self.mp.mag(self.real(x)) > (16 if name in GROWING else 1000):
            raise Undecided
        if name in RECIPROCALS:
            return 1 / self.function(x, RECIPROCALS[name])
        y = getattr(self.mp, name.replace("arc", "a"))(self.real(x))
        return y if abs(y) >= self.tiny or name == "exp" else Fraction(0)    # sin(pi) is 0


GROWING = ("exp", "sinh", "cosh", "tanh")
RECIPROCALS = {"cot": "tan", "sec": "cos", "csc": "sin"}
FUNCTIONS = ("exp", "ln", "log", "lg", "sin", "cos", "tan", "sinh", "cosh", "tanh",
             "arcsin", "arccos", "arctan", "cot", "sec", "csc")
OPERATIONS = {"*": "multiply", "/": "divide", "abs": "absolute", "floor": "floor", "ceil": "ceil",
              "factorial": "factorial", "binomial": "binomial",
              **{f"function {name}": "function" for name in FUNCTIONS}}
PIECEWISE = {"abs", "floor", "ceil"}


# ----------------------------------------------------------------------------------------------
# where formulas are evaluated


class Traits:
    """What decides where a formula is evaluated: its variables, its numbers, its functions."""

    def __init__(self, *values):
        self.names, self.numbers, self.bits = set(), set(), 0
        self.has_i = self.is_piecewise = False
        todo = list(values)
        while todo:
            x = todo.pop()
            if type(x) is Fraction:
                self.bits = max(self.bits, bits_of(x))
                self.numbers.add(abs(x))
            elif x.op == "var":
                self.names.add(x.args[0])
            else:
                self.has_i |= x.op == "i"
                self.is_piecewise |= x.op in PIECEWISE
                todo += x.args

    def points(self):
        """Dictionaries of values: CORE_POINTS, then those that a formula in pieces needs."""
        for i in range(CORE_POINTS):
            yield {name: core_values(name)[i] for name in self.names}
        if not self.is_piecewise:
            return
        pool = self.pool()
        if len(self.names) == 1:
            (name,) = self.names
            for value in pool:
                yield {name: value}
            return
        for i in range(120):
            yield {name: random.Random(f"{name} {i}").choice(pool) for name in self.names}

    def pool(self):
        """Whole numbers, and both sides of where |ax - b|, floor(x / a), |x^2 - b| change."""
        pool = {Fraction(n) for n in range(-12, 13)}
        for n in (1_000_003, 300_000_007, 10 ** 20 + 39):          # floors of logarithms
            pool |= {Fraction(n), Fraction(-n)}
        for n in (1, 3, 7, 11, 19, 27):                            # ceil(5 / x)
            pool |= {Fraction(n, 32), Fraction(-n, 32)}
        numbers = sorted(x for x in self.numbers if x and bits_of(x) < 40)[:6]
        places = set(numbers)
        for a in numbers:
            places |= {b / a for b in numbers} | {a * b for b in numbers}
            places.add(Fraction(math.isqrt(math.floor(a))))
        for place in sorted(places)[:40]:
            for shift in (Fraction(0), Fraction(1, 8), Fraction(-1, 8)):
                pool |= {place + shift, -place + shift}
        return sorted(pool)


@lru_cache(4096)
def core_values(name):
    """The numbers that a variable stands for, the same in every process.

    Small ones first, where most formulas are defined; then whole, negative, large and mixed ones.
    Broken ones have a power of 2 below the line: x^{a/3} must not meet an odd root by chance.
    """
    rng = random.Random(name)

    def broken(low, high):
        return Fraction(2 * rng.randrange(low * 64, high * 64) + 1, 128)

    def signed(x):
        return x if rng.random() < 0.5 else -x

    return (broken(1, 3), broken(0, 2), broken(3, 12), signed(broken(0, 3)),
            Fraction(rng.randint(2, 12)), -broken(2, 12), Fraction(rng.randint(100, 999)),
            -broken(100, 999), signed(Fraction(rng.randint(13, 60))), signed(broken(13, 2000)),
            broken(12, 40), signed(Fraction(rng.randint(1000, 9999))))


class Calculator:
    """Compares scalars, for one pair of answers, within one budget."""

    def __init__(self):
        self.left = BUDGET
        self.known = {}     # (id of a formula, number of a core point) -> value at FEW digits

    def spend(self, cost):
        self.left -= cost
        if self.left < 0:
            raise ValueError("too much to compute")

    def value(self, x, values, digits):
        """A number; None if Undefined; Undecided is raised."""
        try:
            return Point(values, digits, self).evaluate(x)
        except Undefined:
            return None

    def same(self, a, b):
        """Whether two scalars are one number, or one function of their variables."""
        if type(a) is Fraction and type(b) is Fraction:
            self.spend(1)
            return _same_rational(a, b)
        self.spend(20)
        traits = Traits(a, b)
        if not traits.names:
            return self.same_constant(a, b, traits)
        if type(a) is not Fraction and a.op == "var" and type(b) is not Fraction:
            if b.op == "var":
                return a.args == b.args
        agree = 0
        for number, values in enumerate(traits.points()):
            verdict = self.agree(a, b, values, traits, confirm=not agree, number=number)
            if verdict is False:
                return False
            agree += verdict is True
        return agree >= 3

    def same_constant(self, a, b, traits):
        for x, y in ((a, b), (b, a)):
            if type(x) is Fraction:
                point = Point({}, FEW, self)
                try:
                    value = point.evaluate(y)
                except (Undecided, Undefined):
                    continue
                if isinstance(value, point.mp.mpf) and _is_printed(x, _as_fraction(value)):
                    return True
        return self.agree(a, b, {}, traits, confirm=True) is True

    def agree(self, a, b, values, traits, confirm, number=None):
        """True, False, or None where a point says nothing.

        None: a pole; or both off the real line, where the same function may have other branches. If
        an answer names i, complex values are what it is about, and have to agree.
        """
        many = max(MANY, traits.bits * 2 // 3 + 60)          # numbers of 4,096 bits are told apart
        for digits in (FEW, many):
            try:
                x, y = (self.at_core_point(v, values, digits, number) for v in (a, b))
            except Undecided:
                continue
            if type(x) is Fraction and type(y) is Fraction:
                return x == y
            mp = _context(digits)
            off = [v is None or isinstance(v, mp.mpc) for v in (x, y)]
            if None in (x, y):
                return None if all(off) else False
            if close(x, y, mp):
                if digits == many or not confirm:
                    return True
            elif digits == many:
                return None if all(off) and not traits.has_i else False
        return None

    def at_core_point(self, x, values, digits, number):
        if number is None or number >= CORE_POINTS or digits != FEW:
            return self.value(x, values, digits)
        key = id(x), number
        if key not in self.known:
            self.known[key] = x, self.value(x, values, digits)   # x is kept: its id stays its own
        return self.known[key][1]

    def ratio(self, a, b):
        """a / b where that is the same at all points: 1 or -1 for its sign, None if it is not.

        A complex or an unknown sign counts as -1: as an equation, but not as an inequality.
        """
        traits = Traits(a, b)
        for digits in (FEW, MANY):
            mp, ratios = _context(digits), []
            for values in traits.points():
                try:
                    x, y = (self.value(v, values, digits) for v in (a, b))
                except Undecided:
                    continue
                if None in (x, y) or (not x and not y):
                    continue
                if not x or not y:
                    break
                point = Point(values, digits, self)
                ratios.append(point.tidy(point.divide(x, y)))
                if not close(ratios[0], ratios[-1], mp):
                    break
            else:
                if len(ratios) < 3:
                    return None
                return 1 if not isinstance(ratios[0], mp.mpc) and ratios[0] > 0 else -1
        return None


def close(x, y, mp):
    """Equal to all but the last 15 digits."""
    if type(x) is Fraction and type(y) is Fraction:
        return x == y
    x, y = (inexact(v, mp) if type(v) is Fraction else v for v in (x, y))
    return abs(x - y) <= tiny(mp.dps, 15) * max(abs(x), abs(y))


def inexact(x, mp):
    """A Fraction as an mpf."""
    from mpmath.libmp import from_rational
    return mp.make_mpf(from_rational(x.numerator, x.denominator, mp.prec, "n"))


def _as_fraction(x):
    """An mpf as the fraction that it is."""
    if abs(x) > 10 ** 40 or not x:
        return Fraction(0)
    sign, mantissa, exponent, _ = x._mpf_
    return Fraction(-mantissa if sign else mantissa) * Fraction(2) ** exponent


def _same_rational(a, b):
    """Equal, or one a decimal of 12 places and more, as a computer prints the other.

    Its last digit may be off, by half a unit or by the rounding of double precision.
    """
    gap, places = abs(a - b), max(a.denominator, b.denominator)
    if not gap:
        return True
    is_decimal = places > 10 ** 11 and 10 ** 18 % places == 0
    return is_decimal and (2 * gap * places < 1 or gap <= max(abs(a), abs(b)) / 2 ** 51)


def _is_printed(decimal, value):
    """Whether a decimal of at least 12 digits is an irrational value, as a computer prints it."""
    places = decimal.denominator
    if 10 ** 18 % places or places < 10 ** 3 or abs(decimal.numerator) < 10 ** 11:
        return False
    gap = abs(decimal - value)
    return 2 * gap * places < 1 or gap <= abs(value) / 2 ** 51
