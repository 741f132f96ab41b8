"""The composition root: admission of a request before its body is read."""

from __future__ import annotations

import pytest

from service.commands.application import Application
from service.domain import RequestOptions
from service.errors import Unavailable
from service.settings import Batching, Settings


def test_admit_refuses_early_only_without_a_result_cache() -> None:
    without_cache, with_cache = (Application(Settings(batching=Batching(cache_entries=entries))) for entries in (0, 10))
    for each in (without_cache, with_cache):
        each.give_up()
    with pytest.raises(Unavailable):
        without_cache.admit(RequestOptions())
    with_cache.admit(RequestOptions())
