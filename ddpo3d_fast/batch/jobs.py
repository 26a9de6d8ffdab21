"""From a file with prompts to the runs that it asks for, each with its settings and its folder."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ddpo3d_fast.configure import from_dict, validate
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.run import folder_in
from ddpo3d_fast.settings import Config

MOST = 100_000  # runs of a list
_LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Job:
    """A run that is to be made."""

    where: str  # in the list, for people: line 3, run 2
    config: Config
    folder: Path  # absolute
    error: str = ""  # what is wrong with its settings; then it is not begun

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.config.prompt!r}, seed {self.config.seed}"


def read_jobs(path: Path, output: Path, preset: str | None = None, seeds: str | None = None) -> list[Job]:
    """The runs of a file, in its order, each once.

    Text has a prompt a line; blank lines and those that begin with # do not count. A file called .yaml or
    .yml has a list of runs, or a mapping with one in `runs` and settings for all beside it. A run is a prompt
    or a mapping of settings as in config.yaml; its `seed` may be a range or a list.

    Args:
        output: the folder of the runs' folders, named as `generate` names them.
        preset: of a text's runs, standard by default.
        seeds: of a text's runs, as in `parse_seeds`; 0 by default.

    Raises:
        InputError: the file cannot be read, or holds what no run can be made of. Values that are out of range
            or do not go together, and what only a model can say of a prompt, are errors of that job alone.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        for name, value in (("--preset", preset), ("--seeds", seeds)):
            if value is not None:
                raise InputError(f"{name}: expected none beside {path}, which says it itself, got {value!r}")
        configs: Iterable[tuple[str, Config]] = _of_yaml(path)
    else:
        configs = _of_text(path, preset or "standard", seeds or "0")
    jobs, seen, taken = list[Job](), set[str](), set[Path]()
    for where, config in configs:
        config, error = _checked(config)
        if (key := repr(config)) in seen:
            continue
        folder = folder_in(output, config, taken)
        seen.add(key)
        taken.add(folder)
        config = dataclasses.replace(config, output=folder)
        jobs.append(Job(where, config, Path(os.path.abspath(folder)), error))
    if not jobs:
        raise InputError(f"prompts: expected at least one prompt in {path}, found none")
    return jobs


def _checked(config: Config) -> tuple[Config, str]:
    """The configuration as `generate` would have it, and what is wrong with it."""
    from ddpo3d_fast.arguments import absolute
    from ddpo3d_fast.build import with_default_reward

    try:
        return with_default_reward(absolute(validate(config))), ""
    except InputError as error:
        return config, str(error)


def _of_text(path: Path, preset: str, seeds: str) -> Iterator[tuple[str, Config]]:
    numbers = parse_seeds(seeds, "--seeds")
    lines = [(number, line.strip()) for number, line in enumerate(_read(path).split("\n"), 1)]
    prompts = [(number, line) for number, line in lines if line and not line.startswith("#")]
    _check_count(len(prompts) * len(numbers), path)
    for number, prompt in prompts:
        for seed in numbers:
            data = {"prompt": prompt, "preset": preset, "seed": seed}
            yield f"line {number}", from_dict(data, f"{path}, line {number}")


def _of_yaml(path: Path) -> list[tuple[str, Config]]:
    try:
        data = yaml.safe_load(_read(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"prompts: {path} is not YAML: {first_line(error)}") from error
    common = {} if isinstance(data, list) else data
    if not isinstance(common, dict):
        raise InputError(f"prompts: expected a list of runs in {path}, got {type(data).__name__}")
    runs = common.pop("runs", None) if isinstance(data, dict) else data
    if not isinstance(runs, list):
        raise InputError(f"prompts: expected a list in runs of {path}, got {type(runs).__name__}")
    asked = []
    for number, run in enumerate(runs, 1):
        where = f"{path}, run {number}"
        settings = {"prompt": run} if isinstance(run, str) else run
        if not isinstance(settings, dict):
            raise InputError(f"{where}: expected a prompt or settings, got {run!r}")
        settings = _merged(common, settings)
        settings.pop("provenance", None)  # of a run's config.yaml
        if settings.pop("output", None) is not None:
            raise InputError(f"{where}: output: expected none: each run has a folder of its own in --output")
        asked.append((number, settings, parse_seeds(settings.pop("seed", 0), f"{where}: seed")))
    _check_count(sum(len(seeds) for _, _, seeds in asked), path)
    return [
        (f"run {number}", from_dict({"prompt": "", **settings, "seed": seed}, f"{path}, run {number}"))
        for number, settings, seeds in asked
        for seed in seeds
    ]


def _merged(common: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings for all, with those of a run's own; parts are merged, too."""
    parts = {
        name: {**common[name], **value}
        for name, value in own.items()
        if isinstance(value, dict) and isinstance(common.get(name), dict)
    }
    return {**common, **own, **parts}


def parse_seeds(seeds: Any, argument: str) -> list[int]:
    """Numbers, ranges like 0-3 with both ends, or several of them with commas, or in a list. InputError."""
    found: dict[int, None] = {}
    for part in _parts(seeds):
        match = re.fullmatch(r"\s*(\d{1,10})\s*(?:-\s*(\d{1,10})\s*)?", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if isinstance(part, bool) or not first <= last <= _LARGEST_SEED:
            expected = f"numbers or ranges like 0-3, up to {_LARGEST_SEED}"
            raise InputError(f"{argument}: expected {expected}, got {str(seeds)!r}")
        if last - first >= MOST:
            raise InputError(f"{argument}: expected at most {MOST} seeds, got {part}")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def _parts(seeds: Any) -> Iterable[Any]:
    for part in seeds if isinstance(seeds, list) and seeds else [seeds]:
        yield from part.split(",") if isinstance(part, str) else [part]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"prompts: expected UTF-8 text, got {path}") from error
    except OSError as error:
        raise InputError(f"prompts: cannot read {path}: {error.strerror or error}") from error


def _check_count(count: int, path: Path) -> None:
    if count > MOST:
        raise InputError(f"prompts: expected at most {MOST} runs, got {count} in {path}")
