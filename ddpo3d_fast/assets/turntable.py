"""The turntable: views as an mp4 that every player plays (H.264, yuv420p)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from torch import Tensor

from ddpo3d_fast.assets.images import to_uint8
from ddpo3d_fast.files import atomic_path

FPS = 30  # frames a second
AHEAD = 8  # frames that may wait for the encoder
QUALITY = 18  # x264's constant rate factor, 0 (lossless) to 51 (worst)


def write_turntable(path: str | Path, frames: Iterable[Tensor]) -> None:
    """Writes frames as an mp4, atomically, one by one as they come. The same frames give the same bytes.

    While one is encoded, on a thread of its own, the next one is made.

    H.264 with halved colour resolution wants even sides, so an odd side gets its last row or column twice.

    Args:
        path: the file; missing folders are made.
        frames: at least one [H, W, 3] image, floats in [0, 1] or uint8, all of one size.

    Raises:
        ValueError: no frame, or a frame of another shape than the first.
        InputError: the file cannot be written.
    """
    shape: tuple[int, ...] | None = None
    with (
        atomic_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4") as container,
        ThreadPoolExecutor(1) as encoder,
    ):
        encoded: deque[Future[None]] = deque()
        stream = container.add_stream("libx264", rate=Fraction(FPS))
        for frame in frames:
            if shape is None:
                shape = tuple(frame.shape)
                if len(shape) != 3 or shape[2] != 3 or 0 in shape:
                    raise ValueError(f"frames: expected shape (H, W, 3), got {shape}")
                stream.width, stream.height = shape[1] + shape[1] % 2, shape[0] + shape[0] % 2
                stream.pix_fmt = "yuv420p"
                # One thread, because the number of threads changes the bits.
                stream.codec_context.thread_count = 1
                stream.options = {"crf": str(QUALITY), "preset": "medium"}
            if tuple(frame.shape) != shape:
                raise ValueError(f"frames: expected shape {shape} as the first one, got {tuple(frame.shape)}")
            pixels = to_uint8(frame).cpu().numpy()
            padded = np.pad(pixels, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
            if len(encoded) == AHEAD:
                encoded.popleft().result()
            encoded.append(encoder.submit(_encode, container, stream, picture))
        if shape is None:
            raise ValueError("frames: expected at least one, got none")
        for each in (*encoded, encoder.submit(_encode, container, stream, None)):
            each.result()


def _encode(container: Any, stream: Any, picture: Any) -> None:
    """A picture; None: what the encoder has held back."""
    container.mux(stream.encode(picture))
