"""The Dockerfile and the Compose files, without a build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli import COMMANDS
from service.commands.serving import LAST_RESPONSES_S
from service.settings import VERSION
from service.settings_sources import load
from tests.deploy.manifests import DOCKERFILE, K8S, ROOT, image_environment

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
GPU = yaml.safe_load((ROOT / "docker" / "compose.gpu.yaml").read_text())
BUILD_ARGS = {"PIP_INDEX_URL", "TORCH_BUILD", "TORCH_INDEX", "TORCH_LINKS", "APT_MIRROR", "PYTHON_IMAGE"}
IMAGE = f"erlangshen-service:{VERSION}"


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of this name, in order."""
    return re.findall(rf"^{name} (.+)$", DOCKERFILE.replace("\\\n", " "), re.MULTILINE)


def service_environment(*compose: dict[str, Any]) -> dict[str, str]:
    merged = image_environment()
    for file in compose:
        merged |= file["services"]["erlangshen"].get("environment", {})
    return merged


def test_the_image_listens_on_all_interfaces() -> None:
    settings = load(environ=image_environment())
    assert (settings.server.host, settings.security.allow_anonymous) == ("0.0.0.0", True)
    assert instructions("EXPOSE") == [str(settings.server.port)]


def test_the_image_does_not_run_as_root() -> None:
    user, group = instructions("USER")[-1].split(":")
    assert (int(user), int(group)) == (10001, 10001)
    assert f"--uid {user}" in DOCKERFILE


def test_caches_are_in_the_one_writable_folder() -> None:
    environment = image_environment()
    folders = {environment[name] for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME")}
    assert {Path(folder).parts[1] for folder in folders} == {"cache"}


def test_the_image_runs_existing_commands() -> None:
    assert instructions("ENTRYPOINT") == ['["python", "-m", "service"]']
    assert instructions("CMD") == ['["serve"]']
    (check,) = re.findall(r'CMD \["python", "-m", "service", "(\w+)"\]', DOCKERFILE)
    assert check in COMMANDS


def test_a_change_of_code_rebuilds_only_the_last_layers() -> None:
    final = re.findall(r"^(?!ARG|LABEL)([A-Z]+ \S+ \S+)", DOCKERFILE.split(" AS final")[1], re.MULTILINE)
    assert final[-1].startswith("COPY --from=code")
    packages = DOCKERFILE.split(" AS packages\n")[1].split("\nFROM ")[0]
    assert "COPY requirements.txt" in packages
    assert "service" not in packages


def test_the_build_context_equals_the_copied_files() -> None:
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert sorted(sent) == sorted(copied)
    assert [name for name in sent if not (ROOT / name).exists()] == []


def test_packages_are_installed_by_hash_and_torch_for_cpus_from_one_index() -> None:
    pip = re.compile(r"(?:pip install|\badd) ([-\"].*?)(?:;|&&|$)")
    commands = [command for line in instructions("RUN") for command in pip.findall(line)]
    assert len(commands) >= 5
    for command in commands:
        # The version with its build, such as 2.13.0+cpu: no other index than torch's can have it.
        assert "--require-hashes" in command or command.strip().endswith('"${torch}"'), command
    assert "^torch==' requirements.txt)+${build}" in DOCKERFILE
    assert "EXTRA_INDEX" not in DOCKERFILE
    assert "extra-index" not in DOCKERFILE


@pytest.mark.parametrize("name", sorted(BUILD_ARGS))
def test_every_source_of_a_build_is_an_argument_that_the_docs_and_make_know(name: str) -> None:
    assert any(line.split("=")[0] == name for line in instructions("ARG"))
    assert f"`{name}`" in (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    assert name in re.findall(r"^BUILD_ARGS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()


def test_compose_runs_an_image_that_is_named_instead_of_a_build() -> None:
    names = [file["services"]["erlangshen"]["image"] for file in (COMPOSE, GPU)]
    assert names == [f"${{ERLANGSHEN_IMAGE:-{IMAGE}}}", f"${{ERLANGSHEN_IMAGE:-{IMAGE}-cuda}}"]


def test_one_version_everywhere() -> None:
    tags = []
    tags += [
        f"{image['name']}:{image['newTag']}"
        for file in sorted(K8S.glob("overlays/*/kustomization.yaml"))
        for image in yaml.safe_load(file.read_text()).get("images", [])
    ]
    assert tags
    assert set(tags) == {IMAGE, f"{IMAGE}-cuda"}


# Compose


def test_the_docker_folder_has_no_python_files() -> None:
    assert list((ROOT / "docker").rglob("*.py")) == []


@pytest.mark.parametrize("compose", [(COMPOSE,), (COMPOSE, GPU)], ids=["cpu", "gpu"])
def test_compose_sets_existing_settings(compose: tuple[dict[str, Any], ...]) -> None:
    assert load(environ=service_environment(*compose)).log.format == "json"


def test_compose_waits_for_the_drain() -> None:
    server = load(environ=service_environment(COMPOSE)).server
    grace_s = int(COMPOSE["services"]["erlangshen"]["stop_grace_period"].removesuffix("s"))
    assert grace_s > server.drain_delay_s + server.drain_timeout_s + LAST_RESPONSES_S


def test_mounts_of_compose_exist() -> None:
    for service in COMPOSE["services"].values():
        for source, *_ in (volume.split(":") for volume in service["volumes"]):
            assert source in COMPOSE["volumes"] or (ROOT / "docker" / source).is_dir(), source


def test_every_port_is_bound_to_loopback() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service["ports"]]
    assert len(published) == len(COMPOSE["services"])
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_monitoring_uses_the_names_of_the_compose_services() -> None:
    scraped = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text())
    (ours,) = [job for job in scraped["scrape_configs"] if job["job_name"] == "erlangshen"]
    assert ours["static_configs"] == [{"targets": [f"erlangshen:{image_environment()['ERLANGSHEN_SERVER__PORT']}"]}]
    sources = yaml.safe_load((ROOT / "docker/grafana/provisioning/datasources/prometheus.yml").read_text())
    hosts = {re.sub(r"http://(\w+):\d+", r"\1", source["url"]) for source in sources["datasources"]}
    assert hosts <= COMPOSE["services"].keys()


def test_the_provisioned_folder_of_dashboards_is_the_mounted_one() -> None:
    provider = yaml.safe_load((ROOT / "docker/grafana/provisioning/dashboards/erlangshen.yml").read_text())
    (folder,) = [one["options"]["path"] for one in provider["providers"]]
    assert f"./grafana/dashboards:{folder}:ro" in COMPOSE["services"]["grafana"]["volumes"]
    assert list((ROOT / "docker/grafana/dashboards").glob("*.json"))
