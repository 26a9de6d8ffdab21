"""The procedural objects: signed-distance primitives, a builder a class, in the unit ball, y up, front to +z.

Every class is a function of `vary(low, high)`, which draws the proportions of one individual; the mean
individual (`mean_object`) is the reference shape against which generated assets are measured. A primitive
carries the index of its material (0 the main one, 1 the second), so one rendering can be recoloured any
number of times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ddpo3d_fast.rewards.colour import COLOURS

Vary = Callable[[float, float], float]
Rgb = tuple[float, float, float]

_PROMPTED = "red orange yellow green blue purple pink brown black white gray"
COLORS = {name: COLOURS[name] for name in _PROMPTED.split()}
MATERIALS = 4
_WOOD: Rgb = (0.45, 0.27, 0.13)
_DARK: Rgb = (0.12, 0.12, 0.13)
_WHITE: Rgb = (0.95, 0.95, 0.95)
_GLASS: Rgb = (0.60, 0.82, 0.95)
_STEEL: Rgb = (0.55, 0.55, 0.58)


@dataclass(frozen=True)
class Primitive:
    """One signed-distance body. `size` means, by kind:

    ellipsoid, dome (its upper half), hull (its lower half): three semi-axes;
    box: three half-sizes and a rounding;
    cone (capped, along y): half-height, radius below, radius above;
    torus (around y): ring radius, tube radius;
    capsule (along y): half-length, radius;
    gable, sail (triangular prisms along x): half-sizes x, y, z.
    """

    kind: str
    center: tuple[float, float, float]
    size: tuple[float, ...]
    material: int = 0
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    carve: bool = False  # taken away from the rest, not added


def _turn(axis: int, angle: float) -> np.ndarray:
    """Right-handed rotation [3, 3] about x, y or z (axis 0, 1, 2) by `angle` radians."""
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation[i, i], rotation[i, j], rotation[j, i], rotation[j, j] = c, -s, s, c
    return rotation


def _ball(vary: Vary) -> list[Primitive]:
    return [Primitive("ellipsoid", (0, 0, 0), (0.7 * vary(0.92, 1.08),) * 3)]


def _cube(vary: Vary) -> list[Primitive]:
    half = 0.52 * vary(0.92, 1.08)
    return [Primitive("box", (0, 0, 0), (half, half, half, 0.04))]


def _cone(vary: Vary) -> list[Primitive]:
    return [Primitive("cone", (0, 0, 0), (0.72 * vary(0.93, 1.07), 0.55 * vary(0.9, 1.1), 0.02))]


def _cylinder(vary: Vary) -> list[Primitive]:
    height, radius = 0.65 * vary(0.9, 1.1), 0.42 * vary(0.9, 1.1)
    return [Primitive("cone", (0, 0, 0), (height, radius, radius))]


def _donut(vary: Vary) -> list[Primitive]:
    tube = 0.27 * vary(0.9, 1.1)
    return [
        Primitive("torus", (0, -0.05, 0), (0.5, tube), 1),
        Primitive("torus", (0, 0.03, 0), (0.5, tube * 0.99), 0),
    ]


def _mushroom(vary: Vary) -> list[Primitive]:
    width = 0.68 * vary(0.93, 1.07)
    parts = [
        Primitive("cone", (0, -0.38, 0), (0.4, 0.24 * vary(0.88, 1.15), 0.17), 1),
        Primitive("dome", (0, -0.02, 0), (width, 0.55 * vary(0.93, 1.07), width)),
    ]
    for azimuth, elevation in ((0, 0.5), (1.26, 0.55), (2.51, 0.5), (3.77, 0.55), (5.03, 0.5), (0, 1.5)):
        reach = width * math.cos(elevation)
        spot = (math.sin(azimuth) * reach, math.sin(elevation) * 0.55 - 0.02, math.cos(azimuth) * reach)
        parts.append(Primitive("ellipsoid", spot, (0.13, 0.11, 0.13), 2))
    return parts


def _snowman(vary: Vary) -> list[Primitive]:
    k = vary(0.94, 1.06)
    parts = [
        Primitive("ellipsoid", (0, -0.5, 0), (0.42 * k, 0.4, 0.42 * k)),
        Primitive("ellipsoid", (0, 0.05, 0), (0.31 * k,) * 3),
        Primitive("ellipsoid", (0, 0.45, 0), (0.23,) * 3),
        Primitive("cone", (0, 0.45, 0.33), (0.12, 0.055, 0.01), 2, _turn(0, math.pi / 2)),
        Primitive("cone", (0, 0.65, 0), (0.02, 0.3, 0.3), 1),
        Primitive("cone", (0, 0.78, 0), (0.13, 0.19, 0.19), 1),
    ]
    parts += [Primitive("ellipsoid", (x, 0.53, 0.19), (0.045,) * 3, 1) for x in (-0.09, 0.09)]
    parts += [Primitive("ellipsoid", (0, y, 0.3 * k), (0.045,) * 3, 1) for y in (-0.02, 0.15)]
    return parts


def _tree(vary: Vary) -> list[Primitive]:
    width = vary(0.9, 1.1)
    trunk = Primitive("cone", (0, -0.65, 0), (0.22, 0.12, 0.11), 1)
    tiers = ((-0.22, 0.3, 0.58), (0.16, 0.28, 0.46), (0.52, 0.26, 0.33))
    return [trunk] + [Primitive("cone", (0, y, 0), (half, radius * width, 0.02)) for y, half, radius in tiers]


def _house(vary: Vary) -> list[Primitive]:
    width, depth = 0.5 * vary(0.93, 1.07), 0.45 * vary(0.93, 1.07)
    return [
        Primitive("box", (0, -0.3, 0), (width, 0.38, depth, 0.01)),
        Primitive("gable", (0, 0.33, 0), (width * 1.18, 0.27, depth * 1.15), 1),
        Primitive("box", (0, -0.45, depth), (0.11, 0.23, 0.025), 2),
        Primitive("box", (-0.3, -0.2, depth), (0.1, 0.1, 0.025), 3),
        Primitive("box", (0.3, -0.2, depth), (0.1, 0.1, 0.025), 3),
        Primitive("box", (width, -0.2, 0), (0.025, 0.11, 0.13), 3),
        Primitive("box", (-width, -0.2, 0), (0.025, 0.11, 0.13), 3),
        Primitive("box", (0.28, 0.42, -0.1), (0.07, 0.24, 0.07), 2),
    ]


def _rocket(vary: Vary) -> list[Primitive]:
    r = 0.26 * vary(0.93, 1.1)
    parts = [
        Primitive("cone", (0, -0.1, 0), (0.45, r, r * 0.95)),
        Primitive("cone", (0, 0.55, 0), (0.22, r * 0.97, 0.02), 1),
        Primitive("cone", (0, -0.63, 0), (0.1, 0.2, 0.13), 2),
        Primitive("ellipsoid", (0, 0.15, r * 0.95), (0.12, 0.12, 0.05), 3),
    ]
    for quarter in range(4):
        around = _turn(1, (quarter + 0.5) * math.pi / 2)
        x, y, z = around @ np.array([0, -0.45, r + 0.12])
        parts.append(Primitive("box", (x, y, z), (0.04, 0.22, 0.14, 0.01), 1, around @ _turn(0, 0.35)))
    return parts


def _mug(vary: Vary) -> list[Primitive]:
    r, h = 0.45 * vary(0.94, 1.06), 0.5 * vary(0.93, 1.07)
    return [
        Primitive("cone", (-0.12, 0, 0), (h, r, r)),
        Primitive("torus", (-0.12 + r, 0, 0), (0.27, 0.075), 0, _turn(0, math.pi / 2)),
        Primitive("cone", (-0.12, 0.15, 0), (h, r * 0.84, r * 0.84), 1, carve=True),
        Primitive("cone", (-0.12, -0.1, 0), (h * 0.6, r * 0.86, r * 0.86), 1),
    ]


def _table(vary: Vary) -> list[Primitive]:
    w, d = 0.68 * vary(0.93, 1.07), 0.5 * vary(0.9, 1.12)
    legs = [(x * (w - 0.1), z * (d - 0.1)) for x in (-1, 1) for z in (-1, 1)]
    top = Primitive("box", (0, 0.28, 0), (w, 0.07, d, 0.01))
    return [top] + [Primitive("box", (x, -0.2, z), (0.07, 0.45, 0.07), 1) for x, z in legs]


def _chair(vary: Vary) -> list[Primitive]:
    w = 0.38 * vary(0.93, 1.1)
    legs = [(x * (w - 0.06), z * (w - 0.06)) for x in (-1, 1) for z in (-1, 1)]
    seat = Primitive("box", (0, -0.12, 0), (w, 0.06, w, 0.01))
    back = Primitive("box", (0, 0.38, -w + 0.05), (w, 0.45, 0.06, 0.01))
    return [seat, back] + [Primitive("box", (x, -0.47, z), (0.06, 0.32, 0.06), 1) for x, z in legs]


def _car(vary: Vary) -> list[Primitive]:
    length = 0.8 * vary(0.95, 1.05)
    parts = [
        Primitive("box", (0, -0.18, 0), (0.36, 0.17, length, 0.06)),
        Primitive("box", (0, 0.1, -0.08), (0.31, 0.19, 0.42, 0.06)),
        Primitive("box", (0, 0.12, -0.08), (0.325, 0.1, 0.34, 0.01), 2),
        Primitive("box", (0, 0.12, -0.08), (0.25, 0.1, 0.435, 0.01), 2),
    ]
    for x in (-1, 1):
        for z in (-0.48, 0.48):
            parts.append(
                Primitive("cone", (x * 0.34, -0.33, z), (0.08, 0.19, 0.19), 1, _turn(2, math.pi / 2))
            )
        parts.append(Primitive("ellipsoid", (x * 0.22, -0.14, length), (0.08, 0.07, 0.04), 3))
    return parts


def _apple(vary: Vary) -> list[Primitive]:
    k = vary(0.94, 1.06)
    return [
        Primitive("torus", (0, 0.02, 0), (0.26 * k, 0.42)),
        Primitive("ellipsoid", (0, -0.12, 0), (0.6 * k, 0.5, 0.6 * k)),
        Primitive("cone", (0.02, 0.5, 0), (0.16, 0.04, 0.05), 1, _turn(2, -0.15)),
        Primitive("ellipsoid", (0.17, 0.57, 0), (0.17, 0.05, 0.09), 2, _turn(2, 0.4)),
    ]


def _lamp(vary: Vary) -> list[Primitive]:
    w = vary(0.93, 1.1)
    return [
        Primitive("cone", (0, -0.75, 0), (0.05, 0.34, 0.3), 1),
        Primitive("cone", (0, -0.25, 0), (0.5, 0.065, 0.065), 1),
        Primitive("cone", (0, 0.4, 0), (0.3, 0.52 * w, 0.28 * w)),
    ]


def _bottle(vary: Vary) -> list[Primitive]:
    r = 0.3 * vary(0.92, 1.08)
    return [
        Primitive("cone", (0, -0.3, 0), (0.48, r, r)),
        Primitive("cone", (0, 0.3, 0), (0.14, r, 0.11)),
        Primitive("cone", (0, 0.52, 0), (0.14, 0.11, 0.11)),
        Primitive("cone", (0, 0.7, 0), (0.07, 0.13, 0.13), 1),
        Primitive("cone", (0, -0.28, 0), (0.2, r + 0.01, r + 0.01), 2),
    ]


def _hat(vary: Vary) -> list[Primitive]:
    r = 0.42 * vary(0.93, 1.07)
    return [
        Primitive("cone", (0, -0.35, 0), (0.05, 0.8, 0.8)),
        Primitive("cone", (0, 0.08, 0), (0.43, r, r * 1.03)),
        Primitive("cone", (0, -0.2, 0), (0.1, r + 0.015, r + 0.015), 1),
    ]


def _cactus(vary: Vary) -> list[Primitive]:
    k, across = vary(0.88, 1.12), _turn(2, math.pi / 2)
    return [
        Primitive("capsule", (0, 0.08, 0), (0.48, 0.2)),
        Primitive("capsule", (0.33, 0, 0), (0.14, 0.11), 0, across),
        Primitive("capsule", (0.45, 0.2 * k, 0), (0.2, 0.11)),
        Primitive("capsule", (-0.33, -0.12, 0), (0.14, 0.11), 0, across),
        Primitive("capsule", (-0.45, 0.08 * k, 0), (0.2, 0.11)),
        Primitive("cone", (0, -0.62, 0), (0.2, 0.26, 0.36), 1),
    ]


def _cake(vary: Vary) -> list[Primitive]:
    r = 0.6 * vary(0.94, 1.06)
    parts = [
        Primitive("cone", (0, -0.3, 0), (0.25, r, r)),
        Primitive("cone", (0, -0.02, 0), (0.06, r * 1.03, r * 1.03), 1),
        Primitive("cone", (0, 0.2, 0), (0.18, r * 0.6, r * 0.6)),
        Primitive("cone", (0, 0.4, 0), (0.05, r * 0.63, r * 0.63), 1),
    ]
    candles = [(0.2 * math.sin(i * 2.1), 0.56, 0.2 * math.cos(i * 2.1)) for i in range(3)]
    return parts + [Primitive("cone", place, (0.13, 0.045, 0.045), 2) for place in candles]


def _duck(vary: Vary) -> list[Primitive]:
    k = vary(0.94, 1.06)
    return [
        Primitive("ellipsoid", (0, -0.25, -0.05), (0.42 * k, 0.36, 0.6)),
        Primitive("ellipsoid", (0, 0.3, 0.32), (0.29 * k,) * 3),
        Primitive("ellipsoid", (0, 0.25, 0.64), (0.15, 0.06, 0.16), 1),
        Primitive("ellipsoid", (0.13, 0.4, 0.53), (0.05,) * 3, 2),
        Primitive("ellipsoid", (-0.13, 0.4, 0.53), (0.05,) * 3, 2),
        Primitive("ellipsoid", (0.4 * k, -0.2, -0.1), (0.08, 0.18, 0.32), 0, _turn(0, 0.2)),
        Primitive("ellipsoid", (-0.4 * k, -0.2, -0.1), (0.08, 0.18, 0.32), 0, _turn(0, 0.2)),
        Primitive("cone", (0, 0, -0.62), (0.16, 0.2, 0.03), 0, _turn(0, -0.8)),
    ]


def _robot(vary: Vary) -> list[Primitive]:
    w = vary(0.93, 1.07)
    parts = [
        Primitive("box", (0, -0.05, 0), (0.32 * w, 0.32, 0.22, 0.03)),
        Primitive("box", (0, 0.5, 0), (0.24, 0.18, 0.2, 0.03)),
        Primitive("cone", (0, 0.77, 0), (0.1, 0.025, 0.025), 1),
        Primitive("ellipsoid", (0, 0.86, 0), (0.06,) * 3, 2),
        Primitive("box", (0, 0, 0.22), (0.17, 0.12, 0.02), 1),
    ]
    for x in (-1, 1):
        parts += [
            Primitive("ellipsoid", (x * 0.1, 0.53, 0.2), (0.06, 0.06, 0.04), 2),
            Primitive("box", (x * (0.32 * w + 0.1), -0.02, 0), (0.07, 0.28, 0.08, 0.02), 1),
            Primitive("box", (x * 0.16, -0.6, 0), (0.09, 0.25, 0.1, 0.02), 1),
        ]
    return parts


def _boat(vary: Vary) -> list[Primitive]:
    length = 0.75 * vary(0.94, 1.06)
    return [
        Primitive("hull", (0, -0.45, 0), (0.32, 0.36, length)),
        Primitive("cone", (0, 0.2, 0.05), (0.55, 0.05, 0.05), 1),
        Primitive("sail", (0, 0.25, 0), (0.035, 0.45, 0.5), 2),
    ]


def _airplane(vary: Vary) -> list[Primitive]:
    s = vary(0.94, 1.06)
    return [
        Primitive("capsule", (0, 0, 0), (0.55, 0.17), 0, _turn(0, math.pi / 2)),
        Primitive("box", (0, -0.02, 0.08), (0.78 * s, 0.045, 0.2, 0.01), 1),
        Primitive("box", (0, 0.03, -0.62), (0.3, 0.04, 0.11, 0.01), 1),
        Primitive("box", (0, 0.2, -0.62), (0.04, 0.2, 0.11, 0.01), 1),
        Primitive("ellipsoid", (0, 0.13, 0.42), (0.1, 0.1, 0.15), 2),
    ]


@dataclass(frozen=True)
class ObjectClass:
    """A builder, the colour the object has when a prompt names none, and the colours of materials 1 to 3."""

    build: Callable[[Vary], list[Primitive]]
    default_color: str
    details: tuple[Rgb, ...] = ()


CLASSES: dict[str, ObjectClass] = {
    "ball": ObjectClass(_ball, "red"),
    "cube": ObjectClass(_cube, "blue"),
    "cone": ObjectClass(_cone, "orange"),
    "cylinder": ObjectClass(_cylinder, "green"),
    "donut": ObjectClass(_donut, "pink", ((0.80, 0.55, 0.28),)),
    "mushroom": ObjectClass(_mushroom, "red", ((0.93, 0.88, 0.75), _WHITE)),
    "snowman": ObjectClass(_snowman, "white", (_DARK, (0.95, 0.50, 0.10))),
    "tree": ObjectClass(_tree, "green", (_WOOD,)),
    "house": ObjectClass(_house, "white", ((0.70, 0.20, 0.15), _WOOD, _GLASS)),
    "rocket": ObjectClass(_rocket, "white", ((0.85, 0.12, 0.12), _STEEL, _GLASS)),
    "mug": ObjectClass(_mug, "blue", ((0.35, 0.20, 0.10),)),
    "table": ObjectClass(_table, "brown", (_WOOD,)),
    "chair": ObjectClass(_chair, "brown", (_WOOD,)),
    "car": ObjectClass(_car, "red", (_DARK, _GLASS, (0.95, 0.90, 0.50))),
    "apple": ObjectClass(_apple, "red", (_WOOD, (0.15, 0.65, 0.20))),
    "lamp": ObjectClass(_lamp, "yellow", (_STEEL,)),
    "bottle": ObjectClass(_bottle, "green", (_WOOD, _WHITE)),
    "hat": ObjectClass(_hat, "black", ((0.85, 0.12, 0.12),)),
    "cactus": ObjectClass(_cactus, "green", ((0.80, 0.42, 0.22),)),
    "cake": ObjectClass(_cake, "pink", (_WHITE, (0.95, 0.80, 0.20))),
    "duck": ObjectClass(_duck, "yellow", ((0.95, 0.50, 0.10), _DARK)),
    "robot": ObjectClass(_robot, "gray", ((0.30, 0.32, 0.36), (0.85, 0.12, 0.12))),
    "boat": ObjectClass(_boat, "brown", (_WOOD, _WHITE)),
    "airplane": ObjectClass(_airplane, "white", ((0.30, 0.45, 0.85), _GLASS)),
}
CLASS_NAMES = tuple(CLASSES)
COLOR_NAMES = tuple(COLORS)


def random_object(name: str, rng: np.random.Generator) -> list[Primitive]:
    """One individual of the class, its proportions drawn from `rng`."""
    return CLASSES[name].build(lambda low, high: float(rng.uniform(low, high)))


def mean_object(name: str) -> list[Primitive]:
    """The individual with every proportion at the middle of its range: the class's true shape."""
    return CLASSES[name].build(lambda low, high: 0.5 * (low + high))


def material_colors(name: str, color: str | None = None, second: str | None = None) -> np.ndarray:
    """[4, 3] float32 in [0, 1]: the main colour (the class's own if None), the second material's, details."""
    details = list(CLASSES[name].details)
    if second is not None:
        details[:1] = [COLORS[second]]
    palette = [COLORS[color or CLASSES[name].default_color], *details]
    palette += [palette[0]] * (MATERIALS - len(palette))
    return np.array(palette, dtype=np.float32)
