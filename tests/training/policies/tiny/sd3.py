"""SD3.5-medium in tiny."""

from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from transformers import AutoTokenizer, ByT5Tokenizer, CLIPTextModelWithProjection

from tests.training.policies.tiny.layout import Layout
from tests.training.policies.tiny.parts import LATENT_CHANNELS, TOKENIZERS, clip, t5, vae


def save(folder):
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
        tokenizer_3=ByT5Tokenizer(),
    ).save_pretrained(folder)


LAYOUT = Layout()
