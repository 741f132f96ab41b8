"""The data of a training run: the corpus of a recipe, texts labelled by a simple teacher, and the stream of batches.

The stream draws examples from a stage's mixture, varies, encodes and masks them, and groups rows of similar length. It
is deterministic: the same recipe and seed give the same batches, so that an interrupted run resumes exactly.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from service.domain import Encoding, FloatArray, Labels
from service.errors import DatasetError, SettingError
from service.tasks.rows import encode_rows
from service.tasks.text_model import TextModel
from service.tasks.unimc import encode_choices
from service.tools.data.converters import Example
from service.tools.data.files import read_records
from service.tools.data.registry import load
from service.tools.training.recipe import Optimizer, Recipe, Stage, TeacherLabels

POOL_BATCHES = 16
"""Number of batches whose rows are drawn together and sorted by length, before the batches are shuffled."""
NUM_FIXED_IDS = 5
"""The special tokens, which come first in the vocabulary."""
IGNORED = -100
"""The answer of a row that has none, as PyTorch's cross entropy ignores it."""
SNIPPETS = "snippets"
"""The name in a mixture of the questions that are made from plain texts."""
NUM_SNIPPETS = 4
MAX_SNIPPET = 8
MAX_SNIPPET_TEXT = 60
MIN_CROP = 4
MIN_TEXT = 5
"""Characters of the shortest field that counts as a text."""
SMOOTHING = 0.5
NGRAM_SIZES = (1, 2)


@dataclass(frozen=True, slots=True)
class Corpus:
    """The data of a recipe: examples by "name/split", and texts without labels."""

    train: dict[str, list[Example]]
    dev: dict[str, list[Example]]
    texts: list[str]


def read_corpus(recipe: Recipe, data: Path) -> Corpus:
    """Reads the data of a recipe. Training examples whose texts are in a dev split are dropped: collections overlap.

    Raises:
        DatasetError: a data set or file cannot be read, or no training example is left of a source.
    """
    dev = {source: _load(source, data) for source in recipe.dev}
    seen = {example.texts for examples in dev.values() for example in examples}
    train = {}
    for source in recipe.sources:
        if source == SNIPPETS:
            continue
        examples = _label_texts(recipe.taught[source], data) if source in recipe.taught else _load(source, data)
        train[source] = [item for item in examples if item.texts not in seen]
        if not train[source]:
            raise DatasetError(f"{source}: no training example is left after those of the dev splits are dropped")
    texts = [text for file in recipe.texts for text in _read_texts(data / file)]
    return Corpus(train, {name: examples[: recipe.evaluate_limit] for name, examples in dev.items()}, texts)


def _load(source: str, data: Path) -> list[Example]:
    name, _, split = source.partition("/")
    return load(name, data, split or "train")


def _label_texts(labels: TeacherLabels, data: Path) -> list[Example]:
    return Teacher(_load(labels.by, data)).label(_read_texts(data / labels.file), labels.keep)


def _read_texts(file: Path) -> list[str]:
    """The fields of a file that are long enough to be a text."""
    records = (record.values() if isinstance(record, Mapping) else record for record in read_records(file))
    return [value for values in records for value in values if isinstance(value, str) and len(value) >= MIN_TEXT]


