"""Where a run goes on from, and what it may have changed by then."""

import json
import re

import pytest

from config.base import get_config
from flow_grpo.training.checkpoint import Origin, checkpoint_name
from flow_grpo.training.resume import (
    MAY_CHANGE,
    changed_fields,
    check_branch,
    find_checkpoint,
    saved_epoch,
    set_damaged_aside,
)

DEFAULTS = {**get_config().to_dict(), "rewards": {}, "reward_options": {}}
CONFIG = {**DEFAULTS, "name": "tiny", "run_dir": "a", "rewards": {"ocr": 1.0}, "model": "m", "dataset": "d"}


def changed(run, name, value):
    """A copy of a configuration with one field changed, by its dotted name."""
    copy = json.loads(json.dumps(run))
    *folders, last = name.split(".")
    target = copy
    for folder in folders:
        target = target[folder]
    target[last] = value
    return copy


@pytest.fixture
def written(tmp_path):
    """A checkpoint's folder as far as its configuration goes."""

    def write(config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return write


def compare(path, config, identities=None, origin=None):
    return changed_fields(path, config, DEFAULTS, identities or {}, origin or Origin())


def make_checkpoint(run_dir, epoch, damaged=False):
    """Files enough for a checkpoint of an earlier version, which has no manifest; a damaged one lacks one of them."""
    path = run_dir / checkpoint_name(epoch)
    path.mkdir(parents=True)
    for name in ("state.pt", "config.json", "rng.pt")[: 2 if damaged else 3]:
        (path / name).write_text("{}")
    return path


def test_the_latest_is_found_and_so_are_a_named_one_and_the_newest_of_a_runs_folder(tmp_path):
    first, second = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path, "latest") == second
    assert find_checkpoint(tmp_path / "elsewhere", str(first)) == first
    assert find_checkpoint(tmp_path / "elsewhere", str(tmp_path)) == second
    assert (saved_epoch(first), saved_epoch(second)) == (9, 10)


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="resume_from=.*elsewhere is no checkpoint; give its folder, a run's folder"):
        find_checkpoint(tmp_path, str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match="holds no checkpoint; leave resume_from empty"):
        find_checkpoint(tmp_path, "latest")


def test_a_damaged_newest_checkpoint_is_named_and_the_last_whole_one_offered(tmp_path):
    for epoch in range(4):
        make_checkpoint(tmp_path, epoch, damaged=epoch > 1)
    offer = f"checkpoint-000003 is damaged: rng.pt is missing; .*--config.resume_from={tmp_path}/checkpoint-000001"
    for resume_from in ("latest", str(tmp_path), str(tmp_path / "checkpoint-000003")):
        with pytest.raises(ValueError, match=offer):
            find_checkpoint(tmp_path, resume_from)


