"""Prompts that share their beginning, taken apart and put together again."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from clara.config import DEFAULT_PROMPT
from clara.text.branches import common_rows, pack_branches
from clara.text.packing import Branch, PackedPrompts
from clara.text.prompts import Prompt, build_prompt, memory_slots
from clara.text.tokenizer import Marker, SafeTokenizer

M = Marker.MEMORY
PAIRS = [("Where is the mill?", "Ayr"), ("Where is the bridge?", "Bath"), ("Who?", "Ada and Ben")]


def prompts_of(pairs, documents=1):
    tokenizer = SafeTokenizer(AutoTokenizer.from_pretrained("tests/data/reference/base"))
    slots = memory_slots([3] * documents, True)
    return [build_prompt(tokenizer, DEFAULT_PROMPT, slots, *pair) for pair in pairs]


def put_together(packed):
    """Each sequence with the rows that it shares: ids and positions."""
    batch = packed.batch
    parts = list(
        zip(
            batch.ids.split(batch.lengths),
            batch.position_ids.split(batch.lengths),
            strict=True,
        )
    )
    for row, branch in enumerate(batch.branches, batch.whole):
        shared = [values[: branch.rows].tolist() for values in parts[branch.trunk]]
        own = [values.tolist() for values in parts[row]]
        yield [before + after for before, after in zip(shared, own, strict=True)]


def test_a_branch_and_what_it_shares_are_the_prompt_asked_alone():
    groups = [prompts_of(PAIRS), prompts_of(PAIRS[1:2], 2), prompts_of(PAIRS[:2], 2)]
    packed = pack_branches(groups)
    batch = packed.batch
    assert batch.whole == 3
    assert [branch.trunk for branch in batch.branches] == [0, 0, 2]
    whole = batch.trunks
    assert whole.ids.tolist() == [i for group in groups for i in group[0].ids]
    assert whole.lengths == [len(group[0].ids) for group in groups]
    assert not whole.branches
    branched = [*groups[0][1:], *groups[2][1:]]
    for prompt, (ids, positions) in zip(branched, put_together(packed), strict=True):
        assert ids == prompt.ids
        assert positions == list(range(len(ids)))
    assert batch.reaches == [len(p.ids) for p in (g[0] for g in groups)] + [
        len(p.ids) for p in branched
    ]
    asked = [*(group[0] for group in groups), *branched]
    wanted = [i for prompt in asked for i in prompt.ids[prompt.answer_start :]]
    assert batch.ids[packed.targets].tolist() == wanted
    every = sum(len(p.ids) for group in groups for p in group)
    shared = sum(branch.rows for branch in batch.branches)
    assert len(batch.ids) == every - shared
    assert shared > 3 * 30


def test_the_first_words_of_like_questions_are_shared_too():
    like, unlike = (common_rows(prompts_of(pairs)) for pairs in (PAIRS[:2], PAIRS))
    (prompt,) = prompts_of(PAIRS[:1])
    last = max(i for i, token in enumerate(prompt.ids) if token < 0)
    assert like > unlike > last


def test_the_row_that_an_answer_is_read_from_is_never_shared():
    """Also where a question is asked twice, with two answers."""
    prompts = prompts_of([("Where?", "Ayr"), ("Where?", "Bath"), ("Where?", "Ayr")])
    packed = pack_branches([prompts])
    rows = common_rows(prompts)
    assert rows == prompts[0].answer_start - 1
    assert packed.batch.branches == [Branch(0, rows)] * 2
    starts = packed.batch.cu_seqlens[1:-1].tolist()
    for start in starts:
        assert start not in packed.targets.tolist()
        assert start + 1 in packed.targets.tolist()


def test_groups_of_one_are_packed_as_ever():
    prompts = prompts_of(PAIRS)
    one, other = pack_branches([[prompt] for prompt in prompts]), PackedPrompts.of(prompts)
    assert one.batch.ids.tolist() == other.batch.ids.tolist()
    assert one.targets.tolist() == other.targets.tolist()
    assert one.batch.position_ids.tolist() == other.batch.position_ids.tolist()
    assert one.batch.branches == []


@pytest.mark.parametrize(
    "prompts",
    [
        [Prompt([5, M, M, 6, 7], 4), Prompt([5, M, 6, M, 7], 4)],
        [Prompt([5, M, M, 6, 7], 4), Prompt([4, M, M, 6, 7], 4)],
        [Prompt([5, M, 7], 2), Prompt([5, M, 6], 2)],  # an answer right after the last slot
        [Prompt([5, 6, 7], 2), Prompt([4, 6, 7], 2)],
    ],
)
def test_prompts_that_do_not_begin_alike(prompts):
    with pytest.raises(ValueError, match=r"begin alike up to its last slot, they differ at token"):
        pack_branches([prompts])
