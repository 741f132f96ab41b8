"""The text of a notification, in the Markdown that all three robots understand: bold, links and lines.

Alertmanager's webhook: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config (version 4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import accumulate
from typing import Any, Literal

Level = Literal["critical", "warning", "info", "resolved"]
LANGUAGES: Mapping[str, Mapping[str, str]] = {
    "zh": {
        "critical": "严重",
        "warning": "警告",
        "info": "提示",
        "resolved": "已恢复",
        "since": "开始",
        "until": "结束",
        "runbook": "处理手册",
        "more": "另有 {} 条告警未列出",
        "cut": "……（已截断）",
        "separator": "：",
    },
    "en": {
        "critical": "critical",
        "warning": "warning",
        "info": "info",
        "resolved": "resolved",
        "since": "since",
        "until": "until",
        "runbook": "runbook",
        "more": "{} more alerts are not listed",
        "cut": "... (cut)",
        "separator": ": ",
    },
}
SHOWN = ("cluster", "namespace", "job", "pod", "instance", "replica", "model", "task", "key", "reason", "window")
"""Labels that tell where, in this order. The name and the severity are in the title."""
PLAIN = str.maketrans("<>[]*`\n", "＜＞［］＊｀ ")
"""Full-width forms, as not all robots know escapes in Markdown."""
MAX_TITLE_BYTES = 200
GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Message:
    """`parts` are one text for each alert; `more` takes the number of those that were left out."""

    title: str
    level: Level
    parts: tuple[str, ...]
    more: str
    cut: str

    def text(self, max_bytes: int) -> str:
        """As many alerts as fit into this many bytes of UTF-8, and how many do not."""
        ends = list(accumulate(len(part.encode()) + len(GAP) for part in self.parts))
        if ends[-1] - len(GAP) <= max_bytes:
            return GAP.join(self.parts)
        room = max_bytes - len(self.more.format(len(self.parts)).encode())
        if number := sum(end <= room for end in ends):
            return GAP.join((*self.parts[:number], self.more.format(len(self.parts) - number)))
        rest = f"{GAP}{self.more.format(len(self.parts) - 1)}" if len(self.parts) > 1 else ""
        return shorten(self.parts[0], max_bytes - len(rest.encode()), self.cut) + rest


def shorten(text: str, max_bytes: int, mark: str) -> str:
    """At most this many bytes of UTF-8, no character cut in two; `mark` follows what was cut."""
    encoded = text.encode()
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max(0, max_bytes - len(mark.encode()))].decode(errors="ignore") + mark


def compose(payload: Mapping[str, Any], language: str, utc_offset_h: float) -> Message:
    """Raises KeyError, TypeError, AttributeError or ValueError if the payload is not that of Alertmanager."""
    words, alerts = LANGUAGES[language], payload["alerts"]
    if not alerts:
        raise ValueError("no alerts")
    firing = [one for one in alerts if one["status"] == "firing"]
    level = _worst(firing) if firing else "resolved"
    names = sorted({one["labels"]["alertname"] for one in firing or alerts})
    parts = [
        _part(one, words, utc_offset_h) for one in [*firing, *(one for one in alerts if one["status"] != "firing")]
    ]
    # Alertmanager leaves alerts out of a webhook with `max_alerts`.
    if truncated := int(payload.get("truncatedAlerts") or 0):
        parts.append(words["more"].format(truncated))
    title = f"【{words[level]}】{', '.join(names[:3])}{'...' if len(names) > 3 else ''} ({len(firing) or len(alerts)})"
    title = shorten(escape(title), MAX_TITLE_BYTES, "...")
    return Message(title, level, tuple(parts), words["more"], words["cut"])


def _worst(alerts: list[Mapping[str, Any]]) -> Level:
    severities = {one["labels"].get("severity") for one in alerts}
    levels: tuple[Level, ...] = ("critical", "warning", "info")
    return next((level for level in levels if level in severities), "warning")


def _part(alert: Mapping[str, Any], words: Mapping[str, str], utc_offset_h: float) -> str:
    labels, notes = alert["labels"], alert.get("annotations") or {}
    is_firing = alert["status"] == "firing"
    level = labels.get("severity", "warning") if is_firing else "resolved"
    colon = words["separator"]
    lines = [f"**[{words.get(level, level)}] {escape(notes.get('summary') or labels['alertname'])}**"]
    if is_firing and notes.get("description"):
        lines.append(escape(notes["description"]))
    lines += [f"{name}{colon}{escape(labels[name])}" for name in SHOWN if labels.get(name)]
    lines.append(f"{words['since']}{colon}{_local(alert['startsAt'], utc_offset_h)}")
    if not is_firing:
        lines.append(f"{words['until']}{colon}{_local(alert['endsAt'], utc_offset_h)}")
    runbook = notes.get("runbook_url", "")
    if is_firing and runbook.startswith(("http://", "https://")):
        lines.append(f"[{words['runbook']}]({runbook})")
    return "\n".join(lines)


def escape(text: str) -> str:
    """Labels and texts are no markup: a label could otherwise show a link or mention everybody."""
    return text.translate(PLAIN)


def _local(text: str, utc_offset_h: float) -> str:
    # Go writes nanoseconds, Python reads microseconds.
    moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
    return moment.astimezone(timezone(timedelta(hours=utc_offset_h))).strftime("%Y-%m-%d %H:%M:%S")
