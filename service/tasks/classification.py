"""Classification: by the labels of a fine-tuned head, or zero-shot by the labels of the request (`zero_shot`).

What the scores of a head are follows from its `activation`: probabilities that sum to 1 (softmax), an independent
probability for each label (sigmoid), or the outputs themselves (regression).

The scores are calibrated where a temperature is known (`calibration`), and decided on by the rule of the request
(`decision`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from service.checkpoints.checkpoint import OwnChoice
from service.domain import Encoding, FloatArray, Labels, Output
from service.errors import InvalidRequest
from service.metric_labels import Decision
from service.tasks import zero_shot
from service.tasks.blend import Numbers
from service.tasks.calibration import scale_independent, scale_probabilities
from service.tasks.classify_query import ClassifyQuery, Text
from service.tasks.decision import Rule, decide, undecided
from service.tasks.hierarchy import with_parents
from service.tasks.labels import LabelList
from service.tasks.rows import encode_rows
from service.tasks.scores import LabelScore, activate, rank
from service.tasks.task import Needs, Prediction, Task, used_method
from service.tasks.text_model import TextModel
from service.tasks.windows import LongTexts, Place, TextWindow, pool, read_in_windows, text_window, with_window

SCORE_BYTES = 45
"""A label's score in JSON, without the label."""
CHOSEN_BYTES = 3
"""A chosen label in JSON, without the label."""
RESULT_BYTES = 60
"""The decision on a text in JSON, without labels."""


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


def bind(model: TextModel, query: ClassifyQuery) -> ClassifyQuery:
    """The query with the labels that the model was fine-tuned for, if it has none, and with their kept vectors."""
    if not query.labels and model.choice is not None:
        return _with_own_labels(query, model.choice)
    embedder = zero_shot.embedder_of(model, query)
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
        labels=LabelList.of(own.labels, own.options),
        question=query.question or own.question,
        multi_label=query.multi_label or own.multi_label,
        method="choice",
        has_own_labels=True,
    )


def encode(model: TextModel, query: ClassifyQuery) -> list[Encoding]:
    if query.labels:
        return zero_shot.encode(model, query)
    _check_rule(model, query.rule)
    return encode_rows(model, [item.parts for item in query.inputs], Labels(), query.truncation)


def _check_rule(model: TextModel, rule: Rule) -> None:
    """Raises InvalidRequest for a rule that the scores of the model's head have no use for."""
    activation = model.head.activation if model.head else "softmax"
    given = {"min_score": rule.min_score, "margin": rule.margin or None, "none_label": rule.none_label}
    if activation == "sigmoid" and given["margin"] is not None:
        raise InvalidRequest.of("margin", f"the labels of {model.name} are independent of each other; use min_score")
    if activation == "identity" and (field := next((name for name, value in given.items() if value is not None), None)):
        raise InvalidRequest.of(field, f"{model.name} is a regression, whose number is not a choice of a label")


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
) -> Sequence[FloatArray]:
    """The scores of the labels for each input."""
    if query.labels:
        return zero_shot.score(model, query, encodings, outputs)
    return [_head_scores(model, output) for output in outputs]


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
    if model.own_labels or model.head is None:
        return model.own_labels
    return tuple(f"LABEL_{index}" for index in range(model.head.num_classes))


def _head_scores(model: TextModel, output: Output) -> FloatArray:
    assert model.head is not None, "a query without labels is for a classifier"
    return activate(output.scores[0], model.head.activation)


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
        follow=zero_shot.follow,
        has_second_stage=zero_shot.has_second_stage,
        needs=needs,
        with_missing=lambda query: None if query.labels else ("labels", replace(query, labels=LabelList.of([""]))),
        is_second_choice=is_second_choice,
        num_inputs=lambda query: len(query.inputs),
        method=used_method,
        reply_bytes=reply_bytes,
        predict=predict,
        decides=decides,
        own_labels=lambda model: model.own_labels,
    ),
    LongTexts(
        path="inputs[{}].text",
        options=lambda query: query.windows,
        texts=lambda query: [item.text for item in query.inputs],
        with_texts=_with_texts,
        score=_score,
        merge=_merge,
        rank=zero_shot.rank_by_vectors,
        narrow=zero_shot.narrow,
    ),
)
