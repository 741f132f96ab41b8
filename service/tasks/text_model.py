"""The parent's face of a checkpoint: its tokenizer, its labels and its limits.

Knows no weights. Special tokens typed by a user are plain text here: the tokenizer is built without added tokens, so
`[SEP]` in a text becomes `[`, `sep`, `]` and cannot forge the structure of a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from service.checkpoint import Checkpoint, Kind
from service.errors import CheckpointError

YES, NO = "是", "非"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass(frozen=True, slots=True, eq=False)
class TextModel:
    """What tasks need of one checkpoint; `max_length` counts tokens, special ones included."""

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

    @classmethod
    def load(cls, checkpoint: Checkpoint) -> TextModel:
        """Reads the vocabulary beside the weights.

        Raises:
            CheckpointError: no vocabulary, or one that lacks a special token or holds more entries than the embeddings.
        """
        vocab = read_vocab(checkpoint.path)
        check_vocab(vocab, checkpoint)
        return cls(
            name=checkpoint.name,
            kind=checkpoint.kind,
            labels=checkpoint.labels,
            tasks=checkpoint.tasks,
            max_length=checkpoint.shape.max_positions,
            tokenizer=build_tokenizer(vocab, read_json(checkpoint.path / "tokenizer_config.json")),
            cls=vocab["[CLS]"],
            sep=vocab["[SEP]"],
            mask=vocab["[MASK]"],
            yes=vocab.get(YES),
            no=vocab.get(NO),
        )

    @property
    def can_choose(self) -> bool:
        """Whether this is a UniMC-style model: a masked LM that knows the words yes and no."""
        return self.kind == "masked-lm" and self.yes is not None and self.no is not None

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens. Releases the GIL while it works."""
        if len(texts) == 1:
            return [self.tokenizer.encode(texts[0]).ids]
        return [encoding.ids for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def token(self, token_id: int) -> str:
        """The vocabulary entry of one id, empty for an id beyond the vocabulary (padded embeddings)."""
        return self.tokenizer.id_to_token(token_id) or ""


def build_tokenizer(vocab: dict[str, int], config: dict[str, Any]) -> Tokenizer:
    """BERT's WordPiece as `BertTokenizer` sets it up where the checkpoint has no tokenizer_config: lower case, accents
    stripped, every Chinese character a word."""
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def read_vocab(path: Path) -> dict[str, int]:
    """`vocab.txt` (one token a line), else the vocabulary inside `tokenizer.json`."""
    lines = path / "vocab.txt"
    if lines.is_file():
        return {token: index for index, token in enumerate(lines.read_text(encoding="utf-8").rstrip("\n").split("\n"))}
    vocab = read_json(path / "tokenizer.json").get("model", {}).get("vocab")
    if not isinstance(vocab, dict):
        raise CheckpointError(f"{path}: has neither vocab.txt nor a WordPiece tokenizer.json")
    return vocab


def check_vocab(vocab: dict[str, int], checkpoint: Checkpoint) -> None:
    missing = [token for token in SPECIAL if token not in vocab]
    if missing:
        raise CheckpointError(f"{checkpoint.path}: the vocabulary lacks {', '.join(missing)}")
    if max(vocab.values()) >= checkpoint.shape.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: the vocabulary has {max(vocab.values()) + 1} entries, but config.json says"
            f" vocab_size {checkpoint.shape.vocab_size}"
        )


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from None
    return content if isinstance(content, dict) else {}
