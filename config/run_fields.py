"""The fields of a run that say what it is made of: its folder, its model, its prompts, its batch."""

from typing import Any

from config.presets import SIZES
from config.section import Section, field
from flow_grpo.training.policies.families import FAMILIES


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
        le=10**18,  # torch takes 64 bits
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
        "Model family: SD3 and SD3.5, FLUX.1, FLUX.2-dev, FLUX.2-klein, Qwen-Image and 2.1, Z-Image. "
        "[Add a model family](add-a-model.md) explains how to add another.",
        choices=FAMILIES,
    )
    model: str = field("", "Hub id or folder of a diffusers pipeline.")
    resolution: Any = field(
        512,
        'Size of the images in pixels: one side, or (height, width), as in `--config.resolution="(512, 768)"`. Each number '
        "must be a multiple of a token's side, which is 16 in the published models; Qwen-Image 2.1 wants multiples of 32. "
        "Flow-GRPO uses 512. "
        "A prompt may [bring its own size](tutorials/own-prompts.md#of-several-sizes).",
    )
    eval_resolution: Any = field(
        None,
        "Size of the images of an evaluation, in pixels; None takes `resolution`. A prompt with a size of its own keeps it.",
    )
    max_sequence_length: int = field(
        256,
        "Tokens per prompt, T5's where there is one. The default is that of diffusers; Flow-GRPO and our runs use 128. A "
        "run says at its start whether prompts are longer.",
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
    preset: str = field(
        "",
        "Memory of each GPU. Where a LoRA run at 512 px needs it, the preset lowers `batch_size` and turns on "
        "`gradient_checkpointing` and `offload`. It is computed, not measured ([memory](performance.md#memory-computed)). A "
        "model that does not fit, or that the table of `config/presets.py` does not have, is refused, and so are larger images. "
        "Empty changes nothing.",
        choices=("", *SIZES),
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
