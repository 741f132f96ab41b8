"""Composition root: creates the parts of the service, and runs their lifecycle: fetch, start, announce, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import platform
import shlex
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any

from service import host, logs
from service.api.label_set_versions import LabelSetVersions
from service.api.memory import MemoryBudget, default_budget
from service.api.openapi import EXAMPLES
from service.api.schemas import EmbeddingInfo, HeadInfo, LabelSetBody, ModelInfo, ModelsReply, ReplicaInfo
from service.batching.batcher import Batcher
from service.batching.fair_threads import FairThreads
from service.batching.latency_model import LatencyModels
from service.batching.result_cache import ResultCache
from service.checkpoints.checkpoint import Checkpoint
from service.commands.launching import devices_of, threads_of
from service.commands.models import fetch_checkpoint, make_progress, parse_specs
from service.errors import ServiceError, SettingError, StartupError
from service.label_preparation import LabelPreparation
from service.metrics import Metrics, new_registry
from service.pipeline import Pipeline
from service.replicas.pool import Pool, replica_names
from service.replicas.process import Launched
from service.replicas.replica import RestartPolicy
from service.replicas.runner import Load, load_engine
from service.settings import VERSION, Settings
from service.settings_sources import weight_cache_folder
from service.stores.batches import BatchStore
from service.stores.files import FileStore, Quotas
from service.stores.label_sets import LabelSets
from service.stores.records import Records
from service.tasks.blend import SHIPPED_BLEND, Blend
from service.tasks.calibration import Calibration, read_calibration, read_own_calibration
from service.tasks.registry import TASKS, names_of, tasks_of
from service.tasks.text_model import TextModel, calibrate, pair
from service.tracing.trace import open_tracer

logger = logging.getLogger(__name__)

GC_THRESHOLD = 10_000
"""New objects before a collection. With Python's 700, a large reply triggers hundreds of them, half of its time."""
STOPPING = "the service is stopping"
NO_KERNELS = (
    "this process may not execute memory that it has written, and the kernels of oneDNN and Triton are written at run "
    "time; in a systemd unit leave out MemoryDenyWriteExecute=yes (SELinux: allow execmem)"
)


