"""What comes out of a run, and goes in again: splats, pictures, turntables. Knows tensors and files."""

from ddpo3d_fast.assets.base import Asset, Exporter
from ddpo3d_fast.assets.exporters import EXPORTERS
from ddpo3d_fast.assets.formats import (
    FORMATS,
    Format,
    Splat,
    check_suffix,
    read_splat,
    splat_path,
    suffix_of,
    write_splat,
)
from ddpo3d_fast.assets.images import contact_sheet, to_uint8, write_png, write_stills
from ddpo3d_fast.assets.mesh import Mesh
from ddpo3d_fast.assets.mesh_formats import MESH_FORMATS, RUN_MESH, mesh_writer, write_mesh
from ddpo3d_fast.assets.ply import read_ply, write_ply
from ddpo3d_fast.assets.raw import PlyGaussians
from ddpo3d_fast.assets.turning import axes
from ddpo3d_fast.assets.turntable import write_turntable

__all__ = [
    "EXPORTERS",
    "FORMATS",
    "MESH_FORMATS",
    "RUN_MESH",
    "Asset",
    "Exporter",
    "Format",
    "Mesh",
    "PlyGaussians",
    "Splat",
    "axes",
    "check_suffix",
    "contact_sheet",
    "mesh_writer",
    "read_ply",
    "read_splat",
    "splat_path",
    "suffix_of",
    "to_uint8",
    "write_mesh",
    "write_ply",
    "write_png",
    "write_splat",
    "write_stills",
    "write_turntable",
]
