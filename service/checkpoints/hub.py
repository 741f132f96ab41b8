"""Downloads the files of a checkpoint from the hub, or finds them in the cache of earlier downloads."""

from __future__ import annotations

import logging
from contextlib import suppress
from glob import escape
from pathlib import Path
from urllib.request import getproxies

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from service.checkpoints.files import (
    BIN_FILES,
    CONFIG_FILES,
    SAFETENSORS_FILES,
    VOCABULARY_FILES,
    list_contents,
    missing_files,
)
from service.checkpoints.sentence_modules import MODULES_FILE, SETTINGS_FILE, TRANSFORMER_FILES, list_modules
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

_SMALL_FILES = (
    *CONFIG_FILES,
    *VOCABULARY_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    MODULES_FILE,
    SETTINGS_FILE,
    *TRANSFORMER_FILES,
)
_LISTED_FILES = 12
_LOOK_UP_S = 10.0
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
    folder: Path | None = None
    absent: LocalEntryNotFoundError | None = None
    for weights in _WEIGHTS:
        try:
            folder = _snapshot(repo, revision, (*_SMALL_FILES, *weights), cache_dir, is_offline, endpoint)
        except LocalEntryNotFoundError as error:
            absent = error
            continue
        if any((folder / name).is_file() for name in weights[:2]):
            break
    if folder is None:
        raise CheckpointError(_not_here(repo, revision, cache_dir, is_offline)) from absent
    paths = [path for _, path in list_modules(folder) if path]
    for weights in _WEIGHTS if paths else ():
        patterns = [f"{escape(path)}/{name}" for path in paths for name in (*_SMALL_FILES, *weights)]
        newer = _snapshot(repo, revision, tuple(patterns), cache_dir, is_offline, endpoint)
        if newer != folder:  # the branch has moved meanwhile
            return fetch(repo, revision, cache_dir=cache_dir, offline=offline, endpoint=endpoint)
        if not _missing(folder):
            break
    missing = _missing(folder)
    if not paths and _lacks_modules(repo, folder, cache_dir):
        missing.append(MODULES_FILE)
    if missing:
        held = None if is_offline else _list_repository(repo, revision, endpoint)
        raise CheckpointError(_lacking(repo, revision, folder, missing, held, is_offline))
    return folder


def fetch_description(repo: str, revision: str | None = None) -> Path:
    """The folder of a repository in the cache with its config and tokenizer, without weights unless they are there.

    Raises:
        CheckpointError: neither the hub nor the cache has them.
    """
    is_offline = constants.is_offline_mode()
    try:
        return _snapshot(repo, revision, _SMALL_FILES, None, is_offline, None)
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_not_here(repo, revision, None, is_offline)) from error


def _lacks_modules(repo: str, folder: Path, cache_dir: Path | None) -> bool:
    """Whether the repository has modules.json and the cache does not, as one that a version without embedding models
    filled: the vectors would not be those of the model."""
    if (folder / MODULES_FILE).is_file():
        return False
    with suppress(LocalEntryNotFoundError):
        try:
            snapshot_download(
                repo, revision=folder.name, allow_patterns=MODULES_FILE, cache_dir=cache_dir, local_files_only=True
            )
        except IncompleteSnapshotError:
            return True
    return False


def _missing(folder: Path) -> list[str]:
    """The files that a checkpoint and its modules need and `folder` does not have, as `missing_files` lists them."""
    modules = list_modules(folder)
    encoder = next((path for kind, path in modules if kind == "Transformer"), "")
    prefix = f"{encoder}/" if encoder else ""
    missing = [name if name == "weights" else prefix + name for name in missing_files(folder / encoder)]
    for kind, path in modules:
        if kind in ("Pooling", "Dense") and not (folder / path / CONFIG_FILES[0]).is_file():
            missing.append(f"{path}/{CONFIG_FILES[0]}")
        if kind == "Dense" and not any((folder / path / each[0]).is_file() for each in _WEIGHTS):
            missing.append(f"{path}/{SAFETENSORS_FILES[0]}")
    return missing


