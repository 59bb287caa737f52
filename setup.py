"""Hands the build of `varlen_rnn/_C` to CMake and Ninja; the flags stand in csrc/CMakeLists.txt.

VARLEN_RNN_EXTENSION=0 installs the pure-Python reference only, =1 demands a C++ compiler. Unset,
the extension is built wherever there is a compiler.
"""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
SWITCH = "VARLEN_RNN_EXTENSION"


def fail(problem: str) -> NoReturn:
    """Ends the installation with one line that names the way around."""
    sys.exit(f"varlen_rnn: {problem} ({SWITCH}=0 installs the pure-Python reference only)")


def missing(name: str) -> NoReturn:
    """Ends the installation for want of a package that builds the extension."""
    fail(f"the build needs {name}: install build-system.requires of pyproject.toml")


def find_compiler() -> str | None:
    """The C++ compiler that CMake is told to use: $CXX if set, else the first usual name."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next((name for name in names if shutil.which(shlex.split(name)[0])), None)


def package_dir(name: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else missing(name)


def find_tool(name: str, folder: str) -> str:
    """An executable: from the Python package of that name, else from PATH."""
    path = getattr(importlib.import_module(name), folder) if find_spec(name) else None
    return shutil.which(name, path=path) or missing(name)


class CMakeBuild(build_ext):
    """Runs CMake once for all extensions, in a folder that stays: a rebuild is incremental."""

    def run(self) -> None:
        """Builds the extension, or says why not."""
        switch = os.environ.get(SWITCH, "")
        if switch not in ("", "0", "1"):
            fail(f"{SWITCH} must be 0, 1 or unset, got {switch!r}")
        compiler = find_compiler()
        if switch != "0" and compiler:
            self.build_folder = self.cmake(compiler)
        elif switch == "1":
            fail(f"{SWITCH}=1, but there is no C++ compiler ($CXX, c++, g++, clang++)")
        else:
            reason = f"{SWITCH}=0" if switch else "no C++ compiler found ($CXX, c++, g++, clang++)"
            print(f"varlen_rnn: {reason}: installing WITHOUT the compiled extension", flush=True)
            for ext in self.extensions:  # what an earlier build left must not be loaded
                Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
            self.extensions = []
        super().run()

    def cmake(self, compiler: str) -> Path:
        """Configures and builds everything; returns the build folder."""
        name = re.sub(r"[^\w+]+", "-", f"{sys.implementation.cache_tag} {compiler}")
        folder = ROOT / "build" / name
        include = sysconfig.get_path("include")
        if not Path(include, "Python.h").exists():
            fail(f"no Python.h in {include}: install Python's headers, for example python3-dev")
        definitions = {
            "CMAKE_MAKE_PROGRAM": find_tool("ninja", "BIN_DIR"),
            "VARLEN_RNN_TORCH_DIR": package_dir("torch"),
            "VARLEN_RNN_PYBIND11_INCLUDE": package_dir("pybind11") / "include",
            "VARLEN_RNN_PYTHON_INCLUDE": include,
            "VARLEN_RNN_EXT_SUFFIX": sysconfig.get_config_var("EXT_SUFFIX"),
            "VARLEN_RNN_WERROR": os.environ.get("VARLEN_RNN_WERROR", "0"),
        }
        cmake = find_tool("cmake", "CMAKE_BIN_DIR")
        configure = [cmake, "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja"]
        configure += [f"-D{key}={value}" for key, value in definitions.items()]
        print(f"varlen_rnn: building _C with {compiler}, torch {version('torch')}", flush=True)
        try:
            for command in configure, [cmake, "--build", folder]:
                subprocess.run(command, check=True, env={**os.environ, "CXX": compiler})
        except subprocess.CalledProcessError:
            fail("the extension failed to compile, see above")
        return folder

    def build_extension(self, ext: Extension) -> None:
        """Copies what CMake built to where setuptools expects it."""
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a process that has it loaded keeps the old file
        shutil.copy2(self.build_folder / target.name, target)


sources = sorted(str(f.relative_to(ROOT)) for f in (ROOT / "csrc").rglob("*") if f.is_file())
setup(
    # `depends` puts the sources into the source distribution.
    ext_modules=[Extension("varlen_rnn._C", sources=[], depends=sources)],
    cmdclass={"build_ext": CMakeBuild},
)
