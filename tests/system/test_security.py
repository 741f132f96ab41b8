"""Security of a real server: keys over TLS, reloading, trusted proxies, and no secret in its output."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.accounts import hash_of
from tests.certificates import make_certificate
from tests.checkpoints import make_checkpoint
from tests.system.test_serve import ANSWER_S, START_S, Running, serving, until

pytestmark = pytest.mark.system

TEXT = "不可外传的文字"
SECRETS = {"app": "erl_one", "prometheus": "erl_two", "late": "erl_three"}


def table(name: str, scope: str) -> str:
    return f'[keys.{name}]\nhash = "{hash_of(SECRETS[name])}"\nscopes = ["{scope}"]\n'


def mount_certificate(folder: Path) -> str:
    """Puts a new pair into a folder as the kubelet does with a Secret; returns the certificate.

    The files are links into `..data`, which is a link to a folder of the version. A new version replaces `..data`.
    """
    version = Path(tempfile.mkdtemp(prefix="..version-", dir=folder))
    cert, key = make_certificate(version)
    (folder / "..data_tmp").symlink_to(version.name)
    (folder / "..data_tmp").replace(folder / "..data")
    for file in (cert, key):
        if not (folder / file.name).is_symlink():
            (folder / file.name).symlink_to(f"..data/{file.name}")
    return cert.read_text()


@dataclass
class Guarded:
    """A server with keys and TLS, and the folder of their files."""

    server: Running
    folder: Path

    def send(self, method: str, path: str, secret: str = "", **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret or 'erl_unknown'}", **more.pop("headers", {})}
        context = ssl.create_default_context(cafile=self.folder / "cert.pem")
        return httpx.request(method, self.server.url + path, headers=headers, verify=context, timeout=ANSWER_S, **more)

    def embed(self, name: str, **headers: str) -> httpx.Response:
        return self.send("POST", "/v1/embed", SECRETS[name], json={"inputs": TEXT}, headers=headers)

    def put(self, text: str) -> None:
        new = self.folder / "keys.new"
        new.write_text(text)
        new.replace(self.folder / "keys.toml")

    def lines(self, message: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.server.lines if line.startswith("{")]
        return [line for line in found if line["message"] == message]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    model = make_checkpoint(folder / "uni", num_layers=1)
    mount_certificate(folder)
    cert, key = folder / "cert.pem", folder / "key.pem"
    keys = folder / "keys.toml"
    keys.write_text(table("app", "infer") + table("prometheus", "metrics"))
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    security_flags = ("--host", "0.0.0.0", "--keys-file", str(keys), "--trusted-proxies", "127.0.0.1")
    with serving("--model", f"uni={model}", "--log-format", "json", *security_flags, *tls) as server:
        yield Guarded(server, folder)


def test_a_key_is_required_over_tls(guarded: Guarded) -> None:
    assert guarded.server.url.startswith("https://127.0.0.1:")
    assert guarded.embed("app").status_code == 200
    assert guarded.send("POST", "/v1/embed", json={"inputs": TEXT}).status_code == 401
    assert guarded.embed("prometheus").status_code == 403
    assert guarded.send("GET", "/readyz").status_code == 200
    metrics = guarded.send("GET", "/metrics", SECRETS["prometheus"]).text
    assert 'erlangshen_key_requests_total{code="200",key="app"} 1.0' in metrics
    assert 'erlangshen_key_refused_total{key="none",reason="unauthorized"} 1.0' in metrics


def test_plain_http_and_an_untrusted_certificate_fail(guarded: Guarded) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(guarded.server.url.replace("https", "http") + "/livez")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{guarded.server.url}/livez")


def test_tls_below_1_2_is_refused(guarded: Guarded) -> None:
    address = guarded.server.url.removeprefix("https://")
    ends = {}
    for version in ("-tls1_1", "-tls1_2", "-tls1_3"):
        command = ["openssl", "s_client", "-connect", address, version, "-cipher", "ALL:@SECLEVEL=0"]
        completed = subprocess.run(command, input=b"", capture_output=True, timeout=ANSWER_S, check=False)
        ends[version] = completed.returncode
    assert ends == {"-tls1_1": 1, "-tls1_2": 0, "-tls1_3": 0}


def test_a_new_keys_file_is_reloaded_and_a_broken_one_is_not(guarded: Guarded) -> None:
    assert guarded.embed("late").status_code == 401
    guarded.put(table("late", "infer") + table("prometheus", "metrics"))
    until(lambda: guarded.embed("late").status_code == 200)
    assert guarded.embed("app").status_code == 401
    guarded.put("[keys.late")
    until(lambda: bool(guarded.embed("late")) and len(guarded.lines(KEPT)) == 1)
    assert guarded.embed("late").status_code == 200


KEPT = "keys not reloaded: the previous keys stay in use"


def test_sighup_reloads_keys_and_certificate(guarded: Guarded) -> None:
    guarded.put(table("app", "infer") + table("prometheus", "metrics"))
    guarded.server.process.send_signal(signal.SIGHUP)
    until(lambda: len(guarded.lines("certificate reloaded")) == 1)
    assert [guarded.embed(name).status_code for name in ("app", "late")] == [200, 401]


def test_a_renewed_certificate_is_served_without_a_signal(guarded: Guarded) -> None:
    old = ssl.get_server_certificate(_address(guarded))
    new = mount_certificate(guarded.folder)
    until(lambda: ssl.get_server_certificate(_address(guarded)) == new)
    assert new != old
    assert guarded.embed("app").status_code == 200


def _address(guarded: Guarded) -> tuple[str, int]:
    url = httpx.URL(guarded.server.url)
    return url.host, url.port or 443


def test_the_access_log_has_the_client_of_a_trusted_proxy(guarded: Guarded) -> None:
    headers = {"X-Forwarded-For": "198.51.100.7", "X-Request-ID": "proxied"}
    reply = guarded.embed("app", **headers)
    assert reply.status_code == 200
    until(lambda: any(line["request_id"] == "proxied" for line in guarded.lines("request")))
    (line,) = [line for line in guarded.lines("request") if line["request_id"] == "proxied"]
    assert (line["client"], line["key"], line["task"], line["tokens"]) == (
        "198.51.100.7",
        "app",
        "embed",
        reply.json()["usage"]["tokens"],
    )


def test_the_output_has_no_secret_no_hash_and_no_text(guarded: Guarded) -> None:
    """Must be the last test that uses the server: the output holds the requests of all of them."""
    printed = "".join(guarded.server.lines)
    assert "unauthorized" in printed
    for forbidden in (*SECRETS.values(), *map(hash_of, SECRETS.values()), TEXT):
        assert forbidden not in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--host", "0.0.0.0"), ("--keys-file FILE", "--allow-anonymous")),
        (("--keys-file", "nowhere.toml"), ("keys file nowhere.toml", "No such file")),
        (("--key", "app=erl_mistaken"), ("security.keys.app.hash", "64 hexadecimal digits")),
        (("--tls-cert", "nowhere.pem"), ("tls_cert and tls_key must be set together",)),
        (("--tls-cert", "nowhere.pem", "--tls-key", "nowhere.pem"), ("nowhere.pem", "No such file")),
    ],
)
def test_invalid_security_settings_fail_the_start(flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "service", "serve", "--port", "0", *flags]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert completed.returncode == 2
    (line,) = [line for line in completed.stderr.splitlines() if line.startswith("error: ")]
    assert all(word in line for word in words)
    assert "erl_mistaken" not in completed.stderr + completed.stdout
