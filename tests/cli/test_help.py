"""Help: there at once, complete, and with the preset's values."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest

from ddpo3d_fast import __version__
from ddpo3d_fast.arguments import generate_settings
from ddpo3d_fast.commands import (
    EVERYDAY,
    Batch,
    EnginesBuild,
    EnginesClear,
    EnginesList,
    Generate,
    Info,
    Mesh,
    Render,
    View,
)
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import number
from ddpo3d_fast.settings import Range, flag

from .conftest import Command


def test_without_a_command_the_help_names_every_command(command: Command) -> None:
    outcome = command()
    assert outcome.code == 0
    assert all(
        f"\n  {name} " in outcome.out for name in ("generate", "batch", "render", "mesh", "view", "info")
    )
    assert outcome == command("--help")


def test_version(command: Command) -> None:
    assert command("--version").out == f"ddpo3d-fast {__version__}\n"


@pytest.mark.parametrize("name", ["generate", "batch", "render", "mesh", "view", "info"])
def test_every_command_has_help_with_examples(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"usage: ddpo3d-fast {name}")
    assert f"examples:\n  ddpo3d-fast {name}" in outcome.out


def options(text: str) -> dict[str, str]:
    """The line of help of every option in a help text, by the option's name, however the text is wrapped."""
    lines: dict[str, list[str]] = {}
    name = ""
    for row in text.replace("│", " ").splitlines():
        words = row.strip()
        if not row.startswith("  "):
            name = ""  # a group's edge or title, or what is around the groups
        elif found := re.match(r"  (?:-\w, )?(--\w[\w-]*).*?(?: {2,}|$)", row):
            name, words = found[1], row[found.end() :].strip()
        if name:
            lines.setdefault(name, []).append(words)
    return {name: " ".join(" ".join(words).split()) for name, words in lines.items()}


def settings_of(kind: type) -> dict[str, Any]:
    """The annotation of every field of a command or of a part of it, by the flag."""
    hints = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        part = field.default_factory
        if part is dataclasses.MISSING:
            fields[flag(field.name)] = hints[field.name]
        else:
            fields |= settings_of(cast(type, part))
    return fields


def test_help_shows_the_everyday_settings_in_their_order(command: Command) -> None:
    text = command("generate", "--help").out
    shown = list(options(text))
    assert shown == ["--help", *map(flag, EVERYDAY)]
    assert len(shown) <= 25
    more = len(settings_of(Generate)) - len(EVERYDAY)
    assert text.splitlines()[-1] == f"{more} more settings: ddpo3d-fast generate --help-all"


def test_help_all_shows_every_setting(command: Command) -> None:
    outcome = command("generate", "--help-all")
    assert (outcome.code, outcome.err) == (0, "")
    shown = options(outcome.out)
    assert set(shown) == {"--help", *settings_of(Generate)}
    everyday = options(command("generate", "--help").out)
    assert {name: shown[name] for name in everyday} == everyday


COMMANDS = {
    "generate": Generate,
    "batch": Batch,
    "render": Render,
    "mesh": Mesh,
    "view": View,
    "info": Info,
    "engines list": EnginesList,
    "engines build": EnginesBuild,
    "engines clear": EnginesClear,
}
# How a line begins that ends the sentence of the line above, or leaves out what it is about.
DANGLING = re.compile(
    r"(its?|their|they|those|that|this|these|the same|likewise|in|of|from|with|where|which|what|how|as)\b"
    r"|.*\b(likewise|the same|that|those|as above)( \(|$)"
)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_line_of_help_stands_by_itself(command: Command, name: str) -> None:
    lines = options(command(*name.split(), "--help-all").out)
    for option, hint in settings_of(COMMANDS[name]).items():
        if option in ("--asset", "--prompts", "--path"):
            continue
        line = lines[option]
        assert line, option
        assert not DANGLING.match(line), line
        for low, high in (note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Range)):
            assert f"({number(low)} to {number(high)}" in line, line


