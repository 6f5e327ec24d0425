"""Problems to score a model on: public data sets, files of your own, and built-in tasks.

No row is ever skipped, for that would change the score's denominator in silence: a row without
question or gold answer is an error with its place, and so is a set of another size than published.
"""

import re
from collections import namedtuple

from plumbing import extract
from plumbing.files import read_rows
from plumbing.latex import is_equal

# One problem. Those of eval_code have code, test and entry_point too. messages: the conversation
# that `prompt` tells, where it is more than one question; grader: one of GRADERS. data.Problem, of
# the built-in tasks, has all but these two.
Item = namedtuple("Item", "id family prompt answer code test entry_point messages grader",
                  defaults=("", "", "", (), "math"))

# how an answer is compared with the gold one: as mathematics, letter by letter, as an option
GRADERS = ("math", "exact", "letter")
CODE_SETS = ("humaneval", "mbpp", "mbpp-test")          # their answers are programs that are run

# hub: path, configuration, split. counts: rows of that split, then of other published editions,
# which are accepted from a file. question, answer: keys, of which the first present wins;
# "Body+Question" joins two; "instruction" is the key in the paper's own files. hub None: it is
# published as the file that FILES names.
Source = namedtuple("Source", "hub counts question answer")
SOURCES = {
    "gsm8k": Source(("openai/gsm8k", "main", "test"), (1319,),
                    ("question", "instruction"), ("answer",)),
    # the hub's split of 700 + 300 came later: both together, or either count from a file
    "svamp": Source(("ChilleD/SVAMP", None, "train+test"), (1000, 300),
                    ("Body+Question", "instruction"), ("Answer", "answer")),
    # 238: the paper's own file
    "mawps": Source(("MU-NLPC/Calc-mawps", None, "test"), (520, 238),
                    ("question", "original_text", "instruction"), ("result", "ans", "answer")),
    "aqua": Source(("deepmind/aqua_rat", "raw", "test"), (254,),
                   ("question", "instruction"), ("correct", "answer")),
    "math500": Source(("HuggingFaceH4/MATH-500", None, "test"), (500,),
                      ("problem", "instruction"), ("answer",)),
    "amc23": Source(("math-ai/amc23", None, "test"), (40,),
                    ("question", "instruction"), ("answer",)),
    "aime25": Source(("math-ai/aime25", None, "test"), (30,),
                     ("problem", "question", "instruction"), ("answer",)),
    # the paper's third domain, logic
    "logiqa": Source(None, (1572,), ("text+question", "instruction"), ("answer",)),
    "reclor": Source(None, (500,), ("context+question", "instruction"), ("label", "answer"))}
FILES = {"logiqa": "logiqa/DATA/LOGIQA/test.txt of github.com/csitfun/LogiQA2.0",
         "reclor": "val.json of whyu.me/reclor; its test set has no labels"}
CHOICES = ("aqua", "logiqa", "reclor")          # multiple choice
# a gold answer of all sets but CHOICES (letters) and math500 (LaTeX)
GOLD = re.compile(r"-?(\d+(\.\d*)?(/\d+)?|\.\d+)(e[-+]?\d+)?(\^\\circ)?")


def parse_spec(spec: str) -> tuple[str, str, str]:
    """
    >>> parse_spec("mine:letter=a.jsonl"), parse_spec("gsm8k")
    (('mine', 'letter', 'a.jsonl'), ('gsm8k', '', ''))
    """
    left, _, path = spec.partition("=")
    name, _, grader = left.partition(":")
    return name, grader, path


def load_problems(spec: str, limit: int | None = None, any_count: bool = False,
                  split: str = "test", columns: tuple[str, str] = ("", "")) -> list:
    """Problems of a built-in task, of "gsm8k" (from the hub), "gsm8k=PATH", or of a file of your
    own, "NAME=PATH" or "NAME:GRADER=PATH" (see own_problems).

    columns: those of a file of your own, if they have other names. Raises ValueError on a bad row,
    and on a benchmark of another number of rows than published unless any_count.
    """
    name, grader, path = parse_spec(spec)
    if name not in SOURCES:
        from plumbing.tasks import TASKS, built_in  # imports torch: public data do not need it
        if spec in TASKS:
            return built_in(spec, split, limit)
        if not path or name in CODE_SETS or name in TASKS or not re.fullmatch(r"[\w.-]+", name):
            raise ValueError(f"{spec}: expected toy-math or one of {', '.join(SOURCES)}, "
                             "alone (from the hub) or as NAME=PATH; a file of your own is "
                             "NAME=PATH or NAME:GRADER=PATH, with a NAME that no other set has")
        return own_problems(name, grader, path, columns)[:limit]
    source = SOURCES[name]
    if grader:
        raise ValueError(f"{spec}: {name} has its own grader; leave :{grader} away, or give "
                         "the file another name")
    if not (path or source.hub):
        raise ValueError(f"{spec}: expected {name}=FILE, as it is published "
                         f"({FILES[name]}), found no file")
    rows = read_rows(path) if path else hub_rows(*source.hub)
    items = [_item(name, i, where, row) for i, (where, row) in enumerate(rows, 1)]
    counts = source.counts if path else source.counts[:1]
    if len(items) not in counts and not any_count:
        raise ValueError(f"{spec}: expected {' or '.join(map(str, counts))} rows, found "
                         f"{len(items)}; get the whole file, or pass --any-count")
    return items[:limit]


