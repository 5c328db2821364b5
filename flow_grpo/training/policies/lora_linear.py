"""A linear layer with LoRA in fewer products than peft's own: the same function, the same names, the same gradients.

With W (out, in) and bias b frozen, A (rank, in) and B (out, rank) trained, and scale s:

    y = x W' + b        W' = W + s B A

In fp32 the layer adds the two weights first. That costs one small product per pass, whatever the number of tokens, and the
forward pass over the tokens is the base model's own. In half precision W' would round B A away, so there the adapter's
output is added to the base's, and nothing is cast to fp32 and back.
"""

import torch
from peft.tuners import lora
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class LoraLinear(lora.Linear):
    """peft's layer with another `forward`. One adapter, without dropout; `LoraAdapter` makes no other."""

    def forward(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if self.disable_adapters:
            # As one matrix, like below: in another shape the product might round otherwise.
            return F.linear(_rows(x.to(base.weight.dtype)), base.weight, base.bias).unflatten(0, x.shape[:-1])
        (name,) = self.active_adapters
        down, up, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        rows = _rows(x.to(base.weight.dtype))  # (tokens, in)
        if base.weight.dtype == torch.float32:
            outputs = _Merged.apply(rows, base.weight, base.bias, down, up, scale)
        else:
            low = F.linear(rows, down.to(rows.dtype))  # (tokens, rank)
            own, added = F.linear(rows, base.weight, base.bias), F.linear(low, (scale * up).to(rows.dtype))
            # As matrices torch.compile would make this sum a product's own, which first copies `own`. In the shape of x the
            # sum becomes a part of what follows.
            return own.unflatten(0, x.shape[:-1]) + added.unflatten(0, x.shape[:-1])
        return outputs.unflatten(0, x.shape[:-1])


class _Merged(torch.autograd.Function):
    """x W' + b, with the gradients of x, A and B alone. dW' is never made: it has a row per output, not one per rank."""

    @staticmethod
    def forward(
        ctx, rows: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(rows, weight, down, up)
        ctx.scale = scale
        return F.linear(rows, torch.addmm(weight, up, down, alpha=scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, down, up = ctx.saved_tensors
        # x may need none: nothing before the first block is trained
        of_rows = gradient @ torch.addmm(weight, up, down, alpha=ctx.scale) if ctx.needs_input_grad[0] else None
        of_low = gradient @ (ctx.scale * up)  # (tokens, rank)
        return of_rows, None, None, of_low.t() @ rows, ctx.scale * (gradient.t() @ (rows @ down.t())), None


def _rows(x: Tensor) -> Tensor:
    """x (..., in) as one matrix (tokens, in). Of a slice, a linear layer would make a product for each image."""
    return x.reshape(-1, x.shape[-1])
