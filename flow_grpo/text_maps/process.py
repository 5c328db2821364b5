"""An OCR engine in a process of its own: if the engine crashes, hangs or is stopped, the caller goes on.

The process is a fresh interpreter with one thread per library. It ignores Ctrl-C, and it ends when its parent ends, for
whatever reason. It does not import torch, and does not run the caller's script. This is why we do not use a library's pool of
spawned workers. pebble's workers took 1.9 s to start and 327 MiB each; ours took 0.8 s and 145 MiB. A caller's script without
`if __name__ == "__main__"` would also run again in each worker of a pool.
"""

import os
import pickle
import queue
import reprlib
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .engine import OcrEngine, TextLine, make_engine

# What is done with an image's lines where they were read.
Judge = Callable[[list[TextLine]], Any]

BUILD_TIMEOUT = 600.0  # seconds; an engine may download its weights first
REBUILD_TIMEOUT = 120.0  # a second build finds the weights on the disk
NUM_BUILDS = 3  # the engine counts as lost once this many builds in a row have failed
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)

# What a worker runs. The parent's search path holds, without the working folder that Python puts in front as "": a file
# there may have the name of a library. PYTHONSAFEPATH would do the same, but Python 3.10 does not know it.
WORKER = """\
import sys
sys.path[:] = filter(None, sys.path)
import importlib
importlib.import_module(sys.argv[1]).work(int(sys.argv[2]))
"""


class EngineLost(RuntimeError):
    """No process can run the engine any more. The image is not the cause."""


class ProcessEnded(RuntimeError):
    """The process died, or was ended because it gave no answer in time."""


class JudgeFailed(Exception):
    """The function that was to judge an image's lines raised `error`. The engine and the image are not the cause."""

    def __init__(self, error: Exception):
        super().__init__(error)
        self.error = error


class EngineProcess:
    """An OcrEngine that runs elsewhere, and what is done with the lines that it reads.

    Calls come from one thread at a time; `close` may come from any.

    engine, options: as make_engine takes them. An OcrEngine must be picklable, and its class importable.
    timeout: seconds per image; a process that takes longer is ended.
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
        # guards _process and _closed: `close` must not miss a process that is being started
        self._lock = threading.Lock()
        self._closed = False
        self._start()

    def wait_until_built(self, timeout: float = BUILD_TIMEOUT) -> None:
        """Wait. Raises the error that make_engine raised in the process, or ProcessEnded if no answer comes."""
        if not self._built:
            error = self._exchange(self._recipe, timeout)
            if error is not None:
                self._end()
                raise error
            self._built = True

    def prepare(self) -> None:
        """Make sure that a process is alive and has built its engine. Starts a fresh one if the last one ended.

        Raises EngineLost if a fresh process cannot build the engine, if NUM_BUILDS processes in a row ended while they
        built it, or if this object was closed.
        """
        for attempt in range(NUM_BUILDS):
            try:
                if self._process.poll() is not None or self._connection.closed:
                    self._end()
                    self._start()
                self.wait_until_built(REBUILD_TIMEOUT)
                return
            except EngineLost:
                raise
            except Exception as error:  # a process that cannot start is never the image's fault
                if attempt == NUM_BUILDS - 1 or not isinstance(error, ProcessEnded):
                    raise EngineLost("an OCR worker ended and could not be replaced") from error

    def __call__(self, image: np.ndarray, judge: Judge) -> Any:
        """What `judge`, which must be picklable, makes of the lines of an image (H, W, 3), uint8 RGB.

        Raises what the engine raises, JudgeFailed where `judge` raises, ProcessEnded where the process ends or takes too
        long, and what `prepare` raises.
        """
        self.prepare()
        outcome = self._exchange(pickle.dumps((image, judge), protocol=5), self._timeout)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the process for good, even in the middle of an image."""
        with self._lock:
            self._closed = True
            _cut_off(self._process, self._socket)
            _wait(self._process)

    def _start(self) -> None:
        search_path = os.pathsep.join(map(os.path.abspath, sys.path))
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": search_path}
        self._built = False
        with self._lock:
            if self._closed:
                raise EngineLost("the reader was closed")
            self._socket, theirs = socket.socketpair()
            self._connection = Connection(os.dup(self._socket.fileno()))
            with theirs:  # closed here, so that only the process holds it: when it ends, the connection ends
                command = [sys.executable, "-c", WORKER, __spec__.name, str(theirs.fileno())]
                # blocks Ctrl-C for the process before it runs its first line
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _exchange(self, message: bytes, timeout: float) -> Any:
        """Send a message and return its answer. One deadline holds for both.

        A stopped process reads nothing, and it may stop in the middle of its answer. So sending and receiving may both
        block, until the deadline cuts the process off.
        """
        begun = time.monotonic()
        timer = threading.Timer(timeout, _cut_off, [self._process, self._socket])
        timer.daemon = True
        timer.start()
        try:
            self._connection.send_bytes(message)
            return self._connection.recv()
        except (EOFError, OSError):
            late = time.monotonic() - begun >= timeout
        finally:
            timer.cancel()
        status = self._end()
        if self._closed:
            raise EngineLost("the reader was closed")
        problem = f"gave no answer within {timeout:g} s and was ended" if late else "died"
        raise ProcessEnded(f"the OCR worker {problem} (exit status {status})")

    def _end(self) -> int | None:
        _cut_off(self._process, self._socket)
        self._connection.close()
        self._socket.close()
        return _wait(self._process)


