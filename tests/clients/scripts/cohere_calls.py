"""The clients of Cohere, v1 and v2, against a server."""

import os
from functools import partial

import cohere
import refusals
from cohere.core.api_error import ApiError

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
MODEL = "e5-small"
QUERY = "怎么更换手机号"
DOCUMENTS = ["电池多久充满", "如何修改绑定的手机"]
refused = partial(refusals.refused, ApiError)


def v2(path="/cohere", key=KEY):
    return cohere.ClientV2(base_url=URL + path, api_key=key)


def v1(path="/cohere", key=KEY):
    return cohere.Client(base_url=URL + path, api_key=key)


def check_v2_at_the_prefix_and_the_root():
    for path in ("/cohere", ""):
        reply = v2(path).rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)
        assert [one.index for one in reply.results] == [1, 0]
        assert 1 >= reply.results[0].relevance_score > reply.results[1].relevance_score >= 0
        assert reply.meta.api_version.version == "2"
    assert len(v2().rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=1).results) == 1


def check_v1_with_documents_and_rank_fields():
    for path in ("/cohere", ""):
        reply = v1(path).rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, return_documents=True)
        assert reply.results[0].document.text == DOCUMENTS[1]
    fields = [{"title": "电池", "text": DOCUMENTS[0]}, {"title": "手机", "text": DOCUMENTS[1]}]
    reply = v1().rerank(model=MODEL, query=QUERY, documents=fields, rank_fields=["title", "text"])
    assert [one.index for one in reply.results] == [1, 0]


def check_a_cross_encoder_answers_where_no_model_is_named():
    reply = v1().rerank(query=QUERY, documents=DOCUMENTS)
    assert len(reply.results) == 2
    named = v2().rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    assert [one.relevance_score for one in reply.results] == [one.relevance_score for one in named.results]


def check_a_large_batch_and_one_that_is_too_large():
    documents = [f"第{index}条" for index in range(256)]
    assert len(v2().rerank(model=MODEL, query=QUERY, documents=documents).results) == 256
    error = refused(lambda: v2().rerank(model=MODEL, query=QUERY, documents=[*documents, "好"]))
    assert error.status_code == 422
    assert "at most 256" in error.body["message"]


def check_errors():
    assert refused(lambda: v2().rerank(model="rerank-v4.0", query=QUERY, documents=DOCUMENTS)).status_code == 404
    assert refused(lambda: v2(key="erl_wrong").rerank(model=MODEL, query=QUERY, documents=DOCUMENTS)).status_code == 401
    assert refused(lambda: v2().rerank(model=MODEL, query="", documents=DOCUMENTS)).status_code == 422


def check_429_is_retried_after_the_wait_that_the_server_names():
    patient = {"max_retries": 5}
    for _ in range(3):
        v2(key=LIMITED).rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, request_options=patient)


async def check_the_asynchronous_clients():
    reply = await cohere.AsyncClientV2(base_url=URL + "/cohere", api_key=KEY).rerank(
        model=MODEL, query=QUERY, documents=DOCUMENTS
    )
    assert [one.index for one in reply.results] == [1, 0]
    reply = await cohere.AsyncClient(base_url=URL + "/cohere", api_key=KEY).rerank(
        model=MODEL, query=QUERY, documents=DOCUMENTS
    )
    assert len(reply.results) == 2
