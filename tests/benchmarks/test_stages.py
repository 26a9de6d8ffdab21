"""Stages without a GPU: commands that end, fail, hang or are missing, and what is told of them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def stages(load_benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = load_benchmark("stages")
    monkeypatch.setattr(module, "GRACE", 1.0)
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def ends(pid: int) -> bool:
    """Whether a process is gone, or soon."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


# ---- Commands


def test_a_command_passes_with_its_last_lines(stages: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = stages.run(python("print(*range(100), sep='\\n')"), 60)
    assert (outcome.code, outcome.status) == (0, "passed")
    assert outcome.lines == [str(number) for number in range(60, 100)]
    assert outcome.last("7") == "97"
    assert capsys.readouterr().out.split() == [str(number) for number in range(100)]


def test_a_command_that_fails_or_is_missing_says_so(stages: ModuleType) -> None:
    outcome = stages.run(python("raise SystemExit('no such thing')"), 60, echo=False)
    assert (outcome.code, outcome.status, outcome.lines) == (1, "failed", ["no such thing"])
    outcome = stages.run(["/no/such/program"], 60)
    assert (outcome.code, outcome.status) == (127, "failed")
    assert outcome.lines == ["/no/such/program: No such file or directory"]


def test_a_command_that_takes_too_long_ends_with_all_that_it_started(stages: ModuleType) -> None:
    outcome = stages.run(
        python("""
            import signal, subprocess, sys, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print(child.pid)
            time.sleep(600)
        """),
        seconds=2,
        echo=False,
    )
    assert (outcome.code, outcome.status) == (None, "cut off")
    assert 2 <= outcome.seconds < 20
    assert ends(int(outcome.lines[0]))


def test_a_command_that_is_cut_off_may_still_tell_what_it_has(stages: ModuleType) -> None:
    outcome = stages.run(
        python("""
            import signal, sys, time
            signal.signal(signal.SIGTERM, lambda *_: sys.exit("three of four"))
            print("begun")
            time.sleep(600)
        """),
        seconds=2,
        echo=False,
    )
    assert outcome.status == "cut off"
    assert outcome.lines == ["begun", "three of four"]


def test_what_a_command_leaves_behind_is_ended(stages: ModuleType) -> None:
    child = "import time; time.sleep(600)"
    code = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid)"
    outcome = stages.run(python(code), 60, echo=False)
    assert outcome.status == "passed"
    assert outcome.seconds < 30
    assert ends(int(outcome.lines[0]))


# ---- Stages


def told(path: Path) -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in json.loads(path.read_text())["stages"]}


def test_what_a_stage_found_is_written_before_the_next_begins(stages: ModuleType, tmp_path: Path) -> None:
    path, seen = tmp_path / "new" / "all.json", []

    def work(stage: Any, seconds: float) -> Any:
        seen.append({name: row["status"] for name, row in told(path).items()})
        stage.detail, stage.figures = f"about {stage.name}", {"us": 1.5}
        return stages.run(python(f"print('words of {stage.name}')"), seconds)

    chosen = [stages.Stage(name, 60, work) for name in ("one", "two")]
    assert stages.run_stages(chosen, 600, path) == 0
    assert seen == [{"one": "not run", "two": "not run"}, {"one": "passed", "two": "not run"}]
    one = told(path)["one"]
    assert (one["detail"], one["figures"]) == ("about one", {"us": 1.5})
    assert "lines" not in one


CRASH = "import os, signal; print('begun', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
HANG = "import time; print('begun', flush=True); time.sleep(600)"


