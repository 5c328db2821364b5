"""An OCR engine that raises, dies, hangs or stops when told to; in a module of its own, so that worker processes find it."""

import os
import signal
import sys
import time
from pathlib import Path

from flow_grpo.text_maps.engine import TextLine

QUAD = [[0, 0], [10, 0], [10, 5], [0, 5]]


def spelled(lines, ending):
    """A judge for readers."""
    return lines[0].text + ending


class MoodyEngine:
    """Reads an image's first level as its text; moods: {level: what it does instead, try after try}.

    folder: counts the tries, which a dead process cannot. build_moods: what it does instead of being rebuilt in a worker,
    build after build.
    """

    def __init__(self, folder, moods=None, build_moods=()):
        self.folder, self.moods, self.build_moods = Path(folder), moods or {}, build_moods

    def __call__(self, image):
        level = int(image[0, 0, 0])
        self._act(self.moods.get(level, ()), f"image_{level}")
        return [TextLine(QUAD, str(level), 1.0)]

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._act(self.build_moods, "build")

    def num_tries(self, level):
        return len(self.tries(f"image_{level}").read_bytes())

    def tries(self, name):
        return self.folder / name

    def _act(self, moods, name):
        with open(self.tries(name), "ab") as tries:
            tries.write(b".")
            number = tries.tell() - 1
        mood = moods[number] if number < len(moods) else "well"
        if mood == "raise":
            raise OSError(f"no mood for {name}")
        if mood == "die":
            os.kill(os.getpid(), 9)
        if mood == "hang":
            time.sleep(3600)
        if mood == "stop in the answer":
            os.write(int(sys.argv[1]), b"\0\0\1\0and so on")  # of 256 bytes, in multiprocessing's framing
        if mood.startswith("stop"):
            os.kill(os.getpid(), signal.SIGSTOP)
