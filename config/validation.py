"""Resolve a run's configuration and refuse what cannot work, before any weight is loaded."""

import os

import ml_collections
from pydantic import ValidationError

from config.base import Fields
from config.command_line import hint
from config.geometry import Geometry, fill_in, geometry_of
from config.presets import fit
from config.section import leaves
from flow_grpo.training.image_size import image_size
from flow_grpo.training.modes import MODES


def resolve(config: ml_collections.ConfigDict, num_processes: int) -> tuple[ml_collections.ConfigDict, Geometry]:
    """Fill in what follows from other fields and check everything; the configuration itself is left alone.

    Raises ValueError that names the field, what it is and what it may be.
    """
    config = ml_collections.ConfigDict(config.to_dict(), allow_dotted_keys=True)
    _check_fields(config)
    _check_values(config)
    if config.num_gpus != num_processes:
        raise ValueError(
            f"num_gpus={config.num_gpus}, but this run was launched with {num_processes} "
            f"process{'es' * (num_processes > 1)}; set --config.num_gpus={num_processes} or launch that many "
            f"(accelerate launch --num_processes {config.num_gpus}, as scripts/one_node.sh and cpu.sh do)"
        )
    if config.advantage.control != "none":
        config.name += f"-{config.advantage.control}"  # nobody takes a control for a run
    if not config.run_dir and not config.name:
        raise ValueError("run_dir and name are both empty; give the run a --config.run_dir")
    config.run_dir = config.run_dir or f"runs/{config.name}"
    _expand_home(config)
    config.train.num_steps = config.train.num_steps or config.sample.sde_window_size or config.sample.num_steps - 1
    _check_steps(config)
    _check_objective(config)
    fill_in(config)
    fit(config)
    _check_control(config)
    _check_best_metric(config)
    return config.lock(), geometry_of(config)


def _expand_home(config: ml_collections.ConfigDict) -> None:
    """A shell does not expand the ~ of --config.run_dir=~/run; without this it would be a folder of that name."""
    for name in ("run_dir", "resume_from", "model", "dataset", "prompt_cache"):
        config[name] = os.path.expanduser(config[name])
    for options in config.reward_options.values():
        for name, value in options.items():
            if isinstance(value, str) and value.startswith("~/"):
                options[name] = os.path.expanduser(value)


def _check_fields(config: ml_collections.ConfigDict) -> None:
    """Each field by itself: that config/base.py has it, its type and its range."""
    try:
        Fields.model_validate(config.to_dict())
    except ValidationError as error:
        raise ValueError("\n".join(map(_in_words, error.errors()))) from None


def _in_words(error: dict) -> str:
    """One of pydantic's errors as a line that names the field, what it is and what it may be."""
    path, kind, value, details = ".".join(map(str, error["loc"])), error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown field {path}; {hint(path, list(leaves(Fields)))}"
    if kind == "value_error":  # of choices
        return f"{path}={value!r} {details['error']}"
    limits = {
        "greater_than": ("gt", "above {:g}"),
        "greater_than_equal": ("ge", "{:g} or more"),
        "less_than": ("lt", "below {:g}"),
        "less_than_equal": ("le", "{:g} or less"),
    }
    if kind in limits:
        limit, words = limits[kind]
        return f"{path}={value} must be {words.format(details[limit])}"
    return f"{path}={value!r}: it {error['msg'].removeprefix('Input ')}"


def _check_values(config: ml_collections.ConfigDict) -> None:
    image_size(config.resolution)
    if config.eval_resolution is not None:
        image_size(config.eval_resolution)
    for path in ("model", "dataset"):
        if not config[path]:
            raise ValueError(f"{path} is empty; name a folder, or start from a run of config/grpo.py")
    if not config.rewards:
        raise ValueError('rewards is empty; give at least one scorer and its weight, e.g. {"ocr_map": 1.0}')
    if min(config.rewards.values()) < 0 or sum(config.rewards.values()) <= 0:
        raise ValueError(f"rewards={config.rewards.to_dict()}: weights must be 0 or more, and one above 0")
    if config.allow_changes and not config.resume_from:
        raise ValueError(
            f"allow_changes={config.allow_changes} is for a run that goes on; leave it out, or set --config.resume_from"
        )
    if config.sample.sde == "cps" and config.sample.noise_level > 1:
        raise ValueError(f"sample.noise_level={config.sample.noise_level} must be 1 or less for sample.sde=cps")


