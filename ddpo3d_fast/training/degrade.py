"""Degradations of a view, seeded and graded: what a scorer must learn to dislike.

Severity runs from 0 (untouched) to 1. The random pattern of a degradation depends on the seed alone, so that
two calls with the same seed and different severities give the same flaw, weaker and stronger. Lengths are in
pixels of a 64 px view and grow with the picture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ddpo3d_fast.training.views import composite

KINDS = ("blur", "noise", "washed", "floaters", "clipped", "swollen", "spotted")
_LUMA = torch.tensor([0.299, 0.587, 0.114])
_BLUR_SIGMA, _NOISE_SIGMA, _SWELL_SIGMA = 3.5, 0.25, 3.5
_FLOATERS, _SPOTS, _BITES = 12, 20, 4


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blurs images [B, C, N, N] by a Gaussian of `sigma` [B] pixels, renormalised at the border."""
    batch, channels, size, _ = images.shape
    at = torch.arange(size, dtype=images.dtype)
    exponent = (at[:, None] - at[None, :]) ** 2 * (-0.5 / sigma.clamp_min(0.05) ** 2)[:, None, None]
    weight = torch.exp(exponent.clamp_min(-40))  # no further: denormal numbers are slow to multiply
    weight = weight / weight.sum(-1, keepdim=True)
    rows = (images.reshape(batch, channels * size, size) @ weight.transpose(1, 2)).view(images.shape)
    columns = rows.transpose(1, 2).reshape(batch, size, channels * size)
    return (weight @ columns).view(batch, size, channels, size).transpose(1, 2)


def _random(shape: tuple[int, ...], low: float, high: float, rng: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=rng)


