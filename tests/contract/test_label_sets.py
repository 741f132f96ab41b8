"""Named label sets over HTTP: written, read, used in a request, replaced, and who may do so."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from service.api.accounts import Key, hash_of
from service.api.schemas import LabelSetBody
from service.label_sets import LabelSets
from service.settings import Server
from tests.contract.fakes import running

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
        assert written.json() == info | SUPPORT | {"method": "auto", "hierarchy": None}
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
