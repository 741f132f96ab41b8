"""Do the model cards' numbers come out? The commands that train and measure the 1.3B models, with memory and time.

    python -m benchmarks.claims --data DATA --output runs/claims
    make claims DATA=DATA

Where a GPU is, the commands are run one after another, and what is finished is not repeated; elsewhere, or with --list,
they are printed. Memory follows `finetune --dry-run`; the time is a lower bound, that of the operations of training at
half of the peak speed which the vendor gives for the card (--gpu), with rows of the longest length. Nothing of it is
measured.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.common import parser_of
from service.checkpoints.shape import Shape
from service.host import num_cuda_devices
from service.tools.suites import suites
from service.tools.training.estimate import (
    Load,
    choose_micro_batch,
    describe_bytes,
    describe_seconds,
    flops,
    format_table,
    lora_parameters,
    memory,
    total_parameters,
)
from service.tools.training.hyperparameters import choose
from service.tools.training.recipe import Form

BASE = "IDEA-CCNL/Erlangshen-MegatronBert-1.3B"
UNIMC = "IDEA-CCNL/Erlangshen-UniMC-MegatronBERT-1.3B-Chinese"
SIMILARITY = f"{BASE}-Similarity"
SHAPE = Shape(24, 2048, 8, 8192, 21248, 512, 2, 1e-12, "gelu_new")
GPUS = {"a100-40": (40e9, 312e12), "a100-80": (80e9, 312e12), "h100-80": (80e9, 989e12)}
"""Memory, and operations a second in bfloat16 as the vendor gives them."""
EFFICIENCY = 0.5
ROWS = {
    "afqmc": (34_334, 128),
    "tnews": (53_360, 128),
    "iflytek": (12_133, 128),
    "ocnli": (50_437, 128),
    "cmnli": (391_783, 128),
    "cluewsc": (1_244, 128),
    "csl": (20_000, 256),
    "chid": (577_157, 512),
    "c3": (11_869, 512),
    "qbqtc": (180_000, 64),
}
"""Rows to train on, as the publishers count them, and tokens of the longest."""
FEW_ROWS = {"eprstmt": 32, "csldcp": 536, "tnews": 240, "iflytek": 928, "ocnli": 32, "bustm": 32, "chid": 42, "csl": 32}
FEW_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Claim:
    """`rows` are (rows, tokens, epochs) of each task that is trained; none are measured only."""

    title: str
    words: tuple[str, ...]
    form: Form
    rows: tuple[tuple[int, int, float], ...]
    lora: int = 0

    def load(self) -> Load:
        total = total_parameters(SHAPE, self.form)
        trained = lora_parameters(SHAPE, self.lora) + SHAPE.hidden_size**2 if self.lora else total
        longest = max((tokens for _, tokens, _ in self.rows), default=FEW_TOKENS)
        return Load(SHAPE, self.form, 32, longest, "bfloat16", trained, is_frozen=not self.rows)

    def describe(self, gpu: str) -> tuple[str, str, str, str]:
        """Memory, rows of a forward, hours, and whether gradient checkpointing is needed."""
        available, peak = GPUS[gpu]
        load = self.load()
        if not self.rows:
            return f"{2 * load.num_parameters / 1e9:.1f} GB of weights", "-", "minutes", "no"
        rows = choose_micro_batch(load, 32, 1, int(available))
        is_checkpointed = rows is None
        if is_checkpointed:
            load = replace(load, use_checkpointing=True)
            rows = choose_micro_batch(load, 32, 1, int(available))
        if rows is None:
            return describe_bytes(memory(replace(load, micro_batch=1)).total), "-", "-", "does not fit"
        work = sum(flops(replace(load, length=tokens), round(count * epochs)) for count, tokens, epochs in self.rows)
        seconds = work / (peak * EFFICIENCY)
        need = memory(replace(load, micro_batch=rows)).total
        return describe_bytes(need), str(rows), describe_seconds(seconds), "yes" if is_checkpointed else "no"


def _clue(form: Form, *tasks: str) -> tuple[tuple[int, int, float], ...]:
    names = tasks or tuple(task.rpartition("/")[2] for task in suites()["clue"].tasks)
    rows = []
    for name in names:
        if form == "head" and name in ("chid", "c3"):
            continue
        count, tokens = ROWS[name]
        tokens = FEW_TOKENS if (form, name) == ("choice", "iflytek") else tokens  # its 119 options take most of them
        values = choose(form=form, task=name, num_parameters=SHAPE.num_parameters, num_examples=count, flags={})
        rows.append((count, tokens, values.epochs))
    return tuple(rows)


def _few() -> tuple[tuple[int, int, float], ...]:
    counts = [FEW_ROWS.get(task.rpartition("/")[2], 32) for task in suites()["fewclue"].tasks]
    rows = []
    for count in counts * 5:
        values = choose(form="choice", task="", num_parameters=SHAPE.num_parameters, num_examples=count, flags={})
        rows.append((count, FEW_TOKENS, values.epochs))
    return tuple(rows)


def claims(data: str, output: Path) -> Iterator[Claim]:
    """In the order in which they are run: the quick ones first."""
    common = ("--data", data, "--against", "card")
    yield Claim("ZeroCLUE", ("evaluate", "--suite", "zeroclue", "--model", UNIMC, *common), "choice", ())
    yield Claim(
        "FewCLUE, five folds",
        (
            *(
                "finetune",
                "--suite",
                "fewclue",
                "--fold",
                "each",
                "--test",
                "test",
                "--form",
                "choice",
                "--model",
                UNIMC,
            ),
            *("--output", str(output / "fewclue"), *common),
        ),
        "choice",
        _few(),
    )
    small = ("finetune", "--suite", "clue", "afqmc", "--form", "head", "--lora", "8", "--model", BASE)
    yield Claim(
        "AFQMC by LoRA", (*small, "--output", str(output / "lora"), *common), "head", _clue("head", "afqmc"), lora=8
    )
    for form, model in (("head", BASE), ("choice", UNIMC)):
        words = ("finetune", "--suite", "clue", "--form", form, "--model", model)
        kind: Form = "head" if form == "head" else "choice"
        yield Claim(f"CLUE, {form}", (*words, "--output", str(output / f"clue-{form}"), *common), kind, _clue(kind))
    yield Claim(
        "QBQTC",
        (
            *("finetune", "--suite", "semantic-matching", "qbqtc", "--form", "head", "--model", SIMILARITY),
            *(
                "--loss",
                "smooth:0.1",
                "--scheduler",
                "cosine",
                "--warmup",
                "0.2",
                "--lr",
                "4e-5",
                "--weight-decay",
                "0.01",
            ),
            *(
                "--epochs",
                "10",
                "--max-length",
                "64",
                "--metric",
                "macro-f1",
                "--output",
                str(output / "qbqtc"),
                *common,
            ),
        ),
        "head",
        ((*ROWS["qbqtc"], 10.0),),
    )


def table(found: Sequence[Claim], gpu: str) -> list[str]:
    """Of one GPU: what each claim needs."""
    header = ("", "memory", "rows", "time, at least", "checkpointed")
    return format_table([header, *((claim.title, *claim.describe(gpu)) for claim in found)])


def main(argv: Sequence[str]) -> int:
    parser = parser_of("claims", __doc__)
    parser.add_argument(
        "--data", default="DATA", metavar="DIR", help="the folder with the data sets of CLUE and FewCLUE"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/claims"), metavar="DIR")
    parser.add_argument("--gpu", choices=tuple(GPUS), default="a100-80", help="what memory and time are computed for")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")
    arguments = parser.parse_args(argv)
    found = list(claims(arguments.data, arguments.output))
    print("\n".join(table(found, arguments.gpu)))
    print(f"computed for one {arguments.gpu}, bfloat16, batches of 32; nothing of it is measured\n")
    commands = [(sys.executable, "-m", "service", *claim.words) for claim in found]
    for claim in found:
        print(f"# {claim.title}\npython -m service {shlex.join(claim.words)}\n")
    if arguments.list or not num_cuda_devices():
        print("no GPU is here: nothing was run" if not num_cuda_devices() else "nothing was run (--list)")
        return 0
    if not Path(arguments.data).is_dir():
        print(f"--data {arguments.data}: is no folder", file=sys.stderr)
        return 2
    return max([subprocess.run(command, check=False).returncode for command in commands], default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
