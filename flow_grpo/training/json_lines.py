"""Files that grow by one line of JSON per event, each with its epoch: a run's metrics and its samples.

A kill, or a full disk, may cut a line short. Readers pass such a line over, and the next row begins on a line of its own.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write one row at the end of the file."""
    with path.open("ab+") as file:
        begin = b"\n" if _is_torn(file) else b""
        file.write(begin + json.dumps(row).encode() + b"\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return [row for _, row in _whole_lines(path)]


def drop_epochs_from(path: Path, first_epoch: int, kept: Callable[[dict[str, Any]], bool] = lambda row: False) -> None:
    """Forget the rows that a resumed run will write again: those of first_epoch and later.

    kept: whether a row of first_epoch itself will not be written again, and stays.
    """
    if not path.exists():
        return
    temporary = path.with_suffix(".tmp")
    lines = [
        line
        for line, row in _whole_lines(path)
        if row["epoch"] < first_epoch or (row["epoch"] == first_epoch and kept(row))
    ]
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)


def _whole_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every whole line with the row that it holds."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines(keepends=True):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if line.endswith("\n"):
            yield line, row


def _is_torn(file: BinaryIO) -> bool:
    """Whether the file's last line has no end."""
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"
