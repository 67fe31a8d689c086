"""The documents that benchmarks measure with."""

import statistics
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from bench.lengths import document_lengths
from bench.workload import cut, documents, sources


@pytest.fixture(scope="module")
def tokenizer():
    base = Path(__file__).parents[1] / "data" / "reference" / "base"
    return AutoTokenizer.from_pretrained(base)


def test_texts_are_cut_to_tokens(tokenizer):
    texts = cut(sources(3), [5, 17, 40], tokenizer)
    counts = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
    assert counts == [5, 17, 40]


def test_long_texts_are_there():
    assert all(len(text.split()) > 5000 for text in sources(3, 5000))


def test_lengths_are_those_of_published_passages(tokenizer):
    assert statistics.fmean(document_lengths(500)) == pytest.approx(96, abs=2)
    assert len(set(documents(20, tokenizer))) > 10
