import pytest

from clara.data.matching import is_exact_match, normalised


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("The Mill.", "mill"),
        ("  an   old\nmill ", "old mill"),
        ("536 km", "536 km"),
        ("1,874", "1874"),
        ("theatre", "theatre"),
        ("A the an", ""),
        ("Ayr (Scotland)", "ayr scotland"),
        ("Müllheim", "müllheim"),
    ],
)
def test_answers_without_what_does_not_matter(answer, wanted):
    assert normalised(answer) == wanted


def test_one_of_the_expected_answers_is_enough():
    assert is_exact_match("The mill.", ["river", "Mill"])
    assert not is_exact_match("old mill", ["river", "mill"])
    assert not is_exact_match("", ["mill"])
    assert not is_exact_match("mill", [])
