"""The ways to spread an advantage over tokens. Each way is one row of `MODES`; a new mode needs a row and a function.

A mode's function returns what a map adds to the even spread: (B, N) float64, with mean 0 over the tokens of an image, and
exactly 0 where the map says nothing. It takes:

    part      (B,), the part of the advantage that the map spreads
    maps      (B, N)
    map_kind  the kind of the maps
    by name   alpha, lam, w_max, map_valid, neutral, evidence, group_ids; `token_advantages` explains them
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .spread import MAP_KINDS, token_residuals, token_weights


@dataclass(frozen=True)
class Mode:
    """A way to spread an advantage.

    change: the function described above; None spreads evenly.
    map_kinds: the kinds of map that the mode can use; empty where it needs no map.
    metrics: takes the arguments of `change` and returns what the maps did, {name: 0-dim tensor}; None measures nothing.
    """

    change: Callable[..., torch.Tensor] | None
    map_kinds: tuple[str, ...]
    metrics: Callable[..., dict[str, torch.Tensor]] | None = None


def weighted(part, maps, map_kind, **spread):
    """part * (w - 1), where `token_weights` gives the weights w. Returns (B, N)."""
    weights, _ = _weights(part, maps, map_kind, **spread)
    return part[:, None] * (weights.double() - 1)


def residual(*arguments, **spread):
    """lam * u, where `token_residuals` gives the residuals u. lam: a number, or (B,). Returns (B, N)."""
    change, _ = _residuals(*arguments, **spread)
    return change


def weight_metrics(weights, fallback):
    """What the weights did, as detached 0-dim tensors. Processes with equal batches average each of them.

    weights: (B, N). fallback: (B,) bool. Returns

        fallback_share         share of the images whose map was not used
        effective_token_share  1 / mean(w^2): 1 for the scalar advantage, 1/8 where an eighth of the tokens holds all weight
    """
    return {
        "fallback_share": fallback.float().mean(),
        "effective_token_share": (1 / weights.detach().square().mean(dim=1)).mean(),
    }


def residual_metrics(change, fallback):
    """What the residuals did, as `weight_metrics`. change: (B, N), lam * u. fallback: (B,) bool. Returns

    fallback_share  share of the images whose map was not used
    residual_rms    root mean square of lam * u; the advantages A, to which it is added, have a root mean square near 1
    """
    return {"fallback_share": fallback.float().mean(), "residual_rms": change.detach().square().mean().sqrt().float()}


def _residuals(part, maps, map_kind, *, lam, map_valid, group_ids, **_):
    residuals, fallback = token_residuals(maps, group_ids, map_kind, map_valid)
    lam = lam.to(residuals).reshape(-1, 1) if isinstance(lam, torch.Tensor) else lam
    return lam * residuals.double(), fallback


def _metrics_of_residuals(*arguments, **spread):
    return residual_metrics(*_residuals(*arguments, **spread))


def _weights(part, maps, map_kind, *, alpha, w_max, map_valid, neutral, evidence, group_ids, **_):
    return token_weights(part, maps, map_kind, alpha, w_max, map_valid, neutral, evidence, group_ids)


def _metrics_of_weights(*arguments, **spread):
    return weight_metrics(*_weights(*arguments, **spread))


MODES = {
    "scalar": Mode(None, ()),
    "weight": Mode(weighted, MAP_KINDS, _metrics_of_weights),
    "residual": Mode(residual, ("reward",), _metrics_of_residuals),
}