class Application:
    """Implements the `ServiceState` of the HTTP layer and the `Drainable` of the server.

    Call `begin` once, and run the server inside `lifespan`. `failure` is set if the start failed. `load` replaces the
    function with which worker processes load an engine. `workers` have been launched for the first replicas.
    """

    def __init__(self, settings: Settings, load: Load | None = None, workers: Sequence[Launched] = ()) -> None:
        self.failure: StartupError | None = None
        self.stopping = asyncio.Event()
        self.is_closed = False
        self._url = ""
        self._on_failure: Callable[[], None] = lambda: None
        self.metrics = Metrics(new_registry())
        tracing = settings.tracing
        self.tracer = open_tracer(
            tracing.endpoint, protocol=tracing.protocol, sample_ratio=tracing.sample_ratio, version=VERSION
        )
        self._settings = settings
        self._weight_cache = weight_cache_folder(settings.models.weight_cache_dir)
        self._load = load or partial(
            load_engine,
            runtime=settings.replicas.runtime,
            quantization=settings.replicas.quantization,
            weight_cache=self._weight_cache,
        )
        self._specs = parse_specs(settings.models)
        self._blend = Blend.read(settings.models.blend or SHIPPED_BLEND)
        self._calibration = read_calibration(settings.models.calibration) if settings.models.calibration else ()
        if not host.may_execute_written_memory():
            raise StartupError(NO_KERNELS)
        self._devices = devices_of(settings.replicas)
        self._threads = threads_of(settings.replicas, len(self._devices))
        self._workers = workers
        self._checkpoints: list[Checkpoint] = []
        self._models: dict[str, TextModel] = {}
        self._pool: Pool | None = None
        self._request_threads = FairThreads(settings.models.tokenizer_threads)
        self._revisions: dict[str, str] = {}
        self._latency_models = LatencyModels(
            metrics=self.metrics,
            max_batch_tokens=settings.batching.max_batch_tokens,
            target_s=settings.batching.batch_target_ms / 1000,
            efficiency=settings.batching.batch_efficiency,
        )
        self._batcher = Batcher(
            latency_models=self._latency_models,
            tracer=self.tracer,
            max_queue_tokens=settings.batching.max_queue_tokens,
            max_wait_s=settings.batching.max_wait_ms / 1000,
            max_age_s=settings.batching.max_age_ms / 1000,
            cache=self._make_cache(),
            label_cache_bytes=settings.batching.label_cache_bytes,
            metrics=self.metrics,
        )
        self.admit = self._batcher.admit
        self.memory = MemoryBudget(
            settings.server.memory_budget_bytes
            or default_budget(host.process_memory().total, settings.server.max_body_bytes)
        )
        self.metrics.watch_request_memory(lambda: self.memory.used, self.memory.max_bytes)
        self.pipeline = Pipeline(
            self._models,
            self._batcher.submit,
            self._request_threads,
            self.metrics,
            max_reply_bytes=settings.server.max_reply_bytes,
            is_kept=self._batcher.is_kept,
        )
        self._preparation = LabelPreparation(self._batcher.submit, self._request_threads, self.metrics)
        stored = open_label_sets(settings)
        self.label_sets = None if stored is None else LabelSetVersions(stored, self.pipeline, self._preparation)
        self.batches = open_batches(settings)
        self.metrics.declare([spec.name for spec in self._specs], replica_names(self._devices), list(TASKS))
        self.metrics.canary_interval.set(settings.replicas.canary_interval_s)
        self.metrics.declare_build(version=VERSION, python=platform.python_version())

    def begin(self, url: str, on_failure: Callable[[], None]) -> None:
        self._url = url
        self._on_failure = on_failure
        models = ", ".join(spec.name for spec in self._specs)
        logger.info("starting", extra={"url": url, "models": models, "devices": ", ".join(self._devices)})

    @asynccontextmanager
    async def lifespan(self, _app: Any) -> AsyncIterator[None]:
        starting = asyncio.create_task(self._start(), name="start")
        try:
            yield
        finally:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            await self._stop()

    # starting

    async def _start(self) -> None:
        try:
            await run_in_daemon_thread(self._fetch)
            self._pool = self._make_pool()
            await self._pool.start(self._batcher.feed)
            if self.label_sets is not None:
                await self._prepare(self.label_sets)
        except StartupError as error:
            self._fail(error)
        except Exception as error:  # whatever the start raises, the process must exit with an error message
            logger.exception("start failed")
            self._fail(StartupError(f"the start failed: {type(error).__name__}; the log has its stack"))
        else:
            self._announce()

    async def _prepare(self, label_sets: LabelSetVersions) -> None:
        """Starts to compute the vectors of the stored label sets."""
        try:
            await label_sets.prepare_all()
        except ServiceError as error:
            logger.warning("label sets are not prepared", extra={"reason": error.detail})

    def _fail(self, error: StartupError) -> None:
        self.failure = error
        self._on_failure()

    def _fetch(self) -> None:
        """Finds or downloads each checkpoint, and reads its vocabulary. Runs in a thread, as downloads take minutes."""
        models = self._settings.models
        for spec in self._specs:
            checkpoint = fetch_checkpoint(spec, models)
            if checkpoint.embedding:
                extra = {"model": spec.name, "pooling": ", ".join(checkpoint.embedding.pooling)}
                logger.info("embedding model", extra={**extra, "normalize": checkpoint.embedding.normalize})
            if checkpoint.head:
                logger.info("classification head", extra={"model": spec.name, **asdict(checkpoint.head)})
            if checkpoint.adapter:
                extra = {"model": spec.name, "base": str(checkpoint.path), "adapter": str(checkpoint.own_folder)}
                logger.info("adapter", extra=extra)
            self._models[spec.name] = model = TextModel.load(checkpoint, self._blend)
            model.label_vectors.max_bytes = self._settings.batching.label_vectors_bytes
            self._checkpoints.append(checkpoint)
            self._revisions[spec.name] = checkpoint.revision or str(checkpoint.own_folder)
            self.metrics.declare_model(
                spec.name,
                family=checkpoint.family,
                kind=checkpoint.kind,
                source=checkpoint.source,
                revision=checkpoint.commit or "",
            )
            self._declare_predictions(self._models[spec.name])
        pair(self._models.values())
        self._calibrate()

    def _calibrate(self) -> None:
        """Gives the models the temperatures in their folders and those of the setting, which count first."""
        own = [read_own_calibration(checkpoint.own_folder, checkpoint.name) for checkpoint in self._checkpoints]
        entries = [*chain.from_iterable(own), *self._calibration]
        calibration = Calibration(entries, partial(names_of, self._models))
        calibrate(self._models.values(), calibration)
        if entries:
            logger.info("calibration", extra={"entries": len(entries), "unused": len(calibration.unused)})
        for entry in calibration.unused:
            logger.warning("calibration of a model that is not served", extra={"models": ", ".join(entry.models)})

    def _declare_predictions(self, model: TextModel) -> None:
        for name in tasks_of(model):
            if TASKS[name].predict is not None and TASKS[name].decides(model):
                self.metrics.declare_predictions(name, model.name, TASKS[name].own_labels(model))

    def _make_cache(self) -> ResultCache | None:
        batching = self._settings.batching
        if not batching.cache_entries:
            return None
        return ResultCache(
            max_entries=batching.cache_entries,
            max_bytes=batching.cache_bytes,
            ttl_s=batching.cache_ttl_s,
            metrics=self.metrics,
            revisions=self._revisions,
        )

    def _make_pool(self) -> Pool:
        replicas = self._settings.replicas
        policy = RestartPolicy(
            threads=self._threads,
            start_timeout_s=replicas.start_timeout_s,
            hang_timeout_s=replicas.hang_timeout_s,
            hang_factor=replicas.hang_factor,
            canary_interval_s=replicas.canary_interval_s,
            max_crashes=replicas.max_crashes,
        )
        return Pool(
            self._checkpoints,
            self._devices,
            metrics=self.metrics,
            policy=policy,
            precision=replicas.precision,
            load=self._load,
            set_up_logs=partial(logs.configure, self._settings.log.level, self._settings.log.format),
            on_progress=make_progress(),
            on_profile=self._latency_models.calibrate,
            on_wrong_answer=self._distrust_results,
            workers=self._workers,
        )

    def _distrust_results(self) -> None:
        self._batcher.distrust_results()
        for model in self._models.values():
            model.label_vectors.clear()

    def _announce(self) -> None:
        # All objects so far are permanent: excluded from collections, which would pause all requests to traverse them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        served = ", ".join(self._models)
        logger.info("ready", extra={"url": self._url, "models": served, "devices": ", ".join(self._devices)})
        if not self._url:  # inside another command, whose standard output is its result
            return
        task, body = first_request(self._models.values())
        path = self._url.removeprefix("unix:")
        url = self._url if path == self._url else f"--unix-socket {shlex.quote(path)} http://localhost"
        key = "-H 'X-API-Key: YOUR-KEY' " if self._settings.security.has_keys else ""
        print(
            f"\nErlangshen Service is ready: {served} on {', '.join(self._devices)}\n"
            + (f"  browse  {url}/\n" if self._settings.server.playground and url == self._url else "")
            + f"  docs    {url}/docs\n"
            f"  try it  curl {url}/v1/{task} {key}-d '{json.dumps(body, ensure_ascii=False)}'\n",
            flush=True,
        )

    # ServiceState

    def why_not_ready(self) -> str | None:
        return STOPPING if self.stopping.is_set() else self.why_not_accepting()

    def why_not_alive(self) -> str | None:
        return self._pool.why_not_alive() if self._pool else None

    def why_not_accepting(self) -> str | None:
        if self.is_closed:
            return STOPPING
        if self._pool is None:
            return "models are being fetched"
        if self._pool.is_ready():
            return None
        states = ", ".join(f"{name} {state}" for name, state in self._pool.states().items())
        return f"no replica is ready ({states})"

    def models(self) -> ModelsReply:
        states = self._pool.states() if self._pool else dict.fromkeys(replica_names(self._devices), "starting")
        left_out = self._pool.left_out() if self._pool else {}
        return ModelsReply(
            models=[self._model_info(checkpoint) for checkpoint in tuple(self._checkpoints)],
            replicas=[
                ReplicaInfo(
                    name=name,
                    device=device,
                    threads=self._threads,
                    state=states[name],
                    left_out=left_out.get(name, []),
                )
                for name, device in zip(replica_names(self._devices), self._devices, strict=True)
            ],
        )

    def _model_info(self, checkpoint: Checkpoint) -> ModelInfo:
        model = self._models[checkpoint.name]
        return ModelInfo(
            name=checkpoint.name,
            source=checkpoint.source,
            revision=checkpoint.revision,
            resolved_revision=checkpoint.commit,
            family=checkpoint.family,
            tokenizer=type(model.tokenizer.model).__name__,
            kind=checkpoint.kind,
            head=_head_info(checkpoint),
            embedding=_embedding_info(checkpoint),
            tasks=tasks_of(model),
            zero_shot=model.can_choose or model.can_match,
            partner=model.partner.name if model.partner else None,
            labels=list(model.own_labels),
            label_source=checkpoint.head.label_source if checkpoint.head else None,
            max_length=model.max_length,
            num_parameters=checkpoint.shape.num_parameters,
            num_layers=checkpoint.shape.num_layers,
            hidden_size=checkpoint.shape.hidden_size,
            ffn_size=checkpoint.shape.ffn_size,
            precision=self._pool.precisions(checkpoint.name) if self._pool else [],
        )

    # stopping

    def give_up(self) -> None:
        """Fails the waiting requests at the end of the drain, while their connections can still send a response."""
        self._batcher.close()

    async def _stop(self) -> None:
        await self._preparation.stop()
        self._batcher.close()
        if self._pool is not None:
            await self._pool.stop()
        self._request_threads.close()
        self.tracer.close()
        logger.info("stopped")


