"""`python -m service doctor`: what this machine has, what the models make of it, and what to change.

Loads each model as a worker process does, with the self-test of its kernels, and measures it for some seconds. The
report is what a bug report needs: it holds no text, no key, no path, no name of the host and none of a user's model.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import socket
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from service import host, logs
from service.checkpoints.checkpoint import Checkpoint
from service.checkpoints.folders import SHIPPED
from service.checkpoints.spec import ModelSpec
from service.cli_args import add_setting_flags, settings_from
from service.commands.launching import devices_of, threads_of
from service.commands.models import fetch_checkpoint, parse_specs
from service.domain import Check
from service.errors import ServiceError
from service.replicas.process import environment
from service.settings import VERSION, Settings
from service.settings_sources import weight_cache_folder

logger = logging.getLogger(__name__)

Report = dict[str, Any]


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service doctor",
        description="Check hardware, libraries and kernels with these settings, and say what to change. "
        "Exits with 1 if a model cannot be loaded or a kernel fails the self-test.",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON, for a bug report")
    add_setting_flags(parser)
    args = parser.parse_args(argv)
    settings = settings_from(args)
    logs.configure("warning", settings.log.format)
    report = examine(settings)
    print(json.dumps(report, indent=2) if args.json else format_report(report))
    return int(any(is_failed(model) for model in report["models"]))


def examine(settings: Settings) -> Report:
    """The whole report."""
    specs, devices = parse_specs(settings.models), devices_of(settings.replicas)
    threads = threads_of(settings.replicas, len(devices))
    os.environ.update(environment(threads))  # as a worker process has it; torch is imported after this line
    from service.engine.build import describe_build, describe_gpus

    report: Report = {
        "version": VERSION,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {
            "name": host.cpu_name(),
            "cores": host.num_cores(),
            "features": sorted(host.cpu_features()),
            "may_execute_written_memory": host.may_execute_written_memory(),
        },
        "memory_bytes": host.process_memory().total,
        "gpus": describe_gpus(),
        "build": describe_build(),
        "settings": {
            "devices": list(devices),
            "precision": settings.replicas.precision,
            "runtime": settings.replicas.runtime,
            "quantization": settings.replicas.quantization,
        },
        "models": [
            _examine_model(name, spec, device, settings)
            for name, spec in zip(_public_names(specs), specs, strict=True)
            for device in dict.fromkeys(devices)
        ],
    }
    return report | {"advice": list(advise(report))}


def _public_names(specs: Sequence[ModelSpec]) -> list[str]:
    """The names of models that ship; others may say more than a user wants to publish, and get a number."""
    return [
        spec.name if spec.name in SHIPPED and spec.source == spec.name else f"model {number}"
        for number, spec in enumerate(specs, start=1)
    ]


def _examine_model(name: str, spec: ModelSpec, device: str, settings: Settings) -> Report:
    report: Report = {"model": name, "device": device}
    try:
        checkpoint = fetch_checkpoint(spec, settings.models)
        report |= {"family": checkpoint.family, "kind": checkpoint.kind, "shape": asdict(checkpoint.shape)}
        return report | _load(checkpoint, device, settings)
    except ServiceError as error:
        return report | {"failed": _anonymous(redact(error.detail), spec, name)}
    except Exception as error:  # whatever it is, the rest of the report helps to find it
        logger.exception("model could not be examined", extra={"device": device})
        return report | {"failed": _anonymous(redact(f"{type(error).__name__}: {error}"), spec, name)}


def _anonymous(text: str, spec: ModelSpec, name: str) -> str:
    """The text with the public name of a model in place of the user's and of its source."""
    return re.sub(rf"(?<!\w)(?:{re.escape(spec.source)}|{re.escape(spec.name)})(?!\w)", name, text)


