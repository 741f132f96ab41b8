"""A service without torch or processes: real tasks and tokenizers, and a fake `submit` with made-up outputs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import httpx
import numpy as np
from tokenizers import Tokenizer

from service.api.accounts import Key
from service.api.app import create_app
from service.api.auth import KeyStore
from service.api.label_set_versions import SMALL, LabelSetVersions
from service.api.memory import MemoryBudget
from service.api.schemas import LabelSetBody, ModelsReply, ReplicaInfo
from service.batching.fair_threads import FairThreads
from service.batching.jobs import RequestResult
from service.checkpoints.heads import Activation, Head
from service.checkpoints.sentence_modules import EmbeddingSpec
from service.checkpoints.shape import Kind
from service.domain import (
    DEFAULT_OPTIONS,
    Cls,
    Encoding,
    Labels,
    Mean,
    Output,
    Pooled,
    RequestOptions,
    Spans,
    TokenScores,
    TopTokens,
)
from service.label_preparation import LabelPreparation
from service.metrics import Metrics, new_registry
from service.pipeline import Pipeline
from service.settings import Security, Server
from service.stores.batches import BatchStore
from service.stores.label_sets import LabelSets
from service.tasks.blend import SHIPPED_BLEND, Blend
from service.tasks.registry import TASKS
from service.tasks.text_model import TextModel, pair
from service.tasks.tokenizer import SPECIAL, build_tokenizer
from service.tracing.trace import NO_TRACER, Tracer

HIDDEN = 8
CHARACTERS = (
    "是非这家餐厅的菜很好吃服务也周到评差北京中国首都府男人在公园里弹吉他有演奏乐器一个没怎么更换绑定手机号如何修改"
    "体育财经娱乐拍照电池屏幕六七点半房产股票教科技社会时政游戏条退款物流发投诉"
)


@cache
def _vocabulary() -> tuple[dict[str, int], Tokenizer]:
    """Made once: most tests need a model, and a tokenizer does not change."""
    vocab = {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL, *CHARACTERS)))}
    return vocab, build_tokenizer(vocab, {})


def text_model(
    name: str = "mini",
    kind: Kind = "masked-lm",
    labels: tuple[str, ...] = (),
    tasks: tuple[str, ...] = (),
    activation: Activation = "softmax",
    source: str = "",
    embedding: EmbeddingSpec | None = None,
) -> TextModel:
    """A classifier without labels has two classes without names."""
    head = Head(len(labels) or 2, activation=activation) if kind == "sequence-classification" else None
    vocab, tokenizer = _vocabulary()
    return TextModel(
        name=name,
        kind=kind,
        labels=labels,
        tasks=tasks,
        max_length=512,
        tokenizer=tokenizer,
        cls=vocab["[CLS]"],
        sep=vocab["[SEP]"],
        mask=vocab["[MASK]"],
        yes=vocab["是"],
        no=vocab["非"],
        hidden_size=HIDDEN,
        head=head,
        source=source,
        embedding=embedding,
    )


BLEND = replace(Blend.read(SHIPPED_BLEND), background=np.zeros(HIDDEN, dtype=np.float32))


def embedder(blend: Blend = BLEND, **prompts: str) -> TextModel:
    """An embedding model that matches texts with labels."""
    spec = EmbeddingSpec(("mean",), normalize=True, dimensions=HIDDEN, max_length=512, prompts=prompts)
    return replace(text_model("e5", kind="encoder", tasks=("embed",)), embedding=spec, blend=blend)


def served_by_both(*, with_choice: bool = True, with_embedding: bool = True) -> tuple[TextModel, ...]:
    """A choice model and its partner, an embedding model, or one of them."""
    served = (*((text_model(),) if with_choice else ()), *((embedder(),) if with_embedding else ()))
    pair(served)
    return served


def output_of(encoding: Encoding, num_labels: int = 2) -> Output:
    """An output of the readout's shape, in which the first option, label or token is the best, or the last span."""
    match encoding.readout:
        case Cls() | Mean():
            return Output(np.full((1, HIDDEN), 2.0, dtype=np.float32))
        case Pooled(modes):
            return Output(np.full((1, len(modes) * HIDDEN), 2.0, dtype=np.float32))
        case Labels():
            return Output(-np.arange(num_labels, dtype=np.float32)[None])
        case Spans():
            return Output(np.tile(np.arange(encoding.num_tokens, dtype=np.float32), (2, 1)))
        case TokenScores(positions, token_ids):
            scores = -np.arange(len(positions), dtype=np.float32)[:, None]
            return Output(np.broadcast_to(scores, (len(positions), len(token_ids))).copy())
        case TopTokens(positions, k):
            ids = np.tile(np.arange(5, 5 + k, dtype=np.int32), (len(positions), 1))
            return Output(np.tile(np.linspace(0.5, 0.1, k, dtype=np.float32), (len(positions), 1)), ids)


