"""Linters, schemas and hardening checks of other projects. A test is skipped when its tool is missing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import EXAMPLES, K8S, OVERLAYS, ROOT, needs, rendered

KUBERNETES = "1.33"
FOLDERS = [f"overlays/{name}" for name in OVERLAYS]
RENDERED = [*FOLDERS, "examples/side-by-side", "chart", "chart with everything"]


def text_of(name: str) -> str:
    """What kustomize makes of a folder, or Helm of the chart."""
    if not name.startswith("chart"):
        return rendered(name)
    pytest.importorskip("helm_python")
    from tests.deploy.charts import render
    from tests.deploy.test_chart import EVERYTHING

    return yaml.safe_dump_all(render(EVERYTHING if name == "chart with everything" else {}))


def run(*command: str | Path) -> str:
    """The output of the tool; the test fails with it when the tool fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs("hadolint")
def test_the_dockerfile_passes_hadolint() -> None:
    run("hadolint", "Dockerfile")


@needs("check-jsonschema")
def test_the_compose_files_match_their_schema() -> None:
    files = sorted((ROOT / "docker").glob("compose*.yaml"))
    assert files
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *files)


@needs("kubectl")
@pytest.mark.parametrize("folder", [*FOLDERS, *(f"examples/{name}" for name in EXAMPLES)])
def test_kustomize_renders_without_a_warning(folder: str) -> None:
    assert "Warning" not in run("kubectl", "kustomize", K8S / folder)


@needs("kubectl")
def test_the_overlay_in_the_readme_renders(tmp_path: Path) -> None:
    mine = shutil.copytree(K8S, tmp_path / "k8s") / "overlays" / "mine"
    mine.mkdir()
    (block,) = re.findall(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    (mine / "kustomization.yaml").write_text(block)
    output = run("kubectl", "kustomize", mine)
    assert "ERLANGSHEN_BATCHING__CACHE_ENTRIES" in output
    assert {"ServiceMonitor", "HorizontalPodAutoscaler"} <= {one["kind"] for one in yaml.safe_load_all(output)}


@needs("kubectl")
@needs("kubernetes-validate")
@pytest.mark.parametrize("folder", RENDERED)
def test_the_manifests_match_the_schemas_of_kubernetes(folder: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(text_of(folder))
    output = run("kubernetes-validate", "--strict", "--kubernetes-version", KUBERNETES, tmp_path / "all.yaml")
    assert re.search(r"deployment/(\w+-)?erlangshen", output)


@needs("kubectl")
@needs("checkov")
@pytest.mark.parametrize("folder", RENDERED)
def test_the_manifests_pass_checkov(folder: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text(text_of(folder))
    output = run("checkov", "--config-file", K8S / "checkov.yaml", "--file", tmp_path / "all.yaml")
    assert re.search(r"Passed checks: [1-9]\d+, Failed checks: 0", output), output
