"""The core's searches in C++, also under AddressSanitizer; `make sanitize` has the rest."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "sanitize" / "run.py"

if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "clang++"))):
    pytest.skip("needs a C++ compiler", allow_module_level=True)


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(RUN), *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["none", "address,undefined"])
def test_searches_pass(sanitizers, tmp_path):
    from clara_kernels import build_info

    simd = build_info()["simd_available"][-1]
    result = run(sanitizers, "--simd", simd, "--build", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    for check in ("lengths", "special_values", "concurrent_calls", "fork_during_calls"):
        assert f"\n{check} " in result.stdout


@pytest.mark.slow
def test_a_sanitizer_that_is_missing_is_named(tmp_path):
    result = run("no_such_sanitizer", "--build", tmp_path)
    assert result.returncode != 0
    assert "cannot link a program with -fsanitize=no_such_sanitizer" in " ".join(
        result.stderr.split()
    )
    assert "error: no program with -fsanitize=no_such_sanitizer" in result.stderr
