"""Embedding: one vector per text, pooled from the encoder's final hidden states.

An embedding model declares its pooling, what follows it, and its prompts (`TextModel.embedding`). Any other model gets
the mean of all tokens, scaled to length 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.checkpoints.sentence_modules import EmbeddingSpec
from service.domain import Cls, Encoding, FloatArray, Mean, Output, Pooled, PoolingMode, Readout
from service.errors import InvalidRequest
from service.slices import between_slices
from service.tasks.rows import encode_row, encode_rows
from service.tasks.task import NUMBER_BYTES, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.windows import (
    LongTexts,
    Numbers,
    Place,
    TextWindow,
    WindowOptions,
    pool,
    read_in_windows,
    text_window,
)


@dataclass(frozen=True, slots=True)
class EmbedQuery:
    """With None, `pooling`, `normalize` and the prompt are those that the model declares. `prompt` is a text to put
    before each input, `prompt_name` the name of one of the model's; an empty `prompt` is none. With `windows` a long
    text is read in windows.

    `token_ids` are inputs that a client has tokenised with the vocabulary of the model, instead of `inputs`. They get
    no prompt, and the special tokens around them are those of the model, given or not."""

    inputs: tuple[str, ...]
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    prompt: str | None = None
    prompt_name: str | None = None
    truncation: Truncation = "right"
    token_ids: tuple[tuple[int, ...], ...] = ()
    windows: WindowOptions | None = None


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """`embedding` has the dimensions of the model, or its hidden size, and L2 norm 1 if it is normalized."""

    embedding: tuple[float, ...]
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedWindowResult(EmbedResult):
    """`window` has no index where the vectors of several windows are one."""

    window: TextWindow


def spec_of(model: TextModel) -> EmbeddingSpec:
    """How the model makes embeddings: as it declares, else the mean of all tokens, normalized."""
    return model.embedding or EmbeddingSpec(("mean",), True, model.hidden_size, model.max_length)


def choose_prompt(model: TextModel, prompt: str | None = None, prompt_name: str | None = None) -> str:
    """The text to put before each text: `prompt`, else the model's of that name, else its default one, else nothing.

    Raises:
        InvalidRequest: the model has no prompt of that name.
    """
    spec = spec_of(model)
    if prompt is not None:
        return prompt
    if prompt_name is None:
        return spec.default_prompt
    if prompt_name not in spec.prompts:
        there = f"its prompts are {', '.join(spec.prompts)}" if spec.prompts else "it declares none; send `prompt`"
        raise InvalidRequest.of("prompt_name", f"{model.name} has no such prompt; {there}")
    return spec.prompts[prompt_name]


def encode_texts(
    model: TextModel,
    texts: Sequence[str],
    *,
    prompt: str = "",
    pooling: PoolingMode | None = None,
    truncation: Truncation = "right",
    fields: Sequence[str] | None = None,
    max_length: int | None = None,
) -> list[Encoding]:
    """One row per text, with `prompt` before it; `vector` reads the output of a row. A text is cut, the prompt is not.

    `fields` are the paths of the texts in the request, for errors. `max_length` is in tokens, at most the model's.

    Raises:
        InvalidRequest: a text does not fit and `truncation` is "error", the prompt leaves no room for a text, or the
            model has dense layers for another number of pooling modes.
    """
    spec = spec_of(model)
    readout = _readout(spec, (pooling,) if pooling else spec.pooling)
    before = _read_prompt(model, spec, prompt) if prompt else []
    whole = [prompt + text for text in texts]
    rows = encode_rows(
        model,
        [(text.lower() if spec.lower_case else text,) for text in whole],
        readout,
        truncation,
        max_length=min(max_length or spec.max_length, spec.max_length),
        fields=fields,
    )
    if before and truncation in ("left", "head_tail"):
        rows = [_with_prompt(row, before) if row.truncated else row for row in rows]
    if before and not spec.include_prompt:
        rows = [_without_pooled_prompt(row, len(before)) for row in rows]
    return rows


def _readout(spec: EmbeddingSpec, modes: tuple[PoolingMode, ...]) -> Readout:
    if not spec.dense and modes in (("mean",), ("cls",)):
        return Mean() if modes == ("mean",) else Cls()
    if spec.dense and len(modes) != len(spec.pooling):
        wanted = " and ".join(spec.pooling)
        raise InvalidRequest.of("pooling", f"the model has dense layers after {wanted}, which take no other number")
    return Pooled(modes, is_projected=bool(spec.dense))


def _read_prompt(model: TextModel, spec: EmbeddingSpec, prompt: str) -> list[int]:
    """The tokens of the prompt by itself, of which at least one token of a text can follow."""
    [tokens] = model.tokenize([prompt.lower() if spec.lower_case else prompt], spec.max_length)
    most = spec.max_length - 3
    if len(tokens) > most:
        raise InvalidRequest.of("prompt", f"takes at least {len(tokens)} tokens; at most {most} leave room for a text")
    return tokens


def _with_prompt(row: Encoding, prompt: Sequence[int]) -> Encoding:
    """The row of a text that was cut at its start or in its middle, with the prompt in place of its first tokens."""
    ids = row.ids.copy()
    ids[1 : 1 + len(prompt)] = prompt
    return replace(row, ids=ids)


def _without_pooled_prompt(row: Encoding, num_tokens: int) -> Encoding:
    """Leaves the first token and those of the prompt out of the pooling, as sentence-transformers does."""
    modes: dict[type, tuple[PoolingMode, ...]] = {Mean: ("mean",), Cls: ("cls",)}
    readout = row.readout if isinstance(row.readout, Pooled) else Pooled(modes[type(row.readout)])
    return replace(row, readout=replace(readout, num_skipped=min(1 + num_tokens, row.num_tokens - 1)))


def vector(model: TextModel, output: Output, normalize: bool | None = None) -> FloatArray:
    """The embedding in the output of a row; with None, scaled to L2 norm 1 if the model declares it. A zero vector is
    returned unchanged."""
    embedding: FloatArray = output.scores[0]
    return _unit(embedding) if _is_scaled(model, normalize) else embedding


def _is_scaled(model: TextModel, normalize: bool | None) -> bool:
    return spec_of(model).normalize if normalize is None else normalize


def _unit(embedding: FloatArray) -> FloatArray:
    norm = np.linalg.norm(embedding.astype(np.float64))
    return np.asarray(embedding / norm, dtype=np.float32) if norm > 0 else embedding


def unit_vectors(outputs: Sequence[Output]) -> NDArray[np.float64]:
    """The embeddings in the outputs of rows, scaled to L2 norm 1, shape [num_rows, dimensions]."""
    vectors = np.concatenate([output.scores for output in outputs]).astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, 1e-12))


def can(model: TextModel, query: EmbedQuery) -> bool:
    return True


def encode(model: TextModel, query: EmbedQuery) -> list[Encoding]:
    if query.token_ids:
        return _encode_token_ids(model, query)
    prompt = choose_prompt(model, query.prompt, query.prompt_name)
    return encode_texts(model, query.inputs, prompt=prompt, pooling=query.pooling, truncation=query.truncation)


def _encode_token_ids(model: TextModel, query: EmbedQuery) -> list[Encoding]:
    """Raises InvalidRequest for an id outside the vocabulary, and for an input without a token of a text."""
    spec, vocab_size = spec_of(model), model.tokenizer.get_vocab_size()
    readout = _readout(spec, (query.pooling,) if query.pooling else spec.pooling)
    rows = []
    for index, ids in enumerate(query.token_ids):
        between_slices()
        field = f"inputs[{index}]"
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            detail = f"the vocabulary of {model.name} has {vocab_size} tokens; send the text, or its token ids"
            raise InvalidRequest.of(field, f"has a token id outside of 0 to {vocab_size - 1}: {detail}")
        tokens = list(ids[ids[0] == model.cls : len(ids) - (len(ids) > 1 and ids[-1] == model.sep)])
        if not tokens:
            raise InvalidRequest.of(field, "has no token besides the special ones")
        rows.append(encode_row(model, [tokens], readout, query.truncation, field, spec.max_length))
    return rows


def decode(
    model: TextModel, query: EmbedQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[EmbedResult]:
    return [
        EmbedResult(tuple(vector(model, output, query.normalize).tolist()), encoding.num_tokens, encoding.truncated)
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _with_texts(query: EmbedQuery, parts: Sequence[tuple[int, str]]) -> EmbedQuery:
    return replace(query, inputs=tuple(text for _, text in parts), windows=None)


def _merge(
    model: TextModel,
    query: EmbedQuery,
    vectors: Numbers,
    places: Sequence[Place],
    rows: Sequence[Encoding],
) -> EmbedResult:
    """By default the mean of the vectors, scaled to length 1 where they are."""
    pooling = (query.windows and query.windows.pooling) or "mean"
    embedding = pool(vectors, places, pooling, sum_to_one=False)
    if len(places) > 1 and _is_scaled(model, query.normalize):
        embedding = _unit(embedding)
    return EmbedWindowResult(
        embedding=tuple(embedding.tolist()),
        tokens=sum([row.num_tokens for row in rows]),
        truncated=any(row.truncated for row in rows),
        window=text_window(places, None if len(places) > 1 else 0),
    )


def reply_bytes(model: TextModel, query: EmbedQuery) -> int:
    return (len(query.inputs) + len(query.token_ids)) * spec_of(model).dimensions * NUMBER_BYTES


EMBED: Task[EmbedQuery, EmbedResult] = read_in_windows(
    Task(
        "embed",
        can,
        encode,
        decode,
        needs="any model",
        num_inputs=lambda query: len(query.inputs) + len(query.token_ids),
        reply_bytes=reply_bytes,
    ),
    LongTexts(
        path="inputs[{}]",
        options=lambda query: query.windows,
        texts=lambda query: query.inputs,
        with_texts=_with_texts,
        score=lambda model, query, encodings, outputs: [vector(model, output, query.normalize) for output in outputs],
        merge=_merge,
    ),
)
