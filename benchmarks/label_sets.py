"""Stored label sets: the time of a request by the number of labels.

    python -m benchmarks.label_sets --json FILE

One server with the shipped models and a folder for label sets, with one thread for computing. For each size a set
of made-up labels is written, and the time until its vectors are kept is measured. Then requests of one text each go
to the sets in turn, one at a time, with a new text in each turn: the ratio is that of the median times, and the
interval that of the ratios of rounds. `blend` is the default, by both models, of which the choice model reads a
shortlist; `embedding` is the embedding model alone. With `--templates` fewer vectors are computed for each label,
which shortens the preparation only.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.common import about, auto_precision, parser_of, save
from service.tasks.blend import MAX_TEMPLATES, SHIPPED_BLEND
from service.tools.bench.client import Client
from tests.support.servers import serving

SIZES = (10, 100, 1000, 10_000)
METHODS = ("auto", "embedding")
SUBJECTS = "手机电脑相机耳机冰箱空调电视汽车房产股票基金保险贷款旅游酒店机票签证足球篮球网球"
PARTS = "屏幕电池价格质量物流客服安装维修退货发票优惠会员积分账号密码支付评价包装外观颜色声音速度"
ASPECTS = "咨询投诉建议故障推荐比较新闻活动说明教程体验问题需求反馈变更取消预约查询升级回收赔偿举报认证"
CHARACTERS = "今天的一个新闻说我们公司产品很好但是价格有点高客户觉得服务还可以所以大家讨论了很久没有结果"
TEXT_CHARS = 40
NUM_ROUNDS = 5


def make_labels(count: int) -> list[str]:
    """Different labels of six characters, in a fixed random order."""
    words = [[text[start : start + 2] for start in range(0, len(text), 2)] for text in (SUBJECTS, PARTS, ASPECTS)]
    labels = ["".join(each) for each in product(*words)]
    random.Random(1).shuffle(labels)
    return labels[:count]


def make_text(draw: random.Random) -> str:
    return "".join(draw.choices(CHARACTERS, k=TEXT_CHARS))


async def write(client: Client, size: int) -> float:
    """Writes a set; seconds until its vectors are kept."""
    started = time.perf_counter()
    path = f"/v1/label-sets/{_name(size)}"
    body = json.dumps({"labels": make_labels(size)}, ensure_ascii=False).encode()
    written = await client.send("PUT", path, body)
    if written.status not in (200, 201, 202):
        raise SystemExit(f"PUT {path}: {written.status} {written.body.decode()}")
    progress = json.loads(written.body)["vectors"]
    while progress["done"] < progress["of"]:
        await asyncio.sleep(0.02)
        progress = json.loads((await client.send("GET", path)).body)["vectors"]
    return time.perf_counter() - started


async def ask(client: Client, size: int, text: str, method: str) -> float:
    """Seconds of one request."""
    body = {"inputs": [text], "label_set": _name(size), "method": method}
    message = json.dumps(body, ensure_ascii=False).encode()
    started = time.perf_counter()
    response = await client.send("POST", "/v1/classify", message)
    seconds = time.perf_counter() - started
    reply = json.loads(response.body)
    if response.status != 200 or reply["usage"]["label_tokens"]:
        raise SystemExit(f"{size} labels: {response.status} {response.body.decode()[:500]}")
    return seconds


def _name(size: int) -> str:
    return f"labels-{size}"


async def measure(port: int, sizes: Sequence[int], num_turns: int) -> dict[str, Any]:
    client, draw = Client("127.0.0.1", port), random.Random(2)
    prepared_s = {}
    for size in sizes:
        prepared_s[size] = round(await write(client, size), 3)
        print(f"{size} labels: prepared in {prepared_s[size]:.1f} s", file=sys.stderr)
    methods = {}
    for method in METHODS:
        for size in sizes:
            await ask(client, size, make_text(draw), method)
        rounds = []
        for _ in range(NUM_ROUNDS):
            seconds: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(num_turns):
                for size in sizes:
                    seconds[size].append(await ask(client, size, make_text(draw), method))
            rounds.append(seconds)
        methods["blend" if method == "auto" else method] = _summary(rounds, sizes)
    client.close()
    return {"prepared_s": prepared_s, "methods": methods}


def _summary(rounds: Sequence[dict[int, list[float]]], sizes: Sequence[int]) -> dict[str, Any]:
    medians = {size: statistics.median([value for each in rounds for value in each[size]]) for size in sizes}
    first, last = sizes[0], sizes[-1]
    ratios = [statistics.median(each[last]) / statistics.median(each[first]) for each in rounds]
    return {
        "median_ms": {size: round(1000 * value, 2) for size, value in medians.items()},
        "ratio": round(medians[last] / medians[first], 2),
        "ratio_of_rounds": [round(min(ratios), 2), round(max(ratios), 2)],
    }


def _flags(folder: str, num_templates: int) -> list[str]:
    blend = json.loads(SHIPPED_BLEND.read_text(encoding="utf-8"))
    file = Path(folder) / "blend.json"
    file.write_text(json.dumps(blend | {"templates": blend["templates"][:num_templates]}), encoding="utf-8")
    return ["--data-dir", folder, "--blend", str(file), "--threads", "1"]


def main(argv: Sequence[str]) -> int:
    parser = parser_of("label_sets", __doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="labels of the sets (default: %(default)s)")
    parser.add_argument("--templates", type=int, default=MAX_TEMPLATES, help="templates of a label (default: all)")
    parser.add_argument("--turns", type=int, default=40, help="requests to each set in a round (default: %(default)s)")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, serving(*_flags(folder, arguments.templates)) as server:
        measured = asyncio.run(measure(server.port, arguments.sizes, arguments.turns))
    report = {**about(arguments, argv, "torch", precision=auto_precision()), "text_chars": TEXT_CHARS, **measured}
    print(json.dumps(measured, ensure_ascii=False, indent=2))
    save(report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
