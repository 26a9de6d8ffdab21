"""Functions of the user's: whatever they return works as it is, a gradient is taken where there is one, and
what goes wrong in them is one line."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch

from ddpo3d_fast.assets import EXPORTERS
from ddpo3d_fast.cli import main
from ddpo3d_fast.errors import FallbackWarning, InputError
from ddpo3d_fast.rewards import FunctionReward, make_reward
from ddpo3d_fast.rewards.function import as_tensor

PROMPTS = ["a red ball", "a blue cube", "a duck"]
MODULE = """
    import sys
    import time
    import numpy as np
    import torch
    from PIL import Image
    from scipy.ndimage import laplace

    scale = torch.nn.Parameter(torch.ones(()))
    print("imported")

    def plain(images, prompts): return images[:, 0].mean((1, 2))

    # Without a gradient.
    def numpy_call(images, prompts): return images.numpy()[:, 0].mean((1, 2))
    def cpu_numpy(images, prompts): return images.cpu().numpy()[:, 0].mean((1, 2)).astype(np.float16)
    def float64(images, prompts): return images.detach().cpu().numpy()[:, 0].astype(np.float64).mean((1, 2))
    def integers(images, prompts): return (100 * images.numpy()[:, 0].mean((1, 2))).astype(np.int64)
    def bytes_(images, prompts): return (255 * images.numpy()[:, 0].mean((1, 2))).astype(np.uint8)
    def truths(images, prompts): return images.numpy()[:, 0].mean((1, 2)) > 0.5
    def a_list(images, prompts): return [float(image[0].mean()) for image in images]
    def a_tuple(images, prompts): return tuple(image[0].mean().item() for image in images)
    def scalars(images, prompts): return [image[0].mean() for image in images.numpy()]
    def columns(images, prompts): return images.numpy()[:, 0].mean((1, 2))[:, None]
    def one_float(images, prompts): return float(images[:, 0].mean())
    def whole(images, prompts): return [len(prompt) for prompt in prompts]
    def hwc(images, prompts):
        pictures = (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        assert pictures.dtype == np.uint8 and pictures.shape[-1] == 3
        return [np.asarray(Image.fromarray(p).convert("L").resize((8, 8))).mean() for p in pictures]
    def scipys(images, prompts): return [-np.abs(laplace(image[0])).mean() for image in images.numpy()]
    def changing(images, prompts):
        images = images.mul_(255).numpy()
        prompts.clear()
        return images[:, 0].mean((1, 2)) / 255
    def printing(images, prompts):
        print("scoring", len(images))
        return images.numpy()[:, 0].mean((1, 2))
    CALLS = []
    def slow(images, prompts):
        time.sleep(0.05)
        CALLS.append(images.shape[-1])
        return images.numpy()[:, 0].mean((1, 2))
    @torch.inference_mode()
    def inferring(images, prompts): return images[:, 0].mean((1, 2))
    def detached(images, prompts): return images.detach()[:, 0].mean((1, 2))
    def undeclared(images, prompts): return images[:, 0].mean((1, 2))
    def denied(images, prompts): return images[:, 0].mean((1, 2))
    denied.differentiable = False
    def suspicious(images, prompts):
        assert not (torch.is_grad_enabled() or images.requires_grad)
        return images[:, 0].mean((1, 2))

    # With one.
    def half(images, prompts): return images.bfloat16()[:, 0].mean((1, 2))
    def double(images, prompts): return images.double()[:, 0].mean((1, 2))
    def tensors(images, prompts): return [image[0].mean() for image in images]
    def one_tensor(images, prompts): return images[:, 0].mean() + 0 * len(prompts[0])
    def tensor_column(images, prompts): return images[:, 0].mean((1, 2))[:, None]
    def changing_tensor(images, prompts): return images.mul_(2)[:, 0].mean((1, 2)) / 2
    class Module(torch.nn.Module):
        def forward(self, images, prompts): return images[:, 0].mean((1, 2)) * scale
    module = Module()
    for each in (plain, half, double, tensors, one_tensor, tensor_column, changing_tensor, module):
        each.differentiable = True

    # Declare one, and give none.
    def parameter(images, prompts): return images.detach()[:, 0].mean((1, 2)) * scale
    def broken_backward(images, prompts): return _Broken.apply(images[:, 0].mean((1, 2)))
    class _Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x): return x.clone()
        @staticmethod
        def backward(ctx, grad): raise NotImplementedError("no derivative")
    def nan_gradient(images, prompts): return (images[:, 0].mean((1, 2)) * 0).sqrt()
    def numpys(images, prompts): return images.numpy()[:, 0].mean((1, 2))
    def graphless(images, prompts): return images.detach()[:, 0].mean((1, 2))
    for each in (parameter, broken_backward, nan_gradient, numpys, graphless):
        each.differentiable = True

    # Mistakes.
    def one_too_few(images, prompts): return images[1:, 0].mean((1, 2))
    def nothing(images, prompts): return None
    def mapping(images, prompts): return {"score": 1.0}
    def with_details(images, prompts): return images.numpy()[:, 0].mean((1, 2)), {}
    def words(images, prompts): return ["0.5"] * len(prompts)
    def complex_(images, prompts): return images[:, 0].mean((1, 2)) * 1j
    def sparse(images, prompts): return images[:, 0].mean((1, 2)).to_sparse()
    def ragged(images, prompts): return [[1.0], [1.0, 2.0]]
    def two_each(images, prompts): return [image.mean((1, 2)) for image in images]
    def infinite(images, prompts): return [float("inf")] * len(prompts)
    def too_large(images, prompts): return np.full(len(prompts), 1e300)
    def leaving(images, prompts): sys.exit("no GPU")
    def failing(images, prompts): raise ValueError("first\\nsecond " + "x" * 5000)
    def cudas(images, prompts): return images.cuda().mean((1, 2, 3))
    async def later(images, prompts): return images
    def turns_wrong(images, prompts):
        if prompts[0] == "a red mushroom":
            raise RuntimeError("out of credit")
        return [0.5] * len(prompts)
