"""Local folders of checkpoints: which one a source means, the name of its model, and the layout of the hub's cache."""

from __future__ import annotations

import errno
import os
import shlex
import unicodedata
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

import service
from service.checkpoints.files import CONFIG_FILES, has_config, list_contents, succeeds
from service.errors import CheckpointError

MAX_NAME_CHARS = 200
"""The limit of `model` in a request."""
_SEPARATORS = "=,;/"
"""They divide the values of --model and --labels."""
_NOT_A_NAME = "none"
"""Stands for "no model" in the metrics."""

SHIPPED = ("mini", "e5-small")
"""The models that ship, which are served where none is named. The first one answers what both can do."""

LOCAL_MARKS = ("/", ".", "~")
"""A source that starts with one of these is a path and never a repository."""
_REPOSITORY = "models--"
_SNAPSHOTS = "snapshots"
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def expand(source: str) -> Path:
    """The path of a source, with `~` replaced where that user has a home directory."""
    try:
        return Path(source).expanduser()
    except RuntimeError:
        return Path(source)


def is_shipped(source: str) -> bool:
    """Whether the source is a model that ships, and not a folder of that name."""
    return source in SHIPPED and not Path(source).is_dir()


def locate_shipped(source: str) -> str:
    """The folder in the package of a model that ships, such as `mini`; any other source as it is."""
    return str(Path(service.__file__).parent / "models" / source) if is_shipped(source) else source


def is_folder(source: str) -> bool:
    return bool(source) and succeeds(expand(source).is_dir)


def is_local(source: str) -> bool:
    """Whether the source is a path, there or not, rather than a repository of the hub."""
    return source.startswith(LOCAL_MARKS) or _is_there(expand(source))


def name_of(source: str) -> str:
    """The name of a model without one of its own: that of its repository or its folder. A link keeps its own name."""
    if not is_local(source):
        return source.rpartition("/")[2]
    path = expand(source)
    path = path.resolve() if path.name in ("", "..") else path.absolute()
    repository = repository_of(path)
    # macOS takes characters apart in file names; clients send them in one piece.
    return unicodedata.normalize("NFC", repository.rpartition("/")[2] if repository else path.name).strip()


def why_no_name(name: str) -> str | None:
    """Why a model cannot have this name; None where it can."""
    if name in ("", ".", ".."):
        return "it is empty" if not name else "it is a path"
    if name == _NOT_A_NAME:
        return "it stands for no model in the metrics"
    if len(name) > MAX_NAME_CHARS:
        return f"it has {len(name)} characters; wanted at most {MAX_NAME_CHARS}"
    wrong = next((each for each in name if each in _SEPARATORS or not each.isprintable()), None)
    if wrong is None:
        return None
    return f"it contains {wrong if wrong in _SEPARATORS else f'U+{ord(wrong):04X}'}"


def suggest_name(name: str) -> str:
    """A valid name like this one, as part of a line to type."""
    fitting = "".join("-" if each in _SEPARATORS or not each.isprintable() else each for each in name)
    fitting = fitting[:MAX_NAME_CHARS].strip(" .-")
    return "NAME" if why_no_name(fitting) else fitting


def repository_of(path: Path) -> str | None:
    """The hub id of a folder in the hub's cache (models--ORG--NAME/snapshots/HASH, or one above it), else None."""
    for folder in (path, *path.parents[:2]):
        if folder.name.startswith(_REPOSITORY) and len(folder.name) > len(_REPOSITORY):
            is_in_it = path == folder or path.relative_to(folder).parts[0] == _SNAPSHOTS
            return folder.name.removeprefix(_REPOSITORY).replace("--", "/", 1) if is_in_it else None
    return None


def find(source: str, revision: str | None = None) -> Path | None:
    """The folder of a local checkpoint, without links; None where the source is a repository of the hub.

    A repository's folder in the hub's cache leads to the snapshot of its revision. Raises CheckpointError, which says
    what is there instead of a folder.
    """
    path = expand(source)
    if is_folder(source):
        folder = path.resolve()
        if repository_of(folder) and folder.parent.name != _SNAPSHOTS and not has_config(folder):
            return _find_snapshot(folder.parent if folder.name == _SNAPSHOTS else folder, revision)
        if revision:
            raise CheckpointError(f"{source}: a folder has no revisions; leave out @{revision}")
        return folder
    if is_local(source):
        raise CheckpointError(f"{source}: {_why_no_folder(path)}")
    return None


def _is_there(path: Path) -> bool:
    return succeeds(path.exists) or succeeds(path.is_symlink)


def _find_snapshot(folder: Path, revision: str | None) -> Path:
    snapshots = folder / _SNAPSHOTS
    there = sorted(each.name for each in snapshots.iterdir() if each.is_dir()) if snapshots.is_dir() else []
    named = _read_ref(folder, revision or "main")
    commit = named or revision or (there[0] if len(there) == 1 else "")
    if commit in there:
        return snapshots / commit
    again = f"`hf download {repository_of(folder)}` fetches it"
    if not there:
        raise CheckpointError(
            f"{folder}: a repository's folder in the hub's cache, without a snapshot: an earlier download was not "
            f"finished; {again}"
        )
    lines = " or ".join(f"--model {shlex.quote(str(snapshots / each))}" for each in there[:3])
    reason = f"{commit} is not among its snapshots; {again}" if commit else "it has several snapshots and no refs/main"
    raise CheckpointError(f"{folder}: {reason}; to serve what is there: {lines}")


def _read_ref(folder: Path, revision: str) -> str | None:
    with suppress(OSError, ValueError):
        return (folder / "refs" / revision).read_text(encoding="utf-8").strip() or None
    return None


def _why_no_folder(path: Path) -> str:
    if succeeds(path.is_symlink) and not succeeds(path.exists):
        return f"a link to {path.readlink()}, which is not there"
    if succeeds(path.exists):
        if path.suffix.lower() in _ARCHIVES:
            return "a file; unpack it, and give the folder with config.json, the vocabulary and the weights"
        parent = path.absolute().parent
        line = f": --model {shlex.quote(str(parent))}" if has_config(parent) else f" with {CONFIG_FILES[0]}"
        return f"a file; wanted the folder of the checkpoint{line}"
    try:
        path.stat()
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None)
        if number not in (errno.ENOENT, errno.ENOTDIR, None):
            return f"cannot be opened: {os.strerror(number)}"
    near = get_close_matches(path.name, list_contents(path.parent), n=1)
    return f"no such directory; did you mean {path.parent / near[0]}?" if near else "no such directory"
