"""UniMC, zero-shot multiple choice: a question with its options is one row, scored by the word yes at each mask.

    [CLS] [MASK] o1 [MASK] o2 ... [MASK] on [SEP] question [SEP] text [SEP] (text pair [SEP])

Source: Yang et al., "Zero-Shot Learners for Natural Language Understanding via a Unified Multiple Choice Perspective",
EMNLP 2022 (arXiv 2210.08590), and the authors' fengshen/models/unimc/modeling_unimc.py. A row that fits is the same
as upstream's. Differences where it does not fit: if a pair of texts is too long, the longer one is truncated first, so
the second is never lost as a whole. If the options are too long, upstream halves the text of each until they fit, and
options that begin alike become equal; here the longest parts are shortened first, those that options share before those
in which they differ, and different options stay different (`options.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from service.domain import Encoding, FloatArray, IdArray, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.tasks.options import check_different, most_alike, shorten
from service.tasks.rows import encode_rows, fit, read_texts
from service.tasks.scores import activate, sigmoid, softmax
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel

MIN_TEXT_TOKENS = 32
"""Options are shortened if they leave fewer tokens of the row for question and text, as in upstream."""
SHORTENED = 0.75
"""The share of a row that options get once they are shortened, if that is enough to keep them different."""

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


class OptionsDoNotFit(InvalidRequest):
    """The options of a choice do not fit into one row."""


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
    must_differ: bool = False,
    num_inputs: int | None = None,
) -> list[Encoding]:
    """One row per choice. Each distinct string is tokenized once, and each distinct set of options is laid out once:
    the inputs of a request usually have the same options. With `must_differ` the model must see a difference between
    any two options, and a token in each. `num_inputs` is less than the number of choices where each input has several.

    Raises:
        OptionsDoNotFit: the options do not fit even when shortened.
        InvalidRequest: two that must differ have the same tokens, or a row
            is too long and `truncation` is "error".
    """
    option_tokens, text_tokens = _tokenize_once(model, choices, truncation)
    regions: dict[tuple[str, ...], Region] = {}
    rows = []
    last = num_inputs or len(choices)
    for index, choice in enumerate(choices):
        if choice.options not in regions:
            # Of a longer option, the tokenizer may have read more tokens than of another one.
            whole = [option_tokens[option][: model.max_length] for option in choice.options]
            field = options_field.format(index=index)
            if must_differ and not _too_many(model, whole):
                check_different(model, choice.options, whole, field)
            options = fit_options(model, whole, truncation, field, must_differ)
            regions[choice.options] = _region(model, options, truncated=options != whole)
        rows.append(_row(model, regions[choice.options], choice, text_tokens, truncation, f"inputs[{index % last}]"))
    return rows


def probabilities(output: Output) -> FloatArray:
    """Softmax of the logits of yes over the options, shape [num_options]. A single option is scored by itself: its
    softmax is always 1."""
    return softmax(output.scores[:, 0]) if len(output.scores) > 1 else yes_probabilities(output)


def yes_probabilities(output: Output) -> FloatArray:
    """For each option by itself, the probability of yes against no at its mask, shape [num_options]."""
    yes, no = output.scores.astype(np.float64).T
    return sigmoid(yes - no)


def fit_options(
    model: TextModel, options: list[list[int]], truncation: Truncation, field: str, must_differ: bool
) -> list[list[int]]:
    """The options, shortened unless they leave MIN_TEXT_TOKENS of the row.

    Raises:
        OptionsDoNotFit: there are too many options, or they are too long and `truncation` is "error".
    """
    size, limit = _size(options), _max_size(model)
    if size <= limit:
        return options
    if truncation == "error":
        raise _do_not_fit(len(options), size, limit, "", field)
    shortened = shorten(options, min(limit, int(SHORTENED * model.max_length)) - len(options) - 1)
    fewest = _size(shortened)
    if fewest <= limit:
        return shortened
    how = " even when each is cut to one token" if fewest < size else ""
    if fewest > 2 * len(options) + 1:
        how = " even when each is cut to what differs from the others"
        if must_differ:
            first, second = most_alike(options)
            how += f" ({field}[{first}] and {field}[{second}] begin alike)"
    raise _do_not_fit(len(options), fewest, limit, how, field)


def _do_not_fit(num_options: int, size: int, limit: int, how: str, field: str) -> OptionsDoNotFit:
    what = f"{num_options} options take" if num_options > 1 else "1 option takes"
    return OptionsDoNotFit.of(
        field, f"{what} at least {size} tokens{how}; at most {limit} fit; send fewer or shorter ones"
    )


def fits(model: TextModel, sizes: Sequence[int]) -> bool:
    """Whether options of these numbers of tokens fit into one row as they are."""
    return sum(sizes) + len(sizes) + 1 <= _max_size(model)


def _size(options: Sequence[list[int]]) -> int:
    """Tokens of the options joined by masks, between [CLS] and [SEP], counted as in upstream."""
    return sum(map(len, options)) + len(options) + 1


def _max_size(model: TextModel) -> int:
    return model.max_length - MIN_TEXT_TOKENS


def _too_many(model: TextModel, options: Sequence[list[int]]) -> bool:
    """Whether the options do not fit with one token each."""
    return 2 * len(options) + 1 > _max_size(model)


def _tokenize_once(model: TextModel, choices: Sequence[Choice], truncation: Truncation) -> tuple[Tokens, Tokens]:
    """The tokens of the options and those of the texts. Options are always read from their start."""
    options = dict.fromkeys(each for options in dict.fromkeys(choice.options for choice in choices) for each in options)
    texts = dict.fromkeys(each for choice in choices for each in choice.rest)
    if truncation in ("right", "error"):
        together = _read(model, options | texts, truncation)
        return together, together
    return _read(model, options, "right"), _read(model, texts, truncation)


def _read(model: TextModel, strings: dict[str, None], truncation: Truncation) -> Tokens:
    return dict(zip(strings, read_texts(model, list(strings), model.max_length, truncation), strict=True))


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
        segment_ids=_segments(model, len(region.ids), len(rest)),
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


def _segments(model: TextModel, region: int, rest: int) -> IdArray:
    """The options are segment 1, as in upstream, unless the model has one segment only."""
    segments = np.zeros(region + rest, dtype=np.int32)
    segments[1:region] = min(1, model.num_segments - 1)
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
