"""Take transformers' CLIP apart into ClipParts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .parts import ClipParts
from .preprocess import OPENAI_MEAN, OPENAI_STD, ClipPreprocess
from .vit import Block, VitTower

BICUBIC = 3  # Pillow's number, as preprocessor_config.json writes it


def load(name: str, device: torch.device, dtype: torch.dtype) -> ClipParts:
    """Load a hub id or a local folder, with frozen weights.

    Raises ImportError if transformers is missing, and ValueError if the model cannot be had, is not a CLIP, or has another
    preprocessing than CLIP's. A folder that is not whole raises as transformers does.
    """
    try:
        from transformers import AutoConfig, AutoTokenizer, CLIPModel, ImageProcessingMixin
    except ImportError as error:
        raise ImportError('CLIP scorers need transformers: pip install "flow-grpo-maps[clip]"') from error
    try:
        kind = AutoConfig.from_pretrained(name).model_type
    except OSError as error:
        if Path(name).is_dir():
            raise
        raise ValueError(
            f"CLIP model {name} is no folder here, and the hub did not give it; without a network name a folder. {error}"
        ) from error
    if kind != "clip":  # CLIPModel would only warn, and start from random weights
        raise ValueError(f"model {name!r} is of transformers' type {kind!r}; only clip is known here")
    model = CLIPModel.from_pretrained(name).to(device, dtype).eval().requires_grad_(False)
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(name)
    except OSError:  # the model was saved without its processor
        settings = {}
    return take_apart(model, AutoTokenizer.from_pretrained(name), device, settings)


def take_apart(model: nn.Module, tokenizer: Any, device: torch.device, settings: dict | None = None) -> ClipParts:
    """Take apart a loaded CLIPModel with its tokenizer. settings: its image processor's; None takes OpenAI's at its size."""
    vision = model.vision_model
    config = model.config.vision_config
    patches = (config.image_size // config.patch_size,) * 2
    tower = VitTower(
        embed=lambda pixels: vision.pre_layrnorm(vision.embeddings(pixels)),
        blocks=[_block(layer) for layer in vision.encoder.layers],
        num_heads=config.num_attention_heads,
        post_norm=vision.post_layernorm,
        projection=model.visual_projection.weight,
        grid=patches,
    )
    return ClipParts(
        tower=tower,
        preprocess=_preprocess(settings or {}, config.image_size),
        embed_texts=_text_embedder(model, tokenizer, device),
        logit_scale=model.logit_scale.exp().item(),
        device=device,
    )


def _block(layer: nn.Module) -> Block:
    attention = layer.self_attn
    return Block(
        norm1=layer.layer_norm1,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        out=attention.out_proj,
        out_transposed=lambda vectors: vectors @ attention.out_proj.weight.float(),
        mlp=lambda hidden: layer.mlp(layer.layer_norm2(hidden)),
    )


def _text_embedder(model: nn.Module, tokenizer: Any, device: torch.device) -> Callable:
    length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    def embed(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        full = tokenizer(list(prompts), verbose=False)["input_ids"]
        # pad all prompts to one length, so that an embedding does not depend on the rest of the batch
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        ).to(device)
        features = model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        embeds = getattr(features, "pooler_output", features)  # before transformers 5 it is a tensor
        return embeds, torch.tensor([len(ids) > length for ids in full])

    return embed


def _preprocess(settings: dict, image_size: int) -> ClipPreprocess:
    crop = settings.get("crop_size", image_size) if settings.get("do_center_crop", True) else image_size
    crop = (crop["height"], crop["width"]) if isinstance(crop, dict) else (crop, crop)
    size = settings.get("size", image_size)
    shortest = size.get("shortest_edge") if isinstance(size, dict) else size
    exact = isinstance(size, dict) and (size.get("height"), size.get("width")) == crop
    if settings.get("resample", BICUBIC) != BICUBIC or not (shortest or exact) or crop != (image_size, image_size):
        raise ValueError(
            f"this model's image processor wants resample={settings.get('resample')}, size={size}, crop_size={crop} for a "
            f"tower of {image_size} px; only bicubic (3) to the tower's size, by shortest edge or exactly, is known here"
        )
    return ClipPreprocess(
        crop=crop,
        shortest_edge=shortest,
        mean=tuple(settings.get("image_mean", OPENAI_MEAN)),
        std=tuple(settings.get("image_std", OPENAI_STD)),
    )
