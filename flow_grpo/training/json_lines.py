"""Files that grow by one line of JSON per event, each with its epoch: a run's metrics and its samples.

A kill, or a full disk, may cut the last line short. Readers pass such a line over.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one row at the end of the file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return [row for _, row in _whole_lines(path)]


def drop_epochs_from(path: Path, first_epoch: int) -> None:
    """Forget the rows that a resumed run will write again: those of first_epoch and later."""
    if not path.exists():
        return
    temporary = path.with_suffix(".tmp")
    kept = [line for line, row in _whole_lines(path) if row["epoch"] < first_epoch]
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole line with the row that it holds."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if line.endswith("\n"):
            yield line, row
