"""Other numbers than colours: blended as these, to the bit."""

from __future__ import annotations

import pytest
import torch

from ddpo3d_fast import kernels

from .scenes import SCENES, random_scene

ALIKE = (
    "plain",
    "many",
    "wide",
    "one_gaussian",
    "none",
    "cameras",
    "sh2",
    "antialiased",
    "shifted",
    "layers",
)


def numbers(count: int, features: int) -> torch.Tensor:
    return torch.randn(count, features, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ALIKE)
def test_features_have_the_bits_of_plain_colours_on_black(name: str) -> None:
    arguments = SCENES[name].arguments()
    _, state = kernels.rasterize_forward(**arguments)
    features = numbers(len(arguments["means"]), 7)
    found = kernels.rasterize_features(state, features)
    for first in (0, 3, 4):
        plain = arguments | {
            "colors": features[:, first : first + 3],
            "sh_degree": None,
            "backgrounds": None,
        }
        expected = kernels.rasterize(**plain).rgb.permute(0, 3, 1, 2)
        assert torch.equal(found[:, first : first + 3], expected)


def test_the_pass_before_stays_as_it_was() -> None:
    arguments = random_scene(0, cameras=2).arguments()
    out, state = kernels.rasterize_forward(**arguments)
    upstream = torch.ones_like(out.rgb)
    before = kernels.rasterize_backward(state, upstream)
    kernels.rasterize_features(state, numbers(200, 5))
    after = kernels.rasterize_backward(state, upstream)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_no_features_give_no_images() -> None:
    _, state = kernels.rasterize_forward(**random_scene(0, cameras=2).arguments())
    assert kernels.rasterize_features(state, torch.zeros(200, 0)).shape == (2, 0, 48, 48)


def test_what_does_not_fit_is_named() -> None:
    _, state = kernels.rasterize_forward(**random_scene(0).arguments())
    with pytest.raises(ValueError, match=r"features: expected shape \[200, F\], got \[199, 3\]"):
        kernels.rasterize_features(state, torch.zeros(199, 3))
    with pytest.raises(TypeError, match=r"features: expected torch\.float32, got torch\.float64"):
        kernels.rasterize_features(state, torch.zeros(200, 3).double())
    with pytest.raises(TypeError, match="state: expected what rasterize_forward returned, got int"):
        kernels.rasterize_features(3, torch.zeros(200, 3))
