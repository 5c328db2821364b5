import pytest
from safetensors.torch import load_file

from flow_grpo.training.best import read_best, save_best
from flow_grpo.training.distributed import Distributed


@pytest.fixture(scope="module")
def distributed():
    return Distributed()


def test_only_a_better_evaluation_replaces_the_best(tmp_path, policy, distributed):
    assert read_best(tmp_path) is None
    for epoch, value, replaced in ((0, 0.5, True), (5, 0.4, False), (10, 0.5, False), (15, 0.6, True)):
        metrics = {"eval/reward": value, "eval/gold/ocr": 1 - value}
        assert save_best(tmp_path, policy, metrics, "eval/reward", epoch, distributed) is replaced
    assert read_best(tmp_path) == {"epoch": 15, "metric": "eval/reward", "value": 0.6}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-best"]
    assert load_file(tmp_path / "checkpoint-best/lora_ema/pytorch_lora_weights.safetensors")


def test_an_evaluation_without_a_number_is_never_the_best(tmp_path, policy, distributed):
    for value, written in ((float("nan"), False), (0.2, True), (float("nan"), False), (0.3, True)):
        assert save_best(tmp_path, policy, {"eval/gold/ocr": value}, "eval/gold/ocr", 0, distributed) is written


def test_another_metric_starts_anew(tmp_path, policy, distributed):
    save_best(tmp_path, policy, {"eval/reward": 0.9}, "eval/reward", 0, distributed)
    assert save_best(tmp_path, policy, {"eval/gold/ocr": 0.2}, "eval/gold/ocr", 5, distributed)
    assert read_best(tmp_path)["metric"] == "eval/gold/ocr"


def test_a_run_in_the_folder_of_one_that_died_does_not_take_its_best_for_its_own(tmp_path, policy, distributed):
    save_best(tmp_path, policy, {"eval/reward": 0.9}, "eval/reward", 0, distributed)
    assert save_best(tmp_path, policy, {"eval/reward": 0.2}, "eval/reward", 0, distributed)
    assert read_best(tmp_path)["value"] == 0.2


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are(tmp_path, policy, distributed):
    with pytest.raises(ValueError, match="best_metric='eval/rewards' is not measured; choose one of eval/reward, or"):
        save_best(tmp_path, policy, {"eval/reward": 0.5, "alarm/x": 0.0}, "eval/rewards", 0, distributed)
