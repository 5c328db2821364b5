"""The clipped policy-gradient loss of GRPO, with three ways to form the ratio of the new policy to the old one.

With l (B, N) the log-ratio of each token, A (B, N) its advantage and eps the clip range:

    loss = mean over images and tokens of max(-A r, -A clip(r, 1 - eps, 1 + eps))

    "image"         r   = exp(mean_t l_t)                               Flow-GRPO, arXiv:2505.05470
    "gspo_token"    r_t = sg[exp(mean_t l_t)] * exp(l_t - sg[l_t])      GSPO-token, arXiv:2507.18071
    "token"         r_t = exp(l_t)                                      GRPO, arXiv:2402.03300

sg[...] stops the gradient.
- "image" has one ratio per image. It is multiplied by the mean of the image's advantages.
- "gspo_token" has the image's ratio as its value, also in the clip. Each token has a gradient and an advantage of its own.
- "token" has one ratio per token. These ratios spread sqrt(N) times as wide as the others, so "token" needs a wider clip
  range (3.2e-3 instead of 1e-4 at N = 1024).
If all tokens of an image have the same advantage, "image" and "gspo_token" have the same loss and gradient.
"""

import torch
from torch import Tensor

RATIOS = ("image", "gspo_token", "token")


def grpo_loss(
    log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float, ratio: str
) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped loss to minimise, 0-dim, and its metrics.

    log_prob, old_log_prob: (B, N) fp32, one per token. Only log_prob gets a gradient.
    advantages: (B, N), or (B, 1) where an image has one advantage.
    clip_range: eps, above 0. ratio: one of RATIOS, see the module.
    Raises ValueError for shapes that do not fit, half precision, an unknown ratio, a clip_range of 0 or less.

    The metrics are detached 0-dim tensors over the ratios, of which there is one per image, or one per token for "token":
        loss
        ratio_mean, ratio_std                       the std is the population's
        ratio_deviation_max                         the largest |r - 1|: 0 before the first update
        weighted_ratio_deviation_max                |exp(d) - 1| of the image with the largest, see below
        clip_fraction_above, clip_fraction_below    shares of the ratios above 1 + eps and below 1 - eps
        approx_kl                                   mean of log_ratio^2 / 2, as in Flow-GRPO
    where d is an image's mean log-ratio, weighted by its advantages:
        d = sum_t |A_t| l_t / sum_t |A_t|
    It shows the drift where the credit lies, which the mean over all tokens hardly shows.
    Over processes with equal batches, take the maximum of names that end in _max and the mean of the others. The mean of
    ratio_std is then the spread within a process.
    """
    _check_inputs(log_prob, old_log_prob, advantages, clip_range, ratio)
    token_log_ratio = log_prob - old_log_prob.detach()  # (B, N)
    log_ratio = token_log_ratio if ratio == "token" else token_log_ratio.mean(dim=1, keepdim=True)  # (B, N) or (B, 1)
    ratios = log_ratio.exp()
    advantages = advantages.detach()
    drift = _weighted_drift(token_log_ratio.detach(), advantages)
    if ratio == "image":
        # fp64: the mean of N equal advantages is that advantage to the last bit
        advantages = advantages.double().mean(dim=1, keepdim=True).to(advantages.dtype)  # (B, 1)
    if ratio == "gspo_token":
        # The right factor has the value 1, and brings each token's gradient.
        ratios = ratios.detach() * (token_log_ratio - token_log_ratio.detach()).exp()  # (B, N)
    clipped = ratios.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.maximum(-advantages * ratios, -advantages * clipped).mean()
    metrics = _ratio_metrics(log_ratio.detach(), clip_range)
    return loss, {"loss": loss.detach(), **metrics, "weighted_ratio_deviation_max": drift}


def ratio_norm(
    log_prob: Tensor, old_log_prob: Tensor, mean_tokens: Tensor, old_mean_tokens: Tensor, std: Tensor
) -> Tensor:
    """A log-prob (B, N) whose ratio to the old one has mean 1 and the same spread at every step.

    With l the log-ratio of a token and shift the difference of its new and old mean:
        new log-ratio = std * (l + |shift|^2 / (2 std^2))
    Without the second term the log-ratio is below 0 on average, so that mostly one side is clipped. With it, the log-ratio
    is the shift times the noise that was drawn, and is 0 on average.

    log_prob, old_log_prob: (B, N), of a step of the kind "flow".
    mean_tokens, old_mean_tokens: (B, N, D), the mean of the step under the new and the old policy.
    std: of the whole step, 0-dim.
    The caller takes a clip range of its own (the paper's is 2e-6) and divides the loss by the step's |dt|.
    RatioNorm of GRPO-Guard, arXiv:2510.22319.
    """
    squared_shift = (mean_tokens - old_mean_tokens.detach()).square().mean(dim=-1)  # (B, N)
    bias = squared_shift / (2 * std.square())
    return old_log_prob.detach() + std * (log_prob - old_log_prob.detach() + bias)


def _ratio_metrics(log_ratio: Tensor, clip_range: float) -> dict[str, Tensor]:
    ratios = log_ratio.exp()  # (B, 1), for "token" (B, N)
    return {
        "ratio_mean": ratios.mean(),
        "ratio_std": ratios.std(correction=0),
        "ratio_deviation_max": (ratios - 1).abs().max(),
        "clip_fraction_above": (ratios > 1 + clip_range).float().mean(),
        "clip_fraction_below": (ratios < 1 - clip_range).float().mean(),
        # of the log-ratio, not of the ratio: in fp32 the ratio 1 + 1e-5 has lost most of its digits
        "approx_kl": 0.5 * log_ratio.square().mean(),
    }


def _weighted_drift(token_log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """The largest |exp(l) - 1| over the images, 0-dim, where l is the mean log-ratio weighed by |advantage|."""
    weights = advantages.abs().expand_as(token_log_ratio)  # (B, N)
    total = weights.sum(dim=1).clamp_min(torch.finfo(weights.dtype).tiny)  # an image without credit drifts by 0
    return ((weights * token_log_ratio).sum(dim=1) / total).expm1().abs().max()


def _check_inputs(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float, ratio: str) -> None:
    if ratio not in RATIOS:
        raise ValueError(f"unknown ratio {ratio!r}; choose one of {', '.join(RATIOS)}")
    if not clip_range > 0:  # NaN is not, either
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
