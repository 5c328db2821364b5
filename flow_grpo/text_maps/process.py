"""An OCR engine in a process of its own: one that crashes, hangs or is stopped takes nothing else with it.

The process is a fresh interpreter with one thread per library. It ignores Ctrl-C and ends with its parent, however that ends.
It runs neither the caller's script nor torch, which is why no library's pool of spawned workers stands here: pebble's workers
took 1.9 s to start and 327 MiB each where these took 0.8 s and 145 MiB, and a script without `if __name__ == "__main__"` would
run again in each of them.
"""

import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from .engine import OcrEngine, TextLine, make_engine

BUILD_TIMEOUT = 600.0  # seconds; an engine may download its weights first
REBUILD_TIMEOUT = 120.0  # and has them afterwards
NUM_BUILDS = 3  # of which the last may fail too, before a process counts as lost
ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), "1"
)


class EngineLost(RuntimeError):
    """No process with the engine can be had any more, whatever the image."""


class ProcessEnded(RuntimeError):
    """The process died, or was ended because it gave no answer in time."""


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

    def wait_until_built(self, timeout: float = BUILD_TIMEOUT) -> None:
        """Raise what make_engine raised over there; ProcessEnded where there is no answer."""
        if not self._built:
            error = self._exchange(self._recipe, timeout)
            if error is not None:
                self._end()
                raise error
            self._built = True

    def prepare(self) -> None:
        """Have a process that is alive and built, a fresh one where the last one ended.

        Raises EngineLost where a fresh process cannot build the engine, or each of NUM_BUILDS ended meanwhile, or this was
        closed.
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
            except Exception as error:  # whatever keeps a process from starting is not the image's fault
                if attempt == NUM_BUILDS - 1 or not isinstance(error, ProcessEnded):
                    raise EngineLost("an OCR worker ended and could not be replaced") from error

    def __call__(self, image: np.ndarray) -> list[TextLine]:
        """The lines of an image (H, W, 3), uint8 RGB.

        Raises what the engine raises, ProcessEnded where its process ends or takes too long, and what `prepare` raises.
        """
        self.prepare()
        outcome = self._exchange(pickle.dumps(image, protocol=5), self._timeout)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End the process for good, in the middle of an image if need be."""
        with self._lock:
            self._closed = True
            _cut_off(self._process, self._socket)
            _wait(self._process)

    def _start(self) -> None:
        search_path = os.pathsep.join(map(os.path.abspath, sys.path))
        # SAFEPATH: the parent's path, and not the working directory before it
        environment = os.environ | ONE_THREAD | {"PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}
        self._built = False
        with self._lock:
            if self._closed:
                raise EngineLost("the reader was closed")
            self._socket, theirs = socket.socketpair()
            self._connection = Connection(os.dup(self._socket.fileno()))
            with theirs:  # closed here: the process alone holds it, so that its end is the end of the connection
                command = [sys.executable, "-m", __spec__.name, str(theirs.fileno())]
                # before the first line that it runs, Ctrl-C is not for it
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
                try:
                    self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _exchange(self, message: bytes, timeout: float) -> Any:
        """Send a message and give its answer; one deadline holds for both.

        A process that is stopped reads nothing, and may stop in the middle of its answer: sending and receiving both wait
        for it, until it is cut off.
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
    # whoever waits for the process goes on, even where it cannot die yet (frozen, or waiting for a disk)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _wait(process: subprocess.Popen) -> int | None:
    """The exit status of a process that was killed; None where it cannot die yet."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=5.0)
    return None


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
    with suppress(OSError):  # the parent ended
        serve(Connection(int(sys.argv[1])))
