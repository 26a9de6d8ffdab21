"""Which device a run takes, why, and the one line where the one asked for is not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from ddpo3d_fast import info
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.info import choose_device
from ddpo3d_fast.kernels import build_info

from .conftest import Command

NO_BUILD = "this build has no CUDA kernels"
NO_GPU = f"torch {torch.__version__} finds no CUDA device"
NO_DIFFUSERS = "diffusers is not installed (pip install 'ddpo3d-fast[generate]')"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine that has all it takes, as far as anyone asks."""
    build = build_info() | {"cuda": True}
    monkeypatch.setattr("ddpo3d_fast.kernels.build_info", lambda: build)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    return monkeypatch


def take_away(machine: pytest.MonkeyPatch, *parts: str) -> None:
    if NO_BUILD in parts:
        machine.setattr("ddpo3d_fast.kernels.build_info", lambda: {"cuda": False})
    if NO_GPU in parts:
        machine.setattr(torch.cuda, "is_available", lambda: False)
    if NO_DIFFUSERS in parts:
        machine.setitem(sys.modules, "diffusers", None)


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_a_gpu_is_taken_where_there_is_all_it_takes(machine: pytest.MonkeyPatch, wanted: str) -> None:
    assert choose_device(wanted) == (torch.device("cuda"), "CUDA: NVIDIA H200")


def test_the_cpu_is_taken_where_it_is_asked_for(machine: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == (torch.device("cpu"), "CPU, as asked for")


@pytest.mark.parametrize(
    "parts", [(NO_BUILD,), (NO_GPU,), (NO_DIFFUSERS,), (NO_BUILD, NO_GPU, NO_DIFFUSERS)], ids=len
)
def test_what_is_missing_is_named_and_the_cpu_taken_or_the_run_refused(
    machine: pytest.MonkeyPatch, parts: tuple[str, ...]
) -> None:
    take_away(machine, *parts)
    device, why = choose_device("auto")
    assert device == torch.device("cpu")
    assert why.startswith("CPU: ")
    assert choose_device("cpu")[0] == torch.device("cpu")
    with pytest.raises(InputError) as caught:
        choose_device("cuda")
    for text in (why, str(caught.value)):
        assert [part in text for part in (NO_BUILD, NO_GPU, NO_DIFFUSERS)] == [
            part in parts for part in (NO_BUILD, NO_GPU, NO_DIFFUSERS)
        ]
    assert str(caught.value).startswith("--device: expected auto or cpu here, got cuda: ")


def test_a_run_on_a_gpu_that_is_not_there_is_one_line(command: Command, machine: pytest.MonkeyPatch) -> None:
    take_away(machine, NO_GPU)
    outcome = command("generate", "--prompt", "a red mushroom", "--device", "cuda")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"ddpo3d-fast: --device: expected auto or cpu here, got cuda: {NO_GPU}\n"
    assert not Path("outputs").exists()


def test_info_says_why_a_run_would_use_the_cpu(command: Command, machine: pytest.MonkeyPatch) -> None:
    take_away(machine, NO_GPU)
    machine.setattr(info, "gpu_models", lambda: [])
    assert f"  device        CPU: {NO_GPU}\n" in command("info").out
