"""`clara compress --storage`, `clara index info` and upgrades to rows without padding."""

import json

import pytest
import torch

from clara import Clara
from clara.cli import compress as command_line
from clara.data.records import read_documents
from clara.index import MemoryIndex
from clara.memory.documents import CompressedDocuments
from clara_kernels import dequantize_memory, quantize_memory


@pytest.fixture
def compress(model, write_corpus):
    """The arguments of `clara compress` of five documents."""
    file = write_corpus(count=5)
    return lambda output, *more: (
        *("compress", "--model", model, "--corpus", file, "--output", str(output)),
        *more,
    )


def test_memory_is_stored_as_asked(clara, refused, compress, model, tmp_path):
    output = str(tmp_path / "index")
    arguments = compress(output, "--storage", "int8")
    clara(*arguments)
    index = MemoryIndex.open(output)
    loaded = Clara.from_pretrained(model)
    expected = loaded.compress(list(read_documents(arguments[4])))
    stored = dequantize_memory(*quantize_memory(expected.memory), dtype=loaded.dtype)
    assert (index.storage, index.dtype) == ("int8", loaded.dtype)
    assert torch.equal(CompressedDocuments.concatenate(index).memory, stored)
    line = refused(*compress(output, "--resume", "--storage", "int4"))
    assert line.endswith("was created with --storage int8; --storage int4 does not match")
    clara(*compress(output, "--resume", "--storage", "int8"))
    clara(*compress(output, "--resume"))
    printed = clara("search", "--model", model, "--index", output, "--json", "What?").stdout
    assert len(json.loads(printed)["documents"]) == 5
    clara("ask", "--model", model, "--index", output, "--max-new-tokens", "2", "What?")


def test_an_unknown_storage_is_refused_before_the_model_is_loaded(
    refused, compress, tmp_path, monkeypatch
):
    monkeypatch.delattr(command_line, "load_model")
    line = refused(*compress(tmp_path / "index", "--storage", "int3"), code=2)
    assert "'int3' is not one of 'float32', 'float16', 'bfloat16', 'int8', 'int4'" in line
    assert not (tmp_path / "index").exists()


def test_an_index_that_another_process_begins_with_another_storage(
    clara, refused, compress, tmp_path, monkeypatch
):
    output = str(tmp_path / "index")
    real = command_line.create_index

    def late(*arguments):
        monkeypatch.setattr(command_line, "create_index", real)
        clara(*compress(output, "--storage", "bfloat16"))
        return real(*arguments)

    monkeypatch.setattr(command_line, "create_index", late)
    line = refused(*compress(output, "--resume", "--storage", "int8"))
    assert "was created with --storage bfloat16; --storage int8 does not match" in line


def test_info_of_an_index(clara, refused, compress, model, tmp_path):
    output = str(tmp_path / "index")
    clara(*compress(output, "--storage", "int4"))
    found = json.loads(clara("index", "info", "--json", output).stdout)
    assert found == MemoryIndex.open(output).info()
    assert (found["format_version"], found["storage"]) == (3, "int4")
    lines = clara("index", "info", output).stdout.splitlines()
    for line in (
        "format version: 3",
        "count: 5",
        "documents: 5",
        f"vectors: {5 * found['memory_tokens']}",
        "storage: int4",
        f"bytes per document: {found['bytes_per_document']:,.0f}",
        f"expected bytes per document: {found['expected_bytes_per_document']:,.0f}",
    ):
        assert line in lines
    assert lines == clara("info", output).stdout.splitlines()[1:]  # which says what it is first
    assert "not an index" in refused("index", "info", model)
    assert "not found" in refused("index", "info", str(tmp_path / "none"))
