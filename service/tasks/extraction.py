"""Extractive reading comprehension: finds the span of a passage that answers a question.

A passage that is too long for a row is read in windows that overlap; each is a row of the same input. In a window the
logits become probabilities over the first token, which stands for "no answer in this window", and the tokens of the
passage. The score of a span is the probability of its start times that of its end; the best span of all windows is the
answer. The score of "no answer" is the lowest of all windows: that of the window most likely to hold an answer.
Source: the question-answering pipeline of transformers 4; the threshold for "no answer" is the one of SQuAD 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.domain import Encoding, FloatArray, IdArray, Output, Spans
from service.errors import InvalidRequest
from service.slices import between_slices
from service.tasks.rows import encode_row, fit, read_texts
from service.tasks.task import NUMBER_BYTES, Truncation
from service.tasks.text_model import TextModel
from service.tasks.windows import MAX_WINDOWS

DEFAULT_STRIDE = 128
DEFAULT_ANSWER_TOKENS = 50
"""As in the baselines of CMRC 2018; a Chinese character is a token."""
MAX_CHARS_PER_TOKEN = 16
"""Of an answer, on average: a token can stand for any number of characters, such as a long unknown word."""
SPAN_BYTES = 60 + 3 * NUMBER_BYTES
"""A candidate in JSON, without its text."""

Logits = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """`stride` is the number of tokens that neighbouring windows share, `max_windows` the limit on the windows of a
    request, unless it has more inputs.

    There is no answer when the logits of "no answer" are by more than `null_threshold` above those of the best span, or
    when the score of that span is below `min_score`.
    """

    top_k: int = 1
    max_answer_tokens: int = DEFAULT_ANSWER_TOKENS
    stride: int = DEFAULT_STRIDE
    null_threshold: float = 0.0
    min_score: float = 0.0
    max_windows: int = MAX_WINDOWS


@dataclass(frozen=True, slots=True)
class AnswerSpan:
    """`answer` is `passage[start:end]`, in Unicode code points."""

    answer: str
    start: int
    end: int
    score: float


@dataclass(frozen=True, slots=True)
class SpanResult:
    """Without an answer `answer`, `start` and `end` are None, and `score` is `no_answer_score`.

    `candidates` holds the best spans, best first, whether there is an answer or not.
    """

    answer: str | None
    start: int | None
    end: int | None
    score: float
    no_answer_score: float
    candidates: tuple[AnswerSpan, ...]
    windows: int
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, eq=False)
class Window(Encoding):
    """A row with a part of a passage, and the characters in the passage of each of its tokens."""

    starts: IdArray = field(kw_only=True)
    ends: IdArray = field(kw_only=True)


def can_extract(model: TextModel) -> bool:
    return model.kind == "question-answering"


def encode_windows(
    model: TextModel, passages: Sequence[str], questions: Sequence[str], options: SpanOptions, truncation: Truncation
) -> list[Encoding]:
    """The windows of each passage, one after the other.

    Raises:
        InvalidRequest: the passages take too many windows, or a text does not fit and `truncation` is "error".
    """
    limit = max(options.max_windows, len(passages))
    read = read_texts(model, questions, model.max_length, truncation)
    rows: list[Encoding] = []
    for index, (passage, question) in enumerate(zip(passages, read, strict=True)):
        num_left = limit - len(rows) - (len(passages) - index - 1)
        rows += _windows(model, passage, question, options, truncation, f"inputs[{index}]", num_left)
    return rows


def _windows(
    model: TextModel,
    passage: str,
    question: list[int],
    options: SpanOptions,
    truncation: Truncation,
    field: str,
    max_windows: int,
) -> list[Window]:
    """The question gets up to half of a row, and a window of the passage the rest."""
    free = max(0, model.max_length - 2 - model.num_separators)
    [kept] = fit([question], free // 2, truncation, f"{field}.question")
    size = free - len(kept)
    if not size:
        raise InvalidRequest.of(
            "model", f"the rows of {model.name} have no room for a passage ({model.max_length} tokens)"
        )
    step = size - min(options.stride, size // 2)
    max_tokens = size if truncation == "error" else size + (max_windows - 1) * step
    tokens = model.tokenize_with_places(passage, max_tokens + 1)
    if len(tokens.ids) > max_tokens:
        raise InvalidRequest.of(
            f"{field}.passage", _too_long(len(tokens.ids), size, truncation, max_windows, options.max_windows)
        )
    last = max(0, len(tokens.ids) - size)
    return [
        _window(
            encode_row(model, [kept, tokens.ids[start : start + size]], Spans(), truncation, field, model.max_length),
            tokens.starts[start : start + size],
            tokens.ends[start : start + size],
            truncated=start == 0 and len(kept) < len(question),
            continues=start > 0,
        )
        for start in range(0, last + step, step)
    ]


def _too_long(num_tokens: int, size: int, truncation: Truncation, num_left: int, max_windows: int) -> str:
    if truncation == "error":
        return f"takes at least {num_tokens} tokens; at most {size} fit next to its question"
    return (
        f"takes more than the {num_left} windows of {size} tokens that are left of the {max_windows} of a request; "
        "send fewer or shorter passages in one request, or a smaller stride"
    )


def _window(row: Encoding, starts: IdArray, ends: IdArray, *, truncated: bool, continues: bool) -> Window:
    return Window(
        model=row.model,
        ids=row.ids,
        segment_ids=row.segment_ids,
        positions=row.positions,
        readout=row.readout,
        truncated=truncated,
        continues=continues,
        starts=starts,
        ends=ends,
    )


def decode_windows(
    passages: Sequence[str], options: SpanOptions, rows: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SpanResult]:
    """One result for each passage."""
    firsts = [index for index, row in enumerate(rows) if not row.continues]
    return [
        _result(passage, options, rows[first:end], outputs[first:end])
        for passage, first, end in zip(passages, firsts, [*firsts[1:], len(rows)], strict=True)
    ]


def _result(passage: str, options: SpanOptions, rows: Sequence[Encoding], outputs: Sequence[Output]) -> SpanResult:
    none = math.inf
    found: dict[tuple[int, int], float] = {}
    for row, output in zip(rows, outputs, strict=True):
        between_slices()
        assert isinstance(row, Window)
        none_here, spans = _read_window(passage, options, row, output)
        none = min(none, none_here)
        for span, score in spans.items():  # windows overlap
            found[span] = max(score, found.get(span, -math.inf))
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))[: options.top_k]
    candidates = tuple(
        AnswerSpan(passage[start:end], start, end, math.exp(score))
        for (start, end), score in ranked
        if math.exp(score) >= options.min_score
    )
    best = candidates[0] if candidates and none - ranked[0][1] <= options.null_threshold else None
    return SpanResult(
        answer=best.answer if best else None,
        start=best.start if best else None,
        end=best.end if best else None,
        score=best.score if best else math.exp(none),
        no_answer_score=math.exp(none),
        candidates=candidates,
        windows=len(rows),
        tokens=sum([row.num_tokens for row in rows]),
        truncated=rows[0].truncated,
    )


def _read_window(
    passage: str, options: SpanOptions, window: Window, output: Output
) -> tuple[float, dict[tuple[int, int], float]]:
    """The logarithm of the score of "no answer", and of those of the best spans by their characters."""
    first = window.num_tokens - 1 - len(window.starts)
    start, end = (_log_softmax(np.concatenate([each[:1], each[first:-1]])) for each in output.scores)
    return float(start[0] + end[0]), _best_spans(passage, options, window, start[1:], end[1:])


def _log_softmax(logits: FloatArray) -> Logits:
    exact = logits.astype(np.float64)
    exact -= exact.max()
    return np.asarray(exact - np.log(np.exp(exact).sum()))


def _best_spans(
    passage: str, options: SpanOptions, window: Window, start: Logits, end: Logits
) -> dict[tuple[int, int], float]:
    """The `top_k` best spans with different characters, of at most `max_answer_tokens` tokens."""
    count = len(start)
    width = min(options.max_answer_tokens, count)
    if not count:
        return {}
    last = np.arange(count)[:, None] + np.arange(width)  # [first token, last token]
    is_inside = last < count
    last = np.minimum(last, count - 1)
    num_chars = window.ends[last] - window.starts[:, None]
    is_text = (num_chars > 0) & (num_chars <= MAX_CHARS_PER_TOKEN * options.max_answer_tokens)
    scores = np.where(is_inside & is_text, start[:, None] + end[last], -np.inf).ravel()
    found: dict[tuple[int, int], float] = {}
    for index in _best_first(scores, 2 * options.top_k + 10):
        if len(found) == options.top_k or not np.isfinite(scores[index]):
            break
        token, more = divmod(index, width)
        span = _strip(passage, int(window.starts[token]), int(window.ends[token + more]))
        if span[0] < span[1]:
            found.setdefault(span, float(scores[index]))
    return found


def _best_first(scores: Logits, num_likely: int) -> Iterator[int]:
    """The indices of the scores, highest first; sorts all of them only after the first `num_likely`, which it repeats.

    Tokens of the same characters and those of white space make further ones necessary.
    """
    if num_likely < len(scores):
        likely = np.sort(np.argpartition(-scores, num_likely)[:num_likely])
        yield from likely[np.argsort(-scores[likely], kind="stable")].tolist()
    yield from np.argsort(-scores, kind="stable").tolist()


def _strip(passage: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space at its ends, which is a part of the tokens of some tokenizers."""
    text = passage[start:end]
    start += len(text) - len(text.lstrip())
    return start, max(start, end - (len(text) - len(text.rstrip())))


def reply_bytes(passages: Sequence[str], options: SpanOptions) -> int:
    longest = MAX_CHARS_PER_TOKEN * options.max_answer_tokens
    texts = sum([3 * min(len(passage), longest) for passage in passages])
    return (options.top_k + 1) * (texts + SPAN_BYTES * len(passages))
