"""The loop against its specification: a step of the product leaves what `step` makes of the state before it.

Each case begins in the middle of a run, from a checkpoint whose Gaussians differ in everything, and takes the
reference anew from the product's own state before every step, so that rounding does not add up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast.assets import read_ply
from ddpo3d_fast.guidance import OBJECTIVES
from ddpo3d_fast.priors import PriorSettings, load_prior, views
from ddpo3d_fast.priors.caption import view_indices
from ddpo3d_fast.rewards import make_reward
from ddpo3d_fast.settings import Config

from . import product, toys
from .draws import first_cloud, view_weights
from .guidance import Score
from .product import float64
from .scene import PARAMETERS, exported
from .step import State, Stepped, step
from .toys import BLIND_REWARD, REWARD, STEEP_REWARD

TOLERANCE = 3e-5  # of the norm of a tensor's change in the step
ROUNDING = 2e-7  # of the norm of the tensor: single precision
EPSILON = {"prediction_type": "epsilon", "clip": None}
VELOCITY = {"prediction_type": "v_prediction", "clip": None}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def configured(output: Path, **changes: Any) -> Config:
    """A run of small views whose settings all differ from what would hide them. `changes` are of any part."""
    values: dict[str, Any] = {
        "model": "toy",
        "steps": 20,
        "views": 3,
        "noises": 3,
        "max_timestep": 0.95,
        "min_timestep": 0.1,
        "render_scales": (1.0,),
        "gaussians": 40,
        "densify_every": 0,
        "residual": "clean",
        "reward": (REWARD,),
        "opacity_penalty": 0.02,
        "policy_max_timestep": 0.75,
        "guide_weight": 0.3,
        "overhead_fraction": 0.3,
    }
    values |= changes
    config = Config(prompt="a red ball", output=output, device="cpu", seed=3)
    parts = {}
    for name in ("schedule", "scene", "distillation", "reward"):
        part = getattr(config, name)
        mine = {k: values.pop(k) for k in [f.name for f in fields(part)] if k in values}
        parts[name] = replace(part, **mine)
    return replace(config, **parts, **values)


def between(config: Config, rewards: int, seed: int) -> State:
    """A state in the middle of a run, in which the window holds so many rewards."""
    generator = torch.Generator().manual_seed(seed)
    gaussians = toys.scene(config.scene.gaussians, seed)
    window = torch.cat([torch.full((32 - rewards,), math.nan), torch.randn(rewards, generator=generator)])
    views = torch.randint(1, 9, (config.scene.gaussians,), generator=generator).float()
    total = views * 2 * torch.rand(config.scene.gaussians, generator=generator)
    kept = {}
    if config.reward.policy in ("latent", "view") and config.reward.policy_weight:
        kept[f"{config.reward.policy}_signal"] = torch.tensor([0.7, 0.2, 0.5], dtype=torch.float64)
    if config.reward.updates > 1:
        actions = config.schedule.views, config.schedule.noises
        kept |= {"latent_advantages": torch.zeros(actions).double(), "latent_means": torch.zeros(0).double()}
    return State(float64(gaussians), window.double(), torch.stack([total, views]).double(), kept)


def close(name: str, got: Tensor, wanted: Tensor, before: Tensor) -> None:
    assert got.shape == wanted.shape, name
    change = float((wanted - before).norm())
    error, allowed = float((got - wanted).norm()), TOLERANCE * change + ROUNDING * float(wanted.norm())
    assert error <= allowed, f"{name}: off by {error / max(change, 1e-30):.1e} of its change"


def compare(got: State, row: dict[str, Any], wanted: Stepped, before: State, but: tuple[str, ...]) -> None:
    """The product's state after a step, and what it told of it, against the documented ones."""
    sometimes = {"reward", "advantage_spread", "signal", "guide", "approximate_kl", "clip_fraction"}
    assert row.keys() & sometimes == wanted.metrics.keys() & sometimes
    for name, number in wanted.metrics.items():
        assert row[name] == pytest.approx(number, rel=1e-4, abs=1e-6), name
    for name in sorted(wanted.state.gaussians.keys() - set(but)):
        mine, theirs = before.gaussians[name], wanted.state.gaussians[name]
        if len(mine) != len(theirs):  # then nothing says how much has changed: a tenth
            mine = 0.9 * theirs
        close(name, got.gaussians[name], theirs, mine)
    torch.testing.assert_close(got.rewards, wanted.state.rewards, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert got.kept.keys() == wanted.state.kept.keys()
    for name, tensor in wanted.state.kept.items():
        torch.testing.assert_close(got.kept[name], tensor, rtol=2e-4, atol=1e-5)
    for got_part, wanted_part, before_part in zip(
        got.estimate, wanted.state.estimate, before.estimate, strict=True
    ):
        close("scene policy", got_part, wanted_part, before_part)
    assert torch.equal(got.screen[1], wanted.state.screen[1]), "views that saw the Gaussians"
    if got.screen.shape == before.screen.shape:
        close("screen gradients", got.screen[0], wanted.state.screen[0], before.screen[0])
    else:
        assert torch.equal(got.screen, wanted.state.screen)


def documented(
    states: list[State],  # before the first step, and after every one
    rows: list[dict[str, Any]],
    first: int,
    config: Config,
    prior: Any,
    score: Score | None,
    but: tuple[str, ...] = (),
) -> bool:
    """Whether steps can be compared, and if they can, that all are as documented, `but` for some tensors.

    They cannot where single precision may decide otherwise about a pixel, whose cut-off lies within rounding.
    """
    wanted = [step(before, n, config, prior, score) for n, before in enumerate(states[:-1], first)]
    if not all(each.safe for each in wanted):
        return False
    for before, got, row, each in zip(states[:-1], states[1:], rows, wanted, strict=True):
        compare(got, row, each, before, but)
    return True


@dataclass(frozen=True)
class Case:
    """Some steps in the middle of a run."""

    settings: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] = field(default_factory=dict)
    first: int = 11  # of 20 steps
    steps: int = 2
    rewards: int = 0  # in the window of the running baseline
    estimated: bool = False  # whether the scene policy has acted before


