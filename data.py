"""Problems -> tokens and loss masks -> batches; the built-in math task; the order of the samples.

The math task imitates what post-training meets (paper, section 1): a large noisy corpus, in which
half of the solutions follow a mistake that people are known for (a third of the problems cannot
show it), and a small clean set. Nothing is downloaded. Your own text becomes the same Samples:
plumbing/text.py.

    python data.py                          # a problem of each family: right solution and mistake
    python data.py --split test -n 3        # three of each family, of another split

Shapes: N samples, L tokens of a sample, B rows of a batch, T positions of its longest row (L - 1).
"""

import argparse
import hashlib
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from plumbing.batches import Batches
from plumbing.cli import program
from plumbing.tokenizer import Tokenizer

# ---- problems and splits, for any task ---------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    family: str
    prompt: str             # "58+67:"
    completion: str         # "8+7=15,5+6+1=12;125": what is learned, right or with the mistake
    answer: str             # "125": the right one, whatever the completion says
    mistake: str = ""       # "8+7=15,5+6=11;115": the completion with the family's usual mistake
    code: str = ""          # code tasks only: the program is code + completion,
    test: str = ""          # and it is right if it passes this test,
    entry_point: str = ""   # which calls the function of this name
    id: str = ""            # "test/17"


SPLITS = {"test": range(0, 15), "val": range(15, 25), "train": range(25, 100)}     # %, disjoint


def split_of(prompt: str) -> str:
    """The split of a prompt: a hash of its words and sorted numbers, as 58+67 gives 67+58 away."""
    key = re.sub(r"\d", "", prompt) + " ".join(sorted(re.findall(r"\d+", prompt)))
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return next(name for name, share in SPLITS.items() if percent in share)


