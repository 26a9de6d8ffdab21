#!/bin/sh
# Fetches Khronos's glTF validator and two programs that show glTF, for tests/meshing/test_mesh_readers.py (from
# npm's registry): fetch_gltf_readers.sh [FOLDER], build/gltf-readers by default, which the test finds by itself;
# it takes another folder in DDPO3D_GLTF_READERS.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$root/build/gltf-readers}
[ -d "$folder/node_modules" ] && exit 0
rm -rf "$folder.part"
mkdir -p "$folder.part"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder.part" \
    gltf-validator@2.0.0-dev.3.10 three@0.187.0 babylonjs@9.28.0 babylonjs-loaders@9.28.0
mv "$folder.part" "$folder"
echo "$folder"
