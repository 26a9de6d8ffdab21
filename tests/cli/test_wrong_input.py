"""Wrong input of every kind: exit code 2, one line that names what is wrong, and nothing written."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.configure import preset
from ddpo3d_fast.run import CHECKPOINT, CONFIG, RunFolder
from ddpo3d_fast.scene import initial_cloud

MUSHROOM = "generate --prompt 'a red mushroom'"

# command line -> what the message must say
COMMAND_LINE = {
    "generat": "generat: expected a command (generate, batch, render, export, mesh, view, info, engines)",
    "--prompt 'a red mushroom'": "--prompt: expected a command",
    f"{MUSHROOM} --stepz 3": "--stepz: no such option of generate; did you mean --steps?",
    "render good.ply --sizes 3": "--sizes: no such option of render; did you mean --size?",
    "info --jsn": "--jsn: no such option of info; did you mean --json?",
    "info please": "please: expected only options",
    "batch": "prompts: expected one file of prompts, got none",
    "batch a.txt b.txt": "prompts: expected one file of prompts, got a.txt and b.txt",
    "batch a.txt --seed 3": "--seed: no such option of batch; did you mean --seeds?",
    "batch a.txt --preset ultra": "--preset: expected one of draft, standard, high",
    "batch a.txt --cpus few": "--cpus: expected a number, got 'few'",
    "view": "path: expected one file or folder, got none",
    "view a b": "path: expected one file or folder, got a and b",
    "view a --port web": "--port: expected a whole number, got 'web'",
    "generate --prompt a red mushroom": "red: expected only options",
    f"{MUSHROOM} --steps abc": "--steps: expected a whole number, got 'abc'",
    f"{MUSHROOM} --steps=1.5": "--steps: expected a whole number, got '1.5'",
    f"{MUSHROOM} --steps": "--steps: expected a whole number, got nothing",
    f"{MUSHROOM} --guide-weight lots": "--guide-weight: expected a number, got 'lots'",
    f"{MUSHROOM} --render-scales 1 two": "--render-scales: expected numbers, got 'two'",
    f"{MUSHROOM} --quiet=yes": "--quiet: expected no value, got 'yes'",
    f"{MUSHROOM} --preset ultra": "--preset: expected one of draft, standard, high for the embedded",
    f"{MUSHROOM} --device tpu": "--device: expected one of auto, cpu, cuda, got 'tpu'",
    f"{MUSHROOM} --policy ppo": "--policy: expected one of noise, latent, view, scene, got 'ppo'",
    f"{MUSHROOM} --policy ddim": "--policy: expected one of noise, latent, view, scene, got 'ddim', which is "
    "latent now",
    f"{MUSHROOM} --quiet --json": "--quiet: expected no --json beside it",
}
SETTINGS = {
    "generate": "--prompt: expected some words, got nothing",
    "generate --prompt ' '": "--prompt: expected some words, got nothing",
    f"{MUSHROOM} --steps -3": "--steps: expected a number from 1",
    f"{MUSHROOM} --seed -1": "--seed: expected a number from 0 to 4294967295, got -1",
    f"{MUSHROOM} --max-gaussians 20000000": "--max-gaussians: expected a number from 1 to 10000000, got",
    f"{MUSHROOM} --densify-gradient -1": "--densify-gradient: expected a number from 0 to 1000000, got -1",
    f"{MUSHROOM} --gaussians 0": "--gaussians: expected a number from 1",
    f"{MUSHROOM} --means-rate nan": "--means-rate: expected a number from 0",
    f"{MUSHROOM} --min-timestep 0.9 --max-timestep 0.1": "--min-timestep: expected at most --max-timestep",
    f"{MUSHROOM} --noises 1": "--noises: expected at least 2",
    f"{MUSHROOM} --policy view --policy-pairs 7": "--policy-pairs: expected at least 2 for each of the 4",
    f"{MUSHROOM} --policy view --baseline running": "--baseline: expected group with --policy view, got",
    f"{MUSHROOM} --policy-updates 1": "--policy-updates: expected a number from 2 to 100, got 1",
    f"{MUSHROOM} --render-scales 0": "--render-scales: expected one or more numbers from 0.1 to 16",
    f"{MUSHROOM} --device cuda": "--device: expected auto or cpu here, got cuda: torch",
    f"{MUSHROOM} --device cpu --runtime tensorrt": "--runtime: expected one that is to be had here, got",
    f"{MUSHROOM} --model stable-fusion": "--model: expected `embedded` or a folder",
    f"{MUSHROOM} --model folder": "--model: expected `embedded` or a folder",
}
PROMPTS_AND_REWARDS = {
    "generate --prompt 'a dragon'": "--prompt: the embedded prior does not know 'dragon'",
    "generate --prompt 'a mauve cube'": "--prompt: the embedded prior does not know 'mauve'",
    "generate --prompt 'a cube and a ball'": "--prompt: expected one object, got cube and ball",
    "generate --prompt red": "--prompt: the embedded prior found no object in 'red'; it knows ball, cube,",
    f"{MUSHROOM} --negative-prompt elves": "--negative-prompt: the embedded prior does not know 'elves'",
    "generate --prompt 'a \udcff cube'": "--prompt: expected text in UTF-8, got 'a \\udcff cube'",
    "generate --prompt=\udcff": "--prompt: expected text in UTF-8, got '\\udcff'",
    "generate --resume \udcff": "--resume: expected text in UTF-8, got '\\udcff'",
    "render \udcff.ply": "render: expected text in UTF-8, got '\\udcff.ply'",
    f"{MUSHROOM} --negative-prompt \udcff": "--negative-prompt: expected text in UTF-8, got '\\udcff'",
    f"{MUSHROOM} --reward beauty": "--reward: expected one of embedded, jpeg, colour:NAME,",
    f"{MUSHROOM} --reward embedded=heavy": "--reward: expected NAME or NAME=WEIGHT with a finite number, got",
    f"{MUSHROOM} --policy scene --baseline running": "--baseline: expected group with --policy scene, got",
    f"{MUSHROOM} --baseline rewardsds --noises 3": "--noises: expected at least 4 for a policy gradient with",
    f"{MUSHROOM} --baseline rewardsds --policy latent --noises 4": "--baseline: expected group or running",
    f"{MUSHROOM} --policy scene --reward-of render": "--reward-of: expected action with --policy scene, got",
    f"{MUSHROOM} --reward jpeg --policy-weight 0": "--policy-weight: expected more than 0, got 0: jpeg has",
    f"{MUSHROOM} --reward colour:blu": "--reward: colour: expected one of red, orange, yellow,",
    f"{MUSHROOM} --policy scene --policy-pairs 1": "--policy-pairs: expected a number from 2 to 1024, got 1",
    f"{MUSHROOM} --reward no_such_module:score": "--reward: no_such_module:score: no module",
}
PATHS = {
    f"{MUSHROOM} --output /proc/asset": "--output: cannot write to /proc/asset",
    f"{MUSHROOM} --output good.ply": "--output: cannot write to good.ply",
    f"{MUSHROOM} --output good.ply/run": "--output: cannot write to good.ply/run",
    f"{MUSHROOM} --output done": "--output: done holds a run with another --preset: name another folder, or",
    f"{MUSHROOM} --preset draft --policy-weight 0 --guide-weight 0 --output done --steps 9": "another --step",
    f"{MUSHROOM} --output damaged-config": "--output: damaged-config holds a run whose config.yaml cannot be",
    f"{MUSHROOM} --output folder --overwrite": "--output: expected an empty folder or an older run, got",
    "generate --resume done --overwrite": "--overwrite: expected only --steps beside --resume",
    f"{MUSHROOM} --output folder": "--output: expected an empty folder or an older run, got folder with",
    "generate --resume nowhere": "--resume: expected the folder of a run, got nowhere, which does not exist",
    "generate --resume good.ply": "--resume: expected the folder of a run, got good.ply, which is a file",
    "generate --resume folder": "--resume: cannot read folder/config.yaml",
    "generate --resume damaged-config": "--resume: damaged-config/config.yaml is not YAML",
    "generate --resume damaged": "--resume: damaged/checkpoint.pt is damaged",
    "generate --resume shortened": "--steps: expected at least the 3 steps that are done, got 2",
    "generate --resume older": "--resume: older/checkpoint.pt is not one of this version's: state: missing",
    "generate --resume edited": "edited/checkpoint.pt was made with another guidance_scale",
    "generate --resume done --seed 3": "--seed: expected only --steps beside --resume",
    "generate --resume done --steps 2": "--steps: expected at least the 3 steps that are done, got 2",
    "generate --config nowhere.yaml": "--config: cannot read nowhere.yaml",
    "generate --config surrogate.yaml": "--prompt: expected text in UTF-8, got '\\ud83d'",
    "generate --config bad.yaml": "--config: bad.yaml is not YAML",
    "generate --config good.ply": "--config: good.ply is not YAML",
    "generate --config date.yaml": "--config: date.yaml is not YAML: month must be in 1..12",
    "generate --config digits.yaml": "--config: digits.yaml is not YAML: Exceeds the limit",
    "generate --config deep.yaml": "--config: deep.yaml is not YAML",
    "generate --config nul.yaml": "--output: expected text without NUL, got 'a\\x00b'",
    "generate --config output.yaml": "--config: output.yaml: output: expected a path, got []",
    "generate --config list.yaml": "--config: list.yaml: expected a mapping, got list",
    "generate --config unknown.yaml": "--config: unknown.yaml: schedule: unknown setting 'stepz'",
    "generate --config type.yaml": "--config: type.yaml: schedule: steps: expected int, got 'many'",
    "generate --config type.yaml --preset high": "--preset: expected no --config beside it",
}
PLYS = {
    "render": "asset: expected one Gaussian splat, or the folder of a run, got none",
    "render good.ply nan.ply": "asset: expected one Gaussian splat, or the folder of a run, got good.ply and",
    "render nowhere.ply": "asset: expected a Gaussian splat or the folder of a run, got nowhere.ply",
    "render folder": "asset: expected a Gaussian splat or the folder of a run, got folder, which is a folder",
    "render empty.ply": "empty.ply: not a ply file",
    "render type.yaml": "type.yaml: not a ply file",
    "render header.ply": "header.ply: corrupt ply header",
    "render truncated.ply": "truncated.ply: truncated",
    "render points.ply": "points.ply: no property rot_0",
    "render nan.ply": "nan.ply: vertex 1: x is nan",
    "render good.ply --size 0": "--size: expected a number from 1 to 4096, got 0",
    "render good.ply --size 100000": "--size: expected a number from 1 to 4096, got 100000",
    "render good.ply --views 0": "--views: expected a number from 1",
    "render good.ply --elevation 100": "--elevation: expected a number from -90 to 90, got 100",
    "render good.ply --elevation nan": "--elevation: expected a number from -90 to 90, got nan",
    "render good.ply --background whitish": "--background: expected a colour's name",
    "render good.ply --background 0,0,255": "--background: expected a colour's name",
    "render good.ply --radius 0": "--radius: expected a number from 1e-12 to 1e+12, got 0",
    "render good.ply --radius nan": "--radius: expected a number from 1e-12 to 1e+12, got nan",
    "render good.ply --radius wide": "--radius: expected a number, got 'wide'",
    "render good.ply --center 1,2": "--center: expected X,Y,Z, three numbers, got '1,2'",
    "render good.ply --center 1,inf,2": "--center: expected X,Y,Z, three numbers, got '1,inf,2'",
    "render good.ply --center -1,a,2": "--center: expected X,Y,Z, three numbers, got '-1,a,2'",
    "render good.ply --up": "--up: expected one of y, -y, z, -z, x, -x, got nothing",
    "render good.ply --up w": "--up: expected one of y, -y, z, -z, x, -x, got 'w'",
    "render good.ply --up -w": "--up: expected one of y, -y, z, -z, x, -x, got '-w'",
    "render a.spz": "a.spz: not an SPZ file, or a damaged one: not in gzip's format",
    "render a.ksplat": "a.ksplat: a .ksplat file, which is not read here; make a ply of it: npx @playcanvas",
    "export": "asset: expected one Gaussian splat, or the folder of a run, got none",
    "export good.ply": "OUT: expected files to write, which end in .ply, .compressed.ply, .spz",
    "export nowhere.ply a.spz": "asset: expected a Gaussian splat or the folder of a run, got nowhere.ply",
    "export folder a.spz": "asset: expected a Gaussian splat or the folder of a run, got folder, which is",
    "export nan.ply a.spz": "nan.ply: vertex 1: x is nan",
    "export good.ply a.spz a.obj": "OUT: expected a name that ends in .ply, .compressed.ply, .spz, .splat",
    "export good.ply good.ply": "OUT: expected another file than the asset, got good.ply",
    "export good.ply .ply": "OUT: expected another file than the asset, got good.ply",
    "export good.ply b.spz b.spz": "OUT: expected each file once, got b.spz twice",
    "export good.ply good.ply/a.spz": "cannot write good.ply/a.spz",
    "export good.ply b.spz --orientation up": "--orientation: expected one of y, -y, z, -z, x, -x, got 'up'",
    "export good.ply b.spz --spz-version 1": "--spz-version: expected one of 2, 3, 4, got '1'",
    "export good.ply b.spz --size 3": "--size: no such option of export",
    "render good.ply --output turn.gif": "--output: expected FILE.mp4, FILE.png or a folder, got turn.gif",
    "render good.ply --stills --output a.mp4": "--output: expected a folder for stills, got a.mp4",
    "render good.ply --output good.ply/a.png": "cannot write good.ply/a.png",
}
OTHERS = {
    "view nowhere": "path: expected an asset, a mesh or a folder of runs, got nowhere, which is not there",
    "view folder": "path: expected a run or a folder of runs, got folder, where no asset.ply is",
    "view empty.ply": "empty.ply: not a ply file",
    "view type.yaml": "type.yaml: not a ply file",
    "view good.ply --port 70000": "--port: expected a number from 0 to 65535, got 70000",
    f"{MUSHROOM} --view --port -1": "--port: expected a number from 0 to 65535, got -1",
    "batch nowhere.txt": "prompts: cannot read nowhere.txt: No such file or directory",
    "batch bad.yaml": "prompts: bad.yaml is not YAML",
    "batch list.yaml --preset draft": "--preset: expected none beside list.yaml, which says it itself",
    "batch good.ply --cpus 0": "--cpus: expected a number from 0.01 to 1024, got 0",
    "batch good.ply --quiet --json": "--quiet: expected no --json beside it",
}
CASES = COMMAND_LINE | SETTINGS | PROMPTS_AND_REWARDS | PATHS | PLYS | OTHERS


def save_run(path: Path, steps: int = 3) -> RunFolder:
    config = preset("draft", "a red mushroom")
    config = replace(config, reward=replace(config.reward, policy_weight=0.0, guide_weight=0.0))
    folder = RunFolder(path, config)
    with folder.claimed():
        folder.begin(config, {})
    folder.write_metrics([{"step": step} for step in range(1, steps + 1)])
    folder.save_checkpoint({"step": steps, "gaussians": {"means": torch.zeros(2, 3)}})
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are not what they should be, and a good.ply."""
    folder = tmp_path_factory.mktemp("inputs")
    cloud = initial_cloud(3, seed=0)
    write_ply(
        folder / "good.ply", cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh
    )
    good = (folder / "good.ply").read_bytes()
    header, body = good.split(b"end_header\n")
    row = len(body) // 3
    nan = b"\x00\x00\xc0\x7f"
    (folder / "a.spz").write_bytes(b"\x1f\x8b")
    (folder / "empty.ply").write_bytes(b"")
    (folder / "a.ksplat").write_bytes(b"whatever")
    (folder / "header.ply").write_bytes(good.replace(b"element vertex", b"element vertices of"))
    (folder / "truncated.ply").write_bytes(good[:-5])
    (folder / "points.ply").write_bytes(header.replace(b"rot_0", b"red_0") + b"end_header\n" + body)
    (folder / "nan.ply").write_bytes(header + b"end_header\n" + body[:row] + nan + body[row + 4 :])
    (folder / "surrogate.yaml").write_text('prompt: "\\ud83d"\n')
    (folder / "bad.yaml").write_text("prompt: [a red mushroom\n")
    (folder / "date.yaml").write_text("prompt: 2026-13-01\n")
    (folder / "digits.yaml").write_text(f"prompt: a red mushroom\nseed: {'9' * 5000}\n")
    (folder / "deep.yaml").write_text("[" * 5000)
    (folder / "nul.yaml").write_text('prompt: a red mushroom\noutput: "a\\0b"\n')
    (folder / "output.yaml").write_text("prompt: a red mushroom\noutput: []\n")
    (folder / "list.yaml").write_text("- a red mushroom\n")
    (folder / "unknown.yaml").write_text("prompt: a red mushroom\nschedule:\n  stepz: 3\n")
    (folder / "type.yaml").write_text("prompt: a red mushroom\nschedule:\n  steps: many\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.txt").write_text("not to be touched\n")
    save_run(folder / "done")
    (save_run(folder / "damaged-config").path / CONFIG).write_text("prompt: [")
    checkpoint = save_run(folder / "damaged").path / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    save_run(folder / "older")
    config = save_run(folder / "shortened").path / CONFIG
    config.write_text(config.read_text().replace("steps: 70", "steps: 2"))
    config = save_run(folder / "edited").path / CONFIG
    config.write_text(config.read_text().replace("guidance_scale: 2.0", "guidance_scale: 7.0"))
    return folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("line", [f"{MUSHROOM} --preset draft", "render good.ply", "info"])
def test_an_unknown_simd_level_is_wrong_input(
    line: str, inputs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DDPO3D_SIMD", "foo")
    level = "DDPO3D_SIMD: expected a level of this processor (scalar"
    test_wrong_input_is_one_line_and_leaves_nothing(line, level, inputs, monkeypatch, capsys)


@pytest.mark.parametrize(("line", "message"), CASES.items(), ids=CASES)
def test_wrong_input_is_one_line_and_leaves_nothing(
    line: str,
    message: str,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(inputs)
    monkeypatch.setattr("ddpo3d_fast.info.missing_for_cuda", lambda: ["torch finds no CUDA device"])
    before = contents(inputs)
    code = main(shlex.split(line))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("ddpo3d-fast: ")
    assert err.count("\n") == err.endswith("\n") == 1
    assert message in err
    assert contents(inputs) == before