def _check_steps(config: ml_collections.ConfigDict) -> None:
    """Which steps of a rollout are stochastic, and which are trained on."""
    sample, train = config.sample, config.train
    first, end = 0, train.num_steps  # the trained steps that may come last
    if size := sample.sde_window_size:
        first, end = sample.sde_window_range
        if not (0 <= first and first + size <= end <= sample.num_steps):
            raise ValueError(
                f"sample.sde_window_range={tuple(sample.sde_window_range)} must hold the {size} steps of "
                f"sample.sde_window_size and lie within the {sample.num_steps} of sample.num_steps; for instance "
                f"(0, {max(size, sample.num_steps // 2)})"
            )
        if train.num_steps != size:
            raise ValueError(
                f"train.num_steps={train.num_steps} must be the {size} of sample.sde_window_size, whose steps alone are "
                "stochastic; leave it 0"
            )
    elif tuple(sample.sde_window_range) != (0, 0):
        raise ValueError(
            f"sample.sde_window_range={tuple(sample.sde_window_range)} has no effect with sample.sde_window_size=0"
        )
    if not 0 < train.num_steps <= sample.num_steps:
        raise ValueError(
            f"train.num_steps={train.num_steps} must lie between 1 and the {sample.num_steps} steps of a rollout "
            "(sample.num_steps)"
        )
    if sample.sde == "cps" and train.beta > 0 and end == sample.num_steps:
        raise ValueError(
            f"train.num_steps={train.num_steps} and sample.sde_window_range={tuple(sample.sde_window_range)} take in the "
            "last step, where the noise of sample.sde=cps is 0 and its KL infinite; leave it out, or set train.beta=0"
        )


def _check_control(config: ml_collections.ConfigDict) -> None:
    mode, control = config.advantage.mode, config.advantage.control
    if control != "none" and not MODES[mode].map_kinds:
        raise ValueError(
            f"advantage.control={control} changes maps, which advantage.mode={mode} does not use; set "
            "--config.advantage.control=none, or another mode"
        )
    if control == "shuffled" and config.num_groups < 2:
        raise ValueError(
            "advantage.control=shuffled gives each group another group's maps; set --config.num_groups to 2 or more"
        )


def _check_best_metric(config: ml_collections.ConfigDict) -> None:
    """What a scorer measures on the way is known only once it has scored; the first evaluation asks again."""
    gold = [f"eval/gold/{name}" for name in config.eval_rewards]
    trained = [f"eval/{name}" for name in config.rewards]
    measured = ["eval/reward", "eval/invalid_share", *gold, *(trained if len(trained) > 1 else ())]
    parts = ("eval/signal/", *(f"{name}/" for name in (*gold, *trained)))
    metric = config.best_metric
    if metric and config.eval_every and metric not in measured and not metric.startswith(parts):
        raise ValueError(
            f"best_metric={metric} is not measured; choose one of {', '.join(measured)}, or leave it empty"
        )


def _check_objective(config: ml_collections.ConfigDict) -> None:
    train, mode = config.train, config.advantage.mode
    if config.advantage.evidence == "group" and mode != "weight":
        raise ValueError(
            f"advantage.evidence=group is of mode weight and would be ignored by advantage.mode={mode}; set "
            "--config.advantage.mode=weight, or evidence=own"
        )
    if train.ratio == "image" and MODES[mode].map_kinds:
        raise ValueError(
            f"train.ratio=image averages the tokens' advantages and would ignore advantage.mode={mode}; "
            "use train.ratio=gspo_token, or advantage.mode=scalar"
        )
    if train.ratio_norm and config.sample.sde != "flow":
        raise ValueError(
            f"train.ratio_norm=True needs sample.sde=flow, got {config.sample.sde}: it rescales by the Gaussian's std"
        )
    if train.skip_zero_advantages and not train.drop_zero_advantages and train.beta > 0:
        raise ValueError(
            f"train.skip_zero_advantages=True would drop the KL of images without advantage, and train.beta={train.beta} "
            "is above 0; set one of them to nothing, or train.drop_zero_advantages=True, which means to do that"
        )
