"""OpenAI's Files and Batches: uploads, jobs in the background, restarts, cancelling, expiry, owners and quotas."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.accounts import Key, hash_of
from service.api.lines import batch_runner
from service.api.lines.batch_runner import BatchRunner
from service.batching.jobs import RequestResult
from service.domain import DEFAULT_OPTIONS, RANKS, Encoding, RequestOptions
from service.errors import QueueFull
from service.settings import Server
from service.stores.batches import WINDOW_S, BatchStore
from tests.contract.fakes import FakeSubmit, Service, running
from tests.contract.protocols import both
from tests.fakes import FakeClock, value
from tests.support import servers
from tests.unit.stores.opened import everything, open_files

pytestmark = pytest.mark.anyio
FILES, BATCHES = "/openai/v1/files", "/openai/v1/batches"
EMBED = "/v1/embeddings"
BODY = {"input": "好吃", "model": "e5"}


def store(folder: Path, clock: FakeClock | None = None, **more: int) -> BatchStore:
    limits = {"max_file_bytes": 100_000, "max_files": 50, "max_key_bytes": 10**6, "max_bytes": 10**7, "max_lines": 100}
    return BatchStore(open_files(folder, clock, **{**limits, **more}))


@asynccontextmanager
async def working(
    batches: BatchStore, submit: FakeSubmit | None = None, keys: Mapping[str, Key] | None = None, **more: Any
) -> AsyncIterator[Service]:
    """A service whose runner looks for batches all the time."""
    async with running(*both(), batches=batches, submit=submit, keys=keys, **more) as service:
        runner: BatchRunner = service.app.state.batch_runner
        runner.poll_s = 0.005
        async with runner.running():
            yield service


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner saves all the time, and waits for no line that is in work."""
    monkeypatch.setattr(batch_runner, "SAVE_S", 0.01)
    monkeypatch.setattr(batch_runner, "GRACE_S", 0.01)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with working(store(tmp_path)) as service:
        yield service


def line(custom_id: str, body: Any = BODY, url: str = EMBED) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def jsonl(*lines: Any) -> bytes:
    return b"".join(json.dumps(each, ensure_ascii=False).encode() + b"\n" for each in lines)


async def upload(service: Service, content: bytes, secret: str = "", **fields: str) -> httpx.Response:
    return await service.client.post(
        FILES,
        files={"file": ("in.jsonl", content)},
        data={"purpose": "batch", **fields},
        headers={"Authorization": f"Bearer {secret}"} if secret else {},
    )


async def start(service: Service, *lines: Any, endpoint: str = EMBED, secret: str = "", **more: Any) -> dict[str, Any]:
    """A new batch."""
    file = (await upload(service, jsonl(*lines), secret)).json()
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h", **more}
    response = await service.post(BATCHES, body, **({"Authorization": f"Bearer {secret}"} if secret else {}))
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def read(service: Service, batch: Mapping[str, Any], secret: str = "") -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    found: dict[str, Any] = (await service.client.get(f"{BATCHES}/{batch['id']}", headers=headers)).json()
    return found


async def ended(service: Service, batch: Mapping[str, Any], *statuses: str, secret: str = "") -> dict[str, Any]:
    """The batch once it has one of the statuses: by default, once it has ended."""
    wanted = statuses or ("completed", "failed", "expired", "cancelled")
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        found.update(await read(service, batch, secret))
        return found["status"] in wanted

    await until_true(has_ended)
    return found


async def until(condition: Callable[[], bool]) -> None:
    await servers.until(condition, within_s=30)


async def until_true(check: Any) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.to_thread(lambda: None)


async def content(service: Service, id: str | None) -> list[dict[str, Any]]:
    response = await service.client.get(f"{FILES}/{id}/content")
    assert response.status_code == 200, response.text
    return [json.loads(each) for each in response.content.splitlines()]


# files


async def test_a_file_is_uploaded_read_listed_and_deleted(service: Service) -> None:
    data = jsonl(line("1"), line("2"))
    file = (await upload(service, data)).json()
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": len(data),
        "created_at": 100,
        "expires_at": 7300,
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    one = f"{FILES}/{file['id']}"
    assert (await service.client.get(one)).json() == file
    assert (await service.client.get(f"{one}/content")).content == data
    assert (await service.client.get(FILES)).json()["data"] == [file]
    assert (await service.client.delete(one)).json() == {"id": file["id"], "object": "file", "deleted": True}
    gone = await service.client.get(one)
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_not_found")


