"""How a map becomes weights: they say where an image's praise or blame falls, and their mean over its tokens is exactly 1.

Every weight is made of the map's *evidence* e at a token. With m the map's value there:
    reward map        e = m - neutral    above 0 is good, below 0 is bad
    importance map    e = m              larger counts more
Sums run in float64 and results are rounded to fp32, so that a constant map gives weights of exactly 1.
"""

import torch
from torch import Tensor

MAP_KINDS = ("reward", "importance")
EVIDENCE = ("own", "group")

NEUTRAL = 0.5  # what a reward map holds where it has nothing to say
# Bounds of a map's largest evidence. Below the first it is the rounding of a blur or a resize, and the map is not trusted.
# Above the second the map is trusted in full. In between the trust grows in a line, so that there is no jump.
# The largest value is taken, not the mean: it does not shrink as tokens get smaller.
MIN_EVIDENCE, FULL_EVIDENCE = 1e-4, 1e-3
FULL_SIDE = 0.01  # praise goes by the good places alone if they hold this share of the evidence; blame likewise
MIN_RESIDUAL_STD = 0.05  # siblings that hardly differ are not blown up to unit contrast
MAX_RESIDUAL = 3.0  # in units of the pooled std
TINY_WEIGHT = 1e-30  # stands for a weight of 0, which no scaling could raise


