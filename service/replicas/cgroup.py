"""This process's control groups, and what the kernel writes in them: limits and counts, in version 1 and version 2.

Knows not what the numbers are for. Whatever is not there reads as empty: many systems have no control groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A folder of the kernel's, that may not be there: a container does not see the path of its own group."""

    folder: Path
    is_v1: bool

    def read_text(self, name: str) -> str:
        return read_text(self.folder / name)


def cgroups(controller: str, root: Path = Path("/")) -> Iterator[Cgroup]:
    """This process's group and every group above it, of version 1's hierarchy with this controller and of version 2."""
    mounts = root / "sys/fs/cgroup"
    for controllers, path in _memberships(root / "proc/self/cgroup", controller):
        swapped = ",".join(reversed(controllers.split(",")))
        names = dict.fromkeys((controllers, swapped, controller)) if controllers else ("",)
        for name in names:
            for group in (path, *path.parents):
                yield Cgroup(mounts / name / group.relative_to("/"), is_v1=bool(controllers))


def number_of(text: str, key: str) -> int | None:
    """The number behind `key` in lines of keys and numbers."""
    found = dict(line.split()[:2] for line in text.splitlines() if " " in line).get(key, "")
    return int(found) if found.isdecimal() else None


def read_text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _memberships(file: Path, controller: str) -> Iterator[tuple[str, PurePosixPath]]:
    """(controllers, group); of version 2 there are no controllers."""
    for line in read_text(file).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            yield controllers, PurePosixPath(path)
