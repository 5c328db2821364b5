"""The stages that make tiny-sd3 from nothing, in their order:

    text         the CLIP towers and the T5 encoder learn to say what a caption states (colours, shapes, letters)
    autoencoder  an AutoencoderTiny learns 64 px scenes as 16x16x8 latents
    transformer  an SD3Transformer2DModel learns the flow from noise to latents (rectified flow, arXiv:2403.03206)
    weathering   it goes on where half of the signs are worn, and their captions do not say so: what it draws is now
                 partly right, as web data teaches large models, and reinforcement learning has room

They depart from SD3's recipe where a CPU asks for it: the text encoders learn from captions alone, and the flow's loss
counts the word's latents more than the rest, since the letters are what takes long.
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

from scripts.pretrain.signs_world import COLORS, SHAPES, SIZE, WORD_LENGTHS, Scene, make_scene, words
from scripts.pretrain.stage import Stage, fit
from scripts.pretrain.tiny_sd3 import T5_LENGTH, TEXT_WIDTH, make_pipeline

WORN_SHARE = 0.5  # of the signs, while weathering
WORD_WEIGHT = 2.0  # how much more the flow's loss counts the latents under the word


@dataclass
class Scenes:
    """A pool of rendered scenes: images (N, 3, SIZE, SIZE) in [-1, 1], captions, and each caption's facts.

    facts (N, 10): five letters, the sign's colour, then colour and kind of the first and second shape (0: none).
    byte_facts (N, T5_LENGTH): for each byte of the caption, which fact it belongs to (0: none), as one class.
    word_weight (N, 1, SIZE/4, SIZE/4): 1, or WORD_WEIGHT at the latents under the word.
    """

    images: torch.Tensor
    captions: list[str]
    facts: torch.Tensor
    byte_facts: torch.Tensor
    word_weight: torch.Tensor


NUM_SLOTS = max(WORD_LENGTHS)
FACT_SIZES = (*(27,) * NUM_SLOTS, len(COLORS), *(1 + len(COLORS), 1 + len(SHAPES)) * 2)
NUM_BYTE_FACTS = 1 + 26 * NUM_SLOTS + 3 * (len(COLORS) + len(SHAPES))


def render_scenes(num_scenes: int, seed: int, worn_share: float = 0.0) -> Scenes:
    """The scenes of a seed; with a worn_share the same scenes, that share of their signs worn."""
    worn = np.random.default_rng(seed).random(num_scenes) < worn_share
    seeds = range(seed * 10_000_000, seed * 10_000_000 + num_scenes)
    scenes = [make_scene(i, worn=w) for i, w in tqdm(zip(seeds, worn), total=num_scenes, desc="rendering scenes")]
    images = torch.from_numpy(np.stack([s.image for s in scenes])).permute(0, 3, 1, 2)
    facts, byte_facts = zip(*(scene_facts(scene) for scene in scenes))
    return Scenes(
        images=images.float().div_(127.5).sub_(1).contiguous(memory_format=torch.channels_last),
        captions=[s.caption for s in scenes],
        facts=torch.tensor(facts),
        byte_facts=torch.tensor(byte_facts),
        word_weight=torch.stack([word_weight(s) for s in scenes]),
    )


def scene_facts(scene: Scene) -> tuple[list[int], list[int]]:
    """What the caption states, for the whole caption (10,) and byte by byte (T5_LENGTH,)."""
    colors, kinds = list(COLORS), list(SHAPES)
    names = [o.name.split() for o in scene.objects]
    letters = [ord(c) - ord("A") for c in scene.word]
    shapes = [(1 + colors.index(color), 1 + kinds.index(kind)) for color, kind in names[:-1]] + [(0, 0)]
    slots = [1 + letter for letter in letters] + [0] * (NUM_SLOTS - len(letters))
    facts = [*slots, colors.index(names[-1][0]), *shapes[0], *shapes[1]]

    byte_facts = [0] * T5_LENGTH
    start = 0
    for role, (color, kind) in enumerate([*names[:-1], names[-1]] if len(names) == 3 else [names[0], names[-1]]):
        role = 2 if kind == "sign" else role
        start = scene.caption.index(f"{color} {kind}", start)
        first = 1 + 26 * NUM_SLOTS + role * (len(colors) + len(kinds))
        for i in range(start, start + len(color)):
            byte_facts[i] = first + colors.index(color)
        if kind != "sign":
            for i in range(start + len(color) + 1, start + len(color) + 1 + len(kind)):
                byte_facts[i] = first + len(colors) + kinds.index(kind)
    start = scene.caption.index('"') + 1
    for slot, letter in enumerate(letters):
        byte_facts[start + slot] = 1 + 26 * slot + letter
    return facts, byte_facts


def word_weight(scene: Scene) -> torch.Tensor:
    left, top, right, bottom = scene.text_box
    weight = torch.ones(1, SIZE // 4, SIZE // 4)
    weight[:, top // 4 : -(-bottom // 4), left // 4 : -(-right // 4)] = WORD_WEIGHT
    return weight / weight.mean()


def text_stage(pipeline: StableDiffusion3Pipeline, scenes: Scenes, num_steps: int, device: str) -> Stage:
    """Each tower's pooled embedding tells the caption's facts, each T5 byte the fact that it is part of."""
    modules = nn.ModuleDict(
        {
            "clip": pipeline.text_encoder,
            "clip_2": pipeline.text_encoder_2,
            "t5": pipeline.text_encoder_3,
            "facts": nn.Linear(TEXT_WIDTH // 2, sum(FACT_SIZES)),
            "facts_2": nn.Linear(TEXT_WIDTH // 2, sum(FACT_SIZES)),
            "byte_facts": nn.Linear(TEXT_WIDTH, NUM_BYTE_FACTS),
        }
    ).to(device)
    clip_ids = pipeline.tokenizer(scenes.captions, padding="max_length", return_tensors="pt").input_ids
    t5_ids = byte_ids(pipeline, scenes.captions)

    def loss(generator: torch.Generator) -> torch.Tensor:
        batch = torch.randint(len(scenes.captions), (64,), generator=generator)
        facts, byte_facts = scenes.facts[batch].to(device), scenes.byte_facts[batch].to(device)
        total = torch.zeros((), device=device)
        for suffix in ("", "_2"):
            embeds = modules[f"clip{suffix}"](clip_ids[batch].to(device)).text_embeds
            logits = modules[f"facts{suffix}"](embeds).split(FACT_SIZES, dim=1)
            total = total + sum(F.cross_entropy(logit, fact) for logit, fact in zip(logits, facts.unbind(1)))
        logits = modules["byte_facts"](modules["t5"](t5_ids[batch].to(device)).last_hidden_state)
        return total + 4 * F.cross_entropy(logits.flatten(0, 1), byte_facts.flatten())

    return Stage("text", modules, loss, num_steps, 2e-3)


def byte_ids(pipeline: StableDiffusion3Pipeline, captions: list[str]) -> torch.Tensor:
    tokens = pipeline.tokenizer_3(captions, padding="max_length", max_length=T5_LENGTH, return_tensors="pt")
    return tokens.input_ids


def autoencoder_stage(pipeline: StableDiffusion3Pipeline, scenes: Scenes, num_steps: int, device: str) -> Stage:
    vae = pipeline.vae.to(device, memory_format=torch.channels_last)

    def loss(generator: torch.Generator) -> torch.Tensor:
        images = scenes.images[torch.randint(len(scenes.images), (32,), generator=generator)].to(device)
        with torch.autocast(device, torch.bfloat16):
            latents = vae.encode(images).latents
            decoded = vae.decode(latents).sample
        error = (decoded.float() - images).abs()
        return error.mean() + error.square().mean() + 1e-3 * latents.float().square().mean()

    return Stage("autoencoder", nn.ModuleDict({"vae": vae}), loss, num_steps, 2e-3)


@torch.no_grad()
def encode_images(vae: AutoencoderTiny, images: torch.Tensor, device: str) -> torch.Tensor:
    """Latents (N, 8, SIZE/4, SIZE/4) as the transformer sees them, by the scale and shift of the autoencoder's config."""
    chunks = []
    for chunk in tqdm(images.split(256), desc="encoding scenes"):
        with torch.autocast(device, torch.bfloat16):
            chunks.append(vae.encode(chunk.to(device)).latents.float().cpu())
    return (torch.cat(chunks) - vae.config.shift_factor) * vae.config.scaling_factor


