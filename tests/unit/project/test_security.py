"""The service never runs code from a model or a request: forbidden calls in its source."""

from __future__ import annotations

import ast
from pathlib import Path

SERVICE = Path(__file__).parents[3] / "service"
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "yaml.load", "pickle.load", "pickle.loads"),
    *("trust_remote_code", "shell"),
}
OURS = {"replicas/protocol.py": {"pickle.loads"}}
"""Messages between a parent and its own worker process."""


def forbidden_in(source: Path) -> set[str]:
    """Called names, `module.name` attributes and keywords that are in FORBIDDEN."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
    return found & FORBIDDEN


def test_the_service_uses_no_forbidden_call() -> None:
    found = {str(source.relative_to(SERVICE)): forbidden_in(source) for source in SERVICE.rglob("*.py")}
    assert {name: words for name, words in found.items() if words} == OURS


def test_forbidden_in_finds_calls_attributes_and_keywords(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text("eval('1')\npickle.load(f)\nf(trust_remote_code=True)\nre.compile('x')\nmodel.eval()\n")
    assert forbidden_in(source) == {"eval", "pickle.load", "trust_remote_code"}
