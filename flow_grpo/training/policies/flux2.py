"""FLUX.2-dev and FLUX.2-klein as policies: any diffusers `Flux2Pipeline` or `Flux2KleinPipeline`."""

from dataclasses import replace

import torch
from diffusers import Flux2KleinPipeline, Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2 import format_input
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import AutoTokenizer

from flow_grpo.training.patches import places, unpatchify
from flow_grpo.training.policies.base import PolicySettings, PromptEmbeds
from flow_grpo.training.policies.lora_pipeline import PackedPipeline, num_chat_tokens, pipeline_folder
from flow_grpo.training.policies.schedule import scheduler_sigmas

# The double blocks have all targets but the last, for image and text. The last target is in the single blocks: one
# projection makes queries, keys, values and the MLP's input. Their other projection, back to the stream, is not adapted.
LORA_TARGETS = [
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out"),
    "attn.to_qkv_mlp_proj",
]


class _Flux2(PackedPipeline):
    """What dev and klein share. Latents are packed as the pipeline packs them, (B, N, 4 C), so they are tokens already.

    Every prompt is padded to max_sequence_length. The transformer attends to the padding, too; it was trained with 512.
    """

    lora_targets = LORA_TARGETS
    _guidance: torch.Tensor | None = None  # (1,), the scale that the model reads as an embedding

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> PromptEmbeds:
        tokens, _ = self.pipeline.encode_prompt(
            prompts, device=self.device, max_sequence_length=self.max_sequence_length
        )
        return PromptEmbeds(tokens=tokens)

    def sigmas(self, num_steps: int) -> torch.Tensor:
        rows, columns = self.token_grid
        return scheduler_sigmas(
            self.pipeline.scheduler, num_steps, empirical_shift(rows * columns, num_steps), self.device
        )

    def predict(self, latents: torch.Tensor, sigma: torch.Tensor, embeds: PromptEmbeds) -> torch.Tensor:
        batch = len(latents)
        velocity = self.forward_module(
            hidden_states=latents.to(self.network.dtype),
            timestep=sigma.expand(batch),
            guidance=None if self._guidance is None else self._guidance.expand(batch),
            encoder_hidden_states=embeds.tokens,
            # The coordinates are frame, row, column and, for text, the position in the sequence.
            img_ids=places(1, *self.token_grid, 1, device=self.device),
            txt_ids=places(1, 1, 1, embeds.tokens.shape[1], device=self.device),
            return_dict=False,
        )[0]
        return velocity.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        vae = self.pipeline.vae
        # Other VAEs have one scale and one shift. This one has a batch norm over the packed channels instead.
        std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        tokens = latents.float() * std + vae.bn.running_mean
        images = vae.decode(unpatchify(tokens, self.token_grid, self.patch_size), return_dict=False)[0]
        return (images / 2 + 0.5).clamp(0, 1)


class TokenizerPipeline(Flux2Pipeline):
    """Loads a `Flux2Pipeline` without torchvision, which its processor wants for pictures.

    What it returns is of the parent's class, with the processor's tokenizer in its place: it answers the same call.
    """

    @classmethod
    def from_pretrained(cls, model, **options) -> Flux2Pipeline:
        folder = pipeline_folder(Flux2Pipeline, model)
        pipeline = Flux2Pipeline.from_pretrained(folder, tokenizer=None, **options)
        pipeline.register_modules(tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer"))
        return pipeline


class Flux2Policy(_Flux2):
    """FLUX.2-dev; see `Policy`.

    guidance_scale: the model reads it as an embedding. There is no unconditional pass, so the guidance costs nothing. The
        value 1 does not switch it off. The pipeline's default is 4.
    Raises ValueError where the resolution is not a whole number of tokens.
    """

    pipeline_class = TokenizerPipeline

    def __init__(self, pipeline: Flux2Pipeline, settings: PolicySettings):
        super().__init__(pipeline, replace(settings, guidance_scale=1.0))
        self._guidance = torch.tensor([settings.guidance_scale], device=self.device)

    def num_tokens(self, prompt: str) -> int:
        conversation = format_input([prompt], SYSTEM_MESSAGE)
        return len(
            self.pipeline.tokenizer.apply_chat_template(conversation, tokenize=True, return_dict=True)["input_ids"][0]
        )


class Flux2KleinPolicy(_Flux2):
    """FLUX.2-klein, distilled or base; see `Policy`.

    guidance_scale: of classifier-free guidance; 1 switches it off.
    Raises ValueError where the resolution is not a whole number of tokens, and for a guidance_scale other than 1 where
    the pipeline says that its model is distilled.
    """

    pipeline_class = Flux2KleinPipeline

    def __init__(self, pipeline: Flux2KleinPipeline, settings: PolicySettings):
        if settings.guidance_scale != 1 and pipeline.config.is_distilled:
            raise ValueError(
                f"guidance_scale={settings.guidance_scale} would be ignored: this model is distilled and its pipeline "
                "knows no guidance; set it to 1, or train a base model (FLUX.2-klein-base)"
            )
        super().__init__(pipeline, settings)

    def num_tokens(self, prompt: str) -> int:
        return num_chat_tokens(self.pipeline.tokenizer, prompt, enable_thinking=False)


def empirical_shift(num_tokens: int, num_steps: int) -> float:
    """The shift that suits FLUX.2 in practice, for a number of image tokens and a number of steps.

    Above 4300 tokens the shift is linear in the tokens, and the steps do not matter. Otherwise it is linear in the steps:
    a line through the shifts for 10 and for 200 steps, each of which is linear in the tokens. The numbers are those of the
    pipeline (`compute_empirical_mu`).
    """
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    return at_200 + (at_200 - at_10) / 190 * (num_steps - 200)
