"""OCR engines behind one protocol: an engine takes an image and returns its lines of text."""

import importlib.util
import inspect
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..option_types import checked_options
from .character_places import place_characters
from .contrast import VisibleText
from .paddle import load_paddleocr
from .tesseract import load_tesseract


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
        0 is the left or top edge of the first pixel. Anything that numpy converts to this may be given.
    text: as recognised, neither normalised nor stripped.
    confidence: the engine's own, in [0, 1].
    characters: the characters of the text in order, spaces included; None if the engine was not asked for them.
    """

    quad: np.ndarray
    text: str
    confidence: float
    characters: tuple[Character, ...] | None = None

    def __post_init__(self):
        quad = np.asarray(self.quad, dtype=np.float32)
        if quad.shape != (4, 2) or not np.isfinite(quad).all():
            raise ValueError(f"quad must be 4 finite corners (x, y), got {self.quad!r}")
        if not isinstance(self.text, str):
            raise ValueError(f"text must be a string, got {type(self.text).__name__}; decode it first")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must lie in [0, 1], got {self.confidence!r} for {self.text!r}")
        if self.characters is not None and "".join(character.text for character in self.characters) != self.text:
            raise ValueError(f"characters must spell the text {self.text!r}, got {self.characters!r}")
        object.__setattr__(self, "quad", quad)  # the dataclass is frozen


class OcrEngine(Protocol):
    """Reads an image. A failure raises an error: it must differ from an image without text."""

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        """The lines of an image (H, W, 3), uint8 RGB, in the engine's reading order; empty where there is no text."""


# Both engines use these settings, so that they find the same boxes. RapidOCR's own settings enlarge the short side to 736
# pixels, which makes a small image 30 times as slow.
_DETECTOR = {"limit_type": "max", "thresh": 0.2, "box_thresh": 0.45, "unclip_ratio": 1.4, "use_dilation": True}
_MAX_SIDE = 960  # PaddleOCR's own


class RapidOcr:
    """RapidOCR with the PP-OCRv6-small weights that its wheel carries: no download, one CPU thread, safe in threads.

    max_side: pixels. The detector sees a larger image shrunk to this side; the recogniser sees its own size. The detector
        takes two thirds of the time at 512 pixels; docs/ocr-rewards.md says what accuracy a smaller side costs.
    characters: also give each character's confidence and place. The lines' texts and confidences do not change.
    Raises ImportError if the package is missing, and FileNotFoundError if it came without these weights.
    """

    @checked_options
    def __init__(self, max_side: int = _MAX_SIDE, characters: bool = False):
        # onnxruntime writes telemetry files unless this is set before its import
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import rapidocr
        except ImportError as error:
            raise ImportError('the "rapidocr" engine needs RapidOCR: pip install "flow-grpo-maps[ocr]"') from error
        detector, recogniser = self._weights()
        params = {
            "Global.log_level": "error",
            "Global.text_score": 0.0,  # doubtful lines too: their confidence is part of the reward
            "Global.use_cls": False,  # no orientation classifier, as in Flow-GRPO
            "Global.return_word_box": characters,
            # the detector resizes by itself; RapidOCR's extra resizing differs from PaddleOCR's, and fails on thin images
            "Global.use_preprocess_img": False,
            "Global.use_vertical_padding": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "EngineConfig.onnxruntime.enable_cpu_mem_arena": True,  # onnxruntime's default; RapidOCR turns it off
            "Det.model_path": detector,
            **{f"Det.{name}": value for name, value in _detector(max_side).items()},
            "Det.mean": [0.485, 0.456, 0.406],
            "Det.std": [0.229, 0.224, 0.225],
            "Rec.model_path": recogniser,
        }
        self._ocr = rapidocr.RapidOCR(params=params)
        self._characters = characters
        # RapidOCR's own word boxes drop the spaces but keep their confidences, so words get each other's confidences
        self._ocr.cal_rec_boxes = place_characters

    @staticmethod
    def _weights() -> tuple[str, str]:
        """Files of the detector and of the recogniser."""
        import rapidocr

        models, install = Path(rapidocr.__file__).parent / "models", '"flow-grpo-maps[ocr]"'
        return tuple(_weight_file(models / f"PP-OCRv6_{part}_small.onnx", install) for part in ("det", "rec"))

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        # pass no options here: RapidOCR would keep them for later calls
        result = self._ocr(_bgr(image))
        if result.boxes is None:
            return []
        texts = getattr(result, "txts", None)
        if texts is None:  # RapidOCR logs a failed recogniser and returns the detector's boxes alone
            raise RuntimeError(f"RapidOCR found {len(result.boxes)} lines of text but its recogniser read none of them")
        characters = [None] * len(texts)
        if self._characters:
            characters = [tuple(Character(*found, *place) for *found, place in line) for line in result.word_results]
        return _text_lines(zip(result.boxes, texts, result.scores, characters, strict=True))


class PpOcrV4(RapidOcr):
    """RapidOCR with the PP-OCRv4 weights that the rapidocr-onnxruntime wheel carries: a second reader, to check the first.

    How independent it is: partly. Its networks are not PP-OCRv6's and are two generations older. But the same group trained
    them, on overlapping data, and the code around them is the same. It catches text that only one set of weights sees. It
    does not catch errors that the whole family shares. Options and errors are RapidOcr's.
    """

    @staticmethod
    def _weights() -> tuple[str, str]:
        wheel = importlib.util.find_spec("rapidocr_onnxruntime")  # not imported: it is an older RapidOCR
        models = Path(wheel.origin).parent / "models" if wheel else Path("rapidocr_onnxruntime")
        install = '"flow-grpo-maps[gold]", or --no-deps rapidocr-onnxruntime,'
        return tuple(_weight_file(models / f"ch_PP-OCRv4_{part}_infer.onnx", install) for part in ("det", "rec"))


