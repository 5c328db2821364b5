"""Reads prompts, and deals them out to processes in groups, epoch by epoch.

Everything is a function of (seed, epoch), so a run stores nothing here to go on where it stopped. The number of processes
does not change the prompts of an epoch, their groups, or the noise of a sample.
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flow_grpo.rewards import WeightedScorers
from flow_grpo.score import PromptErrors
from flow_grpo.training.image_size import Resolution, image_size
from flow_grpo.training.seeds import Domain, sample_seed, seeded

# What a split's file may be called; the last is Flow-GRPO's name for its GenEval prompts.
_ENDINGS = (".txt", ".jsonl", "_metadata.jsonl")
NUM_SHOWN = 5  # how many prompts an error message names


def load_prompts(folder: str | Path, split: str) -> list[str]:
    """The prompts of a split, in order. Blank lines of the file are skipped.

    The folder must hold exactly one of these files:

        SPLIT.txt                             one prompt per line (Flow-GRPO's format)
        SPLIT.jsonl or SPLIT_metadata.jsonl   one mapping with the key "prompt" per line

    Raises ValueError where the folder holds none or several of them, where the file is empty, and where a line cannot be
    read; that error names the file and the line.
    """
    return [row.prompt for row in _read(folder, split)]


def load_metadata(folder: str | Path, split: str) -> list[dict[str, Any]]:
    """The metadata that scorers get with each prompt of `load_prompts`, in the same order.

    For a line of JSON it is the value of "metadata"; without that key it is the whole line, because Flow-GRPO hands its
    GenEval prompts to the scorer so. For a line of text it is empty. Raises what `load_prompts` raises.
    """
    return [row.metadata for row in _read(folder, split)]


def load_sizes(folder: str | Path, split: str, resolution: Resolution) -> list[tuple[int, int]]:
    """The size (height, width) of each prompt's images, in the same order.

    It is the "resolution" of the prompt's metadata, a side or [height, width] in pixels; without one, `resolution`.
    Raises what `load_prompts` raises, and ValueError with file and line for a "resolution" that is no size.
    """
    return [row.size or image_size(resolution) for row in _read(folder, split)]


def check_sizes(check: Callable[[Resolution], None], folder: str | Path) -> None:
    """Call check with each size that prompts bring. Where it raises ValueError, the message begins with file and line.

    check: for instance a policy's `set_resolution`, which is then left at the last size.
    """
    for split in ("train", "test"):
        first = {row.size: row.place for row in reversed(_read(folder, split)) if row.size}
        for size, place in first.items():
            try:
                check(size)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from error


class CutPrompts(NamedTuple):
    """How many prompts have more tokens than a model reads; then the longest: its tokens, its place as "file:line", its text."""

    number: int
    num_tokens: int
    place: str
    prompt: str


def cut_prompts(num_tokens: Callable[[str], int], most: int, folder: str | Path) -> CutPrompts | None:
    """The prompts of both splits that have more than `most` tokens; None where there are none."""
    rows = [row for split in ("train", "test") for row in _read(folder, split)]
    longer = [(length, row) for row in rows if (length := num_tokens(row.prompt)) > most]
    if not longer:
        return None
    length, longest = max(longer, key=lambda each: each[0])
    return CutPrompts(len(longer), length, longest.place, longest.prompt)


def check_data(
    scorers: WeightedScorers, folder: str | Path, num_eval_prompts: int, splits: Sequence[str] = ("train", "test")
) -> None:
    """Raise ValueError where scorers cannot score some prompts; the message gives the file and line of the first ones.

    num_eval_prompts: how many of the test prompts the run uses; 0 means all.
    """
    for split in splits:
        number = num_eval_prompts or None if split == "test" else None
        rows = _read(folder, split)[:number]
        try:
            scorers.check_prompts([row.prompt for row in rows], [row.metadata for row in rows])
        except PromptErrors as error:
            shown = [f"{rows[index].place}: {fault}" for index, fault in list(error.faults.items())[:NUM_SHOWN]]
            others = len(error.faults) - len(shown)
            raise ValueError(
                f"{len(error.faults)} of {error.number} prompts cannot be scored: {'; '.join(shown)}"
                + (f"; and {others} more" if others else "")
            ) from error


class _Row(NamedTuple):
    """A prompt, the metadata that scorers get with it, its place as "file:line", and the size that it asks for."""

    prompt: str
    metadata: dict[str, Any]
    place: str
    size: tuple[int, int] | None


def _read(folder: str | Path, split: str) -> tuple[_Row, ...]:
    path = _split_file(Path(folder), split)
    return _rows(path, path.read_bytes())


@lru_cache(maxsize=4)  # a start asks for both splits several times; a file that has changed is parsed anew
def _rows(path: Path, data: bytes) -> tuple[_Row, ...]:
    rows, is_text = [], path.suffix == ".txt"
    for number, line in enumerate(_lines(path, data), 1):
        place = f"{path}:{number}"
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{place}: not UTF-8 ({error}); save the file in UTF-8") from error
        if text:
            prompt, metadata = (text, {}) if is_text else _parse_json(text, place)
            rows.append(_Row(prompt, metadata, place, _size(metadata, place)))
    if not rows:
        raise ValueError(f"{path} holds no prompts; write one a line")
    return tuple(rows)


def _lines(path: Path, data: bytes) -> list[bytes]:
    """The lines of a file. Only CR LF, LF and CR end a line here; str.splitlines knows seven more line ends."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{path}:1: UTF-16, not UTF-8; save the file in UTF-8")
    return re.split(rb"\r\n|\n|\r", data.removeprefix(codecs.BOM_UTF8))


