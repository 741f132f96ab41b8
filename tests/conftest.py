"""What all tests share: asyncio, the only loop that the service runs on, and logs as Python has them unasked."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def logs_as_they_were() -> Iterator[None]:
    """A command that is run within a test sets up the logs of this process: the next test must not see that."""
    root = logging.getLogger()
    level, writers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = writers
