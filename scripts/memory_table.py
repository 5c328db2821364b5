"""How much memory of a GPU a LoRA run of each model family needs. It is computed on the meta device: no weights are loaded.

python scripts/memory_table.py --resolution 512 --batch 4
python scripts/memory_table.py --measure            # on a GPU: the same, held against a step with random weights

The transformer is built from its published configuration and run once, without data, on a batch of images. Columns, GiB:
    transformer   its frozen weights, 2 bytes each
    encoders      the text encoders' weights, 2 bytes each, from their published sizes
    adapter       the LoRA in fp32, five times: weights, gradients, two moments of AdamW, EMA
    kept          what the backward pass of one step keeps for the batch, 2 bytes per value
    checkpointed  the same with gradient checkpointing: every block's input, and all of one block
    total         transformer, encoders, adapter and checkpointed. In brackets without the encoders, for prompts that a
                  prompt cache holds
Not counted: the VAE's decoder (about 3 GiB for one image of 512 px), the reward models, and what the allocator wastes. Leave
a tenth of the card free.

--measure fills the GPU with random weights, and makes a step with and without checkpointing. Two columns more:
    measured kept, measured checkpointed    the step's peak without the weights and the LoRA. A model that the card does not
                                            hold has a dash
"""

import argparse
import sys
from pathlib import Path

import diffusers
import torch
from accelerate import init_empty_weights
from torch import nn
from torch.utils._pytree import tree_map_only

sys.path.insert(0, str(Path(__file__).parents[1]))  # the trainer is not installed: it belongs to the checkout

from flow_grpo.training.policies.adapter import lora_config  # noqa: E402
from scripts.benchmark.train import apart  # noqa: E402
from scripts.memory.kept import kept_bytes  # noqa: E402
from scripts.memory.models import MODELS, Model  # noqa: E402

GIB = 2**30
HALF = 2  # bytes of a bf16 value
COPIES_OF_ADAPTER = 5 * 4  # bytes per parameter: weight, gradient, two moments and average, in fp32
PIXELS_PER_TOKEN = 16  # along a side, in every family


def add_lora(transformer: nn.Module, model: Model) -> None:
    transformer.requires_grad_(False)
    transformer.add_adapter(lora_config(model.lora_rank, 2 * model.lora_rank, model.lora_targets))


def memory(model: Model, resolution: int, batch: int, length: int) -> dict[str, float]:
    """The columns of the module's docstring, in GiB."""
    with torch.device("meta"):
        transformer = model.build().to(torch.bfloat16)
        add_lora(transformer, model)
    adapter = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in transformer.parameters() if not p.requires_grad)
    rows, side = batch * model.passes, resolution // PIXELS_PER_TOKEN
    kept = kept_bytes(transformer, model.inputs(transformer, rows, side, length))
    blocks = [block for stack in transformer.children() if isinstance(stack, nn.ModuleList) for block in stack]
    width = transformer.inner_dim if hasattr(transformer, "inner_dim") else transformer.dim
    inputs = len(blocks) * rows * (side**2 + length) * width * HALF
    columns = {
        "transformer": frozen * HALF,
        "encoders": model.encoders * 1e9 * HALF,
        "adapter": adapter * COPIES_OF_ADAPTER,
        "kept": kept,
        "checkpointed": inputs + kept / len(blocks),
    }
    columns["total"] = needed(columns, gradient_checkpointing=True, offload=False)
    return {name: size / GIB for name, size in columns.items()}


def needed(columns: dict[str, float], gradient_checkpointing: bool, offload: bool) -> float:
    """What a run with these flags needs of the columns."""
    names = ["transformer", "adapter", "checkpointed" if gradient_checkpointing else "kept"]
    return sum(columns[name] for name in names + ["encoders"] * (not offload))


def random_transformer(model: Model, device: str) -> nn.Module:
    """The transformer with random bf16 weights, made on the device one by one, and a LoRA in fp32."""
    with init_empty_weights():  # not what it computes beside its weights, such as tables of positions
        transformer = model.build().to(torch.bfloat16)
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            weights = torch.empty(parameter.shape, dtype=torch.bfloat16, device=device).normal_(std=0.02)
            setattr(module, name, nn.Parameter(weights))
    transformer.to(device)
    add_lora(transformer, model)
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return transformer


def with_data(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Random numbers for a tensor on the meta device; a mask has its values already."""
    return torch.rand(tensor.shape, dtype=tensor.dtype, device=device) if tensor.is_meta else tensor.to(device)


def measured_gib(name: str, resolution: int, batch: int, length: int) -> list[float | None]:
    """What a step needs at its peak beside the weights and the LoRA, without and with checkpointing, in GiB.

    None where the GPU is too small.
    """
    model, device = MODELS[name], "cuda"
    measured: list[float | None] = []
    try:
        transformer = random_transformer(model, device)
        inputs = model.inputs(transformer, batch * model.passes, resolution // PIXELS_PER_TOKEN, length)
        inputs = tree_map_only(torch.Tensor, lambda each: with_data(each, device), inputs)
    except torch.cuda.OutOfMemoryError:
        return [None, None]
    before = torch.cuda.memory_allocated()
    for gradient_checkpointing in (False, True):
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        torch.cuda.reset_peak_memory_stats()
        try:
            outputs = transformer(**inputs, return_dict=False)[0]
            sum(output.float().square().mean() for output in outputs).backward()
            measured.append((torch.cuda.max_memory_allocated() - before) / GIB)
        except torch.cuda.OutOfMemoryError:
            measured.append(None)
        outputs = None
        transformer.zero_grad()
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--resolution", type=int, default=512, help="side of the images, in pixels")
    parser.add_argument("--batch", type=int, default=4, help="images of one forward pass")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--measure", action="store_true", help="also on this machine's GPU, with random weights")
    args = parser.parse_args()
    if args.measure and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; without --measure the table is computed, on any machine")
    diffusers.logging.set_verbosity_error()
    print(f"GiB, {args.batch} images of {args.resolution} px, prompts of {args.length} tokens\n")
    columns = ["transformer", "encoders", "adapter", "kept", "checkpointed", "total"]
    titles = columns + ["measured kept", "measured checkpointed"] * args.measure
    print(f"| model | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
    for name in args.models:
        sizes = (args.resolution, args.batch, args.length)
        row = memory(MODELS[name], *sizes)
        cells = [f"{row[column]:.1f}" for column in columns]
        cells[-1] += f" ({row['total'] - row['encoders']:.1f})"
        if args.measure:
            cells += ["-" if gib is None else f"{gib:.1f}" for gib in apart(measured_gib, name, *sizes)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
