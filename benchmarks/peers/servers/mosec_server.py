"""mosec: `python mosec_server.py --address 127.0.0.1 --port PORT`, then POST /inference {"text": ...}."""

from __future__ import annotations

from typing import Any

import mosec
from classifier import BATCH_SIZE, WAIT_S, Classifier


class Classify(mosec.Worker):
    def __init__(self) -> None:
        self.classifier = Classifier()

    def forward(self, requests: list[dict[str, str]]) -> list[dict[str, Any]]:
        return self.classifier([request["text"] for request in requests])


if __name__ == "__main__":
    server = mosec.Server()
    server.append_worker(Classify, num=1, max_batch_size=BATCH_SIZE, max_wait_time=int(1000 * WAIT_S), timeout=120)
    server.run()
