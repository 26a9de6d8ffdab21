"""What the command's tests share: a working directory of its own, and the command as a function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.scene import initial_cloud


@dataclass
class Outcome:
    """What one command left behind."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(work: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ddpo3d-fast with these words in the working directory."""

    def run(*words: str | Path) -> Outcome:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def ply(work: Path) -> Path:
    """A small Gaussian splat."""
    path, cloud = work / "asset.ply", initial_cloud(50, seed=0)
    write_ply(path, cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh)
    return path
