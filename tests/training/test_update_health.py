"""What an update says of its gradients: numbers worked by hand."""

from types import SimpleNamespace

import pytest
import torch

from flow_grpo.training.distributed import Distributed
from flow_grpo.training.update import Updater


def test_gradient_health_by_hand():
    weights = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1, 2))]
    weights[0].grad, weights[1].grad = torch.tensor([0.5, 1e-3]), torch.tensor([[0.0, -2e-2]])
    policy = SimpleNamespace(trainable_parameters=lambda: weights)
    distributed = Distributed("no")
    distributed.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    updater = Updater(policy, torch.optim.AdamW(weights, eps=1e-2), None, distributed, None)
    distributed.scaler.scale(torch.ones(()))  # it has a scale once it is used
    health = {name: float(value) for name, value in updater._gradient_health(torch.tensor(0.5004)).items()}
    # four elements, of which 1e-3 and 0 lie under the epsilon
    expected = {"grad_norm": 0.5004, "grad_rms": 0.2502, "grad_under_epsilon_share": 0.5, "loss_scale": 1024.0}
    assert health == pytest.approx(expected)
