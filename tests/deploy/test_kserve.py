"""The KServe example starts the image with its port, probes, keys and model."""

from __future__ import annotations

import yaml

from service.api.auth import PROBES
from service.settings import VERSION
from service.settings_sources import load
from tests.deploy.manifests import K8S, image_environment

RUNTIME = yaml.safe_load((K8S / "examples/kserve/serving-runtime.yaml").read_text())
SERVICE = yaml.safe_load((K8S / "examples/kserve/inference-service.yaml").read_text())
(CONTAINER,) = RUNTIME["spec"]["containers"]


def test_the_inference_service_finds_the_runtime_and_its_format() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    formats = {one["name"] for one in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["modelFormat"]["name"] in formats


def test_the_model_has_the_name_of_the_inference_service() -> None:
    assert CONTAINER["args"] == ["serve", "--model", "{{.Name}}=/mnt/models"]


def test_the_runtime_uses_this_image_and_requires_keys() -> None:
    assert CONTAINER["image"].endswith(f"/erlangshen-service:{VERSION}")
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