@pytest.mark.parametrize("name", ["draft", "standard", "high"])
@pytest.mark.parametrize("help_flag", ["--help", "--help-all"])
def test_help_shows_the_values_of_the_preset(command: Command, name: str, help_flag: str) -> None:
    lines, config = options(command("generate", "--preset", name, help_flag).out), preset(name)
    parts = (config, config.schedule, config.scene, config.distillation, config.reward)
    values = {flag(key): value for part in parts for key, value in vars(part).items()}
    for option, line in lines.items():
        value = values.get(option)
        if isinstance(value, (int, float)):
            shown = str(value) if isinstance(value, bool) else number(value)
            assert re.search(rf"default: {re.escape(shown)}\)$", line), line


def test_help_shows_the_negative_prompt_of_a_preset(command: Command) -> None:
    words = ("generate", "--model", "sd21", "--preset", "csd", "--help")
    assert "blurry" in options(command(*words).out)["--negative-prompt"]


def test_help_says_what_a_value_does_and_not_its_opposite(command: Command, work: Path) -> None:
    lines = options(command("generate", "--help-all").out)
    assert lines["--opacity-penalty"].startswith("weight of the sum of all opacities in the loss")
    assert lines["--cuda-graph"].startswith("replay every step as a CUDA graph on a GPU")
    assert lines["--interpolate-views"].startswith("mix the prompts of the two nearest views")
    (work / "plain.yaml").write_text("prompt: a red mushroom\ncuda_graph: false\n")
    lines = options(command("generate", "--config", "plain.yaml", "--help-all").out)
    assert lines["--cuda-graph"].endswith("(default: False)")
    assert lines["--prompt"].endswith("(default: 'a red mushroom')")


def test_what_a_file_turns_off_a_flag_turns_on(work: Path) -> None:
    (work / "plain.yaml").write_text("prompt: a red mushroom\ncuda_graph: false\n")
    assert not generate_settings(["--config", "plain.yaml"]).cuda_graph
    assert generate_settings(["--config", "plain.yaml", "--cuda-graph"]).cuda_graph
    assert not generate_settings(["--prompt", "a red mushroom", "--no-cuda-graph"]).cuda_graph


@pytest.mark.parametrize("columns", [40, 80, 120])
@pytest.mark.parametrize("line", ["generate --help", "generate --help-all", "render --help"])
def test_help_fits_the_terminal(
    command: Command, monkeypatch: pytest.MonkeyPatch, line: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    text, _, _ = command(*line.split()).out.partition("examples:")
    rows = [row for row in text.splitlines() if row.startswith((" ", "╭", "│", "╰"))]
    assert set(map(len, rows)) == {columns}


def test_help_can_be_written_in_ascii() -> None:
    words = [sys.executable, "-m", "ddpo3d_fast", "generate", "--help-all"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"--densify-every" in done.stdout


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("--stepz", "--steps"), ("--densify-evry", "--densify-every"), ("--helpall", "--help-all")],
)
def test_a_wrong_flag_is_one_line_with_the_nearest_name(command: Command, wrong: str, meant: str) -> None:
    outcome = command("generate", "--prompt", "a red mushroom", wrong, "3")
    message = f"ddpo3d-fast: {wrong}: no such option of generate; did you mean {meant}?\n"
    assert (outcome.code, outcome.err) == (2, message)


@pytest.mark.parametrize(
    "line", ["--help", "generate --help", "generate --help-all", "generate --stepz 3", "render --help"]
)
def test_help_and_wrong_flags_do_not_wait_for_torch(line: str) -> None:
    code = (
        f"import sys; from ddpo3d_fast.cli import main; main({line.split()}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("line", ["--version", "info --json", "generate --help", "generate --help-all"])
def test_a_reader_that_went_away_is_no_stack_trace(line: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "ddpo3d_fast", *line.split()]
    done = subprocess.run(words, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ddpo3d_fast", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"ddpo3d-fast {__version__}\n"
