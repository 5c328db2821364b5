"""Rewards that every image earns, half-trained or not: its brightness, with a map, a constant map, or none."""

import os
import signal

import torch

from flow_grpo.score import Score


class Brightness:
    """The mean grey level of an image; 0 for every image whose prompt has the text blind_to.

    pixel_map: "grey" (each pixel its own), a number (the same everywhere), or None. fails_after: calls, in the process
    that the launcher calls fails_in; dies: by a kill, not by an error.
    """

    def __init__(self, pixel_map="grey", kind="reward", blind_to=None, fails_after=None, fails_in=None, dies=False):
        self._pixel_map, self._kind, self._blind_to, self._dies = pixel_map, kind, blind_to, dies
        self._calls_left = fails_after if os.environ.get("RANK") == fails_in else None

    def __call__(self, images, prompts, metadata=None):
        if self._calls_left is not None:
            self._calls_left -= 1
            if self._calls_left < 0 and self._dies:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._calls_left < 0:
                raise RuntimeError("the reward has failed")
        grey = images.mean(dim=1)  # (B, H, W)
        reward = grey.mean(dim=(1, 2))
        if self._blind_to is not None:
            reward = reward * torch.tensor([float(self._blind_to not in prompt) for prompt in prompts])
        details = {"contrast": grey.flatten(1).std(dim=1)}
        if self._pixel_map is None:
            return Score(reward, details=details)
        reward_map = grey if self._pixel_map == "grey" else torch.full_like(grey, self._pixel_map)
        return Score(reward, reward_map, self._kind, details=details)
