"""Views at other sizes, and the gradient back."""

import pytest
import torch

from ddpo3d_fast.control import torch_threads
from ddpo3d_fast.resampling import resize, resize_vjp


@pytest.mark.parametrize(("rendered", "seen"), [(8, 4), (4, 4), (4, 8), (4, 9), (12, 4)])
def test_the_vjp_of_resizing_is_its_transpose(rendered, seen):
    images = torch.rand(2, rendered, rendered, 3, dtype=torch.float64)
    grad = torch.rand(2, 3, seen, seen, dtype=torch.float64)
    pictures = resize(images, seen)
    assert pictures.shape == grad.shape
    assert torch.allclose((pictures * grad).sum(), (images * resize_vjp(grad, rendered)).sum())
    assert torch.allclose(resize(torch.ones_like(images), seen), torch.ones_like(grad))


def allowed_sizes():
    """Pairs that `sizes_at` lets through: of views smaller than their pictures, and of a few larger ones."""
    small = [(rendered, seen) for seen in (8, 16, 24, 64) for rendered in range(1, seen)]
    return [*small, (16, 8), (64, 64), (192, 64), (64, 512), (100, 512), (128, 256)]


def vjp_of_torch(grad, rendered):
    """`resize_vjp` as torch's own backward has it, in float64, where its weights are exact."""
    images = torch.zeros(len(grad), 3, rendered, rendered, dtype=torch.float64, requires_grad=True)
    size = grad.shape[-1]
    mode = {"mode": "area"} if rendered % size == 0 else {"mode": "bilinear", "align_corners": False}
    pictures = torch.nn.functional.interpolate(images, size=(size, size), **mode)
    return torch.autograd.grad(pictures, images, grad.double())[0].permute(0, 2, 3, 1)


@torch_threads(1)
def test_resizing_and_its_vjp_are_torchs_for_every_pair_of_sizes():
    generator = torch.Generator().manual_seed(0)
    for rendered, seen in allowed_sizes():
        grad = torch.randn(1, 3, seen, seen, generator=generator)
        expected, got = vjp_of_torch(grad, rendered), resize_vjp(grad, rendered)
        assert (got - expected).norm() <= 1e-6 * expected.norm(), (rendered, seen)
        if rendered < seen:
            images = torch.rand(1, rendered, rendered, 3, generator=generator)
            expected = torch.nn.functional.interpolate(
                images.permute(0, 3, 1, 2), (seen, seen), mode="bilinear"
            )
            assert (resize(images, seen) - expected).norm() <= 1e-6 * expected.norm(), (rendered, seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("rendered", "seen"), [(128, 256), (128, 512), (100, 512), (512, 512), (192, 64)])
def test_on_a_gpu_the_vjp_of_resizing_has_the_same_bits_every_time_and_the_cpus_numbers(rendered, seen):
    grad = torch.randn(4, 3, seen, seen, generator=torch.Generator().manual_seed(0))
    first, *others = (resize_vjp(grad.cuda(), rendered) for _ in range(10))
    assert all(torch.equal(first, other) for other in others)
    expected = resize_vjp(grad, rendered)
    assert (first.cpu() - expected).norm() <= 1e-6 * expected.norm()
