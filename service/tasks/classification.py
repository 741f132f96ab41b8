"""Classification: by the labels of a fine-tuned head, or zero-shot by the labels of the request.

What the scores of a head are follows from its `activation`: probabilities that sum to 1 (softmax), an independent
probability for each label (sigmoid), or the outputs themselves (regression).

The scores are calibrated where a temperature is known (`calibration`), and decided on by the rule of the request
(`decision`).

Labels of the request are scored by a choice model (UniMC), an embedding model, or both (`blend`). The rows of a request
are a choice for each input, a text for each input, and the labels, whose vectors are kept. Where the labels are more
than a shortlist, the choice follows in a second stage: among the best labels of each text by the vectors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NoReturn

import numpy as np

from service.checkpoints.checkpoint import OwnChoice
from service.domain import Encoding, FloatArray, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.metric_labels import Decision
from service.tasks.blend import SHORTLIST, Blend, Indexes, Numbers, independent_probabilities, label_probabilities
from service.tasks.calibration import scale_independent, scale_probabilities
from service.tasks.choice_rows import DividedChoice, encode_in_rows, join_logits
from service.tasks.decision import DEFAULT_RULE, Rule, decide, undecided
from service.tasks.embedding import choose_prompt, encode_texts, unit_vectors
from service.tasks.hierarchy import (
    Tree,
    independent_path_probabilities,
    path_probabilities,
    tree_of,
    with_parents,
)
from service.tasks.label_rows import MAX_LABEL_TOKENS, LabelRows, encode_labels, find_same
from service.tasks.label_vectors import LabelVectors
from service.tasks.labels import NO_LABELS, LabelList
from service.tasks.options import check_different
from service.tasks.rows import encode_rows
from service.tasks.scores import LabelScore, activate, rank
from service.tasks.task import Method, Needs, Prediction, Task, Truncation, used_method
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice
from service.tasks.windows import (
    LongTexts,
    Place,
    TextWindow,
    WindowOptions,
    pool,
    read_in_windows,
    text_window,
    with_window,
)

SCORE_BYTES = 45
"""A label's score in JSON, without the label."""
CHOSEN_BYTES = 3
"""A chosen label in JSON, without the label."""
RESULT_BYTES = 60
"""The decision on a text in JSON, without labels."""


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    text_pair: str | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)


@dataclass(frozen=True, slots=True)
class ClassifyQuery:
    """A query with `labels` is zero-shot; a query without them uses the labels of the model's own head.

    With `is_alone` the model decides without its partner, whatever the method. With `hierarchy`, a separator, labels
    are paths. `temperature` is that of a stored label set, before any other. `vectors` are those of its labels,
    `generation` is that of the cache, and with `has_own_labels` the labels are those that the model was fine-tuned for
    (see `bind`). With `windows` a long text is read in
    windows; of a pair, the first text. `shortlists` are the labels that the choice model reads for each input in the
    second stage.
    """

    inputs: tuple[Text, ...]
    labels: LabelList = NO_LABELS
    question: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    truncation: Truncation = "right"
    method: Method = "auto"
    is_alone: bool = False
    hierarchy: str | None = None
    rule: Rule = DEFAULT_RULE
    temperature: float | None = None
    windows: WindowOptions | None = None
    shortlists: tuple[tuple[int, ...], ...] = ()
    vectors: LabelVectors | None = None
    generation: int = 0
    has_own_labels: bool = False

    @property
    def tree(self) -> Tree | None:
        return None if self.hierarchy is None or not self.labels else tree_of(self.labels, self.hierarchy)

    @property
    def scored(self) -> LabelList:
        """The labels that have scores: those of the query, and the paths above them."""
        tree = self.tree
        return self.labels if tree is None else tree.nodes


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """`scores` holds the `top_k` best labels, best first, and `score` is the best. Scores are from 0 to 1, except those
    of a regression.

    `label` is the best label, or the `none_label` of the request if the decision is `none`. `decision` is `label`,
    `none` (no label has the `min_score`) or `ambiguous` (the lead of the first label is below the `margin`), and null
    for a regression. `chosen` holds the label that was decided for, of independent labels all of them, and of an
    ambiguous text those that the margin does not tell apart. `calibrated` says whether a temperature for these labels
    made the scores probabilities.
    """

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    decision: Decision | None
    chosen: tuple[str, ...]
    calibrated: bool
    tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyWindowResult(ClassifyResult):
    """`window` is the one in which the best label has its highest score."""

    window: TextWindow


def can(model: TextModel, query: ClassifyQuery) -> bool:
    if not query.labels:
        return model.kind == "sequence-classification" or _has_own_labels(model)
    if query.method == "auto":
        return model.can_choose or model.can_match
    return model.can_choose if query.method == "choice" else model.can_match


def is_second_choice(model: TextModel) -> bool:
    """Without a name, a choice model answers, with its partner if it has one."""
    return model.can_match


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


