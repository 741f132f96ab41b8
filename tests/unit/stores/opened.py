"""A store of files with small quotas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from service.stores.files import FileStore, Quotas, StoredFile
from service.stores.records import Records
from tests.fakes import FakeClock


def open_files(folder: Path, clock: FakeClock | None = None, **quotas: int) -> FileStore:
    found = Records(folder)
    found.open()
    limits = {"max_file_bytes": 100, "max_files": 3, "max_key_bytes": 1000, "max_bytes": 2000, "expiry_s": 7200}
    return FileStore(found, Quotas(**{"max_lines": 10, **limits, **quotas}), clock or FakeClock())


def put(store: FileStore, content: bytes = b"abc", owner: str = "a", **more: Any) -> StoredFile:
    with store.upload(owner) as upload:
        upload.write(content)
        return upload.keep("in.jsonl", "batch", **more)


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("@*/*"))
