"""What the README says can be typed."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from .conftest import Command

ROOT = Path(__file__).parents[2]
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(path.read_text() for path in TEXTS)
LINES = re.findall(r"^    (ddpo3d-fast .*)$", TEXT, flags=re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_every_command_has_its_flags(command: Command, line: str) -> None:
    _, name, *words = shlex.split(line, comments=True)
    text = command(name, "--help-all").out
    for word in words:
        if word.startswith("--"):
            assert f" {word} " in text, word


def test_the_readme_has_commands() -> None:
    assert len(LINES) >= 6


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:benchmarks|docs)/[\w-]+\.\w+", TEXT))))
def test_every_file_is_there(path: str) -> None:
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("module", sorted(set(re.findall(r"ddpo3d_fast\.training\.\w+", TEXT))))
def test_every_module_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def test_every_target_is_in_the_makefile() -> None:
    targets = set(re.findall(r"(?:^ {4}|`)make (\w+)", TEXT, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"generate", "test", "check", "build"} <= targets
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in targets)
