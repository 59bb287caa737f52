"""The examples in the docstrings run and show what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import varlen_rnn

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(varlen_rnn.__path__, "varlen_rnn.")
    if module.name not in ("varlen_rnn._C", "varlen_rnn._C_cuda")
)


@pytest.mark.parametrize("name", ["varlen_rnn", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), report=True)
    assert results.failed == 0, f"{results.failed} of {results.attempted} failed, see the output"


def test_the_modules_of_the_package_are_found() -> None:
    assert {"varlen_rnn.layout", "varlen_rnn.modules", "varlen_rnn.reference"} <= set(MODULES)


@pytest.mark.parametrize("name", varlen_rnn.__all__)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    value = getattr(varlen_rnn, name)
    documented = (
        [f for _, f in inspect.getmembers(value, inspect.isfunction)]
        if inspect.ismodule(value)
        else [value]
    )
    assert inspect.getdoc(value)
    assert any(">>> " in (inspect.getdoc(f) or "") for f in documented)
