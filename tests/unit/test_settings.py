"""Settings: precedence of the sources, parsing, limits, and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.errors import SettingError
from service.settings import Settings
from service.settings_sources import load, setting_rows


def given(flags: dict[str, Any] | None = None, config: Path | None = None, **environ: str) -> Settings:
    return load(flags, config=config, environ=environ)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_no_source_gives_the_defaults() -> None:
    assert given() == Settings()
    assert (given().server.host, given().server.port) == ("127.0.0.1", 8000)


def test_precedence_is_flag_then_environment_then_file_then_default(tmp_path: Path) -> None:
    file = write(tmp_path, "[server]\nport = 1\nmax_inputs = 1\nmax_labels = 1\n")
    environ = {"ERLANGSHEN_SERVER__PORT": "2", "ERLANGSHEN_SERVER__MAX_INPUTS": "2"}
    server = load({"server.port": "3"}, config=file, environ=environ).server
    assert (server.port, server.max_inputs, server.max_labels, server.max_chars) == (3, 2, 1, 100_000)


def test_a_default_of_the_caller_gives_way_to_every_source() -> None:
    defaults = {"server.port": 1, "server.max_inputs": 1}
    server = load(defaults=defaults, environ={"ERLANGSHEN_SERVER__PORT": "2"}).server
    assert (server.port, server.max_inputs) == (2, 1)


def test_erlangshen_config_names_the_settings_file(tmp_path: Path) -> None:
    file = write(tmp_path, "[log]\nlevel = 'debug'\n")
    assert given(ERLANGSHEN_CONFIG=str(file)).log.level == "debug"


def test_every_setting_has_a_unique_flag_and_environment_name() -> None:
    assert len({row.flag for row in setting_rows()}) == len({row.env for row in setting_rows()}) == len(setting_rows())
    assert all(row.help.endswith(".") for row in setting_rows())


SAMPLES: dict[str, tuple[str, Any]] = {
    "server.unix_socket": ("/y", Path("/y")),
    "models.specs": ("a,b=c", ("a", "b=c")),
    "models.labels": ("a=x,y;b=z", {"a": ("x", "y"), "b": ("z",)}),
    "models.cache_dir": ("/x", Path("/x")),
    "models.blend": ("/x", Path("/x")),
    "models.calibration": ("/x", Path("/x")),
    "security.keys_file": ("/x", Path("/x")),
    "server.root_path": ("/nlp", "/nlp"),
    "storage.data_dir": ("/x", Path("/x")),
    "security.keys": ("a=x;b=y,infer", {"a": ("x",), "b": ("y", "infer")}),
    "security.cors_origins": ("https://a.b,http://c:8", ("https://a.b", "http://c:8")),
    "security.trusted_proxies": ("::1,10.0.0.0/8", ("::1", "10.0.0.0/8")),
    "security.tls_cert": ("/x", Path("/x")),
    "security.tls_key": ("/x", Path("/x")),
    "tracing.endpoint": ("http://localhost:4318", "http://localhost:4318"),
    "tracing.protocol": ("grpc", "grpc"),
    "tracing.sample_ratio": ("0.5", 0.5),
}


@pytest.mark.parametrize("row", setting_rows(), ids=lambda row: row.key)
def test_every_setting_can_be_given_in_the_environment(row: Any) -> None:
    default = ",".join(row.default) if isinstance(row.default, tuple) else str(row.default)
    text, wanted = SAMPLES.get(row.key, (default, row.default))
    others = {one.env: "/y" for one in setting_rows() if row.name.startswith("tls_") and one.name.startswith("tls_")}
    settings = given(**{**others, row.env: text})
    assert getattr(getattr(settings, row.section), row.name) == wanted


def test_models_and_labels_are_equal_from_flag_environment_and_file(tmp_path: Path) -> None:
    file = write(tmp_path, '[models]\nspecs = ["a", "b=c@main"]\n[models.labels]\nb = ["x", "y"]\n')
    by_flag = given({"models.specs": ["a", "b=c@main"], "models.labels": ["b=x,y"]})
    by_env = given(ERLANGSHEN_MODELS__SPECS="a, b=c@main", ERLANGSHEN_MODELS__LABELS="b=x,y")
    assert by_flag == by_env == given(config=file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[sever]\nport = 1", ["[sever]", "is not a section", "did you mean server"]),
        ("[server]\nprot = 1", ["server.prot", "1", "did you mean server.port"]),
        ("port = 1", ["[port]", "is not a section"]),
        ("[server]\nport = 'x'", ["server.port", "'x'", "settings.toml", "integer"]),
        ("[server]\nport = 70000", ["server.port", "70000", "65535"]),
        ("[server", ["settings.toml", "not TOML"]),
        ("[models.labels]\na = 'x'\n[log]\nlevel = 'loud'", ["log.level", "'loud'", "'debug', 'info'"]),
        ("[batching]\nmax_queue_tokens = 10\nmax_batch_tokens = 11", ["max_queue_tokens", "max_batch_tokens (11)"]),
        ("[server]\ndefault_timeout_ms = 1000000", ["default_timeout_ms", "max_timeout_ms (600000)"]),
        ("[security]\ntls_cert = 'x'", ["security", "tls_cert and tls_key must be set together"]),
        ("[security]\ntrusted_proxies = ['proxy']", ["security.trusted_proxies", "'proxy'"]),
        ("[security]\ncors_origins = ['a.b']", ["security.cors_origins", "'a.b'", "https://app.example.com"]),
    ],
)
def test_the_error_of_a_bad_file_names_key_value_and_expectation(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        given(config=write(tmp_path, text))
    assert all(word in caught.value.detail for word in words), caught.value.detail


def test_the_error_of_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.toml: No such file"):
        given(config=tmp_path / "none.toml")


@pytest.mark.parametrize("name", ["ERLANGSHEN_SERVER__PROT", "ERLANGSHEN_SERVER", "ERLANGSHEN_THREADS"])
def test_an_unknown_environment_name_is_refused(name: str) -> None:
    with pytest.raises(SettingError, match=f"{name} is not a setting"):
        given(**{name: "1"})


def test_the_error_of_an_unknown_name_has_a_hint_and_not_the_value(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"ERLANGSHEN_API_KEY is not a setting; see docs/settings\.md") as caught:
        given(ERLANGSHEN_API_KEY="s3cret")
    assert "s3cret" not in caught.value.detail
    with pytest.raises(SettingError, match=r"did you mean ERLANGSHEN_SERVER__PORT\?"):
        given(ERLANGSHEN_SERVER__PROT="1")
    file = tmp_path / "a.toml"
    file.write_text('[server]\nkey = "s3cret"\n')
    with pytest.raises(SettingError, match=r"server\.key is not a setting") as caught:
        given(config=file)
    assert "s3cret" not in caught.value.detail


@pytest.mark.parametrize("url", ["ftp://user:s3cret@collector", "ftp://s3cret@collector", "user:s3cret@collector:4318"])
def test_the_error_about_a_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(SettingError, match=r"tracing\.endpoint = '.*\*\*\*@collector") as caught:
        given(ERLANGSHEN_TRACING__ENDPOINT=url)
    assert "s3cret" not in caught.value.detail


def test_kubernetes_service_variables_of_erlangshen_are_ignored() -> None:
    assert (
        given(
            ERLANGSHEN_SERVICE_HOST="10.0.0.1",
            ERLANGSHEN_SERVICE_PORT="8000",
            ERLANGSHEN_SERVICE_PORT_HTTP="8000",
            ERLANGSHEN_PORT="tcp://10.0.0.1:8000",
            ERLANGSHEN_PORT_8000_TCP="tcp://10.0.0.1:8000",
            ERLANGSHEN_PORT_8000_TCP_PROTO="tcp",
            ERLANGSHEN_CANARY_PORT_8000_TCP_ADDR="10.0.0.1",
        )
        == Settings()
    )


def test_an_empty_environment_value_is_ignored() -> None:
    assert given(ERLANGSHEN_MODELS__CACHE_DIR="", ERLANGSHEN_CONFIG="") == Settings()


@pytest.mark.parametrize(
    ("text", "devices"), [("auto", ("auto",)), ("cpu,cpu", ("cpu", "cpu")), ("cuda:0", ("cuda:0",))]
)
def test_devices_are_parsed_from_a_list(text: str, devices: tuple[str, ...]) -> None:
    assert given({"replicas.devices": [text]}).replicas.devices == devices


@pytest.mark.parametrize("text", ["gpu", "cuda:", "auto,cpu", ""])
def test_invalid_devices_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"replicas\.devices"):
        given({"replicas.devices": [text]})


def test_labels_may_be_separated_by_full_width_commas(tmp_path: Path) -> None:
    assert given({"models.labels": ["m=好，坏,一般"]}).models.labels == {"m": ("好", "坏", "一般")}
    file = write(tmp_path, '[models.labels]\nm = ["好，坏", "一般"]\n')
    assert given(config=file).models.labels == {"m": ("好，坏", "一般")}
    assert given({"models.specs": ["/模型，新"]}).models.specs == ("/模型，新",)


@pytest.mark.parametrize("text", ["x", "=a", "a=", "a=，", "a"])
def test_invalid_labels_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match="NAME=A,B"):
        given({"models.labels": [text]})
