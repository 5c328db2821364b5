"""Siblings: an image's reward against those of its group, as the image's advantage and each reward's part of it."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .spread import check_flags, check_group_ids, group_mean

COMBINES = ("sum", "each")

STD_EPSILON = 1e-4  # added to the std, as in Flow-GRPO
EQUAL = 1e-6  # relative to the group's rewards: a std below this is only the rounding of equal rewards


def group_advantages(rewards: Tensor, group_ids: Tensor, std: str = "group", valid: Tensor | None = None) -> Tensor:
    """Rewards centred on their group's mean and divided by a standard deviation.

        advantage = (reward - mean of its group) / (std + 1e-4)

    rewards: (B,), finite.
    group_ids: (B,) integers; siblings share one.
    std: "group" takes the std of the image's own group, "global" the std of all rewards.
    valid: (B,) bool. Where it is False, the image gets 0 and its reward counts nowhere.
    Returns (B,) fp32. A group of one image, or of equal rewards, gets exactly 0.
    Raises ValueError for other shapes, ids that are not integers, rewards that are not finite, an unknown std.

    The result does not depend on the order of the batch or on the ids' values, to the last bit.
    Call it once per epoch, on the batch gathered from all processes: it may wait for the GPU.
    Example: rewards 1, 3, 5 of one group have the mean 3 and the std 1.633, so the advantages are -1.22, 0, 1.22.

    GRPO, arXiv:2402.03300. The std is the population's (numpy.std), as in Flow-GRPO.
    """
    valid = _check_rewards(rewards, group_ids, std, valid)
    counted, ids = rewards.detach().double()[valid], group_ids[valid]  # (V,) both
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    advantages[valid] = ((counted - group_mean(counted, ids)) / (_std(counted, ids, std) + STD_EPSILON)).float()
    return advantages


def reward_parts(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    group_ids: Tensor,
    std: str = "global",
    combine: str = "sum",
    adv_clip_max: float = 5.0,
    valid: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The advantage of several rewards, and the part of it that each reward earned.

    rewards: {name: (B,)}. weights: {name: number}. combine: "sum" or "each".
    group_ids, std, valid: as in `group_advantages`.
    Returns the advantages A (B,) fp32, clamped to +-adv_clip_max, and the parts {name: (B,) float64}. The parts add up to A.
    Raises ValueError where the names differ, for an unknown combine, and as `group_advantages`.

    With reward_k the values of reward k:
        v_k  = reward_k                                        combine="sum"
        v_k  = (reward_k - its group mean) / its group std     combine="each"
        v    = sum over k of weight_k * v_k
        s    = (std of v, by `std`) + 1e-4
        A_k  = weight_k * (v_k - its group mean) / s
        A    = sum over k of A_k
    "sum" is Flow-GRPO's advantage of the weighted sum. "each" makes the scale of a reward irrelevant; with std="global" it
    is GDPO's batch-wise step, arXiv:2601.05242. Where the clamp cuts A, it cuts all its parts by the same factor.
    """
    if combine not in COMBINES:
        raise ValueError(f"unknown combine {combine!r}; choose one of {', '.join(COMBINES)}")
    if not rewards or rewards.keys() != weights.keys():
        raise ValueError(f"rewards ({', '.join(rewards)}) and weights ({', '.join(weights)}) must have the same names")
    if not all(math.isfinite(weight) for weight in weights.values()):
        raise ValueError(f"weights must be finite, got {dict(weights)}")
    check_clip(adv_clip_max)
    for values in rewards.values():
        valid = _check_rewards(values, group_ids, std, valid)
    ids = group_ids[valid]
    values = torch.stack([reward.detach().double()[valid] for reward in rewards.values()], dim=1)  # (V, K)
    centred = values - group_mean(values, ids)
    if combine == "each":  # every reward gets the std 1 in each group, or 0 where its group has equal rewards
        own_std = group_mean(centred.square(), ids).sqrt()
        differ = own_std > EQUAL * torch.maximum(values.abs(), group_mean(values.abs(), ids))
        values = centred = torch.where(differ, centred / own_std.clamp_min(torch.finfo(own_std.dtype).tiny), 0)
    shares = torch.tensor([float(weights[name]) for name in rewards], dtype=values.dtype, device=values.device)  # (K,)
    total = (values * shares).sum(dim=1)
    scale = (_std(total, ids, std) + STD_EPSILON)[:, None]  # (V, 1)
    advantages = torch.zeros(len(group_ids), dtype=torch.float32, device=values.device)
    advantages[valid] = ((total - group_mean(total, ids)) / scale[:, 0]).float()
    advantages = advantages.clamp(-adv_clip_max, adv_clip_max)
    parts = torch.zeros(len(group_ids), len(shares), dtype=torch.float64, device=values.device)
    parts[valid] = _clamped(centred * shares / scale, adv_clip_max)
    return advantages, dict(zip(rewards, parts.unbind(dim=1), strict=True))


