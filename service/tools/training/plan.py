"""The plan of a run (`--dry-run`): steps, memory, time and disk of the ways to train this model on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.host import num_cores, num_cuda_devices
from service.tools.training import machine
from service.tools.training.estimate import (
    Load,
    MemoryNeed,
    choose_micro_batch,
    describe_bytes,
    describe_seconds,
    disk_bytes,
    flops,
    format_table,
    lora_parameters,
    memory,
    total_parameters,
)
from service.tools.training.finetuning import MAX_DEV, interval, step_count
from service.tools.training.session import Session, mean_length

DEFAULT_RANK = 8


def make_plan(session: Session) -> dict[str, Any]:
    """JSON-ready. `ways` are full, checkpointed and LoRA, whatever the flags choose; the chosen one comes first."""
    values, devices = session.values, session.request.devices
    num_steps = step_count(values, len(session.data.train))
    available = machine.memory_of_process(devices)
    speed = machine.flops_per_s(values.precision) * machine.EFFICIENCY * devices
    mean, longest = mean_length(values, session.problem, session.data.train)
    return {
        "model": session.start.name,
        "parameters": session.load.num_parameters,
        "device": f"{max(1, num_cuda_devices())} GPU" if num_cuda_devices() else f"CPU, {num_cores()} cores",
        "devices": devices,
        "examples": len(session.data.train),
        "steps": num_steps,
        "batch_size": values.batch_size,
        "evaluations": num_steps // interval(values, num_steps),
        "tokens_per_row": {"mean": mean, "longest": longest},
        "memory_bytes": available,
        "disk_free_bytes": machine.free_disk(session.request.output),
        "ways": [_way(session, name, load, num_steps, mean, available, speed) for name, load in _ways(session)],
    }


def _ways(session: Session) -> list[tuple[str, Load]]:
    load, shape = session.load, session.start.shape
    whole = replace(load, num_trained=total_parameters(shape, load.form), is_frozen=False, use_checkpointing=False)
    rank = session.values.lora or DEFAULT_RANK
    head = shape.hidden_size**2 if load.form == "head" else 0
    adapted = replace(whole, num_trained=lora_parameters(shape, rank) + head)
    ways = [
        ("full", whole),
        ("checkpointed", replace(whole, use_checkpointing=True)),
        (f"LoRA {rank}", adapted),
        (f"LoRA {rank}, checkpointed", replace(adapted, use_checkpointing=True)),
    ]
    return ways if any(load == other for _, other in ways) else [("as asked for", load), *ways]


def _way(
    session: Session, name: str, load: Load, num_steps: int, mean: int, available: int, speed: float
) -> dict[str, Any]:
    values = session.values
    rows = choose_micro_batch(load, values.batch_size, session.request.devices, available)
    need: MemoryNeed = memory(replace(load, micro_batch=rows or 1))
    work = flops(replace(load, length=mean), values.batch_size * num_steps)
    evaluations = num_steps // interval(values, num_steps) * min(MAX_DEV, len(session.data.dev)) + len(session.data.dev)
    forward = flops(replace(load, length=mean, is_frozen=True, use_checkpointing=False), evaluations)
    saves_adapter = session.request.save_adapter and name not in ("full", "checkpointed")
    disk = disk_bytes(load.num_parameters, load.num_trained, saves_adapter=saves_adapter)
    is_room = disk <= machine.free_disk(session.request.output)
    return {
        "way": name,
        "is_chosen": load == session.load,
        "trained_parameters": load.num_trained,
        "micro_batch": rows,
        "memory_bytes": need.total,
        "weights_bytes": need.weights,
        "states_bytes": need.states,
        "activations_bytes": need.activations,
        "seconds": round((work + forward) / speed, 1),
        "disk_bytes": disk,
        "fits": rows is not None and is_room,
    }


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan as text."""
    header = ("", "trained", "rows", "memory", "time", "disk", "fits")
    rows = [
        (
            ("* " if way["is_chosen"] else "  ") + way["way"],
            f"{way['trained_parameters'] / 1e6:,.1f} M",
            str(way["micro_batch"] or "-"),
            describe_bytes(way["memory_bytes"]),
            describe_seconds(way["seconds"]),
            describe_bytes(way["disk_bytes"]),
            "yes" if way["fits"] else "no",
        )
        for way in plan["ways"]
    ]
    return [
        f"{plan['model']}: {plan['parameters'] / 1e6:,.1f} M parameters, on {plan['device']} with "
        f"{describe_bytes(plan['memory_bytes'])} of memory for each of {plan['devices']} processes, "
        f"{describe_bytes(plan['disk_free_bytes'])} of disk free",
        f"{plan['steps']} steps of {plan['batch_size']} examples, {plan['evaluations']} evaluations; a row has "
        f"{plan['tokens_per_row']['mean']} tokens, at most {plan['tokens_per_row']['longest']}",
        "",
        *format_table([header, *rows]),
        "",
        "rows: of one forward; time and memory are estimates, the speed is that of a matrix product here",
    ]
