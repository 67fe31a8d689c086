"""What bfloat16 and int8 change of memory, ranking and answers: `python -m bench.bfloat16_quality`.

A model in float32 is compared with the same model in bfloat16, and with the one whose weights are
besides in int8, on passages and questions of the World Factbook. Untrained adapters change nothing,
so adapters are drawn: `s B A` has a norm of a thousandth and of a hundredth of the weight's.
`--model` measures a trained model as it is.

Memory is compared after the mean memory is subtracted: a few dimensions are large in all memory,
and hide everything else. Beside it stands the error of the same adapters in bfloat16 as
transformers and peft compute them, not merged.

Each finished norm becomes a line of the results. `--table` only prints.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor

from bench.baselines.reference_way import ReferenceWay
from bench.environment import environment
from bench.program import results_path, run_on_cpu
from bench.runs import Run, RunFile, read_runs
from clara import Clara, ClaraConfig
from clara.backbone.adapters import ADAPTERS
from clara.config import Quantization
from clara.data.examples import ExampleFile, ranking_example
from clara.data.factbook import smollm2_file
from clara.memory.documents import CompressedDocuments
from clara.reports.tables import Table
from clara_kernels import cosine_topk

FILE = "bfloat16-quality.jsonl"
COMPARISON = "bfloat16 quality"
GAP = 0.002
"""Of the two best cosines in float32; where it is smaller, either document may come first."""

INT8 = "int8 "
"""Before the names of the figures of the model whose weights are in int8."""

_TRAINED = "as trained"
_ANSWER_TOKENS = 32  # at most


def draw_adapters(model: Clara, norm: float, seed: int = 0) -> None:
    """Give every adapter of every layer a change `s B A` of the weight's norm times `norm`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.backbone.modules():
            if not isinstance(layer, LoraLayer):
                continue
            for name in ADAPTERS:
                down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
                down.normal_(generator=generator)
                up.normal_(generator=generator)
                change = (layer.scaling[name] * up @ down).norm()
                up.mul_(norm * layer.get_base_layer().weight.norm() / change)


def memory_error(found: Tensor, exact: Tensor) -> float:
    """Relative error of memory `[N, m, H]`, or of all memory tokens `[M, H]`, about the mean."""
    found, exact = found.double(), exact.double()
    return float((found - exact).norm() / (exact - exact.mean(0)).norm())


def same_first(
    exact: tuple[Tensor, Tensor], low: tuple[Tensor, Tensor]
) -> tuple[list[int], int, int]:
    """How often two rankings agree about the first document.

    Args:
        exact, low: vectors of the questions `[B, D]` and of the documents `[N, D]`.

    Returns:
        The first documents in float32, how many questions have a gap of more than `GAP` between
        the first two, and how many of these have the same first document in both.
    """
    scores, order = cosine_topk(*exact, 2)
    first = cosine_topk(*low, 1)[1][:, 0]
    decided = scores[:, 0] - scores[:, 1] > GAP
    same = first[decided] == order[decided, 0]
    return order[:, 0].tolist(), int(decided.sum()), int(same.sum())


def quality(
    exact: Clara,
    low: Clara,
    int8: Clara,
    texts: Sequence[str],
    questions: Sequence[str],
    answers: int,
) -> dict[str, Any]:
    """The figures of a model in float32, in bfloat16 and in int8; see `table` for what they are."""
    memory = exact.compress(texts, overflow="error")
    exact_vectors = _vectors(exact, questions, memory)
    peft = None
    if exact.config.memory_form == "learned":
        peft = memory_error(ReferenceWay(low).compress(texts), memory.memory)
    found: dict[str, Any] = {"peft": peft}
    expected = None
    for name, model in (("", low), (INT8, int8)):
        rounded = model.compress(texts, overflow="error")
        found[f"{name}error"] = memory_error(_rows(rounded), _rows(memory))
        vectors = _vectors(model, questions, rounded)
        first, found["decided"], found[f"{name}same first"] = same_first(exact_vectors, vectors)
        asked, chosen = questions[:answers], [[row] for row in first[:answers]]
        if expected is None:
            expected = _answers(exact, asked, memory, chosen)
        pairs = zip(expected, _answers(model, asked, rounded, chosen), strict=True)
        found[f"{name}same answers"] = sum(one == two for one, two in pairs)
    return found


def _answers(
    model: Clara,
    questions: Sequence[str],
    compressed: CompressedDocuments,
    chosen: Sequence[Sequence[int]],
) -> list[str]:
    """Greedy answers, each from the documents in these places."""
    memory = [compressed[rows] for rows in chosen]
    return model.generate(questions, memory, max_new_tokens=_ANSWER_TOKENS)


def _rows(compressed: CompressedDocuments) -> Tensor:
    """`[N, m, H]`; `[M, H]` where documents differ in length, without padding."""
    documents = [each[:count] for each, count in zip(compressed.memory, compressed.counts)]
    alike = len({len(each) for each in documents}) == 1
    return torch.stack(documents) if alike else torch.cat(documents)


