"""A reader takes batches of images and gives their lines of text: what fails is read once more, and then left out."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from flow_grpo.ocr_engine import OcrEngine, TextLine, make_engine
from flow_grpo.score import to_uint8

logger = logging.getLogger(__name__)

# An image's lines, or why it could not be read.
Outcome = list[TextLine] | Exception


class Reader(Protocol):
    """Reads batches. Safe to use from several threads; a context manager that closes itself."""

    def submit(self, images: Tensor) -> Callable[[], list[list[TextLine] | None]]:
        """Begin to read images (B, 3, H, W), float in [0, 1], on any device; they are copied before this returns.

        The function returned waits, and gives the lines of each image in order. An image on which the engine fails is read
        once more; where that fails too it has None, and the cause is logged.
        Raises RuntimeError, from the last cause, where no image of the batch could be read.
        """

    def close(self) -> None:
        """Let go of the engines; what was submitted and not yet read raises RuntimeError."""

    def __enter__(self) -> "Reader": ...

    def __exit__(self, *error) -> None: ...


def make_reader(engine: str | OcrEngine, num_workers: int = 0, **engine_options: Any) -> Reader:
    """A reader over an engine by its name (with the engine's options) or an OcrEngine.

    num_workers: 0 reads in this process.
    Raises, at once, what make_engine raises.
    """
    if num_workers != 0:
        raise ValueError(f"num_workers must be 0, got {num_workers}")
    return SerialReader(make_engine(engine, **engine_options))


class SerialReader:
    """Reads in this process, one image at a time, when the result is asked for."""

    def __init__(self, engine: OcrEngine):
        self._engine = engine
        self._lock = threading.Lock()  # not every engine may be shared by threads

    def submit(self, images: Tensor) -> Callable[[], list[list[TextLine] | None]]:
        levels = to_uint8(images)

        def lines() -> list[list[TextLine] | None]:
            with self._lock:
                return lines_of([read_twice(self._engine, image) for image in levels])

        return lines

    def close(self) -> None:
        pass

    def __enter__(self) -> "SerialReader":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def read_twice(engine: OcrEngine, image: np.ndarray) -> Outcome:
    """The lines of an image (H, W, 3), uint8 RGB, or the error of the second of two tries."""
    try:
        return engine(image)
    except Exception:  # whatever an engine raises: its second try tells
        try:
            return engine(image)
        except Exception as error:
            return error


def lines_of(outcomes: Sequence[Outcome]) -> list[list[TextLine] | None]:
    """The lines of a batch, None for each image that failed, which is logged; raises where all of them did."""
    errors = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
    if errors and len(errors) == len(outcomes):
        raise RuntimeError(f"none of {len(outcomes)} images could be read") from outcomes[-1]
    for index, error in errors.items():
        logger.warning("image %d of %d could not be read: %s: %s", index, len(outcomes), type(error).__name__, error)
    return [None if index in errors else lines for index, lines in enumerate(outcomes)]
