"""Tiny pipelines with random weights, of diffusers' and transformers' own classes: one function per family.

A token is 8 x 8 pixels, four latents of 4 channels, in all of them but one: qwenimage21's is 16 x 16, one latent of 16.
"""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE  # FLUX.2-dev's, before every prompt
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)

from flow_grpo.training.policies.qwenimage21 import PromptProcessor

TOKENIZERS = Path("models/tiny-sd3")
RESOLUTION = 32  # 4 x 4 tokens
LATENT_CHANNELS = 4
# What Qwen-Image writes before a prompt; its pipeline drops the 34 tokens that Qwen's tokenizer makes of it.
QWEN_IMAGE_PROMPT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
QWEN3_CHAT = CHAT + (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN3_VL_CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content[0].text }}<|im_end|>\n{% endfor %}"
MISTRAL_CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content[0].text }}{% endfor %}"


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
        tokenizer_3=ByT5Tokenizer(),
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
        tokenizer_2=ByT5Tokenizer(),
    ).save_pretrained(folder)


def save_flux2(folder):
    """FLUX.2-dev's traits: Mistral's hidden states of three depths, guidance as an embedding.

    The published pipeline holds a PixtralProcessor, which wants torchvision; a tokenizer answers the same call.
    """
    text = {
        **{"model_type": "mistral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 30},
        **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 600},
    }
    vision = {
        **{"model_type": "pixtral", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
        **{"num_attention_heads": 2, "image_size": 16, "patch_size": 8},
    }
    Flux2Pipeline(
        transformer=flux2_transformer(guidance_embeds=True),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=Mistral3ForConditionalGeneration(Mistral3Config(text_config=text, vision_config=vision)),
        tokenizer=tokenizer(MISTRAL_CHAT),
    ).save_pretrained(folder)


def save_flux2_klein(folder, is_distilled=False):
    """FLUX.2-klein-base's traits: Qwen3's hidden states of three depths, no guidance embedding."""
    Flux2KleinPipeline(
        transformer=flux2_transformer(guidance_embeds=False),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=flux2_vae(),
        text_encoder=Qwen3ForCausalLM(qwen3_config(width=16, num_layers=28)),
        tokenizer=tokenizer(QWEN3_CHAT),
        is_distilled=is_distilled,
    ).save_pretrained(folder)


def save_qwenimage(folder):
    """Qwen-Image's traits: a chat template whose head is dropped, masked padding, a VAE for films, a terminal shift."""
    text = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "vocab_size": 600, "max_position_embeddings": 512},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 4, "fullatt_block_indexes": [0]},
    }
    transformer = QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    QwenImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, max_image_seq_len=8192
        ),
        vae=qwenimage_vae(),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer(QWEN3_CHAT),
    ).save_pretrained(folder)


def save_qwenimage21(folder, sample_sigmas=None):
    """Qwen-Image 2.1's traits: text and image in one sequence, a VAE with opacity, tokens of one latent.

    The published pipeline holds a Qwen3VLProcessor, which wants torchvision; here it is a tokenizer in the same folder.
    """
    text = {
        **{"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 600, "max_position_embeddings": 512},
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
    }
    vision = {
        **{"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        **{"patch_size": 4, "deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    }
    transformer = QwenImage21Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=4 * LATENT_CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 6, 6),
    )
    processor = folder / "processor"
    words = tokenizer(QWEN3_VL_CHAT)
    words.add_tokens(["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"], special_tokens=True)
    words.save_pretrained(processor)
    pipeline = QwenImage21Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=0.9, max_image_seq_len=8192),
        vae=qwenimage21_vae(),
        text_encoder=Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision)),
        processor=PromptProcessor(processor),
        sample_sigmas=sample_sigmas,
    )
    pipeline.register_to_config(processor=("transformers", "Qwen3VLProcessor"))
    pipeline.save_pretrained(folder)


def save_zimage(folder):
    """Z-Image's traits: refiners before the blocks, prompts of their own lengths, time and velocity the other way round."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 6, 6],
        axes_lens=[256, 32, 32],
    )
    with torch.no_grad():
        transformer.x_pad_token.normal_()
        transformer.cap_pad_token.normal_()
    ZImagePipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(),
        text_encoder=Qwen3Model(qwen3_config(width=32, num_layers=2)),
        tokenizer=tokenizer(QWEN3_CHAT),
    ).save_pretrained(folder)


# Their parts


def flux2_transformer(guidance_embeds):
    return Flux2Transformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
        timestep_guidance_channels=32,
        guidance_embeds=guidance_embeds,
    )


VAE_TRAITS = {
    **{"block_out_channels": (8, 8, 8), "latent_channels": LATENT_CHANNELS, "norm_num_groups": 4},
    **{"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3},
    **{"sample_size": RESOLUTION, "use_quant_conv": False, "use_post_quant_conv": False},
}


def vae(shift_factor=0.2):
    """4 pixels per latent; a scale and a shift that would be missed; what it decodes stays in its place."""
    torch.manual_seed(0)  # some random VAEs drown one bright pixel in their norms over the whole image
    return kept_in_place(AutoencoderKL(**VAE_TRAITS, scaling_factor=1.3, shift_factor=shift_factor))


def flux2_vae():
    """The same with a batch norm, whose mean and variance differ by channel, in place of a scale and a shift."""
    torch.manual_seed(0)
    model = kept_in_place(AutoencoderKLFlux2(**VAE_TRAITS))
    channels = torch.arange(4.0 * LATENT_CHANNELS)
    model.bn.running_mean.copy_(channels / 40)
    model.bn.running_var.copy_(1 + channels / 20)
    return model


def qwenimage_vae():
    torch.manual_seed(0)
    model = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.8, 1.2, 0.9, 1.1],
    )
    return kept_in_place(model)


def qwenimage21_vae():
    """16 pixels per latent, and a fourth channel, the opacity."""
    torch.manual_seed(0)
    channels = torch.arange(4.0 * LATENT_CHANNELS)
    model = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=len(channels),
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=(channels / 40).tolist(),
        latents_std=(1 + channels / 20).tolist(),
    )
    return kept_in_place(model)


def kept_in_place(model):
    """Random 3 x 3 kernels, one after the other, would smear each latent over all of the image."""
    convolutions = torch.nn.Conv2d | torch.nn.Conv3d
    for module in model.modules():
        if isinstance(module, convolutions) and module.kernel_size[-2:] == (3, 3):
            centre = module.weight.data[..., 1, 1].clone()
            module.weight.data.mul_(0.1)
            module.weight.data[..., 1, 1] = 3 * centre
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


def qwen3_config(width, num_layers):
    return Qwen3Config(
        vocab_size=600,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
    )


def tokenizer(chat_template):
    """Qwen's tokenizer, whose words are every letter and those that the pipelines write before a prompt."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        [QWEN_IMAGE_PROMPT, SYSTEM_MESSAGE] * 2,
        trainers.BpeTrainer(initial_alphabet=alphabet, min_frequency=2, show_progress=False),
    )
    model = json.loads(words.to_str())["model"]
    qwen = Qwen2Tokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
    qwen.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    qwen.chat_template = chat_template
    return qwen
