"""Infinite logits and logarithms are what they are the limits of: opaque, transparent, without thickness."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import kernels

from .scenes import PARAMETERS, Scene, random_scene
from .test_rasterizer import TOLERANCE, errors, expect, loss_weights

INF, NAN = float("inf"), float("nan")


def as_given(scene: Scene) -> Scene:
    """The scene's scales as logarithms, its opacities as logits."""
    scales, opacities = scene.tensors["scales"].log(), scene.tensors["opacities"].logit()
    return scene.changed(scales=scales, opacities=opacities)


def both_passes(scene: Scene, safe: Tensor | None = None, penalty: float = 0.0) -> dict[str, Tensor]:
    out, state = kernels.rasterize_forward(**scene.arguments(), activated=False)
    if safe is None:
        safe = torch.ones_like(out.alpha, dtype=torch.bool)
    weights = loss_weights(scene, safe)
    grads = kernels.rasterize_backward(state, *weights.values(), opacity_penalty=penalty)
    named = {**grads._asdict(), "means2d_offsets": grads.means2d}
    return {**out._asdict(), **{f"grad_{name}": named[name] for name in PARAMETERS}}


def limits(antialiased: bool = False) -> Scene:
    """Gaussians with opacities of 0 and 1 and scales of 0 among others."""
    scene = random_scene(70, count=90, cameras=2, width=40, height=32, antialiased=antialiased)
    opacities, scales = scene.tensors["opacities"].clone(), scene.tensors["scales"].clone()
    opacities[::5], opacities[1::5] = 1.0, 0.0
    scales[::3, 0] = 0.0  # discs
    if not antialiased:  # what has no area there is not drawn: its antialiased opacity is 0
        scales[1::9, :2] = 0.0  # needles
        scales[4::9] = 0.0  # points
    return scene.changed(opacities=opacities, scales=scales)


@pytest.mark.parametrize("antialiased", [False, True])
def test_infinite_logits_and_logarithms_match_the_oracle_of_their_limits(antialiased: bool) -> None:
    scene = limits(antialiased)
    given = as_given(scene)
    assert given.tensors["opacities"].isinf().sum() == 36
    assert given.tensors["scales"].isneginf().sum() >= 30
    truth = expect(scene)
    opacities, scales = scene.tensors["opacities"].double(), scene.tensors["scales"].double()
    truth["grad_opacities"] *= opacities * (1 - opacities)
    truth["grad_scales"] *= scales
    actual = both_passes(given, truth["safe"])
    found = errors(actual, truth)
    assert max(found.values()) <= TOLERANCE, found
    assert (actual["radii"][:, ::15] > 0).any()  # opaque discs
    assert not actual["grad_opacities"][::5].any()
    assert not actual["grad_scales"][::3, 0].any()


@pytest.mark.parametrize(("opacity", "scale"), [(1000.0, -1000.0), (100.0, -800.0)])
def test_infinite_logits_and_logarithms_give_the_bits_of_large_finite_ones(
    opacity: float, scale: float
) -> None:
    given = as_given(limits())
    finite = given.changed(
        opacities=given.tensors["opacities"].clamp(-1000.0, opacity),
        scales=given.tensors["scales"].clamp(min=scale),
    )
    expected, actual = (both_passes(case, penalty=0.3) for case in (finite, given))
    for name, value in expected.items():
        assert actual[name].equal(value), name
        assert actual[name].isfinite().all(), name


@pytest.mark.parametrize(("name", "value"), [("opacities", NAN), ("scales", NAN), ("scales", INF)])
def test_a_logit_that_is_no_number_or_a_logarithm_of_no_size_is_absent(name: str, value: float) -> None:
    given = as_given(random_scene(71, count=20))
    broken = given.tensors[name].clone()
    broken.view(20, -1)[7] = value
    absent = given.tensors["opacities"].clone()
    absent[7] = -INF
    expected, actual = (
        both_passes(given.changed(opacities=absent)),
        both_passes(given.changed(**{name: broken})),
    )
    assert not actual["radii"][:, 7].any()
    for key, truth in expected.items():
        assert actual[key].equal(truth), key
