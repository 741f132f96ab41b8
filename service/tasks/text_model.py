"""The parts of a checkpoint that tasks need: its tokenizer, its labels and its limits.

Special tokens in a request's text are plain text: `[SEP]` becomes `[`, `sep`, `]` and cannot change the structure of a
row (see `tokenizer`).

A model keeps only its `max_length` tokens of a text, so no more of it is tokenized. A long text is read in slices that
are cut where the tokenizer starts a new word, whatever stands around the cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from tokenizers import Tokenizer

from service.checkpoints.checkpoint import Checkpoint, OwnChoice
from service.checkpoints.heads import Head
from service.checkpoints.sentence_modules import EmbeddingSpec
from service.checkpoints.shape import Kind
from service.domain import IdArray
from service.slices import between_slices
from service.tasks.blend import Blend
from service.tasks.calibration import Calibration
from service.tasks.label_vectors import LabelVectorsCache
from service.tasks.tokenizer import encode, encode_with_offsets, read_tokenizer
from service.tasks.tokenizer_files import hidden_name
from service.tasks.word_starts import PieceEnds, find_single_characters, find_word_starts

SLICE_CHARS = 16_384
"""Characters that the tokenizer reads in one call, unless no word ends there: some milliseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacedTokens:
    """The tokens of a text: token i has the id `ids[i]` and stands for the characters `starts[i]` to `ends[i]` - 1."""

    ids: list[int]
    starts: IdArray
    ends: IdArray


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """A checkpoint without its weights; `max_length` is in tokens, special tokens included.

    Two texts have `num_separators` between them, and `second_segment` is the segment id of the second one. `names`
    are those of special and added tokens. `mask_strips` says whether a mask removes the white space before and after.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    tasks: tuple[str, ...]
    max_length: int
    tokenizer: Tokenizer
    cls: int
    sep: int
    mask: int
    yes: int | None
    no: int | None
    hidden_size: int
    num_segments: int = 2
    num_separators: int = 1
    second_segment: int = 1
    names: Mapping[int, str] = field(default_factory=dict)
    mask_strips: tuple[bool, bool] = (False, False)
    head: Head | None = None
    """Of a sequence classifier."""
    embedding: EmbeddingSpec | None = None
    """Of an embedding model: of a checkpoint that declares how it makes embeddings."""
    choice: OwnChoice | None = None
    """The labels that a choice model was fine-tuned for."""
    source: str = ""
    blend: Blend | None = None
    """Of an embedding model that can match texts with labels."""
    partner: TextModel | None = field(init=False, default=None)
    """The embedding model that decides together with this choice model; see `pair`."""
    label_vectors: LabelVectorsCache = field(init=False, default_factory=LabelVectorsCache)
    """Of an embedding model, the vectors of the labels of requests and of stored sets."""
    calibration: Calibration | None = field(init=False, default=None)
    """The temperatures of all models that are served; see `calibrate`."""
    _single: dict[str, int] = field(init=False)
    _others: re.Pattern[str] = field(init=False)
    _word_start: re.Pattern[str] = field(init=False)
    _piece_ends: PieceEnds | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_single", find_single_characters(self.tokenizer))
        listed = re.escape("".join(self._single))
        object.__setattr__(self, "_others", re.compile(f"[^{listed}]+" if listed else "(?s:.+)"))
        object.__setattr__(self, "_word_start", find_word_starts(self.tokenizer))
        object.__setattr__(self, "_piece_ends", PieceEnds.of(self.tokenizer))

    @classmethod
    def load(cls, checkpoint: Checkpoint, blend: Blend | None = None) -> TextModel:
        """Reads the tokenizer of a checkpoint. `blend` is for embedding models whose vectors are compared by cosine.

        Raises:
            CheckpointError: there is none that can be served (see `read_tokenizer`).
            SettingError: the blend does not fit to the embedding model.
        """
        spec = checkpoint.embedding
        read = read_tokenizer(checkpoint)
        return cls(
            name=checkpoint.name,
            kind=checkpoint.kind,
            labels=checkpoint.labels,
            tasks=checkpoint.tasks,
            max_length=checkpoint.shape.max_positions,
            tokenizer=read.tokenizer,
            cls=read.form.cls,
            sep=read.form.sep,
            mask=read.mask,
            yes=read.yes,
            no=read.no,
            hidden_size=checkpoint.shape.hidden_size,
            num_segments=checkpoint.shape.num_segments,
            num_separators=read.form.num_separators,
            second_segment=min(read.form.second_segment, checkpoint.shape.num_segments - 1),
            names=read.names,
            mask_strips=read.mask_strips,
            head=checkpoint.head,
            embedding=checkpoint.embedding,
            choice=checkpoint.choice,
            source=checkpoint.source,
            blend=blend.fit_to((checkpoint.name, checkpoint.source), spec.dimensions)
            if blend is not None and spec is not None and spec.has_cosine
            else None,
        )

    def pair(self, partner: TextModel) -> None:
        """Makes the embedding model decide together with this one. Called once, before the first request."""
        object.__setattr__(self, "partner", partner)

    def calibrate(self, calibration: Calibration) -> None:
        """Makes the scores of labels probabilities where a temperature is known. Called once, as `pair`."""
        object.__setattr__(self, "calibration", calibration)

    @property
    def own_labels(self) -> tuple[str, ...]:
        """The labels of a classifier's head, or those that a choice model was fine-tuned for."""
        return self.choice.labels if self.choice else self.labels

    @property
    def can_match(self) -> bool:
        """Whether this is an embedding model that scores labels by their vectors."""
        return self.blend is not None

    @property
    def can_choose(self) -> bool:
        """Whether this model can do UniMC: a masked LM whose vocabulary has the words for yes and no."""
        return self.kind == "masked-lm" and self.yes is not None and self.no is not None

    def tokenize(
        self, texts: Sequence[str], max_tokens: int | None = None, *, from_end: bool = False
    ) -> list[list[int]]:
        """Token ids of each text, without special tokens.

        With `max_tokens`, a longer text is read only until it has at least as many tokens: from its start, or with
        `from_end` from its end. At most about twice as many are returned.
        """
        if max_tokens is not None and not from_end and self._piece_ends:
            return self._read_starts(texts, max_tokens, self._piece_ends)
        limit = None if max_tokens is None else 2 * max_tokens
        kept = slice(-limit, None) if limit and from_end else slice(limit)
        num_chars = SLICE_CHARS if max_tokens is None else min(2 * max_tokens, SLICE_CHARS)
        if max(map(len, texts), default=0) <= num_chars:
            return self._read(texts, kept)
        found: list[list[int]] = [[] for _ in texts]
        unread = {index: (0, len(text)) for index, text in enumerate(texts)}
        while unread:
            spans = {index: self._slice(texts[index], *rest, num_chars, from_end) for index, rest in unread.items()}
            read = self._read([texts[index][start:end] for index, (start, end) in spans.items()], kept)
            for (index, (start, end)), ids in zip(spans.items(), read, strict=True):
                found[index] = ids + found[index] if from_end else found[index] + ids
                rest = (unread[index][0], start) if from_end else (end, unread[index][1])
                unread[index] = rest
                if rest[0] == rest[1] or (max_tokens is not None and len(found[index]) >= max_tokens):
                    del unread[index]
            num_chars = min(2 * num_chars, SLICE_CHARS)
        return found

    def _read_starts(self, texts: Sequence[str], max_tokens: int, ends: PieceEnds) -> list[list[int]]:
        """At least `max_tokens` ids of each text, or all, of a Unigram model: Chinese has no spaces to cut at.

        A start with too few tokens is read again with twice the characters.
        """
        found: list[list[int]] = [[] for _ in texts]
        num_chars, unread = 2 * max_tokens, list(range(len(texts)))
        while unread:
            starts = [texts[index][: self._find_end(texts[index], num_chars, ends)] for index in unread]
            for index, ids in zip(unread, self._read(starts, slice(2 * max_tokens)), strict=True):
                found[index] = ids
            unread = [
                index
                for index, start in zip(unread, starts, strict=True)
                if len(start) < len(texts[index]) and len(found[index]) < max_tokens
            ]
            num_chars *= 2
        return found

    def _find_end(self, text: str, num_chars: int, ends: PieceEnds) -> int:
        if len(text) <= num_chars:
            return len(text)
        cut = self._word_start.search(text, num_chars, 2 * num_chars)
        return cut.start() if cut else ends.find(text, num_chars)

    def _slice(self, text: str, start: int, end: int, num_chars: int, from_end: bool) -> tuple[int, int]:
        """About `num_chars` of the span at its start or end, cut where a word starts; more where no word does."""
        if end - start <= num_chars:
            return start, end
        if not from_end:
            cut = self._word_start.search(text, start + num_chars, end)
            return start, cut.start() if cut else end
        while num_chars < end - start:
            if cut := self._word_start.search(text, end - num_chars, end):
                return cut.start(), end
            num_chars *= 2
        return start, end

    def _read(self, texts: Sequence[str], kept: slice) -> list[list[int]]:
        """The `kept` token ids of each text; SLICE_CHARS at most, or one text, in each call of the tokenizer."""
        if sum(map(len, texts)) <= SLICE_CHARS:  # as of most requests
            return [ids[kept] for ids in self._read_at_once(texts)]
        read: list[list[int]] = []
        while len(read) < len(texts):
            between_slices()
            first, num_chars = len(read), 0
            last = first
            while last < len(texts) and (last == first or num_chars + len(texts[last]) <= SLICE_CHARS):
                num_chars += len(texts[last])
                last += 1
            read += [ids[kept] for ids in self._read_at_once(texts[first:last])]
        return read

    def _read_at_once(self, texts: Sequence[str]) -> list[list[int]]:
        """Characters that are always single tokens, most of a Chinese text, are looked up in a table. The tokenizer
        reads only the runs between them, and releases the GIL meanwhile."""
        between = [self._others.findall(text) for text in texts]
        runs = [run for found in between for run in found]
        read = iter(encode(self.tokenizer, runs) if runs else ())
        return [self._join(text, [next(read) for _ in found]) for text, found in zip(texts, between, strict=True)]

    def _join(self, text: str, runs: list[list[int]]) -> list[int]:
        known = self._single.__getitem__
        if not runs:
            return list(map(known, text))
        ids: list[int] = []
        for piece, run in zip_longest(self._others.split(text), runs, fillvalue=()):
            ids += map(known, piece)
            ids += run
        return ids

    def tokenize_with_places(self, text: str, max_tokens: int) -> PlacedTokens:
        """As `tokenize` of one text from its start, with the characters of each token."""
        ids: list[int] = []
        spans: list[IdArray] = [np.empty((0, 2), dtype=np.int32)]
        end, num_chars = 0, min(2 * max_tokens, SLICE_CHARS)
        while end < len(text) and len(ids) < max_tokens:
            between_slices()
            start, end = self._slice(text, end, len(text), num_chars, from_end=False)
            found, places = self._read_places(text[start:end])
            ids += found
            spans.append(np.array(places, dtype=np.int32).reshape(-1, 2) + start)
            num_chars = min(2 * num_chars, SLICE_CHARS)
        starts, ends = np.concatenate(spans, dtype=np.int32).T
        return PlacedTokens(ids, starts, ends)

    def _read_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of the tokens of a slice, and the characters of each; see `_read_at_once`."""
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        known, at = self._single.__getitem__, 0
        runs = list(self._others.finditer(text))
        read = encode_with_offsets(self.tokenizer, [run[0] for run in runs]) if runs else ()
        for run, (run_ids, run_places) in zip(runs, read, strict=True):
            first = run.start()
            ids += map(known, text[at:first])
            places += zip(range(at, first), range(at + 1, first + 1), strict=True)
            ids += run_ids
            places += [(first + start, first + end) for start, end in run_places]
            at = run.end()
        ids += map(known, text[at:])
        places += zip(range(at, len(text)), range(at + 1, len(text) + 1), strict=True)
        return ids, places

    def token(self, token_id: int) -> str:
        """The token of an id; empty for an id outside the vocabulary, which padded embeddings can produce."""
        token = self.names.get(token_id) or self.tokenizer.id_to_token(token_id) or ""
        return "" if token == hidden_name(token_id) else token


def calibrate(models: Iterable[TextModel], calibration: Calibration) -> None:
    """Makes all models use these temperatures."""
    for model in models:
        model.calibrate(calibration)


def pair(models: Iterable[TextModel]) -> None:
    """Makes the first embedding model that can match the partner of every choice model."""
    models = tuple(models)
    if partner := next((model for model in models if model.can_match), None):
        for model in models:
            if model.can_choose and not model.can_match:
                model.pair(partner)
