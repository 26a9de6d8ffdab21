"""Arms held against one of them: paired differences over prompts, bootstrap intervals, and their table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

RESAMPLES, LEVEL = 10_000, 0.95
MIN_PROMPTS = 6  # of fewer, all differences have one sign by chance alone in more than 1 - LEVEL of the cases

Row = dict[str, Any]  # prompt, seed, arm and the measures of one asset
Measures = Mapping[str, int]  # and their decimals in a table


def paired_differences(rows: list[Row], arm: str, measure: str, base: str) -> list[float]:
    """Of each prompt, arm minus `base`, averaged over the seeds that both have."""
    pairs = {(row["prompt"], row["seed"]): row[measure] for row in rows if row["arm"] == base}
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        pair = row["prompt"], row["seed"]
        if row["arm"] == arm and pair in pairs and None not in (row[measure], pairs[pair]):
            by_prompt.setdefault(row["prompt"], []).append(row[measure] - pairs[pair])
    return [statistics.fmean(differences) for differences in by_prompt.values()]


def bootstrap_interval(values: list[float], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean of `values`; None where they are fewer than six."""
    if len(values) < MIN_PROMPTS:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = torch.tensor(values, dtype=torch.float64)[drawn].mean(1)
    tail = (1 - LEVEL) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def summary(rows: list[Row], measures: Measures, base: str) -> list[Row]:
    """For every measure and arm: the mean, the paired difference to `base`, and its interval. What an asset
    has None of does not count."""
    lines = []
    for measure in measures:
        for arm in dict.fromkeys(row["arm"] for row in rows):
            values = [row[measure] for row in rows if row["arm"] == arm and row[measure] is not None]
            if not values:
                continue
            line: Row = {"measure": measure, "arm": arm, "assets": len(values)}
            line["mean"] = statistics.fmean(values)
            if arm != base and (differences := paired_differences(rows, arm, measure, base)):
                line["difference"] = statistics.fmean(differences)
                line["interval"] = bootstrap_interval(differences)
            lines.append(line)
    return lines


def in_words(line: Row, measures: Measures) -> tuple[str, str, str]:
    """Mean, difference and interval of a line of `summary`, with the measure's decimals."""
    digits, difference, interval = measures[line["measure"]], "", ""
    if "difference" in line:
        difference = f"{line['difference']:+.{digits}f}"
        low, high = line["interval"] or (None, None)
        interval = "-" if low is None else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return f"{line['mean']:.{digits}f}", difference, interval


def table(rows: list[Row], measures: Measures, base: str) -> str:
    """`summary` for a person."""
    lines, last = [f"{'':14}{'arm':14}{'assets':>6}{'mean':>10}{f'minus {base}':>11}  95 % interval"], ""
    for line in summary(rows, measures, base):
        mean, difference, interval = in_words(line, measures)
        measure, last = "" if line["measure"] == last else line["measure"], line["measure"]
        lines.append(
            f"{measure:14}{line['arm']:14}{line['assets']:6}{mean:>10}{difference:>11}  {interval}".rstrip()
        )
    return "\n".join(lines)
