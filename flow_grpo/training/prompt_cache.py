"""Caches prompt embeddings: the text encoders are frozen, and slow (T5 above all), so each prompt is encoded once."""

import hashlib
import logging
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flow_grpo.training.policies.base import PromptEmbeds

logger = logging.getLogger(__name__)


class PromptCache:
    """Takes the place of a policy's `encode_prompts`.

    encode: the policy's own `encode_prompts`, which is asked for all that is missing at once: with `offload` the text
        encoders then come to the device once. device: where it puts its embeddings.
    identity: a text of everything else that the embeddings depend on: the model's weights, the length, the precision.
    max_bytes: how many bytes of embeddings CPU memory keeps; the longest unused leave first.
    folder: where each embedding is also written, one safetensors file per prompt. The processes of a run and later runs
        share it. None writes nothing.
    """

    def __init__(
        self,
        encode: Callable[[list[str]], PromptEmbeds],
        device: torch.device,
        identity: str,
        max_bytes: int,
        folder: Path | None = None,
    ):
        self._encode, self._device, self._identity = encode, device, identity
        self._max_bytes, self._folder = max_bytes, folder
        self._kept: OrderedDict[str, PromptEmbeds] = OrderedDict()  # {key: one row, on the CPU}
        self._num_bytes = 0

    def __call__(self, prompts: list[str]) -> PromptEmbeds:
        """The embeddings of prompts, one row each, on the encoder's device."""
        unique = list(dict.fromkeys(prompts))
        rows = {prompt: row for prompt in unique if (row := self._find(prompt)) is not None}
        missing = [prompt for prompt in unique if prompt not in rows]
        encoded = self._encode(missing) if missing else None
        for row, prompt in enumerate(missing):
            # A clone: a slice would keep the others in memory.
            rows[prompt] = encoded[row : row + 1].map(lambda tensor: tensor.cpu().clone())
            self._keep(prompt, rows[prompt])
            self._write(prompt, rows[prompt])
        # Each row goes to the device once; siblings repeat it there.
        index = {prompt: row for row, prompt in enumerate(unique)}
        embeds = PromptEmbeds.cat(rows[prompt] for prompt in unique).map(self._to_device)
        return embeds[torch.tensor([index[prompt] for prompt in prompts])]

    def _find(self, prompt: str) -> PromptEmbeds | None:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        path = self._path(prompt)
        embeds = None if path is None else _read(path)
        if embeds is not None:
            self._keep(prompt, embeds)
        return embeds

    def _keep(self, prompt: str, embeds: PromptEmbeds) -> None:
        if prompt in self._kept:
            return
        self._kept[prompt] = embeds
        self._num_bytes += embeds.num_bytes
        while self._num_bytes > self._max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._num_bytes -= dropped.num_bytes

    def _write(self, prompt: str, embeds: PromptEmbeds) -> None:
        if (path := self._path(prompt)) is None:
            return
        # Written whole or not at all, even if another process writes the same file.
        temporary = path.with_suffix(f".{secrets.token_hex(4)}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(vars(embeds), temporary, metadata={"sha256": _digest(embeds)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            logger.warning("%s takes no more embeddings (%s); the run goes on without it", self._folder, error)
            self._folder = None

    def _path(self, prompt: str) -> Path | None:
        if self._folder is None:
            return None
        name = hashlib.sha256(f"{self._identity}\n{prompt}".encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device).contiguous()


def _read(path: Path) -> PromptEmbeds | None:
    """The embedding in a file. None where the file is missing, cut short or damaged; the prompt is then encoded again."""
    try:
        with safe_open(path, "pt") as file:
            names, metadata = file.keys(), file.metadata() or {}
            embeds = PromptEmbeds(**{name: file.get_tensor(name) for name in names})
    except (OSError, SafetensorError):
        return None
    return embeds if metadata.get("sha256") == _digest(embeds) else None


def _digest(embeds: PromptEmbeds) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(vars(embeds).items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
