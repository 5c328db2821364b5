"""Who earned it: an epoch's scores as the token advantages of every trained step, and as weights of its KL.

Computed over the samples of all processes, so that their number changes nothing; each then takes its own.

A map's evidence says where it has something to say: a reward map's is its distance from 0.5, its neutral; an importance
map's is the map itself. The KL may hold everything else to the base model.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .advantages import (
    MIN_EVIDENCE,
    NEUTRAL,
    faded_alpha,
    group_advantages,
    token_advantages,
    token_weights,
    weight_metrics,
)
from .records import Credit, Scored

COVERED = 0.05  # evidence of a token that counts as covered: a tenth of what a reward map can have


@dataclass(frozen=True)
class CreditRule:
    """How rewards and maps become credit; the fields of `config.advantage`, where they are explained."""

    std: str
    mode: str
    alpha: float
    fade: float
    w_max: float
    clip_max: float


def assign_credit(
    scored: Scored, sigmas: list[float], rewards: Mapping[str, float], rule: CreditRule, spatial_kl: float
) -> tuple[Credit, dict[str, float]]:
    """The credit of samples at steps that begin at these sigmas, and what it measured.

    rewards: {name: weight}; several maps are averaged by them, and a reward without a map weighs all tokens alike.
    spatial_kl: strength of the KL's background weights, 0: none. Raises RuntimeError where no image could be scored.
    """
    valid = scored.valid
    if not valid.any():
        raise RuntimeError(f"none of the epoch's {len(valid)} images could be scored; the log has each cause")
    advantages = group_advantages(scored.rewards, scored.group_ids, rule.std, valid)  # (B,)
    shares = {name: weight / sum(rewards.values()) for name, weight in rewards.items()}
    # without a fade every step has the same strength
    by_step = [
        _spread(advantages, scored, shares, rule, faded_alpha(rule.alpha, sigma, rule.fade))
        for sigma in (sigmas if rule.fade else sigmas[:1])
    ]
    evidence = {name: map_evidence(m.values, m.kind, m.valid) for name, m in scored.maps.items()}
    region = sum(shares[name] * rewarded_region(e) for name, e in evidence.items()) if evidence else None
    credit = Credit(
        advantages=torch.stack(by_step).expand(len(sigmas), -1, -1),
        region=region,
        kl_weights=background_weights(region, spatial_kl) if spatial_kl and region is not None else None,
    )
    return credit, _metrics(advantages, scored, evidence, rule)


def _spread(
    advantages: torch.Tensor, scored: Scored, shares: Mapping[str, float], rule: CreditRule, alpha: float
) -> torch.Tensor:
    """Token advantages (B, N): each reward spreads the image's advantage by its map, averaged by reward weight."""
    spread = 0.0
    for name, share in shares.items():
        token_map = scored.maps.get(name)
        spread = spread + share * token_advantages(
            advantages,
            token_map.values if token_map else None,
            rule.mode,
            token_map.kind if token_map else None,
            alpha=alpha,
            w_max=rule.w_max,
            adv_clip_max=rule.clip_max,
            map_valid=token_map.valid if token_map else None,
            group_ids=scored.group_ids,
        )
    return spread


def _metrics(
    advantages: torch.Tensor, scored: Scored, evidence: Mapping[str, torch.Tensor], rule: CreditRule
) -> dict[str, float]:
    valid = scored.valid
    rewards = scored.rewards[valid]
    metrics = {
        "rollout/reward_mean": rewards.mean(),
        "rollout/reward_std": rewards.std(correction=0),
        "rollout/invalid_share": (~valid).float().mean(),
        "rollout/advantage_abs_mean": advantages.abs().mean(),
        "rollout/advantage_std": advantages.std(correction=0),
        "rollout/zero_advantage_share": (advantages == 0).float().mean(),
        **{f"rollout/{name}": values[valid].mean() for name, values in scored.details.items()},
    }
    for name, token_map in scored.maps.items():
        measured = evidence_metrics(evidence[name])
        if rule.mode == "weight":
            weights, fallback = token_weights(
                advantages, token_map.values, token_map.kind, rule.alpha, rule.w_max, token_map.valid
            )
            measured |= weight_metrics(weights, fallback)
        metrics |= {f"map/{name}/{key}": value for key, value in measured.items()}
    return {name: float(value) for name, value in metrics.items()}


def map_evidence(token_maps, map_kind, map_valid=None):
    """How much each token's map says: (B, N) fp32, 0 or more; 0 throughout where the map is invalid, NaN or Inf.

    token_maps: (B, N) in [0, 1]. map_kind: "reward" or "importance". map_valid: (B,) bool.
    """
    maps = token_maps.detach().float()
    evidence = (maps - NEUTRAL).abs() if map_kind == "reward" else maps
    usable = maps.isfinite().all(dim=1)
    if map_valid is not None:
        usable = usable & map_valid
    return torch.where(usable[:, None], evidence, 0)


def rewarded_region(evidence):
    """Evidence (B, N) as a share of the image's largest: 1 where a map says most, 0 where it says nothing."""
    largest = evidence.amax(dim=1, keepdim=True)
    return torch.where(largest < MIN_EVIDENCE, 0, evidence / largest.clamp_min(MIN_EVIDENCE))


def background_weights(region, strength):
    """Weights (B, N) of mean 1 for a KL per token, lower the more a token belongs to the region.

    region: (B, N) in [0, 1]. strength: 0 weighs all tokens alike; 1 leaves the region's heart without KL.
    A region that holds the whole image alike, or nothing of it, weighs all tokens alike.
    """
    weights = 1 - strength * region
    mean = weights.mean(dim=1, keepdim=True)
    return torch.where(mean < MIN_EVIDENCE, 1, weights / mean.clamp_min(MIN_EVIDENCE))


def evidence_metrics(evidence):
    """What maps look like, as 0-dim tensors: over ranks of equal batches each reduces by its mean.

    coverage: tokens with evidence above 0.05. entropy: of the evidence's distribution over the tokens, as a share of
    log N: 1 is even, 0 all in one token; an image without evidence counts as even.
    """
    total = evidence.sum(dim=1, keepdim=True)
    share = torch.where(total > 0, evidence / total.clamp_min(1e-30), 1 / evidence.shape[1])  # (B, N)
    entropy = -torch.xlogy(share, share).sum(dim=1) / math.log(max(evidence.shape[1], 2))
    return {"coverage": (evidence > COVERED).float().mean(), "entropy": entropy.mean()}
