"""Milliseconds of a call, for the benchmarks that time one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
    """Milliseconds of one call, and what it returned."""
    start = time.perf_counter()
    result = function()
    return 1e3 * (time.perf_counter() - start), result


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median of `repeats` calls, after one that does not count."""
    function()
    return statistics.median(timed(function)[0] for _ in range(repeats))
