r"""Scores on maths problems: completions -> answers -> equality with the gold answer -> accuracy.

Also mean@n, pass@k, intervals, the comparison of two runs (section 4.1 of the paper).

    python eval_math.py out/toy/wmss.pt                  # 2,100 test problems of the built-in task
    python eval_math.py out/toy/sft.pt --split val --limit 700
    python eval_math.py out/toy/wmss.pt --n 8 --temperature 0.5 --k 1 8       # mean@8 and pass@8
    python eval_math.py wmss.pt --data gsm8k=test.jsonl math500 --protocol paper   # file, hub
    python eval_math.py wmss.pt --data mine=held_out.jsonl faq:exact=faq.csv       # your own
    python eval_math.py --compare out/toy/sft/toy-math.jsonl out/toy/wmss/toy-math.jsonl

Grading evaluates no code: plumbing/extract.py searches a completion for its answer, and
plumbing/latex.py compares two. In doubt they count as different: a wrong accept inflates a score in
silence. Rows are appended as they come; after an interruption the same command goes on from there.
"""

import hashlib
import json
import math
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from plumbing import extract, scoring
from plumbing.answers import Answers, weights
from plumbing.bar import Bar
from plumbing.batches import by_length
from plumbing.benchmarks import load_problems, parse_spec
from plumbing.cli import program
from plumbing.extract import TAIL, find_answer
from plumbing.files import commit, write_rows, write_text
from plumbing.latex import is_equal
from plumbing.scoring import PAPER_SYSTEM, PAPER_TOKENS, asked, chat, load_model, official_grader

# ---- from text to a verdict --------------------------------------------------------------------

