"""Weights and optimizer state that lie in parts on several processes (FSDP2's DTensors): whole where saved."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with all its parts, detached; every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def own_parts(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What of the tensors lies in this process: their memory, no copy, detached."""
    return [(tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach() for tensor in tensors]


def parts_like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor as the target lies: this process's part where the target is in parts."""
    tensor = tensor.to(target.device, target.dtype)
    if isinstance(target, DTensor):  # every process holds the whole tensor, so none need send it
        return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors, on the CPU; every process must call it."""
    return tree_map_only(torch.Tensor, lambda tensor: whole(tensor).cpu(), optimizer.state_dict())


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over what `whole_optimizer_state` gave, in this run or another, however the parameters lie."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: parts_like(value, parameters[index]) if value.shape == parameters[index].shape else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": moments})
