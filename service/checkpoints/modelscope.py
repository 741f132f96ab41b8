"""Downloads the files of a checkpoint from ModelScope (`ms://ORG/NAME`), or finds them in the cache.

It speaks the hub's HTTP API instead of using its SDK: three requests of a client that is there already. The SDK's cache
does not know the commit of a branch, and the SDK chooses other time-outs and downloads every file. Checked with the
requests of modelscope_hub 0.5.1.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
from filelock import FileLock
from huggingface_hub import constants
from tqdm import tqdm

from service.checkpoints import endpoints, repository
from service.checkpoints.endpoints import Endpoint, describe_failure
from service.checkpoints.repository import SMALL_FILES, WEIGHTS
from service.checkpoints.sentence_modules import list_modules
from service.checkpoints.spec import COMMIT
from service.errors import CheckpointError

logger = logging.getLogger(__name__)

BRANCH = "master"
"""The default branch of every repository of this hub."""
_READ_S = 60.0
_ATTEMPTS = 5
"""To download one file; each one goes on where the last one broke off."""
MAX_LISTED = 3000
"""The hub lists at most so many files and folders in one answer. It does not say that it left some out, and ignores
page numbers; what is left out is found only by listing a folder by itself."""
_CUT = (
    f"; the hub lists at most {MAX_LISTED} files of a folder, and this one has as many or more: "
    "download the files by name and give the folder"
)


class _Refused(Exception):
    """The hub answered, and not with what was asked for."""


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    size: int | None
    sha256: str | None


@dataclass(frozen=True, slots=True)
class _Listing:
    """The files of a revision, and the commit behind it.

    `is_whole` is false where it has the files of one folder only, and `is_cut` is true where even those may be more.
    """

    commit: str
    files: tuple[_File, ...]
    is_whole: bool = True
    is_cut: bool = False

    def select(self, patterns: Sequence[str]) -> list[_File]:
        return [file for file in self.files if any(fnmatchcase(file.path, pattern) for pattern in patterns)]


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
    """The local folder of the files of the repository `repo` (ORG/NAME), after downloading the missing ones.

    A branch is resolved to its commit. The files are compared with the sizes and checksums that the hub lists. Without
    a network, they come from the cache. With `only_description` they are the config and the tokenizer. Raises
    CheckpointError when neither has them.
    """
    where = endpoints.modelscope(endpoint)
    token = endpoints.modelscope_token() if token_to_mirror or not where.is_mirror else None
    return repository.fetch(_Repository(repo, revision, cache_dir, where, token, only_description), offline)


@dataclass(frozen=True, slots=True)
class _Repository:
    repo: str
    revision: str | None
    cache_dir: Path | None
    endpoint: Endpoint
    token: str | None
    only_description: bool

    @property
    def name(self) -> str:
        return repository.name_revision(f"ms://{self.repo}", self.revision)

    @property
    def branch(self) -> str:
        return self.revision or BRANCH

    @property
    def cache(self) -> Path:
        base = (self.cache_dir or Path(constants.HF_HUB_CACHE)).expanduser().resolve()
        return base / "modelscope" / f"models--{self.repo.replace('/', '--')}"

    @property
    def address(self) -> str:
        return f"{self.endpoint.url}/api/v1/models/{self.repo}"

    def update(self, answer_s: float) -> Path:
        listing = endpoints.answer_within(answer_s, lambda: _list_files(self))
        extra = {"repo": self.name, "commit": listing.commit}
        logger.info("revision resolved", extra=extra)
        folder = self.cache / "snapshots" / listing.commit
        if not folder.is_dir() or self.list_lacking(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache / ".lock"), _open_client(self) as client:
                _download(self, client, listing, folder)
        repository.write_ref(self.cache, self.branch, listing.commit)
        if missing := self.list_lacking(folder):
            lack = repository.describe_lack(self.name, missing, [file.path for file in listing.files])
            raise CheckpointError(lack + _CUT if listing.is_cut else lack)
        return folder

    def list_lacking(self, folder: Path) -> list[str]:
        missing = repository.list_missing(folder)
        return repository.only_description(missing) if self.only_description else missing

    def describe_refusal(self, error: Exception) -> str | None:
        return str(error) if isinstance(error, _Refused) else None

    def how_to_get(self, is_offline: bool) -> str:
        elsewhere = f"download it on a machine with a network (`modelscope download {self.repo}`) and give the folder"
        if is_offline:
            return f"{elsewhere}, or go online"
        first = f"check {self.endpoint.variable}" if self.endpoint.is_mirror else "check the network and its proxy"
        return f"{first}, or take the Hugging Face hub (--model ORG/NAME), or {elsewhere}"


# requests


def _open_client(wanted: _Repository) -> httpx.Client:
    # The hub takes a token as either of the two; httpx sends neither to another host that it is led to.
    headers = {"User-Agent": "erlangshen-service", "Accept-Encoding": "identity"}
    if wanted.token:
        headers |= {"Authorization": f"Bearer {wanted.token}", "Cookie": f"m_session_id={wanted.token}"}
    timeout = httpx.Timeout(_READ_S, connect=endpoints.FIRST_ANSWER_S)
    return httpx.Client(headers=headers, timeout=timeout, follow_redirects=True)


def _list_files(wanted: _Repository) -> _Listing:
    """Every file, or where those are too many for one answer, the files that lie in no folder."""
    with _open_client(wanted) as client:
        data = _ask_for_files(wanted, client, Revision=wanted.branch, Recursive="True")
        entries = data.get("Files") or ()
        if not (files := _read_files(entries)):
            raise _Refused(f"{wanted.endpoint} lists no files of it")
        is_whole = len(entries) < MAX_LISTED
        commit = _find_commit(wanted, data, is_whole)
        return _Listing(commit, files) if is_whole else _list_folder(wanted, client, commit)


def _list_folder(wanted: _Repository, client: httpx.Client, commit: str, folder: str = "") -> _Listing:
    """The files of a folder, without those of the folders in it; "" for those that lie in none."""
    where = {"Root": folder} if folder else {}
    data = _ask_for_files(wanted, client, Revision=commit, Recursive="False", **where)
    entries = data.get("Files") or ()
    return _Listing(commit, _read_files(entries), is_whole=False, is_cut=len(entries) >= MAX_LISTED)


def _ask_for_files(wanted: _Repository, client: httpx.Client, **params: str) -> dict[str, Any]:
    return _read_data(wanted, client.get(f"{wanted.address}/repo/files", params=params))


def _read_files(entries: Iterable[dict[str, Any]]) -> tuple[_File, ...]:
    return tuple(
        _File(str(entry["Path"]), entry.get("Size"), str(entry.get("Sha256") or "").lower() or None)
        for entry in entries
        if entry.get("Type") != "tree"
    )


def _find_commit(wanted: _Repository, data: dict[str, Any], is_whole: bool) -> str:
    """The commit of a listing.

    The hub names it shortened, and in full only at times; each file names the last commit that changed it, in full.
    """
    entries = [entry for entry in data.get("Files") or () if entry.get("Type") != "tree"]
    if COMMIT.fullmatch(wanted.branch):
        return wanted.branch
    latest = data.get("LatestCommitter") or {}
    if COMMIT.fullmatch(str(latest.get("Id"))):
        return str(latest["Id"])
    commits = {
        str(entry.get("Revision")): entry.get("CommittedDate") or 0
        for entry in sorted(entries, key=lambda entry: entry.get("CommittedDate") or 0)
        if COMMIT.fullmatch(str(entry.get("Revision")))
    }
    short = str(latest.get("ShortId") or "")
    named = [commit for commit in commits if short and commit.startswith(short)]
    # The latest commit of any file has the same files as a later one that only removed some.
    latest_of_all = max(commits, key=lambda each: commits[each], default=None) if is_whole else None
    if commit := next(iter(named), None) or latest_of_all:
        return commit
    raise _Refused(f"{wanted.endpoint} does not say which commit {wanted.branch} is; name one: @COMMIT")


def _read_data(wanted: _Repository, reply: httpx.Response) -> dict[str, Any]:
    if reply.status_code in (401, 403, 404):
        token = "MODELSCOPE_API_TOKEN"
        if wanted.endpoint.is_mirror and wanted.token is None:
            token += f" and --token-to-mirror: {wanted.endpoint} {endpoints.NOT_OWN}"
        raise _Refused(f"{wanted.endpoint} has no such repository or revision (a private one needs {token})")
    reply.raise_for_status()
    body = reply.json()
    if not isinstance(body, dict) or not isinstance(body.get("Data"), dict):
        raise _Refused(f"the answer of {wanted.endpoint} is not that of ModelScope")
    data: dict[str, Any] = body["Data"]
    return data


def _download(wanted: _Repository, client: httpx.Client, listing: _Listing, folder: Path) -> None:
    """One format of weights is enough, and modules bring the files of their folders."""
    _get_all(wanted, client, listing, listing.select(SMALL_FILES), folder)
    if wanted.only_description:
        return
    for path in ("", *(path for _, path in list_modules(folder) if path)):
        here = listing if listing.is_whole or not path else _list_folder(wanted, client, listing.commit, path)
        prefix = f"{escape(path)}/" if path else ""
        _get_all(wanted, client, here, here.select([prefix + name for name in SMALL_FILES]), folder)
        found = (here.select([prefix + name for name in weights]) for weights in WEIGHTS)
        _get_all(wanted, client, here, next((files for files in found if files), []), folder)


def is_inside(path: str) -> bool:
    """Whether a path of a listing stays in the folder of the repository."""
    return not PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts


def _get_all(
    wanted: _Repository, client: httpx.Client, listing: _Listing, files: Sequence[_File], folder: Path
) -> None:
    for file in files:
        if not is_inside(file.path):
            raise _Refused(f"{wanted.endpoint} lists a file outside of the repository: {file.path!r}")
        if not (folder / file.path).is_file():
            _get(wanted, client, listing.commit, file, folder / file.path)


def _get(wanted: _Repository, client: httpx.Client, commit: str, file: _File, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    with tqdm(total=file.size, desc=file.path, unit="B", unit_scale=True, disable=None, leave=False) as bar:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _receive(wanted, client, commit, file, part, bar)
                break
            except httpx.TransportError as error:
                if attempt == _ATTEMPTS:
                    raise
                logger.warning("download resumed", extra={"file": file.path, "reason": describe_failure(error)})
    if file.size is not None and part.stat().st_size != file.size:
        size = part.stat().st_size
        part.unlink()
        raise OSError(f"{file.path} has {size} bytes; the hub lists {file.size}")
    if file.sha256 and _digest(part) != file.sha256:
        part.unlink()
        raise OSError(f"{file.path} does not have the checksum that the hub lists")
    part.replace(target)


def _receive(wanted: _Repository, client: httpx.Client, commit: str, file: _File, part: Path, bar: tqdm[None]) -> None:
    start = part.stat().st_size if part.is_file() else 0
    if start and start == file.size:
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    params = {"Revision": commit, "FilePath": file.path}
    with client.stream("GET", f"{wanted.address}/repo", params=params, headers=headers) as reply:
        if reply.status_code in (401, 403, 404):
            _read_data(wanted, reply)
        reply.raise_for_status()
        is_rest = reply.status_code == httpx.codes.PARTIAL_CONTENT
        bar.n = start if is_rest else 0
        with part.open("ab" if is_rest else "wb") as out:
            for chunk in reply.iter_bytes():  # as they come: what arrived before an error is kept
                out.write(chunk)
                bar.update(len(chunk))


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
