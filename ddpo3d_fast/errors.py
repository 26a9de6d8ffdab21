"""What a user is told: that the input is wrong, what was perhaps meant, what a run has to do without."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

_LONG = 300  # characters of a value that are told as they are
_LONGEST = 1500  # characters of a message
_QUOTED = re.compile(rf"""(?<!\w)(["'])((?:(?!\1)[^\\]|\\.){{{_LONG},}})\1""", re.DOTALL)


T = TypeVar("T")


class InputError(ValueError):
    """Wrong input from the user: a path, a file, a prompt, a setting. The message is one line.

    The command line prints the message alone, without a stack trace, and exits with code 2. Errors in the
    use of the Python functions stay plain ValueError and TypeError. What the message quotes of the user's is
    cut to its two ends where it is long.
    """

    def __init__(self, message: str) -> None:
        message = _QUOTED.sub(lambda found: found[1] + _cut(found[2], _LONG) + found[1], message)
        super().__init__(_cut(message, _LONGEST))


class FallbackWarning(UserWarning):
    """Something was not to be had or not right, and something slower or coarser takes its place. One line.

    The command line prints it.
    """


def number(value: float) -> str:
    """A number as people write it: an integer, or any whole one below 1e9, with all its digits."""
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e9)
    return str(int(value)) if whole else f"{value:g}"


def check_text(argument: str, text: str) -> None:
    """Raises InputError for text that is none: bytes of a command line that are no UTF-8, or a file's NUL."""
    if "\0" in text:
        raise InputError(f"{argument}: expected text without NUL, got {text!a}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{argument}: expected text in UTF-8, got {text!a}") from None


def suggestion(word: str, known: Sequence[str]) -> str:
    """Asks whether the known word that this one resembles was meant; empty if it resembles none."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def choose(table: Mapping[str, T], name: str, argument: str) -> T:
    """What a table has under a name. Raises InputError, which names `argument`, for one that it lacks."""
    if name not in table:
        expected = f"one of {', '.join(table)}"
        raise InputError(f"{argument}: expected {expected}, got {name!r}{suggestion(name, list(table))}")
    return table[name]


def first_line(error: Exception) -> str:
    """The first line of an exception's message, 200 characters at the most; its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _cut(text: str, length: int) -> str:
    """The text, without its middle where it is longer."""
    if len(text) <= length:
        return text
    return f"{text[: length * 2 // 3]} ... {text[-length // 3 :]}"
