"""Optional packages: `info` says which are there, and one line how to get one that is missing."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from ddpo3d_fast.cli import main
from ddpo3d_fast.extras import EXTRAS, load
from ddpo3d_fast.info import describe, report


def test_every_extra_is_one_that_pip_knows() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    for extra, packages in EXTRAS.items():
        (line,) = re.findall(rf"^{extra} = \[(.*)\]", text, re.MULTILINE)
        assert set(packages) <= set(re.findall(r'"([\w-]+)', line)), extra


def test_info_lists_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "viser", sys)
    facts = report()
    assert facts["extras"]["cluster"] == ["ray"]
    lines = dict(line.split(maxsplit=1) for line in describe(facts).splitlines() if line.startswith("  "))
    assert lines["cluster"] == "without ray: pip install 'ddpo3d-fast[cluster]'"
    assert lines["viewer"] == "installed"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("batch list.txt", "batch: needs ray: pip install 'ddpo3d-fast[cluster]'"),
        ("generate --prompt 'a red ball' --view", "--view: needs viser: pip install 'ddpo3d-fast[viewer]'"),
    ],
)
def test_a_missing_package_is_one_line_and_nothing_is_written(
    tmp_path: Path,
    words: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_text("a red ball\n")
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "viser", None)
    assert main(shlex.split(words)) == 2
    assert capsys.readouterr().err == f"ddpo3d-fast: {line}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["list.txt"]


def test_a_package_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text("raise RuntimeError('built for another Python\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    with pytest.raises(ValueError, match="cannot import ray") as raised:
        load("cluster", "ray", "batch")
    reason = "cannot import ray (built for another Python)"
    assert str(raised.value) == f"batch: {reason}: pip install 'ddpo3d-fast[cluster]'"
