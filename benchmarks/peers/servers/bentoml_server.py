"""BentoML: `bentoml serve bentoml_server:Classify`, then POST /classify {"texts": [...]}."""

from __future__ import annotations

from typing import Any

import bentoml
from classifier import BATCH_SIZE


@bentoml.service(workers=1, traffic={"timeout": 120, "max_concurrency": 1024}, logging={"access": {"enabled": False}})
class Classify:
    def __init__(self) -> None:
        from classifier import Classifier  # in the worker

        self.classifier = Classifier()

    # It learns by itself how long to wait; the bound is that of the slowest request, not of the wait.
    @bentoml.api(batchable=True, max_batch_size=BATCH_SIZE, max_latency_ms=60_000)
    def classify(self, texts: list[str]) -> list[dict[str, Any]]:
        return self.classifier(texts)
