"""A runtime behind FastAPI: `python runtime_server.py RUNTIME ROWS PORT`, then POST /classify {"text": ...}.

A thread computes what waits, ROWS texts at most, padded to the longest one; it never waits for a batch to fill. With
ROWS = 1 nothing is padded.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from runtimes import load
from tokenizers.implementations import BertWordPieceTokenizer

RUNTIME, ROWS, PORT = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
MODEL, FOLDER = Path(os.environ["PEER_MODEL"]), Path(os.environ["PEER_ONNX"])

labels = {int(key): name for key, name in json.loads((MODEL / "config.json").read_text())["id2label"].items()}
tokenizer = BertWordPieceTokenizer(str(MODEL / "vocab.txt"), lowercase=True)
tokenizer.enable_truncation(512)
forward = load(RUNTIME, FOLDER, os.environ["PEER_PRECISION"], int(os.environ["OMP_NUM_THREADS"]))


def classify(texts: list[str]) -> list[dict[str, Any]]:
    """The best label of each text."""
    found = tokenizer.encode_batch(texts) if len(texts) > 1 else [tokenizer.encode(texts[0])]
    ids = np.zeros((len(texts), max(len(each) for each in found)), np.int64)
    mask = np.zeros_like(ids)
    for row, each in enumerate(found):
        ids[row, : len(each)] = each.ids
        mask[row, : len(each)] = 1
    logits = forward({"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})
    odds = np.exp(logits - logits.max(1, keepdims=True))
    scores = odds / odds.sum(1, keepdims=True)
    return [
        {"label": labels[int(best)], "score": float(row[best])}
        for best, row in zip(scores.argmax(1), scores, strict=True)
    ]


class Batcher:
    def __init__(self) -> None:
        self._waiting: list[tuple[str, asyncio.Future[dict[str, Any]]]] = []
        self._has_texts = asyncio.Event()

    def submit(self, text: str) -> asyncio.Future[dict[str, Any]]:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        self._has_texts.set()
        return future

    async def run(self) -> None:
        loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        while await self._has_texts.wait():
            batch, self._waiting = self._waiting[:ROWS], self._waiting[ROWS:]
            if not self._waiting:
                self._has_texts.clear()
            answers = await loop.run_in_executor(thread, classify, [text for text, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if not future.done():
                    future.set_result(answer)


batcher = Batcher()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    running = asyncio.create_task(batcher.run())
    yield
    running.cancel()


app = FastAPI(lifespan=lifespan)


class Body(BaseModel):
    text: str


@app.post("/classify")
async def answer(body: Body) -> dict[str, Any]:
    return await batcher.submit(body.text)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")
