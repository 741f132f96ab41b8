"""Classification: by the labels of a fine-tuned head, or zero-shot by the labels of the request.

What the scores of a head are follows from its `activation`: probabilities that sum to 1 (softmax), an independent
probability for each label (sigmoid), or the outputs themselves (regression).

Labels of the request are scored by a choice model (UniMC), an embedding model, or both (`blend`). The rows of a request
are one choice for each input, one text for each input, and the labels, whose vectors are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, Labels, Output, TokenScores, keep
from service.errors import InvalidRequest
from service.tasks.blend import (
    Numbers,
    are_same,
    centred_cosines,
    independent_probabilities,
    label_probabilities,
    mean_over_templates,
    spread_groups,
)
from service.tasks.embedding import choose_prompt, encode_texts, unit_vectors
from service.tasks.label_rows import LabelRows
from service.tasks.labels import NO_LABELS, LabelList
from service.tasks.options import check_different
from service.tasks.rows import encode_rows
from service.tasks.scores import LabelScore, activate, rank
from service.tasks.task import Method, Needs, Prediction, Task, Truncation, used_method
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, encode_choices, probabilities, yes_probabilities

MAX_LABEL_TOKENS = 64
MAX_LABEL_CHARS = 512
"""What an embedding model reads of a label: it does so once for each template, so long labels would cost as much as
many texts."""
SCORE_BYTES = 45
"""A label's score in JSON, without the label."""


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

    With `is_alone` the model decides without its partner, whatever the method.
    """

    inputs: tuple[Text, ...]
    labels: LabelList = NO_LABELS
    question: str | None = None
    multi_label: bool = False
    top_k: int | None = None
    truncation: Truncation = "right"
    method: Method = "auto"
    is_alone: bool = False


@dataclass(frozen=True, slots=True)
class ClassifyResult:
    """`scores` holds the `top_k` best labels, best first. Scores are from 0 to 1, except those of a regression."""

    label: str
    score: float
    scores: tuple[LabelScore, ...]
    tokens: int
    truncated: bool


def can(model: TextModel, query: ClassifyQuery) -> bool:
    if not query.labels:
        return model.kind == "sequence-classification"
    if query.method == "auto":
        return model.can_choose or model.can_match
    return model.can_choose if query.method == "choice" else model.can_match


def is_second_choice(model: TextModel) -> bool:
    """Without a name, a choice model answers, with its partner if it has one."""
    return model.can_match


def _matches(model: TextModel, query: ClassifyQuery) -> bool:
    """Whether the model itself is the embedding model that answers."""
    return model.can_match and query.method != "choice"


def encode(model: TextModel, query: ClassifyQuery) -> list[Encoding]:
    if not query.labels:
        return encode_rows(model, [item.parts for item in query.inputs], Labels(), query.truncation)
    if _matches(model, query):
        return _encode_embedding(model, query)
    partner = None if query.is_alone or query.method != "auto" else model.partner
    if partner is None or any(item.text_pair is not None for item in query.inputs):
        return _encode_choices(model, query, query.labels.options)
    return _encode_both(model, partner, query)


def _encode_choices(model: TextModel, query: ClassifyQuery, options: tuple[str, ...]) -> list[Encoding]:
    choices = [Choice(options, item.parts, query.question) for item in query.inputs]
    return encode_choices(model, choices, query.truncation, options_field="labels", must_differ=True)


def _encode_both(model: TextModel, partner: TextModel, query: ClassifyQuery) -> list[Encoding]:
    """The rows of both models. Labels that one of them cannot tell apart, or that do not fit into its row, are decided
    by the other."""
    try:
        choices = _encode_choices(model, query, query.labels.options)
    except InvalidRequest as error:
        if not error.errors or not error.errors[0].field.startswith("labels"):
            raise
        tokens = _option_tokens(model, query.labels.options)
        if not all(tokens):
            raise  # a label of invisible characters
        vectors = [row.kept_as for row in encode_labels(partner, query.labels)[:: _num_templates(partner)]]
        if len(set(zip(tokens, vectors, strict=True))) < len(query.labels):
            raise  # neither can
        choices = _encode_distinct(model, query, tokens)
        if not choices:
            return _encode_embedding(partner, query)
    return [*choices, *_encode_embedding(partner, query, must_differ=False)]


def _encode_distinct(model: TextModel, query: ClassifyQuery, tokens: list[tuple[int, ...]]) -> list[Encoding]:
    """One choice per input among labels with different tokens; none where that is no choice, or does not fit."""
    distinct = tuple(query.labels.options[tokens.index(each)] for each in dict.fromkeys(tokens))
    if len(distinct) == len(query.labels) or len(distinct) == 1:
        return []
    try:
        return _encode_choices(model, query, distinct)
    except InvalidRequest as error:
        if error.errors and error.errors[0].field.startswith("labels"):
            return []
        raise


def _option_tokens(model: TextModel, options: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [tuple(tokens[: model.max_length]) for tokens in model.tokenize(options, model.max_length)]


def _encode_embedding(model: TextModel, query: ClassifyQuery, must_differ: bool = True) -> list[Encoding]:
    """Rows of an embedding model: the texts, then the labels.

    Raises:
        InvalidRequest: an input is a pair of texts, or two labels that must differ are the same to the model.
    """
    for index, item in enumerate(query.inputs):
        if item.text_pair is not None:
            raise InvalidRequest.of(
                f"inputs[{index}].text_pair", f"{model.name} is an embedding model, which reads one text by itself"
            )
    labels = encode_labels(model, query.labels)
    if must_differ:
        _check_rows_differ(model, query.labels, labels[:: _num_templates(model)])
    texts = [item.text for item in query.inputs]
    return [*encode_texts(model, texts, prompt=choose_prompt(model), truncation=query.truncation), *labels]


def _check_rows_differ(model: TextModel, labels: LabelList, rows: Sequence[Encoding]) -> None:
    """`rows` has one row of each label. Raises InvalidRequest."""
    if len({row.kept_as for row in rows}) == len(labels):
        return
    check_different(model, labels.names, list(map(list, _option_tokens(model, labels.names))), "labels")
    seen: dict[bytes | None, int] = {}
    for index, row in enumerate(rows):
        before = seen.setdefault(row.kept_as, index)
        if before != index:
            raise InvalidRequest.of(
                f"labels[{index}]",
                f"begins as labels[{before}] does, and {model.name} reads at most {MAX_LABEL_TOKENS} tokens of a label;"
                " put first what differs",
            )


def encode_labels(model: TextModel, labels: LabelList) -> list[Encoding]:
    """A kept row for each template of each label; those of one label stand together."""
    label_rows = model.label_rows.get(labels)
    if label_rows is None:
        templates = model.blend.templates if model.blend else ()
        read = [name[:MAX_LABEL_CHARS] for name in labels.names]
        texts = [template.replace("{}", label) for label in read for template in templates]
        rows = encode_texts(model, texts, prompt=choose_prompt(model), max_length=MAX_LABEL_TOKENS)
        label_rows = LabelRows([keep(row) for row in rows])
        model.label_rows.put(labels, label_rows)
    return label_rows.rows


def _num_templates(model: TextModel) -> int:
    return len(model.blend.templates) if model.blend else 1


def decode(
    model: TextModel, query: ClassifyQuery, encodings: Sequence[Encoding], outputs: Sequence[Output]
) -> list[ClassifyResult]:
    names, num_inputs = query.labels.names or head_labels(model), len(query.inputs)
    if len(encodings) == num_inputs:
        scores = [_scores(model, query, output) for output in outputs]
    else:
        embedder = model if _matches(model, query) else model.partner
        assert embedder is not None, "the rows of a label are of an embedding model"
        is_blend = isinstance(encodings[0].readout, TokenScores)
        choices = _choice_logits(model, query, outputs[:num_inputs]) if is_blend else [None] * num_inputs
        scores = _match(embedder, query, choices, outputs[num_inputs if is_blend else 0 :])
    num_rows = num_inputs if encodings[-1].model == encodings[0].model else 2 * num_inputs
    return [
        _result(rank(names, scores[index], query.top_k), encodings[index:num_rows:num_inputs])
        for index in range(num_inputs)
    ]


def head_labels(model: TextModel) -> tuple[str, ...]:
    """The labels of the model's head; without names LABEL_0, LABEL_1, ..., as in transformers."""
    if model.labels or model.head is None:
        return model.labels
    return tuple(f"LABEL_{index}" for index in range(model.head.num_classes))