class Tesseract:
    """The program Tesseract, which must be installed: a second reader, to check the first.

    How independent it is: entirely. Its layout analysis, networks and training data (rendered text) share nothing with
    PaddleOCR's. It is made for print: upright lines on plain backgrounds. If it cannot read a picture, the text may still be
    right.
    language: Tesseract's names, such as "eng" or "eng+deu".
    Raises FileNotFoundError if the program is missing, and ValueError if it does not have the language.
    """

    @checked_options
    def __init__(self, language: str = "eng"):
        self._read_lines = load_tesseract(language)

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        rgb = np.ascontiguousarray(_bgr(image)[..., ::-1])
        return [TextLine(*line) for line in self._read_lines(rgb)]


class PaddleOcr:
    """PaddleOCR 2.10 or 3.7, whichever is installed, without orientation classifier or unwarping, as in Flow-GRPO.

    It computes in one CPU thread. Several threads may share an engine; they take turns.
    max_side: as in RapidOcr. runtime: the library that computes the models, "onnxruntime" or "paddle".
    weights: a folder with the model folders `det` and `rec`, each with `inference.yml` and the runtime's model. None
        takes the weights of the rapidocr wheel (only with onnxruntime), or else lets PaddleOCR download its own.
    characters: PaddleOCR gives none, so True is an error.
    Raises ImportError for a missing package, and FileNotFoundError if no weights can be found or downloaded.
    """

    @checked_options
    def __init__(
        self,
        max_side: int = _MAX_SIDE,
        runtime: str = "onnxruntime",
        weights: str | Path | None = None,
        characters: bool = False,
    ):
        if characters:
            raise ValueError('PaddleOCR gives no confidence of a character; the engine "rapidocr" does')
        self._read_lines = load_paddleocr(runtime, weights, _detector(max_side))
        # Paddle's predictors give wrong results, or crash, when two threads share them
        self._lock = threading.Lock()

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        bgr = _bgr(image)
        with self._lock:
            lines = self._read_lines(bgr)
        # a box without any text is not a line, as in RapidOCR
        return _text_lines((*line, None) for line in lines if line[1].strip())


def _detector(max_side: int) -> dict:
    if max_side < 32:
        raise ValueError(f"max_side must be 32 pixels or more, got {max_side}; 960 is PaddleOCR's own")
    return _DETECTOR | {"limit_side_len": max_side}


def _bgr(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0 or image.dtype != np.uint8:
        raise ValueError(f"an OCR engine reads an image (H, W, 3), uint8 RGB; got {image.dtype} {image.shape}")
    return np.ascontiguousarray(image[..., ::-1])


def _text_lines(lines: Iterable[tuple]) -> list[TextLine]:
    """TextLines from the (quad, text, confidence, characters) that an engine gives."""
    # rounding may lift a mean of fp32 probabilities above 1
    return [TextLine(_start_first(quad), text, min(float(score), 1.0), chars) for quad, text, score, chars in lines]


def _start_first(quad: np.ndarray) -> np.ndarray:
    """The corners (4, 2) of an upright box, reordered so that the first one is where its text starts.

    Both engines take the text of a box to run down if the box is at least 1.5 times as high as wide. They turn such a box
    by a quarter before they read it.
    """
    quad = np.asarray(quad, dtype=np.float32)
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1).astype(int)  # rounds as they do
    return np.roll(quad, -1, axis=0) if max(right, left) >= 1.5 * max(top, bottom) else quad


_ENGINES: dict[str, Callable[..., OcrEngine]] = {
    "paddleocr": PaddleOcr,
    "ppocrv4": PpOcrV4,
    "rapidocr": RapidOcr,
    "tesseract": Tesseract,
}


def make_engine(engine: str | OcrEngine, min_contrast: float = 0.0, **options) -> OcrEngine:
    """Build an engine from its name and its class's options. An OcrEngine is returned as it is.

    min_contrast: above 0, of 255 grey levels: a line of any engine that stands out less has confidence 0 (`VisibleText`).
    Raises ValueError for an unknown name or option, and ImportError if the engine's package is missing.
    """
    built = _built(engine, options)
    return VisibleText(built, min_contrast) if min_contrast else built


def _built(engine: str | OcrEngine, options: dict) -> OcrEngine:
    if isinstance(engine, type):
        kind = engine.__name__
        raise ValueError(f"{kind} is the class of an engine; give an object of it, {kind}(...)")
    if callable(engine):
        if options:
            raise ValueError(f"an OcrEngine is built already and takes no options, got {', '.join(options)}")
        return engine
    if not isinstance(engine, str) or engine not in _ENGINES:
        raise ValueError(f"unknown OCR engine {engine!r}; known: {', '.join(sorted(_ENGINES))}, or give an OcrEngine")
    known = inspect.signature(_ENGINES[engine]).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{engine!r} has no option {', '.join(unknown)}; known: {', '.join(known)}")
    return _ENGINES[engine](**options)


def _weight_file(path: Path, install: str) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"RapidOCR came without {path.name}; pip install {install} brings a release with it")
    return str(path)