def draw_problems(split: str, n: int, rng: random.Random, noise: float, families: list[str],
                  draw: Callable[[str, random.Random], Problem]) -> list[Problem]:
    """n Problems of a split, the families in turn; a share `noise` has the mistake as completion.

    draw(family, rng) gives one of any split, rng being its only source of chance. Problems of val
    and test are distinct; train may repeat some, as corpora do. ValueError if there are too few.
    """
    if split not in SPLITS:
        raise ValueError(f"data: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    problems, seen, misses = [], set(), 0
    while len(problems) < n:
        family = families[len(problems) % len(families)]
        p = draw(family, rng)
        flawed = rng.random() < noise
        if split_of(p.prompt) != split or (p.prompt in seen and split != "train"):
            misses += 1
            if misses > 20_000:         # in a row: the few problems that are left will not be found
                raise ValueError(f"data: split {split!r} has too few {family!r} problems for "
                                 f"n = {n}; ask for fewer")
            continue
        misses = 0
        seen.add(p.prompt)
        completion = p.mistake if flawed else p.completion
        problems.append(replace(p, completion=completion, id=f"{split}/{len(problems)}"))
    return problems


# ---- the math task: solutions show their steps, so an early wrong token spoils the rest --------
#
# Each procedure works from the units on and returns (steps, result). `bug`: with a mistake from the
# catalogue of pupils' errors (Brown & Burton 1978), a rule and not random noise: it can be learned.


def _columns(a, b=0):
    """The digits of two numbers, column by column from the units on: 58, 67 -> [(8, 7), (5, 6)]."""
    return [(a // 10**i % 10, b // 10**i % 10) for i in range(len(str(max(a, b))))]


def _with_carries(columns, bug):
    """[("8+7", 15), ("5+6", 11)] -> ["8+7=15", "5+6+1=12"], 125"""
    steps, written, carry = [], "", 0
    for column, value in columns:
        total = value + carry
        steps.append(f"{column}+{carry}={total}" if carry else f"{column}={total}")
        written = f"{total % 10}{written}"
        carry = 0 if bug else total // 10
    return steps, int(f"{total}{written[1:]}")          # the last column may have two digits


def add_columns(a: int, b: int, bug: bool = False) -> tuple[list[str], int]:
    """a + b. The bug: carries are forgotten.

    >>> add_columns(58, 67), add_columns(58, 67, bug=True)
    ((['8+7=15', '5+6+1=12'], 125), (['8+7=15', '5+6=11'], 115))
    """
    return _with_carries([(f"{x}+{y}", x + y) for x, y in _columns(a, b)], bug)


def mul_columns(a: int, d: int, bug: bool = False) -> tuple[list[str], int]:
    """a * d for a digit d: 47, 6 -> ['7*6=42', '4*6+4=28'], 282; the bug also forgets carries."""
    return _with_carries([(f"{x}*{d}", x * d) for x, _ in _columns(a)], bug)


def sub_columns(a: int, b: int, bug: bool = False) -> tuple[list[str], int]:
    """a - b, for a >= b. The bug: always the smaller digit from the larger.

    >>> sub_columns(52, 17), sub_columns(52, 17, bug=True)
    ((['12-7=5', '4-1=3'], 35), (['7-2=5', '5-1=4'], 45))
    """
    steps, result, borrow = [], 0, 0
    for i, (x, y) in enumerate(_columns(a, b)):
        x, borrow = x - borrow, 0
        if x < y and bug:
            x, y = y, x
        elif x < y:
            x, borrow = x + 10, 1
        steps.append(f"{x}-{y}={x - y}")
        result += (x - y) * 10**i
    return steps, result


def _order(a, b, c, bug=False):
    """a + b * c. The bug: from left to right."""
    if bug:
        first, total = add_columns(a, b)
        then, result = mul_columns(total, c)
        return first + then, result
    then, result = add_columns(a, b * c)
    return [f"{b}*{c}={b * c}", *then], result


def _chain(a, b, c, bug=False):
    """a + b - c. The bugs: those of + and -."""
    first, total = add_columns(a, b, bug)
    then, result = sub_columns(total, c, bug)
    return [*first, str(total), *then], result


FAMILIES = {        # family: (prompt, procedure, the operands' digits), from easy to hard
    "add": ("{}+{}:", add_columns, (3, 3)),
    "sub": ("{}-{}:", sub_columns, (3, 3)),
    "carry": ("{}+{}:", add_columns, (3, 3)),
    "order": ("{}+{}*{}:", _order, (2, 1, 1)),
    "chain": ("{}+{}-{}:", _chain, (3, 3, 3)),
    "borrow": ("{}-{}:", sub_columns, (3, 3)),
    "times": ("{}*{}:", mul_columns, (3, 1)),
}


def _suits(family, a, b, c=0):
    """add, sub: without a carry or borrow; carry, borrow: with one; no result below 0."""
    if family in ("add", "carry"):
        return (add_columns(a, b) != add_columns(a, b, bug=True)) == (family == "carry")
    if family in ("sub", "borrow"):
        return a > b and (sub_columns(a, b) != sub_columns(a, b, bug=True)) == (family == "borrow")
    return family != "chain" or add_columns(a, b, bug=True)[1] > c


def _draw_math(family, rng, more=0):
    prompt, procedure, digits = FAMILIES[family]
    ranges = [(10**(d - 1 + more), 10**(d + more) - 1) if d > 1 else (2, 9) for d in digits]
    operands = [rng.randint(low, high) for low, high in ranges]
    while not _suits(family, *operands):
        operands = [rng.randint(low, high) for low, high in ranges]
    steps, result = procedure(*operands)
    wrong_steps, wrong = procedure(*operands, bug=True)
    return Problem(family, prompt.format(*operands), f"{','.join(steps)};{result}", str(result),
                   mistake=f"{','.join(wrong_steps)};{wrong}")


def toy_math(split: str, n: int, seed: int = 0, noise: float = 0.0, more: int = 0) -> list[Problem]:
    """n problems of a split of the math task, a function of the arguments; see draw_problems.
    more: columns added to all operands but single digits; solutions grow with them."""
    rng = random.Random(f"{split} {seed} {noise}")
    draw = partial(_draw_math, more=more)
    return draw_problems(split, n, rng, noise, list(FAMILIES), draw)


# ---- samples and batches -----------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    id: int
    family: str
    tokens: torch.Tensor    # (L,) prompt, completion, end token; long, or int32 from text files
    loss: torch.Tensor      # (L,) bool: is this token a target with loss? (completion, end token)
    where: str = ""         # "train.jsonl:17"


def encode(problems: list[Problem], enc: Tokenizer) -> list[Sample]:
    """Problems -> Samples with ids 0..N-1; a prompt has no loss, a completion and its end have."""
    samples = []
    for i, p in enumerate(problems):
        head = enc.encode_ordinary(p.prompt)
        tail = enc.encode_ordinary(p.completion) + [enc.end_id]
        loss = torch.arange(len(head) + len(tail)) >= len(head)
        samples.append(Sample(i, p.family, torch.tensor(head + tail), loss))
    return samples


def digest(samples: list[Sample]) -> str:
    """Sixteen hex digits that name the data in their order: a resumed run must find the same."""
    h = hashlib.sha256()
    for s in samples:
        h.update(b"%d:%b%b" % (len(s.tokens), s.tokens.numpy(), s.loss.numpy()))
    return h.hexdigest()[:16]


@dataclass
class Batch:
    """x[b, t] is read, y[b, t] is the next token; loss_mask[b, t]: does its prediction count?

    Packed: x is a list of buckets (B_i, T_i), each padded to its own longest row. y and loss_mask
    (P,) are flat over the positions of all buckets in order, P = sum of B_i * T_i, as model(x) is.
    """
    x: torch.Tensor | list[torch.Tensor]    # (B, T) long, padded with 0 on the right, or buckets
    y: torch.Tensor                         # (B, T) or (P,) long
    loss_mask: torch.Tensor                 # (B, T) or (P,) bool, False on prompts and padding
    ids: torch.Tensor                       # (B,) long, the samples' ids

    def to(self, device) -> "Batch":
        """x and y on the device; loss_mask and ids stay on the CPU, to be counted there."""
        return Batch(send(self.x, device), send(self.y, device), self.loss_mask, self.ids)


def send(t, device):
    """A tensor, or those in a list or tuple, on the device; to a GPU without waiting for it."""
    if isinstance(t, list | tuple):
        return type(t)(send(part, device) for part in t)
    if not isinstance(t, torch.Tensor):                 # a number
        return t
    on_gpu = torch.device(device).type == "cuda"
    return t.pin_memory().to(device, non_blocking=True) if on_gpu else t.to(device)


def collate(samples: list[Sample]) -> Batch:
    """Samples as one padded Batch, (B, T)."""
    pad = torch.nn.utils.rnn.pad_sequence
    tokens = pad([s.tokens for s in samples], batch_first=True).long()      # (B, T + 1)
    loss = pad([s.loss for s in samples], batch_first=True)                 # (B, T + 1)
    ids = torch.tensor([s.id for s in samples])
    return Batch(tokens[:, :-1], tokens[:, 1:], loss[:, 1:], ids)


def pack(batches: list[Batch]) -> Batch:
    """Padded Batches as the buckets of one packed Batch."""
    y = torch.cat([b.y.flatten() for b in batches])                         # (P,)
    loss_mask = torch.cat([b.loss_mask.flatten() for b in batches])         # (P,)
    return Batch([b.x for b in batches], y, loss_mask, torch.cat([b.ids for b in batches]))


def epoch_order(n: int, seed: int, epoch: int, weights: torch.Tensor | None = None,
                dedup: bool = False) -> torch.Tensor:
    """The order of one epoch over n samples, by the arguments alone -> indices (n,) long.

    Without weights a permutation. With weights (n,), the paper's curriculum: n draws with
    replacement; dedup keeps the first of equal draws, so that such an epoch is shorter.
    """
    g = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    if weights is None:
        return torch.randperm(n, generator=g)
    drawn = torch.multinomial(weights.double(), n, replacement=True, generator=g)
    return torch.tensor(list(dict.fromkeys(drawn.tolist()))) if dedup else drawn


def schedule(n: int, batch_size: int, seed: int, first_epoch: int = 0, epochs: float | None = None,
             steps: int | None = None, weights: torch.Tensor | None = None,
             dedup: bool = False) -> Sequence[torch.Tensor]:
    """The batches of a run: for each optimizer step a tensor of batch_size indices.

    Give `steps`, or `epochs` for as many steps as these need (0.5: half an epoch). Epochs form one
    stream that is cut into batches wherever they end, so all steps are equal.
    """
    if n == 0:
        raise ValueError("data: the data set is empty; expected at least one sample")
    order = partial(epoch_order, n, seed, weights=weights, dedup=dedup)
    if steps is None:
        sizes = [len(order(first_epoch + e)) for e in range(max(1, math.ceil(epochs)))]
        beyond = round(sizes[-1] * (len(sizes) - epochs))       # only a part of the last epoch
        steps = max(1, math.ceil((sum(sizes) - beyond) / batch_size))
    batches = Batches(order, first_epoch, batch_size, steps)
    return list(batches) if steps <= 100_000 else batches       # what is long is made as needed


def micro_batches(samples: list[Sample], micro_batch: int, rank: int = 0, world: int = 1,
                  tokens_per_batch: int = 0) -> list[Batch]:
    """This rank's share of one step's samples: packed Batches, one for each forward pass.

    A Batch has at most micro_batch rows and, unless 0, tokens_per_batch positions, padding included
    (one row alone may have more). The step's rows are sorted by length: no bucket pads a row to
    more than 1.15 of its tokens, and ranks, which take turns, have equal work. Which rows share a
    step stays random, so the gradient is that of plain shuffling. A rank that is left without rows
    gets one of id -1 without loss, since all ranks must join the gradient sync.
    """
    rows = sorted(samples, key=lambda s: (len(s.tokens), s.id))[rank::world]
    if not rows:
        rows = [replace(samples[0], id=-1, loss=torch.zeros_like(samples[0].loss))]
    passes = [[]]                       # a pass is a list of buckets, a bucket is a list of samples
    for s in rows:
        buckets = passes[-1]
        is_near = buckets and len(s.tokens) <= 1.15 * len(buckets[-1][0].tokens)
        grown = [*buckets[:-1], [*buckets[-1], s]] if is_near else [*buckets, [s]]
        n_rows = sum(len(bucket) for bucket in grown)
        positions = sum(len(bucket) * (len(bucket[-1].tokens) - 1) for bucket in grown)
        if buckets and (n_rows > micro_batch or 0 < tokens_per_batch < positions):
            passes.append([[s]])
        else:
            passes[-1] = grown
    return [pack([collate(bucket) for bucket in buckets]) for buckets in passes]


@program("data")
def main(argv: list[str] | None = None):
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("--split", choices=SPLITS, default="train")
    cli.add_argument("-n", type=int, default=1, help="problems of each family")
    args = cli.parse_args(argv)
    for p in toy_math(args.split, args.n * len(FAMILIES)):
        mistake = p.mistake if p.mistake != p.completion else "does not show here"
        print(f"{p.family:7s} {p.prompt:12s} {p.completion:46s} mistake: {mistake}")


if __name__ == "__main__":
    main()
