"""A tiny pipeline of every family, with random weights, of diffusers' and transformers' own classes, saved to a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

from flow_grpo.training.policies.base import Policy
from flow_grpo.training.policies.load import load_policy

TOKENIZERS = Path("models/tiny-sd3")
RESOLUTION = 32  # a token is 8 pixels: 4 x 4 of them
MAX_SEQUENCE_LENGTH = 72
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Family:
    """One model family: its tiny pipeline on the disk, and what a test must know to ask the pipeline itself."""

    name: str
    folder: Path
    pipeline_class: type[DiffusionPipeline]
    pack: Callable[[torch.Tensor], torch.Tensor]  # from the VAE's latents to those that the pipeline denoises

    def load_pipeline(self) -> DiffusionPipeline:
        pipeline = self.pipeline_class.from_pretrained(self.folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def make_policy(self, mixed_precision: str = "no", lora: Path | None = None, **options) -> Policy:
        settings = dict(resolution=RESOLUTION, lora_rank=4, lora_alpha=8, guidance_scale=1.0)
        settings |= dict(max_sequence_length=MAX_SEQUENCE_LENGTH) | options
        return load_policy(self.name, str(self.folder), mixed_precision, lora, **settings)

    def draw(self, pipeline, prompts, latents, guidance_scale=1.0, num_steps=3, output_type="latent") -> torch.Tensor:
        """What the pipeline itself draws from latents, by its own scheduler."""
        return pipeline(
            prompts,
            height=RESOLUTION,
            width=RESOLUTION,
            num_inference_steps=num_steps,
            guidance_scale=guidance_scale,
            latents=latents,
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            output_type=output_type,
        ).images


def save_sd3(folder):
    """SD3.5-medium's traits: a block with a second attention, a last one that drops the text, RMS norms, three encoders."""
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=clip(CLIPTextModelWithProjection),
        text_encoder_2=clip(CLIPTextModelWithProjection),
        text_encoder_3=t5(),
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer_2"),
        tokenizer_3=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer_3"),
    ).save_pretrained(folder)


def save_flux(folder, guidance_embeds=True):
    """FLUX.1-dev's traits: a double and a single block, guidance as an embedding, the shift by resolution.

    Without guidance_embeds those of FLUX.1-schnell, which has neither the embedding nor the shift.
    """
    transformer = FluxTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
        guidance_embeds=guidance_embeds,
    )
    FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            shift=3.0 if guidance_embeds else 1.0, use_dynamic_shifting=guidance_embeds
        ),
        vae=vae(),
        text_encoder=clip(CLIPTextModel),
        text_encoder_2=t5(),
        tokenizer=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer"),
        tokenizer_2=AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer_3"),
    ).save_pretrained(folder)


def vae():
    """4 pixels a latent; a scale and a shift that would be missed; what it decodes stays in its place."""
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=RESOLUTION,
        scaling_factor=1.3,
        shift_factor=0.2,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            centre = module.weight.data[:, :, 1, 1].clone()
            module.weight.data.mul_(0.1)  # random 3 x 3 kernels, one after the other, would smear each latent over all
            module.weight.data[:, :, 1, 1] = 3 * centre
    model.decoder.conv_out.weight.data.mul_(4)  # contrast: some pixels beyond black and white
    return model


def clip(model_class):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "tokenizer")
    # FLUX pools 32 values of one CLIP, SD3 the 16 projected ones of each of its two
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32 if model_class is CLIPTextModel else 16,
        projection_dim=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model_class(config)


def t5():
    return T5EncoderModel(T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2))


FAMILIES = {
    "sd3": (save_sd3, StableDiffusion3Pipeline, lambda latents: latents),
    "flux": (
        save_flux,
        FluxPipeline,
        lambda latents: FluxPipeline._pack_latents(latents, *latents.shape),
    ),
}


@pytest.fixture(scope="session")
def make_family(tmp_path_factory):
    """make_family(name, **options of its save function) -> Family, of weights that a seed fixes."""

    def make(name, **options):
        save, pipeline_class, pack = FAMILIES[name]
        folder = tmp_path_factory.mktemp(name)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save(folder, **options)
        return Family(name, folder, pipeline_class, pack)

    return make


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request, make_family):
    return make_family(request.param)
