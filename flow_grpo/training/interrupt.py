"""What a terminal or a scheduler does to a run: signals, and a log that nobody reads any more."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TextIO

# Ctrl-C, a scheduler's or a service manager's end, a terminal that closes.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A launcher passes its signal on to workers that got it, too: within this time, several count as one.
ONE_SIGNAL_SECONDS = 2.0


class StopRequest:
    """Within the context a first signal raises `requested`; one that comes later acts as it always does.

    at_once: called beside the program, in a thread, when the first signal comes.

    The handler itself does next to nothing, since it may run in the middle of any statement: a thread says what happens.
    Under nohup, which ignores SIGHUP, it stays ignored; a script's background job ignores SIGINT, which is heard.
    """

    def __init__(self, at_once: Callable[[], None] | None = None):
        self.requested, self._at_once = False, at_once
        self._number, self._first = 0, 0.0
        self._handlers: dict[int, Any] = {}
        self._left = threading.Event()
        self._speaker = threading.Thread(target=self._speak, daemon=True)

    def __enter__(self) -> "StopRequest":
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        heard = [number for number in SIGNALS if not (nohup and number == signal.SIGHUP)]
        self._handlers = {number: signal.signal(number, self._note) for number in heard}
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
        """Said at once, though the loop may ask only minutes later."""
        while not self._left.wait(0.1):
            if self.requested:
                name = signal.Signals(self._number).name
                print(f"\n{name}: saving and stopping; once more to stop at once", flush=True)
                if self._at_once:
                    self._at_once()
                return

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *exception) -> None:
        self._left.set()
        self._speaker.join()
        self._restore()


def keep_printing() -> None:
    """From now on nothing that prints raises because stdout or stderr is gone: a closed terminal, the end of `| tee`."""
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)


class LastingStream:
    """A text stream whose words are lost where nothing takes them any more."""

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
        """What the stream still holds, and what libraries write past Python, goes nowhere; it does not fail again."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
