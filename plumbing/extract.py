r"""Where a final answer stands in a completion: find_answer, and the searches that it calls.

Each of these takes the end of a completion, without a finished thought, and returns the answer as
it is written there, or None. Every pattern is linear: a completion may be anything.
"""

import re
from collections import deque

from plumbing.latex import MAX_CHARS, is_equal
from plumbing.notation import SCALE, normalise

TAIL = 50_000  # characters: an answer stands at the end, and 8,192 tokens are about 30,000
SPAN = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|\$([^$\n]+)\$", re.S)
PROSE = re.compile(r"\\[A-Za-z]+\s*(?:\{[A-Za-z .,]*\})?|([A-Za-z]{3,})")
FILLER = (r"(?:(?:therefore|thus|then|simply|just|indeed|exactly|equal to|given by|clearly"
          r"|actually|only|now|about|approximately)\b[\s*_:,]*){0,3}")
PHRASE = re.compile(
    r"(?:\banswers?\b(?:\s+(?:choice|option|to|for|of)\b[^.:\n]{0,80}?)?"
    r"[\s*_]*(?:(?:is|are|was|were|will be|would be|must be|should be)\b(?!\s+not\b|n['’]t)|=|:)"
    rf"[\s*_:]*{FILLER}"
    r"|(?:答案|答え|答)\s*(?:应该是|应为|为|是|は|等于|[:=])?[\s*_:]*(?:选)?)", re.I)
# what follows a denial: "the answer isn't 15; it is 16", "the answer is not 15 but 16"
DENIAL = re.compile(r"\banswers?\b\s+(?:(?:is|are|was|were)(?:n['’]t|\s+not)\b"
                    r"|can(?:not|['’]t) be\b)", re.I)
INSTEAD = re.compile(r"\b(?:but(?:\s+rather)?|instead|rather"
                     r"|it(?:['’]s|\s+is|\s+must\s+be|\s+should\s+be|\s+was))"
                     rf"\b[\s*_:,]*(?:it\s+is\s+)?{FILLER}(?!not\b)", re.I)
SENTENCE = re.compile(
    r"(?:(?!\n|[.;?](?:[\s*_]|$)|,\s+(?!and\s|or\s)[A-Za-z]{2,}|,\s*[\u3400-\u9fff]"
    r"|\s(?:because|since)\s).)*")
NUMBER = re.compile(r"[-+]?\\?[$€£]?[-+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+|:\d\d)?\\?%?")
# two or more words that are one number: 1 1/2, 12 500
JOINED = re.compile(r"(?<!\S)(?:-?\d+ \d+/\d+|[-+]?\\?[$€£]?\d{1,3}(?: \d{3})+(?:\.\d+)?%?)$")
VERB = re.compile(
    r"\b(?:is|are|was|were|be|equals?|equal to|gets?|got|have|has|had|takes?|took|costs?|needs?"
    r"|makes?|made|gives?|gave|yields?|obtain|finds?|found|pays?|paid|earns?|earned|spends?|spent"
    r"|sold|sells?|leaves?|left|there(?:'s| are| is| were))\b[\s*_:,]*", re.I)
NEGATION = re.compile(r"(?:not|cannot|never|\w+n['’]t)", re.I)
BRACES = re.compile(r"\\(?:boxed|fbox)\s*(?:\{|([^\s${}\\][^\s$]*))?|\\.|[{}]", re.S)
CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
ASIDE = re.compile(  # what may stand behind a number without being part of it
    r"\s*\([A-Za-z][A-Za-z ,'-]*\)$"                          # 42 (forty-two)
    r"|\s+of\s+(?:an?|the|his|her|its|their|all|each)\b[A-Za-z ]*$"   # 3/4 of an hour
    r"|\s+(?:more|left|in total|in all|altogether|remaining)$"       # 7 more
    r"|,?\s+(?:[—–-]\s*)?(?:and|but)?\s*(?:not|rather than|instead of)\s.*$", re.S)   # 16, not 15
AMOUNT = re.compile(r"\d|[-+]?[$€£]?\d[\d,.]*(?!-[A-Za-z]|[\d,.])")     # $2/hour, no $5-bill
# 42万 is 420,000, and a Chinese word behind it that is no mere counter
SCALED = re.compile(r"\d\s*(?:[万亿百十半倍成折]|千(?![米克瓦])|分之)")
# Chinese and Japanese marks of sentences as ASCII, with the space that other searches expect
FULL_WIDTH = {chr(i): chr(i - 0xFEE0) for i in range(0xFF01, 0xFF5F)}
MARKS = str.maketrans({**FULL_WIDTH, "，": ", ", "。": ". ", "：": ": ", "；": "; ", "、": ", ",
                       "！": "! ", "？": "? ", "\u3000": " ", "−": "-",
                       **dict.fromkeys("「」『』“”")})


