"""The protocols besides the native one, in the order in which they are documented."""

from __future__ import annotations

from collections.abc import Sequence

from service.api.calls import Protocol
from service.api.protocols import cohere, huggingface, jina, openai, tei, vllm

PROTOCOLS: tuple[Protocol, ...] = (
    huggingface.PROTOCOL,
    tei.PROTOCOL,
    openai.PROTOCOL,
    vllm.PROTOCOL,
    cohere.PROTOCOL,
    jina.PROTOCOL,
)


def enabled(names: Sequence[str]) -> tuple[Protocol, ...]:
    """The protocols of these names; `all` stands for every one."""
    return tuple(protocol for protocol in PROTOCOLS if "all" in names or protocol.name in names)
