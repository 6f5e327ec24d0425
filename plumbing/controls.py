"""What stands beside the method to test it: the arms of stage 3, the losses of the controls, the
diagnostics of the log.

A control is a function (branches, y) -> summed cross-entropy that wraps linear_cross_entropy; the
training loop does not know of it. To add an arm of your own, write such a function and give it a
line in ARMS; `python train_wmss.py --arm NAME` then trains it from the same M1 on the same data.

Shapes: N loss tokens of a micro-batch, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn as nn

from plumbing.loss import Control, linear_cross_entropy
from plumbing.neighbours import Averaged, Confidence, Dft, Distilled, Focal, Gce, Reweighted
from plumbing.shard import full

# ---- arms --------------------------------------------------------------------------------------


class Arm(NamedTuple):
    """What stage 3 does with M1.

    weak: "joint" (the weak model is trained too), "frozen", "itself" (M1, frozen: a teacher), ""
        (there is none), or None: as the flag --weak says.
    gap: what the entropy gaps are used for: "none", "sample" (resampling), "token" (a mask on the
        mixing), "both", or None: as the flag --gap says.
    lr: the field of Config that holds its peak learning rate.
    control: cfg -> a loss of its own, or None: linear_cross_entropy.
    """
    weak: str | None = ""
    gap: str | None = "none"
    lr: str = "wmss_lr"
    control: Callable | None = None


class Temperature(Control):
    """CE(softmax(lam * z_strong)): what mixing does when the weak model says nothing."""

    def __call__(self, branches, y):
        scaled = [(self.cfg.lam * c, h, w) for c, h, w in branches]
        return linear_cross_entropy(scaled, y, self.chunk_rows)


class Smoothing(Control):
    """Label smoothing with 0.1: the cheapest way to keep gradients alive."""

    def __call__(self, branches, y):
        return linear_cross_entropy(branches, y, self.chunk_rows, smoothing=0.1)


class Permuted(Control):
    """The weak model's logits, those of the target apart, are permuted among themselves.

    What mixing then gives is due to the sizes of the weak model's errors, not to which tokens it
    errs on. Each loss token of each step has its own permutation, a function of (seed, step,
    sample, place in the sample) alone: batching, ranks and restarts do not change it.
    """

    def begin(self, step, micros):
        """Make the keys of this step: one (N,) int64 for each of its micro-batches."""
        self.keys = []
        for batch in micros:
            counts = loss_counts(batch)
            first = counts.cumsum(0) - counts
            place = torch.arange(int(counts.sum())) - first.repeat_interleave(counts)
            ids = batch.ids.repeat_interleave(counts)
            self.keys.append(hash_ids(self.cfg.seed, step, ids, place))

    def __call__(self, branches, y):
        keys = self.keys.pop(0).to(y.device)

        def permute(z, rows):
            return permute_logits(z, y[rows], keys[rows])

        return linear_cross_entropy(branches, y, self.chunk_rows, permute=permute)


def loss_counts(batch):
    """How many loss tokens each row of a packed Batch has -> (B,) long, in the order of its ids."""
    masks = batch.loss_mask.split([bucket.numel() for bucket in batch.x])
    per_bucket = [mask.view(bucket.shape).sum(1)
                  for mask, bucket in zip(masks, batch.x, strict=True)]
    return torch.cat(per_bucket)


ARMS = {
    "sft-steps": Arm(lr="sft_steps_lr"),            # plain SFT for as many steps: the baseline
    "sft-flops": Arm(lr="sft_flops_lr"),            # plain SFT for as many FLOPs
    "joint": Arm("joint", lr="joint_lr"),           # mixing alone, every sample once
    "wmss": Arm(None, None),                        # the paper: mixing and resampling
    "wmss-mask": Arm(None, "token", "mask_lr"),     # this project's gap mask on the mixing
    "frozen": Arm("frozen"),                        # mixing with a weak model that does not adapt
    "permuted": Arm(None, control=Permuted),        # does it matter which tokens it errs on?
    "temperature": Arm(control=Temperature),        # what mixing does without a weak model
    "smoothing": Arm(control=Smoothing),
    "weights-only": Arm(gap="sample"),              # resampling alone
    # neighbours, see plumbing/neighbours.py: is it the weak model, or any softening?
    "dft": Arm(control=Dft),
    "focal": Arm(control=Focal),
    "gce": Arm(control=Gce),
    "confidence": Arm(control=Confidence),
    "distilled": Arm("itself", control=Distilled),
    "averaged": Arm(control=Averaged),
    "reweighted": Arm("frozen", control=Reweighted),
}
UNMIXED = ("distilled", "reweighted")           # they have a weak model, and do not mix its logits
FORMER_NAMES = {"d0": "temperature", "label-smoothing": "smoothing"}   # of their checkpoints
ROWS = ("base", "sft", *ARMS, "weak", "fused")      # of the table of scores; sft is M1


def arm_of(cfg, name):
    """The arm of that name; what it leaves open is as the flags say."""
    arm = ARMS[name]
    return arm._replace(weak=cfg.weak if arm.weak is None else arm.weak,
                        gap=cfg.gap if arm.gap is None else arm.gap)


def needs_gaps(cfg):
    """Whether an arm uses the gaps, or has its steps or FLOPs from wmss, which does."""
    return cfg.gap != "none" or any(arm_of(cfg, name).gap != "none" for name in cfg.arm)


def hash_ids(*ids):
    """Whole numbers, or int64 tensors that broadcast -> int64: a pseudo-random function of all.

    It is splitmix64 (Steele et al. 2014): the same on every device, whatever the order or the
    company in which the numbers are asked for.

    >>> hash_ids(0, torch.arange(2)).tolist()
    [-6411193824288604561, 627405149472732430]
    """
    x = torch.zeros((), dtype=torch.int64)
    for i in ids:                       # int64 wraps around, as splitmix64 wants
        x = x.to(i.device) if isinstance(i, torch.Tensor) else x
        x = (x ^ i) - 7046029254386353131
        x = (x ^ (x >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
        x = (x ^ (x >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
        x = x ^ (x >> 31 & 0x1FFFFFFFF)
    return x


def permute_logits(z, y, keys):
    """Permute each row's values at the places that are not the target's -> (permuted, source).

    permuted[n, k] = z[n, source[n, k]]. z (N, V), targets y (N,) long, keys (N,) int64: a row's
    permutation is a function of its key alone, one random cycle (Sattolo's): every value but the
    target's moves. The gradient with respect to z is that of `permuted`, scattered to source.

    >>> z, y, keys = torch.tensor([[1., 2., 3., 4., 5.]]), torch.tensor([2]), torch.tensor([7])
    >>> permute_logits(z, y, keys)[0].tolist()
    [[2.0, 4.0, 3.0, 5.0, 1.0]]
    """
    place = torch.arange(z.size(-1), device=z.device)
    last = (1 << 31) - 1
    # (N, V) random numbers, of 32 bits: they sort twice as fast as 64. The target comes last: the
    # places 0 -> 1 -> ... -> V - 2 -> 0 of that order are the cycle
    u = (hash_ids(keys[:, None], place) >> 32).int().clamp(max=last - 1)
    order = u.scatter(-1, y[:, None], last).argsort(stable=True)
    after = torch.cat([order[:, 1:-1], order[:, :1], order[:, -1:]], -1)
    source = torch.empty_like(order).scatter_(-1, order, after)
    return z.gather(-1, source), source


# ---- diagnostics -------------------------------------------------------------------------------


def token_statistics(z_strong, y, z_weak=None, lam=0.5, gap_rule=None):
    """Means over n tokens of what the models know of them -> dict of numbers, for the log.

    z_strong, z_weak: logits (n, V); y: targets (n,), n >= 1; entropies in nats.
    margin: logit of the target less the largest other one. p_target: the strong model's
    probability of the target. With z_weak also the entropy of softmax(lam z_strong + (1 - lam)
    z_weak), and the affinity sum_v p_weak^(1-lam) p_strong^lam, which is 1 where both are one.
    gap_rule(ent_weak, ent_strong) -> codes 0 to 3 (entropy.gap_mask): then also how many of the
    tokens have which code.
    """
    def entropy(log_p):
        return -(log_p.exp() * log_p).sum(-1)

    strong = z_strong.log_softmax(-1)
    of_y = z_strong.gather(-1, y[:, None])[:, 0]
    others = z_strong.scatter(-1, y[:, None], -math.inf).amax(-1)
    found = dict(margin=of_y - others, p_target=strong.gather(-1, y[:, None]).exp(),
                 ent_strong=entropy(strong))
    if z_weak is not None:
        weak = z_weak.log_softmax(-1)
        mix = lam * strong + (1 - lam) * weak
        log_c = mix.logsumexp(-1, keepdim=True)
        found.update(ent_weak=entropy(weak), ent_mix=entropy(mix - log_c), affinity=log_c.exp())
    out = {name: value.mean().item() for name, value in found.items()}
    if z_weak is not None and gap_rule is not None:
        codes = gap_rule(found["ent_weak"], found["ent_strong"])
        out["codes"] = torch.bincount(codes.long(), minlength=4).tolist()
    return out


class Watch:
    """Looks over the shoulder of a training step that is logged, by hooks on the models.

    Of about 128 loss tokens of the step, spread over its micro-batches, it keeps the targets and
    the hidden states that the heads read; read() then says what token_statistics() says of them,
    and the norm of each model's gradient. Training is the same with and without it.
    """
    ROWS = 128

    def __init__(self, mixed_loss, lam, gap_rule):
        self.models = dict(strong=mixed_loss.strong, weak=mixed_loss.weak)
        self.lam, self.gap_rule = lam, gap_rule
        self.every, self.rows = 0, []
        mixed_loss.register_forward_pre_hook(self._at_targets)
        for name, model in self.models.items():
            if model is not None:
                model.register_forward_hook(self._at_hidden(name))

    def begin(self, n_tokens, wanted):
        self.rows = []
        self.every = math.ceil(n_tokens / self.ROWS) if wanted else 0

    def _at_targets(self, _module, inputs):
        if self.every:
            _, y, self.positions, _ = inputs
            self.rows.append(dict(y=y[::self.every]))

    def _at_hidden(self, name):
        def keep(_module, _inputs, hidden):
            if self.every:
                picked = self.positions[::self.every]
                rows = hidden.detach().flatten(0, -2).index_select(0, picked)
                self.rows[-1][name] = rows
        return keep

    @torch.no_grad()
    def read(self):
        """-> dict for the log; to be called after backward, before the gradients are clipped.

        Where models are cut into shards, all ranks have to watch and read.
        """
        found = {}
        for name, model in self.models.items():
            grads = [] if model is None else [p.grad for p in model.parameters()
                                              if p.requires_grad and p.grad is not None]
            if model is not None and any(p.requires_grad for p in model.parameters()):
                found[f"gnorm_{name}"] = full(nn.utils.get_total_norm(grads)).item()

        def logits(name):
            if self.models[name] is None:
                return None
            h = torch.cat([row[name] for row in self.rows]).float()
            return nn.functional.linear(h, full(self.models[name].lm_head.weight).float())

        y = torch.cat([row["y"] for row in self.rows])
        z_strong, z_weak = logits("strong"), logits("weak")     # on a rank without a row, too
        if len(y):
            found |= token_statistics(z_strong, y, z_weak, self.lam, self.gap_rule)
        self.begin(0, False)
        return found
