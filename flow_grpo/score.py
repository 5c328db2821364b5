"""What a scorer is and what it returns: a reward per image and, where it has one, a map of where the reward was earned."""

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

MapKind = Literal["reward", "importance"]

# Rounding of a clamp, a blur or a resize in float; one fortieth of an 8-bit level.
RANGE_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False)
class Score:
    """Rewards of a batch of B images, checked when it is made.

    reward: (B,) float, finite.
    reward_map: (B, H, W) float in [0, 1], row 0 at the top; None where the scorer has no map.
    map_kind: "reward" (0 bad, neutral, 1 good: how good each pixel is), "importance" (where the reward came from),
        or None without a map.
    map_valid: (B,) bool. Where it is False, the image's map is neither used nor checked.
        Left out: True for every image that is valid; False without a map.
    details: {name: (B,)} what the scorer measured on the way, for tracking.
    valid: (B,) bool. Where it is False, the image could not be scored. It then gets no advantage, its reward and details
        are placeholders (such as the mean of the others), and its map_valid must be False. Left out: True for every image.
    neutral: in [0, 1], what a reward map holds where it has nothing to say.
    read: B texts, what the scorer read in each image, for people to look at; None where the scorer does not read.

    Raises ValueError where a shape, a range or the pairing of map and kind is wrong.
    """

    reward: Tensor
    reward_map: Tensor | None = None
    map_kind: MapKind | None = None
    map_valid: Tensor | None = None
    details: Mapping[str, Tensor] = field(default_factory=dict)
    valid: Tensor | None = None
    neutral: float = 0.5
    read: tuple[str, ...] | None = None

    def __post_init__(self):
        if not _is_float_tensor(self.reward, ndim=1):
            raise ValueError(
                f"reward must be (B,) float, got {_describe(self.reward)}; give a tensor, a number per image"
            )
        if not self.reward.isfinite().all():
            raise ValueError(f"reward must be finite, got {self.reward.tolist()}; raise in the scorer instead")
        for name, values in self.details.items():
            if not isinstance(values, Tensor) or values.shape != self.reward.shape:
                raise ValueError(f"details[{name!r}] must be {tuple(self.reward.shape)}, got {_describe(values)}")
        if self.read is not None and (isinstance(self.read, str) or len(self.read) != len(self.reward)):
            got = "one string" if isinstance(self.read, str) else len(self.read)
            raise ValueError(f"read must be one text per image, got {got} for {len(self.reward)} images")
        if self.neutral is None or not 0 <= self.neutral <= 1:
            raise ValueError(f"neutral must lie in [0, 1], got {self.neutral}; 0.5 is half-way between bad and good")
        if self.valid is None:
            object.__setattr__(self, "valid", torch.ones_like(self.reward, dtype=torch.bool))  # the dataclass is frozen
        _check_flags("valid", self.valid, len(self.reward))
        if self.map_valid is None:
            object.__setattr__(self, "map_valid", self.valid & (self.reward_map is not None))
        self._check_map()

    def _check_map(self):
        batch = len(self.reward)
        _check_flags("map_valid", self.map_valid, batch)
        if (self.map_valid & ~self.valid).any():
            raise ValueError("map_valid must be False where valid is: an image that could not be scored has no map")
        if self.reward_map is None:
            if self.map_kind is not None or self.map_valid.any():
                raise ValueError(
                    f"without a reward_map, map_kind must be None and map_valid all False, got map_kind={self.map_kind!r} "
                    f"and map_valid={self.map_valid.tolist()}; give the map too"
                )
            return
        if self.map_kind not in ("reward", "importance"):
            raise ValueError(f'a reward_map needs map_kind "reward" or "importance", got {self.map_kind!r}')
        if not _is_float_tensor(self.reward_map, ndim=3) or len(self.reward_map) != batch:
            raise ValueError(f"reward_map must be ({batch}, H, W) float, got {_describe(self.reward_map)}")
        _check_unit_range(
            "reward_map", self.reward_map[self.map_valid], "normalise or clamp it, or mark the image invalid"
        )