def _scores(model: TextModel, query: ClassifyQuery, output: Output) -> FloatArray:
    if model.head:
        return activate(output.scores[0], model.head.activation)
    return yes_probabilities(output) if query.multi_label else probabilities(output)


def _choice_logits(model: TextModel, query: ClassifyQuery, outputs: Sequence[Output]) -> list[Numbers | None]:
    """The logits of yes and no for all labels, of each input."""
    logits = [output.scores.astype(np.float64) for output in outputs]
    if len(logits[0]) == len(query.labels):
        return list(logits)
    tokens = _option_tokens(model, query.labels.options)
    row_of = {each: row for row, each in enumerate(dict.fromkeys(tokens))}
    groups = [row_of[each] for each in tokens]
    return [spread_groups(each, groups) for each in logits]


def _match(
    model: TextModel, query: ClassifyQuery, choices: Sequence[Numbers | None], outputs: Sequence[Output]
) -> list[FloatArray]:
    """The scores of the labels for each input, from the vectors of an embedding model and the logits of a choice."""
    blend = model.blend
    assert blend is not None, "an embedding model is loaded with a blend"
    num_inputs = len(query.inputs)
    texts = unit_vectors(outputs[:num_inputs])
    label_rows = model.label_rows.get(query.labels) or LabelRows([])
    labels = label_rows.vectors(
        outputs[num_inputs:], lambda rows: mean_over_templates(unit_vectors(rows), len(blend.templates))
    )
    centred: Iterable[Numbers | None] = centred_cosines(texts, labels, blend)
    if len(query.labels) > 1 and choices[0] is not None and are_same(labels, blend):
        centred = [None] * num_inputs
    score = independent_probabilities if query.multi_label or len(query.labels) == 1 else label_probabilities
    return [score(blend, row, choice) for row, choice in zip(centred, choices, strict=True)]


