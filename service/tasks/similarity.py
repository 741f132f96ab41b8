"""Semantic similarity of two texts: by a fine-tuned pair classifier, zero-shot (UniMC), or by their embeddings.

A classifier and UniMC read both texts in one row, and their score is a probability. An embedding model reads each text
in a row of its own, and the score is the cosine of the two vectors, which is no probability: what is a high one depends
on the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service.domain import Encoding, Output
from service.tasks import embedding, unimc
from service.tasks.task import Prediction, Task, Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice

READINGS = ("不能理解为：{}", "可以理解为：{}")
"""Templates that turn the second text into two options for the first, in the order of LABELS. Source: upstream."""
SAME = "相似"
NAMES = ("不相似", SAME)
"""The labels that make a classifier one of similarity, in upstream's order."""
LABELS = ("different", "same")
"""The predicted label for a score below 0.5, and for one of 0.5 or more."""

Method = Literal["classifier", "choice", "embedding"]


@dataclass(frozen=True, slots=True)
class SimilarityQuery:
    """`prompt` and `prompt_name` are as in EmbedQuery, and require an embedding model."""

    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"
    prompt: str | None = None
    prompt_name: str | None = None


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """`score` is from 0 to 1: the probability that the two texts have the same meaning, by a `classifier` or by UniMC
    (`choice`), or the cosine of their vectors (`embedding`), 0 where it is negative."""

    score: float
    method: Method
    tokens: int
    truncated: bool


def can(model: TextModel, query: SimilarityQuery) -> bool:
    if query.prompt is not None or query.prompt_name is not None:
        return compares_embeddings(model)
    return unimc.can_compare(model, "similarity", READINGS) or _is_cross_encoder(model) or compares_embeddings(model)


def compares_embeddings(model: TextModel) -> bool:
    """Whether this model compares the vectors of the texts: an embedding model that was trained for their cosine, and
    has no head for pairs."""
    return model.embedding is not None and model.embedding.has_cosine and "similarity" not in model.tasks


def _is_cross_encoder(model: TextModel) -> bool:
    """Whether the model has one output, the probability that two texts have the same meaning."""
    has_one_output = model.head is not None and model.head.num_classes == 1
    return has_one_output and "similarity" in model.tasks and unimc.gives_probabilities(model)


def encode(model: TextModel, query: SimilarityQuery) -> list[Encoding]:
    if not compares_embeddings(model):
        return unimc.encode_pairs(model, query.pairs, READINGS, query.truncation)
    return embedding.encode_texts(
        model,
        [text for pair in query.pairs for text in pair],
        prompt=embedding.choose_prompt(model, query.prompt, query.prompt_name),
        truncation=query.truncation,
        fields=[f"inputs[{index}][{side}]" for index in range(len(query.pairs)) for side in (0, 1)],
    )


def rows_per_input(model: TextModel) -> int:
    return 2 if compares_embeddings(model) else 1


def as_choice(first: str, second: str) -> Choice:
    return unimc.pair_as_choice((first, second), READINGS)


def decode(
    model: TextModel, query: SimilarityQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SimilarityResult]:
    if compares_embeddings(model):
        return _decode_embeddings(model, encodings, outputs)
    method: Method = "classifier" if model.kind == "sequence-classification" else "choice"
    return [
        SimilarityResult(
            float(unimc.class_probabilities(model, output)[_same(model)]),
            method,
            encoding.num_tokens,
            encoding.truncated,
        )
        for encoding, output in zip(encodings, outputs, strict=True)
    ]


def _decode_embeddings(
    model: TextModel, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SimilarityResult]:
    vectors = [embedding.vector(model, output, normalize=True).astype(np.float64) for output in outputs]
    return [
        SimilarityResult(
            min(max(float(vectors[row] @ vectors[row + 1]), 0.0), 1.0),
            "embedding",
            encodings[row].num_tokens + encodings[row + 1].num_tokens,
            encodings[row].truncated or encodings[row + 1].truncated,
        )
        for row in range(0, len(outputs), 2)
    ]


def _same(model: TextModel) -> int:
    """Index of the class "same": the one with that label in the model's head, else the second, as in upstream, or the
    only one."""
    if SAME in model.labels:
        return model.labels.index(SAME)
    return 0 if _is_cross_encoder(model) else 1


def hint(model: TextModel) -> str | None:
    if model.embedding and not model.embedding.has_cosine:
        return f"{model.name} was trained to be compared by {model.embedding.similarity}; take its vectors from embed"
    if model.head and model.head.num_classes == 1:
        return unimc.label_hint(model, "its output is the probability that two texts mean the same", (SAME,))
    return unimc.label_hint(model, "its classes are different and same meaning of a pair", NAMES)


def decides(model: TextModel) -> bool:
    """Whether a score of 0.5 divides same from different: that of a cosine is another one with every model."""
    return not compares_embeddings(model)


def predict(query: SimilarityQuery, result: SimilarityResult) -> Prediction:
    is_same = result.score >= 0.5
    return Prediction(LABELS[is_same], result.score if is_same else 1.0 - result.score)


SIMILARITY: Task[SimilarityQuery, SimilarityResult] = Task(
    "similarity",
    can,
    encode,
    decode,
    needs="a masked LM (UniMC), a model fine-tuned for similarity, or an embedding model; with a prompt, the latter",
    hint=hint,
    predict=predict,
    decides=decides,
    own_labels=lambda model: LABELS,
    rows_per_input=rows_per_input,
    is_second_choice=compares_embeddings,
)
