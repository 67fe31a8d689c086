import numpy as np
import pytest
import torch

from clara.index import Hit, MemoryIndex

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def exact_order(queries, memory):
    """Rows by descending cosine in float64, equal scores by row; and the scores."""
    queries, memory = queries.double().flatten(1), memory.double().flatten(1)
    norms = queries.norm(dim=1)[:, None] * memory.norm(dim=1)
    scores = torch.where(norms == 0, 0.0, queries @ memory.T / norms)
    return scores.sort(dim=1, descending=True, stable=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("query_dtype", DTYPES)
@pytest.mark.parametrize(("count", "k"), [(1, 1), (37, 5), (300, 300), (20, 100)])
def test_hits_are_those_of_a_search_by_hand(
    make_index, make_documents, dtype, query_dtype, count, k
):
    index = make_index((3, 17), dtype)
    documents = make_documents(
        [f"d{n}" for n in range(count)], dtype=dtype, memory=torch.randn(count, 3, 17)
    )
    for start in range(0, count, 50):
        index.add(documents[start : start + 50])
    queries = torch.randn(4, 3, 17).to(query_dtype)
    scores, order = exact_order(queries, documents.memory)
    for found, best, rows in zip(index.search(queries, k), scores, order.tolist(), strict=True):
        assert [hit.row for hit in found] == rows[:k]
        torch.testing.assert_close(
            torch.tensor([hit.score for hit in found], dtype=torch.float64),
            best[:k],
            rtol=1e-6,
            atol=1e-6,
        )
        for hit in found:
            one = documents[hit.row]
            assert hit == Hit(
                id=one.ids[0],
                document_id=one.document_ids[0],
                title=one.titles[0],
                text=one.texts[0],
                score=hit.score,
                row=hit.row,
                memory=hit.memory,
            )
            assert torch.equal(hit.memory, one.memory[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_scores_go_to_the_lowest_row(make_index, make_documents, dtype):
    index = make_index(dtype=dtype)
    memory = torch.randn(3, 2, 8)[torch.tensor([0, 1, 0, 2, 1, 0, 1])]
    memory[3] = 0
    names = list("gfedcba")
    index.add(make_documents(names[:4], memory=memory[:4]))
    index.add(make_documents(names[4:], memory=memory[4:]))
    first = [hit.row for hit in index.search(memory[0].to(dtype), 7)[0]]
    assert first[:3] == [0, 2, 5]
    assert [row for row in first if row in (1, 4, 6)] == [1, 4, 6]
    assert [(h.row, h.score) for h in index.search(torch.zeros(2, 8), 3)[0]] == [
        (0, 0.0),
        (1, 0.0),
        (2, 0.0),
    ]


def test_k_may_be_an_integer_of_numpy(make_index, make_documents):
    index = make_index()
    documents = make_documents("abc")
    index.add(documents)
    for k in (np.int64(2), np.uint8(2)):
        assert index.search(documents.memory, k) == index.search(documents.memory, 2)
    for k in (np.float64(2), np.bool_(True), "2"):
        with pytest.raises(TypeError, match="k must be an integer"):
            index.search(documents.memory, k)


def test_a_single_query_and_no_query(make_index, make_documents):
    index = make_index()
    documents = make_documents("abc")
    index.add(documents)
    alone = index.search(documents.memory[1], 2)
    assert alone == index.search(documents.memory[1:2], 2)
    assert len(alone) == 1
    assert alone[0][0].id == "b"
    assert index.search(documents.memory[:0], 2) == []


def test_queries_may_be_strided_and_need_gradients(make_index, make_documents):
    index = make_index()
    documents = make_documents("abc")
    index.add(documents)
    queries = documents.memory.clone().requires_grad_().flip(0).transpose(1, 2).contiguous()
    assert [hits[0].id for hits in index.search(queries.transpose(1, 2), 1)] == ["c", "b", "a"]


def test_documents_added_after_a_search_are_found(make_index, make_documents):
    index = make_index()
    for name in "abc":
        documents = make_documents([name])
        index.add(documents)
        assert index.search(documents.memory[0], 1)[0][0].id == name
    assert MemoryIndex.open(index.path).search(documents.memory[0], 1)[0][0].row == 2


@pytest.mark.parametrize(
    ("ranking", "shape", "reason"),
    [
        ("flattened", (3, 1, 8), 'model with ranking "mean", the index ranks by "flattened"; '),
        ("mean", (3, 2, 8), 'model with ranking "flattened", the index ranks by "mean"; '),
        ("flattened", (3, 3, 8), r"must be \[B, 2, 8\]"),
        ("mean", (3, 3, 8), r"must be \[B, 1, 8\]"),
    ],
)
def test_questions_of_another_ranking(make_index, make_documents, ranking, shape, reason):
    index = make_index(**({} if ranking == "flattened" else {"ranking": ranking}))
    index.add(make_documents("ab"))
    with pytest.raises(ValueError, match=reason):
        index.search(torch.zeros(shape), 1)


@pytest.mark.parametrize(
    ("query", "k", "error", "reason"),
    [
        (torch.zeros(3, 8), 1, ValueError, r"\[B, 2, 8\] or \[2, 8\], got \[3, 8\]"),
        (torch.zeros(1, 2, 9), 1, ValueError, r"\[B, 2, 8\] or \[2, 8\], got \[1, 2, 9\]"),
        (torch.zeros(16), 1, ValueError, r"got \[16\]"),
        (torch.zeros(1, 1, 2, 8), 1, ValueError, r"got \[1, 1, 2, 8\]"),
        (torch.full((2, 8), torch.nan), 1, ValueError, "not finite"),
        (torch.full((2, 8), torch.inf), 1, ValueError, "not finite"),
        (torch.zeros(2, 8, dtype=torch.float64), 1, TypeError, "got torch.float64"),
        ([[0.0] * 8] * 2, 1, TypeError, "query_memory must be a torch.Tensor, got list"),
        (torch.zeros(2, 8), 0, ValueError, "k must be at least 1, got 0"),
        (torch.zeros(2, 8), -1, ValueError, "k must be at least 1, got -1"),
        (torch.zeros(2, 8), 1.0, TypeError, "k must be an integer, got 1.0"),
        (torch.zeros(2, 8), True, TypeError, "k must be an integer, got True"),
    ],
)
@pytest.mark.parametrize("names", ["", "abc"])
def test_bad_arguments_are_named(make_index, make_documents, names, query, k, error, reason):
    index = make_index()
    index.add(make_documents(names))
    with pytest.raises(error, match=reason):
        index.search(query, k)
