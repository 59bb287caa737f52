"""What the pages say beyond code that runs (test_docs.py): forms, padding, libraries, speed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import DOCS, ROOT, blocks, given, names_after, sections
from torch import nn
from torch.nn.utils.rnn import PackedSequence

sys.path.insert(0, str(ROOT))

from benchmarks.records import NN, RESULTS, chosen, load, mean_ratio, ratio, seconds
from varlen_rnn import VarLenLSTM, convert

FORMS = DOCS / "forms.md"
CALLS = re.findall(r"\| `(rnn\(.*\))` \|", FORMS.read_text(encoding="utf-8"))

PACKAGES = DOCS / "coming_from" / "packages.md"


def as_the_library_does(
    title: str, layer: str = "nn.LSTM", page: Path = PACKAGES
) -> dict[str, Any]:
    """What a section's code for both sides assigns, with another layer in the place of torch's."""
    code = "".join(code for who, code in blocks(sections(page)[title]) if who == "both")
    return names_after(given(page), code.replace("nn.LSTM(", f"{layer}("))


def test_torchrl_packs_for_torch_s_layer_and_passes_a_mask_to_ours() -> None:
    names = as_the_library_does(
        "TorchRL: LSTMModule and is_init", page=DOCS / "reinforcement_learning.md"
    )
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
    assert f"`{said_of_it}`" in sections(PACKAGES)[title]
    del model["encoder"].forward
    assert type(convert(model)["encoder"]) is VarLenLSTM


def test_what_is_built_late_is_ours_under_replacing_torch_only() -> None:
    title = "Darts: layers that are built late"
    for who, code in blocks(sections(PACKAGES)[title]):
        if who in ("torch", "here"):
            both = "".join(code for who, code in blocks(sections(PACKAGES)[title]) if who == "both")
            rnn = names_after(given(PACKAGES) + both, code)["model"].rnn
            assert type(rnn) is (nn.LSTM if who == "torch" else VarLenLSTM)


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
    names = names_after("", given(FORMS))
    out, (h_n, c_n) = eval(call, names)
    batch = eval(re.sub(r"^rnn\((.*?)[,)].*", r"\1", call), names)
    num_rows = {"x[0]": (), "tokens": (3,), "nested": (2,)}.get(
        call[4:].split(",")[0].strip(")"), (3,)
    )
    assert h_n.shape == c_n.shape == (1, *num_rows, 16)
    for form in out if "output_states" in call else (out,):
        assert type(form) is type(batch)
        assert tokens_of(form).shape == (*tokens_of(batch).shape[:-1], 16)
        assert tokens_of(form).isfinite().all()


def test_the_model_of_padding_done_right_leaves_padding_alone() -> None:
    names = names_after("", blocks(sections(DOCS / "padding.md")["A whole model"])[0][1])
    assert names["loss"].isfinite()
    assert names["logits"].shape == (4, 20, 5)
    assert names["weights"][1, 7:].eq(0).all()
    assert names["context"][2].eq(0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in names["rnn"].parameters())


def test_what_is_said_of_speed_in_words_is_so_in_the_results() -> None:
    """README.md and docs/performance.md, under "When it pays", and docs/deploying.md of int8."""
    records = load(RESULTS / "zen5-avx512-cpu.jsonl")
    full = {
        (r["cell"], r["mode"]): ratio(r, NN.__contains__)
        for r in chosen(records, group="lengths", distribution="full")
    }
    assert all(0.95 < full["lstm", mode] < 1.1 for mode in ("inference", "training")), full
    assert all(full["gru", mode] > 2 for mode in ("inference", "training")), full
    assert all(
        step["nn cell"] <= step["varlen_rnn"]
        for step in map(seconds, chosen(records, group="step"))
    )
    for cell in ("lstm", "gru"):
        shapes = chosen(records, group="shapes", cell=cell)
        training, inference = (
            mean_ratio(chosen(shapes, mode=mode)) for mode in ("training", "inference")
        )
        assert training > inference > 1
        growth = [
            times["nn packed"] / times["nn padded"]
            for times in map(seconds, chosen(records, group="growth", cell=cell))
        ]
        assert growth == sorted(growth)
        assert growth[0] > 1
    int8 = chosen(load(RESULTS / "quantized.jsonl"), what="speed", B=1, T=100)
    large = [r["peers"] for r in int8 if r["H"] >= 256]
    assert len(large) == 6
    assert all(
        p["varlen_rnn float32"]["median_s"] > 2 * p["varlen_rnn int8"]["median_s"] for p in large
    )
