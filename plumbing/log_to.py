"""--log-to: what a step writes to log.jsonl goes to TensorBoard or Weights & Biases, too.

A service of your own is a class like the two, and a line of SERVICES, by its package's name.
"""

import importlib.util
import os
from dataclasses import asdict


class TensorBoard:
    """Files in out/NAME/tensorboard: `tensorboard --logdir out` shows them."""

    def __init__(self, cfg, out):
        from torch.utils.tensorboard import SummaryWriter
        self.writer = SummaryWriter(os.path.join(out, "tensorboard"))

    def send(self, arm, step, numbers):
        for key, value in numbers.items():
            self.writer.add_scalar(f"{arm}/{key}", value, step)
        self.writer.flush()                 # a crash loses nothing

    def close(self):
        self.writer.close()


class WeightsAndBiases:
    """A run of the project wmss (or $WANDB_PROJECT); a resumed one goes on in the same."""

    def __init__(self, cfg, out):
        import wandb
        kept, known = os.path.join(out, "wandb.id"), None
        if os.path.exists(kept):
            with open(kept) as f:
                known = f.read().strip()
        self.run = wandb.init(project=os.environ.get("WANDB_PROJECT", "wmss"), name=cfg.name,
                              dir=out, config=asdict(cfg), id=known, resume="allow")
        with open(kept, "w") as f:
            f.write(self.run.id)

    def send(self, arm, step, numbers):
        # each arm counts its own steps
        self.run.define_metric(f"{arm}/*", step_metric=f"{arm}/step")
        named = {f"{arm}/{key}": value for key, value in numbers.items()}
        self.run.log({**named, f"{arm}/step": step})

    def close(self):
        self.run.finish()


SERVICES = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}


def missing(name):
    """A sentence if --log-to NAME cannot work here, else ""."""
    if not name or importlib.util.find_spec(name):
        return ""
    return (f"--log-to {name} needs a package that is not installed: "
            f"pip install {name}, or leave the flag away")


def numbers_of(record):
    """The numbers of a step's record, one by one.

    >>> numbers_of({"arm": "sft", "step": 3, "loss": 0.5, "codes": [2, 1]})
    {'loss': 0.5, 'codes/0': 2, 'codes/1': 1}
    """
    found = {}
    for key, value in record.items():
        if isinstance(value, list):
            found.update({f"{key}/{i}": part for i, part in enumerate(value)})
        elif isinstance(value, (int, float)) and key != "step":
            found[key] = value
    return found