CASES = {
    "noise policy": Case(),
    "as many noises as are compared": Case({"noises": 0, "policy_every": 2}, first=3, steps=6),
    "as many steps of the latent policy": Case({"noises": 0, "policy": "latent"}, first=3, steps=5),
    "one noise where the render is scored": Case(
        {"noises": 0, "baseline": "running", "reward_of": "render"}, rewards=32
    ),
    "sizes, and no policy": Case(
        {"render_scales": (1.0, 2.0), "views": 2, "guide_weight": 0.0, "policy_weight": 0.0, "reward": ()},
        first=10,
    ),
    "bilinear": Case(
        {"render_scales": (1.0, 0.75), "picture_scales": (0.5, 1.5, 1.0), "backgrounds": "black-white"},
        first=6,
        steps=6,
    ),
    "cameras": Case(
        {
            "camera_radius": 2.3,
            "fov": 55.0,
            "min_elevation": -40.0,
            "max_elevation": 30.0,
            "overhead_fraction": 0.0,
            "views": 4,
            "noises": 2,
            "residual": "sds",
            "policy_weight": 2.0,
        },
        prior=EPSILON,
    ),
    "classifier score distillation": Case(
        {"residual": "csd", "negative_prompt": "dull", "reward_guidance_scale": 1.2}, prior=VELOCITY
    ),
    "noise-free score distillation": Case(
        {"residual": "nfsd", "negative_prompt": "dull", "max_timestep": 0.3, "min_timestep": 0.1},
        steps=3,
        prior=EPSILON,
    ),
    "noise-free score distillation at its border": Case(
        {"residual": "nfsd", "negative_prompt": "dull", "max_timestep": 0.2014, "min_timestep": 0.2014},
        steps=1,
        prior=EPSILON,
    ),
    "rescaled": Case({"guidance_rescale": 0.7, "guidance_scale": 5.0, "residual": "sds"}),
    "rescaled, unclipped": Case({"guidance_rescale": 0.4, "guidance_scale": 4.0}, prior=VELOCITY),
    "a prior that knows nothing of the last timesteps": Case(
        {"max_timestep": 0.9}, prior={"highest_timestep": 0.5}
    ),
    "running baseline": Case({"baseline": "running", "noises": 2}, rewards=12, steps=3),
    "running baseline, full": Case({"baseline": "running", "noises": 4}, rewards=28),
    "reward of the render": Case({"baseline": "running", "reward_of": "render"}, rewards=32),
    "shuffled": Case({"shuffle_advantages": True, "noises": 6}),
    "latent policy": Case({"policy": "latent", "noises": 5, "policy_weight": 1.5}, first=7, steps=4),
    "latent policy, white": Case({"policy": "latent", "noises": 4, "policy_exploration": "white"}, first=14),
    "latent policy beside another residual": Case(
        {"policy": "latent", "residual": "nfsd", "negative_prompt": "dull", "max_timestep": 0.2},
        first=17,
        steps=3,
        prior=EPSILON,
    ),
    "latent policy, three DDIM steps": Case(
        {"policy": "latent", "policy_ddim_steps": 3, "policy_grid": 2, "shuffle_advantages": True},
        prior=VELOCITY,
    ),
    "latent policy, running": Case(
        {"policy": "latent", "baseline": "running", "policy_every": 2}, rewards=20, steps=3
    ),
    "ppo": Case(
        {"policy": "latent", "policy_estimator": "ppo", "policy_updates": 3, "policy_clip": 1e-3},
        first=13,
        steps=5,
    ),
    "ppo, white, batches now and then": Case(
        {
            "policy": "latent",
            "policy_estimator": "ppo",
            "policy_updates": 2,
            "policy_exploration": "white",
            "policy_clip": 0.1,
            "policy_every": 2,
            "densify_every": 1,
            "densify_gradient": 0.5,
        },
        first=9,
        steps=6,
    ),
    "view policy": Case({"policy": "view", "policy_pairs": 7}, steps=3),
    "view policy, coarse, of small pictures": Case(
        {"policy": "view", "policy_pairs": 6, "policy_grid": 2, "policy_sigma": 0.3, "policy_weight": 0.5}
        | {"render_scales": (2.0,), "reward": (BLIND_REWARD,)},
    ),
    "view policy, shuffled, that asks now and then": Case(
        {"policy": "view", "policy_pairs": 8, "policy_every": 2, "shuffle_advantages": True}, steps=3
    ),
    "scene policy": Case({"policy": "scene", "policy_pairs": 4}, estimated=True),
    "scene policy of all numbers": Case(
        {"policy": "scene", "policy_pairs": 4, "policy_moves": "all"}, estimated=True
    ),
    "scene policy that asks now and then": Case(
        {"policy": "scene", "policy_pairs": 3, "policy_every": 3}, estimated=True, steps=4
    ),
    "noise policy that asks now and then": Case({"policy_every": 3}, steps=4),
    "scene policy that has just begun": Case(
        {"policy": "scene", "policy_pairs": 5, "policy_weight": 0.2, "render_scales": (2.0,)}, first=1
    ),
    "scene policy, shuffled": Case(
        {"policy": "scene", "policy_pairs": 6, "shuffle_advantages": True, "reward": (BLIND_REWARD,)},
        estimated=True,
        steps=1,
    ),
    "advantages at their limit": Case(
        {"noises": 64, "views": 1, "reward": (STEEP_REWARD,), "guide_weight": 0.0}
    ),
    "a reward without a gradient": Case({"reward": (BLIND_REWARD,)}, first=1),
    "densification": Case(
        {"densify_every": 2, "densify_gradient": 0.7, "split_above": 0.09, "max_gaussians": 32}, steps=4
    ),
    "densification ends": Case(
        {"densify_every": 1, "densify_gradient": 0.5, "dead_opacity": 0.1, "final_rate": 0.01},
        first=15,
        steps=4,
    ),
    "densification and carving": Case(
        {"densify_every": 1, "densify_gradient": 0.5, "split_above": 0.05, "carve_from": 0.5},
        first=11,
        steps=2,
    ),
    "relocation": Case({"densify_every": 1, "densify_gradient": 0.0, "carve_from": 0.5}, steps=3),
    "relocation of many to one": Case(
        {"gaussians": 120, "dead_opacity": 0.93, "densify_every": 1, "densify_gradient": 0.0}, steps=1
    ),
    "rates": Case(
        {
            "means_rate": 0.003,
            "scales_rate": 0.005,
            "quats_rate": 0.02,
            "opacities_rate": 0.04,
            "colors_rate": 0.06,
            "final_rate": 0.3,
            "final_means_rate": 0.05,
            "means_decay": 0.5,
        },
        first=8,
        steps=4,
    ),
}


