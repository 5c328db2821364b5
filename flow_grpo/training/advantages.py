"""Advantages: an image's reward against its siblings', and how that credit is spread over the image's tokens.

`group_advantages` compares images of one prompt. `token_advantages` hands each image's advantage A to its tokens by a
reward map, never changing the image's mean: A stays what it is, the map says only where it was earned (`spread`).
`combined_token_advantages` does so for several rewards: A is the sum of their parts, and each spreads its own part by its
own map. Sums run in float64 and results are rounded to fp32.
"""

import torch

from .controls import CONTROLS, controlled_maps
from .modes import MODES, weight_metrics
from .spread import (
    EVIDENCE,
    MAP_KINDS,
    MIN_EVIDENCE,
    NEUTRAL,
    check_flags,
    check_group_ids,
    check_maps,
    group_mean,
    token_residuals,
    token_weights,
)

# fmt: off
__all__ = [
    "MODES", "COMBINES", "EVIDENCE", "CONTROLS", "MAP_KINDS", "NEUTRAL", "MIN_EVIDENCE",
    "group_advantages", "reward_parts", "token_advantages", "combined_token_advantages", "faded_alpha",
    "token_weights", "token_residuals", "controlled_maps", "weight_metrics", "part_metrics",
]
# fmt: on

COMBINES = ("sum", "each")

STD_EPSILON = 1e-4  # Flow-GRPO's, added to the std
EQUAL = 1e-6  # of the largest reward of a group: a std below it is the rounding of equal rewards


def group_advantages(rewards, group_ids, std="group", valid=None):
    """Rewards centred on their group's mean and divided by a standard deviation.

    rewards: (B,), finite. group_ids: (B,) integers, siblings share one. std: the "group"'s own or the "global" one, of
    all rewards. valid: (B,) bool; an image where it is False gets 0 and its reward counts nowhere.
    Returns (B,) fp32; a group of one, or of equal rewards, gives exactly 0. The order of the batch and
    the ids' values change no bit. Meant for the gathered batch, once an epoch: it may wait for the GPU.
    Raises ValueError for other shapes, ids that are not integers, rewards that are not finite, an unknown std.

    GRPO, arXiv:2402.03300; as Flow-GRPO, the std is the population's (numpy.std) plus 1e-4.
    """
    valid = _check_rewards(rewards, group_ids, std, valid)
    counted, ids = rewards.detach().double()[valid], group_ids[valid]  # (V,) both
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    advantages[valid] = ((counted - group_mean(counted, ids)) / (_std(counted, ids, std) + STD_EPSILON)).float()
    return advantages


def reward_parts(rewards, weights, group_ids, std="global", combine="sum", adv_clip_max=5.0, valid=None):
    """The advantage of several rewards, and the part of it that each reward earned.

    rewards: {name: (B,)}. weights: {name: number}. combine: "sum" or "each". The rest as in `group_advantages`.
    Returns advantages (B,) fp32, clamped to +-adv_clip_max, and {name: (B,) float64}, whose sum they are.
    Raises ValueError where names differ, for an unknown combine, and as `group_advantages`.

    With v_k the values of reward k, c_k the same less their group's mean, and s one std for all of them:
        v    = sum of weight_k * v_k
        s    = std of v, as `std` says, + 1e-4
        A_k  = weight_k * c_k / s
    "sum" takes v_k = reward k: A is Flow-GRPO's, of the weighted sum. "each" takes v_k = reward k, centred and divided by
    its std in its group, so that no reward's scale counts; std="global" is then the batch-wise step of GDPO,
    arXiv:2601.05242. Where the clamp cuts A, it cuts its parts alike.
    """
    if combine not in COMBINES:
        raise ValueError(f"unknown combine {combine!r}; choose one of {', '.join(COMBINES)}")
    if not rewards or rewards.keys() != weights.keys():
        raise ValueError(f"rewards ({', '.join(rewards)}) and weights ({', '.join(weights)}) must have the same names")
    for values in rewards.values():
        valid = _check_rewards(values, group_ids, std, valid)
    ids = group_ids[valid]
    values = torch.stack([reward.detach().double()[valid] for reward in rewards.values()], dim=1)  # (V, K)
    centred = values - group_mean(values, ids)
    if combine == "each":
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


def faded_alpha(alpha, sigma, gamma):
    """The map's strength at noise level sigma: alpha * (1 - sigma)**gamma.

    sigma: number or (B,) in [0, 1]. gamma: 0 does not fade.
    A map of the final image is poor credit for the early steps, which lay it out.
    """
    return alpha * (1 - sigma) ** gamma


def token_advantages(
    advantages,
    token_maps,
    mode,
    map_kind,
    alpha=0.5,
    w_max=8.0,
    lam=None,
    adv_clip_max=5.0,
    map_valid=None,
    group_ids=None,
    neutral=NEUTRAL,
    evidence="own",
):
    """Each image's advantage spread over its tokens; the mean over tokens stays the image's clamped advantage.

    advantages: (B,), clamped to +-adv_clip_max first. token_maps: (B, N) in [0, 1], or None. map_valid: (B,) bool.
    mode: "scalar" is A, "weight" A * `token_weights`, "residual" A + lam * `token_residuals`.
    map_kind: "reward" or "importance". alpha: strength of the map in [0, 1], number or (B,). lam: strength of the
    residual; None takes alpha, so that alpha = 0 is scalar in every mode. neutral, evidence: as in `token_weights`.
    group_ids: (B,) integers, for "residual" and for the evidence of the group.
    Returns (B, N) fp32; (B, 1), which broadcasts, where token_maps is None.
    Raises ValueError for shapes that do not fit, an unknown mode or kind, and as `token_weights` and `token_residuals`.
    """
    _check_mode(mode)
    if advantages.ndim != 1:
        raise ValueError(f"advantages must be (B,), got shape {tuple(advantages.shape)}")
    advantages = advantages.detach().float().clamp(-adv_clip_max, adv_clip_max)  # (B,)
    if token_maps is None:
        return advantages[:, None]
    check_maps(token_maps, map_valid, advantages.shape[0])
    if MODES[mode].change is None:
        return advantages[:, None].expand(token_maps.shape)
    change = MODES[mode].change(
        advantages.double(),
        token_maps,
        map_kind,
        alpha=alpha,
        lam=alpha if lam is None else lam,
        w_max=w_max,
        map_valid=map_valid,
        neutral=neutral,
        evidence=evidence,
        group_ids=group_ids,
    )
    return (advantages[:, None].double() + change).float()  # (B, N)


