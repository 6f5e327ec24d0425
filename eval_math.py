"""Scores on maths problems: prompt -> completions -> extracted answers -> exact equality with the gold answer -> accuracy with its
interval, mean@n and pass@k; and the comparison of two such runs, problem by problem. Evaluation as in the paper's section 4.1.

    python eval_math.py out/toy/wmss.pt                       # 2,100 test problems of the built-in task, accuracy per family
    python eval_math.py out/toy/sft.pt --split val --limit 700
    python eval_math.py out/toy/wmss.pt --n 8 --temperature 0.5 --k 1 8                # mean@8, pass@1 and pass@8
    python eval_math.py wmss.pt --data gsm8k=test.jsonl math500 --protocol paper       # from a file, from the hub
    python eval_math.py --compare out/toy/sft/toy-math.jsonl out/toy/wmss/toy-math.jsonl

From extraction to statistics the standard library is enough: no eval, no sympy, no signal. Every loop is bounded by a string cut
first, by MAX_STEPS or by MAX_BITS, so a hostile answer costs milliseconds. In doubt the verdict is "different": a wrong accept
inflates a score in silence, a wrong reject can be seen. eval_code.py shares the readers, the sampling and the statistics.
"""

import argparse
import cmath
import gzip
import hashlib
import json
import math
import operator
import os
import random
import re
import subprocess
import sys
from collections import Counter, namedtuple
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

# The paper's system prompt and lengths, as in its public repository (utils/prompts.py; the curly apostrophe is theirs too).
PAPER_SYSTEM = (
    "You are a helpful assistant. To answer the user’s question, you first think about the reasoning process and then provide "
    "the user with the answer. The reasoning process and answer are enclosed within <think> and <answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.")
PAPER_TOKENS = {"aime25": 8192, "amc23": 8192}                  # new tokens; 4,096 for the other sets


# ----------------------------------------------------------------------------------------------------------------------
# from text to an answer

TAIL = 50_000  # characters: an answer stands at the end, and 8,192 tokens are about 30,000 characters
SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$", re.S)
PROSE = re.compile(r"\\[A-Za-z]+\s*(?:\{[A-Za-z .,]*\})?|([A-Za-z]{3,})")
PHRASE = re.compile(r"\banswers?\b(?:\s+(?:choice|option|to|for|of)\b[^.:\n]{0,80}?)?[\s*_]*(?:is|are|was|will be|would be|=|:)"
                    r"(?!\s+not\b)[\s*_:]*(?:(?:therefore|thus|then|simply|just|indeed|exactly|equal to|given by|clearly|actually|"
                    r"only|now|about|approximately)\b[\s*_:,]*){0,3}", re.I)
SENTENCE = re.compile(r"(?:(?!\n|[.;?](?:[\s*_]|$)|,\s+(?!and\s|or\s)[A-Za-z]{2,}|\s(?:because|since)\s).)*")
NUMBER = re.compile(r"[-+]?\\?[$€£]?[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+|:\d\d)?\\?%?")
SCALE = {"dozen": "12", "hundred": "10^2", "thousand": "10^3", "million": "10^6", "billion": "10^9", "trillion": "10^12"}


