"""An OCR engine in a process of its own: one that crashes or hangs takes nothing else with it.

The process is a fresh interpreter with one thread per library. It runs neither the caller's script (as multiprocessing's own
spawning would) nor torch, and so starts in a second; it ignores Ctrl-C and ends with its parent, however that ends.
"""

import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .engine import OcrEngine, TextLine, make_engine

BUILD_TIMEOUT = 600.0  # seconds; an engine may download its weights first
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


class EngineLost(RuntimeError):
    """No process with the engine can be had any more, whatever the image."""


class EngineProcess:
    """An OcrEngine that runs elsewhere. Calls come from one thread at a time; `close` may come from any.

    engine: what make_engine takes, with its options; an object must be picklable, of a class that can be imported.
    timeout: seconds for an image; a process that takes longer is ended.
    Raises ValueError where the engine cannot be pickled.
    """

    def __init__(self, engine: str | OcrEngine, options: dict[str, Any], timeout: float):
        try:
            self._recipe = pickle.dumps((engine, options))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"an engine for worker processes must be picklable, got {engine!r} ({error}); "
                "give a name, an object of a class at the top of a module, or num_workers=0"
            ) from error
        self._timeout = timeout
        self._lock = threading.Lock()  # of _process and _closed: `close` must not miss a process that is being started
        self._closed = False
        self._start()

    def wait_until_built(self) -> None:
        """Raise what make_engine raised over there; RuntimeError where the process ended instead."""
        if not self._built:
            error = self._receive(BUILD_TIMEOUT)
            if error is not None:
                self._end()
                raise error
            self._built = True

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        """The lines of an image (H, W, 3), uint8 RGB, from a fresh process where the last one ended.

        Raises what the engine raises, RuntimeError where its process ends or takes too long, EngineLost where a fresh
        process cannot build it or this was closed.
        """
        try:
            if self._connection.closed:
                self._start()
            self.wait_until_built()
        except Exception as error:  # whatever keeps a process from starting is not the image's fault
            raise EngineLost("an OCR worker ended and could not be replaced") from error
        with suppress(OSError):  # one that ended is found out by its silence
            self._connection.send(image)
        outcome = self._receive(self._timeout)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def close(self) -> None:
        """End the process for good, in the middle of an image if need be."""
        with self._lock:
            self._closed = True
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        search_path = os.pathsep.join(map(os.path.abspath, sys.path))
        # SAFEPATH: the parent's path, and not the working directory before it
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}
        self._built = False
        with self._lock:
            if self._closed:
                raise RuntimeError("the reader was closed")
            self._connection, theirs = multiprocessing.Pipe()
            with theirs:  # closed here: the process alone holds it, so that its end is the end of the pipe
                command = [sys.executable, "-m", __spec__.name, str(theirs.fileno())]
                self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        with suppress(OSError):
            self._connection.send_bytes(self._recipe)

    def _receive(self, timeout: float) -> Any:
        try:
            if self._connection.poll(timeout):
                return self._connection.recv()
            problem = f"gave no answer within {timeout:g} s and was ended"
        except (EOFError, OSError):
            problem = "died"
        status = self._end()
        if self._closed:
            raise EngineLost("the reader was closed")
        raise RuntimeError(f"the OCR worker {problem} (exit status {status})")

    def _end(self) -> int:
        self._connection.close()
        self._process.kill()
        return self._process.wait()


def serve(connection: Connection) -> None:
    """What the process does: build the engine, then read image after image; answers are lines, or the exception."""
    inbox = queue.SimpleQueue()
    threading.Thread(target=_receive_all, args=(connection, inbox), daemon=True).start()
    try:
        engine, options = _rebuilt(inbox.get())
        engine = make_engine(engine, **options)
    except Exception as error:  # whatever it is, the parent raises it
        connection.send_bytes(_pickled(error))
        return
    connection.send(None)
    while True:
        image = pickle.loads(inbox.get())
        try:
            answer = pickle.dumps(engine(image))
        except Exception as error:  # as above
            answer = _pickled(error)
        connection.send_bytes(answer)


def _receive_all(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """In a thread, so that the parent's end is noticed, and is the end, even while the engine works."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put(connection.recv_bytes())
    os._exit(0)


def _rebuilt(recipe: bytes) -> tuple[str | OcrEngine, dict[str, Any]]:
    try:
        return pickle.loads(recipe)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a worker process cannot find the engine ({error}); define it in a module that can be imported, not in the "
            "script that runs, or use num_workers=0"
        ) from error


def _pickled(error: Exception) -> bytes:
    """An exception as the parent can raise it: itself, or its name and message where it cannot travel."""
    try:
        travelling = pickle.dumps(error)
        pickle.loads(travelling)
    except Exception:  # an exception's own pickling may raise anything
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return travelling


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(OSError):  # the parent ended
        serve(Connection(int(sys.argv[1])))