def extract_answer(text: str) -> str | None:
    r"""The final answer of a completion, or None.

    >>> extract_answer(r"<think>maybe \boxed{7}</think> So \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    return find_answer(text)[0]


@dataclass
class Grade:
    correct: bool
    answer: str | None
    extractor: str  # boxed, answer_tag, hash, phrase, letter, number, exact, "last ;", none


def grade(text: str, gold: str, dataset: str | None = None, question: str | None = None) -> Grade:
    """Extraction and equality of one completion.

    dataset: "letter" (or "aqua"): the gold is a letter, its options stand in the question;
    "exact": as it is spelled, see plumbing.extract.plain; "toy-math": the steps come first, and the
    answer follows the last semicolon ("8+7=15,5+6+1=12;125"); all else: by its value.

    >>> grade("The answer is $23.65.", "A", "aqua", "How much? Choices: (A) 23.65 (B) 1000")
    Grade(correct=True, answer='A', extractor='phrase')
    """
    if dataset == "toy-math":
        answer = text.rpartition(";")[2].strip() if ";" in text else ""
        source = "last ;" if answer else "none"
        right = bool(re.fullmatch(r"-?\d+[,.]?", answer)) and is_equal(answer, gold)   # not 52+12
        return Grade(right, answer or None, source)
    if dataset == "exact":
        answer = extract.plain(text[-TAIL:])
        return Grade(answer == gold, answer or None, "exact" if answer else "none")
    answer, source = find_answer(text)
    if dataset in ("letter", "aqua"):
        answer, source = extract.choose(text[-TAIL:], answer, source, gold, question or "")
        return Grade(answer == gold, answer, source)
    return Grade(is_equal(answer, gold), answer, source)


# ---- statistics --------------------------------------------------------------------------------


def wilson(c: float, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's interval (95 %) of c successes in n trials; c may be a sum of per-problem means.

    >>> [round(x, 8) for x in wilson(660, 1319)]
    [0.47343385, 0.5273221]
    """
    if not (n >= 1 and 0 <= c <= n):
        raise ValueError(f"wilson: expected 0 <= c <= n and n >= 1, found c={c}, n={n}")
    p, d = c / n, 1 + z * z / n
    middle = (p + z * z / (2 * n)) / d
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / d
    # rounding must not exclude p itself
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b and c discordant pairs under Binomial(b + c, 1/2), in integers.

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
    """Unbiased pass@k of c right in n samples: 1 - C(n-c, k) / C(n, k) (Chen et al. 2021).

    Symmetric in c and k, so the shorter product is taken; rounded once.

    >>> pass_at_k(5, 2, 2), pass_at_k(1000000, 10, 1000)
    (0.7, 0.0099551643871496)
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k: expected 0 <= c <= n and 1 <= k <= n, found n={n}, c={c}, "
                         f"k={k}; draw more samples")
    everything = math.perm(n, min(c, k))
    none = math.perm(n - max(c, k), min(c, k))
    return (everything - none) / everything


# ---- from a model to a score -------------------------------------------------------------------


def sample_seed(seed: int, problem: str, sample: int) -> int:
    """63 bits of (seed, problem, sample): the same draw in any batch, order and process."""
    key = f"{seed}|{problem}|{sample}".encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def complete(model, enc, problems: list, *, max_new_tokens: int = 64, batch_size: int = 700,
             n: int = 1, temperature: float = 0.0, seed: int = 0, weak=None, lam: float = 1.0,
             wrap: Callable | None = None, answers: Answers | None = None) -> list[dict]:
    """n completions of each problem -> one row each, in the order of the problems.

    A row has id, family, prompt, sample, seed, gold, completion, tokens (their number) and
    truncated. problems: anything with id, family, prompt, answer. wrap(question): the text that the
    model reads, special tokens spelled out (see plumbing.scoring.chat). weak, lam: decode from
    lam * z_model + (1 - lam) * z_weak (the fused model). answers: a file of rows, which judges
    those that come, and has those that came before an interruption. Rows do not depend on the
    batch, since each sample draws from a generator of its own. Raises ValueError on a text that the
    encoding cannot spell, or too long for the model.
    """
    texts = [wrap(asked(p)) if wrap else p.prompt for p in problems]
    for p, text in zip(problems, texts, strict=True):
        enc.check(text, of=f" of problem {p.id}")
    special = "all" if wrap else set()
    prompts = [enc.encode(t, allowed_special=special, disallowed_special=()) for t in texts]
    rows = []
    for p in problems:
        for s in range(n):
            rows.append(dict(id=p.id, family=p.family, prompt=p.prompt, sample=s,
                             seed=sample_seed(seed, p.id, s), gold=p.answer))
    slots = [len(prompts[i // n]) + max_new_tokens for i in range(len(rows))]
    with Bar(len(rows), "answers", "answer") as bar:
        for batch in by_length(slots, 2, batch_size):       # the longest sets the memory of all
            own = [rows[i] for i in batch]
            if answers is None or not answers.take(own):
                new = model.generate([prompts[i // n] for i in batch], max_new_tokens,
                                     temperature=temperature, stop_ids=enc.stop_ids,
                                     seed=[row["seed"] for row in own], weak=weak, lam=lam)
                for i, row, tokens in zip(batch, own, new, strict=True):
                    text = enc.decode(tokens)
                    if texts[i // n].endswith("\nAnswer:"):     # a base model asks on by itself
                        text = text.partition("\nQuestion:")[0]
                    row.update(completion=text, tokens=len(tokens),
                               truncated=len(tokens) >= max_new_tokens)
                if answers is not None:
                    answers.add(own)
            bar.add(len(batch))
    return rows


def judge(rows: list[dict], dataset: str = "toy-math",
          official: Callable | None = None) -> list[dict]:
    """Add answer, extractor and correct to rows of complete(), and the verdict of `official`, a
    function of (text, gold): see plumbing.scoring.official_grader."""
    for row in rows:
        g = grade(row["completion"], row["gold"], dataset, row["prompt"])
        row.update(answer=g.answer, extractor=g.extractor, correct=g.correct)
        if official:
            row["official"] = official(row["completion"], row["gold"])
    return rows


def mean(values) -> float:
    values = list(values)
    return sum(values) / max(1, len(values))


def summary(rows: list[dict], ks: tuple = (), verdict: str = "correct") -> dict:
    """Judged rows -> accuracy (mean@n), its Wilson interval, pass@k, shares, accuracy per family.

    n counts problems, as samples of one are not independent. A problem with a verdict of None
    (trouble of the harness) counts neither way, but in `errors`."""
    broken = {row["id"] for row in rows if row[verdict] is None}
    right, families = {}, {}
    for row in rows:
        if row["id"] not in broken:
            right.setdefault(row["id"], []).append(bool(row[verdict]))
        families.setdefault(row["family"], set()).add(row["id"])
    share = {id: mean(verdicts) for id, verdicts in right.items()}
    low, high = wilson(min(sum(share.values()), len(share)), len(share)) if share else (0.0, 1.0)
    extractors = Counter(row["extractor"] for row in rows)
    return dict(
        accuracy=mean(share.values()), n=len(share), low=low, high=high, errors=len(broken),
        **{f"pass@{k}": mean(pass_at_k(len(v), sum(v), k) for v in right.values()) for k in ks},
        truncated=mean(row["truncated"] for row in rows),
        no_answer=mean(row["answer"] is None for row in rows),
        extractors={name: c / len(rows) for name, c in sorted(extractors.items())},
        families={f: mean(share[i] for i in ids if i in share) for f, ids in families.items()})


def show(s: dict) -> str:
    """A summary as two lines of text."""
    families = "  ".join(f"{f} {accuracy:.1%}" for f, accuracy in s["families"].items())
    parts = [f"accuracy {s['accuracy']:.2%} of {s['n']:,} "
             f"(95 % interval {s['low']:.2%} - {s['high']:.2%})"]
    parts += [f"{key} {value:.2%}" for key, value in s.items() if key.startswith("pass@")]
    parts += [f"truncated {s['truncated']:.1%}", f"no answer {s['no_answer']:.1%}"]
    return families + "\n" + " | ".join(parts)


def compare(path_a: str, path_b: str, draws: int = 2000, seed: int = 0) -> dict:
    """Two files of rows on the same problems: scores, discordant pairs, exact McNemar p, and a
    paired bootstrap of the difference b - a."""
    a, b = map(scoring.verdicts_of, (path_a, path_b))       # {(id, gold): {sample: right}} each
    odd = [key for key in [*a, *b] if set(a.get(key, ())) != set(b.get(key, ()))]
    if odd or not a:
        first = odd[0] if odd else None
        raise ValueError(
            "--compare: expected the same problems and samples; the first difference is "
            f"{first}: {len(a.get(first, ()))} samples in {path_a}, {len(b.get(first, ()))} in "
            f"{path_b}; score both checkpoints on one data set")
    means_a, means_b = [[mean(f[key].values()) for key in a] for f in (a, b)]
    # McNemar wants one yes or no per problem: its first sample
    pairs = [(a[key][min(a[key])], b[key][min(a[key])]) for key in a]
    only_a, only_b = pairs.count((True, False)), pairs.count((False, True))
    gains = [y - x for x, y in zip(means_a, means_b, strict=True)]
    rng = random.Random(seed)
    boots = sorted(mean(rng.choices(gains, k=len(gains))) for _ in range(draws))
    scores = {}
    for name, means in (("a", means_a), ("b", means_b)):
        interval = wilson(min(sum(means), len(means)), len(means))
        scores[name] = {"accuracy": mean(means), "interval": interval}
    return {"problems": len(a), **scores, "only_a": only_a, "only_b": only_b,
            "mcnemar_p": mcnemar(only_a, only_b), "difference": mean(gains),
            "bootstrap_95": (boots[int(0.025 * draws)], boots[int(0.975 * draws)])}


# ---- command line ------------------------------------------------------------------------------


def score(a, name: str, problems: list, model, enc, official: Callable | None) -> Answers:
    """Complete, judge and write one data set: NAME.jsonl (rows), NAME.json (settings, scores)."""
    grader = getattr(problems[0], "grader", name)
    if not hasattr(problems[0], "grader"):                 # a built-in task, which is its own
        system, wrap, new_tokens, batch = None, None, 64, 700
    else:
        system = PAPER_SYSTEM if a.protocol == "paper" else None
        new_tokens = PAPER_TOKENS.get(name, 4096) if system else 512
        wrap, batch = chat(enc, system), 32
    how = dict(max_new_tokens=a.max_new_tokens or new_tokens, batch_size=a.batch or batch, n=a.n,
               temperature=a.temperature, seed=a.seed)
    record = {**vars(a), **how, "data": name, "graded_as": grader, "system": system,
              "template": enc.chat_template, "data_sha256": scoring.digest(problems),
              "commit": commit(), "dtype": str(next(model.parameters()).dtype),
              "python": sys.version.split()[0]}
    stem = scoring.stem_of(a, name, record)
    add_verdicts = partial(judge, dataset=grader, official=official)
    answers = Answers(os.path.join(os.path.dirname(stem), "unfinished"), name, add_verdicts, **how,
                      **scoring.read_by(problems, wrap), weights=a.weights, device=a.device,
                      graders=[grader, a.grader])
    print(f"{name}: {len(problems):,} problems, graded as {grader}{answers.said}", flush=True)
    try:
        rows = complete(model, enc, problems, wrap=wrap, answers=answers, **how)
    except ValueError as e:                            # a text that the model cannot read
        raise ValueError(f"{name}: {e}") from None
    record.update(scores=summary(rows, a.k),
                  official_scores=summary(rows, a.k, "official") if official else None)
    write_rows(stem + ".jsonl", rows)
    write_text(stem + ".json", json.dumps(record, indent=1))
    print(f"{name}: {stem}.jsonl\n{show(record['scores'])}")
    return answers


@program("eval_math")
def main(argv: list[str] | None = None) -> None:
    a = scoring.math_flags(__doc__, argv)
    if a.compare:
        print(json.dumps(compare(*a.compare), indent=1))
        return
    official = official_grader() if a.grader == "official" else None
    sets = {}
    for spec in a.data:                                # all data are checked before any work
        problems = load_problems(spec, a.limit, a.any_count, a.split,
                                 (a.prompt_column, a.completion_column))
        if getattr(problems[0], "test", ""):
            raise ValueError(f"--data {spec}: eval_code.py scores programs")
        sets[parse_spec(spec)[0]] = problems
    print(f"{a.checkpoint} on {a.device}", flush=True)
    model, enc, task = load_model(a.checkpoint, a.device)
    scoring.check_task(a, task)
    a.weights = weights(a.checkpoint)
    scored = [score(a, name, problems, model, enc, official) for name, problems in sets.items()]
    for answers in scored:          # not before the last: an interruption finds all that was done
        answers.remove()


if __name__ == "__main__":
    main()
