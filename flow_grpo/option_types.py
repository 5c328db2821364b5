"""Refuse an option of a wrong type by its name, before anything computes with it: "0.2" of a command line, None, NaN."""

from collections.abc import Callable, Mapping
from functools import wraps
from inspect import Parameter, signature
from numbers import Integral, Real
from types import UnionType
from typing import Any, Union, get_args, get_origin


def check_options(owner: str, parameters: Mapping[str, Parameter], options: Mapping[str, Any]) -> None:
    """Raise ValueError if an option is not of the kind that its annotation names. A parameter's own default always passes.

    Checked are float (any real number except NaN), int, bool, Mapping, tuples of these (a list will do), and unions with
    None. A bool is not a number. Every other annotation, such as str, is left to the owner.
    owner: whose options they are, for the message, which also has the option, what it got and what is expected.
    """
    for name, value in options.items():
        parameter = parameters.get(name)
        if parameter is None or value is parameter.default:
            continue
        expected = _expected(parameter.annotation)
        if expected and not _fits(value, parameter.annotation):
            kept = "" if parameter.default is parameter.empty else f"; its default is {parameter.default!r}"
            raise ValueError(f"{owner}: {name} must be {expected}, got {value!r} ({type(value).__name__}){kept}")


def checked_options(function: Callable) -> Callable:
    """Decorate a function or an `__init__`: `check_options` of its arguments comes first."""
    named = signature(function)
    owner = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def checked(*args, **options):
        check_options(owner, named.parameters, named.bind(*args, **options).arguments)
        return function(*args, **options)

    return checked


def is_number(value: Any) -> bool:
    """Whether a value is a real number of any library, and not NaN. A bool is not a number."""
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


def _fits(value: Any, annotation: Any) -> bool:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is float:
        return is_number(value)
    if kind is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if kind is tuple:
        return isinstance(value, (tuple, list)) and len(value) == len(parts) and all(map(_fits, value, parts))
    return isinstance(value, kind)


def _expected(annotation: Any) -> str | None:
    """The kind in words. None for an annotation that is not checked."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind in (Union, UnionType):
        words = [_expected(part) for part in parts]
        return " or ".join(words) if all(words) else None
    if kind is tuple:
        words = [_expected(part) for part in parts]
        return f"({', '.join(words)})" if all(words) else None
    return _WORDS.get(kind)


_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "True or False",
    Mapping: "a mapping of names to values",
    type(None): "None",
}
