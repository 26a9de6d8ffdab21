"""The prior's judgement: every prompt once, DDIM that ends at the clean picture, tables that add up."""

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot, pixel_unshuffle

from ddpo3d_fast.training.evaluate_prior import all_prompts, judge, load_prior, sample, save_sheet
from ddpo3d_fast.training.objects import CLASS_NAMES, COLOR_NAMES
from ddpo3d_fast.training.prior import PATCH, Model


class Oracle(nn.Module):
    """A prior whose clean guess is always the same picture, whatever the noise."""

    def __init__(self, picture: torch.Tensor) -> None:
        super().__init__()
        self.latents = pixel_unshuffle(picture[None] * 2 - 1, PATCH)

    def forward(self, noisy, timesteps, words, cameras, known):
        return self.latents.expand(len(noisy), -1, -1, -1)


class Repeats(nn.Module):
    """A judge that reads its answer from the first two pixels."""

    def forward(self, pictures):
        digits = (pictures[:, 0, 0, :2] * 255).round().long()
        return one_hot(digits[:, 0], len(CLASS_NAMES)).float(), one_hot(
            digits[:, 1], len(COLOR_NAMES)
        ).float()


def test_every_class_colour_and_view_is_asked_once():
    words = all_prompts()
    assert words.shape == (24 * 11 * 4, 4)
    assert len(words.unique(dim=0)) == len(words)
    assert (words[:, 2] == len(COLOR_NAMES)).all()  # no second colour


def test_samples_of_a_prior_that_knows_are_its_picture():
    picture = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 48, 16, 16, generator=torch.Generator().manual_seed(1))
    pictures = sample(Oracle(picture), all_prompts()[:2], noise, steps=5, guidance=3)
    torch.testing.assert_close(pictures, picture.expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def test_table_counts_right_answers_by_group():
    words = torch.tensor([[0, 1, 11, 0], [0, 2, 11, 1], [5, 2, 11, 1], [5, 3, 11, 3]])
    pictures = torch.zeros(4, 3, 64, 64)
    pictures[:, 0, 0, 0] = torch.tensor([0, 0, 5, 7]) / 255
    pictures[:, 0, 0, 1] = torch.tensor([1, 0, 2, 3]) / 255
    table = judge(Repeats(), pictures, words)
    assert table["class_right"] == 75
    assert table["color_right"] == 75
    assert table["class_right_by_class"] == {CLASS_NAMES[0]: 100, CLASS_NAMES[5]: 50}
    assert table["color_right_by_color"] == {COLOR_NAMES[1]: 100, COLOR_NAMES[2]: 50, COLOR_NAMES[3]: 100}
    assert table["class_right_by_view"] == {"front": 100, "side": 100, "overhead": 0}


def test_a_checkpoint_gives_its_averaged_weights(tmp_path):
    model = Model()
    average = [torch.full_like(p, 0.01) for p in model.parameters()]
    torch.save({"model": model.state_dict(), "average": average, "samples": 128}, tmp_path / "checkpoint.pt")
    loaded, origin = load_prior(tmp_path)
    assert "128 samples" in origin
    assert all(bool((p == 0.01).all()) for p in loaded.parameters())
    with pytest.raises(FileNotFoundError, match=r"expected checkpoint.pt or a unet folder"):
        load_prior(tmp_path / "nowhere")


def test_sheet_is_written_whole(tmp_path):
    from PIL import Image

    save_sheet(tmp_path / "sheet.png", torch.rand(5, 3, 16, 16), columns=3)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (48, 32)
