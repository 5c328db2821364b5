"""Hashes what a run trains on. Its folders may move or get another name, but their content must stay the same."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch

NUM_SAMPLED = 4096  # values hashed per tensor: even a little training changes nearly all of them


def prompts_identity(*splits: tuple[list[str], list[dict[str, Any]]]) -> str:
    """A hash of the prompts and metadata of every split, in their order."""
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()


def weights_identity(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """A hash of the names, shapes, types and evenly spaced values of weights, on any device. Billions take seconds."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        values = tensor.detach().reshape(-1)
        values = values[:: max(1, len(values) // NUM_SAMPLED)].cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
