"""Security at start: keys or loopback are required, and keys files and certificates are checked."""

from __future__ import annotations

import logging
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from service.api.accounts import hash_of
from service.cli import main
from service.errors import SettingError
from service.metrics import Metrics
from service.server.certificate import Certificate, check_certificate, expiry_of
from service.server.security import (
    allowed_hosts,
    make_key_store,
    make_reload,
    require_keys_or_loopback,
)
from service.settings import Security, Server, Settings
from tests.certificates import make_certificate

KEY = {"app": (hash_of("erl_one"),)}


@pytest.mark.parametrize(
    ("server", "security", "allowed"),
    [
        ({}, {}, frozenset()),
        ({}, {"allowed_hosts": ["A.example"]}, frozenset({"a.example"})),
        ({}, {"keys": {"a": ["sha256:" + "0" * 64]}}, None),
        ({"host": "0.0.0.0"}, {"allow_anonymous": True}, None),
    ],
)
def test_domain_names_are_refused_on_loopback_without_keys(
    server: dict[str, Any], security: dict[str, Any], allowed: frozenset[str] | None
) -> None:
    assert allowed_hosts(Settings.model_validate({"server": server, "security": security})) == allowed


def settings(host: str, **security: object) -> Settings:
    return Settings(server=Server(host=host), security=Security.model_validate(security))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "erlangshen.example.com", ""])
def test_a_public_server_without_keys_is_refused_with_both_remedies(host: str) -> None:
    with pytest.raises(SettingError) as caught:
        require_keys_or_loopback(settings(host))
    assert caught.value.detail.startswith(f"server.host = {host}: ")
    assert all(words in caught.value.detail for words in ("--keys-file FILE", "--allow-anonymous"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_a_server_on_loopback_needs_no_keys(host: str) -> None:
    require_keys_or_loopback(settings(host))


@pytest.mark.parametrize("security", [{"allow_anonymous": True}, {"keys": KEY}, {"keys_file": "keys.toml"}])
def test_a_public_server_starts_with_keys_or_allow_anonymous(security: dict[str, object]) -> None:
    require_keys_or_loopback(settings("0.0.0.0", **security))


def test_allow_anonymous_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "0.0.0.0"]) == 2
    assert "or --allow-anonymous to serve requests without keys" in capsys.readouterr().err
    assert main(["settings", "--allow-anonymous", "--host", "0.0.0.0"]) == 0


def test_make_key_store_joins_keys_of_settings_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys.other]\nhash = "{hash_of("erl_two")}"\n')
    metrics = Metrics(CollectorRegistry())
    assert make_key_store(Security(), metrics) is None
    assert make_key_store(Security(allow_anonymous=True), metrics) is None
    key_store = make_key_store(Security(keys=KEY, keys_file=file, allow_anonymous=True), metrics)
    assert key_store is not None
    assert [account and account.name for account in map(key_store.find, (b"erl_one", b"erl_two"))] == ["app", "other"]


def test_a_missing_keys_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="No such file"):
        make_key_store(Security(keys_file=tmp_path / "keys.toml"), Metrics(CollectorRegistry()))


def test_printed_settings_show_key_names_and_no_hashes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--key", f"app={hash_of('erl_one')}", "--key", "b=erl_mistaken,infer"]) == 0
    printed = capsys.readouterr().out
    assert '"keys": [\n      "app",\n      "b"\n    ]' in printed
    assert "erl_mistaken" not in printed
    assert hash_of("erl_one") not in printed


@pytest.mark.parametrize("word", ["erl_mistaken", "app:erl_mistaken", "app="])
def test_the_error_of_an_invalid_key_does_not_show_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--key", word]) == 2
    error = capsys.readouterr().err
    assert "security.keys (from --key): wanted NAME=A,B,..." in error
    assert "erl_mistaken" not in error


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[Security]:
    """Two certificates with their keys."""
    folders = [tmp_path_factory.mktemp("tls"), tmp_path_factory.mktemp("tls")]
    return [Security(tls_cert=cert, tls_key=key) for cert, key in map(make_certificate, folders)]


def test_a_certificate_and_its_key_are_accepted(pairs: list[Security]) -> None:
    check_certificate(pairs[0])
    check_certificate(Security())


def test_a_mismatched_or_missing_certificate_is_refused(pairs: list[Security], tmp_path: Path) -> None:
    (cert, key), (_, other) = ((pair.tls_cert, pair.tls_key) for pair in pairs)
    with pytest.raises(SettingError, match=r"cert\.pem and .*key\.pem are not a certificate and its key"):
        check_certificate(Security(tls_cert=cert, tls_key=other))
    with pytest.raises(SettingError, match=r"none\.pem: No such file"):
        check_certificate(Security(tls_cert=tmp_path / "none.pem", tls_key=key))


