"""The requests that a server has answered, from its /metrics page: tasks, inputs and tokens of each.

A counter has the tokens of a task, and a histogram the inputs of a request. No metric has the lengths of single rows:
their spread is assumed, and scaled to the mean that was measured.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from service.tools.bench.server_metrics import parse_samples
from service.tools.bench.texts import MAX_CHARACTERS, Lengths
from service.tools.capacity import Speed, Traffic

MAX_ROW_TOKENS = MAX_CHARACTERS
"""Of a simulated row: inputs with more tokens consist of several rows."""

ROW_TOKENS = 50.0
"""Of the rows of full batches by which the speeds of two models are compared."""

Bucket = tuple[float, float]
"""Upper bound, and the number of observations up to it."""


@dataclass(slots=True)
class TaskTraffic:
    """Requests to a task that were answered, also lines of bulk requests, and the tokens that were read for them."""

    task: str = ""
    num_requests: float = 0.0
    num_inputs: float = 0.0
    num_tokens: float = 0.0
    buckets: dict[float, float] = field(default_factory=dict)

    @property
    def inputs_per_request(self) -> float:
        return max(1.0, self.num_inputs / self.num_requests)

    @property
    def tokens_per_request(self) -> float:
        return self.num_tokens / self.num_requests

    @property
    def tokens_per_input(self) -> float:
        return self.tokens_per_request / self.inputs_per_request

    def inputs_at(self, share: float) -> float:
        """A quantile of the inputs of a request, interpolated in its bucket."""
        return max(1.0, quantile(sorted(self.buckets.items()), share))


@dataclass(frozen=True, slots=True)
class Mix:
    """What a server reads, in tokens of one model: the tasks by their numbers of requests, most frequent first."""

    model: str
    tasks: Sequence[TaskTraffic]
    weights: Mapping[str, float] = field(default_factory=dict)
    """Tokens of `model` for which a token of another model counts."""
    not_counted: Sequence[str] = ()
    """Models that have read tokens, too, whose speed is not known."""

    @property
    def num_requests(self) -> float:
        return sum(one.num_requests for one in self.tasks)

    @property
    def tokens_per_request(self) -> float:
        return sum(one.num_tokens for one in self.tasks) / self.num_requests

    def traffic(self, requests_per_s: float, count: int, spread: Lengths, rng: random.Random) -> Traffic:
        """About `count` requests in the proportions of the mix; rows of a task vary like `spread` about its mean."""
        requests: list[list[int]] = []
        for one in self.tasks:
            num = max(1, round(count * one.num_requests / self.num_requests))
            requests += _requests_of(one, num, spread, rng)
        rng.shuffle(requests)
        return Traffic(requests_per_s, requests)


def find_busiest(page: str, speeds: Iterable[Speed]) -> Speed | None:
    """The speed of the model that its tokens have kept busy for the longest time; None if no model has read any."""
    tokens: defaultdict[str, float] = defaultdict(float)
    for sample in parse_samples(page):
        if sample.name == "erlangshen_input_tokens_total":
            tokens[sample.labels["model"]] += sample.value
    busy = [speed for speed in speeds if tokens[speed.model]]
    return max(busy, key=lambda speed: tokens[speed.model] / speed.tokens_per_s(ROW_TOKENS), default=None)


def weigh_tokens(speed: Speed, others: Iterable[Speed]) -> dict[str, float]:
    """Tokens of the model of `speed` that take as long as one token of another model, in full batches."""
    own = speed.tokens_per_s(ROW_TOKENS)
    return {other.model: own / other.tokens_per_s(ROW_TOKENS) for other in others if other.model != speed.model}


def read_mix(page: str, model: str, weights: Mapping[str, float] | None = None) -> Mix | None:
    """The mix in tokens of `model`, of which a token of each model in `weights` counts as some; None if no request with
    such tokens was answered.

    Raises:
        ValueError: the page is not in Prometheus' text format.
    """
    tasks: defaultdict[str, TaskTraffic] = defaultdict(TaskTraffic)
    counted = {**(weights or {}), model: 1.0}
    weighed, not_counted = set(), set()
    for sample in parse_samples(page):
        labels = sample.labels
        match sample.name:
            case "erlangshen_request_inputs_count":
                tasks[labels["task"]].num_requests = sample.value
            case "erlangshen_request_inputs_sum":
                tasks[labels["task"]].num_inputs = sample.value
            case "erlangshen_input_tokens_total" if sample.value and labels["model"] in counted:
                tasks[labels["task"]].num_tokens += sample.value * counted[labels["model"]]
                weighed.add(labels["model"])
            case "erlangshen_input_tokens_total" if sample.value:
                not_counted.add(labels["model"])
            case "erlangshen_request_inputs_bucket":
                tasks[labels["task"]].buckets[float(labels["le"])] = sample.value
    for name, one in tasks.items():
        one.task = name
    read = [one for one in tasks.values() if one.num_requests and one.num_tokens]
    if not read:
        return None
    tasks_by_size = sorted(read, key=lambda one: -one.num_requests)
    return Mix(model, tasks_by_size, {name: counted[name] for name in sorted(weighed - {model})}, sorted(not_counted))


def quantile(buckets: Sequence[Bucket], share: float) -> float:
    """Linear within a bucket; the bound of the last finite one for values above it; 0 without observations."""
    if not buckets or not buckets[-1][1]:
        return 0.0
    wanted = share * buckets[-1][1]
    for (low, before), (high, up_to) in pairwise([(0.0, 0.0), *buckets]):
        if up_to >= wanted and up_to > before:
            return low if math.isinf(high) else low + (high - low) * (wanted - before) / (up_to - before)
    return buckets[-1][0]


def _requests_of(one: TaskTraffic, count: int, spread: Lengths, rng: random.Random) -> list[list[int]]:
    inputs = _scaled([one.inputs_at((index + 0.5) / count) for index in range(count)], one.inputs_per_request, math.inf)
    rows_per_input = math.ceil(one.tokens_per_input / MAX_ROW_TOKENS)
    numbers = [max(1, round(number)) * rows_per_input for number in inputs]
    row_tokens = one.tokens_per_request * count / sum(numbers)
    lengths = iter(_scaled(spread.draw(sum(numbers), rng), row_tokens, MAX_ROW_TOKENS))
    return [[max(1, round(next(lengths))) for _ in range(number)] for number in numbers]


def _scaled(values: Iterable[float], mean: float, limit: float) -> list[float]:
    """The values with this mean, at most `limit` each; a few rounds give the mean in spite of the limit."""
    scaled = list(values)
    for _ in range(8):
        factor = mean * len(scaled) / sum(scaled)
        scaled = [min(limit, value * factor) for value in scaled]
    return scaled
