"""Whether settings are what their fields allow, each by itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

from ddpo3d_fast.errors import InputError, check_text, number
from ddpo3d_fast.settings.config import Range
from ddpo3d_fast.settings.words import flag


def check_values(settings: Any) -> None:
    """Raises InputError, which names the flag, for a number out of its field's `Range`, or for text that is
    none, in a dataclass of settings or in one of its parts. None is in every range."""
    hints = get_type_hints(type(settings), include_extras=True)
    for name, value in vars(settings).items():
        if dataclasses.is_dataclass(value):
            check_values(value)
        for low, high in (note for note in _notes(hints[name]) if isinstance(note, Range)):
            numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (numeric and low <= value <= high):
                raise InputError(
                    f"{flag(name)}: expected a number from {number(low)} to {number(high)}, got {value!r}"
                )
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, (str, Path)):
                check_text(flag(name), str(text))


def _notes(hint: object) -> tuple[object, ...]:
    """What an annotation says of a field beside its type."""
    return getattr(hint, "__metadata__", ())
