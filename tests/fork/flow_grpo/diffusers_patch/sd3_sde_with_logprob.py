"""A fork's own SDE step, in the shape of Flow-GRPO's: four values, the third and fourth without the step's length."""

import math

import torch


def sde_step_with_logprob(
    scheduler, model_output, timestep, sample, noise_level=0.7, prev_sample=None, generator=None, sde_type="sde"
):
    """prev_sample (B, C, h, w), its log-prob (B,), its mean (B, C, h, w), std_dev_t (T, 1, 1, 1).

    timestep: (T,), one for all images or one an image. The noise's std is std_dev_t * sqrt(-dt), for "cps" std_dev_t.
    """
    steps = [scheduler.index_for_timestep(t) for t in timestep]
    sigma, sigma_prev = (scheduler.sigmas[[step + k for step in steps]].view(-1, 1, 1, 1) for k in (0, 1))
    dt = sigma_prev - sigma
    if sde_type == "cps":
        std_dev_t = std = sigma_prev * math.sin(noise_level * math.pi / 2)
        clean, noise = sample - sigma * model_output, sample + (1 - sigma) * model_output
        mean = (1 - sigma_prev) * clean + (sigma_prev**2 - std**2).sqrt() * noise
    else:
        std_dev_t = noise_level * (sigma / (1 - torch.where(sigma == 1, scheduler.sigmas[1], sigma))).sqrt()
        std, drift = std_dev_t * (-dt).sqrt(), std_dev_t**2 / (2 * sigma)
        mean = (1 + drift * dt) * sample + (1 + drift * (1 - sigma)) * dt * model_output
    if prev_sample is None:
        prev_sample = mean + std * torch.randn(sample.shape, generator=generator)
    density = -((prev_sample.detach() - mean) ** 2)
    if sde_type == "sde":
        density = density / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
    return prev_sample, density.mean(dim=(1, 2, 3)), mean, std_dev_t
