"""Wrong input of every kind: exit code 2, one line that names what is wrong, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ddpo3d_fast.assets import write_ply
from ddpo3d_fast.cli import main
from ddpo3d_fast.config import preset
from ddpo3d_fast.kernels import build_info
from ddpo3d_fast.run import CHECKPOINT, CONFIG, RunFolder
from ddpo3d_fast.scene import initial_cloud

MUSHROOM = ("generate", "--prompt", "a red mushroom")

# (words of the command line, what the message must name)
COMMAND_LINE = {
    "unknown command": (("generat",), "generat: expected a command (generate, render, info); did you mean generate?"),
    "flag for a command": (("--prompt", "a red mushroom"), "--prompt: expected a command"),
    "unknown flag": ((*MUSHROOM, "--stepz", "3"), "--stepz: no such option of generate; did you mean --steps?"),
    "unknown flag of render": (("render", "good.ply", "--sizes", "3"), "--sizes: no such option of render"),
    "unknown flag of info": (("info", "--jsn"), "--jsn: no such option of info; did you mean --json?"),
    "a word too many": (("info", "please"), "please: expected only options"),
    "prompt without quotes": (("generate", "--prompt", "a", "red", "mushroom"), "red: expected only options"),
    "steps in words": ((*MUSHROOM, "--steps", "abc"), "--steps: expected a whole number, got 'abc'"),
    "half a step": ((*MUSHROOM, "--steps=1.5"), "--steps: expected a whole number, got '1.5'"),
    "no steps": ((*MUSHROOM, "--steps"), "--steps: expected a whole number, got nothing"),
    "weight in words": ((*MUSHROOM, "--guide-weight", "lots"), "--guide-weight: expected a number, got 'lots'"),
    "factors in words": ((*MUSHROOM, "--resolution-factors", "1", "two"), "--resolution-factors: expected whole"),
    "value for a switch": ((*MUSHROOM, "--quiet=yes"), "--quiet: expected no value, got 'yes'"),
    "unknown preset": ((*MUSHROOM, "--preset", "ultra"), "--preset: expected one of draft, standard, high"),
    "unknown device": ((*MUSHROOM, "--device", "tpu"), "--device: expected one of auto, cpu, cuda, got 'tpu'"),
    "unknown policy": ((*MUSHROOM, "--policy", "ppo"), "--policy: expected one of noise, ddim, got 'ppo'"),
    "quiet and json": ((*MUSHROOM, "--quiet", "--json"), "--quiet"),
}
SETTINGS = {
    "no prompt": (("generate",), "--prompt: expected some words"),
    "empty prompt": (("generate", "--prompt", "  "), "--prompt: expected some words"),
    "negative steps": ((*MUSHROOM, "--steps", "-3"), "--steps: expected a number from 1"),
    "negative seed": ((*MUSHROOM, "--seed", "-1"), "--seed: expected a number from 0"),
    "no Gaussians": ((*MUSHROOM, "--gaussians", "0"), "--gaussians: expected a number from 1"),
    "rate that is no number": ((*MUSHROOM, "--means-rate", "nan"), "--means-rate: expected a number"),
    "timesteps upside down": ((*MUSHROOM, "--min-timestep", "0.9", "--max-timestep", "0.1"), "--min-timestep"),
    "one noise with a group": ((*MUSHROOM, "--noises", "1"), "--noises: expected at least 2"),
    "factor 0": ((*MUSHROOM, "--resolution-factors", "0"), "--resolution-factors: expected whole numbers"),
    "unknown model": ((*MUSHROOM, "--model", "stable-fusion"), "--model: expected `embedded` or a folder"),
    "folder without a model": ((*MUSHROOM, "--model", "folder"), "--model: expected `embedded` or a folder"),
}
PROMPTS_AND_REWARDS = {
    "unknown object": (("generate", "--prompt", "a dragon"), "--prompt: the embedded prior does not know 'dragon'"),
    "unknown colour": (("generate", "--prompt", "a mauve cube"), "--prompt: the embedded prior does not know 'mauve'"),
    "two objects": (("generate", "--prompt", "a cube and a ball"), "--prompt: expected one object, got cube and ball"),
    "no object": (("generate", "--prompt", "red"), "--prompt: the embedded prior does not know"),
    "unknown negative": ((*MUSHROOM, "--negative-prompt", "elves"), "--negative-prompt: the embedded prior does not"),
    "unknown reward": ((*MUSHROOM, "--reward", "beauty"), "reward 'beauty': expected"),
    "reward's weight": ((*MUSHROOM, "--reward", "embedded=heavy"), "reward 'embedded=heavy': expected"),
    "reward's module": ((*MUSHROOM, "--reward", "no_such_module:score"), "no module 'no_such_module'"),
}
PATHS = {
    "unwritable folder": ((*MUSHROOM, "--output", "/proc/asset"), "--output: cannot write to /proc/asset"),
    "file for a folder": ((*MUSHROOM, "--output", "good.ply"), "--output: cannot write to good.ply"),
    "file on the way": ((*MUSHROOM, "--output", "good.ply/run"), "--output: cannot write to good.ply/run"),
    "folder of other things": ((*MUSHROOM, "--output", "folder"), "--output: expected an empty folder"),
    "no such run": (("generate", "--resume", "nowhere"), "--resume: expected the folder of a run, got nowhere"),
    "file for a run": (("generate", "--resume", "good.ply"), "--resume: expected the folder of a run"),
    "no run in the folder": (("generate", "--resume", "folder"), "--resume: cannot read folder/config.yaml"),
    "run without checkpoint": (("generate", "--resume", "begun"), "--resume: begun has no checkpoint.pt"),
    "run with damaged settings": (("generate", "--resume", "damaged-config"), "--resume: damaged-config/config.yaml"),
    "run with damaged checkpoint": (("generate", "--resume", "damaged"), "--resume: damaged/checkpoint.pt is damaged"),
    "run of other settings": (("generate", "--resume", "edited"), "another guidance_scale than config.yaml says"),
    "resume with settings": (("generate", "--resume", "done", "--seed", "3"), "--seed: expected only --steps"),
    "fewer steps than done": (("generate", "--resume", "done", "--steps", "2"), "--steps: expected at least the 3"),
    "no such config": (("generate", "--config", "nowhere.yaml"), "--config: cannot read nowhere.yaml"),
    "config is no YAML": (("generate", "--config", "bad.yaml"), "--config: bad.yaml is not YAML"),
    "config is binary": (("generate", "--config", "good.ply"), "--config: good.ply is not YAML"),
    "config is a list": (("generate", "--config", "list.yaml"), "--config: list.yaml: expected a mapping"),
    "unknown setting": (("generate", "--config", "unknown.yaml"), "unknown setting 'stepz'"),
    "setting of another type": (("generate", "--config", "type.yaml"), "type.yaml: schedule: steps: expected int"),
    "config and preset": (("generate", "--config", "type.yaml", "--preset", "high"), "--preset: expected no --config"),
}
PLYS = {
    "no such ply": (("render", "nowhere.ply"), "asset: expected a ply file, got nowhere.ply, which does not exist"),
    "folder for a ply": (("render", "folder"), "asset: expected a ply file, got folder, which is a folder"),
    "no ply given": (("render",), "asset: expected one ply file, got none"),
    "two plys": (("render", "good.ply", "nan.ply"), "asset: expected one ply file, got good.ply and nan.ply"),
    "empty file": (("render", "empty.ply"), "empty.ply: not a ply file"),
    "not a ply": (("render", "type.yaml"), "type.yaml: not a ply file"),
    "corrupt header": (("render", "header.ply"), "header.ply: corrupt ply header"),
    "truncated": (("render", "truncated.ply"), "truncated.ply: truncated"),
    "point cloud": (("render", "points.ply"), "points.ply: no property"),
    "NaN": (("render", "nan.ply"), "nan.ply: vertex 1: x is nan"),
    "size 0": (("render", "good.ply", "--size", "0"), "--size: expected a number from 1"),
    "enormous size": (("render", "good.ply", "--size", "100000"), "--size: expected a number from 1 to 4096"),
    "no views": (("render", "good.ply", "--views", "0"), "--views: expected a number from 1"),
    "elevation": (("render", "good.ply", "--elevation", "100"), "--elevation: expected a number from -90 to 90"),
    "elevation is no number": (("render", "good.ply", "--elevation", "nan"), "--elevation: expected a number"),
    "unknown colour name": (("render", "good.ply", "--background", "whitish"), "--background: expected a colour"),
    "colour out of range": (("render", "good.ply", "--background", "0,0,255"), "--background: expected a colour"),
    "unknown kind of file": (("render", "good.ply", "--output", "turn.gif"), "--output: expected FILE.mp4, FILE.png"),
    "stills in a video": (("render", "good.ply", "--stills", "--output", "a.mp4"), "--output: expected a folder"),
    "output on a file": (("render", "good.ply", "--output", "good.ply/a.png"), "cannot write good.ply/a.png"),
}
CASES = COMMAND_LINE | SETTINGS | PROMPTS_AND_REWARDS | PATHS | PLYS


def save_run(path: Path, steps: int = 3) -> RunFolder:
    config = preset("draft", "a red mushroom")
    folder = RunFolder(path, config)
    folder.write_config(config, {})
    folder.write_metrics([{"step": step} for step in range(1, steps + 1)])
    folder.save_checkpoint({"step": steps, "gaussians": {"means": torch.zeros(2, 3)}})
    return folder


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of things that are not what they should be, and a good.ply."""
    folder = tmp_path_factory.mktemp("inputs")
    cloud = initial_cloud(3, seed=0)
    write_ply(folder / "good.ply", cloud.means, cloud.quats, cloud.log_scales, cloud.logit_opacities, cloud.sh)
    good = (folder / "good.ply").read_bytes()
    header, body = good.split(b"end_header\n")
    row = len(body) // 3
    nan = b"\x00\x00\xc0\x7f"
    (folder / "empty.ply").write_bytes(b"")
    (folder / "header.ply").write_bytes(good.replace(b"element vertex", b"element vertices of"))
    (folder / "truncated.ply").write_bytes(good[:-5])
    (folder / "points.ply").write_bytes(header.replace(b"rot_0", b"red_0") + b"end_header\n" + body)
    (folder / "nan.ply").write_bytes(header + b"end_header\n" + body[:row] + nan + body[row + 4 :])
    (folder / "bad.yaml").write_text("prompt: [a red mushroom\n")
    (folder / "list.yaml").write_text("- a red mushroom\n")
    (folder / "unknown.yaml").write_text("prompt: a red mushroom\nschedule:\n  stepz: 3\n")
    (folder / "type.yaml").write_text("prompt: a red mushroom\nschedule:\n  steps: many\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.txt").write_text("not to be touched\n")
    save_run(folder / "done")
    (save_run(folder / "begun").path / CHECKPOINT).unlink()
    (save_run(folder / "damaged-config").path / CONFIG).write_text("prompt: [")
    checkpoint = save_run(folder / "damaged").path / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    config = save_run(folder / "edited").path / CONFIG
    config.write_text(config.read_text().replace("guidance_scale: 6.0", "guidance_scale: 7.0"))
    return folder


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(("words", "named"), CASES.values(), ids=CASES.keys())
def test_wrong_input_is_one_line_and_leaves_nothing(
    words: tuple[str, ...],
    named: str,
    inputs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(inputs)
    before = contents(inputs)
    code = main(list(words))
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("ddpo3d-fast: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert named in err
    assert contents(inputs) == before


@pytest.mark.skipif(build_info()["cuda"], reason="this build has CUDA")
def test_cuda_is_refused_by_a_build_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*MUSHROOM, "--device", "cuda"]) == 2
    assert capsys.readouterr().err.startswith("ddpo3d-fast: --device: expected auto or cpu, got cuda")
    assert list(tmp_path.iterdir()) == []
