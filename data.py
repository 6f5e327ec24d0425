"""Text -> tokens -> batches: the tiktoken encoding, the built-in tasks, the order of samples, the one Batch type.

The built-in tasks, math and code, imitate what post-training meets (paper, section 1): a large *noisy* corpus in which half of
the solutions follow a mistake that people are known for (where the problem lets it show), and a small clean set. Everything is procedural, nothing downloaded.

    python data.py                      # one math problem per family: the clean solution beside the flawed one
    python data.py --task toy-code --split test -n 3       # three per family of the code task, of another split
    python data.py show --data openai/gsm8k:main --tokenizer SmolLM2-135M -n 3       # samples, what carries loss marked
    python data.py am --source am_0.5M.jsonl.zst --out train.jsonl                   # the paper's data: see am.py

Shapes: B batch, T time (longest row of the batch, less one), N samples.
"""

import argparse
import array
import concurrent.futures
import datetime
import functools
import hashlib
import itertools
import json
import os
import random
import re
import sys
from dataclasses import dataclass, replace

import torch

from plumbing.tokenizer import fingerprint, load_tokenizer, tokenizer_files, toy_encoding

# ----------------------------------------------------------------------------------------------------------------------
# problems of the built-in tasks


@dataclass(frozen=True)
class Problem:
    family: str
    prompt: str             # "58+67:"
    completion: str         # "8+7=15,5+6+1=12;125": what the model learns, the mistake in a share `noise` of the problems
    answer: str             # "125", always the true one
    mistake: str = ""       # "8+7=15,5+6=11;115": the completion of the family's usual mistake
    code: str = ""          # code only: the program is code + completion,
    test: str = ""          # and passes if this test of
    entry_point: str = ""   # the function of this name does
    id: str = ""            # "test/17"


SPLITS = {"test": range(0, 15), "val": range(15, 25), "train": range(25, 100)}    # percent of the problems


def split_of(prompt):
    """The split that a prompt belongs to, a function of its words and its sorted numbers: disjoint by construction.

    Sorted, so that 58+67 in training and 67+58 in the test cannot happen.
    """
    key = re.sub(r"\d", "", prompt) + " ".join(sorted(re.findall(r"\d+", prompt)))
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return next(name for name, share in SPLITS.items() if percent in share)


