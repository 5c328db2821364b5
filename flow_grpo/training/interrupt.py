"""Keeps a run whole when a terminal or a scheduler stops it by a signal, or closes the stream that it prints to."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

# In order: Ctrl-C; the end by a scheduler or a service manager; a terminal that closes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A launcher passes its signal on to workers that got it already, so signals within this time count as one.
ONE_SIGNAL_SECONDS = 2.0


def heard_signals() -> list[int]:
    """The signals that stop a run. nohup ignores SIGHUP, and it stays ignored. A script's background job ignores SIGINT, but
    it is heard here.
    """
    nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]


class StopRequest:
    """Within the context the first signal sets `requested`. A later signal acts as it always does.

    at_once: a thread calls it when the first signal comes.

    The handler may run in the middle of any statement, so it does almost nothing; a thread prints what happens.
    """

    def __init__(self, at_once: Callable[[], None] | None = None):
        self.requested, self._at_once = False, at_once
        self._number, self._first = 0, 0.0
        self._handlers: dict[int, Any] = {}
        self._left = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._note) for number in heard_signals()}
        self._speaker.start()
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.requested:
            self._number, self._first = number, time.monotonic()
            self.requested = True
        elif time.monotonic() - self._first > ONE_SIGNAL_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _speak(self) -> None:
        """Print at once that the run will stop: the loop may look at `requested` only minutes later.

        The loop may also be quicker than this thread. Then it has saved already, and only the words are left to do.
        """
        while not self.requested and not self._left.wait(0.1):
            pass
        if not self.requested:
            return
        name = signal.Signals(self._number).name
        print(f"\n{name}: saving and stopping; once more to stop at once", flush=True)
        if self._at_once and not self._left.is_set():
            self._at_once()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *exception) -> None:
        self._left.set()
        self._speaker.join()
        self._restore()


def end_by_itself() -> None:
    """From now on SIGTERM does nothing. A launcher sends it to the others once a process has failed, and kills 30 s later.

    In the meantime they finish, and say why they end.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def keep_printing() -> None:
    """From now on printing never raises because stdout or stderr is gone, as after a closed terminal or the end of `| tee`."""
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)


class LastingStream:
    """A text stream that drops its text, without an error, once the other end is gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._give_up()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._give_up()

    def _give_up(self) -> None:
        """Send the rest of the stream, and what libraries write past Python, to /dev/null, so that nothing fails again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
