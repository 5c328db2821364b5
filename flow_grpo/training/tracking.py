"""Where a run's numbers and pictures go: metrics.jsonl and wandb. No other file says wandb."""

import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from flow_grpo.training.samples import Sample, sheet


class Tracker(Protocol):
    """Takes metrics under names like `rollout/reward_mean`, and samples to look at, by epoch."""

    def log(self, metrics: dict[str, float], epoch: int) -> None: ...

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None: ...

    def finish(self) -> None: ...


class NullTracker:
    """Drops everything: every process but the main one has it, so that the loop never asks."""

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        pass

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None:
        pass

    def finish(self) -> None:
        pass


class RunTracker:
    """Writes `metrics.jsonl` and `images/` in the run's folder, and the same to wandb, the samples as tables.

    wandb is online where WANDB_API_KEY is set or its own WANDB_MODE says so, else offline (`wandb sync` uploads it
    later). A resumed run continues the same wandb run; epochs that it repeats are dropped from metrics.jsonl first.
    """

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any], first_epoch: int = 0):
        import wandb

        self._run_dir = run_dir
        self._metrics_path = run_dir / "metrics.jsonl"
        _drop_epochs_from(self._metrics_path, first_epoch)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=_run_id(run_dir),
            resume="allow" if mode == "online" else None,
            dir=run_dir,
            config=config,
            mode=mode,
            settings=wandb.Settings(silent=True),
        )

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        with self._metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        self._run.log({"epoch": epoch, **metrics})

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None:
        """A sheet of the samples as images/NAME-EPOCH.png; in wandb their table under `name`, and the sheet beside it."""
        path = self._run_dir / "images" / f"{name.replace('/', '-')}-{epoch:06d}.png"
        path.parent.mkdir(exist_ok=True)
        picture = sheet(samples)
        picture.save(path)
        rows = [sample.row() for sample in samples]
        table = self._wandb.Table(list(rows[0]), [[self._cell(value) for value in row.values()] for row in rows])
        with _staged_in(self._run_dir / "wandb"):
            # wandb shows the table of one epoch at a time, and a picture's epochs by a slider
            self._run.log({"epoch": epoch, name: table, f"{name}_sheet": self._wandb.Image(picture)})

    def _cell(self, value: Any) -> Any:
        return self._wandb.Image(Image.fromarray(value)) if isinstance(value, np.ndarray) else value

    def finish(self) -> None:
        self._run.finish()


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Have wandb keep the pictures of a table there until they are uploaded, unless WANDB_DATA_DIR says where.

    By default they lie in the home folder. An offline run's record names them by absolute path: `wandb sync` finds them
    wherever the run's folder lies under the path it was written at, so over a shared disk too, and misses them in a copy
    under another path.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _drop_epochs_from(path: Path, first_epoch: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    # A run killed while writing leaves a last line without its end.
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < first_epoch]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _run_id(run_dir: Path) -> str:
    """The wandb id of this folder's run, drawn once."""
    path = run_dir / "wandb_id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
