"""OCR engines behind one protocol: an image in, its lines of text out."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from flow_grpo.score import to_uint8


@dataclass(frozen=True, eq=False)
class Character:
    """One character of a line, as an engine read it.

    confidence: the engine's own, in [0, 1].
    start, end: where it lies along the line, as shares of the way from the quad's left edge (corners 0 and 3) to its
        right edge (corners 1 and 2); 0 <= start <= end <= 1.
    """

    text: str
    confidence: float
    start: float
    end: float

    def __post_init__(self):
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence!r} for {self.text!r}")
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"need 0 <= start <= end <= 1, got {self.start!r} and {self.end!r} for {self.text!r}")


@dataclass(frozen=True, eq=False)
class TextLine:
    """A line of text that an engine read.

    quad: (4, 2) float32, corners (x, y) in pixels of the image, clockwise from the start of the line's top edge;
        0 is the left or top edge of the first pixel. Anything that converts to it may be given.
    text: as recognised, neither normalised nor stripped.
    confidence: the engine's own, in [0, 1].
    characters: those of the text, spaces included, in its order; None where the engine was not asked for them.
    """

    quad: np.ndarray
    text: str
    confidence: float
    characters: tuple[Character, ...] | None = None

    def __post_init__(self):
        quad = np.asarray(self.quad, dtype=np.float32)
        if quad.shape != (4, 2) or not np.isfinite(quad).all():
            raise ValueError(f"quad must be 4 finite corners (x, y), got {self.quad!r}")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence!r} for {self.text!r}")
        if self.characters is not None and "".join(character.text for character in self.characters) != self.text:
            raise ValueError(f"characters must spell the text {self.text!r}, got {self.characters!r}")
        object.__setattr__(self, "quad", quad)  # the dataclass is frozen


class OcrEngine(Protocol):
    """Reads an image. A failure raises: no text and no answer are different things."""

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        """The lines of an image (H, W, 3), uint8 RGB, in the engine's reading order; empty where there is no text."""


class RapidOcr:
    """RapidOCR with the PP-OCRv6-small weights that its wheel carries: no download, one CPU thread, safe in threads.

    The detector is set as PaddleOCR sets it; RapidOCR's own defaults enlarge the short side to 736 pixels, which costs a
    small image 30 times the time.
    Raises ImportError where the package is missing, FileNotFoundError where it came without these weights.
    """

    def __init__(self):
        # onnxruntime writes telemetry files unless told before its import
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import rapidocr
        except ImportError as error:
            raise ImportError('the "rapidocr" engine needs RapidOCR: pip install "flow-grpo-maps[ocr]"') from error
        weights = Path(rapidocr.__file__).parent / "models"
        params = {
            "Global.log_level": "error",
            "Global.text_score": 0.0,  # doubtful lines too: their confidence is part of the reward
            "Global.use_cls": False,  # no orientation classifier, as in Flow-GRPO
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Det.model_path": _weight_file(weights / "PP-OCRv6_det_small.onnx"),
            "Det.limit_type": "max",
            "Det.limit_side_len": 960,
            "Det.thresh": 0.2,
            "Det.box_thresh": 0.45,
            "Det.unclip_ratio": 1.4,
            "Det.mean": [0.485, 0.456, 0.406],
            "Det.std": [0.229, 0.224, 0.225],
            "Rec.model_path": _weight_file(weights / "PP-OCRv6_rec_small.onnx"),
        }
        self._ocr = rapidocr.RapidOCR(params=params)

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        # no options here: those given to a call would stick to the object
        result = self._ocr(np.ascontiguousarray(image[..., ::-1]))  # BGR
        if result.boxes is None:
            return []
        texts = getattr(result, "txts", None)
        if texts is None:  # RapidOCR logs a failed recogniser and returns the detector's boxes alone
            raise RuntimeError(f"RapidOCR found {len(result.boxes)} lines of text but its recogniser read none of them")
        # a mean of fp32 probabilities may pass 1 by rounding
        confidences = [min(float(score), 1.0) for score in result.scores]
        return [TextLine(*line) for line in zip(result.boxes, texts, confidences, strict=True)]


_ENGINES: dict[str, Callable[[], OcrEngine]] = {"rapidocr": RapidOcr}


def make_engine(engine: str | OcrEngine) -> OcrEngine:
    """An engine by its name, built now; an OcrEngine is returned as it is.

    Raises ValueError for an unknown name, ImportError where the engine's package is missing.
    """
    if callable(engine):
        return engine
    if engine not in _ENGINES:
        raise ValueError(f"unknown OCR engine {engine!r}; known: {', '.join(sorted(_ENGINES))}, or give an OcrEngine")
    return _ENGINES[engine]()


def read_images(engine: OcrEngine, images: Tensor) -> list[list[TextLine]]:
    """The lines of each image of a batch (B, 3, H, W), float in [0, 1], on any device, in order."""
    return [engine(image) for image in to_uint8(images)]


def _weight_file(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(
            f'RapidOCR came without {path.name}; pip install "flow-grpo-maps[ocr]" brings a release with it'
        )
    return str(path)
