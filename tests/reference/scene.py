"""The Gaussians: rendering, densification, relocation, the hull (docs/method.md, "Gaussians")."""

from __future__ import annotations

import math

import torch
from kernels import oracle
from torch import Tensor

from ddpo3d_fast.settings import Scene

from .draws import Cameras, look_at_origin

PARAMETERS = ("means", "quats", "log_scales", "logit_opacities", "sh")
Tensors = dict[str, Tensor]  # raw parameters [N, ...], and Adam's moments as exp_avg.NAME and exp_avg_sq.NAME


def render(
    gaussians: Tensors,
    cameras: Cameras,
    size: int,
    backgrounds: Tensor | None = None,
    offsets: Tensor | None = None,
    colors: Tensor | None = None,
) -> oracle.OracleRender:
    """`colors` [N, 3], plain ones in place of the harmonics."""
    return oracle.render(
        gaussians["means"],
        gaussians["quats"],
        gaussians["log_scales"].exp(),
        gaussians["logit_opacities"].sigmoid(),
        gaussians["sh"] if colors is None else colors,
        cameras.viewmats,
        cameras.intrinsics(size),
        size,
        size,
        sh_degree=0 if colors is None else None,
        backgrounds=None if backgrounds is None else backgrounds[:, None].repeat(1, 3),
        means2d_offsets=offsets,
    )


def seen(gaussians: Tensors, cameras: Cameras, size: int) -> Tensor:
    """[V, N] bool: a Gaussian, rendered alone, reaches an alpha of 1/255 in a view."""
    alone = [
        render({name: gaussians[name][i : i + 1] for name in PARAMETERS}, cameras, size).alpha
        for i in range(len(gaussians["means"]))
    ]
    return torch.stack([(alpha > 0).flatten(1).any(1) for alpha in alone], 1)


def rotated(quats: Tensor, vectors: Tensor) -> Tensor:
    return torch.einsum("nij,nj->ni", oracle.rotation_matrices(quats), vectors)


def outside_hull(gaussians: Tensors) -> Tensor:
    """[N] bool: the centre lies outside the scene's silhouette in any of 24 views."""
    index = torch.arange(24)
    elevation = torch.tensor([0.0, 0.35, 0.9]).double()[index % 3]
    cameras = look_at_origin(math.pi * (math.sqrt(5) - 1) * index, elevation, 3.0, math.radians(40))
    alpha = torch.nn.functional.pad(render(gaussians, cameras, 64).alpha, (1, 1, 1, 1))
    focal, view = 32 / math.tan(math.radians(20)), torch.arange(24)[:, None]
    points = torch.einsum("cij,nj->cni", cameras.viewmats[:, :3, :3], gaussians["means"])
    points = points + cameras.viewmats[:, None, :3, 3]
    # Of a pixel's centre in the padded alpha: half a pixel in, one for the rim.
    at = focal * points[..., :2] / points[..., 2:] + 32 + 0.5
    outside = ((at < 0) | (at > 65)).any(-1) | (points[..., 2] <= 0)
    at = at.clamp(0, 64.999)
    column, row = at.floor().long().unbind(-1)
    across, down = (at - at.floor()).unbind(-1)
    cover = sum(
        alpha[view, row + i, column + j] * (down if i else 1 - down) * (across if j else 1 - across)
        for i in (0, 1)
        for j in (0, 1)
    )
    return ((cover < 0.3) | outside).any(0)


def alive(gaussians: Tensors, dead_opacity: float, haze: Tensor | None) -> Tensor:
    living = gaussians["logit_opacities"].sigmoid() >= dead_opacity
    for name in PARAMETERS:
        living = living & gaussians[name].isfinite().reshape(len(living), -1).all(1)
    return living if haze is None else living & ~haze


def born(gaussians: Tensors, index: Tensor) -> Tensors:
    """Copies without a past."""
    return {
        name: torch.zeros_like(tensor[index]) if name.startswith("exp_avg") else tensor[index].clone()
        for name, tensor in gaussians.items()
    }


