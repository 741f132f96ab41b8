"""Builds rows, `[CLS] a [SEP]` and `[CLS] a [SEP] b [SEP]`, and truncates texts to fit.

The special tokens and the number of separators between two texts are those of the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.domain import Encoding, Readout
from service.errors import InvalidRequest
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel


def encode_rows(
    model: TextModel,
    inputs: Sequence[tuple[str, ...]],
    readout: Readout,
    truncation: Truncation,
    *,
    max_length: int | None = None,
    fields: Sequence[str] | None = None,
) -> list[Encoding]:
    """One row per input; an input is one or two texts. A row has at most `max_length` tokens, or those of the model.

    `fields` are the paths of the inputs in the request.

    Raises:
        InvalidRequest: an input does not fit and `truncation` is "error".
    """
    max_length = max_length or model.max_length
    flat = iter(read_texts(model, [text for one in inputs for text in one], max_length, truncation))
    return [
        encode_row(
            model,
            [next(flat) for _ in one],
            readout,
            truncation,
            fields[index] if fields else f"inputs[{index}]",
            max_length,
        )
        for index, one in enumerate(inputs)
    ]


def read_texts(model: TextModel, texts: Sequence[str], max_length: int, truncation: Truncation) -> list[list[int]]:
    """The tokens of each text that can stay in a row of `max_length` tokens.

    With "head_tail", those of a long text are its start and its end: what lies between them cannot stay.
    """
    read = model.tokenize(texts, max_length, from_end=truncation == "left")
    if truncation != "head_tail":
        return read
    long = [index for index, tokens in enumerate(read) if len(tokens) >= max_length]
    ends = model.tokenize([texts[index] for index in long], max_length, from_end=True)
    for index, end in zip(long, ends, strict=True):
        read[index] = read[index][:max_length] + end[-max_length:]
    return read


def encode_row(
    model: TextModel,
    texts: list[list[int]],
    readout: Readout,
    truncation: Truncation,
    field: str,
    max_length: int,
) -> Encoding:
    between = [model.sep] * model.num_separators
    num_special = 2 + len(between) * (len(texts) - 1)
    first, *rest = fit(texts, max_length - num_special, truncation, field)
    ids = [model.cls, *first]
    for text in rest:
        ids += [*between, *text]
    ids.append(model.sep)
    segments = np.full(len(ids), model.second_segment, dtype=np.int32)
    segments[: len(ids) if not rest else 1 + len(first) + len(between)] = 0
    return Encoding(
        model=model.name,
        ids=np.asarray(ids, dtype=np.int32),
        segment_ids=segments,
        positions=np.arange(len(ids), dtype=np.int32),
        readout=readout,
        truncated=len(ids) < num_special + sum(map(len, texts)),
    )


def fit(texts: Sequence[list[int]], max_tokens: int, truncation: Truncation, field: str) -> list[list[int]]:
    """Truncates token lists, the longest first, until they have at most `max_tokens` tokens together.

    Raises:
        InvalidRequest: they do not fit and `truncation` is "error".
    """
    total = sum(map(len, texts))
    if total <= max_tokens:
        return list(texts)
    if truncation == "error":
        raise InvalidRequest.of(field, f"takes at least {total} tokens; at most {max_tokens} fit")
    lengths = divide([len(text) for text in texts], max_tokens)
    return [_cut(text, length, truncation) for text, length in zip(texts, lengths, strict=True)]


def _cut(text: list[int], length: int, truncation: Truncation) -> list[int]:
    if truncation == "left":
        return text[len(text) - length :]
    num_last = length // 2 if truncation == "head_tail" and length < len(text) else 0
    return text[: length - num_last] + text[len(text) - num_last :]


def divide(lengths: Sequence[int], max_tokens: int) -> list[int]:
    """Divides `max_tokens` among lists of these lengths: short lists keep their length, long ones get equal shares."""
    result = [0] * len(lengths)
    shortest_first = sorted(range(len(lengths)), key=lambda index: lengths[index])
    for count, index in enumerate(shortest_first):
        result[index] = min(lengths[index], max_tokens // (len(lengths) - count))
        max_tokens -= result[index]
    return result
