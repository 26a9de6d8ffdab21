"""The GPU and its tools, as they stand beside figures."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ddpo3d_fast.files import write_text
from ddpo3d_fast.info import cores, cpu_model


def hardware() -> dict[str, Any]:
    """The device and the software around it; ends the program where there is no CUDA device."""
    try:
        import torch
    except ImportError as error:
        sys.exit(f"torch: expected a CUDA build of it, got {error}")
    if not torch.cuda.is_available():
        sys.exit(f"device: expected a CUDA device that torch {torch.__version__} can use, got none")
    device = torch.cuda.get_device_properties(0)
    return {
        "device": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gb": round(device.total_memory / 1e9, 1),
        **nvidia_smi(
            "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit"
        ),
        "cuda": torch.version.cuda,
        "nvcc": nvcc_version(),
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "processor": f"{cpu_model()}, {cores()} cores",
    }


def nvidia_smi(*fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first device, by field; nothing where it says nothing."""
    words = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "-i", "0"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    values = [value.strip() for value in said.stdout.strip().split(",")]
    return (
        dict(zip(fields, values, strict=True)) if said.returncode == 0 and len(values) == len(fields) else {}
    )


def find_tool(name: str) -> str | None:
    """A program of the CUDA toolkit."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    places = [os.environ.get("PATH", ""), f"{home}/bin", f"{home}/compute-sanitizer"]
    return shutil.which(name, path=os.pathsep.join(places))


def nvcc_version() -> str:
    nvcc = find_tool("nvcc")
    if not nvcc:
        return "none"
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    found = re.search(r"release \S+, V(\S+)", said)
    return found.group(1) if found else "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    facts = hardware()
    write_text(parser.parse_args().json, json.dumps(facts) + "\n")
    print(f"{facts['device']}, driver {facts.get('driver_version', 'unknown')}, torch {facts['torch']}")


if __name__ == "__main__":
    main()
