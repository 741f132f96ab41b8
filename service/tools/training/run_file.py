"""The identity of a fine-tuning run, and its history: run.json in the output folder.

The same identity resumes; another one is refused, so that a folder never holds weights of one run under the labels of
another. Everything that changes the result is in the identity; what only changes the speed is not.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, weight_files
from service.errors import SettingError
from service.settings import VERSION
from service.tools.data.converters import Example

RUN_FILE = "run.json"
LOCK_FILE = ".run.lock"
CHECKPOINTS = "checkpoints"
OUTPUTS = (
    "README.md",
    "calibration.json",
    "config.json",
    "model.safetensors",
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
"""What a run writes besides run.json; --overwrite removes these files, and no other."""
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "numpy", "peft")
HASHED_BYTES = 1 << 20
MAX_SHOWN = 60

Json = dict[str, Any]


def digest_examples(examples: Iterable[Example]) -> str:
    """A hash of the examples and their order: of the data as it is trained on, whatever the files look like."""
    total = hashlib.sha256()
    for example in examples:
        fields = (example.task, example.texts, example.options, example.answer, example.question)
        total.update(json.dumps([*fields, example.answers, example.grade], ensure_ascii=False).encode())
    return total.hexdigest()[:16]


def digest_model(start: Checkpoint) -> str:
    """A hash of the config and of size, start and end of each weights file: reading them whole takes minutes."""
    total = hashlib.sha256((start.path / "config.json").read_bytes() if _has_config(start) else b"")
    for file in weight_files(start.path):
        size = file.stat().st_size
        total.update(str(size).encode())
        with file.open("rb") as content:
            total.update(content.read(HASHED_BYTES))
            content.seek(max(0, size - HASHED_BYTES))
            total.update(content.read(HASHED_BYTES))
    return total.hexdigest()[:16]


def _has_config(start: Checkpoint) -> bool:
    return (start.path / "config.json").is_file()


def versions() -> Json:
    """The versions that a result depends on."""
    found: Json = {"erlangshen-service": VERSION, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@dataclass(slots=True)
class RunFile:
    """run.json of one folder. `history` are the measures by step."""

    folder: Path
    identity: Json
    about: Json
    history: list[Json] = field(default_factory=list)
    result: Json | None = None

    @property
    def file(self) -> Path:
        return self.folder / RUN_FILE

    def log(self, step: int, measures: Json) -> None:
        """Adds the measures of a step, in place of those that a run which was interrupted had of it and later ones."""
        self.history = [entry for entry in self.history if entry["step"] < step] + [{"step": step, **measures}]
        self.write()

    def finish(self, result: Json) -> None:
        self.result = result
        self.write()

    def write(self) -> None:
        status = "running" if self.result is None else "finished"
        content = {"version": 1, "status": status, "identity": self.identity, "about": self.about}
        write_text(
            self.file,
            json.dumps(content | {"history": self.history, "result": self.result}, ensure_ascii=False, indent=1) + "\n",
        )


def write_text(file: Path, text: str) -> None:
    """Writes a file that everyone may read, at once or not at all."""
    draft = file.with_name(f".{file.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.chmod(0o644)
    draft.replace(file)


def open_run(folder: Path, identity: Json, *, overwrite: bool) -> RunFile:
    """The run of a folder: a new one, or the one that is there if its identity is the same.

    Raises:
        SettingError: the folder holds another run, or something else; names the first field that differs.
    """
    identity = json.loads(json.dumps(identity, ensure_ascii=False))
    if overwrite:
        remove_run(folder)
    about = {"versions": versions(), "started": datetime.now(UTC).isoformat(timespec="seconds")}
    found = read_run(folder)
    if found is None:
        _check_empty(folder)
        return RunFile(folder, identity, about)
    if difference := first_difference(found["identity"], identity):
        name, before, now = difference
        raise SettingError(
            f"{folder} holds another run: {name} is {_show(before)} there, {_show(now)} now; "
            "choose another --output, or replace that run with --overwrite"
        )
    return RunFile(folder, identity, found["about"], found["history"], found["result"])


def read_run(folder: Path) -> Json | None:
    """The content of run.json; None if there is none.

    Raises:
        SettingError: it is not one of ours.
    """
    file = folder / RUN_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["version"] == 1 and {"identity", "about", "history", "result"} <= set(found):
            return dict(found)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise SettingError(f"{file}: is no record of a run; choose another --output, or replace it with --overwrite")


def first_difference(before: Json, now: Json, prefix: str = "") -> tuple[str, Any, Any] | None:
    """Name and both values of the first field that differs, in the order of `now`."""
    for name in dict.fromkeys((*now, *before)):
        one, two = before.get(name), now.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            if found := first_difference(one, two, f"{prefix}{name}."):
                return found
        elif one != two:
            return f"{prefix}{name}", one, two
    return None


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _check_empty(folder: Path) -> None:
    """Raises SettingError if a model or the checkpoints of an unknown run are there."""
    for name in (CHECKPOINTS, "config.json", "model.safetensors", ADAPTER_WEIGHTS):
        is_empty_folder = (folder / name).is_dir() and not any((folder / name).iterdir())
        if (folder / name).exists() and not is_empty_folder:
            raise SettingError(
                f"{folder} has {name}, but no {RUN_FILE} that says what it is; choose another --output, or replace it "
                "with --overwrite"
            )


def remove_run(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (RUN_FILE, *OUTPUTS):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the folder; the system releases the lock when this process ends.

    Raises:
        SettingError: another process trains into the folder, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise SettingError(f"--output {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingError(f"--output {folder}: another process trains into it") from None
        yield
    finally:
        os.close(descriptor)


def find_runs(folders: Sequence[Path]) -> list[tuple[Path, Json]]:
    """The runs in these folders and below them, in order of their names."""
    files = sorted({file for folder in folders for file in (folder, *folder.rglob("*")) if (file / RUN_FILE).is_file()})
    found = []
    for folder in files:
        try:
            run = read_run(folder)
        except SettingError:
            continue
        if run is not None:
            found.append((folder, run))
    return found
