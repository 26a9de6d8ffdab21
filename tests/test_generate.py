"""The loop, end to end and small: what it leaves, that it repeats itself, resumes and can be stopped."""

import dataclasses
import json
import math
import os
import signal
import sys
import types
from importlib import import_module

import pytest
import torch
import yaml

from ddpo3d_fast import configure, settings
from ddpo3d_fast.assets import read_ply
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.export import export
from ddpo3d_fast.generate import generate, read
from ddpo3d_fast.guidance import ScoreDistillation
from ddpo3d_fast.kernels import TileCapacity
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Densification, Gaussians, ScreenGradients, splats
from ddpo3d_fast.scene.gaussians import PARAMETERS
from ddpo3d_fast.scene.splats import first_cloud, learning_rates, rate_scale_at
from ddpo3d_fast.schedule import (
    Plan,
    cameras_at,
    sample_backgrounds,
    sizes_at,
    timestep_at,
)

generate_module = import_module("ddpo3d_fast.generate")
FILES = {"asset.ply", "turntable.mp4", "preview.png", "config.yaml", "metrics.jsonl", "checkpoint.pt"}


def small(folder, steps=4, prompt="a red ball", seed=0, **changes) -> settings.Config:
    """A run of seconds: few steps, few Gaussians, the policy on from the first step."""
    config = configure.preset("draft", prompt)
    values = {
        "steps": steps,
        "views": 2,
        "gaussians": 300,
        "max_timestep": 0.6,
        "densify_every": 2,
    } | changes
    parts = {}
    for name in ("schedule", "scene", "distillation", "reward"):
        part = getattr(config, name)
        parts[name] = dataclasses.replace(part, **{k: v for k, v in values.items() if hasattr(part, k)})
    return dataclasses.replace(config, output=folder, seed=seed, device="cpu", **parts)


def run(config, observer=lambda row: None, resume=False):
    folder = RunFolder.open(config.output) if resume else RunFolder.create(config)
    return generate(config, folder, observer, resume)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config, rows = small(tmp_path_factory.mktemp("runs") / "ball"), []
    return config, run(config, rows.append), rows


def test_a_run_leaves_a_folder_with_everything_that_was_promised(finished):
    config, result, _ = finished
    assert {path.name for path in config.output.iterdir()} == FILES
    assert {path.name for path in result.files} == FILES
    assert len(read_ply(config.output / "asset.ply").means) > 0
    assert (config.output / "preview.png").read_bytes().startswith(b"\x89PNG")
    assert b"ftyp" in (config.output / "turntable.mp4").read_bytes()[:16]


def test_metrics_are_one_json_object_a_step(finished):
    config, _, rows = finished
    lines = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(line["loss"]) and math.isfinite(line["reward"]) for line in lines)
    assert [row["step"] for row in rows if row["stage"] == "distill"] == [1, 2, 3, 4]


def test_the_configuration_that_was_written_repeats_the_run(finished):
    config, _, _ = finished
    data = yaml.safe_load((config.output / "config.yaml").read_text())
    engine = data.pop("provenance")["engine"]
    assert engine == load_prior(PriorSettings("embedded")).runtime
    assert configure.from_dict(data) == config


def test_the_seconds_name_every_part_and_sum_up_to_the_total(finished):
    _, result, _ = finished
    parts = {"setup", "render", "predict", "reward", "residual", "update", "export"}
    assert parts < result.seconds.keys()
    assert sum(result.seconds[part] for part in parts) == pytest.approx(result.seconds["total"], rel=0.1)


