import pytest

from clara import ClaraConfig
from clara.training.selection import Selection, SelectionSchedule

CONFIG = ClaraConfig(temperature=0.02, relaxation="sparsemax", mask="reference", noise=None)


def test_without_phases_it_is_the_configurations():
    schedule = SelectionSchedule(CONFIG)
    wanted = Selection(0.02, "sparsemax", "reference", None)
    assert [schedule.at(p) for p in (0, 0.3, 1)] == [wanted] * 3


def test_temperature_falls_geometrically():
    schedule = SelectionSchedule(CONFIG, [{"temperature": 0.4, "temperature_end": 0.1}])
    assert schedule.at(0).temperature == pytest.approx(0.4)
    assert schedule.at(0.5).temperature == pytest.approx(0.2)
    assert schedule.at(1).temperature == pytest.approx(0.1)


def test_phases_follow_each_other():
    schedule = SelectionSchedule(
        CONFIG,
        [
            {"until": 0.5, "temperature": 0.4, "temperature_end": 0.1, "noise": "gumbel"},
            {"until": 0.75, "relaxation": "softmax"},
            {"temperature": 0.05},
        ],
    )
    assert schedule.at(0.25).temperature == pytest.approx(0.2)
    assert schedule.at(0.25).noise == "gumbel"
    assert schedule.at(0.5) == Selection(0.02, "softmax", "reference", None)
    assert schedule.at(0.74).relaxation == "softmax"
    for progress in (0.75, 1, 1.5):
        assert schedule.at(progress) == Selection(0.05, "sparsemax", "reference", None)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{"temprature": 1}], "a phase has fields of"),
        ([{"temperature": 0}], "temperature must be a positive number, got 0"),
        ([{"temperature": "hot"}], "temperature must be a positive number"),
        ([{"temperature_end": float("nan")}], "temperature_end must be a positive"),
        ([{"temperature": True}], "temperature must be a positive number, got True"),
        ([{"noise": "uniform"}], "noise must be one of null, gumbel"),
        ([{"relaxation": "hard"}], "relaxation must be one of softmax, sparsemax"),
        ([{"until": 0.5}], "must ascend and end at 1"),
        ([{"until": 0.5}, {"until": 0.5}, {}], "must ascend"),
        ([{"until": 1.5}], "must ascend and end at 1"),
        ({"until": 1}, "must be a list of phases"),
        (["softmax"], "a phase has fields of"),
    ],
)
def test_phases_that_are_none(phases, message):
    with pytest.raises(ValueError, match=message):
        SelectionSchedule(CONFIG, phases)