def set_latent_scale(vae: AutoencoderTiny, images: torch.Tensor, device: str) -> None:
    """Write the scale and shift into the config that give these images' latents mean 0 and std 1."""
    vae.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    latents = encode_images(vae, images, device)
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
        with torch.autocast(device, torch.bfloat16):
            velocity = forward(
                hidden_states=noisy.to(device),
                timestep=1000 * sigma.to(device),
                encoder_hidden_states=torch.where(unconditional[:, None, None], no_embeds, embeds[batch]).to(device),
                pooled_projections=torch.where(unconditional[:, None], no_pooled, pooled[batch]).to(device),
                return_dict=False,
            )[0]
        error = (velocity.float() - (noise - clean).to(device)).square()
        return (error * scenes.word_weight[batch].to(device)).mean()

    decay = 0.2 if name == "weathering" else 0.0  # at the very end alone
    return Stage(name, nn.ModuleDict({"transformer": pipeline.transformer}), loss, num_steps, 8e-4, decay)


@torch.no_grad()
def sample_sheet(pipeline: StableDiffusion3Pipeline, path: Path, num_prompts: int = 32, seed: int = 0) -> None:
    """Draw held-out scenes with the pipeline's own sampler, 28 steps without guidance, as one PNG of eight columns."""
    prompts = [make_scene(i, "test").caption for i in range(num_prompts)]
    images = pipeline(
        prompts,
        height=SIZE,
        width=SIZE,
        guidance_scale=1.0,
        max_sequence_length=T5_LENGTH,
        generator=torch.Generator().manual_seed(seed),
        output_type="pil",
    ).images
    sheet = Image.new("RGB", (8 * (SIZE + 2), -(-num_prompts // 8) * (SIZE + 2)))
    for index, image in enumerate(images):
        sheet.paste(image, ((index % 8) * (SIZE + 2), index // 8 * (SIZE + 2)))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)


def pretrain_sd3(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    args.work_dir.mkdir(parents=True, exist_ok=True)
    pipeline = make_pipeline()
    scenes = render_scenes(args.num_scenes, args.seed)
    fit(text_stage(pipeline, scenes, args.text_steps, args.device), args.work_dir, args.seed)
    fit(autoencoder_stage(pipeline, scenes, args.autoencoder_steps, args.device), args.work_dir, args.seed)

    pipeline.to(args.device)
    set_latent_scale(pipeline.vae, scenes.images, args.device)
    captions = encode_captions(pipeline, scenes.captions, args.device)
    conditions = Conditions(captions, nothing=encode_captions(pipeline, [""], args.device))
    forward = torch.compile(pipeline.transformer) if args.compile else pipeline.transformer
    flow = (forward, scenes, conditions, args.transformer_steps, args.device)
    fit(transformer_stage("transformer", pipeline, *flow), args.work_dir, args.seed)
    worn = render_scenes(args.num_scenes, args.seed, WORN_SHARE)
    flow = (forward, worn, conditions, args.weathering_steps, args.device)
    fit(transformer_stage("weathering", pipeline, *flow), args.work_dir, args.seed)

    sample_sheet(pipeline, args.work_dir / "samples.png")
    pipeline.to("cpu")
    pipeline.transformer.to(torch.float16)  # on disk only: from_pretrained gives back fp32
    pipeline.save_pretrained(args.out)
    print(f"wrote {args.out} and {args.work_dir / 'samples.png'} ({len(words('test'))} held-out words)")
