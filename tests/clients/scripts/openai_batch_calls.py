"""Files and batches with the client of OpenAI against a server: URL and keys are in the environment."""

import json
import os
import time

import openai
from refusals import refused

URL, KEY, LIMITED, OTHER = (os.environ[name] for name in ("URL", "KEY", "LIMITED", "OTHER"))
MODEL = "e5-small"
ENDED = ("completed", "failed", "expired", "cancelled")
WAIT_S = 300


def client(path="/openai/v1", key=KEY, **more):
    return openai.OpenAI(base_url=URL + path, api_key=key, max_retries=0, **more)


def request(index, body=None, url="/v1/embeddings"):
    body = body or {"model": MODEL, "input": f"第{index}条"}
    return {"custom_id": f"line-{index}", "method": "POST", "url": url, "body": body}


def upload(lines, using=None, **more):
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines).encode()
    return (using or client()).files.create(file=("批.jsonl", content), purpose="batch", **more)


def start(lines, endpoint="/v1/embeddings", using=None, **more):
    using = using or client()
    file = upload(lines, using)
    return using.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def ended(batch, using=None):
    until = time.monotonic() + WAIT_S
    while batch.status not in ENDED:
        assert time.monotonic() < until, batch
        time.sleep(0.1)
        batch = (using or client()).batches.retrieve(batch.id)
    return batch


def lines_of(id):
    return [json.loads(line) for line in client().files.content(id).text.splitlines()]


def check_a_file_is_uploaded_listed_read_and_deleted():
    for path in ("/openai/v1", "/v1"):
        using = client(path)
        expiry = {"anchor": "created_at", "seconds": 3600}
        file = upload([request(1)], using, expires_after=expiry)
        assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "批.jsonl", "processed")
        assert file.expires_at == file.created_at + 3600
        assert file.id in [one.id for one in using.files.list(purpose="batch")]
        assert using.files.retrieve(file.id) == file
        assert len(using.files.content(file.id).read()) == file.bytes
        assert using.files.delete(file.id).deleted
        assert file.id not in [one.id for one in using.files.list()]
    error = refused(openai.NotFoundError, lambda: client().files.retrieve("file-none"))
    assert (error.code, error.type) == ("file_not_found", "not_found_error")


def check_pages_of_files_and_batches():
    ids = {upload([request(1)]).id for _ in range(3)}
    assert ids <= {file.id for file in client().files.list(limit=1)}
    batches = {start([request(1)]).id for _ in range(2)}
    assert batches <= {batch.id for batch in client().batches.list(limit=1)}


def check_a_batch_of_embeddings():
    batch = start([request(index) for index in range(100)], metadata={"night": "1"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"night": "1"})
    done = ended(batch)
    assert (done.status, done.model, done.error_file_id) == ("completed", MODEL, None), done
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (100, 100, 0)
    assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
    answers = lines_of(done.output_file_id)
    assert [answer["custom_id"] for answer in answers] == [f"line-{index}" for index in range(100)]
    direct = client().embeddings.create(model=MODEL, input="第7条", encoding_format="float").data[0].embedding
    batched = answers[7]["response"]["body"]["data"][0]["embedding"]
    assert max(abs(one - two) for one, two in zip(direct, batched, strict=True)) < 1e-5
    assert client().files.retrieve(done.output_file_id).purpose == "batch_output"


def check_batches_of_other_endpoints():
    chat = {"model": "auto", "messages": [{"role": "user", "content": "菜很好吃"}]}
    for endpoint, body in (
        ("/v1/moderations", {"input": "滚开"}),
        ("/v1/chat/completions", chat | {"structured_outputs": {"choice": ["好评", "差评"]}}),
        ("/v1/classify", {"inputs": ["菜很好吃"], "labels": ["好评", "差评"]}),
        ("/v1/similarity", {"inputs": [["怎么换手机号", "如何修改手机"]]}),
    ):
        done = ended(start([request(1, body, endpoint)], endpoint))
        assert (done.status, done.request_counts.completed) == ("completed", 1), done
        assert lines_of(done.output_file_id)[0]["response"]["status_code"] == 200


