"""Neighbours of the method: other ways to soften fine-tuning or to make it robust to wrong labels.

They answer whether it is the weak model that helps, or any softening. Each is a loss on the strong
model's own logits, in one line; they stand as arms of stage 3 in plumbing/controls.py.

Shapes: N loss tokens of a micro-batch, n of them at a time, C width, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from plumbing.loss import Control, chunk_of, linear_cross_entropy


class RowLoss(Control):
    """The sum over tokens of row_loss(log_p (n, V), log_p_y (n,)) -> (n,), in nats.

    A subclass says what row_loss is. A chunk's logits are computed again in the backward pass, so
    no matrix of (N, V) is stored.
    """

    def __call__(self, branches, y):
        tensors = [t for _, h, w in branches for t in (h, w)]
        size = self.chunk_rows or chunk_of(len(tensors[1]))
        total = 0
        for i in range(0, max(1, len(y)), size):            # no rows: one empty chunk, a loss of 0
            rows = [h[i:i + size] for h in tensors[::2]]
            total = total + checkpoint(self.piece, y[i:i + size], rows, tensors[1::2],
                                       use_reentrant=False)
        return total

    def piece(self, y, hidden, heads):
        log_ps = [F.linear(h, w.to(h)).float().log_softmax(-1)
                  for h, w in zip(hidden, heads, strict=True)]
        log_p_y = log_ps[0].gather(-1, y[:, None])[:, 0]
        return self.row_loss(log_ps[0], log_p_y, *log_ps[1:]).sum()


class Dft(RowLoss):
    """Dynamic fine-tuning (Wu et al. 2025): tokens count by the probability they have already."""

    def row_loss(self, log_p, log_p_y):
        return -log_p_y.exp().detach() * log_p_y


class Focal(RowLoss):
    """Focal loss with exponent 2 (Lin et al. 2017): tokens count by what they still lack."""

    def row_loss(self, log_p, log_p_y):
        return -(1 - log_p_y.exp()) ** 2 * log_p_y


class Gce(RowLoss):
    """Generalised cross-entropy with q = 0.7 (Zhang and Sabuncu 2018): robust to wrong labels."""

    def row_loss(self, log_p, log_p_y):
        return (1 - (0.7 * log_p_y).exp()) / 0.7


class Confidence(RowLoss):
    """Cross-entropy less 0.1 of the entropy (Pereyra et al. 2017): doubt earns a bonus."""

    def row_loss(self, log_p, log_p_y):
        return -log_p_y + 0.1 * (log_p.exp() * log_p).sum(-1)


class Distilled(RowLoss):
    """Half the label, half a frozen M1 as the teacher (Hinton et al. 2015), lam being the half."""

    def row_loss(self, log_p, log_p_y, log_p_teacher):
        soft = -(log_p_teacher.exp() * log_p).sum(-1)
        return -self.cfg.lam * log_p_y + (1 - self.cfg.lam) * soft


class Reweighted(Control):
    """Plain cross-entropy; a label that is the weak model's own first choice counts a fifth.

    Such a label may be right, or its mistake once more; one that contradicts it can only come from
    the data. (Reweighting by a biased model, Clark et al. 2019; there a label counts 1 - p of it.)
    """
    COUNTS = 0.2

    def __call__(self, branches, y):
        (_, h, w), (_, h_weak, w_weak) = branches
        with torch.no_grad():
            size = self.chunk_rows or chunk_of(len(w))
            first = [F.linear(part, w_weak.to(part)).argmax(-1) for part in h_weak.split(size)]
        agree = torch.cat(first) == y
        of_both = [linear_cross_entropy([(1.0, h[rows], w)], y[rows], self.chunk_rows)
                   for rows in (agree, ~agree)]
        return self.COUNTS * of_both[0] + of_both[1]


class Averaged(Control):
    """Plain cross-entropy; what is kept is a moving average of the weights (Polyak and Juditsky).

    It remembers a fifth of the stage. The average lies in the optimizer's state, so that interim
    saves hold it; the last step puts it in the place of the weights.
    """

    def attach(self, opt, steps):
        decay = steps / (steps + 5)                         # remembers about steps / 5 of them

        @torch.no_grad()
        def average(opt, _args, _kwargs):
            for p, state in opt.state.items():
                mean = state.setdefault("average", p.detach().clone())
                mean.lerp_(p, 1 - decay)
                if int(state["step"]) == steps:
                    p.copy_(mean)

        opt.register_step_post_hook(average)
