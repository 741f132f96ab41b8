"""What no line of the service may do: run code that came with a model or with a request."""

from __future__ import annotations

import ast
from pathlib import Path

SERVICE = Path(__file__).parents[3] / "service"
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__", "os.system", "yaml.load", "pickle.load", "pickle.loads"),
    *("trust_remote_code", "shell"),
}
OURS = {"replicas/protocol.py": {"pickle.loads"}}
"""What a parent and its own child tell each other."""


def forbidden_in(source: Path) -> set[str]:
    """Of names that are called, `module.name`s and keywords."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.add(node.func.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
    return found & FORBIDDEN


def test_no_code_of_others_is_run() -> None:
    found = {str(source.relative_to(SERVICE)): forbidden_in(source) for source in SERVICE.rglob("*.py")}
    assert {name: words for name, words in found.items() if words} == OURS


def test_a_forbidden_word_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text("eval('1')\npickle.load(f)\nf(trust_remote_code=True)\nre.compile('x')\nmodel.eval()\n")
    assert forbidden_in(source) == {"eval", "pickle.load", "trust_remote_code"}
