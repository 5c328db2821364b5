"""Several weighted scorers called together, also in the shape of Flow-GRPO's multi_score, for forks and scripts."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from .clip.map_scorer import score_together
from .clip.model import ClipModel
from .futures import done, then
from .option_types import is_number
from .score import PromptErrors, Score, Scorer
from .scorers import make_scorer, score_extras

MultiScore = Callable[..., tuple[dict[str, Tensor], dict[str, Any]]]


class WeightedScorers:
    """Scorers by name, each with the weight of its reward in the sum. Scorers of one CLIP model share one pass through it."""

    def __init__(self, scorers: Mapping[str, Scorer], weights: Mapping[str, float]):
        self.weights = dict(weights)
        self._scorers = scorers
        passes = {}
        for name, scorer in scorers.items():
            if not hasattr(scorer, "submit"):
                passes.setdefault(id(scorer.clip if _is_traced(scorer) else scorer), []).append(name)
        self._passes = list(passes.values())

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Score]:
        """The Score of each scorer by its name; takes what a scorer takes."""
        return {name: future.result() for name, future in self.submit(images, prompts, metadata).items()}

    def submit(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Future[Score]]:
        """Begin to score, and return a future of each scorer's Score.

        Scorers with worker processes go on while the caller does something else. The others are done when this returns.
        If a Score does not fit the batch, its future raises RuntimeError.
        """
        batch = (images, prompts, metadata)
        # first those that only hand their work over, so that their workers are busy while the others run here
        begun = {name: scorer.submit(*batch) for name, scorer in self._scorers.items() if hasattr(scorer, "submit")}
        for names in self._passes:
            if len(names) > 1:
                scores = score_together([self._scorers[name] for name in names], *batch)
            else:
                scores = [self._scorers[names[0]](*batch)]
            begun |= zip(names, map(done, scores), strict=True)
        return {name: then(begun[name], _checked(name, images)) for name in self._scorers}

    @property
    def training_warnings(self) -> list[str]:
        """The warnings of scorers that have a `training_warning`; the run shows them at its start."""
        said = [getattr(scorer, "training_warning", None) for scorer in self._scorers.values()]
        return [warning for warning in said if warning]

    def check_prompts(self, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
        """Raise PromptErrors that names every prompt which a scorer cannot score. Scorers without the check are not asked."""
        faults = {}
        for name, scorer in self._scorers.items():
            if hasattr(scorer, "check_prompts"):
                try:
                    scorer.check_prompts(prompts, metadata)
                except PromptErrors as error:
                    faults |= {index: f"{name}: {fault}" for index, fault in error.faults.items()}
        if faults:
            raise PromptErrors(dict(sorted(faults.items())), len(prompts))


def _is_traced(scorer: Scorer) -> bool:
    """Whether a scorer can share its pass through CLIP with others; an attribute `clip` alone does not prove it."""
    return (
        isinstance(getattr(scorer, "clip", None), ClipModel) and hasattr(scorer, "request") and hasattr(scorer, "score")
    )


def _checked(name: str, images: Tensor) -> Callable[[Score], Score]:
    """A function that returns the Score if it fits the batch, and raises RuntimeError if not."""

    def check(score: Score) -> Score:
        if not isinstance(score, Score):
            raise RuntimeError(f"scorer {name!r} gave {type(score).__name__}; it must give a Score")
        if len(score.reward) != len(images):
            raise RuntimeError(f"scorer {name!r} gave {len(score.reward)} rewards for {len(images)} images; mend it")
        if score.reward.device != images.device:
            raise RuntimeError(
                f"scorer {name!r} gave rewards on {score.reward.device} for images on {images.device}; move them there"
            )
        if score.reward_map is not None and score.reward_map.shape[1:] != images.shape[2:]:
            height, width = images.shape[2:]
            raise RuntimeError(
                f"scorer {name!r} gave a map of {score.reward_map.shape[1]} x {score.reward_map.shape[2]} pixels for images of "
                f"{height} x {width}; resize the map to the image"
            )
        return score

    return check


def make_scorers(
    device: str, weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None = None
) -> WeightedScorers:
    """Build weighted scorers, their models loaded.

    weights: {scorer name: weight}. options: {scorer name: its keyword arguments}.
    Raises ValueError if there is no scorer, if a weight is not finite, if options name a scorer that is not in weights, and
    as `make_scorer` does.
    """
    if not weights:
        raise ValueError('at least one scorer is needed, got none; give for instance {"ocr_map": 1.0}')
    for name, weight in weights.items():
        if not is_number(weight) or math.isinf(weight):
            raise ValueError(f"the weight of scorer {name!r} must be a finite number, got {weight!r}")
    options = options or {}
    unused = sorted(set(options) - set(weights))
    if unused:
        raise ValueError(f"options for {', '.join(unused)}, which {', '.join(weights)} do not include; drop them")
    return WeightedScorers({name: make_scorer(name, device, **options.get(name, {})) for name in weights}, weights)


def weighted_sum(scores: Mapping[str, Score], weights: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The sum of weight * reward (B,), and (B,) bool: True where every scorer could score the image."""
    reward = sum(weight * scores[name].reward for name, weight in weights.items())
    return reward, torch.stack([score.valid for score in scores.values()]).all(dim=0)


def measured(scores: Mapping[str, Score]) -> dict[str, Tensor]:
    """What the scorers measured on the way, {"scorer/quantity": (B,)}."""
    return {f"{name}/{key}": values for name, score in scores.items() for key, values in score.details.items()}


def multi_score(
    device: str, weights: Mapping[str, float], options: Mapping[str, Mapping[str, Any]] | None = None
) -> MultiScore:
    """Build fn(images, prompts, metadata=None, only_strict=True) -> (details, extras); takes what `make_scorers` takes.

    images: (B, 3, H, W), float in [0, 1]; everything returned is on their device.

    details: {name: (B,)} of each scorer, and "avg", their sum times the weights (Flow-GRPO's name; the weights are not
        normalised).
    extras:
        "maps": {name: {"reward_map": (B, H, W), "map_kind": ..., "map_valid": (B,), "neutral": ...}} for each scorer
            that has a map.
        "reward_map", "map_kind", "map_valid", "neutral": the same of the only map; None where there is none or more
            than one, since maps of several kinds have no common mean.
        "details": {"scorer/quantity": (B,)}, what each scorer measured on the way, such as "ocr_map/exact".
        "valid": (B,) bool, False where a scorer could not score the image: its scores are placeholders.
    only_strict is Flow-GRPO's switch for GenEval, taken for its call shape; no scorer here has a lenient form.
    """
    scorers = make_scorers(device, weights, options)

    def fn(images, prompts, metadata=None, only_strict=True):
        scores = scorers(images, prompts, metadata)
        average, valid = weighted_sum(scores, scorers.weights)
        keys = ("reward_map", "map_kind", "map_valid", "neutral")
        maps = {
            name: {key: value for key, value in score_extras(score).items() if key in keys}
            for name, score in scores.items()
            if score.reward_map is not None
        }
        only = next(iter(maps.values())) if len(maps) == 1 else dict.fromkeys(keys)
        details = {name: score.reward for name, score in scores.items()} | {"avg": average}
        return details, {**only, "maps": maps, "details": measured(scores), "valid": valid}

    return fn
