"""Corpora, answered by the application in this process: one row for each row, whatever fails on the way."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from service.errors import DatasetError, StartupError
from service.settings import Server
from service.tools.corpora import work as module
from service.tools.corpora.asking import Ask, Columns
from service.tools.corpora.bulk_client import BulkClient, InProcess, Interrupted
from service.tools.corpora.job import Job
from service.tools.corpora.on_ray import Device, Engine, places_of
from service.tools.corpora.work import Work
from tests.contract.fakes import FakeSubmit, Service, running

LABELS = {"labels": ["好评", "差评"]}


def job_of(source: Path, out: str, **more: Any) -> Job:
    ask = more.pop("ask", Ask("classify", Columns(), LABELS))
    return Job(str(source), ask, str(source.parent / out), more.pop("format", Path(out).suffix[1:] or "jsonl"), **more)


def corpus(folder: Path, num_rows: int = 80) -> Path:
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps({"id": f"k{row}", "text": "好吃"}) + "\n" for row in range(num_rows)))
    return file


async def compute(job: Job, *clients: BulkClient, overwrite: bool = False) -> tuple[int, int]:
    with job.parts.locked():
        job.begin(overwrite=overwrite)
        await Work(job).run(clients)
        return job.finish()


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_bytes().splitlines()]


def rows_of(job: Job) -> list[dict[str, Any]]:
    return lines_of(job.out)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def num_rows_of(service: Service) -> int:
    """That were computed."""
    return sum(map(len, service.submit.calls))


def parts_of(job: Job) -> list[str]:
    return sorted(map(str, Path(job.out).glob("part-*")))


async def test_every_row_has_one_answer_in_order(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl", keep=("id",))
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (80, 0)
    rows = rows_of(job)
    assert [(row["row"], row["id"]) for row in rows] == [(row + 1, f"k{row}") for row in range(80)]
    assert {row["label"] for row in rows} == {"好评"}
    assert names_in(tmp_path) == ["in.jsonl", "out.jsonl"]


async def test_bad_rows_have_an_error_and_are_in_the_side_file(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "好"}\nnot JSON\n{"text": "好"}\n{"text": "%s"}\n' % ("好" * 2000))
    job = job_of(source, "out.jsonl")
    async with running(settings=Server(max_body_bytes=1024)) as service:
        assert await compute(job, InProcess(service.app)) == (4, 2)
    assert [row.get("error", "").partition(":")[0] for row in rows_of(job)] == ["", "invalid_row", "", "body_too_large"]
    bad = lines_of(f"{job.out}.bad.jsonl")
    assert [(one["row"], one["error"]["code"]) for one in bad] == [(2, "invalid_row"), (4, "body_too_large")]
    assert bad[0]["input"] == "not JSON"


def parquet_corpus(folder: Path) -> Path:
    parquet.write_table(
        pyarrow.table({"id": range(100), "text": ["好吃"] * 100}), folder / "a.parquet", row_group_size=30
    )
    return folder / "a.parquet"


async def test_rows_with_labels_of_their_own_are_asked_with_these(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    labels = [["好评", "差评"], ["好评", "差评"], ["体育", "财经"], ["好评", "差评"]]
    source.write_text("".join(json.dumps({"text": "好吃", "c": each}) + "\n" for each in labels))
    job = job_of(source, "out.jsonl", ask=Ask("classify", Columns(choices="c"), {}))
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (4, 0)
        assert [len(call) for call in service.submit.calls] == [2, 1, 1]
    assert [row["label"] for row in rows_of(job)] == ["好评", "好评", "体育", "好评"]


async def test_parquet_becomes_parquet_with_vectors(tmp_path: Path) -> None:
    job = job_of(parquet_corpus(tmp_path), "out.parquet", keep=("id",), ask=Ask("embed", Columns(), {}))
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (100, 0)
    table = parquet.read_table(job.out)
    assert table["id"].to_pylist() == list(range(100))
    assert table.schema.field("id").type == pyarrow.int64()
    assert len(table["embedding"][0].as_py()) == 8


async def test_parquet_becomes_csv(tmp_path: Path) -> None:
    job = job_of(parquet_corpus(tmp_path), "out.csv", keep=("id",))
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (100, 0)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text(encoding="utf-8"))))
    assert [(row["row"], row["id"]) for row in rows] == [(str(row + 1), str(row)) for row in range(100)]


async def test_a_folder_keeps_its_parts(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out")
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (80, 0)
        numbers = [row["row"] for part in parts_of(job) for row in lines_of(part)]
        assert numbers == list(range(1, 81))
        with pytest.raises(DatasetError, match="is finished"):
            await compute(job, InProcess(service.app))


class Failing:
    """Answers up to `num_lines`, then breaks its replies off; the client after it answers the rest."""

    name = "failing"

    def __init__(self, client: BulkClient, num_lines: int, error: Exception) -> None:
        self._client = client
        self._left = num_lines
        self._error = error
        self.num_answered = 0

    async def post(self, lines: Sequence[bytes]) -> AsyncGenerator[dict[str, Any], None]:
        async with aclosing(self._client.post(lines)) as replies:
            async for reply in replies:
                if not self._left:
                    raise self._error
                self._left -= 1
                self.num_answered += 1
                yield reply


async def test_a_run_that_was_interrupted_goes_on_with_its_parts(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path, 240), "out.jsonl")
    async with running() as service:
        with pytest.raises(RuntimeError, match="killed"):
            await compute(job, Failing(InProcess(service.app), 9, RuntimeError("killed")))
        num_done = sum(span.end - span.first for span in job.parts.done())
        assert 64 <= num_done < 240
        num_computed = num_rows_of(service)
        assert await compute(job, InProcess(service.app)) == (240, 0)
        assert num_rows_of(service) - num_computed == 240 - num_done
    assert [row["row"] for row in rows_of(job)] == list(range(1, 241))


async def test_the_rows_of_a_client_that_fails_go_on_at_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failing one waits longer than the run takes. What it has answered is not computed again."""
    monkeypatch.setattr(module, "MAX_WAIT_S", 3600.0)
    job = job_of(corpus(tmp_path, 150), "out.jsonl")
    async with running() as service:
        good = InProcess(service.app)
        failing = Failing(good, 2, Interrupted("it has gone", 3600.0))
        assert await compute(job, failing, good) == (150, 0)
    assert failing.num_answered == 2
    assert [row["row"] for row in rows_of(job)] == list(range(1, 151))


