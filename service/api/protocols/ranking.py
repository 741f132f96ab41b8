"""Scores of pairs of texts, for the rerank, score and similarity calls of several protocols.

A cross-encoder reads a pair in one row, and goes first where one is served. An embedding model compares vectors by
their cosine: the first text gets its prompt for queries, the second that for passages. A choice model (UniMC) decides
whether the second text is a reading of the first.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, ValidationInfo

from service.api.exchange import Exchange, Rename, renamed, whole
from service.api.field_types import ManyStrings, check_inputs
from service.checkpoints.heads import Activation
from service.domain import Timing
from service.pipeline import Answer
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.embedding import EmbedQuery
from service.tasks.registry import names_of
from service.tasks.similarity import SimilarityQuery, compares_embeddings
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

QUERY_PROMPTS = ("query",)
PASSAGE_PROMPTS = ("passage", "document", "corpus")
"""Names that embedding models give their prompts for the two sides of a search."""
_MOST = 0.9999999

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Scored:
    """One score per pair, in their order; `activation` is what made scores of a cross-encoder's outputs.

    Those of a cosine have None, as they are no outputs that an activation could be undone of.
    """

    model: str
    scores: list[float]
    tokens: int
    timing: Timing
    activation: Activation | None = None

    def ranked(self, top_n: int | None = None) -> list[tuple[int, float]]:
        """Index and score of the best pairs, best first."""
        order = sorted(range(len(self.scores)), key=lambda index: -self.scores[index])
        return [(index, self.scores[index]) for index in order[:top_n]]

    def outputs(self) -> list[float]:
        """The outputs before the activation; cosines as they are."""
        return [logit(score) for score in self.scores] if self.activation == "sigmoid" else self.scores

    def probabilities(self) -> list[float]:
        """Scores from 0 to 1 of a cross-encoder; cosines as they are."""
        return [sigmoid(score) for score in self.scores] if self.activation == "identity" else self.scores


def sigmoid(output: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-500.0, min(500.0, output))))


def logit(probability: float) -> float:
    """The inverse of the sigmoid. A float32 next to 0 or 1 says no more than about 16."""
    inside = max(1 - _MOST, min(_MOST, probability))
    return math.log(inside / (1.0 - inside))


def log(probability: float) -> float:
    return math.log(max(1 - _MOST, probability))


def is_cross_encoder(model: TextModel) -> bool:
    """Whether the model has one output, the score of a pair."""
    return model.head is not None and model.head.num_classes == 1


def choose(exchange: Exchange, name: str | None) -> TextModel | None:
    """The model for pairs: the one of this name, else a cross-encoder or a classifier of similarity, else an embedding
    model. None: the task decides, or refuses the name."""
    models = exchange.state.pipeline.models
    if name is not None:
        found = names_of(models, name)
        return models[found[0]] if len(found) == 1 else None
    for is_able in (is_cross_encoder, lambda model: "similarity" in model.tasks, compares_embeddings):
        if model := next(filter(is_able, models.values()), None):
            return model
    return None


async def score(
    exchange: Exchange,
    pairs: Sequence[Pair],
    *,
    model: str | None = None,
    truncation: Truncation = "right",
    first: str = "query",
    second: Callable[[str], str],
) -> Scored:
    """Scores pairs. For errors, `first` names the field of the first text, and `second` renames `inputs[3]`."""
    chosen = choose(exchange, model)
    if chosen is not None and is_cross_encoder(chosen):
        query = ClassifyQuery(tuple(Text(*pair) for pair in pairs), truncation=truncation)
        answer = await exchange.answer("classify", query, whole, model=chosen.name, rename=second)
        assert chosen.head is not None, "a cross-encoder has a head"
        return _scored(answer, [result.score for result in answer.results], chosen.head.activation)
    if chosen is not None and compares_embeddings(chosen):
        return await _compare(exchange, chosen, pairs, truncation, first, second)
    name = chosen.name if chosen else model
    answer = await exchange.answer(
        "similarity", SimilarityQuery(tuple(pairs), truncation), whole, model=name, rename=second
    )
    return _scored(answer, [result.score for result in answer.results], "sigmoid")


async def _compare(
    exchange: Exchange, model: TextModel, pairs: Sequence[Pair], truncation: Truncation, first: str, second: Rename
) -> Scored:
    """The cosine of each pair. Each distinct text is read once."""
    sides = [list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1)]
    places: dict[str, int] = {}
    for index, (_, text) in enumerate(pairs):
        places.setdefault(text, index)
    firsts = list(places.values())

    def rename_second(path: str) -> str:
        found = re.fullmatch(r"inputs\[(\d+)\]", path)
        return second(f"inputs[{firsts[int(found[1])]}]" if found else path)

    prompts = (_prompt(model, QUERY_PROMPTS), _prompt(model, PASSAGE_PROMPTS))
    renames: tuple[Rename, Rename] = (lambda path: first if path.startswith("inputs") else path, rename_second)
    reading = [
        asyncio.ensure_future(
            exchange.answer(
                "embed",
                EmbedQuery(tuple(texts), normalize=True, prompt_name=prompt, truncation=truncation),
                _read_vectors,
                model=model.name,
                rename=rename,
            )
        )
        for texts, prompt, rename in zip(sides, prompts, renames, strict=True)
    ]
    try:
        (queries, *_), (passages, *_) = found = await asyncio.gather(*reading)
    finally:
        for one in reading:  # of one that failed, the other is still waiting
            one.cancel()
    at = [{text: row for row, text in enumerate(texts)} for texts in sides]
    cosines = queries @ passages.T
    scores = [float(cosines[at[0][one], at[1][two]]) for one, two in pairs]
    timing = max((timing for _, _, timing in found), key=lambda each: each.total)
    return Scored(model.name, scores, sum(tokens for _, tokens, _ in found), timing)


def _read_vectors(answer: Answer[Any], is_large: bool) -> tuple[NDArray[np.float64], int, Timing]:
    vectors = np.asarray([result.embedding for result in answer.results], dtype=np.float64)
    return vectors, answer.tokens, answer.timing


def _prompt(model: TextModel, names: Sequence[str]) -> str | None:
    """The first of these prompts that the model has; None: its default prompt."""
    prompts = model.embedding.prompts if model.embedding else {}
    return next((name for name in names if name in prompts), None)


def _scored(answer: Answer[Any], scores: list[float], activation: Activation) -> Scored:
    return Scored(answer.model, scores, answer.tokens, answer.timing, activation)


async def compare(
    exchange: Exchange,
    source: str,
    sentences: Sequence[str],
    *,
    model: str | None = None,
    truncation: Truncation = "right",
    prompt_name: str | None = None,
) -> Scored:
    """How similar each sentence is to the source: the cosine where an embedding model is named or served, else the
    score of the similarity task. Errors name the fields of `inputs` as Hugging Face has them."""
    models = exchange.state.pipeline.models
    able = [models[name] for name in names_of(models, model)] if model else list(models.values())
    embedder = next(filter(compares_embeddings, able), None)
    if embedder is None:
        query = SimilarityQuery(tuple((source, each) for each in sentences), truncation, prompt_name=prompt_name)
        answer = await exchange.answer("similarity", query, whole, model=model, rename=_of_pairs)
        return _scored(answer, [result.score for result in answer.results], "sigmoid")
    texts = EmbedQuery((source, *sentences), normalize=True, prompt_name=prompt_name, truncation=truncation)
    vectors, tokens, timing = await exchange.answer(
        "embed", texts, _read_vectors, model=embedder.name, rename=_of_source_and_sentences
    )
    return Scored(embedder.name, (vectors[1:] @ vectors[0]).tolist(), tokens, timing)


def _of_pairs(path: str) -> str:
    found = re.fullmatch(r"inputs\[(\d+)\](?:\[(\d)\])?", path)
    if found is None:
        return path
    return "inputs.source_sentence" if found[2] == "0" else f"inputs.sentences[{found[1]}]"


def _of_source_and_sentences(path: str) -> str:
    """Of one list, in which the source is the first."""
    found = re.fullmatch(r"inputs\[(\d+)\]", path)
    if found is None:
        return path
    return "inputs.source_sentence" if found[1] == "0" else f"inputs.sentences[{int(found[1]) - 1}]"


def _to_texts(value: object, info: ValidationInfo) -> list[Any]:
    """Texts, or objects with `text`, as the rerank APIs take them."""
    documents = check_inputs(value, info)
    return [one["text"] if isinstance(one, dict) and one.keys() == {"text"} else one for one in documents]


Documents = Annotated[ManyStrings, BeforeValidator(_to_texts)]
TopN = Annotated[int, Field(ge=1)]
documents_field = renamed({"inputs": "documents"})
