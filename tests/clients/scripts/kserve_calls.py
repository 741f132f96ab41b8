"""KServe's own REST client against a server: versions 1 and 2 of its protocol."""

import asyncio
import os

import httpx
import numpy as np
import refusals
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

URL, KEY = os.environ["URL"], os.environ["KEY"]
PATIENCE_S = 300
LABELS = ["好评", "差评"]
TEXTS = ["这家餐厅的菜很好吃", "太难吃了，再也不来"]


def headers(key=KEY):
    return {"Authorization": f"Bearer {key}"}


def ask(version, call):
    """The result of a coroutine that `call` makes of a client."""

    async def asked():
        async with InferenceRESTClient(RESTConfig(protocol=version, timeout=PATIENCE_S)) as client:
            return await call(client)

    return asyncio.run(asked())


def refused(version, call):
    return refusals.refused(httpx.HTTPStatusError, lambda: ask(version, call))


def request(**texts):
    inputs = []
    for name, elements in texts.items():
        tensor = InferInput(name, [len(elements)], "BYTES")
        tensor.set_data_from_numpy(np.array([each.encode() for each in elements], dtype=np.object_), binary_data=False)
        inputs.append(tensor)
    return InferRequest(model_name="classify", infer_inputs=inputs)


def check_health():
    for version in ("v1", "v2"):
        assert ask(version, lambda client: client.is_server_live(URL + "/kserve"))
        for path in ("/kserve", ""):
            base = URL + path
            assert ask(version, lambda client, base=base: client.is_model_ready(base, "mini", headers=headers()))
    assert ask("v2", lambda client: client.is_server_live(URL))
    assert ask("v2", lambda client: client.is_server_ready(URL))


def check_predict_of_version_1():
    body = {"instances": TEXTS, "parameters": {"labels": LABELS}}
    for path in ("/kserve", ""):
        found = ask("v1", lambda client, base=URL + path: client.infer(base, body, "classify", headers=headers()))
        assert [each["label"] for each in found["predictions"]] == LABELS


def check_infer_of_version_2():
    for path in ("/kserve", ""):
        found = ask(
            "v2",
            lambda client, base=URL + path: client.infer(
                base, request(text=TEXTS, labels=LABELS), "classify", headers=headers()
            ),
        )
        by_name = {each.name: each.as_numpy() for each in found.outputs}
        labels = [each.decode() if isinstance(each, bytes) else each for each in by_name["label"].ravel()]
        assert labels == LABELS


def check_errors_say_what_is_wrong():
    error = refused("v2", lambda client: client.infer(URL, request(text=TEXTS), "none", headers=headers()))
    assert error.response.status_code == 404
    assert "none" in str(error)
    error = refused("v1", lambda client: client.infer(URL, {"instances": [""]}, "embed", headers=headers()))
    assert error.response.status_code == 422
    error = refused("v1", lambda client: client.infer(URL, {"instances": TEXTS}, "embed"))
    assert error.response.status_code == 401
