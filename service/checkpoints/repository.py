"""A repository of a hub: the files that a checkpoint needs of it, their cache, and when the hub is asked.

The hub is asked once, for the commit of a branch or tag, and only for some seconds. Everything after that goes by the
commit. Both hubs are cached in the layout of huggingface_hub: `snapshots/COMMIT` holds files, `refs/BRANCH` a commit.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from huggingface_hub import constants

from service.checkpoints.endpoints import ANSWER_S, FIRST_ANSWER_S, Endpoint, describe_failure
from service.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BIN_FILES,
    CONFIG_FILES,
    SAFETENSORS_FILES,
    VOCABULARY_FILES,
    list_contents,
    missing_files,
    succeeds,
)
from service.checkpoints.sentence_modules import MODULES_FILE, SETTINGS_FILE, TRANSFORMER_FILES, list_modules
from service.checkpoints.spec import COMMIT
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

SMALL_FILES = (
    *CONFIG_FILES,
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    MODULES_FILE,
    SETTINGS_FILE,
    *TRANSFORMER_FILES,
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
)
# One weights format is enough, so the second is requested only when the repository has no files of the first.
WEIGHTS = ((*SAFETENSORS_FILES, "model-*-of-*.safetensors"), (*BIN_FILES, "pytorch_model-*-of-*.bin"))

_LISTED_FILES = 12


class Repository(Protocol):
    """One revision of a repository on one hub."""

    @property
    def name(self) -> str: ...

    @property
    def branch(self) -> str: ...

    @property
    def endpoint(self) -> Endpoint: ...

    @property
    def cache(self) -> Path: ...

    def update(self, answer_s: float) -> Path:
        """Asks for the commit of the branch, downloads what the cache lacks of it, and returns its snapshot.

        Raises CheckpointError where the repository lacks files, and whatever the HTTP client raises.
        """

    def list_lacking(self, folder: Path) -> list[str]:
        """The files that are wanted and `folder`, a snapshot, does not have."""

    def describe_refusal(self, error: Exception) -> str | None:
        """What the answer of the hub means, where it did answer; None for any other error."""

    def how_to_get(self, is_offline: bool) -> str: ...


def fetch(wanted: Repository, offline: bool) -> Path:
    """The snapshot of the revision, updated if the hub answers, and else from the cache if it is complete.

    Raises CheckpointError when neither has it.
    """
    is_offline = offline or constants.is_offline_mode()
    logger.info("fetching model", extra={"repo": wanted.name, "offline": is_offline})
    folder = cached_snapshot(wanted.cache, wanted.branch)
    missing = wanted.list_lacking(folder) if folder else []
    if folder and not missing and (is_offline or COMMIT.fullmatch(wanted.branch)):
        return folder
    why, cause = "offline mode is on", None
    if not is_offline:
        try:
            return wanted.update(ANSWER_S if folder and not missing else FIRST_ANSWER_S)
        except CheckpointError:
            raise
        except Exception as error:  # noqa: BLE001 - libraries raise many: for a proxy, a package, the disk
            cause = error
        why = f"the download from {wanted.endpoint} failed ({describe_failure(cause)})"
        if folder and not missing:
            logger.warning("served from the cache", extra={"repo": wanted.name, "reason": why})
            return folder
        if refusal := wanted.describe_refusal(cause):
            raise CheckpointError(f"{wanted.name}: {refusal}") from cause
    how = wanted.how_to_get(is_offline)
    if folder is None:
        raise CheckpointError(describe_absence(wanted.name, wanted.cache, why, how)) from cause
    raise CheckpointError(describe_part(wanted.name, folder, missing, why, how)) from cause


def list_missing(folder: Path) -> list[str]:
    """The files that a checkpoint and its modules need and `folder` does not have, as `missing_files` lists them."""
    modules = list_modules(folder)
    encoder = next((path for kind, path in modules if kind == "Transformer"), "")
    prefix = f"{encoder}/" if encoder else ""
    missing = [name if name == "weights" else prefix + name for name in missing_files(folder / encoder)]
    for kind, path in modules:
        if kind in ("Pooling", "Dense") and not (folder / path / CONFIG_FILES[0]).is_file():
            missing.append(f"{path}/{CONFIG_FILES[0]}")
        if kind == "Dense" and not any((folder / path / each[0]).is_file() for each in WEIGHTS):
            missing.append(f"{path}/{SAFETENSORS_FILES[0]}")
    return missing


def only_description(missing: list[str]) -> list[str]:
    """Those of the missing files that config and tokenizer are read from."""
    return [name for name in missing if name in (*CONFIG_FILES, *VOCABULARY_FILES)]


def read_ref(repository: Path, revision: str) -> str | None:
    """The commit that a branch or tag had at the last download; None where the cache does not know it."""
    with suppress(OSError, ValueError):
        return (repository / "refs" / revision).read_text(encoding="utf-8").strip() or None
    return None


def write_ref(repository: Path, revision: str, commit: str) -> None:
    """Notes the commit of a branch or tag, unless the cache cannot be written."""
    if revision == commit or read_ref(repository, revision) == commit:
        return
    file = repository / "refs" / revision
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{file.name}.{os.getpid()}")
        new.write_text(commit, encoding="utf-8")
        new.replace(file)


def cached_snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a revision in the cache, complete or not; None where there is none."""
    commit = revision if COMMIT.fullmatch(revision) else read_ref(repository, revision)
    folder = repository / "snapshots" / commit if commit else None
    return folder if folder and succeeds(folder.is_dir) else None


# errors


def describe_absence(name: str, repository: Path, why: str, how: str) -> str:
    """The error for a revision of which the cache has nothing."""
    held = list_contents(repository / "refs")
    others = f" (of this repository it holds {enumerate_names(held)})" if held else ""
    return f"{name}: no local directory, not in the cache{others}, and {why}; {how}"


def describe_part(name: str, folder: Path, missing: list[str], why: str, how: str) -> str:
    """The error for a revision of which the cache has a part."""
    held = enumerate_names(list_contents(folder))
    return f"{name}: the cache holds {held}, and {_no(missing)}: an earlier download was not finished; {why}; {how}"


def describe_lack(name: str, missing: list[str], held: list[str]) -> str:
    """The error for a repository that has the files `held`, and not those that a checkpoint needs."""
    return f"{name}: the repository holds {_no(missing)}; it holds {enumerate_names(sorted(held))}"


def _no(missing: list[str]) -> str:
    formats = f" ({', '.join((SAFETENSORS_FILES[0], BIN_FILES[0]))}, ...)" if "weights" in missing else ""
    return "no " + " and no ".join(missing) + formats


def enumerate_names(names: list[str]) -> str:
    more = [f"{len(names) - _LISTED_FILES} more"] if len(names) > _LISTED_FILES else []
    return ", ".join((*names[:_LISTED_FILES], *more)) or "nothing"


def name_revision(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo
