"""Steps of a flow model: against the papers' equations, on straight paths, and on Gaussians whose velocity is known."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.training.sde import kl_per_token, log_prob_per_token, sde_step

KINDS = ["flow", "cps"]
FP32_ROUNDING = 1e-5  # a dozen fp32 operations on numbers of order 1
FP64_ROUNDING = 1e-12


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def published_step(x, v, sigma, sigma_next, eta, kind):
    """Mean and std as the papers print them."""
    dt = sigma_next - sigma
    if kind == "cps":
        std = sigma_next * math.sin(eta * math.pi / 2)
        x0, x1 = x - sigma * v, x + (1 - sigma) * v
        return (1 - sigma_next) * x0 + math.sqrt(sigma_next**2 - std**2) * x1, std
    std_t = math.sqrt(sigma / (1 - (sigma_next if sigma == 1 else sigma))) * eta
    mean = x * (1 + std_t**2 / (2 * sigma) * dt) + v * (1 + std_t**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, std_t * math.sqrt(-dt)


@pytest.mark.parametrize("kind", KINDS)
@given(
    sigmas=st.tuples(st.floats(0, 0.98), st.floats(0.01, 0.99) | st.just(1.0)).filter(lambda pair: pair[0] < pair[1]),
    eta=st.floats(0, 1),
)
@settings(max_examples=50, deadline=None)
def test_step_is_the_published_equation(kind, sigmas, eta):
    sigma_next, sigma = sigmas
    x, v = normal(2, 3, seed=1), normal(2, 3, seed=2)
    mean, std = sde_step(x, v, sigma, sigma_next, eta, kind)
    expected_mean, expected_std = published_step(x, v, sigma, sigma_next, eta, kind)
    # float64, where 1 / (1 - sigma) enlarges rounding a hundredfold; published_step's square root of std^2 near
    # sigma_next^2, at noise_level near 1, loses half the digits
    torch.testing.assert_close(mean, expected_mean, rtol=0, atol=1e-7)
    assert float(std) == pytest.approx(expected_std, abs=FP64_ROUNDING * 100)


def test_flow_step_by_hand():
    # sigma .5 -> .25, eta 1: std_t = 1, mean = 2 (1 - .25) + 1 (1 + .5) (-.25) = 1.125, std = sqrt(.25)
    mean, std = sde_step(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.5, 0.25, 1.0, "flow")
    assert (mean.item(), std.item()) == (1.125, 0.5)


def test_flow_step_from_pure_noise_takes_the_next_sigma_in_the_denominator():
    # sigma 1 -> .75, eta .5: std_t^2 = .25 / (1 - .75) = 1, mean = 2 (1 - .125) + 1 (-.25) = 1.5, std = 1 * sqrt(.25)
    mean, std = sde_step(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 1.0, 0.75, 0.5, "flow")
    assert (mean.item(), std.item()) == (1.5, 0.5)


def test_cps_step_by_hand():
    # sigma .5 -> .4, eta 1/3: sin 30 = 1/2, x0 = 1.5, x1 = 2.5, mean = .6 * 1.5 + .4 * cos 30 * 2.5
    mean, std = sde_step(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 0.5, 0.4, 1 / 3, "cps")
    assert mean.item() == pytest.approx(0.9 + math.sqrt(0.75), abs=FP32_ROUNDING)
    assert std.item() == pytest.approx(0.2, abs=FP32_ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sigma, sigma_next", [(1.0, 0.9), (0.6, 0.3), (0.1, 0.0), (1.0, 0.0)])
def test_no_noise_gives_the_euler_step_bit_for_bit(kind, sigma, sigma_next):
    x, v = normal(2, 4, 8, 8, dtype=torch.float32), normal(2, 4, 8, 8, seed=1, dtype=torch.float32)
    mean, std = sde_step(x, v, sigma, sigma_next, 0, kind)
    dt = torch.tensor(sigma_next) - torch.tensor(sigma)
    assert torch.equal(mean, x + dt * v)
    assert std == 0


@pytest.mark.parametrize("kind", KINDS)
def test_straight_path_without_noise_hits_the_next_point(kind):
    x0, x1 = normal(3, 5), normal(3, 5, seed=1)
    mean, _ = sde_step(0.3 * x0 + 0.7 * x1, x1 - x0, 0.7, 0.2, 0.0, kind)
    torch.testing.assert_close(mean, 0.8 * x0 + 0.2 * x1, rtol=0, atol=FP64_ROUNDING)


def test_cps_keeps_the_coefficients_of_image_and_noise():
    x0, x1, sigma_next = normal(3, 5), normal(3, 5, seed=1), 0.4
    mean, std = sde_step(0.3 * x0 + 0.7 * x1, x1 - x0, 0.7, sigma_next, 0.8, "cps")
    old_noise = (mean - (1 - sigma_next) * x0) / x1  # the coefficient of x1 that is left
    torch.testing.assert_close(old_noise.square() + std.square(), torch.full_like(x0, sigma_next**2), rtol=1e-9, atol=0)


def test_cps_lands_on_the_predicted_image_in_the_last_step():
    x, v = normal(2, 3), normal(2, 3, seed=1)
    mean, std = sde_step(x, v, 0.3, 0.0, 0.8, "cps")
    torch.testing.assert_close(mean, x - 0.3 * v, rtol=0, atol=FP64_ROUNDING)
    assert std == 0


def test_flow_is_finite_in_the_last_step():
    mean, std = sde_step(normal(2, 3), normal(2, 3, seed=1), 0.3, 0.0, 0.7, "flow")
    assert mean.isfinite().all() and std > 0


def gaussian_velocity(x, sigma, data_mean, data_std):
    """E[x1 - x0 | x] where x0 ~ N(data_mean, data_std^2) and x1 ~ N(0, 1)."""
    variance = (1 - sigma) ** 2 * data_std**2 + sigma**2
    return (sigma - (1 - sigma) * data_std**2) / variance * (x - (1 - sigma) * data_mean) - data_mean


def transport(sigmas, data_mean, data_std, noise_level, kind):
    """Mean and variance after all steps. On a Gaussian each is affine in x: two points tell it, no sample is drawn."""
    mean = (1 - sigmas[0]) * data_mean
    variance = (1 - sigmas[0]) ** 2 * data_std**2 + sigmas[0] ** 2
    points = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        velocity = gaussian_velocity(points, sigma, data_mean, data_std)
        (offset, end), std = sde_step(points, velocity, sigma, sigma_next, noise_level, kind)
        slope = end - offset
        mean, variance = offset + slope * mean, slope**2 * variance + std**2
    return mean.item(), variance.item()


def test_flow_preserves_the_marginals_of_a_gaussian_as_steps_shrink():
    data_mean, data_std, last = 1.5, 0.6, 0.05
    errors = []
    for num_steps in (200, 400, 800):
        sigmas = torch.linspace(0.95, last, num_steps + 1, dtype=torch.float64).tolist()
        mean, variance = transport(sigmas, data_mean, data_std, 0.7, "flow")
        assert mean == pytest.approx((1 - last) * data_mean, abs=FP64_ROUNDING)
        errors.append(abs(variance - (1 - last) ** 2 * data_std**2 - last**2))
    assert errors[-1] < 2e-3  # first order in dt = 1e-3
    # half the step, half the error: beside the discretisation there is no bias
    assert [coarse / fine for coarse, fine in zip(errors[:-1], errors[1:], strict=True)] == pytest.approx(
        [2, 2], abs=0.1
    )


def test_more_noise_leaves_the_flow_marginals_alone():
    sigmas = torch.linspace(0.95, 0.05, 2001, dtype=torch.float64).tolist()
    variances = [transport(sigmas, 1.5, 0.6, noise_level, "flow")[1] for noise_level in (0.0, 0.5, 1.0)]
    assert (
        max(variances) - min(variances) < 2e-3
    )  # first order in dt = 4.5e-4, with a constant growing as noise_level^2


@pytest.mark.parametrize("noise_level", [0.0, 0.5, 0.8, 1.0])
def test_cps_preserves_the_marginals_of_a_single_image_in_any_number_of_steps(noise_level):
    # with one image in the data the predictions are exact, and so is the sampler, however coarse
    mean, variance = transport([1.0, 0.7, 0.5, 0.2], 1.5, 0.0, noise_level, "cps")
    assert mean == pytest.approx(0.8 * 1.5, abs=FP64_ROUNDING)
    assert variance == pytest.approx(0.2**2, abs=FP64_ROUNDING)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 6), (2, 4, 6), (2, 4, 3, 5)])
def test_one_sigma_a_sample_equals_each_sample_alone(kind, shape):
    x, v = normal(*shape), normal(*shape, seed=1)
    sigma, sigma_next, noise_level = torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.0]), torch.tensor([0.5, 0.8])
    mean, std = sde_step(x, v, sigma, sigma_next, noise_level, kind)
    assert std.shape == (2, *[1] * (len(shape) - 1))
    for i in range(2):
        alone = sde_step(x[i : i + 1], v[i : i + 1], sigma[i], sigma_next[i], noise_level[i], kind)
        assert torch.equal(mean[i : i + 1], alone[0])
        assert torch.equal(std[i].flatten(), alone[1].flatten())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_fp32(kind):
    x, v = normal(2, 3, dtype=torch.float32).bfloat16(), normal(2, 3, seed=1, dtype=torch.float32).bfloat16()
    mean, std = sde_step(x, v, 0.5, 0.4, 0.7, kind)
    assert mean.dtype == std.dtype == torch.float32
    assert torch.equal(mean, sde_step(x.float(), v.float(), 0.5, 0.4, 0.7, kind)[0])


def test_log_prob_is_the_normal_density():
    next_tokens, mean = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    expected = torch.distributions.Normal(mean, 0.3).log_prob(next_tokens).mean(dim=-1)
    torch.testing.assert_close(log_prob_per_token(next_tokens, mean, 0.3), expected, rtol=0, atol=FP64_ROUNDING)


def test_log_prob_by_hand():
    # errors 1 and 3, std 2: -(1 + 9) / 2 / 8 - log 2 - log sqrt(2 pi)
    log_prob = log_prob_per_token(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2), 2.0)
    assert log_prob.item() == pytest.approx(-0.625 - math.log(2) - 0.5 * math.log(2 * math.pi), abs=FP32_ROUNDING)


def test_mean_over_tokens_is_the_image_log_prob_of_flow_grpo():
    latents, mean, std = normal(2, 4, 6, 6), normal(2, 4, 6, 6, seed=1), torch.tensor([0.3, 0.7])
    wide = std.double().reshape(2, 1, 1, 1)
    image = -((latents - mean) ** 2) / (2 * wide**2) - wide.log() - math.log(math.sqrt(2 * math.pi))

    def tokens(tensor):  # 2x2 patches, as SD3 has them
        return tensor.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).reshape(2, 9, 16)

    per_token = log_prob_per_token(tokens(latents), tokens(mean), std)
    torch.testing.assert_close(per_token.mean(dim=1), image.mean(dim=(1, 2, 3)), rtol=0, atol=FP64_ROUNDING)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (2, 1, 1), (2, 1, 1, 1)])
def test_log_prob_takes_the_std_in_any_shape_a_step_returns(shape):
    tokens, mean = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    torch.testing.assert_close(
        log_prob_per_token(tokens, mean, torch.full(shape, 0.5)), log_prob_per_token(tokens, mean, 0.5)
    )


def test_log_prob_differentiates_the_mean_and_not_the_sample():
    mean = normal(2, 3, 4).requires_grad_()
    log_prob_per_token(mean + 0.5, mean, 0.5).sum().backward()
    # d/dmean of -(x - mean)^2 / (2 std^2) / D = (x - mean) / std^2 / D = .5 / .25 / 4
    torch.testing.assert_close(mean.grad, torch.full_like(mean, 0.5), rtol=0, atol=FP64_ROUNDING)


def test_log_prob_of_half_precision_is_fp32():
    assert log_prob_per_token(torch.ones(1, 2, 4).half(), torch.zeros(1, 2, 4).half(), 0.5).dtype == torch.float32


def test_cps_log_prob_is_the_negative_squared_error_and_allows_no_noise():
    log_prob = log_prob_per_token(torch.tensor([[[1.0, 3.0]]]), torch.zeros(1, 1, 2), 0.0, kind="cps")
    assert log_prob.item() == -5


def test_exact_kl_is_the_divergence_of_the_two_gaussians():
    mean, reference = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    _, std = sde_step(mean, reference, 0.5, 0.4, 0.7, "flow")
    normals = (torch.distributions.Normal(tensor, std) for tensor in (mean, reference))
    expected = torch.distributions.kl_divergence(*normals).mean(dim=-1)
    kl = kl_per_token(mean, reference, std, 0.5, 0.4, exact=True)
    torch.testing.assert_close(kl, expected, rtol=0, atol=FP64_ROUNDING)


def test_kl_leaves_dt_out_of_the_variance_as_flow_grpo_does():
    mean, reference, sigma = normal(2, 3, 4), normal(2, 3, 4, seed=1), torch.tensor([0.5, 0.8], dtype=torch.float64)
    _, std = sde_step(mean, reference, sigma, sigma - 0.1, 0.7, "flow")
    std_t = (sigma / (1 - sigma)).sqrt() * 0.7
    expected = ((mean - reference) ** 2).mean(dim=-1) / (2 * std_t[:, None] ** 2)
    torch.testing.assert_close(kl_per_token(mean, reference, std, sigma, sigma - 0.1), expected, rtol=0, atol=1e-10)


def test_kl_of_cps_has_one_scale():
    mean, reference = normal(2, 3, 4), normal(2, 3, 4, seed=1)
    scales = [kl_per_token(mean, reference, 0.3, 0.5, 0.4, kind="cps", exact=exact) for exact in (False, True)]
    assert torch.equal(*scales)


def test_kl_of_a_model_from_itself_is_zero():
    mean = normal(2, 3, 4)
    assert torch.equal(kl_per_token(mean, mean, 0.3, 0.5, 0.4), torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda x: sde_step(x, x, 0.5, 0.4, 0.7, "ddim"), "unknown kind 'ddim'"),
        (lambda x: sde_step(x, x[:1], 0.5, 0.4, 0.7, "flow"), "shape of the sample"),
        (lambda x: sde_step(x, x, 0.5, 0.4, -0.1, "flow"), "noise_level=-0.1"),
        (lambda x: sde_step(x, x, 0.5, 0.4, 1.1, "cps"), "noise_level=1.1"),
        (lambda x: sde_step(x, x, torch.ones(3), 0.4, 0.7, "flow"), "batch of 2"),
        (lambda x: log_prob_per_token(x[0], x[0], 0.1), r"\(B, N, D\)"),
        (lambda x: log_prob_per_token(x, x[:, :1], 0.1), r"\(B, N, D\)"),
        (lambda x: log_prob_per_token(x, x, 0.1, kind="ddim"), "unknown kind"),
        (lambda x: kl_per_token(x, x, torch.ones(3), 0.5, 0.4), "batch of 2"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(2, 3, 4))
