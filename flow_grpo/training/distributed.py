"""The processes of a run: who is who, and what they tell each other. No other file says rank."""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy


class Distributed:
    """A thin face over accelerate: one process or many, on CPUs or GPUs, the trainer's code is the same.

    mixed_precision: "no", "fp16" or "bf16".
    """

    def __init__(self, mixed_precision: str = "no"):
        self.accelerator = Accelerator(
            cpu=_stays_on_cpu(),
            mixed_precision=mixed_precision,
            # Rollouts call the wrapped model without gradients; broadcasting buffers would make each a collective.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if parse_flag_from_env("ACCELERATE_USE_FSDP") and self.num_processes > 1:
            self._shard()

    def _shard(self) -> None:
        """Make accelerate prepare the network by FSDP2, as the launcher's configuration asks."""
        plugin = FullyShardedDataParallelPlugin()  # reads what the launcher says
        if plugin.fsdp_version != 2:
            raise ValueError("fsdp_version 1 is not supported; launch with fsdp_version: 2")
        # The weights have the types they need, and autocast does the rest; FSDP2 would round the timesteps to half, too.
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        state = self.accelerator.state
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState().distributed_type = (
            DistributedType.FSDP
        )  # on CPUs it would stay with DDP

    @staticmethod
    def launched_processes() -> int:
        """How many processes the launcher started, known before the run is set up."""
        return PartialState(cpu=_stays_on_cpu()).num_processes

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def num_processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def prepare(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call instead of the network, and the optimizer of its weights; the network's parameters may be others."""
        module, optimizer = self.accelerator.prepare(network, optimizer)
        if self.accelerator.distributed_type == DistributedType.FSDP:
            module.forward = self.accelerator.autocast()(module.forward)  # which accelerate does, but not with FSDP2
        return module, optimizer

    def begin_accumulation(self, num_passes: int) -> None:
        """The next num_passes backward passes make one optimizer step; the same number in every process."""
        self.accelerator.gradient_accumulation_steps = num_passes
        self.accelerator.step = 0  # its count of the passes so far

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate every process's (B, ...) in order of rank; B must be the same everywhere."""
        return self.accelerator.gather(tensor)

    def gather_objects(self, value: Any) -> list:
        """Every process's picklable value, in order of rank."""
        return gather_object([value])

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process; all must ask."""
        if self.num_processes == 1:
            return flag
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def peak_memory_gib(self) -> float | None:
        """The most GPU memory that this process has held since it last asked; None on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def scaler_state(self) -> dict | None:
        """The loss scale of fp16 training; None where there is none."""
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler else None

    def load_scaler_state(self, state: dict | None) -> None:
        if state and self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state)

    def wait_for_everyone(self) -> None:
        self.accelerator.wait_for_everyone()


def _stays_on_cpu() -> bool:
    """Whether `accelerate launch --cpu` asked for it, or there is nothing else.

    accelerate must be told: PartialState, asked first, overlooks both, and every process then believes that it is alone.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
