#!/bin/sh
# Fetches what the tests in this folder hold our files against: splat-transform, the reference library of SPZ, spark and
# gaussian-splats-3d from npm (260 MB), and gsply from PyPI with a venv of its own
# (310 MB, for numba): fetch_readers.sh [FOLDER], build/splat-readers by default, where the tests find them; they
# take another folder in DDPO3D_SPLAT_READERS. Those of glTF come with tests/meshing/fetch_gltf_readers.sh. What there is no npm or node for is left out.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/build/splat-readers}
python=${PYTHON:-$root/.venv/bin/python}
mkdir -p "$folder"
cd "$folder"
if [ ! -d node_modules ] && command -v npm >/dev/null && command -v node >/dev/null; then
  echo '{"private": true}' >package.json
  npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
    @playcanvas/splat-transform@3.7.0 @adobe/spz@0.2.3 @sparkjsdev/spark@2.2.0 \
    @mkkellogg/gaussian-splats-3d@0.4.7 three@0.187.0
  echo "$folder/node_modules"
fi
if [ ! -d gsply ]; then
  rm -rf gsply.part
  "$python" -m venv gsply.part
  gsply.part/bin/python -m pip install --quiet --disable-pip-version-check gsply==0.4.6
  mv gsply.part gsply
  echo "$folder/gsply"
fi
