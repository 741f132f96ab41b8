"""Applies the security settings: API keys, the TLS certificate, and the check that a public address requires keys."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn

from service.api.accounts import parse_keys
from service.api.auth import KeyStore, Stamp, read_stamp
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


class Certificate:
    """The TLS certificate of a running server. It is read again when its files change, and on request.

    A new pair that is invalid is logged, and the previous one stays in use: programs that replace the files one after
    the other leave a moment in which they do not belong together.
    """

    def __init__(self, settings: Security, config: uvicorn.Config, metrics: Metrics) -> None:
        self._settings = settings
        self._config = config
        self._metrics = metrics
        self._stamps = self._read_stamps()
        self._last_failure = ""
        self._record_expiry()

    def reload(self) -> None:
        """Reads both files again, for new connections."""
        self._last_failure = ""
        self._try_to_load()

    def reload_if_changed(self) -> None:
        """Reads both files again if one of them has been written or replaced, through links, too."""
        if self._read_stamps() != self._stamps:
            self._try_to_load()

    def _try_to_load(self) -> None:
        if self._config.ssl is None:  # uvicorn makes it when it starts, from the files as they are then
            return
        stamps = self._read_stamps()
        try:
            check_certificate(self._settings)
            _load(self._config.ssl, self._settings)
        except SettingError as error:
            if error.detail != self._last_failure:  # once, though it is tried every second
                logger.error("certificate not reloaded: the previous one stays in use", extra={"reason": error.detail})
            self._last_failure = error.detail
        else:
            self._stamps, self._last_failure = stamps, ""
            self._record_expiry()
            logger.info("certificate reloaded")

    def _record_expiry(self) -> None:
        """Of the files, which have just been loaded."""
        if self._settings.tls_cert is None:
            return
        try:
            expiry = expiry_of(self._settings.tls_cert.read_text(encoding="utf-8", errors="replace"))
        except (OSError, ValueError) as error:
            logger.warning("the end of the certificate is unknown", extra={"reason": str(error)})
            expiry = 0.0
        self._metrics.certificate_expiry.set(expiry)

    def _read_stamps(self) -> tuple[Stamp, Stamp] | None:
        cert, key = self._settings.tls_cert, self._settings.tls_key
        return None if cert is None or key is None else (read_stamp(cert), read_stamp(key))


def check_certificate(settings: Security) -> None:
    """Checks the TLS certificate and its private key, if configured.

    Raises:
        SettingError: one of them cannot be read, or they do not belong together.
    """
    _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)


def make_reload(key_store: KeyStore | None, certificate: Certificate | None) -> Callable[[], None] | None:
    """A function that reloads keys and certificate, and keeps the previous ones if the new ones are invalid.

    None if neither is configured.
    """
    loaded = [one for one in (key_store, certificate) if one is not None]
    if not loaded:
        return None

    def reload() -> None:
        for one in loaded:
            one.reload()

    return reload


def _load(context: ssl.SSLContext, settings: Security) -> None:
    """Raises SettingError."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None or key is None:
        return
    for file in (cert, key):
        _check_readable(file)
    try:
        # With an empty password, so that an encrypted key is an error: OpenSSL would prompt for it on the terminal.
        context.load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError) as error:
        raise SettingError(f"security.tls_cert, tls_key: {cert} and {key} are not a certificate and its key") from error


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise SettingError(f"security.tls_cert, tls_key: {file}: {error.strerror}") from None