def _load(checkpoint: Checkpoint, device: str, settings: Settings) -> Report:
    from service.engine.engine import Engine
    from service.tasks.sample_rows import sample_rows
    from service.tasks.text_model import TextModel

    times: dict[str, float] = {}
    before = host.process_memory().allocated
    load = partial(
        Engine.load,
        checkpoint,
        device=device,
        precision=settings.replicas.precision,
        runtime=settings.replicas.runtime,
        quantization=settings.replicas.quantization,
        weight_cache=weight_cache_folder(settings.models.weight_cache_dir),
        sample_rows=lambda: sample_rows(TextModel.load(checkpoint)),
    )
    started = time.perf_counter()
    engine = load()
    times["load_s"] = round(time.perf_counter() - started, 3)
    started = time.perf_counter()
    engine.warm_up()
    times["warm_up_s"] = round(time.perf_counter() - started, 3)
    steps = [
        {"tokens": step.tokens, "rows": step.rows, "ms": round(1e3 * step.seconds, 3)} for step in engine.profile()
    ]
    on_device = engine.device_memory()
    return {
        **times,
        "chosen": {
            "precision": engine.precision,
            "runtime": engine.arithmetic.runtime,
            "linear": engine.arithmetic.linear_class.__name__,
            "attention": engine.backend,
        },
        "measured_ms": {name: round(1e3 * seconds, 3) for name, seconds in engine.arithmetic.times},
        "tried": [_describe_check(check) for check in engine.checks],
        "forwards": steps,
        "memory": {
            "parameters": checkpoint.shape.num_parameters,
            "process_grew_bytes": host.process_memory().allocated - before,
            "device": asdict(on_device) if on_device else None,
        },
    }


def _describe_check(check: Check) -> Report:
    return {
        "kind": check.kind,
        "name": check.name,
        "is_used": check.is_sound,
        "distance": None if check.distance is None else float(f"{check.distance:.3g}"),
        "ms": round(1e3 * check.seconds, 3),
        "reason": redact(check.reason),
    }


def redact(text: str, host_name: str | None = None) -> str:
    """The text without paths and the name of this host."""
    text = re.sub(r"(?<![\w/<])(?:~|\.{1,2})?/[^\s'\",;:)\]]+", "<path>", text)
    name = socket.gethostname() if host_name is None else host_name
    return re.sub(rf"\b{re.escape(name)}\b", "<host>", text) if name else text


def is_failed(model: Mapping[str, Any]) -> bool:
    return "failed" in model or any(not each["is_used"] for each in model["tried"])


def advise(report: Report) -> Iterator[str]:
    """What to change, one sentence or two for each finding."""
    build, gpus, features = report["build"], report["gpus"], set(report["cpu"]["features"])
    quantization, devices = report["settings"]["quantization"], report["settings"]["devices"]
    if build["driver_cuda"] and build["cuda"] is None:
        yield (
            "this machine has an NVIDIA driver, and torch is built without CUDA: take another build "
            "(make serve TORCH_BUILD=cu126, or the image with VARIANT=cuda)"
        )
    elif gpus and "cpu" in devices:
        yield "torch can use a GPU, and the settings name the CPU: leave out --devices cpu"
    elif build["driver_cuda"] and not gpus:
        yield f"torch finds no GPU: the driver is for CUDA {build['driver_cuda']}, torch for {build['cuda']}"
    if not report["cpu"]["may_execute_written_memory"]:
        yield "this process may not execute memory that it has written: leave out MemoryDenyWriteExecute=yes"
    if "cpu" in devices and quantization == "none" and features & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}:
        yield "this CPU has instructions for int8: --quantization int8 may be faster; compare with `evaluate`"
    if any(float(gpu["capability"]) >= 8.9 for gpu in gpus) and quantization == "none":
        yield "this GPU computes in fp8: --quantization fp8 may be faster for large models; compare with `evaluate`"
    for model in report["models"]:
        yield from _advise_model(model, report["memory_bytes"])


