"""The data of fine-tuning as torch takes it: a dataset of rows, a collator, a sampler that groups by length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from service.domain import Encoding, FloatArray, Labels, TokenScores
from service.errors import InvalidRequest, SettingError
from service.tasks.rows import encode_rows, read_texts
from service.tasks.text_model import TextModel
from service.tasks.unimc import MIN_TEXT_TOKENS, Choice, encode_choices
from service.tools.data.converters import Example
from service.tools.training.recipe import Form
from service.tools.training.trainer import attention_mask, pad
from service.tools.training.wordings import Wording, halve

Batch = dict[str, Tensor]
Target = Literal["one", "several", "number"]
"""One class, every class that holds, or a grade."""

LENGTH_POOL = 50
"""Steps whose rows are drawn together and sorted by length, as transformers' LengthGroupedSampler does."""
CHUNK = 1024
"""Rows that are encoded in one call."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a run learns. `labels` are the classes that all examples share: none for grades, or where each example has
    options of its own. `task` is that of the examples."""

    form: Form
    target: Target
    task: str
    labels: tuple[str, ...]
    wording: Wording = field(default_factory=Wording)

    @property
    def has_own_options(self) -> bool:
        return not self.labels and self.target != "number"


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A row and its target: the index of the class, 1 or 0 for each class, or the grade."""

    encoding: Encoding
    target: int | float | FloatArray
    vector: Tensor | None = None
    """The output of a frozen encoder, in place of the row."""


class Samples(Dataset[Sample]):
    """The examples of a split, encoded."""

    def __init__(self, model: TextModel, problem: Problem, examples: Sequence[Example], max_length: int) -> None:
        """
        Raises:
            SettingError: the options do not fit into `max_length` tokens.
        """
        self.problem = problem
        shorter = replace(model, max_length=min(max_length, model.max_length))
        rows: list[Encoding] = []
        for start in range(0, len(examples), CHUNK):
            rows += _encode(shorter, problem, examples[start : start + CHUNK])
        self.samples = [Sample(row, target_of(problem, example)) for row, example in zip(rows, examples, strict=True)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    @property
    def lengths(self) -> list[int]:
        return [sample.encoding.num_tokens for sample in self.samples]

    @property
    def num_options(self) -> int:
        """The most options of a row; 0 for the head form."""
        return max((len(sample.encoding.blocks) for sample in self.samples), default=0)

    def with_vectors(self, vectors: Tensor) -> None:
        """Replaces the rows by the outputs of a frozen encoder, shape [num_samples, hidden]."""
        self.samples = [replace(sample, vector=vector) for sample, vector in zip(self.samples, vectors, strict=True)]


def _encode(model: TextModel, problem: Problem, examples: Sequence[Example]) -> list[Encoding]:
    if problem.form == "head":
        return encode_rows(model, [example.texts for example in examples], Labels(), "right")
    try:
        return encode_choices(model, choices_of(model, problem.wording, examples), "right")
    except InvalidRequest as error:
        reason = error.errors[0].message if error.errors else error.detail
        raise SettingError(f"--max-length {model.max_length}: {reason}; or use --form head") from None


def choices_of(model: TextModel, wording: Wording, examples: Sequence[Example]) -> list[Choice]:
    """The choices of a wording, with options that fit into a row of this model where the wording halves them."""
    choices = [wording.choice_of(example) for example in examples]
    if not wording.halve:
        return choices
    limit = model.max_length - MIN_TEXT_TOKENS
    sets = dict.fromkeys(choice.options for choice in choices)
    fitting = {options: halve(options, partial(_num_tokens, model), limit) for options in sets}
    return [replace(choice, options=fitting[choice.options]) for choice in choices]


def _num_tokens(model: TextModel, options: Sequence[str]) -> int:
    """Of the options joined by masks between [CLS] and [SEP], as upstream counts them."""
    return sum(map(len, read_texts(model, options, model.max_length, "right"))) + len(options) + 1


def target_of(problem: Problem, example: Example) -> int | float | FloatArray:
    if problem.target == "number":
        assert example.grade is not None
        return example.grade
    if problem.target == "several":
        held = np.zeros(len(problem.labels), dtype=np.float32)
        held[list(example.answers or ())] = 1.0
        return held
    return example.answer


def choose_max_length(model: TextModel, problem: Problem, examples: Sequence[Example], at_most: int) -> int:
    """Tokens of a row that hold 19 of 20 rows whole, at most `at_most`; more where the options need it."""
    sampled = examples[:: max(1, len(examples) // 500)]
    whole = replace(model, max_length=min(model.max_length, 512))
    lengths = [row.num_tokens for row in _encode(whole, problem, sampled)]
    most = int(np.percentile(lengths, 95))
    regions = [row.blocks[-1][1] + 1 for row in _encode(whole, problem, sampled[:50]) if row.blocks]
    # Options that leave a text fewer than MIN_TEXT_TOKENS are shortened.
    least = max(regions) + MIN_TEXT_TOKENS if regions else 0
    if most <= at_most:
        return min(model.max_length, max(32, least, -(-most // 8) * 8))
    return min(model.max_length, max(at_most, least + MIN_TEXT_TOKENS if regions else 0))


class Collator:
    """Pads samples to one batch of inputs and targets. `num_options` is the width of the scores of a choice."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        batch = {"labels": self._targets(samples)}
        vectors = [sample.vector for sample in samples]
        if vectors[0] is not None:
            return batch | {"vectors": torch.stack([each for each in vectors if each is not None])}
        rows = [sample.encoding for sample in samples]
        length = max(row.num_tokens for row in rows)
        batch |= {
            "input_ids": pad([row.ids for row in rows], length),
            "token_type_ids": pad([row.segment_ids for row in rows], length),
            "position_ids": pad([row.positions for row in rows], length),
        }
        if self.problem.form == "head":
            lengths = torch.tensor([row.num_tokens for row in rows])
            return batch | {"attention_mask": (torch.arange(length) < lengths[:, None]).long()}
        return batch | {"attention_mask": attention_mask(rows, length)} | _option_places(rows)

    def _targets(self, samples: Sequence[Sample]) -> Tensor:
        targets = np.array([sample.target for sample in samples])
        return torch.from_numpy(targets if self.problem.target == "one" else targets.astype(np.float32))


def _option_places(rows: Sequence[Encoding]) -> Batch:
    counts = [len(row.blocks) for row in rows]
    places = torch.zeros(len(rows), max(counts), dtype=torch.long)
    for index, row in enumerate(rows):
        assert isinstance(row.readout, TokenScores)
        places[index, : counts[index]] = torch.tensor(row.readout.positions)
    return {"option_positions": places, "option_counts": torch.tensor(counts)}


class GroupedByLength(Sampler[int]):
    """The order of the rows of each epoch: batches of rows of similar length, in random order.

    `batch_size` is that of a whole step, of all processes and accumulated batches, so that a step has the same rows
    however it is divided. The last batch of an epoch is filled up with rows of its first ones.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng((self.seed, self.epoch))
        order = np.resize(draw.permutation(len(self.lengths)), len(self))
        pool = LENGTH_POOL * self.batch_size
        pools = (order[start : start + pool] for start in range(0, len(order), pool))
        by_length = np.concatenate([each[np.argsort(self.lengths[each], kind="stable")] for each in pools])
        steps = by_length.reshape(-1, self.batch_size)
        for step in draw.permutation(len(steps)):
            # Within a step, too: its parts are divided among processes and accumulated batches.
            yield from draw.permutation(steps[step]).tolist()


Collate = Callable[[Sequence[Sample]], Batch]
