"""Objects of operators match the schemas of their kinds, strictly: an unknown key is an error."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import jsonschema_rs
import pytest

from tests.deploy.manifests import EXAMPLES, OVERLAYS, Document, combined, documents, needs

SCHEMAS = Path(__file__).parent / "schemas"
KINDS = sorted(file.stem for file in SCHEMAS.glob("*.json"))
FOLDERS = [*(f"overlays/{name}" for name in OVERLAYS), *(f"examples/{name}" for name in EXAMPLES)]

pytestmark = needs("kubectl")


@cache
def schema_of(kind: str) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(json.loads((SCHEMAS / f"{kind}.json").read_text()))


def is_custom(document: Document) -> bool:
    """Whether the kind is defined by an operator: its group has a domain that is not one of Kubernetes itself."""
    group = document["apiVersion"].rpartition("/")[0]
    return "." in group and (not group.endswith(".k8s.io") or group.startswith("gateway."))


def custom_resources(folder: Path) -> list[Document]:
    """One of each kind that our manifests have."""
    rendered = combined(folder, "monitoring", "ingress", "http-route", "tls", namespace="nlp")
    rendered += [document for name in FOLDERS for document in documents(name)]
    return list({one["kind"]: one for one in rendered if is_custom(one)}.values())


def errors(document: Document) -> list[str]:
    found = schema_of(document["kind"]).iter_errors(document)
    return [f"{document['kind']} {error.instance_path}: {error.message}" for error in found]


@pytest.mark.parametrize("folder", FOLDERS)
def test_custom_resources_match_their_schemas(folder: str) -> None:
    assert [line for document in documents(folder) if is_custom(document) for line in errors(document)] == []


def test_custom_resources_of_components_match_their_schemas(tmp_path: Path) -> None:
    assert [line for document in custom_resources(tmp_path) for line in errors(document)] == []


def test_an_unknown_key_is_an_error_in_every_kind(tmp_path: Path) -> None:
    for document in custom_resources(tmp_path):
        changed = copy.deepcopy(document)
        changed["spec"]["unknownKey"] = 1
        assert len(errors(changed)) == 1, document["kind"]


def test_the_source_of_every_schema_is_named() -> None:
    text = (SCHEMAS / "README.md").read_text()
    assert [kind for kind in KINDS if f"`{kind}`" not in text] == []
