"""Downloads the files of a checkpoint from the hub, or finds them in the cache of earlier downloads."""

from __future__ import annotations

import logging
from pathlib import Path

import httpx2
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from service.checkpoints.files import BIN_FILES, SAFETENSORS_FILES
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

_SMALL_FILES = ("config.json", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
# One weights format is enough, so the second is requested only when the repository has no files of the first.
_WEIGHTS = ((*SAFETENSORS_FILES, "model-*-of-*.safetensors"), (*BIN_FILES, "pytorch_model-*-of-*.bin"))


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
) -> Path:
    """The local folder of the files of the hub repository `repo`, after downloading the missing ones.

    huggingface_hub draws progress bars, on a terminal only. Without a network, the files come from the cache. Raises
    CheckpointError when neither has them.
    """
    is_offline = offline or constants.is_offline_mode()
    logger.info("fetching model", extra={"repo": repo, "revision": revision, "offline": is_offline})
    missing: LocalEntryNotFoundError | None = None
    for weights in _WEIGHTS:
        try:
            folder = _snapshot(repo, revision, (*_SMALL_FILES, *weights), cache_dir, is_offline, endpoint)
        except LocalEntryNotFoundError as error:
            missing = error
            continue
        if any((folder / name).is_file() for name in weights[:2]):
            return folder
    if missing:
        raise CheckpointError(_not_here(repo, revision, is_offline)) from missing
    raise CheckpointError(
        f"{_name(repo, revision)}: the repository holds no weights ({', '.join(_WEIGHTS[1][:2])}, ...)"
    )


def _snapshot(
    repo: str,
    revision: str | None,
    patterns: tuple[str, ...],
    cache_dir: Path | None,
    is_offline: bool,
    endpoint: str | None,
) -> Path:
    name = _name(repo, revision)
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            cache_dir=cache_dir,
            local_files_only=is_offline,
            endpoint=endpoint,
        )
    except LocalEntryNotFoundError:
        raise
    except GatedRepoError as error:
        raise CheckpointError(
            f"{name}: the repository is gated; log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{name}: neither a local directory nor a repository of the hub (a private one needs HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the repository has no such revision") from error
    except HFValidationError as error:
        raise CheckpointError(f"{name}: neither a local directory nor a valid repository id of the hub") from error
    except (OSError, httpx2.HTTPError) as error:
        raise CheckpointError(f"{name}: the download failed ({type(error).__name__}: {error})") from error
    return Path(folder)


def _not_here(repo: str, revision: str | None, is_offline: bool) -> str:
    why = "offline mode is on" if is_offline else "the hub cannot be reached"
    return (
        f"{_name(repo, revision)}: no local directory, not in the cache, and {why}; "
        f"download it on a machine with a network (`hf download {repo}`) and give the folder, or go online"
    )


def _name(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo
