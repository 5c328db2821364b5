"""Several scorers as one reward, in the shape of Flow-GRPO's multi_score; what our trainer calls."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from flow_grpo.scorers import as_reward_fn, make_scorer


def multi_score(
    device: str, weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None = None
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """Build fn(images, prompts, metadata=None, only_strict=True) -> (details, extras) from weighted scorers.

    weights: {scorer name: weight}. options: {scorer name: its keyword arguments}.
    images: (B, 3, H, W), float in [0, 1]; everything returned is on their device.

    details: {name: (B,)} of each scorer, and "avg", their sum times the weights (Flow-GRPO's name; the weights are not
        normalised).
    extras:
        "maps": {name: {"reward_map": (B, H, W), "map_kind": ..., "map_valid": (B,)}} for each scorer that has a map.
        "reward_map", "map_kind", "map_valid": the same three of the only map; None where there is none or more than one,
            since maps of several kinds have no common mean.
        "details": {"scorer/quantity": (B,)}, what each scorer measured on the way, such as "ocr_map/exact".
    only_strict is Flow-GRPO's switch for GenEval, taken for its call shape; no scorer here has a lenient form.

    Raises ValueError for no scorers, a weight that is not finite, options of a scorer that is not there, and what
    make_scorer and the scorers refuse.
    """
    if not weights:
        raise ValueError('multi_score needs at least one scorer, got none; give for instance {"ocr_map": 1.0}')
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise ValueError(f"the weight of scorer {name!r} must be finite, got {weight}")
    options = options or {}
    unused = sorted(set(options) - set(weights))
    if unused:
        raise ValueError(f"options for {', '.join(unused)}, which {', '.join(weights)} do not include; drop them")
    reward_fns = {name: as_reward_fn(make_scorer(name, device, **options.get(name, {}))) for name in weights}

    def score(images, prompts, metadata=None, only_strict=True):
        details, maps, measured = {}, {}, {}
        for name, reward_fn in reward_fns.items():
            details[name], extras = reward_fn(images, prompts, metadata)
            measured |= {f"{name}/{quantity}": values for quantity, values in extras.pop("details").items()}
            if extras["reward_map"] is not None:
                maps[name] = extras
        details["avg"] = sum(weight * details[name] for name, weight in weights.items())
        only = next(iter(maps.values())) if len(maps) == 1 else dict.fromkeys(("reward_map", "map_kind", "map_valid"))
        return details, {**only, "maps": maps, "details": measured}

    return score
