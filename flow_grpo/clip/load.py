"""Load a CLIP model, or take a loaded one. A process holds one copy per model, device and dtype."""

import copy
import os
import threading
from typing import Any
from weakref import WeakValueDictionary

import torch

from . import from_open_clip, from_transformers
from .model import ClipModel, outside_inference
from .parts import ClipParts

DEFAULT_MODEL = "openai/clip-vit-large-patch14"

_LOADING = threading.Lock()
# Weak: a model is freed when its last scorer is.
_LOADED: WeakValueDictionary[tuple, ClipModel] = WeakValueDictionary()


def load_clip(
    model: Any = DEFAULT_MODEL, tokenizer: Any = None, device: str = "cpu", dtype: str | torch.dtype | None = None
) -> ClipModel:
    """Load a CLIP model, or take a loaded one.

    model: a hub id or local folder of transformers; "open_clip:ARCHITECTURE/PRETRAINED" such as "open_clip:RN50/openai";
        a loaded model of either library, alone with `tokenizer` or as a pair (model, tokenizer); or a ClipModel.
    dtype: the towers' "float32", "float16" or "bfloat16" (or torch's dtypes). None means float32, or a loaded model's own
        dtype. Heads, scores and maps are always fp32.
    Scorers of the same model, device and dtype share one copy per process. A loaded model is set to evaluation mode in
    place. If its dtype or device must change, a copy is changed, because others may hold the model too.
    Raises ImportError if a library is missing, and ValueError for a model that is not a CLIP.
    """
    if isinstance(model, ClipModel):
        if tokenizer is not None or dtype is not None:
            raise ValueError("a ClipModel has its tokenizer and dtype already; leave both out")
        return model
    if isinstance(model, tuple):
        if len(model) != 2 or tokenizer is not None:
            raise ValueError("a tuple is (model, tokenizer), both loaded; leave the option tokenizer out")
        model, tokenizer = model
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if isinstance(model, str) and tokenizer is not None:
        raise ValueError(f"model {model!r} comes with its own tokenizer; leave it out, or give a loaded model with it")
    device, dtype = torch.device(device), _floating(dtype) or (torch.float32 if isinstance(model, str) else None)
    key = (model if isinstance(model, str) else (id(model), id(tokenizer)), str(device), dtype)
    with _LOADING, outside_inference():
        clip = _LOADED.get(key)
        if clip is None:
            parts = _load(model, device, dtype) if isinstance(model, str) else _take(model, tokenizer, device, dtype)
            clip = _LOADED[key] = ClipModel(parts)
            clip.source = (model, tokenizer)  # keeps these objects alive, because their ids are in the key
        return clip


def _load(name: str, device: torch.device, dtype: torch.dtype) -> ClipParts:
    if name.startswith("open_clip:"):
        return from_open_clip.load(name.removeprefix("open_clip:"), device, dtype)
    return from_transformers.load(name, device, dtype)


def _take(model: Any, tokenizer: Any, device: torch.device, dtype: torch.dtype | None) -> ClipParts:
    if hasattr(model, "vision_model") and hasattr(model, "visual_projection"):
        library = from_transformers
    elif hasattr(model, "visual"):
        library = from_open_clip
    else:
        raise ValueError(
            f"model must be a hub id, a folder, or a loaded CLIP of transformers or open_clip, got {type(model).__name__}"
        )
    if tokenizer is None:
        raise ValueError("a loaded model needs its tokenizer: give model=(model, tokenizer)")
    if _differs(model, device, dtype):
        model = copy.deepcopy(model).to(device=device, dtype=dtype)
    return library.take_apart(model.eval(), tokenizer, device)


def _differs(model: Any, device: torch.device, dtype: torch.dtype | None) -> bool:
    """Whether moving a model to this device and dtype would change it."""
    moved = torch.empty(0, device=device).device  # turns "cuda" into "cuda:0"
    return any(
        weight.device != moved or (dtype is not None and weight.is_floating_point() and weight.dtype != dtype)
        for weight in model.parameters()
    )


def _floating(dtype: str | torch.dtype | None) -> torch.dtype | None:
    known = {str(kind).removeprefix("torch."): kind for kind in (torch.float32, torch.float16, torch.bfloat16)}
    if dtype is None or dtype in known.values():
        return dtype
    if not isinstance(dtype, str) or dtype not in known:
        raise ValueError(f"dtype must be one of {', '.join(known)}, got {dtype!r}")
    return known[dtype]
