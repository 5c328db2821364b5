"""Take open_clip's models, ViT and ResNet, apart into ClipParts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parts import ClipParts
from .preprocess import OPENAI_MEAN, OPENAI_STD, ClipPreprocess
from .trace import Record, Request
from .vit import Block, VitTower, watched


def load(name: str, device: torch.device, dtype: torch.dtype) -> ClipParts:
    """Load a model by name, with frozen weights.

    name: "ARCHITECTURE/PRETRAINED", such as "RN50/openai", or a name with a scheme, such as "hf-hub:laion/...".
    Raises ImportError if open_clip is missing, ValueError for an unknown kind of tower, and what open_clip raises.
    """
    architecture, _, pretrained = (name, "", None) if ":" in name else name.rpartition("/")
    if not architecture:
        raise ValueError(f'name a model of open_clip as "open_clip:ARCHITECTURE/PRETRAINED", got {name!r}')
    try:
        import open_clip
    except ImportError as error:
        raise ImportError("this CLIP needs open_clip: pip install open_clip_torch") from error
    model = open_clip.create_model(architecture, pretrained=pretrained)
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return take_apart(model, open_clip.get_tokenizer(architecture), device)


def take_apart(model: nn.Module, tokenizer: Any, device: torch.device) -> ClipParts:
    """Take apart a loaded open_clip model with its tokenizer. Raises ValueError for a tower that is neither ViT nor ResNet."""
    visual = model.visual
    if hasattr(visual, "layer4") and hasattr(visual, "attnpool"):
        tower = _resnet_tower(visual)
    elif hasattr(visual, "transformer") and hasattr(visual, "class_embedding"):
        tower = _vit_tower(visual)
    else:
        raise ValueError(
            f"open_clip's {type(visual).__name__} is not known here; take a VisionTransformer or a ModifiedResNet"
        )
    return ClipParts(
        tower=tower,
        preprocess=_preprocess(visual),
        embed_texts=_text_embedder(model, tokenizer, device),
        logit_scale=model.logit_scale.exp().item(),
        device=device,
    )


@dataclass(frozen=True, eq=False)
class ResNetTower:
    """CLIP's modified ResNet. Its stages' outputs are the feature maps; the head reads all places of the last one.

    stages: layer1 (with the stem before it) to layer4, each (B, C, ., .) -> (B, C, ., .). head: layer4's output -> (B, E).
    grid: (rows, cols) of layer4.
    """

    stages: Sequence[Callable[[Tensor], Tensor]]
    head: Callable[[Tensor], Tensor]
    dtype: torch.dtype
    grid: tuple[int, int]

    @property
    def num_blocks(self) -> int:
        return len(self.stages)

    def check(self, request: Request) -> None:
        """Refuse a request that this tower cannot answer, with a ValueError."""
        if request.attention or request.mean_attention or request.contributions:
            raise ValueError("a ResNet has no attention between patches; use clip_gradcam or clip_gradient, or a ViT")
        for stage in request.features:
            if not 0 <= stage < self.num_blocks:
                raise ValueError(
                    f"block={stage} does not exist; a ResNet has 0 to 3, layer1 to layer4, and -1 is the last"
                )

    def run(self, pixels: Tensor, texts: Tensor, request: Request) -> Record:
        """One pass. pixels: (B, 3, H, W) preprocessed fp32."""
        record = Record()
        hidden = pixels.to(self.dtype)
        for index, stage in enumerate(self.stages):
            # the stage's output is watched, so the graph begins after the stage
            with torch.set_grad_enabled(index > request.first_block or request.pixels):
                hidden = stage(hidden)
            if index in request.features:
                hidden = record.features[index] = watched(hidden)
        with torch.set_grad_enabled(request.first_block < self.num_blocks):
            record.embeds = self.head(hidden).float()
        return record

    def to_grid(self, feature: Tensor) -> Tensor:
        """(B, C, rows, cols) -> (B, rows, cols, C), fp32."""
        return feature.permute(0, 2, 3, 1).float()


def _resnet_tower(visual: nn.Module) -> ResNetTower:
    cells = visual.attnpool.positional_embedding.shape[0] - 1
    side = round(cells**0.5)
    return ResNetTower(
        stages=[lambda pixels: visual.layer1(visual.stem(pixels)), visual.layer2, visual.layer3, visual.layer4],
        head=visual.attnpool,
        dtype=visual.conv1.weight.dtype,
        grid=(side, side),
    )


def _vit_tower(visual: nn.Module) -> VitTower:
    blocks = visual.transformer.resblocks
    plain = all(
        isinstance(block.attn, nn.MultiheadAttention) and block.attn.in_proj_weight is not None for block in blocks
    )
    if visual.attn_pool is not None or visual.pool_type != "tok" or not plain:
        raise ValueError(
            f"this VisionTransformer pools by {visual.pool_type!r} over {type(blocks[0].attn).__name__} blocks; only the class "
            'token ("tok") over plain attention is known here'
        )

    def embed(pixels: Tensor) -> Tensor:
        patches = visual.conv1(pixels).flatten(2).transpose(1, 2)  # (B, N, D)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([class_token, patches], dim=1)
        return visual.ln_pre(tokens + visual.positional_embedding.to(tokens.dtype))

    return VitTower(
        embed=embed,
        blocks=[_block(block) for block in blocks],
        num_heads=blocks[0].attn.num_heads,
        post_norm=visual.ln_post,
        projection=visual.proj.detach().T,
        grid=tuple(visual.grid_size),
    )


def _block(block: nn.Module) -> Block:
    attention = block.attn

    def project(part: int) -> Callable[[Tensor], Tensor]:
        width = attention.embed_dim
        rows = slice(part * width, (part + 1) * width)
        bias = attention.in_proj_bias
        return lambda tokens: F.linear(tokens, attention.in_proj_weight[rows], None if bias is None else bias[rows])

    def out_transposed(vectors: Tensor) -> Tensor:
        gamma = getattr(block.ls_1, "gamma", None)  # layer scale, where the model has it
        scaled = vectors if gamma is None else vectors * gamma.float()
        return scaled @ attention.out_proj.weight.float()

    return Block(
        norm1=block.ln_1,
        query=project(0),
        key=project(1),
        value=project(2),
        out=lambda tokens: block.ls_1(attention.out_proj(tokens)),
        out_transposed=out_transposed,
        mlp=lambda hidden: block.ls_2(block.mlp(block.ln_2(hidden))),
    )


def _text_embedder(model: nn.Module, tokenizer: Any, device: torch.device) -> Callable:
    def embed(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        tokens = tokenizer(list(prompts)).to(device)  # (P, L), truncated where too long
        inner = getattr(tokenizer, "tokenizer", None)  # of transformers, in open_clip's HFTokenizer
        lengths = [
            len(tokenizer.encode(prompt)) + 2 if inner is None else len(inner(prompt, verbose=False)["input_ids"])
            for prompt in prompts
        ]
        return model.encode_text(tokens), torch.tensor([length > tokens.shape[1] for length in lengths])

    return embed


def _preprocess(visual: nn.Module) -> ClipPreprocess:
    size = visual.image_size
    crop = tuple(size) if isinstance(size, Sequence) else (size, size)
    settings = getattr(visual, "preprocess_cfg", {})
    resize = settings.get("resize_mode", "shortest")
    known = resize == "squash" or (resize == "shortest" and crop[0] == crop[1])
    if settings.get("interpolation", "bicubic") != "bicubic" or not known:
        raise ValueError(
            f"this model's images are resized by {settings.get('interpolation')}, {resize!r}, to {crop}; only bicubic, "
            '"shortest" to a square or "squash", is known here'
        )
    return ClipPreprocess(
        crop=crop,
        shortest_edge=None if resize == "squash" else crop[0],
        mean=tuple(settings.get("mean", OPENAI_MEAN)),
        std=tuple(settings.get("std", OPENAI_STD)),
        rounded_offset=True,
    )
