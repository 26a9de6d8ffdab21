"""The compiled extension: addresses and sizes in. Its callers in `kernels` check what goes in."""

from typing import Any

def __getattr__(name: str) -> Any: ...
