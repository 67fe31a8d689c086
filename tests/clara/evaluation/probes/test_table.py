"""Scores by condition, and their tables."""

from clara.evaluation.probes import by_condition, condition_tables, conditions_markdown


def line(entry, question, answer, exact, *, answerable=True):
    return {
        "entry": entry,
        "question": question,
        "answer": answer,
        "answerable": answerable,
        "scores": {"exact_match": exact, "cover_substring": 1.0},
    }


LINES = [
    line("text+given", "probe/needle/256/50/0", "4819203", 1.0),
    line("text+given", "probe/needle/64/0/0", "", 0.0),
    line("text+given", "probe/needle/64/0/1", "4819203", 1.0),
    line("text+given", "probe/needle/64/100/0", "7", 0.0),
    line("text+given", "france/capital", "Paris", 1.0),
    line("text+given", "probe/refusal/absent/0", "not mentioned", 0.0, answerable=False),
    line("clara@4|x+given", "probe/needle/64/0/0", "4819203", 1.0),
]


def test_means_of_conditions_and_of_what_they_share():
    table = by_condition(LINES)
    text = table["text+given"]
    assert list(text) == [
        "needle",
        "needle/64",
        "needle/64/0",
        "needle/64/100",
        "needle/256/50",
        "refusal/absent",
    ]
    assert text["needle"] == {
        "questions": 4,
        "exact_match": 0.5,
        "cover_substring": 1.0,
        "refused": 0.25,
    }
    assert text["needle/64"]["exact_match"] == 1 / 3
    assert text["needle/64/0"] == {
        "questions": 2,
        "exact_match": 0.5,
        "cover_substring": 1.0,
        "refused": 0.5,
    }
    assert text["refusal/absent"] == {
        "questions": 1,
        "exact_match": None,
        "cover_substring": None,
        "refused": 1.0,
    }
    assert by_condition([LINES[4]]) == {}


def test_refusals_that_are_right_and_wrong_have_no_mean():
    wrong = line("text+given", "probe/refusal/present/0", "not mentioned", 0.0)
    assert list(by_condition([LINES[5], wrong])["text+given"]) == [
        "refusal/absent",
        "refusal/present",
    ]


def test_markdown_has_a_row_for_each_condition():
    text = conditions_markdown(by_condition(LINES))
    tables = text.split("\n\n")
    assert tables[0] == "Probes: exact match, %"
    assert tables[1].splitlines() == [
        "| condition | n | text+given | clara@4\\|x+given |",
        "| --- | ---: | ---: | ---: |",
        "| needle | 4 | 50.0 | 100.0 |",
        "| needle/64 | 3 | 33.3 | 100.0 |",
        "| needle/64/0 | 2 | 50.0 | 100.0 |",
        "| needle/64/100 | 1 | 0.0 |  |",
        "| needle/256/50 | 1 | 100.0 |  |",
    ]
    assert tables[4] == "Probes: refused, %"
    assert tables[5].splitlines()[2:] == [
        "| needle | 4 | 25.0 | 0.0 |",
        "| needle/64 | 3 | 33.3 | 0.0 |",
        "| needle/64/0 | 2 | 50.0 | 0.0 |",
        "| refusal/absent | 1 | 100.0 |  |",
    ]
    assert conditions_markdown({}) == ""


def test_remarks_stand_above_the_figures_of_their_entry():
    table = by_condition(LINES)
    exact, *_ = condition_tables(table, {"clara@4|x+given": "untrained", "other": "control"})
    assert exact.head[2:] == ["text+given", "clara@4|x+given"]
    assert exact.rows[0] == ["remark", "", "", "untrained"]
    assert exact.rows[1] == ["needle", "4", "50.0", "100.0"]
    assert condition_tables(table, {"other": "control"}) == condition_tables(table)
    assert condition_tables({}, {"other": "control"}) == []


def test_hostile_names_stay_in_their_cell():
    text = conditions_markdown(by_condition([line("a", "probe/\x1b[2J\n<b>|/0", "x", 1.0)]))
    assert text.splitlines()[4] == "| [2J &lt;b>\\| | 1 | 100.0 |"
