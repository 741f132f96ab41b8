"""The requests that the robots accept, and what their replies mean. All three answer 200 with a code for most errors.

- DingTalk: https://open.dingtalk.com/document/robots/custom-robot-access
- Feishu (Lark): https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
- WeCom: https://developer.work.weixin.qq.com/document/path/91770
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import urllib.parse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from monitoring.receiver.message import Message

MAX_BODY_BYTES = 20_000
"""Of DingTalk and Feishu."""
MAX_TEXT_BYTES = {"dingtalk": 18_000, "feishu": 18_000, "wecom": 4_096}
"""The rest of a body is for the title, the signature and the escapes of JSON. WeCom counts the Markdown alone."""
COLORS = {"critical": "red", "warning": "orange", "info": "blue", "resolved": "green"}


@dataclass(frozen=True, slots=True)
class Robot:
    """`secret` signs the requests of DingTalk and Feishu; empty if the robot does not ask for it. `mentions` are mobile
    numbers (DingTalk, WeCom) or open ids (Feishu), or `all`; they are mentioned while a critical alert fires."""

    kind: str
    url: str
    secret: str = ""
    mentions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    url: str
    body: bytes


def _request(url: str, content: Mapping[str, Any]) -> Request:
    return Request(url, json.dumps(content, ensure_ascii=False).encode())


def request_of(robot: Robot, message: Message, now_s: float) -> Request:
    """With fewer alerts, or a shorter one, where the body would be too long."""
    max_bytes = MAX_TEXT_BYTES[robot.kind]
    while True:
        request = FORMATS[robot.kind](robot, message, now_s, max_bytes)
        if len(request.body) <= MAX_BODY_BYTES or max_bytes < 1000:
            return request
        max_bytes = max_bytes * 3 // 4


def failure_of(reply: Any) -> str:
    """What the robot says is wrong; empty if it has accepted the message."""
    if not isinstance(reply, dict):
        return "the reply is not a JSON object"
    for code, text in (("errcode", "errmsg"), ("code", "msg"), ("StatusCode", "StatusMessage")):
        if code in reply:
            return "" if reply[code] == 0 else f"{reply[code]}: {reply.get(text, '')}"
    return "the reply has no code"


def _dingtalk(robot: Robot, message: Message, now_s: float, max_bytes: int) -> Request:
    url = robot.url
    if robot.secret:
        millis = round(now_s * 1000)
        signed = _hmac(robot.secret.encode(), f"{millis}\n{robot.secret}".encode())
        url += f"&timestamp={millis}&sign={urllib.parse.quote_plus(signed)}"
    mentions = _mentions(robot, message)
    numbers = [one for one in mentions if one != "all"]
    # A number is mentioned only where the text has it, too. Lines end with two blanks in DingTalk's Markdown.
    text = message.text(max_bytes).replace("\n", "  \n")
    text += "".join(f" @{number}" for number in numbers)
    at = {"atMobiles": numbers, "isAtAll": "all" in mentions}
    return _request(url, {"msgtype": "markdown", "markdown": {"title": message.title, "text": text}, "at": at})


def _feishu(robot: Robot, message: Message, now_s: float, max_bytes: int) -> Request:
    signature = {}
    if robot.secret:
        seconds = str(round(now_s))
        # The text to sign is the key of the HMAC, and the message is empty.
        signature = {"timestamp": seconds, "sign": _hmac(f"{seconds}\n{robot.secret}".encode(), b"")}
    text = message.text(max_bytes) + "".join(f" <at id={one}></at>" for one in _mentions(robot, message))
    card = {
        "header": {"title": {"tag": "plain_text", "content": message.title}, "template": COLORS[message.level]},
        "elements": [{"tag": "markdown", "content": text}],
    }
    return _request(robot.url, {**signature, "msg_type": "interactive", "card": card})


def _wecom(robot: Robot, message: Message, now_s: float, max_bytes: int) -> Request:
    color = {"critical": "warning", "warning": "warning", "info": "info", "resolved": "info"}[message.level]
    # Markdown mentions user ids only; <@all> mentions everybody.
    mentions = "".join(f"<@{one}>" for one in _mentions(robot, message))
    head = f'<font color="{color}">{message.title}</font>{mentions}\n\n'
    content = head + message.text(max_bytes - len(head.encode()))
    return _request(robot.url, {"msgtype": "markdown", "markdown": {"content": content}})


def _mentions(robot: Robot, message: Message) -> tuple[str, ...]:
    return robot.mentions if message.level == "critical" else ()


def _hmac(key: bytes, text: bytes) -> str:
    return base64.b64encode(hmac.new(key, text, hashlib.sha256).digest()).decode()


FORMATS: Mapping[str, Callable[[Robot, Message, float, int], Request]] = {
    "dingtalk": _dingtalk,
    "feishu": _feishu,
    "wecom": _wecom,
}
