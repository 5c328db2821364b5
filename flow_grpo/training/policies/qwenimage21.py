"""Qwen-Image 2.1 as a policy: any diffusers `QwenImage21Pipeline` from text to image, with LoRA on its attention and MLPs."""

import shutil
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import QwenImage21Pipeline
from transformers import AutoTokenizer, Qwen3VLProcessor

from flow_grpo.training.image_size import Resolution, image_size
from flow_grpo.training.patches import unpatchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import PackedPipeline, padded_embeds, pipeline_folder
from flow_grpo.training.policies.qwenimage import vae_latents
from flow_grpo.training.policies.schedule import linear_shift

LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("img_mlp.proj", "img_mlp.gate_layer", "img_mlp.out"),
]
TOKENS_PER_SLOT = 4  # the transformer's mask has one place per 2 x 2 tokens


class PromptProcessor(Qwen3VLProcessor):
    """The pipeline's processor for text alone. The whole processor needs torchvision, for films.

    folder: where the whole processor lies. Saving copies the folder, so nothing is lost.
    """

    def __init__(self, folder: Path):
        self.folder, self.tokenizer = folder, AutoTokenizer.from_pretrained(folder)

    def __call__(self, text, **options):
        return self.tokenizer(text, **options)

    def apply_chat_template(self, messages, **options):
        return [self.tokenizer.apply_chat_template(messages, **options)]  # a list, as of several conversations

    def save_pretrained(self, folder: Path, **options) -> None:
        if Path(folder).resolve() != self.folder.resolve():
            shutil.copytree(self.folder, folder, dirs_exist_ok=True)


class TextToImagePipeline(QwenImage21Pipeline):
    """Loads a `QwenImage21Pipeline` without torchvision. What it returns is of the parent's class."""

    @classmethod
    def from_pretrained(cls, model, **options) -> QwenImage21Pipeline:
        folder = pipeline_folder(QwenImage21Pipeline, model)
        processor = PromptProcessor(folder / "processor")
        pipeline = QwenImage21Pipeline.from_pretrained(folder, processor=processor, **options)
        # The published class, for the model_index.json that a run writes.
        pipeline.register_to_config(processor=("transformers", "Qwen3VLProcessor"))
        return pipeline


class RowAttention:
    """The transformer's own block-causal attention, but each row has its rotation: rotary_emb is (B, S, D / 2), complex."""

    _attention_backend = _parallel_config = None  # read by diffusers

    def __call__(
        self, attn, hidden_states, attention_mask=None, rotary_emb=None, segments=None, key_valid=None, **cache
    ):
        query, key, value = (
            layer(hidden_states).unflatten(-1, (attn.heads, -1)) for layer in (attn.to_q, attn.to_k, attn.to_v)
        )  # (B, S, H, D)
        query, key = (
            rotated(norm(part), rotary_emb).to(value.dtype) for norm, part in ((attn.norm_q, query), (attn.norm_k, key))
        )
        length, size = segments[-1][1], hidden_states.shape[1]
        may_see = torch.ones(size, size, dtype=torch.bool, device=value.device).tril()
        may_see[length:] = True  # the image sees all of itself
        attended = F.scaled_dot_product_attention(
            *(part.transpose(1, 2) for part in (query, key, value)), attn_mask=may_see & key_valid[:, None, None]
        )
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


