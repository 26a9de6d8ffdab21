"""Other projects' own models and trainers on this package's kernels, on the CPU: what held-out views reach.

    python benchmarks/clients.py [CLIENT ...] [--steps N] [--json FILE]

The scene is 3,000 coloured Gaussians on a bumpy ball, rendered by the kernels from 24 sides at 96 px; 4 more
sides are held out. Every client starts from 1,500 points of its surface. What is done to a client is
`ddpo3d_fast.compat.install()` before it is imported. Exits with 1 where one ends below 30 dB.

    pip install gsplat==1.5.3                                          gsplat-default, gsplat-mcmc
    pip install gaussian-splatting==2.11.0 opencv-python-headless      gaussian-splatting-inria, -gsplat
    pip install nerfstudio==1.1.5; pip install gsplat==1.5.3           splatfacto
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast import compat, kernels
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine

SIZE, VIEWS, HELD_OUT, ENOUGH = 96, 24, 4, 30.0  # px; ...; dB


class Scene(NamedTuple):
    """Pictures of an object, and where they were taken."""

    pictures: Tensor  # [V, H, W, 3] 0 to 1, black behind
    viewmats: Tensor  # [V, 4, 4]; the last HELD_OUT are held out
    intrinsics: Tensor  # [3, 3]
    points: Tensor  # [P, 3] of its surface
    colors: Tensor  # [P, 3]


def look_at_center(directions: Tensor) -> Tensor:
    """View matrices [V, 4, 4] of cameras 3 away in unit directions [V, 3]; y is up."""
    up = torch.tensor([0.0, 1.0, 0.0]).expand_as(directions)
    right = torch.nn.functional.normalize(torch.linalg.cross(-directions, up))
    viewmats = torch.eye(4).repeat(len(directions), 1, 1)
    viewmats[:, :3, :3] = torch.stack([right, torch.linalg.cross(-directions, right), -directions], 1)
    viewmats[:, 2, 3] = 3.0
    return viewmats


def make_scene() -> Scene:
    """The same every time."""
    g = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(3000, 3, generator=g), dim=1)
    means = directions * (0.7 + 0.15 * torch.sin(4 * directions).sum(1, keepdim=True))
    colors = 0.5 + 0.4 * torch.sin(torch.stack([5 * means[:, 0], 6 * means[:, 1] + 1, 4 * means.sum(1)], 1))
    quats = torch.randn(3000, 4, generator=g)
    scales = torch.full((3000, 3), 0.035)
    i = torch.arange(VIEWS + HELD_OUT)
    height = torch.where(i < VIEWS, 1.4 * ((i + 0.5) / VIEWS) - 0.7, (i - VIEWS - 1.5) / 3)
    azimuth, flat = i * (math.pi * (3 - math.sqrt(5))), (1 - height**2).sqrt()
    viewmats = look_at_center(torch.stack([flat * azimuth.sin(), height, flat * azimuth.cos()], 1))
    intrinsics = torch.tensor([[1.37 * SIZE, 0, SIZE / 2], [0, 1.37 * SIZE, SIZE / 2], [0, 0, 1]])
    out = kernels.rasterize(
        means,
        quats,
        scales,
        torch.full((3000,), 0.9),
        colors,
        viewmats,
        intrinsics.expand(len(i), 3, 3),
        SIZE,
        SIZE,
    )
    return Scene(out.rgb.clamp(0, 1), viewmats, intrinsics, means[:1500], colors[:1500].clamp(0, 1))


def psnr(pictures: Tensor, scene: Scene) -> float:
    """dB, of the held-out views."""
    return float(-10 * (pictures.clamp(0, 1) - scene.pictures[VIEWS:]).square().mean().log10())


def gsplat_trainer(scene: Scene, steps: int, kind: str) -> Tensor:
    """The loop of gsplat's documentation, with its own strategy."""
    import gsplat
    from gsplat.strategy import DefaultStrategy, MCMCStrategy

    from ddpo3d_fast.compat.simple_knn import distCUDA2

    gaps = distCUDA2(scene.points).sqrt()[:, None].expand(-1, 3)
    count = len(scene.points)
    params = torch.nn.ParameterDict(
        {
            "means": scene.points.clone(),
            "scales": gaps.log(),
            "quats": torch.nn.functional.normalize(torch.randn(count, 4), dim=1),
            "opacities": torch.full((count,), 0.1).logit(),
            "colors": scene.colors.clamp(0.01, 0.99).logit(),
        }
    )
    rates = {"means": 5e-4, "scales": 5e-3, "quats": 1e-3, "opacities": 5e-2, "colors": 1e-2}
    optimizers = {name: torch.optim.Adam([params[name]], lr=rate, eps=1e-15) for name, rate in rates.items()}
    early = {"refine_start_iter": 50, "refine_stop_iter": steps * 2 // 3, "refine_every": 50}
    if kind == "default":
        strategy: Any = DefaultStrategy(**early, reset_every=10**6)
        state = strategy.initialize_state(scene_scale=1.0)
    else:
        strategy = MCMCStrategy(**early, cap_max=2500, noise_lr=1e3)
        state = strategy.initialize_state()
    strategy.check_sanity(params, optimizers)

    def render(view: slice) -> tuple[Tensor, dict[str, Any]]:
        viewmats = scene.viewmats[view]
        picture, _, meta = gsplat.rasterization(
            params["means"], params["quats"], params["scales"].exp(), params["opacities"].sigmoid(),
            params["colors"].sigmoid(), viewmats, scene.intrinsics.expand(len(viewmats), 3, 3), SIZE, SIZE,
            packed=False,
        )  # fmt: skip
        return picture, meta

    for step in range(steps):
        view = step * 7 % VIEWS
        picture, meta = render(slice(view, view + 1))
        if kind == "default":
            strategy.step_pre_backward(params, optimizers, state, step, meta)
        (picture[0] - scene.pictures[view]).abs().mean().backward()
        if kind == "default":
            strategy.step_post_backward(params, optimizers, state, step, meta)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if kind == "mcmc":
            strategy.step_post_backward(params, optimizers, state, step, meta, lr=rates["means"])
    with torch.no_grad():
        return render(slice(VIEWS, None))[0]


def gaussian_splatting(scene: Scene, steps: int, backend: str) -> Tensor:
    """The PyPI package `gaussian-splatting`: its model with either back end, its trainer that densifies."""
    from gaussian_splatting import GaussianModel
    from gaussian_splatting.camera import build_camera
    from gaussian_splatting.dataset.dataset import CameraDataset
    from gaussian_splatting.models import GsplatGaussianModel
    from gaussian_splatting.trainer import BaseDensificationTrainer

    class Views(CameraDataset):
        def __init__(self, views: range) -> None:
            super().__init__()
            fov = 2 * math.atan(SIZE / 2 / float(scene.intrinsics[0, 0]))
            self.cameras = []
            for view in views:
                viewmat = scene.viewmats[view]
                camera = build_camera(SIZE, SIZE, fov, fov, viewmat[:3, :3], viewmat[:3, 3], device="cpu")
                picture = scene.pictures[view].permute(2, 0, 1)
                self.cameras.append(camera._replace(ground_truth_image=picture))

        def __len__(self) -> int:
            return len(self.cameras)

        def __getitem__(self, index: int) -> Any:
            return self.cameras[index]

    gaussians = (GaussianModel if backend == "inria" else GsplatGaussianModel)(3)
    gaussians.create_from_pcd(scene.points, scene.colors)
    dataset = Views(range(VIEWS))
    trainer = BaseDensificationTrainer(
        gaussians, dataset=dataset, densify_from_iter=100, densify_until_iter=steps // 2, densify_interval=100
    )
    for step in range(steps):
        trainer.step(dataset[step * 7 % VIEWS])
    with torch.no_grad():
        held_out = Views(range(VIEWS, VIEWS + HELD_OUT))
        return torch.stack([gaussians(camera)["render"].permute(1, 2, 0) for camera in held_out])


def splatfacto(scene: Scene, steps: int) -> Tensor:
    """nerfstudio's splatfacto model with its callbacks. Without a GPU its `.cuda()` moves nothing. Its LPIPS
    would download a network and is of no use to training: it is left out."""
    import torchmetrics.image.lpip
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.data.scene_box import SceneBox
    from nerfstudio.engine.callbacks import TrainingCallbackAttributes, TrainingCallbackLocation
    from nerfstudio.engine.optimizers import AdamOptimizerConfig, Optimizers
    from nerfstudio.models.splatfacto import SplatfactoModelConfig

    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]
    torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: None
    config = SplatfactoModelConfig(
        background_color="black",
        num_downscales=0,
        warmup_length=100,
        refine_every=100,
        stop_split_at=steps // 2,
    )
    model = config.setup(
        scene_box=SceneBox(aabb=torch.tensor([[-1.0] * 3, [1.0] * 3])),
        num_train_data=VIEWS,
        seed_points=(scene.points.clone(), scene.colors * 255),
    )
    rates = {
        "means": 1.6e-4,
        "features_dc": 2.5e-3,
        "features_rest": 1.25e-4,
        "opacities": 0.05,
        "scales": 5e-3,
    }
    rates |= {"quats": 1e-3, "camera_opt": 1e-4}
    optimizers = Optimizers(
        {
            name: {"optimizer": AdamOptimizerConfig(lr=rate, eps=1e-15), "scheduler": None}
            for name, rate in rates.items()
        },
        {name: group for name, group in model.get_param_groups().items() if group},
    )
    callbacks = model.get_training_callbacks(TrainingCallbackAttributes(optimizers, None, None, None))
    poses = torch.linalg.inv(scene.viewmats)[:, :3] * torch.tensor(
        [1.0, -1, -1, 1]
    )  # its cameras look along -z
    focal = float(scene.intrinsics[0, 0])
    cameras = Cameras(poses, focal, focal, SIZE / 2, SIZE / 2, SIZE, SIZE)
    model.train()
    for step in range(steps):
        view = step * 7 % VIEWS
        for callback in callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.BEFORE_TRAIN_ITERATION)
        optimizers.zero_grad_all()
        outputs = model.get_outputs(cameras[view : view + 1])
        losses = model.get_loss_dict(outputs, {"image": scene.pictures[view]})
        sum(losses.values()).backward()
        optimizers.optimizer_step_all()
        for callback in callbacks:
            callback.run_callback_at_location(step, TrainingCallbackLocation.AFTER_TRAIN_ITERATION)
    model.eval()
    with torch.no_grad():
        held_out = [model.get_outputs(cameras[v : v + 1])["rgb"] for v in range(VIEWS, VIEWS + HELD_OUT)]
    return torch.stack(held_out)