def _problems(split, n, rng, noise, families, draw):
    """n Problems of a split, the families in turn, a share `noise` of them with the mistake as completion.

    draw(family, rng) gives a prompt and solve() -> its Problem, or None where it drew numbers that do not suit the family.
    Problems of val and test are distinct; train may repeat some, as corpora do. Raises ValueError on an unknown split, or
    one with too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"data: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    seen, problems, misses = set(), [], 0
    while len(problems) < n:
        family = families[len(problems) % len(families)]
        drawn = draw(family, rng)
        if drawn is None:
            continue
        prompt, solve = drawn
        flawed = rng.random() < noise
        if split_of(prompt) != split or (prompt in seen and split != "train"):
            misses += 1
            if misses > 20_000:                                # in a row: what is left is too little to be found
                raise ValueError(f"data: split {split!r} has too few {family!r} problems for n = {n}; ask for fewer")
            continue
        misses = 0
        seen.add(prompt)
        p = solve()
        problems.append(replace(p, completion=p.mistake if flawed else p.completion, id=f"{split}/{len(problems)}"))
    return problems


# ----------------------------------------------------------------------------------------------------------------------
# the built-in math task: solutions show their steps, so a wrong token early spoils the rest, as in long reasoning

# Each procedure works through the columns from the units and returns (steps, result). `bug` is the systematic error of the
# noisy corpus, from the catalogue of pupils' errors (Brown & Burton 1978): a carry that is forgotten, a column subtracted the
# wrong way round, precedence ignored. A bug is a consistent procedure, not random noise, hence learnable.

def add_columns(a, b, bug=False):
    """
    >>> add_columns(58, 67), add_columns(58, 67, bug=True)
    ((['8+7=15', '5+6+1=12'], 125), (['8+7=15', '5+6=11'], 115))
    """
    steps, result, carry, place = [], 0, 0, 1
    while a or b or not steps:
        total = a % 10 + b % 10 + carry
        steps.append(f"{a % 10}+{b % 10}" + f"+{carry}" * (carry > 0) + f"={total}")
        a, b = a // 10, b // 10
        last = not (a or b)
        result += (total if last else total % 10) * place
        carry, place = 0 if bug else total // 10, place * 10
    return steps, result


def sub_columns(a, b, bug=False):
    """
    >>> sub_columns(52, 17), sub_columns(52, 17, bug=True)
    ((['12-7=5', '4-1=3'], 35), (['7-2=5', '5-1=4'], 45))
    """
    steps, result, borrow, place = [], 0, 0, 1
    while a or b or not steps:
        x, y = a % 10 - borrow, b % 10
        borrow = int(x < y and not bug)
        x, y = (y, x) if x < y and bug else (x + 10 * borrow, y)
        steps.append(f"{x}-{y}={x - y}")
        result += (x - y) * place
        a, b, place = a // 10, b // 10, place * 10
    return steps, result


def mul_columns(a, d, bug=False):
    """
    >>> mul_columns(47, 6), mul_columns(47, 6, bug=True)
    ((['7*6=42', '4*6+4=28'], 282), (['7*6=42', '4*6=24'], 242))
    """
    steps, result, carry, place = [], 0, 0, 1
    while a or not steps:
        total = a % 10 * d + carry
        steps.append(f"{a % 10}*{d}" + f"+{carry}" * (carry > 0) + f"={total}")
        a //= 10
        result += (total % 10 if a else total) * place
        carry, place = 0 if bug else total // 10, place * 10
    return steps, result


def _order(a, b, c, bug):                                      # the bug: left to right, blind to precedence
    if bug:
        first, total = add_columns(a, b)
        then, total = mul_columns(total, c)
    else:
        first, (then, total) = [f"{b}*{c}={b * c}"], add_columns(a, b * c)
    return first + then, total


def _chain(a, b, c, bug):
    first, total = add_columns(a, b, bug)
    then, result = sub_columns(total, c, bug)
    return first + [str(total)] + then, result


def _carries(a, b):
    return add_columns(a, b)[1] != add_columns(a, b, bug=True)[1]


def _borrows(a, b):
    return sub_columns(a, b)[1] != sub_columns(a, b, bug=True)[1]


# family: (prompt, procedure, the operands' ranges, which operands it takes), in graded difficulty
_TWO, _THREE, _DIGIT = (10, 99), (100, 999), (2, 9)
FAMILIES = {
    "add": ("{}+{}:", add_columns, (_THREE, _THREE), lambda a, b: not _carries(a, b)),
    "sub": ("{}-{}:", sub_columns, (_THREE, _THREE), lambda a, b: a > b and not _borrows(a, b)),
    "carry": ("{}+{}:", add_columns, (_THREE, _THREE), _carries),
    "order": ("{}+{}*{}:", _order, (_TWO, _DIGIT, _DIGIT), lambda a, b, c: True),
    "chain": ("{}+{}-{}:", _chain, (_THREE, _THREE, _THREE), lambda a, b, c: add_columns(a, b, bug=True)[1] > c),
    "borrow": ("{}-{}:", sub_columns, (_THREE, _THREE), lambda a, b: a > b and _borrows(a, b)),
    "times": ("{}*{}:", mul_columns, (_THREE, _DIGIT), lambda a, d: True),
}


def _draw_math(family, rng):
    words, procedure, ranges, takes = FAMILIES[family]
    operands = [rng.randint(*r) for r in ranges]
    if not takes(*operands):
        return None
    prompt = words.format(*operands)

    def solve():
        right, wrong = (procedure(*operands, bug) for bug in (False, True))
        written = [",".join(steps) + f";{result}" for steps, result in (right, wrong)]
        return Problem(family, prompt, written[0], str(right[1]), written[1])

    return prompt, solve


def toy_math(split, n, seed=0, noise=0.0):
    """n problems of a split of the math task, drawn by (split, seed, noise); see _problems."""
    return _problems(split, n, random.Random(f"{split} {seed} {noise}"), noise, list(FAMILIES), _draw_math)


# ----------------------------------------------------------------------------------------------------------------------
# the built-in code task: a line in words -> one Python expression in x, run as the body of f on inputs that the line hides

NUMBERS = "[*range(-30, 31), 99, -99]"
LISTS = "[], [4], [7, 7], [3, -1], [5, 2, 8], [9, 0, -4, 6], [1, 2, 3, 4, 5], [8, 6, 7, 5, 3, 0, 9], [*range(-9, 13)]"
WORDS = ["", "a", "no", "abc", "stats", "Python", "level up", "a1b2c3d4", "the quick brown fox jumps"]


def _affine(r):                                                # the mistake: swapped operands, (x+b)*a is not x*a+b
    a, b, op = r.randint(2, 19), r.randint(1, 99), r.choice("+-")
    return r.choice([(f"{a} times x, then {op} {b}", f"{a}*x{op}{b}", f"{a}*(x{op}{b})", NUMBERS),
                     (f"x {op} {b}, then times {a}", f"(x{op}{b})*{a}", f"x{op}{b}*{a}", NUMBERS)])


def _clamp(r):                                                 # min for max
    c, low, op = r.randint(1, 20), r.randint(-50, 50), r.choice("+-")
    return r.choice([(f"x {op} {c}, but at least {low}", f"max(x{op}{c},{low})", f"min(x{op}{c},{low})", NUMBERS),
                     (f"x {op} {c}, but at most {low}", f"min(x{op}{c},{low})", f"max(x{op}{c},{low})", NUMBERS)])


def _branch(r):                                                # the boundary, or the else case forgotten
    a, k, c, op = r.randint(2, 9), r.randint(-9, 20), r.randint(1, 20), r.choice("+-")
    if a * k == (k + c if op == "+" else k - c):                # at this boundary both cases agree: no test could tell
        k += 1
    wrong = r.choice([f"{a}*x if x>={k} else x{op}{c}", f"{a}*x if x>{k} else x"])
    return f"{a} times x if x over {k}, else x {op} {c}", f"{a}*x if x>{k} else x{op}{c}", wrong, NUMBERS


def _count(r):                                                 # the boundary
    a, k = r.randint(2, 49), r.randint(-20, 40)
    (word, right), (_, wrong) = r.sample([("over", ">"), ("at least", ">=")], 2)
    lists = f"[{LISTS}, [{k}], [{k - 1}, {k + 1}]]"
    return f"{a} times how many in x are {word} {k}", f"{a}*sum(v{right}{k} for v in x)", f"{a}*sum(v{wrong}{k} for v in x)", lists


def _slice(r):                                                 # the end for the length, off by one at an end
    i, j = r.randint(1, 40), r.randint(1, 40)
    lists = f"[[*range(n)] for n in range({i + j}, {i + j + 9})]"
    return r.choice([(f"x from position {i} on, {j} items", f"x[{i}:][:{j}]", f"x[{i}:{j}]", lists),
                     (f"x without its first {i} and last {j}", f"x[{i}:len(x)-{j}]", f"x[{i}:len(x)-{j}-1]", lists),
                     (f"the last {i} of x, {j} times over", f"x[-{i}:]*{j}", f"x[-{i}+1:]*{j}", lists)])


def _sum(r):                                                   # off by one in a range
    a, b, c, op = r.randint(2, 49), r.randint(1, 99), r.randint(1, 20), r.choice("+-")
    term = r.choice([f"{a}*i", f"i*i{op}{b}", f"i{op}{b}"])
    (word, right), (_, wrong) = r.sample([("to", "x+1"), ("to before", "x")], 2)
    return (f"sum of {term} for i from {c} {word} x", f"sum({term} for i in range({c},{right}))",
            f"sum({term} for i in range({c},{wrong}))", NUMBERS)


def _keep(r):                                                  # the condition turned round
    a, c, op = r.randint(2, 9), r.randint(1, 99), r.choice("+-")
    left, ((word, right), (_, wrong)) = r.randint(0, a - 1), r.sample([("is", "=="), ("is not", "!=")], 2)
    return (f"x {op} {c} for x in list if x mod {a} {word} {left}", f"[v{op}{c} for v in x if v%{a}{right}{left}]",
            f"[v{op}{c} for v in x if v%{a}{wrong}{left}]", f"[{LISTS}]")


def _text(r):                                                  # the wrong end first, off by one in a slice
    c, i, tail = r.randint(1, 9), r.randint(2, 9), "".join(r.choice("aeiknost") for _ in range(3))
    end = f"+'{tail}'"
    return r.choice([(f"x backwards, its first {i} signs, {tail}", f"x[::-1][:{i}]{end}", f"x[:{i}][::-1]{end}", repr(WORDS)),
                     (f"x from sign {c} in steps of {i}, then {tail}", f"x[{c}::{i}]{end}", f"x[{c - 1}::{i}]{end}", repr(WORDS))])


# family: r -> (the line, the right expression, the usual mistake, the hidden inputs), from easy to hard
CODE_FAMILIES = {"affine": _affine, "clamp": _clamp, "branch": _branch, "count": _count,
                 "slice": _slice, "sum": _sum, "keep": _keep, "text": _text}


def _draw_code(family, rng):
    words, right, wrong, inputs = CODE_FAMILIES[family](rng)
    test = f"def check(candidate):\n    for x in {inputs}:\n        assert candidate(x) == ({right})\n"
    prompt = words + ": "
    return prompt, lambda: Problem(family, prompt, right, right, wrong, "def f(x): return ", test, "f")


def toy_code(split, n, seed=0, noise=0.0):
    """n problems of a split of the code task, drawn by (split, seed, noise); see _problems.

    A program is right if it does what is asked, not if it is the same text: eval_code.check(p.code, completion, p.test, "f", 3).
    """
    return _problems(split, n, random.Random(f"code {split} {seed} {noise}"), noise, list(CODE_FAMILIES), _draw_code)


TASKS = {"toy-math": toy_math, "toy-code": toy_code}


# ----------------------------------------------------------------------------------------------------------------------
# samples from text: rows of files or of the hub -> conversations -> the chat template -> tokens, and which of them count

# Jinja, as in a tokenizer_config.json. "plain" is what scores ask a model that has none (eval_math.chat); its completions begin
# with a space, since byte-pair vocabularies hold " 42" as one token. "none" joins the texts. BOS, EOS: see template_source.
TEMPLATES = {
    "plain": "BOS{% for m in messages %}{% if m.role == 'user' %}Question: {{ m.content }}\n"
             "{% elif m.role == 'assistant' %}Answer: {{ m.content }}EOS\n{% else %}{{ m.content }}\n\n"
             "{% endif %}{% endfor %}{% if add_generation_prompt %}Answer:{% endif %}",
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
              "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "none": "BOS{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}EOS{% endif %}{% endfor %}"}
ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool"}
REASONING = ("reasoning_content", "thinking", "reasoning")      # names of one thing; templates read the first or the second
LONG = ("drop", "truncate", "error")
CACHE = os.path.join("out", "cache")
CACHED_ROWS = 1000      # a cache must pay: fewer rows than these are tokenised before a look-up could be noticed


def template_source(template, enc):
    """Jinja source of "auto" (the tokenizer's, else "plain"), a name in TEMPLATES, a .jinja file, itself; else ValueError."""
    if template == "auto" and enc.chat_template:
        return enc.chat_template
    if "{{" in template or "{%" in template:
        return template
    if source := TEMPLATES.get("plain" if template == "auto" else template):
        # not {{ bos_token }}: SmolLM2's configuration names one, and yet none of its texts begins with it
        bos = "" if enc.bos_id is None else enc.decode([enc.bos_id])
        return source.replace("BOS", bos).replace("EOS", enc.decode([enc.end_id]))
    try:
        with open(template, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f"--template {template}: expected auto, {', '.join(TEMPLATES)} or a .jinja file, found {e}") from None


def _bos_token(enc):
    """What a template means by bos_token: what the tokenizer's configuration says, even if texts do not begin with it."""
    token = json.loads(enc.files.get("tokenizer_config.json", "{}")).get("bos_token")
    token = token["content"] if isinstance(token, dict) else token
    return token or ("" if enc.bos_id is None else enc.decode([enc.bos_id]))


@functools.lru_cache
def _compiled(source):
    """A template in the environment that transformers gives it: a sandbox, since it comes from strangers."""
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):      # {% generation %}, transformers' own way to a mask, which few templates go
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(["name:endgeneration"], drop_needle=True)

    def refuse(message):
        raise jinja2.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = lambda x, **how: json.dumps(x, **{"ensure_ascii": False, **how})         # Jinja's own escapes HTML
    env.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form))
    return env.from_string(source)


