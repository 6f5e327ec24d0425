r"""An answer as it was written -> one notation that plumbing.latex can read.

Spellings of one thing become one: \dfrac and \sfrac, $5$ and 5, 1{,}000 and 1,000, "and" and a
comma. Words turn into one symbol in ⟦⟧, a unit behind a number into one in ‹›. Every pattern is
linear on the 3,000 characters it may get.
"""

import re
import unicodedata
from functools import lru_cache
from html.entities import name2codepoint

FUNCTIONS = """sqrt exp ln log lg sin cos tan cot sec csc sinh cosh tanh arcsin arccos
    arctan""".split()
GREEK = """alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho
    sigma tau phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell infty
    emptyset varnothing""".split()
SCALE = {"dozen": "12", "hundred": "10^2", "thousand": "10^3", "million": "10^6",
         "billion": "10^9", "trillion": "10^12"}

# one character -> its spelling, but for those that Unicode itself spells in ASCII (½, full width)
CHARACTERS = str.maketrans({
    **dict(zip("−–—‐×·∙⋅∗÷’⟨⟩⩽⩾、。", "----*****/'()≤≥,.", strict=True)),
    **dict.fromkeys("⟦⟧‹›¤º「」『』【】《》\u200b"),
    **{chr(name2codepoint[name]): f"\\{name} " for name in GREEK if name in name2codepoint},
    "π": r"\pi ", "∞": r"\infty ", "√": " sqrt", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "…": r"\ldots "})
RAISED, LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "₀₁₂₃₄₅₆₇₈₉"

TEXT = re.compile(r"\\(text(?:normal|rm|bf|it|sf|tt|up|md|sc|sl)?|emph|[mh]box"
                  r"|math(?:rm|bf|it|sf|cal|bb)|operatorname\*?)\s*\{([^{}]*)\}")


def _repeating(m):
    """0.1(6), whatever its spelling: 0.1 + 6/90."""
    whole, once, again = m[1] or "0", m[2], m[3] or m[4]
    return f"({whole}.{once or 0}+{int(again)}/{'9' * len(again)}{'0' * len(once)})"


def _repeating_dots(m):
    r"""0.\dot{1}4\dot{2}: a dot over the first and the last digit that repeat."""
    whole, once, first, middle, last = m.groups()
    return f"{whole or 0}.{once}({first}{middle or ''}{last or ''})"


def _rules(*pairs, flags=0):
    """Compiled patterns; ";;" in one ends the name of a command."""
    return [(re.compile(p.replace(";;", r"(?![A-Za-z])"), flags), new) for p, new in pairs]


FIRST_RULES = _rules(     # before \text{...} is read
    (r"\\(?:text)?color(?:box)?\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}", " "),
    (r"\\(?:[hv]?phantom|tag\*?|label)\s*\{[^{}]*\}", " "),
    (r"\\(?:num|ensuremath)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\(?:SI|qty)\s*\{([^{}]*)\}\s*\{\\?([^{}]*)\}", r" \1\\text{ \2}"))
