"""The ways to spread an advantage over tokens, one row each; a row and its function are all that a mode needs.

A mode's function says what a map adds to the even spread. It takes the part (B,) of the advantage that the map spreads, the
maps (B, N) and their kind, and by name: alpha, lam, w_max, map_valid, neutral, evidence, group_ids, as `token_advantages`
explains them. It gives (B, N) float64, of mean 0 over tokens, exactly 0 where the map says nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .spread import MAP_KINDS, token_residuals, token_weights


@dataclass(frozen=True)
class Mode:
    """A way to spread an advantage.

    change: as above; None spreads evenly. map_kinds: the kinds of map that it can use; empty where it needs none.
    metrics: of the same arguments as change, {name: 0-dim tensor}: what the maps did; None measures nothing.
    """

    change: Callable[..., torch.Tensor] | None
    map_kinds: tuple[str, ...]
    metrics: Callable[..., dict[str, torch.Tensor]] | None = None


def weighted(part, maps, map_kind, **spread):
    """part * (w - 1), by `token_weights`."""
    weights, _ = _weights(part, maps, map_kind, **spread)
    return part[:, None] * (weights.double() - 1)


def residual(part, maps, map_kind, *, lam, map_valid, group_ids, **_):
    """lam * u, by `token_residuals`. lam: number or (B,)."""
    residuals, _ = token_residuals(maps, group_ids, map_kind, map_valid)
    lam = lam.to(residuals).reshape(-1, 1) if isinstance(lam, torch.Tensor) else lam
    return lam * residuals.double()


def weight_metrics(weights, fallback):
    """What weights did, as detached 0-dim tensors: over ranks of equal batches each reduces by its mean.

    weights: (B, N). fallback: (B,) bool. fallback_share: images whose map was not used. effective_token_share:
    1 / mean(w^2), 1 for the scalar advantage, 1/8 where an eighth of the tokens holds all the weight.
    """
    return {
        "fallback_share": fallback.float().mean(),
        "effective_token_share": (1 / weights.detach().square().mean(dim=1)).mean(),
    }


def _weights(part, maps, map_kind, *, alpha, w_max, map_valid, neutral, evidence, group_ids, **_):
    return token_weights(part, maps, map_kind, alpha, w_max, map_valid, neutral, evidence, group_ids)


def _metrics_of_weights(*arguments, **spread):
    return weight_metrics(*_weights(*arguments, **spread))


MODES = {
    "scalar": Mode(None, ()),
    "weight": Mode(weighted, MAP_KINDS, _metrics_of_weights),
    "residual": Mode(residual, ("reward",)),
}
