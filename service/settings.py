"""Every setting of the service, declared once: its default, limits, flag, environment name and help.

Knows nothing of what the settings are used for, nor where their values come from: that is `setting_layers`.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from service.domain import Quantization

VERSION = "0.1.0"
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+")
_ORIGIN = re.compile(r"\*|https?://[^/?#\s]+")


def _split(value: object) -> object:
    """Cut a,b into its parts; lists pass, and so does what is wrong anyway."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(piece.strip() for part in value for piece in part.split(",") if piece.strip())
    return value


def _split_table(value: object) -> object:
    """["NAME=a,b"] or "NAME=a,b;OTHER=c,d" -> {NAME: ("a", "b"), ...}; a table of the TOML file passes."""
    if isinstance(value, str):
        value = [part for part in value.split(";") if part.strip()]
    if not isinstance(value, list):
        return value
    table = {}
    for part in value:
        name, equals, words = str(part).partition("=")
        if not equals or not name.strip() or not _split(words):
            raise ValueError("wanted NAME=A,B,...")
        table[name.strip()] = _split(words)
    return table


def _check_devices(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(_DEVICE.fullmatch(device) for device in value):
        raise ValueError("wanted auto, or a list of cpu, cuda and cuda:N such as cuda:0,cuda:1")
    if "auto" in value and len(value) > 1:
        raise ValueError("auto stands alone")
    return value


def _check_proxies(value: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in value:
        ipaddress.ip_network(proxy)  # its ValueError says what is wrong
    return value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_ORIGIN.fullmatch(origin) for origin in value):
        raise ValueError("wanted origins such as https://app.example.com, or * for every one")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Devices = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_devices)]
