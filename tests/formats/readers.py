"""Where other people's readers of splat formats are, which fetch_readers.sh brings."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
READERS = Path(os.environ.get("DDPO3D_SPLAT_READERS", ROOT / "build" / "splat-readers"))
MODULES = READERS / "node_modules"
# Of tests/meshing/fetch_gltf_readers.sh.
GLTF_MODULES = Path(os.environ.get("DDPO3D_GLTF_READERS", ROOT / "build" / "gltf-readers")) / "node_modules"
GSPLY = READERS / "gsply" / "bin" / "python"
NODE = shutil.which("node")

needs_npm = pytest.mark.skipif(
    NODE is None or not MODULES.is_dir(), reason="no node, or no packages: run tests/formats/fetch_readers.sh"
)
needs_gltf = pytest.mark.skipif(
    NODE is None or not GLTF_MODULES.is_dir(), reason="no packages: run tests/meshing/fetch_gltf_readers.sh"
)
needs_gsply = pytest.mark.skipif(not GSPLY.is_file(), reason="no gsply: run tests/formats/fetch_readers.sh")


def node(*words: str | Path) -> str:
    """What a script of node's prints."""
    done = subprocess.run([str(NODE), *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def splat_transform(*words: str | Path) -> None:
    """Runs splat-transform, without a GPU."""
    node(
        MODULES / "@playcanvas/splat-transform/bin/cli.mjs", "--quiet", "--overwrite", "--gpu", "cpu", *words
    )
