"""Which rows are done, whatever a kill has left, and how parts become a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import DatasetError
from service.tools.corpora.job import cut
from service.tools.corpora.parts import Parts, Span
from service.tools.corpora.source import Source, open_source


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "parts")
        return
    yield "memory://bucket/parts"
    fsspec.filesystem("memory").rm("/bucket", recursive=True)


def put(parts: Parts, first: int, end: int, *, bad: bool = False) -> None:
    file, bad_file = parts.new_file("jsonl"), parts.new_file("jsonl") if bad else None
    file.write_text("".join(f'{{"row":{row + 1}}}\n' for row in range(first, end)))
    if bad_file is not None:
        bad_file.write_text(f'{{"row":{first + 1},"error":{{}}}}\n')
    parts.put(Span(first, end), file, bad_file)


def numbers(uri: str) -> list[int]:
    with fsspec.open(uri, "rb") as file:
        return [json.loads(line)["row"] for line in file]


def test_a_folder_that_is_not_there_yet_has_no_parts(folder: str) -> None:
    parts = Parts(folder, "jsonl")
    parts.clean()
    assert parts.done() == []
    with parts.locked():
        put(parts, 0, 1)


def test_parts_are_found_in_the_order_of_their_rows(folder: str) -> None:
    parts = Parts(folder, "jsonl")
    with parts.locked():
        put(parts, 5, 7)
        put(parts, 0, 5)
        assert parts.done() == [Span(0, 5), Span(5, 7)]


def test_of_parts_that_share_rows_one_counts(folder: str) -> None:
    parts = Parts(folder, "jsonl")
    with parts.locked():
        for span in ((0, 5), (3, 8), (5, 9), (5, 6)):
            put(parts, *span)
        done = parts.done()
        parts.clean(done)
        assert parts.done() == done == [Span(0, 5), Span(5, 6)]


def test_parts_are_joined_in_order_with_the_bad_rows_beside_them(folder: str) -> None:
    parts, out = Parts(folder, "jsonl"), f"{folder}-out.jsonl"
    with parts.locked():
        put(parts, 2, 4, bad=True)
        put(parts, 0, 2)
        parts.join(parts.done(), out, {"row": "int64"})
    assert numbers(out) == [1, 2, 3, 4]
    assert numbers(f"{out}.bad.jsonl") == [3]


def test_bad_rows_without_their_part_do_not_count(folder: str) -> None:
    parts = Parts(folder, "jsonl")
    with parts.locked():
        put(parts, 0, 2, bad=True)
        system, path = fsspec.core.url_to_fs(folder)
        system.rm_file(f"{path}/{Span(0, 2).name('part', 'jsonl')}")
        assert (parts.done(), parts.count_bad(parts.done())) == ([], 0)
        parts.clean()
        assert not [name for name in system.ls(path, detail=False) if "/bad-" in name]


def test_csv_parts_are_joined_with_one_head(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path / "parts"), "csv")
    with parts.locked():
        for first in (0, 1):
            file = parts.new_file("csv")
            file.write_bytes(f"row\r\n{first + 1}\r\n".encode())
            parts.put(Span(first, first + 1), file, None)
        parts.join(parts.done(), str(tmp_path / "out.csv"), {"row": "int64"})
    assert (tmp_path / "out.csv").read_bytes() == b"row\r\n1\r\n2\r\n"


def test_only_one_run_writes_to_a_folder(tmp_path: Path) -> None:
    with (
        Parts(str(tmp_path / "parts"), "jsonl").locked(),
        pytest.raises(DatasetError, match="another run"),
        Parts(str(tmp_path / "parts"), "jsonl").locked(),
    ):
        pass


def test_files_that_a_kill_has_left_are_removed(tmp_path: Path) -> None:
    parts = Parts(str(tmp_path), "jsonl")
    with parts.locked():
        left = parts.new_file("jsonl")
        left.write_text("half a line")
        parts.clean()
        assert not left.exists()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    path.write_text("".join(f'"{row}"\n' for row in range(40)))
    return open_source(str(path))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(1, 9)), max_size=5), st.integers(1, 12))
def test_what_is_cut_and_what_is_done_is_everything_once(
    corpus: Source, spans: list[tuple[int, int]], max_rows: int
) -> None:
    done: list[Span] = []
    for first, size in sorted(spans):
        if not done or first >= done[-1].end:
            done.append(Span(first, min(40, first + size)))
    pieces = [
        (start, [record.end.row - 1 for record in records]) for start, records in cut(corpus, done, lambda: max_rows)
    ]
    assert all(start.row == rows[0] and rows == list(range(rows[0], rows[-1] + 1)) for start, rows in pieces)
    assert max([len(rows) for _, rows in pieces], default=0) <= max_rows
    everything = [row for _, rows in pieces for row in rows] + [
        row for one in done for row in range(one.first, one.end)
    ]
    assert sorted(everything) == list(range(40))


def test_a_part_starts_at_the_bytes_of_its_first_row(corpus: Source) -> None:
    for start, records in cut(corpus, [Span(3, 5)], lambda: 4):
        assert next(corpus.records(start)).data == records[0].data
