"""Every setting of the service, declared once: its default, limits, flag, environment name and help.

Knows nothing of what the settings are used for, nor where their values come from: that is `setting_layers`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from service.domain import Quantization

VERSION = "0.1.0"
ENV_PREFIX = "ERLANGSHEN_"
_DEVICE = re.compile(r"auto|cpu|cuda|cuda:\d+")


def _split(value: object) -> object:
    """Cut a,b into its parts; lists pass, and so does what is wrong anyway."""
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return tuple(piece.strip() for part in value for piece in part.split(",") if piece.strip())
    return value


def _split_labels(value: object) -> object:
    """["NAME=a,b"] or "NAME=a,b;OTHER=c,d" -> {NAME: ("a", "b"), ...}; a table of the TOML file passes."""
    if isinstance(value, str):
        value = [part for part in value.split(";") if part.strip()]
    if not isinstance(value, list):
        return value
    table = {}
    for part in value:
        name, equals, labels = str(part).partition("=")
        if not equals or not name.strip() or not _split(labels):
            raise ValueError("wanted NAME=label,label,...")
        table[name.strip()] = _split(labels)
    return table


def _check_devices(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not all(_DEVICE.fullmatch(device) for device in value):
        raise ValueError("wanted auto, or a list of cpu, cuda and cuda:N such as cuda:0,cuda:1")
    if "auto" in value and len(value) > 1:
        raise ValueError("auto stands alone")
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Devices = Annotated[tuple[str, ...], BeforeValidator(_split), AfterValidator(_check_devices)]
LabelTable = Annotated[dict[str, tuple[str, ...]], BeforeValidator(_split_labels)]


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
    labels: LabelTable = Field(
        {},
        description="Labels of a model whose checkpoint names none, in the order of its outputs.",
        json_schema_extra={"flag": "--labels", "metavar": "NAME=A,B,C"},
    )
    cache_dir: Path | None = Field(None, description="Where hub downloads are kept; default: the hub's own cache.")
    weight_cache_dir: str = Field(
        "auto",
        description="Where weights that come as .bin are kept as safetensors, in the precision that is served, so that "
        "later starts map them; what is compiled for a GPU is kept there, too. auto: `erlangshen/weights` in the "
        "user's cache folder ($XDG_CACHE_HOME or ~/.cache); off: nowhere.",
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
    start_timeout_s: float = Field(900.0, gt=0, description="Seconds that a replica gets to load its models.")
    hang_timeout_s: float = Field(120.0, gt=0, description="Seconds one batch may take, else the replica restarts.")


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
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class Row:
    """One setting as the outside sees it."""

    section: str
    name: str
    flag: str
    env: str
    default: Any
    annotation: Any
    metavar: str
    help: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def is_bool(self) -> bool:
        return self.annotation is bool

    @property
    def is_repeatable(self) -> bool:
        return isinstance(self.default, (tuple, dict))


def rows() -> list[Row]:
    """All settings, in the order of declaration."""
    return [
        _row(section, name, field)
        for section, part in Settings.model_fields.items()
        for name, field in type(part.default).model_fields.items()
    ]


def _row(section: str, name: str, field: FieldInfo) -> Row:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    return Row(
        section=section,
        name=name,
        flag=str(extra.get("flag", f"--{name.replace('_', '-')}")),
        env=f"{ENV_PREFIX}{section}__{name}".upper(),
        default=field.default,
        annotation=field.annotation,
        metavar=str(extra.get("metavar", _metavar(name, field.annotation))),
        help=field.description or "",
    )


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return name.rsplit("_", 1)[-1].upper()


def section_help() -> dict[str, str]:
    """Section name -> its one-line description."""
    return {name: (type(part.default).__doc__ or "").strip() for name, part in Settings.model_fields.items()}
