"""`generate` on a real GPU: an asset as the CPU makes it, and the same to the byte the second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from ddpo3d_fast.info import missing_for_cuda
from ddpo3d_fast.run import RunFolder

from .conftest import Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(bool(missing_for_cuda()), reason="; ".join(missing_for_cuda())),
]

FEW = "--preset draft --steps 6 --gaussians 500 --max-timestep 0.6 --densify-every 2 --carve-from 0 --quiet"
FEW += " --densify-gradient 0"


def make(command: Command, folder: str, *words: str) -> Path:
    outcome = command("generate", "--prompt", "a red ball", "--output", folder, *FEW.split(), *words)
    assert (outcome.code, outcome.err) == (0, "")
    return Path(folder)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_on_the_gpu_and_leaves_what_one_on_the_cpu_leaves(command: Command) -> None:
    gpu, cpu = make(command, "gpu", "--device", "cuda"), make(command, "cpu", "--device", "cpu")
    assert {path.name for path in gpu.iterdir()} == {path.name for path in cpu.iterdir()}
    provenance = yaml.safe_load((gpu / "config.yaml").read_text())["provenance"]
    assert torch.cuda.get_device_name() in provenance["engine"]
    state = RunFolder.open(gpu).load_checkpoint()["gaussians"]
    assert all(tensor.device.type == "cpu" and tensor.isfinite().all() for tensor in state.values())
    # The prior computes in half precision there, and policy and Adam carry that on: the first step is near.
    first, expected = metrics(gpu)[0], metrics(cpu)[0]
    assert first["timestep"] == expected["timestep"]
    assert first["alpha"] == pytest.approx(expected["alpha"], rel=1e-5)
    assert first["residual"] == pytest.approx(expected["residual"], rel=0.05)


def test_auto_takes_the_gpu_and_a_second_run_is_the_same_to_the_byte(command: Command) -> None:
    first, second = make(command, "first", "--device", "cuda"), make(command, "second", "--device", "auto")
    for name in ("asset.ply", "metrics.jsonl"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_steps_replayed_as_cuda_graphs_make_the_asset_of_launched_ones(command: Command) -> None:
    graphs, launches = make(command, "graphs"), make(command, "launches", "--no-cuda-graph")
    for name in ("asset.ply", "metrics.jsonl"):
        assert (graphs / name).read_bytes() == (launches / name).read_bytes()


def test_a_run_on_the_gpu_goes_on_there_from_its_checkpoint(command: Command) -> None:
    folder = make(command, "run", "--device", "cuda")
    before, asset = metrics(folder), (folder / "asset.ply").read_bytes()
    outcome = command("generate", "--resume", "run", "--steps", "8", "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    assert [row["step"] for row in metrics(folder)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert metrics(folder)[:6] == before
    assert (folder / "asset.ply").read_bytes() != asset
