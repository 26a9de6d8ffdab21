"""What the benchmarks' tests share: the scripts as modules, a small model."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def load_benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a script of benchmarks/ by its name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        yield importlib.import_module


@pytest.fixture(scope="session")
def small_model(
    load_benchmark: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of `random:small`; not to be changed."""
    models = tmp_path_factory.mktemp("random-models")
    return Path(load_benchmark("random_models").find_model("random:small", models))