def find_answer(text):
    """(answer, name of its source). The best source that a completion has wins, not the last."""
    text = to_ascii_marks(text.rpartition("</think>")[2][-TAIL:])
    text = re.sub(r"<<[^<>\n]*>>", "", text)            # GSM8K's calculator: 2*3=<<2*3=6>>6
    text = re.sub(r"\\boxed\s*\{\s*\}", "", text)      # an empty box echoes the instructions
    in_box, text = boxed(text)                         # text: up to a box that is never closed
    if in_box and in_box.strip():
        return in_box.strip(), "boxed"                 # the last closed \boxed{...}
    sources = [("answer_tag", answer_tag),             # <answer>...</answer>
               ("hash", after_hashes),                 # #### ...
               ("phrase", phrase),                     # the answer is ...
               ("number", number)]                     # the last number
    if "<think>" in text:
        sources.pop()                                  # a number in an unfinished thought is none
    for name, source in sources:
        answer = source(text)
        if answer and answer.strip():
            return answer.strip(), name
    return None, "none"


def plain(text):
    """What exact match compares: what follows the last "####", else the last "answer is", up to the
    end of its line, else the whole text. Thoughts, white space and a full stop at the end go.

    >>> plain("Let me see. The answer is: New  York.")
    'New York'
    """
    text = text.rpartition("</think>")[2]
    for mark in ("####", "answer is"):
        _, found, rest = text.rpartition(mark)
        if found:
            text = rest.lstrip(": \n").partition("\n")[0]
            break
    return " ".join(text.split()).removesuffix(".").rstrip()


def to_ascii_marks(text):
    """
    >>> to_ascii_marks("答案：４２。")
    '答案: 42. '
    """
    return text if text.isascii() else text.translate(MARKS)


def last(pattern, text):
    """The last match of a pattern, or None."""
    return next(iter(deque(pattern.finditer(text), 1)), None)


def boxed(text):
    r"""Content of the last closed \boxed, and the text up to a box never closed: a truncated answer
    is no answer."""
    opened, found = [], None  # one pass with a stack: linear, and stray braces do no harm
    for m in BRACES.finditer(text):
        if m[0][-1] == "{" and m[0] != r"\{":
            opened.append((m.start(), m.end(), len(m[0]) > 1))
        elif m[0] == "}" and opened:
            _, start, is_box = opened.pop()
            found = text[start:m.start()] if is_box else found
        elif m[1]:
            found = m[1].rstrip(".,;")  # \boxed 5
    never_closed = [start for start, _, is_box in opened if is_box]
    return found, text[:min(never_closed, default=len(text))]


def answer_tag(text):
    inside = tagged(text)
    return inside and (phrase(inside) or spoken(inside))


def tagged(text):
    end = max(text.rfind("</answer>"), 0)
    start = text.rfind("<answer>", 0, end)
    return None if start < 0 else text[start + 8:end]


def after_hashes(text):
    """The line behind ####, as in GSM8K; "#### Step 2" and "#### 2. Add" are headings."""
    lines = re.findall(r"####[ \t*]*([-+$\\(\[{.\d€£][^\n]*)", text)
    for line in lines[::-1]:
        if not re.match(r"\d+[.)]\s+[A-Za-z]", line):
            return line.rstrip("*. ")
    return None


def phrase(text):
    """What follows the last "the answer is"; behind a denial, what it is instead."""
    said, denied = last(PHRASE, text), last(DENIAL, text)
    if denied and (not said or denied.start() > said.start()):
        said = INSTEAD.search(text, denied.end(), denied.end() + 200)
    return sentence(text[said.end():]) if said else None


def sentence(rest):
    """The answer with which a text goes on, up to the end of the sentence."""
    rest = rest[:2000]
    span = SPAN.match(rest)
    if span and not words(span[0]):  # $x = 5$, but not "$5 and the other pays $"
        return spoken(span[span.lastindex] + " " + SENTENCE.match(rest[span.end():])[0])
    return spoken(SENTENCE.match(rest)[0])


def words(text):
    return sum(m[1] is not None for m in PROSE.finditer(text))


