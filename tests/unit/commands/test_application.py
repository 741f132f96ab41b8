"""What the parts are put together for, where that is more than handing them on."""

from __future__ import annotations

import pytest

from service.commands.application import Application
from service.domain import RequestOptions
from service.errors import Unavailable
from service.settings import Batching, Settings


def test_a_request_is_refused_before_it_is_read_but_where_its_result_may_be_kept() -> None:
    whole, with_cache = (Application(Settings(batching=Batching(cache_entries=entries))) for entries in (0, 10))
    for each in (whole, with_cache):
        each.give_up()
    with pytest.raises(Unavailable):
        whole.admit(RequestOptions())
    with_cache.admit(RequestOptions())