def bind(model: TextModel, query: ClassifyQuery) -> ClassifyQuery:
    """The query with the labels that the model was fine-tuned for, if it has none, and with their kept vectors."""
    if not query.labels and model.choice is not None:
        return _with_own_labels(query, model.choice)
    embedder = embedder_of(model, query)
    if embedder is None:
        return query
    kept = embedder.label_vectors
    return replace(query, vectors=kept.get(query.scored), generation=kept.generation)


def _has_own_labels(model: TextModel) -> bool:
    return model.choice is not None and model.can_choose


def _with_own_labels(query: ClassifyQuery, own: OwnChoice) -> ClassifyQuery:
    """A query without labels as the choice model was fine-tuned: with its options and its question, alone."""
    return replace(
        query,
        labels=LabelList.worded(own.labels, own.options),
        question=query.question or own.question,
        multi_label=query.multi_label or own.multi_label,
        method="choice",
        has_own_labels=True,
    )


def encode(model: TextModel, query: ClassifyQuery) -> list[Encoding]:
    """The rows of the choice, if there is one at once, then those of the embedding model, if it takes part: the texts,
    and the labels, unless their vectors are there."""
    if not query.labels:
        _check_rule(model, query.rule)
        return encode_rows(model, [item.parts for item in query.inputs], Labels(), query.truncation)
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


def _check_rule(model: TextModel, rule: Rule) -> None:
    """Raises InvalidRequest for a rule that the scores of the model's head have no use for."""
    activation = model.head.activation if model.head else "softmax"
    given = {"min_score": rule.min_score, "margin": rule.margin or None, "none_label": rule.none_label}
    if activation == "sigmoid" and given["margin"] is not None:
        raise InvalidRequest.of("margin", f"the labels of {model.name} are independent of each other; use min_score")
    if activation == "identity" and (field := next((name for name, value in given.items() if value is not None), None)):
        raise InvalidRequest.of(field, f"{model.name} is a regression, whose number is not a choice of a label")


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
    return encode(model, _narrow(model, query, _rank_by_vectors(model, query, encodings, outputs)))


