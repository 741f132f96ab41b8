"""Makes a release: its version from the git tag, its notes from the changelog, its images with what they are made of.

`prepare VERSION` writes the version into every file that names it, and dates the changelog. After the commit and the
tag, `make release` checks that all agree, builds the images, and runs `pack`: for each image an archive, its bill of
materials and its provenance (an in-toto statement with SLSA's predicate); checksums of all, signed where cosign is
there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CHANGELOG = "CHANGELOG.md"
PLACES = {
    "pyproject.toml": r'(?m)^(version = ")<>(")',
    "service/settings.py": r'(?m)^(VERSION = ")<>(")',
    "docker/*.yaml": r"(erlangshen-service:)<>(-cuda)?()",
    "k8s/**/*.yaml": r"(newTag: )<>(-cuda)?()",
    "docs/deployment.md": r"(erlangshen-service:)<>(-cuda)?()",
}
"""Where the version stands, as <>, by the files; the groups are what stays around it."""
_NUMBER = re.compile(r"\d+\.\d+\.\d+(?:rc\d+)?")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
_UNRELEASED = "## [Unreleased]"
BUILD_TYPE = "urn:erlangshen-service:make-release:1"
"""What the provenance calls this way of building: `make image` with these arguments, of this commit."""
SBOM = "/usr/share/doc/erlangshen-service/sbom.cdx.json"


class ReleaseError(Exception):
    """The release cannot be made; the message says why."""


def current(root: Path = ROOT) -> str:
    found = re.search(r'^version = "(.*)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        raise ReleaseError("pyproject.toml has no version")
    return found[1]


def describe(root: Path = ROOT) -> str:
    """The version on its tag; on any other commit with that: 0.1.0-g1a2b3c4, and -dirty where files are changed."""
    version = current(root)
    try:
        commit = _git(root, "rev-parse", "--short=7", "HEAD")
        tags = _git(root, "tag", "--points-at", "HEAD").split()
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (subprocess.CalledProcessError, FileNotFoundError):
        return version  # an archive without git
    if f"v{version}" in tags and not changed:
        return version
    return f"{version}-g{commit}{'-dirty' if changed else ''}"


def prepare(version: str, today: str, root: Path = ROOT) -> list[Path]:
    """Writes the version into all files that name the old one, and the section of the changelog; the changed files.

    Raises:
        ReleaseError: the number is not one, or the changelog has nothing to release.
    """
    if not _NUMBER.fullmatch(version):
        raise ReleaseError(f"{version!r}: wanted MAJOR.MINOR.PATCH")
    log = (root / CHANGELOG).read_text(encoding="utf-8")
    if not notes(log, "Unreleased"):
        raise ReleaseError(f"{CHANGELOG}: [Unreleased] is empty")
    if f"## [{version}]" in log:
        raise ReleaseError(f"{CHANGELOG}: [{version}] is there already")
    old, changed = re.escape(current(root)), []
    for pattern, place in PLACES.items():
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if not (matches := list(re.finditer(place.replace("<>", old), text))):
                continue
            for match in reversed(matches):
                kept = [group or "" for group in match.groups()]
                text = f"{text[: match.start()]}{kept[0]}{version}{''.join(kept[1:])}{text[match.end() :]}"
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    heading = f"{_UNRELEASED}\n\n## [{version}] - {today}"
    (root / CHANGELOG).write_text(log.replace(_UNRELEASED, heading, 1), encoding="utf-8")
    return [*changed, root / CHANGELOG]


def notes(log: str, version: str) -> str:
    """The section of a version in the changelog; empty where there is none."""
    found = re.search(rf"^## \[{re.escape(version)}\][^\n]*\n(.*?)(?=^## |\Z)", log, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def check(root: Path = ROOT) -> str:
    """The version, if this commit is its release.

    Raises:
        ReleaseError: names what is missing.
    """
    version = current(root)
    found = describe(root)
    if found != version:
        raise ReleaseError(
            f"this is {found} and not a release: commit everything, then `git tag --sign v{version}` "
            "(scripts/release.py prepare VERSION takes the next number)"
        )
    if not notes((root / CHANGELOG).read_text(encoding="utf-8"), version):
        raise ReleaseError(f"{CHANGELOG} has no section [{version}]")
    return version


def provenance(image: str, archive: Path, commit: str, arguments: dict[str, str], started: datetime) -> dict[str, Any]:
    """An in-toto statement about the archive of an image: what it was built from, with what, and when."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": archive.name, "digest": {"sha256": digest(archive)}, "annotations": {"image": image}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "dockerfile": "Dockerfile",
                    "arguments": {name: _PASSWORD.sub("", value) for name, value in arguments.items()},
                },
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    *({"name": file, "digest": {"sha256": digest(ROOT / file)}} for file in _inputs()),
                ],
            },
            "runDetails": {
                "builder": {
                    "id": f"{BUILD_TYPE}:builder",
                    "version": {"platform": f"{platform.system()} {platform.machine()}"},
                },
                "metadata": {"startedOn": _stamp(started), "finishedOn": _stamp(datetime.now(UTC))},
            },
        },
    }