def extract_answer(text: str) -> str | None:
    r"""The final answer of a completion, or None. Sources, best first: last closed \boxed, <answer>, ####, "answer is", number.

    >>> extract_answer(r"<think>maybe \boxed{7}</think> So \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    return _extract(text)[0]


def _extract(text: str) -> tuple[str | None, str]:
    text = text.rpartition("</think>")[2][-TAIL:]
    boxed, text = _boxed(re.sub(r"\\boxed\s*\{\s*\}", "", text))  # an empty box echoes the instructions
    for name, rule in (("boxed", lambda _: boxed), ("answer_tag", _answer_tag), ("hash", _hash), ("phrase", _phrase),
                       ("number", lambda text: None if "<think>" in text else _number(text))):     # an unfinished thought
        answer = (rule(text) or "").strip()
        if answer:
            return answer, name
    return None, "none"


def _boxed(text: str) -> tuple[str | None, str]:
    """Content of the last closed box, and the text up to a box never closed (a truncated answer is no answer)."""
    opened, found = [], None  # one pass with a stack: linear, and stray braces do no harm
    for m in re.finditer(r"\\(?:boxed|fbox)\s*(?:\{|([^\s${}\\][^\s$]*))?|\\.|[{}]", text, re.S):
        if m[0][-1] == "{" and m[0] != r"\{":
            opened.append((m.start(), m.end(), len(m[0]) > 1))
        elif m[0] == "}" and opened:
            _, start, box = opened.pop()
            found = text[start:m.start()] if box else found
        elif m[1]:
            found = m[1].rstrip(".,;")  # \boxed 5
    return found, text[:min((start for start, _, box in opened if box), default=len(text))]


def _answer_tag(text: str) -> str | None:
    end = max(text.rfind("</answer>"), 0)
    inside = text[text.rfind("<answer>", 0, end) + 8:end] if "<answer>" in text[:end] else ""
    return _phrase(inside) or _spoken(inside)


def _hash(text: str) -> str | None:
    lines = re.findall(r"####[ \t*]*([-+$\\(\[{.\d€£][^\n]*)", text)  # "#### Step 2", "#### 2. Add": headings, not answers
    return next((line.rstrip("*. ") for line in lines[::-1] if not re.match(r"\d+[.)]\s+[A-Za-z]", line)), None)


def _phrase(text: str) -> str | None:
    found = list(PHRASE.finditer(text))
    rest = text[found[-1].end():][:2000] if found else ""
    span = SPAN.match(rest)
    if span and not _words(span[0]):  # $x = 5$, but not "$5 and the other pays $"
        return _spoken(span[span.lastindex] + " " + SENTENCE.match(rest[span.end():])[0])
    return _spoken(SENTENCE.match(rest)[0])


def _words(text: str) -> int:
    return sum(m[1] is not None for m in PROSE.finditer(text))


def _spoken(said: str) -> str:
    """"72 apples" as it is; "that she sold 72 apples" is prose: its last number."""
    said = said.strip(" \t\n*_:=`\"'").rstrip(".,; ")
    return _words(said) >= 3 and not re.match(r"[-+($\\\d.\[{]", said) and _number(said) or said


def _number(text: str) -> str | None:
    """The last number of a text with what belongs to it: 2/3, 1 1/2, $1,000, 3 million, or the formula around it."""
    text = text.rstrip()[-2000:]
    spans = [m for m in SPAN.finditer(text) if re.search(r"\d", m[0]) and not _words(m[0])]
    if spans and not re.search(r"\d", text[spans[-1].end():]):
        return spans[-1][spans[-1].lastindex]  # 3 is not the answer of $2\sqrt{3}$
    words = ["", *(w.strip("*_`\"'.,;:?" + "()[]" * ("\\" not in w)) for w in text.split()), ""]
    for before, word, after in reversed(list(zip(words, words[1:], words[2:]))):
        if before == "not" or not re.search(r"\d", word):
            continue
        if NUMBER.fullmatch(word):
            mixed = re.fullmatch(r"-?\d+", before) and re.fullmatch(r"\d+/\d+", word)
            return (before + " " if mixed else "") + word + (" " + after if after in SCALE else "")
        if word[0].isdigit() or re.search(r"[\\=^]", word):
            return word.rpartition("=")[2]
    return None  # a digit glued inside a word (AZYUK2A) is no number


# ----------------------------------------------------------------------------------------------------------------------
# reading an answer: string -> value

# A value is a Fraction (exact), a tuple of POINTS samples (any other scalar: a variable stands for fixed random numbers; None where
# undefined) or a Node (container, relation, quantity). A ValueError means "not in the grammar, or past a limit".
MAX_CHARS, MAX_STEPS, MAX_BITS, MAX_DEPTH, POINTS = 3000, 3000, 4096, 30, 8


@dataclass(frozen=True)
class Node:
    kind: str  # list, set, union, matrix, row, ratio, rel, unit, text, or the brackets of a tuple or interval: "()", "[)", ...
    items: tuple


CHARACTERS = str.maketrans({**dict(zip("−–—×·∙⋅∗÷’，（）％⟨⟩⩽⩾\u00a0\u2009\u202f", "---*****/',()%()≤≥   ")), **dict.fromkeys("⟦⟧‹›¤º"),
                            "²": "^2", "³": "^3", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "√": " sqrt", "½": r"\frac12 ",
                            "¼": r"\frac14 ", "¾": r"\frac34 ", "⅓": r"\frac13 ", "⅔": r"\frac23 "})
TEXT = re.compile(r"\\(text(?:normal|rm|bf|it|sf|tt|up)?|[mh]box|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?)\s*\{([^{}]*)\}")
RULES = [(re.compile(pattern.replace(";;", r"(?![A-Za-z])")), new) for pattern, new in (  # ";;" ends a command's name
    (r"\\[dtc]frac;;", r"\\frac"), (r"\\dbinom;;", r"\\binom"), (r"\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{matrix}"),
    (r"\\(?:left|right);;\s*\.?|\\(?:[bB]igg?[lrm]?|displaystyle|textstyle|limits|angle|triangle|vec|hat|bar|overrightarrow"
     r"|underline|boldsymbol|bm|boxed|fbox|bf|rm|it);;", " "),
    (r"(?<=\d)(?:\{,\}|,?\\[!,])\s*(?=\d{3}(?!\d))", ""),  # explicit thousands: 1{,}000  1,\!000  1\,000
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|°)|\\degrees?;;", "°"),
    (r"(\d*)\.(\d*)\\overline\s*\{(\d{1,50})\}",
     lambda m: f"({m[1] or 0}.{m[2] or 0}+{int(m[3])}/{'9' * len(m[3])}{'0' * len(m[2])})"),
    (r"\\(?:cdot|times|ast);;", "*"), (r"\\div;;", "/"), (r"\\cup;;", "∪"), (r"\\in;;", "∈"),
    (r"\\neq?;;", "≠"), (r"\\(?:leq?|leqslant);;|<=|=<", "≤"), (r"\\(?:geq?|geqslant);;|>=", "≥"), (r"\\lt;;", "<"),
    (r"\\gt;;", ">"), (r"\\mp;;", "∓"), (r"\\pm;;|\+/?-", "±"), (r"\\lbrace;;", r"\\{"), (r"\\rbrace;;", r"\\}"),
    (r"\\langle;;", "("), (r"\\rangle;;", ")"), (r"\\%", "%"), (r"\\[lr]?vert;;", "|"), (r"\\\$", "¤"),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\\(?:[,;:! >]|q?quad;;|[hv]space\{[^{}]*\})|~", " "),
    (r"^[\s*]+|(?<![\s.,;:*\\])(?:\\\\|[\s.,;:*])+$", ""),
    (r"\*\*", "^"), (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"), (r"(?<=\))\s*U\s*(?=\()", "∪"))]
PROSE_RULES = [(re.compile(pattern, re.I), new) for pattern, new in (  # not for an answer made of words only
    (r"(?<=:\d\d)\s*⟦?\s*([ap])\.?\s?m\b\.?\s*⟧?", r"⟦\1m⟧"),
    (r"^\s*⟦?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)[\s:]*⟧?", ""),
    (r"\s*,?\s*(?:⟦\s*(?:and|or)\s*⟧|(?<![A-Za-z⟦])(?:and|or)(?![A-Za-z⟧]))\s*,?\s*", ","),
    (r"(?<=\d)\s*(⟦?)\s*(%s)s?\b\s*(⟧?)" % "|".join(SCALE), lambda m: f"*{SCALE[m[2].lower()]} {m[1]}{m[3]}".replace("⟦⟧", "")),
    (r"(¤|€|£|¥|₹|Rs\.?|USD)\s*(\d+(?:,\d{3})*(?:\.\d+)?(?:\*[\d^]+)?|\.\d+)", r"\2 \1 "),  # $5 per day -> 5 $ per day
    (r"(?<![\d,. ])(\d{1,3}(?: \d{3})+)(?![\d,. ])", lambda m: m[0].replace(" ", "")))]
UNITS = {alias: names.split()[0] for names in """dollar dollars ¤ usd|cent cents|euro euros €|pound £ lb lbs|yen ¥|rupee rs ₹
    |% percent|degree degrees ° deg|in inch inches|ft foot feet|yd yard|mi mile|mm|cm centimeter centimetre|m meter metre
    |km kilometer kilometre|g gram gm gms|kg kilogram kgs|mg|oz ounce|l liter litre|ml|s sec second secs|min minute mins
    |h hr hrs hour|yr year|celsius °c|fahrenheit °f|mph|kph|sq square|cu cubic""".split("|") for alias in names.split()}
GLUE = {"of", "per", "a", "an", "the", "in", "each", "for", "on", "to", "/", "^2", "^3"}  # inside a unit phrase
NO_UNIT = {*"""squared cubed factorial choose mod modulo plus minus times divided over half halves thirds more less fewer base
    than not least most where when with score remainder and noon am pm""".split(), *SCALE}
UNIT = re.compile(r"(?:(?<=[\d})\]])|(?<=\\pi)(?=\s*⟦))"  # possessive quantifiers: never tried twice, so linear
                  r"(?:\s*+(?:⟦[^⟧]*⟧|[A-Za-z°€£¥₹¤%][A-Za-z.'°]*+|/(?=\s*[A-Za-z⟦])|\^\s*\{?[23]\}?))++"
                  r"(?=\s*(?:[,;)\]}=<>≤≥]|\\\}|$))")
WORDS = re.compile(r"(?=.*[aeiouAEIOU]|.{5})[A-Za-z]{2,}(?:[ -][A-Za-z]+)*")


def _is_words(s: str) -> bool:
    return bool(WORDS.fullmatch(s)) and not any(w in FUNCTIONS or w == "pi" for w in s.split())


def _text(m: re.Match) -> str:
    """What \\text{...} holds: words become one symbol in ⟦⟧; digits and single letters are mathematics, except 5\\text{ m}."""
    inside, before = m[2].strip(" ~\\"), m.string[max(0, m.start() - 20):m.start()]
    after_number = re.search(r"(?:[\d})°]|\\circ)[\s\\,~]*$", before)
    letters = "".join(filter(str.isalpha, inside))
    name = len(letters) > 1 and m[1][0] in "tmh" and m[1][:4] != "math" and not re.search(r"\d", inside)
    return f"⟦{inside}⟧" if name or (len(inside) == 1 and letters and inside not in "ie" and after_number) else f" {m[2]} "


def _unit(m: re.Match) -> str:
    """A trailing unit phrase as one token: 15⟦cm⟧^2 and 15 square centimetres both end in ‹cm ^2›."""
    quoted, phrase = "⟦" in m[0], re.sub(r"[.'{}]", "", re.sub(r"[⟦⟧]", " ", m[0].lower()))
    phrase = re.sub(r"\s*(\^\s*\d|[/%]|°\s*(?:[cf]\b)?)", lambda u: f" {u[1].replace(' ', '')} ", phrase)
    words, out = re.sub(r"([a-z]) squared", r"\1 ^2", phrase).split(), []
    for i, w in enumerate(words):  # a bare m is a variable, \text{m} a metre; unknown bare words need a space before, and a vowel
        w = w if w in UNITS else w.removesuffix("s")
        known = w in UNITS and (quoted or len(w) > 1 or not w.isalpha() or words[i - 1:i] == ["/"])
        word = len(w) > 2 and (i or m[0][0] == " ") and re.search("[aeiou]", w) and w not in FUNCTIONS
        if w in NO_UNIT or not (known or word or quoted or (i and w in GLUE)):
            return m[0]
        w = UNITS.get(w, w)
        out += [w] if w not in out[-1:] + ["unit"] else []
    out = ["/" if w == "per" else w for w in out if w in ("per", "/", "^2", "^3") or w not in GLUE]
    if out[:1] in (["sq"], ["cu"]):
        out = out[1:2] + ["^2" if out[0] == "sq" else "^3"] + out[2:]
    return f"‹{' '.join(out)}›" if words else m[0]


@lru_cache(4096)  # a gold answer is read once for all its samples
def _normalise(s: str) -> str:
    s = s.translate(CHARACTERS)
    for _ in range(4):  # nested \textbf{\text{...}}
        s = TEXT.sub(_text, s) if "\\" in s else s
    for pattern, new in RULES:
        s = pattern.sub(new, s)
    s = re.sub(r"\$(?=\s*[\d.])", "¤", s, count=1) if s.count("$") % 2 else s  # a lonely dollar is money, pairs are LaTeX
    s = re.sub(r"\s+", " ", s.replace("$", " ")).strip()
    if not _is_words(s.strip("⟦⟧ ")):
        for pattern, new in PROSE_RULES:
            s = pattern.sub(new, s)
        s = s.replace("°", "º") if re.search(r"sin|cos|tan|cot|sec\b|csc", s) else s  # sin 30° is half, an answer of 30° is 30
        s = UNIT.sub(_unit, s).strip(" ,").rstrip(".")
    return f"⟦{s}⟧" if _is_words(s) else s  # letters only: a word, so that "on" is not n*o


@lru_cache(4096)
def _samples(name: str) -> tuple:
    rng = random.Random(name)  # the same numbers for a name in every process; half of the points positive, half of either sign
    return tuple(rng.uniform(0.3, 2.5) if i < POINTS // 2 else rng.uniform(-2.5, 2.5) for i in range(POINTS))


def _lift(f, *args):
    """f exactly on rationals where that is possible, else at every sample point; None where it is undefined."""
    if any(isinstance(a, Node) for a in args):
        raise ValueError("arithmetic on a container")
    if all(isinstance(a, Fraction) for a in args) and isinstance(y := f(*args), Fraction):
        if max(y.numerator.bit_length(), y.denominator.bit_length()) > MAX_BITS:
            raise ValueError("number too long")
        return y
    out = []
    for column in zip(*(a if isinstance(a, tuple) else (a,) * POINTS for a in args)):
        try:
            y = None if None in column else complex(f(*column))
            out.append(y if y is None or abs(y.imag) > 1e-13 * abs(y) else y.real if cmath.isfinite(y) else None)
        except (ArithmeticError, ValueError, TypeError):
            out.append(None)
    return tuple(out)


def _add(a, b):
    y = a + b  # what cancels down to rounding noise is 0, or (x+1)^2-x^2-2x-1 would not be
    return y if isinstance(y, Fraction) or abs(y) >= 1e-13 * max(abs(a), abs(b)) else 0.0


def _pow(a, b):
    """a to the b: exact where rational, real for odd roots of negatives, else principal."""
    if isinstance(b, Fraction) and not isinstance(a, complex) and (n := b.denominator) < 100:
        if isinstance(a, Fraction) and (n == 1 or a >= 0):
            if abs(b) * max(a.numerator.bit_length(), a.denominator.bit_length()) > MAX_BITS:
                raise ValueError("power too large")  # before computing it: 10^{1000000000}
            p, q = (v if n == 1 else math.isqrt(v) if n == 2 else round(v ** (1 / n)) for v in (a.numerator, a.denominator))
            if p ** n == a.numerator and q ** n == a.denominator:
                return Fraction(p, q) ** b.numerator
        if a < 0 and n % 2 and n > 1:
            return (-1) ** (b.numerator % 2) * float(-a) ** float(b)
    return complex(a) ** complex(b) if isinstance(a, complex) or isinstance(b, complex) else float(a) ** float(b)


def _factorial(x):
    if isinstance(x, Fraction) and (x.denominator > 1 or not 0 <= x <= 300):
        raise ValueError("factorial")
    return Fraction(math.factorial(int(x))) if isinstance(x, Fraction) else math.gamma(x + 1)  # n! is n(n-1)! at sample points too


def _binomial(n, k):
    if not isinstance(k, Fraction) or k.denominator > 1 or not 0 <= k <= 200:
        raise ValueError("binomial")
    return math.prod(((n - j) / (j + 1) for j in range(int(k))), start=Fraction(1))


FUNCTIONS = {"exp": cmath.exp, "ln": cmath.log, "log": cmath.log10, "lg": cmath.log10, "sqrt": lambda x: _pow(x, Fraction(1, 2)),
             **{name: lambda z, f=getattr(cmath, name): 0.0 if abs(y := f(z)) < 1e-14 else y  # sin(pi) is 0, not 1e-16
                for name in "sin cos tan sinh cosh tanh".split()},
             **{"arc" + name: getattr(cmath, "a" + name) for name in ("sin", "cos", "tan")},
             "cot": lambda z: 1 / cmath.tan(z), "sec": lambda z: 1 / cmath.cos(z), "csc": lambda z: 1 / cmath.sin(z)}
CONSTANTS = {"pi": (math.pi,) * POINTS, "e": (math.e,) * POINTS, "i": (1j,) * POINTS}
GREEK = set("""alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi psi
    omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell infty emptyset varnothing""".split())
FENCES = {"|": ("|", abs), "\\lfloor": ("\\rfloor", lambda x: Fraction(math.floor(x))),
          "\\lceil": ("\\rceil", lambda x: Fraction(math.ceil(x)))}
COMMANDS = {"\\frac": operator.truediv, "\\binom": _binomial}
FACTOR = re.compile(r"[A-Za-z⟦({\[]|\\(?!end|rfloor|rceil)[A-Za-z{]")  # starts a factor
RELATIONS = {"=": "=", "≠": "≠", "∈": "∈", "<": ">", "≤": "≥", ">": "<", "≥": "≤"}  # and what they are read backwards
TOKEN = re.compile(r"\\(?:begin|end)\{\w+\*?\}|\\[A-Za-z]+|\\.|‹[^›]*›|⟦[^⟧]*⟧|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[A-Za-z]+|\S")
SYMBOL = re.compile(r"[A-Za-z]'?(?:_\w)?\([^()]*\)|[-+(),|'⟦⟧A-Za-z\s]+|(?:\\(?:%s)|[A-Za-z])(?:_\{?\w+\}?)?'?"
                    % "|".join(sorted(GREEK)))


class Reader:
    """Recursive descent over the tokens of a normalised answer: one method per level of precedence, each returns a value."""

    def __init__(self, s: str):
        self.tokens, self.at, self.steps, self.depth = [], 0, 0, 0
        self.sign, self.pm, self.bars = 1, False, 0  # the branch of plus-minus being read, whether one was met, open |
        for token in TOKEN.findall(s):
            head = next((f for f in (*FUNCTIONS, "pi") if token.startswith(f) and len(token) <= len(f) + 2), "")  # sin, sinx
            rest = token[len(head):]  # up to three letters are a product, more are a word
            self.tokens += [head] * bool(head)
            if rest.isalpha() and rest.isascii():
                self.tokens += [f"⟦{rest}⟧"] if len(rest) > 3 else rest
            else:
                self.tokens += [rest] * bool(rest)
            if self.tokens[-1][0] == "⟦" == self.tokens[-2:][0][0] and len(self.tokens) > 1:
                raise ValueError("prose: two words in a row are compared as strings only")

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, *wanted: str) -> str:
        token = self.next if not wanted or self.next in wanted else ""
        self.at += token != ""
        return token

    def expect(self, *wanted: str) -> str:
        if self.next not in wanted:
            raise ValueError(f"expected {wanted}, found {self.next!r}")
        return self.take()

    def items(self, split=True) -> list:
        """Comma-separated relations; one with a plus-minus is read twice, with either sign, and gives two."""
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
        sides, ops, starts = [], [], []
        while not sides or self.next in RELATIONS:
            ops += [self.take()] if sides else []
            starts.append(self.at)
            sides.append(self.chain("∪", "union", self.quantity))
        names = ["".join(self.tokens[i:j]) for i, j in zip(starts, [s - 1 for s in starts[1:]] + [self.at])] if ops else []
        if any(op in ">≥" for op in ops):  # 5 > x is x < 5
            sides, names, ops = sides[::-1], names[::-1], [RELATIONS[op] for op in ops[::-1]]
        return Node("rel", (tuple(ops), tuple(sides), tuple(n if SYMBOL.fullmatch(n) else "" for n in names))) if ops else sides[0]

    def quantity(self):
        value = self.chain(":", "ratio", self.sum)
        if self.next[:1] == "⟦":  # 4:00⟦pm⟧ is not a product: 0 times pm would be 0 times am
            return Node("text", (value, _samples(self.take().casefold())))
        return Node("unit", (value, self.take())) if self.next[:1] == "‹" else value

    def chain(self, separator, kind, part):
        parts = [part()]
        while self.take(separator):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Node(kind, tuple(parts))

    def sum(self):
        total = None
        while total is None or self.next in ("+", "-", "±", "∓"):
            op = self.take("+", "-", "±", "∓")
            self.pm |= op in ("±", "∓")
            term = self.product()
            if op == "-" or (op == "±" and self.sign < 0) or (op == "∓" and self.sign > 0):
                term = self.times(Fraction(-1), term)
            total = term if total is None else _lift(_add, total, term)
        return total

    def product(self):
        start, value = self.at, self.power()
        if self.at == start + 1 and self.tokens[start].isdigit():  # mixed numbers: 1\frac{4}{5}, 7 3/4
            if self.next == "\\frac":
                part = self.power()
                value = value + part if isinstance(part, Fraction) and 0 < part < 1 else self.times(value, part)
            elif self.next.isdigit() and self.tokens[self.at + 1:self.at + 2] == ["/"]:
                top, _ = self.take(), self.take()
                value += Fraction(int(top), int(self.take()))
        while True:
            if self.take("*"):
                value = self.times(value, self.signed())
            elif self.take("/"):
                value = _lift(operator.truediv, value, self.signed())
            elif FACTOR.match(self.next) and not (self.next[0] == "⟦" and self.tokens[self.at - 1].isdigit()) or (
                    self.next == "|" and not self.bars):  # a product without a sign
                value = self.times(value, self.power())
            else:
                return value

    def times(self, a, b):
        for x, y in ((a, b), (b, a)):
            if isinstance(x, Node) and x.kind in ("matrix", "row") and not isinstance(y, Node):
                return Node(x.kind, tuple(self.times(y, part) for part in x.items))
        return _lift(operator.mul, a, b)

    def signed(self):
        return self.times(Fraction(-1), self.power()) if self.take("-") else self.power()

    def power(self):
        self.depth, self.steps = self.depth + 1, self.steps + 1  # every recursion and every loop passes here
        if self.depth > MAX_DEPTH or self.steps > MAX_STEPS:
            raise ValueError("too deep or too long")
        value = self.atom()
        while op := self.take("^", "!", "º"):
            if op == "^":
                value = _lift(_pow, value, self.signed())
            elif op == "!" and self.next != "!":  # 5!! is not (5!)!
                value = _lift(_factorial, value)
            else:
                value = _lift(operator.mul, value, (math.radians(1) if op == "º" else None,) * POINTS)
        self.depth -= 1
        return value

    def atom(self):
        token = self.take()
        name = token.lstrip("\\")
        if re.match(r"\.?\d", token):
            return self.number(token)
        if token in ("(", "[", "{", "\\{"):
            return self.bracket(token)
        if token in FENCES:
            close, f = FENCES[token]
            self.bars += token == "|"
            value = _lift(f, self.sum())
            self.bars -= self.expect(close) == "|"
            return value
        if token in COMMANDS:
            return _lift(COMMANDS[token], self.argument(), self.argument())
        if token == "\\sqrt":
            index = self.bracket("[") if self.take("[") else Fraction(2)
            return _lift(_pow, self.argument(), _lift(operator.truediv, Fraction(1), index))
        if token.startswith("\\begin"):
            return self.matrix("vmatrix" if "vmatrix" in token else "matrix")
        if name in FUNCTIONS:
            return self.call(name)
        if name in CONSTANTS and token not in ("\\e", "\\i"):
            return CONSTANTS[name]
        if token.isalpha() or token[:1] == "⟦" or (token[:1] == "\\" and name in GREEK):
            name = name.strip("⟦⟧ ").casefold() if len(name) > 4 else name
            return _samples(name + self.subscript() + "".join(iter(lambda: self.take("'"), "")))
        raise ValueError(f"expected a number or a name, found {token!r}")

    def number(self, token: str):
        if len(token) > 1000 or abs(int(token.lower().partition("e")[2] or 0)) > 1000:
            raise ValueError("number too long")
        base = self.subscript()  # 52_8, a numeral in base 8, equals itself only
        return _samples(token + base) if base else Fraction(token)

    def subscript(self) -> str:
        text = self.take("_") and "_" + self.take()
        if text == "_{":
            end = self.tokens.index("}", self.at)
            text, self.at = "_" + "".join(self.tokens[self.at:end]), end + 1
        return text

    def bracket(self, opening: str):
        bars, self.bars = self.bars, 0
        items = tuple(self.items(opening == "\\{")) if opening != "\\{" or self.next != "\\}" else ()
        self.bars, kind = bars, opening + self.expect(*{"{": "}", "\\{": ["\\}"]}.get(opening, ")]"))
        return Node("set", items) if opening == "\\{" else items[0] if len(items) == 1 and kind in ("()", "[]", "{}") else Node(
            "list" if kind == "{}" else kind, items)

    def argument(self):
        """One argument of a TeX command: {...} or one token, of a number its first digit only (\\frac12)."""
        if self.next.isdigit():
            self.tokens[self.at:self.at + 1] = filter(None, (self.next[0], self.next[1:]))
        return self.atom()

    def call(self, name: str):
        f, base, power = FUNCTIONS[name], None, None
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take("^"):
            power = self.signed()
        if power == -1:
            f, power = FUNCTIONS["arc" + name], None
        x = self.atom() if self.next in ("(", "[", "{", "|") else self.power()
        # sin 2x takes the x too; sin x cos x is a product
        while (self.next.isalpha() or self.next[1:] in GREEK | {"pi"}) and self.next not in FUNCTIONS:
            x = self.times(x, self.power())
        y = _lift(f, x) if base is None else _lift(operator.truediv, _lift(f, x), _lift(f, base))
        return y if power is None else _lift(_pow, y, power)

    def matrix(self, kind: str):
        rows = [[]]
        while not self.next.startswith("\\end"):
            rows[-1].append(self.sum())
            if self.next.startswith("\\end") or self.expect("&", "\\\\") == "\\\\":
                rows.append([])
        self.take()
        return Node(kind, tuple(Node("row", tuple(row)) for row in rows if row))


@lru_cache(4096)
def _read(s: str):
    if not re.search(r"[(\[]|\\\{", s):  # 100,200 is a number, (100,200) a pair
        s = re.sub(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?!,?\d)", lambda m: m[0].replace(",", ""), s)
    try:
        items = (reader := Reader(s)).items()
        reader.expect("")
        return items[0] if len(items) == 1 else Node("list", tuple(items))
    except (ValueError, ArithmeticError, TypeError, LookupError, RecursionError):
        return None


# ----------------------------------------------------------------------------------------------------------------------
# equality

def is_equal(pred: str | None, gold: str) -> bool:
    r"""Whether two answers are the same: as strings, as exact rationals, element by element, or at random points.

    >>> is_equal(r"1+\sqrt{19}, 1-\sqrt{19}", r"1 \pm \sqrt{19}"), is_equal("0.333", r"\frac{1}{3}")
    (True, False)
    """
    if pred is None:                       # no answer
        return False
    pred, gold = pred.strip(), gold.strip()
    if pred == gold or max(len(pred), len(gold)) > MAX_CHARS:
        return pred == gold != ""
    pred, gold = _normalise(pred), _normalise(gold)
    if _flat(pred) == _flat(gold) != "":
        return True
    a, b = _read(pred), _read(gold)
    try:
        return a is not None and b is not None and _same(a, b)
    except (ArithmeticError, ValueError):  # a rational past the floats beside an irrational number
        return False


def _flat(s: str) -> str:
    s = re.sub(r" (?![\w.])|(?<![\w.]) ", "", re.sub("[⟦⟧]", "", s))
    return re.sub(r"[A-Za-z]{3,}", lambda m: m[0].lower(), s)


def _same(a, b) -> bool:
    ka, kb = (x.kind if isinstance(x, Node) else "" for x in (a, b))
    if ka == "rel" or kb == "rel":
        return _same_relation(a, b) if ka == kb else _same(_right(a), b) if ka == "rel" else _same(a, _right(b))
    if a is None or b is None:
        return False
    if ka == kb == "unit":
        return a.items[1] == b.items[1] and _same(a.items[0], b.items[0])
    if "unit" in (ka, kb):  # only one names its unit; 10% is 10 or 1/10
        (value, unit), other = (a.items, b) if ka == "unit" else (b.items, a)
        percent = unit == "‹%›" and not isinstance(value, Node)
        return _same(value, other) or (percent and _same(_lift(operator.mul, value, Fraction(1, 100)), other))
    if not ka and not kb:
        return _same_scalar(a, b)
    if {ka, kb} <= {"list", "set", ""} and "list" not in (ka, kb) or {ka, kb} <= {"list", "set"} or ka == kb == "union":
        return _same_items(*(x.items if isinstance(x, Node) else (x,) for x in (a, b)), ka == kb == "set")
    return ka == kb and len(a.items) == len(b.items) and all(map(_same, a.items, b.items))


def _same_items(a: tuple, b: tuple, as_set: bool) -> bool:
    """In any order; a list keeps its repetitions, a set does not."""
    names = [{x.items[2] for x in items if isinstance(x, Node) and x.kind == "rel"} for items in (a, b)]
    if as_set or len(a) != len(b) or any(len(x) > 1 and not y for x, y in (names, names[::-1])):  # x=1, y=2 is not 2, 1
        return as_set and all(any(_same(x, y) for y in q) for p, q in ((a, b), (b, a)) for x in p)
    left = list(b)
    for x in a:
        match = next((i for i, y in enumerate(left) if _same(x, y)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _right(rel: Node):
    """What a relation says its symbol is: 5 for x = 5, x = 2+3 = 5 and 5 = x; None for 2x = 10 and x < 5."""
    ops, sides, names = rel.items
    return None if set(ops) - {"=", "∈"} else sides[-1] if names[0] else sides[0] if names[-1] and ops == ("=",) else None


def _same_scalar(a, b) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        digits, gap = max(a.denominator, b.denominator), abs(a - b)
        printed = 10**11 < digits and 10**18 % digits == 0             # a printed float, 12 or more decimals: its last may be off
        return not gap or (printed and (2 * gap * digits < 1 or gap <= abs(b) * Fraction(2, 2**52)))
    agree = 0
    for x, y in zip(*(v if isinstance(v, tuple) else (float(v),) * POINTS for v in (a, b))):
        close = None not in (x, y) and abs(x - y) <= 1e-11 * max(abs(x), abs(y))
        if not close and not (x is y is None or (isinstance(x, complex) and isinstance(y, complex))):
            return False  # both undefined, or both off the real line on other branches: no evidence; anything else is a difference
        agree += close
    return agree >= 3


def _same_relation(a: Node, b: Node) -> bool:
    """Same relation up to a factor (2x+4y=3 is y=-x/2+3/4), which must be positive for an inequality."""
    (ops, left, _), (ops_b, right, _) = a.items, b.items
    if ops != ops_b or len(left) > 2 or any(isinstance(s, Node) for s in left + right):
        return ops == ops_b and all(map(_same, left, right))
    d, e = (_lift(operator.sub, *sides) for sides in (left, right))
    if isinstance(d, Fraction) or isinstance(e, Fraction) or len(set(d)) == 1:
        return False  # no variable: 1 = 2 is not 3 = 5
    ratios = [x / y if x and y else None for x, y in zip(d, e) if x or y]
    return len(ratios) >= 3 and None not in ratios and all(abs(r - ratios[0]) <= 1e-10 * abs(r) for r in ratios) and (
        ops[0] in "=≠" or (isinstance(ratios[0], float) and ratios[0] > 0))


@dataclass
class Grade:
    correct: bool
    answer: str | None
    extractor: str  # boxed, answer_tag, hash, phrase, letter, number or none


OPTION = re.compile(r"(?:(?<=[\s:])|^)\(?([A-E])\s?[).:](?:\s*\(?\1\s?\))?\s*")
LETTER = re.compile(r"\W*(?:(?:option|choice)\W*)?(?:text\w*\W*)?([A-E])(?:\W*|\s?[).:]\s*(\S.*))", re.I | re.S)
CHOSEN = re.compile(r"\b(?:answer|option|choice|is|choose|pick|select)\W{1,4}([A-E])\W*$|\b([A-E])\)? is (?:the )?correct")


def grade(text: str, gold: str, dataset: str | None = None, question: str | None = None) -> Grade:
    """Extraction and equality of one completion.

    dataset="aqua": the gold is a letter, its options stand in the question. "toy-math": the answer follows the last semicolon.

    >>> grade("The answer is $23.65.", "A", "aqua", "How much? Answer Choices: (A) 23.65 (B) 1000")
    Grade(correct=True, answer='A', extractor='phrase')
    """
    if dataset == "toy-math":              # "8+7=15,5+6+1=12;125": the steps, then the answer
        answer = text.rpartition(";")[2].strip() if ";" in text else ""
        return Grade(bool(answer) and is_equal(answer, gold), answer or None, "last ;" if answer else "none")
    answer, how = _extract(text)
    if dataset != "aqua":
        return Grade(answer is not None and is_equal(answer, gold), answer, how)
    options, said = _options(question or ""), CHOSEN.findall(text[-TAIL:])
    if how in ("number", "none") and said:
        answer, how = "".join(said[-1]), "letter"
    letter = LETTER.fullmatch(answer or "")
    if letter and (not letter[2] or is_equal(letter[2], options.get(letter[1].upper(), letter[2]))):
        answer = letter[1].upper()
    elif answer:  # a value: the options that read the same, else those equal to it (10 and 10% are equal, but not the same)
        found = [k for k, v in options.items() if _normalise(v) == _normalise(answer[:MAX_CHARS])] or [
            k for k, v in options.items() if is_equal(answer, v)]
        answer = gold if gold in found else (found + [answer])[0]
    return Grade(answer == gold, answer, how)


def _options(question: str) -> dict[str, str]:
    """{"A": "18", "B": "20"} of "... Answer Choices: (A) 18 (B) 20": the last run of letters in order."""
    run = []
    for m in OPTION.finditer(question):
        run = [m] if m[1] == "A" else run + [m] if run and ord(m[1]) == ord(run[-1][1]) + 1 else run
    ends = [m.start() for m in run[1:]] + [len(question)]
    return {m[1]: question[m.end():end].strip(" ,;\n")[:MAX_CHARS] for m, end in zip(run, ends)}


# ----------------------------------------------------------------------------------------------------------------------
# statistics


def wilson(c: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval (95 %) of c successes in n trials, never without c / n; c may be a sum of per-problem means.

    >>> [round(x, 8) for x in wilson(660, 1319)]
    [0.47343385, 0.5273221]
    """
    if not (n >= 1 and 0 <= c <= n):
        raise ValueError(f"wilson: expected 0 <= c <= n and n >= 1, found c={c}, n={n}")
    p, d = c / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / d
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))        # rounding must not exclude p itself


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b and c discordant pairs under Binomial(b + c, 1/2), summed in integers.

    >>> mcnemar(25, 10)
    0.01667384780012071
    """
    if min(b, c) < 0:
        raise ValueError(f"mcnemar: expected two counts, found {b} and {c}")
    term = total = 1
    for i in range(min(b, c)):
        term = term * (b + c - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2 ** (b + c))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased pass@k of c right in n samples, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021), rounded once.

    >>> pass_at_k(5, 2, 2), pass_at_k(1000000, 10, 1000)
    (0.7, 0.0099551643871496)
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k: expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, k={k}; draw more samples")
    everything, none = math.perm(n, min(c, k)), math.perm(n - max(c, k), min(c, k))  # symmetric in c and k: the shorter product
    return (everything - none) / everything


# ----------------------------------------------------------------------------------------------------------------------
# data sets

# One problem. eval_code's have code, test and entry_point too; data.Problem, of the built-in tasks, has all of these fields.
Item = namedtuple("Item", "id family prompt answer code test entry_point", defaults=("", "", ""))

# hub: path, configuration, split. counts: rows of that split, then of other published editions, accepted from a file. question,
# answer: keys, the first present wins, "Body+Question" joins two; "instruction" is the key in the paper's own files.
Source = namedtuple("Source", "hub counts question answer")
SOURCES = {
    "gsm8k": Source(("openai/gsm8k", "main", "test"), (1319,), ("question", "instruction"), ("answer",)),
    # published as a test set of 1,000; the hub's 700 + 300 split came later: both together, or either count from a file
    "svamp": Source(("ChilleD/SVAMP", None, "train+test"), (1000, 300), ("Body+Question", "instruction"), ("Answer", "answer")),
    "mawps": Source(("MU-NLPC/Calc-mawps", None, "test"), (520, 238),           # 238: the paper's own file
                    ("question", "original_text", "instruction"), ("result", "ans", "answer")),
    "aqua": Source(("deepmind/aqua_rat", "raw", "test"), (254,), ("question", "instruction"), ("correct", "answer")),
    "math500": Source(("HuggingFaceH4/MATH-500", None, "test"), (500,), ("problem", "instruction"), ("answer",)),
    "amc23": Source(("math-ai/amc23", None, "test"), (40,), ("question", "instruction"), ("answer",)),
    "aime25": Source(("math-ai/aime25", None, "test"), (30,), ("problem", "question", "instruction"), ("answer",))}
GOLD = re.compile(r"-?(\d+(\.\d*)?(/\d+)?|\.\d+)(e[-+]?\d+)?(\^\\circ)?")       # of all sets but aqua (letters), math500 (LaTeX)


def load_problems(spec, limit=None, any_count=False, split="test"):
    """Problems of "toy-math", "gsm8k" (hub) or "gsm8k=PATH" (see read_rows); a bad row or a wrong count ends the program."""
    name, _, path = spec.partition("=")
    if spec == "toy-math":
        return built_in(spec, split, limit)
    if name not in SOURCES:
        raise SystemExit(f"--data {spec}: expected toy-math or one of {', '.join(SOURCES)}, alone (from the hub) or as NAME=PATH")
    source = SOURCES[name]
    rows = read_rows(path) if path else hub_rows(*source.hub)
    items = [_item(name, source, f"{name}/{i}", where, row) for i, (where, row) in enumerate(rows, 1)]
    counts = source.counts if path else source.counts[:1]
    if len(items) not in counts and not any_count:
        raise SystemExit(f"--data {spec}: expected {' or '.join(map(str, counts))} rows, found {len(items)}; "
                         "get the whole file, or pass --any-count to eval_math.py")
    return items[:limit]


def built_in(task, split, limit=None):
    """The first problems of a built-in task, 2,100 unless told."""
    from plumbing.tasks import TASKS
    try:
        return TASKS[task](split, limit or 2100)
    except ValueError as e:
        raise SystemExit(f"--limit {limit}: {e}") from None


def hub_rows(path, config, split):
    """(where, row) of a data set of the hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise SystemExit(f"{path} comes from the hub: pip install datasets, or name a local file as NAME=PATH") from None
    try:
        return [(f"{path} {split}:{i}", row) for i, row in enumerate(load_dataset(path, config, split=split), 1)]
    except Exception as e:               # no network, no such set or split: each has an error class of its own
        raise SystemExit(f"{path}: the hub did not give it ({type(e).__name__}: {str(e).strip()[:200]}); check the network, or "
                         "name a local file as NAME=PATH") from None


