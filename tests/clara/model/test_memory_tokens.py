"""Our embedding rows: where they stand, how they begin, what they learn."""

from __future__ import annotations

import pytest
import torch

from clara.model.memory_tokens import MemoryTokens
from clara.text.tokenizer import Marker

M, E, S = Marker.MEMORY.value, Marker.ENCODE.value, Marker.SEPARATOR.value


def tokens(distinct: bool = True) -> MemoryTokens:
    made = MemoryTokens(3, 8, distinct=distinct)
    made.initialise(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_stand_where_their_ids_stand(dtype):
    own = tokens()
    ids = torch.tensor([[E, 5, M, S, M], [M, 7, 8, 9, E]])
    embeddings = torch.randn(2, 5, 8).to(dtype)
    before = embeddings.clone()
    memory = torch.randn(3, 8)
    spliced = own.splice(embeddings, ids, memory)
    assert spliced.dtype == dtype
    assert torch.equal(embeddings, before)
    slots = iter(memory)
    for row in range(2):
        for column in range(5):
            expected = {E: own.encode[0], S: own.separator[0]}.get(ids[row, column].item())
            if ids[row, column] == M:
                expected = next(slots)
            elif expected is None:
                expected = before[row, column]
            assert torch.equal(spliced[row, column], expected.to(dtype))


def test_what_stands_at_our_ids_beforehand_does_not_matter():
    own = tokens()
    ids = torch.tensor([E, 5, M, S])
    poisoned = torch.zeros(4, 8)
    poisoned[[0, 2, 3]] = torch.nan
    memory = torch.randn(1, 8)
    torch.testing.assert_close(
        own.splice(poisoned, ids, memory), own.splice(torch.zeros(4, 8), ids, memory)
    )


def test_gradients_reach_the_rows_and_the_memory():
    own = tokens()
    ids = torch.tensor([E, 5, M, S, M, S])
    memory = torch.randn(2, 8, requires_grad=True)
    embeddings = torch.randn(6, 8, requires_grad=True)
    weight = torch.randn(6, 8)
    (own.splice(embeddings, ids, memory) * weight).sum().backward()
    torch.testing.assert_close(own.encode.grad[0], weight[0])
    torch.testing.assert_close(own.separator.grad[0], weight[3] + weight[5])
    torch.testing.assert_close(memory.grad, weight[[2, 4]])
    expected = torch.zeros(6, 8)
    expected[1] = weight[1]
    torch.testing.assert_close(embeddings.grad, expected)
    assert own.memory.grad is None


@pytest.mark.parametrize("distinct", [True, False])
def test_each_document_gets_the_same_rows(distinct):
    own = tokens(distinct)
    rows = own.slot_rows(4)
    assert rows.shape == (12, 8)
    for slot in range(12):
        assert torch.equal(rows[slot], own.memory[slot % 3 if distinct else 0])
    rows.sum().backward()
    per_row = 4.0 if distinct else 12.0
    torch.testing.assert_close(own.memory.grad, torch.full_like(own.memory, per_row))
    assert (len(torch.unique(rows, dim=0)) == 3) is distinct
    assert own.slot_rows(0).shape == (0, 8)


def test_rows_begin_like_words_of_the_vocabulary():
    mean = torch.linspace(-4, 4, 6)
    deviation = torch.linspace(0.1, 2, 6)
    table = mean + deviation * torch.randn(5000, 6, generator=torch.Generator().manual_seed(1))
    own = MemoryTokens(4000, 6)
    own.initialise(table.to(torch.bfloat16), seed=7)
    torch.testing.assert_close(own.memory.mean(0), mean, rtol=0.05, atol=0.15)
    torch.testing.assert_close(own.memory.std(0), deviation, rtol=0.05, atol=0.02)
    again, other = MemoryTokens(4000, 6), MemoryTokens(4000, 6)
    again.initialise(table.to(torch.bfloat16), seed=7)
    other.initialise(table.to(torch.bfloat16), seed=8)
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), again.parameters(), strict=True))
    assert not torch.equal(own.memory, other.memory)


def test_initialising_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    tokens()
    assert torch.equal(torch.rand(2), expected)