def _vectors(
    model: Clara, questions: Sequence[str], compressed: CompressedDocuments
) -> tuple[Tensor, Tensor]:
    """What cosines are computed of: of the questions and of the documents."""
    documents = model.read_memory(compressed, "memory").vectors(model.config.ranking_rule)
    return model.encode_queries(questions).flatten(1).to(documents.dtype), documents


def table(runs: Sequence[Run]) -> Table:
    """Errors and agreement, a row for each model and norm; in bfloat16, and in int8 beside."""
    rows = []
    for run in (run for run in runs if run.comparison == COMPARISON):
        found, settings = run.found, run.settings
        peft, decided = found["peft"], found["decided"]
        agreement = [
            f"{found[f'{name}{what}']} of {count}"
            for what, count in (("same first", decided), ("same answers", settings["answers"]))
            for name in ("", INT8)
        ]
        rows.append(
            (
                run.names["memory"],
                str(run.names["norm"]),
                f"{found['error']:.4f}",
                "" if peft is None else f"{peft:.4f}",
                "" if peft is None else f"{found['error'] / peft:.2f}",
                f"{found[f'{INT8}error']:.4f}",
                *agreement,
            )
        )
    head = (
        "model",
        "norm of the adapters' change",
        "error of memory",
        "of transformers and peft",
        "ratio",
        "in int8",
        "same first document, where it is decided",
        "in int8",
        "same answers",
        "in int8",
    )
    return Table("", head, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    return run_on_cpu(
        "bench.bfloat16_quality", arguments, options.threads, lambda c: _run(options, c)
    )


def _run(options: argparse.Namespace, command: str) -> None:
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(table(read_runs(output)).markdown(level=0), end="")
        return
    texts, questions = _data(options)
    settings = {
        "documents": len(texts),
        "questions": len(questions),
        "answers": min(options.answers, len(questions)),
        "data": options.data.name,
    }
    finished = RunFile(output, COMPARISON, settings, {**known, "command": command})
    exact, low = _model(options, "float32"), _model(options, "bfloat16")
    int8 = _model(options, "bfloat16", "int8")
    for norm in [_TRAINED] if options.model else options.norms:
        names = {"memory": options.name, "norm": norm}
        if finished.holds(names):
            continue
        if norm != _TRAINED:
            draw_adapters(exact, norm)
            for name in ADAPTERS:
                for model in (low, int8):
                    model.adapters.load_state(name, exact.adapters.state(name))
        figures = quality(exact, low, int8, texts, questions, settings["answers"])
        run = finished.add(names, figures)
        print(f"{options.name}, norm {norm}: {run.found}", flush=True)
    print(f"\n{table(finished.runs).markdown(level=0)}", end="")


def _data(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Distinct passages, and questions in random order."""
    examples = list(ExampleFile(options.data, ranking_example))
    random.Random(0).shuffle(examples)
    texts = list(dict.fromkeys(text for example in examples for text in example.documents))
    questions = list(dict.fromkeys(example.question for example in examples))
    for name, found in (("documents", texts), ("questions", questions)):
        if len(found) < getattr(options, name):
            wanted = getattr(options, name)
            raise ValueError(f"{options.data} has {len(found)} {name}, --{name} is {wanted}")
    return texts[: options.documents], questions[: options.questions]


def _model(
    options: argparse.Namespace, dtype: Any, quantization: Quantization | None = None
) -> Clara:
    settings: dict[str, Any] = {"dtype": dtype, "quantization": quantization}
    if options.model is not None:
        return Clara.from_pretrained(options.model, device="cpu", **settings)
    backbone = options.backbone or smollm2_file()
    return Clara.from_backbone(backbone, ClaraConfig(**settings), device="cpu")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.bfloat16_quality",
        description="What bfloat16 and int8 change on a CPU.",
    )
    parser.add_argument("--model", type=Path, help="folder of a trained model")
    parser.add_argument("--backbone", type=Path, help="default: SmolLM2-135M")
    parser.add_argument("--name", help="what the table calls the model")
    parser.add_argument("--data", type=Path, default=Path("data/factbook/ranking.validation.jsonl"))
    parser.add_argument("--norms", type=float, nargs="+", default=[1e-3, 1e-2])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--questions", type=int, default=500)
    parser.add_argument("--answers", type=int, default=32, help="questions that are answered")
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/PROCESSOR/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there")
    options = parser.parse_args(arguments)
    if (options.model or options.backbone) and options.name is None:
        parser.error("--model and --backbone need --name")
    options.name = options.name or "SmolLM2-135M, random adapters"
    for name, least in (("documents", 2), ("questions", 1), ("answers", 1), ("threads", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
    if not all(norm > 0 for norm in options.norms):
        parser.error(f"--norms must be positive, got {options.norms}")
    return options


if __name__ == "__main__":
    sys.exit(main())
