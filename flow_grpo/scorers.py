"""Names -> scorers, and a scorer as the reward function that a Flow-GRPO fork's own multi_score calls."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .score import Score, Scorer

# A name stands for "package.module:factory", imported when asked for: a scorer's dependencies are needed by its users only.
_SCORERS = {
    "clipscore": ".clip_scorer:ClipScorer",
    "clip_gradient": ".clip_gradient_scorer:ClipGradientScorer",
    "clip_gradcam": ".clip_gradcam_scorer:ClipGradcamScorer",
    "clip_attention": ".clip_attention_scorer:ClipAttentionScorer",
    "clip_decomposition": ".clip_decomposition_scorer:ClipDecompositionScorer",
    "jpeg_compressibility": ".jpeg_scorer:JpegScorer",
    "ocr": ".ocr_scorer:OcrScorer",
    "ocr_map": ".ocr_map_scorer:OcrMapScorer",
    "pickscore": ".pick_scorer:PickScorer",
}

RewardFn = Callable[[Tensor, Sequence[str], Sequence[Mapping[str, Any]] | None], tuple[Tensor, dict[str, Any]]]


def make_scorer(name: str, device: str = "cpu", **options: Any) -> Scorer:
    """Build a scorer, its model loaded.

    name: a registered one, "package.module:factory", or "remote:URL" of a reward server. device: where its model runs, for
    factories that take one. options: the factory's keyword arguments.
    Raises ValueError for an unknown name (listing the known ones) or option (naming the scorer), ImportError where an extra
    is missing (naming its install line).
    """
    factory = _factory(name)
    accepted = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [] if takes_any else sorted(set(options) - set(accepted))
    if unknown:
        known = ", ".join(option for option in accepted if option != "device") or "no options"
        raise ValueError(f"scorer {name!r} does not take {', '.join(unknown)}; it takes {known}")
    if takes_any or "device" in accepted:
        options["device"] = device
    _check_required(name, accepted, options)
    return _checked_scorer(name, factory(**options))


def _check_required(name: str, accepted: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Refuse a factory that wants more than it is given; most often it is the scorer itself."""
    named = (p for p in accepted.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if {"images", "prompts"} <= set(missing):
        raise ValueError(f"{name!r} is a scorer itself; name a class, or a function without arguments that returns it")
    if missing:
        raise ValueError(f"scorer {name!r} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _checked_scorer(name: str, scorer: Any) -> Scorer:
    """The scorer, where it can be called as one."""
    if not callable(scorer):
        raise ValueError(
            f"scorer {name!r}: its factory returned {type(scorer).__name__}, which cannot be called; return an object that "
            "takes (images, prompts, metadata) and returns a Score"
        )
    return scorer


def options_without_effect(name: str) -> tuple[str, ...]:
    """The options of a scorer that change how it works and no number that it gives; none where it cannot be found."""
    try:
        factory = _factory("remote:" if name.startswith("remote:") else name)
    except (ImportError, ValueError):
        return ()
    return getattr(getattr(factory, "func", factory), "OPTIONS_WITHOUT_EFFECT", ())


def as_reward_fn(scorer: Scorer) -> RewardFn:
    """A scorer in the shape of Flow-GRPO's score functions: fn(images, prompts, metadata) -> (scores, extras).

    scores: (B,). extras: "reward_map" (B, H, W) or None, "map_kind", "map_valid" (B,), "neutral", "details" {name: (B,)},
    and "valid" (B,), False where an image could not be scored: give it no advantage, its score is a placeholder.
    """

    def reward_fn(images, prompts, metadata=None):
        score = scorer(images, prompts, metadata)
        return score.reward, score_extras(score)

    return reward_fn


def score_extras(score: Score) -> dict[str, Any]:
    """All of a score but its reward, under the names that reward functions give it."""
    return {
        "reward_map": score.reward_map,
        "map_kind": score.map_kind,
        "map_valid": score.map_valid,
        "neutral": score.neutral,
        "details": dict(score.details),
        "valid": score.valid,
    }


def _factory(name: str) -> Callable[..., Scorer]:
    if name.startswith("remote:"):
        return partial(_factory(".remote_scorer:RemoteScorer"), name.removeprefix("remote:"))
    path = _SCORERS.get(name, name)
    module_name, _, factory_name = path.partition(":")
    if not module_name or not factory_name:
        known = ", ".join(sorted(_SCORERS))
        raise ValueError(f'unknown scorer {name!r}; known: {known}, or give "package.module:factory" or "remote:URL"')
    module = importlib.import_module(module_name, __package__)
    if not hasattr(module, factory_name):
        raise ValueError(f"scorer {name!r}: module {module_name} has no {factory_name}")
    return getattr(module, factory_name)
