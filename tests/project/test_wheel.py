"""The audit of wheels: what was built passes, and each fault that it is for is caught."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from helpers import HAS_EXTENSION

import varlen_rnn

if sys.version_info < (3, 11):
    pytest.skip("torch-abi-audit needs Python 3.11", allow_module_level=True)
from torch_abi_audit import torch_versions

AUDIT = Path(__file__).parents[1] / "wheel" / "audit.py"
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CXX = shlex.split(os.environ.get("CXX", "")) or ["c++"]
METADATA = "Metadata-Version: 2.4\nName: varlen_rnn\nVersion: 1\nRequires-Dist: {}\n"
STABLE = "aoti_torch_get_dtype"

pytestmark = [
    pytest.mark.skipif(not HAS_EXTENSION, reason="there is no compiled extension"),
    pytest.mark.skipif(sys.platform != "linux", reason="what is compiled here is ELF"),
    pytest.mark.skipif(not shutil.which(CXX[0]), reason="needs a C++ compiler"),
]


def make_wheel(folder: Path, files: dict[str, Path], torch: str = "torch>=2.10") -> Path:
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    wheel = folder / f"varlen_rnn-1-{tag}-{tag}-linux_{platform.machine()}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("varlen_rnn-1.dist-info/METADATA", METADATA.format(torch))
        archive.writestr("varlen_rnn-1.dist-info/RECORD", "".join(f"{name},,\n" for name in files))
        for name, path in files.items():
            archive.write(path, name)
    return wheel


def compile_module(folder: Path, declarations: str, calls: str, *libraries: str) -> Path:
    """A shared object that calls what is declared; a library is an empty one of that name."""
    source, module = folder / "module.cpp", folder / "module.so"
    source.write_text(f"{declarations}\nvoid calls() {{ {calls} }}\n")
    build = [*CXX, "-shared", "-fPIC", "-O0"]
    for library in libraries:
        empty = ["-x", "c", os.devnull, f"-Wl,-soname,{library}", "-o", str(folder / library)]
        subprocess.run([*build, *empty], check=True)
    linked = ["-Wl,--no-as-needed", *(str(folder / library) for library in libraries)]
    subprocess.run([*build, str(source), "-o", str(module), *linked], check=True)
    return module


def audit(wheel: Path, *options: str) -> tuple[int, str]:
    command = [sys.executable, str(AUDIT), *options, str(wheel)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not result.stderr
    return result.returncode, result.stdout


def function_since(torch: tuple[int, int]) -> str:
    versions = torch_versions.stable_shim_versions()
    return min(n for n, since in versions.items() if since[:2] == torch and n.startswith("torch_"))


def test_what_was_built_runs_with_every_torch_that_the_package_admits(tmp_path: Path) -> None:
    (torch,) = (
        requirement
        for requirement in importlib.metadata.requires("varlen_rnn") or []
        if requirement.startswith("torch>")
    )
    package = Path(varlen_rnn.__file__).parent
    files = {f"varlen_rnn/{path.name}": path for path in package.glob(f"_C*{SUFFIX}")}
    assert f"varlen_rnn/_C{SUFFIX}" in files
    status, said = audit(make_wheel(tmp_path, files, torch))
    assert status == 0, said
    assert said.endswith(": 0 faults\n")


C = 'extern "C" void {}();'
CASES = {
    "good": ("", "", [], "torch>=2.10", None),
    "of the oldest torch": (
        C.format(function_since((2, 10))), f"{function_since((2, 10))}();", [], "torch>=2.10", None,
    ),
    "a C++ function of torch": (
        "namespace at { void set_num_threads(int); }", "at::set_num_threads(1);", [], "torch>=2.10",
        r"takes at::set_num_threads\(int\), which is not of torch's stable ABI",
    ),
    "a C++ function that mentions torch's types": (
        "namespace c10 { struct Scalar; } void other(c10::Scalar*);", "other(nullptr);", [],
        "torch>=2.10", r"takes other\(c10::Scalar\*\), which is not of torch's stable ABI",
    ),
    "newer than the oldest torch": (
        C.format(function_since((2, 11))), f"{function_since((2, 11))}();", [], "torch>=2.10",
        rf"takes {function_since((2, 11))}, there since torch 2\.11\.0, expected 2\.10",
    ),
    "metadata that admits too old a torch": (
        C.format(function_since((2, 10))), f"{function_since((2, 10))}();", [], "torch!=2.12,>=2.9",
        rf"takes {function_since((2, 10))}, there since torch 2\.10\.0, expected 2\.9",
    ),
    "of a torch to come": (
        C.format("torch_of_tomorrow"), "torch_of_tomorrow();", [], "torch>=2.10",
        "takes torch_of_tomorrow, which torch-abi-audit does not know of",
    ),
    "a library of one torch and one Python": (
        "", "", ["libtorch_python.so"], "torch>=2.10", "links libtorch_python.so, which not every",
    ),
    "a library of CUDA builds": (
        "", "", ["libtorch_cuda.so"], "torch>=2.10", "links libtorch_cuda.so, which not every",
    ),
    "CUDA's runtime": (
        "", "", ["libcudart.so.13"], "torch>=2.10", "links libcudart.so.13, which not every",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_module_that_not_every_torch_can_load_is_a_fault(tmp_path: Path, case: str) -> None:
    declarations, calls, libraries, torch, fault = CASES[case]
    good = f"{C.format(STABLE)}\n{declarations}", f"{STABLE}(); {calls}"
    module = compile_module(tmp_path, *good, "libtorch_cpu.so", *libraries)
    files = {f"varlen_rnn/{name}{SUFFIX}": module for name in ("_C", "_C_cuda")}
    status, said = audit(make_wheel(tmp_path, files, torch))
    assert status == (1 if fault else 0), said
    for name in files if fault else ():
        assert re.search(f": {re.escape(name)} {fault}", said), said


def test_a_wheel_without_ops_or_with_a_copy_of_torch_is_a_fault(tmp_path: Path) -> None:
    good = compile_module(tmp_path, C.format(STABLE), f"{STABLE}();")
    name = f"varlen_rnn/_C{SUFFIX}"
    assert audit(make_wheel(tmp_path, {name: good}))[0] == 0
    status, said = audit(make_wheel(tmp_path, {}))
    assert status == 1
    assert "varlen_rnn/_C is missing" in said
    for brought in ("varlen_rnn.libs/libtorch_cpu-0a1b.so", "varlen_rnn.libs/libcudart.so.13"):
        status, said = audit(make_wheel(tmp_path, {name: good, brought: good}))
        assert status == 1
        assert f"brings {brought}\n" in said
    empty = compile_module(tmp_path, "", "")
    status, said = audit(make_wheel(tmp_path, {name: empty}))
    assert status == 1
    assert "takes no function of torch's stable ABI" in said


@pytest.mark.parametrize(
    ("symbol", "fault"),
    [
        ("GLIBC_2.28", None),
        ("GLIBC_2.31", "is for manylinux_2_31, expected manylinux_2_28 or older"),
        ("GLIBC_2.34", "is for manylinux_2_34, expected manylinux_2_28 or older"),
        ("GLIBC_9.9", "is of no manylinux platform, expected manylinux_2_28"),
    ],
)
def test_a_release_that_needs_too_new_a_linux_is_a_fault(
    tmp_path: Path, symbol: str, fault: str | None
) -> None:
    """The module takes a function that a C library of its own has since that version."""
    versions = tmp_path / "versions"
    versions.write_text(f"{symbol} {{ since; }};\n")
    library = tmp_path / "libc.so.6"
    build = [*CXX, "-shared", "-fPIC", "-O0", "-x", "c", "-", "-o", str(library)]
    script = ["-nostdlib", f"-Wl,-soname,libc.so.6,--version-script={versions}"]
    subprocess.run([*build, *script], input="void since(void) {}", text=True, check=True)
    source, module = tmp_path / "module.cpp", tmp_path / "module.so"
    source.write_text(f"{C.format('since')} {C.format(STABLE)} void f() {{ since(); {STABLE}(); }}")
    link = ["-shared", "-fPIC", "-O0", "-nostdlib", str(source), str(library), "-o", str(module)]
    subprocess.run([*CXX, *link], check=True)
    wheel = make_wheel(tmp_path, {f"varlen_rnn/_C{SUFFIX}": module})
    assert audit(wheel)[0] == 0
    status, said = audit(wheel, "--release")
    assert status == (1 if fault else 0), said
    assert fault is None or f": {fault}\n" in said
