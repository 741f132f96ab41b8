"""The stream of training batches: draws examples from the stage's mixture, encodes, buckets by length, pads.

Deterministic: the same recipe and seed give the same batches, so an interrupted run resumes exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from service.domain import Encoding, Labels
from service.errors import SettingError
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import encode_choices
from service.tools.data.converters import Example
from service.tools.training.recipe import Optimizer, Recipe, Stage


class KeepWeights(TrainerCallback):
    """Writes the weights to a file when they have been trained for so many steps: a run that resumes finds them."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        self._step = step

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step == self._step and state.is_world_process_zero:
            weights = kwargs["model"].named_parameters()
            save_file({name: each.detach().clone() for name, each in weights}, self._file)


def blend(network: PreTrainedModel, before: Mapping[str, Tensor], share: float) -> None:
    """Draws the trained weights back towards earlier ones: what one data set taught is kept, and less of the rest is
    lost (Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022)."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            weights.copy_(torch.lerp(before[name].to(weights), weights, share))


POOL_BATCHES = 16
"""How many batches are drawn at once and sorted by length before they are cut and shuffled."""
NUM_FIXED_IDS = 5
IGNORED = -100
SNIPPETS = "snippets"
"""The name in a mixture of questions that are made from plain texts."""
NUM_SNIPPETS = 4
MAX_SNIPPET = 8
MAX_SNIPPET_TEXT = 60
MIN_CROP = 4


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """An encoding with what is to be learned of it: the option (or class) and the tokens behind masks."""

    encoding: Encoding
    answer: int = IGNORED
    masked: tuple[tuple[int, int], ...] = ()


class Stream:
    """Batches for every step of the recipe, in order."""

    def __init__(
        self,
        recipe: Recipe,
        model: TextModel,
        examples: Mapping[str, Sequence[Example]],
        texts: Sequence[str],
    ) -> None:
        self.recipe = recipe
        self.model = replace(model, max_length=min(model.max_length, recipe.max_length))
        self.examples = examples
        self.texts = texts

    def __iter__(self) -> Iterator[list[Row]]:
        draw = random.Random(self.recipe.seed)
        for stage, steps in groupby(self.recipe.stage_of_steps()):
            left = len(list(steps)) * self.recipe.optimizer.batches_per_step
            decks = {name: self._deck(name, draw) for name in stage.mixture}
            while left > 0:
                batches = self._pool(stage, decks, draw)[:left]
                left -= len(batches)
                yield from batches

    def _deck(self, name: str, draw: random.Random) -> Iterator[Example]:
        return snippets(self.texts, draw) if name == SNIPPETS else shuffled(self.examples[name], draw)

    def _pool(self, stage: Stage, decks: Mapping[str, Iterator[Example]], draw: random.Random) -> list[list[Row]]:
        rows: list[Row] = []
        tokens = 0
        while tokens < POOL_BATCHES * self.recipe.optimizer.tokens_per_batch:
            rows.append(self._draw_row(stage, decks, draw))
            tokens += rows[-1].encoding.num_tokens
        batches = list(by_length(rows, self.recipe.optimizer))
        draw.shuffle(batches)
        return batches

    def _draw_row(self, stage: Stage, decks: Mapping[str, Iterator[Example]], draw: random.Random) -> Row:
        if self.texts and draw.random() < stage.masked_texts:
            [encoding] = encode_rows(self.model, [(draw.choice(self.texts),)], Labels(), "right")
            return mask_tokens(self.model, Row(encoding), 0.15, draw)
        [name] = draw.choices(list(stage.mixture), list(stage.mixture.values()))
        example = next(decks[name])
        if name in stage.crops and draw.random() < stage.crops[name]:
            example = crop(example, draw)
        row = self._row(name, example, draw)
        return mask_tokens(self.model, row, stage.mask_rate, draw) if stage.mask_rate else row

    def _row(self, name: str, example: Example, draw: random.Random) -> Row:
        if self.recipe.form == "head":
            [encoding] = encode_rows(self.model, [example.texts], Labels(), "right")
            return Row(encoding, example.answer)
        varied = vary(example, self.recipe.max_options, self.recipe.wordings.get(name.partition("/")[0], ()), draw)
        [encoding] = encode_choices(self.model, [varied.as_choice()], "right")
        return Row(encoding, varied.answer)


def vary(example: Example, max_options: int, wordings: Sequence[tuple[str, ...]], draw: random.Random) -> Example:
    """Another wording of the options, and of many options a few, so that names and not numbers are learned."""
    if wordings:
        example = replace(example, options=draw.choice([example.options, *wordings]))
    if not max_options or len(example.options) <= max_options:
        return example
    others = [index for index in range(len(example.options)) if index != example.answer]
    kept = sorted([example.answer, *draw.sample(others, draw.randint(max_options // 2, max_options) - 1)])
    return replace(example, options=tuple(example.options[index] for index in kept), answer=kept.index(example.answer))


def crop(example: Example, draw: random.Random) -> Example:
    """A window of the (first) text, so that no part of it can be relied upon, and none is learned by heart."""
    text, *others = example.texts
    length = draw.randint(min(MIN_CROP, len(text)), len(text))
    start = draw.randint(0, len(text) - length)
    return replace(example, texts=(text[start : start + length], *others))


def mask_tokens(model: TextModel, row: Row, rate: float, draw: random.Random) -> Row:
    """BERT's masking of the text after the options: of the chosen tokens 8 in 10 become the mask, 1 a random token."""
    encoding = row.encoding
    first = encoding.blocks[-1][1] + 1 if encoding.blocks else 1
    ids = encoding.ids.copy()
    chosen = [
        index
        for index in range(first, len(ids))
        if int(ids[index]) not in (model.sep, model.cls, model.mask) and draw.random() < rate
    ]
    masked = tuple((index, int(ids[index])) for index in chosen)
    for index in chosen:
        fate = draw.random()
        if fate < 0.8:
            ids[index] = model.mask
        elif fate < 0.9:
            ids[index] = draw.randrange(NUM_FIXED_IDS, model.tokenizer.get_vocab_size())
    return replace(row, encoding=replace(encoding, ids=ids), masked=masked)