def test_a_key_with_a_pass_phrase_is_refused_without_a_prompt(pairs: list[Security], tmp_path: Path) -> None:
    locked = tmp_path / "locked.pem"
    command = ["openssl", "pkey", "-in", str(pairs[0].tls_key), "-aes128", "-passout", "pass:x", "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(SettingError, match=r"locked\.pem are not a certificate and its key"):
        check_certificate(Security(tls_cert=pairs[0].tls_cert, tls_key=locked))


def test_make_reload_is_none_without_keys_and_certificate() -> None:
    assert make_reload(None, None) is None


def started(security: Security, metrics: Metrics | None = None) -> Certificate:
    """The certificate of a server that runs."""
    config = uvicorn.Config("none", ssl_certfile=security.tls_cert, ssl_keyfile=security.tls_key)
    config.ssl = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    return Certificate(security, config, metrics or Metrics(CollectorRegistry()))


def test_a_mismatched_certificate_is_not_reloaded(
    pairs: list[Security], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = make_certificate(tmp_path)
    reload = make_reload(None, started(Security(tls_cert=cert, tls_key=key)))
    assert reload is not None
    with caplog.at_level(logging.INFO):
        reload()
        assert pairs[0].tls_key is not None
        key.write_bytes(pairs[0].tls_key.read_bytes())
        reload()
    assert [one.getMessage() for one in caplog.records] == [
        "certificate reloaded",
        "certificate not reloaded: the previous one stays in use",
    ]


def test_a_unix_socket_needs_no_keys() -> None:
    require_keys_or_loopback(Settings.model_validate({"server": {"host": "0.0.0.0", "unix_socket": "/run/x.sock"}}))


def test_a_proxy_in_front_of_a_unix_socket_may_send_any_host() -> None:
    assert allowed_hosts(Settings.model_validate({"server": {"unix_socket": "/run/x.sock"}})) is None


def test_a_host_that_names_a_unix_socket_leads_to_the_flag() -> None:
    with pytest.raises(SettingError, match=r"for a Unix socket, pass --unix-socket /run/x\.sock"):
        require_keys_or_loopback(settings("unix:/run/x.sock"))


def test_a_unix_socket_has_no_tls() -> None:
    values = {"server": {"unix_socket": "/run/x.sock"}, "security": {"tls_cert": "c", "tls_key": "k"}}
    with pytest.raises(SettingError, match="without TLS"):
        require_keys_or_loopback(Settings.model_validate(values))


def test_the_metric_of_the_expiry_is_that_of_the_certificate_in_use(tmp_path: Path) -> None:
    """After a reload it is that of the new certificate."""
    cert, key = make_certificate(tmp_path)
    metrics = Metrics(CollectorRegistry())
    certificate = started(Security(tls_cert=cert, tls_key=key), metrics)
    first = expiry(metrics)
    assert first == expiry_by_openssl(cert)
    make_certificate(tmp_path, days=30)
    assert expiry(metrics) == first
    certificate.reload()
    assert expiry(metrics) == expiry_by_openssl(cert) > first


@pytest.mark.parametrize("days", [1, 365 * 20, 365 * 60])
def test_the_expiry_is_read_as_openssl_reads_it(tmp_path: Path, days: int) -> None:
    """From 2050 on the time has another form."""
    cert, key = make_certificate(tmp_path, days=days)
    (tmp_path / "issuer").mkdir()
    chain = cert.read_text() + make_certificate(tmp_path / "issuer", days=2)[0].read_text()
    assert expiry_of(chain) == expiry_by_openssl(cert)
    with pytest.raises(ValueError, match="BEGIN CERTIFICATE"):
        expiry_of(key.read_text())


def test_a_form_of_pem_that_only_openssl_reads_has_no_expiry(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = Metrics(CollectorRegistry())
    cert, key = make_certificate(tmp_path)
    cert.write_text(cert.read_text().replace("CERTIFICATE", "TRUSTED CERTIFICATE"))
    started(Security(tls_cert=cert, tls_key=key), metrics)
    assert expiry(metrics) == 0
    assert [one.getMessage() for one in caplog.records] == ["the end of the certificate is unknown"]


def expiry(metrics: Metrics) -> float:
    value = metrics.registry.get_sample_value("erlangshen_certificate_expiry_timestamp_seconds")
    assert value is not None
    return value


def expiry_by_openssl(cert: Path) -> float:
    command = ["openssl", "x509", "-in", str(cert), "-noout", "-enddate"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return ssl.cert_time_to_seconds(printed.removeprefix("notAfter="))


def test_a_pair_that_is_replaced_file_by_file_is_loaded_once_it_matches(
    pairs: list[Security], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = make_certificate(tmp_path)
    certificate = started(Security(tls_cert=cert, tls_key=key))
    new_cert, new_key = pairs[0].tls_cert, pairs[0].tls_key
    assert new_cert is not None
    assert new_key is not None
    with caplog.at_level(logging.INFO):
        certificate.reload_if_changed()
        cert.write_bytes(new_cert.read_bytes())
        certificate.reload_if_changed()
        certificate.reload_if_changed()
        key.write_bytes(new_key.read_bytes())
        certificate.reload_if_changed()
        certificate.reload_if_changed()
    assert [one.getMessage() for one in caplog.records] == [
        "certificate not reloaded: the previous one stays in use",
        "certificate reloaded",
    ]
