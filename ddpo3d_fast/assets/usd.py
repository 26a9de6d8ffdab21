"""OpenUSD: Gaussians as a prim of the schema ParticleField3DGaussianSplat, in .usda, .usdc or .usdz.

Quaternions are w, x, y, z; scales and opacities are what they mean; the coefficients of a Gaussian's
harmonics stand behind one another. The degree and the extent are always written: the schema would take 3 for
the one, and nothing computes the other. The world has y or z up, as the stage says.

Source: OpenUSD 26.11, the schemas of usdVol.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpo3d_fast.assets.incoming import Incoming, assembled, joined
from ddpo3d_fast.assets.outgoing import Outgoing
from ddpo3d_fast.assets.raw import PlyGaussians, logits
from ddpo3d_fast.assets.turning import moved, rotation_matrices
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.extras import load
from ddpo3d_fast.files import atomic_path

UP = "y"
_SIGMAS = 3  # of a Gaussian that are inside the extent
_LARGEST = 88.0  # logarithm of a scale that float32 holds
_HARMONICS = "radiance:sphericalHarmonics"


def write(path: Path, scene: Outgoing) -> None:
    """Writes a stage with one prim, /Gaussians; all its numbers are float32. Its up axis is z where that is
    wanted, else y.

    Raises:
        InputError: the package usd-core is missing.
    """
    load("formats", "pxr", f"{path}: USD")
    from pxr import UsdUtils

    with atomic_path(path) as temporary:
        if path.suffix.lower() != ".usdz":
            _write_stage(temporary, scene)
            return
        with tempfile.TemporaryDirectory(dir=temporary.parent) as folder:
            layer = Path(folder) / "gaussians.usdc"
            _write_stage(layer, scene)
            if not UsdUtils.CreateNewUsdzPackage(str(layer), str(temporary)):
                raise InputError(f"cannot write {path}: usd-core could not make the package")


def _write_stage(path: Path, scene: Outgoing) -> None:
    from pxr import Sdf, Usd, UsdGeom, UsdVol, Vt

    stage = Usd.Stage.CreateNew(str(path))
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z if scene.up == "z" else UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    splats = UsdVol.ParticleField3DGaussianSplat.Define(stage, "/Gaussians")
    prim = splats.GetPrim()
    stage.SetDefaultPrim(prim)
    columns = [_columns(block) for block in scene.blocks()] or [_columns(_none(scene))]
    means, quats, scales, opacities, sh = (torch.cat(part).numpy() for part in zip(*columns, strict=True))
    extents = [_extent(block) for block in scene.blocks()]
    values = {
        "positions": Vt.Vec3fArray.FromNumpy(means),
        "orientations": Vt.QuatfArray.FromNumpy(quats),
        "scales": Vt.Vec3fArray.FromNumpy(scales),
        "opacities": Vt.FloatArray.FromNumpy(opacities),
        f"{_HARMONICS}Coefficients": Vt.Vec3fArray.FromNumpy(sh),
        f"{_HARMONICS}Degree": scene.gaussians.degree,
    }
    if extents:
        low, high = np.min([low for low, _ in extents], 0), np.max([high for _, high in extents], 0)
        values["extent"] = Vt.Vec3fArray.FromNumpy(np.stack([low, high]))
    with Sdf.ChangeBlock():
        for name, value in values.items():
            prim.GetAttribute(name).Set(value)
    stage.GetRootLayer().Save()


def _columns(block: PlyGaussians) -> tuple[torch.Tensor, ...]:
    """As the schema has them; numpy's rows of a quaternion are x, y, z, w."""
    scales = block.log_scales.clamp(max=_LARGEST).exp()
    return (
        block.means,
        block.quats.roll(-1, 1),
        scales,
        block.logit_opacities.sigmoid(),
        block.sh.flatten(0, 1),
    )


def _none(scene: Outgoing) -> PlyGaussians:
    return scene.gaussians.rows(slice(0))


def _extent(block: PlyGaussians) -> tuple[np.ndarray, np.ndarray]:
    """[3] and [3], least and most of what is within some standard deviations of the means."""
    scales = block.log_scales.double().clamp(max=_LARGEST).exp()
    reach = (rotation_matrices(block.quats) * scales[:, None]).norm(dim=2) * _SIGMAS
    means = block.means.double()
    low, high = (means - reach).amin(0), (means + reach).amax(0)
    return tuple(end.clamp(-3e38, 3e38).float().numpy() for end in (low, high))


def read(path: Path) -> Incoming:
    """Reads all Gaussians of a stage's default time, moved as its prims say; those of several prims behind
    one another.

    Raises:
        InputError: the package usd-core is missing, a damaged file, one without Gaussians, or a prim that
            stretches or mirrors; one line that names the file.
    """
    load("formats", "pxr", f"{path}: USD")
    from pxr import Tf, Usd, UsdGeom, UsdVol

    try:
        stage = Usd.Stage.Open(str(path))
    except Tf.ErrorException as error:
        raise InputError(f"{path}: not a USD file, or a damaged one ({first_line(error)})") from None
    cache = UsdGeom.XformCache(Usd.TimeCode.EarliestTime())
    parts = []
    for prim in stage.Traverse():
        if prim.IsA(UsdVol.ParticleField3DGaussianSplat):
            matrix = torch.from_numpy(np.array(cache.GetLocalToWorldTransform(prim))).T
            parts.append(moved(_gaussians(path, prim), matrix, f"{path}: {prim.GetPath()}"))
    if not parts:
        raise InputError(f"{path}: no Gaussians: no prim of the type ParticleField3DGaussianSplat")
    return Incoming(joined(parts), "z" if UsdGeom.GetStageUpAxis(stage) == UsdGeom.Tokens.z else "y")


def _gaussians(path: Path, prim: Any) -> PlyGaussians:
    from pxr import Usd

    def column(name: str, width: int, default: float | None = None) -> np.ndarray:
        for spelled in (name, f"{name}h"):  # the second holds half precision
            value = prim.GetAttribute(spelled).Get(Usd.TimeCode.EarliestTime())
            if value is not None and len(value) >= count:
                return np.array(value, np.float32).reshape(-1, width)
        if default is None:
            raise InputError(f"{path}: {prim.GetPath()} has no {name}, or too few of them")
        return np.full((count, width), default, np.float32)

    count = 0
    means = column("positions", 3)
    count = len(means)  # what is longer is cut, by the schema
    degree = int(prim.GetAttribute(f"{_HARMONICS}Degree").Get())
    sh = column(f"{_HARMONICS}Coefficients", 3)
    if len(sh) < count * (degree + 1) ** 2:
        raise InputError(f"{path}: {prim.GetPath()}: expected {(degree + 1) ** 2} harmonics a Gaussian")
    sh = sh[: count * (degree + 1) ** 2].reshape(count, (degree + 1) ** 2, 3)[:, :16]
    quats = column("orientations", 4)[:count]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_scales = np.log(column("scales", 3)[:count])
    alphas = torch.from_numpy(column("opacities", 1, 1.0)[:count, 0]).clamp(0, 1)
    return assembled(path, means, np.roll(quats, 1, axis=1), log_scales, logits(alphas).numpy(), sh)
