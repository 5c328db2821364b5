"""Joins weights and optimizer state whose parts lie on several processes (FSDP2's DTensors), and splits them again."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with all its parts, detached. Every process must call it."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def own_parts(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The parts of the tensors that lie in this process, detached. They share memory with the tensors."""
    return [(tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach() for tensor in tensors]


def parts_like(tensor: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """A whole tensor, laid out like the target: where the target is in parts, this process keeps its part."""
    tensor = tensor.to(target.device, target.dtype)
    if isinstance(target, DTensor):  # every process holds the whole tensor, so none need send it
        return distribute_tensor(tensor, target.device_mesh, target.placements, src_data_rank=None)
    return tensor


def whole_copy(state: Any, keep: bool) -> Any:
    """A copy of a state, with whole tensors on the CPU; None if `keep` is False. Every process must call it.

    Parts are joined tensor by tensor. So a process that does not keep the copy needs memory for one whole tensor, not for
    all of them.
    """

    def copied(tensor: torch.Tensor) -> torch.Tensor | None:
        joined = whole(tensor)
        # A copy even on the CPU, since training changes the tensor.
        return joined.to("cpu", copy=True) if keep else None

    copies = tree_map_only(torch.Tensor, copied, state)
    return copies if keep else None


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the `whole_copy` of an optimizer's state, in this run or another, whether parameters are whole or in parts.

    The learning rate and the other options stay the optimizer's own: a resumed run may be allowed to change them.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            # Clones: else the optimizer would go on in the state's own memory, which may be a file's.
            name: (parts_like(value, parameters[index]) if value.shape == parameters[index].shape else value).clone()
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    # torch would take the options of the state
    groups = [
        {**own, "params": saved["params"]}
        for own, saved in zip(optimizer.param_groups, state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
