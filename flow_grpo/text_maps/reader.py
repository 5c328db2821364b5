"""A reader takes batches of images and gives their lines of text: what fails is read once more, and then left out.

`SerialReader` reads in this process, `PooledReader` in others while the caller goes on; the results are the same.
"""

import logging
import queue
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..futures import all_of, done, then
from ..score import to_uint8
from .engine import OcrEngine, TextLine, make_engine
from .process import EngineLost, EngineProcess

logger = logging.getLogger(__name__)

# An image's lines, or why it could not be read.
Outcome = list[TextLine] | Exception


class Reader(Protocol):
    """Reads batches. Safe to use from several threads; a context manager that closes itself."""

    def submit(self, images: Tensor) -> Future[list[list[TextLine] | None]]:
        """Begin to read images (B, 3, H, W), float in [0, 1], on any device; they are copied before this returns.

        The future holds the lines of each image in order. An image on which the engine fails is read once more; where that
        fails too it has None, and the cause is logged.
        It raises RuntimeError, from the last cause, where no image of the batch could be read.
        """

    def close(self) -> None:
        """End the workers, if there are any; what they have not read then raises RuntimeError."""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self.close()


def make_reader(
    engine: str | OcrEngine, num_workers: int = 0, image_timeout: float = 60.0, **engine_options: Any
) -> Reader:
    """A reader over an engine by its name (with the engine's options) or an OcrEngine.

    num_workers: processes that read while the caller goes on, each with an engine and one thread of its own; 0 reads in this
    process. image_timeout: seconds after which a worker counts as dead.
    Raises, at once, what make_engine raises, and ValueError where an OcrEngine cannot be given to a worker.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 (read in this process) or more, got {num_workers}")
    if num_workers == 0:
        return SerialReader(make_engine(engine, **engine_options))
    # one before the others: a failure is told once, and weights to download are downloaded once
    first = EngineProcess(engine, engine_options, image_timeout)
    first.wait_until_built()
    return PooledReader(
        [first, *(EngineProcess(engine, engine_options, image_timeout) for _ in range(num_workers - 1))]
    )


class SerialReader(Reader):
    """Reads in this process, one image at a time, before `submit` returns."""

    def __init__(self, engine: OcrEngine):
        self._engine = engine
        self._lock = threading.Lock()  # not every engine may be shared by threads

    def submit(self, images: Tensor) -> Future[list[list[TextLine] | None]]:
        with self._lock:
            return then(done([read_twice(self._engine, image) for image in to_uint8(images)]), lines_of)


class PooledReader(Reader):
    """Reads in other processes, each fed by a thread of its own from one queue of images."""

    def __init__(self, processes: Sequence[EngineProcess]):
        self._tasks = queue.SimpleQueue()
        self._lock = threading.Lock()  # nothing is put after the end
        others = threading.Semaphore(len(processes) - 1)
        for process in processes:
            threading.Thread(target=_feed, args=(process, self._tasks, self._lock, others), daemon=True).start()
        # also where the reader is forgotten, and at the interpreter's exit
        self._finalizer = weakref.finalize(self, _stop, processes, self._tasks, self._lock)

    def submit(self, images: Tensor) -> Future[list[list[TextLine] | None]]:
        levels = to_uint8(images)
        futures = [Future() for _ in levels]
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError("the reader is closed; make another")
            for task in zip(levels, futures, strict=True):
                self._tasks.put(task)
        return then(all_of(futures), self._lines)  # which holds the reader until the batch is read

    def _lines(self, outcomes: Sequence[Outcome]) -> list[list[TextLine] | None]:
        return lines_of(outcomes)

    def close(self) -> None:
        self._finalizer()


def _feed(process: EngineProcess, tasks: queue.SimpleQueue, lock: threading.Lock, others: threading.Semaphore) -> None:
    """Have a process read image after image until None comes: every future is resolved, whatever happens.

    others: how many may still leave. Who loses its process for good leaves, and its image to the others; the last one stays,
    fails what waits, and tries again.
    """
    while True:
        task = None  # the last one leads to the reader, which would live as long as this thread waits
        try:
            process.prepare()  # before an image is taken, which another could read meanwhile
            if (task := tasks.get()) is None:
                return
            task[1].set_result(read_twice(process, task[0]))
        except EngineLost as error:
            with lock:  # `_stop` closes the process before it puts the end, and puts that under the lock
                leaves = not process.closed and others.acquire(blocking=False)
                if leaves and task is not None:
                    tasks.put(task)
            if leaves:
                cause = error.__cause__
                logger.warning("%s (%s: %s); the others go on without it", error, type(cause).__name__, cause)
                return
            if (task := task or tasks.get()) is None:
                return
            task[1].set_exception(error)


def _stop(processes: Sequence[EngineProcess], tasks: queue.SimpleQueue, lock: threading.Lock) -> None:
    for process in processes:
        process.close()  # from now on every image that waits raises EngineLost, and quickly
    with lock:
        for _ in processes:
            tasks.put(None)


def read_twice(engine: OcrEngine, image: np.ndarray) -> Outcome:
    """The lines of an image (H, W, 3), uint8 RGB, or the error of the second of two tries. EngineLost is not caught."""
    for _ in range(2):
        try:
            return engine(image)
        except EngineLost:
            raise
        except Exception as error:  # whatever an engine raises
            failure = error
            logger.info("an image could not be read: %s: %s", type(error).__name__, error)
    return failure


def lines_of(outcomes: Sequence[Outcome]) -> list[list[TextLine] | None]:
    """The lines of a batch, None for each image that failed, which is logged."""
    errors = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)}
    for index, error in errors.items():
        logger.warning("image %d of %d could not be read: %s: %s", index, len(outcomes), type(error).__name__, error)
    return [None if index in errors else lines for index, lines in enumerate(outcomes)]
