"""`python -m service health`: the readiness probe of containers, over HTTP and TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from service import cli
from service.commands.health import why_not_ready
from service.settings import Settings
from tests.certificates import make_certificate


@contextmanager
def answering(status: int, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server that answers GET /readyz with `status` and any other path with 404."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def settings(port: int, **server: str) -> Settings:
    return Settings.model_validate({"server": {"port": port, **server}})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_ready_server_is_healthy_on_any_host(host: str) -> None:
    with answering(200) as port:
        assert why_not_ready(settings(port, host=host)) is None


def test_a_server_that_is_not_ready_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(503) as port:
        monkeypatch.setenv("ERLANGSHEN_SERVER__PORT", str(port))
        assert cli.main(["health"]) == 1
    assert capsys.readouterr().err == "/readyz returned 503\n"


def test_a_refused_connection_is_not_healthy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert why_not_ready(settings(port)) == f"no response from 127.0.0.1:{port}: ConnectionRefusedError"


def test_health_uses_tls_without_verification_when_a_certificate_is_set(tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)
    with answering(200, tls) as port:
        with_tls = {"server": {"port": port}, "security": {"tls_cert": cert, "tls_key": key}}
        assert why_not_ready(Settings.model_validate(with_tls)) is None


def test_a_server_on_a_unix_socket_is_asked_there(tmp_path: Path) -> None:
    settings = Settings.model_validate({"server": {"unix_socket": tmp_path / "s.sock"}})
    assert why_not_ready(settings) == f"no response from {tmp_path}/s.sock: FileNotFoundError"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "s.sock"))
        listener.listen()
        thread = Thread(target=answer_once, args=(listener,))
        thread.start()
        assert why_not_ready(settings) is None
        thread.join()


def answer_once(listener: socket.socket) -> None:
    connected, _ = listener.accept()
    with connected:
        connected.recv(4096)
        connected.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
