"""What storing memory in fewer bits changes about what is found: `python -m bench.storage`.

Passages of the World Factbook are compressed once and kept in an index for each storage. Questions
are asked of all of them. What is found is compared with what the index in bfloat16 finds: the ten
best documents and the first one, as the index ranks, and as `Clara.rerank` orders thirty of them
again, vector by vector. With `--answers`, questions are answered from the memory of the passage
that holds the answer, as each storage gives it back: how many answers are right, and how many are
those from bfloat16. The model computes in float32. Without `--model`, memory is span means of
SmolLM2-135M's embeddings and nothing is trained.

Each finished rate becomes lines of the results. `--table` only prints.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from bench.environment import environment
from bench.memory_options import drawn_examples, measured_model, memory_parser, parsed
from bench.program import results_path, run_on_cpu
from bench.runs import Run, RunFile, read_runs
from clara import Clara, CompressedDocuments
from clara.data.examples import RankingExample
from clara.data.matching import is_exact_match
from clara.index import MemoryIndex
from clara.index.storage import STORAGES
from clara.reports.tables import Table

FILE = "storage.jsonl"
COMPARISON = "storage"
BASELINE = "bfloat16"
MOST = 10  # documents compared
_RERANKED = 30  # that are ordered again
_TOGETHER = 16  # questions
_ANSWER_TOKENS = 32  # at most

Ranked = list[list[str]]
"""Ids of the best documents of each question."""


class Answered(NamedTuple):
    """A question that is answered, from the passage that holds the answer.

    Attributes:
        passage: its place among the passages.
        right: the answer that the data give.
    """

    question: str
    passage: int
    right: str


def passages(examples: Sequence[RankingExample], count: int) -> list[str]:
    """Texts that hold the answers, and others up to a number, each once."""
    right = (example.documents[place] for example in examples for place in example.positives)
    others = (text for example in examples for text in example.documents)
    return list(dict.fromkeys([*right, *others]))[:count]


def answered(
    examples: Sequence[RankingExample], texts: Sequence[str], count: int
) -> list[Answered]:
    """The first questions whose answer is known and stands in one of the passages.

    Raises:
        ValueError: there are fewer than `count`.
    """
    place = {text: at for at, text in enumerate(texts)}
    chosen = []
    for example in examples:
        right = [place[d] for p in example.positives if (d := example.documents[p]) in place]
        if example.answer and right and len(chosen) < count:
            chosen.append(Answered(example.question, right[0], example.answer))
    if len(chosen) < count:
        raise ValueError(f"{len(chosen)} questions can be answered, --answers is {count}")
    return chosen


def compare(
    model: Clara,
    texts: Sequence[str],
    questions: Sequence[str],
    rate: int | None,
    asked: Sequence[Answered] = (),
) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each storage its name and what was found with it.

    "bytes" of a document by `clara.index.sizing`, "error" of its memory (mean of all vectors of
    |stored - given| / |given|), and shares: "found" of the best ten documents that the baseline
    finds, "first" of the questions with the same first document, and both after reranking. With
    `asked` besides "exact", the share of the answers that are right, and "same", of those that
    are the baseline's.
    """
    memory = model.compress(list(texts), compression_rate=rate)
    queries = model.encode_queries(list(questions))
    baseline: tuple[Ranked, Ranked] | None = None
    expected: list[str] | None = None
    for storage in (BASELINE, *(name for name in STORAGES if name != BASELINE)):
        with TemporaryDirectory() as folder:
            index = MemoryIndex.create(
                Path(folder, "index"),
                fingerprint=model.fingerprint,
                memory_tokens=model.config.most_memory_tokens(rate),
                hidden_size=model.hidden_size,
                dtype=model.dtype,
                storage=storage,
                settings=model.config.index_settings(rate),
            )
            index.add(memory)
            rankings = _rankings(model, index, questions, queries)
            baseline = baseline or rankings
            found = {
                "bytes": index.info()["expected_bytes_per_document"],
                "error": _error(index, memory),
            }
            for suffix, ours, theirs in zip(("", "_reranked"), rankings, baseline, strict=True):
                found[f"found{suffix}"] = _shared(ours, theirs)
                found[f"first{suffix}"] = _same_first(ours, theirs)
            if asked:
                answers = _answers(model, index, memory, asked)
                expected = expected or answers
                right = [is_exact_match(a, [each.right]) for a, each in zip(answers, asked)]
                same = [one == two for one, two in zip(answers, expected, strict=True)]
                found["exact"] = sum(right) / len(right)
                found["same"] = sum(same) / len(same)
        yield storage, found


