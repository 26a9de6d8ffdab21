"""Pictures hold the colours they were given."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ddpo3d_fast.assets.images import contact_sheet, to_uint8, write_png, write_stills
from ddpo3d_fast.errors import InputError


def test_colours_are_rounded_to_nearest_and_clamped():
    colors = torch.tensor(
        [[-1.0, 0.0, 0.5 / 255 - 1e-6], [0.5 / 255 + 1e-6, 1.0, 7.0], [math.nan, math.inf, -math.inf]]
    )
    assert to_uint8(colors).tolist() == [[0, 0, 0], [1, 255, 255], [0, 255, 0]]


def test_every_level_survives_the_way_through_a_float():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 255), levels)
    assert to_uint8(levels) is levels


@pytest.mark.parametrize("channels", [3, 4])
def test_a_png_is_read_back_as_written(tmp_path, channels):
    image = torch.rand(5, 7, channels, generator=torch.Generator().manual_seed(0))
    write_png(tmp_path / "new" / "a.png", image)
    got = np.asarray(Image.open(tmp_path / "new" / "a.png"))
    assert torch.equal(torch.tensor(got), to_uint8(image))


def test_the_same_image_gives_the_same_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, torch.linspace(0, 1, 300).reshape(10, 10, 3))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_stills_are_numbered_in_order(tmp_path):
    views = torch.stack([torch.full((4, 4, 3), value) for value in (0.0, 0.5, 1.0)])
    paths = write_stills(tmp_path, views)
    assert [path.name for path in paths] == ["000.png", "001.png", "002.png"]
    assert [np.asarray(Image.open(path)).max() for path in paths] == [0, 128, 255]


def test_a_contact_sheet_shows_every_view_once_in_reading_order():
    views = torch.arange(1, 6).float().reshape(5, 1, 1, 1).expand(5, 2, 3, 3) / 10
    sheet = contact_sheet(views, columns=3, gap=1)
    assert sheet.shape == (7, 13, 3)
    assert torch.equal(sheet[1:3, 1:4], views[0])
    assert torch.equal(sheet[1:3, 9:12], views[2])
    assert torch.equal(sheet[4:6, 5:8], views[4])
    assert (sheet[4:6, 9:12] == 1).all()
    assert (1 - sheet).sum().item() == pytest.approx((1 - views).sum().item())
    assert contact_sheet(views, gap=0).shape == (4, 9, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda path: write_png(path / "a.png", torch.zeros(4, 4)), ValueError, "image: expected shape"),
        (lambda path: write_png(path / "a.png", torch.zeros(0, 4, 3)), ValueError, r"got \(0, 4, 3\)"),
        (lambda path: write_png(path, torch.zeros(4, 4, 3)), InputError, "it is a folder"),
        (lambda _: contact_sheet(torch.zeros(0, 4, 4, 3)), ValueError, "views: expected shape"),
        (lambda _: contact_sheet(torch.zeros(4, 4, 3)), ValueError, "views: expected shape"),
        (
            lambda _: contact_sheet(torch.zeros(1, 4, 4, 3), columns=0),
            ValueError,
            "columns: expected 1 or more",
        ),
        (lambda _: contact_sheet(torch.zeros(1, 4, 4, 3), gap=-1), ValueError, "gap: expected 0 or more"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing_behind(tmp_path, call, error, message):
    with pytest.raises(error, match=message):
        call(tmp_path)
    assert not list(tmp_path.iterdir())
