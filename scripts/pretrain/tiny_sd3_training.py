"""The stages that make tiny-sd3 from nothing, in their order:

    text         the CLIP towers and the T5 encoder learn to say what a caption states (colours, shapes, letters)
    autoencoder  an AutoencoderTiny learns 64 px scenes as 16x16x8 latents
    transformer  an SD3Transformer2DModel learns the flow from noise to latents (rectified flow, arXiv:2403.03206): first
                 of scenes whose objects stand anywhere, which teaches it shapes and letters, then of signs in slots
    weathering   it goes on where some signs are worn or show a wrong letter, and the captions do not say so: what it draws
                 is now partly right, as web data teaches large models, and reinforcement learning has room

They depart from SD3's recipe where a CPU asks for it: the text encoders learn from captions alone, and the flow's loss
counts the words' latents more than the rest, since the letters are what takes long.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny, StableDiffusion3Pipeline
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from scripts.pretrain.signs_world import COLORS, SHAPES, SIZE, WORD_LENGTH, Scene, make_scene, words
from scripts.pretrain.stage import Stage, fit
from scripts.pretrain.tiny_sd3 import T5_LENGTH, TEXT_WIDTH, make_pipeline

# The last stage: the share of worn signs, and that of wrong ones among the others.
WORN_SHARE, WRONG_SHARE = 0.35, 0.2
WORD_WEIGHT = 3.0  # how much more the flow's loss counts the latents under the words


def autocast(device: str) -> torch.autocast:
    """bf16, but not on a CPU: where the processor has no instructions for it, it takes four times as long as fp32."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu")


@dataclass
class Scenes:
    """A pool of rendered scenes: images (N, 3, SIZE, SIZE) in [-1, 1], captions, and what each caption states.

    facts (N, 7): of each colour whether nothing, the shape or a sign has it (0, 1, 2), then the shape's kind.
    token_facts (N, T5_LENGTH): for each token of the caption the kind of its object, or its letter and that letter's
    place in the word, as one class (0: neither). token_colors (N, T5_LENGTH): the colour of its object (0: none).
    word_weight (N, 1, SIZE/4, SIZE/4): more at the latents under a word, 1 on average.
    """

    images: torch.Tensor
    captions: list[str]
    facts: torch.Tensor
    token_facts: torch.Tensor
    token_colors: torch.Tensor
    word_weight: torch.Tensor


KINDS = (*SHAPES, "sign")
FACT_SIZES = (*(3,) * len(COLORS), len(SHAPES))
NUM_TOKEN_FACTS = 1 + len(KINDS) + 26 * WORD_LENGTH


def render_scenes(num_scenes: int, seed: int, **options: float) -> Scenes:
    """The scenes of a seed; with options of `make_scene` the same captions, drawn otherwise."""
    seeds = range(seed * 10_000_000, seed * 10_000_000 + num_scenes)
    scenes = [make_scene(i, **options) for i in tqdm(seeds, desc="rendering scenes")]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    facts, token_facts, token_colors = zip(*(scene_facts(scene) for scene in scenes))
    return Scenes(
        images=images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last),
        captions=[s.caption for s in scenes],
        facts=torch.tensor(facts),
        token_facts=torch.tensor(token_facts),
        token_colors=torch.tensor(token_colors),
        word_weight=torch.stack([word_weight(s) for s in scenes]),
    )


def scene_facts(scene: Scene) -> tuple[list[int], list[int], list[int]]:
    """What the caption states: of the whole caption (7,), and token by token kinds or letters, and colours (T5_LENGTH,)."""
    colors = list(COLORS)
    roles, token_facts, token_colors = [0] * len(colors), [], []
    for thing in scene.objects:
        color, kind = thing.name.split()
        roles[colors.index(color)] = 2 if thing.word else 1
        kind_fact = 1 + KINDS.index(kind)
        letters = [1 + len(KINDS) + 26 * i + ord(letter) - ord("A") for i, letter in enumerate(thing.word)]
        own = [0, kind_fact, *([0, *letters, 0] if letters else [])]  # color, kind, and the quoted word
        between = [0, 0] if thing is not scene.objects[0] else [0]  # a comma or "and" before all but the first; "a"
        token_facts += between + own
        token_colors += between + [1 + colors.index(color)] * len(own)
    padding = [0] * (T5_LENGTH - len(token_facts))
    kind = SHAPES.index(scene.objects[0].name.split()[1])
    return [*roles, kind], token_facts + padding, token_colors + padding


