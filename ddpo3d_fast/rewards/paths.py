"""Where the module of a function of the user's lies."""

from __future__ import annotations

import os


def absolute_function(name: str) -> str:
    """FOLDER/module:function for a module in the working directory, or of a relative folder; what is not
    found stays as it is."""
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
