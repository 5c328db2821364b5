"""A CLIP vision transformer, in one layout for all libraries. A pass computes only what a map needs.

The blocks before the first differentiated one run without a graph. In the last block only the class token's row is
computed, because nothing else of its output is ever read. For the same reason no map can explain the last block's *output*
at the patches: the score's gradient there is exactly zero.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .trace import Contributions, Record, Request

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Block:
    """One pre-norm transformer block.

        h = h + out(attention(norm1(h)))
        h = h + mlp(h)

    query, key, value, out: linear, (B, T, D) -> (B, T, D). out_transposed: multiplies fp32 (B, D) with out's weight.
    mlp: includes its own norm, but not the residual.
    """

    norm1: Layer
    query: Layer
    key: Layer
    value: Layer
    out: Layer
    out_transposed: Layer
    mlp: Layer


@dataclass(frozen=True, eq=False)
class VitTower:
    """The image tower: from pixels to an embedding.

    embed: pixels (B, 3, H, W) -> tokens (B, 1 + N, D), the class token first, positions added and normalised.
    post_norm: the LayerNorm over the class token before the projection. projection: (E, D), its weight.
    grid: (rows, cols) of the N patches.
    """

    embed: Layer
    blocks: Sequence[Block]
    num_heads: int
    post_norm: torch.nn.LayerNorm
    projection: Tensor
    grid: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        return self.projection.dtype

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)

    def check(self, request: Request) -> None:
        """Refuse a request that this tower cannot answer, with a ValueError."""
        last = self.num_blocks - 1
        for block in request.features | request.attention | request.mean_attention:
            if block == last + 1:
                raise ValueError(
                    f"block={block} would be the output of the last block, {last}: the score reads only its class token, "
                    "so its gradient at the patches is exactly zero; use block=-1, which is what the last block reads"
                )
            if not 0 <= block <= last:
                raise ValueError(f"block={block} does not exist; this tower has blocks 0 to {last}, and -1 is the last")

    def run(self, pixels: Tensor, texts: Tensor, request: Request) -> Record:
        """One pass. pixels: (B, 3, H, W) preprocessed fp32. texts: (B, E) fp32, for the contributions."""
        with torch.set_grad_enabled(request.pixels):
            hidden = self.embed(pixels.to(self.dtype))  # (B, T, D)
        record = Record()
        shares = _Shares(self, texts, hidden) if request.contributions else None
        for index, block in enumerate(self.blocks):
            with torch.set_grad_enabled(index >= request.first_block):
                hidden = self._run_block(index, block, hidden, request, record, shares)
        with torch.set_grad_enabled(request.first_block < self.num_blocks):
            record.embeds = F.linear(self._normalise(hidden[:, 0]), self.projection.float())
        if shares is not None:
            record.contributions = shares.sums(hidden[:, 0])
        return record

    def to_grid(self, feature: Tensor) -> Tensor:
        """Tokens (B, 1 + N, D) -> patches (B, rows, cols, D), fp32."""
        return feature[:, 1:].unflatten(1, self.grid).float()

    def _run_block(self, index, block, hidden, request, record, shares):
        attended = self._attend(index, block, block.norm1(hidden), request, record, shares)  # (B, T or 1, D)
        hidden = hidden[:, : attended.shape[1]] + attended
        brought = block.mlp(hidden)
        if shares is not None:
            shares.add_mlp(brought[:, 0])
        return hidden + brought

    def _attend(self, index, block, normed, request, record, shares):
        if index in request.features:
            normed = record.features[index] = watched(normed)
        is_last = index == self.num_blocks - 1
        queried = normed[:, :1] if is_last else normed  # only the class token of the last block is ever read
        query, key, value = (
            self._heads(project(tokens))
            for project, tokens in ((block.query, queried), (block.key, normed), (block.value, normed))
        )  # (B, heads, Q or T, D / heads)
        if shares is not None:
            shares.add_attention(block, query.detach(), key.detach(), value.detach())
        if is_last or index in request.attention or index in request.mean_attention:
            attention = _attention(query, key)  # (B, heads, Q, T) fp32
            if index in request.attention:
                attention = record.attention[index] = watched(attention)
            if index in request.mean_attention:
                record.mean_attention[index] = attention.detach().mean(dim=1)
            mixed = attention.to(value.dtype) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value)
        return block.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, T, D / heads)

    def _normalise(self, class_token: Tensor) -> Tensor:
        norm = self.post_norm
        return F.layer_norm(
            class_token.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )


class _Shares:
    """Collects what each block adds to the score while the pass runs. It keeps these numbers, and no activations.

    If the mean and variance of the final LayerNorm are held fixed, the head is linear in the residual stream. The stream's
    class token is a sum over blocks and tokens (Gandelsman et al., arXiv:2310.05916). A token's share includes the bias of
    `value`, since attention sums to 1. The bias of `out` belongs to the constant.
    """

    def __init__(self, tower: VitTower, texts: Tensor, hidden: Tensor):
        self._tower = tower
        norm, projected = tower.post_norm, texts @ tower.projection.float()  # (B, D)
        direction = norm.weight.float() * projected
        self._direction = (direction - direction.mean(dim=1, keepdim=True)).detach()  # (B, D), the LayerNorm's centring
        self._offset = (projected @ norm.bias.float()).detach()  # (B,)
        self._constant = self._along(hidden[:, 0])
        self._tokens, self._mlps = [], []

    def add_attention(self, block: Block, query: Tensor, key: Tensor, value: Tensor) -> None:
        attention = _attention(query[:, :, :1], key)[:, :, 0]  # (B, heads, T), the class token's row
        readout = block.out_transposed(self._direction)  # (B, D)
        heads = readout.unflatten(1, (self._tower.num_heads, -1))  # (B, heads, D / heads)
        shares = attention * torch.einsum("bhtd,bhd->bht", value.float(), heads)
        self._tokens.append(shares.sum(dim=1).detach())  # (B, T)
        bias = block.out(value.new_zeros(1, self._direction.shape[1]))  # (1, D)
        self._constant = self._constant + self._along(bias)

    def add_mlp(self, brought: Tensor) -> None:
        self._mlps.append(self._along(brought))

    def sums(self, class_token: Tensor) -> Contributions:
        """class_token: (B, D), the stream's last. The sums are scaled to the dot product of embedding and text."""
        variance = class_token.detach().float().var(dim=1, unbiased=False)
        scale = (variance + self._tower.post_norm.eps).rsqrt()  # (B,)
        return Contributions(
            tokens=torch.stack(self._tokens, dim=1) * scale[:, None, None],
            mlps=torch.stack(self._mlps, dim=1) * scale[:, None],
            constant=self._constant * scale + self._offset,
        )

    def _along(self, vectors: Tensor) -> Tensor:
        return (vectors.detach().float() * self._direction).sum(dim=1)  # (B,)


def _attention(query: Tensor, key: Tensor) -> Tensor:
    """(B, heads, Q, T) fp32, each row summing to 1."""
    return ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).float().softmax(dim=3)


def watched(tensor: Tensor) -> Tensor:
    """The tensor as a part of the graph. The graph begins here if nothing before it is differentiated."""
    # a view, not the leaf: tools that hook module inputs, such as FlopCounterMode, fail on leaves in autograd.grad
    return tensor if tensor.requires_grad else tensor.requires_grad_().view_as(tensor)
