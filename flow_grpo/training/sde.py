"""One stochastic denoising step of a flow model, and the density of where it landed.

A flow model's path is x = (1 - sigma) x0 + sigma x1, from noise x1 (sigma = 1) to image x0 (sigma = 0), with velocity
x1 - x0. Reinforcement learning needs steps that are random and have a density. Every kind here is the Euler step of
the ODE that gives up a share of the predicted noise, x1_hat = x + (1 - sigma) * velocity, for fresh noise:

    x_next = x + velocity * dt - share * x1_hat + std * noise,    dt = sigma_next - sigma < 0
"""

import math

import torch

KINDS = ("flow", "cps")


def sde_step(sample, velocity, sigma, sigma_next, noise_level, kind):
    """Mean and noise std of one step from `sigma` to `sigma_next`; the next sample is mean + std * noise.

    sample, velocity: (B, ...) of any rank. sigma, sigma_next, noise_level: each a number, a 0-dim tensor or (B,), with
    0 <= sigma_next < sigma <= 1; noise_level from 0 (exactly the Euler step of the ODE), for "cps" up to 1.
    Returns mean (B, ...), at least fp32, and std, the whole step's: 0-dim, or (B, 1, ...) where an input is (B,).
    Raises ValueError for an unknown kind, shapes that differ, and a number as noise_level outside its range.

    "flow", Flow-GRPO, arXiv:2505.05470:
        std_t = noise_level * sqrt(sigma / (1 - sigma)), where the 1 - sigma of the first step takes the next sigma
        mean = x (1 + std_t^2 / (2 sigma) dt) + v (1 + std_t^2 (1 - sigma) / (2 sigma)) dt,    std = std_t sqrt(-dt)
    "cps", coefficients-preserving sampling, arXiv:2509.05952:
        mean = (1 - sigma_next) x0_hat + sqrt(sigma_next^2 - std^2) x1_hat,    std = sigma_next sin(noise_level pi / 2)
    Both are computed in the module's form, which is the same, but exact at noise_level 0 and safe at sigma_next 0.
    """
    _check_step(sample, velocity, noise_level, kind)
    sample, velocity = _at_least_fp32(sample), _at_least_fp32(velocity)
    sigma, sigma_next, noise_level = (_per_sample(value, sample) for value in (sigma, sigma_next, noise_level))
    dt = sigma_next - sigma
    share, std = (_flow_noise if kind == "flow" else _cps_noise)(sigma, sigma_next, noise_level)
    predicted_noise = sample + (1 - sigma) * velocity  # x1_hat, (B, ...)
    return sample + dt * velocity - share * predicted_noise, std


def _flow_noise(sigma, sigma_next, noise_level):
    # 1 - sigma, which would be a division by 0 in the first step
    clean = 1 - torch.where(sigma == 1, sigma_next, sigma)
    minus_dt = sigma - sigma_next
    share = noise_level.square() / (2 * clean) * minus_dt  # std_t^2 / (2 sigma) * -dt
    return share, noise_level * (sigma / clean).sqrt() * minus_dt.sqrt()


def _cps_noise(sigma, sigma_next, noise_level):
    share = 2 * sigma_next * (noise_level * (math.pi / 4)).sin().square()  # sigma_next - sqrt(sigma_next^2 - std^2)
    return share, sigma_next * (noise_level * (math.pi / 2)).sin()


def log_prob_per_token(next_tokens, mean_tokens, std, kind="flow"):
    """Log-density of each token of the next sample: the mean, not the sum, over its D values, in fp32.

    next_tokens, mean_tokens: (B, N, D). std: the step's, above 0, as `sde_step` returns it: a number or 1 or B values.
    Returns (B, N), whose mean over tokens is exactly Flow-GRPO's image log-prob. Only mean_tokens has a gradient.
    Raises ValueError for an unknown kind and shapes that do not fit.

    "flow" is the Gaussian log-density. "cps" is -(x - mean)^2, as Flow-GRPO has it for CPS: without std, which
    falls with sigma, so that the last steps do not drown the others and a std of 0 is allowed.
    """
    _check_tokens(next_tokens, mean_tokens)
    _check_kind(kind)
    mean_tokens = _at_least_fp32(mean_tokens)
    # detached: if the sample carried the mean's gradient, x - mean would be bare noise and the gradient 0
    squared_error = (next_tokens.detach().to(mean_tokens) - mean_tokens).square().mean(dim=-1)  # (B, N)
    if kind == "cps":
        return -squared_error
    std = _per_sample(std, squared_error)  # 0-dim or (B, 1)
    return -squared_error / (2 * std.square()) - std.log() - 0.5 * math.log(2 * math.pi)


def kl_per_token(mean_tokens, mean_ref_tokens, std, sigma, sigma_next, kind="flow", exact=False):
    """KL divergence of a step from the reference model's step, each token's mean over its D values, in fp32.

    mean_tokens, mean_ref_tokens: (B, N, D). std: the step's, above 0, as `sde_step` returns it for `kind`.
    sigma, sigma_next: the step's. Returns (B, N), (mean - mean_ref)^2 / (2 std^2).
    Raises ValueError for an unknown kind and shapes that do not fit.

    Flow-GRPO leaves |dt| out of the variance of "flow", and its published betas are tuned to that: the default. `exact`
    keeps |dt| in, which makes the KL larger by 1 / |dt|. The variance of "cps" holds no dt, so there both are the same.
    """
    _check_tokens(mean_tokens, mean_ref_tokens)
    _check_kind(kind)
    mean_tokens = _at_least_fp32(mean_tokens)
    squared_shift = (mean_tokens - mean_ref_tokens.to(mean_tokens)).square().mean(dim=-1)  # (B, N)
    variance = _per_sample(std, squared_shift).square()
    if kind == "flow" and not exact:
        variance = variance / (_per_sample(sigma, squared_shift) - _per_sample(sigma_next, squared_shift))
    return squared_shift / (2 * variance)


def _at_least_fp32(tensor):
    # bf16 loses the difference of two close log-probs; float64 stays, for references
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _per_sample(value, like):
    """A number, 0-dim tensor or one value a sample, shaped to broadcast over like (B, ...)."""
    if not isinstance(value, torch.Tensor):
        # a fill: copying a number to the GPU would wait for it
        return torch.full((), value, dtype=like.dtype, device=like.device)
    if value.numel() not in (1, like.shape[0]):
        raise ValueError(f"got shape {tuple(value.shape)} for a batch of {like.shape[0]}; pass a number or (B,)")
    value = value.to(like)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


def _check_step(sample, velocity, noise_level, kind):
    _check_kind(kind)
    if sample.shape != velocity.shape:
        raise ValueError(f"velocity {tuple(velocity.shape)} must have the shape of the sample, {tuple(sample.shape)}")
    highest = 1 if kind == "cps" else math.inf
    if not isinstance(noise_level, torch.Tensor) and not 0 <= noise_level <= highest:
        raise ValueError(f'noise_level={noise_level} must lie between 0 and {highest} for kind "{kind}"')


def _check_kind(kind):
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of SDE step; choose one of {', '.join(KINDS)}")


def _check_tokens(tokens, mean_tokens):
    if tokens.ndim != 3 or tokens.shape != mean_tokens.shape:
        shapes = f"{tuple(tokens.shape)} and {tuple(mean_tokens.shape)}"
        raise ValueError(f"both tokens and their mean must be (B, N, D), got {shapes}")
