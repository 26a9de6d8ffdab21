"""The embedded scorer: its gradient is the gradient, each image stands alone, wrong images are named."""

import pytest
import torch
from torch.nn.functional import avg_pool2d

from ddpo3d_fast.errors import InputError
from ddpo3d_fast.rewards import RewardSettings
from ddpo3d_fast.rewards.embedded import FOLDER, EmbeddedReward, to_tower_size


@pytest.fixture(scope="module")
def scorer():
    return EmbeddedReward()


def pictures(count, size, seed=0):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1).contiguous()


@pytest.mark.parametrize("size", [64, 128, 96, 48])
def test_gradient_equals_finite_differences_in_float64(scorer, size):
    images = pictures(2, size)
    scores, gradient = scorer.score_vjp(images)
    torch.testing.assert_close(scores, scorer.score(images))
    double = EmbeddedReward().network.double()
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
        ahead, behind = (double(to_tower_size(images.double() + step * direction)) for step in (1e-5, -1e-5))
        expected = (ahead - behind) / 2e-5
        along = (gradient.double() * direction).sum((1, 2, 3))
        scale = gradient.double().flatten(1).norm(dim=1)
        assert ((along - expected).abs() <= 1e-4 * scale).all()


def test_each_image_has_its_own_score_and_gradient(scorer):
    images = pictures(3, 64)
    scores, gradient = scorer.score_vjp(images)
    for k in range(3):
        score, own = scorer.score_vjp(images[k : k + 1])
        torch.testing.assert_close(scores[k : k + 1], score, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(gradient[k : k + 1], own, atol=1e-6, rtol=1e-3)


def test_no_graph_leaves_the_scorer(scorer):
    images = pictures(2, 64).requires_grad_()
    scores, gradient = scorer.score_vjp(images)
    assert not scores.requires_grad
    assert not gradient.requires_grad
    assert not scorer.score(images).requires_grad
    assert images.grad is None
    with torch.no_grad():
        torch.testing.assert_close(scorer.score_vjp(images)[1], gradient)


def test_a_step_along_the_gradient_scores_higher(scorer):
    images = pictures(4, 64)
    scores, gradient = scorer.score_vjp(images)
    step = 0.1 * gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert (scorer.score(images + step) > scores).all()


def test_larger_pictures_are_averaged_over_blocks(scorer):
    images = pictures(2, 256)
    torch.testing.assert_close(to_tower_size(images), avg_pool2d(images, 4))
    constant = torch.full((1, 3, 100, 100), 0.3)
    torch.testing.assert_close(to_tower_size(constant), torch.full((1, 3, 64, 64), 0.3))


def test_scores_are_computed_alike_with_and_without_their_gradient(monkeypatch):
    """cuDNN exact in both, where else TF32 may round what the policy compares to 11 bits."""
    scorer, seen = EmbeddedReward(RewardSettings(runtime="torch")), []

    def note(*_):
        cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
        seen.append((cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32))

    scorer.network.register_forward_hook(note)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    images = pictures(3, 64)
    scores = [scorer.score(images), scorer.score_vjp(images)[0]]
    assert seen == 2 * [(True, True, False, torch.backends.cuda.matmul.allow_tf32)]
    assert torch.equal(*scores)
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_scores_and_gradients_on_a_gpu_are_the_cpus(scorer):
    images = pictures(8, 128)
    on_gpu = EmbeddedReward(RewardSettings("cuda"))
    scores, gradient = scorer.score_vjp(images)
    theirs, their_gradient = on_gpu.score_vjp(images.cuda())
    for found in (on_gpu.score(images.cuda()), theirs):
        torch.testing.assert_close(found.cpu(), scores, rtol=1e-5, atol=1e-5)
    assert float((their_gradient.cpu() - gradient).norm()) <= 1e-5 * float(gradient.norm())


def test_no_images_have_no_scores(scorer):
    images = torch.zeros(0, 3, 96, 96)
    assert scorer.score(images).shape == (0,)
    assert [t.shape for t in scorer.score_vjp(images)] == [(0,), images.shape]


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 64, 64), ValueError, r"images: expected shape \[B, 3, N, N\], got \[3, 64, 64\]"),
        (torch.zeros(1, 1, 64, 64), ValueError, "images: expected shape"),
        (torch.zeros(1, 3, 64, 32), ValueError, "images: expected shape"),
        (torch.zeros(1, 3, 0, 0), ValueError, "images: expected shape"),
        (
            torch.zeros(1, 3, 64, 64, dtype=torch.float64),
            TypeError,
            "images: expected float32, got torch.float64",
        ),
    ],
)
def test_wrong_images_are_named(scorer, images, error, message):
    with pytest.raises(error, match=message):
        scorer.score(images)
    with pytest.raises(error, match=message):
        scorer.score_vjp(images)


def test_missing_and_damaged_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"config.json is missing"):
        EmbeddedReward(folder=tmp_path)
    (tmp_path / "config.json").write_bytes((FOLDER / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((FOLDER / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError, match="is damaged"):
        EmbeddedReward(folder=tmp_path)