def render(messages, enc, template="auto", add_generation_prompt=False):
    """The text of a conversation [{role, content}, ...], as transformers' apply_chat_template renders it.

    add_generation_prompt: end where the assistant's next turn begins. Raises ValueError where the template cannot be read, is
    no Jinja, or refuses the conversation.

    >>> render([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], toy_encoding())
    'Question: 1+1?\\nAnswer: 2<|end|>\\n'
    """
    source = template_source(template, enc)
    bos = _bos_token(enc) if "bos_token" in source else ""                      # a configuration is long to read for every row
    try:
        return _compiled(source).render(messages=messages, add_generation_prompt=add_generation_prompt, bos_token=bos,
                                        eos_token=enc.decode([enc.end_id]), tools=None, documents=None)
    except ValueError:
        raise
    except Exception as e:               # a template is a program: what it stumbles over comes as an error of any kind
        raise ValueError(f"the chat template fails ({type(e).__name__}: {e}); mend the row or pass another --template") from None


def control_tokens(enc):
    """Those special tokens that steer a conversation, as text: begin, stops, and all of the form <|...|>.

    No content may spell them. The rest, Qwen3's <think> say, may stand in a content and become one token there.
    """
    steer = {enc.bos_id, *enc.stop_ids}
    return tuple(t for t, i in enc._special_tokens.items() if i in steer or re.fullmatch(r"<[|｜].*[|｜]>", t, re.S))


