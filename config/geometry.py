"""How an epoch's images fall into groups, batches and updates, for any number of GPUs."""

import math
from dataclasses import dataclass

import ml_collections

# Flow-GRPO's published OCR runs of SD3.5-medium: processes -> (groups per epoch, images per group, images per batch).
PUBLISHED = {1: (8, 8, 8), 4: (16, 16, 8), 32: (48, 24, 9)}
# Any other number of processes takes the epoch of the run on 32, in batches of this size or the next smaller that divides it.
NUM_GROUPS, GROUP_SIZE, BATCH_SIZE = PUBLISHED[32]


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


def fill_in(config: ml_collections.ConfigDict) -> None:
    """Give num_groups, group_size and batch_size their values where they are 0.

    All three at 0 take the published run of that number of processes, where there is one. Otherwise each takes its own
    default, and num_groups grows until the epoch divides among the processes.
    """
    sizes = (config.num_groups, config.group_size, config.batch_size)
    if sizes == (0, 0, 0) and config.num_gpus in PUBLISHED:
        config.num_groups, config.group_size, config.batch_size = PUBLISHED[config.num_gpus]
        return
    config.group_size = config.group_size or GROUP_SIZE
    if not config.num_groups:
        config.num_groups = _next_number_of_groups(config, NUM_GROUPS, config.batch_size or 1)
    if not config.batch_size:
        # without one that divides, geometry_of says what to do
        config.batch_size = max((b for b in range(1, BATCH_SIZE + 1) if divides(config, b)), default=BATCH_SIZE)


def geometry_of(config: ml_collections.ConfigDict) -> Geometry:
    """The geometry of a filled-in configuration. Raises ValueError with a number that works where it does not divide."""
    if config.group_size < 2:
        raise ValueError(f"group_size={config.group_size} compares no siblings; use 2 or more")
    names = ("num_groups", "group_size", "batch_size", "updates_per_epoch")
    geometry = Geometry(num_processes=config.num_gpus, **{name: config[name] for name in names})
    if not divides(config, config.batch_size):
        fitting = [b for b in range(1, 65) if divides(config, b)]
        if fitting:
            advice = f"batch_size={min(fitting, key=lambda b: (abs(b - config.batch_size), b))}"
        else:
            advice = f"num_groups={_next_number_of_groups(config, config.num_groups, config.batch_size)}"
        stride = config.num_gpus * config.batch_size * config.updates_per_epoch
        raise ValueError(
            f"num_groups * group_size = {config.num_groups} * {config.group_size} = {geometry.num_samples} images do not "
            f"divide into num_gpus * batch_size * updates_per_epoch = {config.num_gpus} * {config.batch_size} * "
            f"{config.updates_per_epoch} = {stride}; try {advice}"
        )
    return geometry


def divides(config: ml_collections.ConfigDict, batch_size: int) -> bool:
    stride = config.num_gpus * batch_size * config.updates_per_epoch
    return config.num_groups * config.group_size % stride == 0


def _next_number_of_groups(config: ml_collections.ConfigDict, num_groups: int, batch_size: int) -> int:
    """The smallest number of groups, num_groups or more, whose images divide."""
    stride = config.num_gpus * batch_size * config.updates_per_epoch
    step = stride // math.gcd(stride, config.group_size)
    return -(-num_groups // step) * step
