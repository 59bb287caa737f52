"""The faults that ``make test-mutants`` plants: each has its place, and each place its fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import MUTANTS
from faults.planting import Mutant, markers_of, planted, statement_at

CUDA = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
SOURCES = {path.relative_to(CUDA).as_posix(): path for path in CUDA.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_has_its_place(mutant: Mutant) -> None:
    text = SOURCES[mutant.file].read_text()
    assert planted(text, mutant) != text


def test_every_place_has_a_fault() -> None:
    places = [
        f"{name}: {marker}"
        for name, path in SOURCES.items()
        for marker in markers_of(path.read_text())
    ]
    assert set(places) == {mutant.place for mutant in MUTANTS}
    assert len(set(places)) == len(places)


def test_names_are_unique() -> None:
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "statement",
    [
        "step();",
        "if (a[0] != ';') stop();  ",
        "if (a) {\n  b();\n}",
        "if (a) {\n  b();\n} else {\n  c();\n}",
        "for (int i = 0; i < 3; ++i) {\n  a();  // } ;\n}",
        'f([&](int i) { g("}", i); });',
        "const Turn turn{1, {2}}, other{};",
        "explicit Some(int a) : b{a}, c{a} {}",
        "int f() const {\n  return 3;\n}",
    ],
)
def test_a_statement_ends_where_cpp_says(statement: str) -> None:
    end = len(statement.rstrip())
    for behind in ("", "\n  next();\n}\n", "\n}\n"):
        assert statement_at("{\n" + statement + behind, 2) == 2 + end
