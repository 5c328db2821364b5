"""Pretrain tiny-clip: CLIP's contrast of images and captions, in a world that knows which caption is true of which image.

A third of the images are billboards, the others pairs. A caption names all of its image or one thing of it, so that a query
such as "a red circle" means something. Where it departs from CLIP's recipe (arXiv:2103.00020):

    true of two   the caption of one image may be true of another, too: such places of the score matrix are left out
    late reading  in most images the class token sees no patch before the last block, as in CaiT (arXiv:2103.17239):
                  otherwise most is read in the first blocks, and a map of the last one has little to show
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from scripts.pretrain.billboards import make_billboard
from scripts.pretrain.signs_world import HELD_OUT, Scene, make_pair
from scripts.pretrain.stage import Stage, fit
from scripts.pretrain.tiny_clip import make_clip, make_processor, make_tokenizer

BATCH_SIZE = 128
LATE_SHARE = 0.85  # of the images of a batch
NUM_CHOICES = 64  # captions that a held-out image chooses from


@dataclass(frozen=True)
class Caption:
    """A text and what it claims: names of things, and the word on the sign. True of a scene that has all of it."""

    text: str
    claims: frozenset[str]


def whole_caption(scene: Scene) -> Caption:
    return Caption(
        scene.caption, frozenset(thing.name for thing in scene.objects) | {sign.word for sign in scene.signs}
    )


def part_captions(scene: Scene) -> list[Caption]:
    return [Caption(f"a {thing.name}", frozenset([thing.name])) for thing in scene.objects]


@dataclass
class Captioned:
    """N images (N, 3, SIZE, SIZE) uint8, what is true of each, and what may be said of each."""

    images: torch.Tensor
    wholes: list[Caption]
    parts: list[list[Caption]]


def captioned(scenes: list[Scene]) -> Captioned:
    return Captioned(
        images=torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2).contiguous(),
        wholes=[whole_caption(s) for s in scenes],
        parts=[part_captions(s) for s in scenes],
    )


def contrastive_loss(scores: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """CLIP's loss of scores (B, B), images by captions, image i's own caption being the i-th.

    true: (B, B) bool, whether a caption holds for an image: such places off the diagonal do not count.
    """
    own = torch.arange(len(scores))
    others_true = true.clone()
    others_true[own, own] = False
    scores = scores.masked_fill(others_true, -torch.inf)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def normalise_pixels(images: torch.Tensor, processor) -> torch.Tensor:
    """uint8 images of the model's own size as it reads them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (images.float() / 255 - mean) / std


def embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Unit embeddings (T, E)."""
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output.float(), dim=1)


def embed_images(model: CLIPModel, pixels: torch.Tensor, late: torch.Tensor) -> torch.Tensor:
    """Unit embeddings (B, E) of pixels (B, 3, SIZE, SIZE); late (B,) bool: whose class token reads in the last block alone."""
    vision = model.vision_model
    hidden = vision.pre_layrnorm(vision.embeddings(pixels))  # (B, T, D)
    unseen = torch.zeros(len(hidden), 1, hidden.shape[1], hidden.shape[1])
    unseen[late, :, 0, 1:] = -torch.inf
    *earlier, last = vision.encoder.layers
    for block in earlier:
        hidden = block(hidden, unseen)
    embeds = model.visual_projection(vision.post_layernorm(last(hidden, None)[:, 0]))
    return F.normalize(embeds.float(), dim=1)


def contrast_stage(model: CLIPModel, tokenizer, processor, scenes: Captioned, num_steps: int) -> Stage:
    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(scenes.images), (BATCH_SIZE,), generator=generator).tolist()
        captions = []
        for index in batch:
            say_whole, which = torch.rand(2, generator=generator).tolist()
            parts = scenes.parts[index]
            captions.append(scenes.wholes[index] if say_whole < 0.5 else parts[int(which * len(parts))])
        late = torch.rand(len(batch), generator=generator) < LATE_SHARE
        true = torch.tensor([[c.claims <= scenes.wholes[index].claims for c in captions] for index in batch])
        with torch.autocast("cpu", torch.bfloat16):
            image = embed_images(model, normalise_pixels(scenes.images[batch], processor), late)
            text = embed_texts(model, tokenizer, [c.text for c in captions])
        return contrastive_loss(model.logit_scale.exp().clamp(max=100) * image @ text.T, true)

    return Stage("clip", nn.ModuleDict({"clip": model}), loss, num_steps, 1e-3)


@torch.no_grad()
def retrieval_accuracy(model: CLIPModel, tokenizer, processor, scenes: list[Scene]) -> tuple[float, float]:
    """How often an image finds its caption among those of all scenes, and a caption its image. Captions must differ."""
    texts = [scene.caption for scene in scenes]
    if len(set(texts)) < len(texts):
        raise ValueError("two scenes have one caption: neither could be told from the other")
    pixels = normalise_pixels(captioned(scenes).images, processor)
    image = embed_images(model, pixels, late=torch.zeros(len(scenes), dtype=torch.bool))
    own, scores = torch.arange(len(scenes)), image @ embed_texts(model, tokenizer, texts).T
    return tuple((best == own).float().mean().item() for best in (scores.argmax(1), scores.argmax(0)))


def held_out_group(index: int) -> list[Scene]:
    """NUM_CHOICES scenes that are not trained on, billboards and pairs in turn, of which no two have one caption."""
    distinct, seed = {}, HELD_OUT + 1000 * index
    while len(distinct) < NUM_CHOICES:
        scene = make_pair(seed) if len(distinct) % 2 else make_billboard(seed, "test")
        distinct.setdefault(scene.caption, scene)
        seed += 1
    return list(distinct.values())


def pretrain_clip(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    tokenizer, processor = make_tokenizer(), make_processor()
    model = make_clip(tokenizer)
    model.set_attn_implementation("eager")  # bf16 on a CPU: half the time of a step, most of it flash's backward pass
    first = args.seed * 10_000_000
    seeds = tqdm(range(first, first + args.num_scenes), desc="rendering scenes")
    scenes = captioned([make_pair(seed) if seed % 3 else make_billboard(seed) for seed in seeds])
    fit(contrast_stage(model, tokenizer, processor, scenes, args.clip_steps), args.work_dir, args.seed)

    for part in (model, tokenizer, processor):
        part.save_pretrained(args.out)
    groups = [held_out_group(index) for index in range(8)]
    accuracies = np.mean([retrieval_accuracy(model, tokenizer, processor, group) for group in groups], axis=0)
    print("held-out images: image to text {:.3f}, text to image {:.3f}".format(*accuracies))
    print(f"wrote {args.out}")