def by_length(rows: Sequence[Row], optimizer: Optimizer) -> Iterator[list[Row]]:
    """Batches of rows alike in length whose padded size and number keep within the budget."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: row.encoding.num_tokens):
        is_full = row.encoding.num_tokens * (len(batch) + 1) > optimizer.tokens_per_batch
        if batch and (is_full or len(batch) == optimizer.rows_per_batch):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def shuffled(examples: Sequence[Example], draw: random.Random) -> Iterator[Example]:
    """The examples again and again, shuffled anew each time round."""
    order = np.arange(len(examples))
    while True:
        np.random.default_rng(draw.getrandbits(32)).shuffle(order)
        for index in order.tolist():
            yield examples[index]


def snippets(texts: Sequence[str], draw: random.Random) -> Iterator[Example]:
    """Which of the snippets is from this text? In half of the questions the text has lost the snippet, so that what
    it is about must tell. Needs no labels and teaches options to look for their like."""
    long_enough = [text for text in texts if len(text) >= 2 * MAX_SNIPPET]
    if len(long_enough) < NUM_SNIPPETS:
        raise SettingError(f"mixture: {SNIPPETS} wants at least {NUM_SNIPPETS} texts of {2 * MAX_SNIPPET} characters")
    while True:
        chosen = draw.sample(long_enough, NUM_SNIPPETS)
        spans = [_span(text, draw) for text in chosen]
        answer = draw.randrange(NUM_SNIPPETS)
        start, end = spans[answer]
        text = chosen[answer]
        if draw.random() < 0.5:
            text = f"{text[:start]}，{text[end:]}"
        options = tuple(source[first:last] for source, (first, last) in zip(chosen, spans, strict=True))
        yield Example("classify", (text[:MAX_SNIPPET_TEXT],), options, answer)


def _span(text: str, draw: random.Random) -> tuple[int, int]:
    length = draw.randint(2, MAX_SNIPPET)
    start = draw.randrange(min(len(text), MAX_SNIPPET_TEXT) - length)
    return start, start + length
