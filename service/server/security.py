"""What `serve` makes of the security settings: the keys in force, the certificate, and whether strangers may come in.

Knows no route.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

import uvicorn

from service.api.accounts import keys_of_setting
from service.api.auth import KeyStore
from service.errors import SettingError
from service.host import is_loopback
from service.metrics import Metrics
from service.settings import Security, Settings

logger = logging.getLogger(__name__)


def require_keys_or_loopback(settings: Settings) -> None:
    """SettingError where other machines could ask without a key, unless that is what is wanted."""
    security, host = settings.security, settings.server.host
    if not (is_loopback(host) or security.has_keys or security.allow_anonymous):
        raise SettingError(
            f"server.host = {host}: other machines reach it, and there are no API keys; name them with "
            "--keys-file FILE (made with: python -m service key NAME), or answer everybody with --allow-anonymous"
        )


def make_key_store(settings: Security, metrics: Metrics) -> KeyStore | None:
    """The keys; None where there are to be none. SettingError says what is wrong with them."""
    if not settings.has_keys:
        return None
    return KeyStore(keys_of_setting(settings.keys), settings.keys_file, metrics)


def check_certificate(settings: Security) -> None:
    """SettingError where it cannot be read, or is not that of the key."""
    if settings.tls_cert is None or settings.tls_key is None:
        return
    for file in (settings.tls_cert, settings.tls_key):
        _check_readable(file)
    try:
        _load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
    except ssl.SSLError as error:
        files = f"{settings.tls_cert} and {settings.tls_key}"
        raise SettingError(f"security.tls_cert, tls_key: {files} are no certificate and its key") from error


def reloading(settings: Security, key_store: KeyStore | None, config: uvicorn.Config) -> Callable[[], None] | None:
    """Reads keys and certificate again, and leaves those of before in force where the new are no good; None where there
    are neither."""
    if key_store is None and not config.is_ssl:
        return None

    def reload() -> None:
        if key_store is not None:
            key_store.reload()
        if config.ssl is not None:
            _reload_certificate(config.ssl, settings)

    return reload


def _reload_certificate(context: ssl.SSLContext, settings: Security) -> None:
    try:
        check_certificate(settings)
    except SettingError as error:
        logger.error("certificate not read again: that of before stays in force", extra={"reason": error.detail})
    else:
        _load(context, settings)
        logger.info("certificate read again")


def _load(context: ssl.SSLContext, settings: Security) -> None:
    """Without asking at a terminal for a pass phrase: nobody may be there."""
    if settings.tls_cert is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password="")


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:
        raise SettingError(f"security.tls_cert, tls_key: {file}: {error.strerror}") from None
