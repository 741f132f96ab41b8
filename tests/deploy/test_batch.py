"""The example of a corpus: commands that the flags accept, the image's user, and volumes that are there."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser, Namespace

import pytest

from service.commands.batch import add_arguments
from tests.deploy.manifests import ROOT, Document, needs, one

pytestmark = needs("kubectl")

FOLDER = "examples/batch"


def parsed(words: list[str]) -> Namespace:
    parser = ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


def pods() -> list[Document]:
    cluster = one(FOLDER, "RayJob")["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [one(FOLDER, "Job")["spec"]["template"]["spec"], *(group["template"]["spec"] for group in groups)]


def test_the_job_runs_the_command() -> None:
    (container,) = pods()[0]["containers"]
    assert container["args"][0] == "batch"
    assert parsed(container["args"][1:]).task == "classify"


def test_the_ray_job_runs_the_command_on_its_cluster() -> None:
    words = shlex.split(one(FOLDER, "RayJob")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "service", "batch"]
    assert parsed(words[4:]).ray == "auto"


def test_the_cluster_has_the_version_of_ray_that_is_pinned() -> None:
    pinned = re.search(r"^ray==(.*)$", (ROOT / "requirements/ray.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert one(FOLDER, "RayJob")["spec"]["rayClusterSpec"]["rayVersion"] == pinned[1]


@pytest.mark.parametrize("index", [0, 1, 2], ids=["job", "head", "worker"])
def test_every_pod_is_hardened_and_mounts_what_is_there(index: int) -> None:
    pod = pods()[index]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    (claim,) = [each["persistentVolumeClaim"]["claimName"] for each in pod["volumes"] if each["name"] == "corpora"]
    assert claim == one(FOLDER, "PersistentVolumeClaim")["metadata"]["name"]
