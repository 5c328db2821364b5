"""One stochastic denoising step of a flow model, and the density of where it landed.

A flow model moves from noise x1 (sigma = 1) to an image x0 (sigma = 0):

    x         = (1 - sigma) x0 + sigma x1
    velocity  = x1 - x0

Reinforcement learning needs steps that are random and have a density. Every kind of step here is the Euler step of the ODE,
in which a share of the predicted noise x1_hat is replaced by fresh noise:

    dt      = sigma_next - sigma, below 0
    x1_hat  = x + (1 - sigma) * velocity
    x_next  = x + velocity * dt - share * x1_hat + std * noise
"""

import math

import torch
from torch import Tensor

KINDS = ("flow", "cps")


def sde_step(
    sample: Tensor,
    velocity: Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    noise_level: float | Tensor,
    kind: str,
) -> tuple[Tensor, Tensor]:
    """Mean and noise std of one step from `sigma` to `sigma_next`; the next sample is mean + std * noise.

    sample, velocity: (B, ...) of any rank.
    sigma, sigma_next: numbers, 0-dim tensors or (B,), with 0 <= sigma_next < sigma <= 1.
    noise_level: number, 0-dim tensor or (B,), 0 or more; for "cps" at most 1. 0 is exactly the Euler step of the ODE.
    Returns mean (B, ...), at least fp32, and std of the whole step: 0-dim, or (B, 1, ...) where an input is (B,).
    Raises ValueError for an unknown kind, shapes that differ, and a number as noise_level outside its range.

    "flow", Flow-GRPO, arXiv:2505.05470. In the first step sigma is 1, and 1 - sigma_next stands for 1 - sigma in std_t:
        std_t  = noise_level * sqrt(sigma / (1 - sigma))
        mean   = x (1 + std_t^2 / (2 sigma) dt) + velocity (1 + std_t^2 (1 - sigma) / (2 sigma)) dt
        std    = std_t sqrt(-dt)
    "cps", coefficients-preserving sampling, arXiv:2509.05952:
        std    = sigma_next sin(noise_level pi / 2)
        mean   = (1 - sigma_next) x0_hat + sqrt(sigma_next^2 - std^2) x1_hat
    The code computes both in the module's form. It is the same step, but exact at noise_level 0 and safe at sigma_next 0.
    """
    _check_step(sample, velocity, noise_level, kind)
    sample, velocity = _at_least_fp32(sample), _at_least_fp32(velocity)
    sigma, sigma_next, noise_level = (_per_sample(value, sample) for value in (sigma, sigma_next, noise_level))
    dt = sigma_next - sigma
    share, std = (_flow_noise if kind == "flow" else _cps_noise)(sigma, sigma_next, noise_level)
    predicted_noise = sample + (1 - sigma) * velocity  # x1_hat, (B, ...)
    return sample + dt * velocity - share * predicted_noise, std


