"""Every field of a run with its default, its range and what it does. `config/grpo.py` has the runs, as changes to these.

Any field can be set on the command line, as in `--config.seed=1`. `python -m config.options` writes docs/options.md
from this file.
"""

from typing import Any

import ml_collections
from ml_collections import config_dict

from config.section import Section, field
from flow_grpo.training.advantages import COMBINES, CONTROLS, EVIDENCE
from flow_grpo.training.modes import MODES
from flow_grpo.training.objective import RATIOS
from flow_grpo.training.policies.families import FAMILIES
from flow_grpo.training.sde import KINDS


class Run(Section):
    """The run"""

    run_dir: str = field(
        "",
        "Folder for everything that the run writes; empty takes `runs/<name>`. A folder that already holds a run, or "
        "that another run is using, is refused. Other files in the folder are left alone.",
    )
    name: str = field("base", "Name of the configuration. Each run of `config/grpo.py` sets it.")
    seed: int = field(
        42,
        "Seed of the prompts, the noise and the LoRA's first weights. The same seed on the same machine gives the "
        "same run, bit for bit.",
        ge=0,
    )
    num_epochs: int = field(1000, "An epoch is one rollout of all groups and its updates.", gt=0)
    resume_from: str = field(
        "",
        "`latest`, a run's folder (its newest checkpoint is taken), or a checkpoint's folder. The number of processes, "
        "`num_gpus` and `batch_size` may change. So may fields that do not change the training (`num_epochs`, "
        "`save_every`, a scorer's workers and timeouts, a reward server's address). Any other changed field is refused "
        "by name. Model and prompts may lie in another folder, but their content must be the same.",
    )
    allow_changes: str = field(
        "",
        "Fields that a resumed run may change although they change the training: names of fields or of groups, "
        "separated by commas, such as `train.beta,reward_options`. The checkpoint's `manifest.json` records each "
        "change.",
    )
    save_every: int = field(10, "Epochs between checkpoints. A run that is killed loses at most this many.", gt=0)
    keep_checkpoints: int = field(3, "Number of checkpoints to keep. Older ones are deleted.", gt=0)
    best_metric: str = field(
        "eval/reward",
        "When this metric is the highest so far, the evaluation writes `checkpoint-best`: the averaged LoRA, the epoch "
        "and the value. A gold reward is a better judge than the trained one. Empty writes none.",
    )
    eval_every: int = field(
        10,
        "Epochs between evaluations on the test prompts. An evaluation samples by the ODE with the averaged weights. "
        "0 turns evaluations off.",
        ge=0,
    )
    samples_every: int = field(
        10,
        "Epochs between tables of samples. A table shows the first 16 samples of the main process's rollout with image, "
        "maps, reward and advantage. 0 turns the tables off. With one map at 512 px a table holds 32 pictures, of the "
        "order of 10 MB.",
        ge=0,
    )
    wandb_project: str = field(
        "flow_grpo",
        "Project of the run in wandb. wandb is online if there is a key (`wandb login` or `WANDB_API_KEY`) and offline "
        "otherwise; `WANDB_MODE` overrides this. If the wandb server does not answer, the run goes offline with one "
        "warning. If the wandb process dies, the run goes on without it. `metrics.jsonl` and `images/` always hold "
        "everything.",
    )


class Model(Section):
    """The model"""

    policy: str = field(
        "sd3",
        "Model family: SD3 and SD3.5, FLUX.1, FLUX.2-dev, FLUX.2-klein, Qwen-Image, Z-Image. "
        "[Add a model family](add-a-model.md) explains how to add another.",
        choices=FAMILIES,
    )
    model: str = field("", "Hub id or folder of a diffusers pipeline.")
    resolution: Any = field(
        512,
        'Size of the images in pixels: one side, or (height, width), as in `--config.resolution="(512, 768)"`. Each number '
        "must be a multiple of a token's side, which is 16 in every published model here. Flow-GRPO uses 512.",
    )
    eval_resolution: Any = field(None, "Size of the images of an evaluation, in pixels; None takes `resolution`.")
    max_sequence_length: int = field(
        256,
        "T5 tokens per prompt. The default is that of diffusers; Flow-GRPO and our runs use 128.",
        gt=0,
    )
    mixed_precision: str = field(
        "no",
        "Precision of the frozen weights and the forward pass. Flow-GRPO prefers `fp16` to `bf16` for SD3.5, because "
        "the ratio is then closer to 1. The LoRA, the latents and the log-probs are always fp32.",
        choices=("no", "fp16", "bf16"),
    )
    lora_rank: int = field(32, "Rank of the LoRA. The default is Flow-GRPO's for SD3.5; FLUX uses 64.", gt=0)
    lora_alpha: int = field(64, "The LoRA is scaled by alpha / rank. The default is Flow-GRPO's.", gt=0)
    gradient_checkpointing: bool = field(
        False,
        "Compute activations again in the backward pass instead of keeping them. Use it when the batch does not fit "
        "into memory.",
    )
    offload: bool = field(
        False,
        "Keep the text encoders and the VAE in the CPU's memory, and move them to the GPU only while they work. This "
        "saves gigabytes, and costs seconds for each batch of prompts that the prompt cache does not hold.",
    )
    compile: bool = field(
        False,
        "Compile the transformer's blocks with torch.compile, forward and backward, for long runs on GPUs. It takes "
        "minutes at the start, and again for each new batch size. The ratio still starts at exactly 1. A rollout then "
        "holds the memory of an update's forward pass, unless `gradient_checkpointing` is on.",
    )


