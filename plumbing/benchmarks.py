"""Problems to score a model on: public data sets from the hub or from a file, and built-in tasks.

No row is ever skipped, for that would change the score's denominator in silence: a row without
question or gold answer is an error with its place, and so is a set of another size than published.
"""

import re
from collections import namedtuple

from plumbing import extract
from plumbing.files import read_rows
from plumbing.hf import why

# One problem. Those of eval_code have code, test and entry_point too; data.Problem, of the built-in
# tasks, has all of these fields.
Item = namedtuple("Item", "id family prompt answer code test entry_point", defaults=("", "", ""))

# hub: path, configuration, split. counts: rows of that split, then of other published editions,
# which are accepted from a file. question, answer: keys, of which the first present wins;
# "Body+Question" joins two; "instruction" is the key in the paper's own files.
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
                     ("problem", "question", "instruction"), ("answer",))}
# a gold answer of all sets but aqua (letters) and math500 (LaTeX)
GOLD = re.compile(r"-?(\d+(\.\d*)?(/\d+)?|\.\d+)(e[-+]?\d+)?(\^\\circ)?")


def load_problems(spec: str, limit: int | None = None, any_count: bool = False,
                  split: str = "test") -> list:
    """Problems of a built-in task, of "gsm8k" (from the hub) or "gsm8k=PATH" (files.read_rows).

    Raises ValueError on a bad row, and on another number of rows than published unless any_count.
    """
    name, _, path = spec.partition("=")
    if name not in SOURCES:
        from plumbing.tasks import TASKS, built_in  # imports torch: public data do not need it
        if spec in TASKS:
            return built_in(spec, split, limit)
        raise ValueError(f"--data {spec}: expected toy-math or one of {', '.join(SOURCES)}, "
                         "alone (from the hub) or as NAME=PATH")
    source = SOURCES[name]
    rows = read_rows(path) if path else hub_rows(*source.hub)
    items = [_item(name, i, where, row) for i, (where, row) in enumerate(rows, 1)]
    counts = source.counts if path else source.counts[:1]
    if len(items) not in counts and not any_count:
        raise ValueError(f"--data {spec}: expected {' or '.join(map(str, counts))} rows, found "
                         f"{len(items)}; get the whole file, or pass --any-count to eval_math.py")
    return items[:limit]


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
    if name == "aqua":
        expected += ", a letter of its options"
        if isinstance(row.get("options"), list):     # "A)21" -> "(A) 21"
            options = [re.sub(r"^\(?([A-E])\)\s*", r"(\1) ", str(o)) for o in row["options"]]
            question = f"{question} Answer Choices: {' '.join(options)}"
        fits = answer in extract.options(question)
    elif name != "math500":
        expected += ", a number"
        answer = re.sub(r"(?<=\d)[,_](?=\d{3})", "", answer)
        fits = bool(GOLD.fullmatch(answer))
    if not (key and answer and fits):
        raise ValueError(f"{where}: {name} expected {expected}; found {str(row)[:200]}; "
                         "rows are never skipped: repair it")
    return Item(f"{name}/{number}", name, question, answer)