def _turn(messages, k, enc, template):
    """What messages[k] answers, and its own text up to its last token, as the template writes them."""
    prompt, upto = render(messages[:k], enc, template, True), render(messages[:k + 1], enc, template)
    turn = upto[len(prompt):].rstrip()
    if not upto.startswith(prompt):
        at = len(os.path.commonprefix([prompt, upto]))
        raise ValueError(f"the template does not start turn {k + 1} with its own generation prompt: expected "
                         f"{prompt[at:][:40]!r}, found {upto[at:][:40]!r}; pass another --template, or one that you corrected")
    for text in filter(None, (messages[k]["content"], messages[k].get("reasoning_content"))):
        if text not in turn and "".join(text.split()) not in "".join(turn.split()):
            raise ValueError(f"the template leaves out a part of turn {k + 1}, {text[:40]!r}; pass another --template")
    return prompt, turn


def pieces(messages, enc, template="auto"):
    """A conversation -> its samples, each a list of (text, counts): what is tokenised in one piece, and whether it has loss.

    The mask by construction. Turn k begins where the rendering of messages[:k] with the generation prompt ends: the text that
    the model is given at inference. It ends with the special token that closes it; the white space after that is the
    template's, which no model has to write. A piece is tokenised alone, or a token could straddle the border,
    half prompt and half answer, and the prompt would not have the tokens that it has at inference.

    Turns share a sample as long as each rendering continues the one before it. Where a template rewrites earlier turns (Qwen3
    takes out their thinking) the next turn opens a sample of its own, with the prompt that inference will give. What opens
    a conversation is not asked for, so it is context. Raises ValueError where the template does not allow this.
    """
    samples, done, stops = [], None, tuple(enc.decode([i]) for i in enc.stop_ids)
    for k, m in enumerate(messages):
        if m["role"] != "assistant" or k == 0:
            continue
        prompt, turn = _turn(messages, k, enc, template)
        if not turn.endswith(stops):
            raise ValueError(f"the template ends turn {k + 1} with {turn[-20:]!r}, expected a token that ends generation, of "
                             f"{' '.join(stops)}; pass another --template")
        if done is None or not prompt.startswith(done):
            samples.append([])
            done = ""
        samples[-1] += [(prompt[len(done):], False), (turn, True)]
        done = prompt + turn
    return samples


def with_template(enc, template="auto"):
    """The Tokenizer that speaks this template: it ends generation with the token that closes a turn, and says so in its files.

    Qwen3-4B-Base needs this even for its own template: its <|im_end|> closes turns, and only <|endoftext|> ends generation.
    """
    if template == "auto" and not enc.chat_template:
        return enc
    source = template_source(template, enc)
    _, turn = _turn([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}], 1, enc, source)
    closing = {i for t, i in enc._special_tokens.items() if turn.endswith(t)}
    if not closing:
        raise ValueError(f"the template ends a turn with {turn[-20:]!r}, which is no special token of the tokenizer; pass "
                         "another --template")
    if source == enc.chat_template and closing <= {*enc.stop_ids}:
        return enc
    files = tokenizer_files(enc)
    generation = json.loads(files.get("generation_config.json", "{}")) | {"eos_token_id": sorted({*enc.stop_ids, *closing})}
    return load_tokenizer({**files, "chat_template.jinja": source, "generation_config.json": json.dumps(generation)})


def _conversation(row, prompt_column, completion_column, control):
    """A row -> (messages, is it plain prompt and completion). Raises ValueError on what is no row of any form."""
    forms = [(prompt_column, completion_column)] if prompt_column else [("prompt", "completion"), ("question", "answer")]
    named = None if prompt_column else next((k for k in ("messages", "conversations") if row.get(k) is not None), None)
    pair = next((form for form in forms if all(row.get(k) is not None for k in form)), None)
    if row.get("tools"):
        raise ValueError("tools are not passed to the template; take that column out, or write them into a system message")
    if named:
        turns = row[named]
        if not isinstance(turns, list) or not turns or not all(isinstance(m, dict) for m in turns):
            raise ValueError(f"expected {named} to be a list of {{role, content}}, found {turns!r:.60}")
        messages = []
        for m in turns:
            m = {k: v for k, v in m.items() if v is not None}                # parquet fills a struct's missing keys with None
            m = {"role": m.pop("from", None), "content": m.pop("value", None), **m}
            if m["role"] not in ROLES:
                raise ValueError(f"unknown role {m['role']!r} in {named}; expected one of {', '.join(ROLES)}")
            m["role"] = ROLES[m["role"]]
            if m["content"] is None and m.get("tool_calls"):
                m["content"] = ""
            if thought := next((m[k] for k in REASONING if m.get(k)), None):
                m = {"thinking": thought, **m, "reasoning_content": thought}
            messages.append(m)
    elif pair:
        messages = [{"role": role, "content": row[k]} for role, k in zip(("user", "assistant"), pair)]
    else:
        wanted = " or ".join(["messages"] * (not prompt_column) + [f"{a} and {b}" for a, b in forms])
        raise ValueError(f"expected columns {wanted}, found {', '.join(k for k in row if row[k] is not None) or 'none'}; "
                         "name yours with --prompt-column and --completion-column")
    for m in messages:
        for text in (m["content"], m.get("reasoning_content", "")):
            if not isinstance(text, str):
                raise ValueError(f"expected text as the {m['role']}'s content, found {type(text).__name__} {text!r:.40}")
        if found := control.search(str(m)):      # wherever the template may take it from: tool_calls, name, ...
            raise ValueError(f"the {m['role']}'s message spells the control token {found[0]}, which would end or open a turn; "
                             "take it out of the row")
        if m["role"] == "assistant" and not m["content"].strip() and not m.get("tool_calls"):
            raise ValueError("empty completion; remove the row")
    if not any(m["role"] == "assistant" for m in messages[1:]):
        raise ValueError("no assistant's turn that answers something, hence no loss token; remove the row")
    return messages, pair == ("prompt", "completion") and not prompt_column


SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


def _digest(path):
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _parquet(path):
    import pyarrow.parquet               # what datasets reads it with, less the copy that it would leave in its own cache
    try:
        i = 0
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(1000):
            for i, row in enumerate(batch.to_pylist(), i + 1):
                yield f"{path}:{i}", row
    except (OSError, pyarrow.ArrowException) as e:
        raise SystemExit(f"{path}: expected a parquet file, found {e}; check the path") from None


def _source(spec):
    """SPEC of --data -> (its name, what pins down its content, a function that yields (where, row)); see load_text."""
    from eval_math import read_rows
    path, config, split = re.fullmatch(r"(.+?)(?::([^:@/]+))?(?:@([^@/]+))?", spec, re.S).groups() if spec else ("", None, None)
    if os.path.exists(spec):
        path, config, split = spec, None, None                  # a file's own name may hold : or @
    name = re.sub(r"(\.jsonl?(\.gz)?|\.parquet)$", "", os.path.basename(os.path.normpath(path)))
    reader = lambda f: _parquet(f) if f.endswith(".parquet") else read_rows(f)
    if os.path.isfile(path):
        if split or config or not path.endswith(SUFFIXES):
            raise SystemExit(f"--data {spec}: expected a file named {', '.join(SUFFIXES)}, and no :CONFIG or @SPLIT after it")
        return name, _digest(path), lambda: reader(path)
    if os.path.isdir(path):
        import datasets
        from datasets.data_files import DataFilesDict, get_data_patterns
        try:
            if config:
                raise ValueError(f":{config}, a configuration, which only the hub has")
            if any(os.path.exists(os.path.join(path, f)) for f in ("state.json", "dataset_dict.json")):       # save_to_disk
                data = datasets.load_from_disk(path)
                data = data[split or "train"] if isinstance(data, dict) else data
                stamp = [_digest(f["filename"]) for f in data.cache_files]
                return name, stamp, lambda: ((f"{path}:{i}", row) for i, row in enumerate(data, 1))
            splits = DataFilesDict.from_patterns(get_data_patterns(path), base_path=path)      # by names: train.jsonl, test/0.json
            files = sorted(os.path.join(path, os.path.relpath(f, os.path.abspath(path))) for f in splits[split or "train"])
        except (OSError, KeyError, ValueError) as e:
            raise SystemExit(f"--data {spec}: expected a folder with data of the split {split or 'train'!r}, found "
                             f"{type(e).__name__} {e}; name a split as FOLDER@SPLIT, or the files themselves") from None
        files = [f for f in files if f.endswith(SUFFIXES)]
        if not files:
            raise SystemExit(f"--data {spec}: expected files {', '.join(SUFFIXES)} in the folder, found none")
        return name, [(f, _digest(f)) for f in files], lambda: (row for f in files for row in reader(f))
    if path.endswith(SUFFIXES) or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", path):
        raise SystemExit(f"--data {spec}: no such file or folder (from {os.getcwd()}), and no hub name "
                         "OWNER/NAME[:CONFIG][@SPLIT]; check the path")
    try:
        import datasets
        data = datasets.load_dataset(path, config, split=split or "train")
    except Exception as e:               # no network, no such name, configuration or split: each has an error class of its own
        raise SystemExit(f"--data {spec}: no such folder here, none from the hub ({type(e).__name__}: {str(e).strip()[:200]}); "
                         "check OWNER/NAME[:CONFIG][@SPLIT] and the network, or pass a local file") from None
    return name, data._fingerprint, lambda: ((f"{spec}:{i}", row) for i, row in enumerate(data, 1))


