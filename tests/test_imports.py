"""Who may know whom: every room of the package imports only from the rooms below it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ddpo3d_fast"
# From the top down. A room may import its own files and those of lower levels, never a neighbour's.
LEVELS = (
    ("__main__", "training"),
    ("cli",),
    ("render", "convert", "mesh", "batch", "view", "engines_command"),
    ("refine",),
    ("arguments", "progress", "generate"),
    ("build",),
    ("run", "control", "graphs", "schedule", "export", "journal"),
    ("info", "configure", "help", "commands"),
    ("meshing",),
    ("guidance", "scene", "assets"),
    ("priors", "rewards"),
    ("hub",),
    ("engines", "compat"),
    ("kernels", "settings", "resampling", "step", "vectors"),
    ("files", "sources", "extras", "openvino_graph"),
    ("errors",),
    ("__init__",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
LEAVES = {"kernels": {"_C"}, "compat": {"kernels"}}  # rooms that know nothing else of the package


def room_of(file: Path) -> str:
    """The folder under the package, or the name of the file."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imported_rooms(file: Path) -> set[str]:
    """The rooms of this package that a file's import statements name, wherever in the file they stand."""
    inside = ("ddpo3d_fast", *file.relative_to(PACKAGE).parent.parts)
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from ddpo3d_fast import settings` names the room after the word import.
            modules |= (
                {f"{module}.{alias.name}" for alias in node.names} if module == "ddpo3d_fast" else {module}
            )
    names = [module.split(".") for module in modules]
    rooms = {(*name, "__init__")[1] for name in names if name[0] == "ddpo3d_fast"}
    return {"__init__" if room == "__version__" else room for room in rooms}


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=[str(file.relative_to(PACKAGE)) for file in FILES])
def test_a_room_imports_only_from_the_rooms_below_it(file: Path) -> None:
    room = room_of(file)
    others = imported_rooms(file) - {room}
    if room in LEAVES:
        assert others <= LEAVES[room]
    else:
        assert others <= LEVEL.keys(), "a room without a level: give it one in LEVELS"
        assert all(LEVEL[other] > LEVEL[room] for other in others), f"{room} must not know {sorted(others)}"


def test_the_parser_sees_every_kind_of_import() -> None:
    assert {"errors", "settings", "generate", "progress", "__init__"} <= imported_rooms(PACKAGE / "cli.py")
    assert "kernels" in imported_rooms(PACKAGE / "kernels" / "__init__.py")  # relative
    assert "_C" in imported_rooms(PACKAGE / "kernels" / "_backend.py")


def test_nobody_imports_training() -> None:
    knowing = [
        str(file) for file in FILES if "training" in imported_rooms(file) and room_of(file) != "training"
    ]
    assert knowing == []


def test_importing_the_package_loads_nothing() -> None:
    code = (
        "import sys; import ddpo3d_fast; print([m for m in ('torch', 'numpy', 'tyro') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_the_kernels_loads_nothing_else_of_the_package() -> None:
    code = """
import sys
import ddpo3d_fast.kernels
names = sorted(name for name in sys.modules if name.startswith("ddpo3d_fast"))
print([name for name in names if not name.startswith(("ddpo3d_fast.kernels", "ddpo3d_fast._C"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['ddpo3d_fast']\n"
