"""The pieces of multilingual-e5-small that Chinese and English text uses, and how much of a text they cover."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from service.errors import DatasetError
from service.tools.data.files import read_any

SPACE = "▁"
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
MASK = "<mask>"
_UNKNOWN = SPECIAL.index("<unk>")

_KEPT_BY_NAME = re.compile(r"CJK |BOPOMOFO |HIRAGANA |KATAKANA[ -]|IDEOGRAPHIC |HALFWIDTH |FULLWIDTH |KANGXI ")
_LETTERS_BY_NAME = re.compile(r"LATIN |GREEK ")
"""Single letters of these are kept: they stand in formulas and names."""

TILDE, _HELD = "～", "\U0010ffff"
"""XLM-RoBERTa keeps the full-width tilde, which NFKC replaces. Meanwhile it is a code point that is no character."""

_BATCH = 2048
_TEXT_SUFFIXES = {".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".rst"}
_MIN_CHARS = 2


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many texts and tokens have the same pieces with the full and the cut tokenizer."""

    num_texts: int
    num_equal_texts: int
    num_tokens: int
    num_equal_tokens: int


def build_tokenizer(pieces: Sequence[tuple[str, float]]) -> Tokenizer:
    """XLM-RoBERTa's tokenizer with these pieces, of which the first are SPECIAL and the last is MASK.

    The normalizer equals the package's map of code points, except for U+1F23B, which was added to Unicode after it.
    """
    tokenizer = Tokenizer(Unigram(list(pieces), _UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Nmt(),
            normalizers.Replace(TILDE, _HELD),
            normalizers.NFKC(),
            normalizers.Replace(_HELD, TILDE),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(SPACE, "always")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))],
    )
    tokenizer.add_special_tokens([*SPECIAL, AddedToken(MASK, lstrip=True, special=True)])
    return tokenizer


def read_texts(paths: Iterable[Path], held_out: Sequence[Path] = ()) -> Iterator[str]:
    """Every text in these files, and in the files of these folders, except for those in `held_out`.

    Raises:
        DatasetError: a path does not exist, or a file cannot be read.
    """
    excluded = {path.resolve() for path in held_out}
    for path in paths:
        if not path.exists():
            raise DatasetError(f"no such file or folder: {path}")
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        for file in files:
            is_out = not excluded.isdisjoint((file.resolve(), *file.resolve().parents))
            if not is_out and (path == file or file.suffix.lower() in _TEXT_SUFFIXES):
                yield from _strings(list(read_any(file)))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str) and len(value) >= _MIN_CHARS:
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def count_pieces(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[int]:
    """How often each piece occurs; a text that repeats counts once."""
    counts: Counter[int] = Counter()
    for batch in _batches(dict.fromkeys(texts)):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
    return counts


def choose(pieces: Sequence[str], in_texts: Counter[int], words: Iterable[set[int]], limit: int) -> list[int]:
    """The ids to keep, ascending: what Chinese may need, what `in_texts` counts, then the pieces of `words` up to
    `limit`.

    `words` are the pieces of words, most frequent first.

    Raises:
        DatasetError: those that are kept in any case are more than `limit`.
    """
    first = {index for index, piece in enumerate(pieces) if piece in (*SPECIAL, MASK) or is_always_kept(piece)}
    kept = first | set(in_texts)
    if len(kept) > limit:
        raise DatasetError(f"{len(kept)} pieces are needed for the texts; wanted at most {limit}")
    for ids in words:
        new = ids - kept
        if len(kept) + len(new) > limit:
            break
        kept |= new
    return sorted(kept)


def is_always_kept(piece: str) -> bool:
    """Chinese and Japanese characters, punctuation, symbols, digits, ASCII capitals, single Latin and Greek letters.

    Capitals are abbreviations, which a Chinese text writes between its own characters.
    """
    text = piece.removeprefix(SPACE)
    if len(text) == 1 and _LETTERS_BY_NAME.match(unicodedata.name(text, "")):
        return True
    if text.isascii() and text.isalpha():
        return text.isupper()
    return all(map(_is_kept_in_any_piece, text))


def _is_kept_in_any_piece(character: str) -> bool:
    if character.isascii():
        return not character.isalpha()
    category = unicodedata.category(character)
    return (
        category[0] in "PSZ" or category in ("Nl", "No") or bool(_KEPT_BY_NAME.match(unicodedata.name(character, "")))
    )


def word_pieces(tokenizer: Tokenizer, words: Iterable[str]) -> Iterator[set[int]]:
    """The pieces of each word: in lower case and with a capital, after a space and after a Chinese character."""
    for batch in _batches(words):
        capital = [word.capitalize() for word in batch]
        forms = [*batch, *capital, *(f"中{word}" for word in batch), *(f"中{word}" for word in capital)]
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(forms, add_special_tokens=False)]
        yield from (set().union(*ids[index :: len(batch)]) for index in range(len(batch)))


def measure_coverage(full: Tokenizer, cut: Tokenizer, texts: Iterable[str]) -> Coverage:
    """Compares the pieces of both; a token is equal where both tokenizers have it at the same place of a text."""
    num_texts = num_equal_texts = num_tokens = num_equal_tokens = 0
    for batch in _batches(dict.fromkeys(texts)):
        read = (each.encode_batch(batch, add_special_tokens=False) for each in (full, cut))
        for ours, theirs in zip(*read, strict=True):
            num_texts += 1
            num_equal_texts += ours.tokens == theirs.tokens
            num_tokens += len(ours.ids)
            found = set(zip(theirs.offsets, theirs.tokens, strict=True))
            num_equal_tokens += sum(token in found for token in zip(ours.offsets, ours.tokens, strict=True))
    return Coverage(num_texts, num_equal_texts, num_tokens, num_equal_tokens)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
