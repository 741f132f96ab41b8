"""The protocols besides the native one, in the order in which they are documented."""

from __future__ import annotations

from service.api.calls import Protocol
from service.api.protocols import (
    cohere,
    fengshenbang,
    guardrails,
    huggingface,
    jina,
    kserve,
    label_studio,
    mcp,
    openai,
    tei,
    vllm,
)
from service.settings import Server


def protocols(server: Server) -> tuple[Protocol, ...]:
    return (
        huggingface.PROTOCOL,
        tei.PROTOCOL,
        openai.PROTOCOL,
        vllm.PROTOCOL,
        cohere.PROTOCOL,
        jina.PROTOCOL,
        kserve.PROTOCOL,
        fengshenbang.protocol(server.fengshenbang_path),
        label_studio.PROTOCOL,
        mcp.PROTOCOL,
        guardrails.PROTOCOL,
    )


PROTOCOLS = protocols(Server())
"""With the default settings."""


def enabled(server: Server) -> tuple[Protocol, ...]:
    """The protocols that the settings select."""
    names = server.protocols
    return tuple(protocol for protocol in protocols(server) if "all" in names or protocol.name in names)
