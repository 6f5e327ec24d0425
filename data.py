"""Text -> tokens -> batches: the tiktoken encoding, the built-in tasks, the order of samples, the one Batch type.

The built-in tasks, math and code, imitate what post-training meets (paper, section 1): a large *noisy* corpus in which half of
the solutions follow a mistake that people are known for, and a small clean set. Everything is procedural, nothing downloaded.

    python data.py                      # one math problem per family: the clean solution beside the flawed one
    python data.py --task toy-code --split test -n 3       # three per family of the code task, of another split

Shapes: B batch, T time (longest row of the batch, less one), N samples.
"""

import argparse
import hashlib
import random
import re
from dataclasses import dataclass, replace

import tiktoken
import torch

# ----------------------------------------------------------------------------------------------------------------------
# tokens

END = "<|end|>"


class Tokenizer(tiktoken.Encoding):
    """A tiktoken Encoding that knows how its texts begin and end, and the files that it came from.

    end_id: what closes a completion, and carries loss. stop_ids: what ends generation (end_id among them). bos_id: what every
    text begins with, or None. chat_template: its Jinja source, or None. nfc: normalise text first (Qwen). files: name -> text,
    from which load_tokenizer() makes it again: a checkpoint carries them, an export writes them.
    """

    def __init__(self, name, *, pat_str, mergeable_ranks, special_tokens, end, stops=(), bos=None, chat_template=None, nfc=False,
                 files=None):
        super().__init__(name, pat_str=pat_str, mergeable_ranks=mergeable_ranks, special_tokens=special_tokens)
        self.end_id, self.bos_id = special_tokens[end], None if bos is None else special_tokens[bos]
        self.stop_ids = sorted({self.end_id, *(special_tokens[t] for t in stops)})
        self.chat_template, self.nfc, self.files = chat_template, nfc, files or {}


def toy_encoding():
    """Newline and printable ASCII, one token a character, and <|end|>.

    >>> enc = toy_encoding(); enc.decode(enc.encode_ordinary("7*8=56")), enc.n_vocab
    ('7*8=56', 97)
    """
    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    ranks = {c.encode(): i for i, c in enumerate(alphabet)}
    return Tokenizer("wmss-toy", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={END: len(ranks)}, end=END)


def fingerprint(enc):
    """Sixteen hex digits that name an encoding's content, saved with every checkpoint: equal ids then mean equal text."""
    h = hashlib.sha256(enc._pat_str.encode() + b"NFC" * getattr(enc, "nfc", False))
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted((k.encode(), v) for k, v in enc._special_tokens.items()):
        h.update(b"%d:%s=%d;" % (len(token), token, rank))
    return h.hexdigest()[:16]


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

    draw(family, rng) gives a Problem, or None where it drew numbers that do not suit the family. Problems of val and test
    are distinct; train may repeat some, as corpora do. Raises ValueError on an unknown split, or one with too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"data: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    seen, problems, misses = set(), [], 0
    while len(problems) < n:
        family = families[len(problems) % len(families)]
        p = draw(family, rng)
        if p is None:
            continue
        flawed = rng.random() < noise
        if split_of(p.prompt) != split or (p.prompt in seen and split != "train"):
            misses += 1
            if misses > 20_000:                                # in a row: what is left is too little to be found
                raise ValueError(f"data: split {split!r} has too few {family!r} problems for n = {n}; ask for fewer")
            continue
        misses = 0
        seen.add(p.prompt)
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


def _times(a, d, bug):
    return f"{a}*{d}:", *mul_columns(a, d, bug)


def _order(a, b, c, bug):                                      # the bug: left to right, blind to precedence
    if bug:
        first, total = add_columns(a, b)
        then, total = mul_columns(total, c)
    else:
        first, (then, total) = [f"{b}*{c}={b * c}"], add_columns(a, b * c)
    return f"{a}+{b}*{c}:", first + then, total


def _chain(a, b, c, bug):
    first, total = add_columns(a, b, bug)
    then, result = sub_columns(total, c, bug)
    return f"{a}+{b}-{c}:", first + [str(total)] + then, result


def _add(a, b, bug):
    return f"{a}+{b}:", *add_columns(a, b, bug)


def _sub(a, b, bug):
    return f"{a}-{b}:", *sub_columns(a, b, bug)


def _carries(a, b):
    return add_columns(a, b)[1] != add_columns(a, b, bug=True)[1]


def _borrows(a, b):
    return sub_columns(a, b)[1] != sub_columns(a, b, bug=True)[1]


# family: (procedure, the operands' ranges, which operands it takes), in graded difficulty
_TWO, _THREE, _DIGIT = (10, 99), (100, 999), (2, 9)
FAMILIES = {
    "add": (_add, (_THREE, _THREE), lambda a, b: not _carries(a, b)),
    "sub": (_sub, (_THREE, _THREE), lambda a, b: a > b and not _borrows(a, b)),
    "carry": (_add, (_THREE, _THREE), _carries),
    "order": (_order, (_TWO, _DIGIT, _DIGIT), lambda a, b, c: True),
    "chain": (_chain, (_THREE, _THREE, _THREE), lambda a, b, c: add_columns(a, b, bug=True)[1] > c),
    "borrow": (_sub, (_THREE, _THREE), lambda a, b: a > b and _borrows(a, b)),
    "times": (_times, (_THREE, _DIGIT), lambda a, d: True),
}


