"""What this machine and this installation have, and what a run would use of it."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpo3d_fast import __version__
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.extras import EXTRAS, command, missing

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "openvino",
    "onnxruntime",
    "tensorrt",
    "onnx",
    "onnxscript",
    "diffusers",
    "transformers",
    "open_clip_torch",
)


def cores() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as it gives it, or the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu_models() -> list[str]:
    """The names of the CUDA devices that torch can use."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.cuda.get_device_name(index) for index in range(count)]


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device of a run that wants `auto`, `cpu` or `cuda`, and what it is or why it is no other.

    Raises InputError for `cuda` where something for it is missing.
    """
    import torch

    missing = missing_for_cuda()
    if wanted == "cuda" and missing:
        raise InputError(f"--device: expected auto or cpu here, got cuda: {'; '.join(missing)}")
    if wanted == "cpu" or missing:
        return torch.device("cpu"), "CPU, as asked for" if wanted == "cpu" else f"CPU: {'; '.join(missing)}"
    return torch.device("cuda"), f"CUDA: {torch.cuda.get_device_name()}"


def missing_for_cuda() -> list[str]:
    """What a run on a GPU would need that is not here."""
    import torch

    from ddpo3d_fast.kernels import build_info

    build, missing = build_info(), []
    if not build["cuda"]:
        missing.append("this build has no CUDA kernels (build again where there is an nvcc)")
    if not torch.cuda.is_available():
        missing.append(f"torch {torch.__version__} finds no CUDA device")
    elif build["cuda"]:
        capability, device = torch.cuda.get_device_capability(), torch.cuda.get_device_name()
        if reason := unfit(capability, build["cuda_targets"], build["cuda_toolkit"], build["cuda_driver"]):
            missing.append(f"this build's CUDA kernels do not run on {device}: {reason}")
    if importlib.util.find_spec("diffusers") is None:
        missing.append("diffusers is not installed (pip install 'ddpo3d-fast[generate]')")
    return missing


def unfit(capability: tuple[int, int], targets: list[str], toolkit: int, driver: int) -> str:
    """Why kernels that were built for `targets` do not run on a device; empty if they do.

    `capability` is the device's; the rest is as in `build_info`. A driver runs machine code of any toolkit of
    its major version, but translates PTX only of those that are not newer (CUDA's compatibility guide). Where
    a target is none of a number, CMake's "native" or "all", the device counts as meant.
    """
    parsed = [re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", target) for target in targets]
    machine_code = translated = not all(parsed)
    for match in filter(None, parsed):
        built, kind = (int(match[1]), int(match[2])), match[3]
        same, newer = capability[0] == built[0], capability >= built
        if kind:  # of one architecture alone, or of one family
            newer = capability == built if kind == "a" else same and newer
        machine_code |= match[4] != "-virtual" and same and newer
        translated |= match[4] != "-real" and newer
    needed = toolkit // 1000 * 1000 if machine_code else toolkit
    number = ".".join(map(str, capability))
    if not (machine_code or translated):
        built_for = f"it has compute capability {number}, they were built for {', '.join(targets)}"
        return f"{built_for} (DDPO3D_CUDA_ARCHS={number.replace('.', '')} builds for it)"
    if driver < needed:
        return (
            f"its driver is for CUDA up to {_cuda_version(driver)}, they were built with "
            f"{_cuda_version(toolkit)} (update the driver, or build with an older nvcc)"
        )
    return ""


def _cuda_version(number: int) -> str:
    """13000 as people write it."""
    return f"{number // 1000}.{number % 1000 // 10}"


def machine() -> str:
    """The machine in one line, to stand beside a figure."""
    from ddpo3d_fast.kernels import build_info

    number = cores()
    parts = [cpu_model(), f"{number} core{'s' * (number > 1)}", str(build_info()["simd"]), *gpu_models()]
    return ", ".join(parts)


def report() -> dict[str, Any]:
    """Hardware, runtimes, models and what a run would use, as plain data for JSON."""
    from ddpo3d_fast.kernels import build_info

    build = build_info()
    device, why = choose_device("auto")
    prior, prior_use = _prior(device)
    scorer, scorer_use = _scorer(device)
    cpu = f"CPU, {build['simd']}, {build['threads']} threads"
    return {
        "version": __version__,
        "python": platform.python_version(),
        "hardware": {
            "cpu": cpu_model(),
            "cores": cores(),
            "simd": build["simd"],
            "cuda_build": build["cuda"],
            "cuda_targets": build.get("cuda_targets", []),
            "cuda_devices": gpu_models(),
        },
        "runtimes": {name: _version(name) for name in PACKAGES},
        "extras": {extra: missing(extra) for extra in EXTRAS},
        "models": {"prior": prior, "scorer": scorer},
        "used": {
            "device": why,
            "rasterizer": cpu if device.type == "cpu" else "CUDA",
            "prior": prior_use,
            "scorer": scorer_use,
            "other models": _networks(device),
        },
    }


def describe(facts: dict[str, Any]) -> str:
    """`report`'s data for a person."""
    hardware, models, used = facts["hardware"], facts["models"], facts["used"]
    lines = [f"ddpo3d-fast {facts['version']}, Python {facts['python']}", "", "hardware"]
    lines.append(f"  CPU       {hardware['cpu']}, {hardware['cores']} cores, {hardware['simd']} kernels")
    targets = ", ".join(hardware["cuda_targets"])
    build = f"CUDA kernels built for {targets}" if targets else "built without CUDA kernels"
    lines.append(f"  GPU       {', '.join(hardware['cuda_devices']) or 'none that torch can use'}; {build}")
    lines += ["", "runtimes"]
    lines += [f"  {name:<17}{version or 'not installed'}" for name, version in facts["runtimes"].items()]
    lines += ["", "extras"]
    for extra, lacking in facts["extras"].items():
        text = f"without {', '.join(lacking)}: {command(extra)}" if lacking else "installed"
        lines.append(f"  {extra:<17}{text}")
    lines += ["", "embedded models"]
    for name, model in models.items():
        text = f"{model['mebibytes']:.1f} MiB  {model['path']}" if model else "not found"
        lines.append(f"  {name:<10}{text}")
    if prior := models["prior"]:
        lines += ["", "what the embedded prior knows"]
        lines.append(f"  {len(prior['objects'])} objects: {', '.join(prior['objects'])}")
        lines.append(f"  {len(prior['colors'])} colours: {', '.join(prior['colors'])}")
    lines += ["", "a run here would use"]
    lines += [f"  {part:<14}{use}" for part, use in used.items()]
    return "\n".join(lines)


def _version(package: str) -> str | None:
    try:
        return installed_version(package)
    except PackageNotFoundError:
        return None


def _prior(device: torch.device) -> tuple[dict[str, Any] | None, str]:
    """The embedded prior, and what runs it or why nothing does."""
    from ddpo3d_fast.priors.embedded import EmbeddedPrior

    try:
        prior = EmbeddedPrior(device=device)
    except InputError as error:
        return None, f"unusable: {error}"
    facts = _folder(prior.folder, without="scorer") | {
        "picture_size": prior.picture_size,
        "objects": list(prior.vocabulary.objects),
        "colors": list(prior.vocabulary.colors),
    }
    return facts, prior.runtime


def _scorer(device: torch.device) -> tuple[dict[str, Any] | None, str]:
    """The embedded scorer, and what runs it or why nothing does."""
    from ddpo3d_fast.rewards import RewardSettings
    from ddpo3d_fast.rewards.embedded import FOLDER, EmbeddedReward

    try:
        scorer = EmbeddedReward(RewardSettings(device))
    except InputError as error:
        return None, f"unusable: {error}"
    return _folder(FOLDER), scorer.runtime


def _networks(device: torch.device) -> str:
    """What would run other models than the embedded ones, and why nothing faster does."""
    from ddpo3d_fast.engines import choose_runtime, unavailable

    best = "openvino" if device.type == "cpu" else "tensorrt"
    reason = unavailable(best, device)
    return choose_runtime("auto", device) + (f"; {best}: {reason}" if reason else "")


def _folder(path: Path, without: str = "") -> dict[str, Any]:
    """Where a model lies and how much it weighs, a sub-folder apart."""
    files = [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files if file.relative_to(path).parts[0] != without)
    return {"path": str(path), "mebibytes": round(size / 2**20, 2)}
