"""Choices among any number of options: in one row where they fit, else in several rows of each input.

The options of a UniMC row do not see each other, so the logits of several rows are compared with each other. The rows
of a request are one of each input, with the first part of its options, then one of each input with the second part, and
so on; each says which labels its options stand for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from service.domain import Encoding, Output
from service.tasks.blend import Indexes, Numbers
from service.tasks.options import check_different
from service.tasks.task import Truncation
from service.tasks.text_model import TextModel
from service.tasks.unimc import Choice, OptionsDoNotFit, encode_choices, fits

SHARE_OF_ROW = 0.5
"""What the options of a row get at most where several rows are needed: the text is read in each of them."""

Stands = tuple[tuple[int, ...], ...]
"""For each option of a row, the labels that it stands for: several where their tokens are the same."""


@dataclass(frozen=True, slots=True)
class DividedChoice:
    """A choice of one input. Without `labels`, the options are all labels in their order."""

    choice: Choice
    labels: Stands = ()


def encode_in_rows(
    model: TextModel,
    divided: Sequence[DividedChoice],
    truncation: Truncation,
    *,
    max_shortened: int,
    must_differ: bool = False,
) -> list[Encoding]:
    """The rows of the choices. Up to `max_shortened` options are shortened if need be to fit into one row.

    Raises:
        InvalidRequest: two options that must differ have the same tokens, or a text or an option does not fit by itself
            and `truncation` is "error".
    """
    choices = [each.choice for each in divided]
    if max(len(each.options) for each in choices) <= max_shortened or _fit_as_they_are(model, choices):
        try:
            rows = encode_choices(model, choices, truncation, options_field="labels", must_differ=must_differ)
            return [_stands_for(row, each.labels) for row, each in zip(rows, divided, strict=True)]
        except OptionsDoNotFit:
            pass
    sizes = {options: _read_sizes(model, options, must_differ) for options in {each.options for each in choices}}
    num_parts = max(_count_parts(model, lengths) for lengths in sizes.values())
    parts, labels = [], []
    for part in range(num_parts):
        for each in divided:
            options = each.choice.options
            span = slice(part * len(options) // num_parts, (part + 1) * len(options) // num_parts)
            parts.append(replace(each.choice, options=options[span]))
            labels.append((each.labels or tuple([(index,) for index in range(len(options))]))[span])
    rows = encode_choices(model, parts, truncation, options_field="labels", num_inputs=len(divided))
    if must_differ:
        _check_read(rows[:: len(divided)])
    return [_stands_for(row, stands) for row, stands in zip(rows, labels, strict=True)]


def _check_read(rows: Sequence[Encoding]) -> None:
    """Raises OptionsDoNotFit if two options of these rows are the same, because they were cut."""
    seen: dict[bytes, int] = {}
    for row in rows:
        for start, end in row.blocks:
            tokens, index = row.ids[start:end].tobytes(), len(seen)
            if seen.setdefault(tokens, index) != index:
                raise OptionsDoNotFit.of(
                    f"labels[{index}]", f"begins as labels[{seen[tokens]}] does, and a row has room for no more of it"
                )


def _stands_for(row: Encoding, labels: Stands) -> Encoding:
    return replace(row, options=labels) if labels else row


def _fit_as_they_are(model: TextModel, choices: Sequence[Choice]) -> bool:
    return all(
        fits(model, [len(tokens) for tokens in model.tokenize(options, model.max_length)])
        for options in {each.options for each in choices}
    )


def _read_sizes(model: TextModel, options: tuple[str, ...], must_differ: bool) -> list[int]:
    tokens = [each[: model.max_length] for each in model.tokenize(options, model.max_length)]
    if must_differ:
        check_different(model, options, tokens, "labels")
    return [len(each) for each in tokens]


def _count_parts(model: TextModel, sizes: Sequence[int]) -> int:
    """The fewest parts of about as many options each of which every one fits; an option too long for it has its own."""
    limit = int(SHARE_OF_ROW * model.max_length)
    ends = np.concatenate([[0], np.cumsum(np.asarray(sizes) + 1)])
    num_parts = max(2, -(-int(ends[-1]) // limit))
    while num_parts < len(sizes):
        cuts = np.arange(num_parts + 1) * len(sizes) // num_parts
        if np.all((np.diff(ends[cuts]) < limit) | (np.diff(cuts) == 1)):
            break
        num_parts += 1
    return min(num_parts, len(sizes))


def join_logits(rows: Sequence[Encoding], outputs: Sequence[Output]) -> tuple[Numbers | None, Indexes | None]:
    """The logits of yes and no of one input, shape [num_read, 2], and the labels that they are of; None: all, in order.
    Without rows there are none.

    Labels that are one option to the model share its probability.
    """
    if not rows:
        return None, None
    logits = [output.scores.astype(np.float64) for output in outputs]
    if len(rows) == 1 and not rows[0].options:
        return logits[0], None
    stands = [labels for row in rows for labels in row.options]
    sizes = np.asarray([len(labels) for labels in stands])
    joined = np.concatenate(logits)
    joined[:, 0] -= np.log(sizes)
    return np.repeat(joined, sizes, axis=0), np.asarray(
        [label for labels in stands for label in labels], dtype=np.int64
    )
