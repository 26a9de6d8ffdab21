"""What `rasterization` takes, and what it says of the rest."""

from __future__ import annotations

from enum import Enum
from typing import Any

from torch import Tensor

from .versions import VERSIONS

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


def expect_supported(
    version: str, later: tuple[Any, ...], named: dict[str, Any], **early: tuple[object, object]
) -> None:
    """NotImplementedError for an argument that has another value than the one that is supported.

    Args:
        later, named: what came behind with_eval3d, by place and by name.
        early: of the arguments before, what came and what is supported.
    """
    known = VERSIONS[version].later
    if len(later) > len(known) or named.keys() - known.keys():
        wrong = ", ".join(sorted(named.keys() - known.keys())) or f"{len(later)} arguments behind with_eval3d"
        raise TypeError(f"rasterization: gsplat {version} has no argument {wrong}")
    for name, value in (*zip(known, later, strict=False), *named.items()):
        supported = known[name]
        plain = value.name if isinstance(value, Enum) else value  # rolling_shutter
        if type(plain) is not type(supported) or plain != supported:
            raise NotImplementedError(f"{name}: expected {supported}, got {value!r}")
    for name, (value, expected) in early.items():
        if value != expected:
            raise NotImplementedError(f"{name}: expected {expected!r}, got {value!r}")


def expect_mode(render_mode: str, rasterize_mode: str) -> None:
    """NotImplementedError for a mode that is not supported."""
    if render_mode not in RENDER_MODES:
        raise NotImplementedError(
            f"render_mode: expected one of {', '.join(RENDER_MODES)}, got {render_mode!r}"
        )
    if rasterize_mode not in ("classic", "antialiased"):
        raise NotImplementedError(f"rasterize_mode: expected classic or antialiased, got {rasterize_mode!r}")


def expect_shape(name: str, tensor: Tensor | None, *shapes: tuple[int | None, ...]) -> Tensor:
    """`tensor`, if it has one of the shapes, in which None is any size. ValueError if not."""
    if tensor is None:
        raise ValueError(f"{name}: expected a tensor, got None")
    for shape in shapes:
        if tensor.dim() == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
        ):
            return tensor
    words = " or ".join(str(["*" if size is None else size for size in shape]) for shape in shapes)
    raise ValueError(f"{name}: expected shape {words.replace(chr(39), '')}, got {list(tensor.shape)}")
