"""Models and requests for the tests of the protocols besides the native one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from service.checkpoints.heads import Head
from service.tasks.text_model import TextModel, pair
from tests.contract import fakes
from tests.contract.fakes import Service, text_model

BLEND = replace(fakes.BLEND, similarity=None)
RECORDED = Path(__file__).parent / "recorded"


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request as a client sent it."""

    name: str
    method: str
    path: str
    headers: dict[str, str]
    body: Any

    async def send(self, service: Service, path: str | None = None, **headers: str) -> httpx.Response:
        content = None if self.body is None else json.dumps(self.body).encode()
        return await service.client.request(
            self.method, path or self.path, content=content, headers={**self.headers, **headers}
        )


def recorded(client: str) -> dict[str, Recorded]:
    """The requests of a client by name."""
    found = json.loads((RECORDED / f"{client}.json").read_text(encoding="utf-8"))
    return {one["name"]: Recorded(**one) for one in found}


def choice() -> TextModel:
    return text_model()


def embedder(**prompts: str) -> TextModel:
    return fakes.embedder(BLEND, **prompts)


def both(**prompts: str) -> tuple[TextModel, ...]:
    """A choice model and its partner, as the service has by default."""
    models = (choice(), embedder(**prompts))
    pair(models)
    return models


def classifier(*labels: str, **more: Any) -> TextModel:
    return text_model("tuned", "sequence-classification", labels or ("好", "差"), **more)


def reranker(activation: Any = "sigmoid") -> TextModel:
    """A cross-encoder. FakeSubmit(num_labels=1) makes its output 0."""
    return replace(text_model("reranker", "sequence-classification", ("相关",)), head=Head(1, activation=activation))


def reader() -> TextModel:
    return text_model("reader", "question-answering")
