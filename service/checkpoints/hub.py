"""Downloads the files of a checkpoint from the Hugging Face hub or a mirror, or finds them in the cache."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from service.checkpoints import endpoints, repository
from service.checkpoints.endpoints import Endpoint
from service.checkpoints.files import ADAPTER_CONFIG
from service.checkpoints.repository import SMALL_FILES, WEIGHTS
from service.checkpoints.sentence_modules import MODULES_FILE, list_modules
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

_ABANDONED_S = 60.0
"""Ends the question that `answer_within` no longer waits for."""


def fetch(
    repo: str,
    revision: str | None = None,
    *,
    cache_dir: Path | None = None,
    offline: bool = False,
    endpoint: str | None = None,
    token_to_mirror: bool = False,
    only_description: bool = False,
) -> Path:
    """The local folder of the files of the hub repository `repo`, after downloading the missing ones.

    Progress bars are drawn on a terminal only. Without a network, the files come from the cache. With
    `only_description` they are the config and the tokenizer, without weights unless the cache has them. Raises
    CheckpointError when neither has them.
    """
    if not sys.stderr.isatty():
        disable_progress_bars()  # huggingface_hub draws that of a whole snapshot everywhere
    where = endpoints.hugging_face(endpoint)
    token = False if where.is_mirror and not token_to_mirror else None
    return repository.fetch(_Repository(repo, revision, cache_dir, where, token, only_description), offline)


@dataclass(frozen=True, slots=True)
class _Repository:
    repo: str
    revision: str | None
    cache_dir: Path | None
    endpoint: Endpoint
    token: bool | None
    """As huggingface_hub takes it: None for the user's token, False for none."""
    only_description: bool

    @property
    def name(self) -> str:
        return repository.name_revision(self.repo, self.revision)

    @property
    def branch(self) -> str:
        return self.revision or "main"

    @property
    def cache(self) -> Path:
        base = (self.cache_dir or Path(constants.HF_HUB_CACHE)).expanduser().resolve()
        return base / f"models--{self.repo.replace('/', '--')}"

    def update(self, answer_s: float) -> Path:
        api = HfApi(endpoint=self.endpoint.url, token=self.token)
        info = endpoints.answer_within(
            answer_s, lambda: api.model_info(self.repo, revision=self.revision, timeout=_ABANDONED_S)
        )
        if info.sha is None:
            raise ValueError("the answer names no commit")
        logger.info("revision resolved", extra={"repo": self.name, "commit": info.sha})
        folder = self._download(info.sha)
        # After the download: while it is unfinished, the cache still has what the branch was before.
        repository.write_ref(self.cache, self.branch, info.sha)
        if missing := self.list_lacking(folder):
            held = [each.rfilename for each in info.siblings or ()]
            raise CheckpointError(repository.describe_lack(self.name, missing, held))
        return folder

    def _download(self, commit: str) -> Path:
        """The snapshot, after the download of one format of weights and of the files of modules."""
        if self.only_description:
            return self._snapshot(commit, SMALL_FILES)
        folder = Path()
        for weights in WEIGHTS:
            folder = self._snapshot(commit, (*SMALL_FILES, *weights))
            if any((folder / name).is_file() for name in (*weights[:2], ADAPTER_CONFIG)):
                break
        paths = [path for _, path in list_modules(folder) if path]
        for weights in WEIGHTS if paths else ():
            self._snapshot(
                commit, tuple(f"{escape(path)}/{name}" for path in paths for name in (*SMALL_FILES, *weights))
            )
            if not repository.list_missing(folder):
                break
        return folder

    def _snapshot(self, commit: str, patterns: tuple[str, ...]) -> Path:
        return Path(
            snapshot_download(
                self.repo,
                revision=commit,
                allow_patterns=list(patterns),
                cache_dir=self.cache_dir,
                endpoint=self.endpoint.url,
                token=self.token,
            )
        )

    def list_lacking(self, folder: Path) -> list[str]:
        missing = repository.list_missing(folder)
        if self.only_description:
            return repository.only_description(missing)
        if not list_modules(folder) and self._lacks_modules(folder):
            missing.append(MODULES_FILE)
        return missing

    def _lacks_modules(self, folder: Path) -> bool:
        """Whether the repository has modules.json and the cache does not, as one that a version without embedding
        models filled: the vectors would not be those of the model."""
        if (folder / MODULES_FILE).is_file():
            return False
        with suppress(LocalEntryNotFoundError):
            try:
                snapshot_download(
                    self.repo,
                    revision=folder.name,
                    allow_patterns=MODULES_FILE,
                    cache_dir=self.cache_dir,
                    local_files_only=True,
                )
            except IncompleteSnapshotError:
                return True
        return False

    def describe_refusal(self, error: Exception) -> str | None:
        token = "HF_TOKEN"
        if self.token is False:
            token = f"HF_TOKEN and --token-to-mirror: {self.endpoint} {endpoints.NOT_OWN}"
        if isinstance(error, GatedRepoError):
            return f"the repository is gated; it needs {token} (or `hf auth login`)"
        if isinstance(error, RepositoryNotFoundError):
            where = f" at {self.endpoint}" if self.endpoint.is_mirror else ""
            return f"neither a local directory nor a repository of the hub{where} (a private one needs {token})"
        if isinstance(error, RevisionNotFoundError):
            return "the repository has no such revision"
        if isinstance(error, HFValidationError):
            return "neither a local directory nor a valid repository id of the hub"
        return None

    def how_to_get(self, is_offline: bool) -> str:
        elsewhere = f"download it on a machine with a network (`hf download {self.repo}`) and give the folder"
        if is_offline:
            return f"{elsewhere}, or go online"
        variable = self.endpoint.variable
        another = f"another address in {variable}" if self.endpoint.is_mirror else f"{variable}=https://hf-mirror.com"
        return f"take a mirror ({another}), or ModelScope (--model ms://ORG/NAME), or {elsewhere}"
