"""Build a scorer from its name, and turn it into the reward function that a Flow-GRPO fork's own multi_score calls."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from .option_types import check_options
from .score import Score, Scorer

# Each name stands for "package.module:factory". It is imported on demand, so only users of a scorer need its dependencies.
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

    name: a registered name, "package.module:factory", or "remote:URL" of a reward server.
    device: where the model runs; passed only to a factory that takes it.
    options: the factory's keyword arguments.
    Raises ValueError for an unknown name (and lists the known ones), an unknown option (and names the scorer) or an option of a
    wrong type (`check_options`), and ImportError for a missing extra (with its install line).
    """
    factory = _factory(name)
    accepted = _parameters(name, factory)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [] if takes_any else sorted(set(options) - set(accepted))
    if unknown:
        known = ", ".join(option for option in accepted if option != "device") or "no options"
        raise ValueError(f"scorer {name!r} does not take {', '.join(unknown)}; it takes {known}")
    if takes_any or "device" in accepted:
        options["device"] = device
    _check_required(name, accepted, options)
    check_options(f"scorer {name!r}", accepted, options)
    return _checked_scorer(name, factory(**options))


def _parameters(name: str, factory: Any) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"scorer {name!r} cannot be built: {error}; name a class, or a function that returns it"
        ) from error


def _check_required(name: str, accepted: Mapping[str, inspect.Parameter], options: Mapping[str, Any]) -> None:
    """Refuse a factory that needs arguments it does not get. Often the name is that of the scorer, not of its factory."""
    named = (p for p in accepted.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if {"images", "prompts"} <= set(missing):
        raise ValueError(f"{name!r} is a scorer itself; name a class, or a function without arguments that returns it")
    if missing:
        raise ValueError(f"scorer {name!r} needs the option{'s' * (len(missing) > 1)} {', '.join(missing)}")


def _checked_scorer(name: str, scorer: Any) -> Scorer:
    """Return the scorer. Raises ValueError if it cannot be called."""
    if not callable(scorer):
        raise ValueError(
            f"scorer {name!r}: its factory returned {type(scorer).__name__}, which cannot be called; return an object that "
            "takes (images, prompts, metadata) and returns a Score"
        )
    return scorer


def scorer_names(words: Sequence[str]) -> list[str]:
    """The names in the words of a command line, with commas, blanks or both between: ["a,b", "c, d"] gives a, b, c, d."""
    return [name for word in words for name in word.replace(",", " ").split()]


def options_without_effect(name: str) -> tuple[str, ...]:
    """The options of a scorer that never change a score, such as num_workers. Empty if the scorer cannot be found."""
    try:
        factory = _factory("remote:" if name.startswith("remote:") else name)
    except (ImportError, ValueError):
        return ()
    return getattr(getattr(factory, "func", factory), "OPTIONS_WITHOUT_EFFECT", ())


def as_reward_fn(scorer: Scorer) -> RewardFn:
    """A scorer in the shape of Flow-GRPO's score functions: fn(images, prompts, metadata) -> (scores, extras).

    scores: (B,).
    extras: "reward_map" (B, H, W) or None, "map_kind", "map_valid" (B,), "neutral", "details" {name: (B,)}, "valid" (B,).
        valid is False where an image could not be scored. Its score is a placeholder: give it no advantage.
    """

    def reward_fn(images, prompts, metadata=None):
        score = scorer(images, prompts, metadata)
        return score.reward, score_extras(score)

    return reward_fn


def score_extras(score: Score) -> dict[str, Any]:
    """All fields of a score except its reward, under the names that reward functions use."""
    return {
        "reward_map": score.reward_map,
        "map_kind": score.map_kind,
        "map_valid": score.map_valid,
        "neutral": score.neutral,
        "details": dict(score.details),
        "valid": score.valid,
    }


def _factory(name: str) -> Callable[..., Scorer]:
    name = name if isinstance(name, str) else repr(name)
    if name.startswith("remote:"):
        return partial(_factory(".remote_scorer:RemoteScorer"), name.removeprefix("remote:"))
    path = _SCORERS.get(name, name)
    module_name, _, factory_name = path.partition(":")
    if not module_name or not factory_name:
        known = ", ".join(sorted(_SCORERS))
        raise ValueError(f'unknown scorer {name!r}; known: {known}, or give "package.module:factory" or "remote:URL"')
    if module_name in _SCORERS:
        raise ValueError(f"unknown scorer {name!r}; the name is {module_name}, and its variants are options of it")
    try:
        module = importlib.import_module(module_name, __package__)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):  # a module that it imports is missing, not itself
            raise
        raise ValueError(
            f"scorer {name!r}: there is no module {module_name}; put its folder on Python's search path (PYTHONPATH)"
        ) from error
    if not hasattr(module, factory_name):
        raise ValueError(f"scorer {name!r}: module {module_name} has no {factory_name}")
    return getattr(module, factory_name)
