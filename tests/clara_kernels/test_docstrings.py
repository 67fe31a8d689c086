"""Every public name has an example in its docstring, and the examples print what they say."""

import doctest
import inspect
from importlib.util import find_spec

import pytest
import torch

import clara_kernels


@pytest.mark.parametrize("name", clara_kernels.__all__)
def test_example(name):
    public = getattr(clara_kernels, name)
    text = inspect.getdoc(public)
    assert "\n\nExamples:\n" in text
    _, _, example = text.partition("\n\nExamples:\n")
    assert f"import {name}" in example or f", {name}" in example
    if name == "Faiss" and find_spec("faiss") is None:
        pytest.skip("faiss is not installed")
    torch.manual_seed(0)
    test = doctest.DocTestParser().get_doctest(example, {}, name, None, None)
    assert any(each.want for each in test.examples)
    printed = []
    doctest.DocTestRunner(verbose=False).run(test, out=printed.append)
    assert not printed, "".join(printed)
