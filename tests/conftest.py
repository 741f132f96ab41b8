"""Fixtures of all tests: anyio tests run on asyncio, as the service does, and logging is restored after each test."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    """A command that a test runs in this process configures logging, which must not affect the next test."""
    root = logging.getLogger()
    level, writers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = writers
