"""`clara train` and `clara plot`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clara.cli.errors import BAD_USAGE, CommandError, user_errors
from clara.cli.options import Json, Stage
from clara.cli.paths import check_backbone, check_model, check_parent
from clara.terminal.printing import one_line, print_json, quiet_libraries


def train(
    context: typer.Context,
    stage: Annotated[Stage, typer.Argument(help="Stage to train.")],
    config: Annotated[Path, typer.Option("--config", help="YAML file with settings.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint, if there is one.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one stage of a model.

    Every setting is also an option, such as --max-steps 20, and overrides the file.
    """
    from clara.training.folder import check_folder
    from clara.training.reading import parse_overrides, read_settings
    from clara.training.settings import SettingsError, check_early

    try:
        settings = read_settings(config, stage.value, parse_overrides(context.args))
    except SettingsError as error:
        raise CommandError(str(error), BAD_USAGE) from error
    with user_errors():
        check_early(settings)
        folder = Path(str(settings.arguments["output_dir"])).expanduser()
        check_folder(folder, resume)
    check_parent(folder / "model")
    if settings.model:
        check_model(settings.model, backbone=settings.backbone)
    else:
        check_backbone(settings.backbone)
    quiet_libraries()
    from clara.training.run import run

    with user_errors():
        outcome = run(stage.value, settings, resume=resume)
    if not outcome.is_main_process:
        return
    if as_json:
        print_json({**asdict(outcome), "model": str(outcome.model)})
        return
    shown = {k: v for k, v in outcome.metrics.items() if k in ("loss", "eval_loss", "recall@1")}
    figures = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
    done = f"{outcome.steps} {'step' if outcome.steps == 1 else 'steps'}"
    print(f"{outcome.model}: {done}{', ' if figures else ''}{figures}")
    for reason, count in sorted(outcome.events.items()):
        print(f"  {one_line(reason)}: {count}")


def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN",
            help="Folder of a training run. Several are drawn as one training, each going on from "
            "the one before.",
        ),
    ],
    begin: Annotated[
        list[int] | None,
        typer.Option(
            "--begin",
            metavar="STEP",
            help="With several runs, once for each: how many steps were done when it began. "
            "Default: 0, then what the runs before have logged.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            help="PNG file. Default: curves.png in the folder of the last RUN.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Draw the curves of a training run."""
    target = output or runs[-1] / "curves.png"
    for run_folder in runs:
        if not (run_folder / "log.jsonl").is_file():
            raise CommandError(f"{run_folder}: is not a training run: it has no log.jsonl")
    if not target.absolute().parent.is_dir():
        raise CommandError(f"{target.parent}: no such folder")
    check_parent(target)
    from clara.training.plot import plot_runs

    with user_errors():
        plot_runs(runs, target, begin or ())
    print(target)
