"""UniMC, the zero-shot primitive: any question with options as one row, scored by the word yes at each option's mask.

    [CLS] [MASK] o1 [MASK] o2 ... [MASK] on [SEP] question [SEP] text [SEP] (text pair [SEP])

Source: Yang et al., "Zero-Shot Learners for Natural Language Understanding via a Unified Multiple Choice Perspective",
EMNLP 2022 (arXiv 2210.08590), and the authors' fengshen/models/unimc/modeling_unimc.py. One departure: where a pair of
texts does not fit, the longer one is cut first, so that the second text is never lost whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.rows import fit
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

MIN_TEXT_TOKENS = 32
"""Options are shortened until at least this much of the row is left for question and text, as upstream does."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Options to choose from, given one or two texts and perhaps a question."""

    options: tuple[str, ...]
    texts: tuple[str, ...]
    question: str | None = None


def encode_choices(
    model: TextModel,
    choices: Sequence[Choice],
    truncation: Truncation,
    options_field: str = "inputs[{index}].choices",
) -> list[Encoding]:
    """One row for each choice. Each distinct string is tokenized once: options usually repeat from input to input.

    Raises:
        InvalidRequest: the options cannot be made to fit, or something is too long and `truncation` is "error".
    """
    tokens = _tokenize_once(model, choices)
    fitted: dict[tuple[str, ...], list[list[int]]] = {}
    rows = []
    for index, choice in enumerate(choices):
        if choice.options not in fitted:
            field = options_field.format(index=index)
            fitted[choice.options] = fit_options(model, choice.options, tokens, truncation, field)
        rows.append(_encode(model, choice, fitted[choice.options], tokens, truncation, f"inputs[{index}]"))
    return rows


def probabilities(output: Output) -> FloatArray:
    """Softmax of the yes logits over the options, shape [num_options]."""
    yes = output.scores[:, 0].astype(np.float64)
    weights = np.exp(yes - yes.max())
    return (weights / weights.sum()).astype(np.float32)


def yes_probabilities(output: Output) -> FloatArray:
    """Each option on its own: the probability of yes against no at its mask, shape [num_options]."""
    no_minus_yes = np.clip(output.scores[:, 1].astype(np.float64) - output.scores[:, 0], -500, 500)
    return (1.0 / (1.0 + np.exp(no_minus_yes))).astype(np.float32)


def fit_options(
    model: TextModel, options: Sequence[str], tokens: dict[str, list[int]], truncation: Truncation, field: str
) -> list[list[int]]:
    """Token ids of the options, every option's text halved until they leave room for a text.

    Raises:
        InvalidRequest: they are too many, or too long and `truncation` is "error".
    """
    limit = model.max_length - MIN_TEXT_TOKENS
    ids = [tokens[option] for option in options]
    texts = list(options)
    while sum(map(len, ids)) + len(ids) + 1 > limit:
        if truncation == "error" or all(len(text) <= 1 for text in texts):
            raise InvalidRequest.of(
                field, f"{len(ids)} options take {sum(map(len, ids)) + len(ids) + 1} tokens, at most {limit} fit"
            )
        texts = [text[: max(1, len(text) // 2)] for text in texts]
        ids = model.tokenize(texts)
    return ids


def _encode(
    model: TextModel,
    choice: Choice,
    options: list[list[int]],
    tokens: dict[str, list[int]],
    truncation: Truncation,
    field: str,
) -> Encoding:
    question = [tokens[choice.question]] if choice.question else []
    texts = [tokens[text] for text in choice.texts]
    room = model.max_length - 2 - sum(map(len, options)) - len(options) - len(question) - len(texts)
    kept = _fit_question(question, texts, room, truncation, field)
    ids, blocks = option_region(model, options)
    region = len(ids)
    for part in kept:
        ids += [*part, model.sep]
    cut = sum(map(len, kept)) < sum(map(len, [*question, *texts]))
    return Encoding(
        model=model.name,
        ids=np.asarray(ids, dtype=np.int32),
        segment_ids=_segments(region, len(ids)),
        positions=_positions(blocks, region, len(ids), model.max_length),
        readout=TokenScores(tuple(start for start, _ in blocks), _yes_no(model)),
        blocks=blocks,
        truncated=cut or options != [tokens[option] for option in choice.options],
    )


def _tokenize_once(model: TextModel, choices: Sequence[Choice]) -> dict[str, list[int]]:
    strings: dict[str, None] = {}
    for choice in choices:
        strings.update(dict.fromkeys([*choice.options, *choice.texts]))
        if choice.question:
            strings[choice.question] = None
    return dict(zip(strings, model.tokenize(list(strings)), strict=True))


def _fit_question(
    question: list[list[int]], texts: list[list[int]], room: int, truncation: Truncation, field: str
) -> list[list[int]]:
    """The text gives way first; a question longer than half the room is cut too."""
    kept = [fit(question, room // 2, truncation, field)[0]] if question and len(question[0]) > room // 2 else question
    return [*kept, *fit(texts, room - sum(map(len, kept)), truncation, field)]


def option_region(model: TextModel, options: Sequence[list[int]]) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """`[CLS] [MASK] o1 [MASK] o2 ... [SEP]` and the span of every block."""
    ids, blocks = [model.cls], []
    for option in options:
        start = len(ids)
        ids += [model.mask, *option]
        blocks.append((start, len(ids)))
    ids.append(model.sep)
    return ids, tuple(blocks)


def _segments(region: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    segments = np.zeros(length, dtype=np.int32)
    segments[1:region] = 1
    return segments


def _positions(
    blocks: tuple[tuple[int, int], ...], region: int, length: int, max_length: int
) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Every block counts from 1; what follows the options goes on after the longest block."""
    positions = np.zeros(length, dtype=np.int32)
    for start, end in blocks:
        positions[start:end] = np.arange(1, end - start + 1)
    first = int(positions.max()) + 1
    positions[region - 1 :] = np.minimum(np.arange(first, first + length - region + 1), max_length - 1)
    return positions


def _yes_no(model: TextModel) -> tuple[int, int]:
    if model.yes is None or model.no is None:
        raise ValueError(f"{model.name} cannot choose: its vocabulary has no words for yes and no")
    return model.yes, model.no