def _rankings(
    model: Clara, index: MemoryIndex, questions: Sequence[str], queries: torch.Tensor
) -> tuple[Ranked, Ranked]:
    """The ranking of the index, and the order of its best after reranking."""
    ranked: Ranked = []
    again: Ranked = []
    for start in range(0, len(questions), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        found = model.find(queries[part], index, min(_RERANKED, len(index)))
        ranked += [[document.id for document in each.documents[:MOST]] for each in found]
        best = model.rerank(questions[part], found, MOST)
        again += [[document.id for document in each.documents] for each in best]
    return ranked, again


def _answers(
    model: Clara, index: MemoryIndex, given: CompressedDocuments, asked: Sequence[Answered]
) -> list[str]:
    """Greedy answers, each from its passage as the index holds it."""
    documents = list(dict.fromkeys(given.document_ids))
    memory = []
    for each in asked:
        wanted = documents[each.passage]
        rows = [row for row, of in zip(given.ids, given.document_ids) if of == wanted]
        memory.append(index.get(rows))
    questions = [each.question for each in asked]
    return model.generate(questions, memory, max_new_tokens=_ANSWER_TOKENS)


def _error(index: MemoryIndex, given: CompressedDocuments) -> float:
    stored = CompressedDocuments.concatenate(index)
    one, two = (torch.cat(each.padded.documents()).float() for each in (stored, given))
    return float(((one - two).norm(dim=1) / two.norm(dim=1)).mean())


def _shared(ours: Ranked, theirs: Ranked) -> float:
    shares = [len({*one} & {*two}) / len(two) for one, two in zip(ours, theirs, strict=True)]
    return sum(shares) / len(shares)


def _same_first(ours: Ranked, theirs: Ranked) -> float:
    same = [one[0] == two[0] for one, two in zip(ours, theirs, strict=True)]
    return sum(same) / len(same)


def storage_table(runs: Sequence[Run]) -> Table:
    """What each storage finds of what bfloat16 finds, for each memory and rate."""
    shares = ("found", "first", "found_reranked", "first_reranked")
    rows = [
        (
            run.names["memory"],
            str(run.names["rate"] or ""),
            run.names["storage"],
            f"{run.found['bytes']:,.0f}",
            f"{run.found['error']:.4f}",
            *(f"{run.found[name]:.3f}" for name in shares),
            *(f"{run.found[name]:.3f}" if name in run.found else "" for name in ("exact", "same")),
        )
        for run in runs
        if run.comparison == COMPARISON
    ]
    head = ("memory", "tokens a vector", "storage", "bytes a document", "error of memory")
    compared = ("of the ten best", "first", "of the ten best, reranked", "first, reranked")
    answers = ("exact match", "same answer")
    return Table("", (*head, *compared, *answers), rows)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = memory_parser(
        "bench.storage",
        "What is found of memory in fewer bits.",
        rates=(4, 16),
        documents=300,
        questions=200,
    )
    parser.add_argument(
        "--answers", type=int, default=0, help="questions that are answered; default: none"
    )
    options = parsed(parser, arguments)
    if options.answers < 0:
        parser.error(f"--answers must be at least 0, got {options.answers}")
    return run_on_cpu("bench.storage", arguments, options.threads, partial(_run, options))


def _run(options: argparse.Namespace, command: str) -> None:
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(storage_table(read_runs(output)).markdown(level=0), end="")
        return
    settings = {
        "documents": options.documents,
        "questions": options.questions,
        "data": options.data.name,
        **({"answers": options.answers} if options.answers else {}),
    }
    finished = RunFile(output, COMPARISON, settings, {**known, "command": command})
    examples = drawn_examples(options.data, options.questions)
    texts = passages(examples, options.documents)
    questions = [example.question for example in examples]
    asked = answered(examples, texts, options.answers)
    model = measured_model(options.model, dtype="float32")
    rates = options.rates if model.config.memory_form == "spans" else [None]
    for rate in rates:
        names: dict[str, Any] = {"memory": options.name, "rate": rate}
        if finished.holds({**names, "storage": [*STORAGES][-1]}):
            continue
        for storage, found in compare(model, texts, questions, rate, asked):
            if not finished.holds({**names, "storage": storage}):
                finished.add({**names, "storage": storage}, found)
                print(f"{options.name}, rate {rate}, {storage}: {found}", flush=True)
    print(f"\n{storage_table(finished.runs).markdown(level=0)}", end="")


if __name__ == "__main__":
    sys.exit(main())
