"""Every objective works with every policy, and with the guide beside it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import pytest

from ddpo3d_fast import generate, settings
from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.guidance import OBJECTIVES
from ddpo3d_fast.run import RunFolder
from tests.reference.toys import ToyPrior

POLICIES = get_args(get_type_hints(settings.Reward)["policy"])
STEPS = 3


def made(folder, monkeypatch, residual, **wishes):
    """The rows of a small run with a toy prior, and its Gaussians."""
    monkeypatch.setattr("ddpo3d_fast.build.load_prior", lambda wanted: ToyPrior())
    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))
    module = SimpleNamespace(left=lambda images, prompts: images[..., :8].mean((1, 2, 3)))
    monkeypatch.setitem(sys.modules, "left_reward", module)
    config = settings.Config(
        prompt="a red ball",
        negative_prompt="a cube",
        output=folder,
        device="cpu",
        schedule=settings.Schedule(
            steps=STEPS, views=2, noises=4, max_timestep=0.5, min_timestep=0.3, render_scales=(1.0,)
        ),
        scene=settings.Scene(gaussians=60, densify_every=0),
        distillation=settings.Distillation(model="toy", residual=residual),
        reward=settings.Reward(reward=("left_reward:left",), policy_pairs=8, policy_grid=2, **wishes),
    )
    rows = []
    run = RunFolder.create(config)
    generate.generate(config, run, rows.append)
    return [row for row in rows if row["stage"] == "distill"], run.load_checkpoint()["gaussians"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The scenes of runs without a reward, by objective."""
    with pytest.MonkeyPatch.context() as patch:
        return {
            residual: made(
                tmp_path_factory.mktemp("plain") / residual,
                patch,
                residual,
                policy_weight=0.0,
                guide_weight=0.0,
            )[1]
            for residual in OBJECTIVES
        }


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("residual", OBJECTIVES)
def test_an_objective_works_with_a_policy_and_the_guide(
    residual: str, policy: str, plain: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that pulls show at once, nothing is held to be chance.
    monkeypatch.setattr("ddpo3d_fast.guidance.scaling.beyond_chance", lambda square, *_: square * 0 + 1)
    rows, alone = made(tmp_path / "alone", monkeypatch, residual, policy=policy, guide_weight=0.0)
    assert all("reward" in row and "guide" not in row for row in rows)
    assert not alone["sh"].equal(plain[residual]["sh"])
    rows, both = made(tmp_path / "both", monkeypatch, residual, policy=policy, guide_weight=0.5)
    assert all("reward" in row and "guide" in row for row in rows)
    assert not both["sh"].equal(alone["sh"])
    assert all(tensor.isfinite().all() for tensor in both.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_acts_in_every_so_many_steps(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, _ = made(tmp_path / "run", monkeypatch, "sds", policy=policy, policy_every=2, guide_weight=0.0)
    assert ["reward" in row for row in rows] == [True, False, True]
