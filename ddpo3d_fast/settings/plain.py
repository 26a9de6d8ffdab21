"""Settings as plain nested data, for YAML, and back; and what a preset changes of them."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.settings.config import Config
from ddpo3d_fast.settings.words import renamed

Changes = dict[str, Any]  # values of Config's fields; of a part's fields, where the field is a part


def changed(config: Config, changes: Changes) -> Config:
    """The configuration with other values for some of its fields."""
    values = {
        name: dataclasses.replace(getattr(config, name), **value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **values)


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested data, for YAML."""
    data = dataclasses.asdict(config)
    data["output"] = None if config.output is None else str(config.output)
    return data


def parse_values(data: Any, where: str) -> Changes:
    """The settings in `to_dict`'s data, each of its field's type; what is left out is not among them.

    Raises InputError, which begins with `where`, for an unknown setting or a value of another type.
    """
    return _part(Config, data, where)


def _part(kind: type, data: Any, where: str) -> Changes:
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a mapping, got {type(data).__name__}")
    hints, values = get_type_hints(kind), {}
    for name, value in data.items():
        if name not in hints:
            raise InputError(f"{where}: unknown setting {name!r}")
        values[name] = _value(hints[name], value, f"{where}: {name}")
    return values


def _value(hint: Any, value: Any, where: str) -> Any:
    options = get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _part(hint, value, where)  # type: ignore[arg-type]
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)  # YAML reads 1e-3, without a point, as text
    if hint in (int, float, str, bool):
        if type(value) is not hint:
            raise InputError(f"{where}: expected {hint.__name__}, got {value!r}")
        return value
    if Path in options:
        if value is not None and not isinstance(value, str):
            raise InputError(f"{where}: expected a path, got {value!r}")
        return None if value is None else Path(value)
    if options and options[-1] is Ellipsis:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{where}: expected a list, got {value!r}")
        return tuple(_value(options[0], item, where) for item in value)
    if value not in options:
        expected = f"expected one of {', '.join(map(str, options))}"
        raise InputError(f"{where}: {expected}, got {value!r}{renamed(value)}")
    return value