async def test_files_are_at_the_root_too_and_in_pages(service: Service) -> None:
    ids = [(await upload(service, b"x")).json()["id"] for _ in range(3)]
    first = (await service.client.get("/v1/files", params={"limit": 2, "order": "asc"})).json()
    after = {"limit": 2, "order": "asc", "after": first["last_id"]}
    second = (await service.client.get("/v1/files", params=after)).json()
    assert sorted(each["id"] for page in (first, second) for each in page["data"]) == sorted(ids)
    assert (first["has_more"], second["has_more"], len(second["data"])) == (True, False, 1)
    assert (await service.client.get("/v1/files", params={"purpose": "batch_output"})).json()["data"] == []


async def test_an_upload_may_name_when_it_expires(service: Service) -> None:
    named = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    assert (await upload(service, b"x", **named)).json()["expires_at"] == 3700


async def test_a_wrong_field_of_an_upload_is_named(service: Service) -> None:
    wrong: list[tuple[dict[str, str], str]] = [
        ({"purpose": "fine-tune"}, "purpose"),
        ({"user": "me"}, "user"),
        ({"expires_after[anchor]": "last_used"}, "expires_after.anchor"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
    ]
    for fields, param in wrong:
        response = await upload(service, b"x", **fields)
        assert (response.status_code, response.json()["error"]["param"]) == (422, param)
    assert (await service.client.get(FILES)).json()["data"] == []


async def test_a_wrong_page_is_named(service: Service) -> None:
    for name, text in (("limit", "0"), ("limit", "x"), ("order", "up"), ("after", "file-none")):
        response = await service.client.get(FILES, params={name: text})
        assert (response.status_code, response.json()["error"]["param"]) == (422, name)


async def test_an_upload_that_is_too_large_leaves_nothing(service: Service, tmp_path: Path) -> None:
    for size in (100_001, 300_000):
        response = await upload(service, b"x" * size)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert everything(tmp_path) == []


async def test_a_body_that_is_no_form_is_refused(service: Service) -> None:
    response = await service.client.post(FILES, json={"purpose": "batch"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "malformed_body")


async def test_a_server_without_a_data_directory_says_how_to_get_one() -> None:
    async with running() as service:
        body = {"input_file_id": "file-1", "endpoint": EMBED, "completion_window": "24h"}
        for response in (
            await upload(service, b"x"),
            await service.client.get(FILES),
            await service.client.get(f"{FILES}/file-1/content"),
            await service.post(BATCHES, body),
            await service.client.get(f"{BATCHES}/batch_1"),
        ):
            assert response.status_code == 404
            assert "--data-dir DIR" in response.json()["error"]["message"]


# batches


async def test_a_batch_answers_each_line_and_writes_errors_to_a_file_of_their_own(service: Service) -> None:
    wrong = {"input": "", "model": "e5"}
    batch = await start(
        service, line("a"), line("b", wrong), line("c", BODY | {"input": ["好", "吃"]}), metadata={"n": "1"}
    )
    assert (batch["object"], batch["status"], batch["metadata"]) == ("batch", "validating", {"n": "1"})
    assert batch["expires_at"] - batch["created_at"] == WINDOW_S
    done = await ended(service, batch)
    assert (done["status"], done["model"], done["errors"]) == ("completed", "e5", None)
    assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert all(done[f"{name}_at"] == 100 for name in ("in_progress", "finalizing", "completed"))
    answers = await content(service, done["output_file_id"])
    assert [each["custom_id"] for each in answers] == ["a", "c"]
    direct = (await service.post(EMBED, BODY)).json()
    assert (answers[0]["response"]["status_code"], answers[0]["response"]["body"]) == (200, direct)
    assert (answers[0]["error"], len({each["id"] for each in answers})) == (None, 2)
    [failed] = await content(service, done["error_file_id"])
    assert (failed["custom_id"], failed["response"]["status_code"], failed["error"]) == ("b", 422, None)
    assert failed["response"]["body"]["error"]["param"] == "input"


async def test_any_path_that_answers_texts_can_be_the_endpoint(service: Service) -> None:
    chat = {
        "model": "auto",
        "messages": [{"role": "user", "content": "好吃"}],
        "structured_outputs": {"choice": ["好", "差"]},
    }
    for url, body, field in (
        ("/v1/classify", {"inputs": ["好吃"], "labels": ["体育", "财经"]}, "results"),
        ("/v1/similarity", {"inputs": [["好", "吃"]]}, "results"),
        ("/openai/v1/embeddings", BODY, "data"),
        ("/v1/chat/completions", chat, "choices"),
    ):
        done = await ended(service, await start(service, line("1", body, url), endpoint=url))
        assert done["error_file_id"] is None
        [answer] = await content(service, done["output_file_id"])
        assert answer["response"]["body"][field]


async def test_another_endpoint_is_refused_at_once(service: Service) -> None:
    for endpoint in ("/v1/models", "/v1/batches", "/v1/files", "/v1/completions", "v1/embeddings", "/mcp"):
        body = {"input_file_id": "file-1", "endpoint": endpoint, "completion_window": "24h"}
        response = await service.post(BATCHES, body)
        assert (response.status_code, response.json()["error"]["param"]) == (422, "endpoint")
        assert "/v1/embeddings" in response.json()["error"]["message"]


async def test_a_wrong_field_of_a_batch_is_named(service: Service) -> None:
    for more, param in (
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {str(number): "x" for number in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after.seconds"),
        ({"nonsense": 1}, "nonsense"),
    ):
        body = {"input_file_id": "file-1", "endpoint": EMBED, "completion_window": "24h", **more}
        response = await service.post(BATCHES, body)
        assert (response.status_code, response.json()["error"]["param"]) == (422, param)


async def test_a_batch_of_a_file_that_is_not_there_is_404(service: Service) -> None:
    response = await service.post(BATCHES, {"input_file_id": "file-1", "endpoint": EMBED, "completion_window": "24h"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "file_not_found")


async def test_a_file_with_wrong_lines_fails_as_a_whole_with_each_of_them(service: Service) -> None:
    batch = await start(service, line("a"), line("a"), line("b", url="/v1/moderations"))
    done = await ended(service, batch)
    assert (done["status"], done["failed_at"], done["output_file_id"]) == ("failed", 100, None)
    assert done["errors"]["object"] == "list"
    assert [(each["line"], each["code"]) for each in done["errors"]["data"]] == [
        (2, "duplicate_custom_id"),
        (3, "url_mismatch"),
    ]
    assert service.submit.calls == []


async def test_lines_wait_at_the_lowest_priority_while_the_queue_is_full(tmp_path: Path) -> None:
    submit = FakeSubmit(error=QueueFull("full", retry_after_s=0.001))
    async with working(store(tmp_path), submit) as service:
        batch = await start(service, line("a"), line("b"))
        await until(lambda: len(submit.calls) >= 6)
        assert (await read(service, batch))["status"] == "in_progress"
        submit.error = None
        done = await ended(service, batch)
    assert (done["status"], done["request_counts"]["completed"]) == ("completed", 2)
    assert {each.priority for each in submit.options} == {RANKS["bulk"]}


class Stuck(FakeSubmit):
    """Answers so many rows, and none after them."""

    def __init__(self, num_answered: int) -> None:
        super().__init__()
        self.num_answered = num_answered

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> RequestResult:
        if len(self.calls) == self.num_answered:
            self.gate = asyncio.Event()
        return await super().__call__(encodings, options)


async def test_a_batch_goes_on_after_its_last_answer_with_one_line_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "GRACE_S", 0.01)
    stuck, again = Stuck(20), FakeSubmit()
    async with working(store(tmp_path), stuck) as service:
        batch = await start(service, *(line(str(number)) for number in range(40)))
        await until(lambda: len(stuck.calls) >= 40)
    async with working(store(tmp_path), again) as service:
        done = await ended(service, batch)
        answers = await content(service, done["output_file_id"])
    assert [each["custom_id"] for each in answers] == [str(number) for number in range(40)]
    assert done["request_counts"] == {"total": 40, "completed": 40, "failed": 0}
    assert len(again.calls) == 20


async def test_cancel_stops_at_the_lines_in_work_and_keeps_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "SAVE_S", 0.01)
    look, found = BatchRunner._look, list[Any]()

    def note(*args: Any) -> Any:
        found.append(look(*args))
        return found[-1]

    monkeypatch.setattr(BatchRunner, "_look", note)
    submit = FakeSubmit(gate=asyncio.Event())
    async with working(store(tmp_path), submit) as service:
        batch = await start(service, *(line(str(number)) for number in range(100)))
        await until(lambda: len(submit.calls) == batch_runner.NUM_IN_WORK)
        cancelled = (await service.post(f"{BATCHES}/{batch['id']}/cancel", {})).json()
        assert (cancelled["status"], cancelled["cancelling_at"]) == ("cancelling", 100)
        await until(lambda: found[-1] is not None)  # else answered lines may make room for others
        assert submit.gate is not None
        submit.gate.set()
        done = await ended(service, batch)
        assert (done["status"], done["cancelled_at"]) == ("cancelled", 100)
        assert len(await content(service, done["output_file_id"])) == done["request_counts"]["completed"] == 32
        refused = await service.post(f"{BATCHES}/{batch['id']}/cancel", {})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "batch_has_ended")
    assert len(submit.calls) == batch_runner.NUM_IN_WORK


@pytest.mark.usefixtures("hurried")
async def test_cancel_does_not_wait_long_for_lines_that_wait(tmp_path: Path) -> None:
    submit = FakeSubmit(error=QueueFull("full", retry_after_s=0.001))
    async with working(store(tmp_path), submit) as service:
        batch = await start(service, line("a"))
        await until(lambda: len(submit.calls) >= 2)
        await service.client.post(f"{BATCHES}/{batch['id']}/cancel")
        done = await ended(service, batch)
    assert (done["status"], done["output_file_id"], done["error_file_id"]) == ("cancelled", None, None)


@pytest.mark.usefixtures("hurried")
async def test_lines_that_are_left_when_a_batch_expires_are_errors(tmp_path: Path) -> None:
    clock, submit = FakeClock(), FakeSubmit(error=QueueFull("full", retry_after_s=0.001))
    async with working(store(tmp_path, clock, expiry_s=10**6), submit) as service:
        batch = await start(service, *(line(str(number)) for number in range(50)))
        await until(lambda: len(submit.calls) >= 2)
        clock.now += WINDOW_S
        done = await ended(service, batch)
        errors = await content(service, done["error_file_id"])
    assert (done["status"], done["request_counts"]) == ("expired", {"total": 50, "completed": 0, "failed": 50})
    assert [(each["custom_id"], each["response"]) for each in errors] == [(str(number), None) for number in range(50)]
    assert {each["error"]["code"] for each in errors} == {"batch_expired"}


@pytest.mark.usefixtures("hurried")
async def test_a_batch_whose_file_is_deleted_ends(tmp_path: Path) -> None:
    submit = FakeSubmit(error=QueueFull("full", retry_after_s=0.001))
    async with working(store(tmp_path), submit) as service:
        batch = await start(service, line("a"))
        await until(lambda: len(submit.calls) >= 2)
        await service.client.delete(f"{FILES}/{batch['input_file_id']}")
        done = await ended(service, batch)
    assert (done["status"], [each["code"] for each in done["errors"]["data"]]) == ("failed", ["file_not_found"])


async def test_a_batch_that_would_write_more_than_the_quota_ends_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "SAVE_S", 0.0)
    monkeypatch.setattr(batch_runner, "NUM_IN_WORK", 1)
    async with working(store(tmp_path, max_key_bytes=20_000)) as service:
        batch = await start(service, *(line(str(number)) for number in range(90)))
        done = await ended(service, batch)
        answers = await content(service, done["output_file_id"])
    assert (done["status"], done["errors"]["data"][0]["code"]) == ("failed", "quota_exceeded")
    assert 0 < len(answers) == done["request_counts"]["completed"] < 90


