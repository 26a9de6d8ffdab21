"""What a person or a script sees of a run: a bar, plain lines, JSON lines, or nothing."""

from __future__ import annotations

import math
import sys
from typing import Any, Literal, TextIO

from ddpo3d_fast.run import json_line

Style = Literal["bar", "lines", "json", "quiet"]
_SHOWN = ("loss", "guide", "reward", "timestep")  # of a step, in this order
_LINES = 10  # plain lines in a run


class Progress:
    """Shows the events of a run as they come; call it with each, and close it before printing anything else.

    A bar and plain lines go to stderr, JSON to stdout.
    """

    def __init__(self, style: Style, stderr: TextIO | None = None, stdout: TextIO | None = None) -> None:
        self.style = style
        self.step = 0  # the last one seen
        self._stderr, self._stdout = stderr or sys.stderr, stdout or sys.stdout
        self._bar: Any = None
        self._announced = ""
        self._first: tuple[int, float] | None = (
            None  # step and seconds of the first event, to foretell the rest
        )

    def __call__(self, event: dict[str, Any]) -> None:
        self.step = event.get("step", self.step)
        if self.style == "json":
            print(json_line(event), file=self._stdout, flush=True)
        elif self.style == "quiet":
            return
        elif event["stage"] != "distill":
            self._announce(event["message"])
        elif self.style == "bar":
            self._draw(event)
        else:
            self._write(event)

    def tell(self, event: dict[str, Any]) -> None:
        """Shows an event whose message is to stay."""
        if self.style == "json":
            self(event)
        elif self.style != "quiet":
            self.say(event["message"])

    def close(self) -> None:
        """Leaves the bar as it stands and ends its line; takes an announcement away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._wipe()

    def say(self, line: str) -> None:
        """Prints a line of its own to stderr; an announcement stands below it again."""
        announced = self._announced
        self.close()
        print(line, file=self._stderr, flush=True)
        if announced:
            self._announce(announced)

    def _announce(self, message: str) -> None:
        """A line that the next one replaces: only where a person watches."""
        if self.style == "bar":
            self.close()
            print(message, end="", file=self._stderr, flush=True)
            self._announced = message

    def _wipe(self) -> None:
        if self._announced:
            print("\r\033[K", end="", file=self._stderr, flush=True)
            self._announced = ""

    def _draw(self, event: dict[str, Any]) -> None:
        self._wipe()
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(
                total=event["steps"],
                initial=event["step"] - 1,
                file=self._stderr,
                dynamic_ncols=True,
                bar_format="step {n_fmt}/{total_fmt} {bar:20} {remaining} left{postfix}",
            )
        self._bar.set_postfix_str(_parts(event), refresh=False)
        self._bar.update(event["step"] - self._bar.n)

    def _write(self, event: dict[str, Any]) -> None:
        step, steps, seconds = event["step"], event["steps"], event["seconds"]
        self._first = self._first or (step, seconds)
        if step % max(1, steps // _LINES) and step != steps:
            return
        began, since = self._first
        left = (seconds - since) / (step - began) * (steps - step) if step > began else math.nan
        remaining = "" if math.isnan(left) or step == steps else f"  about {left:.0f} s left"
        print(f"step {step}/{steps}  {_parts(event)}{remaining}", file=self._stderr, flush=True)


def _parts(event: dict[str, Any]) -> str:
    return "  ".join(f"{name} {event[name]:.3g}{_apart(event, name)}" for name in _SHOWN if name in event)


def _apart(event: dict[str, Any], name: str) -> str:
    """Of a sum of rewards each, as NAME.REWARD has it."""
    each = [key for key in event if key.startswith(f"{name}.")]
    found = ", ".join(f"{key.removeprefix(f'{name}.')} {event[key]:.3g}" for key in each)
    return f" ({found})" if len(each) > 1 else ""
