"""What comes out of a run, and goes in again: ply files, pictures, turntables. Knows tensors and files."""

from ddpo3d_fast.assets.base import Asset, Exporter
from ddpo3d_fast.assets.exporters import EXPORTERS
from ddpo3d_fast.assets.images import contact_sheet, to_uint8, write_png, write_stills
from ddpo3d_fast.assets.mesh import Mesh
from ddpo3d_fast.assets.mesh_formats import MESH_FORMATS, RUN_MESH, mesh_writer, write_mesh
from ddpo3d_fast.assets.ply import FROM_FILE, PlyGaussians, read_ply, write_ply
from ddpo3d_fast.assets.turntable import write_turntable

__all__ = [
    "EXPORTERS",
    "FROM_FILE",
    "MESH_FORMATS",
    "RUN_MESH",
    "Asset",
    "Exporter",
    "Mesh",
    "PlyGaussians",
    "contact_sheet",
    "mesh_writer",
    "read_ply",
    "to_uint8",
    "write_mesh",
    "write_ply",
    "write_png",
    "write_stills",
    "write_turntable",
]
