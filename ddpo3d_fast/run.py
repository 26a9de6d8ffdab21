"""The folder of a run: its settings, its checkpoint and its metrics, each written whole or not at all."""

from __future__ import annotations

import json
import math
import re
import secrets
from pathlib import Path
from typing import Any

import yaml

from ddpo3d_fast import __version__
from ddpo3d_fast.config import Config, from_dict, to_dict
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.files import atomic_path, write_text

CONFIG, CHECKPOINT, METRICS = "config.yaml", "checkpoint.pt", "metrics.jsonl"
_SLUG_LENGTH = 60  # characters


class RunFolder:
    """`path` holds the run of `config`. Making one writes nothing; the folder appears with its first file."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """The folder for a new run: `config.output`, or outputs/<prompt>-<seed>. An older run is overwritten.

        Raises InputError if the path cannot be written to, or is a folder with anything else in it.
        """
        path = config.output or Path("outputs") / f"{slug(config.prompt)}-{config.seed}"
        _check_writable(path)
        try:
            foreign = path.is_dir() and not (path / CONFIG).is_file() and next(path.iterdir(), None)
        except OSError as error:
            raise InputError(f"--output: cannot read {path}: {error.strerror or error}") from error
        if foreign:
            raise InputError(
                f"--output: expected an empty folder or an older run, got {path} with {foreign.name} in it"
            )
        return cls(path, config)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run to go on with. Raises InputError for any other folder, or a read-only one."""
        path = Path(path)
        if not path.is_dir():
            reason = "is a file" if path.exists() else "does not exist"
            raise InputError(f"--resume: expected the folder of a run, got {path}, which {reason}")
        config = read_config(path / CONFIG, "--resume")
        if not (path / CHECKPOINT).is_file():
            raise InputError(f"--resume: {path} has no {CHECKPOINT} to go on from")
        _check_writable(path, "--resume")
        return cls(path, config)

    def files(self) -> list[Path]:
        """The files of this folder that this class has written."""
        return [path for name in (CONFIG, METRICS, CHECKPOINT) if (path := self.path / name).is_file()]

    def write_config(self, config: Config, provenance: dict[str, Any]) -> None:
        """Writes everything needed to repeat the run, and under `provenance` what it ran on."""
        import torch

        from ddpo3d_fast.info import machine

        self.config = config
        facts = {"version": __version__, "torch": torch.__version__, "machine": machine()} | provenance
        data = to_dict(config) | {"provenance": {name: str(value) for name, value in facts.items()}}
        write_text(self.path / CONFIG, yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a state of tensors, numbers, strings, lists and dicts."""
        import torch

        with atomic_path(self.path / CHECKPOINT) as temporary:
            torch.save({"config": to_dict(self.config), "state": state}, temporary)

    def load_checkpoint(self) -> dict[str, Any]:
        """The state last saved.

        Raises InputError if there is none, it cannot be read, or it was made with other settings than this
        folder's (the number of steps and the path apart).
        """
        import torch

        path = self.path / CHECKPOINT
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"--resume: cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # a damaged archive raises whatever its damage leads to
            raise InputError(f"--resume: {path} is damaged: {first_line(error)}") from error
        if not isinstance(stored, dict) or not isinstance(stored.get("state"), dict):
            raise InputError(f"--resume: {path} is not a checkpoint of a run")
        if changed := _difference(stored.get("config"), to_dict(self.config)):
            raise InputError(
                f"--resume: {path} was made with another {changed} than {self.path / CONFIG} says"
            )
        return stored["state"]

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Writes one JSON object a line; numbers that are not finite become null."""
        write_text(self.path / METRICS, "".join(f"{json_line(row)}\n" for row in rows))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows last written, none if there is no file. Raises InputError for a damaged one."""
        path = self.path / METRICS
        if not path.exists():
            return []
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise InputError(f"--resume: cannot read {path}: {error.strerror or error}") from error
        except ValueError as error:
            raise InputError(f"--resume: {path} is damaged: {first_line(error)}") from error
        if not all(isinstance(row, dict) for row in rows):
            raise InputError(f"--resume: {path} is damaged: expected one JSON object a line")
        return rows


def read_config(path: str | Path, argument: str) -> Config:
    """The configuration of a YAML file; what it leaves out comes from its preset.

    Raises InputError, naming `argument`, for a file that is missing, is not YAML, or holds an unknown setting
    or a value of the wrong type.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{argument}: cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{argument}: {path} is not YAML: not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise InputError(f"{argument}: {path} is not YAML: {first_line(error)}") from error
    if isinstance(data, dict):
        data.pop("provenance", None)
    return from_dict(data, f"{argument}: {path}")


def json_line(row: dict[str, Any]) -> str:
    """A flat row as JSON on one line; numbers that are not finite, which JSON cannot say, become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    return json.dumps(finite, allow_nan=False)


def slug(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any alphabet, joined by hyphens."""
    return re.sub(r"[\W_]+", "-", prompt.lower())[:_SLUG_LENGTH].strip("-") or "asset"


def _check_writable(path: Path, argument: str = "--output") -> None:
    """Raises InputError if `path` cannot be made a folder and written to. Tries it, and leaves no trace."""
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.exists():
                folder.mkdir()
                made.append(folder)
        probe = path / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{argument}: cannot write to {path}: {error.strerror or error}") from error
    finally:
        for folder in reversed(made):
            folder.rmdir()


def _difference(old: Any, new: Any, where: str = "") -> str:
    """The first setting in which two configurations differ, for a resumed run; empty if in none."""
    if where in ("output", "steps"):
        return ""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*new, *old])
        return next(
            (found for name in names if (found := _difference(old.get(name), new.get(name), name))), ""
        )
    return "" if old == new else where or "configuration"
