"""Names of a package that are imported when they are first used."""

import sys
import types

import pytest

import clara
import clara.evaluation
from clara.lazy import on_first_use


@pytest.fixture
def package(monkeypatch):
    made = types.ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", made)
    made.__getattr__, made.__dir__ = on_first_use("shop", {"Fraction": "fractions", "gone": "json"})
    return made


def test_a_name_is_imported_once(package):
    from fractions import Fraction

    assert "Fraction" not in vars(package)
    assert package.Fraction is Fraction
    assert vars(package)["Fraction"] is Fraction


def test_names_are_listed_before_they_are_imported(package):
    assert {"Fraction", "gone", "__name__"} <= set(dir(package))
    assert dir(package) == sorted(dir(package))
    assert "Fraction" not in vars(package)


def test_names_that_are_not_there(package):
    with pytest.raises(AttributeError, match="module 'shop' has no attribute 'Apple'"):
        package.Apple  # noqa: B018
    with pytest.raises(AttributeError, match="module 'json' has no attribute 'gone'"):
        package.gone  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Apple' from 'shop'"):
        from shop import Apple  # noqa: F401


@pytest.mark.parametrize("module", [clara, clara.evaluation])
def test_all_that_a_package_promises_is_there(module):
    assert set(module.__all__) <= set(dir(module))
    for name in module.__all__:
        value = getattr(module, name)
        assert value.__name__ == name
    with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'x'"):
        module.x  # noqa: B018
