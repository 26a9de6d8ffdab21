"""A reward's name with absolute paths: of weights, and of the module of a function of the user's."""

from __future__ import annotations

import os

from ddpo3d_fast.rewards.names import PUBLISHED, map_paths, parse_rewards


def absolute_reward(spec: str) -> str:
    """The same NAME[=WEIGHT], with the absolute paths of what it names on this machine.

    A module in the working directory becomes FOLDER/module:function. What is not found stays as it is.
    InputError as from `parse_rewards`.
    """
    ((name, _),) = parse_rewards([spec])
    published = name.partition("@")[0] in ("embedded", *PUBLISHED)
    absolute = map_paths(name, os.path.abspath) if published else _absolute_function(name)
    if absolute == name:
        return spec
    # Without one, a path's own =2 would be its weight.
    return absolute + (spec.strip()[len(name) :] or ("=1" if "=" in absolute else ""))


def _absolute_function(name: str) -> str:
    folder, module, function = locate_function(name)
    folder = folder or os.getcwd()
    return f"{os.path.join(folder, module)}:{function}" if _files_of(folder, module) else name


def _files_of(folder: str, module: str) -> list[str]:
    """Those from which a module of this name in a folder would be imported."""
    path = os.path.join(folder, *module.split("."))
    return [file for file in (os.path.join(path, "__init__.py"), f"{path}.py") if os.path.isfile(file)]


def is_module_of(folder: str, module: str, file: str) -> bool:
    """Whether a module's file is the one in a folder, and not one of the same name elsewhere."""
    return any(os.path.samefile(file, own) for own in _files_of(folder, module))


def locate_function(name: str) -> tuple[str, str, str]:
    """Folder, module and function of [FOLDER/]module:function, or FOLDER/module.py:function. The folder is
    absolute, and empty where none is named: then it is the working directory, or any on the Python path."""
    where, _, function = name.rpartition(":")
    folder, module = os.path.split(os.path.expanduser(where))
    return os.path.abspath(folder) if folder else "", module.removesuffix(".py"), function
