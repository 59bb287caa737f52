"""Examples in docstrings and code in the pages run, and the API page has every public name."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import HAS_EXTENSION
from pages import BLOCK, DOCS, PAGES, ROOT, blocks, given, names_after, sections
from torch.nn.utils.rnn import PackedSequence

import varlen_rnn

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(varlen_rnn.__path__, "varlen_rnn.")
    if module.name not in ("varlen_rnn._C", "varlen_rnn._C_cuda")
)


def public_names(module: Any) -> dict[str, Any]:
    """Every public module, class, function and method, by its name on the API page."""
    names: dict[str, Any] = {module.__name__: module}
    defined_here = [
        name
        for name, value in vars(module).items()
        if (inspect.isroutine(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    for name in getattr(module, "__all__", defined_here):
        value = getattr(module, name)
        if name.startswith("_"):
            continue
        if inspect.ismodule(value):
            names |= public_names(value)
            continue
        names[f"{module.__name__}.{name}"] = value
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if method.startswith("_") or not callable(getattr(value, method)):
                continue
            if not function.__module__.startswith("torch."):  # not one of torch's own
                names[f"{module.__name__}.{name}.{method}"] = function
    return names


PUBLIC = public_names(varlen_rnn)


@pytest.mark.parametrize("name", ["varlen_rnn", *MODULES])
def test_examples_in_docstrings(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), report=True)
    assert results.failed == 0, f"{results.failed} of {results.attempted} failed, see the output"


def test_the_modules_of_the_package_are_found() -> None:
    assert {"varlen_rnn.layout", "varlen_rnn.modules", "varlen_rnn.reference"} <= set(MODULES)


def test_the_public_names_are_found() -> None:
    assert {
        "varlen_rnn.convert",
        "varlen_rnn.VarLenLSTM.forward",
        "varlen_rnn.masking",
        "varlen_rnn.masking.MaskedConv1d.output_lengths",
        "varlen_rnn.masking.masked_mean",
        "varlen_rnn.reference.lstm_cell",
    } <= set(PUBLIC)
    assert "varlen_rnn.reference.Layout" not in PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_docstring_with_an_example(name: str) -> None:
    value = PUBLIC[name]
    assert inspect.getdoc(value)
    is_method = inspect.isclass(PUBLIC.get(name.rpartition(".")[0]))
    if not (inspect.ismodule(value) or is_method):
        assert ">>> " in (inspect.getdoc(value) or "")


@pytest.mark.parametrize("name", PUBLIC)
def test_every_error_in_a_docstring_has_an_entry_of_its_own(name: str) -> None:
    """Else the API page takes the text up to the next colon for the name of an exception."""
    section = re.search(
        r"^Raises:\n((?:    .*\n|\n)+)", (inspect.getdoc(PUBLIC[name]) or "") + "\n", re.MULTILINE
    )
    for line in section[1].splitlines() if section else ():
        assert re.match(r"    ([A-Z]\w*Error: | {4,}\S)|$", line), line
        assert not re.match(r".+\b[A-Z]\w*Error: ", line[4:]), line


@pytest.fixture(scope="module")
def api_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page as `make docs` builds it; a warning is an error."""
    if importlib.util.find_spec("sphinx") is None:
        pytest.skip("Sphinx is not installed: pip install --group docs")
    folder = tmp_path_factory.mktemp("docs")
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return (folder / "api.html").read_text(encoding="utf-8")


def test_the_api_page_has_every_public_name(api_page: str) -> None:
    anchors = set(re.findall(r'id="(?:module-)?(varlen_rnn[\w.]*)"', api_page))
    assert set(PUBLIC) - anchors == set()


def test_the_api_page_takes_no_text_for_a_type(api_page: str) -> None:
    """As it does with what stands before a colon in the first line of "Returns:"."""
    assert "Return type" not in api_page


# A block of Python may say whose it is: ours if it says nothing. These are not run.
NOT_RUN = {
    "accelerate",
    "allennlp",
    "darts",
    "flash-attn",
    "keras",
    "onnxruntime",
    "sb3-contrib",
    "torchrl",
    "transformers",
}


CODE = [
    pytest.param(page, title, id=f"{page.relative_to(ROOT)}: {title or 'head'}")
    for page in PAGES
    for title, text in sections(page).items()
    if any(who in ("here", "torch") for who, _ in blocks(text))
]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.values() if value.is_nested else value
    elif isinstance(value, PackedSequence):
        yield from (value.data, value.batch_sizes)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_of(part)


