"""The blocks of code in the documents run, page by page in order, against a server of their own.

The blocks with client libraries run in tests/clients/test_pages.py. A Chinese page that follows an English one shows
the same commands (tests/unit/project/test_docs.py), so that one of them is run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import openpyxl
import pytest

from service.api.accounts import hash_of
from tests.checkpoints import make_checkpoint
from tests.support.pages import PAGES, ROOT, Block, blocks_of, is_translation, sandbox
from tests.support.servers import serving

REVIEWS = [
    (f"{opening}，{text}", label)
    for opening in ("说说这家店", "昨天去的", "朋友推荐的", "第二次来", "点了外卖", "一个人吃", "周末来的", "下班路过")
    for text, label in (
        ("菜很好吃，服务也周到", "好评"),
        ("分量足，味道很正宗", "好评"),
        ("环境干净，上菜很快", "好评"),
        ("米饭夹生，等了一个小时", "差评"),
        ("又贵又难吃，不会再来", "差评"),
        ("服务员态度很差", "差评"),
    )
]
RECEIVER = re.compile(r"^```toml\n(?P<toml># receiver\.toml.*?)^```$", re.MULTILINE | re.DOTALL)


def runnable(page: Path) -> list[Block]:
    blocks = blocks_of(page)
    return [block for block in blocks if block.is_possible and not (block.is_marked or block.is_client)]


RUN = [page for page in PAGES if runnable(page) and not is_translation(page)]


def give(folder: Path, page: Path) -> None:
    """What a reader has: files of labelled texts, of requests and of keys, a model that was trained before, a robot."""
    rows = [("评论", "情感"), *REVIEWS]
    for name in ("reviews", "new"):
        (folder / f"{name}.csv").write_text("".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append(row)
        book.save(folder / f"{name}.xlsx")
    tickets = [{"text": text, "label": label} for text, label in REVIEWS]
    pairs = [
        {"text": "怎么注销账号", "text_pair": f"如何{word}账号", "label": int(word != "购买")}
        for word in ("删除", "注销", "购买")
    ]
    requests = [{"url": "/v1/classify", "body": {"inputs": text, "labels": ["好评", "差评"]}} for text, _ in REVIEWS]
    candidates = [f"{pair['text']},{pair['text_pair']}\n" for pair in pairs]
    (folder / "pairs.csv").write_text("question,candidate\n" + "".join(candidates), encoding="utf-8")
    if find_spec("pyarrow"):
        parquet = import_module("pyarrow.parquet")
        table = import_module("pyarrow").table({"id": list(range(len(REVIEWS))), "text": [text for text, _ in REVIEWS]})
        parquet.write_table(table, folder / "texts.parquet")
    for name, lines in (("tickets.jsonl", tickets), ("questions.jsonl", pairs * 8), ("requests.ndjson", requests)):
        (folder / name).write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
    (folder / "keys.toml").write_text(f'[keys.app]\nhash = "{hash_of("erl_app")}"\nscopes = ["infer"]\n')
    if receiver := RECEIVER.search(page.read_text(encoding="utf-8")):
        (folder / "receiver.toml").write_text(receiver["toml"], encoding="utf-8")
        (folder / "oncall.url").write_text("http://127.0.0.1:9/robot")
        (folder / "oncall.secret").write_text("SEC-of-the-robot")
    if page.name == "evaluation.md":
        make_checkpoint(folder / "runs" / "reviews", kind="sequence-classification", id2label={0: "好评", 1: "差评"})


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the models that ship, a classifier, and a model that finds answers in passages."""
    folder = tmp_path_factory.mktemp("served")
    make_checkpoint(folder / "tuned", kind="sequence-classification", id2label={0: "好评", 1: "差评"})
    make_checkpoint(folder / "reader", kind="question-answering")
    models = ["mini", "e5-small", *(f"{name}={folder / name}" for name in ("tuned", "reader"))]
    with serving(*(f"--model={model}" for model in models), f"--data-dir={folder / 'data'}") as server:
        yield server.url


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, tmp_path: Path, url: str) -> None:
    give(tmp_path, page)
    with sandbox(tmp_path, url) as folder:
        for block in runnable(page):
            done = folder.run(block)
            where = f"{block.page}:{block.line}\n{done.stdout}\n{done.stderr}"
            assert (done.returncode != 0) == block.is_refused, where
