"""The fields of a run that say how it learns: sampling, rewards, token advantages, the update."""

from typing import Any

from config.section import Section, field
from flow_grpo.training.advantages import COMBINES, CONTROLS, EVIDENCE
from flow_grpo.training.modes import MODES
from flow_grpo.training.objective import RATIOS
from flow_grpo.training.sde import KINDS


class Sampling(Section):
    """Sampling"""

    num_steps: int = field(10, "Denoising steps of a rollout. The default is Flow-GRPO's; FLUX uses 6.", gt=0)
    eval_num_steps: int = field(40, "Denoising steps of an evaluation.", gt=0)
    guidance_scale: float = field(
        4.5,
        "Scale of classifier-free guidance, in sampling and in training. 1 turns guidance off and halves the cost, as in "
        "Flow-GRPO-Fast. FLUX takes the scale as an embedding.",
        ge=1,
    )
    noise_level: float = field(
        0.7,
        "Noise level of the SDE. The default is Flow-GRPO's; it uses 0.9 for FLUX and 0.8 with `cps`. More noise "
        "explores more, and blurs the images that are scored.",
        gt=0,
    )
    sde: str = field(
        "flow",
        "Rule of a stochastic step. `flow` is Flow-GRPO's (arXiv:2505.05470). `cps` (arXiv:2509.05952) keeps the amount "
        "of noise that the schedule expects, so the images that are scored are cleaner.",
        choices=KINDS,
    )
    sde_window_size: int = field(
        0,
        "Number of consecutive steps that are stochastic and trained; the others follow the ODE. 0 makes all steps "
        "stochastic. Flow-GRPO-Fast uses 3; the idea is MixGRPO's (arXiv:2507.21802). Use it when the update is the "
        "larger part of an epoch.",
        ge=0,
    )
    sde_window_range: tuple[int, int] = field(
        (0, 0),
        "Range of steps in which the window may lie. Each epoch draws one position for all images. Flow-GRPO-Fast uses "
        "(0, 5).",
    )
    same_start: bool = field(
        False,
        "Start all images of a group from one latent. They then differ only by the noise of the steps, which is what the "
        "log-probs see. Our tiny runs use it.",
    )


class Rewards(Section):
    """Rewards"""

    rewards: dict[str, float] = field(
        {},
        "`{scorer: weight}`; the weighted rewards are added. A scorer is a registered name, `package.module:factory`, or "
        "`remote:URL` ([remote rewards](remote-rewards.md)).",
    )
    reward_options: dict[str, dict[str, Any]] = field(
        {},
        "`{scorer: {option: value}}`. The pages on [OCR](ocr-rewards.md) and [CLIP](clip-maps.md) list the options.",
    )
    eval_rewards: dict[str, dict[str, Any]] = field(
        {},
        "`{scorer: {option: value}}` of gold scorers, which run in evaluations and not in training; their metrics are "
        "`eval/gold/<scorer>`. If one of them falls while the trained reward rises, an alarm rings. For a run with OCR "
        "take another reader, "
        '`{"ocr": {"engine": "ppocrv4"}}` (`pip install flow-grpo-maps[gold]`).',
    )


class Advantage(Section):
    """Token advantages"""

    std: str = field(
        "global",
        "Rewards are centred in their group and divided by a std: that of all rewards of the epoch (`global`, Flow-GRPO) "
        "or that of their group (`group`, GRPO). With `group`, easy and hard prompts count alike.",
        choices=("global", "group"),
    )
    combine: str = field(
        "sum",
        "How several rewards become one advantage. `sum` is Flow-GRPO's: the weighted sum, divided by one std. `each` is "
        "GDPO's (arXiv:2601.05242): every reward is divided by its own std in its group and weighted, and their sum is "
        "divided by the std of the batch. No reward is then drowned by the scale of another. In both, the part of each "
        "reward lies where its own map says.",
        choices=COMBINES,
    )
    mode: str = field(
        "weight",
        "How a map shapes the advantage. `scalar` uses no map, as Flow-GRPO. `weight` moves praise and blame to where the "
        "map says, and keeps the image's mean. `residual` compares the images of a group place by place; it needs "
        "reward maps, and still learns where all images of a group have the same score. The OCR runs use it, since it "
        "[trained the tiny model fastest](evidence.md).",
        choices=MODES,
    )
    evidence: str = field(
        "own",
        "Map that mode `weight` uses. `own` takes the image's map alone. `group` joins it with the mean of the maps in its "
        "group, so that an image without any text is blamed where the other images have theirs.",
        choices=EVIDENCE,
    )
    control: str = field(
        "none",
        "Use a wrong map on purpose, to test whether the right one helps: `rolled` (moved, each group by a random "
        "offset), `shuffled` (the map of another group), `inverted`, or `constant` (no map at all). The run's name "
        "contains it.",
        choices=CONTROLS,
    )
    alpha: float = field(
        0.5, "Strength of the map. 0 is the same as `scalar`; 1 puts all credit where the map says.", ge=0, le=1
    )
    fade: float = field(
        0.0,
        "Alpha falls as (1 - sigma) ** fade, because a map of the final image is poor credit for the early steps, which "
        "decide the layout. 0 keeps alpha the same in all steps.",
        ge=0,
    )
    w_max: float = field(8.0, "Largest weight of a token; the mean weight is 1.", unlimited=True, ge=1)
    clip_max: float = field(
        5.0,
        "Advantages are clamped to the range from -clip_max to clip_max. The default is Flow-GRPO's.",
        unlimited=True,
        gt=0,
    )