def part_metrics(
    rewards: Mapping[str, Tensor], parts: Mapping[str, Tensor], group_ids: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    """How several rewards share the advantage, measured over the valid images (B,) bool.

    {name}/advantage_share: the mean |A_k| of this reward, divided by the sum over all rewards.
    {name}/group_std: the std of this reward within a group, averaged over the images.
    sign_disagreement: the share of images that one reward praises and another blames.
    """
    sizes = {name: part[valid].abs().mean() for name, part in parts.items()}
    whole = sum(sizes.values()).clamp_min(torch.finfo(torch.float64).tiny)
    metrics = {f"{name}/advantage_share": size / whole for name, size in sizes.items()}
    for name, reward in rewards.items():
        metrics[f"{name}/group_std"] = _std(reward.double()[valid], group_ids[valid], "group").mean()
    every = torch.stack([part[valid] for part in parts.values()])  # (K, V)
    metrics["sign_disagreement"] = ((every > 0).any(dim=0) & (every < 0).any(dim=0)).double().mean()
    return metrics


def _clamped(parts: Tensor, limit: float) -> Tensor:
    """Parts (V, K), cut so that the sum of an image's parts lies within +-limit.

    One factor cuts all parts of an image. Praise and blame that cancel each other are also cut to the limit.
    """
    total = parts.sum(dim=1, keepdim=True)  # (V, 1)
    parts = parts * (limit / total.abs().clamp_min(limit))
    praise, blame = parts.relu().sum(dim=1, keepdim=True), (-parts).relu().sum(dim=1, keepdim=True)
    # Two opposed rewards: their weighted sum hardly varies, so its std is small. Both parts are then large, their sum is not.
    excess = (torch.minimum(praise, blame) - limit).relu()
    return parts * (1 - excess / torch.where(parts > 0, praise, blame).clamp_min(limit))


def _std(values: Tensor, group_ids: Tensor, std: str) -> Tensor:
    """The standard deviation that divides each value (V,): of its own group, or one for all."""
    ids = group_ids if std == "group" else torch.zeros_like(group_ids)
    return group_mean((values - group_mean(values, ids)).square(), ids).sqrt()


def check_clip(adv_clip_max: float) -> None:
    if not adv_clip_max > 0:  # NaN is not, either
        raise ValueError(f"adv_clip_max={adv_clip_max} must be above 0; advantages are clamped to +-adv_clip_max")


def _check_rewards(rewards: Tensor, group_ids: Tensor, std: str, valid: Tensor | None) -> Tensor:
    """The flags of the valid images (B,); raises ValueError for rewards that cannot be compared."""
    if std not in ("group", "global"):
        raise ValueError(f'unknown std {std!r}; choose "group" or "global"')
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be (B,), got shape {tuple(rewards.shape)}")
    check_group_ids(group_ids, rewards.shape[0])
    num_bad = int((~rewards.isfinite()).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {rewards.shape[0]} rewards are NaN or Inf; mend the scorer")
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    check_flags("valid", valid, rewards.shape[0])
    return valid
