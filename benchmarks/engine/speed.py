"""How fast models of common shapes are on this device, as a latency model each: what `python -m service plan` reads.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.engine speed --threads 2 --json benchmarks/results/speed_cpu.json
    python -m benchmarks.engine speed --device cuda --json benchmarks/results/speed_h100.json   # a minute or two

Random weights made in place: the time of a forward does not depend on them. The sizes that the service itself measures
after its start are run in each round; the fit is to the medians. The budget is for a target of 0.5 s.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median

import torch
from tqdm import tqdm

from benchmarks.common import about, parser_of, save
from benchmarks.engine.models import SHAPES, make_engine
from service.batching import latency_model
from service.batching.latency_model import LatencyModel
from service.domain import Quantization, Step
from service.engine.engine import Engine
from service.tools.bench.provenance import machine_class
from service.tools.capacity import Speed

TARGET_S = 0.5
"""The default of batching.batch_target_ms."""


def main(argv: Sequence[str]) -> int:
    arguments = _parse(argv)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {arguments.threads} threads"
    wanted = [(shape, way) for shape in arguments.shapes.split(",") for way in arguments.quantization.split(",")]
    speeds = [speed_of(shape, device, name, way, arguments.rounds) for shape, way in tqdm(wanted, "models")]
    arguments.machine = arguments.machine or (name if device.type == "cuda" else machine_class())
    result = {
        "what": "latency models: seconds of a batch, of each of its tokens and of each of its rows; budget in tokens",
        **about(arguments, argv, "torch"),
        "cuda": torch.version.cuda,
        "speeds": [speed.as_json() for speed in speeds],
    }
    for speed in speeds:
        print(f"{speed.model} {speed.precision}: {speed.tokens_per_s(64):,.0f} tokens/s in rows of 64 tokens")
    save(result, arguments.json)
    return 0


def speed_of(shape: str, device: torch.device, name: str, way: Quantization, rounds: int) -> Speed:
    engine = make_engine(SHAPES[shape], device, quantization=way)
    engine.warm_up()
    cost = LatencyModel(list(_medians(engine, rounds))).cost
    assert cost is not None, "a profile has steps"
    precision = engine.precision if way == "none" else way
    return Speed(shape, name, precision, cost, latency_model.choose_budget(cost, TARGET_S))


def _medians(engine: Engine, rounds: int) -> Iterator[Step]:
    """The median of each size that every round reached."""
    seconds: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for step in engine.profile():
            seconds[step.tokens, step.rows].append(step.seconds)
    return (Step(*size, median(times)) for size, times in seconds.items() if len(times) == rounds)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = parser_of("engine speed", __doc__)
    parser.set_defaults(machine="")  # the device decides
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    parser.add_argument("--shapes", default="mini,110M,330M,1.3B", help=f"of {','.join(SHAPES)} (default: %(default)s)")
    parser.add_argument("--quantization", default="none", help="of none,int8,fp8 (default: none)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: 5)")
    return parser.parse_args(argv)