def check_lines_with_errors_are_in_a_file_of_their_own():
    done = ended(start([request(1), request(2, {"model": MODEL, "input": ""}), request(3)]))
    assert (done.status, done.request_counts.completed, done.request_counts.failed) == ("completed", 2, 1)
    [error] = lines_of(done.error_file_id)
    assert (error["custom_id"], error["response"]["status_code"]) == ("line-2", 422)
    assert error["response"]["body"]["error"]["param"] == "input"


def check_wrong_lines_are_named():
    file = client().files.create(file=("x", b'{"custom_id": "1"}\n\n\xff\n'), purpose="batch")
    batch = client().batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    done = ended(batch)
    assert (done.status, done.errors.object, done.output_file_id) == ("failed", "list", None)
    assert [(error.line, error.code) for error in done.errors.data] == [
        (1, "missing_required_parameter"),
        (2, "invalid_json_line"),
        (3, "invalid_json_line"),
    ]


def check_a_batch_is_cancelled():
    batch = start([request(index, {"model": MODEL, "input": [f"很长{index}" * 50] * 20}) for index in range(2000)])
    while client().batches.retrieve(batch.id).status == "validating":
        time.sleep(0.05)
    assert client().batches.cancel(batch.id).status in ("cancelling", "cancelled")
    done = ended(batch)
    assert done.status == "cancelled"
    assert done.request_counts.completed < 2000
    if done.output_file_id:
        assert len(lines_of(done.output_file_id)) == done.request_counts.completed
    assert refused(openai.ConflictError, lambda: client().batches.cancel(batch.id)).code == "batch_has_ended"


def check_wrong_requests_are_refused():
    file = upload([request(1)])
    create = client().batches.create
    error = refused(
        openai.UnprocessableEntityError,
        lambda: create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"),
    )
    assert error.param == "endpoint"
    refused(
        openai.NotFoundError,
        lambda: create(input_file_id="file-none", endpoint="/v1/embeddings", completion_window="24h"),
    )
    error = refused(
        openai.UnprocessableEntityError, lambda: client().files.create(file=("x", b"1"), purpose="fine-tune")
    )
    assert error.param == "purpose"


def check_another_key_sees_nothing():
    batch = start([request(1)])
    done = ended(batch)
    other = client(key=OTHER)
    for call in (
        lambda: other.files.retrieve(batch.input_file_id),
        lambda: other.files.content(done.output_file_id),
        lambda: other.files.delete(batch.input_file_id),
        lambda: other.batches.retrieve(batch.id),
        lambda: other.batches.cancel(batch.id),
    ):
        refused(openai.NotFoundError, call)
    assert batch.id not in [one.id for one in other.batches.list()]


def check_a_batch_of_a_limited_key_waits_for_its_limits():
    patient = client(key=LIMITED).with_options(max_retries=10)
    batch = start([request(index) for index in range(3)], using=patient)
    done = ended(batch, patient)
    assert (done.status, done.request_counts.completed) == ("completed", 3)


def check_a_large_file():
    lines = [request(index, {"model": MODEL, "input": "长" * 5000}) for index in range(1000)]
    file = upload(lines)
    assert file.bytes > 15_000_000
    assert len(client().files.content(file.id).read()) == file.bytes
    client().files.delete(file.id)


async def check_the_asynchronous_client():
    async with openai.AsyncOpenAI(base_url=URL + "/openai/v1", api_key=KEY) as asynchronous:
        file = await asynchronous.files.create(file=("x.jsonl", json.dumps(request(1)).encode()), purpose="batch")
        batch = await asynchronous.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
        )
        assert (await asynchronous.batches.retrieve(batch.id)).input_file_id == file.id
