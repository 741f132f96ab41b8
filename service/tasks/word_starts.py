"""Where a text may be cut so that its tokens do not change, and which characters are tokens wherever they are.

Every answer holds whatever stands around the character. It is tried with the tokenizer, and where a tokenizer has parts
for which that would not prove it, the answer is that there is no such place: the text is then read whole.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

CHINESE = (
    *("\u3400-\u4dbf", "\u4e00-\u9fff", "\uf900-\ufaff", "\U00020000-\U0002a6df"),
    *("\U0002a700-\U0002b81f", "\U0002b920-\U0002ceaf"),
)
"""Characters that BERT's normalizer makes words of their own; of extension E, the library leaves out the first 256."""
_COMPATIBLE = "\uf900-\ufaff"
"""The block of CHINESE whose characters become others when accents are stripped."""
_PLAIN = (*map(chr, range(33, 127)), "\u3001-\u3002", "\u4e00-\u9fff", "\uff01-\uff5e")
"""Characters that neither take a neighbour into their normal form nor become white space."""
_LOCAL = {"Precompiled", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "Strip"}
"""Normalizers that change a character by itself and its combining marks, or the ends of a text."""
_SPLITS = {"WhitespaceSplit", "Metaspace"}
_COLLAPSE = {"Regex": " {2,}"}
"""What XLM-RoBERTa's normalizer replaces: runs of spaces."""
_MAX_PLACES = 256
"""Places that are tried in a word: nearly every text has one among a few."""
_NEVER = re.compile("(?!)")


@dataclass(frozen=True, slots=True)
class _Added:
    """The characters of the ordinary added tokens, as they are and normalized.

    `depends` says whether a token is found by what stands around it: by white space or by the ends of words.
    """

    characters: frozenset[str]
    depends: bool
    any_normalized: bool

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> _Added:
        tokens = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        forms = {form for token in tokens for form in (token.content, _normalized(tokenizer, token.content))}
        return cls(
            characters=frozenset("".join(forms)),
            depends=any(
                token.single_word or token.lstrip or token.rstrip or token.content.strip() != token.content
                for token in tokens
            ),
            any_normalized=any(token.normalized for token in tokens),
        )

    def has_part_of(self, tokenizer: Tokenizer, character: str) -> bool:
        return not self.characters.isdisjoint((character, *_normalized(tokenizer, character).strip(" ")))