def test_a_run_goes_on_from_the_last_whole_checkpoint_and_the_damaged_ones_leave_its_way(tmp_path):
    whole = [make_checkpoint(tmp_path, epoch, damaged=epoch > 1) for epoch in range(4)][:2]
    path = find_checkpoint(tmp_path, str(whole[1]))
    check_branch(tmp_path, path)
    set_damaged_aside(tmp_path, 1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [path.name for path in whole] + ["checkpoint-000002.damaged", "checkpoint-000003.damaged"]
    with pytest.raises(ValueError, match="goes on to checkpoint-000001; give the branch"):
        check_branch(tmp_path, whole[0])


def test_where_no_checkpoint_is_whole_there_is_nothing_to_offer(tmp_path):
    make_checkpoint(tmp_path, 1, damaged=True)
    with pytest.raises(ValueError, match="no older one is whole; start anew"):
        find_checkpoint(tmp_path, "latest")


def test_a_checkpoint_of_another_configuration_is_refused_naming_every_field(written):
    other = changed(changed(CONFIG, "seed", 2), "train.beta", 0.0) | {"rewards": {"ocr_map": 1.0}}
    with pytest.raises(ValueError) as caught:
        compare(written(CONFIG), other)
    message = str(caught.value)
    assert "seed: 42 in the checkpoint, 2 now" in message
    assert "train.beta: 0.04 in the checkpoint, 0.0 now" in message
    assert "rewards.ocr: 1.0 in the checkpoint, None now" in message
    assert "rewards.ocr_map: None in the checkpoint, 1.0 now" in message
    assert "--config.allow_changes=rewards.ocr,rewards.ocr_map,seed,train.beta" in message
    assert "name" not in "".join(message.splitlines()[1:])


def test_the_same_configuration_and_what_may_change_are_taken(written):
    path = written(CONFIG)
    assert compare(path, dict(CONFIG)) == {}
    different = {name: "something else" for name in MAY_CHANGE if name != "allow_changes"}
    assert compare(path, CONFIG | different) == {
        name: (None if CONFIG[name] == {} else CONFIG[name], "something else") for name in different
    }


def test_a_field_that_the_checkpoints_program_did_not_have_takes_todays_default(written):
    older = json.loads(json.dumps(CONFIG))
    del older["train"]["spatial_kl"]
    path = written(older)
    assert compare(path, CONFIG) == {}
    with pytest.raises(ValueError, match=re.escape("train.spatial_kl: 0.0 in the checkpoint, 0.5 now")):
        compare(path, changed(CONFIG, "train.spatial_kl", 0.5))


def test_a_field_that_todays_program_does_not_have_is_left_out(written):
    assert compare(written(CONFIG | {"forgotten": 1}), CONFIG) == {}


def test_a_change_that_is_meant_is_allowed_by_its_name_or_its_groups(written):
    path = written(CONFIG)
    other = changed(changed(CONFIG, "train.beta", 0.0), "train.clip_range", 1e-3)
    for allowed in ("train.beta,train.clip_range", "train", " train.beta , train.clip_range"):
        assert list(compare(path, other | {"allow_changes": allowed})) == [
            *(["allow_changes"] if allowed else []),
            *("train.beta", "train.clip_range"),
        ]
    with pytest.raises(ValueError, match=re.escape("train.clip_range: 0.0001 in the checkpoint")):
        compare(path, other | {"allow_changes": "train.beta"})
    with pytest.raises(ValueError, match="allow_changes=train.betta: there is no field train.betta"):
        compare(path, other | {"allow_changes": "train.betta"})


def test_options_of_a_scorer_that_change_no_number_may_change(written):
    rewards, options = {"ocr_map": 1.0}, {"ocr_map": {"num_workers": 2, "engine": "paddleocr"}}
    path = written(CONFIG | {"rewards": rewards, "reward_options": options})
    for now in ({"num_workers": 8, "engine": "paddleocr"}, {"engine": "paddleocr"}):
        assert compare(path, CONFIG | {"rewards": rewards, "reward_options": {"ocr_map": now}}) == {}
    with pytest.raises(
        ValueError, match="reward_options.ocr_map.engine: 'paddleocr' in the checkpoint, 'rapidocr' now"
    ):
        compare(path, CONFIG | {"rewards": rewards, "reward_options": {"ocr_map": {"engine": "rapidocr"}}})


def test_a_reward_server_may_move_but_not_change_its_weight(written):
    def run(*servers):
        return CONFIG | {
            "rewards": {f"remote:{url}": weight for url, weight in servers},
            "reward_options": {f"remote:{url}": {"timeout": 10.0 * weight} for url, weight in servers},
        }

    path = written(run(("http://a:1", 0.7), ("http://b:1", 0.3)))
    assert compare(path, run(("http://z:9", 0.7), ("http://b:1", 0.3))) == {}
    with pytest.raises(ValueError, match="rewards.remote:2: 0.7 in the checkpoint, 0.8 now"):
        compare(path, run(("http://a:1", 0.8), ("http://b:1", 0.3)))


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_content_decides_and_not_the_folder(written, name):
    path, moved = written(CONFIG), changed(CONFIG, name, "elsewhere")
    assert compare(path, moved, {name: "same"}, Origin({name: "same"})) == {}
    for other in (moved, CONFIG):
        with pytest.raises(ValueError, match=f"{name}: '. with other content' in the checkpoint"):
            compare(path, other, {name: "another"}, Origin({name: "same"}))
    assert list(compare(path, CONFIG | {"allow_changes": name}, {name: "another"}, Origin({name: "same"}))) == [
        *("allow_changes", name)
    ]
    with pytest.raises(ValueError, match=f"{name}: '.' in the checkpoint, 'elsewhere' now"):
        compare(path, moved)  # of an earlier version, which knew the folder alone
