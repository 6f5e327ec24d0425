"""Loss on samples that are held out of training: in each arm's log, and a table of all models.

It is the mean over all loss tokens of the cross-entropy of the model alone, in nats, on the same
tokens for every arm. Measuring it changes no bit of training.
"""

import json
from functools import partial

import torch

from data import micro_batches, send
from model import load_checkpoint
from plumbing.controls import ROWS
from plumbing.devices import exact
from plumbing.files import write_text
from plumbing.shard import even_out

TIMES = 8               # how often an arm is measured: with 2 % held out it takes 5 % of its time


def steps_of(run, steps):
    """The steps of an arm after which it is measured, its last among them."""
    return {steps * (i + 1) // TIMES for i in range(TIMES)} - {0} if run.held_out else set()


@torch.no_grad()
def measure(run, summed_loss, training=False):
    """-> dict of val_loss and val_tokens; all ranks, each of which reads a share of the samples.

    summed_loss(x, y, positions): as MixedLoss.forward. training: the precision of training.
    """
    cfg, ranks, total = run.cfg, run.ranks, 0.0
    micros = micro_batches(run.held_out, cfg.micro_batch, ranks.rank, ranks.world,
                           cfg.tokens_per_batch)
    if ranks.sharded and training:
        even_out(micros, ranks)
    for batch in micros:
        positions = batch.loss_mask.flatten().nonzero()[:, 0]
        y = batch.y.flatten()[positions]
        x, y, positions = send((batch.x, y, positions), ranks.device)
        with ranks.autocast(training):
            total += summed_loss(x, y, positions).item()
    total = torch.tensor(total, dtype=torch.float64, device=exact(ranks.device))
    tokens = sum(int(s.loss[1:].sum()) for s in run.held_out)
    return dict(val_loss=ranks.sum(total).item() / tokens, val_tokens=tokens)


def of_training(run, mixed_loss):
    """The loss of the strong model, without its weak one and control, while it is trained."""
    weak, control = mixed_loss.weak, mixed_loss.control
    mixed_loss.weak = mixed_loss.control = None
    found = measure(run, lambda *batch: mixed_loss(*batch, 1.0), training=True)
    mixed_loss.weak, mixed_loss.control = weak, control
    if run.ranks.sharded:
        mixed_loss.reshard()            # as backward would have done
    return found


def table(run, mixed_loss):
    """The losses of all models of a run, by mixed_loss(strong, weak): said, and in val.json."""
    rows = []
    for name, path in run.folder.models(ROWS).items():
        paths, lam = [path], 1.0
        if name == "fused":
            paths, lam = [run.folder.path("wmss.pt"), path], run.cfg.lam
        models = [load_checkpoint(p, run.ranks.device, run.tokenizer)[0].eval() for p in paths]
        found = measure(run, partial(mixed_loss(*models), lam=lam))
        rows.append(dict(model=name, checkpoint=path, **found))
    lines = [f"validation: {len(run.held_out):,} samples, {rows[0]['val_tokens']:,} loss tokens",
             f"{'model':14s}loss, nats a token"]
    lines += [f"{row['model']:14s}{row['val_loss']:.4f}" for row in rows]
    run.folder.say("\n" + "\n".join(lines))
    if run.ranks.rank == 0:
        write_text(run.folder.path("val.json"), json.dumps(rows, indent=1))
