"""Which device a run takes, why, and the one line where the one asked for is not there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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
    has(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    return monkeypatch


def has(machine: pytest.MonkeyPatch, **facts: Any) -> None:
    """The build has CUDA kernels, as usual but for these facts."""
    usual = {
        "cuda": True,
        "cuda_targets": ["75-real", "80-real", "90", "120"],
        "cuda_toolkit": 13000,
        "cuda_driver": 13000,
    }
    machine.setattr("ddpo3d_fast.kernels.build_info", lambda: build_info() | usual | facts)


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


@pytest.mark.parametrize(
    ("capability", "targets", "runs"),
    [
        ((7, 5), ["75-real"], True),
        ((7, 5), ["80-real", "90", "120"], False),
        ((7, 0), ["75-real", "80-real", "90", "120"], False),
        ((8, 9), ["80-real"], True),  # machine code of an older one of the same major version
        ((8, 0), ["86-real"], False),
        ((9, 0), ["80-real"], False),
        ((9, 0), ["80"], True),  # PTX
        ((9, 0), ["80-virtual"], True),
        ((10, 0), ["90-real", "120"], False),
        ((10, 0), ["75-real", "80-real", "90", "120"], True),
        ((12, 1), ["120"], True),
        ((10, 0), ["90a"], False),  # neither its machine code nor its PTX is for others
        ((9, 0), ["90a"], True),
        ((10, 3), ["100f"], True),
        ((11, 0), ["100f"], False),
        ((6, 1), ["native"], True),
    ],
)
def test_the_device_must_be_one_that_the_build_is_for(
    machine: pytest.MonkeyPatch, capability: tuple[int, int], targets: list[str], runs: bool
) -> None:
    has(machine, cuda_targets=targets)
    machine.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    device, why = choose_device("auto")
    assert device.type == ("cuda" if runs else "cpu")
    number = ".".join(map(str, capability))
    expected = f"it has compute capability {number}, they were built for {', '.join(targets)}"
    assert (expected in why) is not runs


@pytest.mark.parametrize(
    ("capability", "toolkit", "driver", "runs"),
    [
        ((9, 0), 13000, 12060, False),
        ((9, 0), 13020, 13000, True),  # machine code of any toolkit of the same major version
        ((10, 0), 13020, 13000, False),  # which cannot be said of PTX
        ((10, 0), 13020, 13020, True),
        ((9, 0), 12080, 13000, True),
    ],
)
def test_the_driver_must_be_as_new_as_the_build_needs_it(
    machine: pytest.MonkeyPatch, capability: tuple[int, int], toolkit: int, driver: int, runs: bool
) -> None:
    has(machine, cuda_toolkit=toolkit, cuda_driver=driver)
    machine.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert choose_device("auto")[0].type == ("cuda" if runs else "cpu")
    if not runs:
        with pytest.raises(InputError, match=r"^--device: .*its driver is for CUDA up to 1\d\.\d, they were"):
            choose_device("cuda")


def test_a_gpu_that_the_build_is_not_for_is_told_in_one_line(
    command: Command, machine: pytest.MonkeyPatch
) -> None:
    machine.setattr(torch.cuda, "get_device_capability", lambda *_: (6, 1))
    reason = (
        "this build's CUDA kernels do not run on NVIDIA H200: it has compute capability 6.1, they were built "
        "for 75-real, 80-real, 90, 120 (DDPO3D_CUDA_ARCHS=61 builds for it)"
    )
    outcome = command("generate", "--prompt", "a red mushroom", "--device", "cuda")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"ddpo3d-fast: --device: expected auto or cpu here, got cuda: {reason}\n"
    few = ["--preset", "draft", "--steps", "1", "--gaussians", "50"]
    outcome = command("generate", "--prompt", "a red mushroom", *few)
    assert outcome.code == 0
    assert [line for line in outcome.err.splitlines() if "CPU" in line] == [
        f"ddpo3d-fast: running on the CPU: {reason}"
    ]
    assert f"  device        CPU: {reason}\n" in command("info").out


def test_info_says_why_a_run_would_use_the_cpu(command: Command, machine: pytest.MonkeyPatch) -> None:
    take_away(machine, NO_GPU)
    machine.setattr(info, "gpu_models", lambda: [])
    assert f"  device        CPU: {NO_GPU}\n" in command("info").out