"""


def functions(first, last):
    """The names of those between two comments."""
    return re.findall(r"def (\w+)\(images", MODULE.partition(first)[2].partition(last)[0])


WITHOUT = functions("# Without a gradient", "# With one")
WITH = ["plain", "module", *functions("# With one", "class Module")]
LOST = {
    "parameter": "says that it is differentiable, and the graph of its scores does not reach the images",
    "broken_backward": "says that it is differentiable, and its gradient raised NotImplementedError",
    "nan_gradient": "says that it is differentiable, and its gradient is not finite",
    "numpys": "raised RuntimeError: Can't call numpy",
    "graphless": "says that it is differentiable, and its scores have no graph",
}
MISTAKES = {
    "one_too_few": r"expected scores of shape \(2,\), got \(1,\)",
    "nothing": "expected 2 scores, a tensor, an array or a list of numbers, got NoneType",
    "mapping": "expected 2 scores, .* got dict",
    "with_details": "expected 2 scores, .* got tuple",
    "words": r"expected 2 scores, .* got list \(<U3 of shape \(2,\)\)",
    "complex_": r"expected 2 scores, .* got Tensor \(torch\.complex64, torch\.strided\)",
    "sparse": r"expected 2 scores, .* got Tensor \(torch\.float32, torch\.sparse_coo\)",
    "ragged": "expected 2 scores, .* got list",
    "two_each": r"expected 2 scores, .* got list \(shape '\[\]' is invalid",
    "infinite": "expected finite scores, got inf for 2 of 2",
    "too_large": "expected finite scores, got inf for 2 of 2",
    "leaving": "raised SystemExit: no GPU",
    "failing": "raised ValueError: first$",
    "later": "expected 2 scores, .* got coroutine",
}


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A module of the user's in the working directory."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("mine", None)


@pytest.fixture
def images():
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name):
    """The reward, made without a word."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        return make_reward([f"mine:{name}"])


@pytest.mark.parametrize("name", WITHOUT)
def test_whatever_it_returns_are_scores(images, name):
    reward, before = made(name), images.clone()
    assert not reward.differentiable
    scores = reward.score(images, PROMPTS)
    assert (scores.dtype, scores.shape, scores.device) == (torch.float32, (3,), images.device)
    assert torch.equal(images, before)
    expected = images[:, 0].mean((1, 2))
    expected = {
        "integers": (100 * expected).floor(),
        "bytes_": (255 * expected).floor(),
        "truths": (expected > 0.5).float(),
        "whole": torch.tensor([10.0, 11.0, 6.0]),
    }.get(name, expected)
    if name not in ("hwc", "scipys"):
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)
    scores.add_(1)  # no inference tensor, whose use would be limited
    with pytest.raises(InputError, match="has no gradient with respect to the images"):
        reward.score_vjp(images, PROMPTS)


