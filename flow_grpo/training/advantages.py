"""Advantages: an image's reward against its siblings', and how that credit is spread over the image's tokens.

`group_advantages` compares images of one prompt. `token_advantages` hands each image's advantage A to its tokens by a
reward map, never changing the image's mean: A stays what it is, the map says only where it was earned. Sums run in
float64 and results are rounded to fp32, so that a constant map comes out as a weight of exactly 1.
"""

import torch

MODES = ("scalar", "weight", "residual")
MAP_KINDS = ("reward", "importance")

STD_EPSILON = 1e-4  # Flow-GRPO's, added to the std
NEUTRAL = 0.5  # what a reward map holds where it has nothing to say
MIN_EVIDENCE = 1e-4  # below this a map's mean evidence, or its whole contrast, is rounding noise
MIN_RESIDUAL_STD = 0.05  # siblings that hardly differ are not blown up to unit contrast
MAX_RESIDUAL = 3.0  # in units of the pooled std
TINY_WEIGHT = 1e-30  # stands for a weight of 0, which no scaling could raise


def group_advantages(rewards, group_ids, std="group", valid=None):
    """Rewards centred on their group's mean and divided by a standard deviation.

    rewards: (B,), finite. group_ids: (B,) integers, siblings share one. std: the "group"'s own or the "global" one, of
    all rewards. valid: (B,) bool; an image where it is False gets 0 and its reward counts nowhere.
    Returns (B,) fp32; a group of one, or of equal rewards, gives exactly 0. The order of the batch and
    the ids' values change no bit. Meant for the gathered batch, once an epoch: it may wait for the GPU.
    Raises ValueError for other shapes, ids that are not integers, rewards that are not finite, an unknown std.

    GRPO, arXiv:2402.03300; as Flow-GRPO, the std is the population's (numpy.std) plus 1e-4.
    """
    if std not in ("group", "global"):
        raise ValueError(f'unknown std {std!r}; choose "group" or "global"')
    if rewards.ndim != 1:
        raise ValueError(f"rewards must be (B,), got shape {tuple(rewards.shape)}")
    _check_group_ids(group_ids, rewards.shape[0])
    num_bad = int((~rewards.isfinite()).sum())
    if num_bad:
        raise ValueError(f"{num_bad} of {rewards.shape[0]} rewards are NaN or Inf; mend the scorer")
    if valid is None:
        valid = torch.ones_like(rewards, dtype=torch.bool)
    _check_flags("valid", valid, rewards.shape[0])
    counted, ids = rewards.detach().double()[valid], group_ids[valid]  # (V,) both
    std_ids = ids if std == "group" else torch.zeros_like(ids)
    variance = _group_mean((counted - _group_mean(counted, std_ids)).square(), std_ids)  # (V,)
    advantages = torch.zeros_like(rewards, dtype=torch.float32)
    advantages[valid] = ((counted - _group_mean(counted, ids)) / (variance.sqrt() + STD_EPSILON)).float()
    return advantages


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
):
    """Each image's advantage spread over its tokens; the mean over tokens stays the image's clamped advantage.

    advantages: (B,), clamped to +-adv_clip_max first. token_maps: (B, N) in [0, 1], or None. map_valid: (B,) bool.
    mode: "scalar" is A, "weight" A * `token_weights`, "residual" A + lam * `token_residuals`.
    map_kind: "reward" or "importance". alpha: the map's strength in [0, 1], number or (B,). lam: the residual's,
    where None alpha, so that alpha = 0 is scalar in every mode. group_ids: (B,) integers, for "residual".
    Returns (B, N) fp32; (B, 1), which broadcasts, where token_maps is None.
    Raises ValueError for shapes that do not fit, an unknown mode or kind, and as `token_weights` and `token_residuals`.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r} of token advantages; choose one of {', '.join(MODES)}")
    if advantages.ndim != 1:
        raise ValueError(f"advantages must be (B,), got shape {tuple(advantages.shape)}")
    advantages = advantages.detach().float().clamp(-adv_clip_max, adv_clip_max)[:, None]  # (B, 1)
    if token_maps is None:
        return advantages
    _check_maps(token_maps, map_valid, advantages.shape[0])
    if mode == "scalar":
        return advantages.expand(token_maps.shape)
    if mode == "weight":
        weights, _ = token_weights(advantages[:, 0], token_maps, map_kind, alpha, w_max, map_valid)
        return advantages * weights  # (B, N)
    residuals, _ = token_residuals(token_maps, group_ids, map_kind, map_valid)
    return advantages + _column(alpha if lam is None else lam, residuals) * residuals  # (B, N)


def token_weights(advantages, token_maps, map_kind, alpha=0.5, w_max=8.0, map_valid=None):
    """Weights of mean 1 that send praise to the good places of an image and blame to the bad ones.

    advantages: (B,), only their signs matter. token_maps: (B, N) in [0, 1]. map_valid: (B,) bool.
    alpha: in [0, 1], number or (B,). w_max: 1 or more.
    Returns weights (B, N) fp32, none above w_max, and fallback (B,) bool: the images whose map is invalid, holds NaN or
    Inf, or shows no evidence (a mean under 1e-4), and whose weights are therefore 1.
    Raises ValueError for shapes that do not fit, an unknown map_kind, numbers outside their range.

    The evidence e is m - 0.5 of a reward map, m of an importance map. x is relu(e) for praise, relu(-e) for blame, and
    abs(e) for an image without such a place, thus m of an importance map for both. The weight is
    (1 - alpha) + alpha * x / mean(x), and where that passes w_max, min(c * weight, w_max) with c making the mean 1.
    """
    _check_weighting(map_kind, alpha, w_max)
    _check_maps(token_maps, map_valid, advantages.shape[0])
    usable = _usable(token_maps, map_valid)[:, None]  # (B, 1)
    evidence = token_maps.detach().double() - (NEUTRAL if map_kind == "reward" else 0)
    sided = torch.where(advantages[:, None] < 0, -evidence, evidence).relu()  # (B, N)
    has_side = sided.mean(dim=1, keepdim=True) >= MIN_EVIDENCE
    strength = torch.where(has_side, sided, evidence.abs())  # x, (B, N)
    mean = strength.mean(dim=1, keepdim=True)
    fallback = ~usable | (mean < MIN_EVIDENCE)  # (B, 1)
    relative = torch.where(fallback, 1, strength / mean.clamp_min(MIN_EVIDENCE))  # (B, N), NaN ends here
    weights = _capped(1 + _column(alpha, relative) * (relative - 1), w_max)
    return weights.float(), fallback[:, 0]


def token_residuals(token_maps, group_ids, map_kind, map_valid=None):
    """How much better each token is than the same place in the sibling images; the mean over an image's tokens is 0.

    token_maps: (B, N) in [0, 1]. group_ids: (B,) integers. map_kind: "reward". map_valid: (B,) bool.
    Returns residuals (B, N) fp32 and fallback (B,) bool: the images whose map is invalid, holds NaN or Inf, or is
    constant, and whose residuals are therefore 0. To its siblings a constant map still counts, the others do not.
    Needs whole groups: meant for the gathered batch, once an epoch; it may wait for the GPU. Order changes no bit.
    Raises ValueError for shapes that do not fit, and for importance maps: they do not say how good a place is.

    u = m - group mean of m, centred over tokens, over max(pooled std, 0.05), clipped at 3, centred again. The pooled
    std is one number: the root mean square of u over all tokens of all usable images.
    """
    _check_residual(token_maps, group_ids, map_kind, map_valid)
    usable = _usable(token_maps, map_valid)  # (B,)
    maps, ids = token_maps.detach().double()[usable], group_ids[usable]  # (U, N), (U,)
    centred = maps - _group_mean(maps, ids)  # u, (U, N)
    centred = centred - centred.mean(dim=1, keepdim=True)
    pooled_std = _group_mean(centred.square().mean(dim=1), torch.zeros_like(ids)).sqrt()[:, None]  # (U, 1), all equal
    scaled = (centred / pooled_std.clamp_min(MIN_RESIDUAL_STD)).clamp(-MAX_RESIDUAL, MAX_RESIDUAL)
    flat = maps.amax(dim=1) - maps.amin(dim=1) < MIN_EVIDENCE  # (U,)
    residuals = torch.zeros_like(token_maps, dtype=torch.float32)
    residuals[usable] = torch.where(flat[:, None], 0, scaled - scaled.mean(dim=1, keepdim=True)).float()
    fallback = ~usable
    fallback[usable] = flat
    return residuals, fallback


def weight_metrics(weights, fallback):
    """What the weights did, as detached 0-dim tensors: over ranks of equal batches each reduces by its mean.

    weights: (B, N). fallback: (B,) bool. fallback_share: images whose map was not used. effective_token_share:
    1 / mean(w^2), 1 for the scalar advantage, 1/8 where an eighth of the tokens holds all the weight.
    """
    return {
        "fallback_share": fallback.float().mean(),
        "effective_token_share": (1 / weights.detach().square().mean(dim=1)).mean(),
    }


def _capped(weights, w_max):
    """Weights of mean 1, none above w_max: min(c * w, w_max) with the one scale c that makes the mean 1.

    Capping and renormalising in turn would end there: some tokens at the cap, the others share the rest in proportion.
    Found by trying every number k of capped tokens at once; the first to leave no other token above the cap is right.
    """
    num_tokens = weights.shape[1]
    w_max = min(w_max, num_tokens)  # all the weight on one token; an infinite cap is none
    weights = weights.clamp_min(TINY_WEIGHT)
    ordered = weights.sort(dim=1, descending=True).values  # (B, N)
    rest = ordered.flip(1).cumsum(dim=1).flip(1)  # (B, N), column k: the sum without the k largest
    num_capped = torch.arange(num_tokens, device=weights.device)
    scale = (num_tokens - num_capped * w_max) / rest  # (B, N)
    too_few = (scale * ordered > w_max).cumprod(dim=1)  # (B, N), 1 until enough are capped
    first = too_few.sum(dim=1, keepdim=True).clamp_max(num_tokens - 1)  # (B, 1)
    return (scale.gather(1, first) * weights).clamp_max(w_max)


def _group_mean(values, group_ids):
    """Each row's group mean: values (B, ...), group_ids (B,) -> (B, ...)."""
    means = torch.empty_like(values)
    for group_id in group_ids.unique():
        members = group_ids == group_id
        ordered = values[members].sort(dim=0).values  # summed by size: the order of the batch changes no bit
        lowest = ordered[:1]
        means[members] = lowest + (ordered - lowest).mean(dim=0)  # exact where all are equal
    return means


