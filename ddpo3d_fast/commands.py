"""What each command takes: a dataclass with a line of help a field, and examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ddpo3d_fast.settings import Config, Preset, Range

# What a command takes without an option's name, and what it is called where it is missing.
POSITIONAL = {
    "asset": "one Gaussian splat, or the folder of a run",
    "prompts": "one file of prompts",
    "path": "one file or folder",
}
_Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True)
class Generate(Config):
    """Makes a 3D asset from a prompt. The defaults shown are those of the preset, or of the --config file."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML file to take the settings from, for example the config.yaml of a run; flags beside it win"""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder of a run to go on with; of its settings only --steps may change"""
    overwrite: _Switch = False
    """overwrite a run with other settings in the folder of --output"""
    mesh: _Switch = False
    """make a textured mesh of the asset, too: mesh.glb, by the defaults of the command mesh"""
    refine_steps: Annotated[int, Range(0, 100_000)] = 0
    """steps that refine the texture of --mesh by the run's prior and reward; 0: none"""
    view: _Switch = False
    """show the Gaussians in the browser while they are made, with a button that does what Ctrl-C does"""
    port: Annotated[int, Range(0, 65535)] = 8080
    """port on 127.0.0.1 of the page of --view; 0 for any that is free"""
    quiet: Annotated[_Switch, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing"""
    json: _Switch = False
    """print one JSON object a step, and a last one with files and seconds, to stdout"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


# The settings that `generate --help` shows, in the order in which people need them; --help-all shows all.
EVERYDAY = (
    *("prompt", "preset", "seed", "steps", "output", "resume", "config", "device"),
    *("model", "lora", "guidance_scale", "negative_prompt"),
    *("reward", "policy", "policy_weight", "guide_weight", "views", "gaussians"),
    *("overwrite", "mesh", "view", "json", "quiet", "verbose"),
)


@dataclass(frozen=True)
class Render:
    """Renders a Gaussian splat: a turntable (.mp4), a contact sheet (.png) or stills (a folder)."""

    asset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ASSET")]]
    """3D Gaussian splat of this program or another (.ply, .spz, .splat, .sog, .glb, .usd), or a run's
    folder"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """FILE.mp4, FILE.png or a folder to write to (default: beside the asset)"""
    size: Annotated[int, Range(1, 4096)] = 384
    """side of a view, in pixels"""
    views: Annotated[int | None, Range(1, 3600), tyro.conf.arg(metavar="INT")] = None
    """number of views in one turn (default: 90 of a turntable, else 8)"""
    elevation: Annotated[float, Range(-90.0, 90.0)] = 15.0
    """elevation of the camera, in degrees above the horizon"""
    radius: Annotated[float | None, Range(1e-12, 1e12), tyro.conf.arg(metavar="FLOAT")] = None
    """distance of the camera from the centre, in the file's units; a small one looks around inside a room
    (default: the scene fills the picture, floaters and sky left out)"""
    center: Annotated[str, tyro.conf.arg(metavar="X,Y,Z")] = ""
    """point that the camera looks at, in the file's coordinates (default: the middle of the scene)"""
    up: Annotated[Literal["y", "-y", "z", "-z", "x", "-x"] | None, tyro.conf.arg(metavar="AXIS")] = None
    """axis of the file that points up: y, -y, z, -z, x or -x (default: -y of .ply, .splat and .sog, y of .spz
    and .glb, what a USD stage says)"""
    background: Annotated[str, tyro.conf.arg(metavar="COLOR")] = "white"
    """colour behind the scene: a name, #rrggbb, or r,g,b from 0 to 1"""
    stills: _Switch = False
    """write every view as a png of its own, in a folder"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class Export:
    """Writes a Gaussian splat in other formats, each as the suffix of its name says."""

    asset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ASSET")]]
    """folder of a run, or 3D Gaussian splat of this program or another (.ply, .spz, .splat, .sog, .glb,
    .usd)"""
    outputs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="OUT...")]] = ()
    """files to write: .ply, .compressed.ply, .spz, .splat, .sog, .glb, .usda, .usdc or .usdz; a suffix alone
    writes beside the asset"""
    orientation: Annotated[Literal["y", "-y", "z", "-z", "x", "-x"] | None, tyro.conf.arg(metavar="AXIS")] = (
        None
    )
    """axis of the written files that points up: y, -y, z, -z, x or -x (default: y of .spz, .glb and .usd, -y
    of the others)"""
    up: Annotated[Literal["y", "-y", "z", "-z", "x", "-x"] | None, tyro.conf.arg(metavar="AXIS")] = None
    """axis of the asset that points up, as for render (default: the one that its format has)"""
    spz_version: Annotated[Literal[2, 3, 4], tyro.conf.arg(metavar="INT")] = 3
    """version of .spz: 3, or 2 for gaussian-splats-3d and spz-js, whose rotations are coarse, or 4, which
    fewer programs read"""
    quiet: Annotated[_Switch, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class Mesh:
    """Makes a textured mesh of a Gaussian splat, or of the one in a run's folder."""

    asset: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="ASSET")]]
    """folder of a run, or 3D Gaussian splat of this program or another (.ply, .spz, .splat, .sog, .glb,
    .usd)"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """FILE.glb, FILE.obj (with .mtl and .png) or FILE.ply to write (default: mesh.glb in the folder of the
    run, NAME-mesh.glb beside a file)"""
    faces: Annotated[int, Range(100, 1_000_000)] = 12000
    """triangles at most"""
    texture_size: Annotated[int, Range(64, 8192)] = 1024
    """side of the texture, in texels"""
    resolution: Annotated[int, Range(24, 768)] = 192
    """points of the grid that the surface is found on, along its longest side"""
    refine_steps: Annotated[int, Range(0, 100_000)] = 0
    """steps that refine the texture by the prior and the reward of the run; 0: none"""
    quiet: Annotated[_Switch, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class Batch:
    """Makes the assets of many prompts side by side, on Ray. What is done already is not made again."""

    prompts: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PROMPTS")]]
    """text with a prompt a line, # before a comment; or .yaml with a list of runs, each a prompt or settings
    as in config.yaml"""
    output: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """folder for the folders of the runs and their summary (default: outputs/<name of PROMPTS>)"""
    preset: Annotated[Preset | None, tyro.conf.arg(metavar="NAME")] = None
    """name of the values for all settings of a text's runs (default: standard)"""
    seeds: Annotated[str | None, tyro.conf.arg(metavar="SEEDS")] = None
    """seeds of each prompt of a text, for example 0-3 or 0,4,8 (default: 0)"""
    address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Ray cluster to run on, `auto` for the one that this machine is part of; its machines need this program
    and the folder of --output (default: a Ray of this machine alone)"""
    cpus: Annotated[float, Range(0.01, 1024.0)] = 1.0
    """CPU cores of a run; as many runs as there are cores for go side by side"""
    gpus: Annotated[float | None, Range(0.0, 1024.0), tyro.conf.arg(metavar="FLOAT")] = None
    """GPUs of a run, 0.5 for two runs on one (default: 1 where there are any, 0 if no run wants one)"""
    quiet: Annotated[_Switch, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing but the runs that failed"""
    json: _Switch = False
    """print one JSON object a run, and a last one with counts and files, to stdout"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class View:
    """Shows an asset, a mesh, a run or a folder of runs in a browser of this machine, until Ctrl-C."""

    path: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="PATH")]]
    """Gaussian splat, mesh (.glb, .obj, .ply), folder of a run, or folder of runs to choose from"""
    port: Annotated[int, Range(0, 65535)] = 8080
    """port on 127.0.0.1; 0 for any that is free"""
    quiet: Annotated[_Switch, tyro.conf.arg(aliases=["-q"])] = False
    """print nothing, not even the address"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class Info:
    """Shows hardware, runtimes and models: what is found, and what a run would use."""

    json: _Switch = False
    """print one JSON object in place of text"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class EnginesList:
    """Shows the cache of exported graphs and built engines."""

    json: _Switch = False
    """print one JSON object in place of text"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class EnginesBuild:
    """Builds and tries what a run with the same settings would build when it starts."""

    model: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = "embedded"
    """diffusion prior, as for generate"""
    preset: Preset = "standard"
    """name of the settings of the run; its sizes, views and noises count"""
    codec: Annotated[str, tyro.conf.arg(metavar="NAME|DIR")] = ""
    """autoencoder in place of the model's own, as for generate"""
    lora: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="FILE[=SCALE]"),
    ] = ()
    """LoRA or DoRA to fuse into the model, as for generate; repeat the flag for several"""
    reward: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(metavar="NAME[=WEIGHT]"),
    ] = ()
    """reward, as for generate; repeat the flag for several (default: the model's)"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """processor that the run will be on; auto: CUDA where it can be used, else the CPU"""
    runtime: Literal["auto", "tensorrt", "openvino", "onnxruntime", "torch"] = "auto"
    """library that will run the networks; torch needs nothing built, nor do the embedded models with auto"""
    precision: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """dtype that the networks will compute in; auto: fp16 on a GPU, bf16 on a CPU that computes in it where
    OpenVINO is there, else fp32"""
    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


@dataclass(frozen=True)
class EnginesClear:
    """Empties the cache of exported graphs and built engines."""

    verbose: Annotated[_Switch, tyro.conf.arg(aliases=["-v"])] = False
    """print details, and the stack trace of an error"""


EXAMPLES: dict[type, str] = {
    Generate: """examples:
  ddpo3d-fast generate --prompt "a red mushroom"
  ddpo3d-fast generate --prompt "a blue car" --preset draft --seed 3 --output car
  ddpo3d-fast generate --prompt "a green tree" --reward embedded=0.5 --reward my_module:my_score
  ddpo3d-fast generate --prompt "a ripe strawberry" --model sd21 --reward aesthetic
  ddpo3d-fast generate --resume outputs/a-red-mushroom-0 --steps 300
  ddpo3d-fast generate --preset high --help-all     (the settings behind a preset)
