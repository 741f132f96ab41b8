"""Two servers behind nginx or haproxy, restarted in turn or killed while clients send requests.

Requests are idempotent, so the proxies retry every failed one on the other server. docs/reliability.md shows the lines
of the configurations that matter.
"""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.support.clients import Clients, Exchange, Question
from tests.support.servers import START_S, Server, free_port, running, until

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

PROXY_START_S = 20.0
POLL_S = 0.05
FLAGS = ("--drain-delay-s", "1", "--threads", "1", "--devices", "cpu")
"""The drain delay is longer than a proxy takes to notice that a server is not ready."""


def is_installed(name: str) -> bool:
    return shutil.which(name) is not None


@contextmanager
def proxying(name: str, folder: Path, port: int, instances: Sequence[int]) -> Iterator[str]:
    """Runs the proxy and gives its URL; `folder` receives its files and its messages (`log`)."""
    whole, line, command = PROXIES[name]
    lines = (line.format(number=number, port=each) for number, each in enumerate(instances, start=1))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "proxy.conf").write_text(whole.format(port=port, instances="\n".join(lines)), encoding="utf-8")
    typed = [part.format(folder=folder) for part in command]
    with (folder / "log").open("wb") as log, subprocess.Popen(typed, stdout=log, stderr=log) as process:
        try:
            await_port(port, process, folder / "log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + PROXY_START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the proxy did not start: {log.read_text()}") from None
            time.sleep(POLL_S)
        else:
            return


async def restart_in_turn(servers: Sequence[Server]) -> None:
    """SIGTERM, wait for the exit, start again, wait until the proxy sends requests; then the next."""
    for server in servers:
        status = await asyncio.to_thread(server.stop)
        assert status == 0, f"after SIGTERM the server exited with {status}"
        await asyncio.to_thread(server.start)
        await until(partial(_gets_requests, server), START_S)


def _gets_requests(server: Server) -> bool:
    return server.metric("requests_total", code="200") > 0


async def kill_one(servers: Sequence[Server]) -> None:
    """SIGKILL to the parent, whose replicas exit with it; then it is started again."""
    await asyncio.to_thread(servers[0].kill)
    await asyncio.to_thread(servers[0].start)


Step = Callable[[Sequence[Server]], Awaitable[None]]
STEPS: Mapping[str, Step] = {"rolling restart": restart_in_turn, "kill -9 of one of two servers": kill_one}


async def behind(
    proxy: str, folder: Path, questions: Sequence[Question], num_clients: int, flags: Sequence[str] = ()
) -> dict[str, list[Exchange]]:
    """The exchanges during each step, by its name; `folder` receives the logs."""
    servers = [Server(folder / f"server{number}.log", (*FLAGS, *flags)) for number in (1, 2)]
    ports = [server.port for server in servers]
    during = {}
    with running(*servers), proxying(proxy, folder / proxy, free_port(), ports) as url:
        async with Clients(url, questions, num_clients) as clients:
            await clients.learn()
            for name, step in STEPS.items():
                async with clients.load():
                    await step(servers)
                during[name] = clients.taken()
    return during
