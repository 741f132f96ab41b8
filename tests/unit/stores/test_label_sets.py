"""The store of label sets: versions, limits, damaged files, a full disk, several writers, and a kill during a write."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.errors import (
    InvalidRequest,
    LabelSetNotFound,
    PreconditionFailed,
    QuotaExceeded,
    ServiceError,
    StorageFull,
    StorageUnavailable,
)
from service.stores.label_sets import CHECK_INTERVAL_S, LabelSets
from tests.fakes import FakeClock


def parse(content: dict[str, Any]) -> tuple[str, ...]:
    return tuple(content["labels"])


def open_store(folder: Path, max_sets: int = 100, max_labels: int = 1000, **more: Any) -> LabelSets[tuple[str, ...]]:
    store = LabelSets(folder, parse, max_sets=max_sets, max_labels=max_labels, **more)
    store.open()
    return store


def put(store: LabelSets[tuple[str, ...]], name: str, *labels: str, owner: str = "a", **more: Any) -> int:
    return store.put(name, {"labels": list(labels)}, len(labels), owner, **more).version


@pytest.mark.parametrize("name", ["news", "客服意图", "a.b-c_1", "x" * 64])
def test_a_set_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    put(open_store(tmp_path / "new" / "folder"), name, "体育", "财经")
    again = open_store(tmp_path / "new" / "folder")
    assert again.get(name).value == ("体育", "财经")
    assert [each.name for each in again.all()] == [name]


@pytest.mark.parametrize("name", ["", "..", "a/b", ".a", "a.", "a b", "x" * 65, "客" * 22, "a\n", "e\u0301", "-"])
def test_a_name_that_cannot_be_one_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot be the name"):
        put(open_store(tmp_path), name, "a")


def test_files_and_folder_are_for_the_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    put(open_store(folder), "news", "a")
    assert [oct(each.stat().st_mode & 0o777) for each in (folder, folder / "news.json")] == ["0o700", "0o600"]


def test_a_version_increases_with_each_write(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert [put(store, "news", "a"), put(store, "news", "b")] == [1, 2]


def test_only_the_expected_version_is_replaced_or_deleted(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, "news", "a")
    old = store.get("news").etag
    put(store, "news", "b", if_match=old)
    for call in (lambda: put(store, "news", "c", if_match=old), lambda: store.delete("news", old)):
        with pytest.raises(PreconditionFailed, match=r'If-Match: the label set is "2-'):
            call()
    assert store.get("news").value == ("b",)


def test_a_set_can_be_written_only_if_there_is_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert put(store, "news", "a", if_match="") == 1
    with pytest.raises(PreconditionFailed, match="exists"):
        put(store, "news", "b", if_match="")


def test_a_deleted_set_is_not_found(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, "news", "a")
    store.delete("news")
    for call in (store.get, store.delete):
        with pytest.raises(LabelSetNotFound, match="no such set"):
            call("news")


def test_a_version_of_another_process_is_seen_after_the_interval(tmp_path: Path) -> None:
    clock = FakeClock()
    one, other = open_store(tmp_path, clock=clock), open_store(tmp_path)
    put(one, "news", "a")
    put(other, "news", "b")
    recent = one.recent("news")
    assert recent is not None
    assert recent.value == ("a",)
    clock.now += CHECK_INTERVAL_S
    assert one.recent("news") is None
    assert one.get("news").value == ("b",)


def test_an_account_owns_at_most_the_allowed_sets_and_labels(tmp_path: Path) -> None:
    store = open_store(tmp_path, max_sets=2, max_labels=5)
    put(store, "one", "a", "b", "c")
    put(store, "two", "a")
    with pytest.raises(QuotaExceeded, match="has 2 label sets; at most 2 are kept"):
        put(store, "three", "a")
    with pytest.raises(QuotaExceeded, match="would have 6 labels; at most 5"):
        put(store, "two", "a", "b", "c")
    put(store, "three", "a", owner="b")
    assert put(store, "one", "a") == 2


def test_an_account_owns_at_most_the_allowed_bytes(tmp_path: Path) -> None:
    """Descriptions and examples are no labels, but they take space."""
    store = open_store(tmp_path, max_bytes=400)
    put(store, "one", "a" * 100)
    with pytest.raises(QuotaExceeded, match=r"would have \d+ bytes with their descriptions and examples; at most 400"):
        put(store, "two", "a" * 100)
    put(store, "two", "a" * 100, owner="b")
    assert put(store, "one", "b" * 150) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"sports", b"spurts"),
        lambda data: b"[1]",
        lambda data: b"\xff" * 20,
    ],
    ids=["empty", "cut", "changed", "another JSON", "no JSON"],
)
def test_a_damaged_file_is_set_aside_and_named(tmp_path: Path, damage: Any, caplog: pytest.LogCaptureFixture) -> None:
    put(open_store(tmp_path), "news", "sports")
    file = tmp_path / "news.json"
    file.write_bytes(damage(file.read_bytes()))
    store = open_store(tmp_path)
    for _ in range(2):
        with pytest.raises(LabelSetNotFound, match="was damaged"):
            store.get("news")
    assert [each.name for each in tmp_path.glob("news*")] == ["news.damaged0"]
    assert caplog.messages == ["damaged label set set aside"]
    assert put(store, "news", "a") == 1


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageUnavailable), (errno.EIO, StorageUnavailable)],
)
def test_a_failed_write_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, error: type[ServiceError]
) -> None:
    store = open_store(tmp_path)
    put(store, "news", "a")

    def fail(descriptor: int, data: Any) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(error):
            put(store, "news", "b")
    assert store.get("news").value == ("a",)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "news.json"]


def test_writers_at_the_same_time_lose_no_version(tmp_path: Path) -> None:
    """Two stores, as two processes have them, and two threads in each."""
    stores = [open_store(tmp_path) for _ in range(2)]
    with ThreadPoolExecutor(4) as threads:
        versions = list(threads.map(lambda index: put(stores[index % 2], "news", str(index)), range(40)))
    assert sorted(versions) == list(range(1, 41))


_WRITER = """
import sys
from pathlib import Path
from service.stores.label_sets import LabelSets
store = LabelSets(Path(sys.argv[1]), lambda content: content["labels"], max_sets=10, max_labels=10**6)
store.open()
labels = [f"label {index}" for index in range(2000)]
for index in range(10**6):
    store.put("news", {"labels": [str(index), *labels]}, 2001, "a")
    print(index, flush=True)
"""


def test_a_kill_during_a_write_leaves_a_whole_version(tmp_path: Path) -> None:
    for round_ in range(5):
        writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        printed = [writer.stdout.readline() for _ in range(1 + 3 * round_)]
        writer.send_signal(signal.SIGKILL)
        last = int([*printed, *writer.stdout.read().split()][-1])
        writer.wait()
        store = open_store(tmp_path)
        assert int(store.get("news").value[0]) in (last, last + 1)
        assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", "news.json"]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageUnavailable):
        open_store(tmp_path / "file" / "sets")
