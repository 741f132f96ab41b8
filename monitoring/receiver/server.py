"""HTTP: Alertmanager posts to `/NAME`, and gets 200 only when the robot NAME has accepted the message.

Any failure is 502, after which Alertmanager sends the notification again. Addresses and secrets of robots are in no log
line and in no answer.
"""

from __future__ import annotations

import hmac
import http.client
import json
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from monitoring.receiver.message import Message, compose
from monitoring.receiver.robots import Robot, failure_of, request_of

logger = logging.getLogger("monitoring.receiver")

MAX_BODY_BYTES = 4 * 2**20
MAX_REPLY_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Config:
    """`token`, if any, is what Alertmanager has to send as bearer token."""

    robots: Mapping[str, Robot]
    token: str = ""
    language: str = "zh"
    utc_offset_h: float = 8.0
    timeout_s: float = 10.0


class NotAccepted(Exception):
    """The robot was not reached, or has refused the message."""


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the message, and the secret in the address, to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirect)


def send(robot: Robot, message: Message, timeout_s: float) -> None:
    """Raises NotAccepted."""
    request = request_of(robot, message, time.time())
    headers = {"Content-Type": "application/json; charset=utf-8"}
    try:
        posted = urllib.request.Request(request.url, request.body, headers)
        with OPENER.open(posted, timeout=timeout_s) as response:
            reply = response.read(MAX_REPLY_BYTES)
    except urllib.error.HTTPError as error:
        error.close()
        raise NotAccepted(f"the robot answered with status {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise NotAccepted(f"the robot was not reached: {type(reason).__name__}") from None
    try:
        failure = failure_of(json.loads(reply))
    except ValueError:
        failure = "the reply is not JSON"
    if failure:
        raise NotAccepted(f"the robot refused the message: {_without_secrets(failure, robot)}")


def _without_secrets(text: str, robot: Robot) -> str:
    """A robot may repeat a part of the request."""
    token = robot.url.rpartition("=")[2] if "=" in robot.url else robot.url.rpartition("/")[2]
    for secret in (robot.url, token, robot.secret):
        if secret:
            text = text.replace(secret, "***")
    return text[:300]


class Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        """Without the name of this host, for which HTTPServer may wait for DNS."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


def make_server(host: str, port: int, config: Config) -> Server:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, "ok") if self.path == "/-/healthy" else self._answer(404, "post alerts to /NAME")

        def do_POST(self) -> None:
            name = self.path.partition("?")[0].strip("/")
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or int(size) > MAX_BODY_BYTES:
                self.close_connection = True
                self._answer(413 if size.isdecimal() else 411, f"a body of at most {MAX_BODY_BYTES} bytes is needed")
                return
            body = self.rfile.read(int(size))
            sent = self.headers.get("Authorization", "").encode()
            if config.token and not hmac.compare_digest(sent, f"Bearer {config.token}".encode()):
                self._answer(401, "the bearer token is missing or wrong")
            elif name not in config.robots:
                self._answer(404, "no such receiver")
            else:
                self._answer(*pass_on(name, body, config))

        def _answer(self, status: int, text: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """No-op: `pass_on` logs notifications, and probes are not logged."""

    return Server((host, port), Handler)


def pass_on(name: str, body: bytes, config: Config) -> tuple[int, str]:
    """Status and text for Alertmanager."""
    try:
        payload = json.loads(body)
        message = compose(payload, config.language, config.utc_offset_h)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        logger.error("receiver=%s not a notification of Alertmanager: %s", name, type(error).__name__)
        return 400, "not a notification of Alertmanager (version 4)"
    try:
        send(config.robots[name], message, config.timeout_s)
    except NotAccepted as error:
        logger.error("receiver=%s not delivered: %s", name, error)
        return 502, str(error)
    logger.info("receiver=%s delivered alerts=%d status=%s", name, len(payload["alerts"]), payload.get("status"))
    return 200, "delivered"
