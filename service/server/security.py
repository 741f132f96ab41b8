"""Applies the security settings: API keys, the TLS certificate, and the check that a public address requires keys."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn

from service.api.accounts import parse_keys
from service.api.auth import KeyStore
from service.errors import SettingError
from service.host import is_loopback
from service.metrics import Metrics
from service.server.certificate import expiry_of
from service.settings import Security, Settings

logger = logging.getLogger(__name__)


def require_keys_or_loopback(settings: Settings) -> None:
    """Checks that other machines cannot send requests without a key, unless the settings allow it.

    Raises:
        SettingError: the host is not a loopback address, there are no keys, and allow_anonymous is off; or the settings
            of a Unix socket are wrong.
    """
    security, host = settings.security, settings.server.host
    if settings.server.unix_socket is not None:
        if security.tls_cert is not None:
            raise SettingError("server.unix_socket: without TLS, which the proxy in front ends; leave out --tls-cert")
        return
    if host.startswith("unix:"):
        path = host.removeprefix("unix:").removeprefix("//")
        raise SettingError(f"server.host = {host}: for a Unix socket, pass --unix-socket {path or 'PATH'}")
    if not (is_loopback(host) or security.has_keys or security.allow_anonymous):
        raise SettingError(
            f"server.host = {host}: other machines can reach it, and there are no API keys; pass --keys-file FILE "
            "(create a key with: python -m service key NAME), or --allow-anonymous to serve requests without keys"
        )


def allowed_hosts(settings: Settings) -> frozenset[str] | None:
    """Domain names that a Host header may have; None for any.

    A server on loopback without keys trusts every program of this machine. A web page of any site can reach it once the
    name of the site resolves to 127.0.0.1 (DNS rebinding); its requests have that name in Host.
    """
    security = settings.security
    if security.allowed_hosts:
        return frozenset(name.lower() for name in security.allowed_hosts)
    is_open = is_loopback(settings.server.host) and settings.server.unix_socket is None
    is_trusting = is_open and not security.has_keys
    return frozenset() if is_trusting else None


def make_key_store(settings: Security, metrics: Metrics) -> KeyStore | None:
    """The API keys; None if none are configured.

    Raises:
        SettingError: the keys cannot be read or are invalid.
    """
    if not settings.has_keys:
        return None
    return KeyStore(parse_keys(settings.keys), settings.keys_file, metrics)


def check_certificate(settings: Security) -> None:
    """Checks the TLS certificate and its private key, if configured.

    Raises:
        SettingError: one of them cannot be read, or they do not belong together.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for file in (settings.tls_cert, settings.tls_key):
        _check_readable(file)
    try:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    except ssl.SSLError as error:
        files = f"{settings.tls_cert} and {settings.tls_key}"
        raise SettingError(f"security.tls_cert, tls_key: {files} are not a certificate and its key") from error


def record_expiry(settings: Security, metrics: Metrics) -> None:
    """Sets the metric of the time at which the certificate, which has just been loaded, expires."""
    if settings.tls_cert is None:
        return
    try:
        expiry = expiry_of(settings.tls_cert.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        logger.warning("the end of the certificate is unknown", extra={"reason": str(error)})
        expiry = 0.0
    metrics.certificate_expiry.set(expiry)


def make_reload(
    settings: Security, key_store: KeyStore | None, config: uvicorn.Config, metrics: Metrics
) -> Callable[[], None] | None:
    """A function that reloads keys and certificate, and keeps the previous ones if the new ones are invalid.

    None if neither is configured.
    """
    if key_store is None and not config.is_ssl:
        return None

    def reload() -> None:
        if key_store is not None:
            key_store.reload()
        if config.ssl is not None:
            _reload_certificate(config.ssl, settings, metrics)

    return reload


def _reload_certificate(context: ssl.SSLContext, settings: Security, metrics: Metrics) -> None:
    try:
        check_certificate(settings)
    except SettingError as error:
        logger.error("certificate not reloaded: the previous one stays in use", extra={"reason": error.detail})
    else:
        _load(context, settings)
        record_expiry(settings, metrics)
        logger.info("certificate reloaded")


def _load(context: ssl.SSLContext, settings: Security) -> None:
    if settings.tls_cert is not None:
        # With an empty password, so that an encrypted key is an error: OpenSSL would prompt for it on the terminal.
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise SettingError(f"security.tls_cert, tls_key: {file}: {error.strerror}") from None
