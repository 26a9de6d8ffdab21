"""Units in which moves of a Gaussian's parameters compare, and gradients with respect to such moves."""

from __future__ import annotations

import torch
from torch import Tensor

from ddpo3d_fast.vectors import length_across

# By raw parameter: how many numbers of a Gaussian are moved, and the move of each that counts as 1, about as
# visible as that of the others. Of a colour it is the constant harmonic; rotations stay.
UNITS: dict[str, tuple[int, float]] = {
    "sh": (3, 0.3),
    "logit_opacities": (1, 0.5),
    "log_scales": (3, 0.2),
    "means": (3, 0.02),
}
COLORS = UNITS["sh"][0]  # the first channels
CHANNELS = sum(count for count, _ in UNITS.values())


def moved_channels(moves: str) -> Tensor:
    """[C] 1 for the channels that --policy-moves names, 0 for the others."""
    return torch.tensor([float(moves == "all" or channel < COLORS) for channel in range(CHANNELS)])


def in_raw(offsets: Tensor, bases: int) -> dict[str, Tensor]:
    """Moves [R, C] in units as moves of raw parameters, by name; colours have `bases` harmonics."""
    return _split(offsets, {name: unit for name, (_, unit) in UNITS.items()}, bases)


def in_units(gradients: dict[str, Tensor]) -> Tensor:
    """Gradients with respect to raw parameters [R, ...] as one [R, C] with respect to moves in units. What is
    not finite counts as 0."""
    first = gradients | {"sh": gradients["sh"][:, 0]}
    parts = [first[name].reshape(-1, count) * unit for name, (count, unit) in UNITS.items()]
    return torch.cat(parts, 1).nan_to_num(0.0, 0.0, 0.0)


def pulled(gradients: dict[str, Tensor], pull: Tensor) -> dict[str, Tensor]:
    """Gradients with respect to raw parameters, plus `pull` [R, C] times the norm of what of each row's own
    gradient is across it.

    Norm and pull are with respect to moves in units, so that a weight means the same for every parameter; and
    the norm is each Gaussian's, so that it means the same for one that all views see and one that none does.
    """
    per_unit = {name: 1 / unit for name, (_, unit) in UNITS.items()}
    lengths = length_across(in_units(gradients), pull)[:, None]
    more = _split(lengths * pull, per_unit, gradients["sh"].shape[1])
    return {name: grad + more[name] if name in more else grad for name, grad in gradients.items()}


def _split(channels: Tensor, factors: dict[str, float], bases: int) -> dict[str, Tensor]:
    """[R, C] by raw parameter, each times its factor and of its shape."""
    parts = channels.split([count for count, _ in UNITS.values()], 1)
    raw = {name: part * factors[name] for name, part in zip(UNITS, parts, strict=True)}
    raw["logit_opacities"] = raw["logit_opacities"][:, 0]
    raw["sh"] = torch.nn.functional.pad(raw["sh"][:, None], (0, 0, 0, bases - 1))
    return raw
