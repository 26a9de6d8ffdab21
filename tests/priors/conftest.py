"""The folders that the priors' tests share."""

import pytest
from small_stable_diffusion import save_pipeline


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Small Stable Diffusion folders: `sd15`, `sd21` and `sdxl`; not to be changed."""
    root = tmp_path_factory.mktemp("stable-diffusion")
    return {kind: save_pipeline(kind, root / kind) for kind in ("sd15", "sd21", "sdxl")}
