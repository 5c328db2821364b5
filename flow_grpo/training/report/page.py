"""Writes one run, or several, as a single HTML page that needs no other file, no server and no network.

`python scripts/report.py RUN...` writes it. The trainer writes the page of its run after each evaluation.
"""

import base64
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from flow_grpo.training.json_lines import read_rows
from flow_grpo.training.report.charts import Chart, Rows, charts, compared
from flow_grpo.training.report.gallery import SampleSet, StoredSample, read_samples

METRICS, CONFIG = "metrics.jsonl", "config.json"  # files in a run's folder
OF_ONE_RUN = ("name", "seed", "run_dir", "resume_from")  # runs that differ only in these have the same configuration

NUM_EPOCHS_SHOWN = 12  # sets of samples under the slider, evenly spread, with the first and the last
NUM_SAMPLES_SHOWN = 16
LARGEST_SIDE = 384  # pixels of an embedded picture
LOSSLESS_UP_TO = 128  # pixels; JPEG would blur smaller pictures


@dataclass(frozen=True)
class RunData:
    """What a report shows of one run.

    config: the resolved configuration, flat ("train.learning_rate"). changes: the fields that differ from the defaults.
    """

    name: str
    rows: Rows
    sample_sets: list[SampleSet]
    config: dict[str, Any]
    changes: dict[str, Any]


def read_run(run_dir: Path, defaults: Mapping[str, Any] | None = None) -> RunData:
    """Read a run's folder. defaults: the fields of config/base.py, nested; None shows no changes.

    Raises ValueError where the folder holds no run.
    """
    rows = read_rows(run_dir / METRICS)
    if not rows:
        raise ValueError(
            f"{run_dir} holds no metrics.jsonl with a row; give the folder of a run, such as runs/demo-..."
        )
    path = run_dir / CONFIG
    config = flat(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
    base = flat(defaults or {})
    # compared as JSON, where a tuple of the configuration has become a list
    changes = {k: v for k, v in config.items() if base and json.dumps(v) != json.dumps(base.get(k))}
    changes.pop("run_dir", None)
    return RunData(run_dir.name, rows, read_samples(run_dir), config, changes)


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"beta": 0}} -> {"train.beta": 0}."""
    fields = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[f"{prefix}{name}"] = value
    return fields


def write_report(path: Path, runs: Sequence[RunData]) -> None:
    """Write the page. The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(render(runs), encoding="utf-8")
    os.replace(temporary, path)


def render(runs: Sequence[RunData]) -> str:
    """The page as HTML. Prompts, names and values are untrusted, so HTML and JSON are escaped."""
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    pictures = _Pictures()
    one = runs[0] if len(runs) == 1 else None
    data = {
        "charts": [asdict(chart) for chart in (charts(one.rows) if one else _comparison(runs))],
        "galleries": [_gallery(run, name, pictures) for run in runs for name in _set_names(run)],
    }
    data["pictures"] = pictures.urls
    return environment.get_template("page.html.j2").render(
        title=one.name if one else f"{len(runs)} runs",
        runs=runs,
        summaries=[summary(run) for run in runs],
        changed=sorted({name for run in runs for name in run.changes}),
        before_after=_before_after(one, pictures) if one else [],
        pictures=pictures.urls,
        alarms=[(run.name, *alarm) for run in runs for alarm in alarms(run.rows)],
        style=(folder / "style.css").read_text(encoding="utf-8"),
        script=(folder / "script.js").read_text(encoding="utf-8"),
        # A "</script>" inside a prompt would end the script.
        data=json.dumps(data, allow_nan=False, default=str).replace("<", "\\u003c"),
        written=time.strftime("%Y-%m-%d %H:%M"),
    )


def summary(run: RunData) -> list[tuple[str, float, float]]:
    """The main numbers of the evaluations, as (metric, value at the first evaluation, value at the last)."""
    evaluations = [row for row in run.rows if "eval/reward" in row]
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    names = [name for name in last if name == "eval/reward" or name.startswith("eval/gold/") or name.endswith("/exact")]
    return [(name, first[name], last[name]) for name in names if name in first]