async def test_a_damaged_or_full_disk_makes_a_batch_wait_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "RETRY_S", 0.01)
    batches = store(tmp_path)
    claim, failures = batches.claim, [1, 2]

    def fail_twice(batch: Any) -> Any:
        journal = claim(batch)
        if journal is not None and failures:
            failures.pop()

            def fail(lines: Sequence[bytes]) -> None:
                raise OSError(28, "No space left on device")

            journal.append = fail  # type: ignore[method-assign]
        return journal

    monkeypatch.setattr(batches, "claim", fail_twice)
    async with working(batches) as service:
        done = await ended(service, await start(service, line("a"), line("b")))
    assert (done["status"], done["request_counts"]["completed"], failures) == ("completed", 2, [])


async def test_batches_are_listed_in_pages_the_newest_first(tmp_path: Path) -> None:
    clock = FakeClock()
    async with working(store(tmp_path, clock)) as service:
        ids = []
        for _ in range(3):
            clock.now += 1
            ids.insert(0, (await start(service, line("a")))["id"])
        first = (await service.client.get("/v1/batches", params={"limit": 2})).json()
        second = (await service.client.get("/v1/batches", params={"limit": 2, "after": first["last_id"]})).json()
    assert [each["id"] for page in (first, second) for each in page["data"]] == ids
    assert (first["has_more"], second["has_more"]) == (True, False)


