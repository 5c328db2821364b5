"""Sample images with the SDE and keep what the update needs: the latents of each trained step and their log-probs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from flow_grpo.training.policies.base import Policy, PromptEmbeds
from flow_grpo.training.sde import kl_per_token, log_prob_per_token, sde_step
from flow_grpo.training.seeds import Domain, sample_seed


@dataclass(frozen=True)
class SDE:
    """How a rollout steps.

    noise_level: 0 is the ODE. kind: "flow" (Flow-GRPO) or "cps"; see `sde_step`.
    window: the steps that are stochastic. The other steps follow the ODE. None: all steps are stochastic.
    """

    num_steps: int
    noise_level: float
    kind: str = "flow"
    window: range | None = None

    def noise_level_of(self, step: int) -> float:
        return self.noise_level if self.window is None or step in self.window else 0.0


def draw_window(size: int, within: tuple[int, int], *numbers: int) -> range:
    """`size` steps in a row, somewhere in range(*within), drawn by these numbers; the same wherever it is drawn.

    Flow-GRPO-Fast's sde_window_size and sde_window_range; MixGRPO, arXiv:2507.21802.
    """
    first, end = within
    start = first + sample_seed(Domain.WINDOW, *numbers) % (end - size - first + 1)
    return range(start, start + size)


@dataclass(frozen=True)
class Trajectories:
    """A batch of rollouts. Of their T steps, S are kept for training.

    latents, next_latents: (B, S, ...) fp32, before and after each kept step.
    log_probs: (B, S, N), under the policy that sampled.
    means: (B, S, N, D), the means of the kept steps under that policy, or None.
    sigmas: (S + 1,), before and after each kept step.
    images: (B, 3, H, W) in [0, 1], or None once they are scored.
    """

    embeds: PromptEmbeds
    latents: torch.Tensor
    next_latents: torch.Tensor
    log_probs: torch.Tensor
    means: torch.Tensor | None
    sigmas: torch.Tensor
    images: torch.Tensor | None


@dataclass(frozen=True)
class StepDensity:
    """One step under the current policy. log_prob (B, N); mean (B, N, D); std as `sde_step` returns it."""

    log_prob: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor


def sample_noise(seeds: list[int], num_draws: int, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Standard normal noise (B, num_draws, *shape) fp32. A sample's noise comes from its seed alone, in any batch."""
    draws = []
    for seed in seeds:
        generator = torch.Generator(device).manual_seed(seed)
        draws.append(torch.randn(num_draws, *shape, generator=generator, device=device))
    return torch.stack(draws)


@torch.no_grad()
def rollout(
    policy: Policy,
    prompts: list[str],
    seeds: list[int],
    sde: SDE,
    num_kept: int,
    start_seeds: list[int] | None = None,
    keep_means: bool = False,
) -> Trajectories:
    """Sample an image for each prompt and keep num_kept steps for training, from the window's first step on.

    seeds: one per sample; all noise of the sample comes from it. start_seeds: the initial latents come from these instead.
    sde: without a window, the kept steps begin at the rollout's first step.
    keep_means: keep the steps' means, which `ratio_norm` needs.
    Better not keep the last step: it lands on sigma 0, where the noise is small and the density steep.
    """
    embeds = policy.encode_prompts(prompts)
    sigmas = policy.sigmas(sde.num_steps)  # (T + 1,)
    device = sigmas.device
    num_draws = 1 + (sde.num_steps if sde.noise_level > 0 else 0)
    noise = sample_noise(seeds, num_draws, policy.latent_shape, device)  # (B, 1 + T, ...)
    sample = noise[:, 0]
    if start_seeds is not None and start_seeds != seeds:
        # As many draws as above: on CUDA the first draw depends on their number, and must be the same latent.
        sample = sample_noise(start_seeds, num_draws, policy.latent_shape, device)[:, 0]
    first = sde.window.start if sde.window else 0
    latents, log_probs, means = [], [], []
    for step in range(sde.num_steps):
        if step == first:
            latents.append(sample)
        noise_level = sde.noise_level_of(step)
        velocity = policy.velocity(sample, sigmas[step], embeds)
        mean, std = sde_step(sample, velocity, sigmas[step], sigmas[step + 1], noise_level, sde.kind)
        sample = mean + std * noise[:, 1 + step] if noise_level > 0 else mean
        if first <= step < first + num_kept:
            latents.append(sample)
            mean = policy.to_tokens(mean)
            log_probs.append(log_prob_per_token(policy.to_tokens(sample), mean, std, sde.kind))
            means += [mean] if keep_means else []
    kept = torch.stack(latents, dim=1)  # (B, S + 1, ...)
    return Trajectories(
        embeds=embeds,
        latents=kept[:, :-1],
        next_latents=kept[:, 1:],
        log_probs=torch.stack(log_probs, dim=1) if log_probs else torch.empty(len(prompts), 0, 0),
        means=torch.stack(means, dim=1) if means else None,
        sigmas=sigmas[first : first + num_kept + 1],
        images=policy.decode(sample),
    )


def pack(trajectories: Sequence[Trajectories], rows: Sequence[int]) -> Trajectories:
    """Samples of several batches as one batch, without their images.

    rows: indices into the batches laid one after the other; all batches have the same size. If the rows are exactly one
    whole batch, that batch is returned without a copy.
    """
    size = len(trajectories[0].latents)
    if list(rows) == list(range(rows[0], rows[0] + size)) and rows[0] % size == 0:
        return trajectories[rows[0] // size]
    parts = [(trajectories[row // size], row % size) for row in rows]

    def take(name):
        return torch.stack([getattr(batch, name)[row] for batch, row in parts])

    return Trajectories(
        embeds=PromptEmbeds.cat(batch.embeds[row : row + 1] for batch, row in parts),
        latents=take("latents"),
        next_latents=take("next_latents"),
        log_probs=take("log_probs"),
        means=None if parts[0][0].means is None else take("means"),
        sigmas=parts[0][0].sigmas,
        images=None,
    )


def replay(policy: Policy, trajectories: Trajectories, step: int, sde: SDE) -> StepDensity:
    """The density that the policy now gives to a kept step. It uses the rollout's own forward, so the ratio starts at 1."""
    latents, sigmas = trajectories.latents[:, step], trajectories.sigmas
    velocity = policy.velocity(latents, sigmas[step], trajectories.embeds)
    mean, std = sde_step(latents, velocity, sigmas[step], sigmas[step + 1], sde.noise_level, sde.kind)
    mean = policy.to_tokens(mean)  # (B, N, D)
    log_prob = log_prob_per_token(policy.to_tokens(trajectories.next_latents[:, step]), mean, std, sde.kind)
    return StepDensity(log_prob, mean, std)


def kl_to_base(policy: Policy, trajectories: Trajectories, step: int, sde: SDE, density: StepDensity, exact: bool):
    """KL (B, N) of a step from the same step of the frozen base model; on Flow-GRPO's scale unless `exact`."""
    sigma, sigma_next = trajectories.sigmas[step], trajectories.sigmas[step + 1]
    with torch.no_grad(), policy.disable_adapter():
        base = replay(policy, trajectories, step, sde)
    return kl_per_token(density.mean, base.mean, density.std, sigma, sigma_next, sde.kind, exact)
