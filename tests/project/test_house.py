"""Floors: imports run downwards only, nowhere in a circle; and files are short, or say why not."""

from __future__ import annotations

import ast
import graphlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "varlen_rnn"
COMPILED = ("varlen_rnn._C", "varlen_rnn._C_cuda")
ROOF = ""  # varlen_rnn/*.py

# What the modules of each folder may import of the package, beside their own folder.
MAY_IMPORT = {
    "runtime": set(),
    "layout": {"runtime"},
    "reference": {"layout", "runtime"},
    "ops": {"reference", "layout", "runtime"},
    "modules": {"ops", "layout", "runtime"},
    "masking": {"layout", "runtime"},
    "data": {"masking", "layout", "runtime"},
    ROOF: {"data", "masking", "modules", "ops", "reference", "layout", "runtime"},
}
# Programs, each of which may import those before it.
PROGRAMS = ("examples", "benchmarks", "tools")
MAX_LINES = 400
REASON = "Longer than 400 lines because"
SOURCES = (".py", ".cpp", ".h", ".cu", ".cuh", ".md", ".txt", ".toml", ".yml", "Makefile")


def read_sources(*folders: str) -> dict[str, str]:
    """The text of every module, by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): (
            path.read_text()
        )
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
    }


def imports(sources: Mapping[str, str], name: str) -> Iterator[str]:
    """The modules among ``sources`` that one of them imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(sources[name])):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for full in found:
            if full in COMPILED:
                continue
            module = full if full in sources else full.rpartition(".")[0]
            if module in sources:
                yield module


def floor(name: str) -> str:
    """The folder of a module of the package; a name of the package itself is on the roof."""
    folder = name.split(".")[1] if "." in name else ROOF
    return folder if folder in MAY_IMPORT else ROOF


def upward_imports(sources: Mapping[str, str]) -> list[str]:
    return [
        f"{name} imports {imported}"
        for name in sources
        for imported in imports(sources, name)
        if floor(imported) not in {floor(name), *MAY_IMPORT[floor(name)]}
    ]


def circle(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a circle, if there are any."""
    graph = {name: set(imports(sources, name)) - {name} for name in sources}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_folder_is_a_floor() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert folders == set(MAY_IMPORT) - {ROOF}


def test_no_import_runs_upwards() -> None:
    assert upward_imports(read_sources(PACKAGE)) == []


def test_no_imports_run_in_a_circle() -> None:
    assert circle(read_sources(PACKAGE)) == []
    programs = read_sources(*PROGRAMS)
    assert circle(programs) == []
    for name in programs:
        later = PROGRAMS[PROGRAMS.index(name.partition(".")[0]) + 1 :]
        assert not [imported for imported in imports(programs, name) if imported.startswith(later)]


def test_programs_use_no_private_name_of_the_package() -> None:
    own = read_sources(PACKAGE)
    private = [f"{PACKAGE}.{folder}" for folder in ("runtime", "modules")]
    for name, source in read_sources("examples").items():
        for imported in imports({**own, name: source}, name):
            assert not imported.startswith(tuple(private)), f"{name} imports {imported}"


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("from varlen_rnn import ops", "layout"),
        ("from varlen_rnn import VarLenLSTM", "ops"),
        ("import varlen_rnn.modules", "reference"),
        ("def f():\n    from varlen_rnn.modules.base import VarLenRNNBase", "runtime"),
        ("from varlen_rnn.ops.cells import LSTM", "masking"),
    ],
)
def test_an_import_upwards_is_found(statement: str, where: str) -> None:
    sources = read_sources(PACKAGE)
    sources[f"varlen_rnn.{where}.planted"] = statement
    assert len(upward_imports(sources)) == 1


def test_a_circle_is_found() -> None:
    sources = {"a": "import b", "b": "def f():\n    from c import g", "c": "import a", "d": ""}
    assert set(circle(sources)) == {"a", "b", "c"}


def test_long_files_say_why() -> None:
    folders = ("benchmarks", "csrc", "docs", "examples", "tests", "tools", PACKAGE)
    files = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.is_file()]
    for path in files:
        is_ours = path.name.endswith(SOURCES) and "_build" not in path.parts
        if is_ours and "results" not in path.parts:
            text = path.read_text()
            assert text.count("\n") <= MAX_LINES or REASON in text, path


@pytest.mark.parametrize(
    "path",
    [
        "layout.Layout",
        "modules.VarLenLSTM",
        "modules.VarLenGRU",
        "freezing.FrozenVarLenLSTM",
        "freezing.FrozenVarLenGRU",
        "data.TokenBudgetBatchSampler",
    ],
)
def test_what_was_pickled_before_the_floors_is_found(path: str) -> None:
    module, _, name = path.rpartition(".")
    assert hasattr(importlib.import_module(f"varlen_rnn.{module}"), name)