def _draw_math(family, rng):
    procedure, ranges, takes = FAMILIES[family]
    operands = [rng.randint(*r) for r in ranges]
    if not takes(*operands):
        return None
    (prompt, *right), (_, *wrong) = (procedure(*operands, bug) for bug in (False, True))
    written = [",".join(steps) + f";{result}" for steps, result in (right, wrong)]
    return Problem(family, prompt, written[0], str(right[1]), written[1])


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
    return Problem(family, words + ": ", right, right, wrong, "def f(x): return ", test, "f")


def toy_code(split, n, seed=0, noise=0.0):
    """n problems of a split of the code task, drawn by (split, seed, noise); see _problems.

    A program is right if it does what is asked, not if it is the same text: eval_code.check(p.code, completion, p.test, "f", 3).
    """
    return _problems(split, n, random.Random(f"code {split} {seed} {noise}"), noise, list(CODE_FAMILIES), _draw_code)


TASKS = {"toy-math": toy_math, "toy-code": toy_code}


# ----------------------------------------------------------------------------------------------------------------------
# samples and batches


@dataclass(frozen=True)
class Sample:
    id: int
    family: str
    tokens: torch.Tensor    # (L,) long: prompt, completion, end token
    loss: torch.Tensor      # (L,) bool: this token is a target that carries loss (completion and end token)


def encode(problems, enc):
    """Problems -> Samples with ids 0..N-1. The loss mask comes from where the text was joined, never from searching ids."""
    samples = []
    for i, p in enumerate(problems):
        head, tail = enc.encode_ordinary(p.prompt), enc.encode_ordinary(p.completion) + [enc.end_id]
        samples.append(Sample(i, p.family, torch.tensor(head + tail),
                              torch.arange(len(head) + len(tail)) >= len(head)))
    return samples


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


def with_template(enc, template):
    """enc with the chat format of --template, for good: scoring and an export find it in enc.files and use the same."""
    if template != "auto":
        enc.chat_template = enc.files["chat_template.jinja"] = template_source(template, enc)
    return enc


def training_set(cfg, enc, say=lambda line: None):
    """D of a run, for whose template enc is prepared (with_template, or its checkpoint); cfg: the run's flags, a dict."""
    if cfg.get("task", "toy-math") != "text":
        return clean_set(enc, cfg["clean"], cfg["seed"], cfg.get("task", "toy-math"))
    return load_text(cfg["data"], enc, say=say, **{k: cfg[k] for k in ("prompt_column", "completion_column", "max_len", "long")})


@dataclass
class Batch:
    """x[b, t] is read, y[b, t] = the token after it is predicted, loss_mask[b, t] says whether that prediction counts."""
    x: torch.Tensor             # (B, T) long, padded with 0 on the right
    y: torch.Tensor             # (B, T) long
    loss_mask: torch.Tensor     # (B, T) bool, False on prompts and padding
    ids: torch.Tensor           # (B,) long, the samples' ids

    def to(self, device):
        return Batch(*(t.to(device, non_blocking=True) for t in (self.x, self.y, self.loss_mask, self.ids)))


def collate(samples):
    tokens = torch.nn.utils.rnn.pad_sequence([s.tokens for s in samples], batch_first=True)     # (B, T + 1)
    loss = torch.nn.utils.rnn.pad_sequence([s.loss for s in samples], batch_first=True)
    return Batch(tokens[:, :-1], tokens[:, 1:], loss[:, 1:], torch.tensor([s.id for s in samples]))


def epoch_order(n, seed, epoch, weights=None, dedup=False):
    """Indices of one epoch over n samples, a function of (seed, epoch) and the weights alone -> (n,) long.

    Without weights a permutation; with weights (n,) n draws with replacement (section 1.2 of the method: curriculum
    resampling); dedup keeps the first of equal draws, so an epoch is shorter.
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
    """This rank's share of one step's samples as a list of Batches of at most micro_batch rows, bucketed by length.

    tokens_per_batch: most positions of a Batch, padding included (0: no limit), but for a single row that is longer.
    Bucketing happens inside the step only: who shares a step stays random, so the gradient is the one of plain shuffling,
    and yet no row is padded by more than 15 % (on the built-in task 5 % of the positions are padding, against half in
    one batch). Ranks are dealt rows in order of length, which balances their work; a rank left without any gets a row
    of id -1 that carries no loss, since every rank must join the gradient sync.
    """
    rows = sorted(samples, key=lambda s: (len(s.tokens), s.id))[rank::world]
    if not rows:
        rows = [replace(samples[0], id=-1, loss=torch.zeros_like(samples[0].loss))]
    groups = [[]]
    for s in rows:
        full = len(groups[-1]) == micro_batch or 0 < tokens_per_batch < (len(groups[-1]) + 1) * (len(s.tokens) - 1)
        if groups[-1] and (full or len(s.tokens) > 1.15 * len(groups[-1][0].tokens)):
            groups.append([])
        groups[-1].append(s)
    return [collate(g) for g in groups]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="toy-math")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=1, help="problems per family")
    args = parser.parse_args()
    for p in TASKS[args.task](args.split, args.n * len(FAMILIES if args.task == "toy-math" else CODE_FAMILIES)):
        print(f"{p.family:7s} {p.prompt:10s} {p.completion:44s}" + (p.mistake != p.completion) * f"   mistake: {p.mistake}")