def _blobs(weight: Tensor, count: int, radii: tuple[float, float], rng: torch.Generator) -> Tensor:
    """[B, count, H, W]: bumps of height 1, round or long, centred where `weight` [B, H, W] is large."""
    batch, size, _ = weight.shape
    place = torch.multinomial(weight.flatten(1) + 1e-6, count, replacement=True, generator=rng)
    at = torch.arange(size, dtype=weight.dtype)
    sides = []
    for center in (place // size, place % size):
        radius = _random((batch, count, 1), *radii, rng) * size / 64
        sides.append(torch.exp((-0.5 * ((at - center[..., None]) / radius) ** 2).clamp_min(-15)))
    return sides[0][..., :, None] * sides[1][..., None, :]


def _over(layers: Tensor, strength: Tensor, tint: Tensor) -> Tensor:
    """Lays bumps of `strength` [B, K, H, W] over layers [B, C, H, W] in the mean of their tints [B, K, C]."""
    mean = torch.einsum("bkhw,bkc->bchw", strength, tint) / strength.sum(1, keepdim=True).clamp_min(1e-6)
    return torch.lerp(layers, mean, 1 - (1 - strength).prod(1, keepdim=True))


def _arrive(severity: Tensor, count: int) -> Tensor:
    """[B, count, 1, 1]: how far each of `count` bumps has come; they come in turn as severity rises."""
    return ((severity[:, None] * count - torch.arange(count)).clamp(0, 1))[..., None, None]


def _swollen(layers: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """The outline grows and rounds off; colours run outwards."""
    sigma = (0.5 + _SWELL_SIGMA * severity) * layers.shape[-1] / 64
    blurred = gaussian_blur(layers, sigma)
    coverage, alpha = blurred[:, 3:], layers[:, 3:]
    grown = torch.maximum(torch.sigmoid((coverage - 0.13) * 60) * (coverage > 0.01), alpha)
    return torch.cat([layers[:, :3] + (grown - alpha) * blurred[:, :3] / coverage.clamp_min(1e-3), grown], 1)


def _outermost(inside: Tensor, along: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Row and column, int64 [B], of the pixel of `inside` [B, H, W] that is farthest by `along` [B, H, W]."""
    top = torch.where(inside, along, -1e3).flatten(1).argmax(1)
    return top // size, top % size


def _clipped(layers: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """A side is cut off along a ragged line, or bites are taken out of the outline, one after another."""
    batch, _, size, _ = layers.shape
    unit = size / 64
    pixel = torch.arange(size, dtype=layers.dtype)
    y, x = pixel[:, None] - size / 2, pixel[None, :] - size / 2
    inside = layers[:, 3] > 0.5
    angle = _random((batch, _BITES, 1, 1), 0, 6.2832, rng)
    toward = x * angle.cos() + y * angle.sin()
    gone = torch.full_like(layers[:, 3], -1e3)  # how deep a pixel lies in what is gone, in pixels
    for k in range(_BITES):
        row, column = _outermost(inside, toward[:, k], size)
        away = ((pixel[:, None] - row[:, None, None]) ** 2 + (pixel - column[:, None, None]) ** 2).sqrt()
        radius = _arrive(0.2 + 0.8 * severity, _BITES)[:, k] * _random((batch, 1, 1), 7, 12, rng) * unit
        gone = torch.maximum(gone, torch.where(radius > 0, radius - away, -1e3))
    across = y * angle[:, 0].cos() - x * angle[:, 0].sin()
    phase, wave = _random((batch, 1, 1), 0, 6.2832, rng), _random((batch, 1, 1), 0.3, 0.7, rng) / unit
    along = toward[:, 0] + 2.5 * unit * torch.sin(wave * across + phase)
    far = torch.where(inside, along, -1e3).amax((1, 2), keepdim=True)
    near = torch.where(inside, along, 1e3).amin((1, 2), keepdim=True)
    cut = along - far + (0.08 + 0.5 * severity[:, None, None]) * (far - near).clamp_min(0)
    bitten = _random((batch, 1, 1), 0, 1, rng) < 0.6
    return layers * torch.sigmoid(-3 / unit * torch.where(bitten, gone, cut))[:, None]


def _spotted(layers: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Blotches of other colours within the outline."""
    bumps = _blobs(layers[:, 3], _SPOTS, (0.9, 2.6), rng)
    tint = _random((len(layers), _SPOTS, 3), 0, 1, rng)
    opacity = (0.55 + 0.45 * severity)[:, None, None, None] * _arrive(0.15 + 0.85 * severity, _SPOTS)
    color, alpha = layers[:, :3], layers[:, 3:]
    spotted = _over(color / alpha.clamp_min(1e-3), (1.4 * bumps).clamp_max(1) * opacity, tint)
    return torch.cat([spotted * alpha, alpha], 1)


def _washed(layers: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Saturation and contrast fade towards a pale grey; every other object also turns translucent."""
    s = severity[:, None, None, None]
    color, alpha = layers[:, :3], layers[:, 3:]
    grey = (color * _LUMA[:, None, None]).sum(1, keepdim=True)
    color = torch.lerp(color, grey.expand_as(color), 0.85 * s)
    color = torch.lerp(color, 0.7 * alpha.expand_as(color), 0.75 * s)
    thin = torch.where(_random((len(layers), 1, 1, 1), 0, 1, rng) < 0.5, 1 - 0.6 * s, 1.0)
    return torch.cat([color, alpha], 1) * thin


def _floaters(layers: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Half-transparent blobs around the object and before it, of its own colour or of any other."""
    batch, _, size, _ = layers.shape
    at = torch.linspace(-1, 1, size)
    ball = ((at[:, None] ** 2 + at[None, :] ** 2) < 0.8).float()
    beside = 1 - gaussian_blur(layers[:, 3:], torch.full((batch,), size / 32))[:, 0]
    bumps = _blobs(beside.clamp_min(0.02) ** 2 * ball, _FLOATERS, (1.2, 4.0), rng)
    mean = layers[:, :3].sum((2, 3)) / layers[:, 3:].sum((2, 3)).clamp_min(1)
    own = _random((batch, _FLOATERS, 1), 0, 1, rng) < 0.6
    like_it = mean[:, None] * _random((batch, _FLOATERS, 1), 0.5, 1.3, rng)
    tint = torch.where(own, like_it, _random((batch, _FLOATERS, 3), 0, 1, rng)).clamp(0, 1)
    opacity = _random((batch, _FLOATERS, 1, 1), 0.35, 0.85, rng) * _arrive(0.1 + 0.9 * severity, _FLOATERS)
    return _over(layers, opacity * bumps, torch.cat([tint, torch.ones(batch, _FLOATERS, 1)], 2))


def _blur(pictures: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    return gaussian_blur(pictures, (0.4 + _BLUR_SIGMA * severity) * pictures.shape[-1] / 64)


def _noise(pictures: Tensor, severity: Tensor, rng: torch.Generator) -> Tensor:
    """Gaussian noise, pixel by pixel or in grains of two pixels, in colour or grey."""
    batch, _, size, _ = pictures.shape
    fine = torch.randn(pictures.shape, generator=rng)
    coarse = interpolate(torch.randn((batch, 3, size // 2, size // 2), generator=rng), size=(size, size))
    grain = torch.where(_random((batch, 1, 1, 1), 0, 1, rng) < 0.5, fine, coarse)
    grain = torch.where(_random((batch, 1, 1, 1), 0, 1, rng) < 0.3, grain[:, :1].expand_as(grain), grain)
    return (pictures + (0.01 + _NOISE_SIGMA * severity[:, None, None, None] ** 1.5) * grain).clamp(0, 1)


_Degradation = Callable[[Tensor, Tensor, torch.Generator], Tensor]
_ON_LAYERS: tuple[tuple[str, _Degradation], ...] = (
    ("swollen", _swollen),
    ("clipped", _clipped),
    ("spotted", _spotted),
    ("washed", _washed),
    ("floaters", _floaters),
)
_ON_PICTURES: tuple[tuple[str, _Degradation], ...] = (("blur", _blur), ("noise", _noise))


def degrade(layers: Tensor, backgrounds: Tensor, severities: Tensor, seed: int) -> Tensor:
    """Pictures [B, 3, H, W] in [0, 1] of degraded views.

    layers [B, 4, H, W] (colour times coverage, coverage) and backgrounds [B, 3, H, W] as in `Views`, float32;
    severities [B, len(KINDS)] in [0, 1], one of each kind, 0 leaves it out; `seed` fixes the patterns.
    ValueError for severities of another shape or range.
    """
    if severities.shape != (len(layers), len(KINDS)):
        expected = (len(layers), len(KINDS))
        raise ValueError(f"severities: expected shape {expected}, got {tuple(severities.shape)}")
    if not bool(((severities >= 0) & (severities <= 1)).all()):
        raise ValueError("severities: expected values from 0 to 1")

    def apply(images: Tensor, kind: str, degradation: _Degradation) -> Tensor:
        index = KINDS.index(kind)
        rows = severities[:, index].nonzero()[:, 0]
        if len(rows) == 0:
            return images
        rng = torch.Generator().manual_seed(len(KINDS) * seed + index)
        images = images.clone()
        images[rows] = degradation(images[rows], severities[rows, index], rng)
        return images

    for kind, degradation in _ON_LAYERS:
        layers = apply(layers, kind, degradation)
    pictures = composite(layers, backgrounds)
    for kind, degradation in _ON_PICTURES:
        pictures = apply(pictures, kind, degradation)
    return pictures.clamp(0, 1)


def single(kind: str, severity: Tensor) -> Tensor:
    """Severities [B, len(KINDS)] of one kind at `severity` [B]."""
    return severity[:, None] * torch.eye(len(KINDS))[KINDS.index(kind)]
