"""Writes a run's numbers and pictures to its folder and to wandb. No other file says wandb."""

import json
import logging
import netrc
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from flow_grpo.training.alarm import Values
from flow_grpo.training.evaluation_log import EVALUATIONS, log_evaluation
from flow_grpo.training.json_lines import append_row, drop_epochs_from, read_rows
from flow_grpo.training.report.gallery import SAMPLES, save_samples
from flow_grpo.training.report.page import CONFIG, METRICS, read_run, write_report
from flow_grpo.training.samples import Sample, sheet

logger = logging.getLogger(__name__)

INIT_SECONDS = 30  # how long a run waits for wandb's server at its start
FINISH_SECONDS = 300  # and for the upload at its end; the rest stays on disk

# The files of rows, and which rows of each tell of an evaluation.
IS_EVALUATION: dict[str, Callable[[dict[str, Any]], bool]] = {
    METRICS: lambda row: any(name.startswith("eval/") for name in row),
    SAMPLES: lambda row: row["name"].startswith("eval/"),
    EVALUATIONS: lambda row: True,
}


class Tracker(Protocol):
    """Takes the metrics of each epoch, under names like `rollout/reward_mean`, and samples to look at."""

    def log(self, metrics: dict[str, float], epoch: int) -> None: ...

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None: ...

    def log_evaluation(self, values: Values, epoch: int) -> dict[str, float]: ...

    def report(self, defaults: dict[str, Any]) -> None: ...

    def finish(self, failed: bool = False) -> None: ...


