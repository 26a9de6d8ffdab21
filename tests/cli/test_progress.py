"""The four ways to watch a run."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest

from ddpo3d_fast.progress import Progress, Style


def event(step: int, steps: int = 40, **more: Any) -> dict[str, Any]:
    numbers = {"loss": 0.5, "reward": 0.25, "guide": 0.125, "timestep": 700, "seconds": 2.0 * step}
    return {"stage": "distill", "step": step, "steps": steps} | numbers | more


def watch(style: Style, events: list[dict[str, Any]]) -> tuple[str, str]:
    """What went to stdout and to stderr."""
    out, err = io.StringIO(), io.StringIO()
    progress = Progress(style, stderr=err, stdout=out)
    for one in events:
        progress(one)
    progress.close()
    return out.getvalue(), err.getvalue()


def test_plain_lines_are_ten_and_tell_the_time_left() -> None:
    out, err = watch("lines", [event(step) for step in range(1, 41)])
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 10
    assert lines[4] == "step 20/40  loss 0.5  guide 0.125  reward 0.25  timestep 700  about 40 s left"
    assert lines[-1] == "step 40/40  loss 0.5  guide 0.125  reward 0.25  timestep 700"


def test_the_time_left_of_a_resumed_run_counts_from_where_it_went_on() -> None:
    _, err = watch("lines", [event(step, seconds=10.0 + step) for step in range(21, 41)])
    assert err.splitlines()[0].startswith("step 24/40 ")
    assert err.splitlines()[0].endswith("about 16 s left")


def test_a_run_of_few_steps_shows_each() -> None:
    _, err = watch("lines", [event(step, steps=3) for step in range(1, 4)])
    assert [line.split()[1] for line in err.splitlines()] == ["1/3", "2/3", "3/3"]


def test_json_is_one_object_a_line_with_null_for_what_json_cannot_say() -> None:
    events = [{"stage": "load", "message": "loading embedded"}, event(1, loss=math.nan), event(2)]
    out, err = watch("json", events)
    rows = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert rows == [events[0], event(1, loss=None), event(2)]


def test_quiet_says_nothing() -> None:
    assert watch("quiet", [{"stage": "load", "message": "loading"}, event(1), event(40)]) == ("", "")


def test_the_bar_shows_step_and_parts() -> None:
    out, err = watch("bar", [{"stage": "load", "message": "loading embedded"}, event(1), event(40)])
    last = err.rstrip("\n").split("\r")[-1]
    assert out == ""
    assert "loading embedded" in err
    assert last.startswith("step 40/40 ")
    assert "loss 0.5  guide 0.125  reward 0.25  timestep 700" in last


def test_what_is_said_meanwhile_is_a_line_of_its_own() -> None:
    err = io.StringIO()
    progress = Progress("bar", stderr=err, stdout=io.StringIO())
    progress({"stage": "load", "message": "loading embedded"})
    progress.say("something else runs it")
    wiped = "\r\033[K"
    assert err.getvalue() == f"loading embedded{wiped}something else runs it\nloading embedded"
    progress.close()
    progress.say("the end")
    assert err.getvalue().endswith(f"loading embedded{wiped}the end\n")
    progress(event(1))
    progress.say("in between")
    progress(event(2))
    progress.close()
    *_, said, shown, _ = err.getvalue().split("\n")
    assert said == "in between"
    assert shown.split("\r")[-1].startswith("step 2/40 ")


@pytest.mark.parametrize("style", ["bar", "lines", "json", "quiet"])
def test_every_style_knows_the_last_step(style: Style) -> None:
    progress = Progress(style, stderr=io.StringIO(), stdout=io.StringIO())
    assert progress.step == 0
    progress({"stage": "load", "message": "loading"})
    assert progress.step == 0
    progress(event(1))
    progress(event(2))
    progress.close()
    assert progress.step == 2
