"""Builds the parts of a run from a resolved configuration. The trainer's loop uses them as they are."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import ml_collections
import torch

from config import presets
from config.geometry import Geometry
from flow_grpo.rewards import WeightedScorers, make_scorers
from flow_grpo.training import start
from flow_grpo.training.checkpoint import Origin
from flow_grpo.training.credit import CreditRule, assign_credit
from flow_grpo.training.data import (
    GroupSampler,
    check_data,
    check_sizes,
    cut_prompts,
    load_metadata,
    load_prompts,
    load_sizes,
)
from flow_grpo.training.distributed import Distributed
from flow_grpo.training.ema import ExponentialMovingAverage
from flow_grpo.training.identity import weights_identity
from flow_grpo.training.image_size import image_size
from flow_grpo.training.modes import MODES
from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.load import load_policy
from flow_grpo.training.prompt_cache import PromptCache
from flow_grpo.training.records import Credit, Scored
from flow_grpo.training.update import Updater, UpdateRule

logger = logging.getLogger(__name__)


@dataclass
class Parts:
    """The parts of a run. Any part may be exchanged before the trainer runs.

    config: the resolved configuration.
    credit: takes the samples of all processes, the sigmas of the trained steps and the epoch's seed; returns the credit of
        the samples, and metrics.
    eval_sizes: (height, width) of each test prompt's images.
    gold: scorers that only evaluations run.
    uses_maps: whether anything uses maps.
    resume_path: the checkpoint to go on from; None starts anew.
    origin: where the weights come from, as the checkpoints record it.
    lock: the lock on the run's folder. The main process holds it until the run ends.
    """

    config: ml_collections.ConfigDict
    geometry: Geometry
    distributed: Distributed
    sampler: GroupSampler
    eval_prompts: list[str]
    eval_metadata: list[dict[str, Any]]
    eval_sizes: list[tuple[int, int]]
    scorers: WeightedScorers
    gold: WeightedScorers | None
    credit: Callable[[Scored, list[float], int], tuple[Credit, dict[str, float]]]
    policy: Policy
    uses_maps: bool
    optimizer: torch.optim.Optimizer
    ema: ExponentialMovingAverage
    updater: Updater
    resume_path: Path | None
    origin: Origin
    lock: TextIO | None

    @property
    def token_grid(self) -> tuple[int, int] | None:
        """(rows, columns) to pool maps to, at the policy's present size; None where nothing uses maps."""
        return self.policy.token_grid if self.uses_maps else None


def build(config: ml_collections.ConfigDict, geometry: Geometry, distributed: Distributed) -> Parts:
    """Build the parts of a run. The cheapest checks come first.

    config, geometry: as `config.validation.resolve` returns them.
    Raises ValueError for a folder that cannot be written or holds another run, prompts that cannot be read, a checkpoint of
    another configuration, and scorers that are unknown or do not return what the configuration needs.
    """
    lock = start.claimed_folder(config, distributed)
    try:
        return _build(config, geometry, distributed, lock)
    except BaseException:
        if lock is not None:
            lock.close()
        raise


def _build(
    config: ml_collections.ConfigDict, geometry: Geometry, distributed: Distributed, lock: TextIO | None
) -> Parts:
    check_sizes(partial(presets.check_images, config.preset), config.dataset)
    sampler = make_sampler(config, distributed.rank)
    identities = {"dataset": start.dataset_identity(config.dataset)}
    resume_path, origin = start.found_checkpoint(config, identities, distributed)
    # The scorers come before the weights: a missing engine should not cost a download.
    scorers, gold = _scorers(config, sampler, distributed)
    policy, identities["model"] = _policy(config, distributed.device)
    if (warning := check_lengths(policy, config)) and distributed.is_main:
        logger.warning(warning)
    origin = start.known_origin(config, resume_path, origin, identities, distributed)
    optimizer, ema, updater = _learning(config, policy, distributed)
    return Parts(
        config=config,
        geometry=geometry,
        distributed=distributed,
        sampler=sampler,
        **_held_out(config),
        scorers=scorers,
        gold=gold,
        credit=_credit(config, policy),
        policy=policy,
        uses_maps=bool(MODES[config.advantage.mode].map_kinds) or _spatial_kl(config) > 0,
        optimizer=optimizer,
        ema=ema,
        updater=updater,
        resume_path=resume_path,
        origin=origin,
        lock=lock,
    )


