"""The processes of a run: who is who, and what they tell each other. No other file says rank."""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    gather_object,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from flow_grpo.training.policies.load import WEIGHT_DTYPES
from flow_grpo.training.shards import whole


class Distributed:
    """A thin face over accelerate: one process or many, on CPUs or GPUs, the trainer's code is the same.

    mixed_precision: "no", "fp16" or "bf16".
    """

    def __init__(self, mixed_precision: str = "no"):
        self.mixed_precision = mixed_precision
        self.launched_processes()  # joins the others; a process alone on a CPU has no group to join
        joined = torch.distributed.is_initialized()
        self.accelerator = Accelerator(
            cpu=_stays_on_cpu(),
            mixed_precision=mixed_precision,
            # Rollouts call the wrapped model without gradients; broadcasting buffers would make each a collective.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.scaler = self.accelerator.scaler  # of fp16 training's loss; None where there is none
        if joined and parse_flag_from_env("ACCELERATE_USE_FSDP"):
            self.accelerator.state.fsdp_plugin = _fsdp2_plugin()
            self._choose(DistributedType.FSDP)

    def _choose(self, kind: DistributedType) -> None:
        """What accelerate does by itself on GPUs; on CPUs it would stay with DDP."""
        # Both: each AcceleratorState that accelerate makes on its way takes PartialState's over.
        PartialState().distributed_type = self.accelerator.state.distributed_type = kind

    @staticmethod
    def launched_processes() -> int:
        """How many processes the launcher started, known before the run is set up."""
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                "DeepSpeed is not supported; launch with scripts/accelerate/fsdp2.yaml, which does as much"
            )
        return PartialState(cpu=_stays_on_cpu()).num_processes

    @property
    def _kind(self) -> DistributedType:
        return self.accelerator.distributed_type

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

    def prepare(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
    ) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What to call instead of the network, and the optimizer of its weights.

        Ask the network for its parameters again: FSDP2 replaces them.
        """
        self.max_grad_norm = max_grad_norm
        if self._kind == DistributedType.FSDP and self.mixed_precision != "no":
            # Alone and with DDP accelerate does so by itself.
            network.forward = torch.autocast(self.device.type, WEIGHT_DTYPES[self.mixed_precision])(network.forward)
        return self.accelerator.prepare(network, optimizer)

    def begin_accumulation(self, num_passes: int) -> None:
        """The next num_passes backward passes make one optimizer step; the same number in every process."""
        self.accelerator.gradient_accumulation_steps = num_passes
        self.accelerator.step = 0  # its count of the passes so far

    def clip_gradients(self, parameters: Sequence[nn.Parameter]) -> torch.Tensor:
        """Their norm before it is clipped to max_grad_norm, 0-dim."""
        # Not accelerate's clip_grad_norm_: with FSDP2 it would undo the loss scale twice.
        self.accelerator.unscale_gradients()
        return whole(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate every process's (B, ...) in order of rank; B must be the same everywhere."""
        return self.accelerator.gather(tensor)

    def gather_objects(self, value: Any) -> list:
        """Every process's picklable value, in order of rank."""
        return gather_object([value])

    def settle(self, error: Exception | None) -> None:
        """Raise in every process where any has an error: its own there, elsewhere one that quotes it; all must call."""
        errors = self.gather_objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(errors):
            if text is not None:
                raise RuntimeError(f"process {rank} of this run failed: {text}")

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
        """The loss scale of fp16 training, as torch's GradScaler has it; None where there is none."""
        return self.scaler.state_dict() if self.scaler else None

    def load_scaler_state(self, state: dict | None) -> None:
        if state and self.scaler:
            self.scaler.load_state_dict(state)

    def wait_for_everyone(self) -> None:
        self.accelerator.wait_for_everyone()


def _fsdp2_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 as the launcher's configuration asks for it."""
    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher says
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version {plugin.fsdp_version} is not supported; launch with fsdp_version: 2")
    # The weights have the types they need, and autocast does the rest; FSDP2 would round the timesteps to half, too.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin


def _stays_on_cpu() -> bool:
    """Whether `accelerate launch --cpu` asked for it, or there is nothing else.

    accelerate must be told: PartialState, asked first, overlooks both, and every process then believes that it is alone.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
