"""Reads the API out of TensorRT's real Python bindings: `python tensorrt_api.py FOLDER OUT`.

FOLDER holds the package `tensorrt_bindings` of one version (fetch_tensorrt_bindings.sh). Its extension needs
TensorRT's libraries, which come from the vendor alone; in their place it gets libraries made here, whose
functions end the process when they are called. With these the bindings can be imported, and their classes,
members and signatures looked at, though no Builder, Runtime or Refitter can be made.

Writes `OUT/tensorrt/__init__.pyi`, a stub with every class, member and signature for mypy, and
`OUT/api.json`: for every class its members, each with the parameter names of its overloads (none for what
cannot be called).
"""

from __future__ import annotations

import ast
import builtins
import ctypes
import importlib
import json
import keyword
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

PREFIX = re.compile(r"tensorrt_bindings\.tensorrt\.")
LIBRARY = re.compile(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+")
FUNCTION = re.compile(
    rb"\x00(create\w+_INTERNAL|get\w*PluginRegistry|getNvOnnxParserVersion|initLibNvInferPlugins)(?=\x00)"
)
SPELLINGS = {
    "buffer": "Buffer",
    "typing_extensions.Buffer": "Buffer",
    "collections.abc.Sequence": "Sequence",
    "typing.SupportsInt": "SupportsInt",
    "typing.SupportsFloat": "SupportsFloat",
    "List": "list",
    "Dict": "dict",
    "Tuple": "tuple",
}
BUFFER_SLOT = 20 * ctypes.sizeof(ctypes.c_void_p)  # of tp_as_buffer in a PyTypeObject


def load(folder: Path, scratch: Path) -> ModuleType:
    """The bindings in `folder`, beside libraries that have every function they name and do nothing."""
    extension = next((folder / "tensorrt_bindings").glob("tensorrt*.so")).read_bytes()
    functions = sorted({name.decode() for name in FUNCTION.findall(extension)})
    source = scratch / "libraries.c"
    source.write_text(
        "void abort(void);\n" + "".join(f"void {name}(void) {{ abort(); }}\n" for name in functions)
    )
    for name in sorted({name.decode() for name in LIBRARY.findall(extension)}):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(scratch / name), str(source)]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(scratch / name), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    return importlib.import_module("tensorrt_bindings")


def split(text: str, at: str) -> list[str]:
    """The parts of `text` between the `at` outside all brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{<":
            depth += 1
        elif character in ")]}>":
            depth -= 1
        if character == at and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def signatures(function: Any) -> list[tuple[list[str], str]]:
    """The overloads that the docstring of a function of pybind11 tells: parameters, and the result's type."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.fullmatch(r"(?:\d+\. )?(?:\w+)?\((.*)\) -> (.+)", line.strip())
        if match:
            found.append((split(match[1], ",") if match[1] else [], match[2]))
    return found


