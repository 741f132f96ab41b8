"""UniMC, the zero-shot primitive: any question with options as one row, scored by the word yes at each option's mask.

    [CLS] [MASK] o1 [MASK] o2 ... [MASK] on [SEP] question [SEP] text [SEP] (text pair [SEP])

Source: Yang et al., "Zero-Shot Learners for Natural Language Understanding via a Unified Multiple Choice Perspective",
EMNLP 2022 (arXiv 2210.08590), and the authors' fengshen/models/unimc/modeling_unimc.py. Departures: of a pair of texts
that does not fit the longer one is cut first, so that the second is never lost whole; and an option keeps at least its
first character, where upstream goes on until options are empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, IdArray, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.rows import encode_rows, fit
from service.tasks.scores import sigmoid, softmax
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

MIN_TEXT_TOKENS = 32
"""Options are shortened until at least this much of the row is left for question and text, as upstream does."""

Tokens = Mapping[str, list[int]]


@dataclass(frozen=True, slots=True)
class Choice:
    """Options to choose from, given one or two texts and perhaps a question."""

    options: tuple[str, ...]
    texts: tuple[str, ...]
    question: str | None = None

    @property
    def rest(self) -> tuple[str, ...]:
        """What follows the options, each part with a [SEP] at its end."""
        return (self.question, *self.texts) if self.question else self.texts


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`[CLS] [MASK] o1 ... [MASK] on [SEP]`: what rows with the same options begin with."""

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
    """One row for each choice. Each distinct string is tokenized once, and each distinct set of options laid out once:
    they usually repeat from input to input.

    Raises:
        InvalidRequest: the options cannot be made to fit, or something is too long and `truncation` is "error".
    """
    tokens = _tokenize_once(model, choices)
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
    """Softmax of the yes logits over the options, shape [num_options]."""
    return softmax(output.scores[:, 0])


def yes_probabilities(output: Output) -> FloatArray:
    """Each option on its own: the probability of yes against no at its mask, shape [num_options]."""
    yes, no = output.scores.astype(np.float64).T
    return sigmoid(yes - no)


def fit_options(
    model: TextModel, options: Sequence[str], tokens: Tokens, truncation: Truncation, field: str
) -> list[list[int]]:
    """Token ids of the options, every option's text halved until they leave room for a text.

    Raises:
        InvalidRequest: they are too many, or too long and `truncation` is "error".
    """
    limit = model.max_length - MIN_TEXT_TOKENS
    texts = options
    ids = [tokens[option] for option in options]
    while (size := _size(ids)) > limit:
        if truncation == "error" or all(len(text) <= 1 for text in texts):
            shortened = " even when each is cut to one character" if texts is not options else ""
            raise InvalidRequest.of(field, f"{len(ids)} options take {size} tokens{shortened}, at most {limit} fit")
        texts = [text[: max(1, len(text) // 2)] for text in texts]
        ids = model.tokenize(texts)
    return ids


def _size(options: Sequence[list[int]]) -> int:
    """As upstream counts: the options joined by masks, between [CLS] and [SEP]."""
    return sum(map(len, options)) + len(options) + 1


def _tokenize_once(model: TextModel, choices: Sequence[Choice]) -> Tokens:
    strings: dict[str, None] = {}
    for choice in choices:
        strings.update(dict.fromkeys((*choice.options, *choice.rest)))
    return dict(zip(strings, model.tokenize(list(strings)), strict=True))


def _region(model: TextModel, options: Sequence[list[int]], truncated: bool) -> Region:
    """Positions restart at 1 with every block; the [SEP] goes on after the longest one."""
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
    room = model.max_length - len(region.ids) - len(parts)
    kept = _fit_rest(parts, bool(choice.question), room, truncation, field)
    rest = np.asarray([token for part in kept for token in (*part, model.sep)], dtype=np.int32)
    # A position is never above its index, so it needs no cap where the row fits.
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
    parts: list[list[int]], has_question: bool, room: int, truncation: Truncation, field: str
) -> list[list[int]]:
    """The texts give way first; the question may always have half of the room, and more where they leave it."""
    if truncation == "error" or not has_question:
        return fit(parts, room, truncation, field)
    question, *texts = parts
    [question] = fit([question], max(room // 2, room - sum(map(len, texts))), truncation, field)
    return [question, *fit(texts, room - len(question), truncation, field)]


def _segments(region: int, rest: int) -> IdArray:
    segments = np.zeros(region + rest, dtype=np.int32)
    segments[1:region] = 1
    return segments


def _yes_no(model: TextModel) -> tuple[int, int]:
    if model.yes is None or model.no is None:
        raise ValueError(f"{model.name} cannot choose: its vocabulary has no words for yes and no")
    return model.yes, model.no


def can_compare(model: TextModel, purpose: str, readings: Sequence[str]) -> bool:
    """Whether it can choose, or has a head made for this purpose with one class for each reading."""
    return model.can_choose or (purpose in model.tasks and len(model.labels) == len(readings))


def encode_pairs(
    model: TextModel, pairs: Sequence[tuple[str, str]], readings: Sequence[str], truncation: Truncation
) -> list[Encoding]:
    if model.kind == "sequence-classification":
        return encode_rows(model, pairs, Labels(), truncation)
    choices = [pair_as_choice(pair, readings) for pair in pairs]
    return encode_choices(model, choices, truncation, options_field="inputs[{index}][1]")


def pair_as_choice(pair: tuple[str, str], readings: Sequence[str]) -> Choice:
    """The second text, put in each way of `readings` ({} is the text), as options over the first."""
    first, second = pair
    return Choice(tuple(reading.format(second) for reading in readings), (first,))


def class_probabilities(model: TextModel, output: Output) -> FloatArray:
    """One for each reading, shape [num_readings]; for a fine-tuned head one for each of its classes."""
    return softmax(output.scores[0]) if model.kind == "sequence-classification" else probabilities(output)
