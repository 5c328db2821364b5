"""Resolve a run's configuration and refuse what cannot work, before any weight is loaded."""

from dataclasses import dataclass

import ml_collections

from config import base
from flow_grpo.training.policies.families import FAMILIES

# Flow-GRPO's published geometry: processes -> (images a prompt, images a process samples at a time).
# 8 is ours: the groups of 32 GPUs, sampled in four times as many batches.
GEOMETRY_OF_GPUS = {1: (8, 8), 4: (16, 8), 8: (24, 9), 32: (24, 9)}

CHOICES = {
    "policy": tuple(FAMILIES),
    "mixed_precision": ("no", "fp16", "bf16"),
    "sample.sde": ("flow", "cps"),
    "advantage.std": ("global", "group"),
    "advantage.combine": ("sum", "each"),
    "advantage.mode": ("scalar", "weight", "residual"),
    "advantage.evidence": ("own", "group"),
    "advantage.control": ("none", "rolled", "shuffled", "inverted", "constant"),
    "train.ratio": ("image", "gspo_token", "token"),
}

POSITIVE = (
    *("num_epochs", "save_every", "keep_checkpoints", "num_gpus", "num_groups", "updates_per_epoch", "resolution"),
    *("max_sequence_length", "lora_rank", "lora_alpha", "sample.num_steps", "sample.eval_num_steps"),
    *("sample.noise_level", "advantage.clip_max", "train.clip_range", "train.learning_rate"),
    *("train.max_grad_norm", "train.ema_every"),
)

NOT_NEGATIVE = (
    *("group_size", "batch_size", "num_eval_prompts", "eval_every", "samples_every", "advantage.fade"),
    *("train.beta", "train.weight_decay", "train.num_steps", "sample.sde_window_size", "prompt_cache_gib"),
)


@dataclass(frozen=True)
class Geometry:
    """How an epoch's num_groups * group_size images fall into batches and updates."""

    num_processes: int
    num_groups: int
    group_size: int
    batch_size: int
    updates_per_epoch: int

    @property
    def num_samples(self) -> int:
        return self.num_groups * self.group_size

    @property
    def batches_per_process(self) -> int:
        return self.num_samples // (self.num_processes * self.batch_size)

    @property
    def batches_per_update(self) -> int:
        return self.batches_per_process // self.updates_per_epoch


def resolve(config: ml_collections.ConfigDict, num_processes: int) -> tuple[ml_collections.ConfigDict, Geometry]:
    """Fill in what follows from other fields and check everything; the configuration itself is left alone.

    Raises ValueError that names the field, what it is and what it may be.
    """
    config = ml_collections.ConfigDict(config.to_dict(), allow_dotted_keys=True)
    _check_names(config.to_dict(), base.get_config().to_dict())
    _check_values(config)
    if config.num_gpus != num_processes:
        raise ValueError(
            f"num_gpus={config.num_gpus}, but this run was launched with {num_processes} "
            f"process{'es' * (num_processes > 1)}; set --config.num_gpus={num_processes} or launch that many "
            f"(accelerate launch --num_processes {config.num_gpus}, as scripts/one_node.sh and cpu.sh do)"
        )
    if config.advantage.control != "none":
        config.name += f"-{config.advantage.control}"  # nobody takes a control for a run
    config.run_dir = config.run_dir or f"runs/{config.name}"
    config.train.num_steps = config.train.num_steps or config.sample.sde_window_size or config.sample.num_steps - 1
    _check_steps(config)
    _check_objective(config)
    if not config.group_size or not config.batch_size:
        if config.num_gpus not in GEOMETRY_OF_GPUS:
            known = ", ".join(map(str, GEOMETRY_OF_GPUS))
            raise ValueError(
                f"no geometry is known for num_gpus={config.num_gpus} (known: {known}); "
                "set --config.group_size and --config.batch_size"
            )
        group_size, batch_size = GEOMETRY_OF_GPUS[config.num_gpus]
        config.group_size = config.group_size or group_size
        config.batch_size = config.batch_size or batch_size
    return config.lock(), _geometry(config)


def _geometry(config: ml_collections.ConfigDict) -> Geometry:
    if config.group_size < 2:
        raise ValueError(f"group_size={config.group_size} compares no siblings; use 2 or more")
    geometry = Geometry(
        num_processes=config.num_gpus,
        num_groups=config.num_groups,
        group_size=config.group_size,
        batch_size=config.batch_size,
        updates_per_epoch=config.updates_per_epoch,
    )
    sizes = f"num_groups * group_size = {config.num_groups} * {config.group_size} = {geometry.num_samples} images"
    stride = geometry.num_processes * geometry.batch_size * geometry.updates_per_epoch
    if geometry.num_samples % stride:
        divisors = [
            b
            for b in range(1, 65)
            if geometry.num_samples % (geometry.num_processes * b * config.updates_per_epoch) == 0
        ]
        advice = (
            f"batch_size={min(divisors, key=lambda b: (abs(b - config.batch_size), b))}"
            if divisors
            else f"num_groups={-(-config.num_groups // stride) * stride}"
        )
        raise ValueError(
            f"{sizes} do not divide into num_gpus * batch_size * updates_per_epoch = {config.num_gpus} * "
            f"{config.batch_size} * {config.updates_per_epoch} = {stride}; try {advice}"
        )
    return geometry


