"""Fields from the command line: of the right type, known, and rewards among them."""

import pytest

from config.command_line import parse
from config.validation import resolve

RUN = ["--config", "config/grpo.py:tiny_ocr_map"]


def written(folder, arguments):
    """The resolved configuration, as a run writes it into its folder."""
    config, _ = resolve(parse(arguments), num_processes=1)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json_best_effort())
    return config


def test_a_run_goes_on_with_the_fields_of_its_folder_and_nothing_but_the_folder_named(tmp_path):
    fields = [
        "--config.sample.sde_window_size=3",
        "--config.sample.sde_window_range=(0, 5)",
        "--config.train.num_steps=3",
    ]
    fields += [
        "--config.rewards.my.module:Scorer=2",
        "--config.seed=7",
        "--config.reward_options.my.module:Scorer.size=3",
        "--config.advantage.control=rolled",
    ]
    went_on = ["--config.resume_from=elsewhere", "--config.allow_changes=train"]  # was meant for that launch alone
    first = written(tmp_path / "run", [*RUN, *fields, *went_on, f"--config.run_dir={tmp_path / 'run'}"])
    again, _ = resolve(parse([f"--config.resume_from={tmp_path / 'run'}", "--config.num_epochs=30"]), num_processes=1)
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"resume_from", "allow_changes", "num_epochs"}
    assert (again.num_epochs, again.allow_changes) == (30, "")


def test_a_run_that_goes_on_from_a_checkpoint_stays_in_the_folder_of_the_run_wherever_that_was_moved(tmp_path):
    written(tmp_path / "moved/checkpoint-000003", [*RUN, "--config.run_dir=runs/elsewhere"])
    assert parse([f"--config.resume_from={tmp_path}/moved/checkpoint-000003"]).run_dir == str(tmp_path / "moved")
    with pytest.raises(ValueError, match="holds no config.json; give a run's folder, or name the run by --config"):
        parse([f"--config.resume_from={tmp_path}"])


def refusal(*flags):
    with pytest.raises(ValueError) as caught:
        parse([*RUN, *flags])
    return str(caught.value)


def test_fields_are_set_in_each_form_and_the_last_counts():
    config = parse(
        [
            *("--config=config/grpo.py:tiny_ocr", "--config.train.beta=0.5", "--config.train.beta=1e-2"),
            *("--config.num_epochs", "3", "--config.compile", "--config.train.exact_kl=false"),
            *("--config.sample.sde_window_range=(0, 5)", "--config.run_dir=runs/own"),
        ]
    )
    assert (config.name, config.train.beta, config.num_epochs, config.compile) == ("tiny_ocr", 0.01, 3, True)
    assert config.train.exact_kl is False and config.sample.sde_window_range == (0, 5)
    assert config.run_dir == "runs/own"


def test_a_negative_number_is_a_value_of_its_own():
    assert parse([*RUN, "--config.seed", "-3"]).seed == -3


def test_a_reward_is_added_by_a_field_of_its_own():
    config = parse([*RUN, "--config.rewards.clip_gradcam=0.5", "--config.rewards.my.module:Scorer=2"])
    assert config.rewards.to_dict() == {"ocr_map": 1.0, "clip_gradcam": 0.5, "my.module:Scorer": 2.0}


def test_the_weight_of_a_reward_may_become_a_fraction_where_a_run_gives_a_whole_number(tmp_path):
    (tmp_path / "own.py").write_text(
        "from config import grpo\n\ndef get_config():\n    config = grpo.get_config('tiny_ocr_map')\n"
        "    config.rewards = {'ocr': 1}\n    return config\n"
    )
    config = parse(["--config", str(tmp_path / "own.py"), "--config.rewards.ocr=0.5"])
    assert config.rewards.to_dict() == {"ocr": 0.5}


def test_options_of_a_reward_are_set_one_by_one_or_all_at_once():
    one = parse(
        [
            *(*RUN, "--config.reward_options.my.module:Scorer.size=3"),
            *("--config.reward_options.ocr_map.engine=paddleocr", "--config.reward_options.ocr_map.num_workers=2"),
        ]
    )
    both = {"ocr_map": {"engine": "paddleocr", "num_workers": 2}, "my.module:Scorer": {"size": 3}}
    assert one.reward_options.to_dict() == both
    assert parse([*RUN, f"--config.reward_options={both}"]).reward_options.to_dict() == both
    assert parse([*RUN, '--config.rewards={"ocr": 1}']).rewards.to_dict() == {"ocr": 1.0}
    each = parse([*RUN, *(f"--config.reward_options.{name}={options}" for name, options in both.items())])
    assert each.reward_options.to_dict() == both
    assert parse([*RUN, "--config.eval_rewards.ocr={}"]).eval_rewards.ocr.to_dict() == {}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.train.beta=much", "--config.train.beta=much: it should be a valid number"),
        ("--config.num_epochs=2.5", "--config.num_epochs=2.5: it should be a valid integer"),
        ("--config.rewards.ocr=much", "--config.rewards.ocr=much: it should be a valid number"),
        (
            "--config.sample.sde_window_range=0:5",
            "--config.sample.sde_window_range=0:5: it should be a valid tuple, such as (0, 5)",
        ),
        ("--config.rewards=ocr", "--config.rewards=ocr: it should be a valid dictionary"),
        ("--config.learning_rate=1", "unknown field learning_rate; did you mean train.learning_rate?"),
        ("--config.train=1", "unknown field train; it is a group of fields: train.adam_epsilon, "),
        ("--config.sample.num_step=1", "unknown field sample.num_step; did you mean sample.num_steps?"),
        ("--config.train.lr=1", "unknown field train.lr; known: train.adam_epsilon, train.adapter, "),
        ("--config.optimizer.adam.lr=1", "unknown field optimizer.adam.lr; "),
        ("--config.seed.of.data=1", "unknown field seed.of.data; "),
        ("--num_gpus=8", "unexpected argument --num_gpus; fields are set by --config.FIELD=VALUE"),
        ("num_gpus=8", "unexpected argument num_gpus"),
    ],
)
def test_what_cannot_be_set_is_refused_by_name(flag, message):
    assert refusal(flag).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no configuration; name one, such as --config config/grpo.py:tiny_ocr_map"),
        (["--config", "config/grpo.py"], "unknown configuration ''; choose one of tiny_ocr_map"),
        (["--config", "config/grpo.py:tiny"], "unknown configuration 'tiny'; choose one of tiny_ocr_map"),
        (["--config", "no/file.py:run"], "--config no/file.py:run: there is no file no/file.py"),
    ],
)
def test_a_configuration_that_is_not_there_is_refused_with_what_there_is(arguments, message):
    with pytest.raises(ValueError) as caught:
        parse(arguments)
    assert str(caught.value).startswith(message)