# What code says of itself, and what it then needs.
NEEDS_EXTENSION = re.compile(r"torch\.(compile|export|onnx|jit\.trace)\b|^# bitwise$", re.MULTILINE)
NEEDS_PACKAGES = {"torch.onnx": ("onnx", "onnxscript", "onnxruntime")}
ONE_PROCESS = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@pytest.fixture
def as_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In a folder for the files that a page writes, and as the only process of its program."""
    monkeypatch.chdir(tmp_path)
    for name, value in ONE_PROCESS.items():
        monkeypatch.setenv(name, value)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:.*torch.jit.* is (deprecated|not supported)")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated")
@pytest.mark.filterwarnings("ignore:# The axis name. rows will not be used")
@pytest.mark.usefixtures("as_a_reader")
@pytest.mark.parametrize(("page", "title"), CODE)
def test_the_code_of_a_page_runs_and_both_sides_agree(page: Path, title: str) -> None:
    text = sections(page)[title]
    if not HAS_EXTENSION and any(NEEDS_EXTENSION.search(code) for _, code in blocks(text)):
        pytest.skip("needs the compiled extension")
    for part, packages in NEEDS_PACKAGES.items():
        if part in text:
            for package in packages:
                pytest.importorskip(package)
    if any(who == "torch" for who, _ in blocks(text)):
        # What is equal is equal to far more digits there than what is nearly so.
        torch.set_default_dtype(torch.float64)
    before, theirs = given(page), None
    for who, code in blocks(text):
        if who == "both" and title:
            before += code
        elif who == "torch":
            theirs = names_after(before, code)
        elif who == "here":
            ours = names_after(before, code)
            if theirs is not None:
                shared = {
                    name: (tensors, list(tensors_of(theirs[name])))
                    for name, value in ours.items()
                    if name in theirs and (tensors := list(tensors_of(value)))
                }
                results = [
                    t for _, expected in shared.values() for t in expected if t.requires_grad
                ]
                assert results, "no result that both sides give a name"
                for name, (got, expected) in shared.items():
                    torch.testing.assert_close(
                        got, expected, rtol=0, atol=1e-12, msg=lambda text, n=name: f"{n}: {text}"
                    )
            theirs = None
    assert theirs is None, "a block of torch without one of ours"


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.name)
def test_code_is_narrow_enough_for_the_page(page: Path) -> None:
    """Browsers show so many columns of it beside the table of contents."""
    code = [
        line for _, _, block in BLOCK.findall(page.read_text("utf-8")) for line in block.split("\n")
    ]
    assert [line for line in code if len(line) > 92] == []


def test_the_tests_that_a_page_names_are_there() -> None:
    names = {
        name for page in PAGES for name in re.findall(r"\btest_\w+\.py", page.read_text("utf-8"))
    }
    files = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert "test_compile.py" in names
    assert names - files == set()


def test_other_libraries_are_what_the_page_says() -> None:
    marks = {who for page in PAGES for _, text in sections(page).items() for who, _ in blocks(text)}
    assert marks == {"here", "torch", "both"} | NOT_RUN


def test_weights_from_keras_give_what_keras_documents() -> None:
    """One step of Keras' cells in NumPy: gates i, f, c, o of LSTM and z, r, h of GRU."""
    page = DOCS / "coming_from" / "keras.md"
    names = names_after(given(page), blocks(sections(page)["Weights"])[0][1])
    random = np.random.default_rng(0)
    x, h, c = random.normal(size=(5, 4)), random.normal(size=(5, 8)), random.normal(size=(5, 8))

    def sigmoid(gate: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-gate))

    def run(name: str, load: str, weights: list[np.ndarray], states: Any) -> np.ndarray:
        rnn = getattr(varlen_rnn, name)(4, 8, dtype=torch.float64)
        rnn.load_state_dict(names[load](*weights))
        return rnn(torch.from_numpy(x)[None], states)[0][0].detach().numpy()

    h_0, c_0 = torch.from_numpy(h)[None], torch.from_numpy(c)[None]
    kernel, recurrent, bias = (random.normal(size=shape) for shape in ((4, 32), (8, 32), (32,)))
    i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4, axis=1)
    expected = sigmoid(o) * np.tanh(sigmoid(f) * c + sigmoid(i) * np.tanh(g))
    out = run("VarLenLSTM", "from_keras_lstm", [kernel, recurrent, bias], (h_0, c_0))
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)

    kernel, recurrent, bias = (random.normal(size=shape) for shape in ((4, 24), (8, 24), (2, 24)))
    x_z, x_r, x_h = np.split(x @ kernel + bias[0], 3, axis=1)
    h_z, h_r, h_h = np.split(h @ recurrent + bias[1], 3, axis=1)
    z, candidate = sigmoid(x_z + h_z), np.tanh(x_h + sigmoid(x_r + h_r) * h_h)
    out = run("VarLenGRU", "from_keras_gru", [kernel, recurrent, bias], h_0)
    np.testing.assert_allclose(out, z * h + (1 - z) * candidate, rtol=0, atol=1e-12)
