"""The options of a choice as tokens: shortened so that they stay different, refused where the model sees no difference.

Options that share a beginning share a part of a tree: the parts of a set of options are the edges of its prefix tree,
and the end that all of them have in common. While every edge keeps its first token, no two shortened options
are equal: where their paths part, they go on with different tokens.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from service.errors import InvalidRequest
from service.tasks.text_model import TextModel

UNKNOWN = ("[UNK]", "<unk>")
MAX_COMPARED_CHARS = 4096
"""Longer options are not searched for the reason why their tokens are equal."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that the options `first` to `last` - 1 of the sorted ones share, and no other option continues with.

    `is_common` marks the beginning and the end of all options: they tell no option from another, and may be dropped.
    """

    first: int
    last: int
    tokens: Sequence[int]
    is_common: bool = False
    keeps_end: bool = False

    @property
    def num_options(self) -> int:
        return self.last - self.first

    def length(self, cap: int) -> int:
        """How many tokens are kept: at most `cap` of what one option has alone, half as many of what several share."""
        if self.num_options > 1:
            cap = cap // 2 if self.is_common else max(1, cap // 2)
        return min(len(self.tokens), cap)

    def kept(self, length: int) -> Sequence[int]:
        return self.tokens[len(self.tokens) - length :] if self.keeps_end else self.tokens[:length]


def shorten(options: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    """Shortens options, the longest parts first, until they have at most `max_tokens` tokens together.

    Different options stay different, and the result does not depend on their order. Where `max_tokens` is too few for
    that, each option keeps the first token of each of its parts.
    """
    num_ending = _num_common_end(options)
    stems = [option[: len(option) - num_ending] for option in options]
    order = sorted(range(len(stems)), key=lambda index: stems[index])
    parts = _parts([stems[index] for index in order])
    if num_ending:
        parts.append(Part(0, len(order), options[0][len(stems[0]) :], is_common=True))
    shortened: list[list[int]] = [[] for _ in options]
    for part, length in zip(parts, _lengths(parts, max_tokens), strict=True):
        kept = part.kept(length)
        for index in order[part.first : part.last]:
            shortened[index] += kept
    return shortened


def most_alike(options: Sequence[list[int]]) -> tuple[int, int]:
    """The indexes of the two options that share the longest beginning; at least two options are needed."""
    order = sorted(range(len(options)), key=lambda index: options[index])
    pair = max(pairwise(order), key=lambda pair: _num_equal(options[pair[0]], options[pair[1]]))
    return min(pair), max(pair)


def check_different(model: TextModel, texts: Sequence[str], options: Sequence[list[int]], field: str) -> None:
    """Checks that every option has tokens, and that no two have the same. `options` are the tokens of `texts`, of which
    at most `max_length` count; `field` is the path of their list in the request.

    Raises:
        InvalidRequest: names the options and the reason, never their text.
    """
    seen: dict[tuple[int, ...], int] = {}
    for index, tokens in enumerate(options):
        if not tokens:
            raise InvalidRequest.of(
                f"{field}[{index}]",
                f"has no token for {model.name}: all of its characters are invisible (control, zero width)",
            )
        before = seen.setdefault(tuple(tokens), index)
        if before != index:
            why = _why_same(model, texts[before], texts[index], tokens)
            raise InvalidRequest.of(
                f"{field}[{index}]",
                f"is the same to {model.name} as {field}[{before}]: {why}; use other words for one of them",
            )


def _parts(stems: Sequence[Sequence[int]]) -> list[Part]:
    """The parts of sorted options: each option is the tokens of its parts, in the order of the list."""
    equal = [_num_equal(*pair) for pair in pairwise(stems)]
    parts = []
    ranges = [(0, len(stems), 0)]
    while ranges:
        first, last, start = ranges.pop()
        end = min(equal[first : last - 1], default=len(stems[first]))
        if end > start:
            # The first of a range is its shortest one: if it ends with this part, it would be empty without it.
            is_common = start == 0 and 1 < last - first == len(stems) and len(stems[first]) > end
            parts.append(Part(first, last, stems[first][start:end], is_common, keeps_end=is_common))
        if last - first > 1:
            cuts = [first, *(index + 1 for index in range(first, last - 1) if equal[index] == end), last]
            ranges += [(*cut, end) for cut in pairwise(cuts)][::-1]
    return parts


def _num_common_end(options: Sequence[Sequence[int]]) -> int:
    """How many tokens end all options; at least one token of each is before them."""
    ends = [option[:0:-1] for option in options]
    return min((_num_equal(ends[0], end) for end in ends[1:]), default=0)


def _num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two options have in common at their beginning."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _lengths(parts: Sequence[Part], max_tokens: int) -> list[int]:
    """The lengths under the largest cap that fits, and one token more for the parts for which there is still room."""

    def total(cap: int) -> int:
        return sum(part.num_options * part.length(cap) for part in parts)

    longest = max((len(part.tokens) for part in parts), default=0)
    cap = 1 + bisect_right(range(2, 2 * longest + 2), max_tokens, key=total)
    lengths = [part.length(cap) for part in parts]
    free = max_tokens - total(cap)
    for index, part in enumerate(parts):
        if part.length(cap + 1) > lengths[index] and part.num_options <= free:
            lengths[index] += 1
            free -= part.num_options
    return lengths


def _why_same(model: TextModel, first: str, second: str, tokens: Sequence[int]) -> str:
    if len(tokens) >= model.max_length:
        return f"their first {model.max_length} tokens are the same, and more do not fit into a row"
    if max(len(first), len(second)) <= MAX_COMPARED_CHARS:
        for difference, without in _UNSEEN.items():
            if without(first) == without(second):
                return f"they differ only in {difference}, which it does not see"
    unknown = [model.token(token) in UNKNOWN for token in tokens]
    if all(unknown):
        return f"both become {model.token(tokens[0])}, because its vocabulary has none of their characters"
    if any(unknown):
        return "they differ only in characters or words that its vocabulary does not have"
    return "its tokenizer makes the same tokens of both"


def _without_accents(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")


def _visible(text: str) -> str:
    return "".join(each for each in text if unicodedata.category(each)[0] not in "CZ")


_UNSEEN: dict[str, Callable[[str], str]] = {
    "case": str.lower,
    "accents": _without_accents,
    "white space or invisible characters": _visible,
    "the form of characters (full width, ligatures)": lambda text: unicodedata.normalize("NFKC", text),
    "case, accents, white space, invisible characters or the form of characters": lambda text: _without_accents(
        _visible(unicodedata.normalize("NFKC", text)).lower()
    ),
}
"""Differences that tokenizers remove, each with a function that removes it."""
