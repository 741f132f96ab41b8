"""Where spans are sent: by the service's own settings, else by OpenTelemetry's standard environment variables.

Imports no OpenTelemetry, because its result decides whether that is imported. What the SDK reads by itself (headers,
certificates, resource attributes, limits) is only checked here, because the SDK logs an invalid value and goes on
without it.

Sources: the OpenTelemetry specification, "Environment Variable Specification" and "OpenTelemetry Protocol Exporter".
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from service.errors import SettingError

logger = logging.getLogger(__name__)

ExportProtocol = Literal["grpc", "http/protobuf"]
Compression = Literal["none", "gzip", "deflate"]

TIMEOUT_S = 5.0
"""Limit on sending a batch of spans where no variable sets one."""
LONG_TIMEOUT_S = 600.0
GRPC_PORT = 4317
TRACES_PATH = "v1/traces"
_DEFAULTS: dict[ExportProtocol, str] = {"grpc": "http://localhost:4317", "http/protobuf": "http://localhost:4318"}
_COMPRESSIONS: dict[ExportProtocol, tuple[Compression, ...]] = {
    "grpc": ("none", "gzip"),
    "http/protobuf": ("none", "gzip", "deflate"),
}
_URL = re.compile(r"https?://[^\s/?#]+[^\s?#]*")
_GRPC_TARGET = re.compile(r"(https?://)?[^\s/?#]+/?")
_HEADER = re.compile(r"\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=[\x20\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*")
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")


@dataclass(frozen=True, slots=True)
class Export:
    """How spans are sent. `endpoint` is the URL of `/v1/traces` for OTLP over HTTP, and the server's for gRPC.

    `is_ours` is False if only a standard variable asks for tracing.
    """

    protocol: ExportProtocol
    endpoint: str
    timeout_s: float = TIMEOUT_S
    compression: Compression = "none"
    is_ours: bool = True

    @property
    def target(self) -> str:
        """Host and port, without a password that the URL may contain."""
        return _host_and_port(self.endpoint)


def resolve_export(
    endpoint: str | None, protocol: ExportProtocol | None, environ: Mapping[str, str] | None = None
) -> Export | None:
    """How to send spans to `endpoint` by `protocol`, or without them as `environ` says; None for no tracing.

    An empty variable counts as unset, as the specification wants it.

    Raises:
        SettingError: a variable has an unsupported value. The message contains no value that may be secret.
    """
    variables = _Variables(os.environ if environ is None else environ)
    if variables.flag("OTEL_SDK_DISABLED") or not (endpoint or variables.want_tracing()):
        return None
    protocol = protocol or variables.protocol()
    ours = _join(endpoint) if endpoint and protocol != "grpc" else endpoint
    url = ours or variables.endpoint(protocol)
    if protocol == "grpc" and "@" in url:
        # The SDK would look it up as part of the host, and log it with each failure.
        raise SettingError("gRPC takes no user and password in its URL; put a key into OTEL_EXPORTER_OTLP_HEADERS")
    variables.check_headers()
    variables.check_files()
    return Export(protocol, url, variables.timeout_s(), variables.compression(protocol), is_ours=bool(endpoint))


class _Variables:
    """The standard variables; those of the exporter have a form for traces, which takes precedence."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def get(self, name: str) -> str:
        return self._environ.get(name, "").strip()

    def find(self, option: str) -> tuple[str, str]:
        """Name and value of an option of the exporter; ("", "") where it is not set."""
        for name in (f"OTEL_EXPORTER_OTLP_TRACES_{option}", f"OTEL_EXPORTER_OTLP_{option}"):
            if value := self.get(name):
                return name, value
        return "", ""

    def flag(self, name: str) -> bool:
        value = self.get(name).lower()
        if value not in ("", "true", "false"):
            logger.warning("invalid variable", extra={"variable": name, "wanted": "true or false", "taken": "false"})
        return value == "true"

    def want_tracing(self) -> bool:
        exporter = self.get("OTEL_TRACES_EXPORTER").lower()
        if exporter not in ("", "otlp", "none"):
            raise SettingError(f"OTEL_TRACES_EXPORTER={exporter}: only otlp and none are supported")
        return exporter == "otlp" or (not exporter and bool(self.find("ENDPOINT")[1]))

    def protocol(self) -> ExportProtocol:
        name, value = self.find("PROTOCOL")
        if value not in ("", *_DEFAULTS):
            raise SettingError(f"{name}={value}: only {' and '.join(_DEFAULTS)} are supported")
        return cast("ExportProtocol", value or "http/protobuf")

    def endpoint(self, protocol: ExportProtocol) -> str:
        name, value = self.find("ENDPOINT")
        if not value:
            return _DEFAULTS[protocol] if protocol == "grpc" else _join(_DEFAULTS[protocol])
        form, example = (_GRPC_TARGET, _DEFAULTS["grpc"]) if protocol == "grpc" else (_URL, _DEFAULTS["http/protobuf"])
        if not form.fullmatch(value):
            raise SettingError(f"{name}: wanted a URL such as {example} for {protocol}")
        if protocol != "grpc" and _host_and_port(value).endswith(f":{GRPC_PORT}"):
            logger.warning(
                "port of OTLP over gRPC, but sending by OTLP over HTTP; set OTEL_EXPORTER_OTLP_PROTOCOL=grpc",
                extra={"variable": name},
            )
        return _join(value) if protocol != "grpc" and name == "OTEL_EXPORTER_OTLP_ENDPOINT" else value

    def timeout_s(self) -> float:
        name, value = self.find("TIMEOUT")
        if not value:
            return TIMEOUT_S
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not (isfinite(seconds) and seconds > 0):
            raise SettingError(f"{name}={value}: wanted a number of seconds above zero")
        if seconds > LONG_TIMEOUT_S:
            logger.warning("the time limit is in seconds, not milliseconds", extra={"variable": name, "value": value})
        return seconds

    def compression(self, protocol: ExportProtocol) -> Compression:
        name, value = self.find("COMPRESSION")
        known = _COMPRESSIONS[protocol]
        if value.lower() not in ("", *known):
            raise SettingError(f"{name}={value}: {protocol} supports {', '.join(known)}")
        return cast("Compression", value.lower() or "none")

    def check_headers(self) -> None:
        # The SDK would write an invalid one, which may hold a key, into the log.
        name, value = self.find("HEADERS")
        if not all(_HEADER.fullmatch(part) for part in value.split(",") if part.strip()):
            raise SettingError(f"{name}: wanted NAME=VALUE,NAME=VALUE with values in URL encoding")

    def check_files(self) -> None:
        for name, value in map(self.find, _FILES):
            if not value:
                continue
            try:
                Path(value).read_bytes()
            except OSError as error:
                raise SettingError(f"{name}: cannot read {value}: {error.strerror}") from None


def _join(endpoint: str) -> str:
    return f"{endpoint.rstrip('/')}/{TRACES_PATH}"


def _host_and_port(endpoint: str) -> str:
    return urlsplit(endpoint if "://" in endpoint else f"//{endpoint}").netloc.rpartition("@")[2]
