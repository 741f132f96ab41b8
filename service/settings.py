"""All settings of the service: default, limits, flag and description of each.

`settings_sources` loads their values.
"""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from service.domain import WantedQuantization, WantedRuntime

VERSION = "0.1.0"
LARGEST_REQUEST = 8
"""Memory of a request relative to its body: the body, its texts in memory, and a reserve for smaller requests."""
PROTOCOLS = (
    "huggingface",
    "tei",
    "openai",
    "vllm",
    "cohere",
    "jina",
    "kserve",
    "fengshenbang",
    "label-studio",
    "mcp",
    "guardrails",
)
"""Names of the protocols besides the native one."""
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+")
ROOT_PATH = r"^(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+$"
"""Of the path below which a proxy serves this server; no segment begins with a dot."""
_ORIGIN = re.compile(r"\*|https?://[^/?#\s]+")


def _split(value: object) -> object:
    """Splits "a,b" into its parts, also within a list; other values pass, for pydantic to validate."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(piece.strip() for part in value for piece in part.split(",") if piece.strip())
    return value


def _split_table(value: object) -> object:
    """["NAME=a,b"] or "NAME=a,b;OTHER=c,d" -> {NAME: ("a", "b"), ...}; a table from a TOML file passes."""
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


def _split_labels(value: object) -> object:
    """The same with the full-width comma of a Chinese keyboard; a label that holds one goes into a TOML file."""
    if isinstance(value, str):
        value = value.replace("，", ",")
    elif isinstance(value, list):
        value = [part.replace("，", ",") if isinstance(part, str) else part for part in value]
    return _split_table(value)


def _check_devices(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(_DEVICE.fullmatch(device) for device in value):
        raise ValueError("wanted auto, or a list of cpu, cuda and cuda:N such as cuda:0,cuda:1")
    if "auto" in value and len(value) > 1:
        raise ValueError("auto cannot be combined with other devices")
    return value


def _check_proxies(value: tuple[str, ...]) -> tuple[str, ...]:
    for proxy in value:
        ipaddress.ip_network(proxy)  # raises ValueError with a message of its own
    return value


def _check_origins(value: tuple[str, ...]) -> tuple[str, ...]:
    if not all(_ORIGIN.fullmatch(origin) for origin in value):
        raise ValueError("wanted origins such as https://app.example.com, or * for all")
    return value


def _check_protocols(value: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [name for name in value if name not in (*PROTOCOLS, "all", "none")]:
        raise ValueError(f"{unknown[0]}: wanted all, none, or a list of {', '.join(PROTOCOLS)}")
    if len(value) != 1 and {"all", "none"} & set(value):
        raise ValueError("all and none cannot be combined with other protocols")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Protocols = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_protocols)]
Devices = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_devices)]
Proxies = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_proxies)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_origins)]
LabelTable = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_split_labels)]
WordTable = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_split_table)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Server(Section):
    """Address of the server, limits on requests and connections, and shutdown."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all interfaces.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 chooses a free port and logs it.")
    unix_socket: Path | None = Field(
        None,
        description="Unix socket to listen on instead of host and port, for a proxy on the same machine. Its owner and "
        "its group may connect.",
        json_schema_extra={"metavar": "PATH"},
    )
    root_path: str | None = Field(
        None,
        pattern=ROOT_PATH,
        description="Path below which a proxy serves this server, as /nlp, whether the proxy strips it or not; "
        "default: none, or what the X-Forwarded-Prefix header of a trusted proxy says.",
        json_schema_extra={"metavar": "PATH"},
    )
    playground: bool = Field(True, description="Serve the playground, a page to try the service in a browser, at /.")
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="Maximum request body in bytes; above it: 413.")
    max_reply_bytes: int = Field(
        16 * 2**20, ge=1024, description="Maximum estimated size of a response in bytes; above it: 422."
    )
    memory_budget_bytes: int = Field(
        0,
        ge=0,
        description="Memory for requests in progress in bytes: bodies, tokenized rows and replies; above it: 503. "
        "0: 256 MiB, or a sixteenth of the memory limit if that is less.",
    )
    max_inputs: int = Field(256, ge=1, description="Maximum inputs or candidates of a request; above it: 422.")
    max_chars: int = Field(100_000, ge=1, description="Maximum characters of a text; above it: 422.")
    max_labels: int = Field(256, ge=1, description="Maximum choices of an input; above it: 422.")
    max_inline_labels: int = Field(
        1000,
        ge=1,
        description="Maximum labels in a request to classify, and examples of them in all; above it: 422. More are "
        "stored as a label set.",
    )
    max_set_labels: int = Field(
        20_000, ge=1, description="Maximum labels of a label set, and examples of them in all; above it: 422."
    )
    max_label_examples: int = Field(64, ge=1, description="Maximum examples of a label; above it: 422.")
    max_example_chars: int = Field(
        2000, ge=1, description="Maximum characters of an example or a description of a label; above it: 422."
    )
    max_windows: int = Field(
        256,
        ge=1,
        description="Maximum windows of the long texts of a request, unless it has more inputs; above it: 422.",
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Maximum path and headers in bytes; above it: 431.")
    max_connections: int = Field(
        16_384, ge=1, description="Maximum number of open connections, also limited by `ulimit -Hn`; above it: 503."
    )
    header_timeout_s: float = Field(20.0, gt=0, description="Seconds for the head of a request to arrive, else 408.")
    body_timeout_s: float = Field(30.0, gt=0, description="Seconds for the body of a request to arrive, else 408.")
    send_timeout_s: float = Field(
        60.0, gt=0, description="Seconds for a client to read its response, else the connection is closed."
    )
    keep_alive_s: float = Field(
        75.0,
        gt=0,
        description="Seconds after which an idle connection is closed; use more than a load balancer's idle timeout.",
    )
    default_timeout_ms: int = Field(60_000, ge=1, description="Deadline of a request that sets none, in milliseconds.")
    max_timeout_ms: int = Field(600_000, ge=1, description="Longest deadline that a request may set, in milliseconds.")
    protocols: Protocols = Field(
        ("all",),
        description="Protocols of other servers to answer besides the native one: all, none, or names from "
        "docs/clients.md. Each has its routes under its name, and some at the root.",
        json_schema_extra={"metavar": "NAME,..."},
    )
    moderation_label_set: str = Field(
        "moderation",
        min_length=1,
        max_length=64,
        description="Stored label set with the categories of moderations and guardrails where none is named.",
    )
    moderation_threshold: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Score of a category from which on a text is flagged, by moderations and guardrails.",
    )
    fengshenbang_path: str = Field(
        "/TextClassification",
        pattern=r"^/[A-Za-z0-9._~/-]*[A-Za-z0-9._~-]$",
        description="Path of the fengshenbang protocol at the root, as `API_path` in upstream's configuration.",
        json_schema_extra={"metavar": "PATH"},
    )
    max_bulk_streams: int = Field(
        8, ge=1, description="Maximum number of bulk requests of a key at a time; above it: 429."
    )
    bulk_window: int = Field(
        256, ge=1, description="Maximum number of lines of a bulk request that are computed at a time."
    )
    bulk_spool_bytes: int = Field(
        64 * 2**20,
        ge=0,
        description="Maximum size of the file in the directory for temporary files that keeps the replies of a bulk "
        "request for a client that sends all before it reads; above it the request ends with the line to resume from. "
        "0: no file; such a client waits for ever.",
    )
    drain_delay_s: float = Field(
        0.0, ge=0, description="Seconds after SIGTERM in which requests are still accepted, while /readyz is 503."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, description="Seconds after SIGTERM, and after drain_delay_s, for running requests to finish."
    )

    @model_validator(mode="after")
    def _default_within_max(self) -> Self:
        if self.default_timeout_ms > self.max_timeout_ms:
            raise ValueError(f"default_timeout_ms must not be above max_timeout_ms ({self.max_timeout_ms})")
        return self

    @model_validator(mode="after")
    def _budget_holds_the_largest_request(self) -> Self:
        if 0 < self.memory_budget_bytes < LARGEST_REQUEST * self.max_body_bytes:
            raise ValueError(
                f"memory_budget_bytes must be at least {LARGEST_REQUEST} times max_body_bytes ({self.max_body_bytes})"
            )
        return self


