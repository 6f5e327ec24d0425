"""The built-in code task: a line in words -> one Python expression in x, the body of f.

Whether an expression is right is decided by running f on inputs that the line does not show.

    python -m plumbing.toy_code                         # one problem of each family
    python -m plumbing.toy_code --split test -n 3       # three of each, of another split
"""

import random

from data import SPLITS, Problem, draw_problems
from plumbing.cli import parser_of, program

# The inputs that a line does not show, as Python source
NUMBERS = "[*range(-30, 31), 99, -99]"
LISTS = ("[], [4], [7, 7], [3, -1], [5, 2, 8], [9, 0, -4, 6], [1, 2, 3, 4, 5], "
         "[8, 6, 7, 5, 3, 0, 9], [*range(-9, 13)]")
WORDS = repr(["", "a", "no", "abc", "stats", "Python", "level up", "a1b2c3d4",
              "the quick brown fox jumps"])

# Each function below draws a problem of one family: r, a random.Random -> (the line, the right
# expression, the usual mistake, the inputs). Its comment names the mistake.


def _affine(r):     # the operands swapped: (x+b)*a is not x*a+b
    a, b, op = r.randint(2, 19), r.randint(1, 99), r.choice("+-")
    return r.choice([
        (f"{a} times x, then {op} {b}", f"{a}*x{op}{b}", f"{a}*(x{op}{b})", NUMBERS),
        (f"x {op} {b}, then times {a}", f"(x{op}{b})*{a}", f"x{op}{b}*{a}", NUMBERS)])


def _clamp(r):      # min for max
    c, low, op = r.randint(1, 20), r.randint(-50, 50), r.choice("+-")
    smaller, larger = f"min(x{op}{c},{low})", f"max(x{op}{c},{low})"
    return r.choice([
        (f"x {op} {c}, but at least {low}", larger, smaller, NUMBERS),
        (f"x {op} {c}, but at most {low}", smaller, larger, NUMBERS)])


def _branch(r):     # >= for >, or the second case left out
    a, k, c, op = r.randint(2, 9), r.randint(-9, 20), r.randint(1, 20), r.choice("+-")
    second_case = k + c if op == "+" else k - c
    if a * k == second_case:            # at x = k both cases agree, so no test could tell > from >=
        k += 1
    wrong = r.choice([f"{a}*x if x>={k} else x{op}{c}", f"{a}*x if x>{k} else x"])
    line = f"{a} times x if x over {k}, else x {op} {c}"
    return line, f"{a}*x if x>{k} else x{op}{c}", wrong, NUMBERS


def _count(r):      # >= for >, or the other way round
    a, k = r.randint(2, 49), r.randint(-20, 40)
    (word, right), (_, wrong) = r.sample([("over", ">"), ("at least", ">=")], 2)
    inputs = f"[{LISTS}, [{k}], [{k - 1}, {k + 1}]]"
    line = f"{a} times how many in x are {word} {k}"
    return line, f"{a}*sum(v{right}{k} for v in x)", f"{a}*sum(v{wrong}{k} for v in x)", inputs


def _slice(r):      # the end of a slice for its length, or one item too few or too many
    i, j = r.randint(1, 40), r.randint(1, 40)
    inputs = f"[[*range(n)] for n in range({i + j}, {i + j + 9})]"
    return r.choice([
        (f"x from position {i} on, {j} items", f"x[{i}:][:{j}]", f"x[{i}:{j}]", inputs),
        (f"x without its first {i} and last {j}", f"x[{i}:len(x)-{j}]", f"x[{i}:len(x)-{j}-1]",
         inputs),
        (f"the last {i} of x, {j} times over", f"x[-{i}:]*{j}", f"x[-{i}+1:]*{j}", inputs)])


def _sum(r):        # a range that ends one too early or too late
    a, b, c, op = r.randint(2, 49), r.randint(1, 99), r.randint(1, 20), r.choice("+-")
    term = r.choice([f"{a}*i", f"i*i{op}{b}", f"i{op}{b}"])
    (word, right), (_, wrong) = r.sample([("to", "x+1"), ("to before", "x")], 2)
    line = f"sum of {term} for i from {c} {word} x"
    return (line, f"sum({term} for i in range({c},{right}))",
            f"sum({term} for i in range({c},{wrong}))", NUMBERS)


def _keep(r):       # the condition turned round
    a, c, op = r.randint(2, 9), r.randint(1, 99), r.choice("+-")
    left = r.randint(0, a - 1)
    (word, right), (_, wrong) = r.sample([("is", "=="), ("is not", "!=")], 2)
    line = f"x {op} {c} for x in list if x mod {a} {word} {left}"
    return (line, f"[v{op}{c} for v in x if v%{a}{right}{left}]",
            f"[v{op}{c} for v in x if v%{a}{wrong}{left}]", f"[{LISTS}]")


def _text(r):       # cut first and turned then, or a slice that begins one sign too early
    c, i = r.randint(1, 9), r.randint(2, 9)
    tail = "".join(r.choice("aeiknost") for _ in range(3))
    end = f"+'{tail}'"
    return r.choice([
        (f"x backwards, its first {i} signs, {tail}", f"x[::-1][:{i}]{end}", f"x[:{i}][::-1]{end}",
         WORDS),
        (f"x from sign {c} in steps of {i}, then {tail}", f"x[{c}::{i}]{end}",
         f"x[{c - 1}::{i}]{end}", WORDS)])


CODE_FAMILIES = {"affine": _affine, "clamp": _clamp, "branch": _branch, "count": _count,
                 "slice": _slice, "sum": _sum, "keep": _keep, "text": _text}      # easy to hard


def _draw(family, rng):
    line, right, wrong, inputs = CODE_FAMILIES[family](rng)
    test = (f"def check(candidate):\n    for x in {inputs}:\n"
            f"        assert candidate(x) == ({right})\n")
    return Problem(family, f"{line}: ", right, right, wrong, code="def f(x): return ", test=test,
                   entry_point="f")


def toy_code(split: str, n: int, seed: int = 0, noise: float = 0.0) -> list[Problem]:
    """n problems of a split of the code task, a function of the arguments; see draw_problems.

    A program is right if it does what is asked, whatever its text: for a problem p that is
    eval_code.check(p.code, completion, p.test, "f", 3).
    """
    rng = random.Random(f"code {split} {seed} {noise}")
    return draw_problems(split, n, rng, noise, list(CODE_FAMILIES), _draw)


@program("toy_code")
def main(argv: list[str] | None = None):
    cli = parser_of("Print problems of the built-in code task.", "python -m plumbing.toy_code")
    cli.add_argument("--split", choices=SPLITS, default="train")
    cli.add_argument("-n", type=int, default=1, help="problems of each family")
    args = cli.parse_args(argv)
    for p in toy_code(args.split, args.n * len(CODE_FAMILIES)):
        print(f"{p.family:7s} {p.prompt:44s} {p.completion:44s} mistake: {p.mistake}")


if __name__ == "__main__":
    main()
