"""What a configuration is refused for, before any weight is loaded; a suggestion in a message must itself work."""

import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.base import Fields
from config.grpo import get_config
from config.section import bounds, leaves
from config.validation import resolve

FIELDS = leaves(Fields)
CHOICES = {path: info.json_schema_extra["choices"] for path, info in FIELDS.items() if info.json_schema_extra}
BOUNDS = [(path, *bound) for path, info in FIELDS.items() for bound in bounds(info).items()]
OUTSIDE = {"gt": 0, "ge": -1, "lt": 0, "le": 1}  # from the bound to a value that it refuses


def tiny(**changes):
    config = get_config("tiny_ocr_map")
    for path, value in changes.items():
        *folders, name = path.split(".")
        target = config
        for folder in folders:
            target = target[folder]
        target[name] = value
    return config


def refusal(num_processes=1, **changes):
    with pytest.raises(ValueError) as caught:
        resolve(tiny(**changes), num_processes)
    return str(caught.value)


def test_geometry_by_hand():
    _, geometry = resolve(
        tiny(
            num_gpus=2,
            num_groups=6,
            group_size=8,
            batch_size=4,
            updates_per_epoch=3,
            **{"sample.num_steps": 5, "train.num_steps": 4},
        ),
        num_processes=2,
    )
    assert geometry.num_samples == 48
    assert geometry.batches_per_process == 6  # 48 / (2 * 4)
    assert geometry.batches_per_update == 2


def test_resolving_leaves_the_given_configuration_alone():
    config = tiny(run_dir="")
    before = config.to_dict()
    resolved, _ = resolve(config, 1)
    assert config.to_dict() == before and resolved.run_dir == "runs/tiny_ocr_map"
    with pytest.raises(AttributeError):
        resolved.sede = 1


@pytest.mark.parametrize("path", CHOICES)
def test_an_unknown_choice_is_refused_with_the_known_ones(path):
    message = refusal(**{path: "nonsense"})
    assert message.startswith(f"{path}='nonsense'")
    assert all(choice in message for choice in CHOICES[path])


@pytest.mark.parametrize(("path", "limit", "bound"), BOUNDS)
def test_a_number_outside_its_bounds_is_refused_by_name(path, limit, bound):
    value = type(_value(path))(bound + OUTSIDE[limit])
    assert refusal(**{path: value}).startswith(f"{path}={value} must be ")


def test_every_number_has_a_bound():
    numbers = {path for path, info in FIELDS.items() if info.annotation in (int, float)}
    assert numbers == {path for path, *_ in BOUNDS}


def test_a_field_of_another_type_and_no_number_are_refused():
    assert refusal(**{"sample.sde_window_range": (0, "many")}).startswith(
        "sample.sde_window_range.1='many': it should be"
    )
    for value in (float("nan"), float("inf")):
        assert refusal(**{"train.beta": value}) == f"train.beta={value}: it should be a finite number"
        assert refusal(rewards={"ocr_map": value}) == f"rewards.ocr_map={value}: it should be a finite number"
    assert resolve(tiny(**{"train.max_grad_norm": float("inf")}), 1)  # no limit


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("num_epoch", "num_epochs"),
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("train.guidance_scale", "sample.guidance_scale"),
    ],
)
def test_a_misspelt_field_of_a_run_is_refused_with_the_one_that_may_be_meant(path, meant):
    assert refusal(**{path: 1}) == f"unknown field {path}; did you mean {meant}?"


def test_a_field_like_no_other_is_refused_with_the_known_ones():
    assert refusal(zzz=1).startswith("unknown field zzz; known: advantage.alpha, ")