def spoken(said):
    """"72 apples" as it is; "that she sold 72 apples" and "We get 12" are prose: their number."""
    said = said.strip(" \t\n*_:=`\"'").rstrip(".,; ")
    if re.match(r"[-+($\\\d.\[{]", said):
        return without_aside(said)
    in_words = re.fullmatch(r"[a-z][a-z -]{2,}\(([-$]?\d[\d,.]*)\)", said)
    if in_words:                                              # forty-two (42)
        return in_words[1]
    verb = last(VERB, said)
    if verb:
        rest = said[verb.end():].strip("*_ ")
        if re.match(r"[-+($\\.\[{]*\d", rest):                # The smallest $n$ is 41
            return without_aside(rest)
        if SPAN.fullmatch(rest) and not words(rest):
            return rest
    is_prose = verb or words(said) >= 3
    return (is_prose and number(said)) or said


def without_aside(said):
    """42 of "42 apples in total", "3/4 of an hour", "16, not 15" and 42个."""
    if re.match(r"[-+$\\.\s]*\d", said) and not SCALED.search(said):
        said = re.sub(rf"\s*[{CJK}]+$", "", ASIDE.sub("", said))
    return said.rstrip(".,;* ")


def number(text):
    """The last number of a text with what belongs to it: 2/3, 1 1/2, $1,000, 3 million, or the
    formula around it; of a text that ends in formulas, those."""
    text = text.rstrip()[-2000:]
    spans = [m for m in SPAN.finditer(text) if not words(m[0])]
    if spans and not re.search(r"\w", text[spans[-1].end():]):
        return last_formulas(text, spans)
    spans = [m for m in spans if re.search(r"\d", m[0])]
    if spans and not re.search(r"\d", text[spans[-1].end():]):
        return spans[-1][spans[-1].lastindex]  # 3 is not the answer of $2\sqrt{3}$
    return last_number_word(text)


def last_formulas(text, spans):
    """$x=1$ and $x=2$ at the end of a text are one answer: x=1, x=2."""
    first = len(spans) - 1
    joint = r"\s*(?:,?\s*(?:and|or)|,)\s*"
    while first and re.fullmatch(joint, text[spans[first - 1].end():spans[first].start()]):
        first -= 1
    return ", ".join(m[m.lastindex] for m in spans[first:])


def last_number_word(text):
    text = re.sub(rf"(?<=\d)(?=[{CJK}])|(?<=[{CJK}])(?=[\d.+-])", " ", text)
    said = ["", *map(bare_word, text.split()), ""]
    for i in range(len(said) - 2, 0, -1):
        before, word, after = said[i - 1:i + 2]
        verb = said[i - 2] if before == "be" else before        # not 5, cannot be 5
        if NEGATION.fullmatch(verb) or not re.search(r"\d", word):
            continue
        if NUMBER.fullmatch(word):
            whole = JOINED.search(" ".join(said[max(0, i - 9):i + 1]))
            number = whole[0] if whole else word
            number = number if "/" in number else number.replace(" ", "")
            if after in SCALE:
                return f"{number} {after}"
            return None if re.match(r"[万亿千百]", after) else number         # 42万 is not 42
        if AMOUNT.match(word) or re.search(r"[\\=^]", word):
            return word.rpartition("=")[2]
    return None  # a digit glued inside a word (AZYUK2A) is no number


def bare_word(word):
    """Without marks around it; the point of .25 stays."""
    brackets = "" if "\\" in word else "()[]"
    word = word.rstrip("*_`\"'.,;:?" + brackets).lstrip("*_`\"',;:?" + brackets)
    return word if re.match(r"\.\d", word) else word.lstrip(".")


# ---- multiple choice ---------------------------------------------------------------------------

LETTERS = tuple("ABCDE")
LISTED = "Answer Choices:"      # in front of options that stand on a line each
OPTION = re.compile(r"(?:(?<=[\s:])|^)\(?([A-E])\s?[).:](?:\s*\(?\1\s?\))?\s*")
LETTER = re.compile(r"\W*(?:text\w*\W*)?(?:(?:option|choice)\W*)?(?:text\w*\W*)?([A-E])"
                    r"(?:\W*|\s?[).:]\W*?\s*(\S.*))", re.I | re.S)
# "hence (C).", "I choose D", "option D is correct", "D is the right choice", "故选C"
CHOSEN = re.compile(
    r"(?:\b(?:answer|option|choice|is|be|choose|chose|pick|picked|select|selected|so|hence|thus"
    r"|therefore|to|with|get)|选项?|选择|=)\W{1,6}([A-E])(?=[)\]}*_\"'$ ]*(?:[.;!\n]|,\s|$))"
    r"|\b([A-E])[)}*_$]{0,4} (?:is|must be|has to be|should be|would be|seems|looks)(?: \w+ly)?"
    r" (?:the )?(?:\w+ )?(?:right|correct|answer|best|true|one)\b|选(?:项|择)?\s*\(?([A-E])"
    r"|\(([A-E])\)(?=\W*$)")
