"""Stable Diffusion's steps on torch, held to what a CUDA graph can capture."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from test_generate_device import CAPTURED, launched, make_four_steps  # noqa: F401

from ddpo3d_fast.configure import preset


@pytest.mark.parametrize(
    ("kind", "name"), [("sd15", "thrifty"), ("sd21", "standard"), ("sd21", "nfsd"), ("sdxl", "rescaled")]
)
def test_a_step_of_stable_diffusion_stays_on_its_device(
    launched: list[str],  # noqa: F811
    folders: dict[str, Path],
    kind: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = preset(name, "a red view", str(folders[kind]))
    config = dataclasses.replace(
        config,
        output=tmp_path / "run",
        negative_prompt="view",
        schedule=dataclasses.replace(config.schedule, render_scales=(0.5, 1.0), picture_scales=(1.0,)),
        reward=dataclasses.replace(config.reward, reward=("embedded",)),
    )
    # Screen gradients are counted, and never used: who grows is asked on the host.
    make_four_steps(config, launched, monkeypatch, densify_every=1000, gaussians=100)
    assert len(CAPTURED) == 2  # the second step of each rendering size
