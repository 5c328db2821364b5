"""What gradients of groups say of an arm, held against sums of gradients that are made by hand."""

import pytest
import torch

from scripts.credit.fidelity import cosine, fidelity, pair_mean, products, resampled_counts, samples_saved


def planted(num_groups=20, signal=0.3, noise=1.0, seed=0):
    """Groups' gradients (G, G + 1): one common direction, and a noise that stands upright on all others."""
    return torch.cat([torch.full((num_groups, 1), signal), noise * torch.eye(num_groups)], dim=1)


@pytest.mark.parametrize("num_groups", [1, 4, 8])
def test_the_cosine_is_that_of_the_summed_gradients(num_groups):
    reference, arm = planted(), planted(noise=0.5)
    ours, others = arm[:num_groups].sum(dim=0), reference[num_groups:].sum(dim=0)
    expected = torch.nn.functional.cosine_similarity(ours, others, dim=0)
    assert float(cosine(products(arm, reference), torch.ones(20), num_groups)) == pytest.approx(float(expected))


def test_half_the_noise_saves_what_the_cosines_say():
    reference, arm = planted(signal=0.01), planted(signal=0.01, noise=0.5)
    # a signal far under the noise: half the noise, a quarter of the samples
    assert float(samples_saved(products(arm, reference), torch.ones(20))) == pytest.approx(4, rel=0.01)


def test_the_scalar_saves_nothing_and_a_scale_changes_nothing():
    gradients = torch.randn(16, 50, generator=torch.Generator().manual_seed(0)) + 0.5
    scalar, scaled = (fidelity(factor * gradients, gradients, 4, 50) for factor in (1, 7))
    assert scalar["saved"] == scalar["saved_low"] == scalar["saved_high"] == pytest.approx(1)
    assert scaled["saved"] == pytest.approx(1) and scaled["direction"] == pytest.approx(1)
    assert scaled["rms"] == pytest.approx(7 * scalar["rms"])


def test_a_gradient_of_something_else_saves_nothing_and_points_elsewhere():
    reference, arm = planted(), planted()
    arm[:, 0] *= -1
    figures = fidelity(arm, reference, 4, 21)
    assert figures["saved"] == 0 and figures["cos_8"] < 0 and figures["direction"] == pytest.approx(-1)


def test_the_interval_covers_the_figure_of_many_groups():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(200, generator=generator)
    noise = torch.randn(200, 200, generator=generator)
    many = fidelity(0.1 * common + 0.7 * noise, 0.1 * common + noise, 4, 200)
    few = fidelity(0.1 * common + 0.7 * noise[:24], 0.1 * common + noise[:24], 4, 200)
    assert few["saved_low"] < many["saved"] < few["saved_high"]
    assert many["saved_high"] - many["saved_low"] < few["saved_high"] - few["saved_low"]


def test_pairs_never_hold_a_group_against_itself():
    matrix = torch.diag(torch.tensor([100.0, 100.0, 100.0])).double()
    counts = torch.tensor([[2.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    assert pair_mean(matrix, counts).tolist() == [0, 0]
    assert (resampled_counts(12).sum(dim=1) == 12).all()


def test_the_root_mean_square_is_of_an_updates_mean_gradient():
    gradients = torch.full((16, 100), 3e-8)
    assert fidelity(gradients, gradients, 4, 100)["rms"] == pytest.approx(3e-8)
