"""Finds where a run goes on, and checks that it still is the same run: its configuration, its model, its prompts."""

import json
import os
import re
from pathlib import Path
from typing import Any

from flow_grpo.scorers import options_without_effect
from flow_grpo.training.checkpoint import MANIFEST, Origin, checkpoint_name, damage_of, list_checkpoints

# What a run may change when it goes on: how long it runs, what it writes and how often, how much memory it uses, and how
# many processes it has.
MAY_CHANGE = (
    "num_gpus",
    "batch_size",
    "resume_from",
    "allow_changes",
    "num_epochs",
    "save_every",
    "keep_checkpoints",
    "eval_every",
    "samples_every",
    "eval_rewards",
    "best_metric",
    "wandb_project",
    "run_dir",
    "prompt_cache",
    "prompt_cache_gib",
    "gradient_checkpointing",
    "compile",
    "offload",
    "preset",
    "eval_resolution",
)


def find_checkpoint(run_dir: Path, resume_from: str) -> Path:
    """The checkpoint that `resume_from` names.

    resume_from: "latest" for the newest of the run's folder; another run's folder for the newest there; or a checkpoint.
    Raises ValueError where there is none, and where it is damaged; the error then names the damaged file, and an older
    checkpoint that is whole.
    """
    path = run_dir if resume_from == "latest" else Path(resume_from)
    if checkpoints := list_checkpoints(path):
        path = checkpoints[-1]
    elif resume_from == "latest":
        raise ValueError(f"resume_from=latest, but {run_dir} holds no checkpoint; leave resume_from empty to start")
    elif not any((path / name).is_file() for name in ("state.pt", MANIFEST)):
        raise ValueError(f"resume_from={resume_from} is no checkpoint; give its folder, a run's folder, or latest")
    if damage := damage_of(path):
        older = [other for other in list_checkpoints(path.parent) if other.name < path.name]
        whole = next((other for other in reversed(older) if damage_of(other) is None), None)
        advice = "and no older one is whole; start anew in another --config.run_dir"
        if whole:
            advice = f"go on from the one before by --config.resume_from={whole}"
        raise ValueError(f"{path} is damaged: {damage}; {advice}")
    return path


def check_branch(run_dir: Path, path: Path) -> None:
    """Refuse to go on from an older checkpoint where the folder holds a newer whole one, which would be lost."""
    for newer in reversed(list_checkpoints(run_dir)):
        if newer.resolve() == path.resolve():
            return
        if damage_of(newer) is None:
            raise ValueError(
                f"{run_dir} goes on to {newer.name}; give the branch from {path} a --config.run_dir of its own"
            )


def set_damaged_aside(run_dir: Path, epoch: int) -> None:
    """Rename the checkpoints after the epoch that the run goes on from. `check_branch` found all of them damaged."""
    for path in list_checkpoints(run_dir):
        if path.name > checkpoint_name(epoch):
            os.replace(path, path.with_name(f"{path.name}.damaged"))


def saved_epoch(path: Path) -> int | None:
    """The epoch that a checkpoint goes on with, found without its weights. None where no file or name tells it."""
    if (path / MANIFEST).is_file():
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["epoch"]
    found = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(found[1]) if found else None


def changed_fields(
    path: Path, config: dict[str, Any], defaults: dict[str, Any], identities: dict[str, str], origin: Origin
) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between the checkpoint and the run that goes on: {name: (in the checkpoint, now)}.

    defaults: the program's present defaults, for fields that the checkpoint's version did not have. A field that only the
        checkpoint's version had is left out.
    identities: hashes of the content that is known by now. A path may change where the content has the same hash as in
        `origin`.
    Raises ValueError, with their names, where fields changed that neither MAY_CHANGE nor `config["allow_changes"]` holds.
    """
    saved = _comparable(json.loads((path / "config.json").read_text(encoding="utf-8")))
    current, known = _comparable(json.loads(json.dumps(config))), _comparable(json.loads(json.dumps(defaults)))
    changed = {}
    for name in sorted(saved.keys() | current.keys()):
        was, now = saved.get(name, known.get(name)), current.get(name)
        is_gone = name not in current and name not in known and not name.startswith(("rewards.", "reward_options."))
        if was != now and not is_gone and not (name in origin.identities and name in ("model", "dataset")):
            changed[name] = (was, now)
    for name, identity in identities.items():
        if origin.identities.get(name, identity) != identity:
            changed[name] = (f"{saved.get(name)} with other content", current.get(name))
    allowed = config.get("allow_changes", "")
    for name in _names(allowed):
        if not any(_covers(name, field) for field in saved.keys() | current.keys()):
            raise ValueError(f"allow_changes={allowed}: there is no field {name}; name fields as --config has them")
    refuse_changes(path, changed, allowed)
    return dict(sorted(changed.items()))


def refuse_changes(path: Path, changed: dict[str, tuple[Any, Any]], allowed: str) -> None:
    """Raise ValueError, with their names, where fields changed that are neither in MAY_CHANGE nor in `allowed`."""
    lines = [
        f"  {field}: {was!r} in the checkpoint, {now!r} now"
        for field, (was, now) in changed.items()
        if not may_change(field) and not any(_covers(name, field) for name in _names(allowed))
    ]
    if lines:
        fields = ",".join(line.split(":")[0].strip() for line in lines)
        raise ValueError(
            f"{path} was written by another configuration; set these back, start a new run_dir, or say that the change "
            f"is meant by --config.allow_changes={fields}\n" + "\n".join(lines)
        )


def may_change(field: str) -> bool:
    """Whether a resumed run may change the field without asking: MAY_CHANGE holds the field, or its group."""
    return any(_covers(name, field) for name in MAY_CHANGE)


def _names(allowed: str) -> list[str]:
    return [name.strip() for name in allowed.split(",") if name.strip()]


def _covers(name: str, field: str) -> bool:
    return field == name or field.startswith(f"{name}.")


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration by flat names, without the options that change no number, for instance a server's address."""
    rewards, options = dict(config.get("rewards", {})), dict(config.get("reward_options", {}))
    kept = {}
    for name, given in options.items():
        free = options_without_effect(name)
        kept[name] = {option: value for option, value in given.items() if option not in free}
    remote = [name for name in rewards if name.startswith("remote:")]
    remote.sort(key=lambda name: (rewards[name], json.dumps(kept.get(name), sort_keys=True)))
    for index, name in enumerate(remote, start=1):
        rewards[f"remote:{index}"] = rewards.pop(name)
        if name in kept:
            kept[f"remote:{index}"] = kept.pop(name)
    return _flatten({**config, "rewards": rewards, "reward_options": kept})


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
