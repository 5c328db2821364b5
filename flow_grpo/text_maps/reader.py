"""A reader takes batches of images, reads their lines of text, and judges them where they were read.

`SerialReader` works in this process. `PooledReader` works in other processes while the caller goes on. Both give the same
results. An image on which the engine fails is read once more, and then left out.
"""

import logging
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from ..futures import all_of, done, then
from ..option_types import checked_options
from ..score import to_uint8
from .engine import OcrEngine, make_engine
from .process import EngineLost, EngineProcess, Judge, JudgeFailed, as_read, read_and_judge

logger = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """Stands for an image that could not be read: the error of its second try."""

    error: Exception


class Reader(Protocol):
    """Reads batches. Safe to use from several threads; a context manager that closes itself."""

    def submit(self, images: Tensor, judges: Sequence[Judge] | None = None) -> Future[list[Any]]:
        """Begin to read images (B, 3, H, W), float in [0, 1], on any device; they are copied before this returns.

        judges: one function per image, which takes the image's list of TextLines; picklable, if there are workers. None
            leaves the lines as they are.
        The future holds what each image's judge returned, in order. An image on which the engine fails is read once more.
        If that fails too, the image gets None, and the cause is logged.
        The future raises what a judge raises, and EngineLost if no worker can be replaced.
        """

    def close(self) -> None:
        """End the workers, if there are any. Batches that they have not read raise RuntimeError."""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *error) -> None:
        self.close()


@checked_options
def make_reader(
    engine: str | OcrEngine,
    num_workers: int = 0,
    engine_options: Mapping[str, Any] | None = None,
    min_contrast: float = 0.0,
    image_timeout: float = 60.0,
) -> Reader:
    """Build a reader from an engine's name, with the engine's options, or from an OcrEngine.

    num_workers: number of processes that read while the caller goes on, each with its own engine and one thread; 0 reads in
        this process.
    engine_options, min_contrast: as make_engine takes them.
    image_timeout: seconds per image, after which a worker counts as dead.
    Raises what make_engine raises, before any batch, and ValueError if an OcrEngine cannot be given to a worker.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers must be 0 (read in this process) or more, got {num_workers}")
    options = {"min_contrast": min_contrast, **(engine_options or {})}
    if num_workers == 0:
        return SerialReader(make_engine(engine, **options))
    # build one before the others: a failure is reported once, and weights are downloaded once
    first = EngineProcess(engine, options, image_timeout)
    first.wait_until_built()
    return PooledReader([first, *(EngineProcess(engine, options, image_timeout) for _ in range(num_workers - 1))])


class SerialReader(Reader):
    """Reads in this process, one image at a time, before `submit` returns."""

    def __init__(self, engine: OcrEngine):
        self._engine = engine
        self._lock = threading.Lock()  # some engines cannot be shared by threads

    def submit(self, images: Tensor, judges: Sequence[Judge] | None = None) -> Future[list[Any]]:
        levels = to_uint8(images)
        read = partial(read_and_judge, self._engine)
        outcomes = []
        with self._lock:
            for image, judge in zip(levels, judges or [as_read] * len(levels), strict=True):
                try:
                    outcomes.append(done(_read_twice(read, image, judge)))
                except JudgeFailed as failed:
                    outcomes.append(_failed(failed.error))
        return then(all_of(outcomes), _without_unreadable)


class PooledReader(Reader):
    """Reads in other processes. Each process has a thread here that feeds it from one shared queue of images."""

    def __init__(self, processes: Sequence[EngineProcess]):
        self._tasks = queue.SimpleQueue()
        self._lock = threading.Lock()  # no image is put into the queue after its end marker
        others = threading.Semaphore(len(processes) - 1)
        for process in processes:
            threading.Thread(target=_feed, args=(process, self._tasks, self._lock, others), daemon=True).start()
        # runs when the reader is deleted, and at the interpreter's exit
        self._finalizer = weakref.finalize(self, _stop, processes, self._tasks, self._lock)

    def submit(self, images: Tensor, judges: Sequence[Judge] | None = None) -> Future[list[Any]]:
        levels = to_uint8(images)
        futures = [Future() for _ in levels]
        with self._lock:
            if not self._finalizer.alive:
                raise RuntimeError("the reader is closed; make another")
            for task in zip(levels, judges or [as_read] * len(levels), futures, strict=True):
                self._tasks.put(task)
        return then(all_of(futures), self._finished)  # self._finished keeps the reader alive until the batch is read

    def _finished(self, outcomes: Sequence[Any]) -> list[Any]:
        return _without_unreadable(outcomes)

    def close(self) -> None:
        self._finalizer()


def _feed(process: EngineProcess, tasks: queue.SimpleQueue, lock: threading.Lock, others: threading.Semaphore) -> None:
    """Give one process one image after another until None comes. Every future is resolved, whatever happens.

    others: how many feeding threads may still stop. A thread that loses its process for good stops, and leaves its image to
    the other threads. The last thread stays: it fails the images that wait, and tries to start a process again.
    """
    while True:
        task = None  # drop the last task: it refers to the reader, and would keep it alive while this thread waits
        try:
            process.prepare()  # before taking an image, which another process could read meanwhile
            if (task := tasks.get()) is None:
                return
            task[2].set_result(_read_twice(process, *task[:2]))
        except JudgeFailed as failed:
            task[2].set_exception(failed.error)
        except EngineLost as error:
            with lock:  # `_stop` closes the process before it puts the end marker, which it puts under the lock
                leaves = not process.closed and others.acquire(blocking=False)
                if leaves:
                    cause = error.__cause__
                    logger.warning("%s (%s: %s); the others go on without it", error, type(cause).__name__, cause)
                    if task is not None:
                        tasks.put(task)
            if leaves:
                return
            if (task := task or tasks.get()) is None:
                return
            task[2].set_exception(error)


def _stop(processes: Sequence[EngineProcess], tasks: queue.SimpleQueue, lock: threading.Lock) -> None:
    for process in processes:
        process.close()  # from now on every waiting image raises EngineLost at once
    with lock:
        for _ in processes:
            tasks.put(None)


def _read_twice(read: Callable[[np.ndarray, Judge], Any], image: np.ndarray, judge: Judge) -> Any:
    """What `read` makes of an image (H, W, 3), uint8 RGB, or Unreadable. EngineLost and JudgeFailed are not caught."""
    for _ in range(2):
        try:
            return read(image, judge)
        except (EngineLost, JudgeFailed):
            raise
        except Exception as error:  # an engine may raise anything
            failure = error
            logger.info("an image could not be read: %s: %s", type(error).__name__, error)
    return Unreadable(failure)


def _failed(error: Exception) -> Future:
    future = Future()
    future.set_exception(error)
    return future


def _without_unreadable(outcomes: Sequence[Any]) -> list[Any]:
    """The outcomes of a batch, with None for each image that could not be read. Logs the failures."""
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, Unreadable):
            name, error = type(outcome.error).__name__, outcome.error
            logger.warning("image %d of %d could not be read: %s: %s", index, len(outcomes), name, error)
    return [None if isinstance(outcome, Unreadable) else outcome for outcome in outcomes]
