"""The Helm chart makes the objects of the overlays, refuses values that it does not know, and keeps releases apart."""

from __future__ import annotations

import copy
import json
import re
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from service.settings import VERSION
from service.settings_sources import load
from tests.deploy.charts import CHART, helm_python, lint, render, values_of
from tests.deploy.manifests import Document, combined, documents, image_environment, needs
from tests.deploy.test_custom_resources import errors, is_custom

IDENTITY = ("app.kubernetes.io/name", "app.kubernetes.io/instance")
MONITORING = {"monitoring": {"serviceMonitor": True, "rules": True, "dashboards": True}}
GPU = values_of("values-gpu.yaml")
EVERYTHING: Document = {
    **GPU,
    **MONITORING,
    "imagePullSecrets": ["registry"],
    "runtimeClassName": "nvidia",
    "autoscaling": {"type": "keda"},
    "dataVolume": {"enabled": True},
    "tls": {"enabled": True},
    "ingress": {"enabled": True},
    "httpRoute": {"enabled": True},
    "externalSecrets": {
        "enabled": True,
        "secrets": {"erlangshen-keys": {"keys.toml": {"key": "erlangshen/keys", "property": "keys.toml"}}},
    },
}
SELECTED = {"Service": IDENTITY, "ConfigMap": ("grafana_dashboard",)}
Objects = dict[tuple[str, str], Document]


def plain(rendered: list[Document]) -> Objects:
    """Objects by kind and name, without what depends on the tool.

    Left out are labels that nothing selects, the order of volumes, and how names follow a change of the settings.
    """
    found = {}
    for one in copy.deepcopy(rendered):
        metadata = one.pop("metadata")
        one["namespace"] = metadata["namespace"]
        one["labels"] = {key: metadata.get("labels", {}).get(key) for key in SELECTED.get(one["kind"], ())}
        template = one.get("spec", {}).get("template", {})
        template.get("metadata", {}).pop("annotations", None)
        spec = template.get("spec", {})
        for part in [*spec.get("containers", []), *spec.get("initContainers", [])]:
            part["volumeMounts"].sort(key=itemgetter("name"))
            for source in part["envFrom"]:
                source["configMapRef"]["name"] = without_hash(source["configMapRef"]["name"])
        spec.get("volumes", []).sort(key=itemgetter("name"))
        found[one["kind"], without_hash(metadata["name"])] = one
    return found


def without_hash(name: str) -> str:
    return re.sub(r"-(settings|fetch)-[0-9a-z]+$", r"-\1", name)


@pytest.mark.parametrize(
    ("overlay", "values"),
    [
        ("cpu", {}),
        ("monitoring", MONITORING),
        ("autoscale", MONITORING | {"autoscaling": {"type": "hpa"}}),
        ("autoscale-keda", MONITORING | {"autoscaling": {"type": "keda"}}),
        ("gpu", GPU),
        ("gpu-autoscale", GPU | MONITORING | {"autoscaling": {"type": "keda"}}),
    ],
)
@needs("kubectl")
def test_the_chart_makes_what_the_overlay_makes(overlay: str, values: Document) -> None:
    from_chart, from_overlay = plain(render(values)), plain(documents(f"overlays/{overlay}"))
    assert sorted(from_chart) == sorted(from_overlay)
    for name in from_chart:
        assert from_chart[name] == from_overlay[name], name