def _advise_model(model: Report, memory_bytes: int) -> Iterator[str]:
    where = f"{model['model']} on {model['device']}"
    if "failed" in model:
        yield f"{where} cannot be loaded: {model['failed']}"
        return
    if left_out := [f"{each['kind']} {each['name']}" for each in model["tried"] if not each["is_used"]]:
        yield (
            f"{where}: {', '.join(left_out)} failed the self-test and is not used. Answers are right, and slower: "
            "update torch and the driver, and send this report as JSON"
        )
    on_device = model["memory"]["device"]
    used, total = (
        (on_device["allocated"], on_device["total"])
        if on_device
        else (model["memory"]["process_grew_bytes"], memory_bytes)
    )
    if used > 0.8 * total:
        yield f"{where}: more than 80 % of the memory is in use; large batches will not fit (--quantization int8)"


def format_report(report: Report) -> str:
    build, cpu = report["build"], report["cpu"]
    lines = [
        f"erlangshen-service {report['version']}, Python {report['python']}, {report['system']}",
        f"CPU      {cpu['name'] or 'unknown'}, {cpu['cores']} cores, kernels for {build['cpu_kernels']}, "
        f"{report['memory_bytes'] / 1e9:.1f} GB of memory",
        *(
            f"GPU {number}    {gpu['name']}, compute capability {gpu['capability']}, {gpu['memory_bytes'] / 1e9:.1f} GB"
            for number, gpu in enumerate(report["gpus"])
        ),
        f"driver   {build['driver'] or 'none'}, for CUDA {build['driver_cuda'] or '-'}",
        f"torch    {build['torch']}, for CUDA {build['cuda'] or '-'}, cuDNN {build['cudnn'] or '-'}, "
        f"oneDNN {'yes' if build['onednn'] else 'no'}, ONNX Runtime {build['onnxruntime']}, {build['threads']} threads",
    ]
    for model in report["models"]:
        lines += ["", *_format_model(model)]
    advice = report["advice"] or ["nothing"]
    return "\n".join([*lines, "", "to change:", *(f"- {each}" for each in advice)])


def _format_model(model: Report) -> Iterator[str]:
    yield f"{model['model']} on {model['device']}"
    if "failed" in model:
        yield f"  failed: {model['failed']}"
        return
    chosen, memory = model["chosen"], model["memory"]
    yield (
        f"  chosen   {chosen['precision']} by {chosen['runtime']}, maps {chosen['linear']}, "
        f"attention {chosen['attention']}"
    )
    for name, milliseconds in model["measured_ms"].items():
        yield f"  measured {'a layer by ' + name:28} {milliseconds:9.2f} ms"
    yield f"  start    load {model['load_s']:.2f} s, warm-up {model['warm_up_s']:.2f} s"
    device = memory["device"]
    on_device = f", device {device['allocated'] / 1e6:,.0f} of {device['total'] / 1e6:,.0f} MB" if device else ""
    yield (
        f"  memory   {memory['parameters'] / 1e6:,.1f} M parameters, the process grew by "
        f"{memory['process_grew_bytes'] / 1e6:,.0f} MB{on_device}"
    )
    yield from _format_tried(model["tried"])
    for step in model["forwards"]:
        rate = 1e3 * step["tokens"] / step["ms"] if step["ms"] else 0.0
        size = f"{step['tokens']:6} tokens in {step['rows']:4} rows"
        yield f"  forward  {size} {step['ms']:10.2f} ms {rate:10,.0f} tokens/s"


def _format_tried(tried: Sequence[Report]) -> Iterator[str]:
    """A line for each kernel, but for the sound CUDA graphs, which are many: one for all with the same attention."""
    graphs: dict[str, list[str]] = {}
    for each in tried:
        if each["kind"] == "graph" and each["is_used"]:
            attention, _, num_tokens = each["name"].partition(" ")
            graphs.setdefault(attention, []).append(num_tokens)
        else:
            found = "ok" if each["is_used"] else f"LEFT OUT: {each['reason']}"
            yield f"  tried    {each['kind'] + ' ' + each['name']:28} {each['ms']:9.2f} ms  {found}"
    for attention, sizes in graphs.items():
        yield f"  tried    graphs with {attention} attention, of {', '.join(sizes)} tokens  ok"
