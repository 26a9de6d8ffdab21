"""Codecs that are networks: diffusers' own numbers, exact gradients, sizes, precisions."""

import json

import pytest
import torch
from small_stable_diffusion import make_tiny_vae, make_vae
from torch import nn

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.priors import autoencoder as room
from ddpo3d_fast.priors.autoencoder import AutoencoderCodec
from ddpo3d_fast.priors.base import Call

CALLS = [Call(views=2, actions=4, scale=0.5), Call(views=2, actions=4, scale=1.0)]
MAKERS = {
    "kl": make_vae,
    "kl-shifted": lambda: make_vae(shift_factor=0.3, scaling_factor=1.7, latent_channels=6),
    "kl-without-quant": lambda: make_vae(use_quant_conv=False, use_post_quant_conv=False),
    "tiny": make_tiny_vae,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folders of each kind of autoencoder."""
    root = tmp_path_factory.mktemp("codecs")
    torch.manual_seed(1)
    for name, make in MAKERS.items():
        make().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def codecs(saved):
    return {name: open_codec(saved / name) for name in MAKERS}


def open_codec(folder, **options):
    return AutoencoderCodec(folder, **{"runtime": "torch", "latent_size": 8} | options)


def reference(folder):
    diffusers = library("diffusers", "a test")
    kind = json.loads((folder / "config.json").read_text())["_class_name"]
    return getattr(diffusers, kind).from_pretrained(folder)


def reference_latents(vae, pictures):
    """As diffusers' pipelines encode a picture, with the posterior's mean for its sample."""
    encoded = vae.encode(pictures * 2 - 1)
    mean = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latents
    return (mean - (vae.config.shift_factor or 0)) * vae.config.scaling_factor


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


def pictures(count=2, height=64, width=64, seed=0):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 48)])
def test_latents_are_those_of_diffusers(codecs, saved, name, height, width):
    views = pictures(2, height, width)
    with torch.no_grad():
        expected = reference_latents(reference(saved / name), views)
    latents = codecs[name].encode(views)
    assert latents.shape == (2, codecs[name].latent_channels, height // 8, width // 8)
    assert relative(latents, expected) < 1e-5
    assert torch.allclose(codecs[name].encode_with_vjp(views)[0], latents, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_pictures_are_those_of_diffusers(codecs, saved, name):
    vae, latents = reference(saved / name), 0.5 * torch.randn(3, codecs[name].latent_channels, 8, 4)
    with torch.no_grad():
        scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0)
        expected = (vae.decode(scaled).sample + 1) / 2
    got = codecs[name].decode(latents)
    assert got.shape == (3, 3, 64, 32)
    assert relative(got, expected) < 1e-5


@pytest.mark.parametrize("name", MAKERS)
def test_the_vjp_is_autograds_in_double_precision(codecs, saved, name):
    views = pictures(2, 32, 48)
    leaf = views.double().requires_grad_()
    latents = reference_latents(reference(saved / name).double(), leaf)
    grad = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
    (expected,) = torch.autograd.grad(latents, leaf, grad.double())
    latents, pull_back = codecs[name].encode_with_vjp(views)
    got = pull_back(grad)
    assert relative(got.double(), expected) <= 1e-5
    assert (got.dtype, latents.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("inside", [torch.no_grad, torch.enable_grad])
def test_no_graph_leaves_and_the_pictures_stay_as_they_are(codecs, inside):
    views = pictures().requires_grad_()
    before = views.detach().clone()
    with inside():
        latents, pull_back = codecs["kl"].encode_with_vjp(views)
        grad = pull_back(torch.ones_like(latents))
    assert not latents.requires_grad
    assert not grad.requires_grad
    assert views.grad is None
    assert torch.equal(views, before)
    assert latents.is_contiguous()
    assert grad.is_contiguous()


class Recorder:
    """An engine of another runtime than torch: calls the network, and notes its name."""

    runtime = "another"

    def __init__(self, network, called):
        self.network, self.called = network, called

    def __call__(self, **inputs):
        self.called.append(self.network.name)
        with torch.set_grad_enabled(self.network.gradient):
            result = self.network.module(*(inputs[name] for name in self.network.inputs))
        return {self.network.outputs[0]: result.detach()}


def test_other_runtimes_run_the_encoder_and_its_vjp_as_networks(codecs, saved, monkeypatch):
    called, networks = [], []

    def load(network, device, runtime, dtype):
        networks.append(network)
        return Recorder(network, called)

    monkeypatch.setattr(room, "load_network", load)
    codec = open_codec(saved / "kl-shifted", runtime="another", calls=CALLS)
    views = pictures(3, 32, 48)
    latents, pull_back = codec.encode_with_vjp(views)
    grad = torch.randn_like(latents)
    expected_latents, expected_pull_back = codecs["kl-shifted"].encode_with_vjp(views)
    assert relative(latents, expected_latents) < 1e-5
    assert relative(pull_back(grad), expected_pull_back(grad)) < 1e-5
    assert relative(codec.decode(latents), codecs["kl-shifted"].decode(latents)) < 1e-5
    assert called == ["encoder", "encoder_vjp", "decoder"]
    assert codec.runtimes == dict.fromkeys(called, "another")
    for network in networks:  # what an engine needs to know: examples that run, and the axes that change
        with torch.set_grad_enabled(network.gradient):
            network.module(*network.inputs.values())
        assert network.dynamic == dict.fromkeys(network.inputs, (0, 2, 3))
        count = 8 if network.name == "decoder" else 2
        usual = {"pictures": (count, 3, 32, 32), "grad": (count, 6, 4, 4), "latents": (count, 6, 4, 4)}
        assert network.shapes[0] == {name: usual[name] for name in network.inputs}
        assert len(network.shapes) == 2
        assert network.gradient == (network.name == "encoder_vjp")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_in_half_precision_gradients_of_any_size_come_through(codecs, saved, dtype, size):
    codec, views = open_codec(saved / "kl", dtype=dtype), pictures()
    latents, pull_back = codec.encode_with_vjp(views)
    expected, expected_pull_back = codecs["kl"].encode_with_vjp(views)
    assert latents.dtype == torch.float32
    assert 1e-5 < relative(latents, expected) < 5e-2
    grad = size * torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    grad[1] *= 1e-9  # each view for itself
    for got, wanted in zip(pull_back(grad), expected_pull_back(grad), strict=True):
        assert relative(got, wanted) < 5e-2


def test_a_gradient_of_zeros_stays_zero_in_half_precision(saved):
    codec = open_codec(saved / "tiny", dtype=torch.float16)
    latents, pull_back = codec.encode_with_vjp(pictures())
    assert torch.equal(pull_back(torch.zeros_like(latents)), torch.zeros(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("changes", "upcast", "dtype", "expected"),
    [
        ({"force_upcast": True}, True, torch.float16, torch.float32),
        ({"force_upcast": False}, True, torch.float16, torch.float16),
        ({"force_upcast": True}, False, torch.float16, torch.float16),
        ({"force_upcast": True}, True, torch.bfloat16, torch.bfloat16),
    ],
)
def test_an_autoencoder_that_overflows_in_fp16_runs_in_another_type(
    tmp_path, changes, upcast, dtype, expected
):
    make_vae(**changes).save_pretrained(tmp_path)
    codec = open_codec(tmp_path, dtype=dtype, upcast=upcast)
    assert codec.dtype == expected
    assert codec.runtime.endswith(str(expected).removeprefix("torch."))


def test_activations_beyond_fp16s_range_are_finite(tmp_path):
    """What XL's autoencoder does: values inside that fp16 has no room for, harmless after the next norm.

    Where its configuration does not say so, the engine finds out, and the gradient goes where it went.
    """
    vae = make_vae(force_upcast=True)
    for weights in (vae.encoder.conv_in, vae.decoder.conv_in):
        nn.Module.to(weights, torch.float32).weight.data *= 2e5
    vae.save_pretrained(tmp_path)
    codecs = [open_codec(tmp_path, dtype=torch.float16, upcast=True)]
    with pytest.warns(FallbackWarning, match="float16 gives another latents, relative error inf"):
        codecs.append(open_codec(tmp_path, dtype=torch.float16, upcast=False))
    for codec in codecs:
        latents, pull_back = codec.encode_with_vjp(pictures())
        grad = pull_back(torch.randn_like(latents))
        assert codec.dtype == torch.float32
        assert bool(latents.isfinite().all())
        assert bool(grad.isfinite().all())
        assert bool(grad.any())


def test_sizes_that_are_no_multiple_of_the_factor_are_refused(codecs):
    with pytest.raises(ValueError, match="multiples of 8, got 60 x 64"):
        codecs["kl"].encode_with_vjp(pictures(1, 60, 64))


def test_another_class_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel"}')
    with pytest.raises(InputError, match="expected AutoencoderKL or AutoencoderTiny, got VQModel"):
        AutoencoderCodec(tmp_path)
