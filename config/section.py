"""How a field is written down: its default, its range and its sentence in one place, checked by pydantic."""

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Section(BaseModel):
    """Fields that belong together; the docstring is the title of their table."""

    # A number of another kind is taken where it is the same number. Infinity is taken where `field` allows it.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _one_of_its_choices(cls, value: Any, info) -> Any:
        choices = (cls.model_fields[info.field_name].json_schema_extra or {}).get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"is unknown; choose one of {', '.join(filter(None, choices))}")
        return value


def field(
    default: Any, sentence: str, choices: Iterable[str] | None = None, unlimited: bool = False, **bounds: float
) -> Any:
    """A field. sentence: what it does, where it comes from, when to change it, as Markdown.

    choices: a tuple or a table, asked when a value is checked, so that a row added to the table is a choice.
    unlimited: True takes infinity, too. bounds: pydantic's gt, ge, lt and le.
    """
    extra = None if choices is None else {"choices": choices}
    limits = bounds | ({"allow_inf_nan": True} if unlimited else {})
    return Field(default, description=sentence, json_schema_extra=extra, validate_default=True, **limits)


def leaves(section: type[Section], prefix: str = "") -> dict[str, Any]:
    """All fields by dotted name, in order: {"train.beta": its pydantic FieldInfo}."""
    found = {}
    for name, info in section.model_fields.items():
        nested = info.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            found |= leaves(nested, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = info
    return found


def bounds(info) -> dict[str, float]:
    """The bounds of a field as they were written: {"ge": 0}."""
    limits = ("gt", "ge", "lt", "le")
    return {limit: getattr(one, limit) for one in info.metadata for limit in limits if hasattr(one, limit)}
