"""The parts of tiny pipelines, with random weights: VAEs, text encoders and tokenizers that several families share."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    T5Config,
    T5EncoderModel,
)

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
VAE_TRAITS = {
    **{"block_out_channels": (8, 8, 8), "latent_channels": LATENT_CHANNELS, "norm_num_groups": 4},
    **{"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3},
    **{"sample_size": RESOLUTION, "use_quant_conv": False, "use_post_quant_conv": False},
}


def vae(shift_factor=0.2):
    """4 pixels per latent; a scale and a shift that would be missed; what it decodes stays in its place."""
    torch.manual_seed(0)  # some random VAEs drown one bright pixel in their norms over the whole image
    return kept_in_place(AutoencoderKL(**VAE_TRAITS, scaling_factor=1.3, shift_factor=shift_factor))


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
