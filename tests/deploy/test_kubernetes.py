"""The manifests agree with each other and with the service: names, selectors, ports, paths, times, settings."""

from __future__ import annotations

import pytest

from service.api.auth import PROBES
from service.commands.serving import LAST_RESPONSES_S
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
    parts,
    pod,
)

pytestmark = [needs("kubectl"), pytest.mark.parametrize("overlay", [f"overlays/{name}" for name in OVERLAYS])]

IDENTITY = {"app.kubernetes.io/name", "app.kubernetes.io/instance"}
FETCH = "erlangshen-fetch"
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


def test_everything_is_in_one_namespace_that_the_overlay_does_not_own(overlay: str) -> None:
    assert {one["metadata"].get("namespace") for one in documents(overlay)} == {"erlangshen"}
    assert of_kind(overlay, "Namespace") == []


def test_every_selector_matches_the_pods_and_names_the_instance(overlay: str) -> None:
    selectors = [one(overlay, "Service")["spec"]["selector"]]
    selectors += [
        one(overlay, kind)["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")
    ]
    policies = [one_ for one_ in of_kind(overlay, "NetworkPolicy") if one_["metadata"]["name"] != FETCH]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in policies]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in pod(overlay)["topologySpreadConstraints"]]
    assert len(selectors) >= 6
    assert all(set(selector) == IDENTITY and matches(selector, pod_labels(overlay)) for selector in selectors)


def test_the_service_monitor_selects_the_service(overlay: str) -> None:
    for monitor in of_kind(overlay, "ServiceMonitor"):
        selector = monitor["spec"]["selector"]["matchLabels"]
        assert set(selector) == IDENTITY
        assert matches(selector, one(overlay, "Service")["metadata"]["labels"])


def test_the_policy_of_the_download_selects_its_job_alone(overlay: str) -> None:
    for job in of_kind(overlay, "Job"):
        (policy,) = [one_ for one_ in of_kind(overlay, "NetworkPolicy") if one_["metadata"]["name"] == FETCH]
        selector = policy["spec"]["podSelector"]["matchLabels"]
        assert matches(selector, job["spec"]["template"]["metadata"]["labels"])
        assert not matches(selector, pod_labels(overlay))


def test_objects_named_in_the_pod_exist(overlay: str) -> None:
    made = {(document["kind"], document["metadata"]["name"]) for document in documents(overlay)}
    sources = [source for part in parts(overlay) for source in part["envFrom"]]
    named = {("ConfigMap", source["configMapRef"]["name"]) for source in sources}
    for spec in (one_["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for one_ in of_kind(overlay, kind)):
        named.add(("ServiceAccount", spec["serviceAccountName"]))
        claims = [volume["persistentVolumeClaim"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume]
        named |= {("PersistentVolumeClaim", claim["claimName"]) for claim in claims}
    assert named <= made


def test_mounts_and_volumes_match(overlay: str) -> None:
    for owner in (*of_kind(overlay, "Deployment"), *of_kind(overlay, "Job")):
        spec = owner["spec"]["template"]["spec"]
        mounts = [
            one_ for part in [*spec["containers"], *spec.get("initContainers", [])] for one_ in part["volumeMounts"]
        ]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in spec["volumes"]}


def test_a_token_of_the_hub_is_read_where_its_secret_is_mounted(overlay: str) -> None:
    for job in of_kind(overlay, "Job"):
        spec = job["spec"]["template"]["spec"]
        (fetch,) = spec["containers"]
        (mount,) = [one_["mountPath"] for one_ in fetch["volumeMounts"] if one_["name"] == "hub"]
        assert {"name": "HF_TOKEN_PATH", "value": f"{mount}/token"} in fetch["env"]
        (volume,) = [one_["secret"] for one_ in spec["volumes"] if one_["name"] == "hub"]
        assert volume["optional"]


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


def test_a_rollout_keeps_the_capacity_or_needs_no_spare_gpu(overlay: str) -> None:
    rolling = one(overlay, "Deployment")["spec"]["strategy"]["rollingUpdate"]
    has_gpu = "nvidia.com/gpu" in container(overlay)["resources"]["limits"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == ((1, 0) if has_gpu else (0, 1))
    assert one(overlay, "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


# settings


def test_every_variable_is_a_setting_with_a_valid_value(overlay: str) -> None:
    # load() rejects unknown names and invalid values, but ignores names without the prefix
    for part in parts(overlay):
        assert load(environ=environment(overlay, part)) is not None
        own = environment(overlay, part).keys() - image_environment().keys()
        assert {name for name in own if not name.startswith(ENV_PREFIX)} <= {"HF_TOKEN_PATH"}


def test_a_key_is_required(overlay: str) -> None:
    assert image_environment()["ERLANGSHEN_SECURITY__ALLOW_ANONYMOUS"] == "true"
    assert settings(overlay).security.allow_anonymous is False


def test_only_the_job_may_download_from_the_hub(overlay: str) -> None:
    online = [part for part in parts(overlay) if not load(environ=environment(overlay, part)).models.offline]
    jobs = of_kind(overlay, "Job")
    assert online == [part for job in jobs for part in job["spec"]["template"]["spec"]["containers"]]
    assert all(part["args"] == ["fetch"] for part in online)


def test_the_job_and_the_pods_read_the_same_models_from_one_volume(overlay: str) -> None:
    for part in parts(overlay):
        assert load(environ=environment(overlay, part)).models.specs == settings(overlay).models.specs
        (cache,) = [mount for mount in part["volumeMounts"] if mount["mountPath"] == image_environment()["HOME"]]
        assert cache["name"] == "cache"


def test_a_model_of_the_hub_is_pinned(overlay: str) -> None:
    assert all("@" in spec for spec in settings(overlay).models.specs)


def test_a_pod_with_a_gpu_does_not_serve_without_it(overlay: str) -> None:
    has_gpu = "nvidia.com/gpu" in container(overlay)["resources"]["limits"]
    assert settings(overlay).replicas.devices == (("cuda:0",) if has_gpu else ("auto",))


def test_any_gpu_with_enough_memory_is_taken(overlay: str) -> None:
    terms = [
        expression
        for term in pod(overlay)
        .get("affinity", {})
        .get("nodeAffinity", {})
        .get("requiredDuringSchedulingIgnoredDuringExecution", {})
        .get("nodeSelectorTerms", [])
        for expression in term["matchExpressions"]
    ]
    assert {term["key"] for term in terms} <= {"nvidia.com/gpu.memory"}
    assert sorted(term["operator"] for term in terms) in ([], ["DoesNotExist", "Gt"])


# hardening that checkov does not check


def test_only_the_folders_that_the_service_writes_are_writable(overlay: str) -> None:
    writable = {mount["mountPath"] for mount in container(overlay)["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", image_environment()["HOME"]}


def test_cpu_and_memory_requests_equal_their_limits(overlay: str) -> None:
    for part in parts(overlay):
        resources = part["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert resources["requests"]["cpu"] == resources["limits"]["cpu"]


def test_egress_is_only_open_for_the_job_that_downloads(overlay: str) -> None:
    opened = {
        policy["metadata"]["name"]: {(port["port"], port["protocol"]) for rule in rules for port in rule["ports"]}
        for policy in of_kind(overlay, "NetworkPolicy")
        if (rules := policy["spec"].get("egress"))
    }
    assert opened == ({FETCH: {(53, "UDP"), (53, "TCP"), (443, "TCP")}} if of_kind(overlay, "Job") else {})