""",
    Render: """examples:
  ddpo3d-fast render outputs/a-red-mushroom-0/asset.ply
  ddpo3d-fast render asset.ply --output sheet.png --views 12 --background 0.2,0.2,0.2
  ddpo3d-fast render asset.ply --stills --size 1024 --elevation 30
""",
    Export: """examples:
  ddpo3d-fast export outputs/a-red-mushroom-0 .spz .glb
  ddpo3d-fast export scan.ply scan.sog scan.usdz --up z
  ddpo3d-fast export asset.ply game/mushroom.ply --orientation y

docs/assets.md says what each format keeps, and which programs show it.
""",
    Mesh: """examples:
  ddpo3d-fast mesh outputs/a-red-mushroom-0
  ddpo3d-fast mesh outputs/a-red-mushroom-0 --refine-steps 50
  ddpo3d-fast mesh scan.ply --output scan.obj --faces 30000 --texture-size 2048
""",
    Batch: """examples:
  ddpo3d-fast batch prompts.txt --preset draft --seeds 0-3
  ddpo3d-fast batch runs.yaml --output outputs/night --cpus 2
  ddpo3d-fast batch prompts.txt --gpus 0.5
  ddpo3d-fast batch prompts.txt --address 10.0.0.1:6379 --output /shared/outputs

docs/running.md shows a list of runs in YAML.
""",
    View: """examples:
  ddpo3d-fast view outputs
  ddpo3d-fast view outputs/a-red-mushroom-0/asset.ply --port 9000
  ddpo3d-fast view scan.ply
""",
    Info: """examples:
  ddpo3d-fast info
  ddpo3d-fast info --json
""",
    EnginesList: """examples:
  ddpo3d-fast engines list
  ddpo3d-fast engines list --json
""",
    EnginesBuild: """examples:
  ddpo3d-fast engines build --model sd21 --reward aesthetic
  ddpo3d-fast engines build --runtime onnxruntime --device cpu
""",
    EnginesClear: """examples:
  ddpo3d-fast engines clear
""",
}