@dataclass
class FakeSubmit:
    """Answers immediately, or once `gate` is set, or raises `error`. Records its calls and cancellations."""

    error: Exception | None = None
    gate: asyncio.Event | None = None
    num_labels: int = 2
    calls: list[list[Encoding]] = field(default_factory=list)
    options: list[RequestOptions] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    num_cancelled: int = 0

    async def __call__(self, encodings: Sequence[Encoding], options: RequestOptions = DEFAULT_OPTIONS) -> RequestResult:
        self.calls.append(list(encodings))
        self.options.append(options)
        self.arrived.set()
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            await self._wait(self.gate)
        return RequestResult([output_of(one, self.num_labels) for one in encodings], 0.002, 0.03)

    async def _wait(self, gate: asyncio.Event) -> None:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise


@dataclass
class Service:
    """The application, a client for it, and the parts that a test controls."""

    submit: FakeSubmit
    metrics: Metrics
    app: Any
    client: httpx.AsyncClient
    reason: list[str]
    memory: MemoryBudget
    versions: LabelSetVersions | None
    stopping: asyncio.Event
    key_store: KeyStore | None

    async def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return await self.client.post(path, json=body, headers=headers)


@dataclass
class FakeState:
    """The state of a service; with a `reason` it is neither ready nor accepting."""

    pipeline: Pipeline
    metrics: Metrics
    reason: list[str]
    models: Callable[[], ModelsReply]
    why_not_alive: Callable[[], str | None]
    admit: Callable[[RequestOptions], None]
    tracer: Tracer = NO_TRACER
    label_sets: LabelSetVersions | None = None
    batches: BatchStore | None = None
    memory: MemoryBudget = field(default_factory=lambda: MemoryBudget(2**28))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def why_not_ready(self) -> str | None:
        return self.reason[0] if self.reason else None

    def why_not_accepting(self) -> str | None:
        return self.why_not_ready()


def models_reply() -> ModelsReply:
    return ModelsReply(models=[], replicas=[ReplicaInfo(name="cpu", device="cpu", threads=2, state="ready")])


@asynccontextmanager
async def running(
    *models: TextModel,
    submit: FakeSubmit | None = None,
    settings: Server | None = None,
    info: Callable[[], ModelsReply] = models_reply,
    clock: Callable[[], float] = time.monotonic,
    alive: Callable[[], str | None] = lambda: None,
    admit: Callable[[RequestOptions], None] = lambda options: None,
    keys: Mapping[str, Key] | None = None,
    security: Security | None = None,
    label_sets: LabelSets[LabelSetBody] | None = None,
    small: int = SMALL,
    batches: BatchStore | None = None,
) -> AsyncIterator[Service]:
    """Runs the application. `keys` are by name; with None, requests need no key."""
    served = {model.name: model for model in models or (text_model(),)}
    submit = submit or FakeSubmit()
    metrics = Metrics(new_registry())
    metrics.declare(list(served), ["cpu"], list(TASKS))
    reason: list[str] = []
    with FairThreads(1, clock) as threads:
        pipeline = Pipeline(served, submit, threads, metrics, clock)
        preparation = LabelPreparation(submit, threads, metrics, clock=clock, retry_s=0.0)
        versions = None
        if label_sets is not None:
            versions = LabelSetVersions(label_sets, pipeline, preparation, clock=clock, small=small)
        state = FakeState(pipeline, metrics, reason, info, alive, admit, label_sets=versions, batches=batches)
        key_store = None if keys is None else KeyStore(dict(keys), None, metrics, clock)
        app = create_app(state, settings or Server(), security or Security(), key_store=key_store, clock=clock)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield Service(submit, metrics, app, client, reason, state.memory, versions, state.stopping, key_store)
        await preparation.stop()
