"""Room for the rasterizer's entries, the pairs of a tile and a Gaussian: its limit, and who makes it when."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from ._backend import integer

MAX_ENTRIES = 2**32 - 1
DEFAULT_MAX_ENTRIES = 2**27  # 4 GB on either backend, and 5 to 6 GB more in a backward pass


class TooManyEntries(ValueError):
    """A forward pass takes more pairs of a tile and a Gaussian than it may. They were counted, and no room
    was made for them: fewer cameras a call, smaller images or a higher `max_entries` help.

    Attributes:
        needed: pairs that the forward pass takes.
        max_entries: pairs that it may take.
        bytes_needed: what `needed` pairs take at most, beside what images and Gaussians do.
    """

    def __init__(self, needed: int, max_entries: int, bytes_needed: int) -> None:
        super().__init__(needed, max_entries, bytes_needed)
        self.needed = needed
        self.max_entries = max_entries
        self.bytes_needed = bytes_needed

    def __str__(self) -> str:
        return (
            f"rasterize: {self.needed} pairs of a tile and a Gaussian, {self.bytes_needed / 1e9:.3g} GB; "
            f"expected at most {self.max_entries} (max_entries): fewer cameras a call, smaller images"
            + (" or a higher limit" if self.needed <= MAX_ENTRIES else "")
        )


def entry_limit(name: str, value: object) -> int:
    """`value` as a number of entries. TypeError or ValueError, about `name`, if it cannot be one."""
    limit = integer(name, value)
    if not 1 <= limit <= MAX_ENTRIES:
        raise ValueError(f"{name}: expected 1 to {MAX_ENTRIES}, got {limit}")
    return limit


class TileCapacity:
    """Room for the CUDA rasterizer's tile lists, for a loop that must not wait for the device.

    Without one, a forward pass on CUDA waits until the device has counted the pairs of a tile and a Gaussian
    that it draws, and makes exactly that room. With one it goes ahead; where the room was too small, the
    images are NaN, the gradients zero and `RasterizeState.overflow` not zero, so that `adam`, given it as
    `skip`, leaves the step undone; `grow` then makes the step repeatable. On the CPU it has no effect.

    Args:
        entries: pairs to make room for, 32 bytes each, and in the backward pass 48 more.
    """

    def __init__(self, entries: int = 1 << 16) -> None:
        self.entries = entry_limit("entries", entries)
        self._needed: Tensor | None = None  # by the last forward pass that has run on the device

    @property
    def needed(self) -> int:
        """Pairs that the last forward pass that has run on the device drew; 0 before the first."""
        return 0 if self._needed is None else int(self._needed)

    @property
    def overflowed(self) -> bool:
        """Whether the last forward pass that has run on the device found too little room."""
        return self.needed > self.entries

    def grow(self, margin: float = 1.5) -> bool:
        """Makes room for `margin` times what was needed last, if there is less; tells whether it did.

        A CUDA graph that was captured with the old room must be captured again.
        """
        if self.needed * (1 + margin) / 2 <= self.entries:
            return False
        self.entries = min(int(self.needed * margin), MAX_ENTRIES)
        return True

    def reported_by(self, device: torch.device) -> Tensor:
        """Where kernels on this device write what they need: one int64 in host memory."""
        if self._needed is None:
            self._needed = _lasting_number(device)
        return self._needed


_BLOCK = 512  # numbers
_blocks: list[Tensor] = []  # never freed
_unused: dict[torch.device, list[Tensor]] = {}
_lock = threading.Lock()


def _lasting_number(device: torch.device) -> Tensor:
    """An int64 of 0 in host memory that kernels on the device may write to as long as the process lives.

    A kernel's store is nothing that torch's allocator of pinned memory knows of. Memory that died with the
    capacity would be somebody else's while a launch is still queued, or a captured graph replayed.
    """
    with _lock:
        numbers = _unused.setdefault(device, [])
        if not numbers:
            _blocks.append(torch.zeros(_BLOCK, dtype=torch.int64, pin_memory=device.type == "cuda"))
            numbers.extend(_blocks[-1])
        return numbers.pop()
