"""Batches and scores as bytes, for a scorer behind a network: nothing is unpickled, and nothing received is trusted.

A message has the layout of a safetensors file: 8 bytes with the length of a JSON header (little-endian), the header, and
the arrays' bytes end to end. The header gives each array's dtype, shape and offsets, and under `__metadata__` some texts.
Any safetensors library reads and writes it; https://huggingface.co/docs/safetensors describes it.
"""

import json
import math
import os
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..score import Score

_DTYPES = {"F32": np.dtype("<f4"), "U8": np.dtype("uint8"), "BOOL": np.dtype("bool")}
_TYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_TEXTS = "__metadata__"

MAX_HEADER_BYTES = 4 * 2**20  # JSON takes some twenty times its length in memory
MAX_DIMENSIONS = 4

DEFAULT_TOKEN_ENV = "FLOW_GRPO_REWARD_TOKEN"


def bearer_token(variable: str | None = None) -> str | None:
    """The token in an environment variable; without a name, in DEFAULT_TOKEN_ENV, or None where that is not set.

    Raises ValueError where a named variable is not set, or a token cannot stand in a header.
    """
    token = os.environ.get(variable or DEFAULT_TOKEN_ENV)
    if variable and not token:
        raise ValueError(f"the environment variable {variable} is to hold a token, and is not set")
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"the token in {variable or DEFAULT_TOKEN_ENV} must be printable ASCII without spaces")
    return token or None


def encode_batch(images: np.ndarray, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> bytes:
    """A batch as a request. images: (B, H, W, 3) uint8 RGB, as `to_uint8` gives them.

    metadata: None or empty, or mappings that JSON can hold; a tuple arrives as a list.
    Raises ValueError for what has no JSON or no UTF-8.
    """
    try:
        texts = {"prompts": json.dumps(list(prompts), ensure_ascii=False)}
        if metadata:
            texts["metadata"] = json.dumps([dict(entry) for entry in metadata], ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"prompts and metadata must be JSON to be scored elsewhere: {error}") from error
    return pack({"images": images}, texts)


def decode_batch(message: bytearray, max_batch: int) -> tuple[Tensor, list[str], list[dict[str, Any]] | None]:
    """Images (B, 3, H, W) uint8, prompts and metadata of a request. Raises ValueError for anything else."""
    arrays, texts = unpack(message)
    _expect("arrays", arrays, {"images"})
    _expect(_TEXTS, texts, {"prompts"}, {"metadata"})
    images = arrays["images"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"images must be U8 (B, H, W, 3), got {_TYPE_NAMES[images.dtype]} {images.shape}")
    if len(images) > max_batch:
        raise ValueError(f"a request may hold {max_batch} images, got {len(images)}; send smaller batches")
    prompts = _list_of(str, "prompts", texts["prompts"], len(images))
    metadata = _list_of(dict, "metadata", texts["metadata"], len(images)) if "metadata" in texts else None
    return torch.from_numpy(images).permute(0, 3, 1, 2), prompts, metadata


def encode_score(score: Score) -> bytes:
    """A score as an answer: numbers in fp32, so that a scorer of fp32 gives the same bits here and elsewhere."""
    numbers = {"reward": score.reward} | {f"details/{name}": values for name, values in score.details.items()}
    if score.reward_map is not None:
        numbers["reward_map"] = score.reward_map
    arrays = {name: values.detach().float().cpu().numpy() for name, values in numbers.items()}
    flags = {"valid": score.valid, "map_valid": score.map_valid}
    arrays |= {name: values.detach().cpu().numpy() for name, values in flags.items()}
    return pack(arrays, {"map_kind": score.map_kind} if score.map_kind else {})


def decode_score(message: bytearray, batch_size: int) -> Score:
    """The score of batch_size images, on the CPU. Raises ValueError for anything else, and for what Score refuses."""
    arrays, texts = unpack(message)
    details = {name for name in arrays if name.startswith("details/")}
    _expect("arrays", arrays, {"reward", "valid", "map_valid"}, {"reward_map"} | details)
    _expect(_TEXTS, texts, set(), {"map_kind"})
    if len(arrays["reward"]) != batch_size:
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
    )


