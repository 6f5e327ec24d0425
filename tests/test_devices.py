"""plumbing/devices.py: --device auto, on machines that this one is not."""

import pytest
import torch

from plumbing import devices

HAS = {"cuda": (True, False), "mps": (False, True), "cpu": (False, False)}


class Empty:
    """What torch.empty gives on a machine that has the device."""

    def __init__(self, *size, device):
        self.device = device


@pytest.mark.parametrize("best", HAS)
def test_auto_takes_the_gpu_that_is_there(best, monkeypatch):
    """Bug: an hour of scoring on the processor of a GPU machine; a Mac's GPU passed over."""
    cuda, mps = HAS[best]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "empty", Empty)
    assert devices.pick("auto") == best and devices.pick() == best
    assert devices.pick("cpu") == "cpu"


@pytest.mark.parametrize("name", ("foo", "cuda", "mps", "cuda:9"))
def test_a_device_that_is_not_there_is_one_sentence(name, monkeypatch):
    """Bug: torch's traceback, after the model has been read."""
    if name[:4] == "cuda" and torch.cuda.is_available() or name == "mps" and (
            torch.backends.mps.is_available()):
        pytest.skip("this machine has the device that is to be missing")
    with pytest.raises(ValueError, match=f"--device {name}: expected auto, or one that this"):
        devices.pick(name)


def test_the_device_is_one_of_torch():
    """Bug: a name where a torch.device is wanted."""
    assert devices.pick("cpu") == torch.device("cpu")
