"""The processes of a run: who is who, and what they tell each other. No other file says rank."""

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import gather_object, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.nn.parallel import DistributedDataParallel

from flow_grpo.training.failures import FailedElsewhere
from flow_grpo.training.precision import WEIGHT_DTYPES
from flow_grpo.training.shards import whole

# How long a process waits for the others, which may have a model to download at the start, or a large checkpoint to write
# to a slow disk. torch's own ten minutes on GPUs would end such a run. One that has lost a process is ended by its launcher.
PATIENCE = timedelta(hours=1)


class Distributed:
    """A thin layer over accelerate. The trainer's code is the same for one process or many, on CPUs or GPUs.

    mixed_precision: "no", "fp16" or "bf16".
    """

    def __init__(self, mixed_precision: str = "no"):
        self.mixed_precision = mixed_precision
        self.launched_processes()  # joins the other processes; a single process on a CPU has no group
        joined = torch.distributed.is_initialized()
        self.accelerator = Accelerator(
            cpu=_stays_on_cpu(),
            mixed_precision=mixed_precision,
        )
        self.scaler = self.accelerator.scaler  # scales the loss of fp16 training; None without fp16
        if joined and parse_flag_from_env("ACCELERATE_USE_FSDP"):
            self.accelerator.state.fsdp_plugin = fsdp2_plugin()
            self._choose(DistributedType.FSDP)

    def _choose(self, kind: DistributedType) -> None:
        """Set the kind of distribution. accelerate does so by itself on GPUs, but on CPUs it would stay with DDP."""
        # Set both: accelerate makes new AcceleratorStates later, and each copies the value of PartialState.
        PartialState().distributed_type = self.accelerator.state.distributed_type = kind

    @staticmethod
    def launched_processes() -> int:
        """How many processes the launcher started. It can be asked before the run is set up."""
        if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
            raise ValueError(
                "DeepSpeed is not supported; launch with scripts/accelerate/fsdp2.yaml, which does as much"
            )
        return PartialState(cpu=_stays_on_cpu(), timeout=PATIENCE).num_processes

    @staticmethod
    def speaks() -> bool:
        """Whether this process prints what all processes of its machine would print. It can be asked at any time."""
        return os.environ.get("LOCAL_RANK", "0") == "0"

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
        """Returns what to call instead of the network, and the optimizer of its weights.

        Ask the network for its parameters again afterwards, since FSDP2 replaces them.
        """
        self.max_grad_norm = max_grad_norm
        if self._kind == DistributedType.FSDP and self.mixed_precision != "no":
            # For one process and for DDP, accelerate does this by itself.
            network.forward = torch.autocast(self.device.type, WEIGHT_DTYPES[self.mixed_precision])(network.forward)
        network, optimizer = self.accelerator.prepare(network, optimizer)
        if isinstance(network, FSDPModule):
            # Also the outermost layers, which FSDP2 would keep whole after a forward pass: the next pass would then not
            # see weights that were exchanged in between, for the average or for the base model.
            network.set_reshard_after_forward(True)
        if isinstance(network, DistributedDataParallel):
            # Rollouts call the network without gradients. DDP would send its buffers, which never change, at each call.
            network.forward_sync_buffers = False
        return network, optimizer

    def begin_accumulation(self, num_passes: int) -> None:
        """Make one optimizer step of the next num_passes backward passes. Every process gives the same number."""
        self.accelerator.gradient_accumulation_steps = num_passes
        self.accelerator.step = 0  # its count of the passes so far

    def clip_gradients(self, parameters: Sequence[nn.Parameter]) -> torch.Tensor:
        """Clip the gradients to max_grad_norm. Returns their norm before that, 0-dim."""
        # Not accelerate's clip_grad_norm_: with FSDP2 it would undo the loss scale twice.
        self.accelerator.unscale_gradients()
        return whole(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm))

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Concatenate the (B, ...) of all processes in order of rank. B must be the same everywhere."""
        return self.accelerator.gather(tensor)

    def gather_objects(self, value: Any) -> list:
        """Every process's picklable value, in order of rank."""
        return gather_object([value])

    def settle(self, error: Exception | None) -> None:
        """Raise in every process if any has an error. Every process must call it.

        A process with an error raises that; the others raise FailedElsewhere, which quotes it.
        """
        errors = self.gather_objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, text in enumerate(errors):
            if text is not None:
                raise FailedElsewhere(f"process {rank} of this run failed: {text}")

    def any(self, flag: bool) -> bool:
        """Whether the flag is True in any process. Every process must call it."""
        if self.num_processes == 1:
            return flag
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def peak_memory_gib(self) -> float | None:
        """The most GPU memory that this process has held since the last call; None on a CPU."""
        if self.device.type != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated(self.device) / 2**30
        torch.cuda.reset_peak_memory_stats(self.device)
        return peak

    def scaler_state(self) -> dict | None:
        """The state of torch's GradScaler, which holds the loss scale of fp16 training; None without fp16."""
        return self.scaler.state_dict() if self.scaler else None

    def load_scaler_state(self, state: dict | None) -> None:
        if state and self.scaler:
            self.scaler.load_state_dict(state)

    def wait_for_everyone(self) -> None:
        self.accelerator.wait_for_everyone()

    def leave(self) -> None:
        """Close the connections between the processes, once all have come here: one that ends late would abort on a lost one."""
        self.wait_for_everyone()
        PartialState().destroy_process_group()


def fsdp2_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2, set as the launcher's configuration says."""
    plugin = FullyShardedDataParallelPlugin()  # reads what the launcher says
    if plugin.fsdp_version != 2:
        raise ValueError(f"fsdp_version {plugin.fsdp_version} is not supported; launch with fsdp_version: 2")
    if plugin.reshard_after_forward is not True:
        raise ValueError(
            "fsdp_reshard_after_forward: false would keep old weights for the next forward pass, and a run puts the "
            "average and the base model in their place; launch with fsdp_reshard_after_forward: true"
        )
    # No policy: the weights have the right types, and autocast does the rest. FSDP2 would round the timesteps, too.
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    return plugin


def _stays_on_cpu() -> bool:
    """Whether the run stays on CPUs: `accelerate launch --cpu` asked for it, or there is no other device.

    accelerate must be told. PartialState, which is asked first, overlooks both cases, and then every process believes that
    it is the only one.
    """
    return parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