def _cut_off(process: subprocess.Popen, connection: socket.socket) -> None:
    process.kill()
    # the waiting thread goes on, even if the process cannot die yet (frozen, or waiting for a disk)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _wait(process: subprocess.Popen) -> int | None:
    """The exit status of a killed process; None if it cannot die yet."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=5.0)
    return None


def work(descriptor: int) -> None:
    """A worker's life: serve its parent by the connection of that file descriptor."""
    with suppress(OSError):  # the parent ended
        serve(Connection(descriptor))


def serve(connection: Connection) -> None:
    """The process's main loop: build the engine, then read image after image. Answers are judgements, or the exception."""
    inbox = queue.SimpleQueue()
    threading.Thread(target=_receive_all, args=(connection, inbox), daemon=True).start()
    try:
        engine, options = _rebuilt(inbox.get())
        engine = make_engine(engine, **options)
    except Exception as error:  # any error is sent to the parent, which raises it
        connection.send_bytes(_pickled(error))
        return
    connection.send(None)
    while True:
        image, judge = pickle.loads(inbox.get())
        try:
            answer = pickle.dumps(read_and_judge(engine, image, judge))
        except Exception as error:  # as above
            answer = _pickled(error)
        connection.send_bytes(answer)


def as_read(lines: list[TextLine]) -> list[TextLine]:
    """The judge that leaves the lines as they are."""
    return lines


def read_and_judge(engine: OcrEngine, image: np.ndarray, judge: Judge) -> Any:
    """judge(engine(image)). Raises what the engine raises, and JudgeFailed where `judge` raises.

    Raises ValueError where the engine returns something else than TextLines.
    """
    lines = engine(image)
    if not isinstance(lines, (list, tuple)) or not all(isinstance(line, TextLine) for line in lines):
        raise ValueError(f"an OcrEngine must return a list of TextLines, got {reprlib.repr(lines)}")
    try:
        return judge(lines)
    except Exception as error:  # any error is raised where the result is awaited
        raise JudgeFailed(error) from error


def _receive_all(connection: Connection, inbox: queue.SimpleQueue) -> None:
    """Runs in a thread, so that the process notices the parent's end, and ends too, even while the engine works."""
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
    """An exception as the parent can raise it: itself, or its name and message if it cannot be pickled."""
    if isinstance(error, JudgeFailed):
        return pickle.dumps(JudgeFailed(pickle.loads(_pickled(error.error))))
    try:
        travelling = pickle.dumps(error)
        pickle.loads(travelling)
    except Exception:  # an exception's own pickling may raise anything
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"))
    return travelling
