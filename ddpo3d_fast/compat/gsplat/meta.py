"""The dictionary of intermediate results: those that cost something are made when somebody looks at them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any


class Meta(dict[str, Any]):
    """A dict of which some values are functions that have not been called yet."""

    def __init__(self, ready: dict[str, Any], later: dict[str, Callable[[], Any]]) -> None:
        super().__init__(ready)
        self._later = dict(later)
        for name in later:
            super().__setitem__(name, None)

    def __getitem__(self, name: str) -> Any:
        if name in self._later:
            super().__setitem__(name, self._later[name]())
            del self._later[name]
        return super().__getitem__(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self._later.pop(name, None)
        super().__setitem__(name, value)

    def __iter__(self) -> Iterator[str]:  # also keeps dict(meta) and {**meta} from what is not made yet
        return super().__iter__()

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default  # noqa: SIM401  dict's own would not make it

    def _complete(self) -> None:
        for name in list(self._later):
            self[name]

    def items(self) -> Any:
        self._complete()
        return super().items()

    def values(self) -> Any:
        self._complete()
        return super().values()