class Teacher:
    """Naive Bayes over the character n-grams of labelled texts; labels plain texts of the same kind.

    A model memorises a few hundred titles per class, but not thousands more that are labelled this way. Only the texts
    are kept of which the teacher is surest. All examples have one text and the same options.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self._example = examples[0]
        grams = sorted({gram for example in examples for gram in ngrams(example.texts[0])})
        self._columns = {gram: column for column, gram in enumerate(grams)}
        counts = np.full((len(self._example.options), len(grams)), SMOOTHING)
        classes = np.ones(len(counts))
        for example in examples:
            classes[example.answer] += 1
            counts[example.answer, self._columns_of(example.texts[0])] += 1
        self._gram_scores = np.log(counts / counts.sum(axis=1, keepdims=True)).astype(np.float32)
        self._class_scores = np.log(classes / classes.sum()).astype(np.float32)

    def scores(self, text: str) -> FloatArray:
        """Log probabilities of the options, up to a constant, shape [num_options]."""
        scores: FloatArray = self._class_scores + self._gram_scores[:, self._columns_of(text)].sum(axis=1)
        return scores

    def label(self, texts: Sequence[str], keep: float) -> list[Example]:
        """The share `keep` of the texts with the widest margin between the best option and the next, in input order."""
        scores = np.stack([self.scores(text) for text in texts])
        best = np.sort(scores, axis=1)
        margins = best[:, -1] - best[:, -2]
        sure = np.sort(np.argsort(-margins, kind="stable")[: int(keep * len(texts))])
        answers = scores.argmax(axis=1)
        return [replace(self._example, texts=(texts[row],), answer=int(answers[row])) for row in sure]

    def _columns_of(self, text: str) -> list[int]:
        return [self._columns[gram] for gram in sorted(set(ngrams(text))) if gram in self._columns]


def ngrams(text: str) -> Iterator[str]:
    lowered = text.lower()
    for size in NGRAM_SIZES:
        yield from (lowered[start : start + size] for start in range(len(lowered) - size + 1))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """An encoding with its targets: the option or class, and (position, id) of the masked tokens."""

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
        return snippets(self.texts, draw) if name == SNIPPETS else deal(self.examples[name], draw)

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
    """Draws a wording and at most `max_options` of the options, so that names are learned instead of positions."""
    if wordings:
        example = replace(example, options=draw.choice([example.options, *wordings]))
    if not max_options or len(example.options) <= max_options:
        return example
    others = [index for index in range(len(example.options)) if index != example.answer]
    kept = sorted([example.answer, *draw.sample(others, draw.randint(max_options // 2, max_options) - 1)])
    return replace(example, options=tuple(example.options[index] for index in kept), answer=kept.index(example.answer))


def crop(example: Example, draw: random.Random) -> Example:
    """A random window of the first text, so that the model cannot rely on one part of it or memorise it."""
    text, *others = example.texts
    length = draw.randint(min(MIN_CROP, len(text)), len(text))
    start = draw.randint(0, len(text) - length)
    return replace(example, texts=(text[start : start + length], *others))


def mask_tokens(model: TextModel, row: Row, rate: float, draw: random.Random) -> Row:
    """BERT's masking of the text after the options: 8 in 10 of the chosen tokens become [MASK], 1 a random token."""
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
        share = draw.random()
        if share < 0.8:
            ids[index] = model.mask
        elif share < 0.9:
            ids[index] = draw.randrange(NUM_FIXED_IDS, model.tokenizer.get_vocab_size())
    return replace(row, encoding=replace(encoding, ids=ids), masked=masked)


def by_length(rows: Sequence[Row], optimizer: Optimizer) -> Iterator[list[Row]]:
    """Batches of rows of similar length, within the optimizer's padded tokens and rows per batch."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: row.encoding.num_tokens):
        is_full = row.encoding.num_tokens * (len(batch) + 1) > optimizer.tokens_per_batch
        if batch and (is_full or len(batch) == optimizer.rows_per_batch):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def deal(examples: Sequence[Example], draw: random.Random) -> Iterator[Example]:
    """An endless stream of the examples, shuffled again in each round."""
    order = np.arange(len(examples))
    while True:
        np.random.default_rng(draw.getrandbits(32)).shuffle(order)
        for index in order.tolist():
            yield examples[index]


def snippets(texts: Sequence[str], draw: random.Random) -> Iterator[Example]:
    """An endless stream of questions: which of the snippets is from this text? They need no labels, and teach an option
    to attend to similar tokens. Half of the texts lack the snippet, so that only the topic gives the answer."""
    long_enough = [text for text in texts if len(text) >= 2 * MAX_SNIPPET]
    if len(long_enough) < NUM_SNIPPETS:
        raise SettingError(f"mixture: {SNIPPETS} needs at least {NUM_SNIPPETS} texts of {2 * MAX_SNIPPET} characters")
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
