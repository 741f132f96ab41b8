"""The autoscalers use declared metrics by the names that the adapter provides, and agree with each other."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from service.metrics import Metrics
from service.settings import Settings
from tests.deploy.manifests import K8S, Document, needs, one

OVERLAY = "overlays/autoscale"
SCALED = yaml.safe_load((K8S / "components/autoscale-keda/scaled-object.yaml").read_text())["spec"]
KSERVE = yaml.safe_load((K8S / "examples/kserve/scaled-object.yaml").read_text())
ADAPTER = yaml.safe_load((K8S / "examples/prometheus-adapter.yaml").read_text())["rules"]["custom"]
DECLARED = {entry.name: entry.kind for entry in Metrics(CollectorRegistry()).entries()}

pytestmark = needs("kubectl")


def autoscaler() -> Document:
    spec: Document = one(OVERLAY, "HorizontalPodAutoscaler")["spec"]
    return spec


def targets() -> dict[str, float]:
    """Metric -> its target average per pod."""
    found = {}
    for metric in autoscaler()["metrics"]:
        value = str(metric["pods"]["target"]["averageValue"])
        found[metric["pods"]["metric"]["name"]] = float(value.removesuffix("m")) / (1000 if value.endswith("m") else 1)
    return found


def metric_in(query: str) -> str:
    """The one metric of the service in a query."""
    (name,) = re.findall(r"erlangshen_\w+", query)
    return str(name)


def test_the_autoscaler_owns_the_number_of_pods_of_the_deployment() -> None:
    deployment = one(OVERLAY, "Deployment")
    assert autoscaler()["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]


def test_the_adapter_provides_every_metric() -> None:
    assert {rule["name"]["as"] for rule in ADAPTER} == set(targets())


@pytest.mark.parametrize("rule", ADAPTER, ids=lambda rule: str(rule["name"]["as"]))
def test_a_metric_is_declared_and_bounded(rule: dict[str, Any]) -> None:
    kind = DECLARED[metric_in(rule["seriesQuery"])]
    assert ("rate(" in rule["metricsQuery"]) == (kind == "counter"), "a counter is unbounded"


def test_the_wait_of_a_busy_replica_does_not_add_a_pod() -> None:
    two_batches_s = 2 * Settings().batching.batch_target_ms / 1000
    assert targets()["erlangshen_queue_predicted_wait_seconds"] > two_batches_s


def test_keda_has_the_same_metrics_and_targets() -> None:
    triggers = {metric_in(trigger["metadata"]["query"]): trigger["metadata"] for trigger in SCALED["triggers"]}
    by_metric = {metric_in(rule["seriesQuery"]): targets()[rule["name"]["as"]] for rule in ADAPTER}
    assert {metric: float(trigger["threshold"]) for metric, trigger in triggers.items()} == by_metric
    assert all(trigger["metricType"] == "AverageValue" for trigger in SCALED["triggers"])


@pytest.mark.parametrize("folder", ["overlays/autoscale-keda", "overlays/gpu-autoscale"])
def test_keda_asks_for_the_namespace_and_the_service_of_its_deployment(folder: str) -> None:
    scaled, service = one(folder, "ScaledObject"), one(folder, "Service")["metadata"]
    selector = f'{{namespace="{service["namespace"]}",job="{service["name"]}"}}'
    assert all(selector in trigger["metadata"]["query"] for trigger in scaled["spec"]["triggers"])
    assert scaled["spec"]["scaleTargetRef"]["name"] == one(folder, "Deployment")["metadata"]["name"]
    assert "replicas" not in one(folder, "Deployment")["spec"]


@pytest.mark.parametrize("spec", [SCALED, KSERVE["spec"]], ids=["component", "kserve"])
def test_no_pod_is_removed_while_a_query_returns_nothing(spec: Document) -> None:
    # by default KEDA reads an empty answer as 0; as an error it leads to the fallback
    assert all(trigger["metadata"]["ignoreNullValues"] == "false" for trigger in spec["triggers"])
    assert all(trigger["metricType"] == "AverageValue" for trigger in spec["triggers"]), "others have no fallback"
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_kserve_is_scaled_as_the_component_scales() -> None:
    targets = [
        [(one_["metadata"]["threshold"], metric_in(one_["metadata"]["query"])) for one_ in spec["triggers"]]
        for spec in (SCALED, KSERVE["spec"])
    ]
    assert targets[0] == targets[1]
    assert KSERVE["spec"]["advanced"] == SCALED["advanced"]


def test_both_autoscalers_have_the_same_behavior_and_bounds() -> None:
    assert SCALED["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == autoscaler()["behavior"]
    assert SCALED["minReplicaCount"] == autoscaler()["minReplicas"]
    assert SCALED["maxReplicaCount"] == autoscaler()["maxReplicas"]
