"""Runs examples/kernels_in_your_stack.py where neither clara nor transformers can be imported."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "kernels_in_your_stack.py"

WITHOUT = """
import runpy, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("clara", "transformers", "peft"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Refuse())
import torch
torch.set_num_threads(1)
script, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_path(script, run_name="__main__")
"""


def run(*arguments, script=SCRIPT):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, str(script), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["0", "1"])
def test_learns_to_rank_from_answers_alone(seed):
    done = run("--steps", "100", "--seed", seed)
    assert done.returncode == 0, done.stderr
    before, *_, after = re.findall(r"recall@3 ([\d.]+), answers right ([\d.]+)", done.stdout)
    # Chance is 3 of 20, and one answer of 16.
    assert float(before[0]) < 0.25
    assert float(after[0]) > 0.8
    assert float(before[1]) < 0.25
    assert float(after[1]) > 0.7


def test_the_block_blocks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import clara\n")
    done = run(script=script)
    assert done.returncode == 1
    assert "clara is blocked" in done.stderr
