"""The playground in a real Chromium: tasks, errors, keys, languages, a proxy, accessibility. Skipped without one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.api.accounts import hash_of
from tests.checkpoints import make_checkpoint
from tests.clients.environments import PASSED, checks_of, python_of, run_checks
from tests.support.proxies import await_port
from tests.support.servers import Server, free_port, running

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.system,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH: apt install chromium fonts-wqy-microhei"),
    pytest.mark.skipif(shutil.which("nginx") is None, reason="no nginx on the PATH"),
]
SECRET = "erl_playground"

NGINX = """\
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    server {{
        listen 127.0.0.1:{port};
        location /stripped/ {{
            proxy_pass http://127.0.0.1:{server}/;
            proxy_set_header X-Forwarded-Prefix /stripped;
        }}
        location /passed/on/ {{
            proxy_pass http://127.0.0.1:{server};
            proxy_set_header X-Forwarded-Prefix /passed/on;
        }}
    }}
}}
"""
"""`proxy_set_header` in a location replaces those above it, so the client's address is not forwarded here."""


@contextmanager
def proxying(folder: Path, server: Server) -> Iterator[str]:
    port = free_port()
    (folder / "proxy.conf").write_text(NGINX.format(port=port, server=server.port), encoding="utf-8")
    command = ["nginx", "-p", str(folder), "-c", "proxy.conf"]
    with (folder / "proxy.log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            await_port(port, process, folder / "proxy.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextmanager
def open_and_keyed(folder: Path) -> Iterator[tuple[Server, Server]]:
    """A server without keys that has a model for every task, and one with a key."""
    make_checkpoint(folder / "tuned", kind="sequence-classification", id2label={0: "好评", 1: "差评"})
    make_checkpoint(folder / "reader", kind="question-answering")
    made = [f"--model={name}={folder / name}" for name in ("tuned", "reader")]
    stored = [f"--data-dir={folder / 'data'}", "--trusted-proxies=127.0.0.1"]
    every = Server(folder / "open.log", ["--model=mini", "--model=e5-small", *made, *stored])
    keyed = Server(folder / "keyed.log", ["--model=mini", f"--key=app={hash_of(SECRET)}"])
    with running(every, keyed):
        labels = {"labels": ["退款", "物流", "发票", "投诉"]}
        httpx.put(f"{every.url}/v1/label-sets/support", json=labels, trust_env=False).raise_for_status()
        yield every, keyed


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    folder = tmp_path_factory.mktemp("playground")
    clients = str(python_of("inference"))
    with open_and_keyed(folder) as (every, keyed), proxying(folder, every) as proxy:
        yield run_checks(
            "browser",
            "playground_calls",
            URL=f"{every.url}/",
            KEYED=f"{keyed.url}/",
            KEY=SECRET,
            STRIPPED=f"{proxy}/stripped/",
            PASSED_ON=f"{proxy}/passed/on/",
            CHROMIUM=str(CHROMIUM),
            PYTHON=sys.executable,
            CLIENTS_PYTHON=clients,
        )


@pytest.mark.parametrize("check", checks_of("playground_calls"), ids=lambda name: name.removeprefix("check_"))
def test_in_a_browser(outcomes: Mapping[str, str], check: str) -> None:
    assert outcomes[check] == PASSED, outcomes[check]
