"""The retrieval parts of LangChain and LlamaIndex against a server: text-embeddings-inference and OpenAI embeddings."""

import asyncio
import math
import os

from huggingface_hub import InferenceClient
from langchain_huggingface import HuggingFaceEndpointEmbeddings
from langchain_openai import OpenAIEmbeddings
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from openai import RateLimitError
from refusals import refused

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
PATIENCE_S = 300
QUERY = "怎么更换手机号"
DOCUMENTS = ["电池多久充满", "如何修改绑定的手机"]


def best(query, documents):
    """The index of the document with the highest cosine."""
    assert all(math.isclose(sum(value * value for value in each), 1, rel_tol=1e-3) for each in (query, *documents))
    products = [sum(a * b for a, b in zip(query, each, strict=True)) for each in documents]
    return products.index(max(products))


def llama_embedder(path="/tei", key=KEY):
    return TextEmbeddingsInference(model_name="e5-small", base_url=URL + path, auth_token=key, timeout=PATIENCE_S)


def llama_reranker(path="/tei", **options):
    return TextEmbeddingInference(base_url=URL + path, auth_token=f"Bearer {KEY}", timeout=PATIENCE_S, **options)


def nodes(texts):
    return [NodeWithScore(node=TextNode(text=text), score=0.5) for text in texts]


def check_llama_index_embeds_at_the_prefix_and_the_root():
    for path in ("/tei", ""):
        embedder = llama_embedder(path)
        assert best(embedder.get_query_embedding(QUERY), embedder.get_text_embedding_batch(DOCUMENTS)) == 1


def check_llama_index_embeds_asynchronously():
    async def embed():
        embedder = llama_embedder()
        return await embedder.aget_query_embedding(QUERY), await embedder.aget_text_embedding_batch(DOCUMENTS)

    assert best(*asyncio.run(embed())) == 1


def check_llama_index_embeds_a_large_batch():
    texts = [f"第{index}条" for index in range(100)]
    assert len(llama_embedder().get_text_embedding_batch(texts)) == 100


def check_llama_index_reranks_at_the_prefix_and_the_root():
    for path in ("/tei", ""):
        found = llama_reranker(path, top_n=2).postprocess_nodes(nodes(DOCUMENTS), QueryBundle(QUERY))
        assert {each.node.text for each in found} == set(DOCUMENTS)
        assert found[0].score >= found[1].score
        assert len(llama_reranker(path, top_n=1).postprocess_nodes(nodes(DOCUMENTS), QueryBundle(QUERY))) == 1


def check_langchain_takes_no_url_but_a_client():
    """Else the detour of docs/clients.md is not needed any more."""
    assert "not a URL" in str(refused(ValueError, lambda: HuggingFaceEndpointEmbeddings(model=f"{URL}/tei")))


def check_langchain_embeds_with_the_client_of_hugging_face():
    for path in ("/tei", "/huggingface"):
        embedder = HuggingFaceEndpointEmbeddings(model="e5-small", huggingfacehub_api_token=KEY)
        embedder.client = InferenceClient(URL + path, token=KEY, timeout=PATIENCE_S)
        assert best(embedder.embed_query(QUERY), embedder.embed_documents(DOCUMENTS)) == 1


def openai_embedder(key=KEY, **options):
    return OpenAIEmbeddings(
        model="e5-small", base_url=f"{URL}/openai/v1", api_key=key, check_embedding_ctx_length=False, **options
    )


def check_langchain_embeds_with_the_client_of_openai():
    embedder = openai_embedder(timeout=PATIENCE_S)
    assert best(embedder.embed_query(QUERY), embedder.embed_documents(DOCUMENTS)) == 1
    assert len(embedder.embed_documents([f"第{index}条" for index in range(300)], chunk_size=100)) == 300


def check_a_request_above_the_limit_is_tried_again():
    embedder = openai_embedder(LIMITED, max_retries=10, timeout=PATIENCE_S)
    assert [len(embedder.embed_query(QUERY)) for _ in range(3)] == [384] * 3
    hasty = openai_embedder(LIMITED, max_retries=0, timeout=PATIENCE_S)
    error = refused(RateLimitError, lambda: [hasty.embed_query(QUERY) for _ in range(20)])
    assert error.response.headers["retry-after"]
