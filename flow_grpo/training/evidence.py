"""Where a map has something to say: its evidence as a region, and the KL weights that hold everything else to the base.

A reward map's evidence is its distance from 0.5, its neutral; an importance map's is the map itself.
"""

import math

import torch

from flow_grpo.training.advantages import MIN_EVIDENCE, NEUTRAL

COVERED = 0.05  # evidence of a token that counts as covered: a tenth of what a reward map can have


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
