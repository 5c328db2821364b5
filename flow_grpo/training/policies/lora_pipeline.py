"""What the families share: a frozen diffusers pipeline, and LoRA on its transformer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import nn
from torch.utils._pytree import tree_map_only

from flow_grpo.training.policies.base import PromptEmbeds
from flow_grpo.training.shards import parts_like, whole

# SD3.5 has three kinds of blocks, each compiled with the adapter and without it, and the first block once more: its input
# needs no gradient. That is 7, and again for another batch size; beyond torch's own limit of 8 a block would run uncompiled.
RECOMPILE_LIMIT = 64


class LoraPipeline:
    """The part of a `Policy` that is the same in every family.

    A family adds `encode_prompts`, `sigmas`, `predict` and `to_tokens`, and `decode` where its VAE wants it otherwise.

    lora_targets: ends of the names of the adapted layers. patch_size: latents along a token's side. resolution: of the
    square images, in pixels. guidance_scale: of classifier-free guidance, see `velocity`; 1 leaves it out. lora_excluded:
    names of layers that are not adapted although they are targets. The frozen weights keep the pipeline's dtype; the
    adapter is fp32, and so is the VAE.
    Raises ValueError where the resolution does not fall into whole tokens.
    """

    pipeline_class: type[DiffusionPipeline]
    empty_prompt = ""  # what classifier-free guidance leads away from

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        lora_targets: list[str],
        patch_size: int,
        resolution: int,
        lora_rank: int,
        lora_alpha: int,
        device: str | torch.device,
        guidance_scale: float = 1.0,
        lora_excluded: Sequence[str] = (),
    ):
        pixels_per_token = pipeline.vae_scale_factor * patch_size
        if resolution % pixels_per_token:
            raise ValueError(f"resolution={resolution} must be a multiple of {pixels_per_token}, the pixels of a token")
        self.token_grid = (resolution // pixels_per_token,) * 2
        self.patch_size = patch_size
        self.pipeline = pipeline
        self.device = torch.device(device)

        pipeline.to(self.device)
        pipeline.vae.to(torch.float32)
        pipeline.vae.enable_slicing()  # one image at a time: in fp32 the decoder's activations are large
        for component in pipeline.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False).eval()
        self.network = pipeline.transformer
        self.lora_config = LoraConfig(
            r=lora_rank,
            lora_alpha=lora_alpha,
            init_lora_weights="gaussian",
            target_modules=lora_targets,
            exclude_modules=list(lora_excluded) or None,
        )
        self.network.add_adapter(self.lora_config)
        for parameter in self.trainable_parameters():
            parameter.data = parameter.data.float()  # AdamW loses small updates in half precision
        self.forward_module = self.network
        self.guidance_scale = guidance_scale
        self._no_prompt: PromptEmbeds | None = None  # encoded when it is first asked for

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The model's velocity (B, ...), in fp32, for one prompt per latent: no guidance yet."""
        raise NotImplementedError

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The model's velocity with classifier-free guidance of scale g:

            v = v_empty + g (v_prompt - v_empty)

        Both come from one pass of twice the batch, the prompts first. A scale of 1 needs no second half.
        """
        if self.guidance_scale == 1:
            return self.predict(latents, sigma, embeds)
        if self._no_prompt is None:
            self._no_prompt = self.encode_prompts([self.empty_prompt])
        empty = self._no_prompt.map(lambda tensor: tensor.expand(len(latents), *tensor.shape[1:]))
        both = self.predict(torch.cat([latents, latents]), sigma, PromptEmbeds.cat([embeds, empty]))
        return self.guide(*both.chunk(2))

    def guide(self, conditional: torch.Tensor, unconditional: torch.Tensor) -> torch.Tensor:
        return unconditional + self.guidance_scale * (conditional - unconditional)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [0, 1], fp32, of the VAE's latents (B, C, h, w)."""
        vae = self.pipeline.vae
        latents = latents.float() / vae.config.scaling_factor + vae.config.shift_factor
        images = vae.decode(latents, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        # On the bare network: its layers are the wrapper's too, so the context holds with and without DDP.
        self.network.disable_lora()
        try:
            yield
        finally:
            self.network.enable_lora()

    def lora_state(self) -> dict[str, torch.Tensor]:
        return {name: whole(tensor) for name, tensor in get_peft_model_state_dict(self.network).items()}

    @torch.no_grad()
    def load_lora_state(self, state: dict[str, torch.Tensor]) -> None:
        current = get_peft_model_state_dict(self.network)  # the weights themselves, not copies
        if state.keys() != current.keys():
            odd = sorted(state.keys() ^ current.keys())[:3]
            raise ValueError(f"these LoRA weights belong to another model or another set of targets; e.g. {odd}")
        for name, tensor in state.items():
            current[name].copy_(parts_like(tensor, current[name]))

    def save_lora(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        """The scale alpha / rank goes into the weights, and the file's header says alpha = rank.

        Not every reader knows the header: a file read as tensors would otherwise act at scale 1.
        """
        rank, scale = self.lora_config.r, self.lora_config.lora_alpha / self.lora_config.r
        layers = {name: (tensor * scale if ".lora_B." in name else tensor).cpu() for name, tensor in state.items()}
        self.pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=layers,
            transformer_lora_adapter_metadata=self.lora_config.to_dict() | {"lora_alpha": rank},
        )

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    def compile(self, backend: str | Callable = "inductor") -> None:
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
        for blocks in self.network.children():
            if isinstance(blocks, nn.ModuleList):  # the transformer's stacks, of blocks alike
                for block in blocks:
                    # dynamic=False: an evaluation's smaller last batch would make every later graph one for any size
                    block.compile(backend=backend, dynamic=False)
        self.network.forward = _with_gradients(self.network.forward)


def _with_gradients(forward: Callable[..., tuple[torch.Tensor]]) -> Callable[..., tuple[torch.Tensor]]:
    """The same forward, always with gradients inside, so that sampling runs the very graphs of the update.

    A graph for inference is fused, and in half precision rounded, in other ways: the ratio would not start at 1. What
    it keeps for a backward pass that never comes is the update's own memory, free again when it returns.
    """

    @wraps(forward)
    def run(*args, **kwargs):
        with torch.enable_grad():
            outputs = forward(*args, **kwargs)
        return outputs if torch.is_grad_enabled() else tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)

    return run
