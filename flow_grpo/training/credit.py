"""Who earned it: an epoch's scores as the token advantages of every trained step, and as weights of its KL.

Computed over the samples of all processes, so that their number changes nothing; each then takes its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flow_grpo.training.advantages import (
    faded_alpha,
    group_advantages,
    token_advantages,
    token_weights,
    weight_metrics,
)
from flow_grpo.training.evidence import background_weights, evidence_metrics, map_evidence, rewarded_region
from flow_grpo.training.scoring import Scored


@dataclass(frozen=True)
class CreditRule:
    """How rewards and maps become credit; the fields of `config.advantage`, where they are explained."""

    std: str
    mode: str
    alpha: float
    fade: float
    w_max: float
    clip_max: float


@dataclass(frozen=True)
class Credit:
    """What the update needs of the scores.

    advantages: (S, B, N), (S, B, 1) where no map counts. region: (B, N) in [0, 1], where the maps say something, or
    None without maps. kl_weights: (B, N) of mean 1, or None: all alike.
    """

    advantages: torch.Tensor
    region: torch.Tensor | None
    kl_weights: torch.Tensor | None

    def __getitem__(self, rows: slice) -> "Credit":
        """The credit of some of the samples."""
        region, weights = (None if part is None else part[rows] for part in (self.region, self.kl_weights))
        return Credit(self.advantages[:, rows], region, weights)


def assign_credit(
    scored: Scored, rewards: Mapping[str, float], rule: CreditRule, sigmas: list[float], spatial_kl: float
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
