"""A build that cannot be done says in one line what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip("setuptools")
pytest.importorskip("pybind11")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"PATH": "/nowhere", "CXX": ""}, "no C++ compiler found (c++, g++, clang++): apt install g++"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler found (no-such-compiler): apt install g++"),
        ({"DDPO3D_CUDA": "maybe"}, "DDPO3D_CUDA: expected 0, 1 or auto, got 'maybe'"),
    ],
)
def test_a_build_that_lacks_something_names_it(changes: dict[str, str], message: str, tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    environment = {**os.environ, **changes}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert result.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr
