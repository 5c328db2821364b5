"""tiny-clip: a CLIPModel small enough to train from nothing on a CPU, in the format of the large ones.

The image tower sees 64 px scenes as 8x8 patches, the text tower reads the captions' words whole, the sign's letters
one by one.
"""

from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from scripts.pretrain.signs_world import SIZE
from scripts.pretrain.tiny_sd3 import make_clip_tokenizer

TEXT_LENGTH = 24  # tokens; the longest caption of a billboard has fewer


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """tiny-clip with random weights: 0.83 M parameters in the image tower, 0.16 M in the text tower."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "max_position_embeddings": TEXT_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "image_size": SIZE,
        "patch_size": 8,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def make_tokenizer() -> CLIPTokenizer:
    return make_clip_tokenizer(TEXT_LENGTH, extra_words=("that", "says"))


def make_processor() -> CLIPImageProcessor:
    """CLIP's own mean and std, at the world's size."""
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