def token_weights(
    advantages: Tensor,
    token_maps: Tensor,
    map_kind: str,
    alpha: float | Tensor = 0.5,
    w_max: float = 8.0,
    map_valid: Tensor | None = None,
    neutral: float = NEUTRAL,
    evidence: str = "own",
    group_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Weights of mean 1 that send praise to the good places of an image and blame to the bad ones.

    With e the evidence of a token (see the module) and means over the image's tokens:
        x         = relu(e)     for praise: the advantage is 0 or more
                    relu(-e)    for blame: the advantage is below 0
                    abs(e)      where the image has no place of the wanted side
        relative  = x / mean(x)
        weight    = (1 - alpha) + alpha * relative
    If a weight passes w_max, all become min(c * weight, w_max), with the one c that makes the mean 1.

    advantages: (B,); only their signs matter.
    token_maps: (B, N) in [0, 1]. map_valid: (B,) bool. neutral: what a reward map holds where it has nothing to say.
    alpha: strength of the map in [0, 1], a number or (B,). w_max: the largest weight, 1 or more.
    evidence: "own" takes the image's map alone. "group" joins it with the siblings' maps and needs group_ids (B,) and
        whole groups.
    Returns weights (B, N) fp32, and fallback (B,) bool: True where an image has no evidence, so that its weights are 1. A
        map that is invalid, or holds NaN or Inf, has no evidence and counts for no sibling.
    Raises ValueError for shapes that do not fit, unknown names, numbers outside their range.

    Example: a reward map 1, 0.5, 0.5, 0 with alpha=1 and praise has x = 0.5, 0, 0, 0, so the weights are 4, 0, 0, 0. With
    blame they are 0, 0, 0, 4. With alpha=0.5 and praise they are 2.5, 0.5, 0.5, 0.5.
    """
    _check_weighting(map_kind, alpha, w_max)
    check_maps(token_maps, map_valid, advantages.shape[0])
    usable = usable_maps(token_maps, map_valid)  # (B,)
    signed = signed_evidence(token_maps, map_kind, usable, neutral)  # (B, N)
    relative, trust = _sided(signed, advantages)  # (B, N), (B, 1)
    if evidence == "group":
        check_group_ids(group_ids, advantages.shape[0])
        around, around_trust = _relative(siblings_mean(signed.abs(), group_ids, usable))
        # The two are averaged by their trust: an image without evidence of its own goes by its siblings alone.
        both = trust + around_trust
        relative = torch.where(both > 0, (trust * relative + around_trust * around) / both.clamp_min(1e-9), 1)
        trust = torch.maximum(trust, around_trust)
    elif evidence != "own":
        raise ValueError(f"unknown evidence {evidence!r}; choose one of {', '.join(EVIDENCE)}")
    relative = 1 + trust * (relative - 1)  # (B, N), 1 everywhere without trust
    weights = _capped(1 + _column(alpha, relative) * (relative - 1), w_max)
    return weights.float(), trust[:, 0] == 0


def token_residuals(
    token_maps: Tensor, group_ids: Tensor, map_kind: str, map_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How much better each token is than the same place in the sibling images; the mean over an image's tokens is 0.

    With m the map, usable images alone, and the pooled std one number for all of them:
        d           = m - mean of m over the group, at the same token
        u           = d - mean of d over the image's tokens
        pooled std  = root mean square of u over all tokens and images
        z           = clip(u / max(pooled std, 0.05), -3, 3)
        residual    = z - mean of z over the image's tokens

    token_maps: (B, N) in [0, 1]. group_ids: (B,) integers. map_kind: "reward". map_valid: (B,) bool.
    Returns residuals (B, N) fp32, and fallback (B,) bool: True where a map is invalid, holds NaN or Inf, or is constant, so
        that its residuals are 0. A constant map still counts in its siblings' group mean; the others do not.
    Raises ValueError for shapes that do not fit, and for importance maps: they do not say how good a place is.

    The result does not depend on the order of the batch, to the last bit. Siblings are compared, so call it on whole
    groups: once per epoch, on the batch gathered from all processes. It may wait for the GPU.
    """
    _check_residual(token_maps, group_ids, map_kind, map_valid)
    usable = usable_maps(token_maps, map_valid)  # (B,)
    maps, ids = token_maps.detach().double()[usable], group_ids[usable]  # (U, N), (U,)
    centred = maps - group_mean(maps, ids)  # d, (U, N)
    centred = centred - centred.mean(dim=1, keepdim=True)  # u
    pooled_std = group_mean(centred.square().mean(dim=1), torch.zeros_like(ids)).sqrt()[:, None]  # (U, 1), all equal
    scaled = (centred / pooled_std.clamp_min(MIN_RESIDUAL_STD)).clamp(-MAX_RESIDUAL, MAX_RESIDUAL)
    trust = _trust(maps.amax(dim=1, keepdim=True) - maps.amin(dim=1, keepdim=True))  # (U, 1), of its contrast
    residuals = torch.zeros_like(token_maps, dtype=torch.float32)
    residuals[usable] = (trust * (scaled - scaled.mean(dim=1, keepdim=True))).float()
    fallback = ~usable
    fallback[usable] = trust[:, 0] == 0
    return residuals, fallback


def signed_evidence(token_maps: Tensor, map_kind: str, usable: Tensor, neutral: float = NEUTRAL) -> Tensor:
    """The evidence e (B, N) in float64. A map that is not usable (B,) has evidence 0 everywhere."""
    evidence = token_maps.detach().double() - (neutral if map_kind == "reward" else 0)
    return torch.where(usable[:, None], evidence, 0)


def siblings_mean(values: Tensor, group_ids: Tensor, counted: Tensor) -> Tensor:
    """For each image, the mean over the other counted images of its group; 0 if there are none.

    values: (B, N), 0 or more, and 0 for an image that is not counted. group_ids: (B,) integers. counted: (B,) bool.
    Returns (B, N). The order of the batch changes no bit.
    """
    means = torch.zeros_like(values)
    for group_id in group_ids.unique():
        members = group_ids == group_id
        own = values[members]  # (M, N)
        others = counted[members].sum() - counted[members].long()[:, None]  # (M, 1)
        total = own.sort(dim=0).values.sum(dim=0)  # (N,); sorted, so that the order of the batch changes no bit
        means[members] = (others > 0) * (total - own).clamp_min(0) / others.clamp_min(1)
    return means


def group_mean(values: Tensor, group_ids: Tensor) -> Tensor:
    """The mean of each row's group: values (B, ...), group_ids (B,) -> (B, ...)."""
    means = torch.empty_like(values)
    for group_id in group_ids.unique():
        members = group_ids == group_id
        ordered = values[members].sort(dim=0).values  # sorted, so that the order of the batch changes no bit
        lowest = ordered[:1]
        means[members] = lowest + (ordered - lowest).mean(dim=0)  # exact where all are equal
    return means


def usable_maps(token_maps: Tensor, map_valid: Tensor | None) -> Tensor:
    """(B,) bool: the map is valid and holds neither NaN nor Inf."""
    finite = token_maps.isfinite().all(dim=1)  # (B,)
    return finite if map_valid is None else finite & map_valid


def check_group_ids(group_ids: Tensor, batch: int) -> None:
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
    if not isinstance(group_ids, Tensor) or group_ids.dtype not in integers or group_ids.shape != (batch,):
        shape, dtype = tuple(getattr(group_ids, "shape", ())), getattr(group_ids, "dtype", type(group_ids).__name__)
        raise ValueError(f"group_ids must be an integer tensor of shape ({batch},), got {dtype} of shape {shape}")


def check_maps(token_maps: Tensor, map_valid: Tensor | None, batch: int) -> None:
    if token_maps.ndim != 2 or token_maps.shape[0] != batch:
        raise ValueError(f"token_maps must be ({batch}, N), pooled to tokens; got {tuple(token_maps.shape)}")
    if map_valid is not None:
        check_flags("map_valid", map_valid, batch)


def check_strength(alpha: float | Tensor) -> None:
    inside = (alpha >= 0) & (alpha <= 1)
    if not (inside.all() if isinstance(alpha, Tensor) else inside):
        raise ValueError(f"alpha={alpha} must lie between 0 (scalar) and 1 (all credit by the map)")


def check_flags(name: str, flags: Tensor, batch: int) -> None:
    if flags.shape != (batch,) or flags.dtype != torch.bool:
        raise ValueError(f"{name} must be bool ({batch},), got {flags.dtype} {tuple(flags.shape)}")


def _sided(signed: Tensor, advantages: Tensor) -> tuple[Tensor, Tensor]:
    """The relative evidence (B, N) that praise or blame goes by, with mean 1, and its trust (B, 1) in [0, 1].

    Praise goes by the good places, blame by the bad ones. If these hold less than FULL_SIDE of the image's evidence, they
    are mixed with all evidence, the less they hold the more.
    """
    whole = signed.abs()
    side = torch.where(advantages[:, None] < 0, -signed, signed).relu()
    share = side.sum(dim=1, keepdim=True) / whole.sum(dim=1, keepdim=True).clamp_min(TINY_WEIGHT)  # (B, 1)
    say = (share / FULL_SIDE).clamp_max(1)
    relative, trust = _relative(whole)
    return relative + say * (_relative(side)[0] - relative), trust


def _relative(strength: Tensor) -> tuple[Tensor, Tensor]:
    """A strength (B, N), 0 or more, divided by its mean over the tokens, and its trust (B, 1).

    An image of strength 0 everywhere gets 1 everywhere.
    """
    mean = strength.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, strength / mean.clamp_min(TINY_WEIGHT), 1), _trust(strength.amax(dim=1, keepdim=True))