def read_rows(path):
    """(file:line, row) of a .jsonl or .jsonl.gz file or of a JSON array; SystemExit on what is no object: no row is skipped."""
    try:
        with (gzip.open if path.endswith(".gz") else open)(path, "rt", encoding="utf-8") as f:
            text = f.read()
        if text.lstrip()[:1] == "[":
            lines = [(i, row) for i, row in enumerate(json.loads(text), 1)]
        else:
            lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    except (OSError, ValueError) as e:
        raise SystemExit(f"{path}: expected a .jsonl or .jsonl.gz file or a JSON array, found {e}; check the path") from None
    for i, row in lines:
        try:
            row = json.loads(row) if isinstance(row, str) else row
        except ValueError:
            pass
        if not isinstance(row, dict):
            raise SystemExit(f"{path}:{i}: expected one JSON object, found {str(row)[:60]!r}; mend or remove that line")
        yield f"{path}:{i}", row


def write_rows(path, rows):
    write_text(path, "".join(json.dumps(r) + "\n" for r in rows))


def write_text(path, text):
    """As model.write_atomically, without torch: renamed when whole, so that a killed run leaves no half file."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(f"{path}.tmp{os.getpid()}", "w", encoding="utf-8") as f:
        f.write(text)
    os.replace(f.name, path)


def _item(name, source, id, where, row):
    """One row of a data set, checked -> Item."""
    given = lambda key: str(row[key]).strip() if row.get(key) is not None else ""
    key = next((k for k in source.question if all(map(given, k.split("+")))), None)
    answer = next(filter(None, map(given, source.answer)), "")
    question = " ".join(map(given, key.split("+"))) if key else ""
    expected = f"a row with {' or '.join(source.question)} and {' or '.join(source.answer)}"
    if name == "gsm8k" and key == "question":
        expected, answer = expected + ", its gold after ####", answer.rpartition("####")[2].strip() if "####" in answer else ""
    if name == "aqua":
        expected += ", a letter of its options"
        if isinstance(row.get("options"), list):                # "A)21" -> "(A) 21"
            options = (re.sub(r"^\(?([A-E])\)\s*", r"(\1) ", str(o)) for o in row["options"])
            question += " Answer Choices: " + " ".join(options)
    elif name != "math500":
        expected, answer = expected + ", a number", re.sub(r"(?<=\d)[,_](?=\d{3})", "", answer)
    fits = answer in _options(question) if name == "aqua" else name == "math500" or GOLD.fullmatch(answer)
    if not (key and answer and fits):
        raise SystemExit(f"{where}: {name} expected {expected}; found {str(row)[:200]}; rows are never skipped: repair it")
    return Item(id, name, question, answer)


# ----------------------------------------------------------------------------------------------------------------------
# scoring


def chat(enc, system=None, raw=False):
    """wrap(question) -> the prompt, rendered by the template that training used (plumbing.chat.render: the tokenizer's own, else plain).

    raw: where the tokenizer has no chat template the text stands as it is (a function to complete), as rows of prompt and
    completion did in training, the token that opens every text before it.
    """
    from plumbing.chat import render
    template = "none" if raw and not enc.chat_template else "auto"
    first = [{"role": "system", "content": system}] * bool(system)
    return lambda question: render([*first, {"role": "user", "content": question}], enc, template, add_generation_prompt=True)


def sample_seed(seed, problem, sample):
    """63 bits of (seed, problem, sample): the same draw whatever the batch, the order or the process."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{problem}|{sample}".encode()).digest()[:8], "big") >> 1