def find_single_characters(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the characters that are always a token of their own, in any context: Chinese characters and punctuation.

    BERT's pre-tokenizer splits by the character alone, so encoding it once between two letters decides it. A character
    of an added token is none of them. A Unigram model has no such characters.
    """
    added = _Added.of(tokenizer)
    if isinstance(tokenizer.model, Unigram) or added.depends:
        return {}
    vocab = tokenizer.get_vocab()
    characters = [token for token in vocab if len(token) == 1 and not added.has_part_of(tokenizer, token)]
    read = tokenizer.encode_batch_fast([f"a{character}a" for character in characters])
    return {
        character: vocab[character]
        for character, ids in zip(characters, (encoding.ids for encoding in read), strict=True)
        if len(ids) == 3 and ids[0] == ids[2] and ids[1] == vocab[character]
    }


def find_word_starts(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Matches a character before which a text may be cut.

    In WordPiece: one that is never in a word with its neighbours, which is white space, punctuation, a Chinese
    character. In Unigram: a single space between words.
    """
    if isinstance(tokenizer.model, Unigram):
        return _find_spaces(tokenizer)
    return _find_separators(tokenizer)


def _find_separators(tokenizer: Tokenizer) -> re.Pattern[str]:
    """Of the characters above U+FFFF only Chinese ones are candidates: with more of them a search takes 80 times as
    long."""
    added = _Added.of(tokenizer)
    if added.depends:
        return _NEVER
    letter = tokenizer.encode("a").ids
    candidates = [*_separators(), *CHINESE]
    if added.characters:
        candidates = list(_outside(tokenizer, added, candidates))
    read = tokenizer.encode_batch_fast([f"a{each[0]}a" for each in candidates])
    starts = [
        each if len(each) == 3 else re.escape(each)
        for each, ids in zip(candidates, (encoding.ids for encoding in read), strict=True)
        if len(ids) in (2, 3) and ids[:1] == letter == ids[-1:]
    ]
    if not starts:
        return _NEVER
    inside = re.escape("".join(sorted(added.characters)))
    return re.compile(f"(?![{inside}])[{''.join(starts)}]" if inside else f"[{''.join(starts)}]")


def _outside(tokenizer: Tokenizer, added: _Added, candidates: Iterable[str]) -> Iterator[str]:
    """The candidates that are no part of an added token; those of whole blocks are left to the pattern."""
    has_space = any(character.isspace() for character in added.characters)
    for each in candidates:
        if each == _COMPATIBLE and added.any_normalized:
            continue
        if len(each) == 3 or not (has_space if each.isspace() else added.has_part_of(tokenizer, each)):
            yield each


@cache
def _separators() -> tuple[str, ...]:
    """White space, and the punctuation of Unicode and the symbols of ASCII that stand below U+10000."""
    symbols = [chr(code) for code in range(33, 127) if not chr(code).isalnum()]
    others = [character for character in map(chr, range(128, 0x10000)) if unicodedata.category(character)[0] == "P"]
    return (" ", "\t", "\n", "\r", *symbols, *others)


def _find_spaces(tokenizer: Tokenizer) -> re.Pattern[str]:
    """A single space between two plain characters.

    Metaspace makes it the start of a word in any text, and a Unigram model reads words one by one. It is never cut
    within a word, even where no piece continues: sums of scores round differently in a shorter text, and of two ways to
    cut `aaa` into `aa` and `a`, which score the same, another one may win.
    """
    added = _Added.of(tokenizer)
    if added.depends or any(character.isspace() for character in added.characters) or not _is_local(tokenizer):
        return _NEVER

    def read(text: str) -> list[int]:
        return tokenizer.encode(text).ids

    plain = [each for each in _PLAIN if read(f"{each[0]} {each[0]}") == read(each[0]) + read(f" {each[0]}")]
    listed = "".join(each if len(each) == 3 else re.escape(each) for each in plain)
    return re.compile(f"(?<=[{listed}]) (?=[{listed}])") if listed else _NEVER


@dataclass(frozen=True, slots=True, eq=False)
class PieceEnds:
    """Where the start of a text may be read alone, within a word of a Unigram model.

    The best pieces up to a place do not depend on what follows it, so where no piece crosses the place, they are the
    first pieces of the whole text. What follows cannot be read alone (see `_find_spaces`).
    """

    tokenizer: Tokenizer
    plain: re.Pattern[str]
    max_length: int
    """Of a piece, in characters."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> PieceEnds | None:
        """None where the parts of the tokenizer do not allow it."""
        added = _Added.of(tokenizer)
        if not isinstance(tokenizer.model, Unigram) or added.depends or not _is_local(tokenizer):
            return None
        max_length = max(map(len, tokenizer.get_vocab()))
        outside = f"(?![{re.escape(''.join(sorted(added.characters)))}])" if added.characters else ""
        listed = "".join(each if len(each) == 3 else re.escape(each) for each in _PLAIN)
        return cls(tokenizer, re.compile(f"(?:{outside}[{listed}]){{{2 * max_length}}}"), max_length)

    def find(self, text: str, start: int) -> int:
        """The first such place from `start` on, among the next _MAX_PLACES; else the end of the text."""
        size = self.max_length
        for place in range(max(start, size), min(start + _MAX_PLACES, len(text) - size)):
            if self.plain.fullmatch(text, place - size, place + size) and self._is_end(
                _normalized(self.tokenizer, text[place - size : place]),
                _normalized(self.tokenizer, text[place : place + size]),
            ):
                return place
        return len(text)

    def _is_end(self, before: str, after: str) -> bool:
        """Whether no piece is the end of `before` and the start of `after`; False where one is shorter than a piece."""
        find, size = self.tokenizer.token_to_id, self.max_length
        return min(len(before), len(after)) >= size and not any(
            find(before[-left:] + after[:right]) is not None
            for left in range(1, size)
            for right in range(1, size - left + 1)
        )


def _is_local(tokenizer: Tokenizer) -> bool:
    """Whether the normalizer and the pre-tokenizer look at no more than a character, its marks and white space."""
    splits = all(part["type"] in _SPLITS for part in _parts(tokenizer.pre_tokenizer, "pretokenizers"))
    return splits and all(
        part["type"] in _LOCAL or (part["type"] == "Replace" and _is_local_replacement(part))
        for part in _parts(tokenizer.normalizer, "normalizers")
    )


def _is_local_replacement(part: dict[str, Any]) -> bool:
    """Whether it collapses spaces, or puts one character that is no mark in the place of another."""
    text, content = part["pattern"].get("String", ""), part["content"]
    is_one = len(text) == len(content) == 1
    return part["pattern"] == _COLLAPSE or (is_one and not unicodedata.combining(content))


def _parts(step: Any, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or a pre-tokenizer, as in tokenizer.json."""
    if step is None:
        return []
    state: dict[str, Any] = json.loads(step.__getstate__())
    parts: list[dict[str, Any]] = state[key] if state["type"] == "Sequence" else [state]
    return parts


def _normalized(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
