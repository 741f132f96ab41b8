"""The manifests agree with each other and with the service: names, selectors, ports, paths, times, settings."""

from __future__ import annotations

import pytest

from service.api.auth import PROBES
from service.commands.serve import LAST_RESPONSES_S
from service.settings import Settings
from service.settings_sources import ENV_PREFIX, load
from tests.deploy.manifests import (
    OVERLAYS,
    Document,
    container,
    documents,
    environment,
    image_environment,
    needs,
    of_kind,
    one,
    pod,
)

pytestmark = [needs("kubectl"), pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in OVERLAYS])]

PROBE_NAMES = ("startupProbe", "readinessProbe", "livenessProbe")


def settings(overlay: str) -> Settings:
    """The settings as the service in the container reads them."""
    return load(environ=environment(overlay, container(overlay)))


def pod_labels(overlay: str) -> Document:
    labels: Document = one(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    return labels


def matches(selector: Document, labels: Document) -> bool:
    return selector.items() <= labels.items()


# names


def test_everything_is_in_one_namespace(overlay: str) -> None:
    spaces = {one["metadata"].get("namespace") for one in documents(overlay) if one["kind"] != "Namespace"}
    assert spaces == {one(overlay, "Namespace")["metadata"]["name"]}


def test_every_selector_matches_the_pods(overlay: str) -> None:
    selectors = [one(overlay, "Service")["spec"]["selector"]]
    selectors += [
        one(overlay, kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
    ]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind(overlay, "NetworkPolicy")]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in pod(overlay)["topologySpreadConstraints"]]
    assert len(selectors) >= 6
    assert all(selector and matches(selector, pod_labels(overlay)) for selector in selectors)


def test_objects_named_in_the_pod_exist(overlay: str) -> None:
    made = {(document["kind"], document["metadata"]["name"]) for document in documents(overlay)}
    spec = pod(overlay)
    named = {("ServiceAccount", spec["serviceAccountName"])}
    for part in [*spec["containers"], *spec.get("initContainers", [])]:
        named |= {("ConfigMap", source["configMapRef"]["name"]) for source in part["envFrom"]}
    for volume in spec["volumes"]:
        if claim := volume.get("persistentVolumeClaim"):
            named.add(("PersistentVolumeClaim", claim["claimName"]))
    assert named <= made


def test_mounts_and_volumes_match(overlay: str) -> None:
    spec = pod(overlay)
    parts = [*spec["containers"], *spec.get("initContainers", [])]
    mounted = {mount["name"] for part in parts for mount in part["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_the_keys_are_read_where_their_secret_is_mounted(overlay: str) -> None:
    (keys,) = [mount for mount in container(overlay)["volumeMounts"] if mount["name"] == "keys"]
    assert str(settings(overlay).security.keys_file) == f"{keys['mountPath']}/keys.toml"


# ports and paths


def test_the_service_targets_the_port_that_is_listened_on(overlay: str) -> None:
    (port,) = container(overlay)["ports"]
    assert port["containerPort"] == settings(overlay).server.port
    assert settings(overlay).server.host == "0.0.0.0"
    (service_port,) = one(overlay, "Service")["spec"]["ports"]
    assert (service_port["name"], service_port["targetPort"], service_port["port"]) == (
        "http",
        port["name"],
        port["containerPort"],
    )
    rules = [rule for policy in of_kind(overlay, "NetworkPolicy") for rule in policy["spec"].get("ingress", [])]
    assert rules
    assert all(rule["ports"] == [{"port": port["name"]}] for rule in rules)


def test_the_probes_use_routes_that_need_no_key(overlay: str) -> None:
    probes = {name: container(overlay)[name]["httpGet"] for name in PROBE_NAMES}
    assert {probe["port"] for probe in probes.values()} == {container(overlay)["ports"][0]["name"]}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/livez",
    }
    assert {probe["path"] for probe in probes.values()} <= PROBES


# times


def test_the_grace_period_covers_the_shutdown_of_the_service(overlay: str) -> None:
    server = settings(overlay).server
    command = container(overlay)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:-1] == ["sleep"]
    longest = float(command[-1]) + server.drain_delay_s + server.drain_timeout_s + LAST_RESPONSES_S
    assert longest < pod(overlay)["terminationGracePeriodSeconds"] <= 2 * longest


def test_the_startup_probe_covers_the_start_timeout_of_the_service(overlay: str) -> None:
    probe = container(overlay)["startupProbe"]
    startup_s = probe["periodSeconds"] * probe["failureThreshold"]
    assert startup_s >= settings(overlay).replicas.start_timeout_s
    assert one(overlay, "Deployment")["spec"]["progressDeadlineSeconds"] > startup_s


def test_a_rollout_keeps_the_capacity(overlay: str) -> None:
    rolling = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1)
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


# settings


def test_every_variable_is_a_setting_with_a_valid_value(overlay: str) -> None:
    # load() rejects unknown names and invalid values, but ignores names without the prefix
    for part in [*pod(overlay)["containers"], *pod(overlay).get("initContainers", [])]:
        assert load(environ=environment(overlay, part)) is not None
        own = environment(overlay, part).keys() - image_environment().keys()
        assert [name for name in own if not name.startswith(ENV_PREFIX)] == []


def test_a_key_is_required(overlay: str) -> None:
    assert image_environment()["ERLANGSHEN_SECURITY__ALLOW_ANONYMOUS"] == "true"
    assert settings(overlay).security.allow_anonymous is False


def test_only_init_containers_may_download_from_the_hub(overlay: str) -> None:
    assert settings(overlay).models.offline is True
    for part in pod(overlay).get("initContainers", []):
        assert part["args"] == ["fetch"]
        assert load(environ=environment(overlay, part)).models.offline is False


# hardening that checkov does not check


def test_only_the_folders_that_the_service_writes_are_writable(overlay: str) -> None:
    writable = {mount["mountPath"] for mount in container(overlay)["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", image_environment()["HOME"]}


def test_cpu_and_memory_requests_equal_their_limits(overlay: str) -> None:
    for part in [*pod(overlay)["containers"], *pod(overlay).get("initContainers", [])]:
        resources = part["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert resources["requests"]["cpu"] == resources["limits"]["cpu"]


def test_egress_is_only_open_for_downloads(overlay: str) -> None:
    ports = {
        (port["port"], port["protocol"])
        for policy in of_kind(overlay, "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for port in rule["ports"]
    }
    has_downloads = bool(pod(overlay).get("initContainers"))
    assert ports == ({(53, "UDP"), (53, "TCP"), (443, "TCP")} if has_downloads else set())