CLIENTS: dict[str, Callable[[Scene, int], Tensor]] = {
    "gsplat-default": lambda scene, steps: gsplat_trainer(scene, steps, "default"),
    "gsplat-mcmc": lambda scene, steps: gsplat_trainer(scene, steps, "mcmc"),
    "gaussian-splatting-inria": lambda scene, steps: gaussian_splatting(scene, steps, "inria"),
    "gaussian-splatting-gsplat": lambda scene, steps: gaussian_splatting(scene, steps, "gsplat"),
    "splatfacto": splatfacto,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=", ".join(CLIENTS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    compat.install(diff_gaussian_rasterization="inverse-depth")
    scene, rows = make_scene(), []
    for name in arguments.clients or CLIENTS:
        torch.manual_seed(0)
        start = time.perf_counter()
        pictures = CLIENTS[name](scene, arguments.steps)
        seconds = time.perf_counter() - start
        rows.append(
            {"client": name, "steps": arguments.steps, "held_out_db": round(psnr(pictures, scene), 2)}
        )
        print(f"{name:28} {rows[-1]['held_out_db']:6.2f} dB after {arguments.steps} steps, {seconds:.0f} s")
    if arguments.json:
        table = {"machine": machine(), "clients": rows}
        write_text(arguments.json, json.dumps(table, indent=1) + "\n")
    return int(any(row["held_out_db"] < ENOUGH for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