@pytest.mark.parametrize("name", WITH)
def test_a_gradient_is_found_where_there_is_one(images, name):
    reward, before = made(name), images.clone()
    assert reward.differentiable
    scores, gradient = reward.score_vjp(images, PROMPTS)
    torch.testing.assert_close(scores, images[:, 0].mean((1, 2)), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(scores, reward.score(images, PROMPTS))
    expected = torch.zeros_like(images)
    expected[:, 0] = 1 / 64**2
    torch.testing.assert_close(gradient, expected, rtol=1e-2, atol=1e-6)
    assert torch.equal(images, before)
    assert not scores.requires_grad


@pytest.mark.parametrize("name", [*MISTAKES, *LOST])
def test_a_mistake_is_one_line_that_names_the_function(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a coroutine is never awaited
        with pytest.raises(InputError, match=f"^--reward: mine:{name}: {(MISTAKES | LOST)[name]}") as caught:
            make_reward([f"mine:{name}"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_gradient_that_is_lost_during_a_run_is_an_input_error(images):
    def later(images, prompts):
        scores = images.mean((1, 2, 3))
        return scores if prompts[0] == "a red ball" else scores.detach()

    later.differentiable = True
    reward = FunctionReward("later", later)
    assert reward.differentiable
    with pytest.raises(
        InputError, match="later: says that it is differentiable, and its scores have no graph"
    ):
        reward.score_vjp(images, ["a", "b", "c"])


def test_arrays_of_other_libraries_are_read():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    assert as_tensor(np.array([1.5, 2], ml_dtypes.bfloat16)).tolist() == [1.5, 2]

    class Array:
        def __array__(self, dtype=None, copy=None):
            return np.array([1.5, 2.0])

    assert as_tensor(Array()).tolist() == [1.5, 2]


def generate(*words, steps=3):
    line = [
        "generate",
        "--prompt",
        "a red mushroom",
        "--preset",
        "draft",
        "--output",
        "run",
        "--device",
        "cpu",
    ]
    return main([*line, "--steps", str(steps), "--gaussians", "100", "--max-timestep", "0.3", *words])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No turntable: that of other tests will do."""

    monkeypatch.setitem(EXPORTERS, "turntable.mp4", lambda path, _: path.write_bytes(b""))


@pytest.mark.parametrize("name", [*WITHOUT, *WITH])
def test_the_command_runs_with_it(capsys, name):
    assert generate("--reward", f"mine:{name}", "--json") == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]  # whatever it prints is not among them
    steps = [row for row in rows if row["stage"] == "distill"]
    assert len(steps) == 3
    assert all(np.isfinite(row["reward"]) for row in steps)
    assert all(("guide" in row) == (name in WITH) for row in steps)
    assert not [line for line in captured.err.splitlines() if line.startswith("ddpo3d-fast: ")]
    assert ("scoring" in captured.err) == (name == "printing")


@pytest.mark.parametrize("name", ["numpy_call", "a_list", "one_float", "hwc", "truths", "suspicious"])
def test_the_scene_policy_runs_with_it(capsys, name):
    assert generate("--reward", f"mine:{name}", "--policy", "scene", "--policy-pairs", "3", "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [row for row in rows if row["stage"] == "distill"]
    assert len(steps) == 3
    assert all(np.isfinite(row["reward"]) and row[f"reward.mine:{name}"] == row["reward"] for row in steps)
    assert not any("guide" in row for row in steps)


@pytest.mark.parametrize("policy", ["noise", "scene"])
def test_a_reward_that_takes_long_is_asked_now_and_then(capsys, policy):
    """And one that only says yes or no beside it."""
    words = ["--reward", "mine:slow", "--reward", "mine:truths=2", "--policy", policy, "--policy-pairs", "2"]
    assert generate(*words, "--policy-every", "3", "--json", steps=7) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [row for row in rows if row["stage"] == "distill"]
    asked = [row["step"] for row in steps if "reward" in row]
    assert asked == [1, 4, 7]
    assert all(0 <= row["reward.mine:truths"] <= 1 for row in steps if row["step"] in asked)
    assert len(sys.modules["mine"].CALLS) == 1 + len(asked)  # the trial, and once a step


@pytest.mark.parametrize("name", [*MISTAKES, "cudas"])
def test_the_command_tells_a_mistake_in_one_line(capsys, name, tmp_path):
    if name == "cudas" and torch.cuda.is_available():
        pytest.skip("is none here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert generate("--reward", f"mine:{name}") == 2
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if "mine" in line] == told[-1:]
    assert told[-1].startswith(f"ddpo3d-fast: --reward: {tmp_path}/mine:{name}: ")


def test_an_exception_in_a_step_is_one_line_and_verbose_shows_where(capsys, tmp_path):
    line = f"ddpo3d-fast: --reward: {tmp_path}/mine:turns_wrong: raised RuntimeError: out of credit"
    assert generate("--reward", "mine:turns_wrong") == 2
    told = capsys.readouterr().err
    assert told.splitlines()[-1] == line
    assert "Traceback" not in told
    assert generate("--reward", "mine:turns_wrong", "-v") == 2
    told = capsys.readouterr().err
    assert 'raise RuntimeError("out of credit")' in told
    assert told.splitlines()[-1] == line


def test_a_module_that_leaves_when_it_is_imported_is_one_line(tmp_path):
    (tmp_path / "mine.py").write_text("import sys; sys.exit(0)")
    with pytest.raises(InputError, match="importing 'mine' raised SystemExit: 0"):
        make_reward(["mine:plain"])
