"""Hands the build of `varlen_rnn/_C` and `_C_cuda` to CMake and Ninja; flags: csrc/CMakeLists.txt.

VARLEN_RNN_EXTENSION=0 installs the pure-Python reference only, =1 demands a C++ compiler. Unset,
the extension is built wherever there is a compiler, GCC or clang, that is not too old for it.
VARLEN_RNN_CUDA=0 leaves its CUDA part out, =1 demands nvcc. Unset, it is built wherever there is an
nvcc that works, GPU or not. VARLEN_RNN_CUDA_ARCHS="80;90" compiles for these architectures only,
=native for those of this machine's GPUs: where there is none, the CUDA part is left out.
"""

import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))
from build_backend import (  # noqa: E402
    OLDEST_TORCH,
    can_be_built_with,
    compiler_problem,
    find_compiler,
    find_torch,
    torch_release,
)

EXTENSION = "VARLEN_RNN_EXTENSION"
CUDA = "VARLEN_RNN_CUDA"
ARCHS = "VARLEN_RNN_CUDA_ARCHS"
NATIVE = "native"
# Every generation from Turing on, which is the oldest that CUDA 13 compiles for. None needs to have
# been seen: whatever runs on a GPU, machine code or PTX that its driver compiles, is checked there
# where it is used first (varlen_rnn/ops/self_check.py).
DEFAULT_ARCHS = (75, 80, 86, 89, 90, 100, 120)
# The first that assembles st.async, by which the blocks of a cluster exchange states (PTX 8.1).
OLDEST_NVCC = (12, 1)
WITHOUT = {
    EXTENSION: f"{EXTENSION}=0 installs the pure-Python reference only",
    CUDA: f"{CUDA}=0 leaves the CUDA part out",
}


def fail(problem: str, part: str = EXTENSION) -> NoReturn:
    """Ends the installation with one line that names the way around."""
    sys.exit(f"varlen_rnn: {problem} ({WITHOUT[part]})")


def read_switch(name: str) -> str:
    """The value of an environment variable: "0", "1", or "" where it is unset."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        fail(f"{name} must be 0, 1 or unset, got {value!r}", name)
    return value


def missing(name: str) -> NoReturn:
    """Ends the installation for want of a package that builds the extension."""
    fail(f"the build needs {name}: install build-system.requires of pyproject.toml")


def find_nvcc() -> str | None:
    """The CUDA compiler: $CUDACXX if set, else that of $CUDA_HOME, else that of PATH."""
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    home = os.environ.get("CUDA_HOME")
    return (shutil.which(f"{home}/bin/nvcc") if home else None) or shutil.which("nvcc")


def ask_nvcc(nvcc: str, option: str) -> str:
    """What it prints when called with this option alone."""
    return subprocess.run([nvcc, option], stdout=subprocess.PIPE, text=True, check=False).stdout


def nvcc_release(nvcc: str) -> tuple[int, ...]:
    """The CUDA release that it is of, such as (12, 1); empty if it does not say so."""
    found = re.search(r"\brelease (\d+)\.(\d+)", ask_nvcc(nvcc, "--version"))
    return tuple(map(int, found.groups())) if found else ()


def gpu_archs() -> set[int]:
    """The architectures of this machine's GPUs, as nvidia-smi has it; none where there is none."""
    if not shutil.which("nvidia-smi"):
        return set()
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    listing = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout
    found = re.findall(r"^(\d+)\.(\d)$", listing, re.MULTILINE)
    return {int(major + minor) for major, minor in found}


def cuda_archs(nvcc: str) -> list[int]:
    """The architectures to compile for, ascending; none if this nvcc does not say what it knows."""
    listing = ask_nvcc(nvcc, "--list-gpu-arch")
    known = [int(arch) for arch in re.findall(r"^compute_(\d+)$", listing, re.MULTILINE)]
    offered = sorted(arch for arch in known if arch >= DEFAULT_ARCHS[0])
    if not offered:
        return []
    text = os.environ.get(ARCHS, "")
    if not text:
        return [arch for arch in DEFAULT_ARCHS if arch in offered]
    if text == NATIVE:
        return sorted(gpu_archs().intersection(offered))
    wanted = re.split("[;,]", text)
    if not set(wanted) <= set(map(str, offered)):
        some = ";".join(map(str, offered))
        which = f"{NATIVE} or some of {some} (those that {nvcc} compiles for)"
        fail(f"{ARCHS} must be {which}, got {text!r}", CUDA)
    return sorted(set(map(int, wanted)))


