"""With torch and numpy alone: the kernels work, and every command says in one line what it needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ddpo3d_fast.cli import HELP, PACKAGES

from .conftest import Command

ROOT = Path(__file__).parents[2]
# None in sys.modules makes an import fail as if the module were not installed.
WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({list(PACKAGES.values())}))\n"


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a Python of its own that lacks every package of the extra `generate`."""
    return subprocess.run([sys.executable, "-c", WITHOUT + code], capture_output=True, text=True)


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    return run(f"from ddpo3d_fast.cli import main; sys.exit(main({list(words)}))")


def test_the_kernels_work() -> None:
    code = """
import torch
from ddpo3d_fast.kernels import rasterize
camera = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])
means, quats, ones = torch.tensor([[0.0, 0, 2]]), torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 3)
out = rasterize(means, quats, ones, torch.ones(1), ones, torch.eye(4)[None], camera, 8, 8)
print(bool(out.rgb.max() > 0.9))
"""
    done = run(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize(
    "words",
    [("generate", "--prompt", "a red mushroom"), ("generate", "--help"), ("render", "asset.ply"), ("info",)],
    ids=" ".join,
)
def test_a_command_is_one_line_that_names_the_extra(words: tuple[str, ...]) -> None:
    done = command_line(*words)
    missing = "onnxruntime, safetensors, tyro, docstring_parser, pyyaml, pillow, av, tqdm"
    message = f"needs more packages (missing: {missing}): pip install 'ddpo3d-fast[generate]'"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ddpo3d-fast: {words[0]} {message}\n"


def test_only_what_is_missing_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    outcome = command("generate", "--prompt", "a red mushroom")
    assert outcome.code == 2
    assert outcome.err == (
        "ddpo3d-fast: generate needs more packages (missing: tyro): pip install 'ddpo3d-fast[generate]'\n"
    )


def test_the_list_of_commands_needs_nothing() -> None:
    assert command_line("--help").stdout == HELP
    assert "did you mean generate?" in command_line("generat").stderr


def test_the_packages_are_those_of_the_extra_that_the_embedded_models_need() -> None:
    extra = re.search(r"^generate = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert extra is not None
    names = re.findall(r'"([a-z_]+)', extra[1])
    assert names == ["torch", *PACKAGES, "diffusers", "transformers", "open_clip_torch", "openvino"]


def test_the_base_install_is_torch_and_numpy() -> None:
    base = re.search(r"^dependencies = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert base is not None
    assert re.findall(r'"([a-z]+)', base[1]) == ["torch", "numpy"]


def test_the_commands_want_a_newer_torch_than_the_kernels_do() -> None:
    """What exports graphs uses torch.export.Dim.DYNAMIC, which came with 2.6."""
    assert re.findall(r'"torch>=([0-9.]+)', (ROOT / "pyproject.toml").read_text()) == ["2.1", "2.6"]
