"""Reads the examples of the README and docs/tasks.md, and fills in their answers from a running server.

    python -m tests.readme_examples --url http://127.0.0.1:8000     # the answers below each curl
    python -m tests.readme_examples --accuracy                      # the accuracy table, of the committed result

An example is a bash block under `<!-- example:NAME -->`; its answer is the JSON block under `<!-- answer:NAME -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md", ROOT / "docs" / "tasks.md")
CHINESE = (ROOT / "README.zh-CN.md", ROOT / "docs" / "zh" / "tasks.md")
ACCURACY_RESULT = ROOT / "benchmarks" / "results" / "accuracy_mini.json"
MODEL_CARD = ROOT / "service" / "models" / "mini" / "README.md"
WIDTH = 100
LONGEST_VECTOR = 8
EXAMPLE = re.compile(r"<!-- example:(?P<name>[\w-]+) -->\n```bash\n(?P<command>.*?)\n```\n", re.DOTALL)
ANSWER = re.compile(r"<!-- answer:(?P<name>[\w-]+) -->\n(?:```json\n(?P<json>.*?)\n```\n)?", re.DOTALL)
ACCURACY = re.compile(r"(<!-- accuracy:begin -->\n).*?(<!-- accuracy:end -->)", re.DOTALL)
ACCURACY_HEADS = {
    MODEL_CARD: ("data set", "examples", "accuracy", "95 % interval", "chance"),
    ROOT / "docs" / "zh" / "models.md": ("数据集", "样本数", "准确率", "95% 置信区间", "随机猜测"),
}
"""The pages that show the accuracy of `mini`, and the head of the table there."""


@dataclass(frozen=True, slots=True)
class Example:
    """A curl command of a page; `body` is None for a GET."""

    name: str
    path: str
    body: str | None

    @classmethod
    def parse(cls, name: str, command: str) -> Example:
        words = shlex.split(command)
        (url,) = (word for word in words if word.startswith("http://"))
        body = words[words.index("-d") + 1] if "-d" in words else None
        return cls(name, urlsplit(url).path, body)

    def send(self, client: httpx.Client) -> Any:
        if self.body is None:
            return client.get(self.path).json()
        return client.post(self.path, content=self.body.encode()).json()


def read(pages: Iterable[Path]) -> str:
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def examples(text: str) -> dict[str, Example]:
    return {match["name"]: Example.parse(match["name"], match["command"]) for match in EXAMPLE.finditer(text)}


def answers(text: str) -> dict[str, Any]:
    """The parsed answers by name; None for an answer that has not been filled in."""
    return {match["name"]: match["json"] and json.loads(match["json"]) for match in ANSWER.finditer(text)}


def fill_answers(text: str, replies: Mapping[str, Any]) -> str:
    return ANSWER.sub(
        lambda match: f"<!-- answer:{match['name']} -->\n```json\n{pretty(replies[match['name']])}\n```\n", text
    )


def fill_accuracy(text: str, head: tuple[str, ...], reports: list[dict[str, Any]]) -> str:
    rows = [f"| {' | '.join(head)} |", "|---|---:|---:|---:|---:|"]
    for report in reports:
        low, high = report["interval_95"]
        name = f"{report['task']} ({report['split']})"
        share = f"{report['accuracy']:.1%} | {low:.1%} – {high:.1%} | {report['chance']:.1%}"
        rows.append(f"| {name} | {report['examples']} | {share} |")
    table = "\n".join(rows)
    return ACCURACY.sub(lambda match: f"{match[1]}{table}\n{match[2]}", text)


def measured() -> list[dict[str, Any]]:
    """The reports of every data set, for `fill_accuracy`."""
    reports: list[dict[str, Any]] = json.loads(ACCURACY_RESULT.read_text(encoding="utf-8"))["sets"]
    return reports


def pretty(value: Any, indent: int = 0) -> str:
    """JSON with short values on one line, rounded numbers and shortened vectors."""
    value = _shortened(value)
    flat = json.dumps(value, ensure_ascii=False)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list):
        return flat
    inner = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {pretty(one, indent + 2)}" for key, one in value.items()
        ]
        return "{\n" + ",\n".join(parts) + "\n" + " " * indent + "}"
    return "[\n" + ",\n".join(inner + pretty(one, indent + 2) for one in value) + "\n" + " " * indent + "]"


def _shortened(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        is_vector = len(value) > LONGEST_VECTOR and isinstance(value[0], float)
        kept = [_shortened(one) for one in (value[:4] if is_vector else value)]
        return [*kept, f"… {len(value) - 4} more"] if is_vector else kept
    return round(value, 4) if isinstance(value, float) else value


def _rewrite(paths: Iterable[Path], change: Callable[[Path, str], str]) -> None:
    for path in paths:
        path.write_text(change(path, path.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.readme_examples", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", help="fill in the answers of this server")
    parser.add_argument("--accuracy", action="store_true", help="fill in benchmarks/results/accuracy_mini.json")
    args = parser.parse_args()
    if args.url:
        with httpx.Client(base_url=args.url, timeout=60, trust_env=False) as client:
            replies = {name: example.send(client) for name, example in examples(read(ENGLISH)).items()}
        _rewrite((*ENGLISH, *CHINESE), lambda path, text: fill_answers(text, replies))
    if args.accuracy:
        reports = measured()
        _rewrite(ACCURACY_HEADS, lambda path, text: fill_accuracy(text, ACCURACY_HEADS[path], reports))


if __name__ == "__main__":
    main()