# accounts

KEYS = {name: Key(hash=hash_of(name), scopes=frozenset({"infer"})) for name in ("one", "two")}


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def test_another_key_finds_neither_files_nor_batches(tmp_path: Path) -> None:
    async with working(store(tmp_path), keys=KEYS) as service:
        batch = await start(service, line("a"), secret="one")
        done = await ended(service, batch, secret="one")
        for path in (
            f"{FILES}/{batch['input_file_id']}",
            f"{FILES}/{batch['input_file_id']}/content",
            f"{FILES}/{done['output_file_id']}/content",
            f"{BATCHES}/{batch['id']}",
        ):
            assert (await service.client.get(path, headers=bearer("two"))).status_code == 404
        others = [await service.client.get(path, headers=bearer("two")) for path in (FILES, BATCHES)]
        assert [each.json()["data"] for each in others] == [[], []]
        cancel = await service.client.post(f"{BATCHES}/{batch['id']}/cancel", headers=bearer("two"))
        deleted = await service.client.delete(f"{FILES}/{batch['input_file_id']}", headers=bearer("two"))
        assert (cancel.status_code, deleted.status_code) == (404, 404)
        body = {"input_file_id": batch["input_file_id"], "endpoint": EMBED, "completion_window": "24h"}
        assert (await service.post(BATCHES, body, **bearer("two"))).status_code == 404
        assert (await service.client.get(f"{FILES}/{done['output_file_id']}", headers=bearer("one"))).status_code == 200