class Models(Section):
    """The checkpoints to serve."""

    specs: Names = Field(
        (),
        description="Model to serve: a directory, or a hub id with an optional @revision (ms:// before it for "
        "ModelScope); NAME= sets its name in requests; +base=SOURCE names the base of a LoRA adapter. Default: `mini` "
        "and `e5-small`, the models that ship with the service.",
        json_schema_extra={"flag": "--model", "metavar": "[NAME=]SOURCE"},
    )
    labels: LabelTable = Field(
        {},
        description="Labels of a model's classification head, in the order of its outputs, instead of those of its "
        "checkpoint. A full-width comma (，) separates them, too, except in a TOML file.",
        json_schema_extra={"flag": "--labels", "metavar": "NAME=A,B,C"},
    )
    hub: Literal["huggingface", "modelscope"] = Field(
        "huggingface",
        description="Where a model ORG/NAME comes from. `ms://ORG/NAME` is always from ModelScope, `hf://ORG/NAME` "
        "from the Hugging Face hub. Their addresses are in the variables HF_ENDPOINT and MODELSCOPE_ENDPOINT.",
    )
    token_to_mirror: bool = Field(
        False,
        description="Send HF_TOKEN or MODELSCOPE_API_TOKEN also to an address in HF_ENDPOINT or MODELSCOPE_ENDPOINT "
        "that is not the hub's own.",
    )
    cache_dir: Path | None = Field(None, description="Directory for hub downloads; default: the hub's own cache.")
    weight_cache_dir: str = Field(
        "auto",
        description="Directory for converted weights, in the precision and layout of the device, so that later starts "
        "can map them into memory and replicas on a CPU share them. Used for .bin checkpoints, and on a CPU for all "
        "checkpoints of 1 GiB and more and for int8; kernels compiled for a GPU are stored there, too. auto: the "
        "directory `erlangshen/weights` in the user's cache directory ($XDG_CACHE_HOME or ~/.cache); off: no cache.",
    )
    offline: bool = Field(False, description="Do not contact the hub: load models from directories and the cache only.")
    blend: Path | None = Field(
        None,
        description="JSON file with the constants with which a choice model and an embedding model decide together; "
        "default: the one for the models that ship with the service.",
        json_schema_extra={"flag": "--blend", "metavar": "FILE"},
    )
    calibration: Path | None = Field(
        None,
        description="JSON file with the temperatures that make the scores of label sets probabilities, as `python -m "
        "service evaluate --calibrate` writes it. Default: none; the `calibration.json` in a model's directory is used "
        "with it or without.",
        json_schema_extra={"flag": "--calibration", "metavar": "FILE"},
    )
    tokenizer_threads: int = Field(
        2, ge=1, le=64, description="Number of threads for long requests: JSON, tokenization and replies."
    )


