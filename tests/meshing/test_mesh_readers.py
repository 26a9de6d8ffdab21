"""What other people's programs make of our .glb: Khronos's validator, three and Babylon in a browser.

fetch_gltf_readers.sh brings them; where they, node or Chromium are missing, these tests are skipped.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from formats.browser import CHROMIUM, posted

from ddpo3d_fast.assets import Mesh, write_mesh
from ddpo3d_fast.scene import look_at_origin

from .meshes import box, picture

ROOT = Path(__file__).parents[2]
READERS = Path(os.environ.get("DDPO3D_GLTF_READERS", ROOT / "build" / "gltf-readers")) / "node_modules"
SIZE, FOV = 200, 40

needs_readers = pytest.mark.skipif(
    not READERS.is_dir(), reason=f"no {READERS}: tests/meshing/fetch_gltf_readers.sh makes it"
)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

VALIDATE = """
const validator = require(process.argv[1]), fs = require("fs");
validator.validateBytes(new Uint8Array(fs.readFileSync(process.argv[2])), {maxIssues: 20})
  .then((report) => console.log(JSON.stringify(report.issues)));
"""


def issues(path: Path) -> dict[str, object]:
    """What Khronos's validator says of a file."""
    words = ["node", "-e", VALIDATE, str(READERS / "gltf-validator"), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@needs_readers
@needs_node
def test_khronos_s_validator_finds_nothing(tmp_path: Path) -> None:
    write_mesh(tmp_path / "box.glb", box())
    found = issues(tmp_path / "box.glb")
    # The box's picture has 24 texels a side, which is only remarked upon.
    assert found["numErrors"] == found["numWarnings"] == 0, found


@needs_readers
@needs_node
def test_the_validator_finds_what_is_wrong(tmp_path: Path) -> None:
    wrong = box()._replace(normals=2 * box().normals)
    write_mesh(tmp_path / "wrong.glb", wrong)
    assert issues(tmp_path / "wrong.glb")["numErrors"] > 0


_PAGE = """<!doctype html><body style="margin:0">
<canvas id="canvas" width="%(size)d" height="%(size)d"></canvas>
<script>
const post = (name, body) => fetch("/" + name, {method: "POST", body});
addEventListener("error", (event) => post("error", String(event.message)));
addEventListener("unhandledrejection", (event) => post("error", String(event.reason?.stack ?? event.reason)));
const canvas = document.getElementById("canvas"), EYE = %(eye)s, FOV = %(fov)f;
const send = (gl) => {
  const data = new Uint8Array(4 * canvas.width * canvas.height);
  gl.readPixels(0, 0, canvas.width, canvas.height, gl.RGBA, gl.UNSIGNED_BYTE, data);
  return post("picture", data);
};
</script>
%(code)s"""

# Light from everywhere, of a strength that gives the base colour back.
_THREE = """<script type="importmap">
{"imports": {"three": "/modules/three/build/three.module.js",
             "three/addons/": "/modules/three/examples/jsm/"}}
</script>
<script type="module">
import * as THREE from "three";
import {GLTFLoader} from "three/addons/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({canvas, antialias: true, preserveDrawingBuffer: true});
renderer.setClearColor(0xffffff, 1);
const camera = new THREE.PerspectiveCamera(FOV, 1, 0.05, 100);
camera.position.set(...EYE);
camera.lookAt(0, 0, 0);
const scene = new THREE.Scene();
scene.add(new THREE.AmbientLight(0xffffff, Math.PI));
scene.add((await new GLTFLoader().loadAsync("/files/mesh.glb")).scene);
renderer.render(scene, camera);
await send(renderer.getContext());
</script>"""

_BABYLON = """<script src="/modules/babylonjs/babylon.js"></script>
<script src="/modules/babylonjs-loaders/babylonjs.loaders.min.js"></script>
<script type="module">
const engine = new BABYLON.Engine(canvas, true, {preserveDrawingBuffer: true});
const scene = new BABYLON.Scene(engine);
scene.useRightHandedSystem = true;
scene.clearColor = new BABYLON.Color4(1, 1, 1, 1);
const camera = new BABYLON.FreeCamera("camera", new BABYLON.Vector3(...EYE), scene);
camera.setTarget(BABYLON.Vector3.Zero());
camera.fov = FOV * Math.PI / 180;
camera.minZ = 0.05;
await BABYLON.SceneLoader.AppendAsync("/files/", "mesh.glb", scene);
for (const material of scene.materials) material.unlit = true;
await scene.whenReadyAsync();
scene.render();
await send(engine._gl);
</script>"""


@needs_readers
@needs_chromium
@pytest.mark.parametrize("code", [_THREE, _BABYLON], ids=["three", "babylon"])
def test_a_viewer_shows_what_we_show(tmp_path: Path, code: str) -> None:
    mesh = box(384)
    write_mesh(tmp_path / "mesh.glb", mesh)
    camera = look_at_origin(torch.tensor([0.6]), torch.tensor([0.4]))
    eye = (-(camera.viewmats[0, :3, :3].T @ camera.viewmats[0, :3, 3])).tolist()
    page = _PAGE % {"size": SIZE, "eye": json.dumps(eye), "fov": FOV, "code": code}
    found = posted(page, {"modules": READERS, "files": tmp_path}, {"picture"})
    shown = torch.frombuffer(bytearray(found["picture"]), dtype=torch.uint8).view(SIZE, SIZE, 4).flip(0)
    expected = picture(mesh, camera, SIZE)
    error = (shown[..., :3].float() / 255 - expected).square().mean()
    assert -10 * math.log10(float(error)) > 30  # edges are smoothed otherwise


def test_the_picture_tells_a_mesh_from_its_mirror_image() -> None:
    """Else the test above would promise little."""
    camera = look_at_origin(torch.tensor([0.6]), torch.tensor([0.4]))
    mesh, turn = box(384), torch.tensor([-1.0, 1.0, -1.0])
    turned: Mesh = mesh._replace(vertices=mesh.vertices * turn, normals=mesh.normals * turn)
    error = (picture(mesh, camera, SIZE) - picture(turned, camera, SIZE)).square().mean()
    assert -10 * math.log10(float(error)) < 15