def _held_out(config: ml_collections.ConfigDict) -> dict[str, list]:
    """The test prompts of an evaluation, as the fields of `Parts` that hold them."""
    number, resolution = config.num_eval_prompts or None, config.eval_resolution or config.resolution
    return {
        "eval_prompts": load_prompts(config.dataset, "test")[:number],
        "eval_metadata": load_metadata(config.dataset, "test")[:number],
        "eval_sizes": load_sizes(config.dataset, "test", resolution)[:number],
    }


def _scorers(
    config: ml_collections.ConfigDict, sampler: GroupSampler, distributed: Distributed
) -> tuple[WeightedScorers, WeightedScorers | None]:
    """The trained and the gold scorers, checked against the prompts; the trained ones have also scored an image."""
    scorers = make_scorers(str(distributed.device), config.rewards.to_dict(), config.reward_options.to_dict())
    gold = gold_scorers(config, distributed.device)
    check_data(scorers, config.dataset, config.num_eval_prompts)
    for warning in scorers.training_warnings if distributed.is_main else ():
        logger.warning(warning)
    _try_scorers(scorers, config, sampler, distributed.device)
    return scorers, gold


def _learning(
    config: ml_collections.ConfigDict, policy: Policy, distributed: Distributed
) -> tuple[torch.optim.Optimizer, ExponentialMovingAverage, Updater]:
    """What changes the policy's weights, once the policy is prepared for its processes."""
    train = config.train
    optimizer = torch.optim.AdamW(
        policy.trainable_parameters(), lr=train.learning_rate, eps=train.adam_epsilon, weight_decay=train.weight_decay
    )
    policy.forward_module, optimizer = distributed.prepare(policy.network, optimizer, train.max_grad_norm)
    if train.beta > 0:
        policy.keep_base()  # of which the KL is
    ema = ExponentialMovingAverage(policy.trainable_parameters(), train.ema_decay, train.ema_every)
    rule = UpdateRule(**{field.name: train[field.name] for field in fields(UpdateRule)})
    return optimizer, ema, Updater(policy, optimizer, ema, distributed, rule)


def gold_scorers(config: ml_collections.ConfigDict, device: torch.device) -> WeightedScorers | None:
    """The scorers that evaluations run beside the trained ones; None without such scorers, or without evaluations."""
    options = config.eval_rewards.to_dict()
    if not options or not config.eval_every:
        return None
    gold = make_scorers(str(device), dict.fromkeys(options, 1.0), options)
    check_data(gold, config.dataset, config.num_eval_prompts, splits=("test",))
    return gold


def _credit(config: ml_collections.ConfigDict, policy: Policy) -> Callable[..., tuple[Credit, dict[str, float]]]:
    """`assign_credit`, with what it needs of the configuration, and the policy's token grid at the time of the call."""
    rewards, rule, spatial_kl = config.rewards.to_dict(), CreditRule(**config.advantage), _spatial_kl(config)

    def credit(scored: Scored, sigmas: list[float], seed: int) -> tuple[Credit, dict[str, float]]:
        return assign_credit(scored, sigmas, seed, rewards, rule, spatial_kl, policy.token_grid)

    return credit


def make_sampler(config: ml_collections.ConfigDict, rank: int = 0) -> GroupSampler:
    """The sampler of a resolved configuration's training prompts, for one of its processes."""
    return GroupSampler(
        load_prompts(config.dataset, "train"),
        num_groups=config.num_groups,
        group_size=config.group_size,
        batch_size=config.batch_size,
        seed=config.seed,
        rank=rank,
        num_processes=config.num_gpus,
        same_start=config.sample.same_start,
        metadata=load_metadata(config.dataset, "train"),
        sizes=load_sizes(config.dataset, "train", config.resolution),
    )