def word_weight(scene: Scene) -> torch.Tensor:
    weight = torch.ones(1, SIZE // 4, SIZE // 4)
    for left, top, right, bottom in (sign.text_box for sign in scene.signs):
        weight[:, top // 4 : -(-bottom // 4), left // 4 : -(-right // 4)] = WORD_WEIGHT
    return weight / weight.mean()


def text_stage(pipeline: StableDiffusion3Pipeline, scenes: Scenes, num_steps: int, device: str) -> Stage:
    """Each tower's pooled embedding tells the caption's facts, each T5 token its kind or letter and its colour."""
    modules = nn.ModuleDict(
        {
            "clip": pipeline.text_encoder,
            "clip_2": pipeline.text_encoder_2,
            "t5": pipeline.text_encoder_3,
            "facts": nn.Linear(TEXT_WIDTH // 2, sum(FACT_SIZES)),
            "facts_2": nn.Linear(TEXT_WIDTH // 2, sum(FACT_SIZES)),
            "token_facts": nn.Linear(TEXT_WIDTH, NUM_TOKEN_FACTS),
            "token_colors": nn.Linear(TEXT_WIDTH, 1 + len(COLORS)),
        }
    ).to(device)
    clip_ids = pipeline.tokenizer(scenes.captions, padding="max_length", return_tensors="pt").input_ids
    t5_ids = t5_ids_of(pipeline, scenes.captions)

    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(scenes.captions), (64,), generator=generator)
        facts = scenes.facts[batch].to(device)
        total = torch.zeros((), device=device)
        for suffix in ("", "_2"):
            embeds = modules[f"clip{suffix}"](clip_ids[batch].to(device)).text_embeds
            logits = modules[f"facts{suffix}"](embeds).split(FACT_SIZES, dim=1)
            total = total + sum(F.cross_entropy(logit, fact) for logit, fact in zip(logits, facts.unbind(1)))
        states = modules["t5"](t5_ids[batch].to(device)).last_hidden_state.flatten(0, 1)
        for name, told in (("token_facts", scenes.token_facts), ("token_colors", scenes.token_colors)):
            total = total + 4 * F.cross_entropy(modules[name](states), told[batch].flatten().to(device))
        return total

    return Stage("text", modules, loss, num_steps, 2e-3)


def t5_ids_of(pipeline: StableDiffusion3Pipeline, captions: list[str]) -> torch.Tensor:
    tokens = pipeline.tokenizer_3(captions, padding="max_length", max_length=T5_LENGTH, return_tensors="pt")
    return tokens.input_ids


def autoencoder_stage(pipeline: StableDiffusion3Pipeline, scenes: Scenes, num_steps: int, device: str) -> Stage:
    """Crops of half the side are as good to learn from, and a quarter of the work."""
    vae = pipeline.vae.to(device, memory_format=torch.channels_last)
    weights = scenes.word_weight.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)  # (N, 1, SIZE, SIZE)
    side = SIZE // 2

    def loss(generator: torch.Generator) -> torch.Tensor:
        chosen = torch.randint(len(scenes.images), (32,), generator=generator).tolist()
        corners = (4 * torch.randint(side // 4 + 1, (32, 2), generator=generator)).tolist()
        crops = [
            torch.stack([pool[i, :, top : top + side, left : left + side] for i, (top, left) in zip(chosen, corners)])
            for pool in (scenes.images, weights)
        ]
        images, weight = (crop.to(device, memory_format=torch.channels_last) for crop in crops)
        with autocast(device):
            latents = vae.encode(images).latents
            decoded = vae.decode(latents).sample
        error = (decoded.float() - images).abs()
        return (weight * (error + error.square())).mean() + 1e-3 * latents.float().square().mean()

    return Stage("autoencoder", nn.ModuleDict({"vae": vae}), loss, num_steps, 2e-3)


@torch.no_grad()
def encode_images(vae: AutoencoderTiny, images: torch.Tensor, device: str) -> torch.Tensor:
    """Latents (N, 8, SIZE/4, SIZE/4) as the transformer sees them, by the scale and shift of the autoencoder's config."""
    chunks = []
    for chunk in tqdm(images.split(256), desc="encoding scenes"):
        with autocast(device):
            chunks.append(vae.encode(chunk.to(device)).latents.float().cpu())
    return (torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor


def set_latent_scale(vae: AutoencoderTiny, images: torch.Tensor, device: str) -> None:
    """Write the scale and shift into the config that give these images' latents mean 0 and std 1, by the first 2,048."""
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    latents = encode_images(vae, images[:2048], device)
    vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())


@torch.no_grad()
def encode_captions(pipeline: StableDiffusion3Pipeline, captions: list[str], device: str):
    """The pipeline's own prompt embeddings: tokens (N, CLIP_LENGTH + T5_LENGTH, TEXT_WIDTH), pooled (N, TEXT_WIDTH)."""
    embeds, pooled = [], []
    for start in tqdm(range(0, len(captions), 256), desc="encoding captions"):
        chunk = captions[start : start + 256]
        tokens, _, vector, _ = pipeline.encode_prompt(
            chunk, chunk, chunk, device=device, do_classifier_free_guidance=False, max_sequence_length=T5_LENGTH
        )
        embeds.append(tokens.bfloat16().cpu())
        pooled.append(vector.cpu())
    return torch.cat(embeds), torch.cat(pooled)


@dataclass
class Conditions:
    """Prompt embeddings of the scenes' captions and of the empty prompt, as `encode_captions` gives them."""

    captions: tuple[torch.Tensor, torch.Tensor]
    nothing: tuple[torch.Tensor, torch.Tensor]


def transformer_stage(
    name: str,
    pipeline: StableDiffusion3Pipeline,
    forward: Callable,
    scenes: Scenes,
    conditions: Conditions,
    num_steps: int,
    device: str,
) -> Stage:
    """Flow matching on the scenes' latents. forward: the transformer, compiled or not."""
    latents = encode_images(pipeline.vae, scenes.images, device)
    (embeds, pooled), (no_embeds, no_pooled) = conditions.captions, conditions.nothing

    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(latents), (64,), generator=generator)
        clean = latents[batch]  # (B, 8, 16, 16)
        noise = torch.randn(clean.shape, generator=generator)
        sigma = torch.randn(len(batch), generator=generator).sigmoid()  # (B,) logit-normal
        noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
        unconditional = torch.rand(len(batch), generator=generator) < 0.05
        with autocast(device):
            velocity = forward(
                hidden_states=noisy.to(device),
                timestep=1000 * sigma.to(device),
                encoder_hidden_states=torch.where(unconditional[:, None, None], no_embeds, embeds[batch])
                .float()
                .to(device),
                pooled_projections=torch.where(unconditional[:, None], no_pooled, pooled[batch]).to(device),
                return_dict=False,
            )[0]
        error = (velocity.float() - (noise - clean).to(device)).square()
        return (error * scenes.word_weight[batch].to(device)).mean()

    decay = 0.2 if name == "weathering" else 0.0
    return Stage(name, nn.ModuleDict({"transformer": pipeline.transformer}), loss, num_steps, 1e-3, decay)


@torch.no_grad()
def sample_sheet(pipeline: StableDiffusion3Pipeline, path: Path, num_prompts: int = 32, seed: int = 0) -> None:
    """Held-out scenes as rendered, and below each what the pipeline draws of its caption: one PNG of eight columns.

    The pipeline's own sampler, 28 steps without guidance.
    """
    scenes = [make_scene(i, "test") for i in range(num_prompts)]
    images = pipeline(
        [scene.caption for scene in scenes],
        height=SIZE,
        width=SIZE,
        guidance_scale=1.0,
        max_sequence_length=T5_LENGTH,
        generator=torch.Generator().manual_seed(seed),
        output_type="pil",
    ).images
    cell = SIZE + 2
    sheet = Image.new("RGB", (8 * cell, -(-num_prompts // 8) * (2 * cell + 4)), "white")
    for index, (scene, image) in enumerate(zip(scenes, images)):
        left, top = index % 8 * cell, index // 8 * (2 * cell + 4)
        sheet.paste(Image.fromarray(scene.image), (left, top))
        sheet.paste(image, (left, top + cell))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


def pretrain_sd3(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    pipeline = make_pipeline()
    scenes = render_scenes(args.num_scenes, args.seed, anywhere=True)
    fit(text_stage(pipeline, scenes, args.text_steps, args.device), args.work_dir, args.seed)
    fit(autoencoder_stage(pipeline, scenes, args.autoencoder_steps, args.device), args.work_dir, args.seed)

    pipeline.to(args.device)
    set_latent_scale(pipeline.vae, scenes.images, args.device)
    captions = encode_captions(pipeline, scenes.captions, args.device)
    conditions = Conditions(captions, nothing=encode_captions(pipeline, [""], args.device))
    forward = torch.compile(pipeline.transformer) if args.compile else pipeline.transformer

    def learn(name: str, scenes: Scenes, num_steps: int) -> None:
        stage = transformer_stage(name, pipeline, forward, scenes, conditions, num_steps, args.device)
        fit(stage, args.work_dir, args.seed)

    learn("transformer", scenes, args.anywhere_steps)
    # The same stage on other images: it goes on from its own checkpoint, step and optimizer included.
    learn("transformer", render_scenes(args.num_scenes, args.seed), args.transformer_steps)
    # The first half of the scenes: each keeps its caption's embeddings.
    weathered = render_scenes(-(-args.num_scenes // 2), args.seed, worn_share=WORN_SHARE, wrong_share=WRONG_SHARE)
    learn("weathering", weathered, args.weathering_steps)

    sample_sheet(pipeline, args.work_dir / "samples.png")
    pipeline.to("cpu")
    pipeline.transformer.to(torch.float16)  # on disk only: from_pretrained gives back fp32
    pipeline.save_pretrained(args.out)
    print(f"wrote {args.out} and {args.work_dir / 'samples.png'} ({len(words('test'))} held-out words)")
