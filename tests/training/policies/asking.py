"""What the tests of all families ask a policy."""

import torch

from flow_grpo.training.rollout import SDE

SIGMA = torch.tensor(0.6)
ODE = SDE(3, noise_level=0.0)


def some_latents(policy, batch=2, seed=0):
    return torch.randn(batch, *policy.latent_shape, generator=torch.Generator().manual_seed(seed))


def velocity(policy, latents, embeds):
    with torch.no_grad():
        return policy.velocity(latents, SIGMA, embeds)


def with_changed_token(policy, latents, token):
    """The latents, 3 higher wherever they belong to the token; the gradient of `to_tokens` says where that is."""
    latents = latents.clone().requires_grad_(True)
    (belongs,) = torch.autograd.grad(policy.to_tokens(latents)[:, token].sum(), latents)
    return latents.detach() + 3 * belongs


def last_latents(policy, prompts, start):
    """The latents that a rollout without noise ends on, from a start of its own."""
    embeds, sigmas, sample = policy.encode_prompts(prompts), policy.sigmas(ODE.num_steps), start
    with torch.no_grad():
        for sigma, sigma_next in zip(sigmas, sigmas[1:]):
            sample = sample + (sigma_next - sigma) * policy.velocity(sample, sigma, embeds)
    return sample


def gradients(policy, prompts):
    """Of every trained parameter, by a loss that weighs all of the velocity."""
    predicted = policy.velocity(some_latents(policy), SIGMA, policy.encode_prompts(prompts))
    return torch.autograd.grad(predicted.square().sum(), policy.trainable_parameters())


def blocks(policy):
    """The transformer's blocks, stack after stack."""
    for stack in policy.network.children():
        yield from stack if isinstance(stack, torch.nn.ModuleList) else ()


def randomise_adapter(policy, seed=0):
    """Give the adapter weights that change the velocity; a fresh one is the identity."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
