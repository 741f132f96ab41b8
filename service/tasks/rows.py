"""Plain BERT rows, `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`, and the one place where text is cut to fit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.domain import Encoding, Readout
from service.errors import InvalidRequest
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel


def encode_rows(
    model: TextModel, inputs: Sequence[tuple[str, ...]], readout: Readout, truncation: Truncation
) -> list[Encoding]:
    """One row for each input of one or two texts.

    Raises:
        InvalidRequest: an input does not fit and `truncation` is "error".
    """
    flat = iter(model.tokenize([text for texts in inputs for text in texts]))
    return [
        encode_row(model, [next(flat) for _ in texts], readout, truncation, f"inputs[{index}]")
        for index, texts in enumerate(inputs)
    ]


def encode_row(
    model: TextModel, texts: list[list[int]], readout: Readout, truncation: Truncation, field: str
) -> Encoding:
    room = model.max_length - 1 - len(texts)
    kept = fit(texts, room, truncation, field)
    ids, segments = [model.cls], [0]
    for segment, text in enumerate(kept):
        ids += [*text, model.sep]
        segments += [segment] * (len(text) + 1)
    return Encoding(
        model=model.name,
        ids=np.asarray(ids, dtype=np.int32),
        segment_ids=np.asarray(segments, dtype=np.int32),
        positions=np.arange(len(ids), dtype=np.int32),
        readout=readout,
        truncated=sum(map(len, kept)) < sum(map(len, texts)),
    )


def fit(texts: Sequence[list[int]], room: int, truncation: Truncation, field: str) -> list[list[int]]:
    """Cuts token lists, the longest first, until together they take at most `room` tokens.

    Raises:
        InvalidRequest: they do not fit and `truncation` is "error".
    """
    total = sum(map(len, texts))
    if total <= room:
        return list(texts)
    if truncation == "error":
        raise InvalidRequest.of(field, f"takes {total} tokens, at most {room} fit")
    lengths = shares([len(text) for text in texts], room)
    if truncation == "left":
        return [text[len(text) - length :] for text, length in zip(texts, lengths, strict=True)]
    return [text[:length] for text, length in zip(texts, lengths, strict=True)]


def shares(lengths: Sequence[int], room: int) -> list[int]:
    """Divides `room` so that short lists stay whole and the long ones get equal shares."""
    result = [0] * len(lengths)
    left = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for count, index in enumerate(left):
        result[index] = min(lengths[index], room // (len(left) - count))
        room -= result[index]
    return result
