"""A model as the user names it: `NAME=SOURCE@REVISION`, with the base of an adapter."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import Literal

from service.checkpoints import folders
from service.errors import SettingError

HubName = Literal["huggingface", "modelscope"]

COMMIT = re.compile(r"[0-9a-f]{40}")
_ADDRESS = re.compile(r"(\w+)://(?P<host>[^/]*)/(?:models/)?(?P<repository>[^/]+/[^/?#@]+)?")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?:@.*)?", re.ASCII)
MODELSCOPE, _HUGGING_FACE = "ms://", "hf://"
"""What a source begins with that is a repository of one hub, whatever the setting."""
_SPEC = "wanted SOURCE, NAME=SOURCE or NAME=SOURCE@REVISION"
BASE_MARK = "+base="


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the user names it: NAME=SOURCE@REVISION. `base` is a source of the base of an adapter, and `hub` that
    of a base without one."""

    name: str
    source: str
    revision: str | None = None
    base: str | None = None
    hub: HubName = "huggingface"


def parse_spec(text: str, hub: HubName = "huggingface") -> ModelSpec:
    """Parses `SOURCE`, `NAME=SOURCE` or either with `@REVISION`; a source that is a directory may contain `@` and `=`.

    `hub` is that of a source ORG/NAME without `ms://` or `hf://`. After an adapter, `+base=SOURCE` names its base.
    Raises SettingError when a part is missing, or when a name cannot be a model's.
    """
    text = text.strip()
    whole, base = _split_base(text)
    if base is not None:
        return replace(parse_spec(whole, hub), base=base)
    if not text.isascii() and text.encode(errors="replace").decode() != text:
        raise SettingError(f"model {text!a}: the path is not UTF-8; rename the folder, or make a link to it")
    name, source = _split_name(text)
    source = _with_hub(source, hub)
    if (address := _ADDRESS.match(source)) and not source.startswith(MODELSCOPE):
        is_file = address[1].lower() == "file"
        wanted = shlex.quote(source.partition("//")[2]) if is_file else address["repository"] or "ORG/NAME"
        if "modelscope" in address["host"].lower():
            wanted = MODELSCOPE + wanted
        raise SettingError(f"model: an address ({address[1]}://...); wanted a folder, or a hub id: --model {wanted}")
    revision: str | None = None
    if not folders.is_folder(source) and "@" in source:
        before, _, after = source.rpartition("@")
        if folders.is_folder(before) or not source.startswith(folders.LOCAL_MARKS):
            source, revision = before, after
    if not folders.is_local(source):
        source = source.rstrip("/")
    if not source or revision == "":
        raise SettingError(f"model {text!r}: {_SPEC}")
    own_hub: HubName = "modelscope" if source.startswith(MODELSCOPE) else hub
    return ModelSpec(name or _own_name(text, source), source, revision, hub=own_hub)


def _with_hub(source: str, hub: HubName) -> str:
    """A repository of ModelScope begins with `ms://`, one of the Hugging Face hub with nothing."""
    if source.startswith(MODELSCOPE) and not _REPOSITORY.fullmatch(source.removeprefix(MODELSCOPE)):
        raise SettingError(f"model: {source!r}; wanted {MODELSCOPE}ORG/NAME or {MODELSCOPE}ORG/NAME@REVISION")
    if source.startswith(_HUGGING_FACE):
        return source.removeprefix(_HUGGING_FACE)
    is_repository = not folders.is_local(source) and _REPOSITORY.fullmatch(source)
    return MODELSCOPE + source if hub == "modelscope" and is_repository else source


def _split_base(text: str) -> tuple[str, str | None]:
    """The spec of an adapter, and the source of its base, None where there is none."""
    name, _, source = text.partition("=")
    is_path = folders.is_folder(text) or (not name.endswith(BASE_MARK[:-1]) and folders.is_folder(source.strip()))
    if BASE_MARK not in text or is_path:
        return text, None
    whole, _, base = text.rpartition(BASE_MARK)
    if not base.strip():
        raise SettingError(f"model {text!r}: wanted a folder or a hub id after {BASE_MARK}")
    return whole, base.strip()


def _split_name(text: str) -> tuple[str, str]:
    """The name, empty where there is none, and the source."""
    name, equals, source = (part.strip() for part in text.partition("="))
    is_path = folders.is_folder(text) and not folders.is_folder(source)
    if not equals or is_path or name.startswith(folders.LOCAL_MARKS):
        return "", text
    if not name or not source:
        raise SettingError(f"model {text!r}: {_SPEC}")
    if reason := folders.why_no_name(name):
        raise SettingError(f"model {text!r}: {name!r} cannot be a model's name: {reason}")
    return name, source


def _own_name(text: str, source: str) -> str:
    name = folders.name_of(source)
    if reason := folders.why_no_name(name):
        line = shlex.quote(f"{folders.suggest_name(name)}={text}")
        raise SettingError(f"model {text!r}: {name!r} cannot be a model's name: {reason}; give it one: --model {line}")
    return name
