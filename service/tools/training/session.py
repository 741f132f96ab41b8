"""A fine-tuning run before it starts: its data, form, hyper-parameters and identity, and what it needs of the machine.

Nothing is loaded here but the data and the tokenizer: bad flags and data fail within seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from service.checkpoints import folders
from service.checkpoints.checkpoint import Checkpoint, resolve
from service.checkpoints.spec import parse_spec
from service.errors import InvalidRequest, SettingError
from service.host import cpu_features, num_cuda_devices, service_command
from service.settings import Models
from service.tasks.text_model import TextModel
from service.tools.data.converters import Example
from service.tools.data.own import OwnData
from service.tools.training import estimate, machine
from service.tools.training.hyperparameters import ALL_LAYERS, Hyperparameters, choose
from service.tools.training.recipe import Form
from service.tools.training.run_data import RunData, Selection, read_data
from service.tools.training.run_file import Json, digest_examples, digest_model
from service.tools.training.samples import Problem, Target
from service.tools.training.wordings import Profile, Wording, make_wording, profile_of, wording_of

FEW = 50
"""Examples of a class, below which a choice model learns more of them than a new head does (docs/finetuning.md)."""
MANY_OPTIONS = 40
"""With more, the options leave little of a row for the text."""
CHOICE_NAMES = ("unimc", "mini")
"""In the names of models that were trained as choice models."""
NATIVE_BF16 = ("avx512_bf16", "amx_bf16", "amx-bf16", "bf16")


@dataclass(frozen=True, slots=True)
class Request:
    """What the command line asks for. `values` are hyper-parameters, None where no flag sets them."""

    selection: Selection
    model: str
    output: Path
    form: Literal["auto", "head", "choice"] = "auto"
    wording: Literal["auto", "mini", "upstream"] = "auto"
    template: str | None = None
    question: str | None = None
    label_words: Path | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    use_checkpointing: bool | None = None
    devices: int = 1
    save_adapter: bool = False
    """Write the adapter of --lora alone."""
    reading: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of `load_source`."""
    downloads: Models = field(default_factory=Models)
    """The settings of downloads; which models are served does not matter."""


@dataclass(frozen=True, slots=True)
class Session:
    """A run that can start. `reasons` are sentences about what was chosen, and why."""

    request: Request
    data: RunData
    start: Checkpoint
    problem: Problem
    values: Hyperparameters
    load: estimate.Load
    micro_batch: int | None
    reasons: tuple[str, ...]

    @property
    def question(self) -> str | None:
        """The question of all examples, if they share one."""
        found = {self.problem.wording.question_of(example) for example in self.data.train}
        return found.pop() if len(found) == 1 else None

    def identity(self) -> Json:
        """What decides the result; devices, micro-batch and checkpointing do not."""
        return {
            "data": {
                "source": self.data.read.source,
                "train": digest_examples(self.data.train),
                "dev": digest_examples(self.data.dev),
                **({"test": digest_examples(self.data.test)} if self.data.test else {}),
            },
            "model": {"source": self.request.model, "weights": digest_model(self.start)},
            "form": self.problem.form,
            "labels": list(self.problem.labels),
            "wording": self.problem.wording.model_dump(exclude_defaults=True),
            **self.values.model_dump(),
        }


def find_start(text: str, models: Models, *, only_config: bool = False) -> Checkpoint:
    """The checkpoint to start from: `mini`, `e5-small`, a folder or a hub id.

    `models` are the settings of downloads. With `only_config` no weights are downloaded.

    Raises:
        CheckpointError, SettingError: there is none, or its config is invalid.
    """
    spec = parse_spec(text, models.hub)
    found = resolve(
        replace(spec, source=folders.locate_shipped(spec.source)),
        cache_dir=models.cache_dir,
        offline=models.offline,
        token_to_mirror=models.token_to_mirror,
        only_description=only_config,
    )
    if found.adapter is not None:
        raise SettingError(
            f"model {text}: an adapter; training starts from a whole model: "
            f"{service_command(f'export {text} --to folder --output DIR')}"
        )
    return found


def prepare(request: Request, seed: int, *, only_config: bool = False) -> Session:
    """
    Raises:
        StartupError: the data, the model or a flag is wrong.
    """
    data = read_data(request.selection, seed, **request.reading)
    start = find_start(request.model, request.downloads, only_config=only_config)
    reasons: list[str] = []
    form = choose_form(request, data, start, reasons, only_config=only_config)
    if form == "head" and data.has_head_form:
        data = data.for_head()
        reasons.append("texts: as CLUE's baselines encode them for a classifier")
    problem = make_problem(request, data.read, form, start, reasons)
    if problem.wording.order:
        data = data.arranged(problem.wording)
        problem = replace(problem, labels=tuple(data.read.labels))
    values = _values(request, problem, start, data, seed)
    load = _load(request, problem, start, values, data.train)
    micro_batch, load = _fit(request, values, load, reasons)
    return Session(request, data, start, problem, values, load, micro_batch, tuple(reasons))


def choose_form(
    request: Request, data: RunData, start: Checkpoint, reasons: list[str], *, only_config: bool = False
) -> Form:
    """
    Raises:
        SettingError: the form does not fit the data.
    """
    read = data.read
    has_own_options = not read.labels and read.kind != "graded"
    if request.form == "head" and data.has_head_form:
        return "head"
    if request.form == "head" and has_own_options:
        raise SettingError("--form head: each example has options of its own; wanted one list of classes")
    if request.form == "choice" and read.kind == "graded":
        raise SettingError("--form choice: the examples have grades instead of classes; wanted --form head")
    if request.form != "auto":
        return request.form
    form, reason = _auto_form(data, start, can_choose=_can_choose(start, only_config), has_own_options=has_own_options)
    reasons.append(f"form: {form}, because {reason}")
    return form


def _auto_form(data: RunData, start: Checkpoint, *, can_choose: bool, has_own_options: bool) -> tuple[Form, str]:
    if data.read.kind == "graded":
        return "head", "the examples have grades"
    if has_own_options and not can_choose and data.has_head_form:
        return "head", f"{start.name} is no masked LM with words for yes and no"
    if has_own_options:
        return "choice", "each example has options of its own"
    if not can_choose:
        return "head", f"{start.name} is no masked LM with words for yes and no"
    num_labels = len(data.read.labels)
    if num_labels > MANY_OPTIONS:
        return "head", f"{num_labels} options leave little of a row for the text"
    if is_choice_model(start):
        return "choice", f"{start.name} was trained as a choice model, which knows the labels by their words"
    each = median(data.read.report.class_counts.values()) * len(data.train) / max(1, len(data.read.examples))
    if each < FEW:
        return "choice", f"there are about {each:.0f} examples of a class: few for a new head"
    return "head", f"there are about {each:.0f} examples of a class"


def is_choice_model(start: Checkpoint) -> bool:
    names = (start.source.lower(), start.name.lower(), start.path.name.lower())
    return start.choice is not None or any(word in name for word in CHOICE_NAMES for name in names)


def _can_choose(start: Checkpoint, only_config: bool) -> bool:
    if start.kind != "masked-lm":
        return False
    return only_config or TextModel.load(start).can_choose


def make_problem(request: Request, read: OwnData, form: Form, start: Checkpoint, reasons: list[str]) -> Problem:
    targets: dict[str, Target] = {"multi-label": "several", "graded": "number"}
    wording = Wording()
    if form == "choice":
        profile = choose_profile(request, start)
        base = wording_of(request.selection.source, profile)
        wording = make_wording(base, question=request.question, template=request.template, words=request.label_words)
        if read.labels and read.task not in ("similarity", "nli"):
            options = wording.options_of(read.labels)
            question = wording.question if wording.question is not None else read.examples[0].question
            shown = "、".join(options[:5]) + ("、..." if len(options) > 5 else "")
            reasons.append(f"options ({profile}): {shown}; question: {question or 'none'}")
    elif request.template or request.label_words:
        raise SettingError("--template, --label-words: word the options of --form choice; a head has none")
    return Problem(form, targets.get(read.kind, "one"), read.task, tuple(read.labels), wording)


def choose_profile(request: Request, start: Checkpoint) -> Profile:
    return request.wording if request.wording != "auto" else profile_of(start.name, start.path.name)


def _values(request: Request, problem: Problem, start: Checkpoint, data: RunData, seed: int) -> Hyperparameters:
    flags = dict(request.values) | {"seed": seed}
    if flags.get("precision") is None:
        flags["precision"] = "bfloat16" if has_bf16() else "float32"
    values = choose(
        form=problem.form,
        task=request.selection.source,
        num_parameters=start.shape.num_parameters,
        num_examples=len(data.train),
        flags=flags,
    )
    _check(values, problem, start)
    if request.save_adapter:
        _check_adapter(values, problem, start)
    return values


def _check_adapter(values: Hyperparameters, problem: Problem, start: Checkpoint) -> None:
    if not values.lora:
        raise SettingError("--save-adapter: needs --lora RANK")
    if problem.form == "head" and start.embedding is not None and start.embedding.pooling == ("mean",):
        raise SettingError(
            f"--save-adapter: a head on {start.name} gets one layer more, which its base does not have; leave it out"
        )