def test_the_same_seed_gives_the_same_asset_to_the_byte_and_another_seed_another(finished, tmp_path):
    config, _, _ = finished
    asset = (config.output / "asset.ply").read_bytes()
    run(dataclasses.replace(config, output=tmp_path / "again"))
    assert (tmp_path / "again/asset.ply").read_bytes() == asset
    run(dataclasses.replace(config, output=tmp_path / "other", seed=1))
    assert (tmp_path / "other/asset.ply").read_bytes() != asset


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"baseline": "running"},
        {"densify_gradient": 0.3},
        {"policy": "scene", "policy_pairs": 4},
        {"policy": "view", "policy_pairs": 16},
        {"policy": "latent", "policy_estimator": "ppo", "policy_updates": 2, "noises": 3},
    ],
)
def test_a_resumed_run_ends_as_an_unbroken_one(tmp_path, changes):
    config = small(tmp_path / "whole", steps=6, **changes)
    run(config)
    broken = dataclasses.replace(config, output=tmp_path / "broken")

    def stop_at_three(row):
        if row.get("step") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(broken, stop_at_three)
    run(broken, resume=True)
    for name in ("asset.ply", "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_resumed_run_renders_with_the_rows_of_an_unbroken_one_though_it_has_fewer_gaussians(
    tmp_path, monkeypatch
):
    """What is summed over the rows may be summed in another order where there are more or fewer."""
    rendered, at_the_round = [], iter([600, 200, 200])  # Gaussians: memory for more stays
    render = Gaussians.render

    def noted(self, *arguments, capacity=None, **options):
        views = render(self, *arguments, capacity=capacity, **options)
        if capacity is not None:  # not an export's
            rendered.append(views.radii.shape[1])
        return views

    def densified(self, gaussians, *_):
        return gaussians[torch.arange(next(at_the_round)) % len(gaussians)]

    monkeypatch.setattr(Gaussians, "render", noted)
    monkeypatch.setattr(Densification, "__call__", densified)
    config = small(tmp_path / "run", steps=6, densify_every=1, densify_gradient=0.3)

    def stop_at_three(row):
        if row.get("step") == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(config, stop_at_three)
    monkeypatch.setattr(Densification, "__call__", lambda self, gaussians, *_: gaussians)
    run(config, resume=True)
    assert rendered == [512, 1024, 1024, 1024, 1024, 1024]


def test_a_step_that_is_repeated_for_room_finds_the_rewards_that_it_found_at_first(tmp_path, monkeypatch):
    windows, too_small = [], iter([False, True, True, False, False])

    class Capacity(TileCapacity):
        overflowed = property(lambda self: next(too_small))

    def guided(self, *arguments):
        windows.append(self.judge.baseline.window.nan_to_num(-1))
        return guide(self, *arguments)

    guide = ScoreDistillation.__call__
    monkeypatch.setattr(splats, "TileCapacity", Capacity)
    monkeypatch.setattr(ScoreDistillation, "__call__", guided)
    run(small(tmp_path / "run", steps=3, baseline="running"))
    first, second, third, fourth, last = windows
    assert second.equal(third)
    assert second.equal(fourth)
    assert len({tuple(window.tolist()) for window in (first, second, last)}) == 3
    assert next(too_small, None) is None


def test_ctrl_c_keeps_what_was_made(tmp_path):
    def stop_at_two(row):
        if row.get("step") == 2:
            os.kill(os.getpid(), signal.SIGINT)

    config = small(tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        run(config, stop_at_two)
    assert {path.name for path in config.output.iterdir()} == FILES
    assert len((config.output / "metrics.jsonl").read_text().splitlines()) == 2


def test_policy_and_guide_each_change_the_asset_and_zero_weights_need_no_scorer(tmp_path, monkeypatch):
    assets = {}
    for policy, guide in ((0.0, 0.0), (1.0, 0.0), (0.0, 0.5)):
        config = small(tmp_path / f"{policy}-{guide}", policy_weight=policy, guide_weight=guide)
        if not policy and not guide:
            with monkeypatch.context() as patch:
                patch.setattr("ddpo3d_fast.build.make_reward", lambda *_: pytest.fail("asked for a scorer"))
                run(config)
        else:
            run(config)
        assets[policy, guide] = (config.output / "asset.ply").read_bytes()
    assert len(set(assets.values())) == 3


@pytest.mark.parametrize("densify_gradient", [0.0, 3.0])
def test_haze_outside_the_silhouettes_is_moved_or_dropped_from_the_asked_fraction_on(
    tmp_path, densify_gradient
):
    assets, counts = [], []
    for carve_from in (0.0, 1.0):
        changes = {"carve_from": carve_from, "densify_gradient": densify_gradient}
        config, rows = small(tmp_path / str(carve_from), steps=3, **changes), []
        run(config, rows.append)
        assets.append((config.output / "asset.ply").read_bytes())
        counts.append([row["gaussians"] for row in rows if "step" in row][-1])
    assert assets[0] != assets[1]
    assert (counts == [300, 300]) == (densify_gradient == 0)


def cloud(count, center, opacity, spread):
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(count))
    return Gaussians(
        means=torch.tensor(center) + spread * noise,
        quats=torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1),
        log_scales=torch.full((count, 3), math.log(0.04)),
        logit_opacities=torch.full((count,), math.log(opacity / (1 - opacity))),
        sh=torch.zeros(count, 1, 3),
    )