class Stub:
    """Writes the stub of a module of pybind11."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.api: dict[str, dict[str, list[list[str]]]] = {}
        self.lines = [
            "# mypy: ignore-errors",
            "import builtins",
            "from typing import Any, Callable, SupportsFloat, SupportsInt, overload",
            "from collections.abc import Iterator, Sequence",
            "from typing_extensions import Buffer",
            "import numpy",
            "__version__: builtins.str",
        ]
        classes = {k: v for k, v in vars(module).items() if isinstance(v, type) and not k.startswith("_")}
        for name, value in classes.items():
            if value.__name__ == name:
                self.write_class(value, "")
        for name, value in vars(module).items():
            if name not in classes and type(value) in classes.values() and not hasattr(builtins, name):
                self.lines.append(f"{name}: {type(value).__name__}")

    def type(self, text: str) -> str:
        """A type of a docstring as the stub says it; Any where it is none of Python's or of the module."""
        text = PREFIX.sub("", text.strip())
        text = re.sub(r"\w+(?:::\w+)+", lambda match: self.cpp(match[0]), text)
        for spelling, ours in SPELLINGS.items():
            text = re.sub(rf"(?<![\w.]){re.escape(spelling)}(?![\w.])", ours, text)
        try:
            tree = ast.parse(text, mode="eval")
        except SyntaxError:
            return "Any"
        for node in ast.walk(tree):
            if isinstance(node, ast.Name):
                if hasattr(self.module, node.id) and isinstance(getattr(self.module, node.id), type):
                    continue
                if isinstance(getattr(builtins, node.id, None), type):
                    node.id = f"builtins.{node.id}"
                elif node.id not in {*SPELLINGS.values(), "Callable", "None", "numpy"}:
                    return "Any"
        return ast.unparse(tree)

    def cpp(self, name: str) -> str:
        """A class that was not bound yet when the docstring was made: nvonnxparser::IParserError."""
        last = name.rpartition("::")[2]
        return next((n for n in (last, last.removeprefix("I")) if hasattr(self.module, n)), "Any")

    def write_class(self, cls: type, indent: str) -> None:
        bases = [base.__name__ for base in cls.__bases__ if base.__module__.startswith("tensorrt_bindings")]
        self.lines.append(f"{indent}class {cls.__name__}({', '.join(bases)}):")
        inner = indent + "    "
        self.lines.append(f"{inner}...")
        members = self.api.setdefault(cls.__qualname__, {})
        names = getattr(cls, "__members__", {})  # of an enumeration
        for name, value in vars(cls).items():
            if name in names:
                self.lines.append(f"{inner}{name}: {PREFIX.sub('', cls.__qualname__)}")
                members[name] = []
            elif isinstance(value, property):
                members[name] = []
                self.write_property(name, value, inner)
            elif isinstance(value, type):
                self.write_class(value, inner)
                members[name] = []
            elif callable(value) or isinstance(value, staticmethod):
                members[name] = self.write_function(
                    name, getattr(cls, name), isinstance(value, staticmethod), inner
                )
        if "__getitem__" in vars(cls) and "__iter__" not in vars(cls):  # Python then iterates by index
            self.lines.append(f"{inner}def __iter__(self) -> Iterator[Any]: ...")
        slots = ctypes.c_void_p.from_address(id(cls) + BUFFER_SLOT).value
        if slots and ctypes.c_void_p.from_address(slots).value:  # bf_getbuffer: its bytes can be had
            self.lines.append(f"{inner}def __buffer__(self, flags: builtins.int, /) -> memoryview: ...")

    def write_property(self, name: str, value: property, indent: str) -> None:
        found = signatures(value.fget)
        kind = self.type(found[0][1]) if found else "Any"
        if value.fset is None:
            self.lines += [f"{indent}@property", f"{indent}def {name}(self) -> {kind}: ..."]
        else:
            self.lines.append(f"{indent}{name}: {kind}")

    def write_function(self, name: str, function: Any, static: bool, indent: str) -> list[list[str]]:
        found = signatures(function)
        names = []
        for parameters, result in found:
            written: list[str] = []
            optional = True  # a default before a parameter without one serves nobody
            for parameter in reversed(parameters):
                before, *default = split(parameter, "=")
                label, colon, kind = before.partition(":")
                label += "_" * keyword.iskeyword(label)
                typed = f"{label}: {self.type(kind)}" if colon and label != "self" else label
                optional = optional and (bool(default) or not colon)
                written.insert(0, typed + " = ..." * (optional and bool(default)))
            names.append([part.partition(":")[0] for part in written if part.partition(":")[1]])
            self.lines += [f"{indent}@overload"] * (len(found) > 1) + [f"{indent}@staticmethod"] * static
            self.lines.append(f"{indent}def {name}({', '.join(written)}) -> {self.type(result)}: ...")
        return names


def main(folder: Path, out: Path) -> None:
    module = load(folder, out)
    stub = Stub(module)
    (out / "tensorrt").mkdir()
    (out / "tensorrt" / "__init__.pyi").write_text("\n".join(stub.lines) + "\n")
    (out / "api.json").write_text(json.dumps({"version": module.__version__, "classes": stub.api}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
