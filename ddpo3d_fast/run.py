"""The folder of a run: its settings, its checkpoint and its metrics, each written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import re
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from ddpo3d_fast import __version__
from ddpo3d_fast.configure import from_dict
from ddpo3d_fast.errors import InputError, first_line
from ddpo3d_fast.files import flush, is_temporary, locked, locker, temporary_path, write_bytes, write_text
from ddpo3d_fast.settings import Config, flag, to_dict
from ddpo3d_fast.sources import changed, fingerprints

CONFIG, CHECKPOINT, METRICS = "config.yaml", "checkpoint.pt", "metrics.jsonl"
_SLUG_LENGTH = 60  # characters
_SLUG_BYTES = 160  # with digits, hash and a temporary's, file systems allow 255
_NOT_COMPARED = ("output",)  # a run is the same wherever it lies
_NOT_COMPARED_ON_RESUME = ("output", "steps")


def results() -> tuple[str, ...]:
    """The files that a configuration leads to, in the order in which they go."""
    from ddpo3d_fast.assets import EXPORTERS

    return (CHECKPOINT, METRICS, *EXPORTERS)


def leavings() -> tuple[str, ...]:
    """Those, and what else is made of them, which no other configuration's run must find."""
    from ddpo3d_fast.assets import RUN_MESH

    return (*results(), RUN_MESH)


