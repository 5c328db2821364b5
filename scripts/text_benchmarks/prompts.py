"""Reads a benchmark's prompts from the files that its authors publish; docs/benchmarks.md says where these are."""

import csv
import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flow_grpo.text_maps.quotes import quoted_targets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """name: of its images' files, unique in the benchmark. part: what results are also told apart by."""

    name: str
    prompt: str
    texts: list[str]
    part: str


def read_prompts(benchmark: str, path: Path, language: str = "en") -> list[Prompt]:
    """The prompts of a benchmark, in order. Raises ValueError that names the file and what was looked for in it."""
    prompts = READERS[benchmark](path, language)
    if not prompts:
        raise ValueError(f"{path} holds no prompts of {benchmark}; docs/benchmarks.md shows its files")
    names = [prompt.name for prompt in prompts]
    if unsafe := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
        raise ValueError(f"{path}: the id of a prompt names a file, which {unsafe[0]!r} cannot")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} has the prompts {', '.join(sorted(twice)[:5])} twice; keep one of each")
    return prompts


def _cvtg(path: Path, language: str) -> list[Prompt]:
    """{CVTG,CVTG-style}/{2,3,4,5}.json: {"data_list": [{"index", "prompt", ...}]}; the texts are the prompt's quotes."""
    prompts, doubtful = [], 0
    for file in sorted(path.glob("*/[2-5].json")):
        rows = _json(file).get("data_list")
        if not isinstance(rows, list):
            raise ValueError(f'{file}: expected a list under "data_list"')
        for row in rows:
            text = _field(row, "prompt", file)
            texts = quoted_targets(text)
            if not texts:
                raise ValueError(f"{file}: the prompt of index {row.get('index')} quotes no text: {text!r}")
            doubtful += len(texts) != int(file.stem)
            part = f"{file.parent.name}-{file.stem}"
            prompts.append(Prompt(f"{part}-{_field(row, 'index', file)}", text, texts, part))
    if doubtful:
        logger.warning("%d prompts quote another number of texts than their file's name says", doubtful)
    return prompts


def _longtext(path: Path, language: str) -> list[Prompt]:
    """text_prompts.jsonl, in Chinese text_prompts_zh.jsonl: {"prompt_id", "prompt", "text": [...], "category"} a line."""
    file = path if path.is_file() else path / ("text_prompts.jsonl" if language == "en" else "text_prompts_zh.jsonl")
    prompts = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            row = _parsed(line, f"{file}:{number}")
            texts = _field(row, "text", f"{file}:{number}")
            name = f"{int(_field(row, 'prompt_id', f'{file}:{number}')):04d}"
            prompts.append(
                Prompt(name, _field(row, "prompt", f"{file}:{number}"), list(texts), row.get("category", "all"))
            )
    return prompts


def _oneig(path: Path, language: str) -> list[Prompt]:
    """OneIG-Bench.csv, whose category of text has the prompts, and text_content.csv beside it with their texts."""
    chinese = language == "zh"
    file = path / ("OneIG-Bench-ZH.csv" if chinese else "OneIG-Bench.csv")
    texts = path / ("text_content_zh.csv" if chinese else "text_content.csv")
    wanted = {_field(row, "id", texts): _field(row, "text_content", texts) for row in _csv(texts)}
    columns = ("prompt_cn", "prompt_zh", "prompt") if chinese else ("prompt_en", "prompt")
    prompts = []
    for row in _csv(file):
        if "text" not in row.get("category", "").lower() or row["id"] not in wanted:
            continue
        text = next((row[column] for column in columns if row.get(column)), None)
        if text is None:
            raise ValueError(f"{file}: the row {row['id']} has none of the columns {', '.join(columns)}")
        prompts.append(Prompt(row["id"], text, [wanted[row["id"]]], "all"))
    return prompts


READERS: dict[str, Callable[[Path, str], list[Prompt]]] = {
    "cvtg-2k": _cvtg,
    "longtext-bench": _longtext,
    "oneig": _oneig,
}


def _text(file: Path) -> str:
    if not file.is_file():
        raise ValueError(f"there is no file {file}; docs/benchmarks.md says where the benchmark's files come from")
    return file.read_text(encoding="utf-8-sig")


def _json(file: Path) -> dict:
    return _parsed(_text(file), str(file))


def _csv(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(file), newline="")))


def _parsed(text: str, place: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: expected a mapping, got {text[:80]!r}")
    return value


def _field(row: dict, name: str, place: object):
    if row.get(name) in (None, ""):
        raise ValueError(f'{place}: expected "{name}" in each entry, got {", ".join(map(str, row))}')
    return row[name]