def load_text(specs, enc, *, template="auto", prompt_column="", completion_column="", max_len=None, long="error",
              say=lambda line: None, cache=CACHE):
    """Files, folders and data sets of the hub -> Samples with ids 0..N-1; one line of counts for each goes to say().

    specs: .jsonl, .json (an array), both also .gz, .parquet; FOLDER[@SPLIT]; OWNER/NAME[:CONFIG][@SPLIT] of the hub; split is
    train unless told. A row holds messages [{role, content}] (or conversations [{from, value}]), else prompt and completion,
    else question and answer, else the named columns alone; texts stay as they are. A chat template (the tokenizer's, or
    `template`) wraps every row; without one prompt and completion are joined as they stand and the rest takes "plain".
    Its own "family" or "source", if it has one, becomes the sample's, and no two rows may share an "id".
    max_len: tokens that a model reads of a sample, one fewer than it has, or None; long: what becomes of longer ones.
    Samples of CACHED_ROWS rows and more are kept in the folder `cache`, under the hash of all that they depend on.
    Raises SystemExit, with file and line, on whatever is not so, before anything is trained.
    """
    if (not specs or len(set(specs)) < len(specs) or long not in LONG or bool(prompt_column) != bool(completion_column)
            or max_len is not None and max_len < 1):
        raise SystemExit(f"data: expected --data once or more, none twice, --long {'|'.join(LONG)}, --max-len from 1, and both "
                         f"--prompt-column and --completion-column or neither; found {specs}, {long}, {max_len}, "
                         f"{prompt_column!r}, {completion_column!r}")
    try:
        source = template_source(template, enc)
        _compiled(source)
    except Exception as e:
        raise SystemExit(str(e) if isinstance(e, ValueError) else f"--template {template}: no Jinja template: {e}") from None
    raw = template_source("none", enc) if template == "auto" and not enc.chat_template else source      # for prompt, completion
    sources = [_source(spec) for spec in specs]
    code = [*(_digest(sys.modules[m].__file__) for m in (__name__, "plumbing.tokenizer", "eval_math")), sys.version]      # they, too, make them
    stamps = [stamp for _, stamp, _ in sources]
    key = [code, specs, stamps, fingerprint(enc), enc.end_id, enc.stop_ids, enc.bos_id, _bos_token(enc),
           source, raw, prompt_column, completion_column, max_len, long]
    path = os.path.join(cache, hashlib.sha256(repr(key).encode()).hexdigest()[:32] + ".pt")
    kept = _read_cache(path)
    if kept is None:
        kept = _tokenise(specs, sources, enc, source, raw, prompt_column, completion_column, max_len, long)
        # a template that writes the date gives another text tomorrow; files may have changed while they were read
        if sum(kept["rows"]) >= CACHED_ROWS and "strftime_now" not in source and [_source(s)[1] for s in specs] == stamps:
            from model import write_atomically
            write_atomically(path, lambda f: torch.save(kept, f))
    for line in kept["report"]:
        say(line)
    tokens, loss = (kept[k].split(kept["lengths"].tolist()) for k in ("tokens", "loss"))
    return [Sample(i, *fields) for i, fields in enumerate(zip(kept["family"], tokens, loss, kept["where"]))]


def _tokenise(specs, sources, enc, source, raw, prompt_column, completion_column, max_len, long):
    """The work of load_text -> the dictionary that its cache keeps: all samples' tokens end to end, other things in lists."""
    control = re.compile("|".join(map(re.escape, control_tokens(enc))))
    alphabet = b"".join(token for token in enc._mergeable_ranks if len(token) == 1)
    tokens, loss = array.array("i"), bytearray()           # of all samples, end to end; a list would take nine times the room
    lengths, family, where, rows, report, seen, too_long = [], [], [], [], [], {}, []

    def conversations():
        """(where, family, pieces) of each sample of one data set, read as they are asked for."""
        for at, row in read():
            rows[-1] += 1
            if row.get("id") is not None and (first := seen.setdefault(repr(row["id"]), at)) is not at:
                raise SystemExit(f"{at}: id {row['id']!r} is also that of {first}; ids must differ, or leave them out")
            try:
                messages, bare = _conversation(row, prompt_column, completion_column, control)
                samples = pieces(messages, enc, raw if bare else source)
                text = "".join(text for sample in samples for text, _ in sample)
                if text.encode().translate(None, alphabet):    # a tokenizer leaves it out; encode() refuses lone surrogates
                    foreign = next(c for c in text if c.encode().translate(None, alphabet))
                    raise ValueError(f"the vocabulary lacks {foreign!r}; take it out of the row, or take a tokenizer that has it "
                                     "(data.py show: --tokenizer FOLDER)")
            except ValueError as e:
                raise SystemExit(f"{at}: {e}") from None
            group = next((row[k] for k in ("family", "source") if isinstance(row.get(k), str) and row[k]), name)
            yield from ((at, group, sample) for sample in samples)

    def encode(texts):
        return [enc.encode(text, allowed_special=special, disallowed_special=()) for text in texts]

    special = enc.special_tokens_set
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count())) as pool:
        for spec, (name, _, read) in zip(specs, sources):
            rows.append(0)
            read_before, samples_before, dropped, truncated, stream = len(tokens), len(lengths), 0, 0, conversations()
            while chunk := list(itertools.islice(stream, 1000)):
                texts = [text for _, _, sample in chunk for text, _ in sample]
                blocks = [texts[i:i + 64] for i in range(0, len(texts), 64)]       # a task for each text would double the time
                encoded = itertools.chain.from_iterable(pool.map(encode, blocks))
                for at, group, sample in chunk:
                    ids, counts = [], bytearray()
                    for (_, counted), part in zip(sample, encoded):
                        ids += part
                        counts += bytes([counted]) * len(part)
                    counts[0] = False                                       # nothing comes before it that could predict it
                    if max_len is not None and len(ids) - 1 > max_len:
                        too_long.append((at, len(ids) - 1))
                        ids, counts = ids[:max_len + 1], counts[:max_len + 1]
                        if long == "drop" or True not in counts:
                            dropped += 1
                            continue
                        truncated += 1
                    tokens.extend(ids)
                    loss += counts
                    lengths.append(len(ids))
                    family.append(group)
                    where.append(at)
            if not rows[-1]:
                raise SystemExit(f"--data {spec}: no row in it; check the path")
            report.append(f"data: {spec}: {rows[-1]:,} rows -> {len(lengths) - samples_before:,} samples of "
                          f"{len(tokens) - read_before:,} tokens, {loss.count(True, read_before):,} with loss" +
                          f"; over --max-len {max_len}: {dropped:,} dropped, {truncated:,} truncated" * (dropped + truncated > 0))
    if too_long and long == "error":
        at, length = max(too_long, key=lambda x: x[1])
        raise SystemExit(f"{at}: {length:,} tokens, the longest of {len(too_long):,} samples that exceed --max-len {max_len}; "
                         "pass --long drop, --long truncate, or a larger --max-len")
    if not tokens:
        raise SystemExit(f"data: no sample with a loss token is left: {len(too_long):,} exceed --max-len {max_len}; raise it")
    kept = dict(tokens=torch.frombuffer(tokens, dtype=torch.int32), loss=torch.frombuffer(loss, dtype=torch.bool),
                lengths=torch.tensor(lengths), family=family, where=where, rows=rows, report=report)
    return dict(kept, digest=_content(kept))


