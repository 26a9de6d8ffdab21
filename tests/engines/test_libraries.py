"""The libraries of other people's models: imported where needed, one line where they cannot be."""

import subprocess
import sys

import pytest

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError


@pytest.mark.parametrize(
    ("name", "attribute"),
    [
        ("diffusers", "UNet2DConditionModel"),
        ("transformers", "CLIPTextModel"),
        ("open_clip", "create_model"),
    ],
)
def test_every_library_of_the_extra_is_found(name, attribute):
    assert hasattr(library(name, "a test"), attribute)


def test_a_missing_one_is_one_line_that_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError) as caught:
        library("open_clip", "--reward: clip")
    line = str(caught.value)
    assert line.startswith("--reward: clip: needs open_clip_torch (")
    assert line.endswith(": pip install 'ddpo3d-fast[generate]'")
    assert "\n" not in line


TORCHVISION = """
import sys, types, importlib.abc, importlib.machinery, torch

class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == "torchvision" else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        {body}

sys.meta_path.insert(0, Finder())
from ddpo3d_fast.engines.libraries import library
print(library("torchvision", "a test").__name__)
"""


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (
            "for op in ('one', 'two'): torch.library.register_fake(f'torchvision::{op}')(lambda: None)",
            "torchvision\n",
        ),
        ("raise RuntimeError('something else is broken')", "something else is broken"),
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",  # for ever: ends all the same
            "nms",
        ),
    ],
    ids=["two operators that do not fit", "another error", "an error that stays"],
)
def test_torchvision_without_its_operators_is_mended_and_nothing_else_is_hidden(body, outcome):
    done = subprocess.run(
        [sys.executable, "-c", TORCHVISION.replace("{body}", body)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if outcome == "torchvision\n":
        assert (done.stdout, done.returncode) == (outcome, 0), done.stderr
    else:
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(
            "ddpo3d_fast.errors.InputError: a test: needs torchvision ("
        )
        assert outcome in done.stderr.splitlines()[-1]