def _policy(config: ml_collections.ConfigDict, device: torch.device) -> tuple[Policy, str]:
    """The policy with its prompt cache, and the identity of its weights. Its LoRA starts the same in every process."""
    torch.manual_seed(config.seed)  # the LoRA's initial weights
    policy = load_policy(
        config.policy,
        config.model,
        config.mixed_precision,
        resolution=config.resolution,
        lora_rank=config.lora_rank,
        lora_alpha=config.lora_alpha,
        guidance_scale=config.sample.guidance_scale,
        max_sequence_length=config.max_sequence_length,
        device=device,
        offload=config.offload,
        adapter=config.train.adapter,
    )
    identity = weights_identity(policy.loaded_weights())
    # They raise ValueError for a size that the model cannot draw.
    check_sizes(policy.set_resolution, config.dataset)
    policy.set_resolution(config.eval_resolution or config.resolution)
    policy.set_resolution(config.resolution)
    policy.encode_prompts = PromptCache(
        policy.encode_prompts,
        device,
        identity=f"{config.policy} {identity} {config.max_sequence_length} {config.mixed_precision}",
        max_bytes=int(config.prompt_cache_gib * 2**30),
        folder=Path(config.prompt_cache) if config.prompt_cache else None,
    )
    if config.gradient_checkpointing:
        policy.enable_gradient_checkpointing()
    if config.compile:
        policy.compile()
    return policy, identity


def check_lengths(policy: Policy, config: ml_collections.ConfigDict) -> str | None:
    """What to say where the model does not see all of some prompts.

    Raises ValueError, with file and line, where the policy refuses such a prompt. A run would else meet it after hours.
    """
    cut = cut_prompts(policy.num_tokens, config.max_sequence_length, config.dataset)
    if cut is None:
        return None
    try:
        policy.encode_prompts([cut.prompt])
    except ValueError as error:
        raise ValueError(f"{cut.place}: {error}") from error
    return (
        f"prompts of more than max_sequence_length={config.max_sequence_length} tokens: {cut.number}; the model does not see "
        f"their ends; the longest has {cut.num_tokens} ({cut.place}); set --config.max_sequence_length={cut.num_tokens}, or "
        "shorten them"
    )


def _spatial_kl(config: ml_collections.ConfigDict) -> float:
    """train.spatial_kl; 0 where there is no KL that it could spread."""
    return config.train.spatial_kl if config.train.beta > 0 else 0.0


def _try_scorers(
    scorers: WeightedScorers, config: ml_collections.ConfigDict, sampler: GroupSampler, device: torch.device
) -> None:
    """Score one grey image. A scorer that fails on every image, or returns no map where one is needed, then fails now."""
    grey = torch.full((1, 3, *image_size(config.resolution)), 0.5, device=device)
    scores = scorers(grey, sampler.prompts[:1], sampler.metadata[:1])
    if failed := [name for name, score in scores.items() if not score.valid.all()]:
        raise RuntimeError(f"{', '.join(failed)} could not score a grey image; the log says why")
    mode, spatial_kl = config.advantage.mode, _spatial_kl(config)
    used = [name for name, weight in config.rewards.items() if weight > 0]
    kinds = {name: scores[name].map_kind for name in used if scores[name].map_kind is not None}
    needs = {
        f"advantage.mode={mode}": (MODES[mode].map_kinds, "advantage.mode=scalar"),
        f"train.spatial_kl={spatial_kl}": (spatial_kl > 0, "train.spatial_kl=0.0"),
    }
    for setting, (needed, without) in needs.items():
        if needed and not kinds:
            raise ValueError(
                f"{setting} needs a reward map, and none of {', '.join(used)} has one; set --config.{without}"
            )
    other = [name for name, kind in kinds.items() if MODES[mode].map_kinds and kind not in MODES[mode].map_kinds]
    if other:
        raise ValueError(
            f"advantage.mode={mode} takes maps of kind {', '.join(MODES[mode].map_kinds)}, and those of "
            f"{', '.join(other)} are of kind {kinds[other[0]]}; set --config.advantage.mode=weight"
        )
