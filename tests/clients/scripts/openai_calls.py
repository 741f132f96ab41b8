"""The client of OpenAI against a server: URL and keys are in the environment."""

import os

import openai
from refusals import refused

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
MODEL = "e5-small"
TEXT = "今天天气怎么样？"


def client(path="/openai/v1", key=KEY, **more):
    return openai.OpenAI(base_url=URL + path, api_key=key, max_retries=0, **more)


def norm(vector):
    return sum(number * number for number in vector) ** 0.5


def check_embeddings_at_the_prefix_and_the_root():
    for path in ("/openai/v1", "/v1"):
        reply = client(path).embeddings.create(input=TEXT, model=MODEL)
        assert len(reply.data[0].embedding) == 384
        assert reply.usage.total_tokens > 0


def check_base64_and_float_are_the_same_vectors():
    encoded = client().embeddings.create(input=TEXT, model=MODEL, encoding_format="base64").data[0].embedding
    floats = client().embeddings.create(input=TEXT, model=MODEL, encoding_format="float").data[0].embedding
    default = client().embeddings.create(input=TEXT, model=MODEL).data[0].embedding
    assert isinstance(encoded, str)
    assert max(abs(one - two) for one, two in zip(floats, default, strict=True)) < 1e-6


def check_dimensions_are_of_length_one():
    vectors = [
        one.embedding for one in client().embeddings.create(input=[TEXT, "明天"], model=MODEL, dimensions=64).data
    ]
    assert [len(vector) for vector in vectors] == [64, 64]
    assert all(abs(norm(vector) - 1) < 1e-5 for vector in vectors)


def check_token_ids():
    reply = client().embeddings.create(input=[[100, 200, 300], [400]], model=MODEL)
    assert [one.index for one in reply.data] == [0, 1]
    assert reply.usage.total_tokens == 8
    error = refused(openai.UnprocessableEntityError, lambda: client().embeddings.create(input=[[10**6]], model=MODEL))
    assert error.param == "input[0]"


def check_a_large_batch_and_one_that_is_too_large():
    texts = [f"第{index}条" for index in range(256)]
    reply = client().embeddings.create(input=texts, model=MODEL)
    assert [one.index for one in reply.data] == list(range(256))
    error = refused(openai.UnprocessableEntityError, lambda: client().embeddings.create(input=texts * 2, model=MODEL))
    assert "at most 256" in error.message


def check_models():
    for path in ("/openai/v1", "/v1"):
        assert {"mini", MODEL} <= {model.id for model in client(path).models.list()}
        assert client(path).models.retrieve(MODEL).id == MODEL
    refused(openai.NotFoundError, lambda: client().models.retrieve("none"))


def check_moderations_of_the_stored_label_set():
    reply = client().moderations.create(input=["滚开，你这个笨蛋", "今天天气很好"])
    assert reply.model == "moderation"
    for result in reply.results:
        scores = result.category_scores.to_dict()
        assert set(scores) == {"辱骂", "广告"}
        assert result.flagged == any(score >= 0.5 for score in scores.values())
    assert client().moderations.create(input=TEXT, model="omni-moderation-latest").results
    refused(openai.NotFoundError, lambda: client().moderations.create(input=TEXT, model="no-such-set"))


def check_errors_are_those_of_the_client():
    error = refused(
        openai.NotFoundError, lambda: client().embeddings.create(input=TEXT, model="text-embedding-3-small")
    )
    assert (error.code, error.type) == ("model_not_found", "not_found_error")
    error = refused(
        openai.AuthenticationError, lambda: client(key="erl_wrong").embeddings.create(input=TEXT, model=MODEL)
    )
    assert error.type == "authentication_error"
    error = refused(openai.UnprocessableEntityError, lambda: client().embeddings.create(input="", model=MODEL))
    assert error.param == "input"


def check_429_is_retried_after_the_wait_that_the_server_names():
    patient = client(key=LIMITED).with_options(max_retries=5)
    retries = [patient.embeddings.with_raw_response.create(input=TEXT, model=MODEL).retries_taken for _ in range(3)]
    assert sum(retries) >= 1, retries


def check_time_outs_of_server_and_client():
    late = {"X-Request-Timeout-Ms": "1"}
    error = refused(
        openai.APIStatusError,
        lambda: client().embeddings.create(input=["很长" * 400] * 64, model=MODEL, extra_headers=late),
    )
    assert (error.status_code, error.body["code"]) in ((504, "deadline_exceeded"), (429, "deadline_unreachable"))
    refused(openai.APITimeoutError, lambda: client(timeout=0.001).embeddings.create(input=TEXT, model=MODEL))


async def check_the_asynchronous_client():
    async with openai.AsyncOpenAI(base_url=URL + "/openai/v1", api_key=KEY) as asynchronous:
        reply = await asynchronous.embeddings.create(input=TEXT, model=MODEL)
    assert len(reply.data[0].embedding) == 384