class Batching(Section):
    """Batch sizes, limits on the queue, and caches."""

    max_batch_tokens: int = Field(
        0,
        ge=0,
        description="Maximum number of tokens in a batch; a longer row is a batch of its own. 0: measured per model.",
    )
    batch_target_ms: int = Field(
        500, ge=1, description="Target compute time of a full batch in milliseconds, if max_batch_tokens is 0."
    )
    batch_efficiency: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Share of the throughput of endless batches that a full batch reaches, if max_batch_tokens is 0 "
        "and batch_target_ms allows it. A larger share makes batches larger, and each one slower.",
    )
    max_queue_tokens: int = Field(
        262_144, ge=1, description="Maximum number of waiting tokens; above it: 429 with Retry-After."
    )
    max_wait_ms: int = Field(
        30_000, ge=1, description="Maximum predicted waiting time of a request in milliseconds; above it: 429."
    )
    max_age_ms: int = Field(
        2000,
        ge=0,
        description="Every fourth batch takes rows that waited longer than this, in milliseconds, at any priority.",
    )
    cache_entries: int = Field(0, ge=0, description="Maximum number of rows in the result cache; 0: no cache.")
    cache_bytes: int = Field(64 * 2**20, ge=1, description="Maximum size of the result cache in bytes.")
    cache_ttl_s: float = Field(3600.0, gt=0, description="Seconds after which a cached result expires.")
    label_cache_bytes: int = Field(
        64 * 2**20, ge=1, description="Maximum size of the label cache, the embeddings of labels, in bytes."
    )
    label_vectors_bytes: int = Field(
        256 * 2**20,
        ge=1,
        description="Maximum size of the vectors of lists of labels, of requests and label sets, in bytes for each "
        "embedding model.",
    )

    @model_validator(mode="after")
    def _queue_holds_a_batch(self) -> Self:
        if self.max_queue_tokens < self.max_batch_tokens:
            raise ValueError(f"max_queue_tokens must not be below max_batch_tokens ({self.max_batch_tokens})")
        return self


