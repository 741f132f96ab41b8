"""The KServe example starts the image with its port, probes, keys and model."""

from __future__ import annotations

import re

import yaml

from service.api.auth import PROBES
from service.settings import VERSION
from service.settings_sources import load
from tests.deploy.manifests import K8S, image_environment

RUNTIME = yaml.safe_load((K8S / "examples/kserve/serving-runtime.yaml").read_text())
SERVICE = yaml.safe_load((K8S / "examples/kserve/inference-service.yaml").read_text())
SCALED = yaml.safe_load((K8S / "examples/kserve/scaled-object.yaml").read_text())["spec"]
(CONTAINER,) = RUNTIME["spec"]["containers"]


def test_the_inference_service_finds_the_runtime_and_its_format() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = {one["name"] for one in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats


def test_the_model_has_the_name_of_the_inference_service() -> None:
    assert CONTAINER["args"] == ["serve", "--model", "{{.Name}}=/mnt/models"]


def test_the_runtime_uses_this_image_and_requires_keys() -> None:
    assert CONTAINER["image"].endswith(f"/erlangshen-service:{VERSION}-cuda")
    settings = load(environ=image_environment() | {one["name"]: one["value"] for one in CONTAINER["env"]})
    (keys,) = [mount["mountPath"] for mount in CONTAINER["volumeMounts"] if mount["name"] == "keys"]
    assert settings.security.allow_anonymous is False
    assert str(settings.security.keys_file) == f"{keys}/keys.toml"


def test_ports_and_probes_match_the_service() -> None:
    (port,) = [one["containerPort"] for one in CONTAINER["ports"]]
    assert port == load(environ=image_environment()).server.port
    probes = [CONTAINER[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["port"] for probe in probes} == {port}
    assert {probe["path"] for probe in probes} == PROBES


def test_the_model_is_pinned() -> None:
    assert SERVICE["spec"]["predictor"]["model"]["storageUri"].startswith("hf://")
    assert re.search(r":[^/]+$", SERVICE["spec"]["predictor"]["model"]["storageUri"].removeprefix("hf:"))


def test_a_pod_with_a_gpu_does_not_serve_without_it() -> None:
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert {"name": "ERLANGSHEN_REPLICAS__DEVICES", "value": "cuda:0"} in CONTAINER["env"]


def test_our_scaled_object_replaces_the_autoscaler_of_kserve() -> None:
    annotations = SERVICE["metadata"]["annotations"]
    assert annotations["serving.kserve.io/deploymentMode"] == "Standard"
    assert annotations["serving.kserve.io/autoscalerClass"] == "external"
    assert SCALED["scaleTargetRef"] == {"name": f"{SERVICE['metadata']['name']}-predictor"}
    predictor = SERVICE["spec"]["predictor"]
    assert (SCALED["minReplicaCount"], SCALED["maxReplicaCount"]) == (
        predictor["minReplicas"],
        predictor["maxReplicas"],
    )


def test_the_pods_of_the_inference_service_are_scraped() -> None:
    monitor = yaml.safe_load((K8S / "examples/kserve/pod-monitor.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"] == {"serving.kserve.io/inferenceservice": SERVICE["metadata"]["name"]}
    assert [one["port"] for one in monitor["podMetricsEndpoints"]] == [CONTAINER["ports"][0]["name"]]
