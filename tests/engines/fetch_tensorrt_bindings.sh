#!/bin/sh
# Fetches TensorRT's Python bindings of three versions, without its libraries, for test_tensorrt.py to check the
# API against (16 MB, from the package index): fetch_tensorrt_bindings.sh [FOLDER], build/tensorrt-bindings by
# default, which the test finds by itself; it takes other folders, with ":" between, in DDPO3D_TENSORRT_BINDINGS.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/build/tensorrt-bindings}
python=${PYTHON:-$root/.venv/bin/python}
for package in tensorrt-cu12-bindings==10.13.3.9 tensorrt-cu13-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106
do
    place=$folder/${package##*==}
    [ -d "$place/tensorrt_bindings" ] && continue
    rm -rf "$place.part"
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target "$place.part" "$package"
    mv "$place.part" "$place"
    echo "$place"
done
