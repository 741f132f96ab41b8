"""The model card of a fine-tuned model, README.md of its folder, in Chinese and English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.tools.training.samples import Problem

MAX_CLASSES = 40
"""Classes in the table of the card; run.json has all."""
_NAMES = {
    "accuracy": "准确率 / accuracy",
    "macro_f1": "宏平均 F1 / macro-F1",
    "spearman": "斯皮尔曼相关 / Spearman",
    "pearson": "皮尔逊相关 / Pearson",
}
_PERCENT = ("accuracy", "macro_f1")


@dataclass(frozen=True, slots=True)
class Card:
    """What a card states. `measures` and `intervals` are of the dev set; `data` are lines about the data."""

    title: str
    base: str
    problem: Problem
    max_length: int
    question: str | None
    measures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    chance: float | None
    per_class: Sequence[Mapping[str, float]]
    num_train: int
    num_dev: int
    data: str
    values: Mapping[str, Any]
    warnings: Sequence[str] = ()
    temperature: float | None = None
    calibration_error: tuple[float, float] | None = None
    """Before and after the temperature."""


def render(card: Card) -> str:
    parts = [_front_matter(card), f"# {card.title}", *_about(card), *_results(card), *_use(card), *_training(card)]
    return "\n\n".join(parts) + "\n"


def _front_matter(card: Card) -> str:
    pipeline = "text-classification" if card.problem.form == "head" else "zero-shot-classification"
    lines = ["---", "language: zh", f"pipeline_tag: {pipeline}", "library_name: transformers"]
    if "/" in card.base and not card.base.startswith((".", "/", "~")):
        lines.append(f"base_model: {card.base}")
    return "\n".join([*lines, "tags:", "- erlangshen", "- chinese", "---"])


def _about(card: Card) -> list[str]:
    form_zh, form_en = (
        ("分类头", "a classification head")
        if card.problem.form == "head"
        else ("选择式（UniMC）", "a choice model (UniMC)")
    )
    if card.problem.target == "number":
        form_zh, form_en = "回归头", "a regression head"
    about = [
        f"由 `{card.base}` 微调的{form_zh}模型，训练数据 {card.num_train} 条。",
        f"`{card.base}` fine-tuned as {form_en} on {card.num_train} examples.",
    ]
    if labels := card.problem.labels:
        shown = "、".join(f"`{label}`" for label in labels)
        about.append(f"标签 / labels ({len(labels)}): {shown}")
    if card.problem.form == "choice" and card.problem.task == "classify":
        wording = card.problem.wording
        about.append(
            f"选项模板 / option template: `{wording.template}`; 问题 / question: "
            f"{f'`{card.question}`' if card.question else '无 / none'}"
        )
    about.append(f"最大长度 / longest row: {card.max_length} tokens (词元)")
    if card.temperature is not None and card.calibration_error is not None:
        before, after = card.calibration_error
        about.append(
            f"置信度校准 / calibration: temperature {card.temperature:.3f}, expected calibration error "
            f"{before:.1%} → {after:.1%} (`calibration.json`)"
        )
    return about


def _results(card: Card) -> list[str]:
    lines = [
        "| 指标 / measure | 结果 / result | 95 % 区间 / interval |",
        "|---|---:|---:|",
        *(_row(name, value, card.intervals.get(name)) for name, value in card.measures.items() if name in _NAMES),
    ]
    if card.chance is not None:
        lines.append(f"| 多数类基线 / always the most frequent class | {card.chance:.1%} | |")
    found = [
        "## 结果 / Results",
        f"验证集 {card.num_dev} 条。Measured on {card.num_dev} held-out examples.",
        "\n".join(lines),
    ]
    found += [f"**注意 / Warning:** {each}." for each in card.warnings]
    if card.per_class and len(card.per_class) <= MAX_CLASSES:
        found.append(_class_table(card))
    found.append(
        "最优检查点是在同一验证集上选出的，结果略偏乐观；请用独立测试集复核。"
        "The best checkpoint was chosen on these same examples, so the results are slightly optimistic; measure a test "
        "set of your own."
    )
    return found


def _row(name: str, value: float, bounds: tuple[float, float] | None) -> str:
    shown = [value, *(bounds or ())]
    text = [f"{each:.1%}" if name in _PERCENT else f"{each:.3f}" for each in shown]
    return f"| {_NAMES[name]} | {text[0]} | {' – '.join(text[1:])} |"


def _class_table(card: Card) -> str:
    lines = ["| 类别 / class | precision | recall | F1 | 条数 / examples |", "|---|---:|---:|---:|---:|"]
    for label, row in zip(card.problem.labels, card.per_class, strict=True):
        numbers = " | ".join(f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
        lines.append(f"| {_cell(label)} | {numbers} | {row['support']:.0f} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _use(card: Card) -> list[str]:
    found = ["## 使用 / Use", "```bash\npython -m service serve --model mine=FOLDER\n```"]
    path, body = _request(card)
    found.append(
        f"```bash\ncurl -s http://127.0.0.1:8000{path} -H 'Content-Type: application/json' \\\n  -d '{body}'\n```"
    )
    if card.problem.form == "head":
        found.append(
            "```python\nfrom transformers import pipeline\n\n"
            'classify = pipeline("text-classification", "FOLDER")\n'
            'print(classify("文本", truncation=True))\n```'
        )
    return found


def _request(card: Card) -> tuple[str, str]:
    if card.problem.task == "similarity" and card.problem.target == "one":
        return "/v1/similarity", '{"inputs": [["文本一", "文本二"]]}'
    if card.problem.task == "nli":
        return "/v1/nli", '{"inputs": [["前提", "假设"]]}'
    if card.problem.task == "mrc":
        return "/v1/mrc", '{"inputs": [{"passage": "文章", "question": "问题", "choices": ["甲", "乙"]}]}'
    return "/v1/classify", '{"model": "mine", "inputs": ["文本"]}'


def _training(card: Card) -> list[str]:
    values = "\n".join(f"| {name} | {value} |" for name, value in card.values.items() if value is not None)
    return [
        "## 训练 / Training",
        f"数据 / data: {card.data}",
        f"| | |\n|---|---|\n{values}",
        "完整记录见 `run.json`。`run.json` holds the whole record: flags, hashes of the data, versions, measures.",
    ]