def _head_info(checkpoint: Checkpoint) -> HeadInfo | None:
    head = checkpoint.head
    if head is None:
        return None if checkpoint.kind == "encoder" else HeadInfo(kind=checkpoint.kind)
    return HeadInfo(
        kind=checkpoint.kind,
        num_classes=head.num_classes,
        problem_type=head.problem_type,
        activation=head.activation,
    )


def _embedding_info(checkpoint: Checkpoint) -> EmbeddingInfo | None:
    spec = checkpoint.embedding
    if spec is None:
        return None
    return EmbeddingInfo(
        pooling=list(spec.pooling),
        normalize=spec.normalize,
        dimensions=spec.dimensions,
        max_length=spec.max_length,
        prompts=dict(spec.prompts),
        default_prompt_name=spec.default_prompt_name,
        similarity=spec.similarity,
    )


def open_label_sets(settings: Settings) -> LabelSets[LabelSetBody] | None:
    """Raises SettingError if the folder can be neither created nor read."""
    storage = settings.storage
    if storage.data_dir is None:
        return None
    label_sets = LabelSets(
        storage.data_dir / "label-sets",
        partial(LabelSetBody.model_validate, context=settings.server),
        max_sets=storage.max_label_sets,
        max_labels=storage.max_stored_labels,
        max_bytes=storage.max_stored_bytes,
    )
    try:
        label_sets.open()
    except ServiceError as error:
        raise SettingError(f"storage.data_dir: {storage.data_dir}: {error.detail}") from None
    return label_sets


