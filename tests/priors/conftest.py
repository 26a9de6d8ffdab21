"""The folders that the priors' tests share."""

import shutil

import pytest
from small_stable_diffusion import save_pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Small Stable Diffusion folders: `sd15`, `sd21` and `sdxl`; not to be changed."""
    root = tmp_path_factory.mktemp("stable-diffusion")
    return {kind: save_pipeline(kind, root / kind) for kind in ("sd15", "sd21", "sdxl")}


@pytest.fixture
def sd(folders, tmp_path):
    """A copy of the SD 1.5 folder, to be changed."""
    return shutil.copytree(folders["sd15"], tmp_path / "sd15")


@pytest.fixture
def xl(folders, tmp_path):
    """A copy of the XL folder, to be changed."""
    return shutil.copytree(folders["sdxl"], tmp_path / "sdxl")
