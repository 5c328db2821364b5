"""Batches and scores as bytes, for a scorer behind a network. Nothing is unpickled, and everything received is checked.

A message is a safetensors file: named arrays, and texts under `__metadata__`. The safetensors library checks every byte of it
against its header; this file checks the arrays and the texts.
"""

import json
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from ..score import Score

_DTYPES = {"F32": np.dtype("<f4"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool")}

MAX_HEADER_BYTES = 4 * 2**20  # parsed JSON takes about twenty times its length in memory
MAX_TEXT = 16_384  # characters of a prompt, or of an image's metadata as JSON: more than any text encoder reads

DEFAULT_TOKEN_ENV = "FLOW_GRPO_REWARD_TOKEN"


def bearer_token(variable: str | None = None) -> str | None:
    """The token in an environment variable. Without a name, DEFAULT_TOKEN_ENV is read; if that is not set, returns None.

    Raises ValueError if a named variable is not set, or if the token cannot stand in a header.
    """
    token = os.environ.get(variable or DEFAULT_TOKEN_ENV)
    if variable and not token:
        raise ValueError(f"the environment variable {variable} is to hold a token, and is not set")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"the token in {variable or DEFAULT_TOKEN_ENV} must be printable ASCII without spaces")
    return token or None


def encode_batch(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> bytes:
    """A batch as a request. images: (B, H, W, 3) uint8 RGB, as `to_uint8` gives them.

    metadata: None, empty, or one mapping (or None) per image that JSON can hold. A tuple arrives as a list, None as {}.
    Raises ValueError for a value that JSON or UTF-8 cannot hold.
    """
    return pack({"images": images}, _texts(prompts, metadata))


def decode_batch(message: bytes, max_batch: int) -> tuple[Tensor, list[str], list[dict[str, Any]] | None]:
    """Images (B, 3, H, W) uint8, prompts and metadata of a request. Raises ValueError for anything else."""
    arrays, texts = unpack(message)
    _expect("arrays", arrays, {"images"})
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be U8 (B, H, W, 3), got {images.dtype} {images.shape}")
    if len(images) > max_batch:
        raise ValueError(f"a request may hold {max_batch} images, got {len(images)}; send smaller batches")
    prompts, metadata = _read_texts(texts, len(images))
    for fault in length_faults(prompts, metadata).values():
        raise ValueError(fault)
    return torch.from_numpy(images).permute(0, 3, 1, 2), prompts, metadata


def encode_prompts(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any] | None] | None) -> bytes:
    """Prompts without images, as a request to check them. metadata and errors are encode_batch's."""
    return pack({}, _texts(prompts, metadata))


def decode_prompts(message: bytes) -> tuple[list[str], list[dict[str, Any]] | None]:
    """Prompts and metadata of such a request, of any length. Raises ValueError for anything else."""
    arrays, texts = unpack(message)
    _expect("arrays", arrays, set())
    return _read_texts(texts)


def encode_faults(faults: Mapping[int, str], number: int) -> bytes:
    """What is wrong with some of `number` prompts, by their places, as an answer."""
    return pack({}, {"faults": _json([faults.get(place, "") for place in range(number)])})


def decode_faults(message: bytes, number: int) -> dict[int, str]:
    """What is wrong with some of `number` prompts, by their places. Raises ValueError for any other message."""
    arrays, texts = unpack(message)
    _expect("arrays", arrays, set())
    _expect("__metadata__", texts, {"faults"})
    return {place: fault for place, fault in enumerate(_list_of(str, "faults", texts["faults"], number)) if fault}


