"""Writes into every image reference the digest that its tag has in the registry. Needs skopeo; uses its credentials.

A reference is the base image of the Dockerfile, an `image:` under docker/ and k8s/, or an overlay's `newName:` and
`newTag:`. A name without a registry or a namespace is an image of a local build, which has no digest: it is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PATHS = [Path(__file__).parents[1] / name for name in ("Dockerfile", "docker", "k8s")]
PLACEHOLDER = "registry.example.com/"
"""Stands for the operator's registry in the manifests."""
INLINE = re.compile(
    r"^(?P<lead>ARG PYTHON_IMAGE=| *(?:- )?image: )(?P<name>[^\s@$]+/[^\s@:]+):(?P<tag>[^\s@]+)(?:@(?P<digest>\S+))?$",
    re.MULTILINE,
)
OVERLAY = re.compile(
    r"^(?P<indent> +)newName: (?P<name>\S+)\n +newTag: (?P<tag>\S+)(?:\n +digest: (?P<digest>\S+))?$", re.MULTILINE
)
SKOPEO = ["skopeo", "inspect", "--raw", "--retry-times", "3"]


class PinError(Exception):
    """A reference that gets no digest: the message says why."""


def files(paths: list[Path]) -> list[Path]:
    """The files themselves, and the YAML files of the folders."""
    return [file for path in paths for file in (sorted(path.rglob("*.yaml")) if path.is_dir() else [path])]


def references(text: str) -> list[tuple[str, str | None]]:
    """(NAME:TAG, digest) of each reference of a file; the digest is None where there is none yet."""
    if len(OVERLAY.findall(text)) != text.count("newTag:"):
        raise PinError("newName and newTag are read only from two lines of their own, in this order")
    return [
        (f"{match['name']}:{match['tag']}", match["digest"])
        for pattern in (INLINE, OVERLAY)
        for match in pattern.finditer(text)
        if not match["name"].startswith(PLACEHOLDER)
    ]


def pin(text: str, digests: dict[str, str]) -> str:
    """The text of a file with these digests, by NAME:TAG."""

    def inline(match: re.Match[str]) -> str:
        digest = digests.get(f"{match['name']}:{match['tag']}")
        return f"{match['lead']}{match['name']}:{match['tag']}@{digest}" if digest else match[0]

    def overlay(match: re.Match[str]) -> str:
        digest = digests.get(f"{match['name']}:{match['tag']}")
        lines = (f"newName: {match['name']}", f"newTag: {match['tag']}", f"digest: {digest}")
        return "\n".join(match["indent"] + line for line in lines) if digest else match[0]

    return OVERLAY.sub(overlay, INLINE.sub(inline, text))


def digest_in_registry(tagged: str) -> str:
    """The digest of the manifest, or of the index of manifests where an image has several platforms."""
    try:
        done = subprocess.run([*SKOPEO, f"docker://{tagged}"], capture_output=True, check=False, timeout=300)
    except FileNotFoundError:
        raise PinError("skopeo is not installed: it asks the registries for digests") from None
    except subprocess.TimeoutExpired:
        raise PinError(f"{tagged}: the registry does not answer") from None
    if done.returncode != 0:
        raise PinError(f"{tagged}: {done.stderr.decode().strip()}")
    return f"sha256:{hashlib.sha256(done.stdout).hexdigest()}"


def check(texts: dict[Path, str]) -> int:
    missing = [
        f"{path}: {tagged}" for path, text in texts.items() for tagged, digest in references(text) if digest is None
    ]
    if missing:
        print("Without a digest (make pin-images writes it):", *missing, sep="\n  ", file=sys.stderr)
    return 1 if missing else 0


def write(texts: dict[Path, str], digest_of: Callable[[str], str]) -> int:
    """Asks for all digests before it writes the first one: a failure leaves every file as it was."""
    tags = dict.fromkeys(tagged for text in texts.values() for tagged, _ in references(text))
    digests = {tagged: digest_of(tagged) for tagged in tags}
    for path, text in texts.items():
        if (new := pin(text, digests)) != text:
            path.write_text(new, encoding="utf-8")
    print(*(f"{tagged}@{digest}" for tagged, digest in digests.items()), sep="\n")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make pin-images", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a reference has no digest")
    parser.add_argument("paths", nargs="*", type=Path, default=PATHS, help="files or folders; default: all")
    parsed = parser.parse_args(arguments)
    texts = {path: path.read_text(encoding="utf-8") for path in files(parsed.paths)}
    try:
        return check(texts) if parsed.check else write(texts, digest_in_registry)
    except PinError as error:
        print(f"error: {error}; nothing was written", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