RULES = _rules(
    (r"\\(?:[dtcsx]|nice|flat)frac;;", r"\\frac"), (r"\\[dt]binom;;", r"\\binom"),
    (r"\\begin\{array\}\s*\{[^{}]*\}", r"\\begin{matrix}"),
    (r"(?<!\d)(\d*)\.(\d*)\\(?:overline|bar)\s*(?:\{(\d{1,50})\}|(\d))", _repeating),
    (r"(?<!\d)(\d*)\.(\d*)\\dot\s*\{?(\d)\}?(?:(\d{0,50})\\dot\s*\{?(\d)\}?)?", _repeating_dots),
    (r"(?<![\w.)}])(\d+)\.(\d*)\((\d{1,50})\)()(?![\d^!(])", _repeating),
    (r"\\(?:left|right);;\s*\.?|\\(?:[bB]igg?[lrm]?|displaystyle|textstyle|limits|angle|triangle"
     r"|vec|hat|bar|overrightarrow|underline|boldsymbol|bm|boxed|fbox|bf|rm|it|mathstrut);;", " "),
    # explicit thousands: 1{,}000  1,\!000  1\,000; else a comma in braces is a decimal one
    (r"(?<!\d)(0)\{,\}(?=\d)", r"\1."),
    (r"(?<=\d)(?:\s?\{,\s?\}|,?\\[!,])\s*(?=\d{3}(?!\d))", ""), (r"(?<=\d)\{,\}(?=\d)", "."),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\}|°)|\\(?:text)?degrees?;;", "°"),
    (r"\\(?:cdot|times|ast);;", "*"), (r"\\div;;", "/"), (r"\\cup;;", "∪"), (r"\\in;;", "∈"),
    # 5!=120 is a factorial, x != 2 is not
    (r"\\neq?;;|\\not\s*=|(?<![\d)}\]!])!=", "≠"), (r"\\(?:leq?|leqslant);;|<=|=<", "≤"),
    (r"\\(?:geq?|geqslant);;|>=", "≥"), (r"\\lt;;", "<"), (r"\\gt;;", ">"),
    (r"\\(?:approx|simeq|thickapprox|doteq);;|≃|≒", "≈"),
    (r"\\mp;;", "∓"), (r"\\pm;;|\+/?-", "±"), (r"\\lbrace;;", r"\\{"), (r"\\rbrace;;", r"\\}"),
    (r"\\langle;;", "("), (r"\\rangle;;", ")"), (r"\\%", "%"), (r"\\[lr]?vert;;", "|"),
    (r"\\\$", "¤"), (r"\\colon;;", ":"),
    (r"(?<!\\)\\[()\[\]]|(?<!\\)\\(?:[,;:! >]|q?quad;;|[hv]space\{[^{}]*\})|~", " "),
    (r"^\s*(?:=(?!=)|\\(?:implies|Rightarrow|Longrightarrow|therefore|rightarrow);;|⇒|→|∴)", ""),
    (r"^[\s*]+|(?<![\s.,;:*\\])(?:\\\\|[\s.,;:*])+$", ""), (r"(?<=[^\\\s])\s*\\$", ""),
    (r"\\[lcd]?dots[cbmio]?;;|\.\.\.", "…"),
    (r"\*\*", "^"), (r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", "*"), (r"(?<=\))\s*U\s*(?=\()", "∪"))
PROSE_RULES = _rules(  # not for an answer made of words only
    (r"(?<=:\d\d)\s*⟦?\s*([ap])\.?\s?m\b\.?\s*⟧?", r"⟦\1m⟧"),
    (r"^\s*⟦?\s*(?:the\s+)?(?:final\s+)?answer\s*(?:is|:|=)[\s:]*⟧?", ""),
    (r"\bper\s+cent\b", "percent"),
    # an approximation behind an exact value: "5/9, or about 0.556", "5/9 (≈ 0.556)"
    (r"(?<=[\d}\])])[\s,(]*+⟦?\s*(?:or\s+|which is\s+)?(?:approximately|approx\.?|about|roughly)"
     r"\s*⟧?\s*≈?\s*(?=[\d.¤-])", " ≈ "),
    (r"(?<=[\d}\])])\s*\(\s*≈([^()]*)\)$", r" ≈ \1"), (r"( ≈ [^()]*)\)$", r"\1"),
    (r"\s*,?\s*(?:⟦\s*(?:and|or)\s*⟧|(?<![A-Za-z⟦])(?:and|or)(?![A-Za-z⟧]))\s*,?\s*", ", "),
    (r"(?<=\d)\s*(⟦?)\s*(" + "|".join(SCALE) + r")s?\b\s*(⟧?)", lambda m: _scale(m)),
    # $5 per day -> 5 $ per day
    (r"(¤|€|£|¥|₹|Rs\.?|USD)\s*(\d+(?:,\d{3})*(?:\.\d+)?(?:\*[\d^]+)?|\.\d+)", r"\2 \1 "),
    (r"(?<![\d,. ])(\d{1,3}(?: \d{3})+)(?![\d,. ])", lambda m: m[0].replace(" ", "")),
    # a counter or unit behind a number: 42个 is 42, 42万 is not
    (r"(?<=\d)\s*(?![万亿百十半倍成折]|千(?![米克瓦])|分之)[\u3040-\u30ff\u3400-\u9fff]+$", ""),
    flags=re.I)
# 0,125 has a decimal comma: no group of thousands begins with 0
DECIMAL_COMMA = re.compile(r"([^\d.,()\[\]{}]*0),(\d{3,}[^\d.,()\[\]{}]*)")


def _scale(m):
    return f"*{SCALE[m[2].lower()]} {m[1]}{m[3]}".replace("⟦⟧", "")


UNITS = {alias: names.split()[0] for names in """dollar dollars ¤ usd|cent cents|euro euros €
    |pound £ lb lbs|yen ¥|rupee rs ₹|% percent pct percentage|degree degrees ° deg|in inch inches
    |ft foot feet|yd yard|mi mile|mm|cm centimeter centimetre|m meter metre|km kilometer kilometre
    |g gram gm gms|kg kilogram kgs|mg|oz ounce|l liter litre|ml|s sec second secs|min minute mins
    |h hr hrs hour|yr year|celsius °c|fahrenheit °f|mph|kph|sq square|cu cubic""".split("|")
         for alias in names.split()}
GLUE = {"of", "per", "a", "an", "the", "in", "each", "for", "on", "to", "/", "^2", "^3"}
NO_UNIT = {*"""squared cubed factorial choose mod modulo plus minus times divided over half
    lakh crore more less fewer base than not least most where when with score remainder and noon am
    pm""".split(), *SCALE}
FRACTIONS = """halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths
    thousandths""".split()                          # 2 thirds are not 2, but 4 fifth graders are 4
UNIT = re.compile(  # possessive quantifiers: never tried twice, so linear
    r"(?:(?<=[\d})\]])|(?<=\\pi)(?=\s*⟦))"
    r"(?:\s*+(?:⟦[^⟧]*⟧|[A-Za-z°€£¥₹¤%][A-Za-z.'°]*+|/(?=\s*[A-Za-z⟦])|\^\s*\{?[23]\}?))++"
    r"(?=\s*(?:[,;)\]}=<>≤≥≈]|\\\}|$))")
WORDS = re.compile(r"(?=.*[aeiouAEIOU]|.{5})[A-Za-z]{2,}(?:[ -][A-Za-z]+)*")


def is_words(s):
    """Letters only, and no function or pi among them: a word, so that "on" is not n * o."""
    return bool(WORDS.fullmatch(s)) and not any(
        w in (*FUNCTIONS, "pi") for w in s.split())


def _text(m):
    r"""What \text{...} holds: words become one symbol; digits and single letters are mathematics,
    except 5\text{ m}."""
    command, inside = m[1], m[2].strip(" ~\\")
    before = m.string[max(0, m.start() - 20):m.start()]
    after_number = re.search(r"(?:[\d})°]|\\circ)[\s\\,~]*$", before)
    letters = "".join(filter(str.isalpha, inside))
    is_prose = not command.startswith(("math", "op")) and not re.search(r"\d", inside)
    is_unit = len(inside) == 1 and letters and inside not in "ie" and after_number
    return f"⟦{inside}⟧" if (len(letters) > 1 and is_prose) or is_unit else f" {m[2]} "


def _unit(m):
    """A trailing unit phrase as one token: 15⟦cm⟧^2 and 15 square centimetres end in ‹cm ^2›. A
    bare m is a variable; a bare word that is no known unit needs a space before it, and a vowel."""
    quoted, phrase = "⟦" in m[0], re.sub(r"[.'{}]", "", re.sub(r"[⟦⟧]", " ", m[0].lower()))
    phrase = re.sub(r"\s*(\^\s*\d|[/%]|°\s*(?:[cf]\b)?)", lambda u: f" {u[1].replace(' ', '')} ",
                    phrase)
    words, out = re.sub(r"([a-z]) squared", r"\1 ^2", phrase).split(), []
    for i, w in enumerate(words):
        w = w if w in UNITS or w in FRACTIONS else w.removesuffix("s")
        known = w in UNITS and (
            quoted or len(w) > 1 or not w.isalpha() or words[i - 1:i] == ["/"])
        is_word = len(words[i]) > 2 and (i or m[0][0] == " ") and re.search("[aeiou]", w)
        is_word = is_word and w not in FUNCTIONS
        if w in NO_UNIT or w in FRACTIONS or not (known or is_word or quoted or (i and w in GLUE)):
            return m[0]
        w = UNITS.get(w, w)
        if w not in out[-1:] + ["unit"]:
            out.append(w)
    out = ["/" if w == "per" else w for w in out
           if w in ("per", "/", "^2", "^3") or w not in GLUE]
    if out[:1] in (["sq"], ["cu"]):
        out = out[1:2] + ["^2" if out[0] == "sq" else "^3"] + out[2:]
    return f"‹{' '.join(out)}›" if words else m[0]


def plain(text):
    """Letters, digits and marks of other alphabets' keyboards in ASCII; superscripts with ^."""
    if text.isascii():
        return text
    for mark, digits in (("^", RAISED), ("_", LOWERED)):
        text = re.sub(f"[{digits}]{{2,}}", rf"{mark}{{\g<0>}}", text)
        text = re.sub(f"(?<![{digits}{{])[{digits}](?![{digits}])", rf"{mark}\g<0>", text)
    return "".join(map(_ascii, text)).translate(CHARACTERS)


def _ascii(c):
    if c.isascii() or ord(c) in CHARACTERS:
        return c
    spelled = unicodedata.normalize("NFKC", c)
    top, bar, bottom = spelled.partition("⁄")
    if bar:                                            # ½ is 1⁄2
        return f"\\frac{{{top}}}{{{bottom}}} "
    return spelled if spelled.isascii() or len(spelled) == 1 else c


@lru_cache(4096)  # a gold answer is read once for all its samples
def normalise(s):
    r"""
    >>> normalise(r"$\dfrac{1}{2}\text{ and }3\,000$")
    '\\frac{1}{2}, 3000'
    """
    s = plain(s)
    for pattern, new in FIRST_RULES if "\\" in s else ():
        s = pattern.sub(new, s)
    for _ in range(4):  # nested \textbf{\text{...}}
        s = TEXT.sub(_text, s) if "\\" in s else s
    for pattern, new in RULES:
        s = pattern.sub(new, s)
    if s.count("$") % 2:       # a lonely dollar is money, pairs are LaTeX
        s = re.sub(r"\$(?=\s*[\d.])", "¤", s, count=1)
    s = re.sub(r"\s+", " ", s.replace("$", " ")).strip()
    if not is_words(s.strip("⟦⟧ ")):
        for pattern, new in PROSE_RULES:
            s = pattern.sub(new, s)
        if re.search(r"sin|cos|tan|cot|sec\b|csc", s):
            s = s.replace("°", "º")                # sin 30° is half, an answer of 30° is 30
        s = UNIT.sub(_unit, s).strip(" ,").rstrip(".")
        comma = DECIMAL_COMMA.fullmatch(s)
        s = f"{comma[1]}.{comma[2]}" if comma else s
    return f"⟦{s}⟧" if is_words(s) else s
