"""HumanEval and MBPP as published, from the hub or from a file, and files of samples for them."""

import re

from plumbing.benchmarks import Item, hub_rows
from plumbing.files import read_rows

# How many problems each has. mbpp-test: task ids 11 to 510, the split that is reported.
EXPECTED = {"humaneval": 164, "mbpp": 974, "mbpp-test": 500}
MBPP = ("google-research-datasets/mbpp", "full")
HUB = {
    "humaneval": [("openai/openai_humaneval", None, "test")],
    "mbpp": [(*MBPP, part) for part in ("train", "test", "validation", "prompt")],
}
HUB["mbpp-test"] = HUB["mbpp"]


def humaneval_problem(row, name):
    keys = ("task_id", "prompt", "test", "entry_point", "canonical_solution")
    id, code, test, entry_point, answer = (row[key] for key in keys)
    return Item(id, name, code, answer, code, test, entry_point)


def mbpp_problem(row, name):
    """The prompt is a docstring with the tests; the tested function is what the first one calls."""
    tests = "\n".join(row["test_list"])
    defined = re.findall(r"^def\s+(\w+)", row["code"], re.M)
    called = {f for f in defined if re.search(rf"\b{f}\s*\(", row["test_list"][0])}
    entry_point, = called
    prompt = f'"""\n{row["text"]}\n{tests}\n"""\n'
    test = f"{row['test_setup_code']}\n{tests}"
    return Item(f"mbpp/{int(row['task_id'])}", name, prompt, row["code"], "", test, entry_point)


def load_problems(spec: str, limit: int | None = None, split: str = "test",
                  any_count: bool = False) -> list:
    """The problems of humaneval, mbpp, mbpp-test (from the hub, or NAME=FILE), or toy-code.

    Of each `prompt` is for the model, `code` is what stands before its completion in the program,
    `answer` the published solution. ValueError, with file and line, where the data are not whole:
    any_count allows another number of tasks.
    """
    name, _, path = spec.partition("=")
    if spec == "toy-code":
        from plumbing.tasks import built_in  # imports torch, which public data do not need
        return built_in(spec, split, limit)
    if name not in EXPECTED:
        raise ValueError(f"--data: expected toy-code, or {', '.join(EXPECTED)} with or without "
                         f"=FILE; found {spec!r}")
    rows = read_rows(path) if path else [row for part in HUB[name] for row in hub_rows(*part)]
    problem_of = humaneval_problem if name == "humaneval" else mbpp_problem
    problems = {}
    for where, row in rows:
        try:
            problem = problem_of(row, name)
        except (KeyError, TypeError, ValueError, IndexError) as e:
            what = f"it lacks {e}" if isinstance(e, KeyError) else str(e)
            raise ValueError(f"{where}: expected a row of {name} as published, found another "
                             f"({what})") from None
        if problem.id in problems:
            raise ValueError(f"{where}: expected each task once, found {problem.id} again")
        if name != "mbpp-test" or 11 <= row["task_id"] <= 510:
            problems[problem.id] = problem
    if len(problems) != EXPECTED[name] and not any_count:
        raise ValueError(f"{spec}: expected {EXPECTED[name]} problems, found {len(problems)}; "
                         "is the download complete? If that is meant, pass --any-count")
    return list(problems.values())[:limit]


def read_samples(path: str, problems: list, skip=()) -> list[dict]:
    """A file of {task_id, completion} -> rows like those of eval_math.complete(), equally many of
    each problem. Rows whose task_id is in `skip` are left out."""
    known, rows = {p.id: p for p in problems}, []
    count = dict.fromkeys(known, 0)
    for where, row in read_rows(path):
        id, completion = row.get("task_id"), row.get("completion")
        if id in skip:
            continue
        if id not in known or not isinstance(completion, str):
            raise ValueError(f"{where}: expected a task_id of the data and a completion in text, "
                             f"found {str(row)[:80]}")
        rows.append(dict(id=id, family=known[id].family, sample=count[id], gold=known[id].answer,
                         completion=completion, truncated=False))
        count[id] += 1
    if not rows:
        raise ValueError(f"{path}: expected rows of task_id and completion, found none")
    few, many = min(count, key=count.get), max(count, key=count.get)
    if not 0 < count[few] == count[many]:
        raise ValueError(f"{path}: expected equally many samples of all {len(known)} problems, "
                         f"found {count[few]} of {few}, {count[many]} of {many}")
    return rows
