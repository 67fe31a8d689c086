"""How large builds of an index go, with a stub in the compressor's place: `python -m bench.builds`.

Every passage of the World Factbook and 100,000 entries of WordNet become an index each. Measured
are the build, and what of it is storing; Lance alone, which appends the rows of each commit right
after it was made; a second build, which finds nothing to do; bytes against the formula of
docs/sizing; and a build that is killed half-way and goes on in another process. Memory is random,
of 576 values in bfloat16 and a vector for every 16 tokens. Times are by the clock and of the
processor.

Then a model builds an index of some passages, and compresses the same ones alone, in turns.

Each finished corpus becomes a line of the results. `--table` only prints.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lance
import torch
from torch import Tensor

from bench.environment import environment
from bench.memory_options import measured_model, parsed
from bench.program import results_path, run_on_cpu
from bench.runs import Run, RunFile, read_runs
from clara import Clara
from clara.corpus import Reading
from clara.data.definitions import read_wordnet
from clara.data.factbook.passages import estimated_tokens
from clara.data.records import Document
from clara.index import Changed, Details, MemoryIndex
from clara.index.build import DATA_VERSION
from clara.index.corpus import Advance
from clara.memory.documents import CompressedDocuments
from clara.reports.tables import Table
from clara.sync import Build, Built

FILE = "builds.jsonl"
COMPARISON = "builds"
WITH_MODEL = "World Factbook, with a model"
FINGERPRINT = "0" * 64
_WIDTH = 576
_RATE = 16
_MOST = 64  # memory tokens of a document
_POOL = 4096  # vectors that memory is taken from
_SETTINGS = {
    "memory_form": "spans",
    "ranking": "mean",
    "compression_rate": _RATE,
    "overflow": "chunk",
}
_PAUSE = 0.1  # seconds between two looks at a build that will be killed
_PATIENCE = 3600.0  # seconds
_ROUNDS = 2
_KINDS = ("clock", "processor")


class Stub:
    """Memory of documents from a pool of random vectors; it depends on their texts alone."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._pool = torch.randn(_POOL + _MOST, _WIDTH, generator=generator)

    def __call__(
        self, documents: Sequence[Document], *, on_progress: Callable[[int], None]
    ) -> CompressedDocuments:
        tokens = [estimated_tokens(document.text) for document in documents]
        counts = [min(_MOST, -(-each // _RATE)) for each in tokens]
        memory = torch.zeros(len(documents), max(counts), _WIDTH)
        for row, (document, count) in enumerate(zip(documents, counts, strict=True)):
            begin = zlib.crc32(document.text.encode()) % _POOL
            memory[row, :count] = self._pool[begin : begin + count]
        on_progress(len(documents))
        names = [document.id for document in documents]
        return CompressedDocuments(
            memory=memory,
            ids=names,
            document_ids=names,
            token_counts=tokens,
            texts=[document.text for document in documents],
            titles=[document.title for document in documents],
            fingerprint=FINGERPRINT,
            counts=counts,
        )


class Beside:
    """Appends the rows of each commit of a build with Lance alone, and takes the time of it.

    Attributes:
        lance: how long Lance took, by the clock and of the processor.
        away: how long the build had to wait for it.
        commits: how many there were.
    """

    def __init__(self, index: Path, folder: Path) -> None:
        self._index, self._folder, self._rows = index, folder, 0
        self.lance, self.away = Stopwatch(), Stopwatch()
        self.commits = 0

    def __call__(self, documents: int, detail: str | None = None) -> None:
        """What a build tells of its progress; details come once a commit."""
        if detail is None:
            return
        with self.away:
            rows = lance.dataset(str(self._index)).to_table(offset=self._rows)
            if not len(rows):
                return
            self._rows += len(rows)
            self.commits += 1
            mode = "append" if self._folder.exists() else "create"
            with self.lance:
                lance.write_dataset(
                    rows, str(self._folder), mode=mode, data_storage_version=DATA_VERSION
                )


class Stopwatch:
    """Seconds spent in its `with` blocks: by the clock, and of the processor in all threads."""

    def __init__(self) -> None:
        self.clock = self.processor = 0.0

    def __enter__(self) -> Stopwatch:
        self._begin = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.clock += time.perf_counter() - self._begin[0]
        self.processor += time.process_time() - self._begin[1]


class Watched(MemoryIndex):
    """Takes the time of what a build stores, without reading sources and compressing.

    Attributes:
        storing: that time.
    """

    storing: Stopwatch

    def upsert(
        self,
        compressed: CompressedDocuments,
        details: Mapping[str, Details] | None = None,
        means: Tensor | None = None,
    ) -> Changed:
        with self.storing:
            return super().upsert(compressed, details, means)


def build(
    index: Path, source: Path, advance: Advance | None = None, storing: Stopwatch | None = None
) -> Built:
    """One pass over a file, after which an index holds its documents.

    Args:
        storing: takes the time of what is stored in a new index.
    """

    def create(types: Any) -> MemoryIndex:
        made = Watched.create(
            index,
            fingerprint=FINGERPRINT,
            memory_tokens=_MOST,
            hidden_size=_WIDTH,
            dtype=torch.bfloat16,
            columns=types,
            settings=_SETTINGS,
        )
        made.storing = storing or Stopwatch()
        return made

    there = MemoryIndex.open(index) if index.exists() else None
    return Build(Reading([str(source)]), there, create, Stub()).run(advance)


def write_definitions(path: Path, count: int) -> None:
    """The first entries of WordNet as documents."""
    with path.open("w", encoding="utf-8") as file:
        for entry in read_wordnet()[:count]:
            record = {"id": entry.id, "contents": entry.line, "title": entry.words[0]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def measure(source: Path, folder: Path) -> dict[str, Any]:
    """The figures of a corpus.

    "documents"; "clock" and "processor", the seconds of the build; "stored_clock" and
    "stored_processor", those of storing alone, in so many "commits"; "lance_clock" and
    "lance_processor", of Lance alone; "again_clock" of a second build; "bytes" and
    "expected_bytes" of a document after `compact` and `clean_up`; and of the build that is killed
    the documents "before" and "after" that.

    Raises:
        ValueError: a build did not do what it should have.
    """
    index = folder / "index"
    beside, whole, again = Beside(index, folder / "rows"), Stopwatch(), Stopwatch()
    storing = Stopwatch()
    with whole:
        built = build(index, source, beside, storing)
    found: dict[str, Any] = {
        "documents": built.added,
        "clock": whole.clock - beside.away.clock,
        "processor": whole.processor - beside.away.processor,
        "stored_clock": storing.clock,
        "stored_processor": storing.processor,
        "commits": beside.commits,
        "lance_clock": beside.lance.clock,
        "lance_processor": beside.lance.processor,
    }
    with again:
        second = build(index, source)
    found["again_clock"] = again.clock
    if (second.unchanged, second.added) != (built.added, 0):
        raise ValueError(f"a second build added {second.added:,} documents")
    opened = MemoryIndex.open(index)
    opened.compact()
    opened.clean_up(keep_versions=1)
    info, expected = opened.info(), opened.digests()
    found["bytes"] = info["bytes"] / info["documents"]
    found["expected_bytes"] = info["expected_bytes_per_document"]
    other = folder / "killed"
    found["before"] = build_and_kill(other, source, built.added // 2)
    found["after"] = build(other, source).added
    opened = MemoryIndex.open(other)
    if opened.digests() != expected or found["before"] + found["after"] != built.added:
        raise ValueError("the build that was killed has other documents")
    if damage := list(opened.verify()):
        raise ValueError(f"the build that was killed is damaged: {damage[0]}")
    return found


def measure_model(model: Clara, source: Path, folder: Path) -> dict[str, Any]:
    """How long a model takes for an index of a file, and for compressing the same documents alone.

    "documents", and seconds by the clock and of the processor: "compress_clock",
    "compress_processor", "build_clock" and "build_processor".
    """
    documents = [document.plain() for document in Reading([str(source)])]
    model.compress(documents[:8])  # what the first call alone does
    compress, whole = Stopwatch(), Stopwatch()
    for number in range(_ROUNDS):
        with compress:
            model.compress(documents)
        with whole:
            model.build_index(folder / f"index {number}", [str(source)])
    return {
        "documents": len(documents),
        "compress_clock": compress.clock / _ROUNDS,
        "compress_processor": compress.processor / _ROUNDS,
        "build_clock": whole.clock / _ROUNDS,
        "build_processor": whole.processor / _ROUNDS,
    }


def _warm() -> None:
    """Import what is imported at the first use."""
    with TemporaryDirectory() as name:
        source = Path(name, "one.jsonl")
        source.write_text('{"id": "a", "contents": "b"}\n', encoding="utf-8")
        build(Path(name, "index"), source, Beside(Path(name, "index"), Path(name, "rows")))


def build_and_kill(index: Path, source: Path, enough: int) -> int:
    """How many documents an index holds whose build was killed when it held enough.

    Raises:
        ValueError: the build ended before.
    """
    command = [sys.executable, "-m", "bench.builds", "--build", str(index), str(source)]
    with subprocess.Popen(command) as process:
        try:
            deadline = time.monotonic() + _PATIENCE
            while held(index) < enough:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ValueError(f"{index}: the build ended or hangs: {process.returncode}")
                time.sleep(_PAUSE)
        finally:
            process.kill()
    return held(index)


def held(index: Path) -> int:
    """How many documents an index holds, each a row of it; 0 where there is none yet."""
    with suppress(ValueError, OSError):
        return int(lance.dataset(str(index)).count_rows())
    return 0


def builds_table(runs: Sequence[Run]) -> Table:
    """A row for each corpus that was built with the stub."""
    rows = []
    for run in (run for run in runs if run.names["corpus"] != WITH_MODEL):
        found = run.found
        rows.append(
            (
                run.names["corpus"],
                f"{found['documents']:,}",
                f"{found['clock']:.0f} s",
                f"{found['processor']:.0f} s",
                f"{found['documents'] / found['clock']:,.0f}",
                *(_share(found, part, kind) for part in ("stored_", "") for kind in _KINDS),
                f"{found['again_clock']:.1f} s",
                f"{found['bytes']:,.0f}",
                f"{found['bytes'] / found['expected_bytes']:.3f}",
                f"{found['before']:,} + {found['after']:,}",
            )
        )
    head = ("corpus", "documents", "build", "of the processor", "documents/s")
    lance_alone = (
        *("storing, of the speed of Lance alone", "by the processor"),
        *("all of the build", "by the processor"),
    )
    further = ("second build", "bytes a document", "of the formula", "before and after kill -9")
    return Table("", (*head, *lance_alone, *further), rows)


def _share(found: Mapping[str, Any], part: str, kind: str) -> str:
    """The speed of a part of a build, of that of Lance alone; earlier results have only all."""
    seconds = found.get(part + kind)
    return "" if seconds is None else f"{found[f'lance_{kind}'] / seconds:.2f}"


def model_table(runs: Sequence[Run]) -> Table:
    """A row for each build with a model."""
    rows = []
    for run in (run for run in runs if run.names["corpus"] == WITH_MODEL):
        found = run.found
        rows.append(
            (
                run.names["model"],
                f"{found['documents']:,}",
                f"{found['build_clock']:.1f} s",
                f"{found['compress_clock'] / found['build_clock']:.3f}",
                f"{found['compress_processor'] / found['build_processor']:.3f}",
            )
        )
    head = ("model", "passages", "build", "of the speed of compressing alone", "by the processor")
    return Table("", head, rows)


def printed(runs: Sequence[Run]) -> str:
    """Both tables."""
    return "\n".join(table(runs).markdown(level=0) for table in (builds_table, model_table))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.builds", description="Large builds with a stub as the compressor."
    )
    parser.add_argument("--data", type=Path, default=Path("data/factbook/docs.jsonl"))
    parser.add_argument("--definitions", type=int, default=100_000, help="entries of WordNet")
    parser.add_argument("--passages", type=int, default=128, help="that the model compresses")
    parser.add_argument("--model", type=Path, help="folder; default: span means of SmolLM2-135M")
    parser.add_argument("--name", help="what the table calls the model")
    parser.add_argument("--folder", type=Path, help="where indexes are written for a while")
    parser.add_argument("--output", type=Path, help="default: a file in bench/results/PROCESSOR/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is there")
    parser.add_argument("--build", type=Path, nargs=2, metavar=("INDEX", "SOURCE"))
    parser.set_defaults(positive=("definitions", "passages", "threads"))
    options = parsed(parser, arguments)
    return run_on_cpu("bench.builds", arguments, options.threads, partial(_run, options))


def _run(options: argparse.Namespace, command: str) -> None:
    if options.build:
        build(*options.build)
        return
    known = environment(torch.device("cpu"))
    output = options.output or results_path(str(known["device"]), FILE)
    if options.table:
        print(printed(read_runs(output)), end="")
        return
    settings = {"data": options.data.name, "definitions": options.definitions}
    finished = RunFile(output, COMPARISON, settings, {**known, "command": command})
    _warm()
    for corpus in ("World Factbook", "WordNet"):
        if finished.holds({"corpus": corpus}):
            continue
        with TemporaryDirectory(dir=options.folder) as name:
            source = options.data
            if corpus == "WordNet":
                source = Path(name, "wordnet.jsonl")
                write_definitions(source, options.definitions)
            run = finished.add({"corpus": corpus}, measure(source, Path(name)))
        print(f"{corpus}: {run.found}", flush=True)
    names = {"corpus": WITH_MODEL, "model": options.name, "passages": options.passages}
    if not finished.holds(names):
        with TemporaryDirectory(dir=options.folder) as name:
            source = Path(name, "passages.jsonl")
            with options.data.open(encoding="utf-8") as file:
                source.write_text("".join(islice(file, options.passages)), encoding="utf-8")
            model = measured_model(options.model)
            run = finished.add(names, measure_model(model, source, Path(name)))
        print(f"{options.name}: {run.found}", flush=True)
    print(f"\n{printed(finished.runs)}", end="")


if __name__ == "__main__":
    sys.exit(main())
