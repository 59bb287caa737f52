"""What the README shows runs, and gives what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def run_code(title: str) -> dict[str, Any]:
    """Runs the section's first block of Python; returns its names."""
    code = re.search(r"```python\n(.*?)```", section(title), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    return names


CALLS = [
    line.split("|")[2].strip(" `")
    for line in section("Forms of a batch").splitlines()
    if "`rnn(" in line and line.count("|") == 4
]


def test_the_table_of_forms_has_all_of_them() -> None:
    forms = ("x[0]", "x", "packed", "lengths=", "mask=", "resets=", "cu_seqlens=", "nested")
    assert len(CALLS) == len(forms) + 1
    for form, call in zip((*forms, "output_states="), CALLS, strict=True):
        assert form in call


def tokens_of(batch: Any) -> torch.Tensor:
    if isinstance(batch, PackedSequence):
        return batch.data
    return batch.values() if batch.is_nested else batch


@pytest.mark.parametrize("call", CALLS)
def test_every_form_of_the_table_runs(call: str) -> None:
    names = run_code("Forms of a batch")
    out, (h_n, c_n) = eval(call, names)
    given = eval(re.sub(r"^rnn\((.*?)[,)].*", r"\1", call), names)
    num_rows = {"x[0]": (), "tokens": (3,), "nested": (2,)}.get(
        call[4:].split(",")[0].strip(")"), (3,)
    )
    assert h_n.shape == c_n.shape == (1, *num_rows, 16)
    for form in out if "output_states" in call else (out,):
        assert type(form) is type(given)
        assert tokens_of(form).shape == (*tokens_of(given).shape[:-1], 16)
        assert tokens_of(form).isfinite().all()


def test_the_model_of_padding_done_right_runs() -> None:
    names = run_code("Padding, done right")
    assert names["loss"].isfinite()
    assert names["logits"].shape == (4, 20, 5)
    assert names["weights"][1, 7:].eq(0).all()
    assert names["context"][2].eq(0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["rnn"].parameters())


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
