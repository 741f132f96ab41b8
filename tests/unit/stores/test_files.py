"""Stored files: owners, quotas, expiry, deletion, and what a kill leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.errors import BodyTooLarge, QuotaExceeded, StorageFull, StorageUnavailable, StoredFileNotFound
from service.stores import disk, files
from service.stores.files import ORPHAN_S
from service.stores.records import Records
from tests.fakes import FakeClock
from tests.unit.stores.opened import everything, open_files, put


@pytest.mark.parametrize("owner", ["", "a", "..", "a.b-c"])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, owner: str) -> None:
    store = open_files(tmp_path / "new" / "folder")
    kept = put(store, b"one\ntwo\n", owner)
    again = open_files(tmp_path / "new" / "folder")
    assert again.get(owner, kept.id) == kept
    assert again.path(kept).read_bytes() == b"one\ntwo\n"
    assert (kept.num_bytes, kept.filename, kept.created_at, kept.expires_at) == (8, "in.jsonl", 100, 7300)
    assert (tmp_path / "new" / "folder") in again.path(kept).parents


def test_folders_and_files_are_for_the_servers_user_only(tmp_path: Path) -> None:
    put(open_files(tmp_path / "files"))
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "files").rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (tmp_path / "files", tmp_path / "files" / "@a")}
    assert (modes, folders) == ({0o600}, {0o700})


def test_another_owner_does_not_find_a_file(tmp_path: Path) -> None:
    store = open_files(tmp_path)
    kept = put(store)
    for call in (store.get, store.delete):
        with pytest.raises(StoredFileNotFound):
            call("b", kept.id)
    assert (store.all("b"), [each.id for each in store.all("a")]) == ([], [kept.id])


@pytest.mark.parametrize("id", ["", "file-x", "../@a/file-x", "batch_x", "file-" + "x" * 90, "file-\0"])
def test_an_id_of_no_file_is_not_found(tmp_path: Path, id: str) -> None:
    store = open_files(tmp_path)
    put(store)
    with pytest.raises(StoredFileNotFound):
        store.get("a", id)


def test_the_newest_file_is_listed_first(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_files(tmp_path, clock)
    first = put(store)
    clock.now += 1
    second = put(store)
    assert store.all("a") == [second, first]


def test_a_file_that_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BodyTooLarge, match="max_file_bytes"):
        put(open_files(tmp_path), b"x" * 101)
    assert everything(tmp_path) == []


def test_a_key_may_keep_so_many_files_and_bytes(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_files=2)
    first = put(store)
    put(store)
    with pytest.raises(QuotaExceeded, match="has 2 files"):
        put(store)
    put(store, owner="b")
    store.delete("a", first.id)
    put(store)
    with pytest.raises(QuotaExceeded, match="at most 300 are kept"):
        put(open_files(tmp_path / "other", max_key_bytes=300, max_file_bytes=400), b"x" * 350)


def test_all_keys_together_may_keep_so_many_bytes(tmp_path: Path) -> None:
    store = open_files(tmp_path, max_bytes=600, max_file_bytes=500)
    for owner in "abc":
        put(store, b"x" * 10, owner)
    with pytest.raises(QuotaExceeded, match="of all keys"):
        put(store, b"x" * 400, "d")


def test_the_quota_is_checked_while_a_file_is_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHECK_BYTES", 50)
    store = open_files(tmp_path, max_key_bytes=150_000, max_file_bytes=10**9, max_bytes=10**9)
    with store.upload("a") as one, store.upload("a") as other:
        one.write(b"x" * 100_000)
        with pytest.raises(QuotaExceeded):
            other.write(b"x" * 60_000)
    assert everything(tmp_path) == []


def test_a_deleted_file_is_gone_from_the_disk(tmp_path: Path) -> None:
    store = open_files(tmp_path)
    store.delete("a", put(store).id)
    assert everything(tmp_path) == []


def test_an_expired_file_is_not_found_and_swept(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_files(tmp_path, clock)
    short, long = put(store, expiry_s=3600), put(store)
    clock.now += 3600
    with pytest.raises(StoredFileNotFound):
        store.get("a", short.id)
    assert [each.id for each in store.all("a")] == [long.id]
    store.sweep()
    assert everything(tmp_path) == [f"{long.id}.data", f"{long.id}.json"]


def test_what_an_interrupted_upload_has_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_files(tmp_path, clock)
    kept = put(store)
    for name in ("file-1.part", "file-2.data", ".file-3.part"):
        (tmp_path / "@a" / name).write_bytes(b"x")
        os.utime(tmp_path / "@a" / name, (clock.now, clock.now))
    clock.now += ORPHAN_S
    store.sweep()
    assert len(everything(tmp_path)) == 5
    clock.now += 1
    store.sweep()
    assert everything(tmp_path) == [f"{kept.id}.data", f"{kept.id}.json"]


def test_a_damaged_record_is_no_file(tmp_path: Path) -> None:
    store = open_files(tmp_path)
    kept = put(store)
    (tmp_path / "@a" / f"{kept.id}.json").write_bytes(b"{")
    with pytest.raises(StoredFileNotFound):
        store.get("a", kept.id)
    assert store.all("a") == []


def test_a_full_disk_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_files(tmp_path)
    kept = put(store)

    def fail(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "write_all", fail)
    with pytest.raises(StorageFull):
        put(store)
    assert [each.id for each in store.all("a")] == [kept.id]


def test_a_folder_that_cannot_be_made_is_named_by_its_problem(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        Records(tmp_path / "file" / "batches").open()