class RunFolder:
    """`path` holds the run of `config`. Making one writes nothing; the folder appears when a run begins.

    `generate` takes it by `claimed`, then calls `load_checkpoint` to resume, `identify`, and `begin`.
    """

    def __init__(self, path: Path, config: Config, overwrite: bool = False, argument: str = "--output"):
        self.path, self.config = path, config
        self.overwrite = overwrite  # whether a run of another configuration may go
        self.sources: dict[str, str] = {}  # fingerprints of the files that shape the run
        self._argument = argument  # that named the folder
        self._claim = contextlib.ExitStack()
        self._claimed = False
        self._stored_sources: dict[str, str] = {}  # of the checkpoint that is gone on from

    @classmethod
    def create(cls, config: Config, overwrite: bool = False) -> RunFolder:
        """The folder for a new run: `config.output`, or outputs/<prompt>-<seed>.

        An older run of the same configuration is run again in its place. Where the default folder holds one
        of another, it is the next of <prompt>-<seed>-2, -3, ... that is free or holds this configuration. A
        named folder never loses such a run, unless `overwrite` says so.

        Raises InputError if the path cannot be written to, holds a run of another configuration, or is a
        folder with anything else in it.
        """
        path = config.output or folder_in(Path("outputs"), config, overwrite=overwrite)
        check_writable(path)
        folder = cls(path, config, overwrite)
        folder._check_contents(config, _NOT_COMPARED)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of a run to go on with. Raises InputError for any other folder, or a read-only one."""
        path = Path(path)
        if not path.is_dir():
            reason = "is a file" if path.exists() else "does not exist"
            raise InputError(f"--resume: expected the folder of a run, got {path}, which {reason}")
        config = read_config(path / CONFIG, "--resume")
        check_writable(path, "--resume")
        return cls(path, config, argument="--resume")

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keeps other runs out of the folder, or, where it is not there yet, out of the one that `begin`
        makes. Raises InputError where there is one."""
        self._claimed = False
        with contextlib.ExitStack() as self._claim:
            if self.path.is_dir():
                self._lock()
            yield

    def _lock(self) -> None:
        try:
            self._claim.enter_context(locked(self.path, wait=False))
        except BlockingIOError:
            process = locker(self.path)
            name = "another run" if process is None else f"another run, process {process},"
            raise InputError(f"{self._argument}: {name} is writing to {self.path}") from None
        except OSError as error:
            raise self._unwritable(error) from error
        self._claimed = True

    def _unwritable(self, error: OSError) -> InputError:
        return InputError(f"{self._argument}: cannot write to {self.path}: {error.strerror or error}")

    def begin(self, config: Config, provenance: dict[str, Any], resume: bool = False) -> None:
        """Makes the folder and writes the configuration, once all that can be wrong is known not to be.

        What an older run has left goes first, unless it is resumed, its checkpoint before all else: killed at
        any moment, the folder holds no results of another configuration than the one that is in it. Raises
        InputError, in which case nothing is lost, if another run has begun here in the meantime.
        """
        text = _config_text(config, provenance)  # looks at the machine, where something may be wrong, too
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self._claimed:
                self._lock()
            self._check_contents(config, _NOT_COMPARED_ON_RESUME if resume else _NOT_COMPARED)
            for path in self._left_behind(self.path.iterdir()):
                path.unlink(missing_ok=True)
            if not resume:
                for path in (self.path / name for name in leavings()):
                    if path.exists():
                        path.unlink()
                        flush(self.path)
        except OSError as error:
            raise self._unwritable(error) from error
        self.config = config
        write_text(self.path / CONFIG, text)

    def _left_behind(self, paths: Iterable[Path]) -> list[Path]:
        """Those that a run which was killed in the middle of a file has left of it."""
        made = [self.path / name for name in (CONFIG, *leavings(), _PROBE)]
        return [path for path in paths if any(is_temporary(path, file) for file in made)]

    def _check_contents(self, config: Config, but: tuple[str, ...]) -> None:
        """Raises InputError if the folder holds something that a run of `config` must not touch."""
        try:
            found = {*self.path.iterdir()} if self.path.is_dir() else set()
        except OSError as error:
            raise InputError(f"--output: cannot read {self.path}: {error.strerror or error}") from error
        others = found.difference(self._left_behind(found))
        if others and not (self.path / CONFIG).is_file():
            raise InputError(
                f"--output: expected an empty folder or an older run, got {self.path} with "
                f"{min(others).name} in it"
            )
        if not self.overwrite and (other := _other_run(self.path, config, but)):
            advice = ": name another folder, or say --overwrite" if self._argument == "--output" else ""
            raise InputError(f"{self._argument}: {self.path} holds a run {other}{advice}")

    def progress(self) -> Literal["done", "begun", "none"]:
        """How far the run of this configuration has come here. What is begun can be resumed."""
        path = self.path / CONFIG
        if not path.exists() or _other_run(self.path, self.config, _NOT_COMPARED):
            return "none"
        try:
            began, last = path.stat().st_mtime_ns, self.read_metrics()[-1:]
            # All that a run leaves is younger than its beginning; of an older run it may leave something.
            whole = last and last[0]["step"] == self.config.schedule.steps
            if whole and all((self.path / name).stat().st_mtime_ns >= began for name in results()):
                return "done"
        except (OSError, InputError):
            pass
        return "begun" if (self.path / CHECKPOINT).exists() else "none"

    def files(self) -> list[Path]:
        """The files of this folder that this class has written."""
        return [path for name in (CONFIG, METRICS, CHECKPOINT) if (path := self.path / name).is_file()]

    def identify(self, files: Iterable[Path]) -> None:
        """Takes the fingerprints of the files that shape the run, for its checkpoints. Raises InputError if
        the checkpoint that `load_checkpoint` has loaded was made with others of their names."""
        self.sources = fingerprints(files)
        if path := changed(self._stored_sources, self.sources):
            raise InputError(f"--resume: {path} is not the file that {self.path / CHECKPOINT} was made with")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Writes a state of tensors, numbers, strings, lists and dicts; its `step` is the last one done."""
        import torch

        file = io.BytesIO()  # torch's own writer does not say why it could not write
        torch.save({"config": to_dict(self.config), "sources": self.sources, "state": state}, file)
        write_bytes(self.path / CHECKPOINT, file.getbuffer())

    def load_checkpoint(self, steps: int | None = None) -> dict[str, Any] | None:
        """The state last saved; None if the run was killed before it saved one.

        Raises InputError if it cannot be read, was made with other settings than this folder's (the number of
        steps and the path apart), or lies beyond the `steps` of the run.
        """
        import torch

        path = self.path / CHECKPOINT
        try:
            if not path.exists():
                return None
            stored = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise InputError(f"--resume: cannot read {path}: {error.strerror or error}") from error
        except Exception as error:  # a damaged archive raises whatever its damage leads to
            raise InputError(f"--resume: {path} is damaged: {first_line(error)}") from error
        state = stored.get("state") if isinstance(stored, dict) else None
        if not isinstance(state, dict) or not isinstance(state.get("step"), int):
            raise InputError(f"--resume: {path} is not a checkpoint of a run")
        if found := _difference(stored.get("config"), to_dict(self.config), _NOT_COMPARED_ON_RESUME):
            raise InputError(f"--resume: {path} was made with another {found} than {self.path / CONFIG} says")
        if steps is not None and steps < state["step"]:
            raise InputError(
                f"--steps: expected at least the {state['step']} steps that are done, got {steps}"
            )
        self._stored_sources = stored.get("sources", {})
        return state

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """For what is made of a loaded state. Raises InputError if that lacks something, or does not fit."""
        try:
            yield
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            path, reason = self.path / CHECKPOINT, first_line(error)
            raise InputError(f"--resume: {path} is not one of this version's: {reason}") from error

    def write_metrics(self, rows: list[dict[str, Any]]) -> None:
        """Writes one JSON object a line; numbers that are not finite become null."""
        write_text(self.path / METRICS, "".join(f"{json_line(row)}\n" for row in rows))

    def read_metrics(self, until: float = math.inf) -> list[dict[str, Any]]:
        """The rows last written, up to a step; none if there is no file. InputError if it is damaged."""
        path = self.path / METRICS
        if not path.exists():
            return []
        try:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return [row for row in rows if row["step"] <= until]
        except OSError as error:
            raise InputError(f"--resume: cannot read {path}: {error.strerror or error}") from error
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"--resume: {path} is damaged: expected one JSON object a line, each of a step "
                f"({first_line(error)})"
            ) from error


def _config_text(config: Config, provenance: dict[str, Any]) -> str:
    """Everything needed to repeat the run, and under `provenance` what it ran on."""
    import torch

    from ddpo3d_fast.info import machine

    facts = {"version": __version__, "torch": torch.__version__, "machine": machine()} | provenance
    data = to_dict(config) | {"provenance": {name: str(value) for name, value in facts.items()}}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110)


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
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a 13th month
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


def folder_in(parent: Path, config: Config, taken: Container[Path] = (), overwrite: bool = False) -> Path:
    """Where in a folder the run of a configuration goes, by default: to <prompt>-<seed>, or to the next of
    <prompt>-<seed>-2, -3, ... that is not `taken` and, unless to `overwrite`, holds no run of another."""
    name = f"{slug(config.prompt)}-{config.seed}"
    path, numbers = parent / name, itertools.count(2)
    while path in taken or (not overwrite and _other_run(path, config, _NOT_COMPARED)):
        path = parent / f"{name}-{next(numbers)}"
    return path


def slug(prompt: str) -> str:
    """The prompt as a file name: letters and digits of any alphabet, joined by hyphens.

    Where they are not the whole prompt, a hash of it follows, so that no two prompts have the same name.
    """
    words = re.sub(r"[\W_]+", "-", prompt.lower())[:_SLUG_LENGTH].encode()[:_SLUG_BYTES]
    name = words.decode(errors="ignore").strip("-")
    if name.replace("-", " ") == prompt:
        return name
    return f"{name or 'asset'}-{hashlib.sha256(prompt.encode()).hexdigest()[:8]}"


_PROBE = "probe"


def check_writable(path: Path, argument: str = "--output") -> None:
    """Raises InputError if `path` cannot be made a folder and written to. Tries it, and leaves no trace.

    What is not there yet is tried under a name of its own: another run may begin there at any moment.
    """
    there = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    probe = temporary_path(there / _PROBE)
    missing = path.relative_to(there).parts
    folders = [probe.joinpath(*missing[:count]) for count in range(len(missing) + 1)] if missing else []
    made: list[Path] = []
    try:
        if not missing:
            probe.touch()
        for folder in folders:
            if not folder.exists():  # as what ends in .. may
                folder.mkdir()
                made.append(folder)
    except OSError as error:
        raise InputError(f"{argument}: cannot write to {path}: {error.strerror or error}") from error
    finally:
        for folder in reversed(made):
            folder.rmdir()
        if not missing:
            with contextlib.suppress(OSError):  # a run that begins here may have removed it
                probe.unlink()


def _other_run(path: Path, config: Config, but: tuple[str, ...]) -> str:
    """How the run in a folder differs from that of `config`; empty if there is none, or it is the same."""
    if not (path / CONFIG).exists():
        return ""
    try:
        old = read_config(path / CONFIG, "")
    except InputError:
        return f"whose {CONFIG} cannot be read"
    found = _difference(to_dict(old), to_dict(config), but)
    return found and f"with another {flag(found)}"


def _difference(old: Any, new: Any, but: tuple[str, ...], where: str = "") -> str:
    """The first setting, `but` for these, in which two configurations differ; empty if in none."""
    if where in but:
        return ""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*new, *old])
        found = (_difference(old.get(name), new.get(name), but, name) for name in names)
        return next((each for each in found if each), "")
    return "" if old == new else where or "configuration"