def test_an_asset_is_written_without_its_floaters(tmp_path):
    """The object and a strong small part apart from it stay, dots of faint Gaussians and haze do not."""
    parts = (
        cloud(3000, (0.0, -0.2, 0.0), 0.8, 0.12),  # the object
        cloud(30, (0.0, 0.5, 0.0), 0.5, 0.01),  # an antenna's tip
        cloud(400, (0.6, 0.2, 0.0), 0.05, 0.03),  # hundreds of faint ones, opaque together
        cloud(1, (-0.6, 0.3, 0.2), 0.2, 0.0),  # a wisp
    )
    whole = Gaussians(*(torch.cat([getattr(part, name) for part in parts]) for name in PARAMETERS))
    export(whole, tmp_path)
    means = read_ply(tmp_path / "asset.ply").means
    assert (means[:, 0].abs() < 0.55).all()
    assert ((means - torch.tensor([0.0, 0.5, 0.0])).norm(dim=1) < 0.1).sum() == 30
    assert len(means) > 2900


def test_a_reward_without_a_gradient_turns_the_guide_off(tmp_path, monkeypatch):
    (tmp_path / "my_reward.py").write_text(
        "def brightness(images, prompts):\n    return images.detach().mean((1, 2, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    rows = []
    run(small(tmp_path / "mine", reward=("my_reward:brightness",), guide_weight=1.0), rows.append)
    assert all("guide" not in row and "reward" in row for row in rows if row["stage"] == "distill")


def test_the_updates_of_a_batch_of_actions_see_the_same_and_report_how_far_they_went(tmp_path):
    rows, drawn = [], {}
    config = small(
        tmp_path / "ppo", steps=5, policy="latent", policy_estimator="ppo", policy_updates=2, noises=3
    )

    def observe(row):
        if row["stage"] == "distill":
            rows.append(row)

    run(config, observe)
    plan = Plan.of(config, load_prior(PriorSettings("embedded")))
    drawn = [plan.draw(number) for number in range(1, 6)]
    for first, second in ((0, 1), (2, 3)):
        assert torch.equal(drawn[first].viewmats, drawn[second].viewmats)
        assert torch.equal(drawn[first].timesteps, drawn[second].timesteps)
        assert drawn[first].fraction < drawn[second].fraction  # rates go on
    assert not torch.equal(drawn[0].viewmats, drawn[2].viewmats)
    assert ["reward" in row for row in rows] == [True, False, True, False, True]
    assert [row["approximate_kl"] > 0 for row in rows] == [False, True, False, True, False]
    assert all(0 <= row["clip_fraction"] <= 1 and 0 <= row["signal"] <= 1 for row in rows)


def test_torch_has_one_thread_beside_the_embedded_models_alone(tmp_path, monkeypatch):
    """There more would hinder the kernels; other models may be torch's to run."""
    monkeypatch.setattr("ddpo3d_fast.generate.get_num_threads", lambda: 3)
    module = types.SimpleNamespace(score=lambda images, prompts: images.mean((1, 2, 3)))
    monkeypatch.setitem(sys.modules, "their_reward", module)
    before = torch.get_num_threads()
    for name, wishes, count in (("theirs", {"reward": ("their_reward:score",)}, 3), ("embedded", {}, 1)):
        seen = []
        run(
            small(tmp_path / name, steps=1, **wishes),
            lambda row, seen=seen: seen.append(torch.get_num_threads()),
        )
        assert set(seen) == {count}
    assert torch.get_num_threads() == before


def test_an_unknown_prompt_ends_before_anything_is_written(tmp_path):
    config = small(tmp_path / "dragon", prompt="a dragon")
    with pytest.raises(InputError, match="does not know 'dragon'"):
        run(config)
    assert not config.output.exists()


def test_timesteps_are_annealed_and_stay_in_range():
    jitter = torch.tensor([-0.05, 0.0, 0.05])
    assert timestep_at(0.0, 1000, 0.02, 0.98, jitter).tolist() == [929, 979, 979]
    assert timestep_at(1.0, 1000, 0.02, 0.98, jitter).tolist() == [19, 19, 69]
    middle = timestep_at(0.5, 1000, 0.02, 0.98, torch.zeros(1))
    assert middle.item() == pytest.approx(500, abs=1)


def test_cameras_and_backgrounds_are_the_ones_asked_for():
    asked = {"views": 64, "camera_radius": 2.0, "fov": 60.0, "min_elevation": 10.0, "max_elevation": 20.0}
    schedule = settings.Schedule(**asked, overhead_fraction=0.0)
    cameras = cameras_at(torch.Generator().manual_seed(0), schedule)
    assert cameras.viewmats[:, :3, 3].norm(dim=1).tolist() == pytest.approx([2.0] * 64)
    assert cameras.fov_y == pytest.approx(math.radians(60))
    low, high = cameras.elevation.rad2deg().aminmax()
    assert 10 <= low < 11 < 19 < high <= 20
    grey = sample_backgrounds(torch.Generator().manual_seed(0), 64, "black-white")
    assert set(grey.flatten().tolist()) == {0.0, 1.0}
    grey = sample_backgrounds(torch.Generator().manual_seed(0), 64)
    assert (grey == 1).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert len(set(grey.flatten().tolist())) > 20


def test_screen_gradients_are_those_of_all_views_each_of_its_own_loss(tmp_path, monkeypatch):
    moved, counted = [], []
    update, add = Gaussians.update, ScreenGradients.add

    def updated(self, *arguments, **options):
        moved.append(update(self, *arguments, **options))
        return moved[-1]

    def added(self, grad_means2d, visible, size):
        counted.append((grad_means2d, visible, size))
        add(self, grad_means2d, visible, size)

    monkeypatch.setattr(Gaussians, "update", updated)
    monkeypatch.setattr(ScreenGradients, "add", added)
    run(small(tmp_path / "three", steps=1, views=3, render_scales=(2.0,)))
    (gradient, visible, size), (whole,) = counted[0], moved
    assert gradient.shape == (3, 512, 2)  # 300 and room for more
    assert torch.equal(gradient, 3 * whole)  # the step's loss is the mean of the views'
    assert all(view.any() for view in gradient)
    assert visible.shape == (3, 512)
    assert visible.any(1).all()
    assert size == 128


def test_a_step_is_drawn_before_the_one_ahead_of_it_is_read(tmp_path, monkeypatch):
    """So that a GPU does not wait for the host between two steps."""
    happened, inputs = [], ScoreDistillation.inputs

    def drawn(self, step):
        happened.append(f"draw {step.number}")
        return inputs(self, step)

    def was_read(metrics):
        happened.append("read")
        return read(metrics)

    monkeypatch.setattr(ScoreDistillation, "inputs", drawn)
    monkeypatch.setattr(generate_module, "read", was_read)
    run(small(tmp_path / "three", steps=3))
    assert happened == ["draw 1", "draw 2", "read", "draw 3", "read", "read"]


def test_the_first_cloud_is_the_one_asked_for():
    reach = {
        name: first_cloud(settings.Scene(gaussians=500, cloud=name), 0).means.norm(dim=1).max()
        for name in ("ball", "normal")
    }
    assert reach["ball"] <= 0.5 < reach["normal"]


def test_the_number_of_gaussians_grows_up_to_what_is_allowed(tmp_path):
    config, rows = small(tmp_path / "many", steps=6, densify_gradient=1e-3, max_gaussians=500), []
    run(config, rows.append)
    counts = [row["gaussians"] for row in rows if "step" in row]
    assert counts[:2] == [300, 500]
    assert max(counts) == 500


def test_learning_rates_decay_to_the_final_fraction():
    scene = configure.preset("standard", "x").scene
    assert learning_rates(scene).means == scene.means_rate
    assert learning_rates(scene).sh == scene.colors_rate
    scales = [rate_scale_at(fraction, 0.01) for fraction in (0.0, 0.5, 1.0)]
    assert [rate_scale_at(fraction, 0.01, 0.5) for fraction in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(
        [*scales, scales[-1]]
    )
    assert scales == pytest.approx([1.0, 0.1, 0.01])


def test_metrics_are_read_as_the_numbers_they_are():
    metrics = {"loss": torch.tensor(0.1), "reward": torch.tensor(math.nan), "alpha": torch.tensor(2.0)}
    numbers = read(metrics)
    assert list(numbers) == list(metrics)
    assert numbers["loss"] == float(metrics["loss"])
    assert math.isnan(numbers["reward"])


def test_sizes_follow_the_run_by_equal_parts():
    schedule = dataclasses.replace(
        configure.preset("standard", "x").schedule, render_scales=(0.25, 0.5, 1.0), picture_scales=(0.5, 1.0)
    )
    sizes = [sizes_at(schedule, 512, fraction) for fraction in (0.0, 0.34, 0.5, 0.67, 0.99)]
    assert sizes == [(128, 256), (256, 256), (256, 512), (512, 512), (512, 512)]


def test_sizes_that_do_not_fit_are_refused_before_anything_is_made(tmp_path):
    config = small(tmp_path / "run", render_scales=(1.0, 1.5))
    with pytest.raises(InputError, match="--render-scales, --picture-scales: expected"):
        run(config)
    assert not config.output.exists()
