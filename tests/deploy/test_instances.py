"""Several deployments side by side, and components that no overlay uses: each selects its own pods alone."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.settings import Server
from service.settings_sources import load
from tests.deploy.manifests import Document, combined, documents, image_environment, needs, of_kind

pytestmark = needs("kubectl")

SIDE_BY_SIDE = "examples/side-by-side"
INSTANCES = ("mini", "large")


def selectors(document: Document) -> Iterator[dict[str, str]]:
    """The labels by which a document selects our pods or our Service; `from` and `to` of policies aside."""
    spec = document["spec"]
    if document["kind"] == "Service":
        yield spec["selector"]
    for name in ("selector", "podSelector"):
        if document["kind"] != "Service" and name in spec:
            yield spec[name]["matchLabels"]
    for spread in spec.get("template", {}).get("spec", {}).get("topologySpreadConstraints", []):
        yield spread["labelSelector"]["matchLabels"]


def only(kind: str, rendered: list[Document]) -> Document:
    (found,) = [document for document in rendered if document["kind"] == kind]
    return found


def pod_of(rendered: list[Document]) -> Document:
    spec: Document = only("Deployment", rendered)["spec"]["template"]["spec"]
    return spec


def settings_in(rendered: list[Document]) -> dict[str, str]:
    """The environment of the one container from the image and the ConfigMap of the settings."""
    maps = [one["data"] for one in rendered if one["kind"] == "ConfigMap" and "-settings" in one["metadata"]["name"]]
    return image_environment() | maps[0]


@pytest.mark.parametrize("instance", INSTANCES)
def test_what_one_deployment_selects_belongs_to_it(instance: str) -> None:
    owned = [one for one in documents(SIDE_BY_SIDE) if one["metadata"]["name"].startswith(f"{instance}-")]
    found = [labels for document in owned if "spec" in document for labels in selectors(document)]
    assert len(found) >= 8
    assert all(labels["app.kubernetes.io/instance"] == instance for labels in found)


def test_every_object_has_the_name_of_one_deployment() -> None:
    names = [(one["kind"], one["metadata"]["name"]) for one in documents(SIDE_BY_SIDE)]
    assert len(set(names)) == len(names)
    assert {name.split("-")[0] for _, name in names} == set(INSTANCES)
    assert {one["metadata"]["namespace"] for one in documents(SIDE_BY_SIDE)} == {"nlp"}


def test_each_autoscaler_has_its_deployment() -> None:
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in of_kind(SIDE_BY_SIDE, "HorizontalPodAutoscaler")}
    assert scaled == {one["metadata"]["name"] for one in of_kind(SIDE_BY_SIDE, "Deployment")}


def test_the_rules_are_loaded_once() -> None:
    assert len(of_kind(SIDE_BY_SIDE, "PrometheusRule")) == 1
    assert len(of_kind(SIDE_BY_SIDE, "ServiceMonitor")) == 2


def test_keda_follows_the_prefix_the_instance_and_the_namespace(tmp_path: Path) -> None:
    lower, upper = tmp_path / "lower", tmp_path / "upper"
    lower.mkdir()
    upper.mkdir()
    labels = [{"pairs": {"app.kubernetes.io/instance": "two"}, "includeSelectors": True}]
    combined(lower, namespace="nlp", namePrefix="two-", labels=labels)
    rendered = combined(upper, "metrics", "autoscale-keda", namespace="nlp", resources=[str(lower)])
    scaled = only("ScaledObject", rendered)
    assert scaled["spec"]["scaleTargetRef"]["name"] == scaled["metadata"]["name"] == "two-erlangshen"
    queries = [trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"]]
    assert all('{namespace="nlp",job="two-erlangshen"}' in query for query in queries)
    assert only("ServiceMonitor", rendered)["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"] == "two"


def test_keda_in_the_overlay_that_sets_the_namespace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        combined(tmp_path, "autoscale-keda", namespace="nlp")


# components


def test_models_of_an_image_need_no_volume_and_no_egress(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "gpu", "models-image", namespace="nlp")
    (models,) = [volume for volume in pod_of(rendered)["volumes"] if "image" in volume]
    (mount,) = [one for one in pod_of(rendered)["containers"][0]["volumeMounts"] if one["name"] == models["name"]]
    assert mount["readOnly"]
    specs = load(environ=settings_in(rendered)).models.specs
    assert all(spec.split("=")[1].startswith(f"{mount['mountPath']}/") for spec in specs)
    assert not [one for one in rendered if one["kind"] in ("PersistentVolumeClaim", "Job")]
    assert not [one for one in rendered if one["kind"] == "NetworkPolicy" and one["spec"].get("egress")]


def test_models_of_an_init_container_need_no_shared_volume(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "models-init", namespace="nlp")
    (cache,) = [volume for volume in pod_of(rendered)["volumes"] if volume["name"] == "cache"]
    assert cache["ephemeral"]["volumeClaimTemplate"]["spec"]["accessModes"] == ["ReadWriteOnce"]
    (fetch,) = pod_of(rendered)["initContainers"]
    assert fetch["args"] == ["fetch"]


def test_a_mig_device_takes_the_place_of_the_gpu(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "gpu", "gpu-mig", namespace="nlp")
    limits = pod_of(rendered)["containers"][0]["resources"]["limits"]
    assert [name for name in limits if "/" in name] == ["nvidia.com/mig-1g.10gb"]


def test_pull_secrets_belong_to_the_account_of_all_pods(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "models-job", "pull-secret", namespace="nlp")
    account = only("ServiceAccount", rendered)
    assert account["imagePullSecrets"] == [{"name": "erlangshen-registry"}]
    users = [one["spec"]["template"]["spec"] for one in rendered if one["kind"] in ("Deployment", "Job")]
    assert [user["serviceAccountName"] for user in users] == [account["metadata"]["name"]] * 2


def test_label_sets_are_stored_on_their_volume(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "label-sets", namespace="nlp")
    container = pod_of(rendered)["containers"][0]
    (directory,) = [one["value"] for one in container["env"] if one["name"] == "ERLANGSHEN_STORAGE__DATA_DIR"]
    assert directory in [mount["mountPath"] for mount in container["volumeMounts"]]
    (volume,) = [one for one in pod_of(rendered)["volumes"] if one["name"] == "data"]
    assert volume["persistentVolumeClaim"]["claimName"] == only("PersistentVolumeClaim", rendered)["metadata"]["name"]


def test_pods_serve_https_with_the_certificate_that_is_mounted(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "metrics", "tls", namespace="nlp")
    container = pod_of(rendered)["containers"][0]
    security = load(environ=settings_in(rendered)).security
    (volume,) = [one for one in pod_of(rendered)["volumes"] if one["name"] == "tls"]
    (mount,) = [one["mountPath"] for one in container["volumeMounts"] if one["name"] == "tls"]
    assert (str(security.tls_cert), str(security.tls_key)) == (f"{mount}/tls.crt", f"{mount}/tls.key")
    assert volume["secret"]["secretName"] == only("Certificate", rendered)["spec"]["secretName"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["scheme"] for probe in probes} == {"HTTPS"}
    assert only("ServiceMonitor", rendered)["spec"]["endpoints"][0]["scheme"] == "https"


@pytest.mark.parametrize("component", ["ingress", "http-route"])
def test_a_route_leads_to_the_service_by_its_prefixed_name(component: str, tmp_path: Path) -> None:
    rendered = combined(tmp_path, component, namespace="nlp", namePrefix="two-")
    (rule,) = only("Ingress" if component == "ingress" else "HTTPRoute", rendered)["spec"]["rules"]
    target = rule["http"]["paths"][0]["backend"]["service"] if component == "ingress" else rule["backendRefs"][0]
    (port,) = only("Service", rendered)["spec"]["ports"]
    assert target["name"] == only("Service", rendered)["metadata"]["name"] == "two-erlangshen"
    assert target["port"] in ({"name": port["name"]}, port["port"])


def test_an_ingress_passes_the_largest_request_and_the_longest_deadline(tmp_path: Path) -> None:
    ingress: dict[str, Any] = only("Ingress", combined(tmp_path, "ingress", namespace="nlp"))
    annotations = ingress["metadata"]["annotations"]
    mebibytes = Server().max_body_bytes // 2**20
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == f"{mebibytes}m"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) * 1000 == Server().max_timeout_ms


def test_a_namespace_is_owned_where_its_component_is_named(tmp_path: Path) -> None:
    rendered = combined(tmp_path, "namespace", namespace="nlp")
    namespace = only("Namespace", rendered)["metadata"]
    assert (namespace["name"], namespace["labels"]["pod-security.kubernetes.io/enforce"]) == ("nlp", "restricted")
