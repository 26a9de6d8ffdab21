"""The embedded scorer: a small image tower with a linear head that stands for an aesthetic predictor.

It ranks clean renders above degraded ones: held-out clean renders average 1, fully degraded ones 0. Trained
by `python -m ddpo3d_fast.training.scorer`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpo3d_fast.engines import Engine, Network, Vjp, in_batches_of, load_network
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json
from ddpo3d_fast.resampling import scaled, scaled_vjp
from ddpo3d_fast.rewards.base import RewardSettings, check_images
from ddpo3d_fast.sources import record

FOLDER = Path(__file__).resolve().parent.parent / "models" / "embedded" / "scorer"
SIZE = 64  # pixels of the tower's input
GRAPHS = ("model.onnx", "vjp.onnx")  # of the scores; of these and their gradient


def make_tower(widths: tuple[int, ...], depths: tuple[int, ...], normalize: bool) -> nn.Sequential:
    """Convolutions and SiLU, halving the picture before the first level and at each further one.

    `normalize` puts a batch norm behind every convolution, for training; it folds away before shipping.
    """
    layers: list[nn.Module] = [nn.PixelUnshuffle(2)]
    inside = 3 * 4
    for level, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for repeat in range(depth):
            stride = 2 if level > 0 and repeat == 0 else 1
            layers.append(nn.Conv2d(inside, width, 3, stride, 1, bias=not normalize))
            layers += [nn.BatchNorm2d(width), nn.SiLU()] if normalize else [nn.SiLU()]
            inside = width
    return nn.Sequential(*layers)


class ScorerNetwork(nn.Module):
    """Pictures [B, 3, 64, 64] in [0, 1] -> scores [B]. Made of operations whose VJP exports to ONNX."""

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], normalize: bool = False) -> None:
        super().__init__()
        self.tower = make_tower(widths, depths, normalize)
        self.head = nn.Linear(widths[-1], 1)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.tower(pictures * 2 - 1).mean((2, 3)))[:, 0]


def to_tower_size(images: Tensor) -> Tensor:
    """Images [B, 3, N, N] at 64 px: the mean over pixel blocks where 64 divides N, bilinear otherwise."""
    return images if images.shape[-1] == SIZE else scaled(images, SIZE)


def embedded_reward(source: str, wanted: RewardSettings) -> EmbeddedReward:
    """`embedded`: how clean a render looks, whatever its prompt. Takes no source."""
    return EmbeddedReward(wanted)


class EmbeddedReward:
    """The scorer of a folder with config.json and model.safetensors, run in float32: half precision would
    round as much as the rewards differ that a policy compares. Where `wanted` says auto, that is torch on a
    GPU, and on a CPU what is fastest there, by the graphs in the folder. InputError where a file is missing
    or damaged, or the runtime is not to be had."""

    name, differentiable, capturable = "embedded", True, True

    def __init__(self, wanted: RewardSettings | None = None, folder: Path | str = FOLDER) -> None:
        """`wanted` is as on the CPU if left out."""
        self.wanted, self.folder = wanted or RewardSettings(), Path(folder)
        folder = self.folder
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise InputError(f"scorer: {folder / name} is missing")
        try:
            config = read_json(folder / "config.json", "a scorer's configuration")
            weights = load_file(folder / "model.safetensors")
            self.network = ScorerNetwork(tuple(config["widths"]), tuple(config["depths"]))
            self.network.load_state_dict({name: weight.float() for name, weight in weights.items()})
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise InputError(f"scorer: {folder} is damaged: {str(error).splitlines()[0]}") from error
        record(folder)
        self.device = torch.device(self.wanted.device)
        self.network.to(self.device).eval().requires_grad_(False)

    @property
    def runtime(self) -> str:
        """For people: what runs it."""
        return self._scorer.runtime

    def prepare(self, gradient: bool) -> None:
        """Loads, or builds, the engines that would else be made at their first call."""
        _ = self._scorer
        if gradient:
            _ = self._scorer_vjp

    @torch.no_grad()
    def score(self, images: Tensor, prompts: Sequence[str] = ()) -> Tensor:
        """images float32 [B, 3, N, N] in [0, 1] -> scores float32 [B]. ValueError or TypeError for others."""
        check_images(images, self.device, square=True)
        if len(images) == 0:  # torch's pixel_unshuffle does not take it
            return images.new_zeros(0)
        return self._scorer(images=to_tower_size(images))["scores"]

    @torch.no_grad()
    def score_vjp(self, images: Tensor, prompts: Sequence[str] = ()) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, N, N] of each image's own score; no autograd graph."""
        check_images(images, self.device, square=True)
        if len(images) == 0:
            return images.new_zeros(0), torch.zeros_like(images)
        outputs, side = self._scorer_vjp(images=to_tower_size(images)), images.shape[-1]
        gradient = outputs["gradient"]
        return outputs["scores"], gradient if side == SIZE else scaled_vjp(gradient, side)

    def network_for_engines(self, gradient: bool) -> Network:
        """`scorer`: images [B, 3, 64, 64] to `scores` [B]. `scorer_vjp`: to `scores` and `gradient`, the
        gradient of each image's own score."""
        images = {"images": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))}
        batches, graph = self.wanted.batches, self.folder / GRAPHS[gradient]
        return Network(
            name="scorer_vjp" if gradient else "scorer",
            module=Vjp(self.network).eval() if gradient else self.network,
            inputs=images,
            outputs=("scores", "gradient") if gradient else ("scores",),
            dynamic={"images": (0,)},
            gradient=gradient,
            shapes=(in_batches_of(batches[gradient], images),) if batches else (),
            graph=graph if graph.is_file() else None,
            channels_last=False,
        )

    @functools.cached_property
    def _scorer(self) -> Engine:
        return self._engine(gradient=False)

    @functools.cached_property
    def _scorer_vjp(self) -> Engine:
        return self._engine(gradient=True)

    def _engine(self, gradient: bool) -> Engine:
        network, runtime = self.network_for_engines(gradient), self.wanted.runtime
        if runtime == "auto" and (self.device.type != "cpu" or network.graph is None):
            runtime = "torch"  # to build an engine takes longer than the scorer has to compute in a run
        return load_network(network, self.device, runtime, torch.float32)
