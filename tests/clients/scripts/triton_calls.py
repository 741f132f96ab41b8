"""`tritonclient[http]`, synchronous and asynchronous, against a server: the Open Inference Protocol v2."""

import os
from functools import partial

import numpy as np
import refusals
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
HOST = URL.removeprefix("http://")
PATIENCE_S = 300
LABELS = ["好评", "差评"]
TEXTS = ["这家餐厅的菜很好吃", "太难吃了，再也不来"]
refused = partial(refusals.refused, InferenceServerException)


def client(path="/kserve"):
    return triton.InferenceServerClient(HOST + path, network_timeout=PATIENCE_S)


def headers(key=KEY):
    return {"Authorization": f"Bearer {key}"}


def tensors(binary=True, **texts):
    found = []
    for name, elements in texts.items():
        tensor = triton.InferInput(name, [len(elements)], "BYTES")
        data = [element.encode() for element in elements] if binary else elements
        tensor.set_data_from_numpy(np.array(data, dtype=np.object_), binary_data=binary)
        found.append(tensor)
    return found


def infer(model, path="/kserve", key=KEY, binary=True, outputs=None, more=None, **texts):
    inputs = tensors(binary, **texts)
    return client(path).infer(model, inputs, outputs=outputs, headers=headers(key), **(more or {}))


def texts_of(result, name):
    return [each.decode() if isinstance(each, bytes) else each for each in result.as_numpy(name).ravel()]


def check_health_and_metadata():
    for path in ("/kserve", ""):
        asked = client(path)
        assert asked.is_server_live()
        assert asked.is_server_ready()
        assert asked.is_model_ready("mini", headers=headers())
        assert asked.is_model_ready("mini", "1", headers=headers())
        assert not asked.is_model_ready("none", headers=headers())
        assert "binary_tensor_data" in asked.get_server_metadata(headers=headers())["extensions"]
        described = asked.get_model_metadata("classify", headers=headers())
        assert [one["name"] for one in described["outputs"]] == ["label", "score", "labels", "scores"]
        optional = {one["name"]: one["optional"] for one in asked.get_model_config("mrc", headers=headers())["input"]}
        assert optional == {"text": False, "question": False, "choices": True}
        assert {"mini", "embed"} <= {one["name"] for one in asked.get_model_repository_index(headers=headers())}


def check_binary_and_json_tensors_are_answered_alike():
    for path in ("/kserve", ""):
        binary = infer("classify", path, text=TEXTS, labels=LABELS)
        assert texts_of(binary, "label") == LABELS
        outputs = [triton.InferRequestedOutput(name, binary_data=False) for name in ("label", "scores")]
        plain = infer("classify", path, binary=False, outputs=outputs, text=TEXTS, labels=LABELS)
        assert texts_of(plain, "label") == LABELS
        assert np.allclose(plain.as_numpy("scores"), binary.as_numpy("scores"), atol=1e-3)
        assert plain.as_numpy("score") is None


def check_every_task():
    assert infer("embed", text=TEXTS).as_numpy("embedding").shape == (2, 384)
    assert infer("mini", more={"parameters": {"task": "embed"}}, text=TEXTS).as_numpy("embedding").shape == (2, 256)
    first, second = infer("similarity", text=TEXTS, text_pair=[TEXTS[0]] * 2).as_numpy("score")
    assert first > second
    assert infer("nli", text=TEXTS, text_pair=TEXTS).as_numpy("scores").shape == (2, 3)
    passage, question = ["小王每天早上六点起床。"], ["小王几点起床？"]
    assert texts_of(infer("mrc", text=passage, question=question, choices=["六点", "九点"]), "answer") == ["六点"]
    assert len(texts_of(infer("mrc", text=passage, question=question), "answer")) == 1
    assert infer("fill-mask", text=["北京是中国的首[MASK]。"]).as_numpy("tokens").shape == (1, 1, 5)
    assert set(texts_of(infer("tuned", text=TEXTS), "labels")) == {"好评", "差评"}


def check_a_stored_label_set():
    found = infer("classify", more={"parameters": {"label_set": "moderation", "multi_label": True}}, text=TEXTS)
    assert set(texts_of(found, "labels")) == {"辱骂", "广告"}


def check_priority_time_out_and_id():
    found = infer("embed", more={"priority": 2, "timeout": 30_000_000, "request_id": "42"}, text=TEXTS)
    assert found.get_response()["id"] == "42"
    error = refused(lambda: infer("embed", more={"timeout": 1}, text=["好" * 5000] * 64))
    assert error.status() in ("[429]", "[504]", "429", "504"), error.status()


def check_a_large_batch_and_one_that_is_too_large():
    texts = [f"第{index}条" for index in range(256)]
    assert infer("embed", more={"timeout": PATIENCE_S * 1_000_000}, text=texts).as_numpy("embedding").shape == (
        256,
        384,
    )
    assert "at most 256" in refused(lambda: infer("embed", text=[*texts, "好"])).message()


def check_errors():
    assert "not served" in refused(lambda: infer("none", text=TEXTS)).message()
    assert "key" in refused(lambda: infer("embed", key="erl_wrong", text=TEXTS)).message()
    assert "text_pair is required" in refused(lambda: infer("similarity", text=TEXTS)).message()
    assert (
        "compressed"
        in refused(lambda: infer("embed", more={"request_compression_algorithm": "gzip"}, text=TEXTS)).message()
    )


def check_429_is_an_error_of_the_client_which_does_not_retry():
    errors = [error for error in (limited() for _ in range(4)) if error is not None]
    assert errors
    assert all("requests a second" in error.message() for error in errors)


def limited():
    try:
        infer("embed", key=LIMITED, text=TEXTS)
    except InferenceServerException as error:
        return error
    return None


async def check_the_asynchronous_client():
    for path in ("/kserve", ""):
        async with triton_aio.InferenceServerClient(HOST + path) as asked:
            assert await asked.is_server_ready()
            assert await asked.is_model_ready("embed", headers=headers())
            result = await asked.infer("classify", tensors(text=TEXTS, labels=LABELS), headers=headers())
            assert texts_of(result, "label") == LABELS
            assert "not served" in await async_error(asked.infer("none", tensors(text=TEXTS), headers=headers()))


async def async_error(call):
    try:
        await call
    except InferenceServerException as error:
        return error.message()
    raise AssertionError("wanted InferenceServerException")