class Replicas(Section):
    """Worker processes, their devices and arithmetic, and when they are restarted."""

    devices: Devices = Field(
        ("auto",), description="Devices, with one replica on each: cpu, cuda:0, ...; auto: all GPUs, else cpu."
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Precision of the model; auto: bfloat16 if the hardware supports it, else float32."
    )
    runtime: WantedRuntime = Field(
        "auto",
        description="Library that computes the encoder: torch; or onnxruntime, on a CPU in float32 or int8, with a "
        "copy of the weights in each replica; auto: the faster, measured at the start; onnxruntime if it gains a "
        "twentieth, and for at most 2 GiB of weights.",
    )
    quantization: WantedQuantization = Field(
        "none",
        description="Quantization of the encoder's matrix products, faster and slightly less accurate: int8 on a CPU, "
        "or on a GPU from Ampere on; fp8 on a GPU from Ada and Hopper on; auto: the fastest, measured at the start, if "
        "it gains a fifth over none.",
    )
    threads: int = Field(
        0, ge=0, description="CPU threads of each replica; 0: the available cores divided by the number of replicas."
    )
    start_timeout_s: float = Field(
        900.0,
        gt=0,
        description="Seconds for a replica to load its models; a restart may take five times the longest start so far.",
    )
    hang_timeout_s: float = Field(
        120.0, gt=0, description="Maximum seconds for one batch, after which the replica is restarted."
    )
    hang_factor: float = Field(
        20.0,
        gt=1,
        description="Multiple of a batch's predicted time that it may take; at least 10 s, at most hang_timeout_s.",
    )
    canary_interval_s: float = Field(
        60.0,
        ge=0,
        description="Seconds between two checks that a replica still computes known results correctly; 0: no checks.",
    )
    max_crashes: int = Field(
        6,
        ge=1,
        description="Losses in a row, each within a minute of a start; /livez fails once every replica has as many.",
    )


