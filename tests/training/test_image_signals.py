"""Edges and colours of images whose edges and colours are known."""

import math

import torch

from flow_grpo.training.image_signals import image_signals


def test_a_flat_image_has_neither_edges_nor_colours():
    signals = image_signals(torch.full((2, 3, 8, 8), 0.4))
    assert signals["edge_density"].tolist() == [0, 0] and signals["colour_entropy"].tolist() == [0, 0]


def test_a_vertical_step_is_one_column_of_edges():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 1
    assert image_signals(images)["edge_density"].item() == 1 / 8
    assert image_signals(images.transpose(2, 3))["edge_density"].item() == 1 / 8


def test_a_step_too_small_to_see_is_no_edge():
    images = torch.zeros(1, 3, 8, 8)
    images[..., 4:] = 0.09
    assert image_signals(images)["edge_density"].item() == 0


def test_entropy_counts_colours():
    images = torch.zeros(1, 3, 8, 8)
    images[:, 0, :, 4:] = 1  # black and red, half each: one bit of the six that 64 pixels could hold
    torch.testing.assert_close(image_signals(images)["colour_entropy"], torch.tensor([1 / 6]))
    images[:, 1, 4:] = 1  # four colours
    torch.testing.assert_close(image_signals(images)["colour_entropy"], torch.tensor([2 / 6]))


def test_each_image_is_measured_by_itself():
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = image_signals(images)
    for row in range(3):
        alone = image_signals(images[row : row + 1])
        assert all(torch.equal(alone[name][0], together[name][row]) for name in together)


def test_noise_is_near_the_top_of_both():
    signals = image_signals(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    assert signals["edge_density"].item() > 0.8
    assert 0.95 < signals["colour_entropy"].item() <= 1 + math.ulp(1)
