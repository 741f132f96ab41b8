"""Writes the JSON schemas of KServe's objects from the types in its Python client and in the client of Kubernetes.

Both clients list the fields of each object with their types; the manifests of this project use a part of them, so that
status, explainers, transformers and the servers of other frameworks are left out.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = {
    "V1beta1InferenceService": ("InferenceService", "serving.kserve.io/v1beta1"),
    "V1alpha1ServingRuntime": ("ServingRuntime", "serving.kserve.io/v1alpha1"),
}
KEPT = {
    "V1beta1InferenceServiceSpec": {"predictor"},
    "V1ObjectMeta": {"name", "namespace", "labels", "annotations"},
}
LEFT_OUT = {"status", "workerSpec", "restartPolicyRules"}
SERVERS = {"huggingface", "lightgbm", "onnx", "paddle", "pmml", "pytorch", "sklearn", "tensorflow", "triton", "xgboost"}
SAME = {
    "K8sIoApiAppsV1DeploymentStrategy": "V1DeploymentStrategy",
    "K8sIoApiAutoscalingV2HorizontalPodAutoscalerBehavior": "V2HorizontalPodAutoscalerBehavior",
}
QUANTITY: dict[str, Any] = {"type": ["string", "integer", "number"]}
PLAIN: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "datetime": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "object": {},
    "ResourceQuantity": QUANTITY,
    "IntstrIntOrString": QUANTITY,
    "V1beta1MetricQuantity": QUANTITY,
}


@dataclass(frozen=True, slots=True)
class Type:
    """The fields of an object, with the names of their types, and those that are required."""

    fields: dict[str, str]
    required: list[str]


def read_types(wheel: Path, folder: str) -> dict[str, Type]:
    """The types of a client by name. KeyError where a class does not have the form of both clients."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(folder) and name.endswith(".py"):
                for node in ast.parse(archive.read(name)).body:
                    if isinstance(node, ast.ClassDef):
                        found[node.name] = _type(node)
    return found


def _type(node: ast.ClassDef) -> Type:
    values = {
        target.id: ast.literal_eval(part.value)
        for part in node.body
        if isinstance(part, ast.Assign)
        for target in part.targets
        if isinstance(target, ast.Name)
    }
    types, names = values["openapi_types"], values["attribute_map"]
    text = ast.unparse(node)
    required = [names[attribute] for attribute in types if f"`{attribute}`, must not be `None`" in text]
    return Type({names[attribute]: type_ for attribute, type_ in types.items()}, required)


def schema(root: str, known: dict[str, Type]) -> dict[str, Any]:
    """The schema of a kind with all types that it needs; KeyError for a type that is not known."""
    waiting, definitions = [root], dict[str, Any]()
    while waiting:
        name = waiting.pop()
        if name not in definitions:
            definitions[name] = _object(name, known[name], waiting)
    kind, version = KINDS[root]
    definitions[root]["properties"] |= {"apiVersion": {"const": version}, "kind": {"const": kind}}
    definitions[root]["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return {"$ref": f"#/$defs/{root}", "$defs": dict(sorted(definitions.items()))}


def _object(name: str, known: Type, waiting: list[str]) -> dict[str, Any]:
    left_out = LEFT_OUT | (SERVERS if name == "V1beta1PredictorSpec" else set())
    kept = KEPT.get(name, set(known.fields)) - left_out
    properties = {field: _value(known.fields[field], waiting) for field in sorted(kept)}
    made: dict[str, Any] = {"type": "object", "additionalProperties": False, "properties": properties}
    if known.required:
        made["required"] = known.required
    return made


def _value(name: str, waiting: list[str]) -> dict[str, Any]:
    if name in PLAIN:
        return PLAIN[name]
    if match := re.fullmatch(r"list\[(.*)\]", name):
        return {"type": "array", "items": _value(match[1], waiting)}
    if match := re.fullmatch(r"dict\(str, (.*)\)", name):
        return {"type": "object", "additionalProperties": _value(match[1], waiting)}
    name = SAME.get(name, name)
    waiting.append(name)
    return {"$ref": f"#/$defs/{name}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kserve", type=Path, help="wheel of kserve")
    parser.add_argument("kubernetes", type=Path, help="wheel of kubernetes")
    parser.add_argument("folder", type=Path, help="where the schemas are written")
    args = parser.parse_args()
    known = read_types(args.kubernetes, "kubernetes/client/models/v") | read_types(args.kserve, "kserve/models/v1")
    for root, (kind, _) in KINDS.items():
        text = json.dumps(schema(root, known), separators=(",", ":"))
        (args.folder / f"{kind}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
