"""What the peers' servers share: transformers' own model, eager, a batch padded to its longest text.

Runs in a peer's environment; the environment variables say which model, precision and number of threads.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MODEL = os.environ["PEER_MODEL"]
PRECISION = getattr(torch, os.environ.get("PEER_PRECISION", "float32"))
BATCH_SIZE = 16
WAIT_S = 0.005
"""How long a batch may wait to be filled."""


class Classifier:
    def __init__(self) -> None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        self._tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self._model = AutoModelForSequenceClassification.from_pretrained(MODEL).to(PRECISION).eval()

    @torch.inference_mode()
    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """The best label of each text."""
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        scores, labels = self._model(**inputs).logits.float().softmax(-1).max(-1)
        names = self._model.config.id2label
        return [
            {"label": names[label], "score": score}
            for label, score in zip(labels.tolist(), scores.tolist(), strict=True)
        ]