def _result(scores: tuple[LabelScore, ...], encodings: Sequence[Encoding]) -> ClassifyResult:
    best = scores[0]
    num_tokens, is_truncated = sum([row.num_tokens for row in encodings]), any(row.truncated for row in encodings)
    return ClassifyResult(best.label, best.score, scores, num_tokens, is_truncated)


def reply_bytes(model: TextModel, query: ClassifyQuery) -> int:
    sizes = [SCORE_BYTES + len(label.encode()) for label in query.labels.names or head_labels(model)]
    per_input = sum(sorted(sizes, reverse=True)[: query.top_k]) + max(sizes, default=0)
    return len(query.inputs) * per_input


def decides(model: TextModel) -> bool:
    """Whether a result is a decision: the number of a regression is none."""
    return model.head is None or model.head.activation != "identity"


def predict(query: ClassifyQuery, result: ClassifyResult) -> Prediction:
    return Prediction(None if query.labels else result.label, result.score)


def needs(query: ClassifyQuery) -> Needs:
    if query.method == "embedding":
        return Needs("an embedding model, such as --model e5-small", "method")
    if query.method == "choice":
        return Needs("a masked LM (UniMC), such as --model mini", "method")
    return Needs(
        "a masked LM (UniMC) or an embedding model, and `labels` in the request,"
        " or a fine-tuned classifier and no `labels`"
    )


CLASSIFY: Task[ClassifyQuery, ClassifyResult] = Task(
    "classify",
    can,
    encode,
    decode,
    needs=needs,
    is_second_choice=is_second_choice,
    num_inputs=lambda query: len(query.inputs),
    method=used_method,
    reply_bytes=reply_bytes,
    predict=predict,
    decides=decides,
    own_labels=lambda model: model.labels,
)