def complete(model, enc, problems, *, max_new_tokens=64, batch_size=700, n=1, temperature=0.0, seed=0, weak=None, lam=1.0,
             wrap=None):
    """n completions of each problem -> one row each: id, family, prompt, sample, seed, gold, completion, tokens, truncated.

    problems: anything with id, family, prompt, answer. wrap(prompt) -> the text that the model reads, special tokens
    spelled out (see chat). weak, lam: decode from lam * z_model + (1 - lam) * z_weak (the fused model). Prompts of similar length
    are decoded together; rows come in the order of the problems and do not depend on the batch, since each sample draws from a
    generator of its own. Raises ValueError on a text that the encoding cannot spell, or too long for the model.
    """
    texts = [wrap(p.prompt) if wrap else p.prompt for p in problems]
    alphabet = {token[0] for token in enc._mergeable_ranks if len(token) == 1}
    for p, text in zip(problems, texts):
        if foreign := [c for c in text if not set(c.encode()) <= alphabet]:
            raise ValueError(f"the model's {len(alphabet)}-character alphabet lacks {foreign[0]!r} of problem {p.id}")
    prompts = [enc.encode(t, allowed_special="all" if wrap else set(), disallowed_special=()) for t in texts]
    rows = [dict(id=p.id, family=p.family, prompt=p.prompt, sample=s, seed=sample_seed(seed, p.id, s), gold=p.answer)
            for p in problems for s in range(n)]
    batches, slots = [], lambda i: len(prompts[i // n]) + max_new_tokens
    for i in sorted(range(len(rows)), key=slots):           # the longest of a batch sets the cache of all: one outlier, all the memory
        if not batches or len(batches[-1]) == batch_size or slots(i) > 2 * slots(batches[-1][0]):
            batches.append([])
        batches[-1].append(i)
    for batch in batches:
        new = model.generate([prompts[i // n] for i in batch], max_new_tokens, temperature=temperature, stop_ids=enc.stop_ids,
                             seed=[rows[i]["seed"] for i in batch], weak=weak, lam=lam)
        for i, tokens in zip(batch, new):
            rows[i].update(completion=enc.decode(tokens), tokens=len(tokens), truncated=len(tokens) >= max_new_tokens)
    return rows


def judge(rows, dataset="toy-math", official=None):
    """Add answer, extractor and correct to rows of complete(), and the verdict of `official`, a function of (text, gold)."""
    for r in rows:
        g = grade(r["completion"], r["gold"], dataset, r["prompt"])
        r.update(answer=g.answer, extractor=g.extractor, correct=g.correct)
        if official:
            r["official"] = official(r["completion"], r["gold"])
    return rows


def official_grader():
    """The paper's scorer: math-verify on what a completion anchors, letters by pattern; verdict(text, gold) -> bool."""
    try:
        from math_verify import LatexExtractionConfig, parse, verify
    except ImportError:
        raise SystemExit("--grader official needs math-verify: pip install math-verify[antlr4_13_2], or leave it out") from None
    anchored = [LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]

    def verdict(text, gold):
        letters = re.findall(r"\\boxed\{\s*([A-E])\s*\}|answer\s*(?:is|:)?\s*\(?([A-E])\b", text, re.I)
        if letters and gold in tuple("ABCDE"):
            return "".join(letters[-1]).upper() == gold
        return bool(verify(parse(f"${gold.strip('$')}$"), parse(text, extraction_config=anchored)))
    return verdict


def summary(rows, ks=(), verdict="correct"):
    """Judged rows -> accuracy (mean@n), n problems, its Wilson interval low/high, pass@k, shares truncated, without answer and
    per extractor, accuracy per family. A problem with a verdict of None (harness trouble) counts neither way, but in `errors`.
    """
    broken, right, families = {r["id"] for r in rows if r[verdict] is None}, {}, {}
    for r in rows:
        if r["id"] not in broken:
            right.setdefault(r["id"], []).append(bool(r[verdict]))
        families.setdefault(r["family"], set()).add(r["id"])
    mean = lambda values: sum(values) / len(values) if values else 0.0
    share = {i: mean(v) for i, v in right.items()}              # samples of a problem are not independent: n counts problems
    low, high = wilson(min(sum(share.values()), len(share)), len(share)) if share else (0.0, 1.0)
    return dict(accuracy=mean(share.values()), n=len(share), low=low, high=high, errors=len(broken),
                **{f"pass@{k}": mean([pass_at_k(len(v), sum(v), k) for v in right.values()]) for k in ks},
                truncated=mean([r["truncated"] for r in rows]), no_answer=mean([r["answer"] is None for r in rows]),
                extractors={k: c / len(rows) for k, c in sorted(Counter(r["extractor"] for r in rows).items())},
                families={f: mean([share[i] for i in ids if i in share]) for f, ids in families.items()})


def show(s):
    """A summary as two lines of text."""
    return ("  ".join(f"{f} {accuracy:.1%}" for f, accuracy in s["families"].items()) +
            f"\naccuracy {s['accuracy']:.2%} of {s['n']:,} (95 % interval {s['low']:.2%} - {s['high']:.2%})" +
            "".join(f" | {k} {v:.2%}" for k, v in s.items() if k.startswith("pass@")) +
            f" | truncated {s['truncated']:.1%} | no answer {s['no_answer']:.1%}")


def compare(path_a, path_b, draws=2000, seed=0):
    """Two row files on the same problems: scores, discordant pairs, exact McNemar p, paired bootstrap of the difference b - a."""
    files = []
    for path in (path_a, path_b):
        files.append({})
        for where, row in read_rows(path):
            if not {"id", "gold", "sample", "correct"} <= set(row) or row["correct"] is None:
                raise SystemExit(f"{where}: expected a judged row (id, gold, sample, correct), found {str(row)[:80]}")
            files[-1].setdefault((row["id"], row["gold"]), {})[row["sample"]] = bool(row["correct"])
    a, b = files
    odd = next((key for key in [*a, *b] if set(a.get(key, ())) != set(b.get(key, ()))), None)
    if odd or not a:
        raise SystemExit(f"--compare: expected the same problems and samples; the first difference is {odd}: {len(a.get(odd, ()))} "
                         f"samples in {path_a}, {len(b.get(odd, ()))} in {path_b}; score both checkpoints on one data set")
    means = [[sum(f[key].values()) / len(f[key]) for key in a] for f in files]
    pairs = [(a[key][min(a[key])], b[key][min(a[key])]) for key in a]       # McNemar wants one yes or no per problem: sample 0
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    gains, rng = [y - x for x, y in zip(*means)], random.Random(seed)
    boots = sorted(sum(rng.choices(gains, k=len(gains))) / len(gains) for _ in range(draws))
    scores = {k: {"accuracy": sum(m) / len(m), "interval": wilson(min(sum(m), len(m)), len(m))} for k, m in zip("ab", means)}
    return {"problems": len(a), **scores, "only_a": only_a, "only_b": only_b, "mcnemar_p": mcnemar(only_a, only_b),
            "difference": sum(gains) / len(gains), "bootstrap_95": (boots[int(0.025 * draws)], boots[int(0.975 * draws)])}


def commit():
    """Commit of this checkout, with -dirty where it has changes; "unknown" without git."""
    try:
        git = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True,
                             cwd=os.path.dirname(os.path.abspath(__file__)))
        return git.stdout.strip() or "unknown"
    except OSError:              # no git on this machine
        return "unknown"


def load_model(path, device="cpu"):
    """(model, tokenizer, the task it was trained on: a built-in one or text) of a checkpoint or a Hugging Face folder."""
    from plumbing.chat import with_template
    from plumbing.tasks import task_of, tokenizer_of
    from plumbing.tokenizer import fingerprint
    from model import load_checkpoint, read_config
    try:
        enc = with_template(tokenizer_of(read_config(path)[1]))             # stops where its turns end, as after training
    except ValueError as e:
        raise SystemExit(f"{path}: {e}") from None
    model, meta = load_checkpoint(path, device, fingerprint(enc))
    return model.eval(), enc, task_of(meta)


def scores_folder(path):
    """Where the scores of a checkpoint go: beside a .pt file; of a Hugging Face folder or name into out/NAME."""
    return path.removesuffix(".pt") if path.endswith(".pt") else os.path.join("out", os.path.basename(os.path.normpath(path)))


def sampling_flags(cli, task):
    """The flags that eval_math and eval_code share."""
    cli.add_argument("--split", choices=("test", "val"), default="test", help=f"of {task}")
    cli.add_argument("--limit", type=int, help="only the first problems of each set")
    cli.add_argument("--n", type=int, default=1, help="samples per problem")
    cli.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    cli.add_argument("--k", type=int, nargs="+", default=[], help="report pass@k, k <= samples per problem")
    cli.add_argument("--max-new-tokens", type=int, help=f"default 64 for {task}, else 512, or the protocol's")
    cli.add_argument("--batch", type=int, help=f"prompts decoded together, default 700 for {task}, else 32")
    cli.add_argument("--seed", type=int, default=0, help="of the samples")
    cli.add_argument("--device", default="cpu", help="of the model: cpu, cuda, mps")
    cli.add_argument("--out", help="folder for NAME.jsonl (rows), NAME.json (settings, scores); default: beside a .pt file, without .pt; out/NAME for a folder")


def stem_of(a, name, record):
    """Where the rows and the record of a set go, without .jsonl or .json: into NAME, or, where that has scores of other settings, into
    NAME-SETTINGS, so that none are overwritten but by their like."""
    stem = os.path.join(a.out or scores_folder(a.checkpoint), name + "-val" * (name.startswith("toy-") and a.split == "val"))
    keys = ("n", "temperature", "seed", "limit", "max_new_tokens", "protocol")
    try:
        with open(stem + ".json", encoding="utf-8") as f:
            there = json.load(f)
    except (OSError, ValueError):
        return stem
    if all(there.get(k) == record.get(k) for k in keys):
        return stem
    tags = (f"-n{a.n}-t{a.temperature:g}-seed{a.seed}" * (a.temperature > 0), f"-first{a.limit}" * bool(a.limit),
            f"-{a.max_new_tokens}tokens" * bool(a.max_new_tokens), "-paper" * (vars(a).get("protocol") == "paper"))
    return stem + ("".join(tags) or "-greedy")


def wrong_flags(a):
    """Messages on the values of sampling_flags, all at once."""
    counts = [x for x in (a.n, a.limit, a.batch, a.max_new_tokens) if x is not None]
    try:
        import torch
        torch.empty(0, device=a.device)
        device = ""
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        device = str(e).splitlines()[0]
    return [message for bad, message in (
        (min(counts) < 1, "--n, --limit, --batch and --max-new-tokens: expected 1 or more"),
        (device, f"--device {a.device}: expected one that this machine has ({device})"),
        (any(not 1 <= k <= a.n for k in a.k), f"--k: expected 1 <= k <= n, found k {a.k} with n {a.n}; raise --n"),
        (a.n > 1 and a.temperature == 0 or not 0 <= a.temperature < math.inf,
         f"--temperature {a.temperature}: greedy samples are equal; --n 1, or --temperature 0.5")) if bad]


def main(argv=None):
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    cli.add_argument("checkpoint", nargs="?", help=".pt file of train_wmss.py, Hugging Face folder or hub name")
    cli.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two row files (.jsonl) of earlier runs; nothing is generated")
    cli.add_argument("--data", nargs="+", default=["toy-math"], help=f"toy-math, {', '.join(SOURCES)}: from the hub, or NAME=PATH")
    cli.add_argument("--any-count", action="store_true", help="accept a set of another size than published")
    cli.add_argument("--protocol", choices=("plain", "paper"), default="plain",
                     help="paper: greedy, its system prompt, thinking on, 4,096 new tokens, 8,192 for aime25 and amc23")
    cli.add_argument("--grader", choices=("ours", "official"), default="ours", help="official: math-verify's verdict beside ours")
    sampling_flags(cli, "toy-math")
    a = cli.parse_args(argv)
    if a.compare:
        print(json.dumps(compare(*a.compare), indent=1))
        return
    paper = a.protocol == "paper" and (a.temperature or a.max_new_tokens)
    wrong = ["checkpoint: expected a path, found none"] * (not a.checkpoint) + wrong_flags(a) + [
        "--protocol paper is greedy with its own lengths; leave those flags out"] * bool(paper)
    names = [spec.partition("=")[0] for spec in a.data]
    wrong += [f"--data: expected each set once, found {', '.join(names)}"] * (len(set(names)) < len(names))
    if wrong:
        cli.error("\n  ".join(wrong))
    official = official_grader() if a.grader == "official" else None
    sets = {spec.partition("=")[0]: load_problems(spec, a.limit, a.any_count, a.split) for spec in a.data}
    model, enc, task = load_model(a.checkpoint, a.device)
    if "toy-math" in sets and task != "toy-math":
        was = f"was trained on {task}" if task != "text" or a.checkpoint.endswith(".pt") else "does not say on what it was trained, so on text"
        raise SystemExit(f"eval_math: {a.checkpoint} {was}; score it with " + (
            f"--data {', '.join(SOURCES)}" if task == "text" else f"python eval_code.py {a.checkpoint} --allow-code-execution"))
    system = PAPER_SYSTEM if a.protocol == "paper" else None
    for name, items in sets.items():
        toy = name == "toy-math"
        how = dict(max_new_tokens=a.max_new_tokens or (64 if toy else PAPER_TOKENS.get(name, 4096) if system else 512),
                   batch_size=a.batch or (700 if toy else 32), n=a.n, temperature=a.temperature, seed=a.seed)
        try:
            rows = judge(complete(model, enc, items, wrap=None if toy else chat(enc, system), **how), name, official)
        except ValueError as e:                                 # text that the model cannot read
            raise SystemExit(f"eval_math: {name}: {e}") from None
        scores = summary(rows, a.k)
        data = "\n".join(json.dumps([i.id, i.prompt, i.answer]) for i in items)
        record = {**vars(a), **how, "data": name, "system": None if toy else system, "template": enc.chat_template,
                  "data_sha256": hashlib.sha256(data.encode()).hexdigest(), "commit": commit(),
                  "dtype": str(next(model.parameters()).dtype), "python": sys.version.split()[0], "scores": scores,
                  "official_scores": summary(rows, a.k, "official") if official else None}
        stem = stem_of(a, name, record)
        write_rows(stem + ".jsonl", rows)
        write_text(stem + ".json", json.dumps(record, indent=1))
        print(f"{name}: {stem}.jsonl\n{show(scores)}")


if __name__ == "__main__":
    main()
