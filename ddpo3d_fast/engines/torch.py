"""The torch engine: the UNet of a diffusers folder on any device that torch has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddpo3d_fast.engines.onnx import PROBE_TOLERANCE
from ddpo3d_fast.errors import InputError, first_line

HALF_TOLERANCE = 1e-2  # relative L2: fp16 rounds to 1e-3 through the embedded UNet, a wrong one is off by 1
WEIGHTS = "diffusion_pytorch_model.safetensors"


class TorchEngine:
    """A diffusers UNet in fp32 on the CPU; on CUDA in fp16, or in fp32 where fp16 disagrees with the probe.

    Takes and gives, on its device, what the ONNX graph beside its weights does: `noisy` [B, C, H, W],
    `timesteps` int64 [B], `tokens` [B, L, D], `pooled` [B, P] and `layout` [B, E, H, W] to `prediction`
    [B, C, H, W]; floats are float32. `probe.npz` beside them holds an input and the reference's output.
    """

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        """`folder` has config.json and the weights as safetensors.

        Raises InputError if diffusers is not installed, a file is missing or damaged, or the network
        disagrees with its probe.
        """
        self.device = torch.device(device)
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        for dtype, tolerance in _precisions(self.device):
            self._dtype, self._unet = dtype, _load(folder, self.device, dtype)
            self.runtime = f"torch {torch.__version__}, {place}, {str(dtype).removeprefix('torch.')}"
            error = self._probe_error(folder / "probe.npz")
            if error <= tolerance:
                return
        raise InputError(
            f"{folder / 'probe.npz'}: {self.runtime} gives another prediction, relative error {error:.1e}"
        )

    @torch.no_grad()
    def __call__(self, **inputs: Tensor) -> dict[str, Tensor]:
        # cuDNN as it repeats itself to the bit, and without TF32, which would round fp32 to 11 bits.
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            placed = torch.cat([inputs["noisy"], inputs["layout"]], 1)
            prediction = self._unet(
                placed.to(self._dtype, memory_format=torch.channels_last),
                inputs["timesteps"],
                encoder_hidden_states=inputs["tokens"].to(self._dtype),
                class_labels=inputs["pooled"].to(self._dtype),
            ).sample
        return {"prediction": prediction.to(torch.float32, memory_format=torch.contiguous_format)}

    def _probe_error(self, probe: Path) -> float:
        """Relative L2 distance from the probe's output; 0 where there is no probe."""
        if not probe.is_file():
            return 0.0
        stored = np.load(probe)
        inputs = {k: torch.from_numpy(stored[k]) for k in stored.files if not k.startswith("expected.")}
        got = self(**{name: tensor.to(self.device) for name, tensor in inputs.items()})["prediction"].cpu()
        expected = torch.from_numpy(stored["expected.prediction"])
        return float((got - expected).norm() / expected.norm())


def _precisions(device: torch.device) -> list[tuple[torch.dtype, float]]:
    """What to try, and how far from the probe it may be."""
    exact = [(torch.float32, PROBE_TOLERANCE)]
    return [(torch.float16, HALF_TOLERANCE), *exact] if device.type == "cuda" else exact


def _load(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:  # diffusers' classes have no types
    try:
        from diffusers import UNet2DConditionModel  # seconds to import, and of no use on a CPU
    except ImportError as error:
        raise InputError(
            f"{folder}: torch needs diffusers to run it ({first_line(error)}): "
            "pip install 'ddpo3d-fast[cuda]'"
        ) from error
    try:
        unet: Any = UNet2DConditionModel.from_config(json.loads((folder / "config.json").read_text()))
        unet.load_state_dict({name: t.float() for name, t in load_file(folder / WEIGHTS).items()})
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: is no UNet of diffusers ({first_line(error)})") from error
    # Past diffusers' own `to`, which warns of layers to keep in fp32 though this class has none.
    nn.Module.to(unet, device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return unet.eval().requires_grad_(False)
