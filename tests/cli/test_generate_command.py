"""`generate`: which settings reach the loop, and what the command says of how it ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ddpo3d_fast.generate
from ddpo3d_fast.configure import preset
from ddpo3d_fast.generate import Observer, Result
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.settings import Config, to_dict

from .conftest import Command

MUSHROOM = ("generate", "--prompt", "a red mushroom")


class Loop:
    """Stands for the loop: keeps what it was called with, reports two steps, and writes a run's files."""

    def __init__(self) -> None:
        self.calls: list[tuple[Config, RunFolder, bool]] = []
        self.ends: Callable[[], None] = lambda: None

    def __call__(
        self, config: Config, folder: RunFolder, observer: Observer, resume: bool = False, **_: Any
    ) -> Result:
        self.calls.append((config, folder, resume))
        observer({"stage": "load", "message": "loading"})
        for step in (1, 2):
            observer({"stage": "distill", "step": step, "steps": 2, "seconds": 0.5 * step, "loss": 0.25})
        with folder.claimed():
            folder.begin(config, {}, resume)
        folder.write_metrics([{"step": 1}, {"step": 2}])
        folder.save_checkpoint({"step": 2})
        self.ends()
        return Result(folder.path, folder.files(), {"setup": 0.5, "total": 1.5})

    @property
    def config(self) -> Config:
        return self.calls[-1][0]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    loop = Loop()
    monkeypatch.setattr(ddpo3d_fast.generate, "generate", loop)
    return loop


def test_flags_go_before_the_preset(command: Command, loop: Loop) -> None:
    assert command(*MUSHROOM, "--preset", "draft", "--views", "3", "--seed=7").code == 0
    draft = preset("draft")
    assert loop.config.schedule.views == 3
    assert loop.config.schedule.steps == draft.schedule.steps
    assert loop.config.scene == draft.scene
    assert (loop.config.prompt, loop.config.seed, loop.config.preset) == ("a red mushroom", 7, "draft")


def test_without_flags_it_is_the_standard_preset(command: Command, loop: Loop) -> None:
    command(*MUSHROOM)
    assert loop.config == preset("standard", "a red mushroom")
    assert loop.calls[0][1].path == Path("outputs/a-red-mushroom-0")


def test_repeated_rewards_add_up(command: Command, loop: Loop) -> None:
    command(*MUSHROOM, "--reward", "embedded=0.5", "--reward", "mine:score")
    assert loop.config.reward.reward == ("embedded=0.5", "mine:score")


def test_flags_go_before_the_config_file(command: Command, loop: Loop, work: Path) -> None:
    (work / "mine.yaml").write_text("prompt: a blue car\npreset: high\nscene: {gaussians: 123}\nseed: 4\n")
    assert command("generate", "--config", "mine.yaml", "--seed", "5").code == 0
    assert loop.config.prompt == "a blue car"
    assert loop.config.seed == 5
    assert loop.config.scene.gaussians == 123
    assert loop.config.schedule == preset("high").schedule


def test_the_config_of_a_run_repeats_it(command: Command, loop: Loop) -> None:
    command(*MUSHROOM, "--output", "first", "--guide-weight", "0.5")
    command("generate", "--config", "first/config.yaml", "--output", "second")
    first, second = (to_dict(call[0]) | {"output": None} for call in loop.calls)
    assert first == second


def test_resume_takes_everything_from_the_folder_but_steps(command: Command, loop: Loop) -> None:
    command(*MUSHROOM, "--output", "run", "--steps", "5")
    assert command("generate", "--resume", "run").code == 0
    assert loop.calls[1][2]
    assert loop.config == loop.calls[0][0]
    assert command("generate", "--resume", "run", "--steps", "9").code == 0
    assert loop.config.schedule.steps == 9


def test_the_end_names_folder_files_and_seconds(command: Command, loop: Loop) -> None:
    outcome = command(*MUSHROOM)
    assert outcome.out == "outputs/a-red-mushroom-0: config.yaml, metrics.jsonl, checkpoint.pt in 1.5 s\n"
    assert outcome.err.splitlines()[-1] == "step 2/2  loss 0.25"


def test_json_ends_with_files_and_seconds(command: Command, loop: Loop) -> None:
    outcome = command(*MUSHROOM, "--json")
    rows = [json.loads(line) for line in outcome.out.splitlines()]
    assert outcome.err == ""
    assert [row["stage"] for row in rows] == ["load", "distill", "distill", "done"]
    assert rows[-1]["folder"] == "outputs/a-red-mushroom-0"
    assert rows[-1]["files"][0] == "outputs/a-red-mushroom-0/config.yaml"
    assert rows[-1]["seconds"] == {"setup": 0.5, "total": 1.5}


def test_quiet_prints_nothing(command: Command, loop: Loop) -> None:
    outcome = command(*MUSHROOM, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_where_the_steps_are(command: Command, loop: Loop) -> None:
    loop.ends = interrupt
    outcome = command(*MUSHROOM, "--output", "run")
    assert outcome.code == 130
    last = outcome.err.splitlines()[-1]
    assert last == "ddpo3d-fast: interrupted: 2 steps are in run; go on with --resume run"


def test_ctrl_c_before_the_first_step_says_that_nothing_was_made(
    command: Command, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> Result:
        raise KeyboardInterrupt

    monkeypatch.setattr(ddpo3d_fast.generate, "generate", load)
    outcome = command(*MUSHROOM)
    assert (outcome.code, outcome.err) == (130, "ddpo3d-fast: interrupted: nothing was made\n")


def fail() -> None:
    raise RuntimeError("the sky fell\non our heads")


def test_a_failure_is_one_line_and_a_trace_only_with_v(command: Command, loop: Loop) -> None:
    loop.ends = fail
    outcome = command(*MUSHROOM, "--json")
    assert outcome.code == 1
    assert outcome.err == "ddpo3d-fast: RuntimeError: the sky fell on our heads (-v shows where)\n"
    assert "Traceback" in command(*MUSHROOM, "--json", "-v").err


def refuse() -> None:
    from ddpo3d_fast.kernels import set_num_threads

    set_num_threads("many")  # type: ignore[arg-type]


def test_what_the_kernels_refuse_is_wrong_input(command: Command, loop: Loop) -> None:
    loop.ends = refuse
    outcome = command(*MUSHROOM, "--json")
    assert (outcome.code, outcome.err) == (2, "ddpo3d-fast: count: expected an int, got str\n")


def test_a_value_error_of_our_own_is_a_failure(command: Command, loop: Loop) -> None:
    loop.ends = lambda: int("one") and None
    assert command(*MUSHROOM, "--json").code == 1


def test_on_a_terminal_there_is_a_bar(command: Command, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert "step 2/2 " in command(*MUSHROOM).err.split("\r")[-1]
