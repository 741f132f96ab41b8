"""Where spans are sent: settings before variables, the variables of traces before the general ones, invalid values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from opentelemetry import environment_variables as api_variables
from opentelemetry.sdk import environment_variables as sdk_variables

from service.errors import SettingError
from service.tracing.environment import TIMEOUT_S, Export, resolve_export
from service.tracing.http_attributes import KNOWN_METHODS_VARIABLE

URL = "http://collector:4318"
GENERAL = "OTEL_EXPORTER_OTLP_"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_"


def resolve(**variables: str) -> Export | None:
    return resolve_export(None, None, variables)


def resolve_with_url(**variables: str) -> Export:
    export = resolve_export(URL, None, variables)
    assert export is not None
    return export


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {f"{GENERAL}ENDPOINT": ""},
        {f"{GENERAL}ENDPOINT": URL, "OTEL_SDK_DISABLED": "true"},
        {f"{GENERAL}ENDPOINT": URL, "OTEL_TRACES_EXPORTER": "none"},
        {f"{GENERAL}PROTOCOL": "grpc"},
    ],
)
def test_no_tracing_without_an_endpoint_or_where_a_variable_turns_it_off(variables: dict[str, str]) -> None:
    assert resolve(**variables) is None


def test_the_variable_that_disables_the_sdk_wins_over_the_setting() -> None:
    assert resolve_export(URL, None, {"OTEL_SDK_DISABLED": "TRUE"}) is None


def test_the_setting_wins_over_every_other_variable() -> None:
    variables = {f"{TRACES}ENDPOINT": "http://other", f"{TRACES}PROTOCOL": "grpc", "OTEL_TRACES_EXPORTER": "none"}
    assert resolve_export(f"{URL}/", "http/protobuf", variables) == Export("http/protobuf", f"{URL}/v1/traces")


@pytest.mark.parametrize(
    ("variables", "endpoint"),
    [
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        ({f"{GENERAL}ENDPOINT": "http://a:1/base/"}, "http://a:1/base/v1/traces"),
        ({f"{TRACES}ENDPOINT": "http://a:1/base"}, "http://a:1/base"),
        ({f"{TRACES}ENDPOINT": "http://a:1/x", f"{GENERAL}ENDPOINT": "http://b"}, "http://a:1/x"),
        ({"OTEL_TRACES_EXPORTER": "otlp", f"{GENERAL}PROTOCOL": "grpc"}, "http://localhost:4317"),
        ({f"{GENERAL}ENDPOINT": "http://a:1", f"{GENERAL}PROTOCOL": "grpc"}, "http://a:1"),
        ({f"{GENERAL}ENDPOINT": "a:1", f"{TRACES}PROTOCOL": "grpc"}, "a:1"),
    ],
)
def test_the_endpoint_of_the_variables(variables: dict[str, str], endpoint: str) -> None:
    export = resolve(**variables)
    assert export is not None
    assert (export.endpoint, export.is_ours) == (endpoint, False)


def test_an_endpoint_of_the_settings_is_used_by_the_protocol_of_a_variable() -> None:
    export = resolve_with_url(OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
    assert (export.protocol, export.endpoint, export.is_ours) == ("grpc", URL, True)


def test_time_limit_and_compression_have_defaults_and_variables() -> None:
    default = resolve_with_url()
    assert (default.timeout_s, default.compression) == (TIMEOUT_S, "none")
    given = resolve_with_url(OTEL_EXPORTER_OTLP_TIMEOUT="2.5", OTEL_EXPORTER_OTLP_TRACES_COMPRESSION="GZIP")
    assert (given.timeout_s, given.compression) == (2.5, "gzip")


def test_a_certificate_that_can_be_read_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("certificate")
    assert resolve_with_url(OTEL_EXPORTER_OTLP_CERTIFICATE=str(file))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (f"{GENERAL}PROTOCOL", "http/json", "only grpc and http/protobuf are supported"),
        (f"{GENERAL}TIMEOUT", "soon", "a number of seconds above zero"),
        (f"{TRACES}TIMEOUT", "0", "a number of seconds above zero"),
        (f"{TRACES}COMPRESSION", "zstd", "http/protobuf supports none, gzip, deflate"),
        (f"{GENERAL}CERTIFICATE", "/none/ca.pem", "cannot read /none/ca.pem: No such file"),
        (f"{TRACES}CLIENT_KEY", "/none/key.pem", "cannot read /none/key.pem"),
    ],
)
def test_an_unsupported_value_is_an_error_that_names_the_variable(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingError, match=f"{name}.*{message}"):
        resolve_with_url(**{name: value})


def test_an_exporter_other_than_otlp_is_an_error() -> None:
    with pytest.raises(SettingError, match="OTEL_TRACES_EXPORTER=zipkin: only otlp and none"):
        resolve(OTEL_TRACES_EXPORTER="zipkin")


def test_deflate_is_an_error_for_grpc() -> None:
    with pytest.raises(SettingError, match="grpc supports none, gzip"):
        resolve_with_url(OTEL_EXPORTER_OTLP_PROTOCOL="grpc", OTEL_EXPORTER_OTLP_COMPRESSION="deflate")


@pytest.mark.parametrize(
    ("endpoint", "protocol"),
    [("a:1", "http/protobuf"), ("http://", "http/protobuf"), ("http://a/traces", "grpc"), ("a b", "grpc")],
)
def test_an_invalid_endpoint_is_an_error_without_its_value(endpoint: str, protocol: str) -> None:
    with pytest.raises(SettingError, match="OTEL_EXPORTER_OTLP_ENDPOINT: wanted a URL such as") as caught:
        resolve(OTEL_EXPORTER_OTLP_ENDPOINT=endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol)
    assert f"{endpoint} " not in str(caught.value)


@pytest.mark.parametrize("headers", ["s3cret", "authorization=a, s3cret", "authorization=s3cret;b"])
def test_invalid_headers_are_an_error_without_their_value(headers: str) -> None:
    with pytest.raises(SettingError, match="OTEL_EXPORTER_OTLP_HEADERS: wanted NAME=VALUE") as caught:
        resolve_with_url(OTEL_EXPORTER_OTLP_HEADERS=headers)
    assert "s3cret" not in str(caught.value)


def test_a_password_in_the_url_is_an_error_for_grpc_without_its_value() -> None:
    with pytest.raises(SettingError, match="put a key into OTEL_EXPORTER_OTLP_HEADERS") as caught:
        resolve_export("http://me:s3cret@collector:4317", "grpc", {})
    assert "s3cret" not in str(caught.value)


def test_headers_in_url_encoding_are_accepted() -> None:
    assert resolve_with_url(OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20abc==,x-tenant = mine")


@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"OTEL_SDK_DISABLED": "yes"}, "OTEL_SDK_DISABLED"),
        ({f"{GENERAL}TIMEOUT": "10000"}, f"{GENERAL}TIMEOUT"),
        ({f"{GENERAL}ENDPOINT": "http://collector:4317"}, f"{GENERAL}ENDPOINT"),
    ],
)
def test_a_value_that_is_likely_a_mistake_is_logged(
    variables: dict[str, str], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert resolve(**{f"{GENERAL}ENDPOINT": URL} | variables)
    [line] = caplog.records
    assert vars(line)["variable"] == name


def test_the_page_names_the_variables_that_are_read_and_none_that_does_not_exist() -> None:
    root = Path(__file__).parents[3]
    documented = set(re.findall(r"`(OTEL_\w+)`", (root / "docs/tracing.md").read_text(encoding="utf-8")))
    assert documented <= {*vars(sdk_variables), *vars(api_variables), KNOWN_METHODS_VARIABLE}
    code = "".join(file.read_text(encoding="utf-8") for file in (root / "service/tracing").glob("*.py"))
    assert set(re.findall(r'"(OTEL_[A-Z_]+)"', code)) <= documented
