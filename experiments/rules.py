"""Which tokens to mix, and what theory expects of mixing, both read from two models' predictions.

Two models that are equally sure of different things have no entropy gap. These rules see such a
gap, too; sweep.py tries them as arms (`rule-divergence`, ...): masks of the mixing with a frozen
weak model, nothing resampled, beside the entropies' own rule and `frozen`, which mixes everywhere.

Shapes: M loss tokens of all samples, n of a batch, V vocabulary.
"""

import dataclasses

import torch

from data import encode, micro_batches


def label_of(log_p, y):
    """The label's log-probability: (n, V), (n,) -> (n,)."""
    return log_p.gather(-1, y[:, None])[:, 0]


def divergence(weak, live, y):
    """KL(weak || live) above 0.01 nat: the prediction has moved, whatever its entropy did."""
    return (weak.exp() * (weak - live)).sum(-1) > 0.01


def moved(weak, live, y):
    """The label's log-probability has changed by more than 0.1 nat."""
    return (label_of(live, y) - label_of(weak, y)).abs() > 0.1


def surprise(weak, live, y):
    """The weak model's loss on the label is above 0.05 nat: it would not have written this."""
    return label_of(weak, y) < -0.05


def agreement(weak, live, y):
    """The label is the weak model's first choice: it would have written this, right or wrong."""
    return weak.argmax(-1) == y


RULES = {rule.__name__: rule for rule in (divergence, moved, surprise, agreement)}


def log_p_of(model, b):
    """Log-probabilities at the loss tokens of a batch -> (n, V)."""
    return model.lm_head(model(b.x)[b.loss_mask]).log_softmax(-1)


@torch.no_grad()
def by_sample(measure, samples):
    """measure(batch, y) gives values of a batch's loss tokens, whose labels are y (n,) -> the
    values of each sample, in the order of the samples."""
    n_loss = {s.id: int(s.loss[1:].sum()) for s in samples}
    found = {}
    for b in micro_batches(samples, 64):
        ids = b.ids.tolist()
        values = measure(b, b.y[b.loss_mask])
        found.update(zip(ids, values.split([n_loss[i] for i in ids]), strict=True))
    return [found[s.id] for s in samples]


def marks(rule, weak, live, samples):
    """The loss tokens that a rule marks, in the order of Gaps.codes -> uint8 (M,), 1: marked."""
    def marked(b, y):
        return RULES[rule](log_p_of(weak, b), log_p_of(live, b), y)

    return torch.cat(by_sample(marked, samples)).to(torch.uint8)


@torch.no_grad()
def log_odds(model, problems, enc):
    """log p(right token) - log p(token of the usual mistake), where a problem's two solutions
    first part: mean over the problems in which the mistake shows, in nats.

    In data of which a share q is right the odds there are q / (1 - q): what SFT tends to.
    """
    problems = [p for p in problems if p.mistake not in ("", p.completion)]
    wrong = encode([dataclasses.replace(p, completion=p.mistake) for p in problems], enc)
    cut, mistaken = [], []
    for s, other in zip(encode(problems, enc), wrong, strict=True):
        n = min(len(s.tokens), len(other.tokens))
        at = int((s.tokens[:n] != other.tokens[:n]).nonzero()[0])
        loss = torch.arange(at + 1) == at
        cut.append(dataclasses.replace(s, tokens=s.tokens[:at + 1], loss=loss))
        mistaken.append(int(other.tokens[at]))
    total = 0.0
    for b in micro_batches(cut, 64):
        log_p = log_p_of(model, b)
        y_wrong = torch.tensor([mistaken[i] for i in b.ids.tolist()])
        total += (label_of(log_p, b.y[b.loss_mask]) - label_of(log_p, y_wrong)).sum().item()
    return total / len(cut)
