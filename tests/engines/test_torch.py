"""The torch engine computes what the ONNX engine does, in the precision that its probe allows."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddpo3d_fast.engines import OnnxEngine
from ddpo3d_fast.engines import torch as room
from ddpo3d_fast.engines.torch import HALF_TOLERANCE, TorchEngine
from ddpo3d_fast.errors import InputError
from ddpo3d_fast.priors.embedded import FOLDER

UNET = FOLDER / "unet"
HALF, SINGLE = (torch.float16, HALF_TOLERANCE), (torch.float32, room.PROBE_TOLERANCE)


@pytest.fixture(scope="module")
def engine():
    return TorchEngine(UNET, "cpu")


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(UNET, tmp_path / "unet")


def inputs(count, seed=0):
    stored, generator = np.load(UNET / "probe.npz"), torch.Generator().manual_seed(seed)
    names = ("noisy", "tokens", "pooled", "layout")
    made = {name: torch.randn(count, *stored[name].shape[1:], generator=generator) for name in names}
    return made | {"timesteps": torch.randint(1000, (count,), generator=generator)}


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


def in_single_precision(given):
    return OnnxEngine(UNET / "model.onnx")(**given)["prediction"]


@pytest.mark.parametrize("count", [1, 5])
def test_it_computes_what_the_onnx_engine_computes(engine, count):
    given = inputs(count)
    got = engine(**given)
    assert got.keys() == {"prediction"}
    assert relative(got["prediction"], in_single_precision(given)) <= 1e-5


def test_its_result_is_as_the_kernels_want_it(engine):
    prediction = engine(**inputs(2))["prediction"]
    assert prediction.dtype == torch.float32
    assert prediction.is_contiguous()
    assert not prediction.requires_grad


def test_it_says_what_it_runs_on(engine):
    assert engine.runtime == f"torch {torch.__version__}, CPU, float32"


def test_half_precision_is_tried_first_on_a_gpu_alone():
    assert room._precisions(torch.device("cuda")) == [HALF, SINGLE]
    assert room._precisions(torch.device("cpu")) == [SINGLE]


def test_half_precision_is_taken_where_the_probe_agrees(monkeypatch):
    monkeypatch.setattr(room, "_precisions", lambda device: [HALF, SINGLE])
    engine, given = TorchEngine(UNET, "cpu"), inputs(2)
    assert engine.runtime.endswith("float16")
    assert engine(**given)["prediction"].dtype == torch.float32
    assert 1e-5 < relative(engine(**given)["prediction"], in_single_precision(given)) < HALF_TOLERANCE


def test_single_precision_is_taken_where_the_probe_disagrees_with_half(monkeypatch):
    monkeypatch.setattr(room, "_precisions", lambda device: [(torch.float16, 1e-6), SINGLE])
    assert TorchEngine(UNET, "cpu").runtime.endswith("float32")


def test_an_engine_that_disagrees_with_its_probe_is_refused(copy):
    stored = dict(np.load(copy / "probe.npz"))
    np.savez(copy / "probe.npz", **stored | {"expected.prediction": 1.001 * stored["expected.prediction"]})
    with pytest.raises(InputError, match="float32 gives another prediction, relative error 1"):
        TorchEngine(copy, "cpu")
    (copy / "probe.npz").unlink()
    TorchEngine(copy, "cpu")


@pytest.mark.parametrize("name", ["config.json", room.WEIGHTS])
@pytest.mark.parametrize("content", [None, b"", b"{}"])
def test_a_missing_or_broken_part_is_one_line(copy, name, content):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(InputError, match="is no UNet of diffusers") as caught:
        TorchEngine(copy, "cpu")
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_prior_on_the_cpu_does_without_diffusers():
    code = """
import sys
from ddpo3d_fast.priors import load_prior
sys.modules["diffusers"] = None
print(load_prior("embedded").runtime.split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("ONNX\n", "")


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"needs diffusers .*: pip install 'ddpo3d-fast\[cuda\]'"):
        TorchEngine(UNET, "cpu")
