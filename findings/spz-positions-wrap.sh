#!/usr/bin/env bash
# A Gaussian more than 2,048 units away comes out of an .spz somewhere inside the scene.
#
# SPZ stores a coordinate in 24 bits with 12 of them behind the point. @playcanvas/splat-transform 3.7.0
# (versions 3 and 4 of the format) and gaussforge 0.6.0 keep the low 24 bits of what does not fit: the sky at
# x = 3000 is read back at -1096, and what lies at 8192 at 0, amid the object. No warning, exit code 0; only
# gsply 0.4.6 stops at the bound. It surprises because the format has a field for the number of fractional
# bits, with which the writers could make room, and because the readers agree: the file itself is wrong.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check gaussforge==0.6.0 gsply==0.4.6 plyfile==1.1.5 2>/dev/null
npm init --yes >/dev/null
npm install --silent --no-audit --no-fund --ignore-scripts @playcanvas/splat-transform@3.7.0 >/dev/null
cat >check.py <<'END'
import subprocess
import sys
import gaussforge
import gsply
import numpy as np
from plyfile import PlyData, PlyElement

X = [0, 100, 2047, 3000, 5000, -3000, 8192]
WRAPPED = [0, 100, 2047, -1096, 904, 1096, 0]
CLAMPED = [0, 100, 2047, 2048, 2048, -2048, 2048]
names = "x y z f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3".split()
table = np.zeros(len(X), [(name, "f4") for name in names])
table["x"], table["y"], table["rot_0"] = X, np.arange(len(X)), 1  # y tells them apart
PlyData([PlyElement.describe(table, "vertex")]).write("in.ply")


def transform(*words):
    subprocess.run(["npx", "splat-transform", "--quiet", "--overwrite", *words], check=True)


def x_of(path):
    vertex = PlyData.read(path)["vertex"]
    return [round(float(vertex["x"][i])) for i in np.argsort(vertex["y"])]


transform("in.ply", "--spz-version", "3", "transform3.spz")
transform("in.ply", "transform4.spz")
forged = gaussforge.GaussForge().convert(open("in.ply", "rb").read(), "ply", "spz")["data"]
open("gaussforge.spz", "wb").write(forged)
gsply.write_spz("gsply.spz", gsply.plyread("in.ply"))
found, expected = {}, {"gsply": CLAMPED}
for name in ("transform3", "transform4", "gaussforge", "gsply"):
    transform(f"{name}.spz", "out.ply")
    found[name] = x_of("out.ply")
    print(f"written by {name}, read by splat-transform: x {found[name]} (was {X})")
gsply.plywrite("out.ply", gsply.read_spz("transform3.spz"))
found["gsply reads"] = x_of("out.ply")
print(f"written by transform3, read by gsply: x {found['gsply reads']}")
sys.exit(any(xs != expected.get(name, WRAPPED) for name, xs in found.items()))
END
echo "splat-transform 3.7.0, gaussforge 0.6.0, gsply 0.4.6"
venv/bin/python check.py 2>/dev/null | grep -v '^\[SPZ\]' || { echo "changed: not as found"; exit 1; }
