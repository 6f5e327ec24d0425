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
from plumbing import extract
from plumbing.latex import MAX_CHARS, is_equal
from plumbing.notation import normalise

# The paper's system prompt and lengths, as in its public repository (utils/prompts.py; the curly apostrophe is theirs too).
PAPER_SYSTEM = (
    "You are a helpful assistant. To answer the user’s question, you first think about the reasoning process and then provide "
    "the user with the answer. The reasoning process and answer are enclosed within <think> and <answer> tags, respectively, "
    "i.e., <think> reasoning process here </think> <answer> answer here </answer>.")
PAPER_TOKENS = {"aime25": 8192, "amc23": 8192}                  # new tokens; 4,096 for the other sets


# ----------------------------------------------------------------------------------------------------------------------
# from text to an answer

TAIL = 50_000  # characters: an answer stands at the end, and 8,192 tokens are about 30,000


def extract_answer(text: str) -> str | None:
    r"""The final answer of a completion, or None. Sources, best first: last closed \boxed, <answer>, ####, "answer is", number.

    >>> extract_answer(r"<think>maybe \boxed{7}</think> So \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    return _extract(text)[0]


def _extract(text: str) -> tuple[str | None, str]:
    """(answer, name of its source)."""
    text = extract.to_ascii_marks(text.rpartition("</think>")[2][-TAIL:])
    # an empty box echoes the instructions
    in_box, text = extract.boxed(re.sub(r"\\boxed\s*\{\s*\}", "", text))
    sources = [("boxed", lambda text: in_box), ("answer_tag", extract.answer_tag),
               ("hash", extract.after_hashes), ("phrase", extract.phrase)]
    if "<think>" not in text:                          # else: an unfinished thought
        sources.append(("number", extract.number))
    for name, source in sources:
        answer = (source(text) or "").strip()
        if answer:
            return answer, name
    return None, "none"


@dataclass
class Grade:
    correct: bool
    answer: str | None
    extractor: str  # boxed, answer_tag, hash, phrase, letter, number or none


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
    options = extract.options(question or "")
    letter = extract.letter_of(answer, options)
    if letter is None and (how in ("number", "none") or not extract.has_number(answer)):
        letter = extract.chosen_letter(text[-TAIL:])   # "So D is the right choice.", "hence (C)."
        how = "letter" if letter else how
    if letter:
        answer = letter
    elif answer:
        same = [k for k, v in options.items() if normalise(v) == normalise(answer[:MAX_CHARS])]
        # 10 and 10% are equal, but not the same
        same = same or [k for k, v in options.items() if is_equal(answer, v)]
        answer = gold if gold in same else (same + [answer])[0]
    return Grade(answer == gold, answer, how)


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
    fits = answer in extract.options(question) if name == "aqua" else name == "math500" or GOLD.fullmatch(answer)
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
