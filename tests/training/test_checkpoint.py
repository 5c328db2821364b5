"""Checkpoints: complete or absent, and everything in them comes back."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flow_grpo.training.checkpoint import (
    MAY_CHANGE,
    changed_fields,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage

CONFIG = {"name": "tiny", "seed": 1, "num_epochs": 9, "run_dir": "a", "train": {"beta": 0.04}, "rewards": {"ocr": 1.0}}


class Run:
    """A policy with what trains it."""

    def __init__(self, policy):
        self.policy = policy
        self.parameters = policy.trainable_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-2)
        self.ema = ExponentialMovingAverage(self.parameters, decay=0.5, update_every=1)
        self.distributed = Distributed()

    def step(self, num_steps=1):
        """Optimizer steps on gradients from torch's global random state."""
        for _ in range(num_steps):
            for parameter in self.parameters:
                parameter.grad = torch.randn(parameter.shape)
            self.optimizer.step()
            self.ema.step()
        self.optimizer.zero_grad()

    def save(self, run_dir, epoch, keep=3):
        return save_checkpoint(run_dir, self.policy, self.optimizer, self.ema, epoch, CONFIG, self.distributed, keep)

    def load(self, path):
        return load_checkpoint(path, self.policy, self.optimizer, self.ema, self.distributed)

    def everything(self):
        """Every tensor that training changes, copied."""
        moments = [state[name].clone() for state in self.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        return [p.detach().clone() for p in self.parameters] + moments + [a.clone() for a in self.ema.average]


@pytest.fixture
def trained(make_policy):
    torch.manual_seed(1)
    run = Run(make_policy())
    run.step(2)
    return run


def same(one, other):
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_checkpoint_holds_what_the_module_promises(trained, tmp_path):
    path = trained.save(tmp_path, 20)
    assert path == tmp_path / "checkpoint-000020"
    assert {p.name for p in path.iterdir()} == {"lora", "lora_ema", "state.pt", "rng.pt", "config.json"}
    assert json.loads((path / "config.json").read_text()) == CONFIG
    weights = load_file(path / "lora" / "pytorch_lora_weights.safetensors")
    average = load_file(path / "lora_ema" / "pytorch_lora_weights.safetensors")
    state = trained.policy.adapter_state()
    assert all(torch.equal(weights[f"transformer.{name}"], tensor) for name, tensor in state.items())
    with trained.ema.applied():
        averaged = {name: tensor.clone() for name, tensor in trained.policy.adapter_state().items()}
    assert all(torch.equal(average[f"transformer.{name}"], tensor) for name, tensor in averaged.items())
    assert not same(list(weights.values()), list(average.values()))


def test_saving_changes_no_weight_and_no_random_state(trained, tmp_path):
    before, state = trained.everything(), torch.get_rng_state()
    trained.save(tmp_path, 1)
    assert same(trained.everything(), before) and torch.equal(torch.get_rng_state(), state)


def test_a_loaded_checkpoint_goes_on_as_the_saved_run_bit_for_bit(trained, make_policy, tmp_path):
    path = trained.save(tmp_path, 5)
    trained.step(3)
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    other = Run(make_policy())
    other.step(1)
    assert other.load(path) == 5
    other.step(3)  # draws its gradients from the restored random state
    assert same(other.everything(), trained.everything())
    assert other.ema.num_steps == trained.ema.num_steps == 5


def test_every_kind_of_random_state_comes_back(trained, tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()

    random.seed(3), np.random.seed(4), torch.manual_seed(5)
    np.random.randn()  # leaves the second half of a pair behind, which the state holds too
    path = trained.save(tmp_path, 1)
    expected = draw()
    draw()
    trained.load(path)
    assert draw() == expected


def test_random_states_of_another_number_of_processes_are_left_alone(trained, tmp_path):
    path = trained.save(tmp_path, 1)
    rng = torch.load(path / "rng.pt", weights_only=True)
    torch.save(rng * 2, path / "rng.pt")
    torch.manual_seed(8)
    expected = torch.get_rng_state()
    trained.load(path)
    assert torch.equal(torch.get_rng_state(), expected)


def test_only_the_newest_are_kept(trained, tmp_path):
    for epoch in (1, 2, 10, 3):
        trained.save(tmp_path, epoch, keep=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000003", "checkpoint-000010"]


def test_what_a_kill_during_writing_left_is_no_checkpoint_and_gets_replaced(trained, tmp_path):
    left_over = tmp_path / ".checkpoint-000007.tmp"
    (left_over / "lora").mkdir(parents=True)
    (left_over / "half_written").write_text("junk")
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(ValueError, match="holds no checkpoint"):
        find_checkpoint(tmp_path, "latest")
    path = trained.save(tmp_path, 7)
    assert not left_over.exists() and not (path / "half_written").exists()
    assert find_checkpoint(tmp_path, "latest") == path and trained.load(path) == 7


def test_an_error_during_writing_leaves_no_checkpoint_and_the_weights_as_they_were(trained, tmp_path):
    class FullDisk(OSError):
        pass

    class FailsHalfway:
        adapter_state = trained.policy.adapter_state

        def save_adapter(self, folder, state):
            if folder.name == "lora_ema":
                raise FullDisk
            trained.policy.save_adapter(folder, state)

    before = trained.everything()
    with pytest.raises(FullDisk):
        save_checkpoint(
            tmp_path, FailsHalfway(), trained.optimizer, trained.ema, 3, CONFIG, trained.distributed, keep=3
        )
    assert list_checkpoints(tmp_path) == [] and same(trained.everything(), before)


def test_a_finished_checkpoint_is_not_written_twice(trained, tmp_path):
    path = trained.save(tmp_path, 4)
    written = (path / "state.pt").stat().st_mtime_ns
    trained.save(tmp_path, 4)
    assert (path / "state.pt").stat().st_mtime_ns == written


def test_the_latest_is_found_and_so_is_a_named_one(trained, tmp_path):
    first, second = trained.save(tmp_path, 9), trained.save(tmp_path, 10)
    assert find_checkpoint(tmp_path, "latest") == second
    assert find_checkpoint(tmp_path, str(first)) == first


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="resume_from=.*elsewhere is no checkpoint; give its folder, or latest"):
        find_checkpoint(tmp_path, str(tmp_path / "elsewhere"))


@pytest.fixture
def written(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_a_checkpoint_of_another_configuration_is_refused_naming_every_field(written):
    other = CONFIG | {"seed": 2, "train": {"beta": 0.0}, "rewards": {"ocr_map": 1.0}}
    with pytest.raises(ValueError) as caught:
        changed_fields(written, other)
    message = str(caught.value)
    assert "seed: 1 in the checkpoint, 2 now" in message
    assert "train.beta: 0.04 in the checkpoint, 0.0 now" in message
    assert "rewards.ocr: 1.0 in the checkpoint, None now" in message
    assert "rewards.ocr_map: None in the checkpoint, 1.0 now" in message
    assert "name" not in message.splitlines()[1:]


def test_the_same_configuration_and_what_may_change_are_taken(written):
    assert changed_fields(written, dict(CONFIG)) == {}
    changed = {name: "something else" for name in MAY_CHANGE}
    assert changed_fields(written, CONFIG | changed) == {
        name: (CONFIG.get(name), "something else") for name in MAY_CHANGE
    }
