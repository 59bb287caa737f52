"""Seeds, fresh memory full of NaN, and the instruction sets and thread counts that tests run on."""

from __future__ import annotations

import random
import warnings
import zlib
from collections.abc import Iterator

import pytest
import torch
from helpers import HAS_EXTENSION

from varlen_rnn import ops
from varlen_rnn.runtime import extension

if HAS_EXTENSION:
    from varlen_rnn import _C

    ISAS = _C.available_cpu_isas()
    FLOAT_ISAS = _C.float_cpu_isas()
else:
    ISAS = FLOAT_ISAS = ["reference"]


def pytest_configure() -> None:
    """Every tensor that is made without values holds NaN: reading what was never written shows.

    One thread unless a test says otherwise: for sizes this small a second one only waits.
    """
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every", type=int, default=1, help="run one in so many of a test's cases")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """``--every N``: of each test function one case in N, and at least one: ``make check``.

    Which is the first depends on its name, so that not all functions take their grid's first case,
    with the same cell and instruction set. It is the same in every run and process.
    """
    every = config.getoption("every")
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {
        item
        for function, its in cases.items()
        for item in its[zlib.crc32(function.encode()) % min(every, len(its)) :: every]
    }
    if left := [item for item in items if item not in kept]:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item in kept]


@pytest.fixture(scope="session", autouse=True)
def fallback_warning_is_over() -> None:
    """Without the extension the first call warns, which would fail whichever test came first."""
    if not HAS_EXTENSION:
        with pytest.warns(RuntimeWarning, match="the plain PyTorch reference runs instead"):
            extension.warn_once()


@pytest.fixture(scope="session", autouse=True)
def unproven_warning_is_over() -> None:
    """The same of the first call on a GPU."""
    if extension.CUDA_UNAVAILABLE is None and torch.cuda.is_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            extension.warn_unproven()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers whichever tests ran before."""
    random.seed(0)
    torch.manual_seed(0)


def forced(name: str) -> Iterator[str]:
    if not HAS_EXTENSION:
        yield name
        return
    before = _C.cpu_isa()
    _C.set_cpu_isa(name)
    assert _C.cpu_isa() == name
    yield name
    _C.set_cpu_isa(before)


@pytest.fixture(params=FLOAT_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of this machine with kernels of its own for floats, forced; the
    reference if nothing was compiled. The others run the same functions for floats."""
    yield from forced(request.param)


@pytest.fixture
def one_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """One of those of `isa`, drawn by the test's name: for grids that have many cases for each."""
    yield from forced(FLOAT_ISAS[zlib.crc32(request.node.name.encode()) % len(FLOAT_ISAS)])


@pytest.fixture(params=ISAS)
def every_isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Also those with kernels of their own for int8 weights only."""
    yield from forced(request.param)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[1, 2] if HAS_EXTENSION else [1], ids=lambda count: f"threads{count}")
def threads(request: pytest.FixtureRequest, restore_threads: None) -> int:
    """One and two threads; what torch does with its own is not ours to test."""
    torch.set_num_threads(request.param)
    return request.param


@pytest.fixture
def without_onednn() -> Iterator[None]:
    """What oneDNN takes of torch's modules, and what it warns of, depends on the CPU."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)


@pytest.fixture
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """For errors of arguments, which come before the first layer runs."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a layer was computed before the arguments were checked")

    monkeypatch.setattr(ops, "lstm", fail)
    monkeypatch.setattr(ops, "gru", fail)
