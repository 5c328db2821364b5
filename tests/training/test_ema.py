"""The average of the weights: hand-worked decays, and that the weights themselves are never touched."""

import pytest
import torch

from flow_grpo.training.ema import ExponentialMovingAverage


def parameter(*values):
    return torch.nn.Parameter(torch.tensor(values))


def test_the_average_is_a_copy_that_does_not_follow_the_weights():
    weight = parameter(1.0, 2.0)
    ema = ExponentialMovingAverage([weight], decay=0.9, update_every=1)
    assert ema.average[0].data_ptr() != weight.data_ptr()
    with torch.no_grad():
        weight.add_(5)
    assert ema.average[0].tolist() == [1, 2]


def test_the_decay_warms_up_and_then_stays():
    weight = parameter(0.0)
    ema = ExponentialMovingAverage([weight], decay=0.25, update_every=1)
    with torch.no_grad():
        weight.fill_(1)
    expected = 0.0
    for decay in (2 / 11, 3 / 12, 0.25, 0.25):  # (1 + n) / (10 + n), at most 0.25
        ema.step()
        expected = decay * expected + (1 - decay)
        # fp32 against float64
        assert ema.average[0].item() == pytest.approx(expected, abs=1e-6)


def test_only_every_nth_step_updates():
    weight = parameter(0.0)
    ema = ExponentialMovingAverage([weight], decay=0.9, update_every=3)
    with torch.no_grad():
        weight.fill_(1)
    averages = []
    for _ in range(6):
        ema.step()
        averages.append(ema.average[0].item())
    # by hand: decays (1 + 3) / (10 + 3) and (1 + 6) / (10 + 6), by optimizer steps
    assert averages == pytest.approx([0, 0, 9 / 13, 9 / 13, 9 / 13, 1 - (4 / 13) * (7 / 16)])


def test_applied_gives_the_average_and_then_the_weights_back():
    weight = parameter(0.0, 1.0)
    ema = ExponentialMovingAverage([weight], decay=0.9, update_every=1)
    with torch.no_grad():
        weight.copy_(torch.tensor([4.0, 5.0]))
    pointer = weight.data_ptr()
    with ema.applied():
        assert weight.tolist() == [0, 1]
        assert weight.data_ptr() == pointer, "the model and its optimizer hold this tensor"
    assert weight.tolist() == [4, 5] and weight.requires_grad
    assert ema.average[0].tolist() == [0, 1]


def test_applied_gives_the_weights_back_after_an_error():
    weight = parameter(0.0)
    ema = ExponentialMovingAverage([weight], decay=0.9, update_every=1)
    with torch.no_grad():
        weight.fill_(3)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        raise KeyboardInterrupt
    assert weight.item() == 3


def test_averaging_leaves_gradients_and_the_graph_alone():
    weight = parameter(2.0)
    (weight * 3).sum().backward()
    ema = ExponentialMovingAverage([weight], decay=0.9, update_every=1)
    ema.step()
    assert weight.grad.item() == 3 and not ema.average[0].requires_grad


def test_a_loaded_average_goes_on_as_the_saved_one():
    def run(steps, ema, weight):
        for value in steps:
            with torch.no_grad():
                weight.fill_(value)
            ema.step()

    weight = parameter(0.0)
    whole = ExponentialMovingAverage([weight], decay=0.9, update_every=2)
    run([1, 2, 3], whole, weight)
    state = {"num_steps": whole.num_steps, "average": [tensor.clone() for tensor in whole.state_dict()["average"]]}
    other_weight = parameter(9.0)
    resumed = ExponentialMovingAverage([other_weight], decay=0.9, update_every=2)
    resumed.load_state_dict(state)
    run([4, 5, 6], whole, weight)
    run([4, 5, 6], resumed, other_weight)
    assert torch.equal(whole.average[0], resumed.average[0])
