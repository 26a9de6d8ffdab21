"""What --help shows of a command: its fields, docstrings and ranges, and the values it would run with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, get_type_hints

import docstring_parser
import tyro

from ddpo3d_fast.errors import number
from ddpo3d_fast.settings import Range


def show_help(kind: type, command: str, values: Any, only: Sequence[str], examples: str) -> NoReturn:
    """Prints the help of a command and raises SystemExit.

    Args:
        kind: the command's class.
        command: its words, for the usage.
        values: the defaults to show, an instance of `kind`; None: those of the class.
        only: names of the fields to show, in their order and in one group; empty: all, part by part.
        examples: what to print below.
    """
    twin = _twin(kind, values)
    shown, left = _only(twin, only) if only else (twin, 0)
    more = f"\n{left} more settings: {command} --help-all\n" if left else ""
    try:
        tyro.cli(shown, args=["--help"], prog=command)
    finally:  # a reader of the output that is gone must be noticed here, not when Python exits
        print(examples + more, end="", flush=True)
    raise AssertionError("tyro has no --help")


def _only(twin: type, names: Sequence[str]) -> tuple[type, int]:
    """The fields of these names alone, and how many others there are."""
    parts = [part for field in dataclasses.fields(twin) if (part := _part(field))]
    fields = {
        field.name: (field.name, field.type, field.default)
        for each in (twin, *parts)
        for field in dataclasses.fields(each)
        if not _part(field)
    }
    shown = [fields.pop(name) for name in names]
    return dataclasses.make_dataclass(twin.__name__, shown, namespace={"__doc__": twin.__doc__}), len(fields)


def _twin(kind: type, values: Any) -> type:
    """The class as tyro shall show it, which knows neither `Range` nor that an empty default says nothing."""
    hints, lines, fields = get_type_hints(kind, include_extras=True), _lines(kind), []
    for field in dataclasses.fields(kind):
        hint, value = hints[field.name], getattr(values, field.name, field.default)
        if dataclasses.is_dataclass(value):
            part = _twin(type(value), value)
            hint = tyro.conf.OmitArgPrefixes[part]  # type: ignore[misc, valid-type]
            value = dataclasses.field(default_factory=part)
        else:
            shown = tyro.conf.arg(help=lines[field.name], help_behavior_hint=_hint(hint, value))
            hint = Annotated[hint, shown]
        fields.append((field.name, hint, value))
    return dataclasses.make_dataclass(kind.__name__, fields, namespace={"__doc__": kind.__doc__})


def _part(field: dataclasses.Field[Any]) -> Any:
    """The twin of a part of the settings, if this is the field of one."""
    return None if field.default_factory is dataclasses.MISSING else field.default_factory


def _lines(kind: type) -> dict[str, str]:
    """The docstring under every field of a dataclass, in one line each; read as tyro reads them."""
    return {
        line.arg_name: " ".join((line.description or "").split())
        for base in reversed(kind.__mro__[:-1])
        for line in docstring_parser.parse_from_object(base).params
    }


def _hint(hint: Any, value: Any) -> str | None:
    """What stands behind a line: the range and the default. None: what tyro has to say."""
    empty = value is None or value in ("", ())
    for low, high in (note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Range)):
        return f"({number(low)} to {number(high)}{'' if empty else f'; default: {number(value)}'})"
    return "" if empty else None
