"""The embedded scorer: a small image tower with a linear head that stands for an aesthetic predictor.

It ranks clean renders above degraded ones: held-out clean renders average 1, fully degraded ones 0. Trained
by `python -m ddpo3d_fast.training.scorer`."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ddpo3d_fast.engines import Engine, Network, Vjp, in_batches_of, load_network
from ddpo3d_fast.engines.torch import reproducible
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.files import read_json
from ddpo3d_fast.resampling import Resize
from ddpo3d_fast.sources import record

FOLDER = Path(__file__).resolve().parent.parent / "models" / "embedded" / "scorer"
SIZE = 64  # pixels of the tower's input
_RESIZE = Resize(SIZE, "bilinear", squash=True)


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
    size = images.shape[-1]
    if size == SIZE:
        return images
    if size % SIZE == 0:
        return avg_pool2d(images, size // SIZE)
    return _RESIZE(images)


class EmbeddedScorer:
    """The scorer of a folder with config.json and model.safetensors, run in float32.

    InputError where a file is missing or damaged.
    """

    def __init__(
        self,
        folder: Path | str = FOLDER,
        device: torch.device | str = "cpu",
        runtime: str = "auto",
        batches: tuple[int, int] | None = None,
    ) -> None:
        """`runtime` is one of `load_network`'s; `auto` is torch. `batches` are the pictures of a call of
        `score` and of `score_vjp`, where that is known, for the engines' profiles."""
        folder, self._batches = Path(folder), batches
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
        self.network.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.runtime = f"torch {torch.__version__}, {self.device.type.upper()}"
        self._engines: dict[bool, Engine] = {}  # by whether they give the gradient, too
        if runtime not in ("auto", "torch"):
            for gradient in (False, True):
                network = self.network_for_engines(gradient)
                self._engines[gradient] = load_network(network, self.device, runtime, torch.float32)
            self.runtime = self._engines[False].runtime

    def network_for_engines(self, gradient: bool) -> Network:
        """`scorer`: images [B, 3, 64, 64] to `scores` [B]. `scorer_vjp`: to `scores` and `gradient`, the
        gradient of each image's own score."""
        images = {"images": torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))}
        return Network(
            name="scorer_vjp" if gradient else "scorer",
            module=Vjp(self.network).eval() if gradient else self.network,
            inputs=images,
            outputs=("scores", "gradient") if gradient else ("scores",),
            dynamic={"images": (0,)},
            gradient=gradient,
            shapes=(in_batches_of(self._batches[gradient], images),) if self._batches else (),
        )

    def _check(self, images: Tensor) -> None:
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3] or shape[2] == 0:
            raise ValueError(f"images: expected shape [B, 3, N, N], got {list(shape)}")
        if images.dtype != torch.float32:
            raise TypeError(f"images: expected float32, got {images.dtype}")
        if images.device.type != self.device.type:
            raise ValueError(f"images: expected device {self.device}, got {images.device}")

    @torch.no_grad()
    def score(self, images: Tensor) -> Tensor:
        """images float32 [B, 3, N, N] in [0, 1] -> scores float32 [B]. ValueError or TypeError for others."""
        self._check(images)
        if len(images) == 0:  # torch's pixel_unshuffle does not take it
            return images.new_zeros(0)
        with reproducible(gradient=False):
            small = to_tower_size(images)
            return self._engines[False](images=small)["scores"] if self._engines else self.network(small)

    def score_vjp(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, 3, N, N] of each image's own score; no autograd graph."""
        self._check(images)
        if len(images) == 0:
            return images.new_zeros(0), torch.zeros_like(images)
        with torch.enable_grad(), reproducible(gradient=True):
            leaf = images.detach().clone().requires_grad_()
            small = to_tower_size(leaf)
            if self._engines:
                outputs = self._engines[True](images=small)
                (gradient,) = torch.autograd.grad(small, leaf, outputs["gradient"])
                return outputs["scores"], gradient
            scores = self.network(small)
            (gradient,) = torch.autograd.grad(scores.sum(), leaf)
        return scores.detach(), gradient
