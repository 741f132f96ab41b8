"""The targets of the Makefile and the CI script."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from service.cli import COMMANDS
from service.settings import VERSION

ROOT = Path(__file__).parents[3]
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)


def dry_run(*arguments: str) -> str:
    """The commands that make would run when nothing is installed, as the environment's folder does not exist."""
    command = ["make", "--dry-run", "VENV=no-such-folder", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout


def test_help_lists_every_target() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    assert [target for target in TARGETS if f"make {target} " not in listed] == []
    assert set(TARGETS) == set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[0].split())


def installs(output: str) -> list[str]:
    """Every installation by pip, without the path of the interpreter."""
    return re.findall(r"pip install (.*)", output)


@pytest.mark.parametrize("target", ["serve", "test", "lint", "mini", "bench", "bench-peers"])
def test_from_nothing_a_target_installs_what_serves_by_hash_and_then_torch(target: str) -> None:
    first, second, *_ = installs(dry_run(target, "DATA=d"))
    assert first.endswith("-r requirements/lock/serve.txt")
    assert "'^torch=='" in second


@pytest.mark.parametrize("target", ["serve", "test", "mini", "bench", "check-deploy", "audit", "sbom", "lock"])
def test_all_but_torch_is_installed_by_hash_and_nothing_is_built(target: str) -> None:
    commands = installs(dry_run("--always-make", target, "DATA=d"))
    assert commands
    for command in commands:
        assert "--only-binary :all:" in command
        assert "--require-hashes --no-deps" in command or "'^torch=='" in command


def test_torch_comes_from_one_index() -> None:
    index = "https://download.pytorch.org/whl/cpu"
    (command,) = [command for command in installs(dry_run("serve", f"TORCH_INDEX={index}")) if "torch==" in command]
    assert f"--index-url {index} " in command
    assert "extra-index" not in MAKEFILE


def test_where_torch_is_not_to_be_had_the_way_to_a_mirror_is_printed(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("pip", "python"):
        script = tmp_path / "bin" / name
        script.write_text('#!/bin/sh\ncase "$*" in *torch==*) exit 1;; esac\n')
        script.chmod(0o755)
    command = [
        "make",
        "serve",
        f"VENV={tmp_path}",
        "TORCH_BUILD=cpu",
        "TORCH_INDEX=https://download.pytorch.org/whl/cpu",
    ]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "torch was not installed from https://download.pytorch.org/whl/cpu" in run.stderr
    assert "make serve TORCH_INDEX=https://MIRROR/whl/cpu" in run.stderr


def test_an_index_of_cpu_builds_is_refused_where_there_is_a_gpu_unless_that_build_is_named() -> None:
    typed = ("serve", "NVIDIA=yes", "TORCH_INDEX=https://mirror/whl/cpu")
    command = ["make", "--dry-run", "VENV=no-such-folder", *typed]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 2
    assert "unset TORCH_INDEX, or name the build: TORCH_BUILD=cpu" in run.stderr
    assert "+cpu" in dry_run(*typed, "TORCH_BUILD=cpu")


@pytest.mark.parametrize(
    ("target", "installed"),
    [
        ("serve", []),
        ("mini", ["train"]),
        ("bench", ["bench"]),
        ("dashboards", ["monitoring"]),
        ("test", ["train", "tracing", "bench", "monitoring", "dev"]),
    ],
)
def test_a_target_installs_no_more_than_it_needs(target: str, installed: list[str]) -> None:
    files = [file for command in installs(dry_run(target, "DATA=d")) for file in re.findall(r"-r (\S+)", command)]
    assert files == [f"requirements/lock/{name}.txt" for name in ["serve", *installed]]


def test_an_image_is_not_built_with_a_password_in_its_history() -> None:
    command = ["make", "--dry-run", "image", "PIP_INDEX_URL=https://me:secret@mirror/simple"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert "PIP_CONF=FILE" in run.stderr
    assert "--build-arg" not in run.stdout
    assert "--build-arg PIP_INDEX_URL=" in dry_run("image", "PIP_INDEX_URL=https://mirror/simple")


def test_make_test_lints_and_runs_the_tests() -> None:
    output = dry_run("test")
    for tool in ("ruff check .", "ruff format --check .", "mypy --strict", "lint-imports", "-m pytest"):
        assert tool in output


def test_make_serve_passes_args_to_the_server() -> None:
    assert "-m service serve --port 9000" in dry_run("serve", "ARGS=--port 9000")


def test_the_audit_is_strict_and_covers_serving_tracing_and_training() -> None:
    output = dry_run("audit")
    assert "pip-audit --strict" in output
    assert "-r requirements.txt -r requirements/tracing.txt -r requirements/train.txt" in output


def test_commands_and_files_in_the_makefile_exist() -> None:
    assert set(re.findall(r"-m service (\w+)", MAKEFILE)) <= set(COMMANDS)
    assert all((ROOT / path).is_file() for path in re.findall(r"service/\S+\.toml", MAKEFILE))
    assert "-m benchmarks.peers" in MAKEFILE
    assert (ROOT / "benchmarks/peers/__main__.py").is_file()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-2:] == ["make sbom", "make test"]


def test_every_command_has_a_file() -> None:
    assert all((ROOT / "service" / "commands" / f"{name}.py").is_file() for name in COMMANDS)


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


def test_an_image_is_built_from_the_sources_that_are_named() -> None:
    names = {"PIP_INDEX_URL": "https://pip.example/simple", "TORCH_BUILD": "cu126", "APT_MIRROR": "http://apt.example"}
    output = dry_run("image", *(f"{name}={value}" for name, value in names.items()), "CA=ca.pem", "PIP_CONF=pip.conf")
    for name, value in names.items():
        assert f'--build-arg {name}="{value}"' in output
    assert '--secret id=ca,src="ca.pem"' in output
    assert '--secret id=pip_conf,src="pip.conf"' in output


def test_an_image_leaves_out_the_sources_that_are_not_named() -> None:
    """The build of torch that `make serve` takes on this machine says nothing about an image."""
    output = dry_run("image", "VARIANT=cuda")
    assert "TORCH" not in output
    assert "--secret" not in output