def _content(kept):
    h = hashlib.sha256(repr([kept[k] for k in ("family", "where", "rows", "report")]).encode())
    for k in ("tokens", "loss", "lengths"):
        h.update(kept[k].numpy())
    return h.hexdigest()


def _read_cache(path):
    """What _tokenise made, read page by page as it is used, or None where there is no whole file: it is then made again."""
    if not os.path.exists(path):
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return kept if kept["digest"] == _content(kept) else None
    except Exception:                    # torch raises seven kinds of error on a broken archive
        return None


def marked(sample, enc, colour):
    """A sample's text; what carries loss is green, or between ⟦ and ⟧ where colours would not show."""
    left, right = ("\033[32m", "\033[0m") if colour else ("⟦", "⟧")
    runs = itertools.groupby(zip(sample.tokens.tolist(), sample.loss.tolist()), key=lambda pair: pair[1])
    return "".join(left * k + enc.decode([t for t, _ in run]) + right * k for k, run in runs)


def show_main(argv):
    """python data.py show: what a model would be trained on."""
    cli = argparse.ArgumentParser(prog="data.py show", description="Print samples with the tokens that carry loss marked.")
    cli.add_argument("--data", nargs="+", required=True, metavar="SPEC", help="files, folders, hub names; see load_text")
    cli.add_argument("--tokenizer", default="", help="a Hugging Face folder, tokenizer.json or .tiktoken file; else the toy's")
    cli.add_argument("--template", default="auto", help=f"auto, {', '.join(TEMPLATES)} or a .jinja file")
    cli.add_argument("--prompt-column", default="", help="the column that is asked, with --completion-column")
    cli.add_argument("--completion-column", default="", help="the column that is learned")
    cli.add_argument("--max-len", type=int, help="tokens that a model reads of a sample; no limit unless given")
    cli.add_argument("--long", choices=LONG, default="error", help="what becomes of longer samples")
    cli.add_argument("-n", type=int, default=3, help="samples to print")
    a = cli.parse_args(argv)
    try:
        enc = with_template(load_tokenizer(a.tokenizer) if a.tokenizer else toy_encoding(), a.template)
    except ValueError as e:
        raise SystemExit(str(e)) from None
    samples = load_text(a.data, enc, prompt_column=a.prompt_column, completion_column=a.completion_column, max_len=a.max_len,
                        long=a.long, say=print)
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for s in samples[:a.n]:
        print(f"\n--- id {s.id} | {s.where} | {s.family} | {len(s.tokens):,} tokens, {int(s.loss.sum()):,} with loss")
        print(marked(s, enc, colour))


# ----------------------------------------------------------------------------------------------------------------------
# samples and batches


@dataclass(frozen=True)
class Sample:
    id: int
    family: str
    tokens: torch.Tensor    # (L,) long, from text int32 (half the room): prompt, completion, end token
    loss: torch.Tensor      # (L,) bool: this token is a target that carries loss (completion and end token)
    where: str = ""         # "train.jsonl:17"


def encode(problems, enc):
    """Problems -> Samples with ids 0..N-1. The loss mask comes from where the text was joined, never from searching ids."""
    samples = []
    for i, p in enumerate(problems):
        head, tail = enc.encode_ordinary(p.prompt), enc.encode_ordinary(p.completion) + [enc.end_id]
        samples.append(Sample(i, p.family, torch.tensor(head + tail),
                              torch.arange(len(head) + len(tail)) >= len(head)))
    return samples


def digest(samples):
    """Sixteen hex digits that name what is trained on, in its order: a run that is resumed must find the same."""
    h = hashlib.sha256()
    for s in samples:
        h.update(b"%d:" % len(s.tokens))
        h.update(s.tokens.numpy())
        h.update(s.loss.numpy())
    return h.hexdigest()[:16]


def corpus_set(enc, n, seed, noise, task="toy-math"):
    """What the base is trained on: n samples of the train split, a share `noise` of them with the usual mistake."""
    return encode(TASKS[task]("train", n, seed, max(noise, 1e-9)), enc)      # 0 would draw the very problems of the clean set


def clean_set(enc, n, seed, task="toy-math"):
    """D of the paper: n samples of the train split, all correct; SFT, entropy pass and WMSS read this one set."""
    return encode(TASKS[task]("train", n, seed), enc)


def task_of(meta):
    """The task that a checkpoint's meta (model.read_config) names: a built-in one, or text."""
    return meta.get("config", {}).get("task", "text" if meta.get("tokenizer_files") else "toy-math")


def tokenizer_of(meta):
    """The tokenizer that a checkpoint carries; the built-in tasks' where it carries none."""
    return load_tokenizer(meta["tokenizer_files"]) if meta.get("tokenizer_files") else toy_encoding()


def training_set(cfg, enc, say=lambda line: None):
    """D of a run, for whose template enc is prepared (with_template, or its checkpoint); cfg: the run's flags, a dict."""
    if cfg.get("task", "toy-math") != "text":
        return clean_set(enc, cfg["clean"], cfg["seed"], cfg.get("task", "toy-math"))
    return load_text(cfg["data"], enc, say=say, **{k: cfg[k] for k in ("prompt_column", "completion_column", "max_len", "long")})


