"""Phases of what a step reads."""

from collections import Counter

import pytest

from clara import ClaraConfig
from clara.training.curriculum import Curriculum, CurriculumError, check_phases
from clara.training.moments import Moment

CONFIG = ClaraConfig(compression_rate=4)
THREE = [
    {"until": 10, "text_tokens": 24, "reconstruction": 1.0},
    {"until": 20, "text_tokens": 48, "reconstruction": [1.0, 0.1]},
    {},
]


def lessons(curriculum, steps, total=30):
    return [curriculum.at(Moment(step, total, 1000 + step)) for step in steps]


def test_phases_follow_one_another_by_step():
    found = lessons(Curriculum(CONFIG, THREE), range(30))
    assert [each.text_tokens for each in found] == [24] * 10 + [48] * 10 + [None] * 10
    assert {each.rate for each in found} == {4}
    assert [each.reconstruction for each in found[:10]] == [1.0] * 10
    assert [each.reconstruction for each in found[20:]] == [0.0] * 10


def test_a_share_moves_evenly_over_its_phase():
    found = lessons(Curriculum(CONFIG, THREE), range(10, 20))
    wanted = [1.0 - 0.1 * step for step in range(10)]
    assert [each.reconstruction for each in found] == pytest.approx(wanted)


def test_the_last_phase_ends_with_the_run():
    curriculum = Curriculum(CONFIG, [{"until": 10}, {"reconstruction": [0.0, 1.0]}])
    for total in (16, 31):
        shares = [each.reconstruction for each in lessons(curriculum, range(10, total), total)]
        wanted = [step / (total - 11) for step in range(total - 10)]
        assert shares == pytest.approx(wanted)
    cut_short = Curriculum(CONFIG, [{"until": 10, "reconstruction": [0.0, 1.0]}, {}])
    assert lessons(cut_short, [4], total=5)[0].reconstruction == 1.0


def test_a_phase_of_one_step_has_its_last_share():
    curriculum = Curriculum(CONFIG, [{"until": 1, "reconstruction": [1.0, 0.5]}, {}])
    assert lessons(curriculum, [0])[0].reconstruction == 0.5


def test_rates_are_drawn_by_their_weights():
    spans = ClaraConfig(memory_form="spans", compression_rate=4, rates=(1, 2, 4))
    curriculum = Curriculum(spans, [{"until": 4000, "rates": {2: 1, 4: 3}}, {"rates": [1, 2]}])
    drawn = Counter(each.rate for each in lessons(curriculum, range(4000), total=8000))
    assert drawn.keys() == {2, 4}
    assert drawn[4] / 4000 == pytest.approx(0.75, abs=0.03)
    assert {each.rate for each in lessons(curriculum, range(4000, 4100), total=8000)} == {1, 2}
    without = Counter(each.rate for each in lessons(Curriculum(spans), range(3000), 3000))
    assert min(without[rate] for rate in (1, 2, 4)) > 850


def test_what_is_drawn_depends_on_the_seed_alone():
    one, same, other = (Moment(3, 10, seed) for seed in (5, 5, 6))
    assert one.random("rate").random() == same.random("rate").random()
    assert one.random("rate").random() != other.random("rate").random()
    assert one.random("rate").random() != one.random("reconstruction").random()


def test_without_phases_there_is_nothing_to_draw():
    for phases in (None, [], [{}]):
        assert not Curriculum(CONFIG, phases).varies
    assert Curriculum(CONFIG, THREE).varies
    assert Curriculum(CONFIG.replace(memory_form="spans")).varies  # its rates


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ({"until": 3}, "curriculum must be a list of phases, got {'until': 3}"),
        (["x"], "a phase has fields of averages_only, numbers, rates, .*; got 'x'"),
        ([{"rate": [2]}], "a phase has fields of averages_only, numbers, rates, .*; got {'rate'"),
        ([{"until": 0}, {}], "until must be null or a whole number of at least 1, got 0"),
        ([{"until": 2.5}, {}], "until must be null or a whole number of at least 1, got 2.5"),
        ([{"until": True}, {}], "until must be null or a whole number"),
        ([{"until": 3}], "until of the last phase must be null, for the end of the run; got 3"),
        ([{"until": 3}, {"until": 3}, {}], "until must ascend and end with null, got 3, 3, null"),
        ([{}, {"until": 3}, {}], "until must ascend and end with null, got null, 3, null"),
        ([{"text_tokens": 0}], "text_tokens must be null or a whole number of at least 1, got 0"),
        ([{"reconstruction": 1.5}], "reconstruction must be a share from 0 to 1, .*; got 1.5"),
        ([{"reconstruction": [1, 0, 1]}], r"reconstruction must be .*; got \[1, 0, 1\]"),
        ([{"reconstruction": "half"}], "reconstruction must be .*; got 'half'"),
        ([{"reconstruction": float("nan")}], "reconstruction must be .*; got nan"),
        ([{"averages_only": 1}], "averages_only must be true or false, got 1"),
        ([{"rates": []}], r"rates must be a list of different rates .*; got \[\]"),
        ([{"rates": [2, 2]}], r"rates must be a list of different rates .*; got \[2, 2\]"),
        ([{"rates": [2, "four"]}], "rates must be a list of different rates"),
        ([{"rates": 4}], "rates must be a list of different rates .*; got 4"),
        ([{"rates": {2: 0}}], "weights above 0 such as {2: 1, 4: 3}; got {2: 0}"),
        ([{"rates": {0: 1}}], "rates must be a list of different rates"),
    ],
)
def test_phases_that_are_none(phases, message):
    with pytest.raises(CurriculumError, match=message):
        check_phases(phases)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"rates": [2, 4]}, "rates must be of those that the model trains, 4; got 2"),
        ({"averages_only": True}, "averages_only needs memory_form: spans"),
    ],
)
def test_phases_that_the_model_does_not_have(phase, message):
    with pytest.raises(CurriculumError, match=message):
        Curriculum(CONFIG, [phase])
    assert Curriculum(CONFIG, [{"rates": [4]}]).at(Moment(0, 1, 1)).rate == 4