class Prompts(Section):
    """The prompts"""

    dataset: str = field(
        "",
        "Folder with the files `train` and `test`. A `.txt` file has one prompt per line, as Flow-GRPO's do. A `.jsonl` "
        "file has one mapping per line, with `prompt` and with `metadata` for the scorers, such as "
        '`{"targets": ["SALE"]}`.',
    )
    num_eval_prompts: int = field(
        256, "Number of test prompts that an evaluation takes, from the first on; 0 takes all.", ge=0
    )
    prompt_cache: str = field(
        "",
        "Folder that keeps the embedding of every prompt. Use it when runs share prompts, or when T5 takes a good part "
        "of an epoch. A model never reads the embeddings of another model's weights. A damaged file is computed again.",
    )
    prompt_cache_gib: float = field(
        4.0,
        "GiB of embeddings that each process keeps in memory. By its shapes, a prompt takes about 1.7 MB for SD3.5 with "
        "128 T5 tokens in fp16.",
        ge=0,
    )


class Batch(Section):
    """The batch"""

    num_gpus: int = field(
        1,
        "Number of processes; the launcher must start as many. This field fills in the next three where they are 0.",
        gt=0,
    )
    num_groups: int = field(
        0,
        "Prompts per epoch. If this field and the next two are 0, they are taken from Flow-GRPO's published run of that "
        "size (8 groups on 1 GPU, 16 on 4, 48 on 32). Otherwise 0 takes 48, or the next number that divides among the "
        "processes.",
        ge=0,
    )
    group_size: int = field(
        0,
        "Images per prompt; they are compared with each other. 0 takes the published number (8 on 1 GPU, 16 on 4), or "
        "24 for other sizes.",
        ge=0,
    )
    batch_size: int = field(
        0,
        "Images that a process samples, and trains on, at a time. 0 takes the published number (8 on 1 or 4 GPUs, 9 on "
        "32), or else the largest number up to 9 that divides. Sampling and training share one size, so that the ratio "
        "starts at exactly 1.",
        ge=0,
    )
    updates_per_epoch: int = field(
        2, "Optimizer steps per epoch. The default is Flow-GRPO's; 1 is fully on-policy.", gt=0
    )


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
        "reward maps, and still learns where all images of a group have the same score.",
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
    w_max: float = field(8.0, "Largest weight of a token; the mean weight is 1.", ge=1)
    clip_max: float = field(
        5.0, "Advantages are clamped to the range from -clip_max to clip_max. The default is Flow-GRPO's.", gt=0
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
        "The images left out cost no forward pass, and add no KL. The SD3.5 runs use it, because Flow-GRPO's `beta` is "
        "tuned to it. When it is off, these images hold the policy to the base model: if 25, 50 or 75% of the images "
        "have no advantage, the KL weighs 1.3, 2 or 4 times as much against the rest.",
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
        "it when the policy earns its reward by emptying the scene around the text.",
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
    max_grad_norm: float = field(1.0, "Gradients are clipped to this norm. The default is Flow-GRPO's.", gt=0)
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


class Fields(Rewards, Batch, Prompts, Model, Run):
    """All fields of a run."""

    sample: Sampling = Sampling()
    advantage: Advantage = Advantage()
    train: Update = Update()


# The tables of docs/options.md, in order: (section, what stands before its fields' names)
TABLES = [
    *((section, "") for section in (Run, Model, Prompts, Batch)),
    (Sampling, "sample."),
    (Rewards, ""),
    (Advantage, "advantage."),
    (Update, "train."),
]


def get_config() -> ml_collections.ConfigDict:
    """The fields at their defaults. Dotted keys: a scorer of your own is named "package.module:factory"."""
    fields = Fields().model_dump()
    config = ml_collections.ConfigDict(fields)
    del config.resolution, config.eval_resolution  # of more types than their defaults'
    config.resolution = config_dict.FieldReference(fields["resolution"], field_type=object)
    config.eval_resolution = config_dict.FieldReference(fields["eval_resolution"], field_type=object)
    for name in ("rewards", "reward_options", "eval_rewards"):
        del config[name]
        config[name] = ml_collections.ConfigDict(allow_dotted_keys=True)
    return config
