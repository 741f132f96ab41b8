"""Room for connections within what the system lets a process open."""

from __future__ import annotations

import logging
import resource
from collections.abc import Iterator

import pytest

from service.commands.descriptors import OTHERS, fit_connections


@pytest.fixture
def hard() -> Iterator[int]:
    """The hard limit; the soft one is lowered before and restored after."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this process may open as many files as it likes")
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_soft_limit_becomes_the_hard_one(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_connections(hard - OTHERS) == hard - OTHERS
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert caplog.records == []


def test_where_there_is_less_room_than_wanted_it_is_told(hard: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert fit_connections(hard) == hard - OTHERS
    (record,) = caplog.records
    assert record.connections == hard - OTHERS  # type: ignore[attr-defined]
