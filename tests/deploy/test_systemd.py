"""The systemd unit: valid, hardened, and with settings that exist."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from service.commands.serving import LAST_RESPONSES_S
from service.settings_sources import load
from tests.deploy.manifests import ROOT

UNIT = ROOT / "systemd" / "erlangshen.service"
TEXT = UNIT.read_text(encoding="utf-8")
EXPOSURE = 2.0
"""`systemd-analyze security` calls less than 2.5 OK, and a service without any hardening 9.6."""
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*words: str) -> str:
    done = subprocess.run(["systemd-analyze", *words, UNIT], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout + done.stderr


@needs_systemd
def test_the_unit_is_valid_but_for_the_program_that_is_not_installed_here() -> None:
    problems = [line for line in analyze("verify").splitlines() if "/opt/erlangshen/.venv" not in line]
    assert problems == []


@needs_systemd
def test_the_unit_is_hardened() -> None:
    found = re.search(r"exposure level for \S+: ([\d.]+)", analyze("security", "--offline=true"))
    assert found is not None
    assert float(found[1]) < EXPOSURE


def test_the_unit_sets_existing_settings_and_waits_for_the_drain() -> None:
    pairs = re.findall(r"(ERLANGSHEN_\w+__\w+)=(\S+)$", TEXT, re.MULTILINE)
    assert pairs
    server = load(environ=dict(pairs)).server
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", TEXT, re.MULTILINE)
    assert int(stop_s) > server.drain_delay_s + server.drain_timeout_s + LAST_RESPONSES_S


def test_the_unit_lets_kernels_be_written_at_run_time() -> None:
    assert "\nMemoryDenyWriteExecute=" not in TEXT