def length_faults(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> dict[int, str]:
    """The places of texts that a server refuses, with the reason: one long text could block a server for all others."""
    faults = {}
    for place, prompt in enumerate(prompts):
        for what, text in (("a prompt", prompt), ("an image's metadata", _json(metadata[place]) if metadata else "")):
            if len(text) > MAX_TEXT:
                faults[place] = f"{what} may take {MAX_TEXT} characters, got {len(text)}; shorten it"
    return faults


def encode_score(score: Score) -> bytes:
    """A score as an answer: all numbers in fp32, so an fp32 scorer gives the same bits here as in the caller's process."""
    numbers = {"reward": score.reward} | {f"details/{name}": values for name, values in score.details.items()}
    texts = {}
    if score.reward_map is not None:
        numbers["reward_map"] = score.reward_map
        texts = {"map_kind": score.map_kind, "neutral": _json(float(score.neutral))}
    if score.read is not None:
        texts["read"] = _json(score.read)
    arrays = {name: values.detach().float().cpu().numpy() for name, values in numbers.items()}
    flags = {"valid": score.valid, "map_valid": score.map_valid}
    arrays |= {name: values.detach().cpu().numpy() for name, values in flags.items()}
    return pack(arrays, texts)


def decode_score(message: bytes, batch_size: int) -> Score:
    """The score of batch_size images, on the CPU. Raises ValueError for any other message, and for what Score refuses."""
    arrays, texts = unpack(message)
    details = {name for name in arrays if name.startswith("details/")}
    _expect("arrays", arrays, {"reward", "valid", "map_valid"}, {"reward_map"} | details)
    _expect("__metadata__", texts, set(), {"map_kind", "neutral", "read"})
    if arrays["reward"].shape[:1] != (batch_size,):
        raise ValueError(f"reward must be ({batch_size},), got {arrays['reward'].shape}")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if any(tensors[name].dtype != torch.float32 for name in tensors.keys() - {"valid", "map_valid"}):
        raise ValueError("reward, reward_map and details must be F32")
    return Score(
        reward=tensors["reward"],
        reward_map=tensors.get("reward_map"),
        map_kind=texts.get("map_kind"),
        map_valid=tensors["map_valid"],
        details={name.removeprefix("details/"): tensors[name] for name in arrays if name in details},
        valid=tensors["valid"],
        neutral=float(texts.get("neutral", 0.5)),
        read=tuple(_list_of(str, "read", texts["read"], batch_size)) if "read" in texts else None,
    )


def pack(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    """Arrays of fp32, uint8 or bool, and texts, as one message."""
    return safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}, dict(texts))


def unpack(message: bytes) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and texts of a message. Raises ValueError unless it is a safetensors file of such arrays."""
    length = int.from_bytes(message[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header may take {MAX_HEADER_BYTES} bytes, got {length}; send smaller batches")
    try:
        entries = safetensors.deserialize(bytes(message))
    except safetensors.SafetensorError as error:
        raise ValueError(f"the message of {len(message)} bytes is no safetensors file: {str(error)[:200]}") from None
    arrays = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"array {name[:80]!r} must be one of {', '.join(_DTYPES)}, got {entry['dtype']}")
        if 0 in entry["shape"]:
            raise ValueError(f"array {name[:80]!r} must hold something, got the shape {reprlib.repr(entry['shape'])}")
        array = np.frombuffer(entry["data"], np.uint8)
        if entry["dtype"] == "BOOL" and (array > 1).any():
            raise ValueError(f"array {name[:80]!r} has flags other than 0 and 1")
        arrays[name] = array.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    header = json.loads(message[8 : 8 + length])  # the library has parsed it, but does not hand out the texts
    texts = header.pop("__metadata__", None) or {}
    if any(entry.keys() != {"dtype", "shape", "data_offsets"} for entry in header.values()):
        raise ValueError("an array has dtype, shape and data_offsets, and nothing else")
    return arrays, texts


def _json(value: Any) -> str:
    """A value as JSON without NaN. Raises ValueError if JSON or UTF-8 cannot hold it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text.encode()
    return text


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _list_of(kind: type, what: str, text: str, length: int | None) -> list[Any]:
    try:
        values = json.loads(text, object_pairs_hook=_unique)
        _json(values)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be plain JSON in UTF-8: {str(error)[:200]}") from None
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{what} must be a list of {kind.__name__}, got {reprlib.repr(values)}")
    if length is not None and len(values) != length:
        raise ValueError(f"{what} must be one per image, got {len(values)} for {length} images")
    return values


def _texts(prompts: Sequence[str], metadata: Sequence[Mapping[str, Any] | None] | None) -> dict[str, str]:
    try:
        texts = {"prompts": _json(list(prompts))}
        if metadata:
            texts["metadata"] = _json([dict(entry or {}) for entry in metadata])
    except (TypeError, ValueError) as error:
        raise ValueError(f"prompts and metadata must be JSON to be scored elsewhere: {error}") from error
    return texts


def _read_texts(texts: Mapping[str, str], number: int | None = None) -> tuple[list[str], list[dict[str, Any]] | None]:
    """Prompts and metadata of a request; of so many images, if it has any."""
    _expect("__metadata__", texts, {"prompts"}, {"metadata"})
    prompts = _list_of(str, "prompts", texts["prompts"], number)
    return prompts, _list_of(dict, "metadata", texts["metadata"], len(prompts)) if "metadata" in texts else None


def _expect(what: str, got: Mapping[str, Any], required: set[str], optional: set[str] = frozenset()) -> None:
    if not required <= got.keys() <= required | optional:
        raise ValueError(f"{what} may have {sorted(required | optional)}, got {reprlib.repr(sorted(got))}")
