"""Optimizer state and averages as a checkpoint holds them: by the names of their weights, not by their places."""

from collections.abc import Sequence
from typing import Any


def optimizer_by_name(optimizer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """An optimizer's state_dict, which counts the parameters through its groups, with their names instead."""
    groups = [{**group, "params": [names[index] for index in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {names[index]: moments for index, moments in optimizer["state"].items()}, "param_groups": groups}


def optimizer_by_position(optimizer: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The inverse. A checkpoint of an earlier version counts already, in the order that the names have."""
    saved = [name for group in optimizer["param_groups"] for name in group["params"]]
    if saved == list(range(len(names))):
        return optimizer
    _check_names("optimizer", saved, names)
    position = {name: index for index, name in enumerate(names)}
    # sorted: torch goes by the place in a group, not by the number
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
    """Refuse a state that belongs to other weights."""
    if odd := sorted(set(saved) ^ set(names)):
        raise ValueError(
            f"the checkpoint's {what} and this run's weights differ in {len(odd)} names, {odd[0]} for instance; "
            "go on with the model, policy and LoRA that wrote it"
        )
