"""What a view of an index costs to build, open, map and search, each search in a new process.

The answers are compared with those of a search in RAM, score by score.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bench.viewing import K, Shape, costs, forget, write_index
from clara.reports.results import Promise

SHAPES = {
    "flattened": Shape("flattened memory", 100_000, 8, 576, "flattened"),
    "mean": Shape("means", 1_000_000, 1, 576, "mean"),
}
MOST_MS = {"flattened": 40.0, "mean": 60.0}
SMOKE_DOCUMENTS = 5_000
QUERIES = {"smoke": 3, "small": 21, "full": 51}


@pytest.fixture
def make(size, tmp_path, pytestconfig):
    """An index of a shape, scaled, and its path."""

    def write(name: str, part: float) -> tuple[Path, Shape]:
        shape = SHAPES[name]
        scaled = shape.documents * pytestconfig.getoption("view_scale")
        documents = SMOKE_DOCUMENTS if size.name == "smoke" else scaled
        shape = replace(shape, documents=int(documents * part))
        path = tmp_path / f"{name}-{part}"
        write_index(path, shape)
        return path, shape

    return write


@pytest.mark.usefixtures("compiled_search")
@pytest.mark.parametrize("name", SHAPES)
def test_views(name, make, size, environment, recorder, summary, judge, threads, benchmark):
    from clara.index import MemoryIndex

    built = {}
    for part in (0.5, 1.0):
        path, shape = make(name, part)
        index = MemoryIndex.open(path)
        len(index)  # which reads the ids
        start = time.perf_counter()
        view = index.build_view()
        built[shape.documents] = time.perf_counter() - start
        recorder.seconds(
            "index",
            "build a view",
            {"ours": [built[shape.documents]]},
            {"ranking": shape.name, "documents": shape.documents},
            {"documents": shape.documents, "bytes": view.size},
        )
    where = {"ranking": shape.name, "documents": shape.documents}
    queries = QUERIES[size.name]
    expected = costs(path, shape, 3, threads, views=False)
    forget(path)
    cold = costs(path, shape, 2, threads)
    warm = costs(path, shape, queries, threads)
    for one, other in zip(warm.best, expected.best):
        assert one == other
    samples = {
        "open an index with a view": [cold.opened, warm.opened],
        "first search of a view, cold": [cold.first],
        "first search of a view, warm": [warm.first],
        "search of a view": warm.queries,
    }
    for case, taken in samples.items():
        recorder.seconds("index", case, {"ours": taken}, where)
    recorder.memory(
        "index", "growth of a process that searches a view", {"ours": warm.growth}, **where
    )
    benchmark.pedantic(MemoryIndex.open(path).search, args=(shape.queries(1), K), rounds=1)
    benchmark.extra_info.update(environment, seconds=samples, **where)
    query = statistics.median(warm.queries) * 1e3
    (fewer, short), (more, long) = built.items()
    growth = (long / short) / (more / fewer)
    summary.append(
        f"{shape.name}, {shape.documents:,} documents: view of {view.size / 1e6:,.0f} MB built in "
        f"{long:.1f} s ({short:.1f} s of half); opened in {warm.opened * 1e3:.0f} ms, first search "
        f"{cold.first:.2f} s cold, {warm.first:.2f} s warm, then {query:.1f} ms a query; process "
        f"grew by {warm.growth / view.size:.2f} of the view; in RAM: first search "
        f"{expected.first:.2f} s, then {min(expected.queries) * 1e3:.1f} ms"
    )
    of = f"{shape.name}, {shape.documents:,} documents: "
    judge(
        Promise.judged(of + "opening an index with a view, ms", warm.opened * 1e3, at_most=200),
        Promise.judged(of + "search of a view, ms", query, at_most=MOST_MS[name]),
        Promise.judged(of + "growth by size of the view", warm.growth / view.size, at_most=1.2),
        Promise.judged(of + "time to build a view by that of half, / 2", growth, at_most=1.25),
    )
