"""Which device a program computes on: the one that --device names, or the best that there is."""

import torch


def pick(name: str = "auto") -> torch.device:
    """The device of --device NAME. auto: a CUDA GPU, else the GPU of a Mac, else the CPU.

    ValueError, in one sentence, where this machine has none of that name.
    """
    if name == "auto":
        name = "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
        if torch.cuda.is_available():
            name = "cuda"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(f"--device {name}: expected auto, or one that this machine has "
                         f"({reason})") from None
