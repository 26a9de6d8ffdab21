"""Other people's viewers in a page: a splat file and a camera in, a picture out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ddpo3d_fast.assets import FORMATS, axes, suffix_of
from ddpo3d_fast.scene import Cameras

from .browser import posted
from .readers import GLTF_MODULES, MODULES

_PAGE = """<!doctype html><body style="margin:0">
<script>
const post = (name, body) => fetch("/" + name, {method: "POST", body});
addEventListener("error", (event) => post("error", String(event.message)));
addEventListener("unhandledrejection", (event) => post("error", String(event.reason?.stack ?? event.reason)));
const SIZE = %(size)d, FILES = %(files)s, FOV = %(fov)f, CAMERA = %(camera)s;
// The picture once it shows something and has stopped to change: viewers load and sort in workers.
const settled = async (gl, draw) => {
  let before = null, equal = 0;
  while (equal < 3) {
    draw();
    const data = new Uint8Array(4 * SIZE * SIZE);
    gl.readPixels(0, 0, SIZE, SIZE, gl.RGBA, gl.UNSIGNED_BYTE, data);
    const same = before !== null && data.every((value, i) => value === before[i]);
    equal = same && data.some((value) => value !== 255) ? equal + 1 : 0;
    before = data;
    await new Promise((done) => setTimeout(done, 60));
  }
  return before;
};
</script>
%(code)s
"""

_THREE = """<script type="importmap">
{"imports": {"three": "/modules/three/build/three.module.js",
  "three/addons/": "/modules/three/examples/jsm/"}}
</script>
<script type="module">
import * as THREE from "three";
const camera = new THREE.PerspectiveCamera(FOV * 180 / Math.PI, 1, 0.05, 100);
camera.matrixAutoUpdate = false;
camera.matrix.fromArray(CAMERA);
camera.matrix.decompose(camera.position, camera.quaternion, camera.scale);
camera.updateMatrixWorld(true);
const turn = (numbers) => {
  return new THREE.Quaternion().setFromRotationMatrix(new THREE.Matrix4().fromArray(numbers));
};
const renderer = new THREE.WebGLRenderer({antialias: false, preserveDrawingBuffer: true});
renderer.setPixelRatio(1);
renderer.setSize(SIZE, SIZE);
renderer.setClearColor(0xffffff, 1);
document.body.append(renderer.domElement);
"""

# Drawn as we do: a blur of 0.3 px², order by depth, cut where the alpha is 1/255.
_SPARK = (
    _THREE
    + """
import {SparkRenderer, SplatMesh} from "/modules/@sparkjsdev/spark/dist/spark.module.js";
const options = {preBlurAmount: 0.3, blurAmount: 0, sortRadial: false, maxStdDev: Math.sqrt(11)};
for (const [name, file] of Object.entries(FILES)) {
  const scene = new THREE.Scene();
  scene.add(new SparkRenderer({renderer, ...options}));
  const splats = new SplatMesh({url: file.url, extSplats: true, enableLod: false});
  splats.quaternion.copy(turn(file.turn));
  scene.add(splats);
  await splats.initialized;
  await post(name, await settled(renderer.getContext(), () => renderer.render(scene, camera)));
  splats.dispose();
}
</script>"""
)

_GAUSSIAN_SPLATS_3D = (
    _THREE
    + """
import * as GS from "/modules/@mkkellogg/gaussian-splats-3d/build/gaussian-splats-3d.module.js";
for (const [name, file] of Object.entries(FILES)) {
  const viewer = new GS.Viewer({
    selfDrivenMode: false, renderer, camera, useBuiltInControls: false, sharedMemoryForWorkers: false,
    gpuAcceleratedSort: false, sceneRevealMode: GS.SceneRevealMode.Instant, sphericalHarmonicsDegree: 3,
    inMemoryCompressionLevel: 0, optimizeSplatData: false, ignoreDevicePixelRatio: true,
    logLevel:
    GS.LogLevel.None,
  });
  const {x, y, z, w} = turn(file.turn);
  await viewer.addSplatScene(file.url, {
    splatAlphaRemovalThreshold: 0, showLoadingUI: false, progressiveLoad: false, rotation: [x, y, z, w],
  });
  await post(name, await settled(renderer.getContext(), () => {
    viewer.update();
    renderer.clear();
    viewer.render();
  }));
  await viewer.dispose();
}
</script>"""
)

# Its world is left-handed, and it loads a glTF mirrored, at x.
_BABYLON = """<script src="/modules/babylonjs/babylon.js"></script>
<script src="/modules/babylonjs-loaders/babylonjs.loaders.min.js"></script>
<canvas id="canvas" width="%(size)d" height="%(size)d"></canvas>
<script type="module">
const [x, y, z] = CAMERA.slice(12);
const engine = new BABYLON.Engine(document.getElementById("canvas"), false, {preserveDrawingBuffer: true});
for (const [name, file] of Object.entries(FILES)) {
  const scene = new BABYLON.Scene(engine);
  scene.clearColor = new BABYLON.Color4(1, 1, 1, 1);
  const camera = new BABYLON.FreeCamera("camera", new BABYLON.Vector3(-x, y, z), scene);
  camera.setTarget(BABYLON.Vector3.Zero());
  camera.fov = FOV;
  camera.minZ = 0.05;
  await BABYLON.SceneLoader.AppendAsync("", file.url, scene);
  await scene.whenReadyAsync();
  await post(name, await settled(engine._gl, () => scene.render()));
  scene.dispose();
}
</script>"""
# A viewer's page, and the folder of its modules.
_VIEWERS = {
    "spark": (_SPARK, MODULES),
    "gaussian-splats-3d": (_GAUSSIAN_SPLATS_3D, MODULES),
    "babylon": (_BABYLON, GLTF_MODULES),
}


def pictures(viewer: str, files: list[Path], camera: Cameras, size: int) -> dict[str, torch.Tensor]:
    """[size, size, 3] in [0, 1] over white of every file, by its name, as one camera, which looks at the
    origin, sees it in a viewer.

    Every file is turned as its format's axes ask for, so that all stand upright with the front to +z.
    """
    from_world = torch.eye(4, dtype=torch.float64)
    from_world[:3] = camera.viewmats[0, :3].double()
    # A viewmat looks along +z with y down, three's cameras along -z with y up.
    to_world = torch.linalg.inv(from_world) @ torch.diag(torch.tensor([1.0, -1, -1, 1], dtype=torch.float64))
    listed = {}
    for file in files:
        turn = torch.eye(4, dtype=torch.float64)
        turn[:3, :3] = axes(FORMATS[suffix_of(file)].up)
        listed[file.name] = {"url": f"/files/{file.name}", "turn": turn.T.flatten().tolist()}
    # Loaded one after the other, some files never come in gaussian-splats-3d: each has a page of its own.
    groups = [{name: entry} for name, entry in listed.items()] if viewer == "gaussian-splats-3d" else [listed]
    code, modules = _VIEWERS[viewer]
    found: dict[str, bytes] = {}
    for group in groups:
        values = {"size": size, "files": json.dumps(group), "fov": camera.fov_y}
        values["camera"] = json.dumps(to_world.T.flatten().tolist())
        page = _PAGE % {**values, "code": code.replace("%(size)d", str(size))}
        found |= posted(page, {"modules": modules, "files": files[0].parent}, set(group))
    shape = (size, size, 4)
    return {
        name: torch.from_numpy(
            np.frombuffer(found[name], np.uint8).reshape(shape)[::-1, :, :3] / 255.0
        ).float()
        for name in listed
    }
