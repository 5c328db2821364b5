"""A scorer that raises, waits or answers nonsense where a prompt says so; in a module of its own, for servers to find."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from flow_grpo.score import Score, check_images


class MoodyScorer:
    """Brightness with a map. Prompts: "raise", "refuse" (ValueError), "nonsense" and "wait" speak for the whole batch, until
    `released` is set for the last, which also prints a line; "invalid" for its image alone.

    map_kind: "reward", "importance" or None for a scorer without a map. num_waiting: the calls that wait or waited;
    most_at_once: how many did so together.
    """

    def __init__(self, map_kind="importance"):
        self.map_kind, self.released = map_kind, threading.Event()
        self.num_waiting = self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    def __call__(self, images, prompts, metadata=None):
        check_images(images, prompts, metadata)
        if "raise" in prompts:
            raise OSError("no mood for pictures")
        if "refuse" in prompts:
            raise ValueError("a prompt without a target: 'refuse'; quote one")
        if "nonsense" in prompts:
            return "fine"
        if "wait" in prompts:
            self._wait()
        grey = images.mean(dim=1)  # (B, H, W)
        valid = torch.tensor([prompt != "invalid" for prompt in prompts], device=images.device)
        num_entries = [float(len(entry)) for entry in metadata or [{}] * len(prompts)]
        details = {"num_entries": torch.tensor(num_entries), "length": torch.tensor([float(len(p)) for p in prompts])}
        if self.map_kind is None:
            return Score(grey.mean((1, 2)), details=details, valid=valid)
        grey[~valid] = torch.nan
        reward = images.mean((1, 2, 3))
        return Score(reward, grey, self.map_kind, details=details, valid=valid, map_valid=valid.clone())

    def _wait(self):
        with self._lock:
            self.num_waiting += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        print("a batch waits", flush=True)
        self.released.wait()
        with self._lock:
            self._at_once -= 1


class MoodyPool(MoodyScorer):
    """The same, with workers of its own: `submit` returns at once."""

    _workers = ThreadPoolExecutor(32)

    def submit(self, images, prompts, metadata=None):
        return self._workers.submit(self, images, prompts, metadata)
