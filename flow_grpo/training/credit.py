"""Who earned it: an epoch's scores as the token advantages of every trained step, and as weights of its KL.

Credit is computed over the samples of all processes, so that their number changes nothing. Each process then takes the
credit of its own samples.

A map's evidence says where it has something to say. It is the distance from neutral for a reward map, and the map itself for
an importance map. `spatial_kl` holds the places without evidence closer to the base model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .advantages import (
    MIN_EVIDENCE,
    MODES,
    NEUTRAL,
    combined_token_advantages,
    controlled_maps,
    faded_alpha,
    part_metrics,
    reward_parts,
)
from .records import Credit, Scored, TokenMap

COVERED = 0.05  # a token with more evidence counts as covered: a tenth of the most that a reward map can have


@dataclass(frozen=True)
class CreditRule:
    """How rewards and maps become credit; the fields of `config.advantage`, where they are explained."""

    std: str
    combine: str
    mode: str
    evidence: str
    control: str
    alpha: float
    fade: float
    w_max: float
    clip_max: float


def assign_credit(
    scored: Scored,
    sigmas: list[float],
    seed: int,
    rewards: Mapping[str, float],
    rule: CreditRule,
    spatial_kl: float,
    token_grid: tuple[int, int] | None = None,
) -> tuple[Credit, dict[str, float]]:
    """The credit of samples at the trained steps, and the metrics of an epoch's scores.

    sigmas: where each trained step begins.
    rewards: {name: weight}. Each reward spreads its own part of the advantage by its own map; without a map, evenly.
    spatial_kl: strength of the KL's background weights; 0 has none.
    seed, token_grid: for the control, if there is one (`controlled_maps`).
    Raises RuntimeError where no image could be scored.
    """
    valid = scored.valid
    if not valid.any():
        raise RuntimeError(f"none of the epoch's {len(valid)} images could be scored; the log has each cause")
    scored = replace(scored, maps=_controlled(scored, rule.control, token_grid, seed))
    # without a fade every step has the same strength
    by_step = [
        _spread(scored, rewards, rule, faded_alpha(rule.alpha, sigma, rule.fade))
        for sigma in (sigmas if rule.fade else sigmas[:1])
    ]
    shares = {name: weight / sum(rewards.values()) for name, weight in rewards.items()}
    evidence = {name: map_evidence(m.values, m.kind, m.valid, m.neutral) for name, m in scored.maps.items()}
    region = sum(shares[name] * rewarded_region(e) for name, e in evidence.items()) if evidence else None
    credit = Credit(
        advantages=torch.stack(by_step).expand(len(sigmas), -1, -1),
        region=region,
        kl_weights=background_weights(region, spatial_kl) if spatial_kl and region is not None else None,
    )
    return credit, _metrics(scored, rewards, evidence, rule)


def _controlled(scored: Scored, control: str, token_grid: tuple[int, int] | None, seed: int) -> dict[str, TokenMap]:
    """The maps as a control changes them; the control "none" leaves them as they are."""
    if control == "none":
        return scored.maps
    maps = {}
    for name, m in scored.maps.items():
        values, valid = controlled_maps(
            m.values,
            m.kind,
            control,
            scored.group_ids,
            m.valid,
            m.neutral,
            scored.details[name],
            token_grid=token_grid,
            seed=seed,
        )
        maps[name] = replace(m, values=values, valid=valid)
    return maps


def _spread(scored: Scored, rewards: Mapping[str, float], rule: CreditRule, alpha: float) -> Tensor:
    """Token advantages (B, N) at one strength of the maps. A control has changed the maps before."""
    return combined_token_advantages(
        {name: scored.details[name] for name in rewards},
        rewards,
        {name: m.values for name, m in scored.maps.items()},
        {name: m.kind for name, m in scored.maps.items()},
        scored.group_ids,
        mode=rule.mode,
        combine=rule.combine,
        evidence=rule.evidence,
        std=rule.std,
        alpha=alpha,
        w_max=rule.w_max,
        adv_clip_max=rule.clip_max,
        valid=scored.valid,
        map_valid={name: m.valid for name, m in scored.maps.items()},
        neutrals={name: m.neutral for name, m in scored.maps.items()},
    )


def _metrics(
    scored: Scored, rewards: Mapping[str, float], evidence: Mapping[str, Tensor], rule: CreditRule
) -> dict[str, float]:
    """What the scores and the maps of an epoch look like: the `rollout/` and `map/` rows of docs/metrics.md."""
    valid = scored.valid
    values = {name: scored.details[name] for name in rewards}
    advantages, parts = reward_parts(values, rewards, scored.group_ids, rule.std, rule.combine, rule.clip_max, valid)
    metrics = {
        "rollout/reward_mean": scored.rewards[valid].mean(),
        "rollout/reward_std": scored.rewards[valid].std(correction=0),
        "rollout/invalid_share": (~valid).float().mean(),
        "rollout/advantage_abs_mean": advantages.abs().mean(),
        "rollout/advantage_std": advantages.std(correction=0),
        "rollout/zero_advantage_share": (advantages == 0).float().mean(),
        # NaN where a batch's scorer did not measure it
        **{f"rollout/{name}": detail[valid].nanmean() for name, detail in scored.details.items()},
        **{f"rollout/{name}": value for name, value in part_metrics(values, parts, scored.group_ids, valid).items()},
    }
    for name, token_map in scored.maps.items():
        measured = evidence_metrics(evidence[name])
        if MODES[rule.mode].metrics is not None:
            measured |= MODES[rule.mode].metrics(
                parts[name],
                token_map.values,
                token_map.kind,
                alpha=rule.alpha,
                lam=rule.alpha,
                w_max=rule.w_max,
                map_valid=token_map.valid,
                neutral=token_map.neutral,
                evidence=rule.evidence,
                group_ids=scored.group_ids,
            )
        metrics |= {f"map/{name}/{key}": value for key, value in measured.items()}
    return {name: float(value) for name, value in metrics.items()}


def map_evidence(
    token_maps: Tensor, map_kind: str, map_valid: Tensor | None = None, neutral: float = NEUTRAL
) -> Tensor:
    """How much the map says at each token: (B, N) fp32, 0 or more.

        "reward"        abs(map - neutral)
        "importance"    map

    token_maps: (B, N) in [0, 1]. map_valid: (B,) bool. neutral: what a reward map holds where it has nothing to say.
    A map that is invalid, or holds NaN or Inf, has evidence 0 everywhere.
    """
    maps = token_maps.detach().float()
    evidence = (maps - neutral).abs() if map_kind == "reward" else maps
    usable = maps.isfinite().all(dim=1)
    if map_valid is not None:
        usable = usable & map_valid
    return torch.where(usable[:, None], evidence, 0)


def rewarded_region(evidence: Tensor) -> Tensor:
    """Evidence (B, N), divided by the image's largest: 1 where the map says most, 0 where it says nothing."""
    largest = evidence.amax(dim=1, keepdim=True)
    return torch.where(largest < MIN_EVIDENCE, 0, evidence / largest.clamp_min(MIN_EVIDENCE))


