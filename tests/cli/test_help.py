"""Help: there at once, complete, and with the preset's values."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from ddpo3d_fast import __version__
from ddpo3d_fast.configure import preset
from ddpo3d_fast.settings import flag

from .conftest import Command


def test_without_a_command_the_help_names_every_command(command: Command) -> None:
    outcome = command()
    assert outcome.code == 0
    assert all(f"\n  {name} " in outcome.out for name in ("generate", "render", "info"))
    assert outcome == command("--help")


def test_version(command: Command) -> None:
    assert command("--version").out == f"ddpo3d-fast {__version__}\n"


@pytest.mark.parametrize("name", ["generate", "render", "info"])
def test_every_command_has_help_with_examples(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"usage: ddpo3d-fast {name}")
    assert f"examples:\n  ddpo3d-fast {name}" in outcome.out


def test_every_setting_is_a_flag_with_help(command: Command) -> None:
    text = command("generate", "--help").out
    config = preset("standard")
    parts = [part for part in vars(config).values() if dataclasses.is_dataclass(part)]
    fields = [field for part in (config, *parts) for field in dataclasses.fields(part)]
    settings = [field for field in fields if getattr(config, field.name, None) not in parts]
    assert len(settings) > 30
    for field in settings:
        name = flag(field.name)
        # What is on by default has a flag that turns it off.
        assert f" {name.replace('--', '--no-') if field.default is True else name}" in text, name
    assert " --reward" in text


def test_help_says_what_a_setting_does_and_not_its_opposite(command: Command) -> None:
    text = " ".join(command("generate", "--help").out.replace("│", " ").split())
    assert "--opacity-penalty FLOAT weight of the sum of all opacities in the loss" in text
    assert "replaying it as a CUDA graph (default: replay it)" in text
    assert "not a mixture of the two nearest (default: a mixture)" in text
    assert "(default: True)" not in text  # of a flag that turns something off


@pytest.mark.parametrize("name", ["draft", "standard", "high"])
def test_help_shows_the_values_of_the_preset(command: Command, name: str) -> None:
    text = " ".join(command("generate", "--preset", name, "--help").out.split())
    assert f"updates of the scene (default: {preset(name).schedule.steps})" in text


@pytest.mark.parametrize("line", ["--help", "generate --help", "generate --stepz 3", "render --help"])
def test_help_and_wrong_flags_do_not_wait_for_torch(line: str) -> None:
    code = (
        f"import sys; from ddpo3d_fast.cli import main; main({line.split()}); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("line", ["--version", "info --json"])
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
