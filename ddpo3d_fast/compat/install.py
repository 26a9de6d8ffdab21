"""Puts the drop-ins where other projects import them."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from . import diff_gaussian_rasterization as rasterizer
from . import gsplat as functions
from . import simple_knn as neighbours

# Projects that bring their own copies, whose modules are these.
BRINGING = ("gaussian_splatting",)


def install(*, gsplat: str | None = None, diff_gaussian_rasterization: str = "original") -> None:
    """From now on `import diff_gaussian_rasterization`, `import simple_knn._C` and `import gsplat` find the
    functions of this package. To be called before the project that is to use them is imported.

    Where gsplat is installed its functions are replaced, and the rest of it, such as its strategies, stays.
    Where it is not, a `gsplat` with the functions alone takes its place.

    Args:
        gsplat: the version that is meant, "1.5.3" or "1.6.0"; None: the installed one, else 1.5.3.
        diff_gaussian_rasterization: what a call returns, "original", "inverse-depth" or "depth-alpha", as
            `diff_gaussian_rasterization.use` says.

    Raises:
        ValueError: another version or word.
        NotImplementedError: the installed gsplat is neither 1.5 nor 1.6, and `gsplat` is None.
    """
    functions.use(gsplat)
    functions.version()
    rasterizer.use(diff_gaussian_rasterization)
    neighbours._C = neighbours  # type: ignore[attr-defined]
    for prefix in ("", *(f"{name}." for name in BRINGING)):
        sys.modules[f"{prefix}diff_gaussian_rasterization"] = rasterizer
        sys.modules[f"{prefix}simple_knn"] = neighbours
        sys.modules[f"{prefix}simple_knn._C"] = neighbours
    if "gsplat" in sys.modules or find_spec("gsplat") is not None:
        _replace_in_gsplat()
    else:
        _stand_for_gsplat()


def _replace_in_gsplat() -> None:
    package = import_module("gsplat")
    places = ("gsplat.cuda._wrapper", "gsplat.rendering", "gsplat.relocation", "gsplat.strategy.ops")
    originals = {}
    for module in (package, *(import_module(place) for place in places)):
        for name in functions.__all__:
            found = getattr(module, name, None)
            if found is not None and getattr(found, "__module__", "").startswith("gsplat."):
                originals[id(found)] = getattr(functions, name)
    for loaded, module in list(sys.modules.items()):
        if loaded != "gsplat" and not loaded.startswith("gsplat."):
            continue
        for name, value in list(vars(module).items()):
            if id(value) in originals:
                setattr(module, name, originals[id(value)])


def _stand_for_gsplat() -> None:
    places = ("gsplat", "gsplat.rendering", "gsplat.relocation", "gsplat.cuda", "gsplat.cuda._wrapper")
    for place in places:
        module = ModuleType(place, functions.__doc__)
        module.__path__ = []
        for name in functions.__all__:
            if name not in ("use", "version"):
                setattr(module, name, getattr(functions, name))
        sys.modules[place] = module
        parent, _, child = place.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["gsplat"].__version__ = functions.version()  # type: ignore[attr-defined]
