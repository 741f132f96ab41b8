"""Replies on their way to a connection: what leaves with what."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from service.api.reply import CONTINUE, Reply


@dataclass
class Wire:
    """Keeps what is written, packet by packet."""

    packets: list[bytes] = field(default_factory=list)
    is_open: bool = True

    def write(self, data: bytes) -> None:
        assert self.is_open
        self.packets.append(data)

    def close(self) -> None:
        self.is_open = False

    def is_closing(self) -> bool:
        return not self.is_open


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def reply(wire: Wire) -> Reply:
    return Reply(cast(Any, wire))


def test_the_head_leaves_with_the_beginning_of_the_body(wire: Wire, reply: Reply) -> None:
    reply.write(b"head ")
    assert wire.packets == []
    reply.write(b"body")
    assert wire.packets == [b"head body"]
    reply.write(b", more")
    reply.finish()
    assert wire.packets == [b"head body", b", more"]


def test_an_empty_body_lets_the_head_go(wire: Wire, reply: Reply) -> None:
    reply.write(b"head")
    reply.write(b"")
    assert wire.packets == [b"head"]


def test_a_reply_without_a_body_leaves_at_its_end_and_once(wire: Wire, reply: Reply) -> None:
    reply.write(b"head")
    reply.finish()
    reply.finish()
    assert wire.packets == [b"head"]


def test_who_waits_to_send_a_body_is_told_at_once(wire: Wire, reply: Reply) -> None:
    reply.write(CONTINUE)
    assert wire.packets == [CONTINUE]
    reply.write(b"head ")
    reply.write(b"body")
    assert wire.packets == [CONTINUE, b"head body"]


def test_a_reply_that_breaks_off_leaves_before_the_end_of_the_connection(wire: Wire, reply: Reply) -> None:
    reply.write(b"head")
    assert not reply.is_closing()
    reply.close()
    assert wire.packets == [b"head"]
    assert reply.is_closing()
