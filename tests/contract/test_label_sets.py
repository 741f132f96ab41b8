"""Named label sets over HTTP: written, read, used in a request, replaced, and who may do so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest

from service.api.accounts import Key, hash_of
from service.api.schemas import LabelSetBody
from service.batching.jobs import RequestResult
from service.domain import RANKS, Encoding, RequestOptions
from service.errors import ReplicaLost
from service.settings import Server
from service.stores.label_sets import LabelSets
from tests.contract.fakes import Service, output_of, running, served_by_both
from tests.fakes import value
from tests.support.servers import until

SUPPORT = {"labels": ["体育", "财经"], "question": "下面新闻属于哪一个类别？"}
ONE = "/v1/label-sets/客服"


def store(folder: Path) -> LabelSets[LabelSetBody]:
    label_sets = LabelSets(folder, partial(LabelSetBody.model_validate, context=Server()), max_sets=2, max_labels=5)
    label_sets.open()
    return label_sets


async def test_a_set_is_written_read_listed_and_deleted(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        written = await service.client.put(ONE, json=SUPPORT)
        assert (written.status_code, written.headers["etag"][:3]) == (201, '"1-')
        info = {"name": "客服", "version": 1, "num_labels": 2, "owner": ""}
        assert written.json() == info | SUPPORT | {"method": "auto", "hierarchy": None, "vectors": None}
        read = await service.client.get(ONE)
        assert (read.json(), read.headers["etag"]) == (written.json(), written.headers["etag"])
        assert (await service.client.get("/v1/label-sets")).json() == {"label_sets": [info]}
        assert (await service.client.put(ONE, json=SUPPORT)).status_code == 200
        stale = await service.client.delete(ONE, headers={"If-Match": read.headers["etag"]})
        assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
        assert (await service.client.delete(ONE)).status_code == 204
        gone = await service.client.get(ONE)
        assert (gone.status_code, gone.json()["code"]) == (404, "label_set_not_found")


async def test_a_request_uses_the_labels_and_the_question_of_a_set(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        await service.client.put(ONE, json=SUPPORT)
        named = await service.post("/v1/classify", {"inputs": ["好吃"], "label_set": "客服"})
        inline = await service.post("/v1/classify", {"inputs": ["好吃"], **SUPPORT})
        assert named.json() == inline.json() | {"label_set": {"name": "客服", "version": 1}}
        own = await service.post("/v1/classify", {"inputs": ["好吃"], "label_set": "客服", "question": "好？"})
        assert own.json()["usage"]["tokens"] < named.json()["usage"]["tokens"]


@pytest.mark.parametrize(
    ("more", "field", "message"),
    [
        ({"label_set": "客服", "labels": ["体育"]}, "labels", "cannot be combined with label_set"),
        ({"label_set": "a/b"}, "label_set", "cannot be the name"),
        ({"label_set": ""}, "label_set", "must not be empty"),
    ],
)
async def test_a_wrong_label_set_is_named(tmp_path: Path, more: dict[str, object], field: str, message: str) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        await service.client.put(ONE, json=SUPPORT)
        response = await service.post("/v1/classify", {"inputs": ["好吃"], **more})
        assert response.status_code == 422
        [error] = response.json()["errors"]
        assert error["field"] == field
        assert message in error["message"]


async def test_a_set_that_is_not_there_is_404(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        response = await service.post("/v1/classify", {"inputs": ["好吃"], "label_set": "news"})
        assert (response.status_code, response.json()["code"]) == (404, "label_set_not_found")


async def test_a_server_without_a_data_directory_says_how_to_get_one() -> None:
    async with running() as service:
        for response in (
            await service.client.get("/v1/label-sets"),
            await service.client.put(ONE, json=SUPPORT),
            await service.post("/v1/classify", {"inputs": ["好吃"], "label_set": "客服"}),
        ):
            assert response.status_code == 404
            assert "--data-dir DIR" in response.json()["detail"]


async def test_a_wrong_set_is_422_and_a_full_quota_403(tmp_path: Path) -> None:
    async with running(label_sets=store(tmp_path)) as service:
        repeated = await service.client.put(ONE, json={"labels": ["a", "a"]})
        assert (repeated.status_code, repeated.json()["errors"][0]["field"]) == (422, "labels")
        unknown = await service.client.put(ONE, json={"labels": ["a"], "questoin": "b"})
        assert "did you mean question?" in unknown.json()["detail"]
        many = await service.client.put(ONE, json={"labels": list("abcdef")})
        assert (many.status_code, many.json()["code"]) == (403, "quota_exceeded")


async def test_an_infer_key_reads_and_only_an_admin_key_writes(tmp_path: Path) -> None:
    keys = {
        "reader": Key(hash=hash_of("r"), scopes=frozenset({"infer"})),
        "writer": Key(hash=hash_of("w"), scopes=frozenset({"admin"})),
        "scraper": Key(hash=hash_of("m"), scopes=frozenset({"metrics"})),
    }
    async with running(label_sets=store(tmp_path), keys=keys) as service:
        seen = {}
        for secret in "wrm":
            headers = {"X-API-Key": secret}
            calls = [
                await service.client.put(ONE, json=SUPPORT, headers=headers),
                await service.client.get(ONE, headers=headers),
                await service.client.get("/v1/label-sets", headers=headers),
                await service.client.delete(f"{ONE}2", headers=headers),
            ]
            seen[secret] = [each.status_code for each in calls]
        assert seen == {"w": [201, 200, 200, 404], "r": [403, 200, 200, 403], "m": [403, 403, 403, 403]}
        assert (await service.client.get(ONE, headers={"X-API-Key": "r"})).json()["owner"] == "writer"


# vectors that are prepared

MANY = {"labels": [f"体{end}" for end in "育财经娱乐"]}


class Gate:
    """A submit that lets rows of labels pass when it is opened; the first `num_refused` times it refuses them."""

    def __init__(self, num_refused: int = 0) -> None:
        self.is_open = asyncio.Event()
        self.arrived = asyncio.Event()
        self.num_refused = num_refused
        self.num_chunks = 0
        self.options: list[RequestOptions] = []

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions) -> RequestResult:
        if options.priority == RANKS["bulk"]:
            self.options.append(options)
            self.arrived.set()
            await self.is_open.wait()
            self.num_chunks += 1
            if self.num_chunks <= self.num_refused:
                raise ReplicaLost("the replica was lost twice")
        return RequestResult([output_of(each) for each in encodings], 0.0, 0.0)


@asynccontextmanager
async def preparing(folder: Path, gate: Gate | None = None) -> AsyncIterator[tuple[Service, Gate]]:
    """A service whose sets are all large."""
    gate = gate or Gate()
    async with running(*served_by_both(), label_sets=store(folder), submit=gate, small=0) as service:  # type: ignore[arg-type]
        yield service, gate


async def classify(service: Service, **more: object) -> httpx.Response:
    return await service.post("/v1/classify", {"inputs": ["好吃"], "label_set": "客服", **more})


async def kept(service: Service) -> None:
    """Waits until the vectors of all sets are kept."""
    await until(lambda: value(service.metrics, "label_sets_preparing") == 0, within_s=30)


async def test_a_large_set_is_accepted_with_its_progress_and_kept_later(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        written = await service.client.put(ONE, json=MANY)
        assert (written.status_code, written.json()["vectors"]) == (202, {"done": 0, "of": 5, "error": None})
        gate.is_open.set()
        await kept(service)
        assert (await service.client.get(ONE)).json()["vectors"] == {"done": 5, "of": 5, "error": None}
        reply = (await classify(service)).json()
        assert (reply["label_set"]["version"], reply["usage"]["label_tokens"]) == (1, 0)
        assert (await service.client.put(ONE, json=MANY | {"question": "什么？"})).status_code == 200
        assert {each.priority for each in gate.options} == {RANKS["bulk"]}
        assert value(service.metrics, "label_set_vectors_total", result="kept") == 1
        assert value(service.metrics, "label_sets_preparing") == 0


async def test_a_small_set_is_ready_when_its_response_is_sent(tmp_path: Path) -> None:
    gate = Gate()
    gate.is_open.set()
    async with running(*served_by_both(), label_sets=store(tmp_path), submit=gate) as service:  # type: ignore[arg-type]
        written = await service.client.put(ONE, json=MANY)
        assert (written.status_code, written.json()["vectors"]["done"]) == (201, 5)
        assert (await classify(service)).json()["usage"]["label_tokens"] == 0


async def test_a_new_set_makes_its_requests_wait_for_it(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        await service.client.put(ONE, json=MANY)
        late = await classify(service, timeout_ms=50)
        assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
        assert "0 of 5 labels are done" in late.json()["detail"]
        waiting = asyncio.create_task(classify(service))
        gate.is_open.set()
        assert (await waiting).status_code == 200


async def test_the_version_before_answers_until_the_next_one_is_prepared(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        gate.is_open.set()
        await service.client.put(ONE, json=MANY)
        await kept(service)
        await classify(service)
        gate.is_open.clear()
        assert (await service.client.put(ONE, json={"labels": ["体育", "游戏"]})).status_code == 202
        during = [(await classify(service)).json() for _ in range(3)]
        assert [(each["label_set"]["version"], len(each["results"][0]["scores"])) for each in during] == [(1, 5)] * 3
        gate.is_open.set()
        await kept(service)
        after = (await classify(service)).json()
        assert (after["label_set"]["version"], len(after["results"][0]["scores"])) == (2, 2)


async def test_a_set_that_is_replaced_under_load_loses_no_request(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        gate.is_open.set()
        await service.client.put(ONE, json=MANY)

        async def ask() -> list[httpx.Response]:
            return [await classify(service) for _ in range(10)]

        async def replace_often() -> list[int]:
            return [
                (await service.client.put(ONE, json={"labels": ["体育", end]})).status_code
                for end in ("游戏", "科技", "社会", "时政", "房产")
            ]

        *answers, written = await asyncio.gather(ask(), ask(), ask(), replace_often())
        assert set(written) <= {200, 202}
        assert {each.status_code for each in (*answers[0], *answers[1], *answers[2])} == {200}  # type: ignore[union-attr]


async def test_a_preparation_goes_on_after_a_failure(tmp_path: Path) -> None:
    async with preparing(tmp_path, Gate(num_refused=2)) as (service, gate):
        await service.client.put(ONE, json=MANY)
        gate.is_open.set()
        assert (await classify(service)).status_code == 200
        assert gate.num_chunks == 3


async def test_a_set_that_is_deleted_ends_its_preparation_and_its_requests(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        await service.client.put(ONE, json=MANY)
        waiting = asyncio.create_task(classify(service))
        await gate.arrived.wait()
        assert (await service.client.delete(ONE)).status_code == 204
        assert (await waiting).status_code == 404
        assert value(service.metrics, "label_set_vectors_total", result="cancelled") == 1
        assert value(service.metrics, "label_sets_preparing") == 0


async def test_vectors_that_do_not_fit_are_refused_with_the_setting(tmp_path: Path) -> None:
    models = served_by_both()
    models[1].label_vectors.max_bytes = 8
    gate = Gate()
    gate.is_open.set()
    async with running(*models, label_sets=store(tmp_path), submit=gate, small=0) as service:  # type: ignore[arg-type]
        await service.client.put(ONE, json=MANY)
        refused = await classify(service)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "label_set")
        assert "label_vectors_bytes" in refused.json()["detail"]
        assert "label_vectors_bytes" in (await service.client.get(ONE)).json()["vectors"]["error"]


async def test_stored_sets_are_prepared_when_a_server_starts(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, _):
        await service.client.put(ONE, json=MANY)
    gate = Gate()
    gate.is_open.set()
    async with preparing(tmp_path, gate) as (service, _):
        assert service.versions is not None
        await service.versions.prepare_all()
        await kept(service)
        assert gate.num_chunks == 1


async def test_a_hierarchy_of_a_set_is_checked_when_it_is_written(tmp_path: Path) -> None:
    async with preparing(tmp_path) as (service, gate):
        gate.is_open.set()
        wrong = await service.client.put(ONE, json={"labels": ["体//育"], "hierarchy": "/"})
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "labels[0]")
        paths = {"labels": ["体育/拍照", "体育/游戏", "财经"], "hierarchy": "/"}
        assert (await service.client.put(ONE, json=paths)).json()["vectors"]["of"] == 4
        [result] = (await classify(service)).json()["results"]
        by_label = {each["label"]: each for each in result["scores"]}
        assert [each["label"] for each in by_label["体育/游戏"]["parents"]] == ["体育"]