class PromptErrors(ValueError):
    """Prompts of a data set that a scorer cannot score.

    faults: {index of the prompt: what is wrong with it}. number: how many prompts were checked.
    """

    def __init__(self, faults: Mapping[int, str], number: int):
        self.faults, self.number = dict(faults), number
        shown = [f"prompt {index}: {fault}" for index, fault in list(self.faults.items())[:3]]
        super().__init__(f"{len(self.faults)} of {number} prompts cannot be scored: {'; '.join(shown)}")


class Scorer(Protocol):
    """Anything that scores images. Several threads may call it at once, so it keeps no state between calls."""

    def __call__(
        self, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
    ) -> Score:
        """Score images (B, 3, H, W), float in [0, 1], against one prompt (and one metadata mapping, if any) per image.

        The score's tensors are on the images' device.

        Two more methods are optional:
        submit(images, prompts, metadata): returns a `concurrent.futures.Future` of the Score at once. It is for a scorer
            that works in other processes.
        check_prompts(prompts, metadata): raises PromptErrors that names every prompt which the scorer cannot score.
        """


def check_images(images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Raise ValueError for images, prompts or metadata that no scorer can score.

    images: (B, 3, H, W), any float dtype, values in [0, 1] within RANGE_TOLERANCE, B, H and W at least 1.
    prompts: B strings. metadata: B mappings; None or empty means none.
    The error says what it got, what it wanted and what to do.
    """
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError(
            f"images must be a tensor (B, 3, H, W), got {_describe(images)}; torch.stack a list of tensors, or let "
            "score.to_images convert PIL images and arrays"
        )
    if images.shape[1] != 3:
        hint = "permute(0, 3, 1, 2) them" if images.shape[3] == 3 else "convert them to RGB"
        raise ValueError(f"images must be (B, 3, H, W), got {_describe(images)}; {hint}")
    if images.numel() == 0:
        raise ValueError(f"images must hold at least one pixel, got {_describe(images)}; skip empty batches")
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [0, 1], got {_describe(images)}; use images.float() / 255")
    _check_unit_range("images", images, "clamp an overshoot, divide 8-bit levels by 255, map [-1, 1] by (x + 1) / 2")
    _check_prompts(prompts, len(images))
    _check_metadata(metadata, len(images))


def _check_prompts(prompts: Sequence[str], batch: int) -> None:
    if isinstance(prompts, str) or not hasattr(prompts, "__len__") or len(prompts) != batch:
        got = f"{len(prompts)} prompts" if isinstance(prompts, (list, tuple)) else type(prompts).__name__
        raise ValueError(f"prompts must be one per image, got {got} for {batch} images; give a list of that length")
    for index, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {index} must be a string, got {type(prompt).__name__}; give the image's prompt")


def _check_metadata(metadata: Sequence[Mapping[str, Any] | None] | None, batch: int) -> None:
    if metadata is None or (hasattr(metadata, "__len__") and len(metadata) == 0):
        return
    if isinstance(metadata, (str, Mapping)) or not hasattr(metadata, "__len__") or len(metadata) != batch:
        got = f"{len(metadata)} entries" if isinstance(metadata, (list, tuple)) else type(metadata).__name__
        raise ValueError(f"metadata must be one mapping per image, got {got} for {batch} images; or give None")
    for index, entry in enumerate(metadata):
        if not isinstance(entry, (Mapping, type(None))):
            raise ValueError(f"metadata of image {index} must be a mapping, got {type(entry).__name__}; or give None")


def to_images(pictures: Sequence[Any]) -> Tensor:
    """Pictures as scorers take them: (B, 3, H, W) fp32 in [0, 1], on the CPU.

    pictures: PIL images, or arrays (H, W, 3) uint8, all of one size. A transparent picture is laid on white. A photo is
        turned as its EXIF orientation says, so that it is scored as viewers show it.
    Raises ValueError where a picture is something else, or of another size than the first.
    """
    if isinstance(pictures, Image.Image):
        raise ValueError("give a list of pictures, got Image; [picture] is a list of one")
    arrays = [to_levels(picture) for picture in pictures]
    if not arrays:
        raise ValueError("give at least one picture, got none")
    sizes = sorted({array.shape[:2] for array in arrays})
    if len(sizes) != 1:
        raise ValueError(f"pictures must be of one size, got (height, width) {sizes}; resize them, or score them apart")
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def to_levels(picture: Any) -> np.ndarray:
    """A picture as `to_images` takes it, as (H, W, 3) uint8 RGB.

    A PIL image of mode I (32 bits) or F (floats) is refused: nothing says which of its values is white.
    """
    if isinstance(picture, Image.Image):
        if picture.mode in ("I", "F"):
            raise ValueError(
                f"a picture of mode {picture.mode!r} has no white; scale it to 0 to 255 and convert it to L"
            )
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):  # Pillow would cut at 255 instead of scaling
            picture = Image.fromarray((np.asarray(picture) / 257 + 0.5).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        picture = np.array(picture.convert("RGB"))
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8 and picture.shape[2:] == (3,):
        if picture.size == 0:
            raise ValueError(f"a picture has no pixels, got {_describe(picture)}; leave it out")
        return picture
    raise ValueError(f"a picture must be a PIL image or an array (H, W, 3) uint8, got {_describe(picture)}")


# The last images, their version and their 8-bit levels, kept while the images live: several scorers ask for the same.
_last_levels: tuple[weakref.ref, int, np.ndarray] | None = None


def mean_where_invalid(values: Tensor, valid: Tensor) -> Tensor:
    """The values (B,), with the mean of the valid ones in place of those that are not valid; 0 if none is valid."""
    return torch.where(valid, values, values[valid].mean() if valid.any() else 0.0)


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, 3, H, W), float in [0, 1], as (B, H, W, 3) uint8 RGB in memory, rounded to the nearest level.

    The array is read-only, because the next call with the same images returns the same array.
    """
    global _last_levels
    last = _last_levels  # read once: another thread may put its own there
    # without a version, nobody knows whether they are still the same; nor if numpy has their memory, which is then fixed
    if images.is_inference() or not images.untyped_storage().resizable():
        return _levels(images)
    if last is None or last[0]() is not images or last[1] != images._version:
        _last_levels = last = (weakref.ref(images, _forget_levels), images._version, _levels(images))
    return last[2]


def _forget_levels(images: weakref.ref) -> None:
    global _last_levels
    if _last_levels is not None and _last_levels[0] is images:
        _last_levels = None


def _levels(images: Tensor) -> np.ndarray:
    batch, channels, height, width = images.shape
    levels = torch.empty(batch, height, width, channels, dtype=torch.uint8, device=images.device)
    # one image at a time stays in the cache, and + 0.5 and truncate costs a tenth of round(): a sixth of the time on a CPU
    for image, target in zip(images.detach(), levels):
        target.copy_(image.float().mul(255).add_(0.5).clamp_(0, 255.5).to(torch.uint8).permute(1, 2, 0))
    array = levels.cpu().numpy()
    array.flags.writeable = False
    return array


def _is_float_tensor(value: Any, ndim: int) -> bool:
    return isinstance(value, Tensor) and value.ndim == ndim and value.is_floating_point()


def _check_flags(name: str, flags: Tensor, batch: int) -> None:
    if not isinstance(flags, Tensor) or flags.shape != (batch,) or flags.dtype != torch.bool:
        raise ValueError(f"{name} must be ({batch},) bool, got {_describe(flags)}")


def _check_unit_range(name: str, values: Tensor, remedy: str) -> None:
    if values.numel() == 0:
        return
    low, high = (bound.item() for bound in values.aminmax())  # NaN anywhere makes both NaN
    if math.isnan(low):
        raise ValueError(f"{name} must lie in [0, 1], got NaN; find where it entered")
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(f"{name} must lie in [0, 1], got values from {low:.4g} to {high:.4g}; {remedy}")


def _describe(value: Any) -> str:
    kind = type(value).__name__
    if not hasattr(value, "shape"):
        return kind
    return f"{tuple(value.shape)} {value.dtype}" + ("" if isinstance(value, Tensor) else f" ({kind})")
