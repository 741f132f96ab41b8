"""A server with keys, a stored label set, and models for every call of the protocols."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from service.api.accounts import hash_of
from tests.checkpoints import make_checkpoint
from tests.support.servers import Server, serving

LIMITED = ("openai", "huggingface", "cohere", "triton", "kserve", "chat", "retrieval", "mcp", "label_studio")
"""Keys that may send one request a second; one for each client, so that their retries are counted apart."""
NAMES = ("app", "other", "boss", "prometheus", *LIMITED)
SCOPES = {"boss": ["admin"], "prometheus": ["metrics"]}

SLOW_MS = 300_000
"""Deadline on a busy machine."""


@dataclass(frozen=True, slots=True)
class Served:
    """A running server. The secret of a key is `erl_` and its name."""

    server: Server

    @property
    def url(self) -> str:
        return self.server.url

    def num_refused(self, key: str) -> float:
        """Requests of a key that were refused for its limits."""
        response = httpx.get(f"{self.url}/metrics", headers=bearer("prometheus"), trust_env=False)
        series = (line.rpartition(" ") for line in response.raise_for_status().text.splitlines())
        name = f'erlangshen_key_refused_total{{key="{key}",reason="requests"}}'
        return sum(float(value) for selector, _, value in series if selector == name)


def secret(name: str) -> str:
    return f"erl_{name}"


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret(name)}"}


@contextmanager
def serving_all(folder: Path) -> Iterator[Served]:
    """The two models that ship, a classifier, a cross-encoder and a reader with random weights; the label set
    `moderation`."""
    make_checkpoint(folder / "tuned", kind="sequence-classification", id2label={0: "好评", 1: "差评"})
    make_checkpoint(folder / "reranker", kind="sequence-classification", num_labels=1)
    make_checkpoint(folder / "reader", kind="question-answering")
    models = ["mini", "e5-small", *(f"{name}={folder / name}" for name in ("tuned", "reranker", "reader"))]
    keys = folder / "keys.toml"
    keys.write_text("\n".join(map(_table, NAMES)))
    flags = [f"--model={model}" for model in models]
    more = [
        "--labels=reranker=相关",
        f"--keys-file={keys}",
        f"--data-dir={folder / 'data'}",
        f"--default-timeout-ms={SLOW_MS}",
    ]
    with serving(*flags, *more) as server:
        stored = {"labels": ["辱骂", "广告"]}
        url = f"{server.url}/v1/label-sets/moderation"
        httpx.put(url, json=stored, headers=bearer("boss"), trust_env=False).raise_for_status()
        yield Served(server)


def _table(name: str) -> str:
    limit = "requests_per_s = 1" if name in LIMITED else ""
    return f'[keys.{name}]\nhash = "{hash_of(secret(name))}"\nscopes = {SCOPES.get(name, ["infer"])}\n{limit}\n'
