"""What a run says of itself before it starts: where it computes, what an epoch is, what it trains."""

import torch

from flow_grpo.training.build import Parts


def banner(parts: Parts, first_epoch: int) -> str:
    """A few lines for the terminal."""
    config, geometry, distributed = parts.config, parts.geometry, parts.distributed
    trained = sum(parameter.numel() for parameter in parts.policy.trainable_parameters())
    total = sum(parameter.numel() for parameter in parts.policy.network.parameters())
    rewards = " + ".join(f"{weight:g} {name}" for name, weight in config.rewards.to_dict().items())
    rows = {
        "run": f"{config.name} in {config.run_dir}" + (f", from epoch {first_epoch}" if first_epoch else ""),
        "device": f"{_device(distributed.device)}, {_plural(distributed.num_processes, 'process', 'processes')}, "
        f"precision {'fp32' if config.mixed_precision == 'no' else config.mixed_precision}",
        "model": f"{config.model}: {_short(trained)} of {_short(total)} parameters are trained",
        "epoch": f"{_plural(geometry.num_groups, 'prompt', 'prompts')} x {geometry.group_size} images = {geometry.num_samples} images, "
        f"{_plural(geometry.updates_per_epoch, 'update', 'updates')}; {_plural(config.num_epochs, 'epoch', 'epochs')}",
        "reward": f"{rewards}; advantage {config.advantage.mode}",
    }
    return "\n".join(f"{name:<8}{text}" for name, text in rows.items())


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU" if device.type == "cpu" else device.type


def _plural(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _short(number: int) -> str:
    """1234567 -> 1.23 M."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
