"""How a map becomes weights: where an image's praise or blame falls, with a mean over its tokens of exactly 1.

A map's *evidence* is m - neutral for a reward map and m for an importance map: how much, and for a reward map how good, a
place is. Sums run in float64 and results are rounded to fp32, so that a constant map comes out as a weight of exactly 1.
"""

import torch

MAP_KINDS = ("reward", "importance")
EVIDENCE = ("own", "group")

NEUTRAL = 0.5  # what a reward map holds where it has nothing to say
# A map's largest evidence, of a whole of 1. Up to 1e-4 it is the rounding of a blur or a resize and says nothing; from there
# to 1e-3 its say grows in proportion, so that there is no jump. A largest value does not thin out as tokens get smaller.
MIN_EVIDENCE, FULL_EVIDENCE = 1e-4, 1e-3
FULL_SIDE = 0.01  # share of a map's evidence that its good or its bad places need for a full say of their own
MIN_RESIDUAL_STD = 0.05  # siblings that hardly differ are not blown up to unit contrast
MAX_RESIDUAL = 3.0  # in units of the pooled std
TINY_WEIGHT = 1e-30  # stands for a weight of 0, which no scaling could raise


def token_weights(
    advantages,
    token_maps,
    map_kind,
    alpha=0.5,
    w_max=8.0,
    map_valid=None,
    neutral=NEUTRAL,
    evidence="own",
    group_ids=None,
):
    """Weights of mean 1 that send praise to the good places of an image and blame to the bad ones.

    advantages: (B,), only their signs matter. token_maps: (B, N) in [0, 1]. map_valid: (B,) bool.
    alpha: strength of the map in [0, 1], number or (B,). w_max: largest weight, 1 or more. neutral: of a reward map.
    evidence: "own", or "group": joined with the siblings', which needs group_ids (B,) and whole groups.
    Returns weights (B, N) fp32, none above w_max, and fallback (B,) bool: the images without any evidence to go by, whose
    weights are therefore 1. A map that is invalid, or holds NaN or Inf, has none, and counts for no sibling.
    Raises ValueError for shapes that do not fit, unknown names, numbers outside their range.

    With e the evidence, x is relu(e) for praise and relu(-e) for blame. An image without such a place takes x = abs(e).
        relative = x / mean(x)
        weight   = (1 - alpha) + alpha * relative
    Where that passes w_max it is min(c * weight, w_max), with the one c that makes the mean 1.
    """
    _check_weighting(map_kind, alpha, w_max)
    check_maps(token_maps, map_valid, advantages.shape[0])
    usable = usable_maps(token_maps, map_valid)  # (B,)
    signed = signed_evidence(token_maps, map_kind, usable, neutral)  # (B, N)
    relative, trust = _sided(signed, advantages)  # (B, N), (B, 1)
    if evidence == "group":
        check_group_ids(group_ids, advantages.shape[0])
        around, around_trust = _relative(siblings_mean(signed.abs(), group_ids, usable))
        # each by its trust: an image without evidence of its own goes by its siblings alone
        both = trust + around_trust
        relative = torch.where(both > 0, (trust * relative + around_trust * around) / both.clamp_min(1e-9), 1)
        trust = torch.maximum(trust, around_trust)
    elif evidence != "own":
        raise ValueError(f"unknown evidence {evidence!r}; choose one of {', '.join(EVIDENCE)}")
    relative = 1 + trust * (relative - 1)  # (B, N)
    weights = _capped(1 + _column(alpha, relative) * (relative - 1), w_max)
    return weights.float(), trust[:, 0] == 0


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
    usable = usable_maps(token_maps, map_valid)  # (B,)
    maps, ids = token_maps.detach().double()[usable], group_ids[usable]  # (U, N), (U,)
    centred = maps - group_mean(maps, ids)  # u, (U, N)
    centred = centred - centred.mean(dim=1, keepdim=True)
    pooled_std = group_mean(centred.square().mean(dim=1), torch.zeros_like(ids)).sqrt()[:, None]  # (U, 1), all equal
    scaled = (centred / pooled_std.clamp_min(MIN_RESIDUAL_STD)).clamp(-MAX_RESIDUAL, MAX_RESIDUAL)
    trust = _trust(maps.amax(dim=1, keepdim=True) - maps.amin(dim=1, keepdim=True))  # (U, 1), of its contrast
    residuals = torch.zeros_like(token_maps, dtype=torch.float32)
    residuals[usable] = (trust * (scaled - scaled.mean(dim=1, keepdim=True))).float()
    fallback = ~usable
    fallback[usable] = trust[:, 0] == 0
    return residuals, fallback


