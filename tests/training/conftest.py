"""Views of individuals that no data set holds, rendered once for all tests of this folder."""

import numpy as np
import pytest
import torch

from ddpo3d_fast.training.objects import CLASS_NAMES, random_object
from ddpo3d_fast.training.render import Field, render_materials
from ddpo3d_fast.training.views import ViewSource

SEED = 987_654  # the data set's shards have the seeds 0, 1, 2 ...


@pytest.fixture(scope="session")
def rendered() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Masks uint8 [48, 5, 64, 64], classes [48] and cameras [48, 2]: every class, front and side."""
    rng = np.random.default_rng(SEED)
    masks, classes, cameras = [], [], []
    for index, name in enumerate(CLASS_NAMES):
        field = Field(random_object(name, rng))
        for azimuth in (rng.uniform(-0.6, 0.6), rng.uniform(1.0, 2.0)):
            camera = (azimuth, rng.uniform(0.1, 0.5))
            masks.append((render_materials(field, *camera) * 255).round().to(torch.uint8))
            classes.append(index)
            cameras.append(camera)
    return torch.stack(masks), torch.tensor(classes), torch.tensor(cameras, dtype=torch.float32)


@pytest.fixture
def source(rendered) -> ViewSource:
    return ViewSource(*rendered, seed=3)


@pytest.fixture
def dataset(rendered, tmp_path):
    """A data set folder of three shards with all the rendered views in each."""
    masks, classes, cameras = (t.numpy() for t in rendered)
    for shard in range(3):
        np.savez(tmp_path / f"shard-{shard:04d}.npz", masks=masks, classes=classes, views=cameras)
    return tmp_path
