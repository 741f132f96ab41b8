"""Applies the security settings: API keys, reloading, and the check that a public address requires keys."""

from __future__ import annotations

from collections.abc import Callable

from service.api.accounts import parse_keys
from service.api.auth import KeyStore
from service.errors import SettingError
from service.host import is_loopback, service_command
from service.metrics import Metrics
from service.server.certificate import Certificate
from service.settings import Security, Settings


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
            f"(create a key with: {service_command('key NAME')}), or --allow-anonymous to serve requests without keys"
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
