"""The optimizer's state under DeepSpeed's ZeRO, in torch's own form: whole where it is saved, in parts where it is used.

ZeRO lays the parameters end to end in one flat fp32 tensor, of which each process optimizes its share. The module's
weights are whole everywhere, and in fp32 too: the share is a copy that the next step would put back.
"""

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
# GradScaler's: so many steps without an overflow, and the loss scale grows; an overflow, and it falls.
GROWTH_INTERVAL, GROWTH_FACTOR, BACKOFF_FACTOR = 2000, 2.0, 0.5


def whole_zero_state(zero) -> dict[str, Any]:
    """What AdamW's `state_dict` would be without ZeRO, on the CPU; every process must call it.

    zero: a `DeepSpeedZeroOptimizer` over AdamW with one group of parameters.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    (parameters,), (share,), (group,) = zero.bit16_groups, zero.single_partition_of_fp32_groups, zero.param_groups
    state = {}
    if share in zero.state:  # none before the first step
        step = zero.state[share]["step"].cpu()
        for index, parameter in enumerate(parameters):
            moments = {name: safe_get_full_optimizer_state(parameter, name).cpu() for name in MOMENTS}
            state[index] = {"step": step.clone()} | moments
    return {"state": state, "param_groups": [group | {"params": list(range(len(parameters)))}]}


def load_zero_state(zero, state: dict[str, Any]) -> None:
    """Take over AdamW's `state_dict`, and the module's weights as they are now."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

    (parameters,), (share,), (group,) = zero.bit16_groups, zero.single_partition_of_fp32_groups, zero.param_groups
    zero.refresh_fp32_params()
    group.update({name: value for name, value in state["param_groups"][0].items() if name != "params"})
    zero.state.pop(share, None)
    if not state["state"]:
        return
    zero.state[share] = {"step": state["state"][0]["step"].cpu()} | {name: torch.zeros_like(share) for name in MOMENTS}
    lazy_init_hp_params_optimizer_state(parameters, share, zero.state)
    for index, parameter in enumerate(parameters):
        for name in MOMENTS:
            safe_set_full_optimizer_state(parameter, state["state"][index][name].to(share.device), name)


class LossScale:
    """The loss scale of fp16 training by the rule of torch's GradScaler, and in its `state_dict`.

    A `DeepSpeedZeroOptimizer` scales the loss and the norm that it clips by it, and skips a step that overflows in any
    process in all. Its own GradScaler, of `torch_autocast`, is unknown to its clipping, and never falls once it overflows.
    """

    def __init__(self, zero):
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        self._scaler = zero.loss_scaler = DynamicLossScaler(
            init_scale=2.0**16,
            scale_window=GROWTH_INTERVAL,
            min_scale=1.0,
            delayed_shift=1,
            consecutive_hysteresis=False,
        )
        self._scaler.update_scale = self._update  # its own doubles a step later, and counts on
        self._num_steps = 0  # without an overflow, since the scale changed

    def _update(self, overflow: bool) -> None:
        self._num_steps = 0 if overflow else self._num_steps + 1
        if overflow:
            self._scaler.cur_scale *= BACKOFF_FACTOR
        elif self._num_steps == GROWTH_INTERVAL:
            self._scaler.cur_scale *= GROWTH_FACTOR
            self._num_steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "scale": self._scaler.cur_scale,
            "growth_factor": GROWTH_FACTOR,
            "backoff_factor": BACKOFF_FACTOR,
            "growth_interval": GROWTH_INTERVAL,
            "_growth_tracker": self._num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.cur_scale, self._num_steps = state["scale"], state["_growth_tracker"]
