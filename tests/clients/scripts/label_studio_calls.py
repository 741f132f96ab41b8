"""Label Studio's SDK reads the configs and accepts the predictions; the requests are those of Label Studio's server."""

import os

import requests
from label_studio_sdk.label_interface import LabelInterface

URL, KEY, LIMITED = os.environ["URL"], os.environ["KEY"], os.environ["LIMITED"]
PATIENCE_S = 300
TEXTS = ["这家餐厅的菜很好吃", "服务员的态度很差"]
CONFIG = """
<View>
  <Header value="味道不错"/>
  <Text name="text" value="$text"/>
  <Choices name="mood" toName="text" choice="single"><Choice value="好评" alias="pos"/><Choice value="差评"/></Choices>
  <Choices name="topics" toName="text" choice="multiple"><Choice value="菜品"/><Choice value="服务"/></Choices>
  <Taxonomy name="kind" toName="text">
    <Choice value="餐饮"><Choice value="味道"/><Choice value="态度"/></Choice><Choice value="其他"/>
  </Taxonomy>
</View>
"""
PAIRWISE = """
<View>
  <Header value="味道不错"/>
  <Text name="one" value="$one"/><Text name="two" value="$two"/>
  <Pairwise name="better" toName="one,two"/>
</View>
"""
session = requests.Session()
session.trust_env = False


def post(call, body, key=KEY, path="/label-studio"):
    headers = {"X-Request-Timeout-Ms": str(PATIENCE_S * 1000)}
    return session.post(
        f"{URL}{path}/{call}", json=body, auth=("label-studio", key), headers=headers, timeout=PATIENCE_S
    )


def predict(config, data, path="/label-studio"):
    body = {
        "tasks": [{"id": index, "data": one} for index, one in enumerate(data)],
        "model_version": "erlangshen",
        "project": "1.1795888671",
        "label_config": config,
        "params": {"login": None, "password": None, "context": None},
    }
    response = post("predict", body, path=path)
    response.raise_for_status()
    return response.json()["results"]


def check_health_and_setup():
    assert session.get(f"{URL}/label-studio/health", timeout=10).json()["status"] == "UP"
    body = {"project": "1.1795888671", "schema": CONFIG, "hostname": "http://localhost:8080", "access_token": "secret"}
    assert post("setup", body).json()["model_version"]
    assert post("setup", body | {"schema": "<View/>"}).status_code == 422


def check_predictions_are_valid_for_the_config():
    for path in ("/label-studio", ""):
        for config, data in (
            (CONFIG, [{"text": text} for text in TEXTS]),
            (PAIRWISE, [{"one": "很好吃", "two": "难吃"}, {"one": "难吃", "two": "很好吃"}]),
        ):
            predictions = predict(config, data, path)
            assert len(predictions) == 2
            for prediction in predictions:
                assert prediction["result"]
                assert 0 < prediction["score"] <= 1
                assert LabelInterface(config).validate_prediction(prediction, return_errors=True) == []


def check_the_choices():
    first, second = predict(CONFIG, [{"text": text} for text in TEXTS])
    values = [{one["from_name"]: one["value"] for one in each["result"]} for each in (first, second)]
    assert [value["mood"]["choices"] for value in values] == [["pos"], ["差评"]]
    assert values[1]["kind"]["taxonomy"] == [["餐饮", "态度"]]
    left, right = predict(PAIRWISE, [{"one": "很好吃", "two": "难吃"}, {"one": "难吃", "two": "很好吃"}])
    assert [one["result"][0]["value"]["selected"] for one in (left, right)] == ["left", "right"]


def check_a_large_batch():
    predictions = predict(CONFIG, [{"text": f"好吃{index}"} for index in range(300)])
    assert len(predictions) == 300
    assert all(len(prediction["result"]) >= 2 for prediction in predictions)


def check_errors():
    assert post("predict", {"tasks": [], "label_config": "<View/>"}).status_code == 422
    assert post("predict", {"tasks": []}).status_code == 422
    assert post("setup", {"schema": CONFIG}, key="erl_wrong").status_code == 401
