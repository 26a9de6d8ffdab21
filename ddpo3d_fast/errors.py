"""What a user is told: that the input is wrong, what was perhaps meant, what a run has to do without."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """Wrong input from the user: a path, a file, a prompt, a setting. The message is one line.

    The command line prints the message alone, without a stack trace, and exits with code 2. Errors in the
    use of the Python functions stay plain ValueError and TypeError.
    """


class FallbackWarning(UserWarning):
    """Something was not to be had or not right, and something slower or coarser takes its place. One line.

    The command line prints it.
    """


def suggestion(word: str, known: Sequence[str]) -> str:
    """Asks whether the known word that this one resembles was meant; empty if it resembles none."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"; did you mean {close[0]}?" if close else ""


def first_line(error: Exception) -> str:
    """The first line of an exception's message, 200 characters at the most; its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