class Update(Section):
    """The update"""

    num_steps: int = field(
        0,
        "Number of steps of a rollout that are trained on. 0 takes the steps of the window, or without a window all but "
        "the last, as Flow-GRPO.",
        ge=0,
    )
    ratio: str = field(
        "gspo_token",
        "What the probability ratio is taken of. `image` is Flow-GRPO's: one ratio per image; it works with `scalar` "
        "only. `gspo_token` (arXiv:2507.18071) has the value and the clip of the image's ratio, and each token's own "
        "gradient. `token` is GRPO's: one ratio per token.",
        choices=RATIOS,
    )
    clip_range: float = field(
        0.0001,
        "How far the ratio may move from 1 before it is clipped. The default is Flow-GRPO's. `token` needs sqrt(tokens) "
        "times as much (3.2e-3 at 512 px), `ratio_norm` about 2e-6, and Flow-GRPO-Fast 1e-5.",
        gt=0,
    )
    ratio_norm: bool = field(
        False,
        "Use RatioNorm of GRPO-Guard (arXiv:2510.22319) against over-optimisation. It removes the bias of the log-ratio, "
        "gives it the same spread at all steps, and divides the loss by the step. GRPO-Guard uses it with "
        "`advantage.std=group` and `train.beta=0`.",
    )
    skip_zero_advantages: bool = field(
        False,
        "Skip the forward pass of images whose advantage is 0, as in a group with equal rewards. The gradient is the same "
        "and takes less time. It needs `train.beta=0`, because the KL of such images would be lost.",
    )
    drop_zero_advantages: bool = field(
        False,
        "Leave images without an advantage out of an update, as Flow-GRPO does: its means are over the other images only. "
        "The images left out cost no forward pass, and add no KL. The runs with Flow-GRPO's `beta`, which is "
        "tuned to it, use it. When it is off, these images hold the policy to the base model: if 25, 50 or 75% of the images "
        "have no advantage, the KL weighs 1.3, 2 or 4 times as much against the rest (1 / (1 - share)).",
    )
    beta: float = field(
        0.04,
        "Weight of the KL to the base model. The default is Flow-GRPO's for OCR; for PickScore it uses 0.01. 0 turns the "
        "KL off, and the forward pass of the base model with it.",
        ge=0,
    )
    exact_kl: bool = field(
        False,
        "Keep the length of the step in the variance of the KL. Flow-GRPO leaves it out, and its betas are tuned to "
        "that.",
    )
    spatial_kl: float = field(
        0.0,
        "How much less KL the region that the maps reward gets, and how much more the rest; the mean weight stays 1. Use "
        "it when the policy earns its reward by emptying the scene around the text. With `beta=0` there is nothing to spread.",
        ge=0,
        le=1,
    )
    adapter: str = field(
        "lora",
        "Weights that are trained. `lora` trains a LoRA. `full` trains all weights of the transformer in fp32. Each weight "
        "then takes 20 bytes with its gradient, moments and average, and 4 more if `beta` keeps the base model. `full` "
        "needs a hundredth of a LoRA's learning rate. At the end `pipeline/` holds the averaged model for diffusers.",
        choices=("lora", "full"),
    )
    learning_rate: float = field(0.0003, "Learning rate of AdamW. The default is Flow-GRPO's.", gt=0)
    adam_epsilon: float = field(
        1e-8,
        "Epsilon of AdamW. The default is Flow-GRPO's. If `update/grad_rms` is below it, steps are shorter than the "
        "learning rate says; 1e-15 then restores their length.",
        gt=0,
    )
    weight_decay: float = field(0.0001, "Weight decay of AdamW. The default is Flow-GRPO's.", ge=0)
    max_grad_norm: float = field(
        1.0, "Gradients are clipped to this norm. The default is Flow-GRPO's.", unlimited=True, gt=0
    )
    ema_decay: float = field(
        0.9,
        "Decay of the averaged LoRA, which evaluations and `lora_ema` use. The default is Flow-GRPO's, with its warm-up "
        "over the first 80 optimizer steps. With an update every 8 steps the average is 38 steps behind the weights at "
        "step 80 and 72 at step 800. Flow-GRPO's own average was measured at 13 to 24 and 16 to 35 steps, because it "
        "may update several times in one step.",
        ge=0,
        lt=1,
    )
    ema_every: int = field(8, "Optimizer steps between updates of the average. The default is Flow-GRPO's.", gt=0)
