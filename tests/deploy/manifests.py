"""Look-ups in the Kubernetes manifests as kustomize renders them, and in the environment of the image."""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.parent.name for path in K8S.glob("overlays/*/kustomization.yaml"))
EXAMPLES = sorted(path.parent.name for path in K8S.glob("examples/*/kustomization.yaml"))
DOCKERFILE = (ROOT / "Dockerfile").read_text()

Document = dict[str, Any]


def needs(tool: str) -> pytest.MarkDecorator:
    """Skips the test when the program is missing, and names it."""
    return pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed: see docs/deployment.md")


@cache
def rendered(folder: str) -> str:
    command = ["kubectl", "kustomize", str(K8S / folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def documents(folder: str) -> list[Document]:
    return list(yaml.safe_load_all(rendered(folder)))


def of_kind(folder: str, kind: str) -> list[Document]:
    return [document for document in documents(folder) if document["kind"] == kind]


def one(folder: str, kind: str) -> Document:
    (found,) = of_kind(folder, kind)
    return found


def pod(folder: str) -> Document:
    """The pod spec of the one Deployment."""
    spec: Document = one(folder, "Deployment")["spec"]["template"]["spec"]
    return spec


def container(folder: str) -> Document:
    (found,) = pod(folder)["containers"]
    return dict(found)


def image_environment() -> dict[str, str]:
    """The variables that the last stage of the Dockerfile sets."""
    final = DOCKERFILE.split(" AS final", 1)[1]
    block = re.search(r"^ENV (.*?[^\\])\n", final, re.MULTILINE | re.DOTALL)
    assert block is not None
    return dict(pair.split("=", 1) for pair in block[1].replace("\\\n", " ").split())


def environment(folder: str, of: Document) -> dict[str, str]:
    """The environment of a container: the image's variables, then its ConfigMaps', then its own."""
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind(folder, "ConfigMap")}
    merged = image_environment()
    for source in of.get("envFrom", []):
        merged |= maps[source["configMapRef"]["name"]]
    return merged | {entry["name"]: entry["value"] for entry in of.get("env", [])}
