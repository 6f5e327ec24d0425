"""FSDP2 (--parallel fsdp): weights, gradients and AdamW's state are cut into one shard per rank.

PyTorch's fully_shard does the work: before a block computes, its weights are gathered from all
ranks, and afterwards dropped again; its gradients are summed over ranks, and each rank keeps its
shard of the sum. A cut tensor is a DTensor. Here stands what is cut, and the way from rank 0's
whole tensors to shards and back, one tensor at a time, so that no GPU ever holds a whole model.
Files hold whole tensors, the same with and without shards.

Without shards every function does the plain thing. What is named "all ranks" waits for them.
"""

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn as nn


def is_cut(tensor):
    return hasattr(tensor, "full_tensor")                   # DTensor; its import takes a second


def local(tensor):
    """This rank's part of a tensor."""
    return tensor.detach().to_local() if is_cut(tensor) else tensor


def full(tensor):
    """The whole of a tensor, on all ranks."""
    return tensor.detach().full_tensor() if is_cut(tensor) else tensor


def whole(value):
    """Where tensors are cut: them whole, in rank 0's CPU memory, for a file; all ranks.

    value: a tensor, or a dictionary of them. Ranks that write no file keep nothing: None.
    """
    if isinstance(value, dict):
        return {key: whole(v) for key, v in value.items()}
    if not is_cut(value):
        return value
    gathered = full(value)
    return gathered.cpu() if dist.get_rank() == 0 else None


def weights_of(model):
    """model.state_dict() of whole tensors, for a file; all ranks."""
    weights = model.state_dict()
    for name, p in model.named_parameters():                # a tied one has one name here
        weights[name] = whole(p.detach())
    if model.cfg.tie_embeddings:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    return weights


def cut(tensor, like):
    """Rank 0's whole tensor, on the device of `like` and cut as that is; all ranks."""
    if not is_cut(like) or tensor.dim() == 0:               # AdamW's step is a scalar
        return tensor.to(like.device, copy=True)
    from torch.distributed.tensor import distribute_tensor
    if dist.get_rank() > 0:                                 # only its shape is asked for
        tensor = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements)


@torch.no_grad()
def fill(model, weights):
    """Copy rank 0's whole weights (name -> tensor) into a model; all ranks."""
    for name, p in model.named_parameters():
        local(p).copy_(local(cut(weights[name], p)))


def shard(mixed_loss, ranks):
    """Cut the models of a MixedLoss in place, each block by itself and the rest together.

    Rank 0 has the weights; elsewhere the models may lie on the meta device, without memory. On the
    GPU, blocks are gathered and compute in bf16, and their gradients are summed in fp32.
    Embedding, last norm and head stay fp32: their gradients are sums over many tokens, and the
    loss itself computes in the dtype of the hidden states that it gets.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    policy = MixedPrecisionPolicy()
    if ranks.bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    models = [m for m in (mixed_loss.strong, mixed_loss.weak) if m is not None]
    before = [model.state_dict() for model in models]
    for model in models:
        _put(model, "meta")
        for layer in model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(mixed_loss, mesh=mesh)
    for model, weights in zip(models, before, strict=True):
        _put(model, ranks.device)
        fill(model, weights)


def _put(model, device):
    """New parameters without values on a device; buffers (RoPE's tables) stay as they are."""
    new = {name: nn.Parameter(torch.empty_like(p, device=device))
           for name, p in model.named_parameters()}
    if model.cfg.tie_embeddings:
        new["lm_head.weight"] = new["embed_tokens.weight"]
    model.load_state_dict(new, assign=True)


def even_out(micros, ranks):
    """Add passes without loss until this rank has as many as any other: a block's weights can be
    gathered only by all ranks together."""
    most = torch.tensor(len(micros), device=ranks.device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    first = micros[0]
    T = first.x[0].size(1)
    idle = replace(first, x=[first.x[0][:1]], y=first.y[:T], ids=torch.tensor([-1]),
                   loss_mask=torch.zeros(T, dtype=torch.bool))
    micros += [idle] * (int(most) - len(micros))
