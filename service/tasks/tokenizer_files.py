"""What the files of a tokenizer declare besides its vocabulary: special tokens and added tokens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from service.checkpoints.files import read_json
from service.errors import CheckpointError

ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
"""The roles that a model needs, by their keys in tokenizer_config.json and special_tokens_map.json."""
_OTHER_ROLES = ("bos_token", "eos_token", "additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The JSON files of a tokenizer; empty where there is none."""

    path: Path
    config: dict[str, Any]
    special: dict[str, Any]
    whole: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> TokenizerFiles:
        names = ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
        return cls(path, *(read_json(path / name) if (path / name).is_file() else {} for name in names))

    @property
    def model(self) -> dict[str, Any]:
        model = self.whole.get("model")
        return model if isinstance(model, dict) else {}

    @property
    def model_type(self) -> str:
        """Of tokenizer.json; files of 2020 leave it out."""
        if "type" in self.model or "vocab" not in self.model:
            return str(self.model.get("type"))
        return "Unigram" if "unk_id" in self.model else "WordPiece"


def special_names(files: TokenizerFiles, defaults: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the special tokens, in the order of ROLES."""
    found = (
        _content(files, role, files.config.get(role) or files.special.get(role) or default)
        for role, default in zip(ROLES, defaults, strict=True)
    )
    return tuple(found)


def other_special_names(files: TokenizerFiles) -> list[str]:
    """The special tokens that have no role here."""
    values: list[tuple[str, Any]] = []
    for role in _OTHER_ROLES:
        for source in (files.config, files.special):
            value = source.get(role) or []
            is_one = isinstance(value, str) or (isinstance(value, dict) and "content" in value)
            each = [value] if is_one else list(value.values()) if isinstance(value, dict) else value
            values += [(role, token) for token in each] if isinstance(each, list) else [(role, each)]
    return [_content(files, role, value) for role, value in values]


def _content(files: TokenizerFiles, role: str, value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise CheckpointError(f"{files.path}: {role} of the tokenizer is {str(value)[:200]!r}; wanted a token")
    return content


def hidden_name(index: int) -> str:
    """The name of a special token in the vocabulary; neither model finds it in a text, for the spaces in it."""
    return f"\0 {index} \0"


def read_added(files: TokenizerFiles) -> dict[int, AddedToken]:
    """The added tokens of all files, by id: tokenizer_config.json, then tokenizer.json, then added_tokens.json."""
    declared = files.config.get("added_tokens_decoder") or {}
    listed = files.whole.get("added_tokens") or []
    old = read_json(files.path / "added_tokens.json") if (files.path / "added_tokens.json").is_file() else {}
    if not isinstance(declared, dict) or not isinstance(listed, list):
        raise CheckpointError(f"{files.path}: added tokens: wanted an object of id -> token, or a list of tokens")
    sources: list[tuple[str, Any, Any]] = [
        *(("tokenizer_config.json", index, token) for index, token in declared.items()),
        *(("tokenizer.json", token.get("id") if isinstance(token, dict) else None, token) for token in listed),
        *(("added_tokens.json", index, {"content": content, "normalized": True}) for content, index in old.items()),
    ]
    added: dict[int, AddedToken] = {}
    by_content: dict[str, int] = {}
    for name, given, token in sources:
        index, new = _added_token(files.path / name, given, token)
        known = added.setdefault(index, new)
        if known.content != new.content or by_content.setdefault(new.content, index) != index:
            other = f"{known.content!r}" if known.content != new.content else f"the id {by_content[new.content]}"
            raise CheckpointError(
                f"{files.path / name}: added token {new.content!r} has the id {index}; another file says {other}"
            )
        known.special = known.special or new.special
    return added


def _added_token(file: Path, index: Any, token: Any) -> tuple[int, AddedToken]:
    number = int(index) if isinstance(index, str) and index.isascii() and index.isdigit() else index
    content = token.get("content") if isinstance(token, dict) else None
    if isinstance(number, bool) or not isinstance(number, int) or number < 0 or not isinstance(content, str):
        raise CheckpointError(
            f"{file}: added token {str(token)[:200]!r} has the id {str(index)[:200]!r}; wanted text and id"
        )
    if not content.strip():
        raise CheckpointError(f"{file}: added token {content!r} is blank; wanted a text")
    flags = {key: token.get(key, False) for key in ("special", "single_word", "lstrip", "rstrip")}
    flags["normalized"] = token.get("normalized", not flags["special"])
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise CheckpointError(
                f"{file}: added token {content!r}: {key} is {str(value)[:200]!r}; wanted true or false"
            )
    return number, AddedToken(content, **flags)
