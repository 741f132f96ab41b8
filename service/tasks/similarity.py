"""Semantic similarity of two texts: by a fine-tuned pair classifier, by a choice model (UniMC), by an embedding model,
or by the last two together (`blend`).

A classifier and a choice model read both texts in one row. An embedding model reads each text in a row of its own: the
rows are one for each pair, where there is a choice, then the first text of each pair, then the second.

A cosine is no probability: what is a high one depends on the model. It becomes one for the embedding model that the
constants of the blend are fitted for; of any other one the score is the cosine itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, Output
from service.tasks import embedding, unimc
from service.tasks.task import Method, Needs, Prediction, Task, Truncation, used_method
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice

READINGS = ("不能理解为：{}", "可以理解为：{}")
"""Templates that turn the second text into two options for the first, in the order of LABELS. Source: upstream."""
SAME = "相似"
NAMES = ("不相似", SAME)
"""The labels that make a classifier one of similarity, in upstream's order."""
LABELS = ("different", "same")
"""The predicted label for a score below 0.5, and for one of 0.5 or more."""


@dataclass(frozen=True, slots=True)
class SimilarityQuery:
    """`prompt` and `prompt_name` are as in EmbedQuery, and require an embedding model.

    With `is_alone` the model decides without its partner, whatever the method.
    """

    pairs: tuple[tuple[str, str], ...]
    truncation: Truncation = "right"
    prompt: str | None = None
    prompt_name: str | None = None
    method: Method = "auto"
    is_alone: bool = False

    @property
    def has_prompt(self) -> bool:
        return self.prompt is not None or self.prompt_name is not None


@dataclass(frozen=True, slots=True)
class SimilarityResult:
    """`score` is from 0 to 1: the probability that the two texts have the same meaning; of an embedding model without
    constants for it the cosine of their vectors, 0 where it is negative."""

    score: float
    tokens: int
    truncated: bool


def can(model: TextModel, query: SimilarityQuery) -> bool:
    if query.method == "embedding" or query.has_prompt:
        return query.method != "choice" and compares_embeddings(model)
    is_pair_model = unimc.can_compare(model, "similarity", READINGS) or _is_cross_encoder(model)
    return is_pair_model or (query.method == "auto" and compares_embeddings(model))


def compares_embeddings(model: TextModel) -> bool:
    """Whether this model compares the vectors of the texts: an embedding model that was trained for their cosine, and
    has no head for pairs."""
    return model.embedding is not None and model.embedding.has_cosine and "similarity" not in model.tasks


def _is_cross_encoder(model: TextModel) -> bool:
    """Whether the model has one output, the probability that two texts have the same meaning."""
    has_one_output = model.head is not None and model.head.num_classes == 1
    return has_one_output and "similarity" in model.tasks and unimc.gives_probabilities(model)


def encode(model: TextModel, query: SimilarityQuery) -> list[Encoding]:
    if query.method != "choice" and compares_embeddings(model):
        return _encode_texts(model, query)
    pairs = unimc.encode_pairs(model, query.pairs, READINGS, query.truncation)
    partner = None if query.is_alone or query.method != "auto" else model.partner
    if partner is None or partner.blend is None or partner.blend.similarity is None:
        return pairs
    return [*pairs, *_encode_texts(partner, query)]


def _encode_texts(model: TextModel, query: SimilarityQuery) -> list[Encoding]:
    """A row for the first text of each pair, then one for the second; a text that comes again has the same row."""
    fields: dict[str, str] = {}
    for side in (0, 1):
        for index, pair in enumerate(query.pairs):
            fields.setdefault(pair[side], f"inputs[{index}][{side}]")
    rows = embedding.encode_texts(
        model,
        list(fields),
        prompt=embedding.choose_prompt(model, query.prompt, query.prompt_name),
        truncation=query.truncation,
        fields=list(fields.values()),
    )
    row_of = dict(zip(fields, rows, strict=True))
    return [row_of[pair[side]] for side in (0, 1) for pair in query.pairs]


def as_choice(first: str, second: str) -> Choice:
    return unimc.pair_as_choice((first, second), READINGS)


def decode(
    model: TextModel, query: SimilarityQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[SimilarityResult]:
    num_pairs = len(query.pairs)
    results = []
    for index, score in enumerate(_scores(model, num_pairs, outputs)):
        rows = encodings[index::num_pairs]
        num_tokens, is_truncated = sum([row.num_tokens for row in rows]), any(row.truncated for row in rows)
        results.append(SimilarityResult(float(score), num_tokens, is_truncated))
    return results


def _scores(model: TextModel, num_pairs: int, outputs: Sequence[Output]) -> Sequence[float] | FloatArray:
    if len(outputs) == num_pairs:
        return [float(unimc.class_probabilities(model, output)[_same(model)]) for output in outputs]
    vectors = embedding.unit_vectors(outputs[-2 * num_pairs :])
    cosines = np.einsum("ij,ij->i", vectors[:num_pairs], vectors[num_pairs:])
    is_blend = len(outputs) == 3 * num_pairs
    embedder = model.partner if is_blend else model
    if embedder is None or embedder.blend is None or embedder.blend.similarity is None:
        return np.asarray(np.clip(cosines, 0.0, 1.0), dtype=np.float32)
    if not is_blend:
        return embedder.blend.similarity.of_cosines(cosines)
    yes = np.stack([output.scores[:, 0].astype(np.float64) for output in outputs[:num_pairs]])
    return embedder.blend.similarity.of_both(cosines, yes[:, 1] - yes[:, 0])


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
    return not compares_embeddings(model) or (model.blend is not None and model.blend.similarity is not None)


def predict(query: SimilarityQuery, result: SimilarityResult) -> Prediction:
    is_same = result.score >= 0.5
    return Prediction(LABELS[is_same], result.score if is_same else 1.0 - result.score)


def needs(query: SimilarityQuery) -> Needs:
    if query.method == "embedding":
        return Needs("an embedding model that is compared by cosine, such as --model e5-small", "method")
    if query.method == "choice" and not query.has_prompt:
        return Needs("a masked LM (UniMC), such as --model mini, or a model fine-tuned for similarity", "method")
    return Needs(
        "a masked LM (UniMC), a model fine-tuned for similarity, or an embedding model; with a prompt, the latter"
    )


SIMILARITY: Task[SimilarityQuery, SimilarityResult] = Task(
    "similarity",
    can,
    encode,
    decode,
    needs=needs,
    is_second_choice=compares_embeddings,
    num_inputs=lambda query: len(query.pairs),
    method=used_method,
    hint=hint,
    predict=predict,
    decides=decides,
    own_labels=lambda model: LABELS,
)