def test_a_stage_that_crashes_hangs_or_is_wrong_itself_takes_no_other_with_it(
    stages: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(code: str) -> Callable[..., Any]:
        return lambda stage, seconds: stages.run(python(code), seconds)

    def wrong(stage: Any, seconds: float) -> Any:
        return {}["no such key"]

    path = tmp_path / "all.json"
    chosen = [
        stages.Stage("crashes", 60, command(CRASH)),
        stages.Stage("hangs", 2, command(HANG)),
        stages.Stage("wrong", 60, wrong),
        stages.Stage("missing", 60, lambda stage, seconds: stages.run(["/no/such/program"], seconds)),
        stages.Stage("right", 60, command("print('done')")),
    ]
    assert stages.run_stages(chosen, 600, path) == 1
    rows = told(path)
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {
        "crashes": "failed", "hangs": "cut off", "wrong": "failed", "missing": "failed", "right": "passed"
    }  # fmt: skip
    assert rows["crashes"]["lines"] == ["begun"]
    assert rows["hangs"]["detail"] == "after 2 s; begun"
    assert rows["wrong"]["detail"] == "KeyError: 'no such key'"
    table = capsys.readouterr().out.rstrip().splitlines()[-6:]
    assert table[0].split() == ["stage", "status", "seconds"]
    assert table[-1].split()[:2] == ["right", "passed"]


def test_a_stage_has_its_own_time_and_never_more_than_is_left(
    stages: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now, got = [1000.0], {}
    monkeypatch.setattr(stages.time, "monotonic", lambda: now[0])

    def work(stage: Any, seconds: float) -> Any:
        got[stage.name] = seconds
        now[0] += 45
        return stages.Outcome(0, 45.0, [])

    chosen = [stages.Stage(name, 60, work) for name in "abc"]
    assert stages.run_stages(chosen, 90, tmp_path / "all.json") == 1
    assert got == {"a": 60, "b": 45}
    assert chosen[2].status == "not run"
    assert chosen[2].detail == "no time was left"


@pytest.mark.parametrize("seconds", [0.2, 600.0])
def test_a_stage_waits_for_one_in_the_background_as_long_as_there_is_time(
    stages: ModuleType, tmp_path: Path, seconds: float
) -> None:
    """A slow one is ended, so that nothing compiles while something is timed."""
    order: list[str] = []

    def compiles(stage: Any, limit: float) -> Any:
        outcome = stages.run(python(f"import time; time.sleep({seconds})"), limit)
        order.append(f"{stage.name} {outcome.status}")
        return outcome

    def times(stage: Any, limit: float) -> Any:
        order.append(stage.name)
        return stages.Outcome(0, 0.1, [])

    chosen = [
        stages.Stage("peer", 300, compiles, background=True),
        stages.Stage("beside", 1, times),
        stages.Stage("timed", 1, times, after=("peer", "not here")),
    ]
    stages.run_stages(chosen, 4, tmp_path / "all.json")
    ended = "passed" if seconds < 1 else "failed"
    assert order[0] == "beside"
    assert [word for word in order if word != "beside"] == [f"peer {ended}", "timed"]


INTERRUPTED = """
    import sys
    from pathlib import Path
    sys.path[:0] = [{benchmarks!r}, {root!r}]
    import signal, stages
    signal.signal(signal.SIGTERM, stages.raise_interrupt)

    def first(stage, seconds):
        stage.detail = "done"
        return stages.Outcome(0, 1.0, [])

    def second(stage, seconds):
        code = "import time; print('one test passed', flush=True); time.sleep(600)"
        return stages.run([sys.executable, "-c", code], seconds)

    works = {{"first": first, "tests": second, "rest": second}}
    chosen = [stages.Stage(name, 60, work) for name, work in works.items()]
    sys.exit(stages.run_stages(chosen, 600, Path({output!r})))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_stages_print_and_write_what_there_is(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "all.json"
    code = INTERRUPTED.format(benchmarks=str(BENCHMARKS), root=str(BENCHMARKS.parent), output=str(path))
    process = subprocess.Popen(
        python(code),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and its children would, too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        said.append(line)
        if "one test passed" in line:
            process.send_signal(number)
    assert process.wait(60) == 130
    rows = told(path)
    assert [row["status"] for row in rows.values()] == ["passed", "interrupted", "not run"]
    assert rows["tests"]["lines"] == ["one test passed"]
    assert said[-4].split() == ["first", "passed", "1.0", "done"]
    assert said[-3].split()[:2] == ["tests", "interrupted"]
