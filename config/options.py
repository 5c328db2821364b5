"""What can be set, as a page and as a help text, made of the fields of config/base.py and the runs of config/grpo.py.

python -m config.options     writes docs/options.md
"""

from pathlib import Path
from typing import Any

from config.base import TABLES
from config.grpo import RUNS
from config.section import bounds

PAGE = Path(__file__).parents[1] / "docs" / "options.md"

HEAD = """# Every option of a run

<!-- Made of config/run_fields.py and config/training_fields.py by `python -m config.options`: change it there. -->

The fields of [config/run_fields.py](../config/run_fields.py) and [config/training_fields.py](../config/training_fields.py), set in a
run of [config/grpo.py](../config/grpo.py) or on the command line:

```bash
accelerate launch train_sd3.py --config config/grpo.py:tiny_ocr_map --config.train.beta=0.01
```

A reward and an option of its scorer are set in the same way, or all of them by a mapping:

```bash
--config.rewards.clip_gradcam=0.5 --config.reward_options.clip_gradcam.model=models/tiny-clip
--config.reward_options='{"clip_gradcam": {"model": "models/tiny-clip"}}'
```

What cannot work together is refused before any weight is loaded. `python train_sd3.py --help` lists runs and fields.
What a run reports stands on a [page of its own](metrics.md).
"""

WORDS = {"gt": "above {}", "ge": "{} or more", "lt": "below {}", "le": "at most {}"}


def page() -> str:
    """docs/options.md."""
    parts = [HEAD]
    for section, prefix in TABLES:
        parts.append(f"## {section.__doc__}\n\n| field | default | range | what it does |\n|---|---|---|---|")
        for name, info in section.model_fields.items():
            cells = f"`{prefix}{name}`", _default(info.default), range_in_words(info), info.description
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def help_text() -> str:
    """The runs and the fields, for a terminal."""
    lines = [
        "python train_sd3.py --config config/grpo.py:RUN [--config.FIELD=VALUE ...]",
        "python train_sd3.py --config.resume_from=RUN_FOLDER      goes on with the fields that the run had",
        "",
        "Runs:",
    ]
    lines += [f"  {name:<24}{run.__doc__.splitlines()[0]}" for name, run in RUNS.items()]
    for section, prefix in TABLES:
        lines += ["", f"{section.__doc__}:"]
        for name, info in section.model_fields.items():
            first = info.description.split(". ")[0].rstrip(".").replace("`", "")
            default = _default(info.default).strip("`")
            choices = f" ({', '.join(_choices(info))})" if _choices(info) else ""
            lines.append(f"  {prefix + name:<32}{first}{choices} [{default}]")
    lines += ["", "docs/options.md says more of each field, with its range."]
    return "\n".join(lines)


def range_in_words(info) -> str:
    """The choices of a field, or its bounds; empty where it may be anything of its type."""
    if choices := _choices(info):
        return ", ".join(f"`{choice}`" for choice in choices)
    return ", ".join(WORDS[limit].format(f"{value:g}") for limit, value in bounds(info).items())


def _choices(info) -> list[str]:
    return [choice for choice in (info.json_schema_extra or {}).get("choices", ()) if choice]


def _default(value: Any) -> str:
    if value in ("", {}):
        return "empty" if value == "" else "none"
    return f"`{value}`" if isinstance(value, str) else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
