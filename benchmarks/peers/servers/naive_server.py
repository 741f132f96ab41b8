"""What one writes first: FastAPI around transformers' pipeline. `python naive_server.py PORT`, POST /classify."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
precision = getattr(torch, os.environ.get("PEER_PRECISION", "float32"))
classify = pipeline("text-classification", model=os.environ["PEER_MODEL"], dtype=precision, device="cpu")
app = FastAPI()


class Body(BaseModel):
    text: str


@app.post("/classify")
async def answer(body: Body) -> dict[str, Any]:
    """One text at a time: in a thread for each request, more than one core would compute."""
    return classify(body.text, truncation=True)[0]


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