async def test_the_lines_count_for_the_key_of_the_batch(tmp_path: Path) -> None:
    async with working(store(tmp_path), keys=KEYS) as service:
        await ended(service, await start(service, line("a"), line("b"), secret="one"), secret="one")
        assert {each.account for each in service.submit.options} == {"one"}
        assert value(service.metrics, "key_tokens_total", key="one") == 8


async def test_the_batches_of_two_keys_share_the_lines_in_work(tmp_path: Path) -> None:
    submit = FakeSubmit(gate=asyncio.Event())
    lines = [line(str(number)) for number in range(60)]
    async with working(store(tmp_path), submit, KEYS) as service:
        first = await start(service, *lines, secret="one")
        await until(lambda: len(submit.calls) == batch_runner.NUM_IN_WORK)
        second = await start(service, *lines, secret="two")
        await until(lambda: len(submit.calls) == batch_runner.NUM_IN_WORK * 3 // 2)
        assert [each.account for each in submit.options].count("two") == batch_runner.NUM_IN_WORK // 2
        assert submit.gate is not None
        submit.gate.set()
        done = [await ended(service, batch, secret=secret) for batch, secret in ((first, "one"), (second, "two"))]
    assert [each["status"] for each in done] == ["completed", "completed"]


async def test_a_batch_of_a_key_that_was_revoked_fails(tmp_path: Path) -> None:
    batches = store(tmp_path)
    with batches.files.upload("gone") as uploading:
        uploading.write(jsonl(line("a")))
        file = uploading.keep("in.jsonl", "batch")
    batch = batches.create("gone", endpoint=EMBED, input_file_id=file.id)
    async with working(batches, keys=KEYS):
        await until(lambda: batches.get("gone", batch.id).has_ended)
    found = batches.get("gone", batch.id)
    assert (found.status, [each["code"] for each in found.errors]) == ("failed", ["unauthorized"])


async def test_a_key_without_the_scope_infer_is_refused(tmp_path: Path) -> None:
    keys = {"boss": Key(hash=hash_of("b"), scopes=frozenset({"admin", "metrics"}))}
    async with working(store(tmp_path), keys=keys) as service:
        assert [(await service.client.get(path, headers=bearer("b"))).status_code for path in (FILES, BATCHES)] == [
            403,
            403,
        ]


# what operators see


async def test_batches_are_counted_by_status_and_lines_by_result(service: Service) -> None:
    await ended(service, await start(service, line("a"), line("b", {"input": "", "model": "e5"})))
    await until(lambda: value(service.metrics, "batch_jobs_running") == 0)
    assert value(service.metrics, "batch_jobs_total", status="completed") == 1
    lines = [value(service.metrics, "batch_job_lines_total", result=result) for result in ("completed", "failed")]
    assert lines == [1, 1]


async def test_no_text_is_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    await ended(service, await start(service, line("秘密", {"input": "秘密", "model": "none"})))
    assert "秘密" not in caplog.text


async def test_expired_files_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_runner, "SWEEP_S", 0.0)
    clock = FakeClock()
    async with working(store(tmp_path, clock)) as service:
        await upload(service, b"x")
        assert len(everything(tmp_path)) == 2
        clock.now += 7200
        await until(lambda: not everything(tmp_path))


async def test_the_limits_of_a_line_are_those_of_a_request(tmp_path: Path) -> None:
    limits = Server(max_body_bytes=2048, memory_budget_bytes=0)
    async with working(store(tmp_path), settings=limits) as service:
        done = await ended(service, await start(service, line("a", BODY | {"input": "好" * 4000})))
    assert [each["code"] for each in done["errors"]["data"]] == ["invalid_json_line"]
