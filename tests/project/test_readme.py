"""What the README shows runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def calls_in(page: str) -> list[str]:
    """The calls that a page's table of forms has."""
    return re.findall(r"^\|.*\| `(rnn\(.*\))` \|", page, re.MULTILINE)


def test_the_forms_are_those_of_their_page() -> None:
    """Where they run as tests; the page tells the order of dimensions apart, and one row."""
    page = (ROOT / "docs" / "forms.md").read_text(encoding="utf-8")
    assert set(calls_in(page)) - set(calls_in(README)) == {"rnn(x[0])"}
    assert set(calls_in(README)) < set(calls_in(page))


def test_the_first_lines_are_equivalent() -> None:
    """``rnn(x, lengths=...)`` and the packing that the README puts beside it."""
    ours, theirs = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[:2]
    torch.manual_seed(0)
    names: dict[str, Any] = {"input_size": 3, "hidden_size": 5}
    exec(
        "from torch import nn\nfrom varlen_rnn import VarLenLSTM\n"
        "from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence",
        names,
    )
    names |= {"x": torch.randn(4, 7, 3), "lengths": torch.tensor([7, 2, 5, 1])}
    results = []
    for code in (ours, theirs):
        torch.manual_seed(1)  # the same weights
        exec(code, names)
        results.append([names["out"], names["h_n"], names["c_n"]])
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_what_the_readme_links_exists() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) > 5
    for link in links:
        assert (ROOT / link).exists(), link
