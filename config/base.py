"""Every field of a run, once: its default, its range, what it does. `config/grpo.py` has the runs, as changes to this.

Any field can be set from the command line, `--config.seed=1`. docs/options.md is made of this file by
`python -m config.options`.
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
        "Folder of everything that the run writes; empty: `runs/<name>`. A folder that holds a run, or that a "
        "run is using, is refused; other files in it stay beside the run's.",
    )
    name: str = field("base", "Of the configuration; the run of `config/grpo.py` sets it.")
    seed: int = field(
        42,
        "Draws prompts, noise and the LoRA's first weights. The same seed on the same machine is the same run, "
        "bit for bit.",
        ge=0,
    )
    num_epochs: int = field(1000, "An epoch is one rollout of all groups and its updates.", gt=0)
    resume_from: str = field(
        "",
        "`latest`, a run's folder (its newest checkpoint), or a checkpoint's folder. Another number of processes may "
        "go on with it, `num_gpus` and `batch_size` may change, and so may what does not change the training "
        "(`num_epochs`, `save_every`, a scorer's workers and timeouts, a reward server's address); anything else is "
        "refused by name. Model and prompts may lie in another folder: they are known by their content, and other "
        "content is refused.",
    )
    allow_changes: str = field(
        "",
        "Names of fields, or of groups of them, by commas: what a resumed run may change though it changes the "
        "training, as in `train.beta,reward_options`. The checkpoint's `manifest.json` records each change.",
    )
    save_every: int = field(10, "Epochs between checkpoints. A run that is killed loses at most these.", gt=0)
    keep_checkpoints: int = field(3, "The newest stay.", gt=0)
    best_metric: str = field(
        "eval/reward",
        "An evaluation in which this metric is the highest so far writes `checkpoint-best`, the averaged LoRA with the "
        "epoch and the value; a gold reward is a better judge than the trained one. Empty: none.",
    )
    eval_every: int = field(
        10,
        "Epochs between evaluations on the test prompts, by the ODE, with the averaged weights; 0: never.",
        ge=0,
    )
    samples_every: int = field(
        10,
        "Epochs between tables of the first 16 samples of the main process's rollout: image, maps, reward, "
        "advantage; 0: never. With one map at 512 px a table holds 32 pictures, of the order of 10 MB.",
        ge=0,
    )
    wandb_project: str = field(
        "flow_grpo",
        "wandb is online where there is a key (`wandb login`, `WANDB_API_KEY`), else offline; `WANDB_MODE` "
        "decides otherwise. Where its server does not answer, the run is offline with one warning; where its "
        "process dies, the run goes on without it. `metrics.jsonl` and `images/` have everything in any case.",
    )


class Model(Section):
    """The model"""

    policy: str = field(
        "sd3",
        "Model family: SD3 and SD3.5, FLUX.1, FLUX.2-dev, FLUX.2-klein, Qwen-Image, Z-Image. "
        "[Add a model family](add-a-model.md) says how to add another.",
        choices=FAMILIES,
    )
    model: str = field("", "Hub id or folder of a diffusers pipeline.")
    resolution: Any = field(
        512,
        'Pixels: a side, or (height, width), as in `--config.resolution="(512, 768)"`; each a multiple of a token\'s side, '
        "16 in every published model here. Flow-GRPO's is 512.",
    )
    eval_resolution: Any = field(None, "The same for the images of an evaluation; None: `resolution`.")
    max_sequence_length: int = field(
        256,
        "T5 tokens of a prompt; diffusers' default. Flow-GRPO takes 128, and so do our runs.",
        gt=0,
    )
    mixed_precision: str = field(
        "no",
        "Of the frozen weights and the forward pass. Flow-GRPO prefers `fp16` to `bf16` for SD3.5: the ratio is "
        "closer to 1. The LoRA, latents and log-probs are fp32 in any case.",
        choices=("no", "fp16", "bf16"),
    )
    lora_rank: int = field(32, "Flow-GRPO's for SD3.5 (64 for FLUX).", gt=0)
    lora_alpha: int = field(64, "Flow-GRPO's: the LoRA is scaled by alpha / rank.", gt=0)
    gradient_checkpointing: bool = field(
        False,
        "Activations are computed again in the backward pass. When memory does not hold the batch.",
    )
    offload: bool = field(
        False,
        "The text encoders and the VAE wait in the CPU's memory, and are on the GPU only while they work: gigabytes less, "
        "and seconds more for each batch of prompts that the prompt cache does not hold.",
    )
    compile: bool = field(
        False,
        "torch.compile of the transformer's blocks, forward and backward: minutes at the start, again for another "
        "batch size. For long runs on GPUs. The ratio still starts at exactly 1. A rollout then holds the memory "
        "of an update's forward pass, unless `gradient_checkpointing` is on.",
    )


class Prompts(Section):
    """The prompts"""

    dataset: str = field(
        "",
        "Folder with train and test: `.txt`, a prompt a line (Flow-GRPO's), or `.jsonl`, mappings with `prompt` "
        'and `metadata` that scorers are given, such as `{"targets": ["SALE"]}`.',
    )
    num_eval_prompts: int = field(256, "The first of the test prompts; 0: all.", ge=0)
    prompt_cache: str = field(
        "",
        "Folder that keeps every prompt's embedding. When runs share prompts, or T5 is a good part of an epoch. A "
        "model trained anew does not read another's; a damaged file is computed again.",
    )
    prompt_cache_gib: float = field(
        4.0,
        "Embeddings kept in the memory of each process. About 1.7 MB a prompt for SD3.5 with 128 T5 tokens in "
        "fp16, by their shapes.",
        ge=0,
    )


class Batch(Section):
    """The batch"""

    num_gpus: int = field(
        1,
        "Processes, which must be what the launcher starts. It fills in the next three where they are 0.",
        gt=0,
    )
    num_groups: int = field(
        0,
        "Prompts per epoch. 0: with the next two also at 0, Flow-GRPO's published run of that size (8 groups on 1 GPU, 16 on "
        "4, 48 on 32); else 48, or the next number that divides among the processes.",
        ge=0,
    )
    group_size: int = field(
        0,
        "Images per prompt, compared with each other. 0: as published (8 on 1 GPU, 16 on 4), else 24.",
        ge=0,
    )
    batch_size: int = field(
        0,
        "Images that a process samples, and trains on, at a time. 0: as published (8 on 1 or 4 GPUs, 9 on 32), else the "
        "largest up to 9 that divides. One size for both, so that the ratio starts at exactly 1.",
        ge=0,
    )
    updates_per_epoch: int = field(2, "Optimizer steps an epoch; Flow-GRPO's. 1 is fully on-policy.", gt=0)


class Sampling(Section):
    """Sampling"""

    num_steps: int = field(10, "Denoising steps of a rollout; Flow-GRPO's (6 for FLUX).", gt=0)
    eval_num_steps: int = field(40, "Of an evaluation.", gt=0)
    guidance_scale: float = field(
        4.5,
        "Classifier-free guidance, in sampling and training alike; 1: none, which halves the cost (Flow-GRPO- "
        "Fast). FLUX takes it as an embedding.",
        ge=1,
    )
    noise_level: float = field(
        0.7,
        "Of the SDE; Flow-GRPO's (0.9 for FLUX, 0.8 with `cps`). More explores more and blurs the images that are "
        "scored.",
        gt=0,
    )
    sde: str = field(
        "flow",
        "`flow` (Flow-GRPO, arXiv:2505.05470) or `cps`, which keeps the noise that the schedule expects "
        "(arXiv:2509.05952) and so scores cleaner images.",
        choices=KINDS,
    )
    sde_window_size: int = field(
        0,
        "So many steps in a row are stochastic and trained, the others follow the ODE (Flow-GRPO-Fast: 3; "
        "MixGRPO, arXiv:2507.21802). 0: all are stochastic. When the update is the larger part of an epoch.",
        ge=0,
    )
    sde_window_range: tuple[int, int] = field(
        (0, 0),
        "Where the window may lie, drawn anew each epoch, the same for all images; Flow-GRPO-Fast: (0, 5).",
    )
    same_start: bool = field(
        False,
        "Siblings start from one latent and differ by the steps' noise alone, which is what the log-probs see. "
        "Our tiny runs have it.",
    )


class Rewards(Section):
    """Rewards"""

    rewards: dict[str, float] = field(
        {},
        "`{scorer: weight}`, summed. Registered names, `package.module:factory`, or `remote:URL` ([remote "
        "rewards](remote-rewards.md)).",
    )
    reward_options: dict[str, dict[str, Any]] = field(
        {},
        "`{scorer: {option: value}}`. [OCR](ocr-rewards.md), [CLIP](clip-maps.md).",
    )
    eval_rewards: dict[str, dict[str, Any]] = field(
        {},
        "`{scorer: {option: value}}` of scorers that evaluations run and training does not: `eval/gold/<scorer>`. Where "
        "the trained reward rises and one of them falls, an alarm rings. For a run with OCR take another reader, "
        '`{"ocr": {"engine": "ppocrv4"}}` (`pip install flow-grpo-maps[gold]`).',
    )


class Advantage(Section):
    """Token advantages"""

    std: str = field(
        "global",
        "Rewards are centred in their group and divided by the std of all the epoch's (`global`, Flow-GRPO) or of "
        "the group's own (`group`, GRPO). `group` makes easy and hard prompts count alike.",
        choices=("global", "group"),
    )
    combine: str = field(
        "sum",
        "Several rewards: `sum` is Flow-GRPO's weighted sum, divided by one std. `each` divides every reward by "
        "its own std in its group before it is weighted, then the sum by the batch's (GDPO, arXiv:2601.05242): no "
        "reward is drowned by another's scale. In both, each reward's part lies where its own map says.",
        choices=COMBINES,
    )
    mode: str = field(
        "weight",
        "`scalar`: Flow-GRPO. `weight`: the map says where praise and blame go, the image's mean stays. "
        "`residual`: compares siblings place by place, for reward maps; it still learns where a whole group has "
        "one score.",
        choices=MODES,
    )
    evidence: str = field(
        "own",
        "Of mode `weight`. `own`: an image's map alone. `group`: joined with the mean of its siblings', so that "
        "an image that shows no text at all is blamed where its siblings have theirs.",
        choices=EVIDENCE,
    )
    control: str = field(
        "none",
        "A wrong map on purpose, to ask whether the right one helps: `rolled` (moved, each group by a drawn "
        "offset), `shuffled` (another group's), `inverted`, `constant` (no map at all). Stands in the run's name.",
        choices=CONTROLS,
    )
    alpha: float = field(0.5, "Strength of the map: 0 is `scalar`, 1 puts all credit where the map says.", ge=0, le=1)
    fade: float = field(
        0.0,
        "Alpha falls as (1 - sigma) ** fade: a map of the final image is poor credit for early layout steps.",
        ge=0,
    )
    w_max: float = field(8.0, "No token has more weight, with a mean of 1.", ge=1)
    clip_max: float = field(5.0, "Advantages are clamped to +- this; Flow-GRPO's.", gt=0)


class Update(Section):
    """The update"""

    num_steps: int = field(
        0,
        "Steps of a rollout that are trained on; 0: the window's, or all but the last (Flow-GRPO).",
        ge=0,
    )
    ratio: str = field(
        "gspo_token",
        "`image` (Flow-GRPO; with `scalar` alone), `gspo_token` (arXiv:2507.18071): the image's ratio in value "
        "and clip, each token's own gradient. `token` (GRPO): a ratio a token.",
        choices=RATIOS,
    )
    clip_range: float = field(
        0.0001,
        "Of the ratio; Flow-GRPO's. `token` wants sqrt(tokens) times as much (3.2e-3 at 512 px), `ratio_norm` "
        "about 2e-6, Flow-GRPO-Fast 1e-5.",
        gt=0,
    )
    ratio_norm: bool = field(
        False,
        "RatioNorm of GRPO-Guard (arXiv:2510.22319): the log-ratio without its bias and with one spread at all "
        "steps, the loss divided by the step. Against over-optimisation; with `advantage.std=group` and "
        "`train.beta=0` there.",
    )
    skip_zero_advantages: bool = field(
        False,
        "No forward for images that earned nothing (a group with equal rewards). The same gradient for less time; "
        "with `train.beta=0` alone, since the KL of such images would be lost.",
    )
    drop_zero_advantages: bool = field(
        False,
        "An update's means are over the images with an advantage alone: Flow-GRPO's rule. The others lose their KL, too, "
        "and cost no forward. The SD3.5 runs take it, since Flow-GRPO's `beta` is tuned to it. Kept, the others hold the "
        "policy to the base model: where 25, 50 or 75% of the images have no advantage, the KL then weighs 1.3, 2 or 4 "
        "times as much against the rest.",
    )
    beta: float = field(
        0.04,
        "Weight of the KL to the base model; Flow-GRPO's for OCR (0.01 for PickScore). 0: no KL and no forward of "
        "the base.",
        ge=0,
    )
    exact_kl: bool = field(
        False,
        "Keep the step's length in the KL's variance. Flow-GRPO leaves it out, and its betas are tuned to that.",
    )
    spatial_kl: float = field(
        0.0,
        "How much less KL the rewarded region of the maps gets, and how much more the rest, with a mean of 1. "
        "Against a reward that is earned by emptying the scene around it.",
        ge=0,
        le=1,
    )
    adapter: str = field(
        "lora",
        "`lora`, or `full`: all of the transformer's weights in fp32, with their gradients, moments and average 20 bytes "
        "each, and 4 more where `beta` keeps the base model. It wants a learning rate a hundredth of a LoRA's. At the end "
        "`pipeline/` holds the averaged model for diffusers.",
        choices=("lora", "full"),
    )
    learning_rate: float = field(0.0003, "AdamW; Flow-GRPO's.", gt=0)
    adam_epsilon: float = field(
        1e-8,
        "AdamW's; Flow-GRPO's. Where `update/grad_rms` lies under it, steps are shorter than the learning rate says; 1e-15 "
        "then gives them their length.",
        gt=0,
    )
    weight_decay: float = field(0.0001, "Flow-GRPO's.", ge=0)
    max_grad_norm: float = field(1.0, "Flow-GRPO's.", gt=0)
    ema_decay: float = field(
        0.9,
        "Of the averaged LoRA that evaluations and `lora_ema` take; Flow-GRPO's, with its warm-up over the first 80 "
        "optimizer steps. With an update every 8 steps the average is 38 steps behind the weights at step 80 and 72 at "
        "step 800 (Flow-GRPO's own is measured at 13 to 24 and 16 to 35: it may take several updates in one step).",
        ge=0,
        lt=1,
    )
    ema_every: int = field(8, "Optimizer steps between its updates; Flow-GRPO's.", gt=0)


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