DENIED = re.compile(r"(?:not|n['’]t|never|neither|nor|不)\W*(?:\w+\W+){0,2}$", re.I)


def options(question):
    """{"A": "18", "B": "20"} of "... Answer Choices: (A) 18 (B) 20": the last run of letters, or
    the lines behind LISTED."""
    lines = question.rpartition(LISTED + "\n")[2].split("\n")
    if all(re.match(r"\([A-E]\) ", line) for line in lines):
        return {line[1]: line[4:][:MAX_CHARS] for line in lines}
    run = []
    for m in OPTION.finditer(question):
        if m[1] == "A":
            run = [m]
        elif run and ord(m[1]) == ord(run[-1][1]) + 1:
            run.append(m)
    found, end = {}, len(question)
    for m in run[::-1]:
        found[m[1]], end = question[m.end():end].strip(" ,;\n")[:MAX_CHARS], m.start()
    return dict(sorted(found.items()))


def letter_of(answer, values):
    """The letter that an answer is or begins with, if what follows it is that option's value."""
    letter = LETTER.fullmatch(answer or "")
    if not letter:
        return None
    key = letter[1].upper()
    value = (letter[2] or "").strip("}*_ \\")
    return key if not value or is_equal(value, values.get(key, value)) else None


def chosen_letter(text):
    """The letter that the last statement of a choice names; None if that is far from the end.

    >>> chosen_letter("B is too small, A too; hence (C).")
    'C'
    """
    text = to_ascii_marks(text)[-600:].strip()
    if len(text) < 30 and LETTER.fullmatch(text):       # nothing but the letter
        return letter_of(text, {})
    chosen = None
    for m in CHOSEN.finditer(text):
        if not DENIED.search(text[max(0, m.start() - 30):m.start()]):
            chosen = m[m.lastindex]
    return chosen


def choose(text, answer, source, gold, question):
    """(letter, source): what an answer to a multiple choice chooses, by letter or by value.

    Where two options are worth the same (10 and 10%), the one that is spelled like the answer
    counts; if both are, either one is right.
    """
    values = options(question)
    if LISTED + "\n" in question:
        return choose_listed(text, values)
    letter = letter_of(answer, values)
    if letter:
        return letter, source
    if source in ("number", "none") or not re.search(r"\d", answer or ""):
        letter = chosen_letter(text)   # "So D is the right choice.", "hence (C)."
        if letter:
            return letter, "letter"
    if not answer:
        return None, source
    spelled = normalise(answer[:MAX_CHARS])
    chosen = [key for key, value in values.items() if normalise(value) == spelled]
    chosen = chosen or [key for key, value in values.items() if is_equal(answer, value)] or [answer]
    return (gold if gold in chosen else chosen[0]), source


# "(B)", "Option B: its text", "B, since ..."
OPENING = re.compile(r"[\W_]*(?:(?:the|option|choice|answer|text\w*)[\W_]+)*([A-E])(?![\w'’])"
                     r"([^\w\s]*)[\W_]*(.*)", re.I)


def choose_listed(text, values):
    """(letter, source) where the options are sentences, which may hold numbers, letters and full
    stops: what is marked as the answer, else the last statement of a choice, else the one option
    that lines of the text consist of."""
    text = to_ascii_marks(text.rpartition("</think>")[2]).strip()
    in_box, text = boxed(text)
    said = last(PHRASE, text)
    marked = [("boxed", in_box), ("answer_tag", tagged(text)),
              ("hash", text.rpartition("####")[2] if "####" in text else None),
              ("phrase", text[said.end():] if said else None)]
    for source, words in marked:
        letter = option_of(words, values) if words else None
        if letter:
            return letter, source
    letter = None if LETTER.fullmatch(text) else chosen_letter(text)
    if not letter and "<think>" not in text:
        letters = {option_of(line, values, whole=True) for line in text.split("\n")} - {None}
        letter = letters.pop() if len(letters) == 1 else None
    return letter, "letter" if letter else "none"


def option_of(words, values, whole=False):
    """The letter that words open with, with or without its option's text; or whose text they are.
    whole: nothing else may follow."""
    words = " ".join(words[:2000].split())
    for key, value in values.items():
        if words.rstrip(".").endswith(value.rstrip(".")) and len(words) - len(value) < 3:
            return key
    opened = OPENING.match(words)
    if not opened:
        return None
    letter, mark, rest = opened[1].upper(), opened[2], opened[3]
    fits = [key for key, value in values.items()
            if rest and (value.startswith(rest[:80]) or rest.startswith(value[:80]))]
    ends = mark or re.match(r"(?:because|since)\b", rest)
    if letter in fits or not rest or (ends and not fits and not whole):
        return letter if letter in values else None
    return None
