"""Unit quaternions as three numbers: the component that is largest is left out, and follows from the
others."""

from __future__ import annotations

import numpy as np

LARGEST = np.sqrt(0.5)  # of a component that is not the largest


def take_apart(quats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of four components is left out, [N], and the others in their order, [N, 3], in -LARGEST to
    LARGEST, of the quaternion or its negative, in which the left out one is positive."""
    which = np.abs(quats).argmax(1)
    signs = np.where(np.take_along_axis(quats, which[:, None], 1) < 0, -1.0, 1.0)
    kept = np.arange(4) != which[:, None]
    return which, (quats * signs)[kept].reshape(-1, 3)


def put_together(which: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N, 4] float64 of what `take_apart` gives."""
    quats = np.empty((len(which), 4))
    kept = np.arange(4) != which[:, None]
    quats[kept] = others.reshape(-1)
    quats[~kept] = np.sqrt(np.maximum(0.0, 1 - (others.astype(np.float64) ** 2).sum(1)))
    return quats
