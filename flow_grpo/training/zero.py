"""The optimizer's state under DeepSpeed's ZeRO, in torch's own form: whole where it is saved, in parts where it is used.

ZeRO lays the parameters end to end in one flat fp32 tensor, of which each process optimizes its share. The module's
weights are whole everywhere, and in fp32 too: the share is a copy that the next step would put back.
"""

from typing import Any

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
GROWTH_INTERVAL = 2000  # GradScaler's: steps without an overflow before the loss scale doubles


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
            raise_error_at_min_scale=False,
        )

    def state_dict(self) -> dict[str, Any]:
        scaler = self._scaler
        return {
            "scale": scaler.cur_scale,
            "growth_factor": scaler.scale_factor,
            "backoff_factor": 1 / scaler.scale_factor,
            "growth_interval": scaler.scale_window,
            "_growth_tracker": scaler.cur_iter - scaler.last_overflow_iter - 1,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.cur_scale = state["scale"]
        self._scaler.cur_iter, self._scaler.last_overflow_iter = state["_growth_tracker"], -1
