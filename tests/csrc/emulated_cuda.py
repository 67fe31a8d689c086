"""The CUDA kernels of csrc/cuda, compiled as C++ and run on the CPU; see cuda_emulator."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = Path(__file__).resolve().parent / "cuda_emulator"
KERNELS = ("prepare", "inverse_norms", "few_queries", "many_queries", "merge")
LAUNCHERS = ("cosine_topk", "cosine_rerank")
TYPES = ("float32", "float16", "bfloat16", "int8")  # as core/rows.hpp numbers them
ORDERS = ("ascending", "descending", "random")
ABSENT = np.float32(-np.inf)


class CudaRows(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int),
        ("count", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("stride", ctypes.c_int64),
    )


def build(folder: Path, *options: str) -> Path:
    """Compiles the library, two files at a time."""
    compiler = shutil.which("g++")
    sources = [ROOT / f"csrc/cuda/{name}.cu" for name in (*KERNELS, *LAUNCHERS)]
    sources += [EMULATOR / name for name in ("cuda_emulator.cpp", "library.cpp")]

    def compile_one(source: Path) -> Path:
        compiled = folder / f"{source.stem}.o"
        command = [compiler, "-x", "c++", "-std=c++17", "-O1", "-march=native", *options]
        command += ["-ffp-contract=off", "-fPIC", "-Wall", "-Wextra", "-Werror"]
        command += ["-DCLARA_CUDA_EMULATED", f"-I{ROOT / 'csrc'}", f"-I{EMULATOR}"]
        run([*command, "-c", source, "-o", compiled])
        return compiled

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "emulated.so"
    run([compiler, "-shared", *options, "-o", library, *objects])
    return library


def run(command: list[str | Path]) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits, as uint16: NumPy has no such type."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


class Matrix:
    """Rows of one of TYPES in memory: `stride` elements apart, the first `shift` elements after a
    multiple of 16 bytes. `values` [N, D] is what they are, in float64."""

    def __init__(self, values: np.ndarray, kind: str, stride: int | None = None, shift: int = 0):
        if kind == "bfloat16":
            stored = to_bfloat16(values)
        else:
            with np.errstate(over="ignore"):
                stored = np.asarray(values).astype(kind)
        self.kind, (count, columns) = kind, stored.shape
        stride = columns if stride is None else stride
        # Not a byte more than there has to be, so that a sanitizer sees reads beyond.
        size = shift + (count - 1) * stride + columns if count else 0
        memory = np.full(size + 16, 77, stored.dtype)
        start = -memory.ctypes.data // stored.itemsize % (16 // stored.itemsize)
        self.memory = memory[start : start + size]
        for i in range(count):
            begin = shift + i * stride
            self.memory[begin : begin + columns] = stored[i]
        address = self.memory.ctypes.data + shift * stored.itemsize
        self.rows = CudaRows(address, TYPES.index(kind), count, columns, stride)
        if kind == "bfloat16":
            stored = (stored.astype(np.uint32) << 16).view(np.float32)
        self.values = stored.astype(np.float64)

    def __len__(self) -> int:
        return self.rows.count


class Emulated:
    """The library's functions with NumPy arrays."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))
        for name in (
            "inverse_norms",
            "topk_workspace",
            "topk",
            "rerank_workspace",
            "rerank",
            "broken",
        ):
            getattr(self.library, name).restype = ctypes.c_char_p
        self.configure()

    def configure(self, order="ascending", seed=0, multiprocessors=3, capability=90):
        self.library.configure(ORDERS.index(order), seed, multiprocessors, capability)

    def inverse_norms(self, rows: Matrix, device: int = 0) -> np.ndarray:
        out = np.full(len(rows), 123, np.float32)
        raise_error(self.library.inverse_norms(ctypes.byref(rows.rows), pointer(out), device))
        return out

    def topk_workspace(self, queries, corpus, k) -> int:
        size = ctypes.c_int64(-1)
        sizes = ctypes.byref(queries.rows), ctypes.byref(corpus.rows), ctypes.c_int64(k)
        raise_error(self.library.topk_workspace(*sizes, ctypes.byref(size)))
        return size.value

    def topk(self, queries, corpus, k, mask=None, norms=None):
        norms = self.inverse_norms(corpus) if norms is None else norms
        width = min(k, len(corpus))
        scores = np.full((len(queries), width), 123, np.float32)
        indices = np.full((len(queries), width), 123, np.int64)
        size = self.topk_workspace(queries, corpus, k)
        workspace = np.full(size, 0xFF, np.uint8)
        error = self.library.topk(
            ctypes.byref(queries.rows),
            ctypes.byref(corpus.rows),
            pointer(norms),
            pointer(mask),
            ctypes.c_int64(k),
            pointer(scores),
            pointer(indices),
            pointer(workspace),
            ctypes.c_int64(size),
        )
        raise_error(error)
        return scores, indices

    def rerank(self, queries, corpus, rows, offsets, k):
        norms = self.inverse_norms(corpus)
        rows = None if rows is None else np.asarray(rows, np.int64)
        offsets = np.asarray(offsets, np.int32)
        candidates = int(offsets[-1]) if rows is None else len(rows)
        scores = np.full((len(queries), k), 123, np.float32)
        indices = np.full((len(queries), k), 123, np.int64)
        size = ctypes.c_int64(-1)
        matrices = ctypes.byref(queries.rows), ctypes.byref(corpus.rows)
        sizes = ctypes.c_int64(candidates), ctypes.c_int64(k)
        raise_error(self.library.rerank_workspace(*matrices, *sizes, ctypes.byref(size)))
        workspace = np.full(size.value, 0xFF, np.uint8)
        error = self.library.rerank(
            *matrices,
            pointer(norms),
            pointer(rows),
            sizes[0],
            pointer(offsets),
            sizes[1],
            pointer(scores),
            pointer(indices),
            pointer(workspace),
            size,
        )
        raise_error(error)
        return scores, indices

    def broken(self, which: int) -> None:
        raise_error(self.library.broken(which))


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def raise_error(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


def cosines(queries: Matrix, corpus: Matrix) -> np.ndarray:
    """[B, N] in float64; 0 where either is zero, NaN where either is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.sqrt((queries.values**2).sum(1))[:, None] * np.sqrt((corpus.values**2).sum(1))
        dots = queries.values @ corpus.values.T
        exact = np.where(norms == 0, 0, dots / np.where(norms == 0, 1, norms))
    finite = np.isfinite(queries.values).all(1)[:, None] & np.isfinite(corpus.values).all(1)
    return np.clip(np.where(finite, exact, np.nan), -1, 1)


def check(found, exact, allowed, bound):
    """`found` is the top-k of scores that are within `bound` of `exact` [B, N], among the rows that
    are `allowed` [B, N], in the order that is promised."""
    scores, indices = found
    for query, (row_scores, rows) in enumerate(zip(scores, indices)):
        possible = np.flatnonzero(allowed[query])
        count = min(len(rows), len(possible))
        assert (rows[count:] == -1).all()
        assert (row_scores[count:] == ABSENT).all()
        rows, row_scores = rows[:count], row_scores[:count]
        assert len(set(rows)) == count
        assert allowed[query, rows].all()
        expected = exact[query, rows]
        np.testing.assert_array_equal(np.isnan(row_scores), np.isnan(expected))
        numbers = ~np.isnan(expected)
        assert (np.abs(row_scores[numbers] - expected[numbers]) <= bound).all()
        keys = np.where(np.isnan(row_scores), -2, row_scores)
        later = np.diff(keys)
        assert (later <= 0).all()
        assert (np.diff(rows)[later == 0] > 0).all()
        # What was left out is no better than the last, but for the bound.
        left = np.setdiff1d(possible, rows)
        rest = np.where(np.isnan(exact[query, left]), -2, exact[query, left])
        if count and len(left):
            assert rest.max() <= keys[-1] + bound
