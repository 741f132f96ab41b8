"""Uploads a model's folder to the Hugging Face hub or to ModelScope: exactly the files that `list_files` names."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from huggingface_hub import HfApi, get_token

from service.checkpoints import endpoints
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BIN_FILES,
    CONFIG_FILES,
    SAFETENSORS_FILES,
)
from service.checkpoints.folders import is_local, is_shipped
from service.checkpoints.sentence_modules import MODULES_FILE, list_modules
from service.errors import SettingError, StartupError
from service.host import install_command, service_command
from service.tools.export.folder import CALIBRATION, MODEL_CARD, MODULE_FILES, TOKENIZER_FILES

Target = Literal["hub", "modelscope"]
DEFAULT_REVISIONS: dict[Target, str] = {"hub": "main", "modelscope": "master"}
MODELSCOPE = "modelscope_hub"
MODELSCOPE_VERSION = "0.5.1"

_NAMES = frozenset(
    (
        *CONFIG_FILES,
        *SAFETENSORS_FILES,
        *BIN_FILES,
        ADAPTER_CONFIG,
        ADAPTER_WEIGHTS,
        MODEL_CARD,
        CALIBRATION,
        "LICENSE",
        "model.onnx",
        "model.onnx.data",
        *TOKENIZER_FILES,
        *MODULE_FILES,
    )
)
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of the repository: `path` in it, and where its content is; `text` is that of a card made here."""

    path: str
    source: Path | None
    num_bytes: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Upload:
    """What goes where. `is_private` counts for a repository that is created."""

    target: Target
    repository: str
    revision: str
    files: tuple[PublishedFile, ...]
    is_private: bool = False
    message: str = "Upload the model"

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)


def plan_upload(
    checkpoint: Checkpoint, target: Target, repository: str, revision: str | None, *, is_private: bool
) -> Upload:
    """Reads nothing but names and sizes.

    Raises:
        SettingError: the repository is no ORG/NAME, or others could not use what would be uploaded.
    """
    if not _REPOSITORY.fullmatch(repository):
        raise SettingError(f"--repo {repository}: wanted ORG/NAME")
    adapter = checkpoint.adapter
    if adapter and (adapter.base is None or is_local(adapter.base) or is_shipped(adapter.base)):
        raise SettingError(
            f"{adapter.config_file}: base_model_name_or_path is {adapter.base!r}, which others do not have; upload the "
            f"merged model: {service_command(f'export {checkpoint.source} --to folder --output DIR')}"
        )
    files = list_files(checkpoint.folder)
    if not any(file.path == MODEL_CARD for file in files):
        card = make_card(checkpoint)
        files = [*files, PublishedFile(MODEL_CARD, None, len(card.encode()), card)]
    return Upload(target, repository, revision or DEFAULT_REVISIONS[target], tuple(files), is_private)


def list_files(folder: Path) -> list[PublishedFile]:
    """The files of a model, by the names that serving knows; no records, checkpoints or logs of a training."""
    paths = [Path(name) for name in sorted(path.name for path in folder.iterdir()) if _is_published(name)]
    if (folder / MODULES_FILE).is_file():
        inner = [path for _, path in list_modules(folder) if path and (folder / path).is_dir()]
        paths += [
            Path(part, name.name)
            for part in inner
            for name in sorted((folder / part).iterdir())
            if _is_published(name.name)
        ]
    return [
        PublishedFile(path.as_posix(), folder / path, (folder / path).stat().st_size)
        for path in paths
        if (folder / path).is_file()
    ]


def _is_published(name: str) -> bool:
    return name in _NAMES or _SHARD.fullmatch(name) is not None


