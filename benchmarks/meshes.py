"""What becomes of assets as meshes: time, faces, closed or not, silhouettes, pictures; refined, too.

    python benchmarks/meshes.py ASSETS [--refine-steps N] [--sheet FILE.png] [--json FILE]

ASSETS holds the run folders that `benchmarks/quality.py --assets ASSETS` keeps (of its 12 prompts and two
seeds). For each the mesh is made as the command `mesh` makes it, and compared, in quality.py's eight held-out
views at 128 px on white: its silhouettes with those of the true object and of the Gaussians (IoU), its
pictures with those of the Gaussians and of the true object in the prompt's colour (PSNR over all pixels).
Seconds count from the Gaussians in memory to the .glb on the disk; cpu_seconds are those of all threads.
With --refine-steps the pictures are compared again after so many steps. The sheet shows, for each asset, four
views of the Gaussians, the mesh, the refined mesh and the true object.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import torch
import trimesh
from quality import ELEVATION, START, VIEWS, held_out_views, silhouette_iou, true_coverage
from torch import Tensor

from ddpo3d_fast.assets import contact_sheet, read_ply, write_mesh, write_png
from ddpo3d_fast.commands import Mesh as Defaults
from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import machine
from ddpo3d_fast.meshing import Framed, MeshSettings, framed_mesh
from ddpo3d_fast.refine import refined
from ddpo3d_fast.run import read_config
from ddpo3d_fast.scene import Gaussians, Textured, orbit
from ddpo3d_fast.training.objects import material_colors, mean_object
from ddpo3d_fast.training.render import Field, colorize, render_materials

SIZE = 128


def mesh_views(made: Framed) -> tuple[Tensor, Tensor]:
    """Pictures [8, 3, 128, 128] on white and coverage [8, 128, 128], without light."""
    views = Textured(made.shape(), made.texture, 0.0).render(
        orbit(VIEWS, ELEVATION, START), SIZE, torch.ones(VIEWS, 3)
    )
    return views.rgb.permute(0, 3, 1, 2), views.alpha


def gaussian_views(asset: Gaussians) -> Tensor:
    """[8, 3, 128, 128] on white, rendered at twice the size and averaged."""
    views = asset.render(orbit(VIEWS, ELEVATION, START), 2 * SIZE, 2 * SIZE, torch.ones(VIEWS, 3))
    return torch.nn.functional.avg_pool2d(views.rgb.permute(0, 3, 1, 2), 2).clamp(0, 1)


@cache
def true_masks(name: str) -> Tensor:
    """[8, 5, 128, 128] materials of the class's mean individual, and what it covers."""
    field, azimuths = Field(mean_object(name)), orbit(VIEWS, ELEVATION, START).azimuth
    return torch.stack([render_materials(field, float(a), ELEVATION, SIZE) for a in azimuths])


def true_views(name: str, color: str) -> Tensor:
    """[8, 3, 128, 128] of the class's mean individual on white."""
    masks = true_masks(name)
    colors = torch.tensor(material_colors(name, color)).expand(VIEWS, -1, -1)
    return colorize(masks, colors, torch.ones(VIEWS, 3))


def psnr(one: Tensor, other: Tensor) -> float:
    return -10 * math.log10(float((one - other).square().mean()))


def is_closed(made: Framed) -> bool:
    """Whether the mesh is watertight with its seams sewn up."""
    sewn = trimesh.Trimesh(made.surface.vertices, made.surface.triangles, process=False)
    sewn.merge_vertices(merge_tex=True, merge_norm=True)
    return bool(sewn.is_watertight)


def measure(folder: Path, settings: MeshSettings, refine_steps: int) -> tuple[dict[str, Any], list[Tensor]]:
    """The figures of one asset, and pictures of it."""
    color, name, _ = folder.name.split("-")
    asset = Gaussians(*read_ply(folder / "asset.ply"))
    started, worked = time.perf_counter(), time.process_time()
    made = framed_mesh(asset, settings)
    write_mesh(folder / "mesh.glb", made.mesh())
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - worked
    shown, coverage = mesh_views(made)
    halved = torch.nn.functional.avg_pool2d(coverage[:, None], 2)[:, 0]  # 64 px, as quality.py compares
    gaussians, truth = gaussian_views(asset), true_views(name, color)
    own, true = held_out_views(asset)[1], true_coverage(name)
    row = {
        "asset": folder.name,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,  # of all cores together
        "faces": len(made.surface.triangles),
        "closed": is_closed(made),
        "iou": silhouette_iou(halved, true),
        "gaussians_iou": silhouette_iou(own, true),
        "iou_with_gaussians": silhouette_iou(halved, own),
        "psnr_to_gaussians": psnr(shown, gaussians),
        "psnr_to_truth": psnr(shown, truth),
        "gaussians_psnr_to_truth": psnr(gaussians, truth),
    }
    pictures = [gaussians, shown]
    if refine_steps:
        started = time.perf_counter()
        after, _ = refined(
            made, read_config(folder / "config.yaml", "ASSETS"), refine_steps, lambda row: None
        )
        row["refine_seconds"] = time.perf_counter() - started
        shown = mesh_views(after)[0]
        row["refined_psnr_to_truth"] = psnr(shown, truth)
        pictures.append(shown)
    return row, [views[::2].permute(0, 2, 3, 1) for views in (*pictures, truth)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("assets", type=Path)
    parser.add_argument("--refine-steps", type=int, default=0)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    defaults = Defaults(arguments.assets)
    settings = MeshSettings(defaults.faces, defaults.texture_size, defaults.resolution)
    rows, sheet = [], []
    for folder in sorted(path.parent for path in arguments.assets.glob("*/asset.ply")):
        row, pictures = measure(folder, settings, arguments.refine_steps)
        rows.append(row)
        sheet += pictures
        print(
            f"{row['asset']:18} {row['seconds']:5.1f} s {'closed' if row['closed'] else 'OPEN':6} "
            f"IoU {row['iou']:.3f} (Gaussians {row['gaussians_iou']:.3f}), dB to Gaussians "
            f"{row['psnr_to_gaussians']:.1f}, to truth {row['psnr_to_truth']:.2f}, refined "
            f"{row.get('refined_psnr_to_truth', math.nan):.2f}",
            flush=True,
        )
    medians = {
        name: statistics.median(row[name] for row in rows)
        for name, value in rows[0].items()
        if isinstance(value, float)
    }
    print(
        f"closed {sum(row['closed'] for row in rows)} of {len(rows)}, medians: "
        + ", ".join(f"{name} {value:.3f}" for name, value in medians.items())
    )
    if arguments.refine_steps:
        closer = sum(row["refined_psnr_to_truth"] > row["psnr_to_truth"] for row in rows)
        print(f"closer to the truth after {arguments.refine_steps} steps: {closer} of {len(rows)}")
    print(machine())
    if arguments.sheet:
        write_png(
            arguments.sheet,
            contact_sheet(torch.cat(sheet), columns=2 * 4 * (3 + bool(arguments.refine_steps)), gap=1),
        )
    if arguments.json:
        facts = {
            "machine": machine(),
            "refine_steps": arguments.refine_steps,
            "medians": medians,
            "rows": rows,
        }
        write_text(arguments.json, json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