def package_dir(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else missing(name)


@cache
def torch_dir() -> Path:
    """The folder of torch."""
    folder = find_torch()
    if folder and can_be_built_with(folder):
        return folder
    oldest = ".".join(map(str, OLDEST_TORCH))
    got = "none"
    if folder:
        got = f"{'.'.join(map(str, torch_release(folder))) or 'no version'} in {folder}"
    fail(f"the build needs torch {oldest} or newer with its headers, got {got}")


def find_tool(name: str, folder: str) -> str:
    """An executable: from the Python package of that name, else from PATH."""
    path = getattr(importlib.import_module(name), folder) if find_spec(name) else ""
    # Where pip builds, what a package installed as a script is on PATH only.
    return shutil.which(name, path=path) or shutil.which(name) or missing(name)


class CMakeBuild(build_ext):
    """Runs CMake once for all extensions, in a folder that stays: a rebuild is incremental."""

    def run(self) -> None:
        """Builds the extensions, or says why not."""
        extension, cuda = read_switch(EXTENSION), read_switch(CUDA)
        compiler = find_compiler()
        problem = compiler_problem(compiler)
        built = []
        if extension != "0" and not problem:
            built = self.cmake(compiler, cuda)
        elif extension == "1":
            fail(f"{EXTENSION}=1, but {problem}")
        elif cuda == "1":
            fail(f"{CUDA}=1, but the CUDA part is part of the compiled extension", CUDA)
        else:
            reason = f"{EXTENSION}=0" if extension else problem
            print(f"varlen_rnn: {reason}: installing WITHOUT the compiled extension", flush=True)
        for ext in self.extensions:  # what an earlier build left must not be loaded
            if ext.name not in built:
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        self.extensions = [ext for ext in self.extensions if ext.name in built]
        super().run()

    def cmake(self, compiler: str, cuda: str) -> list[str]:
        """Configures and builds everything; returns the names of what there is now."""
        folder = torch_dir()
        release = ".".join(map(str, torch_release(folder)))
        print(f"varlen_rnn: building _C with {compiler}, torch {release} in {folder}", flush=True)
        with_cuda = cuda != "0" and self.configure_cuda(compiler, required=cuda == "1")
        part = CUDA if with_cuda else EXTENSION
        if not with_cuda and not self.configure(compiler, "", VARLEN_RNN_CUDA="OFF"):
            fail("the build could not be configured, see above")
        if not self.run_cmake(compiler, "--build", self.build_folder):
            fail("the extension failed to compile, see above", part)
        return ["varlen_rnn._C", "varlen_rnn._C_cuda"] if with_cuda else ["varlen_rnn._C"]

    def configure_cuda(self, compiler: str, required: bool) -> bool:
        """Configures with the CUDA part; returns whether that worked, and says it if not."""
        nvcc = find_nvcc()
        release = nvcc_release(nvcc) if nvcc else ()
        archs = cuda_archs(nvcc) if nvcc and release >= OLDEST_NVCC else []
        if not nvcc:
            reason = "no nvcc found ($CUDACXX, $CUDA_HOME/bin/nvcc, PATH)"
        elif not archs and release >= OLDEST_NVCC and os.environ.get(ARCHS) == NATIVE:
            reason = f"{ARCHS}={NATIVE}, and nvidia-smi shows no GPU that {nvcc} compiles for"
        elif not archs:
            oldest, found = (".".join(map(str, numbers)) for numbers in (OLDEST_NVCC, release))
            which = f"{nvcc} (CUDA {found})" if found else nvcc
            reason = f"{which} is older than CUDA {oldest} or does not work"
        else:
            print(f"varlen_rnn: building _C_cuda with {nvcc}", flush=True)
            definitions = {
                "VARLEN_RNN_CUDA": "ON",
                "VARLEN_RNN_CUDA_ARCHS": ";".join(map(str, archs)),
                "VARLEN_RNN_PYTHON": sys.executable,
                "CMAKE_CUDA_COMPILER": nvcc,
            }
            if self.configure(compiler, nvcc, **definitions):
                return True
            reason = f"{nvcc} failed CMake's check, see above"
        if required:
            fail(f"{CUDA}=1, but {reason}", CUDA)
        print(f"varlen_rnn: {reason}: building WITHOUT the CUDA part", flush=True)
        return False

    def configure(self, compiler: str, nvcc: str, **definitions: str) -> bool:
        """Configures a folder of its own for each pair of compilers: CMake cannot change them."""
        name = re.sub(r"[^\w+]+", "-", f"{sys.implementation.cache_tag} {compiler}{nvcc}")
        self.build_folder = ROOT / "build" / name
        include = sysconfig.get_path("include")
        if not Path(include, "Python.h").exists():
            fail(f"no Python.h in {include}: install Python's headers, for example python3-dev")
        everywhere = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja", "BIN_DIR"),
            "VARLEN_RNN_TORCH_DIR": torch_dir(),
            "VARLEN_RNN_PYBIND11_INCLUDE": package_dir("pybind11") / "include",
            "VARLEN_RNN_PYTHON_INCLUDE": include,
            "VARLEN_RNN_EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "VARLEN_RNN_WERROR": os.environ.get("VARLEN_RNN_WERROR", "0"),
        }
        pairs = [f"-D{key}={value}" for key, value in {**everywhere, **definitions}.items()]
        folders = ["-S", ROOT / "csrc", "-B", self.build_folder]
        return self.run_cmake(compiler, *folders, "-G", "Ninja", *pairs)

    def run_cmake(self, compiler: str, *arguments: str | Path) -> bool:
        """Runs CMake with a C++ compiler; returns whether that worked."""
        command = [find_tool("cmake", "CMAKE_BIN_DIR"), *arguments]
        return (
            subprocess.run(command, env={**os.environ, "CXX": compiler}, check=False).returncode
            == 0
        )

    def build_extension(self, ext: Extension) -> None:
        """Copies what CMake built to where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process that has it loaded keeps the old file
        shutil.copy2(self.build_folder / target.name, target)


files = [f for f in (ROOT / "csrc").rglob("*") if f.is_file() and f.parent.name != "__pycache__"]
sources = sorted(str(f.relative_to(ROOT)) for f in files)
setup(
    # `depends` puts the sources into the source distribution.
    ext_modules=[
        Extension("varlen_rnn._C", sources=[], depends=sources),
        Extension("varlen_rnn._C_cuda", sources=[]),
    ],
    cmdclass={"build_ext": CMakeBuild},
)
