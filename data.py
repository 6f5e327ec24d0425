"""Text -> tokens -> batches: the tiktoken encoding, the built-in math task, the order of samples, the one Batch type.

The built-in task imitates what post-training meets (paper, section 1): a large *noisy* corpus in which half of the solutions
follow a bug that pupils are known for, and a small clean set. Solutions show their steps, so a wrong token early spoils
the rest, as in long reasoning. Everything is procedural, and nothing is downloaded.

    python data.py                      # one problem per family: the clean solution beside the buggy one
    python data.py --split test -n 3    # three per family of another split

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


def toy_encoding():
    """A tiktoken Encoding built from its own ranks: newline and printable ASCII, one token a character, and <|end|>.

    >>> enc = toy_encoding(); enc.decode(enc.encode_ordinary("7*8=56")), enc.n_vocab
    ('7*8=56', 97)
    """
    alphabet = "\n" + "".join(map(chr, range(32, 127)))
    ranks = {c.encode(): i for i, c in enumerate(alphabet)}
    return tiktoken.Encoding("wmss-toy", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={END: len(ranks)})


def fingerprint(enc):
    """Sixteen hex digits that name an encoding's content, saved with every checkpoint: equal ids then mean equal text."""
    h = hashlib.sha256(enc._pat_str.encode())
    for token, rank in sorted(enc._mergeable_ranks.items()) + sorted((k.encode(), v) for k, v in enc._special_tokens.items()):
        h.update(b"%d:%s=%d;" % (len(token), token, rank))
    return h.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------------------------
# the built-in math task


@dataclass(frozen=True)
class Problem:
    family: str
    prompt: str         # "58+67:"
    completion: str     # "8+7=15,5+6+1=12;125": the steps, then the answer
    answer: str         # "125", always the true one, also where the completion is wrong


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
SPLITS = {"test": range(0, 15), "val": range(15, 25), "train": range(25, 100)}    # percent of the problems


def split_of(prompt):
    """The split that a prompt belongs to, a function of its operators and its sorted operands: disjoint by construction.

    Sorted, so that 58+67 in training and 67+58 in the test cannot happen.
    """
    key = re.sub(r"\d", "", prompt) + " ".join(sorted(re.findall(r"\d+", prompt)))
    percent = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100
    return next(name for name, share in SPLITS.items() if percent in share)


def toy_math(split, n, seed=0, noise=0.0):
    """n problems of a split, the families in turn, drawn by (split, seed, noise).

    noise: share of completions that follow their family's bug. Problems of val and test are distinct; train may repeat
    some, as corpora do. Raises ValueError on an unknown split, or where a split has too few problems.
    """
    if split not in SPLITS:
        raise ValueError(f"data: unknown split {split!r}; expected one of {', '.join(SPLITS)}")
    rng, seen, problems, misses = random.Random(f"{split} {seed} {noise}"), set(), [], 0
    families = list(FAMILIES)
    while len(problems) < n:
        family = families[len(problems) % len(families)]
        procedure, ranges, takes = FAMILIES[family]
        operands = [rng.randint(*r) for r in ranges]
        if not takes(*operands):
            continue
        bug = rng.random() < noise
        prompt, steps, result = procedure(*operands, bug)
        if split_of(prompt) != split or (prompt in seen and split != "train"):
            misses += 1
            if misses > 1000 + 100 * n:
                raise ValueError(f"data: split {split!r} has too few {family!r} problems for n = {n}; ask for fewer")
            continue
        seen.add(prompt)
        answer = procedure(*operands, False)[2] if bug else result
        problems.append(Problem(family, prompt, ",".join(steps) + f";{result}", str(answer)))
    return problems


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
    end, samples = enc.encode_single_token(END), []
    for i, p in enumerate(problems):
        head, tail = enc.encode_ordinary(p.prompt), enc.encode_ordinary(p.completion) + [end]
        samples.append(Sample(i, p.family, torch.tensor(head + tail),
                              torch.arange(len(head) + len(tail)) >= len(head)))
    return samples


def corpus_set(enc, n, seed, noise):
    """What the base is trained on: n samples of the train split, a share `noise` of them solved by a bug."""
    return encode(toy_math("train", n, seed, noise), enc)


def clean_set(enc, n, seed):
    """D of the paper: n samples of the train split, all correct; SFT, entropy pass and WMSS read this one set."""
    return encode(toy_math("train", n, seed), enc)


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


def micro_batches(samples, micro_batch, rank=0, world=1):
    """This rank's share of one step's samples as a list of Batches of at most micro_batch rows, bucketed by length.

    Bucketing happens inside the step only: who shares a step stays random, so the gradient is the one of plain shuffling,
    and yet no row is padded by more than 15 % (on the built-in task 5 % of the positions are padding, against 34 % in
    one batch). Ranks are dealt rows in order of length, which balances their work; a rank left without any gets a row
    that carries no loss, since every rank must join the gradient sync.
    """
    rows = sorted(samples, key=lambda s: (len(s.tokens), s.id))[rank::world]
    if not rows:
        rows = [replace(samples[0], loss=torch.zeros_like(samples[0].loss))]
    groups = [[]]
    for s in rows:
        if groups[-1] and (len(groups[-1]) == micro_batch or len(s.tokens) > 1.15 * len(groups[-1][0].tokens)):
            groups.append([])
        groups[-1].append(s)
    return [collate(g) for g in groups]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=1, help="problems per family")
    args = parser.parse_args()
    for p in toy_math(args.split, args.n * len(FAMILIES)):
        steps, result = FAMILIES[p.family][0](*map(int, re.findall(r"\d+", p.prompt)), True)[1:]
        noisy = ",".join(steps) + f";{result}"
        print(f"{p.family:7s} {p.prompt:10s} {p.completion:44s}" + (noisy != p.completion) * f"   bug: {noisy}")
