"""nginx and haproxy in front of several instances, set up so that no request is lost when one of them goes away.

The same question asked twice has the same answer and changes nothing, so a proxy may ask the next instance whatever
became of the first. docs/reliability.md shows the lines that matter.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

NGINX = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream erlangshen {{
{instances}
        keepalive 64;
        keepalive_timeout 60s;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 8m;
        location / {{
            proxy_pass http://erlangshen;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 2s;
            proxy_read_timeout 605s;
            proxy_next_upstream error timeout http_502 http_503 non_idempotent;
        }}
    }}
}}
"""
NGINX_INSTANCE = "        server 127.0.0.1:{port} max_fails=0;"

HAPROXY = """\
global
    maxconn 4096
defaults
    mode http
    timeout connect 2s
    timeout client 75s
    timeout server 605s
    timeout check 5s
    option http-server-close
    option http-buffer-request
    option redispatch 1
    retries 3
    retry-on conn-failure empty-response response-timeout 502 503
frontend api
    bind 127.0.0.1:{port}
    default_backend erlangshen
backend erlangshen
    balance leastconn
    option httpchk GET /readyz
    http-check expect status 200
    default-server inter 500ms fastinter 200ms fall 2 rise 1
{instances}
"""
HAPROXY_INSTANCE = "    server instance{number} 127.0.0.1:{port} check"

PROXIES = {
    "nginx": (NGINX, NGINX_INSTANCE, ("nginx", "-p", "{folder}", "-c", "proxy.conf", "-e", "stderr")),
    "haproxy": (HAPROXY, HAPROXY_INSTANCE, ("haproxy", "-db", "-f", "{folder}/proxy.conf")),
}
"""Configuration, its line for each instance, and the command."""

START_S = 20.0
POLL_S = 0.05


def is_installed(name: str) -> bool:
    return shutil.which(name) is not None


@contextmanager
def proxying(name: str, folder: Path, port: int, instances: Sequence[int]) -> Iterator[str]:
    """The proxy's URL; its files lie in `folder`, its messages in the file `log` there."""
    whole, line, command = PROXIES[name]
    lines = (line.format(number=number, port=each) for number, each in enumerate(instances, start=1))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "proxy.conf").write_text(whole.format(port=port, instances="\n".join(lines)), encoding="utf-8")
    typed = [part.format(folder=folder) for part in command]
    with (folder / "log").open("wb") as log, subprocess.Popen(typed, stdout=log, stderr=log) as process:
        try:
            _await_port(port, process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the proxy did not start: {log.read_text()}") from None
            time.sleep(POLL_S)
        else:
            return