def pack(arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> bytes:
    """Arrays of fp32, uint8 or bool, and texts, as one message."""
    # the widest first, so that each starts at a multiple of its item's size
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    header, offset = {_TEXTS: dict(texts)}, 0
    for name in names:
        end = offset + arrays[name].nbytes
        shape = list(arrays[name].shape)
        header[name] = {"dtype": _TYPE_NAMES[arrays[name].dtype], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, ensure_ascii=False).encode()
    encoded += b" " * (-len(encoded) % 8)
    data = [np.ascontiguousarray(arrays[name]).data for name in names]
    return b"".join([len(encoded).to_bytes(8, "little"), encoded, *data])


def unpack(message: bytearray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and texts of a message; arrays share its memory where they can.

    Raises ValueError unless every byte is accounted for: a header of JSON, and arrays that fill the rest without gap or
    overlap, each of at least one item.
    """
    header, start = _read_header(message)
    texts = header.pop(_TEXTS, {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"{_TEXTS} must map names to texts, got {_show(texts)}")
    arrays, data = {}, memoryview(message)[start:]
    layouts = [(name, *_layout(name, entry, len(data))) for name, entry in header.items()]
    filled = 0
    for name, dtype, shape, begin, end in sorted(layouts, key=lambda layout: layout[3]):
        if begin != filled:
            raise ValueError(f"array {name[:80]!r} begins at byte {begin}, where {filled} was expected")
        array = np.frombuffer(data[begin:end], dtype).reshape(shape)
        if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
            raise ValueError(f"array {name[:80]!r} has flags other than 0 and 1")
        arrays[name], filled = np.require(array, requirements=["ALIGNED", "WRITEABLE"]), end
    if filled != len(data):
        raise ValueError(f"the arrays take {filled} bytes, but {len(data)} follow the header")
    return arrays, texts


def _read_header(message: bytearray) -> tuple[dict[str, Any], int]:
    """The header, and where the arrays' bytes start."""
    length = int.from_bytes(message[:8], "little")
    if len(message) < 8 or length > len(message) - 8:
        raise ValueError(f"the message of {len(message)} bytes ends before its header does")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"the header may take {MAX_HEADER_BYTES} bytes, got {length}; send smaller batches")
    header = _parse(message[8 : 8 + length], "the header")
    if not isinstance(header, dict):
        raise ValueError(f"the header must be an object, got {_show(header)}")
    return header, 8 + length


def _layout(name: str, entry: Any, num_bytes: int) -> tuple[np.dtype, list[int], int, int]:
    """An array's dtype, shape, and first and last byte, as its entry in the header has them."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"array {name[:80]!r} needs dtype, shape and data_offsets, got {_show(entry)}")
    type_name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(type_name, str) or type_name not in _DTYPES:
        raise ValueError(f"array {name[:80]!r} must be one of {', '.join(_DTYPES)}, got {_show(type_name)}")
    if not _are_counts(shape, 1, num_bytes) or not 1 <= len(shape) <= MAX_DIMENSIONS:
        raise ValueError(f"array {name[:80]!r} must have 1 to {MAX_DIMENSIONS} sizes of 1 or more, got {_show(shape)}")
    if not _are_counts(offsets, 0, num_bytes) or len(offsets) != 2:
        raise ValueError(f"array {name[:80]!r} must lie within the {num_bytes} bytes of data, got {_show(offsets)}")
    wanted = math.prod(shape) * _DTYPES[type_name].itemsize
    if offsets[1] - offsets[0] != wanted:
        raise ValueError(f"array {name[:80]!r} of {type_name} {shape} takes {wanted} bytes, got {_show(offsets)}")
    return _DTYPES[type_name], shape, *offsets


def _are_counts(values: Any, low: int, high: int) -> bool:
    return isinstance(values, list) and all(type(value) is int and low <= value <= high for value in values)


def _parse(text: str | bytearray, what: str) -> Any:
    """JSON without NaN, repeated names or text that has no UTF-8."""
    try:
        value = json.loads(text if isinstance(text, str) else text.decode(), object_pairs_hook=_unique)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} must be plain JSON in UTF-8: {str(error)[:200]}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _list_of(kind: type, what: str, text: str, length: int) -> list[Any]:
    values = _parse(text, what)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{what} must be a list of {kind.__name__}, got {_show(values)}")
    if len(values) != length:
        raise ValueError(f"{what} must be one per image, got {len(values)} for {length} images")
    return values


def _expect(what: str, got: Mapping[str, Any], required: set[str], optional: set[str] = frozenset()) -> None:
    if not required <= got.keys() <= required | optional:
        raise ValueError(f"{what} may have {sorted(required | optional)}, got {_show(sorted(got))}")


def _show(value: Any) -> str:
    return reprlib.repr(value)  # cut short: it may be megabytes