async def test_a_run_ends_when_no_client_answers_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", -1.0)
    async with running() as service:
        client = Failing(InProcess(service.app), 0, Interrupted("it has gone"))
        with pytest.raises(StartupError, match="it has gone; the same command goes on"):
            await compute(job_of(corpus(tmp_path), "out.jsonl"), client)


async def test_a_run_ends_when_no_row_is_answered(tmp_path: Path) -> None:
    job = job_of(
        corpus(tmp_path), "out.jsonl", ask=Ask("classify", Columns(), {"labels": ["好评", "差评"], "model": "x"})
    )
    async with running() as service:
        with pytest.raises(StartupError, match="none of the first 64 rows was answered: model: not served"):
            await compute(job, InProcess(service.app))


async def test_other_flags_need_another_output(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    first, second = job_of(source, "out.jsonl"), job_of(source, "out.jsonl", keep=("id",))
    async with running() as service:
        with pytest.raises(RuntimeError, match="killed"):
            await compute(first, Failing(InProcess(service.app), 4, RuntimeError("killed")))
        with pytest.raises(DatasetError, match="other flags"):
            await compute(second, InProcess(service.app))
        assert await compute(second, InProcess(service.app), overwrite=True) == (80, 0)
    assert rows_of(second)[79]["id"] == "k79"


def test_another_model_needs_another_output(tmp_path: Path) -> None:
    source = corpus(tmp_path)
    here, elsewhere = job_of(source, "out.jsonl", model="mini"), Ask("classify", Columns(), LABELS | {"model": "mini"})
    with here.parts.locked():
        assert not here.begin(overwrite=False)
        assert job_of(source, "out.jsonl", model="mini", ask=elsewhere).begin(overwrite=False)
        with pytest.raises(DatasetError, match="other flags"):
            job_of(source, "out.jsonl", model="large").begin(overwrite=False)


async def test_a_finished_output_is_not_written_again(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl")
    (tmp_path / "out.jsonl").write_text("mine")
    async with running() as service:
        with pytest.raises(DatasetError, match="--overwrite"):
            await compute(job, InProcess(service.app))
    assert (tmp_path / "out.jsonl").read_text() == "mine"


async def test_a_kill_after_the_parts_were_joined_loses_nothing(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl")
    async with running() as service:
        with job.parts.locked():
            job.begin(overwrite=False)
            await Work(job).run([InProcess(service.app)])
            job.parts.join(job.parts.done(), job.out, job.columns)
        assert await compute(job, InProcess(service.app)) == (80, 0)
        assert num_rows_of(service) == 80
    assert len(rows_of(job)) == 80


async def test_an_empty_corpus_has_an_empty_output(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path, 0), "out.jsonl")
    async with running() as service:
        assert await compute(job, InProcess(service.app)) == (0, 0)
    assert rows_of(job) == []


# what an actor on Ray does, without Ray


@asynccontextmanager
async def serve_fake(submit: FakeSubmit, device: Device) -> AsyncIterator[BulkClient]:
    async with running(submit=submit) as service:
        yield InProcess(service.app)


def test_actors_compute_the_parts_whose_places_they_are_given(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl", keep=("id",))
    with job.parts.locked():
        job.begin(overwrite=False)
        actors = [Engine(replace(job), partial(serve_fake, FakeSubmit()), Device(0, 1)) for _ in range(2)]
        places = list(places_of(job, 30))
        found = [
            actors[index % 2]({name: [value] for name, value in place.items()}) for index, place in enumerate(places)
        ]
        assert [one["answered"] for one in found] == [[30], [30], [20]]
        assert list(places_of(job, 30)) == []
        assert job.finish() == (80, 0)
    assert [row["id"] for row in rows_of(job)] == [f"k{row}" for row in range(80)]


def test_a_part_that_two_actors_compute_is_there_once(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl")
    with job.parts.locked():
        job.begin(overwrite=False)
        for place in [*places_of(job, 50), *places_of(job, 50)]:
            actor = Engine(replace(job), partial(serve_fake, FakeSubmit()), Device(0, 1))
            actor({name: [value] for name, value in place.items()})
        assert job.finish() == (80, 0)
    assert [row["row"] for row in rows_of(job)] == list(range(1, 81))


def test_an_actor_says_why_no_row_is_answered(tmp_path: Path) -> None:
    job = job_of(corpus(tmp_path), "out.jsonl", ask=Ask("classify", Columns(), {"model": "x"}))
    with job.parts.locked():
        [place, *_] = places_of(job, 40)
        found = Engine(job, partial(serve_fake, FakeSubmit()), Device(0, 1))(
            {name: [one] for name, one in place.items()}
        )
        assert "none of the first 40 rows was answered" in found["refusal"][0]
        assert job.parts.done() == []