def _usable(token_maps, map_valid):
    finite = token_maps.isfinite().all(dim=1)  # (B,)
    return finite if map_valid is None else finite & map_valid


def _column(value, like):
    """A number stays; (B,) becomes (B, 1) of like's type."""
    return value.to(like).reshape(-1, 1) if isinstance(value, torch.Tensor) else value


def _check_group_ids(group_ids, batch):
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(group_ids, torch.Tensor) or group_ids.dtype not in integers or group_ids.shape != (batch,):
        shape, dtype = tuple(getattr(group_ids, "shape", ())), getattr(group_ids, "dtype", type(group_ids).__name__)
        raise ValueError(f"group_ids must be an integer tensor of shape ({batch},), got {dtype} of shape {shape}")


def _check_maps(token_maps, map_valid, batch):
    if token_maps.ndim != 2 or token_maps.shape[0] != batch:
        raise ValueError(f"token_maps must be ({batch}, N), pooled to tokens; got {tuple(token_maps.shape)}")
    if map_valid is not None:
        _check_flags("map_valid", map_valid, batch)


def _check_flags(name, flags, batch):
    if flags.shape != (batch,) or flags.dtype != torch.bool:
        raise ValueError(f"{name} must be bool ({batch},), got {flags.dtype} {tuple(flags.shape)}")


def _check_weighting(map_kind, alpha, w_max):
    if map_kind not in MAP_KINDS:
        raise ValueError(f"unknown map_kind {map_kind!r}; choose one of {', '.join(MAP_KINDS)}")
    if not isinstance(alpha, torch.Tensor) and not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie between 0 (scalar) and 1 (all credit by the map)")
    if w_max < 1:
        raise ValueError(f"w_max={w_max} must be 1 or more: weights of mean 1 cannot all lie below it")


def _check_residual(token_maps, group_ids, map_kind, map_valid):
    if map_kind != "reward":
        raise ValueError(f'mode "residual" takes "reward" maps, got {map_kind!r}; use mode "weight"')
    _check_maps(token_maps, map_valid, token_maps.shape[0])
    _check_group_ids(group_ids, token_maps.shape[0])
