"""Builds all that `make gpu-check` runs, on a machine that needs no GPU: `make gpu-prebuild`.

    python -m tools.gpu.prebuild [--python python3.12] [--arch 90] [--output DIR]

Of the other Python only its headers count. The stable ABI makes the binaries independent of torch:
any from 2.10 on will do, here as there. What is there afterwards: both modules of the package, its
metadata, the programs simt_test, calibrate and clusters, and build.json, which says for what they
are. Runs with the standard library and the packages of pyproject's group `build`, beside torch.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import commit

ROOT = Path(__file__).resolve().parents[2]
PREBUILT = ROOT / "build" / "gpu-prebuilt"
PROGRAMS = ("simt_test", "calibrate", "clusters")
SOURCES = ("csrc", "tests/cpp", "tools/gpu/cuda")
# With what runs beside that.
ALL_SOURCES = ("benchmarks", "csrc", "tests", "tools", "varlen_rnn")
# What is asked of a Python: version, suffix of modules, and where its headers are.
QUESTION = (
    "import json, sys, sysconfig; print(json.dumps([list(sys.version_info[:2]),"
    "sysconfig.get_config_var('EXT_SUFFIX'), sysconfig.get_path('include')]))"
)


def sources_hash(root: Path = ROOT, folders: Sequence[str] = SOURCES) -> str:
    """Of all that is compiled: what was built from other sources does not count."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            counts = path.suffix not in (".pyc", ".md", ".so") and path.parent.name != "results"
            if counts and path.is_file():
                digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def find_python(name: str) -> str:
    """A Python that runs: on PATH, or one that pyenv installed, whose shims may not run."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = shutil.which(name)
    installed = sorted(pyenv.glob(f"*/bin/{name}"), reverse=True)
    for python in [*([found] if found else []), *map(str, installed)]:
        try:
            subprocess.run([python, "-c", ""], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    raise SystemExit(f"gpu-prebuild: there is no {name} here that runs")


def find_tool(name: str) -> str:
    """cmake or ninja: beside this Python, or on PATH."""
    beside = shutil.which(name, path=str(Path(sys.executable).parent))
    return beside or shutil.which(name) or sys.exit(f"gpu-prebuild: there is no {name} here")


def find_nvcc() -> str:
    """The nvcc that setup.py takes, which has a copy of this: neither can import the other."""
    if os.environ.get("CUDACXX"):
        found = shutil.which(os.environ["CUDACXX"])
    else:
        home = os.environ.get("CUDA_HOME")
        found = (shutil.which(f"{home}/bin/nvcc") if home else None) or shutil.which("nvcc")
    return found or sys.exit("gpu-prebuild: no nvcc found ($CUDACXX, $CUDA_HOME/bin/nvcc, PATH)")


def package_folder(name: str) -> Path:
    """Of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"gpu-prebuild: {sys.executable} has no {name}")
    return Path(spec.origin).parent


def compile_all(folder: Path, include: str, suffix: str, arch: str) -> None:
    """Runs CMake, whose folder stays, so that the next time less is compiled."""
    definitions = {
        "CMAKE_MAKE_PROGRAM": find_tool("ninja"),
        "CMAKE_CUDA_COMPILER": find_nvcc(),
        "VARLEN_RNN_CUDA": "ON",
        "VARLEN_RNN_GPU_TOOLS": "ON",
        "VARLEN_RNN_CUDA_ARCHS": arch,
        "VARLEN_RNN_PYTHON": sys.executable,
        "VARLEN_RNN_TORCH_DIR": package_folder("torch"),
        "VARLEN_RNN_PYBIND11_INCLUDE": package_folder("pybind11") / "include",
        "VARLEN_RNN_PYTHON_INCLUDE": include,
        "VARLEN_RNN_EXT_SUFFIX": suffix,
    }
    pairs = [f"-D{name}={value}" for name, value in definitions.items()]
    cmake = find_tool("cmake")
    subprocess.run([cmake, "-S", ROOT / "csrc", "-B", folder, "-G", "Ninja", *pairs], check=True)
    subprocess.run([cmake, "--build", folder], check=True)


def build(python: str, arch: str, output: Path) -> dict[str, object]:
    """Fills the folder anew; returns what build.json says."""
    asked = subprocess.run([python, "-c", QUESTION], check=True, stdout=subprocess.PIPE, text=True)
    version, suffix, include = json.loads(asked.stdout)
    if not Path(include, "Python.h").exists():
        raise SystemExit(f"gpu-prebuild: no Python.h in {include}: install that Python's headers")
    name = "-".join(map(str, version))
    # Before: what changes meanwhile is not in the binaries.
    made, everything, at = sources_hash(), sources_hash(folders=ALL_SOURCES), commit()
    folder = output.with_name(f"{output.name}-cmake-{name}-{arch}")
    compile_all(folder, include, suffix, arch)
    shutil.rmtree(output, ignore_errors=True)
    package, programs = output / "varlen_rnn", output / "bin"
    package.mkdir(parents=True)
    programs.mkdir()
    for module in ("_C", "_C_cuda"):
        shutil.copy2(folder / f"{module}{suffix}", package)
    for program in PROGRAMS:
        shutil.copy2(folder / program, programs)
    egg_info = ("setup.py", "--quiet", "egg_info", "--egg-base", output)
    subprocess.run([sys.executable, *egg_info], cwd=ROOT, check=True)
    for path in (*package.iterdir(), *programs.iterdir()):
        subprocess.run(["strip", "--strip-unneeded", path], check=True)
    described: dict[str, object] = {
        "python": version,
        "machine": platform.machine(),
        "arch": arch,
        "sources": made,
        "all_sources": everything,
        "commit": at,
    }
    (output / "build.json").write_text(json.dumps(described) + "\n", encoding="utf-8")
    return described


def commit_of(folder: Path) -> str:
    """What the tree was at when that was built, for a copy of it that git knows nothing of.

    With "-dirty" if anything that runs has changed since then.
    """
    try:
        built = json.loads((folder / "build.json").read_text(encoding="utf-8"))
        at, then = str(built["commit"]), built["all_sources"]
    except (OSError, ValueError, KeyError):
        return "unknown"
    same = then == sources_hash(folders=ALL_SOURCES) or at.endswith("-dirty")
    return at if same else f"{at}-dirty"


def why_not(folder: Path, capability: tuple[int, int]) -> str | None:
    """Why what was built does not fit this Python, machine, device and tree; None if it does."""
    try:
        built = json.loads((folder / "build.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "nothing was built"
    here = list(sys.version_info[:2])
    # Machine code runs on later devices of its generation.
    major, minor = divmod(int(built["arch"]), 10)
    if built["python"] != here:
        return f"it is for Python {built['python']}, this is {here}"
    if built["machine"] != platform.machine():
        return f"it is for {built['machine']}, this is {platform.machine()}"
    if major != capability[0] or minor > capability[1]:
        return f"it is for sm_{built['arch']}, the device has {capability}"
    return None if built["sources"] == sources_hash() else "the sources have changed"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu.prebuild", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--python", default="python3.12", help="a name or a path")
    parser.add_argument("--arch", type=int, default=90, help="compute capability, such as 90")
    parser.add_argument("--output", type=Path, default=PREBUILT)
    args = parser.parse_args(argv)
    build(find_python(args.python), str(args.arch), args.output.resolve())
    files = [path for path in args.output.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"gpu-prebuild: {len(files)} files, {size:.1f} MiB in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
