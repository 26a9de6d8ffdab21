"""The scene: raw Gaussian parameters and Adam's moments; renders itself and takes image gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpo3d_fast.kernels import (
    AdamGroup,
    TileCapacity,
    adam_groups,
    rasterize_backward,
    rasterize_forward,
)
from ddpo3d_fast.scene.cameras import Cameras
from ddpo3d_fast.scene.units import pulled

PARAMETERS = ("means", "quats", "log_scales", "logit_opacities", "sh")
SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))
# Colours stay this far inside [0, 1]: at 0 itself the rasterizer's clamp would let no gradient through any
# more.
COLOR_MARGIN = 1 / 1024
DEAD_OPACITY = 0.005  # just above 1/255, below which a Gaussian is never drawn


@dataclass
class LearningRates:
    """Adam's learning rate of every raw parameter."""

    means: float  # world units
    quats: float
    log_scales: float
    logit_opacities: float
    sh: float  # a colour moves by SH_C0 times this


class Activated(NamedTuple):
    """What the numbers mean."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] w, x, y, z; normalised by the rasterizer
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3]


class Views(NamedTuple):
    """Rendered views of C cameras, and what the way back needs."""

    rgb: Tensor  # [C, H, W, 3], over the backgrounds
    alpha: Tensor  # [C, H, W]
    depth: Tensor  # [C, H, W], sum of w_i z_i
    radii: Tensor  # [C, R] int32 of the scene's R rows, 0 where not seen
    state: Any  # of rasterize_forward
    overflow: Tensor | None  # [1] int32, not 0 where there was too little room; None on the CPU

    @property
    def visible(self) -> Tensor:
        """[C, R] bool: who is drawn; nobody where there was too little room."""
        drawn = self.radii > 0
        return drawn if self.overflow is None else drawn & (self.overflow == 0)


@dataclass
class Gaussians:
    """N Gaussians as the 3DGS layout stores them: raw, before activation. All float32, contiguous and on one
    device.

    They may have memory for more (`reserve`). Rows past the N-th are transparent: nobody sees them, nothing
    moves them, and no tensor here shows them, but what is rendered and updated has a size that stays when N
    changes (`become`), as a CUDA graph needs it.
    """

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] w, x, y, z, of any length but 0
    log_scales: Tensor  # [N, 3]
    logit_opacities: Tensor  # [N]
    sh: Tensor  # [N, K, 3] spherical harmonics, K = (degree + 1)^2; colour = 0.5 + SH_C0 sh[:, 0] + ...
    exp_avg: dict[str, Tensor] = field(
        default_factory=dict, repr=False
    )  # Adam's first moment of each parameter
    exp_avg_sq: dict[str, Tensor] = field(default_factory=dict, repr=False)  # and its second
    rows: int = field(default=0, init=False)  # of memory, N or more

    def __post_init__(self) -> None:
        count = self.means.shape[0] if self.means.dim() else 0
        shapes = {
            "means": (count, 3),
            "quats": (count, 4),
            "log_scales": (count, 3),
            "logit_opacities": (count,),
        }
        for name in PARAMETERS:
            tensor = getattr(self, name)
            if tensor.dtype != torch.float32:
                raise TypeError(f"{name}: expected float32, got {tensor.dtype}")
            if name in shapes and tensor.shape != shapes[name]:
                raise ValueError(f"{name}: expected shape {shapes[name]}, got {tuple(tensor.shape)}")
            setattr(self, name, tensor.detach().contiguous())
        bases = self.sh.shape[1] if self.sh.dim() == 3 else 0
        if bases not in (1, 4, 9, 16) or self.sh.shape != (count, bases, 3):
            raise ValueError(
                f"sh: expected shape ({count}, K, 3) with K 1, 4, 9 or 16, got {tuple(self.sh.shape)}"
            )
        for moments in (self.exp_avg, self.exp_avg_sq):
            for name in PARAMETERS:
                moments.setdefault(name, torch.zeros_like(getattr(self, name)))
        self.rows = count

    def __len__(self) -> int:
        return self.means.shape[0]

    def __getitem__(self, index: slice | Tensor | list[int]) -> Gaussians:
        """A new scene of the chosen rows (a slice, indices or a mask), moments included."""
        return self.from_state_dict({name: tensor[index] for name, tensor in self.state_dict().items()})

    @property
    def device(self) -> torch.device:
        return self.means.device

    def to(self, device: torch.device | str) -> Gaussians:
        """A copy of the scene on a device, moments included."""
        return self.from_state_dict({name: tensor.to(device) for name, tensor in self.state_dict().items()})

    def reserve(self, count: int) -> None:
        """Moves into new memory with room for so many Gaussians, and up to the next power of two."""
        rows = 1 << (max(count, len(self), 1) - 1).bit_length()
        new = {name: tensor.new_zeros(rows, *tensor.shape[1:]) for name, tensor in self._tensors().items()}
        new["logit_opacities"].fill_(-torch.inf)
        for name, tensor in self._tensors().items():
            new[name][: len(self)] = tensor
        self._show(new, len(self))
        self.rows = rows

    def become(self, other: Gaussians) -> bool:
        """Takes the rows of `other`, in the memory that is here if it suffices, as the result tells."""
        fits = len(other) <= self.rows
        if not fits:
            self.reserve(len(other))
        memory = {name: self._memory(tensor) for name, tensor in self._tensors().items()}
        for name, tensor in other._tensors().items():
            memory[name][: len(other)] = tensor
        memory["logit_opacities"][len(other) :] = -torch.inf
        for moments in ("exp_avg", "exp_avg_sq"):  # so that nothing past the last row moves
            for name in PARAMETERS:
                memory[f"{moments}.{name}"][len(other) :] = 0
        self._show(memory, len(other))
        return fits

    def finite(self) -> Tensor:
        """[N] bool: every parameter of the Gaussian is a finite number."""
        tensors = [getattr(self, name) for name in PARAMETERS]
        rows = [tensor.reshape(len(self), math.prod(tensor.shape[1:])) for tensor in tensors]
        return torch.cat(rows, 1).isfinite().all(1)

    def _tensors(self) -> dict[str, Tensor]:
        """Parameters and moments, [N, ...] each, under flat names."""
        tensors = {name: getattr(self, name) for name in PARAMETERS}
        for kind, moments in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            tensors |= {f"{kind}.{name}": moments[name] for name in PARAMETERS}
        return tensors

    def _show(self, memory: dict[str, Tensor], count: int) -> None:
        """Lets parameters and moments be the first `count` rows of this memory."""
        for name in PARAMETERS:
            setattr(self, name, memory[name][:count])
            self.exp_avg[name] = memory[f"exp_avg.{name}"][:count]
            self.exp_avg_sq[name] = memory[f"exp_avg_sq.{name}"][:count]

    def memory(self, name: str) -> Tensor:
        """[R, ...] all rows of a parameter's memory."""
        return self._memory(getattr(self, name))

    def _memory(self, tensor: Tensor) -> Tensor:
        """All rows of the memory that one of the scene's tensors is the first N rows of."""
        return tensor.as_strided((self.rows, *tensor.shape[1:]), tensor.stride())

    @property
    def sh_degree(self) -> int:
        return {1: 0, 4: 1, 9: 2, 16: 3}[self.sh.shape[1]]

    def activated(self) -> Activated:
        """Scales exp(log_scales) and opacities sigmoid(logit_opacities), the rest as it is."""
        return Activated(
            self.means, self.quats, self.log_scales.exp(), self.logit_opacities.sigmoid(), self.sh
        )

    def render(
        self,
        cameras: Cameras,
        width: int,
        height: int,
        backgrounds: Tensor | None = None,
        antialiased: bool = False,
        max_entries: int | None = None,
        capacity: TileCapacity | None = None,
        offsets: dict[str, Tensor] | None = None,
    ) -> Views:
        """Renders the scene for C cameras, on the scene's device and with no autograd graph.

        Args:
            cameras: C cameras, here or on the CPU.
            width, height: image size in pixels.
            backgrounds: [C, 3] colours in [0, 1], here or on the CPU; black if None.
            antialiased: scale opacities by the root of the determinants' ratio.
            max_entries: limit to the pairs of a tile and a Gaussian, as for `rasterize`, which raises
                TooManyEntries.
            capacity: on CUDA, room for the tile lists, so that nothing waits for the device. Where it was too
                small `update` does nothing: let it grow, and do both again. None: wait, and make room.
            offsets: [R, ...] what is added to some of PARAMETERS, by name, for this rendering alone. Nothing
                can be updated by its gradient.

        Raises:
            TooManyEntries: a ValueError; the Gaussians are too large for so many or such large images.
        """
        if backgrounds is not None:
            backgrounds = backgrounds.to(self.device, non_blocking=True)
        at = {name: self.memory(name) for name in PARAMETERS}
        for name, offset in (offsets or {}).items():
            at[name] = at[name] + offset
        out, state = rasterize_forward(
            at["means"],
            at["quats"],
            at["log_scales"],
            at["logit_opacities"],
            at["sh"],
            cameras.viewmats.to(self.device, non_blocking=True),
            cameras.intrinsics(width, height).to(self.device, non_blocking=True),
            width,
            height,
            sh_degree=self.sh_degree,
            backgrounds=backgrounds,
            antialiased=antialiased,
            activated=False,
            max_entries=max_entries,
            capacity=capacity,
        )
        return Views(out.rgb, out.alpha, out.depth, out.radii, state, state.overflow)

    def update(
        self,
        views: Views,
        grad_rgb: Tensor,
        grad_alpha: Tensor | None,
        learning_rates: LearningRates,
        step: int | Tensor,
        opacity_penalty: float = 0.0,
        beta1: float = 0.9,
        beta2: float = 0.99,
        rate_scale: Tensor | None = None,
        pull: Tensor | None = None,
    ) -> Tensor:
        """One Adam step of every parameter, in place, down the gradient of a loss on the views.

        Args:
            views: what `render` returned for the parameters as they are now; nothing is updated where its
                `overflow` says so.
            grad_rgb: [C, H, W, 3] gradient of the loss with respect to `views.rgb`.
            grad_alpha: [C, H, W] with respect to `views.alpha`, or None.
            learning_rates: of every parameter.
            step: number of this update, 1 for the first; an int, or one int64 on the device.
            opacity_penalty: weight of the sum of opacities in the loss; lets what carries nothing fade away
                (3DGS-MCMC, arXiv 2404.09591).
            beta1, beta2: Adam's decays.
            rate_scale: one float32 on the device that multiplies all learning rates, or one for each of
                PARAMETERS; None: 1.
            pull: [R, C] what is added to the gradient of every row, in units (`scene.units`) and relative to
                the norm of all that the views and the penalty give; None: nothing.

        Returns:
            [C, R, 2] of the scene's R rows, the gradient with respect to the projected means, in pixels.
        """
        grads = rasterize_backward(
            views.state,
            grad_rgb,
            grad_alpha,
            opacity_penalty=opacity_penalty,
            of_cameras=False,
        )
        all_of_them = (grads.means, grads.quats, grads.scales, grads.opacities, grads.colors)
        raw = dict(zip(PARAMETERS, all_of_them, strict=True))
        if pull is not None:
            raw = pulled(raw, pull)
        groups = [
            AdamGroup(
                self.memory(name),
                grad,
                self._memory(self.exp_avg[name]),
                self._memory(self.exp_avg_sq[name]),
                getattr(learning_rates, name),
            )
            for name, grad in raw.items()
        ]
        adam_groups(groups, step, beta1=beta1, beta2=beta2, rate_scale=rate_scale, skip=views.overflow)
        if self.sh_degree == 0:
            limit = (0.5 - COLOR_MARGIN) / SH_C0
            self.memory("sh").clamp_(-limit, limit)
        return grads.means2d

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of parameters and moments under flat names: all that a checkpoint needs."""
        return {name: tensor.clone() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes parameters and moments over from `state_dict`; the number of Gaussians may be another.

        Raises:
            TypeError, ValueError: a name missing or unknown, or a tensor of the wrong dtype or shape.
        """
        loaded = self.from_state_dict(state)
        for entry in fields(self):
            setattr(self, entry.name, getattr(loaded, entry.name))

    @classmethod
    def from_state_dict(cls, state: dict[str, Tensor]) -> Gaussians:
        """A new scene from copies of what `state_dict` gave; errors as in `load_state_dict`."""
        moments = {f"{kind}.{name}": name for kind in ("exp_avg", "exp_avg_sq") for name in PARAMETERS}
        if wrong := sorted(state.keys() ^ {*PARAMETERS, *moments}):
            raise ValueError(f"state: {'unknown' if wrong[0] in state else 'missing'} entry {wrong[0]!r}")
        for moment, name in moments.items():
            if state[moment].shape != state[name].shape:
                shape, got = tuple(state[name].shape), tuple(state[moment].shape)
                raise ValueError(f"state: {moment}: expected shape {shape}, got {got}")
        return cls(
            means=state["means"].clone(),
            quats=state["quats"].clone(),
            log_scales=state["log_scales"].clone(),
            logit_opacities=state["logit_opacities"].clone(),
            sh=state["sh"].clone(),
            exp_avg={name: state[f"exp_avg.{name}"].clone() for name in PARAMETERS},
            exp_avg_sq={name: state[f"exp_avg_sq.{name}"].clone() for name in PARAMETERS},
        )


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Rotates [M, 3] vectors by [M, 4] quaternions (w, x, y, z): v + 2 w (u x v) + 2 u x (u x v)."""
    unit = torch.nn.functional.normalize(quats, dim=-1)
    w, u = unit[:, :1], unit[:, 1:]
    cross = torch.linalg.cross(u, vectors)
    return vectors + 2 * (w * cross + torch.linalg.cross(u, cross))
