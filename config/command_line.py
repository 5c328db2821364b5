"""The command line of a run: `--config FILE:RUN`, then fields as `--config.FIELD=VALUE`.

A reward is a field, too: `--config.rewards.clip_gradcam=0.5`, and an option of its scorer
`--config.reward_options.clip_gradcam.model=models/tiny-clip`; or all of them at once as a mapping,
`--config.reward_options='{"clip_gradcam": {"model": "models/tiny-clip"}}'`.

A run that goes on needs no other field than `--config.resume_from=FOLDER`: the folder has the configuration.
"""

import ast
import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any, get_origin

import ml_collections
from pydantic import TypeAdapter, ValidationError

from config import base
from config.base import Fields
from config.section import leaves

FREE = ("rewards", "reward_options", "eval_rewards")  # their keys are the user's


def parse(arguments: list[str]) -> ml_collections.ConfigDict:
    """The configuration that a command line asks for, its fields known and of the right type.

    Without `--config`, `--config.resume_from=FOLDER` takes the configuration that the folder holds.
    Raises ValueError for an argument that is none, no or an unknown configuration, an unknown field (with the nearest
    known one), and a value of another type.
    """
    pairs = _pairs(arguments)
    name, resumed = pairs.pop("config", ""), pairs.get("config.resume_from", "")
    if resumed == "latest":
        resumed = pairs.get("config.run_dir", "")
    if not name and not resumed:
        raise ValueError("no configuration; name one, such as --config config/grpo.py:tiny_ocr_map, or ask for --help")
    config = load(name) if name else saved(Path(resumed).expanduser())
    for path, text in pairs.items():
        _set(config, path.removeprefix("config."), text)
    return config


def load(name: str) -> ml_collections.ConfigDict:
    """What `get_config` of a file gives: FILE or FILE:RUN."""
    path, _, run = name.partition(":")
    if not Path(path).is_file():
        raise ValueError(
            f"--config {name}: there is no file {path}; give FILE:RUN, such as config/grpo.py:tiny_ocr_map"
        )
    spec = importlib.util.spec_from_file_location("run_configuration", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(run) if run else module.get_config()


def saved(folder: Path) -> ml_collections.ConfigDict:
    """The configuration that a run's folder, or a checkpoint's, was written with; the run goes on in its folder.

    A field that the folder does not know has today's default, and one that is gone today is left out.
    Raises ValueError where the folder holds no configuration.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no config.json; give a run's folder, or name the run by --config FILE:RUN")
    config, values = base.get_config(), _flat(json.loads(file.read_text(encoding="utf-8")))
    for path in values.keys() & leaves(Fields).keys():
        value = values[path]
        _assign(config, path, tuple(value) if isinstance(value, list) else value)
    # the control's name is added again where the run is resolved
    config.name = config.name.removesuffix(f"-{config.advantage.control}")
    config.allow_changes = ""  # of the launch that gave it; its changes are in the values
    config.run_dir = str(folder.parent if folder.name.startswith("checkpoint-") else folder)
    return config


def hint(path: str, known: list[str]) -> str:
    """Which known field an unknown one may mean, as "did you mean train.learning_rate?", or which there are."""
    by_name = {field.rpartition(".")[2]: field for field in known}
    group, _, leaf = path.rpartition(".")
    if inside := [field for field in known if field.startswith(f"{path}.")]:
        return f"it is a group of fields: {', '.join(sorted(inside))}"
    siblings = {field.rpartition(".")[2]: field for field in known if field.rpartition(".")[0] == group}
    # Names alone are compared: in "train.lr" the group is like every field of its own.
    for fields in (siblings, by_name):
        near = difflib.get_close_matches(leaf, fields, n=1, cutoff=0.6)
        if near:
            return f"did you mean {fields[near[0]]}?"
    return f"known: {', '.join(sorted(siblings.values() if group and siblings else known))}"


def _pairs(arguments: list[str]) -> dict[str, str]:
    """{"config.FIELD": value} of --config.FIELD=VALUE, --config.FIELD VALUE, or --config.FIELD for True; the last counts."""
    pairs, waiting = {}, list(arguments)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        name = flag.lstrip("-")
        if not flag.startswith("-") or not (name == "config" or name.startswith("config.")):
            raise ValueError(f"unexpected argument {flag}; fields are set by --config.FIELD=VALUE")
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("--") else "True"
        pairs.pop(name, None)  # so that it takes the place of its last mention
        pairs[name] = value
    return pairs


def _set(config: ml_collections.ConfigDict, path: str, text: str) -> None:
    table, _, key = path.partition(".")
    if table == "rewards" and key:
        with config.rewards.ignore_type():  # a run may have given a whole number
            config.rewards[key] = _as_type(float, path, text)
        return
    leaf = key.rpartition(".")[2]  # with a colon it belongs to the name of a scorer: my.module:Scorer
    if table in FREE and key and (leaf == key or ":" in leaf):
        config[table][key] = _as_type(dict[str, Any], path, text)
        return
    if table in FREE and key:
        scorer, _, option = key.rpartition(".")
        config[table][scorer] = {**config[table].get(scorer, {}), option: _literal(text)}
        return
    known = leaves(Fields)
    if path not in known:
        raise ValueError(f"unknown field {path}; {hint(path, list(known))}")
    _assign(config, path, _as_type(known[path].annotation, path, text))


def _assign(config: ml_collections.ConfigDict, path: str, value: Any) -> None:
    if path in FREE:
        value = ml_collections.ConfigDict(value, allow_dotted_keys=True)
    *folders, name = path.split(".")
    target = config
    for folder in folders:
        target = target[folder]
    with target.ignore_type():  # it has been checked
        target[name] = value


def _flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train.beta": value} of {"train": {"beta": value}}; the mappings of scorers stay as they are."""
    found = {}
    for name, value in nested.items():
        folder = isinstance(value, dict) and name not in FREE
        found |= _flat(value, f"{prefix}{name}.") if folder else {f"{prefix}{name}": value}
    return found


def _as_type(kind: Any, path: str, text: str) -> Any:
    try:
        return TypeAdapter(kind).validate_python(text if kind in (str, int, float, bool) else _literal(text))
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Input ")
        example = ", such as (0, 5)" if get_origin(kind) is tuple else ""
        raise ValueError(f"--config.{path}={text}: it {reason}{example}") from None


def _literal(text: str) -> Any:
    """A number, True, None, a mapping or a tuple, as Python writes it; anything else is the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
