"""The Deployment of the cpu overlay in `podman kube play`: keys, probes, limits, hardening, graceful shutdown.

Only the image, the host port and the volume of the keys are replaced: podman 4.3 does not decode a Secret.
"""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml

from tests.deploy.containers import ENGINE, IMAGE, Container, engine, needs_image
from tests.deploy.manifests import Document, needs, of_kind, one, pod

pytestmark = [
    needs("kubectl"),
    needs_image,
    pytest.mark.skipif(not ENGINE.endswith("podman"), reason="only podman plays Kubernetes: ENGINE=podman"),
    pytest.mark.system,
]

OVERLAY = "overlays/cpu"
QUESTION = {"inputs": "国足客场两球取胜，晋级十二强赛", "labels": ["体育", "财经", "娱乐"]}


class Played(NamedTuple):
    client: httpx.Client
    container: Container
    secret: str


def new_key() -> tuple[str, str]:
    """(secret, keys file with its entry) as `python -m service key` prints them."""
    made = subprocess.run([sys.executable, "-m", "service", "key", "app"], capture_output=True, text=True, check=True)
    (secret,) = re.findall(r"^  (erl_\S+)$", made.stdout, re.MULTILINE)
    table = re.search(r"^  \[keys.*?\n\n", made.stdout, re.MULTILINE | re.DOTALL)
    assert table is not None
    return secret, re.sub(r"^  ", "", table[0], flags=re.MULTILINE)


def played(port: int, keys: Path) -> Document:
    """One pod of the built image, on a port of this machine."""
    deployment = copy.deepcopy(one(OVERLAY, "Deployment"))
    deployment["spec"]["replicas"] = 1
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["image"] = IMAGE
    container["ports"][0] |= {"hostIP": "127.0.0.1", "hostPort": port}
    volumes = deployment["spec"]["template"]["spec"]["volumes"]
    volumes[[volume["name"] for volume in volumes].index("keys")] = {"name": "keys", "hostPath": {"path": str(keys)}}
    return deployment


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("play")
    folder.chmod(0o755)  # readable for the user of the container
    secret, keys = new_key()
    (folder / "keys.toml").write_text(keys)
    file = folder / "all.yaml"
    file.write_text(yaml.safe_dump_all([*of_kind(OVERLAY, "ConfigMap"), played(port, folder)]))
    container = Container("erlangshen-pod-0-erlangshen")
    engine("kube", "play", str(file))
    try:
        container.wait_until("ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            yield Played(client, container, secret)
    finally:
        engine("kube", "down", str(file), check=False)


def test_probes_and_requests_with_a_key_are_answered(service: Played) -> None:
    client, _, secret = service
    paths = ("/livez", "/readyz", "/v1/models", "/metrics")
    assert [client.get(path).status_code for path in paths] == [200, 200, 401, 401]
    reply = client.post("/v1/classify", json=QUESTION, headers={"Authorization": f"Bearer {secret}"})
    assert (reply.status_code, reply.json()["results"][0]["label"]) == (200, "体育")


def test_the_container_has_limits_and_no_capabilities(service: Played) -> None:
    client, container, secret = service
    (inspected,) = json.loads(engine("inspect", container.name))
    host = inspected["HostConfig"]
    assert (host["ReadonlyRootfs"], host["Memory"], host["CpuQuota"]) == (True, 2 * 2**30, 200_000)
    assert (inspected["Config"]["User"], inspected["EffectiveCaps"] or []) == ("10001:10001", [])
    replicas = client.get("/v1/models", headers={"X-API-Key": secret}).json()["replicas"]
    assert [replica["threads"] for replica in replicas] == [min(2, len(os.sched_getaffinity(0)))]


def test_the_container_drains_within_the_grace_period(service: Played) -> None:
    _, container, _ = service
    engine("stop", "--time", str(pod(OVERLAY)["terminationGracePeriodSeconds"]), container.name)
    assert container.exit_code() == 0