def alarms(rows: Rows) -> list[tuple[str, int]]:
    """The alarms that rang, as (alarm, the first epoch in which it rang)."""
    rang = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("alarm/") and value:
                rang.setdefault(name, int(row["epoch"]))
    return list(rang.items())


def _comparison(runs: Sequence[RunData]) -> list[Chart]:
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row)
    chosen = [
        name
        for name in names
        if name in ("rollout/reward_mean", "eval/reward") or name.startswith(("eval/", "alarm/", "update/kl"))
    ]
    fields = dict.fromkeys(name for run in runs for name in run.config if name not in OF_ONE_RUN)
    differing = [name for name in fields if len({json.dumps(run.config.get(name)) for run in runs}) > 1]
    return compared({_label(run, differing): run.rows for run in runs}, chosen)


def _label(run: RunData, differing: Sequence[str]) -> str:
    """The label of a run. Runs that differ only in their seed have the same text before " seed ".

    differing: the fields in which the runs of the page differ.
    """
    if not run.config:
        return run.name
    values = ", ".join(f"{name.rpartition('.')[2]}={run.config[name]}" for name in differing if name in run.config)
    return f"{run.config.get('name', run.name)}{f' ({values})' if values else ''} seed {run.name}"


def _set_names(run: RunData) -> list[str]:
    return list(dict.fromkeys(each.name for each in run.sample_sets))


def _gallery(run: RunData, name: str, pictures: "_Pictures") -> dict[str, Any]:
    """The sets under one name, as the page's script shows them under a slider."""
    sets = _spread_evenly([each for each in run.sample_sets if each.name == name], NUM_EPOCHS_SHOWN)
    return {
        "title": f"{run.name}: {name}",
        "maps": list(sets[-1].samples[0].overlays) if sets[-1].samples else [],
        "sets": [
            {
                "epoch": each.epoch,
                "samples": [_tile(sample, pictures) for sample in each.samples[:NUM_SAMPLES_SHOWN]],
            }
            for each in sets
        ],
    }


def _tile(sample: StoredSample, pictures: "_Pictures") -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "reward": sample.reward,
        "advantage": sample.advantage,
        "read": next(iter(sample.read.values()), None),
        "image": pictures.add(sample.image),
        "overlays": {scorer: pictures.add(path) for scorer, path in sample.overlays.items()},
    }


def _before_after(run: RunData, pictures: "_Pictures") -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Samples to compare, as (prompt, its sample in the first evaluation, its sample in the last)."""
    sets = [each for each in run.sample_sets if each.name.startswith("eval/")]
    if len(sets) < 2:
        return []
    last = {sample.prompt: sample for sample in sets[-1].samples}
    both = [(sample, last[sample.prompt]) for sample in sets[0].samples[:8] if sample.prompt in last]
    return [(before.prompt, _tile(before, pictures), _tile(after, pictures)) for before, after in both]


def _spread_evenly(sets: Sequence[SampleSet], most: int) -> list[SampleSet]:
    if len(sets) <= most:
        return list(sets)
    return [sets[round(i * (len(sets) - 1) / (most - 1))] for i in range(most)]


class _Pictures:
    """Pictures as data URLs, each embedded once."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self._index: dict[Path, int | None] = {}

    def add(self, path: Path | None) -> int | None:
        """The index of a picture's URL; None where there is no picture."""
        if path is None:
            return None
        if path not in self._index:
            self._index[path] = len(self.urls) if path.exists() else None
            if path.exists():
                self.urls.append(_data_url(path))
        return self._index[path]


def _data_url(path: Path) -> str:
    with Image.open(path) as image:
        image = image.convert("RGB")
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
        kind = "png" if max(image.size) <= LOSSLESS_UP_TO else "jpeg"
        file = io.BytesIO()
        image.save(file, format=kind, **({"quality": 85} if kind == "jpeg" else {}))
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