def own_problems(name: str, grader: str, path: str, columns: tuple[str, str] = ("", "")) -> list:
    """Problems of a file in any form that training reads; its last turn is the gold answer. A list
    of `options` in a row is shown behind the question, as (A), (B) and so on.

    grader: one of GRADERS, or "": letter where every gold answer names an option of its question,
    math where each is a number or LaTeX, else exact.
    """
    from plumbing.text import conversations  # imports torch: public data do not need it
    if grader not in ("", *GRADERS):
        raise ValueError(f"{name}:{grader}={path}: expected one of {', '.join(GRADERS)} "
                         f"behind the colon, found {grader}")
    rows, kinds = [], set()
    for where, row, messages in conversations(path, columns):
        *asked, last = messages
        if isinstance(row.get("options"), list) and row["options"]:
            question = with_options(where, asked[-1]["content"], row["options"])
            asked[-1] = {**asked[-1], "content": question}
        prompt = "\n\n".join(m["content"] for m in asked)
        kinds.add(kind_of(last["content"], prompt))
        if row.get("chat_template_kwargs"):
            asked[0] = {**asked[0], "chat_template_kwargs": row["chat_template_kwargs"]}
        is_plain = len(asked) == 1 and asked[0] == {"role": "user", "content": prompt}
        rows.append((where, prompt, last["content"], () if is_plain else asked))
    if not rows:
        raise ValueError(f"{name}={path}: no row in it; check the path")
    grader = grader or ("exact" if len(kinds) > 1 else kinds.pop())
    problems = []
    for i, (where, prompt, said, asked) in enumerate(rows, 1):
        gold = gold_of(grader, said, prompt)
        if not gold:
            raise ValueError(f"{where}: expected a gold answer that the grader {grader} can read, "
                             f"found {said[-80:]!r}; mend it, or choose another one as "
                             f"{name}:exact={path}")
        problems.append(Item(f"{name}/{i}", name, prompt, gold, messages=asked, grader=grader))
    return problems


def gold_of(grader: str, text: str, question: str) -> str:
    """The gold answer in a text, as that grader reads it; "" where it cannot."""
    text = text.rpartition("</think>")[2].strip()
    answer, source = extract.find_answer(text)
    if grader == "letter":
        letter, _ = extract.choose(text, answer, source, "", question)
        return letter if letter in (extract.options(question) or extract.LETTERS) else ""
    if grader == "math":
        gold = extract.spoken(text) if source in ("number", "none") else answer
        return gold if is_equal(gold, gold) else ""
    return extract.plain(text)


def kind_of(text: str, question: str) -> str:
    """The grader that a gold answer looks made for."""
    if extract.options(question) and gold_of("letter", text, question):
        return "letter"
    gold = gold_of("math", text, question)
    is_number = GOLD.fullmatch(re.sub(r"[,_](?=\d{3})|[$€£%\s]", "", gold))
    return "math" if is_number or "\\" in gold else "exact"


def with_options(where: str, question: str, options: list) -> str:
    """A question and, on a line each, its options. where: file and line, for the error."""
    if len(options) > len(extract.LETTERS):
        raise ValueError(f"{where}: expected at most {len(extract.LETTERS)} options, found "
                         f"{len(options)}")
    lines = [f"({letter}) {' '.join(str(option).split())}"
             for letter, option in zip(extract.LETTERS, options, strict=False)]
    return "\n".join([f"{question} {extract.LISTED}", *lines])


def hub_rows(path: str, config: str | None, split: str) -> list[tuple]:
    """(where, row) of a data set of the Hugging Face hub."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(f"{path} comes from the hub: pip install datasets, or name a local file "
                         "as NAME=PATH") from None
    try:
        rows = list(load_dataset(path, config, split=split))
    except Exception as e:     # no network, no such set: each has an error class of its own
        from plumbing.hf import why  # needs safetensors: graders do not
        raise ValueError(f"{path}: the hub did not give it: {why(e)}; or name a local file as "
                         "NAME=PATH") from None
    return [(f"{path} {split}:{i}", row) for i, row in enumerate(rows, 1)]


def _first(row, keys):
    """(key, text) of the first key that the row has, or (None, "")."""
    for key in keys:
        values = [row.get(part) for part in key.split("+")]
        texts = ["" if value is None else str(value).strip() for value in values]
        if all(texts):
            return key, " ".join(texts)
    return None, ""


def _item(name, number, where, row):
    """One row of a data set, checked -> Item."""
    source = SOURCES[name]
    key, question = _first(row, source.question)
    _, answer = _first(row, source.answer)
    fits = True
    expected = f"a row with {' or '.join(source.question)} and {' or '.join(source.answer)}"
    if name == "gsm8k" and key == "question":        # a worked solution, its last line "#### 72"
        expected += ", its gold after ####"
        answer = answer.rpartition("####")[2].strip() if "####" in answer else ""
    if name in CHOICES:
        expected += ", a letter of its options"
        options = row.get("options") or row.get("answers")
        if isinstance(options, list) and name == "aqua":     # "A)21" -> "(A) 21"
            options = [re.sub(r"^\(?([A-E])\)\s*", r"(\1) ", str(o)) for o in options]
            question = f"{question} Answer Choices: {' '.join(options)}"
        elif isinstance(options, list):                      # the answer is a number from 0
            question = with_options(where, question, options)
            answer = dict(zip("01234", extract.LETTERS, strict=True)).get(answer, answer)
        fits = answer in extract.options(question)
    elif name != "math500":
        expected += ", a number"
        answer = re.sub(r"(?<=\d)[,_](?=\d{3})", "", answer)
        fits = bool(GOLD.fullmatch(answer))
    if not (key and answer and fits):
        raise ValueError(f"{where}: {name} expected {expected}; found {str(row)[:200]}; "
                         "rows are never skipped: repair it")
    grader = "letter" if name in CHOICES else "math"
    return Item(f"{name}/{number}", name, question, answer, grader=grader)