def _check(values: Hyperparameters, problem: Problem, start: Checkpoint) -> None:
    if values.max_length > start.shape.max_positions:
        raise SettingError(f"--max-length {values.max_length}: {start.name} reads at most {start.shape.max_positions}")
    if values.freeze is not None and values.freeze > start.shape.num_layers:
        raise SettingError(f"--freeze {values.freeze}: {start.name} has {start.shape.num_layers} layers")
    if values.freeze == ALL_LAYERS and problem.form == "choice":
        raise SettingError("--freeze all: leaves nothing to train of a choice model; use --form head")
    if values.freeze is not None and values.lora:
        raise SettingError("--freeze, --lora: choose one; LoRA freezes all weights but its own")
    wanted = {"number": ("spearman", "loss"), "several": ("accuracy", "macro-f1", "loss")}
    allowed = wanted.get(problem.target, ("accuracy", "macro-f1", "loss"))
    if not problem.labels and problem.target == "one":
        allowed = ("accuracy", "loss")
    if values.metric is not None and values.metric not in allowed:
        raise SettingError(f"--metric {values.metric}: of this data there are {', '.join(allowed)}")
    if values.loss in ("focal", "smooth") and problem.target != "one":
        raise SettingError(f"--loss {values.loss}: is for data with one class each")
    if values.loss == "balanced" and not problem.labels:
        raise SettingError("--loss balanced: needs data with one list of classes")


def has_bf16() -> bool:
    """Whether this machine computes in bfloat16 faster than in float32."""
    return num_cuda_devices() > 0 or not cpu_features().isdisjoint(NATIVE_BF16)


def mean_length(values: Hyperparameters, problem: Problem, examples: list[Example]) -> tuple[int, int]:
    """Tokens of the mean and of the longest row, of the characters: Chinese has about a token for each."""
    longest = values.max_length or 128
    sampled = examples[:: max(1, len(examples) // 500)]
    lengths = sorted(min(longest, sum(map(len, example.texts)) + 3) for example in sampled)
    options = 0
    if problem.form == "choice":
        try:
            choices = [problem.wording.choice_of(example) for example in sampled[:50]]
        except (InvalidRequest, SettingError):
            choices = []
        options = max((sum(len(option) + 1 for option in choice.options) for choice in choices), default=0)
    mean = round(sum(lengths) / len(lengths)) + options
    return mean, max(mean, min(lengths[-1], longest) + options)


def _load(
    request: Request, problem: Problem, start: Checkpoint, values: Hyperparameters, examples: list[Example]
) -> estimate.Load:
    _, longest = mean_length(values, problem, examples)
    return estimate.Load(
        start.shape,
        problem.form,
        values.batch_size,
        longest,
        values.precision,
        num_trained(start, problem, values),
        request.use_checkpointing is True,
        values.freeze == ALL_LAYERS,
    )


def num_trained(start: Checkpoint, problem: Problem, values: Hyperparameters) -> int:
    shape = start.shape
    head = shape.hidden_size * (shape.hidden_size + 1) if problem.form == "head" else 0
    if values.lora:
        return estimate.lora_parameters(shape, values.lora) + head
    if values.freeze == ALL_LAYERS:
        return head
    total = estimate.total_parameters(shape, problem.form)
    if values.freeze is None:
        return total
    return total - shape.vocab_size * shape.hidden_size - values.freeze * shape.num_layer_weights


def _fit(
    request: Request, values: Hyperparameters, load: estimate.Load, reasons: list[str]
) -> tuple[int | None, estimate.Load]:
    """The rows of a forward, with gradient checkpointing where only that fits; None where nothing does."""
    if values.batch_size % request.devices:
        raise SettingError(f"--batch-size {values.batch_size}: is no multiple of --devices {request.devices}")
    if request.micro_batch is not None:
        if values.batch_size % (request.micro_batch * request.devices):
            raise SettingError(
                f"--micro-batch {request.micro_batch}: does not divide --batch-size {values.batch_size} on "
                f"{request.devices} devices"
            )
        return request.micro_batch, load
    available = machine.memory_of_process(request.devices)
    rows = estimate.choose_micro_batch(load, values.batch_size, request.devices, available)
    if rows is None and request.use_checkpointing is None and not load.is_frozen:
        load = replace(load, use_checkpointing=True)
        rows = estimate.choose_micro_batch(load, values.batch_size, request.devices, available)
        if rows is not None:
            reasons.append("gradient checkpointing: the activations of a forward do not fit into the memory")
    if rows is not None and rows * request.devices < values.batch_size:
        reasons.append(f"micro-batch {rows}: {values.batch_size // rows // request.devices} of them make a step")
    return rows, load


def require_memory(session: Session) -> int:
    """The rows of a forward.

    Raises:
        SettingError: not even one row fits; says what would.
    """
    if session.micro_batch is not None:
        return session.micro_batch
    available = machine.memory_of_process(session.request.devices)
    need = estimate.memory(replace(session.load, micro_batch=1)).total
    raise SettingError(
        f"{session.start.name}: training needs {estimate.describe_bytes(need)} of memory, there are "
        f"{estimate.describe_bytes(available)}; try --lora 8, --freeze or a shorter --max-length; --dry-run "
        "shows what fits"
    )