def _value(path):
    value = tiny()
    for name in path.split("."):
        value = value[name]
    return value


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"model": ""}, ["model is empty"]),
        ({"dataset": ""}, ["dataset is empty"]),
        ({"rewards": {}}, ["rewards is empty", "ocr_map"]),
        ({"train.num_steps": 9}, ["train.num_steps=9", "8 steps", "sample.num_steps"]),
        ({"train.num_steps": 8, "sample.sde": "cps", "train.beta": 0.04}, ["train.num_steps=8", "cps", "train.beta=0"]),
        ({"rewards": {"ocr_map": 0.0}}, ["rewards=", "one above 0"]),
        ({"rewards": {"ocr_map": 1.0, "ocr": -0.5}}, ["rewards=", "0 or more"]),
        ({"advantage.alpha": 1.5}, ["advantage.alpha=1.5", "1 or less"]),
        ({"advantage.w_max": 0.5}, ["advantage.w_max=0.5"]),
        ({"train.ratio": "image"}, ["train.ratio=image", "advantage.mode=residual", "gspo_token"]),
        ({"advantage.control": "rolled", "advantage.mode": "scalar"}, ["advantage.control=rolled", "control=none"]),
        ({"advantage.control": "shuffled", "num_groups": 1}, ["advantage.control=shuffled", "num_groups to 2"]),
        ({"allow_changes": "train"}, ["allow_changes=train", "resume_from"]),
        ({"best_metric": "reward"}, ["best_metric=reward", "eval/reward, "]),
        ({"best_metric": "eval/rewards"}, ["best_metric=eval/rewards", "eval/reward, "]),
        ({"best_metric": "eval/ocr_map"}, ["best_metric=eval/ocr_map", "eval/gold/"]),  # a single reward is eval/reward
        ({"name": ""}, ["name are both empty", "run_dir"]),
        ({"eval_resolution": 0}, ["resolution=0 must be a side"]),
        ({"advantage.evidence": "group"}, ["advantage.evidence=group", "advantage.mode=residual", "mode=weight"]),
        ({"sample.sde": "cps", "sample.noise_level": 1.5}, ["sample.noise_level=1.5", "cps"]),
        ({"sample.guidance_scale": 0.5}, ["sample.guidance_scale=0.5", "1 or more"]),
        ({"train.ema_decay": 1.0}, ["train.ema_decay=1.0"]),
        ({"group_size": 1}, ["group_size=1", "siblings"]),
        ({"sample.sde_window_size": 3}, ["sample.sde_window_range=(0, 0)", "3 steps", "(0, 4)"]),
        ({"sample.sde_window_size": 2, "sample.sde_window_range": (6, 9)}, ["(6, 9)", "the 8 of sample.num_steps"]),
        (
            {"sample.sde_window_size": 2, "sample.sde_window_range": (0, 5)},
            ["train.num_steps=4", "the 2", "leave it 0"],
        ),
        ({"sample.sde_window_range": (0, 5)}, ["(0, 5)", "no effect", "sample.sde_window_size=0"]),
        (
            {
                **{"sample.sde_window_size": 2, "sample.sde_window_range": (6, 8), "train.num_steps": 0},
                **{"sample.sde": "cps", "train.beta": 0.04},
            },
            ["(6, 8)", "cps", "train.beta=0"],
        ),
        ({"train.ratio_norm": True, "sample.sde": "cps"}, ["train.ratio_norm", "sample.sde=flow", "cps"]),
        ({"train.skip_zero_advantages": True, "train.beta": 0.04}, ["skip_zero_advantages", "train.beta=0.04"]),
        ({"train.spatial_kl": 1.5, "train.beta": 0.04}, ["train.spatial_kl=1.5", "1 or less"]),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name(changes, words):
    message = refusal(**changes)
    assert all(word in message for word in words), message


def test_a_control_stands_in_the_runs_name():
    control, _ = resolve(tiny(**{"advantage.control": "rolled"}), 1)
    assert control.name == "tiny_ocr_map-rolled" and control.run_dir == "runs/tiny_ocr_map-rolled"


def test_the_last_step_is_trained_on_where_its_kl_is_finite():
    every_step = {"train.num_steps": 8, "sample.num_steps": 8}
    assert resolve(tiny(**every_step), 1)[0].train.num_steps == 8
    assert resolve(tiny(**every_step, **{"sample.sde": "cps", "train.beta": 0.0}), 1)[0].train.num_steps == 8


def test_the_trained_steps_are_the_windows_or_all_but_the_last():
    assert resolve(tiny(**{"train.num_steps": 0}), 1)[0].train.num_steps == 7
    window = {"sample.sde_window_size": 3, "sample.sde_window_range": (0, 5), "train.num_steps": 0}
    assert resolve(tiny(**window), 1)[0].train.num_steps == 3