def _check_names(fields: dict, known: dict, prefix: str = "") -> None:
    """Refuse a field that config/base.py does not have: a run that misspells one would train without it."""
    for name, value in fields.items():
        if name not in known:
            raise ValueError(f"unknown field {prefix}{name}; known: {', '.join(f'{prefix}{n}' for n in sorted(known))}")
        if isinstance(value, dict) and prefix + name not in ("rewards", "reward_options"):
            _check_names(value, known[name], f"{prefix}{name}.")


def _check_values(config: ml_collections.ConfigDict) -> None:
    for path, choices in CHOICES.items():
        if (value := _field(config, path)) not in choices:
            raise ValueError(f"{path}={value!r} is unknown; choose one of {', '.join(choices)}")
    for path in POSITIVE:
        if (value := _field(config, path)) <= 0:
            raise ValueError(f"{path}={value} must be above 0")
    for path in NOT_NEGATIVE:
        if (value := _field(config, path)) < 0:
            raise ValueError(f"{path}={value} must be 0 or more")
    for path in ("model", "dataset"):
        if not config[path]:
            raise ValueError(f"{path} is empty; name a folder, or start from a run of config/grpo.py")
    if not config.rewards:
        raise ValueError('rewards is empty; give at least one scorer and its weight, e.g. {"ocr_map": 1.0}')
    if min(config.rewards.values()) < 0 or sum(config.rewards.values()) <= 0:
        raise ValueError(f"rewards={config.rewards.to_dict()}: weights must be 0 or more, and one above 0")
    if config.sample.sde == "cps" and config.sample.noise_level > 1:
        raise ValueError(f"sample.noise_level={config.sample.noise_level} must be 1 or less for sample.sde=cps")
    if config.sample.guidance_scale < 1:
        raise ValueError(f"sample.guidance_scale={config.sample.guidance_scale} must be 1 (no guidance) or more")
    if not 0 <= config.advantage.alpha <= 1:
        raise ValueError(f"advantage.alpha={config.advantage.alpha} must lie between 0 (no map) and 1")
    if config.advantage.w_max < 1:
        raise ValueError(f"advantage.w_max={config.advantage.w_max} must be 1 or more: the mean weight is 1")
    if not 0 <= config.train.ema_decay < 1:
        raise ValueError(f"train.ema_decay={config.train.ema_decay} must lie in [0, 1)")


def _check_steps(config: ml_collections.ConfigDict) -> None:
    """Which steps of a rollout are stochastic, and which are trained on."""
    sample, train = config.sample, config.train
    first, end = 0, train.num_steps  # the trained steps that may come last
    if size := sample.sde_window_size:
        first, end = sample.sde_window_range
        if not (0 <= first and first + size <= end <= sample.num_steps):
            raise ValueError(
                f"sample.sde_window_range={tuple(sample.sde_window_range)} must hold the {size} steps of "
                f"sample.sde_window_size and lie within the {sample.num_steps} of sample.num_steps; for instance "
                f"(0, {max(size, sample.num_steps // 2)})"
            )
        if train.num_steps != size:
            raise ValueError(
                f"train.num_steps={train.num_steps} must be the {size} of sample.sde_window_size, whose steps alone are "
                "stochastic; leave it 0"
            )
    elif tuple(sample.sde_window_range) != (0, 0):
        raise ValueError(
            f"sample.sde_window_range={tuple(sample.sde_window_range)} has no effect with sample.sde_window_size=0"
        )
    if not 0 < train.num_steps <= sample.num_steps:
        raise ValueError(
            f"train.num_steps={train.num_steps} must lie between 1 and the {sample.num_steps} steps of a rollout "
            "(sample.num_steps)"
        )
    if sample.sde == "cps" and train.beta > 0 and end == sample.num_steps:
        raise ValueError(
            f"train.num_steps={train.num_steps} and sample.sde_window_range={tuple(sample.sde_window_range)} take in the "
            "last step, where the noise of sample.sde=cps is 0 and its KL infinite; leave it out, or set train.beta=0"
        )


def _check_objective(config: ml_collections.ConfigDict) -> None:
    train = config.train
    if config.advantage.control != "none" and config.advantage.mode == "scalar":
        raise ValueError(
            f"advantage.control={config.advantage.control} changes maps, which advantage.mode=scalar does not use; set "
            "--config.advantage.control=none, or another mode"
        )
    if train.ratio == "image" and config.advantage.mode != "scalar":
        raise ValueError(
            f"train.ratio=image averages the tokens' advantages and would ignore advantage.mode={config.advantage.mode}; "
            "use train.ratio=gspo_token, or advantage.mode=scalar"
        )
    if train.ratio_norm and config.sample.sde != "flow":
        raise ValueError(
            f"train.ratio_norm=True needs sample.sde=flow, got {config.sample.sde}: it rescales by the Gaussian's std"
        )
    if train.skip_zero_advantages and train.beta > 0:
        raise ValueError(
            f"train.skip_zero_advantages=True would drop the KL of images without advantage, and train.beta={train.beta} "
            "is above 0; set one of them to nothing"
        )
    if not 0 <= train.spatial_kl <= 1:
        raise ValueError(f"train.spatial_kl={train.spatial_kl} must lie between 0 (all tokens alike) and 1")
    if train.spatial_kl > 0 and train.beta == 0:
        raise ValueError(f"train.spatial_kl={train.spatial_kl} has no effect with train.beta=0")


def _field(config: ml_collections.ConfigDict, path: str):
    for name in path.split("."):
        config = config[name]
    return config