def open_batches(settings: Settings) -> BatchStore | None:
    """None without a folder, or if it can only be read, as label sets may be."""
    storage = settings.storage
    if storage.data_dir is None:
        return None
    records = Records(storage.data_dir / "batches")
    try:
        records.open()
    except ServiceError as error:
        logger.warning("files and batches are off", extra={"folder": str(records.folder), "reason": error.detail})
        return None
    quotas = Quotas(
        max_file_bytes=storage.max_file_bytes,
        max_files=storage.max_files,
        max_key_bytes=storage.max_files_bytes,
        max_bytes=storage.max_all_files_bytes,
        max_lines=storage.max_batch_lines,
        expiry_s=storage.file_expiry_s,
    )
    return BatchStore(FileStore(records, quotas))


def first_request(models: Iterable[TextModel]) -> tuple[str, dict[str, Any]]:
    """A task and a request body that one of these models can answer, as an example to start with."""
    body = next(iter(EXAMPLES["classify"].requests.values()))
    for model in models:
        if model.can_choose:
            return "classify", body
        if model.kind == "sequence-classification":
            return "classify", {"inputs": body["inputs"]}
        if model.kind == "question-answering":
            return "mrc", EXAMPLES["mrc"].requests["span"]
    return "embed", {"inputs": body["inputs"]}


async def run_in_daemon_thread(call: Callable[[], None]) -> None:
    """Like asyncio.to_thread, but the process can exit while the thread is running."""
    done: Future[None] = Future()
    done.set_running_or_notify_cancel()

    def body() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised by the await
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=body, daemon=True, name="fetch").start()
    await asyncio.wrap_future(done)
