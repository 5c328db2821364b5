"""The part of a pipeline's transformer that is trained: a LoRA beside the frozen weights, or all weights.

Both adapters have the same methods. Within the context of `without()` the network is the base model, if `keep_base()` was
called before the weights changed. `state()` returns the weights by name, as they lie in this process. `load` and `save`
take whole tensors; `save` writes a folder that diffusers reads.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from flow_grpo.training.policies.lora_linear import LoraLinear
from flow_grpo.training.shards import own_parts, parts_like

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"  # the name that diffusers gives a model's weights


def lora_config(rank: int, alpha: int, targets: Sequence[str], excluded: Sequence[str] = ()) -> LoraConfig:
    """peft's configuration of a LoRA whose layers are `LoraLinear`. targets, excluded: see `LoraAdapter`."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        init_lora_weights="gaussian",
        target_modules=list(targets),
        exclude_modules=list(excluded) or None,
    )
    config._register_custom_module({nn.Linear: LoraLinear})  # documented by peft, in spite of its underscore
    return config


class LoraAdapter:
    """LoRA in fp32 on some layers.

    targets: how the names of the adapted layers end. excluded: names of layers that are not adapted although they match.
    """

    name = "lora"

    def __init__(
        self, pipeline: DiffusionPipeline, targets: Sequence[str], excluded: Sequence[str], rank: int, alpha: int
    ):
        self.pipeline, self.network = pipeline, pipeline.transformer
        self.config = lora_config(rank, alpha, targets, excluded)
        self.network.add_adapter(self.config)
        for parameter in self.network.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()  # AdamW loses small updates in half precision

    def keep_base(self) -> None:
        """Nothing to do: the base model's weights stay as they are."""

    @contextmanager
    def without(self) -> Iterator[None]:
        # On the bare network: DDP's wrapper has the same layers, so this works with and without it.
        self.network.disable_lora()
        try:
            yield
        finally:
            self.network.enable_lora()

    def state(self) -> dict[str, torch.Tensor]:
        return get_peft_model_state_dict(self.network)

    def load(self, state: dict[str, torch.Tensor]) -> None:
        _copy_into(self.state(), state)

    def save(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write a LoRA that any pipeline's `load_lora_weights(folder)` reads.

        The scale alpha / rank is multiplied into the weights, and the file's header says alpha = rank. Some readers ignore
        the header and use scale 1; so they get the right result, too.
        """
        rank, scale = self.config.r, self.config.lora_alpha / self.config.r
        layers = {name: (tensor * scale if ".lora_B." in name else tensor).cpu() for name, tensor in state.items()}
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=self.config.to_dict() | {"lora_alpha": rank},
        )


class FullAdapter:
    """All weights, in fp32.

    frozen: names of layers that have no gradient and stay as they are.
    """

    name = "transformer"

    def __init__(self, pipeline: DiffusionPipeline, frozen: Sequence[str]):
        self.pipeline, self.network = pipeline, pipeline.transformer.float()
        self.network.requires_grad_(True)
        for name in frozen:
            self.network.get_submodule(name).requires_grad_(False)
        self._config = self.network.to_json_string()  # with the name of its class, which FSDP2 will change
        self._base: list[torch.Tensor] | None = None  # the base weights, this process's parts of them

    def keep_base(self) -> None:
        """Copy the weights: four bytes for each, which a run without a KL does not need."""
        self._base = [part.clone() for part in self._parts()]

    @contextmanager
    def without(self) -> Iterator[None]:
        if self._base is None:
            raise RuntimeError("the base model's weights are not kept; call keep_base() before they change")
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _parts(self) -> list[torch.Tensor]:
        return own_parts([parameter for parameter in self.network.parameters() if parameter.requires_grad])

    @torch.no_grad()
    def _exchange(self) -> None:
        """Exchange the present weights and the base's, tensor by tensor, so that no third copy is needed.

        It writes to `.data`, which autograd does not see. Autograd may hold weights for a later backward pass, and by then
        they have their values again.
        """
        for part, base in zip(self._parts(), self._base, strict=True):
            present = part.clone()
            part.data.copy_(base)
            base.copy_(present)

    def state(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict()

    def load(self, state: dict[str, torch.Tensor]) -> None:
        _copy_into(self.state(), state)

    def save(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write a folder that `from_pretrained` of the transformer's class reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / self.network.config_name).write_text(self._config, encoding="utf-8")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})

    def save_pipeline(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """Write the whole pipeline with these weights, as `DiffusionPipeline.from_pretrained(folder)` reads it."""
        self.pipeline.save_config(folder)
        for name, component in self.pipeline.components.items():
            if component is not self.network and hasattr(component, "save_pretrained"):
                component.save_pretrained(folder / name)
        self.save(folder / "transformer", state)


@torch.no_grad()
def _copy_into(current: dict[str, torch.Tensor], state: dict[str, torch.Tensor]) -> None:
    shapes, own = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (state, current))
    if shapes != own:
        odd = sorted(name for name, _ in shapes.items() ^ own.items())[:3]
        raise ValueError(f"these weights belong to another model, LoRA rank or set of targets; e.g. {odd}")
    for name, tensor in state.items():
        current[name].copy_(parts_like(tensor, current[name]))
