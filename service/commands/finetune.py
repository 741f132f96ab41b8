"""`python -m service finetune`: fine-tunes a checkpoint on a file or a task, or trains a model by a recipe.

stdout is one JSON document; what a person reads goes to stderr. torch and the packages that only training needs are
imported when a run starts.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from service.checkpoints.files import ADAPTER_WEIGHTS, SAFETENSORS_FILES
from service.commands.data_flags import print_data, source_arguments
from service.commands.finetune_flags import add_arguments, values_from
from service.errors import SettingError, StartupError
from service.host import THREAD_WAITING, install_command, service_command
from service.settings import Models
from service.settings_sources import load

if TYPE_CHECKING:
    from service.tools.training.finetuning import Run
    from service.tools.training.frozen import FrozenVectors
    from service.tools.training.session import Request, Session

TRAINING_PACKAGES = ("transformers", "accelerate", "scipy")
"""Packages that only training needs."""
EXAMPLES = """examples:
  finetune reviews.xlsx --text 评论 --label 情感 --model mini --output runs/reviews
  finetune tnews --data DATA --model IDEA-CCNL/Erlangshen-MegatronBert-1.3B --output runs/tnews --dry-run
"""


def run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="python -m service finetune",
        description="Fine-tune a checkpoint on your labelled data or on a task, or train a model by a recipe.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    args = parser.parse_args(argv)
    require_training_packages()
    for name, value in THREAD_WAITING.items():
        os.environ.setdefault(name, value)
    if args.recipe:
        return _train_by_recipe(args)
    if args.suite:
        return _train_suite(args)
    return _finetune(args, argv)


def require_training_packages() -> None:
    """
    Raises:
        StartupError: a package is not installed; says how to install it.
    """
    missing = [package for package in TRAINING_PACKAGES if find_spec(package) is None]
    if missing:
        raise StartupError(f"finetune needs {', '.join(missing)}: {install_command('-r requirements/train.txt')}")


def _train_by_recipe(args: Namespace) -> int:
    from service.tools.training.recipe import read_recipe
    from service.tools.training.run import train
    from service.tools.training.session import find_start

    if args.data is None or args.output is None:
        raise SettingError("finetune: --recipe needs --data DIR and --output DIR")
    recipe = read_recipe(args.recipe)
    if (recipe.fresh is None) == (args.model is None):
        raise SettingError(f"{args.recipe}: needs either [fresh] or the flag --model, not both")
    start = find_start(args.model, _download_settings(args)) if args.model else None
    metrics = train(recipe, args.data, args.output, start)
    print(json.dumps({"output": str(args.output), **metrics}, ensure_ascii=False, indent=2))
    print(f"to serve it: {service_command(f'serve --model {args.output}')}", file=sys.stderr)
    return 0


def _finetune(args: Namespace, argv: Sequence[str]) -> int:
    from service.tools.training.launch import is_worker, launch
    from service.tools.training.session import prepare

    request = make_request(args)
    seeds = args.seeds or (args.seed,)
    is_first = int(os.environ.get("RANK", "0")) == 0
    session = prepare(_of_seed(request, seeds[0], args.seeds), seeds[0], only_config=args.dry_run)
    if is_first and not (is_worker() and args.devices > 1):  # the parent of the workers has printed it
        _print_session(session)
    if args.dry_run:
        return _print_plan(session)
    if args.devices > 1 and not is_worker():
        _check_run(session, args)
        return launch(argv, args.devices)
    from service.tools.training.finetuning import quieten
    from service.tools.training.frozen import FrozenVectors

    quieten()
    vectors = FrozenVectors()
    results = {}
    for seed in seeds:
        if seed != seeds[0]:
            session = prepare(_of_seed(request, seed, args.seeds), seed)
        results[seed] = _run_one(session, args, vectors)
    if is_first:
        _print_results(results, request, bool(args.seeds))
    return 0


def _train_suite(args: Namespace) -> int:
    from service.commands.suite_training import train_suite
    from service.tools.training.finetuning import quieten
    from service.tools.training.frozen import FrozenVectors
    from service.tools.training.session import prepare

    quieten()
    vectors = FrozenVectors()

    def train_one(one: Namespace) -> dict[str, Any]:
        session = prepare(make_request(one), one.seed, only_config=one.dry_run)
        _print_session(session)
        if one.dry_run:
            return {"plan": _show_plan(session)}
        return {"form": session.problem.form, **_run_one(session, one, vectors)}

    return train_suite(args, train_one)


def make_request(args: Namespace) -> Request:
    """
    Raises:
        SettingError: a flag is missing, or two exclude each other.
    """
    from service.tools.training.run_data import Selection
    from service.tools.training.session import Request

    source = args.source or args.named_source
    if source is None or args.model is None or args.output is None:
        raise SettingError(
            "finetune: wanted FILE or TASK, --model SOURCE and --output DIR; or --recipe FILE, --data and --output"
        )
    if args.source and args.named_source:
        raise SettingError("finetune: wanted FILE, TASK or --task TASK once")
    if args.trials and args.learning_rate is not None:
        raise SettingError("--trials, --learning-rate: choose one")
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    return Request(
        Selection(source, args.data, args.dev, args.dev_share, args.fold, args.k_shot, args.limit, args.test),
        args.model,
        args.output,
        form=args.form,
        wording=args.wording,
        template=args.template,
        question=args.question,
        label_words=args.label_words,
        values=values_from(args),
        micro_batch=args.micro_batch,
        use_checkpointing={"auto": None, "on": True, "off": False}[args.gradient_checkpointing],
        devices=max(workers, args.devices),
        save_adapter=args.save_adapter,
        reading=source_arguments(args),
        downloads=_download_settings(args),
    )


def _download_settings(args: Namespace) -> Models:
    """The settings of `serve` in the environment count here, too: cache, mirror, offline."""
    return load({} if args.hub is None else {"models.hub": args.hub}).models


def _of_seed(request: Request, seed: int, seeds: Sequence[int] | None) -> Request:
    return replace(request, output=request.output / f"seed-{seed}") if seeds else request


def _print_session(session: Session) -> None:
    print_data(session.data.read)
    for line in (*session.data.notes, *session.reasons, _values_line(session)):
        print(f"  {line}", file=sys.stderr)
    sys.stderr.flush()


def _values_line(session: Session) -> str:
    values = session.values.model_dump(exclude_defaults=True) | {
        name: getattr(session.values, name) for name in ("learning_rate", "epochs", "batch_size")
    }
    return "hyper-parameters: " + ", ".join(f"{name} {value}" for name, value in sorted(values.items()))


def _show_plan(session: Session) -> dict[str, Any]:
    """Prints the plan on stderr."""
    from service.tools.training.plan import make_plan, plan_lines

    plan = make_plan(session)
    print("\n".join(plan_lines(plan)), file=sys.stderr)
    return plan


def _print_plan(session: Session) -> int:
    plan = _show_plan(session)
    print(json.dumps(plan, ensure_ascii=False, indent=2))
    return 0 if any(way["fits"] for way in plan["ways"]) else 1


def _check_run(session: Session, args: Namespace) -> None:
    """Refuses what the workers would refuse, before they start."""
    from service.tools.training.run_file import first_difference, open_run, read_run
    from service.tools.training.session import require_memory

    require_memory(session)
    if not args.overwrite:
        identity = _identity(session, args)
        found = read_run(session.request.output)
        if found is None or first_difference(found["identity"], identity):
            open_run(session.request.output, identity, overwrite=False)


def _identity(session: Session, args: Namespace) -> dict[str, Any]:
    """With a search, the rate is what it finds."""
    search = "find" if args.learning_rate == "find" else args.trials
    return session.identity() | ({"search": search} if search else {})


def _run_one(session: Session, args: Namespace, vectors: FrozenVectors) -> dict[str, Any]:
    from service.tools.training.estimate import disk_bytes
    from service.tools.training.finetuning import Run, train
    from service.tools.training.machine import require_disk
    from service.tools.training.outcome import write_outcome
    from service.tools.training.run_file import lock, open_run, read_run
    from service.tools.training.session import require_memory

    output = session.request.output
    run = Run(
        session.start,
        session.problem,
        session.data.train,
        session.data.dev,
        session.values,
        require_memory(session),
        session.load.use_checkpointing,
        output / "tensorboard" if find_spec("tensorboard") else None,
        session.data.test,
        vectors,
    )
    if int(os.environ.get("RANK", "0")) > 0:
        found = None if args.overwrite else read_run(output)
        if found is None or found["result"] is None:
            train(_with_best_rate(run, args), output, None)
        return {}
    with lock(output):
        run_file = open_run(output, _identity(session, args), overwrite=args.overwrite)
        weights = ADAPTER_WEIGHTS if session.request.save_adapter else SAFETENSORS_FILES[0]
        if run_file.result is not None and (output / weights).is_file():
            print(f"{output}: this run is finished; --overwrite trains again", file=sys.stderr)
            return run_file.result
        saves_adapter = session.request.save_adapter
        disk = disk_bytes(session.load.num_parameters, session.load.num_trained, saves_adapter=saves_adapter)
        require_disk(output, disk)
        run_file.about["command"] = sys.argv[1:]
        run_file.write()
        trained = train(_with_best_rate(run, args), output, run_file)
        result = write_outcome(session, trained, run_file)
    for warning in result["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    return result


def _with_best_rate(run: Run, args: Namespace) -> Run:
    """The run with the learning rate that a search finds, if one is asked for."""
    from service.tools.training.search import find_rates, find_steps, search, trial_rates

    if args.learning_rate != "find" and not args.trials:
        return run
    default = run.values.learning_rate
    if args.trials:
        from service.tools.training.finetuning import step_count

        rates, steps = trial_rates(default, args.trials, run.values.seed), step_count(run.values, len(run.train))
    else:
        rates, steps = find_rates(default), find_steps(run)
    rate, _ = search(run, rates, steps)
    return replace(run, values=run.values.model_copy(update={"learning_rate": rate}))


def _print_results(results: dict[int, dict[str, Any]], request: Request, are_several: bool) -> None:
    output = request.output
    if not are_several:
        [found] = results.values()
        print(json.dumps({"output": str(output), **found}, ensure_ascii=False, indent=2))
        print(f"to serve it: {service_command(f'serve --model {output}')}", file=sys.stderr)
        return
    names = list(next(iter(results.values()))["dev"])
    each = {name: [one["dev"][name] for one in results.values()] for name in names}
    summary = {
        name: {"mean": round(mean(values), 4), "sd": round(stdev(values), 4) if len(values) > 1 else 0.0}
        for name, values in each.items()
    }
    runs = {f"seed-{seed}": one["dev"] for seed, one in results.items()}
    print(json.dumps({"output": str(output), "dev": summary, "runs": runs}, ensure_ascii=False, indent=2))
