"""How settings are spelt: flags, a word that had another name, and a file with a scale behind it."""

from __future__ import annotations

import math
import os

from ddpo3d_fast.errors import InputError


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def renamed(word: object) -> str:
    """What to add to a message about a wrong word: what that of an earlier version is called now."""
    return ", which is latent now" if word == "ddim" else ""


def adapter(text: str) -> tuple[str, float]:
    """A LoRA's file and scale from FILE[=SCALE]; what follows the last = of a file's own name is no number.

    Raises InputError for a scale that is not finite.
    """
    file, _, scale = text.rpartition("=")
    try:
        value = float(scale)
    except ValueError:
        return text, 1.0
    if not file or not math.isfinite(value):
        raise InputError(f"--lora: expected FILE or FILE=SCALE with a finite number, got {text!r}")
    return file, value


def absolute_adapter(text: str) -> str:
    """The same FILE[=SCALE] with the file's absolute path. Raises InputError as `adapter` does."""
    file, _ = adapter(text)
    return os.path.abspath(os.path.expanduser(file)) + text[len(file) :]
