"""Packing sequences into batches and cutting long texts into chunks."""

from __future__ import annotations

import random
import time

import pytest
import torch

from clara.text.packing import CompressorInput, chunk_spans, compressor_input, pack
from clara.text.tokenizer import EncodedText, Marker

CPU = torch.device("cpu")


def test_compressor_input_is_that_of_the_paper():
    assert compressor_input([7, 8], bos=1, eos=2, n_memory=2).ids == [
        Marker.ENCODE,
        1,
        7,
        8,
        2,
        Marker.MEMORY,
        Marker.MEMORY,
    ]
    assert compressor_input([7], bos=None, eos=None, n_memory=1).ids == [
        Marker.ENCODE,
        7,
        Marker.MEMORY,
    ]


@pytest.mark.parametrize("batch_tokens", [1, 17, 64, 10_000])
def test_every_sequence_is_in_one_batch_within_the_budget(batch_tokens):
    rng = random.Random(3)
    sequences = [[rng.randrange(100) for _ in range(rng.randrange(3, 40))] for _ in range(57)]
    inputs = [CompressorInput(each, 2, 0, len(each) - 2) for each in sequences]
    batches = list(pack(inputs, batch_tokens=batch_tokens, device=CPU))
    assert sorted(row for batch in batches for row in batch.rows) == list(range(57))
    lengths = [length for batch in batches for length in batch.lengths]
    assert lengths == sorted(lengths, reverse=True)
    for batch in batches:
        assert len(batch.ids) <= batch_tokens or len(batch.rows) == 1
        bounds = batch.cu_seqlens.tolist()
        positions = batch.position_ids.tolist()
        memory = batch.memory_rows.view(-1, 2).tolist()
        for place, row in enumerate(batch.rows):
            begin, end = bounds[place], bounds[place + 1]
            assert batch.ids[begin:end].tolist() == sequences[row]
            assert positions[begin:end] == list(range(end - begin))
            assert memory[place] == [end - 2, end - 1]


def test_nothing_to_pack():
    assert list(pack([], batch_tokens=8, device=CPU)) == []


def words(text: str) -> EncodedText:
    """A token for each word and each piece of punctuation, starting where it starts."""
    starts = [
        i
        for i, c in enumerate(text)
        if not c.isspace() and (i == 0 or not text[i - 1].isalnum() or not c.isalnum())
    ]
    return EncodedText(list(range(len(starts))), starts)


def test_chunks_cover_the_text_within_the_limit():
    rng = random.Random(5)
    for _ in range(50):
        text = "".join(rng.choice(["word", " ", "end. ", "\n", "x", "! "]) for _ in range(200))
        encoded = words(text)
        limit = rng.randrange(1, 30)
        spans = chunk_spans(text, encoded, limit)
        assert [token for a, b in spans for token in range(a, b)] == encoded.ids
        assert all(0 < b - a <= limit for a, b in spans)


def test_chunks_end_with_sentences_then_words():
    text = "One two three four. Five six seven eight nine ten eleven twelve thirteen"
    encoded = words(text)
    first_end = chunk_spans(text, encoded, 6)[0][1]
    assert text[: encoded.starts[first_end]] == "One two three four. "
    plain = "aaaa " * 3 + "bbbbcccc"
    halves = EncodedText([0, 1, 2, 3, 4], [0, 5, 10, 15, 19])
    assert chunk_spans(plain, halves, 4)[0] == (0, 3)


def test_a_text_without_spaces_is_cut_at_the_limit():
    encoded = EncodedText(list(range(10)), list(range(10)))
    assert chunk_spans("x" * 10, encoded, 4) == [(0, 4), (4, 8), (8, 10)]


def test_time_grows_linearly():
    def seconds(tokens: int) -> float:
        text = "word " * tokens
        encoded = EncodedText(list(range(tokens)), list(range(0, 5 * tokens, 5)))
        begin = time.process_time()
        chunk_spans(text, encoded, 256)
        return time.process_time() - begin

    small = min(seconds(20_000) for _ in range(3))
    assert seconds(200_000) < 40 * small


def test_spans_of_unequal_texts():
    inputs = [compressor_input(list(range(10, 10 + n)), bos=1, eos=2, rate=4) for n in (5, 1, 9)]
    assert [each.n_memory for each in inputs] == [2, 1, 3]
    (batch,) = pack(inputs, batch_tokens=99, device=CPU)
    assert batch.rows == [2, 0, 1]
    assert batch.n_memory == [3, 2, 1]
    assert batch.memory_counts.tolist() == [3, 2, 1]
    found = [[int(batch.ids[row]) for row in slot if row >= 0] for slot in batch.span_rows.tolist()]
    assert found == [[10, 11, 12, 13], [14, 15, 16, 17], [18], [10, 11, 12, 13], [14], [10]]
    assert all(batch.ids[row] == Marker.MEMORY for row in batch.memory_rows)
    assert len(batch.memory_rows) == 6


def test_spans_are_no_wider_than_the_longest_text():
    inputs = [compressor_input([7] * n, bos=1, eos=2, rate=1000) for n in (5, 3)]
    (batch,) = pack(inputs, batch_tokens=99, device=CPU)
    assert batch.span_rows.shape == (2, 5)


def test_an_input_needs_a_number_of_slots():
    with pytest.raises(ValueError, match="compressor_input needs n_memory or rate"):
        compressor_input([7], bos=1, eos=2)
