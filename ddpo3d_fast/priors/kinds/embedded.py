"""The embedded prior as a kind: its presets, and its loading."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ddpo3d_fast import openvino_graph
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.kinds.kind import PriorKind, PriorSettings
from ddpo3d_fast.settings import Config

if TYPE_CHECKING:
    from ddpo3d_fast.priors.embedded import EmbeddedPrior

NAME = "embedded"


def load(wanted: PriorSettings) -> EmbeddedPrior:
    """The prior of the package, or one like it in a folder. It has its own codec and views."""
    from ddpo3d_fast.priors.embedded import FOLDER, EmbeddedPrior
    from ddpo3d_fast.priors.find import find_pipeline

    folder = FOLDER if wanted.model == NAME else find_pipeline(wanted)
    for argument, value in (("--codec", wanted.codec), ("--lora", wanted.lora)):
        if value:
            raise InputError(f"{argument}: expected none with the embedded prior, got {value!r}")
    return EmbeddedPrior(folder, wanted.device, wanted.runtime, wanted.calls, wanted.dtype)


def ahead(config: Config) -> None:
    """Begins to compile the UNet for the CPU while torch is imported, which takes longer."""
    wishes = config.distillation
    on_gpu = config.device == "cuda" or (config.device == "auto" and Path("/dev/nvidiactl").exists())
    native = openvino_graph.computes_bf16()
    wanted = ("auto", "fp32", "bf16") if native else ("auto", "fp32")
    if wishes.model != NAME or wishes.runtime not in ("auto", "openvino") or wishes.precision not in wanted:
        return
    if on_gpu or openvino_graph.missing():
        return
    predictions = 3 if wishes.residual == "nfsd" else 2
    items = predictions * config.schedule.views * config.schedule.actions(compared=False)
    graph = Path(__file__).parent.parent.parent / "models" / "embedded" / "unet" / "model.onnx"
    openvino_graph.begin(graph, native and wishes.precision != "fp32", items)


def check(config: Config) -> None:
    """Raises InputError for pictures of other sizes."""
    if set(config.schedule.picture_scales) != {1.0}:
        raise InputError(
            f"--picture-scales: expected 1 with the embedded prior, which knows one size, "
            f"got {config.schedule.picture_scales}"
        )


KIND = PriorKind(
    title="the embedded prior",
    models={NAME: ()},
    classes=("EmbeddedPrior",),
    load=load,
    ahead=ahead,
    check=check,
    small=True,
    presets={
        "draft": {"schedule": {"steps": 70, "views": 2}, "scene": {"gaussians": 1500}},
        "standard": {},
        "high": {"schedule": {"steps": 500}, "scene": {"gaussians": 6000}},
    },
)