def combined_token_advantages(
    rewards,
    weights,
    token_maps,
    map_kinds,
    group_ids,
    mode="weight",
    combine="sum",
    evidence="own",
    control="none",
    std="global",
    alpha=0.5,
    w_max=8.0,
    lam=None,
    adv_clip_max=5.0,
    valid=None,
    map_valid=None,
    neutrals=None,
    token_grid=None,
    seed=0,
):
    """Several rewards' advantages, each part spread by its reward's own map, and added.

    rewards: {name: (B,)}. weights: {name: number}. token_maps: {name: (B, N)} and map_kinds: {name: kind} of those that
    have a map; the part of the others lies evenly on all tokens. group_ids: (B,) integers. valid: (B,) bool.
    map_valid: {name: (B,) bool} and neutrals: {name: number}, where they are not all True and 0.5.
    combine, std, adv_clip_max: as in `reward_parts`. mode, evidence, alpha, w_max, lam: as in `token_advantages`; the
    residuals of several maps are averaged by the weights. control, token_grid, seed: as in `controlled_maps`.
    Returns (B, N) fp32, (B, 1) without any map; its mean over tokens is the advantage of `reward_parts`.
    Needs whole groups: meant for the gathered batch, once an epoch. Raises ValueError as all of these.

    With A the advantage, A_k its parts, w_k the weights of k's map for the sign of A_k:
        A + sum of A_k * (w_k - 1)        exactly A where every w_k is 1
    """
    _check_mode(mode)
    if not token_maps.keys() <= rewards.keys() or token_maps.keys() != map_kinds.keys():
        raise ValueError(
            f"token_maps ({', '.join(token_maps)}) and map_kinds ({', '.join(map_kinds)}) must have the same names, "
            f"of rewards ({', '.join(rewards)})"
        )
    advantages, parts = reward_parts(rewards, weights, group_ids, std, combine, adv_clip_max, valid)
    total_weight = sum(weights.values())
    spread = advantages[:, None].double()  # (B, 1)
    for name, maps in token_maps.items():
        check_maps(maps, None, len(advantages))
        if MODES[mode].change is None:
            spread = spread.expand(maps.shape)
            continue
        neutral = (neutrals or {}).get(name, NEUTRAL)
        maps, map_ok = controlled_maps(
            maps,
            map_kinds[name],
            control,
            group_ids,
            (map_valid or {}).get(name),
            neutral,
            rewards[name],
            token_grid,
            seed,
        )
        spread = spread + MODES[mode].change(
            parts[name],
            maps,
            map_kinds[name],
            alpha=alpha,
            lam=(alpha if lam is None else lam) * weights[name] / total_weight,
            w_max=w_max,
            map_valid=map_ok,
            neutral=neutral,
            evidence=evidence,
            group_ids=group_ids,
        )
    return spread.float()


def part_metrics(rewards, parts, group_ids, valid):
    """How several rewards share the advantage, over the valid images (B,) bool.

    {name}/advantage_share: its mean |A_k|, of the sum over all rewards. {name}/group_std: of its own values in a group,
    the mean over images. sign_disagreement: images of which one reward's part is praise and another's blame.
    """
    sizes = {name: part[valid].abs().mean() for name, part in parts.items()}
    whole = sum(sizes.values()).clamp_min(torch.finfo(torch.float64).tiny)
    metrics = {f"{name}/advantage_share": size / whole for name, size in sizes.items()}
    for name, reward in rewards.items():
        metrics[f"{name}/group_std"] = _std(reward.double()[valid], group_ids[valid], "group").mean()
    every = torch.stack([part[valid] for part in parts.values()])  # (K, V)
    metrics["sign_disagreement"] = ((every > 0).any(dim=0) & (every < 0).any(dim=0)).double().mean()
    return metrics


def _clamped(parts, limit):
    """Parts (V, K) whose sum lies within +-limit, all of an image cut by one factor; what cancels is held to it, too."""
    total = parts.sum(dim=1, keepdim=True)  # (V, 1)
    parts = parts * (limit / total.abs().clamp_min(limit))
    praise, blame = parts.relu().sum(dim=1, keepdim=True), (-parts).relu().sum(dim=1, keepdim=True)
    # two rewards against each other: their std is small and both parts are large, though the sum is not
    excess = (torch.minimum(praise, blame) - limit).relu()
    return parts * (1 - excess / torch.where(parts > 0, praise, blame).clamp_min(limit))


def _std(values, group_ids, std):
    """Each value's standard deviation: (V,) of its own group, or one for all."""
    ids = group_ids if std == "group" else torch.zeros_like(group_ids)
    return group_mean((values - group_mean(values, ids)).square(), ids).sqrt()


def _check_mode(mode):
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of token advantages; choose one of {', '.join(MODES)}")


def _check_rewards(rewards, group_ids, std, valid):
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
