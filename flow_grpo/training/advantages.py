"""Advantages: how the advantage of an image is spread over its tokens.

`group_advantages`, of `groups.py`, compares the images of one prompt and gives each image one advantage A.
`token_advantages` spreads A over the image's tokens by a reward map. The mean over the tokens stays A: the map only says
where A was earned. `spread.py` has the formulas.
`combined_token_advantages` does the same for several rewards. A is the sum of their parts, and each reward spreads its own
part by its own map.
Sums run in float64. Results are rounded to fp32.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .controls import CONTROLS, controlled_maps
from .groups import COMBINES, check_clip, group_advantages, part_metrics, reward_parts
from .modes import MODES, weight_metrics
from .spread import (
    EVIDENCE,
    MAP_KINDS,
    MIN_EVIDENCE,
    NEUTRAL,
    check_maps,
    check_strength,
    token_residuals,
    token_weights,
)

# fmt: off
__all__ = [
    "MODES", "COMBINES", "EVIDENCE", "CONTROLS", "MAP_KINDS", "NEUTRAL", "MIN_EVIDENCE",
    "group_advantages", "reward_parts", "token_advantages", "combined_token_advantages", "faded_alpha",
    "token_weights", "token_residuals", "controlled_maps", "weight_metrics", "part_metrics",
]
# fmt: on


def faded_alpha(alpha: float, sigma: float | Tensor, gamma: float) -> float | Tensor:
    """The map's strength at noise level sigma.

        alpha * (1 - sigma) ** gamma

    sigma: number or (B,) in [0, 1]; 1 is pure noise. gamma: 0 does not fade.
    The early steps lay out the image. A map of the final image says little about what they did well.
    """
    return alpha * (1 - sigma) ** gamma


def token_advantages(
    advantages: Tensor,
    token_maps: Tensor | None,
    mode: str,
    map_kind: str,
    alpha: float | Tensor = 0.5,
    w_max: float = 8.0,
    lam: float | Tensor | None = None,
    adv_clip_max: float = 5.0,
    map_valid: Tensor | None = None,
    group_ids: Tensor | None = None,
    neutral: float = NEUTRAL,
    evidence: str = "own",
) -> Tensor:
    """Each image's advantage, spread over its tokens; the mean over the tokens stays the image's clamped advantage.

    With A an image's clamped advantage:
        mode "scalar"      A
        mode "weight"      A * token_weights(...)
        mode "residual"    A + lam * token_residuals(...)

    advantages: (B,). They are clamped to +-adv_clip_max before they are spread.
    token_maps: (B, N) in [0, 1], or None. map_kind: "reward" or "importance". map_valid: (B,) bool.
    alpha: strength of the map in [0, 1], a number or (B,). 0 is "scalar" in every mode.
    lam: strength of the residual; None takes alpha.
    group_ids: (B,) integers; mode "residual" and evidence "group" need them.
    w_max, neutral, evidence: as in `token_weights`.
    Returns (B, N) fp32. Without token_maps it returns (B, 1), which broadcasts.
    Raises ValueError for shapes that do not fit, an unknown mode or kind, and as `token_weights` and `token_residuals`.
    """
    _check_choices(mode=(mode, MODES), evidence=(evidence, EVIDENCE))
    check_strength(alpha)
    check_clip(adv_clip_max)
    if advantages.ndim != 1 or not advantages.isfinite().all():
        raise ValueError(f"advantages must be (B,) and finite, got shape {tuple(advantages.shape)}; mend the scorer")
    advantages = advantages.detach().float().clamp(-adv_clip_max, adv_clip_max)  # (B,)
    if token_maps is None:
        return advantages[:, None]
    if map_kind is not None or MODES[mode].change is not None:
        _check_choices(map_kind=(map_kind, MAP_KINDS))
    check_maps(token_maps, map_valid, advantages.shape[0])
    if MODES[mode].change is None:
        return advantages[:, None].expand(token_maps.shape)
    change = MODES[mode].change(
        advantages.double(),
        token_maps,
        map_kind,
        alpha=alpha,
        lam=alpha if lam is None else lam,
        w_max=w_max,
        map_valid=map_valid,
        neutral=neutral,
        evidence=evidence,
        group_ids=group_ids,
    )
    return (advantages[:, None].double() + change).float()  # (B, N)


def combined_token_advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    token_maps: Mapping[str, Tensor],
    map_kinds: Mapping[str, str],
    group_ids: Tensor,
    mode: str = "weight",
    combine: str = "sum",
    evidence: str = "own",
    control: str = "none",
    std: str = "global",
    alpha: float | Tensor = 0.5,
    w_max: float = 8.0,
    lam: float | None = None,
    adv_clip_max: float = 5.0,
    valid: Tensor | None = None,
    map_valid: Mapping[str, Tensor] | None = None,
    neutrals: Mapping[str, float] | None = None,
    token_grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Tensor:
    """The advantage of several rewards, each part spread over the tokens by its reward's own map.

    With A the advantage, A_k its parts (`reward_parts`) and w_k the weights that the map of reward k gives to a token
    (`token_weights` for the sign of A_k), mode "weight" gives a token
        A + sum over k of A_k * (w_k - 1)
    This is exactly A where every w_k is 1. Mode "residual" adds each map's residuals instead, averaged by the weights.

    rewards: {name: (B,)}. weights: {name: number}. group_ids: (B,) integers. valid: (B,) bool.
    token_maps: {name: (B, N)} and map_kinds: {name: kind}, for the rewards that have a map. A reward without a map spreads
        its part evenly.
    map_valid: {name: (B,) bool}; a name that is left out has valid maps only. neutrals: {name: number}; left out, 0.5.
    combine, std, adv_clip_max: as in `reward_parts`. mode, evidence, alpha, w_max, lam: as in `token_advantages`.
    control, token_grid, seed: as in `controlled_maps`.
    Returns (B, N) fp32, or (B, 1) without any map. The mean over the tokens is the advantage of `reward_parts`.
    Raises ValueError as all of these functions.

    Siblings are compared, so call it on whole groups: once per epoch, on the batch gathered from all processes.
    """
    _check_choices(mode=(mode, MODES), evidence=(evidence, EVIDENCE), control=(control, CONTROLS))
    check_strength(alpha)
    _check_names(rewards, token_maps, map_kinds, map_valid or {}, neutrals or {})
    advantages, parts = reward_parts(rewards, weights, group_ids, std, combine, adv_clip_max, valid)
    lam, total_weight = alpha if lam is None else lam, _total_weight(weights, mode)
    shared = {"alpha": alpha, "w_max": w_max, "evidence": evidence, "group_ids": group_ids}
    spread = advantages[:, None].double()  # (B, 1)
    for name, maps in token_maps.items():
        check_maps(maps, None, len(advantages))
        if MODES[mode].change is None:
            spread = spread.expand(maps.shape)
            continue
        kind, neutral = map_kinds[name], (neutrals or {}).get(name, NEUTRAL)
        valid_maps = (map_valid or {}).get(name)
        maps, valid_maps = controlled_maps(
            maps, kind, control, group_ids, valid_maps, neutral, rewards[name], token_grid, seed
        )
        own = {"lam": lam * weights[name] / total_weight, "map_valid": valid_maps, "neutral": neutral}
        spread = spread + MODES[mode].change(parts[name], maps, kind, **own, **shared)  # (B, N)
    return spread.float()


def _total_weight(weights: Mapping[str, float], mode: str) -> float:
    """The sum of the weights. Mode "residual" divides by it; where no mode does, weights that cancel may stand."""
    total = float(sum(weights.values()))
    if abs(total) > 1e-9 * sum(map(abs, weights.values())):
        return total
    if mode == "residual":
        raise ValueError(
            f'the weights {dict(weights)} cancel, and mode "residual" averages the maps by them; give weights with a sum '
            'other than 0, or take mode "weight"'
        )
    return 1.0


def _check_names(
    rewards: Mapping[str, Any],
    token_maps: Mapping[str, Any],
    map_kinds: Mapping[str, str],
    map_valid: Mapping[str, Any],
    neutrals: Mapping[str, float],
) -> None:
    if not token_maps.keys() <= rewards.keys() or token_maps.keys() != map_kinds.keys():
        raise ValueError(
            f"token_maps ({', '.join(token_maps)}) and map_kinds ({', '.join(map_kinds)}) must have the same names, "
            f"of rewards ({', '.join(rewards)})"
        )
    if unknown := (map_valid.keys() | neutrals.keys()) - rewards.keys():
        raise ValueError(
            f"map_valid or neutrals name {', '.join(sorted(unknown))}, and rewards have {', '.join(rewards)}"
        )
    for kind in map_kinds.values():
        _check_choices(map_kind=(kind, MAP_KINDS))


def _check_choices(**chosen: tuple[str, Iterable[str]]) -> None:
    """chosen: {name: (what was chosen, what may be)}. A name that a mode does not use is checked, too."""
    for name, (value, choices) in chosen.items():
        if value not in choices:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
