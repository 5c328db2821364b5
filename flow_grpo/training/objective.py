"""The clipped policy-gradient loss of GRPO, with three ways to form the ratio of new to old policy.

With l (B, N) the tokens' log-ratio and A (B, N) their advantages, the loss is the mean over images and tokens of
max(-A r, -A clip(r, 1 - eps, 1 + eps)), where

    "image"       r = exp(mean_t l_t), one an image, on the image's mean advantage       Flow-GRPO, arXiv:2505.05470
    "gspo_token"  r_t = sg[exp(mean_t l_t)] * exp(l_t - sg[l_t]): the image's ratio as   GSPO-token, arXiv:2507.18071
                  a value and in the clip, each token's own gradient, on its own advantage
    "token"       r_t = exp(l_t), on the token's advantage                               GRPO, arXiv:2402.03300

"token" spreads sqrt(N) times as wide as the others and wants its own, wider clip range (1e-4 -> 3.2e-3 at N = 1024).
With one advantage an image, "image" and "gspo_token" have the same loss and gradient.
"""

import torch

RATIOS = ("image", "gspo_token", "token")


def grpo_loss(log_prob, old_log_prob, advantages, clip_range, ratio):
    """PPO's clipped loss to minimise, 0-dim, and its metrics.

    log_prob, old_log_prob: (B, N), per token, fp32; only log_prob gets a gradient. clip_range: eps, above 0.
    advantages: (B, N), or (B, 1) for one an image. ratio: as above; "image" takes the tokens' mean advantage.
    Raises ValueError for shapes that do not fit, half precision, an unknown ratio, a clip_range of 0 or less.

    The metrics are detached 0-dim tensors over the distinct ratios, one an image, for "token" one a token:
        loss, ratio_mean, ratio_std                the std is the population's
        ratio_deviation_max                        the largest |r - 1|: 0 before the first update
        weighted_ratio_deviation_max               the same of exp(sum_t |A_t| l_t / sum_t |A_t|), one an image: the drift
                                                   where the credit lies, which the mean over all tokens hardly shows
        clip_fraction_above, clip_fraction_below   shares of ratios past 1 + eps and 1 - eps
        approx_kl                                  mean of half the squared log-ratio, as Flow-GRPO has it
    Over ranks of equal batches what ends in _max reduces by its maximum, all others by their mean; that of ratio_std is
    the spread within a rank.
    """
    _check_inputs(log_prob, old_log_prob, advantages, clip_range, ratio)
    token_log_ratio = log_prob - old_log_prob.detach()  # (B, N)
    log_ratio = token_log_ratio if ratio == "token" else token_log_ratio.mean(dim=1, keepdim=True)  # (B, N) or (B, 1)
    ratios = log_ratio.exp()
    advantages = advantages.detach()
    drift = _weighted_drift(token_log_ratio.detach(), advantages)
    if ratio == "image":
        # in float64, where the mean of N equal advantages is that advantage to the last bit
        advantages = advantages.double().mean(dim=1, keepdim=True).to(advantages.dtype)  # (B, 1)
    if ratio == "gspo_token":
        ratios = ratios.detach() * (token_log_ratio - token_log_ratio.detach()).exp()  # (B, N), the right factor is 1
    clipped = ratios.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratios, -advantages * clipped).mean()
    metrics = _ratio_metrics(log_ratio.detach(), clip_range)
    return loss, {"loss": loss.detach(), **metrics, "weighted_ratio_deviation_max": drift}


def ratio_norm(log_prob, old_log_prob, mean_tokens, old_mean_tokens, std):
    """A log-prob (B, N) whose ratio to the old one has mean 1 and the same spread at every step.

    log_prob, old_log_prob: (B, N), of a Gaussian step. mean_tokens, old_mean_tokens: (B, N, D), its mean under the new
    and the old policy. std: of the whole step, 0-dim. The log-ratio l becomes std * (l + |mean shift|^2 / (2 std^2)), which
    is the shift times the noise that was drawn: without the second term it is below 0 on average, and clipping one-sided.
    For the kind "flow" alone. Wants a clip range of its own (2e-6 there), and the loss divided by the step's |dt|.
    RatioNorm of GRPO-Guard, arXiv:2510.22319.
    """
    squared_shift = (mean_tokens - old_mean_tokens.detach()).square().mean(dim=-1)  # (B, N)
    bias = squared_shift / (2 * std.square())
    return old_log_prob.detach() + std * (log_prob - old_log_prob.detach() + bias)


def _ratio_metrics(log_ratio, clip_range):
    ratios = log_ratio.exp()  # (B, 1), for "token" (B, N)
    return {
        "ratio_mean": ratios.mean(),
        "ratio_std": ratios.std(correction=0),
        "ratio_deviation_max": (ratios - 1).abs().max(),
        "clip_fraction_above": (ratios > 1 + clip_range).float().mean(),
        "clip_fraction_below": (ratios < 1 - clip_range).float().mean(),
        # from the logarithm: in fp32 the ratio 1 + 1e-5 has lost most of its digits
        "approx_kl": 0.5 * log_ratio.square().mean(),
    }


def _weighted_drift(token_log_ratio, advantages):
    """The largest |exp(l) - 1| over the images, 0-dim, where l is the mean log-ratio weighed by |advantage|."""
    weights = advantages.abs().expand_as(token_log_ratio)  # (B, N)
    total = weights.sum(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)  # an image without credit drifts by 0
    return ((weights * token_log_ratio).sum(dim=1) / total).expm1().abs().max()


def _check_inputs(log_prob, old_log_prob, advantages, clip_range, ratio):
    if ratio not in RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; choose one of {', '.join(RATIOS)}")
    if clip_range <= 0:
        raise ValueError(f"clip_range={clip_range} must be above 0")
    if log_prob.ndim != 2 or log_prob.shape != old_log_prob.shape:
        shapes = f"{tuple(log_prob.shape)} and {tuple(old_log_prob.shape)}"
        raise ValueError(f"log_prob and old_log_prob must both be (B, N), got {shapes}")
    batch, num_tokens = log_prob.shape
    if advantages.shape not in ((batch, num_tokens), (batch, 1)):
        raise ValueError(f"advantages must be ({batch}, {num_tokens}) or ({batch}, 1), got {tuple(advantages.shape)}")
    for name, tensor in (("log_prob", log_prob), ("old_log_prob", old_log_prob)):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            raise ValueError(f"{name} is {tensor.dtype}, whose rounding exceeds the clip range; keep it in float32")