def background_weights(region: Tensor, strength: float) -> Tensor:
    """Weights (B, N) of mean 1 for a KL per token. The more a token belongs to the region, the less it weighs.

        weight = (1 - strength * region) / its mean over the image's tokens

    region: (B, N) in [0, 1]. strength: 0 weighs all tokens alike; 1 gives no KL to a token whose region is 1.
    If the region is the same at all tokens, all weights are 1.
    """
    weights = 1 - strength * region
    mean = weights.mean(dim=1, keepdim=True)
    return torch.where(mean < MIN_EVIDENCE, 1, weights / mean.clamp_min(MIN_EVIDENCE))


def evidence_metrics(evidence: Tensor) -> dict[str, Tensor]:
    """What maps look like, as 0-dim tensors. Over processes with equal batches, take the mean of each.

    coverage: the share of tokens with evidence above 0.05.
    entropy: of the evidence's distribution over the tokens, divided by log N. 1 is spread evenly, 0 is all in one token. An
        image without evidence counts as even.
    """
    total = evidence.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, evidence / total.clamp_min(1e-30), 1 / evidence.shape[1])  # (B, N)
    entropy = -torch.xlogy(share, share).sum(dim=1) / math.log(max(evidence.shape[1], 2))
    return {"coverage": (evidence > COVERED).float().mean(), "entropy": entropy.mean()}