def _snapshot(
    repo: str,
    revision: str | None,
    patterns: tuple[str, ...],
    cache_dir: Path | None,
    is_offline: bool,
    endpoint: str | None,
) -> Path:
    """The folder of one revision, which may be incomplete where the hub is out of reach."""
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
    except IncompleteSnapshotError as error:
        return Path(error.snapshot_path)
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
    except Exception as error:  # the library and its HTTP client raise many: for a proxy, a package, the disk
        cached = None if is_offline else _complete_in_cache(repo, revision, patterns, cache_dir)
        if cached is None:
            raise CheckpointError(f"{name}: the download failed ({_reason(error)}){_proxies(error)}") from error
        logger.warning("served from the cache", extra={"repo": repo, "reason": _reason(error)})
        return cached
    return Path(folder)


def _complete_in_cache(
    repo: str, revision: str | None, patterns: tuple[str, ...], cache_dir: Path | None
) -> Path | None:
    try:
        folder = _snapshot(repo, revision, patterns, cache_dir, True, None)
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return None if _missing(folder) else folder


def _list_repository(repo: str, revision: str | None, endpoint: str | None) -> list[str] | None:
    """The names of the repository's files; None where the hub does not answer."""
    try:
        info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=_LOOK_UP_S)
    except Exception:  # noqa: BLE001 - as in `_snapshot`; whatever it is, the hub was of no use
        return None
    return sorted(each.rfilename for each in info.siblings or ())


def _lacking(
    repo: str, revision: str | None, folder: Path, missing: list[str], held: list[str] | None, is_offline: bool
) -> str:
    """Describes a repository that lacks files, or a part of it in the cache when `held`, its files, is None."""
    name = _name(repo, revision)
    lacks = " and no ".join(missing)
    formats = f" ({', '.join((SAFETENSORS_FILES[0], BIN_FILES[0]))}, ...)" if "weights" in missing else ""
    if held is not None:
        return f"{name}: the repository holds no {lacks}{formats}; it holds {_enumerate(held)}"
    return (
        f"{name}: the cache holds {_enumerate(list_contents(folder))}, and no {lacks}{formats}: an earlier download "
        f"was not finished; {_why_no_hub(is_offline)}; {_how_to_get(repo)}"
    )


def _enumerate(names: list[str]) -> str:
    more = [f"{len(names) - _LISTED_FILES} more"] if len(names) > _LISTED_FILES else []
    return ", ".join((*names[:_LISTED_FILES], *more)) or "nothing"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _proxies(error: Exception) -> str:
    """The variables of the environment that name a proxy, where the error may be due to one."""
    found = ", ".join(f"{scheme.upper()}_PROXY" for scheme in getproxies() if scheme != "no")
    is_of_proxy = "proxy" in str(error).lower() or isinstance(error, ImportError)
    return f"; the environment names a proxy ({found})" if found and is_of_proxy else ""


def _not_here(repo: str, revision: str | None, cache_dir: Path | None, is_offline: bool) -> str:
    refs = (cache_dir or Path(constants.HF_HUB_CACHE)).expanduser() / f"models--{repo.replace('/', '--')}" / "refs"
    others = f" (of this repository it holds {_enumerate(list_contents(refs))})" if list_contents(refs) else ""
    why = f"{others}, and {_why_no_hub(is_offline)}"
    return f"{_name(repo, revision)}: no local directory, not in the cache{why}; {_how_to_get(repo)}"


def _why_no_hub(is_offline: bool) -> str:
    return "offline mode is on" if is_offline else "the hub cannot be reached"


def _how_to_get(repo: str) -> str:
    return f"download it on a machine with a network (`hf download {repo}`) and give the folder, or go online"


def _name(repo: str, revision: str | None) -> str:
    return f"{repo}@{revision}" if revision else repo
