"""Windows of long texts: parts that overlap, which are read in rows of their own, and one result made of theirs.

Where a query asks for windows, each of its texts is divided into parts that fit into a row next to all else that the
row holds (labels, a question, a prompt). The task then reads the windows as it reads inputs: each has the scores that
its text has by itself, and a text of one window has the scores that it has without windows. Where two models read a
text, each has windows of its own size, and a window of the first one is decided together with the window of the second
one that holds most of it.

A window is a span of characters. It begins and ends where a token does, and within no word of an alphabet. A part by
itself may have more tokens than within its text, so each is counted again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import chain
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.domain import Encoding, FloatArray, IdArray, Labels, Output, TokenScores
from service.errors import InvalidRequest
from service.slices import between_slices
from service.tasks.task import Q, R, Task
from service.tasks.text_model import TextModel

DEFAULT_STRIDE = 64
MAX_WINDOWS = 256
"""Windows of one request, unless it has more inputs."""
NUM_SEPARATORS = 4
"""Special tokens that a row has at most after its options."""
LEAST_SHARE = 4
"""A text gets at least one of so many parts of a row's free tokens, whatever the length of question and second text."""
MAX_WORD = 64
"""Characters of the longest word that is not cut."""
IDEOGRAPHS = "\u2e80"
"""The first character of the scripts that write no spaces between words."""

WindowPooling = Literal["mean", "max", "first"]
Numbers = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """`stride` is the number of tokens that neighbouring windows share, at most half of a window. `pooling` says how
    the results of the windows become one; None is the task's default. With "first" only the first window is read."""

    stride: int = DEFAULT_STRIDE
    pooling: WindowPooling | None = None
    max_windows: int = MAX_WINDOWS


@dataclass(frozen=True, slots=True)
class TextWindow:
    """The window that decided: number `index` of the `of` windows that were read, the characters `start` to `end` - 1
    of the text, in Unicode code points. `index` is null where all windows count; `start` and `end` are then theirs."""

    index: int | None
    start: int
    end: int
    of: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a window stands: its input, its number there, its characters, and how many tokens they are."""

    input: int
    index: int
    start: int
    end: int
    num_tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class WindowRow(Encoding):
    """A row of a window."""

    place: Place = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class LongTexts(Generic[Q, R]):
    """How a task reads windows.

    `texts` are the texts of a query that are divided, one of each input; `path` is the path of one in the request, with
    `{}` for the number of its input. `with_texts` makes a query without windows, of texts that each take the place of
    the text of an input, and `score` the numbers of each of them. `merge` makes the result of an input from the numbers
    of its windows, shape [num_windows, num_numbers], the places of the windows, and all rows of the input. Of a task
    with a second stage, `rank` makes numbers of the rows of the first one for each text, and `narrow` the query of the
    second stage of those of each input, the mean over its windows.
    """

    path: str
    options: Callable[[Q], WindowOptions | None]
    texts: Callable[[Q], Sequence[str]]
    with_texts: Callable[[Q, Sequence[tuple[int, str]]], Q]
    score: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], Sequence[FloatArray]]
    merge: Callable[[TextModel, Q, Numbers, Sequence[Place], Sequence[Encoding]], R]
    rank: Callable[[TextModel, Q, Sequence[Encoding], Sequence[Output]], Sequence[Numbers]] | None = None
    narrow: Callable[[TextModel, Q, Sequence[Numbers]], Q] | None = None


def read_in_windows(task: Task[Q, R], long: LongTexts[Q, R]) -> Task[Q, R]:
    """The task, which reads long texts in windows where a query has options for them."""
    return replace(
        task,
        encode=partial(_encode, task, long),
        decode=partial(_decode, task, long),
        follow=task.follow and partial(_follow, task, long),
    )


def _encode(task: Task[Q, R], long: LongTexts[Q, R], model: TextModel, query: Q) -> list[Encoding]:
    """The rows of the windows, in the groups in which the task has one row of each input; those of an input stand
    together, and all but the first have `continues`.

    How many tokens are free for a text is seen from the rows that it has when it is empty.

    Raises InvalidRequest where the task does, and where the texts take too many windows.
    """
    options = long.options(query)
    if options is None:
        return task.encode(model, query)
    texts = long.texts(query)
    whole = task.encode(model, long.with_texts(query, [(index, "") for index in range(len(texts))]))
    empty = [row for row in whole if row.kept_as is None]
    readers = {each.name: each for each in (model, model.partner) if each is not None}
    groups = [empty[first : first + len(texts)] for first in range(0, len(empty), len(texts))]
    free: dict[str, list[int]] = {}
    for group in groups:
        name = group[0].model
        rooms = [_room(readers[name], row) for row in group]
        free[name] = list(map(min, free.get(name, rooms), rooms))
    places = {name: _divide(texts, readers[name], rooms, options, long.path) for name, rooms in free.items()}
    rows: list[Encoding] = []
    read: dict[tuple[tuple[int, str], ...], list[Encoding]] = {}
    for index, group in enumerate(groups):
        own = places[group[0].model]
        parts = _parts(texts, own)
        if parts not in read:
            read[parts] = task.encode(model, long.with_texts(query, parts))
        whole = read[parts]
        rows += [_mark(whole[index * len(own) + number], place, texts, options) for number, place in enumerate(own)]
    return rows + [row for row in whole if row.kept_as is not None]


def _divide(
    texts: Sequence[str], model: TextModel, rooms: Sequence[int], options: WindowOptions, path: str
) -> list[Place]:
    """The windows of all texts. Raises InvalidRequest for too many."""
    places: list[Place] = []
    for index, (text, room) in enumerate(zip(texts, rooms, strict=True)):
        num_left = max(options.max_windows, len(texts)) - len(places) - (len(texts) - index - 1)
        found = find_windows(text, model, room, options, num_left)
        if found is None:
            raise InvalidRequest.of(
                path.format(index),
                f"takes more than the {num_left} windows that are left of the {options.max_windows} of a request; send"
                " fewer or shorter texts in one request, a smaller stride or shorter labels, or truncation head_tail",
            )
        places += [replace(place, input=index) for place in found]
    return places


def _parts(texts: Sequence[str], places: Sequence[Place]) -> tuple[tuple[int, str], ...]:
    return tuple([(place.input, texts[place.input][place.start : place.end]) for place in places])


def _room(model: TextModel, empty: Encoding) -> int:
    """The number of tokens that are free in a row without a text.

    A question or a second text of a long one is cut, as without windows; a prompt is not.
    """
    if not isinstance(empty.readout, Labels | TokenScores):
        longest = min(model.max_length, model.embedding.max_length) if model.embedding else model.max_length
        return max(1, longest - empty.num_tokens)
    num_fixed = NUM_SEPARATORS + (empty.blocks[-1][1] if empty.blocks else 0)
    return max(1, model.max_length - empty.num_tokens, (model.max_length - num_fixed) // LEAST_SHARE)


def _mark(row: Encoding, place: Place, texts: Sequence[str], options: WindowOptions) -> WindowRow:
    values = {each.name: getattr(row, each.name) for each in fields(Encoding) if each.init}
    is_cut = options.pooling == "first" and place.end < len(texts[place.input])
    values |= {"truncated": row.truncated or is_cut, "continues": place.index > 0}
    return WindowRow(**values, place=place)


def _follow(
    task: Task[Q, R],
    long: LongTexts[Q, R],
    model: TextModel,
    query: Q,
    rows: Sequence[Encoding],
    outputs: Sequence[Output],
) -> list[Encoding]:
    assert task.follow is not None, "the task has a second stage"
    if long.options(query) is None:
        return task.follow(model, query, rows, outputs)
    assert long.rank is not None, "and reads windows"
    assert long.narrow is not None, "in both of them"
    texts = long.texts(query)
    [windows] = _group(rows, len(texts))
    places = [[row.place for _, row in own] for own in windows]
    ranked = iter(long.rank(model, long.with_texts(query, _parts(texts, list(chain(*places)))), rows, outputs))
    tables = [np.asarray([next(ranked) for _ in own]) for own in places]
    pooled = [pool(table, own, "mean", sum_to_one=False) for table, own in zip(tables, places, strict=True)]
    narrowed = long.narrow(model, query, [each.astype(np.float64) for each in pooled])
    return _encode(task, long, model, narrowed)


def _decode(
    task: Task[Q, R],
    long: LongTexts[Q, R],
    model: TextModel,
    query: Q,
    rows: Sequence[Encoding],
    outputs: Sequence[Output],
) -> list[R]:
    if long.options(query) is None:
        return task.decode(model, query, rows, outputs)
    texts = long.texts(query)
    groups = _group(rows, len(texts))
    first, *others = groups
    places = [[row.place for _, row in windows] for windows in first]
    used = [index for windows in first for index, _ in windows]
    for other in others:
        used += [_nearest(place, windows) for own, windows in zip(places, other, strict=True) for place in own]
    used += [index for index, row in enumerate(rows) if row.kept_as is not None]
    parts = _parts(texts, [place for own in places for place in own])
    scores = iter(long.score(model, long.with_texts(query, parts), [rows[i] for i in used], [outputs[i] for i in used]))
    merged = []
    for number, own in enumerate(places):
        between_slices()
        rows_of_input = [row for group in groups for _, row in group[number]]
        table = np.asarray([next(scores) for _ in own], dtype=np.float64)
        merged.append(long.merge(model, query, table, own, rows_of_input))
    return merged


def _group(rows: Sequence[Encoding], num_inputs: int) -> list[list[list[tuple[int, WindowRow]]]]:
    """The groups of rows, each by input, with the place of each row in `rows`. A group begins where places do again."""
    groups: list[list[list[tuple[int, WindowRow]]]] = []
    last = (num_inputs, 0)
    for index, row in enumerate(rows):
        if isinstance(row, WindowRow):
            here = (row.place.input, row.place.index)
            if here <= last:
                groups.append([[] for _ in range(num_inputs)])
            groups[-1][row.place.input].append((index, row))
            last = here
    return groups


def _nearest(place: Place, windows: Sequence[tuple[int, WindowRow]]) -> int:
    """Of the rows of another group, the one whose window has the most characters of this window."""

    def num_shared(window: tuple[int, WindowRow]) -> int:
        other = window[1].place
        return min(place.end, other.end) - max(place.start, other.start)

    return max(windows, key=num_shared)[0]


# one result of several


def pool(numbers: Numbers, places: Sequence[Place], pooling: WindowPooling, *, sum_to_one: bool) -> FloatArray:
    """The numbers of a text from those of its windows, shape [num_windows, num_numbers].

    "mean" weighs a window by its tokens. With "max", the window with the highest number decides where the numbers of a
    window sum to 1; else each number is the highest of all windows.
    """
    if pooling == "mean":
        num_tokens = np.asarray([max(1, place.num_tokens) for place in places], dtype=np.float64)
        pooled = num_tokens @ numbers / num_tokens.sum()
    elif pooling == "first":
        pooled = numbers[0]
    elif sum_to_one:
        pooled = numbers[numbers.max(axis=1).argmax()]
    else:
        pooled = numbers.max(axis=0)
    return np.asarray(pooled, dtype=np.float32)


def text_window(places: Sequence[Place], index: int | None) -> TextWindow:
    first, last = (places[0], places[-1]) if index is None else (places[index], places[index])
    return TextWindow(index, first.start, last.end, len(places))


def with_window(result_type: Callable[..., T], result: Any, window: TextWindow) -> T:
    """The result with its window, as another type of result."""
    return result_type(**{each.name: getattr(result, each.name) for each in fields(result)}, window=window)


# where windows are


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """A text and the places of its tokens; `room` of them fit into a row."""

    model: TextModel
    room: int
    text: str
    starts: IdArray

    def before(self, place: int) -> int:
        """The number of tokens that begin before a character."""
        return int(np.searchsorted(self.starts, place))

    def end(self, start: int) -> int:
        """The end of the window that begins at `start`."""
        last = self.before(start) + self.room
        end = len(self.text)
        if last < len(self.starts):
            end = self.word_start(max(start + 1, int(self.starts[last])), start + 1)
        num_back = 0
        while (num_over := self._num_over(start, end)) and end > start + 1:
            num_back = max(num_over, 2 * num_back)  # so that no text takes many tries
            token = self.before(end) - num_back
            place = int(self.starts[token]) if token > self.before(start) else (start + end) // 2
            end = self.word_start(max(start + 1, min(place, end - 1)), start + 1)
        return end

    def next_start(self, start: int, end: int, num_shared: int) -> int:
        """`num_shared` tokens before the end of a window, but after its start."""
        place = int(self.starts[self.before(end) - num_shared]) if num_shared else end
        place = self.word_start(min(place, end), start + 1)
        return place if place > start else end

    def word_start(self, place: int, first: int) -> int:
        """The start of the word of an alphabet that a cut at `place` would divide; `place` where there is none, or
        where it begins before `first`."""
        for found in range(place, max(first, place - MAX_WORD) - 1, -1):
            if not self._is_in_word(found):
                return found
        return place

    def _num_over(self, start: int, end: int) -> int:
        """How many tokens of a window do not fit."""
        [read] = self.model.tokenize([self.text[start:end]], self.room + 1)
        return max(0, len(read) - self.room)

    def _is_in_word(self, place: int) -> bool:
        """Whether the characters before and after `place` are letters or digits of one word."""
        if not 0 < place < len(self.text):
            return False
        before, after = self.text[place - 1], self.text[place]
        return before.isalnum() and after.isalnum() and before < IDEOGRAPHS and after < IDEOGRAPHS


def find_windows(
    text: str, model: TextModel, room: int, options: WindowOptions, max_windows: int
) -> list[Place] | None:
    """The windows of a text, each of at most `room` tokens; None where they are more than `max_windows`, of which only
    the start is read."""
    is_first = options.pooling == "first"
    max_windows = 1 if is_first else max_windows
    starts = model.tokenize_with_places(text, max_windows * room + 1).starts
    tokens = _Tokens(model, room, text, np.maximum.accumulate(starts))
    places: list[Place] = []
    start = 0
    while True:
        between_slices()
        end = tokens.end(start)
        num_tokens = tokens.before(end) - tokens.before(start)
        places.append(Place(0, len(places), start, end, num_tokens))
        if end >= len(text) or is_first:
            return places
        if len(places) == max_windows:
            return None
        start = tokens.next_start(start, end, min(options.stride, num_tokens // 2))
