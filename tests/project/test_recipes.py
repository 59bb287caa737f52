"""What docs/coming_from.md says of other libraries; test_docs.py runs its code and compares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_docs import ROOT, blocks, given, names_after, sections
from torch import nn

from varlen_rnn import VarLenLSTM, convert

PAGE = ROOT / "docs" / "coming_from.md"


def as_the_library_does(title: str, layer: str = "nn.LSTM") -> dict[str, Any]:
    """What a section's code for both sides assigns, with another layer in the place of torch's."""
    code = "".join(code for who, code in blocks(sections(PAGE)[title]) if who == "both")
    return names_after(given(PAGE), code.replace("nn.LSTM(", f"{layer}("))


def test_torchrl_packs_for_torch_s_layer_and_passes_a_mask_to_ours() -> None:
    names = as_the_library_does("TorchRL: LSTMModule and is_init")
    calls: list[tuple[type, list[str]]] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((type(inputs[0]), list(keywords)))

    for rnn in (nn.LSTM(4, 8, batch_first=True), convert(nn.LSTM(4, 8, batch_first=True))):
        rnn.register_forward_pre_hook(note, with_kwargs=True)
        names["lstm_module"](rnn, torch.randn(3, 6, 4), names["is_init"])
    assert calls == [(nn.utils.rnn.PackedSequence, []), (torch.Tensor, ["mask"])]


def test_transformers_initialises_torch_s_layer_and_not_ours() -> None:
    """Fresh memory holds NaN here."""
    for layer, is_left in (("nn.LSTM", False), ("VarLenLSTM", True)):
        names = as_the_library_does("transformers: from_pretrained", layer)
        rnn = names["Model"].from_pretrained(names["checkpoint"]).rnn
        assert all(weight.isnan().all() == is_left for weight in rnn.parameters())


def test_a_layer_with_a_hook_of_accelerate_is_left_and_named() -> None:
    title = "accelerate: convert first, hooks afterwards"
    model = nn.ModuleDict({"encoder": as_the_library_does(title)["add_hook"](nn.LSTM(4, 8))})
    with pytest.warns(UserWarning, match="nothing was converted") as said:
        convert(model)
    said_of_it = str(said[0].message).partition("; ")[2]
    assert f"`{said_of_it}`" in sections(PAGE)[title]
    del model["encoder"].forward
    assert type(convert(model)["encoder"]) is VarLenLSTM


def test_what_is_built_late_is_ours_under_replacing_torch_only() -> None:
    title = "Darts: layers that are built late"
    for who, code in blocks(sections(PAGE)[title]):
        if who in ("torch", "here"):
            both = "".join(code for who, code in blocks(sections(PAGE)[title]) if who == "both")
            rnn = names_after(given(PAGE) + both, code)["model"].rnn
            assert type(rnn) is (nn.LSTM if who == "torch" else VarLenLSTM)
