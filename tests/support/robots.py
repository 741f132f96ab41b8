"""Stand-ins for the robots of DingTalk, Feishu and WeCom, which check requests as the documents of the three say."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

SECRET, TOKEN = "SEC-a-secret", "a-token"
PATHS = {
    "dingtalk": f"/robot/send?access_token={TOKEN}",
    "feishu": f"/open-apis/bot/v2/hook/{TOKEN}",
    "wecom": f"/cgi-bin/webhook/send?key={TOKEN}",
}
OK = {
    "dingtalk": {"errcode": 0, "errmsg": "ok"},
    "feishu": {"StatusCode": 0, "StatusMessage": "success", "code": 0, "data": {}, "msg": "success"},
    "wecom": {"errcode": 0, "errmsg": "ok"},
}


@dataclass(slots=True)
class Robots:
    """`accepted` are the kind and the body of each message. `replies` are given before anything else: a status and a
    body."""

    url: str
    accepted: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    replies: list[tuple[int, bytes]] = field(default_factory=list)

    def address(self, kind: str) -> str:
        return self.url + PATHS[kind]

    def texts(self) -> list[str]:
        return [text_of(kind, body) for kind, body in self.accepted]


def text_of(kind: str, body: dict[str, Any]) -> str:
    if kind == "feishu":
        text: str = body["card"]["header"]["title"]["content"] + "\n" + body["card"]["elements"][0]["content"]
    elif kind == "dingtalk":
        text = body["markdown"]["title"] + "\n" + body["markdown"]["text"]
    else:
        text = body["markdown"]["content"]
    return text


@contextmanager
def robots() -> Iterator[Robots]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            status, reply = running.replies.pop(0) if running.replies else (200, self._judge(content))
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", running.address("wecom"))
            self.end_headers()
            self.wfile.write(reply)

        def _judge(self, content: bytes) -> bytes:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query))
            kind = next(one for one, path in PATHS.items() if path.partition("?")[0] == url.path)
            body = json.loads(content.decode("utf-8"))
            wrong = CHECKS[kind](body, query, content)
            if not wrong:
                running.accepted.append((kind, body))
            return json.dumps(wrong or OK[kind]).encode()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = Robots(f"http://127.0.0.1:{server.server_port}")
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield running
        finally:
            server.shutdown()


def sign(key: str, text: str) -> str:
    return base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha256).digest()).decode()


def check_dingtalk(body: dict[str, Any], query: dict[str, str], content: bytes) -> dict[str, Any]:
    stamp = query.get("timestamp", "0")
    is_recent = abs(time.time() * 1000 - int(stamp)) < 3_600_000
    if not is_recent or query.get("sign") != sign(SECRET, f"{stamp}\n{SECRET}"):
        return {"errcode": 310000, "errmsg": "sign not match"}
    if query.get("access_token") != TOKEN:
        return {"errcode": 300001, "errmsg": "token is not exist"}
    if len(content) > 20_000:
        return {"errcode": 460101, "errmsg": "message too long"}
    if not (body["markdown"]["title"] and body["markdown"]["text"]):
        return {"errcode": 400104, "errmsg": "empty"}
    return {}


def check_feishu(body: dict[str, Any], query: dict[str, str], content: bytes) -> dict[str, Any]:
    stamp = body.get("timestamp", "0")
    if abs(time.time() - int(stamp)) > 3600 or body.get("sign") != sign(f"{stamp}\n{SECRET}", ""):
        return {"code": 19021, "msg": "sign match fail or timestamp is not within one hour from current time"}
    if len(content) > 20_000 or body["card"]["elements"][0]["tag"] != "markdown":
        return {"code": 9499, "msg": "Bad Request"}
    return {}


def check_wecom(body: dict[str, Any], query: dict[str, str], content: bytes) -> dict[str, Any]:
    if query.get("key") != TOKEN:
        return {"errcode": 93000, "errmsg": "invalid webhook url"}
    if len(body["markdown"]["content"].encode()) > 4096:
        return {"errcode": 40058, "errmsg": "markdown.content exceed max length 4096"}
    return {}


CHECKS = {"dingtalk": check_dingtalk, "feishu": check_feishu, "wecom": check_wecom}
