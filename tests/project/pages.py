"""The pages of README.md and docs/: their sections, their blocks of code, and how these are run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("coming_from/*.md"))]
BLOCK = re.compile(r"^```(\w+)(?: +(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[str, str]]:
    """The blocks of Python, and whose they are: "here", "torch", "both", or not run."""
    return [
        (who or "here", code) for language, who, code in BLOCK.findall(text) if language == "python"
    ]


def sections(page: Path) -> dict[str, str]:
    head, *rest = page.read_text(encoding="utf-8").split("\n## ")
    return {"": head} | {part.partition("\n")[0]: part for part in rest}


def given(page: Path) -> str:
    """What the page takes for given: its first block for both sides; what the README leaves out."""
    if page.name != "README.md":
        return "".join(code for who, code in blocks(sections(page)[""]) if who == "both")
    return """
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from varlen_rnn import VarLenLSTM
x, lengths = torch.randn(3, 6, 4), torch.tensor([4, 6, 2])
input_size, hidden_size = 4, 8
model = nn.Sequential(nn.LSTM(4, 8, dtype=torch.float32))
"""


def names_after(before: str, code: str) -> dict[str, Any]:
    """What a block assigns, when run after what is given."""
    names: dict[str, Any] = {"__name__": "__main__"}
    torch.manual_seed(0)
    exec(before, names)
    at_first = set(names)
    torch.manual_seed(0)  # the same weights on both sides
    exec(code, names)
    return {name: value for name, value in names.items() if name not in {"_", *at_first}}