def test_another_number_of_processes_is_refused_with_both_ways_out():
    message = refusal(num_processes=3, num_gpus=2)
    assert "num_gpus=2" in message and "3 processes" in message
    assert "--config.num_gpus=3" in message and "--num_processes 2" in message


@pytest.mark.parametrize("num_gpus", range(1, 65))
def test_any_number_of_gpus_has_a_geometry(num_gpus):
    _, geometry = resolve(tiny(num_gpus=num_gpus, num_groups=0, group_size=0, batch_size=0), num_gpus)
    assert geometry.batches_per_process * num_gpus * geometry.batch_size == geometry.num_samples
    assert num_gpus in (1, 4) or 48 <= geometry.num_groups < 48 + 2 * num_gpus


def test_the_suggested_number_of_groups_is_the_next_that_divides():
    message = refusal(num_processes=32, num_gpus=32, num_groups=5, group_size=24, batch_size=9, updates_per_epoch=2)
    assert message.endswith("try num_groups=24")  # 24 * 24 = 576 = 32 * 9 * 2


def test_a_group_that_does_not_divide_is_refused_with_the_numbers():
    message = refusal(num_groups=3, group_size=5, batch_size=4, updates_per_epoch=1)
    assert "3 * 5 = 15 images" in message and "1 * 4 * 1 = 4" in message and "try batch_size=" in message


@given(
    num_groups=st.integers(1, 60),
    group_size=st.integers(2, 30),
    batch_size=st.integers(1, 40),
    updates_per_epoch=st.integers(1, 4),
    num_gpus=st.sampled_from([1, 2, 3, 8, 32]),
)
@settings(max_examples=150, deadline=None)
def test_a_geometry_either_divides_or_comes_with_a_suggestion_that_does(num_gpus, **sizes):
    try:
        _, geometry = resolve(tiny(num_gpus=num_gpus, **sizes), num_gpus)
    except ValueError as error:
        name, value = re.search(r"try (batch_size|num_groups)=(\d+)$", str(error)).groups()
        _, geometry = resolve(tiny(num_gpus=num_gpus, **(sizes | {name: int(value)})), num_gpus)
    num_updates = geometry.updates_per_epoch
    assert geometry.batches_per_update * num_updates == geometry.batches_per_process > 0
    assert geometry.batches_per_process * num_gpus * geometry.batch_size == geometry.num_samples


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--config.num_gpus=3"], ["num_gpus=3", "with 1 process;", "--config.num_gpus=1"]),
        (["--config.learning_rate=1"], ["learning_rate", "did you mean train.learning_rate?"]),
        (["--config.train.beta=much"], ["--config.train.beta=much", "number"]),
        (["--config.advantage.mode=best"], ["advantage.mode='best'", "scalar, weight, residual"]),
    ],
)
def test_the_command_refuses_before_it_loads_a_model(flags, words):
    command = [sys.executable, "train_sd3.py", "--config", "config/grpo.py:tiny_ocr_map", *flags]
    done = subprocess.run(command + ["--config.model=no/such/folder"], capture_output=True, text=True)
    assert done.returncode != 0
    assert all(word in done.stderr for word in words), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1].startswith("train_sd3.py: ")
    assert "no/such/folder" not in done.stderr.splitlines()[-1]


def test_the_home_folder_is_meant_by_its_sign_wherever_a_path_may_stand(monkeypatch):
    """A shell leaves the ~ of --config.run_dir=~/run as it is, and nothing else would take it for the home folder."""
    monkeypatch.setenv("HOME", "/home/me")
    paths = {name: f"~/{name}" for name in ("run_dir", "resume_from", "model", "dataset", "prompt_cache")}
    options = {"clip_gradcam": {"model": "~/clip", "alpha": 0.5}}
    config, _ = resolve(tiny(**paths, reward_options=options), 1)
    assert all(config[name] == f"/home/me/{name}" for name in paths)
    assert config.reward_options.clip_gradcam.to_dict() == {"model": "/home/me/clip", "alpha": 0.5}
