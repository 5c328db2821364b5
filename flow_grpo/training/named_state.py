"""Optimizer state and averages as a checkpoint holds them: by the names of the weights, not by their positions."""

from collections.abc import Sequence
from typing import Any


def optimizer_by_name(optimizer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state_dict with names for its parameters. torch numbers them, counting through the groups."""
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {names[index]: moments for index, moments in optimizer["state"].items()}, "param_groups": groups}


def optimizer_by_position(optimizer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The inverse. A checkpoint of an earlier version has numbers already, in the order of the names."""
    saved = [name for group in optimizer["param_groups"] for name in group["params"]]
    if saved == list(range(len(names))):
        return optimizer
    _check_names("optimizer", saved, names)
    position = {name: index for index, name in enumerate(names)}
    # sorted: torch uses the position in a group, not the number
    groups = [
        {**group, "params": sorted(position[name] for name in group["params"])} for group in optimizer["param_groups"]
    ]
    return {"state": {position[name]: moments for name, moments in optimizer["state"].items()}, "param_groups": groups}


def average_by_name(ema: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {**ema, "average": dict(zip(names, ema["average"], strict=True))}


def average_by_position(ema: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    average = ema["average"]
    if isinstance(average, dict):
        _check_names("averaged weights", average, names)
        average = [average[name] for name in names]
    return {**ema, "average": average}


def _check_names(what: str, saved: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError where a state belongs to other weights."""
    if odd := sorted(set(saved) ^ set(names)):
        raise ValueError(
            f"the checkpoint's {what} and this run's weights differ in {len(odd)} names, {odd[0]} for instance; "
            "go on with the model, policy and LoRA that wrote it"
        )
