"""Batch jobs on the disk: their records, who works on one, and a journal that survives a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import BatchHasEnded, BatchNotFound, QuotaExceeded, StoredFileNotFound
from service.stores.batches import WINDOW_S, Batch, BatchStore, Journal
from tests.fakes import FakeClock
from tests.unit.stores.opened import everything, open_files, put


def open_batches(folder: Path, clock: FakeClock | None = None, **quotas: int) -> BatchStore:
    return BatchStore(open_files(folder, clock, **quotas))


def create(store: BatchStore, owner: str = "a") -> Batch:
    file = put(store.files, owner=owner)
    return store.create(owner, endpoint="/v1/embeddings", input_file_id=file.id, metadata={"day": "1"})


def claimed(store: BatchStore, batch: Batch) -> Journal:
    journal = store.claim(batch)
    assert journal is not None
    return journal


def finalizing(store: BatchStore, batch: Batch) -> Batch:
    return store.update(batch, lambda current: current.reached("finalizing", 5, outcome="completed"))


def test_a_batch_is_read_as_it_was_written(tmp_path: Path) -> None:
    batch = create(open_batches(tmp_path))
    again = open_batches(tmp_path)
    assert again.get("a", batch.id) == batch
    assert (batch.status, batch.expires_at - batch.created_at, batch.metadata) == ("validating", WINDOW_S, {"day": "1"})
    assert again.unfinished() == [batch]


def test_another_owner_finds_neither_the_batch_nor_the_file(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    for call in (store.get, store.cancel):
        with pytest.raises(BatchNotFound):
            call("b", batch.id)
    with pytest.raises(StoredFileNotFound):
        store.create("b", endpoint="/v1/embeddings", input_file_id=batch.input_file_id)
    assert store.all("b") == []


def test_a_key_may_keep_so_many_batches(tmp_path: Path) -> None:
    store = open_batches(tmp_path, max_files=1)
    batch = create(store)
    with pytest.raises(QuotaExceeded, match="has 1 batches"):
        store.create("a", endpoint="/v1/embeddings", input_file_id=batch.input_file_id)


def test_only_one_works_on_a_batch(tmp_path: Path) -> None:
    store, other = open_batches(tmp_path), open_batches(tmp_path)
    batch = create(store)
    journal = claimed(store, batch)
    assert other.claim(batch) is None
    journal.close()
    claimed(other, batch).close()


def test_a_journal_goes_on_after_its_last_complete_line(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    journal = claimed(store, batch)
    journal.append([b'+{"a": 1}\n', b'-{"a": 2}\n', b'+{"a": 3}\n'])
    journal.close()
    with store.files.records.file("a", batch.id, ".answers").open("ab") as file:
        file.write(b'+{"a": 4')
    again = claimed(open_batches(tmp_path), batch)
    assert (again.num_lines, again.num_completed, again.num_failed) == (3, 2, 1)
    again.append([b'+{"a": 4}\n'])
    lines: list[bytes] = []
    again.split(lines.append, lines.append)
    assert lines == [b'{"a": %d}\n' % number for number in (1, 2, 3, 4)]
    again.close()


def test_a_batch_ends_with_a_file_for_answers_and_one_for_errors(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_batches(tmp_path, clock)
    batch = create(store)
    journal = claimed(store, batch)
    journal.append([b"+one\n", b"-two\n", b"+three\n"])
    ended = store.finish(finalizing(store, batch), journal)
    journal.close()
    assert (ended.status, store.get("a", batch.id), store.unfinished()) == ("completed", ended, [])
    contents = {}
    for id in (ended.output_file_id, ended.error_file_id):
        assert id is not None
        file = store.files.get("a", id)
        contents[file.filename.rpartition("_")[2]] = (file.purpose, store.files.path(file).read_bytes())
    assert contents == {"output.jsonl": ("batch_output", b"one\nthree\n"), "error.jsonl": ("batch_output", b"two\n")}


def test_a_kill_while_the_files_are_made_leaves_one_of_each(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    journal = claimed(store, batch)
    journal.append([b"+one\n"])
    batch = finalizing(store, batch)
    store.finish(batch, journal)  # all but the record of the batch, as a kill leaves it
    journal.close()
    store._write(batch)
    store.files.records.file("a", batch.id, ".answers").write_bytes(b"+one\n")
    again = open_batches(tmp_path)
    journal = claimed(again, batch)
    ended = again.finish(again.get("a", batch.id), journal)
    journal.close()
    outputs = [file.id for file in again.files.all("a") if file.purpose == "batch_output"]
    assert outputs == [ended.output_file_id]


def test_a_batch_without_errors_has_no_file_for_them(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    journal = claimed(store, batch)
    ended = store.finish(finalizing(store, batch), journal)
    journal.close()
    assert (ended.output_file_id, ended.error_file_id) == (None, None)
    assert not [name for name in everything(tmp_path) if name.endswith((".part", ".answers"))]


def test_a_batch_is_cancelled_once_and_only_before_its_end(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    assert store.cancel("a", batch.id).status == store.cancel("a", batch.id).status == "cancelling"
    ended = store.update(batch, lambda current: current.reached("cancelled", 7))
    with pytest.raises(BatchHasEnded, match="is cancelled"):
        store.cancel("a", ended.id)


def test_a_batch_that_has_ended_has_no_journal_to_claim(tmp_path: Path) -> None:
    store = open_batches(tmp_path)
    batch = create(store)
    store.update(batch, lambda current: current.reached("failed", 7))
    assert store.claim(batch) is None
    assert store.unfinished() == []


def test_a_batch_is_removed_as_long_after_its_end_as_a_file(tmp_path: Path) -> None:
    clock = FakeClock()
    store = open_batches(tmp_path, clock)
    running, ended = create(store), create(store)
    store.update(ended, lambda current: current.reached("failed", clock.now))
    store.forget(ended)
    clock.now += 7200
    store.sweep()
    assert len(store.all("a")) == 2
    clock.now += 1
    store.sweep()
    assert store.all("a") == [running]
