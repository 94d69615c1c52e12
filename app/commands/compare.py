"""`loraxs compare`: LoRA, VeRA and LoRA-XS on one task, in a quick fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from analyzers.methods import METHODS
from analyzers.methods.peft_configs import read_config
from app.options.common import Json, Model, Targets, load_plan, open_model, scan_model
from app.options.data import DataOptions
from app.options.execution import ExecutionOptions
from app.options.groups import takes
from app.options.training import TrainingOptions
from app.terminal import print_json, print_table, progress_bar, say
from loraxs_core.errors import SettingsError


@takes("execution", ExecutionOptions)
@takes("examples", DataOptions)
@takes("training", TrainingOptions)
def run(
    model: Model,
    task: Annotated[
        str,
        typer.Option(help="stsb, boolq, gsm8k, …, or data:SOURCE for a file, a folder or a hub id of your own (csv:PATH too)."),
    ] = "stsb",
    methods: Annotated[
        str,
        typer.Option(
            "--methods", "--method", help="Methods, comma-separated; a PEFT configuration's .json is one of your own."
        ),
    ] = "head-only,lora,vera,lora-xs",
    training: TrainingOptions = TrainingOptions(),
    rank: Annotated[int | None, typer.Option(help="Rank of LoRA-XS in every layer.")] = None,
    ranks: Annotated[str | None, typer.Option(help="METHOD=RANK[,METHOD=RANK…]: ranks of the other methods.")] = None,
    plan: Annotated[
        list[Path] | None, typer.Option(help="plan.json for LoRA-XS; may be given several times, one variant each.")
    ] = None,
    ablate: Annotated[
        str | None,
        typer.Option(help="Take LoRA-XS apart: basis, sigma, rank, plan, comma-separated; each against LoRA-XS itself."),
    ] = None,
    targets: Targets = "paper",
    rates: Annotated[
        list[str] | None,
        typer.Option("--learning-rate", help="METHOD=RATE[,RATE…]; with several, the best on validation is reported."),
    ] = None,
    tune_lr: Annotated[
        bool,
        typer.Option(
            "--tune-lr", help="Look for each method's own learning rate first, on training examples that are set aside."
        ),
    ] = False,
    data: Annotated[str | None, typer.Option(help="Folder or file of the task's data, where it needs one.")] = None,
    examples: DataOptions = DataOptions(),
    execution: ExecutionOptions = ExecutionOptions(),
    out: Annotated[Path | None, typer.Option(help="Run folder; a run that was stopped there is continued.")] = None,
    report_to: Annotated[
        str | None,
        typer.Option(help="Tell these of the training as well, comma-separated: tensorboard, wandb, mlflow, trackio."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="The method that the others are set against, seed by seed; as the table calls it, or its name."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start it as a process of its own and return.")] = False,
    json: Json = False,
) -> None:
    """Fine-tune with each method: same data order, same head start, own learning rate. Leaves a run folder."""
    from analyzers.compare import SweepSettings, run_sweep, start_sweep
    from analyzers.compare.writing_room import refuse_no_room, short_of_room

    names, configs = _methods(methods)
    asked = _words(ablate or "")
    settings = SweepSettings(
        model,
        task,
        tuple(names),
        configs=configs,
        ablate=asked,
        **training.settings,
        rank=rank,
        ranks=_ranks(ranks or ""),
        plans=_plans(plan or []) | _ablation_plans(model, rank, targets, asked, json),
        targets=targets,
        learning_rates=_rates(rates or []),
        tune_lr=tune_lr,
        data=data,
        columns=examples.columns,
        **examples.scored,
        **vars(execution),
        report_to=_words(report_to or ""),
    )
    task_there_is = settings.check()
    if task_there_is.remark and not json:
        say(task_there_is.remark)
    writes = task_there_is.definition is not None and task_there_is.definition.writes
    checkpoint = open_model(model, weights=writes, quiet=json)
    refuse_no_room(checkpoint, task_there_is)
    if (short := short_of_room(checkpoint, task_there_is, settings.sequence)) and not json:
        say(short)
    if detach:
        started = start_sweep(settings, out)
        if json:
            print_json({"run": started.path, "state": started.status().state})
        else:
            say(f"Started in {started.path}; the Compare page shows it, and the same command without --detach continues it.")
        return
    from app.results_table import RESULT_COLUMNS, paired_records, say_paired, say_tuned, summary_rows, tuning_records

    with progress_bar(f"Comparing on {task}", quiet=json) as progress:
        finished = run_sweep(settings, out, progress)
    if json:
        summary = finished.summary().to_dict("records")
        trials = finished.results().to_dict("records")
        found = {"summary": summary, "paired": paired_records(finished, baseline), "trials": trials}
        print_json({"model": model, "task": task, "run": finished.path, **found, "tuning": tuning_records(finished)})
        return
    print_table(
        f"{model} on {task}, {training.steps} steps of {training.batch}", RESULT_COLUMNS, summary_rows(finished.summary())
    )
    say_paired(finished, baseline)
    say_tuned(finished)
    for failure in finished.failures():
        say(f"{failure['label']}, seed {failure['seed']}: {failure['error']}")
    for remark in finished.remarks():
        say(remark)
    say(f"Run folder: {finished.path}")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _methods(text: str) -> tuple[list[str], dict]:
    """(names, configurations of the user's own by name): a word that ends in .json is one, called like its file, or like its folder
    where PEFT gave it its name."""
    names, configs = [], {}
    for word in _words(text):
        if word.endswith(".json"):
            path = Path(word)
            name = path.resolve().parent.name if path.stem == "adapter_config" else path.stem
            if name in configs:
                raise SettingsError(f"Two configurations are called {name!r}; rename one of the files.")
            configs[name] = read_config(path)
            word = name
        names.append(word)
    return names, configs


def _ablation_plans(model: str, rank: int | None, targets: str, ablate: list[str], quiet: bool) -> dict:
    """What ``--ablate plan`` sets against uniform ranks."""
    if "plan" not in ablate:
        return {}
    from analyzers.compare.variants import ablation_plans

    checkpoint = open_model(model, weights=True, quiet=quiet)
    return ablation_plans(checkpoint, rank or METHODS["lora-xs"].default_rank, targets, scan_model(checkpoint, quiet=quiet))


def _plans(paths: list[Path]) -> dict:
    plans = {}
    for path in paths:
        if path.stem in plans:
            raise SettingsError(f"Two plans are called {path.stem!r}; rename one of the files.")
        plans[path.stem] = load_plan(path)
    return plans


def _ranks(text: str) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for pair in _words(text):
        method, _, rank = pair.partition("=")
        if not rank.strip().isdecimal():
            raise SettingsError(f"--ranks takes METHOD=RANK[,METHOD=RANK…], such as lora=8,vera=256, not {pair!r}.")
        ranks[method.strip()] = int(rank)
    return ranks


def _rates(pairs: list[str]) -> dict[str, list[float]]:
    rates: dict[str, list[float]] = {}
    for pair in pairs:
        method, equals, values = pair.partition("=")
        try:
            rates[method.strip()] = [float(value) for value in values.split(",")]
        except ValueError:
            equals = ""
        if not equals:
            raise SettingsError(f"--learning-rate takes METHOD=RATE[,RATE…], such as lora=5e-4,1e-3, not {pair!r}.")
    return rates
