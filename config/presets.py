"""Runs on smaller GPUs: what `--config.preset=24gb` makes of a run, by model.

The figures are computed for 512 px and a LoRA by scripts/memory_table.py, not measured. A test holds each row to the card: the
computed need, with 3 GiB for the VAE's decoder, leaves a tenth of the card free.
"""

from dataclasses import dataclass

import ml_collections

from config.geometry import divides
from flow_grpo.training.image_size import Resolution, image_size

SIZES = ("24gb", "48gb", "80gb")
PIXELS = 512 * 512  # that the figures are computed for
INSTEAD = "leave preset out, and set batch_size, gradient_checkpointing and offload (scripts/memory_table.py computes what they need)"


@dataclass(frozen=True)
class Fit:
    """What one GPU holds. batch_size: the most images. The flags: what must be on for that."""

    batch_size: int
    gradient_checkpointing: bool = False
    offload: bool = False


# The end of a model's name on the hub -> card -> what fits. A card that is missing is too small.
FITS = {
    "stable-diffusion-3.5-medium": {"24gb": Fit(4, offload=True), "48gb": Fit(8, offload=True), "80gb": Fit(9)},
    "FLUX.2-klein-base-4B": {"24gb": Fit(4, gradient_checkpointing=True), "48gb": Fit(2), "80gb": Fit(4)},
    "Z-Image": {
        "24gb": Fit(4, gradient_checkpointing=True, offload=True),
        "48gb": Fit(12, gradient_checkpointing=True),
        "80gb": Fit(24, gradient_checkpointing=True),
    },
    "FLUX.2-klein-base-9B": {"48gb": Fit(4, gradient_checkpointing=True), "80gb": Fit(2)},
    "FLUX.1-dev": {"48gb": Fit(3, gradient_checkpointing=True), "80gb": Fit(4)},
    "Qwen-Image": {"80gb": Fit(8, gradient_checkpointing=True, offload=True)},
    "Qwen-Image-2.1": {
        "24gb": Fit(4, gradient_checkpointing=True, offload=True),
        "48gb": Fit(12, gradient_checkpointing=True),
        "80gb": Fit(4),
    },
}


def fit(config: ml_collections.ConfigDict) -> None:
    """Make a filled-in configuration fit the card of `preset`; nothing without one.

    It lowers batch_size, and turns gradient_checkpointing and offload on, never the other way: the same epochs, in smaller
    pieces. Raises ValueError where the model, its size or its training is not in the table, and where no card is large enough.
    """
    if not config.preset:
        return
    cards = FITS.get(config.model.rstrip("/").rpartition("/")[2])
    if cards is None:
        raise ValueError(f"preset={config.preset} knows {', '.join(FITS)}, and not model={config.model}; {INSTEAD}")
    if config.train.adapter != "lora":
        raise ValueError(
            f"preset={config.preset} is computed for a LoRA, and this run has train.adapter={config.train.adapter}; {INSTEAD}"
        )
    for resolution in (config.resolution, config.eval_resolution or config.resolution):
        check_images(config.preset, resolution)
    if config.preset not in cards:
        raise ValueError(
            f"{config.model} does not fit preset={config.preset}; the smallest that it fits is {min(cards)}"
        )
    card = cards[config.preset]
    most = min(config.batch_size, card.batch_size)
    config.batch_size = max((b for b in range(1, most + 1) if divides(config, b)), default=most)
    config.gradient_checkpointing |= card.gradient_checkpointing
    config.offload |= card.offload


def check_images(preset: str, resolution: Resolution) -> None:
    """Raise ValueError where images of this size are larger than those that a preset is computed for; none has no limit.

    A run asks again for the prompts that bring a size of their own, once it has read them.
    """
    height, width = image_size(resolution)
    if preset and height * width > PIXELS:
        raise ValueError(
            f"preset={preset} is computed for images of up to 512 x 512 pixels, and resolution={resolution} has more; "
            f"draw smaller ones, or {INSTEAD}"
        )
