"""Look-ups in the Kubernetes manifests as kustomize renders them, and in the environment of the image."""

from __future__ import annotations

import os
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


def combined(folder: Path, *components: str, **fields: Any) -> list[Document]:
    """An overlay in `folder` as rendered: the base with these components, and more fields of kustomization.yaml."""
    content = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["base"],
        "components": [f"components/{name}" for name in components],
    } | fields
    for key in ("resources", "components"):
        content[key] = [os.path.relpath(K8S / name, folder) for name in content[key]]
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(content))
    return documents(str(folder))


@cache
def documents(folder: str) -> list[Document]:
    """What is rendered, shared by all tests: copy what you change."""
    return list(yaml.load_all(rendered(folder), yaml.CSafeLoader))


def of_kind(folder: str, kind: str) -> list[Document]:
    return [document for document in documents(folder) if document["kind"] == kind]


def one(folder: str, kind: str) -> Document:
    (found,) = of_kind(folder, kind)
    return found


def pod(folder: str) -> Document:
    """The pod spec of the one Deployment."""
    spec: Document = one(folder, "Deployment")["spec"]["template"]["spec"]
    return spec


def parts(folder: str) -> list[Document]:
    """All containers: of the Deployment, those that run before them, and those of Jobs."""
    specs = [
        document["spec"]["template"]["spec"] for kind in ("Deployment", "Job") for document in of_kind(folder, kind)
    ]
    return [part for spec in specs for part in [*spec.get("initContainers", []), *spec["containers"]]]


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