def _split_file(folder: Path, split: str) -> Path:
    found = [path for ending in _ENDINGS if (path := folder / f"{split}{ending}").is_file()]
    if not found:
        raise ValueError(
            f"no prompts at {folder / split}.txt; config.dataset must be a folder with train.txt and test.txt, "
            "or with train.jsonl and test.jsonl"
        )
    if len(found) > 1:
        names = " and ".join(path.name for path in found)
        raise ValueError(f"{folder} has both {names}; keep the one that holds the {split} prompts")
    return found[0]


def _parse_json(line: str, where: str) -> tuple[str, dict[str, Any]]:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'{where}: not JSON ({error}); write one mapping with a "prompt" a line') from error
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise ValueError(f'{where}: expected a mapping with a text under "prompt", got {line[:80]}')
    if "metadata" not in entry:
        return entry["prompt"].strip(), entry
    ignored = sorted(entry.keys() - {"prompt", "metadata"})
    if ignored or not isinstance(entry["metadata"], dict):
        raise ValueError(
            f'{where}: "metadata" must be a mapping, and hold all that a scorer is told; '
            + (f"move {', '.join(ignored)} into it" if ignored else f"got {entry['metadata']!r}")
        )
    return entry["prompt"].strip(), entry["metadata"]


def _size(metadata: dict[str, Any], where: str) -> tuple[int, int] | None:
    if "resolution" not in metadata:
        return None
    try:
        return image_size(metadata["resolution"])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


@dataclass(frozen=True)
class SampleBatch:
    """One process's batch of samples to draw.

    prompts: (B,). metadata: (B,), what scorers get with each prompt.
    group_ids: (B,) int64. Siblings, the samples of one prompt, share an id.
    seeds: (B,), the seed of each sample's noise. No other sample of the run has the same.
    start_seeds: (B,), the seeds of the initial latents: each sample's own seed, or one seed per group.
    """

    prompts: list[str]
    metadata: list[dict[str, Any]]
    group_ids: torch.Tensor
    seeds: list[int]
    start_seeds: list[int]


@dataclass(frozen=True)
class GroupSampler:
    """Deals an epoch of num_groups groups of group_size samples to processes, batch by batch.

    The epoch's samples stand in one row, group after group. Global batch b is a slice of that row, and each process takes
    its part of the slice. So one process with batches of 2 B deals the same global batches as two with batches of B.

    same_start: siblings start from one latent. Their rewards then differ only by the noise of the steps, and that noise is
    what the log-probs can learn from.
    metadata: what the scorers get with each prompt (`load_metadata`); None gives them nothing.
    sizes: (height, width) of each prompt's images (`load_sizes`). An epoch has images of one size, so that all its batches and
        maps have one shape. Each size has as many epochs as its share of the prompts. None: the sampler knows no sizes.
    """

    prompts: list[str]
    num_groups: int
    group_size: int
    batch_size: int
    seed: int
    rank: int = 0
    num_processes: int = 1
    same_start: bool = False
    metadata: list[dict[str, Any]] | None = None
    sizes: list[tuple[int, int]] | None = None

    def __post_init__(self):
        if self.metadata is not None and len(self.metadata) != len(self.prompts):
            raise ValueError(f"{len(self.metadata)} metadata for {len(self.prompts)} prompts; give each prompt its own")
        numbers = Counter(self.sizes)
        for size, number in numbers.items():
            if len(numbers) > 1 and number < self.num_groups:
                raise ValueError(
                    f"{number} of the prompts have the resolution {size}, fewer than the num_groups={self.num_groups} of an "
                    "epoch, whose images are of one size; give this size more prompts, or lower num_groups"
                )

    def size(self, epoch: int) -> tuple[int, int] | None:
        """The size of the epoch's images: that of a prompt which the epoch's number draws."""
        if self.sizes is None:
            return None
        return self.sizes[sample_seed(Domain.SIZE, self.seed, epoch) % len(self.sizes)]

    def epoch(self, epoch: int) -> list[SampleBatch]:
        """The batches of this process."""
        chosen = self._prompt_indices(epoch)
        num_samples = self.num_groups * self.group_size
        stride = self.batch_size * self.num_processes
        batches = []
        for start in range(self.rank * self.batch_size, num_samples, stride):
            rows = range(start, start + self.batch_size)
            groups = [row // self.group_size for row in rows]
            seeds = [self._noise_seed(epoch * num_samples + row) for row in rows]
            firsts = [self._noise_seed(epoch * num_samples + group * self.group_size) for group in groups]
            batches.append(
                SampleBatch(
                    prompts=[self.prompts[chosen[group]] for group in groups],
                    metadata=[self.metadata[chosen[group]] if self.metadata else {} for group in groups],
                    group_ids=torch.tensor(groups),
                    seeds=seeds,
                    start_seeds=firsts if self.same_start else seeds,
                )
            )
        return batches

    def _noise_seed(self, number: int) -> int:
        """The seed of a sample's noise. number: the sample's number in the whole run."""
        return sample_seed(Domain.NOISE, self.seed, number)

    def _prompt_indices(self, epoch: int) -> list[int]:
        """Walk through shuffled passes over the prompts of the epoch's size, so that each is drawn equally often."""
        size = self.size(epoch)
        own = [i for i in range(len(self.prompts)) if self.sizes is None or self.sizes[i] == size]
        num_earlier = sum(self.size(earlier) == size for earlier in range(epoch))  # epochs of this size
        indices = range(num_earlier * self.num_groups, (num_earlier + 1) * self.num_groups)
        num_prompts = len(own)
        passes = {i // num_prompts for i in indices}
        orders = {
            p: torch.randperm(num_prompts, generator=seeded(Domain.SHUFFLE, self.seed, p)).tolist() for p in passes
        }
        return [own[orders[i // num_prompts][i % num_prompts]] for i in indices]