def _flow_noise(sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """The share and the std of a "flow" step."""
    # 1 - sigma; in the first step it would divide by 0, so the next sigma stands in
    clean = 1 - torch.where(sigma == 1, sigma_next, sigma)
    minus_dt = sigma - sigma_next
    share = noise_level.square() / (2 * clean) * minus_dt  # std_t^2 / (2 sigma) * -dt
    return share, noise_level * (sigma / clean).sqrt() * minus_dt.sqrt()


def _cps_noise(sigma: Tensor, sigma_next: Tensor, noise_level: Tensor) -> tuple[Tensor, Tensor]:
    """The share and the std of a "cps" step."""
    share = 2 * sigma_next * (noise_level * (math.pi / 4)).sin().square()  # sigma_next - sqrt(sigma_next^2 - std^2)
    return share, sigma_next * (noise_level * (math.pi / 2)).sin()


def log_prob_per_token(next_tokens: Tensor, mean_tokens: Tensor, std: float | Tensor, kind: str = "flow") -> Tensor:
    """Log-density of each token of the next sample: the mean, not the sum, over the token's D values, in fp32.

    "flow" is the Gaussian log-density. "cps" leaves out std, as Flow-GRPO does for CPS:
        "flow"    -(x - mean)^2 / (2 std^2) - log(std) - log(2 pi) / 2
        "cps"     -(x - mean)^2
    The std of "cps" falls with sigma. Divided by it, the last steps would drown the others, and a std of 0 would fail.

    next_tokens, mean_tokens: (B, N, D). Only mean_tokens gets a gradient.
    std: of the whole step, as `sde_step` returns it; above 0 for "flow".
    Returns (B, N). Its mean over the tokens is exactly Flow-GRPO's log-prob of the image.
    Raises ValueError for an unknown kind and shapes that do not fit.
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


def kl_per_token(
    mean_tokens: Tensor,
    mean_ref_tokens: Tensor,
    std: float | Tensor,
    sigma: float | Tensor,
    sigma_next: float | Tensor,
    kind: str = "flow",
    exact: bool = False,
) -> Tensor:
    """KL divergence of each token's step from the reference model's step: the mean over the token's D values, in fp32.

        (mean - mean_ref)^2 / (2 variance)
        variance = std^2          exact, or kind "cps"
        variance = std^2 / |dt|   kind "flow" without `exact`

    Flow-GRPO leaves |dt| out of the variance of "flow". Its published betas are tuned to that, so it is the default here.
    `exact` makes the KL larger by 1 / |dt|. The variance of "cps" holds no dt, so there `exact` changes nothing.

    mean_tokens, mean_ref_tokens: (B, N, D). std: of the whole step, above 0, as `sde_step` returns it for `kind`.
    sigma, sigma_next: where the step begins and ends. Returns (B, N).
    Raises ValueError for an unknown kind and shapes that do not fit.
    """
    _check_tokens(mean_tokens, mean_ref_tokens)
    _check_kind(kind)
    mean_tokens = _at_least_fp32(mean_tokens)
    squared_shift = (mean_tokens - mean_ref_tokens.to(mean_tokens)).square().mean(dim=-1)  # (B, N)
    variance = _per_sample(std, squared_shift).square()
    if kind == "flow" and not exact:
        variance = variance / (_per_sample(sigma, squared_shift) - _per_sample(sigma_next, squared_shift))
    return squared_shift / (2 * variance)


def _at_least_fp32(tensor: Tensor) -> Tensor:
    # bf16 loses the difference of two close log-probs; float64 stays, for references
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _per_sample(value: float | Tensor, like: Tensor) -> Tensor:
    """A number, a 0-dim tensor or one value per sample, shaped to broadcast over `like` (B, ...)."""
    if not isinstance(value, Tensor):
        # full, not tensor: copying a number to the GPU would wait for the GPU
        return torch.full((), value, dtype=like.dtype, device=like.device)
    if value.numel() not in (1, like.shape[0]):
        raise ValueError(f"got shape {tuple(value.shape)} for a batch of {like.shape[0]}; pass a number or (B,)")
    value = value.to(like)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (like.ndim - 1))


def _check_step(sample: Tensor, velocity: Tensor, noise_level: float | Tensor, kind: str) -> None:
    _check_kind(kind)
    if sample.shape != velocity.shape:
        raise ValueError(f"velocity {tuple(velocity.shape)} must have the shape of the sample, {tuple(sample.shape)}")
    highest = 1 if kind == "cps" else math.inf
    if not isinstance(noise_level, Tensor) and not 0 <= noise_level <= highest:
        raise ValueError(f'noise_level={noise_level} must lie between 0 and {highest} for kind "{kind}"')


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r} of SDE step; choose one of {', '.join(KINDS)}")


def _check_tokens(tokens: Tensor, mean_tokens: Tensor) -> None:
    if tokens.ndim != 3 or tokens.shape != mean_tokens.shape:
        shapes = f"{tuple(tokens.shape)} and {tuple(mean_tokens.shape)}"
        raise ValueError(f"both tokens and their mean must be (B, N, D), got {shapes}")
