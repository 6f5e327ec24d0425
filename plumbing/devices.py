"""Which device a program computes on: the one that --device names, or the best that there is; and
what that device can do."""

import functools
import importlib

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


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is what the device computes in when nothing is asked for.

    NVIDIA GPUs have it since Ampere (2020). A CPU and a Mac's GPU use it only when told to.
    """
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


@functools.cache
def has_varlen(device: torch.device) -> bool:
    """Whether FlashAttention takes rows of all lengths in one launch there (model.Rows)."""
    if device.type != "cuda" or torch.version.hip:
        return False
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        importlib.import_module("torch.nn.attention.varlen")    # older versions of torch lack it
    except ImportError:
        return False
    return True


def exact(device: torch.device) -> torch.device:
    """Where float64 is computed for that device: a Mac's GPU has none."""
    return torch.device("cpu") if device.type == "mps" else device