def _trust(largest: Tensor) -> Tensor:
    """The trust in a map by its largest evidence: 0 for rounding noise, 1 for real evidence, a line between."""
    return ((largest - MIN_EVIDENCE) / (FULL_EVIDENCE - MIN_EVIDENCE)).clamp(0, 1)


def _capped(weights: Tensor, w_max: float) -> Tensor:
    """Weights (B, N) of mean 1 as weights of mean 1, none above w_max.

        min(c * weight, w_max), with the one scale c that makes the mean 1

    Some tokens stand at the cap, and the others share the rest in proportion. With the k largest tokens at the cap, the
    scale is c_k = (N - k * w_max) / (sum of the other weights). All k are tried at once. The first k that leaves no other
    token above the cap is right.
    """
    num_tokens = weights.shape[1]
    w_max = min(w_max, num_tokens)  # no weight of mean 1 can pass N, so an infinite cap is the same as N
    weights = weights.clamp_min(TINY_WEIGHT)
    ordered = weights.sort(dim=1, descending=True).values  # (B, N)
    rest = ordered.flip(1).cumsum(dim=1).flip(1)  # (B, N), column k: the sum without the k largest
    num_capped = torch.arange(num_tokens, device=weights.device)  # k
    scale = (num_tokens - num_capped * w_max) / rest  # (B, N), c_k
    too_few = (scale * ordered > w_max).cumprod(dim=1)  # (B, N), 1 until enough are capped
    first = too_few.sum(dim=1, keepdim=True).clamp_max(num_tokens - 1)  # (B, 1)
    return (scale.gather(1, first) * weights).clamp_max(w_max)


def _column(value: float | Tensor, like: Tensor) -> float | Tensor:
    """A number stays a number; a tensor (B,) becomes (B, 1) with the dtype and device of `like`."""
    return value.to(like).reshape(-1, 1) if isinstance(value, Tensor) else value


def _check_weighting(map_kind: str, alpha: float | Tensor, w_max: float) -> None:
    if map_kind not in MAP_KINDS:
        raise ValueError(f"unknown map_kind {map_kind!r}; choose one of {', '.join(MAP_KINDS)}")
    check_strength(alpha)
    if not w_max >= 1:  # NaN is not, either
        raise ValueError(f"w_max={w_max} must be 1 or more: weights of mean 1 cannot all lie below it")


def _check_residual(token_maps: Tensor, group_ids: Tensor, map_kind: str, map_valid: Tensor | None) -> None:
    if map_kind != "reward":
        raise ValueError(f'mode "residual" takes "reward" maps, got {map_kind!r}; use mode "weight"')
    check_maps(token_maps, map_valid, token_maps.shape[0])
    check_group_ids(group_ids, token_maps.shape[0])