def pack(engine: str, images: Sequence[str], folder: Path, arguments: dict[str, str], started: datetime) -> list[str]:
    """Writes the files of a release into `folder`; returns what could not be made, and why.

    Raises:
        ReleaseError: an image is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    commit = _git(ROOT, "rev-parse", "HEAD")
    for image in images:
        name = image.rpartition("/")[2].replace(":", "-")
        archive = folder / f"{name}.tar"
        archive.unlink(missing_ok=True)
        _run(engine, "save", "--output", str(archive), image)
        sbom = _run(engine, "run", "--rm", "--network", "none", "--entrypoint", "cat", image, SBOM)
        (folder / f"{name}.sbom.cdx.json").write_text(sbom, encoding="utf-8")
        statement = provenance(image, archive, commit, arguments, started)
        (folder / f"{name}.provenance.json").write_text(json.dumps(statement, indent=2) + "\n", encoding="utf-8")
    version = current()
    (folder / "NOTES.md").write_text(notes((ROOT / CHANGELOG).read_text("utf-8"), version) + "\n", encoding="utf-8")
    files = sorted(file for file in folder.iterdir() if file.name != "SHA256SUMS" and file.suffix != ".sig")
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(f"{digest(file)}  {file.name}\n" for file in files), encoding="utf-8")
    return _sign(sums)


def _sign(sums: Path) -> list[str]:
    """Signs the checksums, and so all files."""
    if shutil.which("cosign") is None:
        return [
            "no signature: cosign is not installed; with it: "
            "cosign sign-blob --output-signature SHA256SUMS.sig SHA256SUMS"
        ]
    _run("cosign", "sign-blob", "--yes", "--output-signature", f"{sums}.sig", str(sums))
    return []


def digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _inputs() -> list[str]:
    return ["Dockerfile", *(f"requirements/lock/{name}.txt" for name in ("serve", "torch", "tracing"))]


def _stamp(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise ReleaseError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="scripts/release.py", description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("version", help="print the version of this commit")
    commands.add_parser("check", help="fail unless this commit is a release")
    commands.add_parser("prepare", help="write a new version").add_argument("version")
    packing = commands.add_parser("pack", help="write the files of a release")
    packing.add_argument("--engine", default="podman")
    packing.add_argument("--folder", type=Path, required=True)
    packing.add_argument("--argument", action="append", default=[], metavar="NAME=VALUE", help="of the build")
    packing.add_argument("--started", type=datetime.fromisoformat, default=datetime.now(UTC))
    packing.add_argument("images", nargs="+")
    args = parser.parse_args(words)
    try:
        if args.command == "version":
            print(describe())
        elif args.command == "check":
            print(check())
        elif args.command == "prepare":
            print(*prepare(args.version, datetime.now(UTC).date().isoformat()), sep="\n")
            print(f"next: read the changelog, commit, git tag --sign v{args.version}, make release", file=sys.stderr)
        else:
            arguments = dict(pair.partition("=")[::2] for pair in args.argument)
            for missing in pack(args.engine, args.images, args.folder, arguments, args.started):
                print(missing, file=sys.stderr)
    except ReleaseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
