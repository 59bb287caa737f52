"""torch.export with dynamic batch and time, and AOTInductor."""

from __future__ import annotations

import ctypes.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fresh_process import run_python
from helpers import CELLS, HAS_EXTENSION, OURS, assert_bitwise, states_of
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export
from torch.utils import cpp_extension

pytestmark = [
    pytest.mark.skipif(
        not HAS_EXTENSION, reason="the reference looks at lengths, which cannot be exported"
    ),
    # torch's own, of its own deprecated names.
    pytest.mark.filterwarnings(
        "ignore:.*(is_fx_tracing|script_method|LeafSpec|buffer is not writable)"
    ),
]


KINDS = ("lengths", "mask", "cu_seqlens")


class Tagger(nn.Module):
    """Layers around an RNN; ``kind`` names the argument that says which tokens there are."""

    def __init__(self, cell: str, kind: str) -> None:
        super().__init__()
        self.rnn = OURS[cell](3, 4, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(8, 2)
        self.kind = kind

    def forward(self, x: Tensor, which: Tensor) -> tuple[Tensor, ...]:
        out, hx = self.rnn(x, **{self.kind: which})
        return self.head(out), *states_of(hx)


def example(kind: str, num_rows: int, num_steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Input, and what says which tokens there are."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, num_steps, 3, generator=generator)
    lengths = torch.randint(0, num_steps + 1, (num_rows,), generator=generator)
    if kind == "lengths":
        return x, lengths
    valid = torch.arange(num_steps) < lengths.unsqueeze(1)
    if kind == "cu_seqlens":
        return x[valid], nn.functional.pad(lengths.cumsum(0), (1, 0))
    return x, torch.rand(valid.shape, generator=generator) < 0.5


def exported(model: nn.Module, kind: str, strict: bool = False) -> ExportedProgram:
    """Of any number of rows and steps from 2 on."""
    dynamic = {0: Dim.DYNAMIC} if kind == "cu_seqlens" else {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    of_which = dynamic if kind == "mask" else {0: Dim.DYNAMIC}
    args = example(kind, 4, 7, seed=0)
    return export(model, args, dynamic_shapes=(dynamic, of_which), strict=strict)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_program_takes_other_sizes(kind: str, strict: bool) -> None:
    cell = CELLS[(KINDS.index(kind) + strict) % 2]
    model = Tagger(cell, kind).eval()
    program = exported(model, kind, strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum(name.startswith(f"varlen_rnn.{cell}_") for name in names) == 2
    for seed, shape in enumerate([(4, 7), (2, 3), (9, 20)]):
        args = example(kind, *shape, seed=seed)
        for got, truth in zip(program.module()(*args), model(*args), strict=True):
            assert_bitwise(got.detach(), truth.detach())


def test_a_program_survives_saving_and_decompositions(tmp_path: Path) -> None:
    model = Tagger("lstm", "lengths").eval()
    program = exported(model, "lengths")
    torch.export.save(program.run_decompositions(), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    args = example("lengths", 3, 5, seed=1)
    for got, truth in zip(loaded(*args), model(*args), strict=True):
        assert_bitwise(got.detach(), truth.detach())


@pytest.fixture(scope="module")
def model_and_package(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = Tagger("gru", "lengths").eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("aot") / "model.pt2"
    program = exported(model, "lengths")
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return model, path


def test_aot_inductor_compiles_loads_and_runs(model_and_package: tuple[nn.Module, Path]) -> None:
    model, path = model_and_package
    run = torch._inductor.aoti_load_package(str(path))
    for seed, shape in enumerate([(4, 7), (3, 12)]):
        args = example("lengths", *shape, seed=seed)
        for got, truth in zip(run(*args), model(*args), strict=True):
            torch.testing.assert_close(got, truth)


@pytest.mark.parametrize("saved", ["program", "package"])
def test_what_was_saved_is_loaded_after_the_import(
    model_and_package: tuple[nn.Module, Path], saved: str, tmp_path: Path
) -> None:
    """Torch's errors without it, which docs/deploying.md quotes: the import makes the ops known."""
    model, package = model_and_package
    load, message = f"torch._inductor.aoti_load_package({str(package)!r})", "Could not find schema"
    if saved == "program":
        torch.export.save(exported(model, "lengths"), tmp_path / "model.pt2")
        load = f"torch.export.load({str(tmp_path / 'model.pt2')!r})"
        message = "We ran into an error when deserializing the saved file"
    for imported, expected in (("torch", message), ("torch, varlen_rnn", "")):
        result = run_python(f"import {imported}; {load}")
        assert bool(result.returncode) == bool(expected), result.stderr
        assert expected in result.stderr
        assert not expected or "varlen_rnn" in result.stderr


def test_a_cpp_program_runs_what_aot_inductor_compiled(
    model_and_package: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    from varlen_rnn import _C

    compiler = shutil.which("c++")
    libpython = ctypes.util.find_library(
        f"python{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
    )
    if compiler is None or libpython is None:
        pytest.skip("needs a C++ compiler and a shared libpython")
    model, package = model_and_package
    program = tmp_path / "run_package"
    source = Path(__file__).parents[1] / "cpp" / "run_package.cpp"
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    links = [f"-L{path}" for path in cpp_extension.library_paths()]
    links += [f"-Wl,-rpath,{path}" for path in cpp_extension.library_paths()]
    links += ["-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    subprocess.run(
        [compiler, "-std=c++20", source, "-o", program, *includes, *links],
        check=True,
    )
    args = example("lengths", 5, 9, seed=3)
    torch.save(args, tmp_path / "inputs.pt")
    subprocess.run(
        [program, package, tmp_path / "inputs.pt", tmp_path / "outputs.pt", libpython, _C.__file__],
        check=True,
        timeout=300,
    )
    for got, truth in zip(torch.load(tmp_path / "outputs.pt"), model(*args), strict=True):
        torch.testing.assert_close(got, truth)
