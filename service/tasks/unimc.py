"""UniMC, zero-shot multiple choice: a question with its options is one row, scored by the word yes at each mask.

    [CLS] [MASK] o1 [MASK] o2 ... [MASK] on [SEP] question [SEP] text [SEP] (text pair [SEP])

Source: Yang et al., "Zero-Shot Learners for Natural Language Understanding via a Unified Multiple Choice Perspective",
EMNLP 2022 (arXiv 2210.08590), and the authors' fengshen/models/unimc/modeling_unimc.py. Differences: if a
pair of texts does not fit, the longer one is truncated first, so the second is never lost as a whole; and an option
keeps at least its first character, while upstream shortens options until they are empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, IdArray, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.rows import encode_rows, fit
from service.tasks.scores import activate, sigmoid, softmax
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

MIN_TEXT_TOKENS = 32
"""Options are shortened until this many tokens of the row are left for question and text, as in upstream."""

Tokens = Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Options to choose from, one or two texts, and an optional question."""

    options: tuple[str, ...]
    texts: tuple[str, ...]
    question: str | None = None

    @property
    def rest(self) -> tuple[str, ...]:
        """The parts of the row after the options; a [SEP] follows each."""
        return (self.question, *self.texts) if self.question else self.texts


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`[CLS] [MASK] o1 ... [MASK] on [SEP]`: the start of a row, shared by rows with the same options."""

    ids: IdArray
    positions: IdArray
    blocks: tuple[tuple[int, int], ...]
    readout: TokenScores
    truncated: bool


def encode_choices(
    model: TextModel,
    choices: Sequence[Choice],
    truncation: Truncation,
    options_field: str = "inputs[{index}].choices",
) -> list[Encoding]:
    """One row per choice. Each distinct string is tokenized once, and each distinct set of options is laid out once:
    the inputs of a request usually have the same options.

    Raises:
        InvalidRequest: the options do not fit even when shortened, or a row is too long and `truncation` is "error".
    """
    tokens = _tokenize_once(model, choices, truncation)
    regions: dict[tuple[str, ...], Region] = {}
    rows = []
    for index, choice in enumerate(choices):
        if choice.options not in regions:
            options = fit_options(model, choice.options, tokens, truncation, options_field.format(index=index))
            truncated = options != [tokens[option] for option in choice.options]
            regions[choice.options] = _region(model, options, truncated)
        rows.append(_row(model, regions[choice.options], choice, tokens, truncation, f"inputs[{index}]"))
    return rows


def probabilities(output: Output) -> FloatArray:
    """Softmax of the logits of yes over the options, shape [num_options]."""
    return softmax(output.scores[:, 0])


def yes_probabilities(output: Output) -> FloatArray:
    """For each option by itself, the probability of yes against no at its mask, shape [num_options]."""
    yes, no = output.scores.astype(np.float64).T
    return sigmoid(yes - no)


def fit_options(
    model: TextModel, options: Sequence[str], tokens: Tokens, truncation: Truncation, field: str
) -> list[list[int]]:
    """Token ids of the options. Each option's text is halved until MIN_TEXT_TOKENS of the row are left.

    Raises:
        InvalidRequest: there are too many options, or they are too long and `truncation` is "error".
    """
    limit = model.max_length - MIN_TEXT_TOKENS
    texts = options
    ids = [tokens[option] for option in options]
    while (size := _size(ids)) > limit:
        if truncation == "error" or all(len(text) <= 1 for text in texts):
            shortened = " even when each is cut to one character" if texts is not options else ""
            raise InvalidRequest.of(
                field, f"{len(ids)} options take at least {size} tokens{shortened}; at most {limit} fit"
            )
        texts = [text[: max(1, len(text) // 2)] for text in texts]
        ids = model.tokenize(texts, limit + 1)
    return ids


def _size(options: Sequence[list[int]]) -> int:
    """Tokens of the options joined by masks, between [CLS] and [SEP], counted as in upstream."""
    return sum(map(len, options)) + len(options) + 1


def _tokenize_once(model: TextModel, choices: Sequence[Choice], truncation: Truncation) -> Tokens:
    strings: dict[str, None] = {}
    for choice in choices:
        strings.update(dict.fromkeys((*choice.options, *choice.rest)))
    read = model.tokenize(list(strings), model.max_length, from_end=truncation == "left")
    return dict(zip(strings, read, strict=True))


def _region(model: TextModel, options: Sequence[list[int]], truncated: bool) -> Region:
    """Lays out the options: positions restart at 1 in every block, and [SEP] follows the longest block."""
    ids, positions, blocks = [model.cls], [0], []
    for option in options:
        blocks.append((len(ids), len(ids) + 1 + len(option)))
        ids += [model.mask, *option]
        positions += range(1, len(option) + 2)
    return Region(
        ids=np.asarray([*ids, model.sep], dtype=np.int32),
        positions=np.asarray([*positions, max(positions) + 1], dtype=np.int32),
        blocks=tuple(blocks),
        readout=TokenScores(tuple(start for start, _ in blocks), _yes_no(model)),
        truncated=truncated,
    )


def _row(
    model: TextModel, region: Region, choice: Choice, tokens: Tokens, truncation: Truncation, field: str
) -> Encoding:
    parts = [tokens[text] for text in choice.rest]
    max_tokens = model.max_length - len(region.ids) - len(parts)
    kept = _fit_rest(parts, bool(choice.question), max_tokens, truncation, field)
    rest = np.asarray([token for part in kept for token in (*part, model.sep)], dtype=np.int32)
    # A position is never greater than its index: if the row fits, so do its positions.
    first = region.positions[-1] + 1
    return Encoding(
        model=model.name,
        ids=np.concatenate([region.ids, rest]),
        segment_ids=_segments(len(region.ids), len(rest)),
        positions=np.concatenate([region.positions, np.arange(first, first + len(rest), dtype=np.int32)]),
        readout=region.readout,
        blocks=region.blocks,
        truncated=region.truncated or sum(map(len, kept)) < sum(map(len, parts)),
    )


def _fit_rest(
    parts: list[list[int]], has_question: bool, max_tokens: int, truncation: Truncation, field: str
) -> list[list[int]]:
    """Truncates the texts before the question: the question gets up to half of `max_tokens`, or all that short texts
    leave free."""
    if truncation == "error" or not has_question:
        return fit(parts, max_tokens, truncation, field)
    question, *texts = parts
    [question] = fit([question], max(max_tokens // 2, max_tokens - sum(map(len, texts))), truncation, field)
    return [question, *fit(texts, max_tokens - len(question), truncation, field)]


def _segments(region: int, rest: int) -> IdArray:
    segments = np.zeros(region + rest, dtype=np.int32)
    segments[1:region] = 1
    return segments


def _yes_no(model: TextModel) -> tuple[int, int]:
    if model.yes is None or model.no is None:
        raise ValueError(f"{model.name} cannot choose: its vocabulary has no words for yes and no")
    return model.yes, model.no


def can_compare(model: TextModel, purpose: str, readings: Sequence[str]) -> bool:
    """Whether the model can do UniMC, or has a head fine-tuned for `purpose` with one class per reading whose scores
    are probabilities."""
    is_tuned = purpose in model.tasks and len(model.labels) == len(readings)
    return model.can_choose or (is_tuned and gives_probabilities(model))


def gives_probabilities(model: TextModel) -> bool:
    """Whether the model has a head whose scores are from 0 to 1."""
    return model.head is not None and model.head.activation != "identity"


def label_hint(model: TextModel, meaning: str, labels: Sequence[str]) -> str | None:
    """What makes a classifier answer a task of pairs, if it has as many classes as `labels`, and they have a `meaning`
    for that task."""
    if model.head is None or model.head.num_classes != len(labels) or not gives_probabilities(model):
        return None
    names = f"--labels {model.name}={','.join(labels)}"
    return f"if {meaning}, start the server with {names}, in the order of the outputs of {model.name}"


def encode_pairs(
    model: TextModel, pairs: Sequence[tuple[str, str]], readings: Sequence[str], truncation: Truncation
) -> list[Encoding]:
    if model.kind == "sequence-classification":
        return encode_rows(model, pairs, Labels(), truncation)
    choices = [pair_as_choice(pair, readings) for pair in pairs]
    return encode_choices(model, choices, truncation, options_field="inputs[{index}][1]")


def pair_as_choice(pair: tuple[str, str], readings: Sequence[str]) -> Choice:
    """A choice whose text is the first one, and whose options are the second one in each template of `readings`."""
    first, second = pair
    return Choice(tuple(reading.format(second) for reading in readings), (first,))


def class_probabilities(model: TextModel, output: Output) -> FloatArray:
    """Probabilities, shape [num_readings]; from a fine-tuned head, shape [num_classes]."""
    return activate(output.scores[0], model.head.activation) if model.head else probabilities(output)
