"""The bytes that a model keeps for its backward pass, counted on the meta device: shapes and types, and no numbers."""

from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

META = torch.device("meta")


class RealMasks(TorchDispatchMode):
    """Integers and booleans have values and stay on the CPU, though all else is on the meta device.

    A transformer may ask a mask where its text ends, and go on by the answer. The meta device has none.
    """

    def __torch_dispatch__(self, operation, types, args: tuple = (), kwargs: dict[str, Any] | None = None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(tensor.is_meta for tensor in tensors):
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(META), (args, kwargs))
        elif kwargs.get("device") == META:
            dtype = kwargs.get("dtype") or (tensors[0].dtype if tensors else torch.get_default_dtype())
            if not (dtype.is_floating_point or dtype.is_complex):
                kwargs = kwargs | {"device": torch.device("cpu")}
        return operation(*args, **kwargs)


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps: queries, keys, values and the result. The meta device has no such kernel."""

    @staticmethod
    def forward(ctx, query, key, value):
        result = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("nothing is computed on the meta device")


def fused_attention(query, key, value, attn_mask=None, **options):
    return FusedAttention.apply(query, key, value)


def kept_bytes(transformer: nn.Module, inputs: dict) -> int:
    """The bytes that autograd keeps between a forward pass and its backward pass, weights left out."""
    weights = {parameter.untyped_storage()._cdata for parameter in transformer.parameters()}
    kept = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other storage gets its number
        return saved

    original = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = fused_attention
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved), RealMasks():
            transformer(**inputs, return_dict=False)
    finally:
        torch.nn.functional.scaled_dot_product_attention = original
    return sum(storage.nbytes() for storage in kept.values())
