"""Codebooks: few numbers, or few vectors, that stand for many. For formats that store indices of them."""

from __future__ import annotations

import torch
from torch import Tensor

_BINS, _COARSE = 1 << 14, 1 << 9  # of histograms of numbers
_ROUNDS = 4  # of k-means; ten take twice as long and reduce the error by 2 %
_SCALAR_ROUNDS = 30  # in one dimension, of a histogram
_SAMPLE = 1 << 16  # vectors that a codebook is made of
_AT_ONCE = 1 << 14  # vectors whose distances are in memory


def scalar_codebook(numbers: Tensor, size: int = 256) -> Tensor:
    """[size] ascending numbers that stand for `numbers` [M]: k-means in one dimension, from quantiles on, of
    a histogram. Finite where these are; fewer than `size` values come out as themselves."""
    numbers = numbers.double()
    known = torch.unique(numbers[: 1 + 16 * size])
    if len(known) <= size and len(numbers) > 16 * size:
        known = torch.unique(numbers)
    if len(known) <= size:
        last = known[-1:] if len(known) else known.new_zeros(1)
        return torch.cat([known, last.expand(size - len(known))])
    low, high = numbers.amin(), numbers.amax()
    bins = ((numbers - low) / (high - low).clamp(min=1e-300) * (_BINS - 1)).long()
    weights = torch.bincount(bins, minlength=_BINS).double()
    sums = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, numbers)
    # As dense as the cube root of the numbers' density, where many levels are best (Panter and Dite, 1951).
    density = weights.reshape(_COARSE, -1).sum(1) ** (1 / 3)
    reached = torch.cat([density.new_zeros(1), density.cumsum(0)])
    levels = (torch.arange(size, dtype=torch.float64) + 0.5) / size * reached[-1]
    cell = (torch.searchsorted(reached, levels) - 1).clamp(min=0)
    book = low + (cell + (levels - reached[cell]) / density[cell]) / _COARSE * (high - low)
    filled = weights > 0
    weights, sums = weights[filled], sums[filled]
    places = sums / weights
    for _ in range(_SCALAR_ROUNDS):
        nearest = nearest_scalars(places, book)
        total = torch.zeros(size, dtype=torch.float64).index_add_(0, nearest, weights)
        moved = torch.zeros(size, dtype=torch.float64).index_add_(0, nearest, sums)
        book = torch.where(total > 0, moved / total.clamp(min=1e-300), book).sort().values
    return book


def nearest_scalars(numbers: Tensor, book: Tensor) -> Tensor:
    """Indices of the nearest in an ascending codebook."""
    return torch.searchsorted((book[1:] + book[:-1]) / 2, numbers.to(book).contiguous())


def vector_codebook(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[size, D] vectors that stand for `vectors` [M, D] float32, and which stands for which, [M].

    K-means of two floors: as many groups as the square root of `size`, and as many in each, so that a vector
    is held against hundreds, not tens of thousands. Where `size` is M, each stands for itself. The same input
    gives the same output.
    """
    if size >= len(vectors):
        return vectors, torch.arange(len(vectors))
    groups = 1 << (size.bit_length() // 2)
    generator = torch.Generator().manual_seed(0)
    tops = _means(_some(vectors, _SAMPLE, generator), groups, generator)
    of_group = _nearest(vectors, tops)
    members = [torch.nonzero(of_group == group)[:, 0] for group in range(groups)]
    shares = _shares(torch.tensor([len(member) for member in members]), size)
    book, labels, start = vectors.new_zeros(size, vectors.shape[1]), torch.zeros(len(vectors)).long(), 0
    for member, share in zip(members, shares, strict=True):
        if not share:
            continue
        inside = vectors[member]
        book[start : start + share] = _means(_some(inside, 64 * share, generator), share, generator)
        labels[member] = start + _nearest(inside, book[start : start + share])
        start += share
    return book, labels


def _shares(counts: Tensor, size: int) -> list[int]:
    """How many of `size` places each group gets: as many as it has members at the most, at least one."""
    shares = (counts.double() / counts.sum() * size).floor().long().clamp(min=1)
    shares = torch.minimum(shares, counts)
    while int(shares.sum()) > size:
        shares[shares.argmax()] -= 1
    return shares.tolist()


def _some(vectors: Tensor, most: int, generator: torch.Generator) -> Tensor:
    if len(vectors) <= most:
        return vectors
    return vectors[torch.randperm(len(vectors), generator=generator)[:most]]


def _means(vectors: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """[size, D] k-means of vectors [M, D], M at least size, from a random choice on (Lloyd, 1982)."""
    book = _some(vectors, size, generator).clone()
    for _ in range(_ROUNDS):
        nearest = _nearest(vectors, book)
        counts = torch.bincount(nearest, minlength=size)
        sums = torch.zeros_like(book).index_add_(0, nearest, vectors)
        book = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), book)
    return book


def _nearest(vectors: Tensor, book: Tensor) -> Tensor:
    """[M] indices of the nearest in a codebook."""
    half = (book**2).sum(1) / 2
    parts = [(part @ book.T - half).argmax(1) for part in vectors.split(_AT_ONCE)]
    return torch.cat(parts) if parts else torch.zeros(0).long()