@pytest.mark.parametrize(
    ("components", "values"),
    [
        (("models-init",), {"models": {"source": "init"}, "modelSpecs": ["m=a/b@c"]}),
        (
            ("models-image",),
            {
                "models": {
                    "source": "image",
                    "image": {"reference": "registry.example.com/erlangshen-models:unimc-1.3b"},
                },
                "modelSpecs": ["unimc=/models/unimc"],
            },
        ),
        (("ingress",), {"ingress": {"enabled": True}}),
        (("http-route",), {"httpRoute": {"enabled": True}}),
        (("metrics", "tls"), {"monitoring": {"serviceMonitor": True}, "tls": {"enabled": True}}),
        (("pull-secret",), {"imagePullSecrets": ["erlangshen-registry"]}),
        (("label-sets",), {"dataVolume": {"enabled": True}}),
        (("gpu", "gpu-mig"), {"gpu": {"enabled": True, "resource": "nvidia.com/mig-1g.10gb", "minMemoryMiB": None}}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
@needs("kubectl")
def test_the_chart_has_what_the_components_have(components: tuple[str, ...], values: Document, tmp_path: Path) -> None:
    images = [{"name": "erlangshen-service", "newName": "registry.example.com/erlangshen-service", "newTag": VERSION}]
    literals = [f"ERLANGSHEN_MODELS__SPECS={','.join(values['modelSpecs'])}"] if "modelSpecs" in values else []
    settings = [{"name": "erlangshen-settings", "behavior": "merge", "literals": literals}]
    from_overlay = plain(
        combined(tmp_path, *components, namespace="erlangshen", images=images, configMapGenerator=settings)
    )
    tag, rollout, resources = {"tag": VERSION}, {"maxSurge": 0, "maxUnavailable": 1}, GPU["resources"]
    has_gpu = {"rollout": rollout, "resources": resources} if "gpu" in components else {}
    from_chart = plain(render(values | has_gpu | {"image": tag}))
    assert sorted(from_chart) == sorted(from_overlay)
    for name in from_chart:
        assert from_chart[name] == from_overlay[name], name


# values


def test_the_chart_passes_the_linter_of_helm() -> None:
    assert [message for message in lint() if message["severity"] > 1] == []


def test_the_version_is_that_of_the_service() -> None:
    metadata = values_of("Chart.yaml")
    assert (metadata["version"], metadata["appVersion"]) == (VERSION, VERSION)


@pytest.mark.parametrize(
    "values",
    [
        {"unknown": 1},
        {"models": {"source": "pvc"}},
        {"models": {"source": "image"}},
        {"models": {"source": "job"}},
        {"modelSpecs": ["unimc=IDEA-CCNL/Erlangshen-UniMC-MegatronBERT-1.3B-Chinese"]},
        {"settings": {"ERLANGSHEN_SERVER__PORT": "9000"}},
        {"settings": {"BATCHING__CACHE_ENTRIES": "1"}},
        {"settings": {"ERLANGSHEN_BATCHING__CACHE_ENTRIES": 1}},
        {"autoscaling": {"type": "cpu"}},
        {"image": {"digest": "latest"}},
        {"terminationGracePeriodSeconds": 30},
        {"networkPolicy": {"clientNamespaceLabels": {"erlangshen-service/client": True}}},
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_wrong_value_is_an_error_before_anything_is_applied(values: Document) -> None:
    with pytest.raises(helm_python.HelmError):
        render(values)


def test_every_value_is_in_the_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(values: dict[str, Any], part: dict[str, Any]) -> None:
        if "properties" in part:
            assert part["additionalProperties"] is False
            assert set(part["properties"]) - {"global"} == set(values) | set(part.get("optional", ()))
            for name, value in values.items():
                if isinstance(value, dict):
                    compare(value, part["properties"][name])

    compare(values_of("values.yaml"), schema)


def test_settings_of_the_values_are_settings_of_the_service() -> None:
    for values in ({}, GPU, EVERYTHING):
        (data,) = [one["data"] for one in render(values) if one["metadata"]["name"] == "erlangshen-settings"]
        assert load(environ=image_environment() | data).security.allow_anonymous is False


# releases


def test_releases_in_one_namespace_do_not_mix() -> None:
    (mini, large) = (render(values, name, "nlp") for name, values in (("mini", {}), ("large", EVERYTHING)))
    names = [[(one["kind"], one["metadata"]["name"]) for one in rendered] for rendered in (mini, large)]
    assert set(names[0]).isdisjoint(names[1])
    for name, rendered in (("mini", mini), ("large", large)):
        for one in rendered:
            assert one["metadata"]["labels"]["app.kubernetes.io/instance"] == name
            selector = one.get("spec", {}).get("selector", one.get("spec", {}).get("podSelector"))
            if selector:
                assert selector.get("matchLabels", selector)["app.kubernetes.io/instance"] == name


def test_another_model_is_another_job() -> None:
    names = {
        one["metadata"]["name"]
        for spec in ("m=a/b@c", "m=a/b@d")
        for one in render(GPU | {"modelSpecs": [spec]})
        if one["kind"] == "Job"
    }
    assert len(names) == 2


def test_a_changed_setting_changes_the_pods() -> None:
    templates = [
        one["spec"]["template"]["metadata"]["annotations"]
        for entries in ("1", "2")
        for one in render({"settings": {"ERLANGSHEN_BATCHING__CACHE_ENTRIES": entries}})
        if one["kind"] == "Deployment"
    ]
    assert templates[0] != templates[1]


def test_the_number_of_pods_belongs_to_the_autoscaler() -> None:
    for kind in ("hpa", "keda"):
        (deployment,) = [one for one in render({"autoscaling": {"type": kind}}) if one["kind"] == "Deployment"]
        assert "replicas" not in deployment["spec"]


def test_an_external_secret_makes_the_secret_that_pods_mount() -> None:
    (secret,) = [one for one in render(EVERYTHING) if one["kind"] == "ExternalSecret"]
    assert secret["spec"]["target"]["name"] == values_of("values.yaml")["keysSecret"]
    assert [one["secretKey"] for one in secret["spec"]["data"]] == ["keys.toml"]


def test_custom_resources_of_the_chart_match_their_schemas() -> None:
    custom = [one for one in render(EVERYTHING) if is_custom(one)]
    assert {one["kind"] for one in custom} == {
        "Certificate",
        "ExternalSecret",
        "HTTPRoute",
        "PrometheusRule",
        "ScaledObject",
        "ServiceMonitor",
    }
    assert [line for one in custom for line in errors(one)] == []


def test_the_package_of_the_chart_holds_the_generated_files(tmp_path: Path) -> None:
    archive = helm_python.package(str(CHART), destination=str(tmp_path))
    with helm_python.Chart.load(str(archive)) as chart:
        kinds = [text.count("kind: PrometheusRule") for text in chart.render(values=MONITORING, name="e").values()]
    assert sum(kinds) == 1