@dataclass
class Batch:
    """x[b, t] is read, y[b, t] = the token after it is predicted, loss_mask[b, t] says whether that prediction counts.

    Packed: x is a list of buckets (B_i, T_i), each padded to its own longest row; y and loss_mask (P,) are flat over the
    buckets' positions in order, as model(x) is. What costs is then P = sum of B_i T_i, and no position sees another row.
    """
    x: torch.Tensor | list      # (B, T) long, padded with 0 on the right
    y: torch.Tensor             # (B, T) long
    loss_mask: torch.Tensor     # (B, T) bool, False on prompts and padding
    ids: torch.Tensor           # (B,) long, the samples' ids

    def to(self, device):
        """x and y on device. loss_mask and ids stay on the CPU: counting there makes nobody wait for the device."""
        x = [send(b, device) for b in self.x] if isinstance(self.x, list) else send(self.x, device)
        return Batch(x, send(self.y, device), self.loss_mask, self.ids)


def send(t, device):
    """t on device; to a GPU through pinned memory, without waiting for what is queued there.

    t: a tensor, or a list or tuple of such things; what is neither stays as it is.
    """
    if isinstance(t, (list, tuple)):
        return type(t)(send(part, device) for part in t)
    if not isinstance(t, torch.Tensor):
        return t
    return t.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else t.to(device)


def collate(samples):
    tokens = torch.nn.utils.rnn.pad_sequence([s.tokens for s in samples], batch_first=True).long()      # (B, T + 1)
    loss = torch.nn.utils.rnn.pad_sequence([s.loss for s in samples], batch_first=True)
    return Batch(tokens[:, :-1], tokens[:, 1:], loss[:, 1:], torch.tensor([s.id for s in samples]))


def pack(batches):
    """Batches end to end as one, packed."""
    flat = lambda name: torch.cat([getattr(b, name).flatten() for b in batches])
    return Batch([b.x for b in batches], flat("y"), flat("loss_mask"), flat("ids"))


def epoch_order(n, seed, epoch, weights=None, dedup=False):
    """Indices of one epoch over n samples, a function of (seed, epoch) and the weights alone -> (n,) long.

    Without weights a permutation; with weights (n,) n draws with replacement (section 1.2 of the method: curriculum
    resampling); dedup keeps the first of equal draws, so an epoch is shorter (schedule() fills the last step from another epoch's).
    """
    g = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if weights is None:
        return torch.randperm(n, generator=g)
    drawn = torch.multinomial(weights.double(), n, replacement=True, generator=g)
    return torch.tensor(list(dict.fromkeys(drawn.tolist()))) if dedup else drawn


def schedule(n, batch_size, seed, first_epoch=0, epochs=None, steps=None, weights=None, dedup=False):
    """The batches of a run: a list of index tensors, one per optimizer step, each of exactly batch_size samples.

    Give `epochs` (steps = enough for all samples of so many epochs) or `steps`. The stream of epochs is cut into batches
    without regard to epoch ends, so that no step is smaller than the others.
    """
    if n == 0:
        raise ValueError("data: the data set is empty; expected at least one sample")
    stream, epoch, drawn, batches = torch.empty(0, dtype=torch.long), first_epoch, 0, []
    while steps is None or len(batches) < steps:
        order = epoch_order(n, seed, epoch, weights, dedup)
        epoch, drawn = epoch + 1, drawn + len(order)
        if steps is None and epoch - first_epoch >= epochs:          # a fraction of the last epoch: 0.5 of one, say
            drawn -= round(len(order) * (epoch - first_epoch - epochs))
            steps = max(1, -(-drawn // batch_size))
        stream = torch.cat([stream, order])
        while len(stream) >= batch_size and (steps is None or len(batches) < steps):
            batches.append(stream[:batch_size])
            stream = stream[batch_size:]
    return batches


def micro_batches(samples, micro_batch, rank=0, world=1, tokens_per_batch=0):
    """This rank's share of one step's samples as a list of packed Batches, each one forward pass of at most micro_batch rows.

    tokens_per_batch: most positions of a Batch, padding included (0: no limit), but for a single row that is longer.
    Packing happens inside the step only: who shares a step stays random, so the gradient is the one of plain shuffling,
    and yet no row is padded by more than 15 % (on the built-in task 5 % of the positions are padding, against half in
    one batch). Ranks are dealt rows in order of length, which balances their work; a rank left without any gets a row
    of id -1 that carries no loss, since every rank must join the gradient sync.
    """
    rows = sorted(samples, key=lambda s: (len(s.tokens), s.id))[rank::world]
    if not rows:
        rows = [replace(samples[0], id=-1, loss=torch.zeros_like(samples[0].loss))]
    passes = [[]]                                              # lists of buckets, lists of rows
    for s in rows:
        buckets = passes[-1]
        if buckets and len(s.tokens) <= 1.15 * len(buckets[-1][0].tokens):
            grown = [*buckets[:-1], [*buckets[-1], s]]
        else:
            grown = [*buckets, [s]]
        positions = sum(len(b) * (len(b[-1].tokens) - 1) for b in grown)
        if buckets and (sum(map(len, grown)) > micro_batch or 0 < tokens_per_batch < positions):
            passes.append([[s]])
        else:
            passes[-1] = grown
    return [pack([collate(b) for b in buckets]) for buckets in passes]


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["show"]:
        return show_main(argv[1:])
    if argv[:1] == ["am"]:
        from am import main as am_main
        return am_main(argv[1:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="toy-math")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=1, help="problems per family")
    args = parser.parse_args(argv)
    for p in TASKS[args.task](args.split, args.n * len(FAMILIES if args.task == "toy-math" else CODE_FAMILIES)):
        print(f"{p.family:7s} {p.prompt:10s} {p.completion:44s}" + (p.mistake != p.completion) * f"   mistake: {p.mistake}")


if __name__ == "__main__":
    main()