def rotated(vectors: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """vectors (B, S, H, D), whose neighbours are the two parts of a complex number, by rotation (B, S, D / 2)."""
    pairs = torch.view_as_complex(vectors.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation.unsqueeze(2)).flatten(3)


class QwenImage21Policy(PackedPipeline):
    """See `Policy`. Latents are packed as the pipeline packs them, (B, N, C): a latent of 16 x 16 pixels is a token.

    guidance_scale: of classifier-free guidance (the pipeline's true_cfg_scale), with a negative prompt of one space; 1
        switches it off.
    max_sequence_length: with the chat template around the prompt. Every prompt is padded to it; no token sees the padding.
        The image's place in the rotary embedding follows the prompt's own length, as if the pipeline drew it alone.
    The keys and values of the text are computed in every step; the pipeline keeps those of its first step, and an update
    changes them.
    Raises ValueError where a side is no multiple of 32 pixels, where a prompt is too long, and where the number of steps is
    not that of the pipeline's own sigmas.
    """

    pipeline_class = TextToImagePipeline
    lora_targets = LORA_TARGETS
    patch_size = 1
    empty_prompt = " "

    def __init__(self, pipeline: QwenImage21Pipeline, settings: PolicySettings):
        super().__init__(pipeline, settings)
        self.network.set_attn_processor(RowAttention())
        self.network.pos_embed.register_forward_hook(self._place_images)
        self._lengths: torch.Tensor | None = None  # of the prompts of the present batch

    def _place_images(self, rope: torch.nn.Module, args: tuple, shared: torch.Tensor) -> torch.Tensor:
        """The rotary embedding (S, D) of the padded text's length, made (B, S, D) by the prompts' own lengths."""
        rows, columns = self.token_grid
        frame = rope.freqs[0][self._lengths]  # (B, d): the image stands in the first axis where its prompt ends
        placed = shared.repeat(len(frame), 1, 1)
        placed[:, -rows * columns :, : frame.shape[1]] = frame.unsqueeze(1)
        return placed

    def set_resolution(self, resolution: Resolution) -> None:
        pixels = 2 * self.pipeline.vae_scale_factor
        if any(side % pixels for side in image_size(resolution)):
            raise ValueError(f"resolution={resolution} must be a multiple of {pixels}, the pixels of 2 x 2 tokens")
        super().set_resolution(resolution)

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        tokens, mask, _ = self.pipeline.encode_prompt(prompts, device=self.device)
        length = tokens.shape[1]
        if length > self.max_sequence_length:
            raise ValueError(
                f"a prompt has {length} tokens with its chat template, more than max_sequence_length="
                f"{self.max_sequence_length}; set it to {length} or more"
            )
        return padded_embeds(tokens, mask, self.max_sequence_length)

    def num_tokens(self, prompt: str) -> int:
        pipeline = self.pipeline
        tokens = pipeline.processor.tokenizer(pipeline.prompt_template_t2i.format(prompt)).input_ids
        return len(tokens) - pipeline._drop_idx

    def sigmas(self, num_steps: int) -> torch.Tensor:
        """The scheduler's, from even steps, or from the `sample_sigmas` that a distilled model brings.

        The pipeline takes the latter whatever number of steps it is asked for. Here another number raises ValueError.
        """
        scheduler, own = self.pipeline.scheduler, self.pipeline.config.sample_sigmas
        if own is None:
            return super().sigmas(num_steps)
        if num_steps != len(own):
            raise ValueError(
                f"num_steps={num_steps}, but this model brings the sigmas of {len(own)} steps (sample_sigmas); set "
                f"sample.num_steps and sample.eval_num_steps to {len(own)}"
            )
        rows, columns = self.token_grid
        scheduler.set_timesteps(sigmas=own, mu=linear_shift(scheduler.config, rows * columns), device=self.device)
        return scheduler.sigmas.clone().float()

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        batch, num_tokens, _ = latents.shape
        self._lengths = embeds.mask.sum(dim=1)
        slots = embeds.mask.new_ones(batch, num_tokens // TOKENS_PER_SLOT)
        velocity = self.forward_module(
            hidden_states=latents.to(self.network.dtype),
            timestep=sigma.expand(batch),
            encoder_hidden_states=embeds.tokens,
            encoder_hidden_states_mask=embeds.mask,
            img_shapes=[[(1, *self.token_grid)]] * batch,  # one frame
            img_mask=torch.cat([torch.zeros_like(embeds.mask), slots], dim=1),  # no picture in the prompt
            return_dict=False,
        )[0]
        return velocity[:, -num_tokens:].float()  # the text comes first

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The VAE decodes red, green, blue and opacity; the image is what one sees on white."""
        vae = self.pipeline.vae
        latents = unpatchify(latents.float(), self.token_grid, self.patch_size)  # (B, C, h, w)
        latents = vae_latents(vae.config, latents)
        latents = latents.contiguous()  # in other strides a batch of one would take other kernels than one of several
        images = vae.decode(latents.unsqueeze(2), return_dict=False)[0][:, :, 0]  # an image is a film of one frame
        colours, opacity = (images / 2 + 0.5).clamp(0, 1).split([3, 1], dim=1)
        return colours * opacity + (1 - opacity)