Proxies = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_proxies)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_origins)]
WordTable = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_split_table)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """Where the server listens and what a request may hold."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one and logs it.")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="Largest request body in bytes; above it: 413.")
    max_inputs: int = Field(256, ge=1, description="Most inputs (or candidates) in one request; above it: 422.")
    max_chars: int = Field(100_000, ge=1, description="Most characters in one text; above it: 422.")
    max_labels: int = Field(256, ge=1, description="Most labels or choices for one input; above it: 422.")
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Largest head of a request in bytes; above it: 431.")
    max_connections: int = Field(16_384, ge=1, description="Open connections; above it: 503. See `ulimit -Hn`, too.")
    header_timeout_s: float = Field(20.0, gt=0, description="Seconds in which a request's head must come, else 408.")
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds in which its body must come, else 408.")
    send_timeout_s: float = Field(
        60.0, gt=0, description="Seconds for a client to take its answer, else it is cut off."
    )
    keep_alive_s: float = Field(
        75.0, gt=0, description="Seconds that an unused connection stays open: longer than a load balancer keeps it."
    )
    default_timeout_ms: int = Field(60_000, ge=1, description="Deadline of a request that names none, in milliseconds.")
    max_timeout_ms: int = Field(600_000, ge=1, description="Longest deadline that a request may name, in milliseconds.")
    drain_delay_s: float = Field(0.0, ge=0, description="Seconds to go on serving after SIGTERM with /readyz at 503.")
    drain_timeout_s: float = Field(30.0, ge=0, description="Seconds that running requests get to end after SIGTERM.")

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default_timeout_ms > self.max_timeout_ms:
            raise ValueError(f"default_timeout_ms must not be above max_timeout_ms ({self.max_timeout_ms})")
        return self


class Models(Section):
    """Which checkpoints are served."""

    specs: Names = Field(
        (),
        description="A model to serve: a directory or a hub id with an optional @revision, after an optional NAME=. "
        "None given: `mini`, the model that ships with the service.",
        json_schema_extra={"flag": "--model", "metavar": "[NAME=]SOURCE"},
    )
    labels: WordTable = Field(
        {},
        description="Labels of a model whose checkpoint names none, in the order of its outputs.",
        json_schema_extra={"flag": "--labels", "metavar": "NAME=A,B,C"},
    )
    cache_dir: Path | None = Field(None, description="Where hub downloads are kept; default: the hub's own cache.")
    weight_cache_dir: str = Field(
        "auto",
        description="Where weights that come as .bin, and on a CPU all of 1 GiB and more, are kept in the precision "
        "and the layout that the device computes with, so that later starts map them and replicas on a CPU share them; "
        "what is compiled for a GPU is kept there, too. auto: `erlangshen/weights` in the user's cache folder "
        "($XDG_CACHE_HOME or ~/.cache); off: nowhere.",
    )
    offline: bool = Field(False, description="Never ask the hub: take models from directories and the cache only.")
    tokenizer_threads: int = Field(2, ge=1, le=64, description="Threads that turn text into tokens.")


class Batching(Section):
    """How requests share forward passes."""

    max_batch_tokens: int = Field(
        0, ge=0, description="Tokens in one batch; a longer row goes alone. 0: chosen for each model by measuring it."
    )
    batch_target_ms: int = Field(
        500, ge=1, description="Where the batch size is chosen: longest that a full batch should take, in milliseconds."
    )
    max_queue_tokens: int = Field(262_144, ge=1, description="Tokens that may wait; above it: 429 with Retry-After.")
    max_wait_ms: int = Field(
        30_000, ge=1, description="Longest that a request may be expected to wait, in milliseconds; above it: 429."
    )
    max_age_ms: int = Field(
        2000, ge=0, description="Every fourth batch is for jobs that have waited this long, whatever their priority."
    )
    cache_entries: int = Field(0, ge=0, description="Rows whose results are kept for when they come again; 0: none.")
    cache_bytes: int = Field(64 * 2**20, ge=1, description="Most bytes that kept results may take.")
    cache_ttl_s: float = Field(3600.0, gt=0, description="Seconds for which a result is kept.")

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(f"max_queue_tokens must not be below max_batch_tokens ({self.max_batch_tokens})")
        return self


class Replicas(Section):
    """The processes that compute."""

    devices: Devices = Field(("auto",), description="A replica for each: cpu, cuda:0, ...; auto: every GPU, else cpu.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Arithmetic of the model; auto: bfloat16 where the hardware has it."
    )
    quantization: Quantization = Field(
        "none",
        description="Arithmetic of the encoder's matrix products, where it is to be quicker and a little less exact: "
        "int8 on a CPU or on a GPU from Ampere on, fp8 on one from Ada and Hopper on.",
    )
    threads: int = Field(0, ge=0, description="CPU threads of one replica; 0: its share of the cores that there are.")
    start_timeout_s: float = Field(
        900.0, gt=0, description="Seconds that a replica gets to load its models; again, five times what it took."
    )
    hang_timeout_s: float = Field(120.0, gt=0, description="Seconds one batch may take, else the replica restarts.")
    hang_factor: float = Field(
        20.0, gt=1, description="So many times as long as expected a batch may take, and 10 s, within hang_timeout_s."
    )
    canary_interval_s: float = Field(
        60.0, ge=0, description="Seconds between two looks whether a replica still answers what it did; 0: none."
    )
    max_crashes: int = Field(
        6, ge=1, description="So many losses of every replica, each within a minute of its start: /livez fails."
    )


class Security(Section):
    """Who may ask, and how they connect: see docs/security.md."""

    keys_file: Path | None = Field(
        None, description="TOML file with the API keys; once there are keys, every caller needs one."
    )
    keys: WordTable = Field(
        {},
        description="API keys without a file: name, hash and scopes (`infer` unless told) as `python -m service key` "
        "prints them.",
        json_schema_extra={"flag": "--key", "metavar": "NAME=HASH,SCOPE,...", "secret": True},
    )
    allow_anonymous: bool = Field(
        False, description="Answer everybody, without keys, on an address that other machines reach."
    )
    open_docs: bool = Field(False, description="Show /docs and /openapi.json to callers without a key, too.")
    cors_origins: Origins = Field(
        (), description="Origins whose pages may call the API from a browser, or *; none given: no other's."
    )
    trusted_proxies: Proxies = Field(
        (),
        description="Addresses and networks of proxies whose X-Forwarded-For names the client in the log; none given: "
        "nobody's.",
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate and its chain: serve HTTPS.")
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")

    @property
    def has_keys(self) -> bool:
        return self.keys_file is not None or bool(self.keys)

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        return self


class Tracing(Section):
    """Where spans of requests are sent (OpenTelemetry); off unless there is an endpoint."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#]+[^\s?#]*$",
        description="OTLP/HTTP collector, such as http://localhost:4318; none given: no tracing. Needs "
        "requirements/tracing.txt.",
        json_schema_extra={"flag": "--tracing-endpoint", "metavar": "URL"},
    )
    sample_ratio: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the requests that are traced, of those whose caller's `traceparent` does not say.",
        json_schema_extra={"flag": "--tracing-sample-ratio"},
    )


class Log(Section):
    """What is logged and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged.", json_schema_extra={"flag": "--log-level"}
    )
    format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="auto: text on a terminal, JSON lines elsewhere.",
        json_schema_extra={"flag": "--log-format"},
    )


class Settings(Section):
    server: Server = Server()
    models: Models = Models()
    batching: Batching = Batching()
    replicas: Replicas = Replicas()
    security: Security = Security()
    tracing: Tracing = Tracing()
    log: Log = Log()
