"""Headers stand alone: those of csrc/maths on host and device, those of csrc/include in any C++ program."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
HEADERS = sorted(path.name for path in (CSRC / "maths").glob("*.h"))
PUBLIC_HEADERS = sorted(path.name for path in (CSRC / "include" / "ddpo3d_fast").glob("*.h"))

# A kernel that calls the rasterizer's formulas and their VJPs on the device, forward and backward.
RASTERIZER_KERNEL = """
using namespace ddpo3d_fast;
__global__ void use(const float *in, float *out) {
  Camera<float> camera = {{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}}, {0, 0, in[0]}, in[1], in[1], 32, 32, 64, 64};
  float inverse_norm;
  const Vec3<float> mean = {in[2], in[3], in[4]}, scale = {in[5], in[6], in[7]};
  const Quat<float> quat = normalized(Quat<float>{in[8], in[9], in[10], in[11]}, inverse_norm);
  const Mat3<float> rotation = rotation_matrix(quat), root = covariance_root(rotation, scale);
  const Projection<float> p = project(camera, mean, root);
  const Footprint<float> f = footprint(p.xx, p.xy, p.yy, p.det, in[12], {0.3f, true, 0.0f});
  const Splat splat = {f.w11, f.w12, f.w22, -f.w11 * p.mean.x - f.w12 * p.mean.y, -f.w22 * p.mean.y, in[13],
                       in[14], in[15], in[16], p.point.z};
  const Falloff<float> at = falloff<float>(splat, float(threadIdx.x), float(threadIdx.y));
  const float alpha = select(at.log2_alpha >= float(kLog2AlphaCut), exp2_fast(at.log2_alpha), 0.0f);
  const Composite<float> front = composite(alpha, 1.0f);
  const CompositeGradient<float> back = composite_vjp(alpha, front.transmittance, in[17], in[18]);
  const Moments<float> m = {back.v_log_alpha, at.u1, at.u2, at.u1 * at.u1, at.u1 * at.u2, at.u2 * at.u2};
  const FootprintGradient<float> v = footprint_vjp(f, in[12], {0.3f, true, 0.0f}, m);
  const ProjectionGradient<float> g =
      project_vjp(camera, mean, root, p, v.v_mean, 0.0f, v.v_xx, v.v_xy, v.v_yy);
  Mat3<float> v_rotation;
  Vec3<float> v_scale;
  covariance_root_vjp(rotation, scale, g.v_root, v_rotation, v_scale);
  const Quat<float> v_quat = rotation_matrix_vjp(quat, inverse_norm, v_rotation);
  float basis[16];
  const Vec3<float> direction = normalized(mean - camera_position(camera), inverse_norm);
  sh_basis(3, direction, basis);
  const Vec3<float> v_offset = normalized_vjp(direction, inverse_norm, sh_basis_vjp(3, direction, basis));
  out[threadIdx.x] = g.v_mean.x + v_scale.x + v_quat.w + v_offset.x + front.weight;
}
"""


def compile_one(command: list[str], source: Path) -> None:
    result = subprocess.run(
        [*command, str(source), "-o", str(source.with_suffix(".o"))], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "header",
    [f"maths/{name}" for name in HEADERS] + [f"include/ddpo3d_fast/{name}" for name in PUBLIC_HEADERS],
)
def test_a_header_stands_alone_on_the_host(header: str, tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if not compiler:
        pytest.skip("no C++ compiler")
    source = tmp_path / "alone.cpp"
    source.write_text(f'#include "{header}"\n#include "{header}"\nint main() {{ return 0; }}\n')
    compile_one(
        [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsyntax-only",
            f"-I{CSRC}",
            f"-I{CSRC}/include",
        ],
        source,
    )


def test_every_maths_header_compiles_for_the_device(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        pytest.skip("no nvcc")
    source = tmp_path / "device.cu"
    source.write_text("".join(f'#include "maths/{header}"\n' for header in HEADERS) + RASTERIZER_KERNEL)
    compile_one(
        [
            nvcc,
            "-std=c++17",
            "-arch=sm_90",
            "-Werror",
            "all-warnings",
            "-c",
            f"-I{CSRC}",
            f"-I{CSRC}/include",
        ],
        source,
    )