def densified(
    gaussians: Tensors, gradients: Tensor, scene: Scene, generator: torch.Generator, haze: Tensor | None
) -> Tensors:
    """`gradients` [N], the mean screen gradient of each."""
    living = alive(gaussians, scene.dead_opacity, haze)
    if not living.any():
        return gaussians
    wanted = [i for i in range(len(living)) if living[i] and gradients[i] >= scene.densify_gradient]
    room = max(scene.max_gaussians - int(living.sum()), 0)
    wanted = sorted(sorted(wanted, key=lambda i: -float(gradients[i]))[:room])
    longest = gaussians["log_scales"].exp().amax(1)
    small = [i for i in wanted if longest[i] <= scene.split_above]
    large = [i for i in wanted if longest[i] > scene.split_above]
    stays = [i for i in range(len(living)) if living[i] and i not in large]
    halves = born(gaussians, torch.tensor(large * 2, dtype=torch.long))
    normal = torch.randn(2 * len(large), 3, generator=generator).double()
    halves["means"] += rotated(halves["quats"], normal * halves["log_scales"].exp())
    halves["log_scales"] -= math.log(1.6)
    clones = born(gaussians, torch.tensor(small, dtype=torch.long))
    return {name: torch.cat([gaussians[name][stays], clones[name], halves[name]]) for name in gaussians}


def shared_opacity(opacity: float, number: int) -> tuple[float, float]:
    """Opacity and factor of the scales of `number` Gaussians in the place of one: eq. 9 of the MCMC paper."""
    number = min(number, 51)
    new = 1 - (1 - opacity) ** (1 / number)
    total = sum(
        math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
        for i in range(1, number + 1)
        for k in range(i)
    )
    return new, opacity / total


def relocated(gaussians: Tensors, scene: Scene, generator: torch.Generator, haze: Tensor | None) -> Tensors:
    gaussians = {name: tensor.clone() for name, tensor in gaussians.items()}
    living = alive(gaussians, scene.dead_opacity, haze)
    dead, live = (~living).nonzero()[:, 0], living.nonzero()[:, 0]
    if not len(dead) or not len(live):
        return gaussians
    opacities = gaussians["logit_opacities"].sigmoid()
    lots = torch.multinomial(opacities[live], len(dead), replacement=True, generator=generator)
    joined = live[lots]
    for i in joined.unique().tolist():
        opacity, shrink = shared_opacity(float(opacities[i]), 1 + int((joined == i).sum()))
        opacity = min(max(opacity, scene.dead_opacity), 1 - 1e-6)
        gaussians["logit_opacities"][i] = math.log(opacity / (1 - opacity))
        gaussians["log_scales"][i] += math.log(shrink)
    for name, tensor in gaussians.items():
        if name.startswith("exp_avg"):
            tensor[dead] = 0
            tensor[joined] = 0
        else:
            tensor[dead] = tensor[joined]
    normal = torch.randn(len(dead), 3, generator=generator).double()
    apart = rotated(gaussians["quats"][dead], normal * gaussians["log_scales"][dead].exp())
    gaussians["means"][dead] += 0.2 * apart
    return gaussians


def exported(gaussians: Tensors) -> Tensors:
    """What of the scene is in its asset."""

    def without(now: Tensors, haze: Tensor) -> Tensors:
        kept = {name: tensor[~haze] for name, tensor in now.items()}
        return now if bool(haze.all()) else kept

    asset = {name: tensor[alive(gaussians, 0.02, None)] for name, tensor in gaussians.items()}
    opacities = asset["logit_opacities"].sigmoid()
    distances = torch.cdist(asset["means"], asset["means"][opacities >= 0.1])
    asset = without(asset, (opacities < 0.08) & ~(distances <= 0.12).any(1))
    return without(asset, outside_hull(asset))
