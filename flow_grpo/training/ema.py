"""An exponential moving average of the trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from flow_grpo.training.shards import own_parts, parts_like


class ExponentialMovingAverage:
    """The average of the weights, updated every `update_every` optimizer steps (Flow-GRPO: decay 0.9, every 8):

        average <- d * average + (1 - d) * weights
        d = min(decay, (1 + n) / (10 + n))      after n optimizer steps

    The warm-up is Flow-GRPO's. Without it a short run's average would stay near its start. It reaches 0.9 after 80 steps.
    diffusers' EMAModel warms up in the same way, but by its own updates: it has no `update_every`, and knows no FSDP2 parts.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float, update_every: int):
        self._parameters = list(parameters)
        self.decay = decay
        self.update_every = update_every
        self.num_steps = 0
        # A clone, because .detach() does not copy: the average would follow the weights.
        self.average = [p.detach().clone() for p in self._parameters]

    @torch.no_grad()
    def step(self) -> None:
        self.num_steps += 1
        if self.num_steps % self.update_every:
            return
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        torch._foreach_lerp_(own_parts(self.average), own_parts(self._parameters), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the context the model has the averaged weights; afterwards it has its own again."""
        with torch.no_grad():
            kept = [part.clone() for part in own_parts(self._parameters)]
            torch._foreach_copy_(own_parts(self._parameters), own_parts(self.average))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(own_parts(self._parameters), kept)

    def state_dict(self) -> dict:
        """The state, with the averages themselves, as they lie in this process."""
        return {"num_steps": self.num_steps, "average": list(self.average)}

    def load_state_dict(self, state: dict) -> None:
        self.num_steps = state["num_steps"]
        for average, value in zip(self.average, state["average"], strict=True):
            average.copy_(parts_like(value, average))
