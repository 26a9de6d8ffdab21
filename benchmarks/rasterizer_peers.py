"""The rasterizers that rasterizer_cuda.py compares, behind the same three operations, by their public APIs.

A scene is the arguments of `ddpo3d_fast.kernels.rasterize`, with plain colours, on the device.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast import kernels

PARAMETERS = ("means", "quats", "scales", "opacities", "colors")


class Contestant(NamedTuple):
    """One way to do the three operations; what it renders, and the gradient of the means, to be compared."""

    name: str
    rgb: Tensor  # [C, H, W, 3]
    grad_means: Tensor  # [N, 3]
    calls: Mapping[str, Callable[[], object]]  # by operation


Leaves = dict[str, Tensor]  # parameters, the means among them


def through_autograd(
    name: str,
    leaves: Leaves,
    render: Callable[[Leaves], Sequence[Tensor]],  # one image of all views, or one image a view
    upstream: Sequence[Tensor],  # d(loss)/d(image)
    rgb: Callable[[Sequence[Tensor]], Tensor],  # the images as [C, H, W, 3]
    optimizer: Callable[[list[Tensor]], Any],
) -> Contestant:
    images, wanted = render(leaves), [*leaves.values()]
    # A graph that is kept must not see its leaves change: the step has leaves of its own.
    moving = {name: leaf.detach().clone().requires_grad_() for name, leaf in leaves.items()}
    mover = optimizer([*moving.values()])

    def backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(images, wanted, upstream, retain_graph=True)

    def step() -> None:
        for leaf in moving.values():
            leaf.grad = None
        torch.autograd.backward(render(moving), upstream)
        mover.step()

    backward()  # the second one is compared: a repeated pass must be whole
    gradients = dict(zip(leaves, backward(), strict=True))
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: render(leaves),
        "backward": backward,
        "step": step,
    }
    return Contestant(name, rgb(images).detach(), gradients["means"], calls)


def leaves_of(scene: dict[str, Any]) -> Leaves:
    return {name: scene[name].clone().requires_grad_() for name in PARAMETERS}


def fused_adam(leaves: list[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(leaves, lr=0.0, fused=True)


def our_autograd(scene: dict[str, Any], upstream: Tensor) -> Contestant:
    def render(leaves: Leaves) -> list[Tensor]:
        return [kernels.rasterize(**{**scene, **leaves}).rgb]

    return through_autograd("autograd", leaves_of(scene), render, [upstream], lambda x: x[0], fused_adam)


def gsplat(scene: dict[str, Any], upstream: Tensor) -> Contestant:
    """gsplat.rasterization, all views in a call; not packed, which is the faster for few Gaussians."""
    library = importlib.import_module("gsplat")

    def render(leaves: Leaves) -> list[Tensor]:
        colors, _, _ = library.rasterization(
            **leaves,
            viewmats=scene["viewmats"],
            Ks=scene["intrinsics"],
            width=scene["width"],
            height=scene["height"],
            near_plane=0.01,
            backgrounds=scene["backgrounds"],
            packed=False,
        )
        return [colors]

    return through_autograd("gsplat", leaves_of(scene), render, [upstream], lambda x: x[0], fused_adam)


def faster_gs(scene: dict[str, Any], upstream: Tensor) -> Contestant:
    """FasterGSCudaBackend.diff_rasterize, a view a call; it takes parameters before activation."""
    library = importlib.import_module("FasterGSCudaBackend.torch_bindings")
    sh_0 = 0.28209479177387814
    before = {
        "means": scene["means"],
        "scales": scene["scales"].log(),
        "rotations": scene["quats"],
        "opacities": scene["opacities"].logit()[:, None],
        "sh_coefficients_0": ((scene["colors"] - 0.5) / sh_0)[:, None],
    }
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in before.items()}
    none = torch.empty(len(scene["means"]), 0, 3, device=scene["means"].device)
    settings = []
    for viewmat, k, background in views_of(scene):
        position = -viewmat[:3, :3].T @ viewmat[:3, 3]
        fx, fy, cx, cy = (float(k[index]) for index in ((0, 0), (1, 1), (0, 2), (1, 2)))
        settings.append(
            library.RasterizerSettings(
                w2c=viewmat, cam_position=position, bg_color=background, active_sh_bases=1,
                width=scene["width"], height=scene["height"], focal_x=fx, focal_y=fy,
                center_x=cx, center_y=cy, near_plane=0.01, far_plane=1e10, proper_antialiasing=False,
            )
        )  # fmt: skip

    def render(leaves: Leaves) -> list[Tensor]:
        return [
            library.diff_rasterize(
                **leaves,
                sh_coefficients_rest=none,
                densification_info=torch.empty(0),
                rasterizer_settings=setting,
            )
            for setting in settings
        ]

    def optimizer(leaves: list[Tensor]) -> Any:
        return library.FusedAdam([{"params": [leaf]} for leaf in leaves], lr=0.0, eps=1e-15)

    return through_autograd("faster-gs", leaves, render, channels_first(upstream), channels_last, optimizer)


def inria(scene: dict[str, Any], upstream: Tensor) -> Contestant:
    """diff_gaussian_rasterization.GaussianRasterizer, a view a call."""
    library = importlib.import_module("diff_gaussian_rasterization")
    scene = {**scene, "quats": torch.nn.functional.normalize(scene["quats"], dim=1)}
    rasterizers = []
    for viewmat, k, background in views_of(scene):
        tan_x, tan_y = 0.5 * scene["width"] / float(k[0, 0]), 0.5 * scene["height"] / float(k[1, 1])
        near, far = 0.01, 100.0
        projection = torch.zeros(4, 4, device=scene["means"].device)
        projection[0, 0], projection[1, 1], projection[3, 2] = 1 / tan_x, 1 / tan_y, 1
        projection[2, 2], projection[2, 3] = far / (far - near), -far * near / (far - near)
        settings = {
            "image_height": scene["height"], "image_width": scene["width"],
            "tanfovx": tan_x, "tanfovy": tan_y,
            "bg": background, "scale_modifier": 1.0, "viewmatrix": viewmat.T.contiguous(),
            "projmatrix": (viewmat.T @ projection.T).contiguous(), "sh_degree": 0,
            "campos": -viewmat[:3, :3].T @ viewmat[:3, 3], "prefiltered": False, "debug": False,
        }  # fmt: skip
        if "antialiasing" in library.GaussianRasterizationSettings._fields:
            settings["antialiasing"] = False
        rasterizers.append(library.GaussianRasterizer(library.GaussianRasterizationSettings(**settings)))
    means2d = torch.zeros_like(scene["means"], requires_grad=True)

    def render(leaves: Leaves) -> list[Tensor]:
        return [
            rasterizer(
                means3D=leaves["means"],
                means2D=means2d,
                opacities=leaves["opacities"][:, None],
                colors_precomp=leaves["colors"],
                scales=leaves["scales"],
                rotations=leaves["quats"],
            )[0]
            for rasterizer in rasterizers
        ]

    images = channels_first(upstream)
    return through_autograd("inria", leaves_of(scene), render, images, channels_last, fused_adam)


def views_of(scene: dict[str, Any]) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """View matrix, intrinsics and background of one view after the other."""
    return zip(scene["viewmats"], scene["intrinsics"], scene["backgrounds"], strict=True)


def channels_first(images: Tensor) -> list[Tensor]:
    return [image.permute(2, 0, 1).contiguous() for image in images]


def channels_last(images: Sequence[Tensor]) -> Tensor:
    return torch.stack([image.permute(1, 2, 0) for image in images])


Peer = Callable[[dict[str, Any], Tensor], Contestant]
PEERS: dict[str, Peer] = {"gsplat": gsplat, "faster-gs": faster_gs, "inria": inria}


def find_peers(options: argparse.Namespace) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that can be imported, and why the others cannot."""
    folders = {"faster-gs": options.faster_gs, "inria": options.inria}
    modules = {"faster-gs": "FasterGSCudaBackend.torch_bindings", "inria": "diff_gaussian_rasterization"}
    found, absent = {}, {}
    for name, peer in PEERS.items():
        if name in options.without:
            absent[name] = "left out with --without"
        elif name in folders and folders[name] is None:
            absent[name] = f"no folder given with --{name}"
        else:
            if name in folders:
                sys.path.insert(0, str(folders[name].resolve()))
            try:
                importlib.import_module(modules.get(name, name))
                found[name] = peer
            except ImportError as error:
                absent[name] = first_line(error)
    return found, absent


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"
