"""Several scorers as one reward, in the shape of Flow-GRPO's multi_score; what our trainer calls."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from .clip.map_scorer import score_together
from .score import Score, Scorer
from .scorers import make_scorer, score_extras

Rewards = tuple[dict[str, Tensor], dict[str, Any]]


class MultiScore:
    """Several weighted scorers as one function; built by `multi_score`, which says what it takes and returns."""

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float]):
        self._scorers, self._weights = scorers, weights
        # scorers of one CLIP model share a pass through it
        passes = {}
        for name, scorer in scorers.items():
            if not hasattr(scorer, "submit"):
                passes.setdefault(id(getattr(scorer, "clip", scorer)), []).append(name)
        self._passes = list(passes.values())

    def __call__(
        self,
        images: Tensor,
        prompts: Sequence[str],
        metadata: Sequence[Mapping[str, Any]] | None = None,
        only_strict: bool = True,
    ) -> Rewards:
        return self.submit(images, prompts, metadata)()

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Callable[[], Rewards]:
        """Begin to score; the function returned waits for the result.

        Scorers with worker processes go on while the caller does something else; the others are done when this returns.
        """
        batch = (images, prompts, metadata)
        # first those that only hand their work over, so that their workers are busy while the others run here
        pending = {name: scorer.submit(*batch) for name, scorer in self._scorers.items() if hasattr(scorer, "submit")}
        scores = {}
        for names in self._passes:
            if len(names) > 1:
                scores |= zip(names, score_together([self._scorers[name] for name in names], *batch), strict=True)
            else:
                scores[names[0]] = self._scorers[names[0]](*batch)
        return lambda: self._combine(
            {name: _waited_for(pending[name]) if name in pending else scores[name] for name in self._scorers}
        )

    def _combine(self, scores: Mapping[str, Score]) -> Rewards:
        details = {name: score.reward for name, score in scores.items()}
        details["avg"] = sum(weight * details[name] for name, weight in self._weights.items())
        extras = {name: score_extras(score) for name, score in scores.items()}
        maps = {name: extra for name, extra in extras.items() if extra["reward_map"] is not None}
        only = next(iter(maps.values())) if len(maps) == 1 else {}
        return details, {
            **{key: only.get(key) for key in ("reward_map", "map_kind", "map_valid")},
            "maps": maps,
            "details": {
                f"{name}/{quantity}": values
                for name, extra in extras.items()
                for quantity, values in extra["details"].items()
            },
            "valid": torch.stack([extra["valid"] for extra in extras.values()]).all(dim=0),
        }


def _waited_for(pending: Future[Score] | Callable[[], Score]) -> Score:
    return pending.result() if isinstance(pending, Future) else pending()


def multi_score(
    device: str, weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None = None
) -> MultiScore:
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
        "valid": (B,) bool, False where a scorer could not score the image: its scores are placeholders.
    fn.submit(images, prompts, metadata) begins the same and gives a function that waits for it.
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
    return MultiScore({name: make_scorer(name, device, **options.get(name, {})) for name in weights}, weights)
