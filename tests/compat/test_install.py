"""`install`, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.compat import install
from ddpo3d_fast.compat.simple_knn import distCUDA2

ROOT = Path(__file__).parents[2]


def run(script: str, *folders: Path) -> str:
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in (ROOT, *folders)]}\n{script}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_other_projects_imports_find_the_drop_ins() -> None:
    run(
        """
from importlib import util
found, util.find_spec = util.find_spec, lambda name, *rest: None if name == "gsplat" else found(name, *rest)
from ddpo3d_fast import compat
compat.install(gsplat="1.6.0", diff_gaussian_rasterization="depth-alpha")
import gsplat
import gsplat.cuda._wrapper
from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer
from gsplat import rasterization
from gsplat.rendering import rasterization as again
from simple_knn._C import distCUDA2
assert rasterization is again is compat.gsplat.rasterization
import simple_knn._C
assert simple_knn._C.distCUDA2 is distCUDA2
assert gsplat.cuda._wrapper.fully_fused_projection is gsplat.fully_fused_projection
assert gsplat.__version__ == compat.gsplat.version() == "1.6.0"
"""
    )


def test_an_installed_gsplat_keeps_what_is_its_own(tmp_path: Path) -> None:
    package = tmp_path / "gsplat"
    for folder in (package, package / "cuda", package / "strategy"):
        folder.mkdir()
        (folder / "__init__.py").touch()
    (package / "cuda" / "_wrapper.py").write_text("def quat_scale_to_covar_preci(): ...\n")
    (package / "rendering.py").write_text("def rasterization(): ...\ndef rasterization_2dgs(): ...\n")
    (package / "relocation.py").write_text("def compute_relocation(): ...\n")
    (package / "strategy" / "ops.py").write_text(
        "from gsplat import quat_scale_to_covar_preci as named\n"
        "from gsplat.relocation import compute_relocation\n"
    )
    (package / "__init__.py").write_text(
        "from .cuda._wrapper import quat_scale_to_covar_preci\nfrom .rendering import rasterization\n"
    )
    run(
        """
from ddpo3d_fast import compat
compat.install(gsplat="1.5.3")
import gsplat
import gsplat.rendering
from gsplat.strategy import ops
functions = compat.gsplat
assert gsplat.rasterization is gsplat.rendering.rasterization is functions.rasterization
assert ops.named is functions.quat_scale_to_covar_preci
assert ops.compute_relocation is functions.compute_relocation
assert gsplat.rendering.rasterization_2dgs.__module__ == "gsplat.rendering"
""",
        tmp_path,
    )


def test_a_project_that_brings_its_own_copies_gets_the_drop_ins(tmp_path: Path) -> None:
    package = tmp_path / "gaussian_splatting"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from .diff_gaussian_rasterization import GaussianRasterizer\nfrom .simple_knn._C import distCUDA2\n"
    )
    run(
        """
from ddpo3d_fast import compat
compat.install()
import gaussian_splatting
assert gaussian_splatting.GaussianRasterizer is compat.diff_gaussian_rasterization.GaussianRasterizer
""",
        tmp_path,
    )


def test_it_needs_torch_and_numpy_alone() -> None:
    script = """
import torch, numpy
before = set(sys.modules)
from ddpo3d_fast import compat
roots = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(roots - set(sys.stdlib_module_names) - {"ddpo3d_fast", "torch", "numpy"}))
"""
    assert run(script).strip() == "[]"


@pytest.mark.parametrize("words", [{"gsplat": "0.1"}, {"diff_gaussian_rasterization": "all"}])
def test_a_wrong_word_is_told_and_nothing_is_put_anywhere(words: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="expected one of"):
        install(**words)
    assert "simple_knn" not in sys.modules


def wall(g: torch.Generator) -> Tensor:
    """Neighbours that an order along the widest axis has nowhere near each other."""
    points = 0.4 * torch.rand(1500, 3, generator=g)
    points[:, 0] = 0
    points[0, 0], points[1, 0] = -1, 1
    return points


@pytest.mark.parametrize("count", [1, 2, 3, 4, 900, "wall"])
def test_distances_are_those_to_the_three_nearest(count: int | str) -> None:
    g = torch.Generator().manual_seed(0)
    if isinstance(count, str):
        points, count = wall(g), 1500
    else:
        points = torch.randn(count, 3, generator=g) * torch.tensor([1.0, 0.01, 5.0])
        points[::7] = points[0] * 100  # far out, and many at one place
    exact = (points[:, None].double() - points.double()).square().sum(-1)
    exact.fill_diagonal_(torch.inf)
    nearest = exact.topk(min(3, count), largest=False).values
    wanted = torch.where(nearest.isinf(), 0, nearest).sum(-1) / max(1, min(3, count - 1))
    assert torch.allclose(distCUDA2(points).double(), wanted, rtol=1e-5)


def test_points_that_are_none_are_told() -> None:
    with pytest.raises(ValueError, match="points: expected shape"):
        distCUDA2(torch.zeros(4))
    with pytest.raises(ValueError, match="points: expected finite numbers"):
        distCUDA2(torch.full((4, 3), torch.nan))
