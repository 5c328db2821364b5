"""CLIP's image preprocessing in torch, differentiable. Also the way back, from the tower's cells to the image's pixels.

Both directions are separable: each is one small matrix for the rows and one for the columns. So the crop is free (only the
rows and columns that survive it are computed), and every size and aspect ratio is cheap.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Of OpenAI's models, and of most later ones.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

RESIZES = ("bicubic", "bilinear")

PILLOW_ONE = 2**22  # Pillow's weights are integers; this one stands for 1.0


@dataclass(frozen=True)
class ClipPreprocess:
    """Resize with antialiasing, cut out the centre, normalise the channels.

    crop: (height, width) that the tower reads.
    shortest_edge: what the image's shorter edge is resized to, its aspect kept; None squashes the image to the crop.
    mean, std: per channel, for values in [0, 1].
    rounded_offset: where the crop begins if an odd number of pixels n is cut away: True is round(n / 2), as in torchvision
        and open_clip; False is n // 2, as in transformers.
    resize: "bicubic", as in the model's own processor, or "bilinear", as in Flow-GRPO's clipscore.
    Raises ValueError if the crop would be larger than the resized image, and for an unknown filter.
    """

    crop: tuple[int, int]
    shortest_edge: int | None
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    rounded_offset: bool = False
    resize: str = "bicubic"

    def __post_init__(self):
        if self.resize not in RESIZES:
            raise ValueError(f"unknown resize {self.resize!r}; choose one of {', '.join(RESIZES)}")
        if self.shortest_edge is not None and max(self.crop) > self.shortest_edge:
            raise ValueError(
                f"a crop of {self.crop} does not fit an image whose shorter edge is resized to {self.shortest_edge}; "
                "mend the model's preprocessor_config.json"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W), float in [0, 1], as the tower reads them: (B, 3, *crop) fp32.

        "bicubic" equals the model's own processor on the same 8-bit image. At some sizes a few pixels differ by one level.
        Like Pillow, it rounds to 8 bits after each of the two passes. The gradient treats this rounding as the identity (a
        straight-through estimator), and is zero where a value is clamped. "bilinear" equals torchvision's Resize of the
        float image, which does not round.
        """
        cuts = [self._cut(axis, images.shape[2:]) for axis in (0, 1)]
        if self.resize == "bilinear":
            size = [cut.resized for cut in cuts]
            whole = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
            rows, cols = (slice(cut.start, cut.start + cut.length) for cut in cuts)
            return self._normalised(whole[..., rows, cols])
        # fp64: where TF32 is allowed, fp32 products would be off by levels, and maps by more than their range allows
        passes = [(axis, cuts[axis].resampling().to(images.device)) for axis in _pass_order(*cuts)]
        # one image at a time: fp64 copies of a whole batch could need more memory than the tower
        levels = torch.stack([_resized(image, passes) for image in images])  # (B, 3, *crop)
        return self._normalised(levels / 255)

    def window(self, size: tuple[int, int]) -> tuple[slice, slice]:
        """The rows and columns of an image of `size` (H, W) whose centres lie in the crop."""
        rows, cols = (self._cut(axis, size).pixels for axis in (0, 1))
        return rows, cols

    def to_window(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        """Spread maps over the crop's cells (B, rows, cols) to the pixels of `window(size)`: (B, h, w) fp32.

        Bilinear; antialiased if the image has fewer pixels than there are cells. Values keep their range.
        """
        rows, cols = (self._cut(axis, size).spreading(cells.shape[1 + axis]).to(cells.device) for axis in (0, 1))
        return (rows @ cells.double() @ cols.T).float()

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (pixels - mean) / std

    def _cut(self, axis: int, size: tuple[int, int]) -> "_Cut":
        num_pixels, length = size[axis], self.crop[axis]
        if self.shortest_edge is None:
            return _Cut(num_pixels, resized=length, start=0, length=length)
        short = min(size)
        resized = self.shortest_edge if num_pixels == short else int(self.shortest_edge * num_pixels / short)
        spare = resized - length
        start = round(spare / 2) if self.rounded_offset else spare // 2
        return _Cut(num_pixels, resized, start, length)


@dataclass(frozen=True)
class _Cut:
    """One axis of the preprocessing: num_pixels are resized to `resized` pixels; `length` of them, from `start` on, are kept."""

    num_pixels: int
    resized: int
    start: int
    length: int

    @property
    def pixels(self) -> slice:
        """The image's pixels whose centres lie in the kept part; at least one."""
        scale = self.num_pixels / self.resized
        first = min(max(math.ceil(self.start * scale - 0.5), 0), self.num_pixels - 1)
        last = min(math.ceil((self.start + self.length) * scale - 0.5), self.num_pixels)
        return slice(first, max(last, first + 1))

    def resampling(self) -> Tensor:
        """(length, num_pixels): each row makes one kept pixel from the image's pixels."""
        scale = self.num_pixels / self.resized
        centres = (self.start + torch.arange(self.length, dtype=torch.float64) + 0.5) * scale
        weights = _weights(centres, self.num_pixels, max(scale, 1.0), _cubic, reach=2.0)
        return (weights * PILLOW_ONE).round() / PILLOW_ONE

    def spreading(self, num_cells: int) -> Tensor:
        """(pixels, num_cells): each row makes one pixel of the window from the cells of the kept part."""
        inside = self.pixels
        scale = self.resized / self.num_pixels * num_cells / self.length  # cells per pixel
        centres = (torch.arange(inside.start, inside.stop, dtype=torch.float64) + 0.5) * scale
        centres = (centres - self.start * num_cells / self.length).clamp(0, num_cells)
        return _weights(centres, num_cells, max(scale, 1.0), _triangle, reach=1.0)


def _resized(image: Tensor, passes: Sequence[tuple[int, Tensor]]) -> Tensor:
    """An image (3, H, W) in [0, 1] resampled along each pass's axis: 8-bit levels as fp32."""
    levels = _to_levels(image.double() * 255)
    for axis, matrix in passes:
        levels = _to_levels(levels @ matrix.T if axis else matrix @ levels)
    return levels.float()


def _pass_order(rows: _Cut, cols: _Cut) -> tuple[int, int]:
    """Which axis is resized first, 0 for height or 1 for width. It matters where the first pass overshoots and is clamped.

    Pillow 13 begins with the height if it loses more than twice as many pixels as the width; Pillow 12 never does.
    """
    lost_rows, lost_cols = rows.num_pixels - rows.resized, cols.num_pixels - cols.resized
    return (0, 1) if lost_rows > 2 * max(lost_cols, 0) else (1, 0)


def _weights(
    centres: Tensor, num_inputs: int, width: float, kernel: Callable[[Tensor], Tensor], reach: float
) -> Tensor:
    """(len(centres), num_inputs) fp64: the kernel, widened by `width`, around each centre; every row sums to 1.

    At the border the kernel is cut off, and the rest is scaled up, as in Pillow.
    """
    distance = (torch.arange(num_inputs, dtype=torch.float64) + 0.5 - centres[:, None]) / width
    weights = torch.where(distance.abs() < reach, kernel(distance.abs()), 0)
    return weights / weights.sum(dim=1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5, for 0 <= x < 2 (Keys, 1981)."""
    return torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)


def _triangle(x: Tensor) -> Tensor:
    return 1 - x


def _to_levels(values: Tensor) -> Tensor:
    values = values.clamp(0, 255)
    return values + ((values + 0.5).floor() - values).detach()
