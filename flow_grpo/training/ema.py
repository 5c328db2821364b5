"""An exponential moving average of the trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from flow_grpo.training.shards import own_parts, parts_like, whole


class ExponentialMovingAverage:
    """average <- decay * average + (1 - decay) * weights, every `update_every` optimizer steps (Flow-GRPO: 0.9, 8).

    The decay warms up as (1 + n) / (10 + n) over the first optimizer steps n, as Flow-GRPO's does, so that a short run is
    not stuck at its start: it is 0.9 after 80 steps.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float, update_every: int):
        self._parameters = list(parameters)
        self.decay = decay
        self.update_every = update_every
        self.num_steps = 0
        # A clone: on the CPU neither .cpu() nor .detach() copies, and the average would follow the weights.
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
        """Within the context the model's weights are the average; afterwards they are what they were."""
        with torch.no_grad():
            kept = [part.clone() for part in own_parts(self._parameters)]
            torch._foreach_copy_(own_parts(self._parameters), own_parts(self.average))
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(own_parts(self._parameters), kept)

    def state_dict(self) -> dict:
        """With whole tensors; where they lie in parts, every process must call it."""
        return {"num_steps": self.num_steps, "average": [whole(average).cpu() for average in self.average]}

    def load_state_dict(self, state: dict) -> None:
        self.num_steps = state["num_steps"]
        for average, value in zip(self.average, state["average"], strict=True):
            average.copy_(parts_like(value, average))