def signed_evidence(token_maps, map_kind, usable, neutral=NEUTRAL):
    """The evidence (B, N) in float64: above 0 is good, below is bad; 0 throughout where a map is not usable (B,)."""
    evidence = token_maps.detach().double() - (neutral if map_kind == "reward" else 0)
    return torch.where(usable[:, None], evidence, 0)


def siblings_mean(values, group_ids, counted):
    """The mean of the other counted images of each image's group; 0 where there are none.

    values: (B, N), 0 or more, and 0 where not counted. group_ids: (B,) integers. counted: (B,) bool. Returns (B, N).
    The order of the batch changes no bit.
    """
    means = torch.zeros_like(values)
    for group_id in group_ids.unique():
        members = group_ids == group_id
        own = values[members]  # (M, N)
        others = counted[members].sum() - counted[members].long()[:, None]  # (M, 1)
        total = own.sort(dim=0).values.sum(dim=0)  # (N,), summed by size
        means[members] = (others > 0) * (total - own).clamp_min(0) / others.clamp_min(1)
    return means


def group_mean(values, group_ids):
    """Each row's group mean: values (B, ...), group_ids (B,) -> (B, ...)."""
    means = torch.empty_like(values)
    for group_id in group_ids.unique():
        members = group_ids == group_id
        ordered = values[members].sort(dim=0).values  # summed by size: the order of the batch changes no bit
        lowest = ordered[:1]
        means[members] = lowest + (ordered - lowest).mean(dim=0)  # exact where all are equal
    return means


def usable_maps(token_maps, map_valid):
    """(B,) bool: valid, and neither NaN nor Inf anywhere."""
    finite = token_maps.isfinite().all(dim=1)  # (B,)
    return finite if map_valid is None else finite & map_valid


def check_group_ids(group_ids, batch):
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(group_ids, torch.Tensor) or group_ids.dtype not in integers or group_ids.shape != (batch,):
        shape, dtype = tuple(getattr(group_ids, "shape", ())), getattr(group_ids, "dtype", type(group_ids).__name__)
        raise ValueError(f"group_ids must be an integer tensor of shape ({batch},), got {dtype} of shape {shape}")


def check_maps(token_maps, map_valid, batch):
    if token_maps.ndim != 2 or token_maps.shape[0] != batch:
        raise ValueError(f"token_maps must be ({batch}, N), pooled to tokens; got {tuple(token_maps.shape)}")
    if map_valid is not None:
        check_flags("map_valid", map_valid, batch)


def check_flags(name, flags, batch):
    if flags.shape != (batch,) or flags.dtype != torch.bool:
        raise ValueError(f"{name} must be bool ({batch},), got {flags.dtype} {tuple(flags.shape)}")


def _sided(signed, advantages):
    """What praise or blame goes by, as a multiple of its mean (B, N), and how far it can be trusted (B, 1).

    Where an image has hardly a place of the wanted side, that side's say fades into that of all evidence.
    """
    whole = signed.abs()
    side = torch.where(advantages[:, None] < 0, -signed, signed).relu()
    share = side.sum(dim=1, keepdim=True) / whole.sum(dim=1, keepdim=True).clamp_min(TINY_WEIGHT)  # (B, 1)
    say = (share / FULL_SIDE).clamp_max(1)
    relative, trust = _relative(whole)
    return relative + say * (_relative(side)[0] - relative), trust


def _relative(strength):
    """A strength (B, N) of 0 or more as a multiple of its mean, 1 where it is 0, and its trust (B, 1)."""
    mean = strength.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, strength / mean.clamp_min(TINY_WEIGHT), 1), _trust(strength.amax(dim=1, keepdim=True))


def _trust(largest):
    """0 for rounding noise, 1 for evidence, a line between."""
    return ((largest - MIN_EVIDENCE) / (FULL_EVIDENCE - MIN_EVIDENCE)).clamp(0, 1)


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


def _column(value, like):
    """A number stays; (B,) becomes (B, 1) of like's type."""
    return value.to(like).reshape(-1, 1) if isinstance(value, torch.Tensor) else value


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
    check_maps(token_maps, map_valid, token_maps.shape[0])
    check_group_ids(group_ids, token_maps.shape[0])
