"""Ctrl-C and SIGTERM as a wish to stop, which the trainer meets where nothing is lost."""

import signal
from types import FrameType


class StopRequest:
    """Within the context the first SIGINT or SIGTERM raises `requested`; a second one acts as it always does."""

    def __init__(self):
        self.requested = False
        self._handlers = {}

    def __enter__(self) -> "StopRequest":
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        print(f"\n{signal.Signals(number).name}: saving and stopping; once more to stop at once", flush=True)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __exit__(self, *exception) -> None:
        self._restore()
