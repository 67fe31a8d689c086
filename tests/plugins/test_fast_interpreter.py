"""The plugin changes no result, and nobody misses that Triton changed what it replaces."""

import inspect
import os

import pytest
import torch
import triton
import triton.language as tl
from packaging.version import Version

from tests.plugins import fast_interpreter

interpreted = pytest.mark.skipif(
    not os.environ.get("TRITON_INTERPRET"), reason="there is a GPU: kernels are not interpreted"
)


@triton.jit
def _doubled(x):
    return x + x


@triton.jit
def _quadruple(p_x, p_y, count, BLOCK: tl.constexpr):
    o = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m = o < count
    tl.store(p_y + o, _doubled(_doubled(tl.load(p_x + o, mask=m, other=0))), mask=m)


def quadruple(x):
    y = torch.empty_like(x)
    _quadruple[(triton.cdiv(len(x), 16),)](x, y, len(x), BLOCK=16)
    return y


@pytest.fixture
def untouched():
    """Triton's interpreter without the plugin."""
    for replaced in fast_interpreter.installed:
        replaced.restore()
    yield fast_interpreter.interpreter()
    for replaced in fast_interpreter.installed:
        replaced.install()


at_least_that_release = pytest.mark.skipif(
    Version(triton.__version__) < Version(fast_interpreter.TRITON),
    reason="an older Triton, which the plugin leaves as it is",
)


@at_least_that_release
def test_triton_has_what_the_plugin_replaces(untouched):
    changed = fast_interpreter.changed()
    assert not changed, (
        f"Triton {triton.__version__} changed {', '.join(changed)} of triton.runtime.interpreter, "
        f"which tests/plugins/fast_interpreter.py was written for in {fast_interpreter.TRITON}. "
        "Until it is adapted, the tests of the kernels are right, but several times as slow. Read "
        "the new source. If it is still enough to prepare triton.language once in a launch, put "
        "the new release in TRITON and these digests in DIGESTS; else adapt FastInterpreter or "
        f"remove the plugin. {dict(zip(changed, map(fast_interpreter.digest, changed)))}"
    )


def _patch_lang(fn, scope=None):
    """Another source and other parameters than Triton's."""


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_what_triton_changed_is_left_alone(untouched, monkeypatch, change):
    if change == "removed":
        monkeypatch.delattr(untouched, "_patch_lang")
    else:
        monkeypatch.setattr(untouched, "_patch_lang", _patch_lang)
    execute = untouched.GridExecutor.__call__
    installed = list(fast_interpreter.installed)
    assert "_patch_lang" in fast_interpreter.changed()
    fast_interpreter.pytest_configure(None)
    assert fast_interpreter.installed == installed
    assert untouched.GridExecutor.__call__ is execute


def test_parameters_count_apart_from_the_source(untouched, monkeypatch):
    before = fast_interpreter.digest("_patch_lang")
    monkeypatch.setattr(
        untouched._patch_lang, "__signature__", inspect.signature(_patch_lang), raising=False
    )
    assert fast_interpreter.digest("_patch_lang") != before


@interpreted
def test_results_are_those_of_triton():
    x = torch.randn(100)
    assert torch.equal(quadruple(x), 4 * x)


@interpreted
@at_least_that_release
def test_the_language_is_prepared_once_and_restored_after_every_launch(untouched):
    plugin = fast_interpreter.FastInterpreter()
    calls = []
    prepare = plugin.prepare
    plugin.prepare = lambda function: calls.append(function.__name__) or prepare(function)
    before = tl.load, tl.store, tl.tensor.__add__, tl.tensor.__init__, tl.block_type.__init__
    for _ in range(2):
        plugin.install()
        try:
            x = torch.randn(40)
            assert torch.equal(quadruple(x), 4 * x)
            assert (tl.load, tl.store, tl.tensor.__add__) == before[:3]
        finally:
            plugin.restore()
    assert calls == ["_quadruple"]
    after = tl.load, tl.store, tl.tensor.__add__, tl.tensor.__init__, tl.block_type.__init__
    assert after == before


@triton.jit
def _each_kind(p_x, p_y, p_z, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    x = tl.load(p_x + i * COLUMNS + j)  # [ROWS, COLUMNS]
    tl.store(p_y + j * ROWS + i, x)
    tl.store(p_z + tl.arange(0, ROWS), tl.sum(x.to(tl.float32), 1) + x.numel + x.shape[1])


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.int32])
def test_blocks_of_every_shape_and_type_are_told_apart(dtype):
    for rows, columns in [(4, 8), (8, 4), (1, 32), (4, 4), (4, 8)]:
        x = torch.randint(-9, 9, (rows, columns)).to(dtype)
        y, z = x.new_empty(columns, rows), torch.empty(rows)
        _each_kind[(1,)](x, y, z, ROWS=rows, COLUMNS=columns)
        assert torch.equal(y, x.T)
        assert torch.equal(z, x.float().sum(1) + rows * columns + columns)


@triton.jit
def _incremented(p_x):
    tl.store(p_x, tl.load(p_x) + 1)


@interpreted
def test_the_interpreter_reports_no_overflow_that_could_be_missed(untouched):
    """The check that the plugin turns off ends in nothing in Triton itself."""
    x = torch.tensor([2**31 - 1], dtype=torch.int32)
    _incremented[(1,)](x)
    assert x.item() == -(2**31)
