"""Zero-shot classification: rows and scores of the labels of a request.

Labels are scored by a choice model (UniMC), an embedding model, or both (`blend`). The rows of a request are a choice
for each input, a text for each input, and the labels, whose vectors are kept. Where the labels are more than a
shortlist, the choice follows in a second stage: among the best labels of each text by the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import NoReturn

import numpy as np

from service.domain import Encoding, FloatArray, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.blend import SHORTLIST, Blend, Indexes, Numbers, independent_probabilities, label_probabilities
from service.tasks.choice_rows import DividedChoice, encode_in_rows, join_logits
from service.tasks.classify_query import ClassifyQuery
from service.tasks.embedding import choose_prompt, encode_texts, unit_vectors
from service.tasks.hierarchy import independent_path_probabilities, path_probabilities
from service.tasks.label_rows import MAX_LABEL_TOKENS, LabelRows, encode_labels, find_same
from service.tasks.label_vectors import LabelVectors
from service.tasks.labels import LabelList
from service.tasks.options import check_different
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice


def _models(model: TextModel, query: ClassifyQuery) -> tuple[TextModel | None, TextModel | None]:
    """The choice model and the embedding model that take part, of which one may be None."""
    if model.can_match and query.method != "choice":
        return None, model
    partner = None if query.is_alone or query.method != "auto" else model.partner
    if partner is None or any(item.text_pair is not None for item in query.inputs):
        return model, None
    return model, partner


def embedder_of(model: TextModel, query: ClassifyQuery) -> TextModel | None:
    """The embedding model that takes part where `model` was chosen for the query, if one does."""
    return _models(model, query)[1] if query.labels else None


def encode(model: TextModel, query: ClassifyQuery) -> list[Encoding]:
    """The rows of the choice, if there is one at once, then those of the embedding model, if it takes part: the texts,
    and the labels, unless their vectors are there."""
    chooser, embedder = _models(model, query)
    if embedder is None:
        return _encode_choices(model, query, query.scored.options)
    if chooser is None:
        return _encode_embedding(embedder, query, must_differ=True)
    if query.shortlists:
        return _encode_shortlists(chooser, query, query.shortlists)
    if _has_shortlist(embedder, query):
        return _encode_embedding(embedder, query, must_differ=False)
    return _encode_both(chooser, embedder, query)


def _has_shortlist(embedder: TextModel, query: ClassifyQuery) -> bool:
    return len(query.scored) > _blend_of(embedder).shortlist


def _encode_choices(model: TextModel, query: ClassifyQuery, options: tuple[str, ...]) -> list[Encoding]:
    divided = [DividedChoice(Choice(options, item.parts, query.question)) for item in query.inputs]
    return encode_in_rows(model, divided, query.truncation, max_shortened=SHORTLIST, must_differ=True)


def _encode_both(model: TextModel, embedder: TextModel, query: ClassifyQuery) -> list[Encoding]:
    """The rows of both models. Labels that one of them cannot tell apart are decided by the other.

    The choice model reads the names alone: with the descriptions in its options `mini` loses 11 points on TNEWS.
    """
    try:
        choices = _encode_choices(model, query, query.scored.names)
    except InvalidRequest as error:
        if not error.errors or not error.errors[0].field.startswith("labels"):
            raise
        tokens = _option_tokens(model, query.scored.names)
        if not all(tokens):
            raise  # a label of invisible characters
        if len(set(zip(tokens, encode_labels(embedder, query.scored).keys(), strict=True))) < len(query.scored):
            raise  # neither can
        choices = _encode_shortlists(model, query, [range(len(query.scored))] * len(query.inputs))
        if not choices:
            return _encode_embedding(embedder, query, must_differ=True)
    return [*choices, *_encode_embedding(embedder, query, must_differ=False)]


def _encode_shortlists(model: TextModel, query: ClassifyQuery, chosen: Sequence[Sequence[int]]) -> list[Encoding]:
    """The rows of a choice of each input among some of the labels. Labels that are the same to the model are one
    option, and labels without a token are none. No rows where an input has less than two options."""
    options = query.scored.names
    used = list(dict.fromkeys(chain.from_iterable(chosen)))
    tokens = dict(zip(used, _option_tokens(model, [options[index] for index in used]), strict=True))
    divided = []
    for item, indexes in zip(query.inputs, chosen, strict=True):
        stands: dict[tuple[int, ...], list[int]] = {}
        for index in indexes:
            if tokens[index]:
                stands.setdefault(tokens[index], []).append(index)
        if len(stands) < 2:
            return []
        read = tuple([options[labels[0]] for labels in stands.values()])
        labels = tuple([tuple(labels) for labels in stands.values()])
        divided.append(DividedChoice(Choice(read, item.parts, query.question), labels))
    return encode_in_rows(model, divided, query.truncation, max_shortened=SHORTLIST)


def _option_tokens(model: TextModel, options: Sequence[str]) -> list[tuple[int, ...]]:
    return [tuple(tokens[: model.max_length]) for tokens in model.tokenize(options, model.max_length)]


def _encode_embedding(model: TextModel, query: ClassifyQuery, must_differ: bool) -> list[Encoding]:
    """Rows of an embedding model: the texts, then the labels.

    Raises:
        InvalidRequest: an input is a pair of texts, or two labels that must differ are the same to the model.
    """
    for index, item in enumerate(query.inputs):
        if item.text_pair is not None:
            raise InvalidRequest.of(
                f"inputs[{index}].text_pair", f"{model.name} is an embedding model, which reads one text by itself"
            )
    made = encode_labels(model, query.scored) if query.vectors is None else None
    if must_differ and (same := find_same(made.keys()) if made else query.vectors and query.vectors.same):
        _refuse_same(model, query.scored, same)
    texts = [item.text for item in query.inputs]
    rows = encode_texts(model, texts, prompt=choose_prompt(model), truncation=query.truncation)
    return [*rows, *made.rows] if made else rows


def _refuse_same(model: TextModel, labels: LabelList, same: tuple[int, int]) -> NoReturn:
    check_different(model, labels.names, list(map(list, _option_tokens(model, labels.names))), "labels")
    before, index = same
    raise InvalidRequest.of(
        f"labels[{index}]",
        f"begins as labels[{before}] does, and {model.name} reads at most {MAX_LABEL_TOKENS} tokens of a label;"
        " put first what differs",
    )


def has_second_stage(model: TextModel, query: ClassifyQuery) -> bool:
    """Whether the labels are more than the choice model reads at once."""
    if not query.labels:
        return False
    chooser, embedder = _models(model, query)
    return chooser is not None and embedder is not None and _has_shortlist(embedder, query)


def follow(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[Encoding]:
    """The rows of a choice among the best labels of each text by their vectors."""
    return encode(model, narrow(model, query, rank_by_vectors(model, query, encodings, outputs)))


def rank_by_vectors(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> Sequence[Numbers]:
    """How close each text is to the vectors of the labels, shape [num_labels] of each."""
    embedder = embedder_of(model, query)
    assert embedder is not None, "a query with a second stage is answered by two models"
    vectors = _vectors(embedder, query, encodings, outputs)
    return list(vectors.scores(unit_vectors(outputs[: len(query.inputs)])))


def narrow(model: TextModel, query: ClassifyQuery, centred: Sequence[Numbers]) -> ClassifyQuery:
    """The query of the second stage: a choice among the best labels of each input."""
    embedder = embedder_of(model, query)
    assert embedder is not None, "a query with a second stage is answered by two models"
    count = _blend_of(embedder).shortlist
    return replace(query, shortlists=tuple(tuple(_choose(query, embedder, row, count)) for row in centred))


def _choose(query: ClassifyQuery, embedder: TextModel, centred: Numbers, count: int) -> list[int]:
    """The best labels by their vectors, in their order; of a hierarchy, with each label those above it."""
    if query.tree is None:
        best = np.argpartition(-centred, count - 1)[:count]
        return [int(index) for index in np.sort(best)]
    score = independent_path_probabilities if query.multi_label else path_probabilities
    probabilities = score(query.tree, _blend_of(embedder), centred, None, None)
    best = np.lexsort((query.tree.depths, -probabilities))[:count]
    return [int(index) for index in np.sort(best)]


def score(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[FloatArray]:
    """The scores of the labels for each input. `encodings` are the rows of `follow`, then those of `encode`."""
    num_inputs = len(query.inputs)
    num_choices = sum([isinstance(row.readout, TokenScores) for row in encodings])
    rows, embedder = encodings[:num_choices], embedder_of(model, query)
    choices = [
        join_logits(rows[index::num_inputs], outputs[index:num_choices:num_inputs]) for index in range(num_inputs)
    ]
    has_vectors = len(encodings) > num_choices
    assert embedder is not None or not has_vectors, "the rows of a text alone are of an embedding model"
    return _match(query, embedder if has_vectors else None, choices, encodings[num_choices:], outputs[num_choices:])


def _match(
    query: ClassifyQuery,
    embedder: TextModel | None,
    choices: Sequence[tuple[Numbers | None, Indexes | None]],
    encodings: Sequence[Encoding],
    outputs: Sequence[Output],
) -> list[FloatArray]:
    """The scores of the labels for each input, from the vectors of an embedding model and the logits of a choice."""
    num_inputs = len(query.inputs)
    blend = _blend_of(embedder) if embedder else None
    centred: Sequence[Numbers | None] = [None] * num_inputs
    if embedder is not None:
        vectors = _vectors(embedder, query, encodings, outputs)
        has_read_all = choices[0][0] is not None and len(choices[0][0]) == len(query.scored)
        if not (has_read_all and vectors.are_same):
            centred = list(vectors.scores(unit_vectors(outputs[:num_inputs])))
    if query.tree is not None:
        score = independent_path_probabilities if query.multi_label else path_probabilities
        return [score(query.tree, blend, row, *choice) for row, choice in zip(centred, choices, strict=True)]
    score_flat = independent_probabilities if query.multi_label or len(query.labels) == 1 else label_probabilities
    return [score_flat(blend, row, *choice) for row, choice in zip(centred, choices, strict=True)]


def _vectors(
    embedder: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> LabelVectors:
    """The vectors of the labels: kept ones, else those in the outputs, which are kept from now on."""
    if query.vectors is not None:
        return query.vectors
    num_inputs = len(query.inputs)
    made = LabelRows.of(embedder, query.scored, list(encodings[num_inputs:])).vectors(outputs[num_inputs:])
    embedder.label_vectors.put(query.scored, made, query.generation)
    return made


def _blend_of(embedder: TextModel) -> Blend:
    assert embedder.blend is not None, "an embedding model is loaded with a blend"
    return embedder.blend
