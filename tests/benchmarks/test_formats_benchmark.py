"""The benchmark of formats writes and reads what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "formats.py"


def test_every_format_has_a_row() -> None:
    words = [sys.executable, SCRIPT, "--count", "200", "--degree", "1", "--formats", ".spz"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[0].startswith("200 Gaussians of degree 1; ")
    assert [line.split()[0] for line in lines[2:]] == [".spz"]
    assert all(len(line.split()) == 6 and min(map(float, line.split()[1:])) >= 0 for line in lines[2:])
