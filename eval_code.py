"""Scores model-written code: of each answer the function is taken, run, and tested. The paper's
code rows are HumanEval and MBPP (pass@1).

    python eval_code.py out/code/wmss.pt --allow-code-execution       # the built-in task
    python eval_code.py samples.jsonl --data humaneval=HumanEval.jsonl.gz \\
        --allow-code-execution --workers 4 --timeout 3                # {task_id, completion} rows

A program may loop, fill the memory, delete files, kill its parent, or return an object that claims
to equal everything. So a program never meets its tests (more in plumbing/sandbox.py):

    this process   reads data, asks for verdicts, writes them
    zygote         a bare interpreter that forks the two below for each program, and kills them
    candidate      gives up all rights (files, network, signals, new processes), then runs the
                   program and answers one question after another: "what is f(2)?"
    referee        runs the trusted tests; an answer is decoded into plain data before a test sees
                   it, so every comparison is ours
"""

import argparse
import functools
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from eval_math import complete, show, summary
from plumbing.answers import Answers, weights
from plumbing.bar import Bar
from plumbing.cli import program
from plumbing.code_benchmarks import load_problems, read_samples
from plumbing.files import commit, write_rows, write_text
from plumbing.python_text import defines, extract, is_prose, longest_program, needed
from plumbing.sandbox import Runner, check
from plumbing.scoring import (
    CONSENT,
    SAMPLES,
    chat,
    code_flags,
    load_model,
    read_by,
    sha_of,
    stem_of,
)

# where a base model that goes on after its function, with prose or tests, is cut (Chen et al. 2021)
STOPS = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\n```")

# ---- from answer to program --------------------------------------------------------------------


def extract_code(text: str, prompt: str = "", entry_point: str = "") -> str:
    """Chat answer -> what to run after prompt: the last fenced block that defines entry_point, else
    the first; without a fence the whole text. Thoughts before </think> do not count.

    >>> extract_code("Sure:\\n```python\\ndef f(x):\\n    return x\\n```", "", "f")
    '\\ndef f(x):\\n    return x\\n'
    """
    return extract(text, prompt, entry_point)[0]


def cut_at_stop(text: str, stops: tuple[str, ...] = STOPS) -> str:
    """text up to the first stop string, wherever tokens begin.

    >>> cut_at_stop(" return 1\\ndef g", ["\\ndef"])
    ' return 1'
    """
    ends = [text.find(stop) for stop in stops if stop in text]
    return text[:min(ends, default=len(text))]


def cut(text: str, prompt: str, entry_point: str, stops: tuple[str, ...] = STOPS) -> str:
    """What of an answer without a fence to run below prompt: its function, and what that needs.

    Stops (none: all is kept) apply only behind the first complete definition of entry_point; what
    stands before it is kept. Of what is cut, definitions that the kept part reads come back. A text
    in which the function is never complete stays whole, and fails by itself.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    n_prompt, lines = prompt.count("\n"), (prompt + text).split("\n")
    tree, n_lines = longest_program(lines, n_prompt)
    statements = tree.body if tree and stops else []
    ends = [s.end_lineno for s in statements
            if s.end_lineno > n_prompt and entry_point in defines(s)]
    if not ends:
        return text
    prose = [s.lineno - 1 for s in statements if s.lineno > ends[0] and is_prose(s)]
    n_lines = min(prose, default=n_lines)
    kept = "\n".join(lines[:ends[0]])
    kept += cut_at_stop("\n".join(["", *lines[ends[0]:n_lines]]), stops)
    n_kept = kept.count("\n") + 1
    later = [s for s in statements if s.lineno > n_kept]
    for s in needed([s for s in statements if s.lineno <= n_kept], later):
        first = min([s.lineno, *(d.lineno for d in getattr(s, "decorator_list", []))])
        kept = "\n".join([kept, *lines[first - 1:s.end_lineno]])
    return kept[len(prompt):] + "\n"


# ---- scoring -----------------------------------------------------------------------------------


def run_programs(jobs: list, timeout: float, bar: Bar | None = None) -> list:
    """[(problem, code)] -> verdicts, one program after another."""
    verdicts = []
    with Runner() as runner:
        for p, code in jobs:
            verdicts.append(runner.check(p.code, code, p.test, p.entry_point, timeout))
            if bar:
                bar.add()
    return verdicts


def score(jobs: list, timeout: float = 3.0, workers: int | None = None,
          allow_code_execution: bool = False) -> list:
    """[(problem, code)] -> verdicts in that order, from `workers` programs at a time (cores / 2).

    A timeout or an error of the harness counts only if a second run, alone, has it again. Its limit
    is `timeout`, or twice the time of the problem's own solution if that is more: a slow machine is
    no reason to fail. ValueError without allow_code_execution, and where a right program does not
    pass, or a wrong one not fail: no verdict would mean anything.
    """
    if not allow_code_execution:
        raise ValueError(CONSENT)

    @functools.cache
    def limit_of(p):
        if not p.answer:
            return timeout
        # its own solution may take ten limits: what is slower is broken, not slow
        own = run_programs([(p, p.answer)], 10 * timeout)[0]
        return max(timeout, 2 * own.seconds) if own.status == "pass" else timeout

    for body, expected in (("x + 1", "pass"), ("x - 1", "fail")):
        v = check("", f"def f(x): return {body}", "assert f(2) == 3", "f", 10)
        if v.status != expected:
            raise ValueError(f"self-test: expected {expected} of `return {body}`, found {v.status} "
                             f"({v.detail}); run the tests: pytest tests/test_sandbox.py")
    workers = workers or max(1, (os.cpu_count() or 1) // 2)
    parts, verdicts = [jobs[w::workers] for w in range(workers)], [None] * len(jobs)
    with ThreadPoolExecutor(workers) as pool, Bar(len(jobs), "programs", "program") as bar:
        try:
            done = pool.map(run_programs, parts, [timeout] * workers, [bar] * workers)
            for w, part in enumerate(done):
                verdicts[w::workers] = part
        finally:                                       # after Ctrl-C an emptied list ends its loop
            for part in parts:
                part.clear()
    for i, (p, code) in enumerate(jobs):
        if verdicts[i].status in ("timeout", "error"):
            verdicts[i] = run_programs([(p, code)], limit_of(p))[0]
    return verdicts


def judge(rows: list[dict], problems: list, allow_code_execution: bool = False,
          timeout: float = 3.0, workers: int | None = None,
          stops: tuple[str, ...] = STOPS) -> list[dict]:
    """Add the verdict to rows of eval_math.complete() or read_samples(): answer, the code that ran
    after the problem's own; status, detail, seconds; correct, which is True, False, or None for an
    error, which counts neither way. stops: see cut."""
    known, jobs = {p.id: p for p in problems}, []
    for r in rows:
        p = known[r["id"]]
        code, r["extractor"] = extract(r["completion"], p.code, p.entry_point)
        if r["extractor"] == "text":
            code = cut(code, p.code, p.entry_point, stops)
        jobs.append((p, code))
    verdicts = score(jobs, timeout, workers, allow_code_execution)
    for r, (_, code), v in zip(rows, jobs, verdicts, strict=True):
        r.update(answer=code if code.strip() else None, status=v.status, detail=v.detail,
                 seconds=v.seconds, isolation=v.isolation,
                 correct=None if v.status == "error" else v.status == "pass")
    return rows


# ---- command line ------------------------------------------------------------------------------


def answered(args: argparse.Namespace, problems: list, skipped: list, folder: str) -> tuple:
    """(judged rows of what a model writes, or of the samples in a file; the file of rows)."""
    is_model, is_toy = not args.checkpoint.endswith(SAMPLES), args.data == "toy-code"
    how, wrap, stops = {}, None, ()
    if is_model:
        model, enc, task = load_model(args.checkpoint, args.device)
        if is_toy and task != "toy-code":
            raise ValueError(f"{args.checkpoint} was trained on {task}; score it with python "
                             f"eval_math.py {args.checkpoint}")
        stops, wrap = STOPS, (None if is_toy else chat(enc, raw=True))
        how = dict(max_new_tokens=args.max_new_tokens or (64 if is_toy else 512),
                   batch_size=args.batch or (700 if is_toy else 32), n=args.n, seed=args.seed,
                   temperature=args.temperature)
    add_verdicts = functools.partial(
        judge, problems=problems, allow_code_execution=args.allow_code_execution,
        timeout=args.timeout, workers=args.workers, stops=stops)
    answers = Answers(os.path.join(folder, "unfinished"), args.data.partition("=")[0], add_verdicts,
                      **how, **read_by(problems, wrap), weights=weights(args.checkpoint),
                      device=args.device, timeout=args.timeout)
    print(f"{args.checkpoint}: {len(problems):,} problems{answers.said}", flush=True)
    if is_model:
        return complete(model, enc, problems, wrap=wrap, answers=answers, **how), answers
    rows = read_samples(args.checkpoint, problems, {p.id for p in skipped})
    n = len(rows) // len(problems)
    if not all(1 <= k <= n for k in args.k):
        raise ValueError(f"--k {args.k}: expected 1 to {n}, the samples per problem")
    for i in range(0, len(rows), 200):
        if not answers.take(rows[i:i + 200]):
            answers.add(rows[i:i + 200])
    return rows, answers


@program("eval_code")
def main(argv: list[str] | None = None) -> int:
    args, start = code_flags(__doc__, argv), time.time()
    score([], allow_code_execution=args.allow_code_execution)       # refuses what it cannot do
    is_model = not args.checkpoint.endswith(SAMPLES)
    name, _, path = args.data.partition("=")
    every = load_problems(args.data, args.limit if is_model else None, args.split, args.any_count)
    problems, skipped = every[:args.limit], (every[args.limit:] if args.limit else [])
    if not is_model:
        args.out = args.out or args.checkpoint.removesuffix(".gz").removesuffix(".jsonl")
    folder = os.path.dirname(stem_of(args, name, vars(args)))
    rows, answers = answered(args, problems, skipped, folder)
    scores = summary(rows, args.k)
    found = [r["status"] for r in rows]
    counts = {status: found.count(status) for status in ("pass", "fail", "timeout", "error")}
    record = {**vars(args), "sha256": sha_of(args.checkpoint, path), "commit": commit(),
              "python": sys.version.split()[0], "isolation": rows[0]["isolation"],
              "samples": len(rows) // len(problems), "counts": counts,
              "seconds": round(time.time() - start, 1), "scores": scores}
    stem = stem_of(args, name, record)
    write_rows(stem + ".jsonl", rows)
    write_text(stem + ".json", json.dumps(record, indent=1))
    answers.remove()
    print(f"{name}: {stem}.jsonl | {counts}\n{show(scores)}")
    return 1 if counts["error"] else 0


if __name__ == "__main__":
    sys.exit(main())
