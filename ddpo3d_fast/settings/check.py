"""Whether settings are what their fields allow, each by itself."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

from ddpo3d_fast.errors import InputError, check_text, number
from ddpo3d_fast.settings.config import Config, Range
from ddpo3d_fast.settings.words import flag


def check_values(config: Config) -> None:
    """Raises InputError, which names the flag, for a number out of its field's `Range`, or for text that is
    none."""
    for part in (config, config.schedule, config.scene, config.distillation, config.reward):
        hints = get_type_hints(type(part), include_extras=True)
        for name, value in vars(part).items():
            for low, high in (note for note in _notes(hints[name]) if isinstance(note, Range)):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                    raise InputError(
                        f"{flag(name)}: expected a number from {number(low)} to {number(high)}, got {value!r}"
                    )
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, (str, Path)):
                    check_text(flag(name), str(text))


def _notes(hint: object) -> tuple[object, ...]:
    """What an annotation says of a field beside its type."""
    return getattr(hint, "__metadata__", ())