CASES["rewardsds"] = Case({"baseline": "rewardsds", "noises": 7, "policy_weight": 0.8})
# Every objective with every policy, and the guide beside it.
CASES |= {
    f"{residual} of {prior.get('prediction_type', 'sample')} and {policy}": Case(
        {
            "residual": residual,
            "policy": policy,
            "policy_max_timestep": 1.0,
            "policy_pairs": 6,
            "negative_prompt": "a fog",
            "guidance_rescale": 0.4 if residual in ("ism", "sdi") else 0.0,
        },
        prior=prior,
        first=first,
        steps=1,
        estimated=policy == "scene",
    )
    for residual, prior, first in (
        ("clean", {}, 4),
        ("sds", EPSILON, 5),
        ("csd", {}, 6),
        ("nfsd", VELOCITY, 7),
        ("ism", {}, 2),
        ("ism", VELOCITY, 17),
        ("sdi", {}, 4),
        ("sdi", EPSILON, 16),
    )
    for policy in ("noise", "latent", "view", "scene")
}


def test_every_objective_is_among_them() -> None:
    asked = {case.settings.get("residual") for case in CASES.values()}
    assert asked >= OBJECTIVES.keys()


@pytest.mark.filterwarnings("ignore:--max-timestep 0.9")
@pytest.mark.parametrize("name", CASES)
def test_every_step_is_the_documented_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    prior, config = toys.ToyPrior(**case.prior), configured(tmp_path, **case.settings)
    score = toys.REWARDS[config.reward.reward[0]] if config.reward.reward else None
    last = case.first + case.steps - 1

    def right(seed: int) -> bool:
        begin = between(config, case.rewards, seed)
        if case.estimated:
            begin = begin._replace(estimate=toys.estimate(seed))
        states, rows = product.run(config, prior, monkeypatch, case.first, last, begin)
        return documented([begin, *states], rows, case.first, config, prior, score)

    assert any(right(seed) for seed in range(20))


