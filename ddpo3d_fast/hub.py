"""The one door to published files: what the user has, then this machine's caches, then the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ddpo3d_fast.engines.libraries import library
from ddpo3d_fast.errors import InputError, first_line, suggestion

# A name on the Hugging Face hub, owner/name, by its own rules; `./folder` is none.
NAME = re.compile(r"(?=.{1,96}$)(?!.*(?:--|\.\.))\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?")

Missing = Callable[[Path], str | None]  # what a folder lacks, in a line that names the path; None: nothing
Wanted = Callable[[Sequence[str]], list[str]]  # of all the files of a repository those to fetch


def find_folder(
    name: str, argument: str, aliases: Mapping[str, tuple[str, ...]], missing: Missing, wanted: Wanted
) -> Path:
    """The folder of the model that `name` means: a folder itself, an alias, an owner/name.

    A local folder comes first, whatever else has its name; then whole copies in the hub's cache, of any of an
    alias's repositories; only then the network, for no more than the files that are needed.

    Args:
        name: what the user gave as `argument`.
        aliases: short names, each of repositories that hold the same weights, in the order to try; none for a
            model that ships in the package.

    Raises:
        InputError: no such model, or it is neither here nor to be had; the line says how to get it.
    """
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if path.is_file():
        raise InputError(f"{argument}: expected a folder in diffusers' format, got a file, {name!r}")
    repositories = aliases.get(name) or ((name,) if NAME.fullmatch(name) else ())
    if not repositories:
        shipped = [f"`{alias}`" for alias, homes in aliases.items() if not homes]
        published = ", ".join(alias for alias, homes in aliases.items() if homes)
        raise InputError(
            f"{argument}: expected {' or '.join([*shipped, 'a folder'])}, one of {published}, or a hub's "
            f"owner/name, got {name!r}{suggestion(name, list(aliases))}"
        )
    hub = library("huggingface_hub", f"{argument} {name}")
    failures, parts = [], []
    for repository in repositories:
        for index in ("model_index.json", "config.json"):
            if (cached := _cached(hub, repository, index)) is not None:
                if (lacking := missing(cached.parent)) is None:
                    return cached.parent
                parts.append(lacking)
                break
    for repository in repositories:
        try:
            return _fetch_folder(hub, repository, missing, wanted)
        except InputError as error:
            failures.append(str(error))
        except hub.errors.HfHubHTTPError as error:  # the hub has answered: perhaps it has the next one
            failures.append(f"{repository}: {_reason(hub, error)}")
        except Exception as error:  # no answer; the errors of the hub's HTTP client share no base class
            failures.append(f"{repository}: {_reason(hub, error)}")
            break
    here = f"is here in part ({'; '.join(parts)})" if parts else "is not on this machine"
    raise InputError(
        f"{argument}: {name!r} {here} and did not come from the hub ({'; '.join(failures)}); "
        f"run `hf download {repositories[0]}` where there is a network, or give the folder of a copy"
    )


def find_file(repository: str, files: Sequence[str], purpose: str, instead: str) -> Path:
    """The first of these files of a hub repository that the local cache has, or else the network.

    Raises InputError, one line, where neither has: `purpose` begins it, what is missing and how to get it
    follow, and `instead`, what else to do.
    """
    if not NAME.fullmatch(repository):
        raise InputError(
            f"{purpose}: expected a local path or OWNER/NAME on the hub, found no {repository!r}"
        )
    hub: Any = library("huggingface_hub", purpose)
    if (cached := cached_file(repository, files, purpose)) is not None:
        return cached
    reason = "no such file"
    try:
        there = _files(hub, repository)
        for file in files:
            if file in there:
                return Path(hub.hf_hub_download(repository, file))
    except Exception as error:  # the hub's and its HTTP client's share no base class
        reason = _reason(hub, error)
    raise InputError(
        f"{purpose}: {files[0]} of {repository} is not in the hub's cache and cannot be fetched "
        f"({reason}): run `hf download {repository}` where there is a network, or {instead}"
    )


def cached_file(repository: str, files: Sequence[str], purpose: str) -> Path | None:
    """The first of these files of a hub repository that the local cache has."""
    hub = library("huggingface_hub", purpose)
    return next((path for file in files if (path := _cached(hub, repository, file)) is not None), None)


def find_url(url: str, name: str, purpose: str, instead: str) -> Path:
    """The file of a URL in torch's hub cache, where it is called `name` and put from the network if need be.
    Raises InputError, one line as in `find_file`, where it cannot be had."""
    path = cached_url(name)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{purpose}: {path} is missing and cannot be fetched ({first_line(error)}): "
                f"get it from {url}, or {instead}"
            ) from error
    return path


def cached_url(name: str) -> Path:
    """Where torch's hub cache has a file of this name, or would have it."""
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _cached(hub: Any, repository: str, file: str) -> Path | None:
    path = hub.try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


def _fetch_folder(hub: ModuleType, repository: str, missing: Missing, wanted: Wanted) -> Path:
    patterns = wanted(_files(hub, repository))
    folder = Path(hub.snapshot_download(repository, allow_patterns=patterns)) if patterns else None
    lacking = missing(folder) if folder else "has no model in diffusers' format"
    if folder is None or lacking is not None:
        raise InputError(f"{repository}: {lacking}")
    return folder


def _files(hub: Any, repository: str) -> list[str]:
    """The names of the files of a model's repository. Raises what huggingface_hub raises.

    Not list_repo_files, nor a download at once: where there is no network, these try again for half a minute,
    and report every try.
    """
    return [each.rfilename for each in hub.HfApi().model_info(repository, timeout=10).siblings or []]


def _reason(hub: Any, error: Exception) -> str:
    """Why nothing came from the hub, in a few words."""
    if isinstance(error, hub.errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, hub.errors.GatedRepoError):
        return "its licence must be accepted on its page, then `hf auth login`"
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return "no such public repository"
    return first_line(error)
