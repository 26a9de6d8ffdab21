"""Rows of no opacity, which only fill up arrays: either pass goes as if they were not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels

from .scenes import Scene, random_scene
from .test_rasterizer import loss_weights

ROWS = ("means", "quats", "scales", "opacities", "colors")
NOTHING = [(True, 0.0), (True, -1.0), (False, float("-inf")), (False, -1e30), (False, -104.5)]


def filled_up(arguments: dict[str, Any], count: int, opacity: float, rest: float) -> dict[str, Any]:
    """The arguments with so many rows in all; the added ones have this opacity and this number elsewhere."""
    more = count - len(arguments["means"])

    def longer(tensor: Tensor, value: float) -> Tensor:
        return torch.cat([tensor, torch.full((more, *tensor.shape[1:]), value)])

    rows = {name: longer(arguments[name], opacity if name == "opacities" else rest) for name in ROWS}
    offsets = arguments["means2d_offsets"]
    return {
        **arguments,
        **rows,
        "means2d_offsets": torch.cat([offsets, offsets[:, :1].expand(-1, more, -1)], 1),
    }


def both_passes(scene: Scene, arguments: dict[str, Any]) -> tuple[Any, kernels.RasterizeGradients]:
    out, state = kernels.rasterize_forward(**arguments)
    weights = loss_weights(scene, torch.ones(scene.cameras, scene.height, scene.width, dtype=torch.bool))
    return out, kernels.rasterize_backward(state, *weights.values(), opacity_penalty=0.3)


@pytest.mark.parametrize("rest", [0.5, 0.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("activated", "opacity"), NOTHING)
def test_rows_of_no_opacity_change_no_bit_and_have_no_gradient(
    activated: bool, opacity: float, rest: float
) -> None:
    scene = random_scene(60, count=300, cameras=2, width=40, height=30, sh_degree=1)
    arguments = scene.arguments() | {"activated": activated}
    if not activated:
        arguments["scales"], arguments["opacities"] = (
            arguments["scales"].log(),
            arguments["opacities"].logit(),
        )
    out, grads = both_passes(scene, arguments)
    got, got_grads = both_passes(scene, filled_up(arguments, 512, opacity, rest))
    for name in ("rgb", "alpha", "depth"):
        assert getattr(got, name).equal(getattr(out, name)), name
    assert got.radii[:, :300].equal(out.radii)
    assert not got.radii[:, 300:].any()
    assert got_grads.viewmats.equal(grads.viewmats)
    assert got_grads.backgrounds.equal(grads.backgrounds)
    assert got_grads.means2d[:, :300].equal(grads.means2d)
    assert not got_grads.means2d[:, 300:].any()
    for name in ROWS:
        gradient = getattr(got_grads, name)
        assert gradient[:300].equal(getattr(grads, name)), name
        assert not gradient[300:].any(), name
        assert gradient[:300].any(), name


@pytest.mark.parametrize("opacity", [float("-inf"), -1e30])
def test_adam_leaves_rows_of_no_opacity_as_they_are(opacity: float) -> None:
    scene = random_scene(61, count=100, width=32, height=32)
    arguments = filled_up(scene.arguments() | {"activated": False}, 128, opacity, 0.25)
    before = {name: arguments[name].clone() for name in ROWS}
    moments = {name: (torch.zeros_like(t), torch.zeros_like(t)) for name, t in before.items()}
    for step in (1, 2, 3):
        _, grads = both_passes(scene, arguments)
        groups = [kernels.AdamGroup(arguments[n], getattr(grads, n), *moments[n], lr=0.01) for n in ROWS]
        kernels.adam_groups(groups, step)
    for name in ROWS:
        assert arguments[name][100:].view(torch.int32).equal(before[name][100:].view(torch.int32)), name
        assert not arguments[name][:100].equal(before[name][:100]), name
        assert arguments[name][:100].isfinite().all(), name


def test_a_faint_gaussian_that_is_not_drawn_still_pays_its_penalty() -> None:
    """What is below the cut but more than nothing can come back: it is a Gaussian, not an absent row."""
    scene = random_scene(62, count=4, width=16, height=16)
    logits = torch.tensor([-6.0, -20.0, -80.0, 0.0])
    arguments = scene.arguments() | {"opacities": logits, "activated": False}
    out, grads = both_passes(scene, arguments)
    assert not out.radii[0, :3].any()
    expected = 0.3 * (logits.double().sigmoid() * (-logits.double()).sigmoid())
    assert torch.allclose(grads.opacities[:3].double(), expected[:3], rtol=1e-6, atol=0)
    assert not grads.scales[:3].any()