def test_a_tiny_gradient_moves_a_gaussian_as_documented(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 1e-8 and less, beside which the number that Adam adds may not count."""
    silent = {"residual": "csd", "negative_prompt": "a red ball", "policy_weight": 0.0, "guide_weight": 0.0}
    config = configured(tmp_path, **silent, reward=(), alpha_penalty=0.0, opacity_penalty=3e-8)
    begin = between(config, 0, 0)
    for name in PARAMETERS:
        begin.gaussians[f"exp_avg.{name}"].zero_()
        begin.gaussians[f"exp_avg_sq.{name}"].zero_()
    states, rows = product.run(config, toys.ToyPrior(), monkeypatch, 1, 1, begin)
    assert documented([begin, *states], rows, 1, config, toys.ToyPrior(), None)


@pytest.mark.parametrize("cloud", ["normal", "ball"])
def test_a_run_begins_with_the_documented_cloud_and_goes_on_where_it_was_left(
    cloud: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prior, asked = toys.ToyPrior(), {"policy_max_timestep": 1.0, "baseline": "running", "noises": 4}
    # Round Gaussians have no gradient of rotation but rounding, which Adam would scale up to whole steps.
    asked |= {"cloud": cloud, "gaussians": 60, "quats_rate": 0.0, "densify_every": 3, "densify_gradient": 0.5}
    rounding = ("exp_avg.quats", "exp_avg_sq.quats")

    def right(seed: int) -> bool:
        config = configured(tmp_path / str(seed), seed=seed, **asked)
        cloud = first_cloud(config)
        zeros = {
            f"{kind}.{name}": torch.zeros_like(tensor)
            for kind in ("exp_avg", "exp_avg_sq")
            for name, tensor in cloud.items()
        }
        nothing = torch.full((32,), math.nan, dtype=torch.float64)
        begin = State(cloud | zeros, nothing, torch.zeros(2, 60, dtype=torch.float64), {})
        states, rows = product.run(config, prior, monkeypatch, 1, 2)
        more_states, more_rows = product.run(config, prior, monkeypatch, 3, 4)
        found = [begin, *states, *more_states], rows + more_rows
        return documented(*found, 1, config, prior, toys.score, rounding)

    assert any(right(seed) for seed in range(3, 20))


def test_the_asset_is_the_documented_part_of_the_scene(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, gaussians=150, steps=11)
    (last,), _ = product.run(config, toys.ToyPrior(), monkeypatch, 11, 11, between(config, 0, 0))
    wanted, asset = exported(last.gaussians), read_ply(tmp_path / "asset.ply")
    assert 0 < len(wanted["means"]) < 150
    wanted["quats"] = torch.nn.functional.normalize(wanted["quats"], dim=1)  # as viewers expect them
    for name in PARAMETERS:
        torch.testing.assert_close(getattr(asset, name).double(), wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["noise", "latent", "view"])
def test_a_step_of_the_embedded_models_is_the_documented_one(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"model": "embedded", "precision": "fp32", "reward": ()}
    config = configured(tmp_path, views=2, gaussians=30, policy=policy, **asked)
    prior, score = (
        toys.InFloat32(load_prior(PriorSettings("embedded", dtype=torch.float32))),
        toys.in_float32(make_reward(("embedded",))),
    )

    def right(seed: int) -> bool:
        begin = between(config, 0, seed)
        states, rows = product.run(config, None, monkeypatch, 13, 13, begin)
        return documented([begin, *states], rows, 13, config, prior, score)

    assert any(right(seed) for seed in range(20))


@pytest.mark.parametrize("interpolate", [True, False])
def test_a_view_has_the_documented_words(interpolate: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    azimuth = 2 * math.pi * (torch.rand(300, generator=generator).double() - 0.5)
    elevation = math.pi * (torch.rand(300, generator=generator).double() - 0.5)
    cameras = torch.stack([azimuth, elevation], 1)
    wanted = view_weights(azimuth, elevation, interpolate)
    torch.testing.assert_close(views.view_weights(cameras, interpolate).double(), wanted)
    words = ["front", "side", "back", "overhead"]
    assert views.view_prompts("a car") == [f"a car, {word} view" for word in words]
    if not interpolate:
        assert torch.equal(view_indices(cameras), wanted.argmax(1))
