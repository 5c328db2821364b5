"""The gradients of every arm, group and denoising step, from one forward pass per batch and step.

Before any update the ratio is 1, and an advantage enters the policy gradient linearly. The gradient of an arm is

    g = mean over images and tokens of advantage * gradient of the token's log-prob

So one forward pass serves all arms. Some arms are sums of others: alpha = 0.5 is the mean of alpha = 0 and alpha = 1, if no
weight is capped. Such an arm needs no backward pass of its own.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from flow_grpo.training.policies.base import Policy
from flow_grpo.training.rollout import SDE, Trajectories, replay

MAX_KEPT = 2**18  # numbers of a gradient that are kept; a longer one is sketched


def arm_gradients(
    policy: Policy, trajectories: Sequence[Trajectories], advantages: Tensor, num_groups: int, sde: SDE
) -> Tensor:
    """The gradients (arms, groups, S, K) fp32 on the CPU, of every group's mean over its images and tokens.

    trajectories: batches of the groups, one group after the other, none over two groups. advantages: (arms, S, B, N) of
    all images. K: the number of trained parameters, or MAX_KEPT, of a sketch that keeps lengths and angles.
    """
    parameters = policy.trainable_parameters()
    num_arms, num_steps, num_images, num_tokens = advantages.shape
    batch_size, per_group = num_images // len(trajectories), num_images // num_groups
    sketch = gradient_sketch(sum(parameter.numel() for parameter in parameters), parameters[0].device)
    gradients = None
    for index, batch in enumerate(tqdm(trajectories, desc="gradients")):
        rows = slice(index * batch_size, (index + 1) * batch_size)
        for step in range(num_steps):
            # float64: the coefficients of arms that hardly differ
            wanted = advantages[:, step, rows].flatten(1).double()  # (arms, b * N)
            basis, shares = spanning_rows(wanted)  # (R, b * N), (arms, R)
            log_prob = replay(policy, batch, step, sde).log_prob  # (b, N)
            for row, share in zip(basis, shares.unbind(1), strict=True):
                cotangent = row.view_as(log_prob).to(log_prob)
                parts = torch.autograd.grad(
                    log_prob, parameters, cotangent, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                kept = sketch(torch.cat([part.flatten().float() for part in parts])).cpu()  # (K,)
                if gradients is None:
                    gradients = torch.zeros(num_arms, num_groups, num_steps, len(kept))
                scale = share.float().cpu() / (per_group * num_tokens)  # (arms,)
                gradients[:, index * batch_size // per_group, step].addr_(scale, kept)
    return gradients


def spanning_rows(rows: Tensor, tolerance: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Some of the rows (M, D) that span all of them: (R, D), and shares (M, R) with shares @ spanning = rows.

    Rows are taken in turn, where those before do not make them up already, but for a share `tolerance` of their length.
    """
    taken: list[int] = []
    for index, row in enumerate(rows):
        length = row.norm()
        if length == 0:
            continue
        if taken:
            fit = torch.linalg.lstsq(rows[taken].T, row[:, None]).solution[:, 0]
            if (fit @ rows[taken] - row).norm() <= tolerance * length:
                continue
        taken.append(index)
    if not taken:
        return rows[:0], rows.new_zeros(len(rows), 0)
    spanning = rows[taken]
    shares = torch.linalg.lstsq(spanning.T, rows.T).solution.T  # (M, R)
    return spanning, torch.where(shares.abs() < 1e-9, 0, shares)


def gradient_sketch(num_parameters: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A linear map of gradients (P,) to (K,) that keeps inner products, exactly where P is MAX_KEPT or less.

    Beyond that a count sketch: every number is added, with a drawn sign, to a drawn place. An inner product is then off by
    1 / sqrt(K) of the two lengths, 0.002, at random. Charikar, Chen and Farach-Colton, 2002.
    """
    if num_parameters <= MAX_KEPT:
        return lambda gradient: gradient
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(MAX_KEPT, (num_parameters,), generator=generator).to(device)
    signs = (torch.randint(2, (num_parameters,), generator=generator) * 2 - 1).float().to(device)
    return lambda gradient: torch.zeros(MAX_KEPT, device=device).index_add_(0, places, signs * gradient)
