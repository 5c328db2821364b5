"""OCR engines behind one protocol: an image in, its lines of text out."""

import importlib.util
import inspect
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

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


# For both engines, so that they find the same boxes. RapidOCR's own settings enlarge the short side to 736 pixels, which
# costs a small image 30 times the time.
_DETECTOR = {
    "limit_type": "max",
    "thresh": 0.2,
    "box_thresh": 0.45,
    "unclip_ratio": 1.4,
    "use_dilation": True,
}
_MAX_SIDE = 960  # PaddleOCR's own


class RapidOcr:
    """RapidOCR with the PP-OCRv6-small weights that its wheel carries: no download, one CPU thread, safe in threads.

    max_side: pixels; a larger image is shrunk to it for the detector, and read at its own size. The detector is two
        thirds of the work at 512 pixels; what a smaller side costs stands in docs/ocr-rewards.md.
    characters: also give each character's confidence and place; texts and confidences of the lines stay what they are.
    Raises ImportError where the package is missing, FileNotFoundError where it came without these weights.
    """

    def __init__(self, max_side: int = _MAX_SIDE, characters: bool = False):
        # onnxruntime writes telemetry files unless told before its import
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
            # no resizing and no padding before the detector's own: they differ from PaddleOCR's, and fail on a thin image
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
        # RapidOCR's own boxes drop the spaces but not their confidences, so that each word takes its neighbour's
        self._ocr.cal_rec_boxes = _place_characters

    @staticmethod
    def _weights() -> tuple[str, str]:
        """Files of the detector and of the recogniser."""
        import rapidocr

        models, install = Path(rapidocr.__file__).parent / "models", '"flow-grpo-maps[ocr]"'
        return tuple(_weight_file(models / f"PP-OCRv6_{part}_small.onnx", install) for part in ("det", "rec"))

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        # no options here: those given to a call would stick to the object
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

    How independent it is: its networks are others than PP-OCRv6's and were trained two generations earlier, but by the same
    group, on data that overlap, and the library's code around them is the same. It catches what only one set of weights
    sees, and not what all of that family share. Options and errors are RapidOcr's.
    """

    @staticmethod
    def _weights() -> tuple[str, str]:
        wheel = importlib.util.find_spec("rapidocr_onnxruntime")  # not imported: it is an older RapidOCR
        models = Path(wheel.origin).parent / "models" if wheel else Path("rapidocr_onnxruntime")
        install = '"flow-grpo-maps[gold]", or --no-deps rapidocr-onnxruntime,'
        return tuple(_weight_file(models / f"ch_PP-OCRv4_{part}_infer.onnx", install) for part in ("det", "rec"))


class Tesseract:
    """The program Tesseract, where it is installed: a second reader, to check the first.

    How independent it is: entirely. Its layout analysis, networks and training data (rendered text) share nothing with
    PaddleOCR's. It is made for print: upright lines, plain grounds. What it does not read on a picture need not be wrong.
    language: Tesseract's names, such as "eng" or "eng+deu".
    Raises FileNotFoundError where the program is missing, ValueError where it does not have the language.
    """

    def __init__(self, language: str = "eng"):
        self._read_lines = load_tesseract(language)

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        rgb = np.ascontiguousarray(_bgr(image)[..., ::-1])
        return [TextLine(*line) for line in self._read_lines(rgb)]


class PaddleOcr:
    """PaddleOCR 2.10 or 3.7, whichever is installed, without orientation classifier or unwarping, as in Flow-GRPO.

    One CPU thread. Threads may share an engine; they take turns.
    max_side: as RapidOcr's. runtime: "onnxruntime" or "paddle", what computes the models.
    weights: a folder with the model folders `det` and `rec`, each with `inference.yml` and the runtime's model; None
        takes what the rapidocr wheel carries (ONNX Runtime alone), or else what PaddleOCR itself downloads.
    characters: PaddleOCR gives none, so True is an error.
    Raises ImportError for a missing package, FileNotFoundError where no weights can be had.
    """

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
        # a box in which nothing was read is no line, as in RapidOCR
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
    """Lines of (quad, text, confidence, characters) as either engine gives them."""
    # a mean of fp32 probabilities may pass 1 by rounding
    return [TextLine(_start_first(quad), text, min(float(score), 1.0), chars) for quad, text, score, chars in lines]


def _start_first(quad: np.ndarray) -> np.ndarray:
    """The corners of an upright box (4, 2), from where its text starts.

    Both engines turn a box that is 1.5 times as high as wide by a quarter before they read it: its text runs down.
    """
    quad = np.asarray(quad, dtype=np.float32)
    top, right, bottom, left = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1).astype(int)  # as they round
    return np.roll(quad, -1, axis=0) if max(right, left) >= 1.5 * max(top, bottom) else quad


def _place_characters(crops, boxes, recognised, single):
    """Stands in for RapidOCR's word boxes: each character of each line, with its confidence and its (start, end)."""
    recognised.word_results = [
        list(zip(text, words.confs, _extents(text, sum(words.word_cols, []), words.line_txt_len), strict=True))
        for text, words in zip(recognised.txts, recognised.word_results, strict=True)
    ]
    return recognised


def _extents(text: str, columns: list[int], num_columns: float) -> list[tuple[float, float]]:
    """Where each character of a line begins and ends, as shares of the line.

    columns: the recogniser's (CTC) for each character that is no space, of num_columns over the line. A character reaches
    half-way to its neighbours; spaces, whose columns are not given, stand evenly between theirs.
    """
    order = np.arange(len(text))
    seen = [not character.isspace() for character in text]
    centres = np.interp(order, order[seen], (np.array(columns) + 0.5) / num_columns)
    edges = (centres[1:] + centres[:-1]) / 2
    first, last = (2 * centres[0] - edges[0], 2 * centres[-1] - edges[-1]) if len(edges) else (0, 1)
    edges = np.clip([first, *edges, last], 0, 1).tolist()
    return list(zip(edges, edges[1:]))


_ENGINES: dict[str, Callable[..., OcrEngine]] = {
    "paddleocr": PaddleOcr,
    "ppocrv4": PpOcrV4,
    "rapidocr": RapidOcr,
    "tesseract": Tesseract,
}


def make_engine(engine: str | OcrEngine, **options) -> OcrEngine:
    """An engine by its name, built now with its class's options; an OcrEngine is returned as it is.

    Raises ValueError for an unknown name or option, ImportError where the engine's package is missing.
    """
    if callable(engine):
        if options:
            raise ValueError(f"an OcrEngine is built already and takes no options, got {', '.join(options)}")
        return engine
    if engine not in _ENGINES:
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
