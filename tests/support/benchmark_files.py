"""Invented records in the layouts of CLUE, FewCLUE and other publishers: training, development and test files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
NEWS = ("news_car", "news_game", "news_story")
RELATIONS = ("contradiction", "neutral", "entailment")
DISCIPLINES = ("哲学", "法学", "数学")
APPS = {0: "打车", 10: "社区服务", 99: "银行"}
IDIOMS = ["一心一意", "三心二意", "不三不四", "万水千山", "人山人海"]
WORDS = ("天气很好", "不好看", "我在学校", "今天下雨")


def text(index: int) -> str:
    return f"{WORDS[index % len(WORDS)]}，第{index}天。"


def _pair(index: int) -> Record:
    return {"id": index, "sentence1": text(index), "sentence2": text(index + index % 2), "label": str(1 - index % 2)}


def _tnews(index: int) -> Record:
    label = NEWS[index % 3]
    return {"id": index, "label": str(100 + index % 3), "label_desc": label, "sentence": text(index), "keywords": ""}


def _iflytek(index: int) -> Record:
    number = list(APPS)[index % 3]
    return {"id": index, "label": number, "label_des": APPS[number], "sentence": text(index)}


def _nli(index: int) -> Record:
    return {**_pair(index), "label": RELATIONS[index % 3]}


def _csl(index: int) -> Record:
    return {"id": index, "abst": text(index // 2), "keyword": ["天气", "学校"], "label": str(index % 2)}


def _wsc(index: int) -> Record:
    target = {"span1_text": "学生", "span1_index": 0, "span2_text": "他", "span2_index": 3}
    return {"id": index, "target": target, "label": ("false", "true")[index % 2], "text": f"学生和他{text(index)}"}


def idioms(index: int) -> list[str]:
    """Four candidates, in an order of their own."""
    return [*IDIOMS[index % 5 :], *IDIOMS[: index % 5]][:4]


def _few_chid(index: int) -> Record:
    return {"id": index, "candidates": idioms(index), "content": f"{text(index)}他#idiom#，走了。", "answer": index % 4}


def _eprstmt(index: int) -> Record:
    return {"id": index, "sentence": text(index), "label": ("Negative", "Positive")[index % 2]}


def _csldcp(index: int) -> Record:
    return {"id": index, "content": text(index), "label": DISCIPLINES[index % 3]}


def _qbqtc(index: int) -> Record:
    return {"id": index, "query": text(index), "title": text(index + 1), "label": str(index % 3)}


def _without(record: Record, *fields: str) -> Record:
    return {name: value for name, value in record.items() if name not in fields}


LABEL_FIELDS = ("label", "label_desc", "label_des", "answer")
CLUE: dict[str, Callable[[int], Record]] = {
    "afqmc_public": _pair,
    "tnews_public": _tnews,
    "iflytek_public": _iflytek,
    "ocnli_public": _nli,
    "cmnli_public": _nli,
    "cluewsc2020_public": _wsc,
    "csl_public": _csl,
}
FEWCLUE: dict[str, Callable[[int], Record]] = {
    "eprstmt": _eprstmt,
    "csldcp": _csldcp,
    "tnews": _tnews,
    "iflytek": _iflytek,
    "ocnli": _nli,
    "bustm": _pair,
    "chid": _few_chid,
    "csl": _csl,
    "cluewsc": _wsc,
}


def write_benchmarks(data: Path, size: int = 8) -> Path:
    """Everything: `size` records in a training file, half of them in a development file, 4 in a test file."""
    for folder, make in CLUE.items():
        test = "test1.1" if folder.startswith(("tnews", "cluewsc")) else "test"
        _write_splits(data / "clue" / folder, make, {"train": size, "dev": size // 2}, test)
    for name, make in FEWCLUE.items():
        sizes = {f"{split}_{fold}": size // 2 for split in ("train", "dev") for fold in ("0", "1", "2", "3", "4")}
        _write_splits(data / "fewclue" / name, make, sizes | {"train_few_all": size, "dev_few_all": size}, "test")
        _write_lines(data / "fewclue" / name / "test_public.json", map(make, range(100, 104)))
    (data / "fewclue/csldcp/labels_all.txt").write_text("\n".join(DISCIPLINES), encoding="utf-8")
    _write_chid(data / "clue/chid_public", size)
    _write_c3(data / "clue/c3_public", size)
    _write_splits(data / "qbqtc", _qbqtc, {"train": size, "dev": size // 2}, "test")
    for name in ("lcqmc", "oppo", "sts-b"):
        for split, count in (("train", size), ("dev", size // 2)):
            label = 5 if name == "sts-b" else 1
            rows = (f"{text(index)}\t{text(index + index % 2)}\t{label * (1 - index % 2)}\n" for index in range(count))
            _write_text(data / name / f"{split}.txt", "".join(rows))
    for split, count in (("translated_train", size), ("dev_2k", size // 2)):
        rows = (f"{index}\t{text(index)}\t{text(index + index % 2)}\t{1 - index % 2}\n" for index in range(count))
        _write_text(data / "paws-x" / f"{split}.tsv", "id\tsentence1\tsentence2\tlabel\n" + "".join(rows))
    return data


def _write_splits(folder: Path, make: Callable[[int], Record], sizes: dict[str, int], test: str) -> None:
    """Each file has records of its own; the test file has no answers."""
    start = 0
    for stem, size in sizes.items():
        _write_lines(folder / f"{stem}.json", map(make, range(start, start + size)))
        start += size
    _write_lines(folder / f"{test}.json", (_without(make(index), *LABEL_FIELDS) for index in range(200, 204)))


def _write_chid(folder: Path, size: int) -> None:
    start = 1
    for stem, count in (("train", size), ("dev", size // 2), ("test1.1", 4)):
        numbers = range(start, start + 2 * count)
        tags = [f"#idiom{number:06}#" for number in numbers]
        lines = enumerate(zip(tags[::2], tags[1::2], strict=True), start=start)
        records = (
            {"candidates": idioms(index), "content": [f"{text(index)}他{one}，走了。我也{two}。"]}
            for index, (one, two) in lines
        )
        _write_lines(folder / f"{stem}.json", records)
        if not stem.startswith("test"):
            _write_text(folder / f"{stem}_answer.json", json.dumps({tag: index % 4 for index, tag in enumerate(tags)}))
        start += 2 * count


def _write_c3(folder: Path, size: int) -> None:
    for stem in ("m-train", "d-train", "m-dev", "d-dev", "test1.1"):
        content = []
        for index in range(size if "train" in stem else 4):
            question: Record = {
                "question": "天气怎么样？",
                "choice": ["很好", "不好", f"下雨{index}天"],
                "id": f"{stem}-{index}",
            }
            if not stem.startswith("test"):
                question["answer"] = question["choice"][index % 3]
            content.append([[text(index + len(stem))], [question], str(index)])
        _write_text(folder / f"{stem}.json", json.dumps(content, ensure_ascii=False))


def _write_lines(file: Path, records: Iterable[Record]) -> None:
    _write_text(file, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def _write_text(file: Path, content: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