class Security(Section):
    """Authentication, TLS, CORS and proxies; see docs/security.md."""

    keys_file: Path | None = Field(
        None, description="TOML file with API keys; if there are any keys, every request needs one."
    )
    keys: WordTable = Field(
        {},
        description="API keys without a file: name, hash and scopes (default: `infer`), as printed by "
        "`python -m service key`.",
        json_schema_extra={"flag": "--key", "metavar": "NAME=HASH,SCOPE,...", "secret": True},
    )
    allow_anonymous: bool = Field(
        False, description="Serve requests without keys on an address that other machines can reach."
    )
    allowed_hosts: Names = Field(
        (),
        description="Domain names that the Host header may have, besides addresses and names without a dot. Default: "
        "none on a loopback address without keys, otherwise all.",
        json_schema_extra={"flag": "--allowed-host", "metavar": "NAME"},
    )
    open_docs: bool = Field(False, description="Serve /docs and /openapi.json without a key.")
    cors_origins: Origins = Field(
        (), description="Origins whose pages may call the API from a browser (CORS), or * for all; default: none."
    )
    trusted_proxies: Proxies = Field(
        (),
        description="Addresses and networks of proxies whose X-Forwarded-For header is used as the client's address in "
        "the log, and whose X-Forwarded-Prefix header is used as the path of the server; default: none.",
    )
    tls_cert: Path | None = Field(
        None, description="PEM file of the certificate and its chain; with it, the server uses HTTPS."
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key.")

    @property
    def has_keys(self) -> bool:
        return self.keys_file is not None or bool(self.keys)

    @model_validator(mode="after")
    def _certificate_has_its_key(self) -> Self:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key must be set together")
        return self


class Tracing(Section):
    """Tracing with OpenTelemetry; off without an endpoint here or in OpenTelemetry's own environment variables."""

    endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s/?#]+[^\s?#]*$",
        description="URL of an OpenTelemetry collector: http://localhost:4318 for OTLP over HTTP, or "
        "http://localhost:4317 for OTLP over gRPC. Default: `OTEL_EXPORTER_OTLP_ENDPOINT`, or no tracing. Requires the "
        "packages in requirements/tracing.txt.",
        json_schema_extra={"flag": "--tracing-endpoint", "metavar": "URL"},
    )
    protocol: Literal["grpc", "http/protobuf"] | None = Field(
        None,
        description="Protocol of the collector: grpc or http/protobuf. Default: `OTEL_EXPORTER_OTLP_PROTOCOL`, else "
        "http/protobuf.",
        json_schema_extra={"flag": "--tracing-protocol"},
    )
    sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Fraction of requests to trace; a request with a `traceparent` header follows its sampled flag. "
        "Default: `OTEL_TRACES_SAMPLER`, else all.",
        json_schema_extra={"flag": "--tracing-sample-ratio"},
    )


class Log(Section):
    """Level and format of the log."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged.", json_schema_extra={"flag": "--log-level"}
    )
    format: Literal["auto", "json", "text"] = Field(
        "auto",
        description="auto: text on a terminal, JSON lines elsewhere.",
        json_schema_extra={"flag": "--log-format"},
    )


class Storage(Section):
    """Label sets, files and batches that clients store on the server; off without a directory."""

    data_dir: Path | None = Field(
        None,
        description="Directory that keeps named label sets, in `label-sets`, and files and batches, in `batches`; "
        "readable by this user only. Replicas of the service may share it. Default: none, and nothing is stored.",
    )
    max_label_sets: int = Field(100, ge=1, description="Maximum number of label sets of a key; above it: 403.")
    max_stored_labels: int = Field(
        100_000, ge=1, description="Maximum number of labels in all label sets of a key; above it: 403."
    )
    max_stored_bytes: int = Field(
        64 * 2**20,
        ge=1,
        description="Maximum size of the files of all label sets of a key in bytes, with descriptions and examples; "
        "above it: 403.",
    )
    max_file_bytes: int = Field(
        200 * 2**20, ge=1024, description="Maximum size of an uploaded file in bytes; above it: 413."
    )
    max_files: int = Field(
        1000, ge=1, description="Maximum number of files of a key, and of its batches; above it: 403."
    )
    max_files_bytes: int = Field(
        4 * 2**30,
        ge=1024,
        description="Maximum size of all files of a key in bytes; above it: 403, and a batch that writes more ends.",
    )
    max_all_files_bytes: int = Field(
        32 * 2**30, ge=1024, description="Maximum size of the files of all keys in bytes, with the same effect."
    )
    max_batch_lines: int = Field(50_000, ge=1, description="Maximum lines of a batch; above it: the batch fails.")
    file_expiry_s: int = Field(
        30 * 24 * 3600,
        ge=3600,
        description="Seconds after which a file is deleted that names no other time, and a batch that has ended.",
    )


class Settings(Section):
    server: Server = Server()
    models: Models = Models()
    batching: Batching = Batching()
    replicas: Replicas = Replicas()
    security: Security = Security()
    storage: Storage = Storage()
    tracing: Tracing = Tracing()
    log: Log = Log()
