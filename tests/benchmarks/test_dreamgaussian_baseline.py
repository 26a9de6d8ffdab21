"""The baseline optimises what we optimise: the same gradient, pictures and timesteps, one view at a time."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpo3d_fast import generate
from ddpo3d_fast.configure import preset
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.guidance import Gradient, ScoreDistillation, Seen
from ddpo3d_fast.guidance.objectives import NOISE_STREAM
from ddpo3d_fast.kernels import philox_normal, rasterize_backward
from ddpo3d_fast.priors import PriorSettings
from ddpo3d_fast.priors.stable_diffusion import StableDiffusionPrior
from ddpo3d_fast.resampling import resize
from ddpo3d_fast.run import RunFolder
from ddpo3d_fast.scene import Gaussians, initial_cloud, look_at_origin
from ddpo3d_fast.scene.gaussians import PARAMETERS
from ddpo3d_fast.scene.splats import first_cloud
from ddpo3d_fast.settings import Config
from ddpo3d_fast.step import Step, merged

PROMPT, STEP, SEED = "a red cube", 3, 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def baseline(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("dreamgaussian_baseline")


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, small_model: Path, tmp_path: Path) -> Path:
    """A small model that predicts one or the other."""
    folder = shutil.copytree(small_model, tmp_path / "model")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": request.param}))
    return folder


def distillation_alone(folder: Path, **schedule: Any) -> Config:
    """The standard recipe without a reward, few Gaussians."""
    config = preset("standard", PROMPT, str(folder))
    return dataclasses.replace(
        config,
        seed=SEED,
        device="cpu",
        schedule=dataclasses.replace(config.schedule, noises=1, **schedule),
        scene=dataclasses.replace(config.scene, gaussians=300),
        distillation=dataclasses.replace(config.distillation, runtime="torch"),
        reward=dataclasses.replace(config.reward, policy_weight=0.0, guide_weight=0.0),
    )


def cloud() -> Gaussians:
    """Gaussians that differ in all they have."""
    gaussians, generator = initial_cloud(300, seed=1), torch.Generator().manual_seed(2)
    for name in PARAMETERS:
        parameter = getattr(gaussians, name)
        parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return gaussians


@pytest.mark.parametrize("rendered", [32, 64, 128])
def test_one_view_gives_our_gradient(baseline: ModuleType, model: Path, rendered: int) -> None:
    gaussians, background, seen = cloud(), torch.tensor([[0.9, 0.8, 0.7]]), 64
    camera, timestep = look_at_origin(torch.tensor([0.7]), torch.tensor([0.3])), torch.tensor([600])
    config = distillation_alone(model)

    prior = StableDiffusionPrior(model, PriorSettings(str(model), runtime="torch"))
    prompt = prior.prompt(PROMPT)
    distill = ScoreDistillation(prior, prompt, None, config)
    seen_from = torch.tensor([[0.7, 0.3, 0.9]])
    step = Step(
        STEP, 0.0, camera.viewmats, *seen_from.T[:2], background, timestep, rendered, seen, torch.Generator()
    )
    views = gaussians.render(camera, rendered, rendered, background)
    inputs = merged(step.inputs(), distill.inputs(step))
    pictures = Seen.of(views.rgb, views.alpha, seen, inputs)._replace(variant=distill.variant(step))
    guided = distill(pictures, Gradient())
    on_rgb, _ = guided.on(views.rgb, views.alpha)
    ours = rasterize_backward(views.state, on_rgb, of_cameras=False)

    theirs = baseline.load_prior(model, PROMPT, "", CPU, None)
    theirs = theirs._replace(tokens=prior.conditions(prompt, seen_from)["tokens"][:, 0])
    noise = philox_normal((1, 4, 8, 8), SEED, NOISE_STREAM + 2 * STEP)
    leaves = baseline.leaves_of(gaussians)
    image, means2d, visible = baseline.render(leaves, camera, rendered, background, baseline.our_rasterizer)
    picture, scale = resize(image, seen), config.distillation.guidance_scale
    baseline.distillation_loss(
        theirs, picture, timestep, scale, noise, posterior_noise=torch.zeros(1, 4, 8, 8)
    ).backward()

    assert torch.allclose(image, views.rgb, atol=1e-6)
    grads = (ours.means, ours.quats, ours.scales, ours.opacities, ours.colors)
    for name, grad in zip(PARAMETERS, grads, strict=True):
        assert grad.norm() > 0, name
        assert (leaves[name].grad - grad).norm() <= 1e-3 * grad.norm(), name
    assert (means2d.grad - ours.means2d).norm() <= 1e-3 * ours.means2d.norm() > 0
    assert torch.equal(visible, views.visible)


def test_the_posterior_is_sampled(baseline: ModuleType, small_model: Path) -> None:
    prior = baseline.load_prior(small_model, PROMPT, "", CPU, None)
    picture = torch.rand(1, 3, 64, 64)
    noise, other = torch.randn(2, 1, 4, 8, 8)
    timestep = torch.tensor([400])
    losses = [
        float(baseline.distillation_loss(prior, picture, timestep, 7.5, noise, posterior_noise))
        for posterior_noise in (torch.zeros_like(other), other)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_a_run_sees_the_pictures_and_timesteps_of_ours(
    baseline: ModuleType, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(
        distillation_alone(small_model, steps=4, views=2, timestep_jitter=0.05), output=tmp_path / "run"
    )
    ours: list[tuple[Tensor, Tensor]] = []
    theirs: list[tuple[Tensor, Tensor]] = []
    guide, loss = ScoreDistillation.__call__, baseline.distillation_loss

    def recorded_guide(self: Any, seen: Seen, so_far: Gradient) -> Any:
        ours.extend(zip(seen.pictures.clone(), seen.inputs["timesteps"].clone(), strict=True))
        return guide(self, seen, so_far)

    def recorded_loss(prior: Any, picture: Tensor, timestep: Tensor, *rest: Any) -> Any:
        theirs.append((picture.detach()[0], timestep[0]))
        assert rest[0] == config.distillation.guidance_scale
        return loss(prior, picture, timestep, *rest)

    monkeypatch.setattr(ScoreDistillation, "__call__", recorded_guide)
    monkeypatch.setattr(baseline, "distillation_loss", recorded_loss)
    monkeypatch.setattr(generate, "export", lambda gaussians, folder: [])
    generate.generate(config, RunFolder.create(config), lambda row: None)
    prior = baseline.load_prior(small_model, PROMPT, "", CPU, None)
    start = first_cloud(config.scene, config.seed)
    end = baseline.optimise(config, prior, start, baseline.our_rasterizer)

    assert len(ours) == len(theirs) == config.schedule.steps * config.schedule.views
    assert [int(timestep) for _, timestep in ours] == [int(timestep) for _, timestep in theirs]
    assert [picture.shape for picture, _ in ours] == [picture.shape for picture, _ in theirs]
    for view in range(config.schedule.views):  # of the first step, where the scenes are the same
        assert torch.allclose(ours[view][0], theirs[view][0], atol=1e-5)
    for name in PARAMETERS:
        assert (getattr(end, name) - getattr(start, name)).abs().max() > 0, name


def test_a_run_makes_more_gaussians_with_their_moments(
    baseline: ModuleType, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distillation_alone(small_model, steps=6)
    config = dataclasses.replace(
        config, scene=dataclasses.replace(config.scene, densify_every=2, densify_gradient=1e-12)
    )
    steps: list[tuple[int, Tensor]] = []

    class Adam(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            super().step(closure)
            leaf = self.param_groups[0]["params"][0]
            steps.append((int(self.state[leaf]["step"]), self.state[leaf]["exp_avg"].clone()))

    monkeypatch.setattr(torch.optim, "Adam", Adam)
    prior = baseline.load_prior(small_model, PROMPT, "", CPU, None)
    start = first_cloud(config.scene, config.seed)
    end = baseline.optimise(config, prior, start, baseline.our_rasterizer)
    counts = [len(moments) for _, moments in steps]
    assert counts[:2] == [300, 300] != counts[2:4]
    assert counts[2] < counts[4]
    assert len(end) == counts[-1]
    assert [number for number, _ in steps] == [1, 2, 3, 4, 5, 6]
    leaves = baseline.leaves_of(end)
    again = baseline.gaussians_of(leaves, baseline.make_optimizer(leaves, end, 6)).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in end.state_dict().items())
    assert end.exp_avg["means"].abs().max() > 0


def test_a_run_says_what_it_took_and_what_rasterized(
    baseline: ModuleType, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(baseline, "export", lambda gaussians, folder: (folder / "asset.ply").touch())
    words = ["--prompt", PROMPT, "--model", str(small_model), "--device", "cpu", "--output", str(tmp_path)]
    baseline.main([*words, "--steps", "1", "--gaussians", "50", "--noises", "1", "--policy-weight", "0"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["rasterizer"], last["finite"]) == ("ours", True)
    assert last["seconds"].keys() == {"setup", "loop", "export", "total"}
    assert (tmp_path / "asset.ply").exists()


def test_xl_is_refused(baseline: ModuleType, small_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(small_model, tmp_path / "xl")
    (folder / "text_encoder_2").mkdir()
    with pytest.raises(InputError, match=r"^--model: expected Stable Diffusion 1\.x or 2\.x, .* got XL: "):
        baseline.load_prior(folder, PROMPT, "", CPU, None)
