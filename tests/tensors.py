"""What tests of losses and entropies share: logits in float64, and a spy on tensor sizes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def softmax(z):
    return torch.softmax(z, -1)


def rand(*shape, scale=2.0, seed=None):
    if seed is not None:
        torch.manual_seed(seed)
    return scale * torch.randn(*shape, dtype=torch.float64)


def leaves(tensors):
    """Copies that take gradients."""
    return [t.clone().requires_grad_() for t in tensors]


def mix_logits(z_strong, z_weak, lam):
    """Equation 5, by the book; lam a number or a tensor that broadcasts."""
    return lam * z_strong + (1 - lam) * z_weak


class largest_tensor(TorchDispatchMode):
    """Numel of the largest tensor that any operation returns inside the block."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out