class NullTracker:
    """Drops everything. Every process but the main one has it, so the loop never asks which process it is in."""

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        pass

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None:
        pass

    def log_evaluation(self, values: Values, epoch: int) -> dict[str, float]:
        return {}

    def report(self, defaults: dict[str, Any]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


class RunTracker:
    """Writes metrics.jsonl, samples.jsonl, images/ and report.html in the run's folder; wandb gets metrics and samples.

    A resumed run continues the same wandb run. It first drops the epochs that it repeats from its files.
    repeats_evaluation: whether it begins with an evaluation; otherwise what an earlier end measured there stays.
    Nothing here ends a run. If something cannot be written, one warning says so, and it is left out from then on.
    """

    def __init__(
        self,
        run_dir: Path,
        project: str,
        config: dict[str, Any],
        first_epoch: int = 0,
        repeats_evaluation: bool = True,
    ):
        self._run_dir = run_dir
        for name, is_evaluation in IS_EVALUATION.items():
            kept = (lambda row: False) if repeats_evaluation else is_evaluation
            drop_epochs_from(run_dir / name, first_epoch, kept)
        self._can_write = True
        with self._warning_once():
            (run_dir / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        self._wandb = _Wandb(run_dir, project, config)

    def log(self, metrics: dict[str, float], epoch: int) -> None:
        row = {"epoch": epoch, **metrics}
        with self._warning_once():
            append_row(self._run_dir / METRICS, row)
        self._wandb.log(lambda _: row)

    def log_samples(self, name: str, samples: Sequence[Sample], epoch: int) -> None:
        """Write the samples' pictures, their line in samples.jsonl, and a sheet of all of them, images/NAME-EPOCH.png.

        wandb shows a table of the samples under `name`, and the sheet beside it.
        """
        picture = sheet(samples)
        path = self._run_dir / "images" / f"{name.replace('/', '-')}-{epoch:06d}.png"
        with self._warning_once():
            path.parent.mkdir(exist_ok=True)
            picture.save(path)
            save_samples(self._run_dir, name, samples, epoch)
        rows = [sample.row() for sample in samples]

        def table(wandb) -> dict[str, Any]:
            # wandb shows a table for one epoch at a time; for a picture it has a slider over the epochs.
            cells = [[_cell(wandb, value) for value in row.values()] for row in rows]
            return {"epoch": epoch, name: wandb.Table(list(rows[0]), cells), f"{name}_sheet": wandb.Image(picture)}

        with _staged_in(self._run_dir / "wandb"):
            self._wandb.log(table)

    def log_evaluation(self, values: Values, epoch: int) -> dict[str, float]:
        """Store what an evaluation measured per prompt, and warn of alarms that ring. Returns the alarms as metrics."""
        metrics = {}
        with self._warning_once():
            metrics, ringing = log_evaluation(self._run_dir, epoch, values)
            for alarm in ringing:
                print(alarm, flush=True)
        return metrics

    def report(self, defaults: dict[str, Any]) -> None:
        """Write report.html, the run as one page. defaults: the configuration's defaults; the page shows what differs."""
        try:
            write_report(self._run_dir / "report.html", [read_run(self._run_dir, defaults)])
        except Exception as error:  # a page that fails, for any reason, must not end the run
            logger.warning("report.html cannot be written (%s: %s)", type(error).__name__, error)

    def finish(self, failed: bool = False) -> None:
        self._wandb.finish(failed)

    @contextmanager
    def _warning_once(self) -> Iterator[None]:
        """If the disk is full or gone, warn once and lose the rows. A checkpoint matters more, and raises instead."""
        try:
            yield
        except OSError as error:
            if self._can_write:
                logger.warning("metrics and images cannot be written (%s); the run goes on without those", error)
            self._can_write = False


class _Wandb:
    """A wandb run. It may fail at any moment; it is then given up, with one warning.

    wandb works in a process of its own. A scheduler's signal or a full memory may end that process before the run ends.
    wandb may then raise any kind of error, so every Exception is caught here, but only around calls of wandb.
    """

    def __init__(self, run_dir: Path, project: str, config: dict[str, Any]):
        self._run = self._module = None
        mode, failure = "disabled", None
        with self._giving_up("to start"):
            import wandb

            self._module = wandb
            mode = _wandb_mode(wandb)
            settings = {"project": project, "name": run_dir.name, "id": _run_id(run_dir), "dir": run_dir}
            settings |= {"config": config}
            try:
                self._run = _init_wandb(wandb, mode, settings)
            except Exception as error:
                if mode != "online":
                    raise
                # No network, a wrong key, or a server that is down: offline, the run lies on disk for a later upload.
                failure, mode = error, "offline"
                _tear_down(wandb)
                self._run = _init_wandb(wandb, mode, settings)
            # The x axis of the charts is the epoch, not the number of calls.
            self._run.define_metric("epoch")
            self._run.define_metric("*", step_metric="epoch")
        if self._run is not None:
            _announce(self._run, mode, run_dir, failure)

    def log(self, row: Callable[[ModuleType], dict[str, Any]]) -> None:
        """Log a row. row: takes the wandb module and returns what to log, in wandb's own types."""
        with self._giving_up("during the run"):
            if self._run is not None:
                self._run.log(row(self._module))

    def finish(self, failed: bool) -> None:
        with self._giving_up("at the end"):
            if self._run is not None:
                self._run.finish(exit_code=int(failed))

    @contextmanager
    def _giving_up(self, when: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            logger.warning(
                "wandb failed %s (%s: %s) and is given up; metrics.jsonl and images/ go on without it",
                *(when, type(error).__name__, error),
            )
            self._run = None
            _tear_down(self._module)


def _wandb_mode(wandb: ModuleType) -> str:
    """The mode that WANDB_MODE or `wandb offline` sets; without them, online if there is a key."""
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    settings = wandb.setup().settings
    if settings.mode != "online":
        return settings.mode
    has_key = settings.api_key or os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _netrc_has(settings.base_url)
    return "online" if has_key else "offline"


def _netrc_has(url: str) -> bool:
    """Whether `wandb login` has left a key for this server."""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(path).authenticators(urlsplit(url).netloc) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _init_wandb(wandb: ModuleType, mode: str, options: dict[str, Any]):
    return wandb.init(
        **options,
        mode=mode,
        resume="allow" if mode == "online" else None,
        settings=wandb.Settings(silent=True, init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS),
    )


def _tear_down(wandb: ModuleType | None) -> None:
    """End what is left of wandb, so that neither its exit handler nor a later run meets it."""
    try:
        if wandb is not None:
            wandb.teardown()
    except (Exception, SystemExit):  # wandb raises SystemExit where its process was killed
        pass


def _announce(run: Any, mode: str, run_dir: Path, failure: Exception | None) -> None:
    """One line that says where the run's metrics can be seen."""
    if mode == "online":
        print(f"wandb: {run.url}", flush=True)
    elif mode == "offline":
        if failure is not None:
            reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
            logger.warning("wandb is offline, since it did not answer (%s); WANDB_MODE=offline does not ask", reason)
        print(f"wandb: offline; `wandb sync {run_dir}/wandb/offline-run-*` uploads it", flush=True)
    else:
        print(f"wandb: {mode}", flush=True)


def _cell(wandb: ModuleType, value: Any) -> Any:
    return wandb.Image(Image.fromarray(value)) if isinstance(value, np.ndarray) else value


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.jsonl. A line that a kill or a full disk cut short is skipped."""
    return read_rows(run_dir / METRICS)


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Have wandb keep a table's pictures in `folder` until they are uploaded, unless WANDB_DATA_DIR names another place.

    By default wandb keeps them in the home folder. The record of an offline run holds their absolute paths. So `wandb sync`
    finds them as long as the run's folder has its first path, also over a shared disk, but not in a copy under another
    path.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.resolve())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _run_id(run_dir: Path) -> str:
    """The wandb id of this folder's run. It is drawn once and stored."""
    path = run_dir / "wandb_id.txt"
    if not path.exists() or not path.read_text(encoding="utf-8").strip():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
