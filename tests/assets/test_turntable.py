"""A turntable plays everywhere and is the same every time."""

import av
import pytest
import torch

from ddpo3d_fast.assets.turntable import write_turntable
from ddpo3d_fast.errors import InputError


def frames(count=6, height=48, width=64):
    ramp = torch.linspace(0.2, 0.8, width).expand(height, width)
    return [torch.stack([ramp.roll(4 * k, 1), ramp, 1 - ramp], -1) for k in range(count)]


def test_the_video_is_h264_yuv420p_with_the_frames_it_was_given(tmp_path):
    write_turntable(tmp_path / "new" / "a.mp4", iter(frames()))
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 30
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(pictures) == 6
    for picture, frame in zip(pictures, frames(), strict=True):
        assert (torch.tensor(picture).float() / 255 - frame).abs().mean() < 0.02


@pytest.mark.parametrize(("height", "width"), [(33, 47), (1, 1), (16, 31)])
def test_odd_sides_are_rounded_up(tmp_path, height, width):
    write_turntable(tmp_path / "a.mp4", frames(2, height, width))
    with av.open(str(tmp_path / "a.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.height, context.width) == (height + height % 2, width + width % 2)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_turntable(tmp_path / name, frames())
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "frames: expected at least one, got none"),
        ([torch.zeros(4, 4)], r"frames: expected shape \(H, W, 3\), got \(4, 4\)"),
        ([torch.zeros(0, 4, 3)], r"frames: expected shape \(H, W, 3\), got \(0, 4, 3\)"),
        ([torch.zeros(4, 4, 3), torch.zeros(4, 6, 3)], r"expected shape \(4, 4, 3\) as the first"),
    ],
)
def test_bad_frames_are_named_and_leave_nothing_behind(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_turntable(tmp_path / "a.mp4", wrong)
    assert not list(tmp_path.iterdir())


def test_a_failure_between_frames_leaves_the_old_video(tmp_path):
    (tmp_path / "a.mp4").write_text("old")

    def broken():
        yield from frames(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_turntable(tmp_path / "a.mp4", broken())
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "old"


def test_a_path_that_is_a_folder_is_one_line(tmp_path):
    with pytest.raises(InputError, match="it is a folder"):
        write_turntable(tmp_path, frames(1))
