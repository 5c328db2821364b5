"""The three ratios of the GRPO loss: hand-worked clips, and the identities between them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flow_grpo.training.advantages import token_advantages
from flow_grpo.training.objective import RATIOS, grpo_loss, ratio_norm


def log_probs(batch=4, num_tokens=9, seed=0, spread=1e-3):
    """New log-probs (B, N), a leaf, and old ones near them, in float64 so that identities can be tight."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(batch, num_tokens, generator=generator, dtype=torch.float64)
    new = old + spread * torch.randn(batch, num_tokens, generator=generator, dtype=torch.float64)
    return new.requires_grad_(), old


def random_advantages(seed=1):
    return torch.randn(4, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss_and_gradient(log_prob, old_log_prob, advantages, clip_range, ratio):
    loss, metrics = grpo_loss(log_prob, old_log_prob, advantages, clip_range, ratio)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    return loss.detach(), gradient, metrics


@pytest.mark.parametrize("ratio", RATIOS)
def test_before_an_update_the_ratio_is_one_and_the_loss_the_negative_advantage(ratio):
    _, old = log_probs()
    log_prob, advantages = old.clone().requires_grad_(), random_advantages()
    loss, gradient, metrics = loss_and_gradient(log_prob, old, advantages, 1e-4, ratio)
    torch.testing.assert_close(loss, -advantages.mean())
    assert metrics["ratio_deviation_max"] == metrics["ratio_std"] == metrics["approx_kl"] == 0
    assert metrics["ratio_mean"] == 1
    expected = -(advantages.mean(dim=1, keepdim=True).expand(4, 9) if ratio == "image" else advantages) / 36
    torch.testing.assert_close(gradient, expected)


@given(seed=st.integers(0, 1000), clip_range=st.sampled_from([1e-5, 3e-4, 1e-2]))
@settings(max_examples=40, deadline=None)
def test_equal_advantages_give_image_and_gspo_token_one_loss_and_gradient(seed, clip_range):
    log_prob, old = log_probs(seed=seed)
    advantages = torch.randn(4, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).expand(4, 9)
    image = loss_and_gradient(log_prob, old, advantages, clip_range, "image")
    gspo_token = loss_and_gradient(log_prob, old, advantages, clip_range, "gspo_token")
    # float64: the mean of nine equal terms against the term itself
    torch.testing.assert_close(image[:2], gspo_token[:2], rtol=1e-12, atol=1e-15)
    assert image[2].keys() == gspo_token[2].keys()
    for name in image[2].keys() - {"loss"}:
        assert torch.equal(image[2][name], gspo_token[2][name])


@pytest.mark.parametrize("ratio", ["image", "gspo_token"])
@pytest.mark.parametrize(
    "log_ratio, advantage, loss, gradient",
    [
        (0.0, 2.0, -2.0, -2.0),  # inside the clip
        (math.log(1.5), 2.0, -2.2, 0.0),  # praised far enough: clipped at 1.1, no gradient
        (math.log(0.5), 2.0, -1.0, -1.0),  # praise that went astray is pulled back: -A r, gradient -A r
        (math.log(0.5), -2.0, 1.8, 0.0),  # blamed far enough: clipped at 0.9
        (math.log(1.5), -2.0, 3.0, 3.0),  # blame that went astray
    ],
)
def test_clip_by_hand(ratio, log_ratio, advantage, loss, gradient):
    # two tokens whose mean log-ratio is given, so that no single token shows it
    log_prob = torch.tensor([[log_ratio + 0.3, log_ratio - 0.3]], dtype=torch.float64, requires_grad=True)
    advantages = torch.full((1, 2), advantage, dtype=torch.float64)
    got_loss, got_gradient, _ = loss_and_gradient(log_prob, torch.zeros(1, 2).double(), advantages, 0.1, ratio)
    assert got_loss.item() == pytest.approx(loss, abs=1e-12)
    torch.testing.assert_close(got_gradient, torch.full((1, 2), gradient / 2, dtype=torch.float64))


def test_token_ratio_clips_each_token_alone():
    log_prob = torch.tensor([[math.log(1.5), 0.0]], dtype=torch.float64, requires_grad=True)
    loss, gradient, metrics = loss_and_gradient(log_prob, torch.zeros(1, 2).double(), torch.ones(1, 2), 0.1, "token")
    assert loss.item() == pytest.approx(-(1.1 + 1.0) / 2, abs=1e-12)
    assert gradient.tolist() == [[0.0, -0.5]]
    assert metrics["clip_fraction_above"] == 0.5 and metrics["clip_fraction_below"] == 0


def test_gspo_token_gives_each_token_its_own_advantage_at_the_image_ratio():
    log_prob = torch.tensor([[0.02, 0.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[3.0, -1.0]], dtype=torch.float64)
    loss, gradient, _ = loss_and_gradient(log_prob, torch.zeros(1, 2).double(), advantages, 0.1, "gspo_token")
    image_ratio = math.exp(0.01)
    assert loss.item() == pytest.approx(-image_ratio, abs=1e-12)
    torch.testing.assert_close(gradient, -advantages * image_ratio / 2)


def test_gspo_token_clips_only_tokens_the_image_ratio_served():
    # the image's ratio is past 1 + eps: the praised token is clipped, the blamed one still pulls
    log_prob = torch.full((1, 2), 0.5, dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    _, gradient, _ = loss_and_gradient(log_prob, torch.zeros(1, 2).double(), advantages, 0.1, "gspo_token")
    torch.testing.assert_close(gradient, torch.tensor([[0.0, math.exp(0.5) / 2]], dtype=torch.float64))


def test_image_ratio_takes_the_mean_advantage():
    log_prob, old = log_probs()
    advantages = random_advantages()
    varied = loss_and_gradient(log_prob, old, advantages, 1e-3, "image")
    mean = loss_and_gradient(log_prob, old, advantages.mean(dim=1, keepdim=True), 1e-3, "image")
    torch.testing.assert_close(varied[:2], mean[:2], rtol=1e-12, atol=1e-15)  # float64 means of means


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("mode", ["weight", "residual"])
@pytest.mark.parametrize(
    "token_maps", [torch.full((4, 7), 0.8), torch.full((4, 7), 0.1), torch.full((4, 7), 0.5), None]
)
def test_constant_map_gives_scalar_grpo_loss_and_gradient_bit_for_bit(ratio, mode, token_maps):
    # seven tokens: the mean of seven equal fp32 numbers need not be that number
    log_prob, old = (tensor.detach().float() for tensor in log_probs(num_tokens=7))
    advantages, ids = torch.tensor([0.1, -0.7, 1.3, -9.0]), torch.tensor([0, 0, 1, 1])
    mapped = token_advantages(advantages, token_maps, mode, "reward", group_ids=ids)
    scalar = token_advantages(advantages, torch.rand(4, 7), "scalar", None)
    results = [loss_and_gradient(log_prob.requires_grad_(), old, a, 5e-4, ratio) for a in (mapped, scalar)]
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("ratio", RATIOS)
def test_order_of_the_batch_only_reorders_the_gradient(ratio):
    log_prob, old = log_probs()
    advantages, order = random_advantages(), torch.tensor([2, 0, 3, 1])
    loss, gradient, _ = loss_and_gradient(log_prob, old, advantages, 1e-3, ratio)
    permuted = log_prob.detach()[order].requires_grad_()
    permuted_loss, permuted_gradient, _ = loss_and_gradient(permuted, old[order], advantages[order], 1e-3, ratio)
    torch.testing.assert_close(permuted_loss, loss, rtol=1e-12, atol=1e-15)  # float64 sums in another order
    torch.testing.assert_close(permuted_gradient, gradient[order], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("ratio", RATIOS)
def test_neither_advantages_nor_old_log_probs_get_a_gradient(ratio):
    log_prob, old = log_probs()
    old.requires_grad_()
    advantages = random_advantages().requires_grad_()
    grpo_loss(log_prob, old, advantages, 1e-3, ratio)[0].backward()
    assert log_prob.grad is not None and old.grad is None and advantages.grad is None


def test_metrics_by_hand():
    # image ratios 1.5, 0.5, 1, 1 under a clip of 0.1
    log_ratio = torch.tensor([1.5, 0.5, 1.0, 1.0], dtype=torch.float64).log()
    log_prob = log_ratio[:, None].expand(4, 3).clone().requires_grad_()
    loss, metrics = grpo_loss(log_prob, torch.zeros(4, 3).double(), torch.ones(4, 3), 0.1, "gspo_token")
    expected = {
        "loss": loss.item(),
        "ratio_mean": 1.0,
        "ratio_std": math.sqrt(0.125),
        "ratio_deviation_max": 0.5,
        "clip_fraction_above": 0.25,
        "clip_fraction_below": 0.25,
        "approx_kl": (math.log(1.5) ** 2 + math.log(0.5) ** 2) / 8,
        "weighted_ratio_deviation_max": 0.5,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, abs=1e-12)
    assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_drift_of_the_tokens_with_the_credit_shows_where_the_image_s_mean_stays(ratio):
    # the first token has 3 of 4 parts of the credit's size, whatever its sign; the second image has no credit at all
    log_ratio = torch.tensor([[0.2, -0.2, 0.0], [1.0, -1.0, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([[-3.0, 0.0, 1.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    metrics = grpo_loss(log_ratio, torch.zeros_like(log_ratio), advantages, 1e-4, ratio)[1]
    assert metrics["weighted_ratio_deviation_max"].item() == pytest.approx(math.exp(0.15) - 1, rel=1e-12)
    assert ratio == "token" or metrics["ratio_deviation_max"] == 0


def test_metrics_of_a_single_image_are_finite():
    log_prob = torch.full((1, 3), 0.1, requires_grad=True)
    assert all(
        value.isfinite() for value in grpo_loss(log_prob, torch.zeros(1, 3), torch.ones(1, 3), 0.1, "image")[1].values()
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"ratio": "sequence"}, "unknown ratio 'sequence'"),
        ({"clip_range": 0.0}, "clip_range=0.0"),
        ({"clip_range": float("nan")}, "clip_range=nan"),
        ({"old_log_prob": torch.zeros(2, 4)}, r"must both be \(B, N\)"),
        ({"log_prob": torch.zeros(2), "old_log_prob": torch.zeros(2)}, r"must both be \(B, N\)"),
        ({"advantages": torch.zeros(2)}, r"advantages must be \(2, 3\)"),
        ({"advantages": torch.zeros(3, 3)}, r"advantages must be \(2, 3\)"),
        ({"old_log_prob": torch.zeros(2, 3).bfloat16()}, "old_log_prob is torch.bfloat16"),
    ],
)
def test_bad_input_is_refused(change, words):
    good = {
        "log_prob": torch.zeros(2, 3),
        "old_log_prob": torch.zeros(2, 3),
        "advantages": torch.zeros(2, 3),
        "clip_range": 1e-4,
        "ratio": "gspo_token",
    }
    with pytest.raises(ValueError, match=words):
        grpo_loss(**(good | change))


def test_ratio_norm_is_the_mean_shift_times_the_noise_and_has_no_bias():
    generator = torch.Generator().manual_seed(0)
    old_mean = torch.randn(4096, 8, 16, generator=generator, dtype=torch.float64)
    shift = 0.05 * torch.randn(1, 8, 16, generator=generator, dtype=torch.float64)
    std = torch.tensor(0.3, dtype=torch.float64)
    noise = torch.randn(old_mean.shape, generator=generator, dtype=torch.float64)
    sample = old_mean + std * noise

    def log_prob(mean):
        return -((sample - mean) ** 2).mean(dim=-1) / (2 * std**2)

    old, new = log_prob(old_mean), log_prob(old_mean + shift)
    normalised = ratio_norm(new, old, old_mean + shift, old_mean, std) - old
    torch.testing.assert_close(normalised, (shift * noise).mean(dim=-1))
    # the plain log-ratio lies shift^2 / (2 std^2) below 0; five standard errors of a mean over 4096 draws
    assert (new - old).mean() < -0.8 * (shift**2).mean() / (2 * std**2)
    assert normalised.mean().abs() < 5 * normalised.std() / normalised.numel() ** 0.5


def test_ratio_norm_has_the_same_spread_at_every_noise_level():
    generator = torch.Generator().manual_seed(0)
    mean, noise = torch.zeros(512, 8, 16), torch.randn(512, 8, 16, generator=generator)
    spreads = []
    for std in (0.05, 0.3, 1.2):
        std = torch.tensor(std)
        sample = mean + std * noise
        old = -(sample**2).mean(dim=-1) / (2 * std**2)
        new = -((sample - 0.01) ** 2).mean(dim=-1) / (2 * std**2)
        spreads.append((ratio_norm(new, old, mean + 0.01, mean, std) - old).std())
    # fp32: log-probs of order 1 whose difference is 1e-4 of that
    torch.testing.assert_close(torch.stack(spreads), spreads[1].expand(3), rtol=1e-2, atol=0)


def test_ratio_norm_of_an_unmoved_policy_is_the_old_log_prob():
    log_prob, mean = torch.randn(3, 5), torch.randn(3, 5, 2)
    assert torch.equal(ratio_norm(log_prob, log_prob.clone(), mean, mean.clone(), torch.tensor(0.4)), log_prob)
