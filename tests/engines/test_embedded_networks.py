"""The embedded models on other runtimes than their own compute what they do on their own."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from ddpo3d_fast.engines import OnnxEngine, choose, load_network
from ddpo3d_fast.engines.openvino import unavailable
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors import PriorSettings, load_prior
from ddpo3d_fast.priors.embedded import FOLDER, unet_network
from ddpo3d_fast.rewards import RewardSettings
from ddpo3d_fast.rewards.embedded import EmbeddedReward

UNET = FOLDER / "unet"


@pytest.fixture(scope="module")
def network():
    return unet_network(UNET)


@pytest.fixture(scope="module")
def shipped():
    return OnnxEngine(UNET / "model.onnx")


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(UNET, tmp_path / "unet")


def inputs(network, count):
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(count, *t.shape[1:], generator=generator) for name, t in network.inputs.items()}
    return made | {"timesteps": torch.randint(1000, (count,), generator=generator)}


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("count", [1, 5])
def test_the_unet_on_torch_is_the_shipped_graph(network, shipped, count):
    given = inputs(network, count)
    got = load_network(network, runtime="torch")(**given)
    assert got.keys() == {"prediction"}
    assert relative(got["prediction"], shipped(**given)["prediction"]) <= 1e-5


def test_half_precision_is_taken_where_the_probe_agrees(network, shipped, recwarn):
    engine, given = load_network(network, runtime="torch", dtype=torch.float16), inputs(network, 2)
    assert engine.runtime.endswith("float16")
    assert not [warning for warning in recwarn if issubclass(warning.category, FallbackWarning)]
    assert 1e-5 < relative(engine(**given)["prediction"], shipped(**given)["prediction"]) < 1e-2


def test_a_prior_runs_on_the_runtime_that_was_asked_for():
    runtimes = {
        name: load_prior(PriorSettings("embedded", runtime=name)).runtime for name in ("onnxruntime", "torch")
    }
    assert runtimes["onnxruntime"].startswith("ONNX Runtime")
    assert runtimes["torch"] == f"torch {torch.__version__}, CPU, float32"
    with pytest.raises(InputError, match="got tensorrt: runs on cuda alone"):
        load_prior(PriorSettings("embedded", runtime="tensorrt"))


def test_weights_that_disagree_with_their_probe_are_refused(copy):
    stored = dict(np.load(copy / "probe.npz"))
    np.savez(copy / "probe.npz", **stored | {"expected.prediction": 1.001 * stored["expected.prediction"]})
    with pytest.raises(InputError, match=r"unet: .* float32 gives another prediction, relative error 1"):
        load_network(unet_network(copy), runtime="torch")


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors", "probe.npz"])
@pytest.mark.parametrize("content", [None, b"", b"PK\3\4"])
def test_a_missing_or_broken_part_is_one_line(copy, name, content):
    (copy / name).unlink()
    if content is not None:
        (copy / name).write_bytes(content)
    with pytest.raises(InputError, match="is no UNet of diffusers") as caught:
        unet_network(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_unet_are_refused(copy):
    text = (copy / "config.json").read_text()
    (copy / "config.json").write_text(text.replace('"layers_per_block": 1', '"layers_per_block": 2'))
    assert (copy / "config.json").read_text() != text
    with pytest.raises(InputError, match="is no UNet of diffusers"):
        unet_network(copy)


def test_a_prior_on_the_cpu_does_without_diffusers():
    code = """
import sys
from ddpo3d_fast.priors import PriorSettings, load_prior
sys.modules["diffusers"] = None
print(load_prior(PriorSettings("embedded")).runtime.split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout in ("OpenVINO\n", "ONNX\n"), done.stderr) == (True, "")


def test_without_diffusers_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"needs diffusers .*: pip install 'ddpo3d-fast\[generate\]'"):
        unet_network(UNET)


@pytest.mark.parametrize("runtime", ["auto", "openvino", "onnxruntime"])
@pytest.mark.parametrize("size", [64, 128, 48])
def test_the_shipped_graphs_of_the_scorer_are_the_scorer(runtime, size, tmp_path, monkeypatch):
    """They need nothing to export with, and make nothing."""
    if runtime == "openvino" and (reason := unavailable()):
        pytest.skip(reason)
    monkeypatch.setenv("DDPO3D_CACHE", str(tmp_path))
    monkeypatch.setattr(choose, "missing_packages", lambda: ["onnx"])
    images = torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    own, other = (EmbeddedReward(RewardSettings(runtime=name)) for name in ("torch", runtime))
    assert relative(other.score(images), own.score(images)) <= 1e-5
    for got, expected in zip(other.score_vjp(images), own.score_vjp(images), strict=True):
        assert got.shape == expected.shape
        assert relative(got, expected) <= 1e-5
    assert own.runtime.startswith("torch")
    assert not other.runtime.startswith("torch")
    assert not any(tmp_path.iterdir())
