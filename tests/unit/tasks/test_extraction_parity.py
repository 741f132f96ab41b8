"""Extractive reading comprehension against transformers: its tokenizer's windows and offsets, its model's logits.

transformers 5 has no question-answering pipeline; `reference` does what that of version 4 did, for every span of every
window.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast, XLMRobertaTokenizerFast

from service.checkpoints.checkpoint import describe
from service.domain import Output
from service.engine.engine import Engine
from service.tasks.extraction import SpanOptions, SpanResult, Window
from service.tasks.mrc import MRC, MrcQuery, Reading
from service.tasks.text_model import TextModel
from tests.checkpoints import CHARACTERS, make_checkpoint, vocabulary
from tests.tokenizers import odd_strings, write_unigram
from tests.unit.engine.rows import load_reference

NUM_PASSAGES = 200
MAX_LENGTH = 64
STRIDE = 16
MAX_ANSWER_TOKENS = 12
TOLERANCE = 1e-4
OPTIONS = SpanOptions(top_k=5, max_answer_tokens=MAX_ANSWER_TOKENS, stride=STRIDE)


@dataclass(frozen=True)
class Served:
    model: TextModel
    engine: Engine
    reference: torch.nn.Module
    tokenizer: Any


@dataclass(frozen=True)
class Wanted:
    logits: list[np.ndarray[Any, Any]]
    """Of each window, [2, tokens]."""
    offsets: list[list[tuple[int, int]]]
    """Of each window, the characters of the tokens of the passage."""
    spans: dict[tuple[int, int], float]
    no_answer: float


def make(path: Path, name: str) -> Served:
    family = "xlm-roberta" if "unigram" in name else name
    make_checkpoint(
        path, family=family, kind="question-answering", num_layers=2, max_positions=MAX_LENGTH, init_std=0.3
    )
    if "unigram" in name:
        write_unigram(path, collapses=name == "unigram-collapses", vocab_size=len(vocabulary()) - 1)
        (path / "vocab.txt").unlink()
    if name == "unigram-collapses":
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_file=str(path / "tokenizer.json"), **json.loads((path / "tokenizer_config.json").read_text())
        )
    else:
        tokenizer = (XLMRobertaTokenizerFast if "unigram" in name else BertTokenizer).from_pretrained(path)
    checkpoint = describe(path, "reader")
    return Served(
        TextModel.load(checkpoint),
        Engine.load(checkpoint, precision="float32"),
        load_reference(path, family, "question-answering"),
        tokenizer,
    )


@pytest.fixture(scope="module", params=["bert", "megatron-bert", "unigram", "unigram-collapses"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return make(tmp_path_factory.mktemp("reader"), request.param)


@torch.no_grad()
def reference(served: Served, passage: str, question: str) -> Wanted:
    rows = served.tokenizer(
        question,
        passage,
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    wanted = Wanted([], [], {}, np.inf)
    no_answer = np.inf
    for index, ids in enumerate(rows["input_ids"]):
        inputs = {"input_ids": torch.tensor([ids])}
        if "token_type_ids" in rows:
            inputs["token_type_ids"] = torch.tensor([rows["token_type_ids"][index]])
        out = served.reference(**inputs)
        logits = np.concatenate([out.start_logits, out.end_logits])
        places = [at for at, sequence in enumerate(rows.sequence_ids(index)) if sequence == 1]
        offsets = rows["offset_mapping"][index]
        wanted.logits.append(logits)
        wanted.offsets.append([offsets[place] for place in places])
        exact = np.exp(logits.astype(np.float64))
        start, end = exact / exact[:, [0, *places]].sum(axis=1, keepdims=True)
        no_answer = min(no_answer, start[0] * end[0])
        for at, first in enumerate(places):
            for last in places[at : at + MAX_ANSWER_TOKENS]:
                span = strip(passage, offsets[first][0], offsets[last][1])
                if span[0] < span[1]:
                    wanted.spans[span] = max(wanted.spans.get(span, 0.0), start[first] * end[last])
    return Wanted(wanted.logits, wanted.offsets, wanted.spans, no_answer)


def strip(passage: str, start: int, end: int) -> tuple[int, int]:
    text = passage[start:end]
    left = len(text) - len(text.lstrip())
    return start + left, start + left + len(text.strip())


def passages() -> list[str]:
    """Of up to about four windows; odd characters among Chinese and English words."""
    draw = random.Random(0)
    odd = [each for each in odd_strings(NUM_PASSAGES) if each.strip()]

    def one() -> str:
        parts = [
            draw.choice(odd) if draw.random() < 0.3 else "".join(draw.choices(CHARACTERS, k=draw.randrange(1, 20)))
            for _ in range(draw.randrange(1, 16))
        ]
        return draw.choice(("", " ", "\n")).join(parts)

    return [one() for _ in range(NUM_PASSAGES)]


def answer(
    served: Served, passages: Sequence[str], question: str
) -> tuple[list[list[Window]], list[list[Output]], list[SpanResult]]:
    """The windows of each passage, their outputs, and the results; a request has at most 256 windows."""
    windows, outputs, results = [], [], []
    for passage in passages:
        query = MrcQuery((Reading(passage, question),), spans=OPTIONS)
        rows = MRC.encode(served.model, query)
        out = served.engine.run(rows)
        windows.append([row for row in rows if isinstance(row, Window)])
        outputs.append(out)
        results += [each for each in MRC.decode(served.model, query, rows, out) if isinstance(each, SpanResult)]
    return windows, outputs, results


def test_logits_offsets_and_answers_are_those_of_transformers(served: Served) -> None:
    question = "小王几点去上班？the weather"
    texts = passages()
    num_windows, num_null = 0, 0
    for passage, windows, outputs, result in zip(texts, *answer(served, texts, question), strict=True):
        wanted = reference(served, passage, question)
        num_windows = max(num_windows, len(windows))
        assert [[*zip(each.starts.tolist(), each.ends.tolist(), strict=True)] for each in windows] == wanted.offsets
        for output, logits in zip(outputs, wanted.logits, strict=True):
            assert output.scores.shape == logits.shape
            assert np.abs(output.scores - logits).max() < TOLERANCE
        best = sorted(wanted.spans.values(), reverse=True)[: OPTIONS.top_k]
        assert [each.score for each in result.candidates] == pytest.approx(best, rel=1e-3, abs=1e-9)
        assert all(
            wanted.spans[each.start, each.end] == pytest.approx(each.score, rel=1e-3) for each in result.candidates
        )
        assert all(each.answer == passage[each.start : each.end] for each in result.candidates)
        assert result.no_answer_score == pytest.approx(wanted.no_answer, rel=1e-3)
        if best and abs(best[0] / wanted.no_answer - 1) > 1e-3:
            assert (result.answer is None) == (wanted.no_answer > best[0])
        num_null += result.answer is None
    assert num_windows > 2
    assert num_null < len(texts)