def make_card(checkpoint: Checkpoint) -> str:
    """A model card for a folder without one."""
    pipelines = {
        "sequence-classification": "text-classification",
        "question-answering": "question-answering",
        "masked-lm": "fill-mask",
        "encoder": "sentence-similarity" if checkpoint.embedding else "feature-extraction",
    }
    adapter = checkpoint.adapter
    lines = ["---", "language: zh", f"pipeline_tag: {pipelines[checkpoint.kind]}"]
    lines += ["library_name: peft", f"base_model: {adapter.base}"] if adapter else ["library_name: transformers"]
    lines += ["---", "", f"# {checkpoint.name}", ""]
    about = f"A {checkpoint.family} model ({checkpoint.kind}), {checkpoint.shape.num_layers} layers"
    lines += [f"{about}, a low-rank adapter of `{adapter.base}`." if adapter else f"{about}."]
    if checkpoint.labels:
        lines += ["", "Labels: " + ", ".join(f"`{label}`" for label in checkpoint.labels)]
    return "\n".join(lines) + "\n"


def upload(plan: Upload, *, token_to_mirror: bool = False) -> str:
    """Creates the repository where there is none, uploads the files in one commit, and returns its address.

    Raises:
        StartupError: the SDK is missing, its address is a mirror's, which gets the token only with `token_to_mirror`,
            or the SDK's reason, without any token.
    """
    where = endpoints.hugging_face() if plan.target == "hub" else endpoints.modelscope()
    if where.is_mirror and not token_to_mirror:
        raise StartupError(
            f"--to {plan.target}: {where} {endpoints.NOT_OWN}, and an upload sends it your token; unset "
            f"{where.variable}, or add --token-to-mirror"
        )
    send = {"hub": _to_hub, "modelscope": _to_modelscope}[plan.target]
    if plan.target == "modelscope" and find_spec(MODELSCOPE) is None:
        raise StartupError(
            f"--to modelscope needs {MODELSCOPE}: {install_command(f'{MODELSCOPE}=={MODELSCOPE_VERSION}')}"
        )
    with TemporaryDirectory(prefix="export-") as staged:
        _stage(plan.files, Path(staged))
        return _without_tokens(lambda: send(plan, Path(staged), where.url), plan)


def _stage(files: Iterable[PublishedFile], folder: Path) -> None:
    """The files alone in a folder, as links where the disk is the same."""
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.source is None:
            target.write_text(file.text, encoding="utf-8")
            continue
        try:
            os.link(file.source.resolve(), target)
        except OSError:
            shutil.copyfile(file.source, target)


def _to_hub(plan: Upload, folder: Path, endpoint: str) -> str:
    if get_token() is None:
        raise StartupError("--to hub: there is no token; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi(endpoint=endpoint)
    api.create_repo(plan.repository, private=plan.is_private, exist_ok=True)
    if plan.revision != DEFAULT_REVISIONS["hub"]:
        api.create_branch(plan.repository, branch=plan.revision, exist_ok=True)
    found = api.upload_folder(
        repo_id=plan.repository, folder_path=folder, revision=plan.revision, commit_message=plan.message
    )
    return str(found.commit_url)


def _to_modelscope(plan: Upload, folder: Path, endpoint: str) -> str:
    sdk: Any = import_module(f"{MODELSCOPE}.api")
    api = sdk.HubApi(endpoint=endpoint)  # by itself it reads more variables than the one that was checked
    if not api.repo_exists(plan.repository, "model"):
        api.create_repo(plan.repository, "model", visibility="private" if plan.is_private else "public")
    api.upload_folder(
        plan.repository, "model", folder, revision=plan.revision, commit_message=plan.message, disable_tqdm=True
    )
    return f"https://modelscope.cn/models/{plan.repository}"


def _without_tokens(send: Callable[[], str], plan: Upload) -> str:
    try:
        return send()
    except StartupError:
        raise
    except Exception as error:  # noqa: BLE001 - the SDKs raise many; without the cause, which may hold a token
        reason = endpoints.hide_secrets(f"{type(error).__name__}: {error}")
        raise StartupError(
            f"--to {plan.target}: {plan.repository}: the upload failed ({reason}); the same command tries again, "
            "--dry-run lists what it would upload"
        ) from None
