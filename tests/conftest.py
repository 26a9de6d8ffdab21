"""What all tests share."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines are built for the tests alone: neither found in the user's cache, nor left there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPO3D_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
