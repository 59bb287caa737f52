"""CONTRIBUTING lists the files that a new cell or form touches: code names it nowhere else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _python(text: str) -> str:
    """The code without comments and docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
    return ast.unparse(tree)


def _code(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".py":
        return _python(text)
    if path.name == "CMakeLists.txt":
        return re.sub(r"#.*", "", text)
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def _naming(name: str, *folders: str) -> set[str]:
    kinds = {".py", ".h", ".cpp", ".cu", ".cuh"}
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if (path.suffix in kinds or path.name == "CMakeLists.txt")
        if re.search(name, _code(path), re.IGNORECASE)
    }


def _listed(heading: str) -> set[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    paths = re.findall(r"`((?:varlen_rnn|csrc)/[^`]+)`", section)
    return {path for path in paths if path not in {"varlen_rnn/", "csrc/"}}


@pytest.mark.parametrize(
    ("heading", "name", "folders"),
    [
        ("How to add a cell", "gru", ("varlen_rnn", "csrc")),
        ("How to add a form", r"\bcu_seqlens\b", ("varlen_rnn",)),
    ],
)
def test_the_list_is_where_code_names_it(heading: str, name: str, folders: tuple[str, ...]) -> None:
    naming, listed = _naming(name, *folders), _listed(heading)
    covers = {entry: {f for f in naming if f.startswith(entry)} for entry in listed}
    assert naming - set().union(*covers.values()) == set()
    assert [entry for entry, files in covers.items() if not files] == []
