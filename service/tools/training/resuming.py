"""The checkpoints of a run: which ones are whole, which are kept, and where a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

from service.tools.training.run_file import write_text

MARK = "complete.json"
"""Written after a checkpoint, with the size of each file: without it the writing was interrupted."""
STATE = "trainer_state.json"
OPTIMIZER = ("optimizer.pt", "scheduler.pt")
_PREFIX = "checkpoint-"
_BROKEN = "broken-"


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, newest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdecimal()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def mark_complete(checkpoint: Path) -> None:
    """Makes the files of a checkpoint readable for everyone, and records that they are all there."""
    files = [path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != MARK]
    for path in files:
        path.chmod(0o644)
    write_text(checkpoint / MARK, json.dumps({path.name: path.stat().st_size for path in files}) + "\n")


def is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
        return bool(sizes) and all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def can_resume(checkpoint: Path) -> bool:
    """Whether a run can go on here: `prune` takes the optimizer's state out of an older one."""
    return is_complete(checkpoint) and all((checkpoint / name).is_file() for name in OPTIMIZER)


NUM_KEPT = 2
"""Newest checkpoints that are kept whole: if the newest is damaged, a run goes on from the one before."""


def prune(folder: Path, best: Path | None) -> None:
    """Removes all checkpoints but the newest ones and the best one, of which only the weights stay."""
    for checkpoint in checkpoints_of(folder)[NUM_KEPT:]:
        if best is not None and checkpoint.name == best.name and is_complete(checkpoint):
            _keep_weights(checkpoint)
        else:
            _remove(checkpoint)


def _keep_weights(checkpoint: Path) -> None:
    sizes = json.loads((checkpoint / MARK).read_text(encoding="utf-8"))
    kept = {name: size for name, size in sizes.items() if name not in OPTIMIZER}
    if kept != sizes:
        write_text(checkpoint / MARK, json.dumps(kept) + "\n")
    for name in OPTIMIZER:
        (checkpoint / name).unlink(missing_ok=True)


def _remove(checkpoint: Path) -> None:
    """The mark first: a removal that is interrupted leaves an incomplete checkpoint."""
    (checkpoint / MARK).unlink(missing_ok=True)
    for path in checkpoint.iterdir():
        path.unlink()
    checkpoint.rmdir()


def find_start(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint from which a run can go on, and the broken newer ones, which are renamed."""
    broken: list[Path] = []
    for checkpoint in checkpoints_of(folder):
        if can_resume(checkpoint):
            return checkpoint, broken
        if not is_complete(checkpoint):
            aside = _free_name(folder / f"{_BROKEN}{checkpoint.name}")
            checkpoint.rename(aside)
            broken.append(aside)
    return None, broken


def _free_name(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.{number}")
    return free


def locate_best(checkpoint: Path) -> None:
    """Corrects the path of the best checkpoint in the state of `checkpoint`: the folder may have been moved.

    A best one that is not there is forgotten: the run finds its best among the ones to come and the one it starts from.
    """
    file = checkpoint / STATE
    state = json.loads(file.read_text(encoding="utf-8"))
    if not (best := state.get("best_model_checkpoint")):
        return
    here = checkpoint.parent / Path(best).name
    if is_complete(here):
        state["best_model_checkpoint"] = str(here)
    else:
        state |= {"best_model_checkpoint": None, "best_metric": None, "best_global_step": None}
    write_text(file, json.dumps(state, indent=2) + "\n")
    mark_complete(checkpoint)
