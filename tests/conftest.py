"""What all tests share: coroutines run on asyncio, the only loop that the service runs on."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
