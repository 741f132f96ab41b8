"""`InferenceClient` of huggingface_hub against a server, synchronous and asynchronous."""

import os

import refusals
from huggingface_hub import AsyncInferenceClient, InferenceClient, InferenceTimeoutError
from huggingface_hub.errors import HfHubHTTPError

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
TEXT = "这家餐厅的菜很好吃"
LABELS = ["美食", "体育"]
SENTENCES = ["如何修改绑定的手机", "电池多久充满"]


def client(path="", key=KEY, **more):
    return InferenceClient(model=URL + path, token=key, **more)


def refused(call, kind=HfHubHTTPError):
    return refusals.refused(kind, call)


def check_zero_shot_classification():
    for path in ("", "/huggingface", "/huggingface/models/mini", "/huggingface/models/e5-small"):
        found = client(path).zero_shot_classification(TEXT, LABELS)
        assert [one.label for one in found] == LABELS
        assert abs(sum(one.score for one in found) - 1) < 1e-3
    found = client().zero_shot_classification(TEXT, LABELS, multi_label=True, hypothesis_template="这是一条{}新闻")
    assert {one.label for one in found} == set(LABELS)


def check_sentence_similarity():
    first, second = client().sentence_similarity("怎么更换手机号", SENTENCES)
    assert 1 >= first > second


def check_feature_extraction():
    assert client().feature_extraction(TEXT).shape == (384,)
    assert client().feature_extraction([TEXT, TEXT]).shape == (2, 384)
    assert client("/huggingface/models/mini").feature_extraction(TEXT).shape == (256,)
    vector = client().feature_extraction(TEXT, normalize=True, truncate=True, dimensions=64)
    assert vector.shape == (64,)
    assert abs(float((vector * vector).sum()) - 1) < 1e-5


def check_fill_mask():
    found = client().fill_mask("北京是中国的首[MASK]。", top_k=3)
    assert len(found) == 3
    assert found[0].sequence == f"北京是中国的首{found[0].token_str}。"
    targets = client().fill_mask("北京是中国的首[MASK]。", targets=["都", "府"])
    assert [one.token_str for one in targets] == ["都", "府"]


def check_text_classification():
    found = client("/huggingface/models/tuned").text_classification(TEXT)
    assert {one.label for one in found} == {"好评", "差评"}
    assert len(client().text_classification(TEXT, top_k=1)) == 1
    assert "softmax" in str(refused(lambda: client().text_classification(TEXT, function_to_apply="sigmoid")))


def check_question_answering():
    context = "小王早上六点半起床，七点半去上班。"
    answer = client().question_answering(question="小王几点去上班？", context=context)
    assert context[answer.start : answer.end] == answer.answer
    several = client().question_answering(question="小王几点去上班？", context=context, top_k=3, max_answer_len=5)
    assert 1 < len(several) <= 3


def check_a_large_batch():
    assert client().feature_extraction([f"第{index}条" for index in range(256)]).shape == (256, 384)
    error = refused(lambda: client().feature_extraction(["好"] * 257))
    assert "at most 256" in str(error)


def check_errors_have_the_message_of_the_server():
    assert "entry 1 repeats" in str(refused(lambda: client().zero_shot_classification(TEXT, ["好", "好"])))
    assert refused(lambda: client(key="erl_wrong").feature_extraction(TEXT)).response.status_code == 401
    assert refused(lambda: client("/huggingface/models/none").feature_extraction(TEXT)).response.status_code == 404


def check_429_has_the_wait_of_the_server():
    def ask():
        for _ in range(20):
            client(key=LIMITED).feature_extraction(TEXT)

    response = refused(ask).response
    assert response.status_code == 429
    assert int(response.headers["retry-after-ms"]) > 0


def check_a_time_out_of_the_client():
    refused(lambda: client(timeout=0.001).feature_extraction(TEXT), InferenceTimeoutError)


async def check_the_asynchronous_client():
    asynchronous = AsyncInferenceClient(model=URL, token=KEY)
    found = await asynchronous.zero_shot_classification(TEXT, LABELS)
    assert [one.label for one in found] == LABELS
    assert len(await asynchronous.sentence_similarity("怎么更换手机号", SENTENCES)) == 2
    assert (await asynchronous.feature_extraction(TEXT)).shape == (384,)
    assert len(await asynchronous.fill_mask("首[MASK]", top_k=2)) == 2
    assert (await asynchronous.question_answering(question="几点？", context="六点。")).answer
    assert len(await asynchronous.text_classification(TEXT, model=f"{URL}/huggingface/models/tuned")) == 2