def _rank_by_vectors(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> Sequence[Numbers]:
    """How close each text is to the vectors of the labels, shape [num_labels] of each."""
    embedder = embedder_of(model, query)
    assert embedder is not None, "a query with a second stage is answered by two models"
    vectors = _vectors(embedder, query, encodings, outputs)
    return list(vectors.scores(unit_vectors(outputs[: len(query.inputs)])))


def _narrow(model: TextModel, query: ClassifyQuery, centred: Sequence[Numbers]) -> ClassifyQuery:
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


def decode(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[ClassifyResult]:
    """`encodings` are the rows of `follow`, then those of `encode`."""
    num_inputs = len(query.inputs)
    num_rows = sum([row.kept_as is None for row in encodings])
    return [
        _result(model, query, scores, encodings[index:num_rows:num_inputs])
        for index, scores in enumerate(_score(model, query, encodings, outputs))
    ]


def _score(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[FloatArray]:
    """The scores of the labels for each input."""
    if not query.labels:
        return [_head_scores(model, output) for output in outputs]
    num_inputs = len(query.inputs)
    num_choices = sum([isinstance(row.readout, TokenScores) for row in encodings])
    rows, embedder = encodings[:num_choices], embedder_of(model, query)
    choices = [
        join_logits(rows[index::num_inputs], outputs[index:num_choices:num_inputs]) for index in range(num_inputs)
    ]
    has_vectors = len(encodings) > num_choices
    assert embedder is not None or not has_vectors, "the rows of a text alone are of an embedding model"
    return _match(query, embedder if has_vectors else None, choices, encodings[num_choices:], outputs[num_choices:])


def _find_temperature(model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding]) -> float | None:
    """The temperature of the scores; None: they are not calibrated, as those of paths and of labels with examples."""
    if not decides(model) or query.tree is not None:
        return None
    if query.temperature is not None or model.calibration is None:
        return query.temperature
    if any(label.examples for label in query.labels.labels):
        return None
    models = tuple(dict.fromkeys((encodings[0].model, encodings[-1].model)))
    labels = query.labels.options or head_labels(model)
    return model.calibration.find(models, used_method(encodings), labels, query.question, query.multi_label)


def _are_independent(model: TextModel, query: ClassifyQuery) -> bool:
    """Whether the scores of the labels do not depend on each other."""
    if query.labels:
        return query.multi_label or len(query.labels) == 1
    return model.head is not None and model.head.activation == "sigmoid"


def _rank(model: TextModel, query: ClassifyQuery, scores: FloatArray, top_k: int | None) -> tuple[LabelScore, ...]:
    names = query.labels.names or head_labels(model)
    ranked = rank(names, scores[: len(names)], top_k)
    return ranked if query.tree is None else with_parents(query.tree, ranked, scores)


def head_labels(model: TextModel) -> tuple[str, ...]:
    """The labels of the model's head; without names LABEL_0, LABEL_1, ..., as in transformers. Of a choice model those
    that it was fine-tuned for."""
    if model.choice is not None:
        return model.choice.labels
    if model.labels or model.head is None:
        return model.labels
    return tuple(f"LABEL_{index}" for index in range(model.head.num_classes))


def _head_scores(model: TextModel, output: Output) -> FloatArray:
    assert model.head is not None, "a query without labels is for a classifier"
    return activate(output.scores[0], model.head.activation)


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


def _blend_of(embedder: TextModel) -> Blend:
    assert embedder.blend is not None, "an embedding model is loaded with a blend"
    return embedder.blend


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


def _result(
    model: TextModel,
    query: ClassifyQuery,
    scores: FloatArray,
    encodings: Sequence[Encoding],
) -> ClassifyResult:
    """The result of one input; `encodings` are its rows."""
    are_independent, temperature = _are_independent(model, query), _find_temperature(model, query, encodings)
    if temperature is not None:
        scores = (scale_independent if are_independent else scale_probabilities)(scores, temperature)
    # The second label counts for the margin, also where only the first one is returned.
    num_ranked = query.top_k and max(query.top_k, 1 if are_independent else 2)
    ranked = _rank(model, query, scores, num_ranked)
    decided = decide(ranked, query.rule, are_independent=are_independent) if decides(model) else undecided(ranked)
    return ClassifyResult(
        label=decided.label,
        score=ranked[0].score,
        scores=ranked[: query.top_k],
        decision=decided.decision,
        chosen=decided.chosen,
        calibrated=temperature is not None,
        tokens=sum([row.num_tokens for row in encodings]),
        truncated=any(row.truncated for row in encodings),
    )


def _with_texts(query: ClassifyQuery, parts: Sequence[tuple[int, str]]) -> ClassifyQuery:
    inputs = tuple(Text(text, query.inputs[index].text_pair) for index, text in parts)
    shortlists = tuple(query.shortlists[index] for index, _ in parts) if query.shortlists else ()
    return replace(query, inputs=inputs, shortlists=shortlists, windows=None)


def _merge(
    model: TextModel, query: ClassifyQuery, scores: Numbers, places: Sequence[Place], rows: Sequence[Encoding]
) -> ClassifyResult:
    """By default the mean of the windows; the highest score of each label where labels are scored by themselves."""
    are_independent = _are_independent(model, query)
    pooling = (query.windows and query.windows.pooling) or ("max" if are_independent else "mean")
    pooled = pool(scores, places, pooling, sum_to_one=decides(model) and not are_independent)
    result = _result(model, query, pooled, rows)
    names = query.labels.names or head_labels(model)
    decided = int(scores[:, names.index(result.scores[0].label)].argmax())
    return with_window(ClassifyWindowResult, result, text_window(places, decided))


def reply_bytes(model: TextModel, query: ClassifyQuery) -> int:
    labels = query.labels or LabelList.of(head_labels(model))
    num_ranked = min(query.top_k or len(labels), len(labels))
    num_paths = 1 if query.tree is None else len(query.tree.levels)
    are_many_chosen = _are_independent(model, query) or query.rule.margin > 0
    num_chosen = num_ranked if are_many_chosen else 1
    per_input = num_paths * (SCORE_BYTES * num_ranked + labels.name_bytes(num_ranked)) + labels.name_bytes(1)
    of_decision = RESULT_BYTES + CHOSEN_BYTES * num_chosen + labels.name_bytes(num_chosen)
    return len(query.inputs) * (per_input + of_decision + 2 * len((query.rule.none_label or "").encode()))


def decides(model: TextModel) -> bool:
    """Whether a result is a decision: the number of a regression is none."""
    return model.head is None or model.head.activation != "identity"


def predict(query: ClassifyQuery, result: ClassifyResult) -> Prediction:
    """The best label, unless it is one of the request, as the `none_label` is."""
    label = result.scores[0].label if query.has_own_labels or not query.labels else None
    return Prediction(label, result.score, result.decision)


def needs(query: ClassifyQuery) -> Needs:
    if query.method == "embedding":
        return Needs("an embedding model, such as --model e5-small", "method")
    if query.method == "choice":
        return Needs("a masked LM (UniMC), such as --model mini", "method")
    return Needs(
        "a masked LM (UniMC) or an embedding model, and `labels` in the request,"
        " or a fine-tuned classifier or choice model and no `labels`"
    )


CLASSIFY: Task[ClassifyQuery, ClassifyResult] = read_in_windows(
    Task(
        "classify",
        can,
        encode,
        decode,
        bind=bind,
        follow=follow,
        has_second_stage=has_second_stage,
        needs=needs,
        is_second_choice=is_second_choice,
        num_inputs=lambda query: len(query.inputs),
        method=used_method,
        reply_bytes=reply_bytes,
        predict=predict,
        decides=decides,
        own_labels=lambda model: model.choice.labels if model.choice else model.labels,
    ),
    LongTexts(
        path="inputs[{}].text",
        options=lambda query: query.windows,
        texts=lambda query: [item.text for item in query.inputs],
        with_texts=_with_texts,
        score=_score,
        merge=_merge,
        rank=_rank_by_vectors,
        narrow=_narrow,
    ),
)
