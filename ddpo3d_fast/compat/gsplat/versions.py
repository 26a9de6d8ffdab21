"""Which gsplat is meant: its numbers, and the order of its arguments."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any, NamedTuple

from ddpo3d_fast.kernels import Rules

PIP = "1.5.3"  # what pip installs, meant where there is none


class Version(NamedTuple):
    """What differs from one gsplat to another."""

    rules: Rules
    later: dict[str, Any]  # `rasterization`'s arguments after with_eval3d, and the one value that is taken


_DISTORTION = {
    "radial_coeffs": None,
    "tangential_coeffs": None,
    "thin_prism_coeffs": None,
    "ftheta_coeffs": None,
}

VERSIONS = {
    "1.5.3": Version(
        Rules(alpha_max=0.999), {**_DISTORTION, "rolling_shutter": "GLOBAL", "viewmats_rs": None}
    ),
    "1.6.0": Version(
        Rules(alpha_max=0.99, factor_min=0.005),
        {
            "return_normals": False,
            "global_z_order": True,
            "rays": None,
            **_DISTORTION,
            "lidar_coeffs": None,
            "external_distortion_coeffs": None,
            "rolling_shutter": "GLOBAL",
            "viewmats_rs": None,
            "ut_params": None,
            "extra_signals": None,
            "extra_signals_sh_degree": None,
            "renderer_config": None,
        },
    ),
}

_asked: list[str] = []  # the version that was asked for, if one was


def use(version: str | None) -> None:
    """From now on `version` is meant, "1.5.3" or "1.6.0"; None: the installed one, else what pip installs.

    ValueError for another.
    """
    if version is not None and version not in VERSIONS:
        raise ValueError(f"gsplat: expected one of {', '.join(VERSIONS)}, got {version!r}")
    _asked[:] = [] if version is None else [version]


def version() -> str:
    """The version that is meant. NotImplementedError where one is installed that is neither 1.5 nor 1.6."""
    return _asked[0] if _asked else _installed()


@cache  # every call of `rasterization` asks, and the look-up reads files
def _installed() -> str:
    try:
        installed = metadata.version("gsplat")
    except metadata.PackageNotFoundError:
        return PIP
    for known in VERSIONS:
        if installed.split("+")[0].split(".")[:2] == known.split(".")[:2]:
            return known
    raise NotImplementedError(
        f"gsplat {installed}: expected 1.5 or 1.6; ddpo3d_fast.compat.gsplat.use names one"
    )
