"""Checkpoints: complete or absent, and everything in them comes back."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from flow_grpo.training.checkpoint import (
    Origin,
    damage_of,
    list_checkpoints,
    load_checkpoint,
    read_origin,
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

    def averaged(self):
        with self.ema.applied():
            return {name: tensor.clone() for name, tensor in self.policy.adapter_state().items()}

    def everything(self):
        """Every tensor that training changes, copied."""
        states = [self.optimizer.state[parameter] for parameter in self.parameters if self.optimizer.state]
        moments = [state[name].clone() for state in states for name in ("exp_avg", "exp_avg_sq")]
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
    assert {p.name for p in path.iterdir()} == {
        *("lora", "lora_ema", "state.pt", "rng.pt", "config.json", "manifest.json"),
    }
    assert json.loads((path / "config.json").read_text()) == CONFIG
    weights = load_file(path / "lora" / "pytorch_lora_weights.safetensors")
    average = load_file(path / "lora_ema" / "pytorch_lora_weights.safetensors")
    for saved, state in ((weights, trained.policy.adapter_state()), (average, trained.averaged())):
        # alpha / rank = 2 stands in the second matrix of each pair
        scaled = {name: tensor * (2 if ".lora_B." in name else 1) for name, tensor in state.items()}
        assert all(torch.equal(saved[f"transformer.{name}"], tensor) for name, tensor in scaled.items())
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
    (path / "manifest.json").unlink()
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
    path = trained.save(tmp_path, 7)
    assert not left_over.exists() and not (path / "half_written").exists()
    assert list_checkpoints(tmp_path) == [path] and trained.load(path) == 7


def test_an_error_during_writing_leaves_no_checkpoint_and_the_weights_as_they_were(trained, tmp_path):
    class FullDisk(OSError):
        pass

    class FailsHalfway:
        adapter, adapter_state = trained.policy.adapter, trained.policy.adapter_state
        trained_names = trained.policy.trained_names

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


@pytest.fixture(scope="module")
def whole(make_policy, tmp_path_factory):
    run = Run(make_policy())
    run.step(1)
    return run.save(tmp_path_factory.mktemp("whole"), 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", ["state.pt", "rng.pt", "config.json", "lora_ema/pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named(whole, tmp_path, name, damage):
    path = tmp_path / "copy"
    shutil.copytree(whole, path)
    assert damage_of(path) is None
    DAMAGES[damage](path / name)
    assert damage_of(path).startswith(name)


@pytest.mark.parametrize("damage", ["cut short", "empty"])
def test_a_damaged_manifest_is_named(whole, tmp_path, damage):
    path = tmp_path / "copy"
    shutil.copytree(whole, path)
    DAMAGES[damage](path / "manifest.json")
    assert damage_of(path) == "manifest.json cannot be read"


def test_nothing_of_a_damaged_checkpoint_is_loaded(trained, tmp_path):
    path = trained.save(tmp_path, 1)
    trained.step(1)
    before = trained.everything()
    flip(path / "state.pt")
    with pytest.raises(ValueError, match="checkpoint-000001 is damaged: state.pt is not what was written"):
        trained.load(path)
    assert same(trained.everything(), before)


def test_weights_that_are_not_finite_are_never_the_newest_checkpoint(trained, tmp_path):
    trained.save(tmp_path, 1)
    with torch.no_grad():
        trained.parameters[3][0] = float("nan")
    with pytest.raises(RuntimeError, match="tensors of the weights are not finite before epoch 2"):
        trained.save(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-000001"]


def test_moments_and_averages_are_stored_by_the_names_of_the_weights(trained, tmp_path):
    path = trained.save(tmp_path, 1)
    state = torch.load(path / "state.pt", weights_only=True)
    names = list(state["lora"])
    assert list(state["optimizer"]["state"]) == names == state["optimizer"]["param_groups"][0]["params"]
    assert list(state["ema"]["average"]) == names
    for name, average, parameter in zip(names, trained.ema.average, trained.parameters, strict=True):
        assert torch.equal(state["ema"]["average"][name], average)
        assert torch.equal(state["optimizer"]["state"][name]["exp_avg"], trained.optimizer.state[parameter]["exp_avg"])
        assert torch.equal(state["lora"][name], parameter)


def without_manifest(path, change):
    """The checkpoint as another program wrote it."""
    state = torch.load(path / "state.pt", weights_only=True)
    change(state)
    torch.save(state, path / "state.pt")
    (path / "manifest.json").unlink()


def test_moments_in_another_order_go_to_their_own_weights(trained, make_policy, tmp_path):
    path = trained.save(tmp_path, 1)

    def reverse(state):
        for part, key in ((state["optimizer"], "state"), (state["ema"], "average")):
            part[key] = dict(reversed(part[key].items()))
        state["optimizer"]["param_groups"][0]["params"].reverse()

    without_manifest(path, reverse)
    other = Run(make_policy())
    other.load(path)
    assert same(other.everything(), trained.everything())


@pytest.mark.parametrize("part", ["optimizer", "averaged weights"])
def test_moments_of_other_weights_are_refused_by_name(trained, tmp_path, part):
    path = trained.save(tmp_path, 1)

    def rename(state):
        name = list(state["lora"])[0]
        if part == "optimizer":
            group = state["optimizer"]["param_groups"][0]["params"]
            group[0] = "another"
            state["optimizer"]["state"]["another"] = state["optimizer"]["state"].pop(name)
        else:
            state["ema"]["average"]["another"] = state["ema"]["average"].pop(name)

    without_manifest(path, rename)
    with pytest.raises(ValueError, match=f"the checkpoint's {part} and this run's weights differ in 2 names, another"):
        trained.load(path)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"lora_rank": 8}, "another model, LoRA rank or set of targets"),
        ({"adapter": "full"}, "holds lora, and this run"),
    ],
)
def test_weights_of_another_shape_or_adapter_are_refused(trained, make_policy, tmp_path, options, words):
    other = Run(make_policy(**options))
    before = other.everything()
    with pytest.raises(ValueError, match=words):
        other.load(trained.save(tmp_path, 1))
    assert same(other.everything(), before)


def test_a_checkpoint_of_an_earlier_version_which_counted_is_loaded(trained, make_policy, tmp_path):
    path = trained.save(tmp_path, 1)

    def count(state):
        optimizer = state["optimizer"]
        optimizer["state"] = dict(enumerate(optimizer["state"].values()))
        optimizer["param_groups"][0]["params"] = list(optimizer["state"])
        state["ema"]["average"] = list(state["ema"]["average"].values())

    without_manifest(path, count)
    other = Run(make_policy())
    assert other.load(path) == 1
    assert same(other.everything(), trained.everything())


def test_where_the_weights_come_from_is_written_beside_them(trained, tmp_path):
    origin = Origin({"model": "abc"}, [{"epoch": 3, "field": "train.beta", "was": 0.04, "now": 0.0}])
    path = save_checkpoint(
        *(tmp_path, trained.policy, trained.optimizer, trained.ema, 4, CONFIG, trained.distributed),
        keep=3,
        origin=origin,
    )
    assert read_origin(path) == origin
