"""Sums up what was read: figures of all images and of each part, and a page that shows them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.text_benchmarks.images import Job
from scripts.text_benchmarks.metrics import METRICS, Reading

NUM_SHOWN = 200  # images on the page


def results(benchmark: str, language: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """{"all": {metric: value}, "parts": {part: {metric: value}}, "images": [{name, asked, read, ...}]}."""
    rows = [json.loads(job.reading.read_text(encoding="utf-8")) for job in jobs]

    def figures(chosen: list[int]) -> dict[str, float]:
        readings = [Reading(jobs[i].prompt.texts, rows[i]["read"]) for i in chosen]
        measured = METRICS[benchmark](readings, language) | {"num_images": len(chosen)}
        scores = [rows[i]["clip_score"] for i in chosen if "clip_score" in rows[i]]
        return measured | ({"clip_score": sum(scores) / len(scores)} if scores else {})

    parts: dict[str, list[int]] = {}
    for i, job in enumerate(jobs):
        parts.setdefault(job.prompt.part, []).append(i)
    return {
        "all": figures(list(range(len(jobs)))),
        "parts": {part: figures(chosen) for part, chosen in parts.items()},
        "images": [{"name": job.image.stem, "asked": job.prompt.texts, **row} for job, row in zip(jobs, rows)],
    }


def write_page(path: Path, benchmark: str, found: dict[str, Any], jobs: Sequence[Job]) -> None:
    """The images with what was asked and what was read. Prompts and readings are strangers' text: jinja2 escapes them."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    shown = [
        {"image": f"images/{job.image.name}", "prompt": job.prompt.prompt, **row}
        for job, row in list(zip(jobs, found["images"]))[:NUM_SHOWN]
    ]
    page = environment.get_template("page.html.j2").render(
        title=benchmark, tables={"all": found["all"], **found["parts"]}, shown=shown, num_images=len(jobs)
    )
    path.write_text(page, encoding="utf-8")
