"""What the families share: a diffusers pipeline, and the training of a LoRA or of all weights of its transformer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import PreTrainedTokenizerBase

from flow_grpo.training.image_size import Resolution, image_size
from flow_grpo.training.policies.adapter import FullAdapter, LoraAdapter
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.schedule import linear_shift, scheduler_sigmas

# A block has graphs of its own with and without the adapter, and for each size of images; of SD3.5's three kinds of blocks
# there are 7 graphs per size. torch runs a block uncompiled, and says nothing, once it has 8. No run reaches this number.
RECOMPILE_LIMIT = 1_000_000


class LoraPipeline:
    """The part of a `Policy` that is the same in every family.

    A family adds the attributes below, and `latent_shape`, `encode_prompts`, `predict` and `to_tokens`. Where its scheduler
    or its VAE needs it, it has its own `sigmas` or `decode`. The frozen weights keep the pipeline's dtype; the adapter and the VAE are fp32.
    Raises ValueError where the resolution is not a whole number of tokens.
    """

    pipeline_class: type[DiffusionPipeline]
    lora_targets: list[str]  # how the names of the adapted layers end
    patch_size = 2  # latents per side of a token
    empty_prompt = ""  # the unconditional prompt of classifier-free guidance

    def __init__(self, pipeline: DiffusionPipeline, settings: PolicySettings):
        self.pipeline, self.device = pipeline, torch.device(settings.device)
        self.network = self.forward_module = pipeline.transformer
        self.guidance_scale = settings.guidance_scale
        self.max_sequence_length = settings.max_sequence_length
        self.set_resolution(settings.resolution)
        self._no_prompt: PromptEmbeds | None = None  # the empty prompt, encoded at its first use

        pipeline.vae.to(torch.float32)
        pipeline.vae.enable_slicing()  # one image at a time: in fp32 the decoder's activations are large
        for component in self._modules():
            component.requires_grad_(False).eval()
        self.encode_prompts = _one_by_one(self.encode_prompts)
        if settings.offload:
            self.network.to(self.device)
            self._let_others_wait()
        else:
            pipeline.to(self.device)
        self.adapter = (
            FullAdapter(pipeline, self.lora_excluded())
            if settings.adapter == "full"
            else LoraAdapter(
                *(pipeline, self.lora_targets, self.lora_excluded(), settings.lora_rank, settings.lora_alpha)
            )
        )

    def lora_excluded(self) -> list[str]:
        """Names of layers that are not trained although they are targets, because they have no gradient."""
        return []

    def _modules(self) -> list[nn.Module]:
        return [component for component in self.pipeline.components.values() if isinstance(component, nn.Module)]

    def _let_others_wait(self) -> None:
        """Wrap `encode_prompts` and `decode`. The modules that they need are then on the device only while they run."""
        encoders = [part for part in self._modules() if part not in (self.network, self.pipeline.vae)]
        self.encode_prompts = _awake(self.encode_prompts, encoders, self.device)
        self.decode = _awake(self.decode, [self.pipeline.vae], self.device)

    def set_resolution(self, resolution: Resolution) -> None:
        pixels = self.pipeline.vae_scale_factor * self.patch_size  # per side of a token
        height, width = image_size(resolution)
        if height % pixels or width % pixels:
            raise ValueError(f"resolution={resolution} must be a multiple of {pixels}, the pixels of a token")
        self.token_grid = (height // pixels, width // pixels)

    def num_tokens(self, prompt: str) -> int:
        """See `Policy`. A family whose pipeline writes words around a prompt, or has several tokenizers, counts otherwise."""
        return len(self.pipeline.tokenizer(prompt).input_ids)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        scheduler, (rows, columns) = self.pipeline.scheduler, self.token_grid
        return scheduler_sigmas(scheduler, num_steps, linear_shift(scheduler.config, rows * columns), self.device)

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The model's velocity (B, ...) in fp32, before guidance. embeds: one prompt per latent."""
        raise NotImplementedError

    def velocity(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        """The model's velocity with classifier-free guidance of scale g:

            v = v_empty + g (v_prompt - v_empty)

        Both come from one pass with twice the batch, whose first half has the prompts. A scale of 1 needs no second half.
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
        """Decode the VAE's latents (B, C, h, w) to images (B, 3, H, W) in [0, 1], fp32."""
        vae = self.pipeline.vae
        latents = latents.float() / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        latents = latents.contiguous(memory_format=torch.channels_last)  # in which convolutions are a third faster
        images = vae.decode(latents, return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def keep_base(self) -> None:
        self.adapter.keep_base()

    def disable_adapter(self) -> AbstractContextManager[None]:
        return self.adapter.without()

    def trained_names(self) -> list[str]:
        trained = (name for name, parameter in self.network.named_parameters() if parameter.requires_grad)
        return [name.replace(".default.", ".") for name in trained]  # peft puts its adapter's name there

    def loaded_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for component, module in self.pipeline.components.items():
            if isinstance(module, nn.Module):
                for name, parameter in module.named_parameters():
                    if ".lora_" not in name:
                        yield f"{component}.{name.replace('.base_layer', '')}", parameter

    def adapter_state(self) -> dict[str, torch.Tensor]:
        return self.adapter.state()

    def load_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        self.adapter.load(state)

    def save_adapter(self, folder: Path, state: dict[str, torch.Tensor]) -> None:
        self.adapter.save(folder, state)

    def enable_gradient_checkpointing(self) -> None:
        self.network.enable_gradient_checkpointing()

    def compile(self, backend: str | Callable = "inductor") -> None:
        torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
        torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
        for blocks in self.network.children():
            if isinstance(blocks, nn.ModuleList):  # the transformer's stacks of equal blocks
                for block in blocks:
                    # dynamic=False: otherwise a second batch size would make torch compile later graphs for any size
                    block.compile(backend=backend, dynamic=False)
        self.network.forward = _with_gradients(self.network.forward)


class PackedPipeline(LoraPipeline):
    """A family that packs its latents: they are (B, N, D), tokens already."""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        rows, columns = self.token_grid
        return rows * columns, self.network.config.in_channels

    def to_tokens(self, latents: torch.Tensor) -> torch.Tensor:
        return latents


def pipeline_folder(pipeline_class: type[DiffusionPipeline], model: str) -> Path:
    """The folder of a pipeline. model: the folder itself, or a hub id, which is downloaded unless the cache has it."""
    return Path(model) if Path(model).is_dir() else Path(pipeline_class.download(model))


def padded_embeds(tokens: torch.Tensor, mask: torch.Tensor | None, length: int) -> PromptEmbeds:
    """Tokens (B, L, D) and their mask (B, L) with padding up to `length`. Without a mask all prompts have length L.

    One length for every batch: another length may run other kernels, and the ratio would not start at exactly 1.
    """
    batch, own_length, width = tokens.shape
    if mask is None:
        mask = tokens.new_ones(batch, own_length)
    missing = length - own_length
    return PromptEmbeds(
        tokens=torch.cat([tokens, tokens.new_zeros(batch, missing, width)], dim=1),
        mask=torch.cat([mask.bool(), mask.new_zeros(batch, missing).bool()], dim=1),
    )


def num_chat_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, enable_thinking: bool) -> int:
    """The tokens of a conversation that begins with the prompt and waits for the answer, as Qwen3's template writes it."""
    message = {"role": "user", "content": prompt}
    options = dict(tokenize=False, add_generation_prompt=True, enable_thinking=enable_thinking)
    return len(tokenizer(tokenizer.apply_chat_template([message], **options)).input_ids)


def _one_by_one(encode: Callable[[list[str]], PromptEmbeds]) -> Callable[[list[str]], PromptEmbeds]:
    """The same function, with each prompt in a batch of its own.

    The last bit of an embedding depends on its batch, and a resumed run may have other batches.
    """

    @wraps(encode)
    def run(prompts: list[str]) -> PromptEmbeds:
        return PromptEmbeds.cat(encode([prompt]) for prompt in prompts)

    return run


def _awake(function: Callable, parts: list[nn.Module], device: torch.device) -> Callable:
    """The same function, with the parts on the device while it runs and on the CPU otherwise."""

    @wraps(function)
    def run(*args, **kwargs):
        try:
            for part in parts:
                part.to(device)
            return function(*args, **kwargs)
        finally:
            for part in parts:
                part.to("cpu")

    return run


def _with_gradients(forward: Callable[..., tuple[torch.Tensor]]) -> Callable[..., tuple[torch.Tensor]]:
    """The same forward, always with gradients inside, so that sampling runs exactly the graphs of the update.

    A graph for inference is fused in other ways, and so rounded in other ways in half precision; the ratio would not start
    at 1. The memory for the backward pass, which never comes, is no more than the update needs, and is free again when the
    forward returns.
    """

    @wraps(forward)
    def run(*args, **kwargs):
        with torch.enable_grad():
            outputs = forward(*args, **kwargs)
        return outputs if torch.is_grad_enabled() else tree_map_only(torch.Tensor, torch.Tensor.detach, outputs)

    return run
