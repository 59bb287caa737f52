"""Holds every CUDA kernel to no register spills and to the registers that its launch bounds leave.

`record` stands before an nvcc command (CMAKE_CUDA_COMPILER_LAUNCHER) and writes what ptxas says
about the kernels beside the object: only nvcc's own output has spills, only the PTX has launch
bounds. `check` reads what the last build recorded (or that of a given build folder), prints the
worst kernels, and fails if one breaks the rules.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, on every architecture that we compile for
UNIT = 8  # registers of a thread are handed out in such steps

COMPILING = re.compile(r"ptxas info\s*: Compiling entry function '(\w+)' for '(\w+)'")
SPILLS = re.compile(
    r"\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
)
USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
ENTRY = re.compile(r"\.entry (\w+)\([^)]*\)([^{]*)")
BOUNDS = re.compile(r"\.(maxntid|minnctapersm) (\d+)")


def launch_bounds(folder: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Threads of a block and blocks of a multiprocessor, by kernel and architecture, from PTX."""
    bounds = {}
    for path in folder.glob("*.ptx"):
        ptx = path.read_text()
        arch = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
        for kernel, directives in ENTRY.findall(ptx):
            found = {name: int(count) for name, count in BOUNDS.findall(directives)}
            bounds[kernel, arch] = {
                "threads": found.get("maxntid", 0),
                "blocks": found.get("minnctapersm", 1),
            }
    return bounds


def record(command: list[str]) -> int:
    """Runs nvcc, and passes on what it says but for the resources, which go into a file."""
    with tempfile.TemporaryDirectory() as folder:
        keep = ["-Xptxas=-v", "--keep", "--keep-dir", folder]
        result = subprocess.run([*command, *keep], stderr=subprocess.PIPE, text=True, check=False)
        bounds = launch_bounds(Path(folder))
        output = Path(command[command.index("-o") + 1])
        for cubin in Path(folder).glob("persistent_*90.cubin"):
            shutil.copy(cubin, f"{output}.cubin")  # for sass.py
    kernels: list[dict[str, str | int]] = []
    for line in result.stderr.splitlines():
        if start := COMPILING.match(line):
            kernel, arch = start.groups()
            kernels.append({"kernel": kernel, "arch": arch, "stack": 0, "spills": 0})
            kernels[-1].update(bounds[kernel, arch])
        elif spills := SPILLS.match(line):  # one line for every function that is not inlined
            kernels[-1]["stack"] += int(spills[1])
            kernels[-1]["spills"] += int(spills[2]) + int(spills[3])
        elif used := USED.match(line):
            kernels[-1]["registers"] = int(used[1])
        elif not line.startswith("ptxas info"):
            print(line, file=sys.stderr)
    if result.returncode == 0:
        Path(f"{output}.json").write_text(json.dumps(kernels, indent=1) + "\n")
    return result.returncode


def demangled(names: list[str]) -> list[str]:
    """Readable names, where binutils are."""
    if not names or not shutil.which("c++filt"):
        return names
    text = "\n".join(names)
    result = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True)
    noise = r"^void |\(anonymous namespace\)::|varlen_rnn::cuda::"
    return [re.sub(noise, "", line).split("(")[0] for line in result.stdout.splitlines()]


def use(kernel: dict) -> tuple[int, int]:
    """By which the worst kernel is found: spills, then registers of a block."""
    return kernel["spills"], kernel["registers"] * max(1, kernel["threads"])


def problem(kernel: dict) -> str | None:
    """What is wrong with the resources of a kernel."""
    registers = -(-kernel["registers"] // UNIT) * UNIT * kernel["threads"] * kernel["blocks"]
    if kernel["spills"]:
        return f"{kernel['spills']} bytes of register spills, expected 0"
    if not kernel["threads"]:
        return "no launch bounds: give it VARLEN_RNN_BOUNDS"
    if registers > REGISTERS:
        return f"{registers} registers a multiprocessor, expected at most {REGISTERS}"
    return None


def last_build() -> Path | None:
    """The folder of the CMake build that the package's CUDA part comes from."""
    root = Path(__file__).parents[2]
    if not list(root.glob("varlen_rnn/_C_cuda*.so")):
        return None
    built = root.glob("build/*/_C_cuda*.so")
    return max(built, key=lambda path: path.stat().st_mtime).parent


def check(build: Path) -> int:
    """Prints the worst kernel of every object and architecture, and every one that is at fault."""
    objects = (build / "cuda_objects.txt").read_text().split()
    worst = []
    faults: dict[tuple[str, str], list[str]] = {}
    count = 0
    for path in objects:
        kernels = json.loads((build / f"{path}.json").read_text())
        count += len(kernels)
        for arch in dict.fromkeys(kernel["arch"] for kernel in kernels):
            those = [kernel for kernel in kernels if kernel["arch"] == arch]
            worst.append(max(those, key=use))
        for kernel in kernels:
            if fault := problem(kernel):
                faults.setdefault((kernel["kernel"], fault), []).append(kernel["arch"])
    print(
        f"{'registers':>9} {'threads':>7} {'blocks':>6} {'stack':>6} {'spills':>6}  arch    kernel"
    )
    for kernel, name in zip(worst, demangled([k["kernel"] for k in worst]), strict=True):
        numbers = (kernel[key] for key in ("registers", "threads", "blocks", "stack", "spills"))
        print("{:9} {:7} {:6} {:6} {:6}".format(*numbers), f" {kernel['arch']:7} {name}")
    names = demangled([kernel for kernel, _ in faults])
    for name, ((_, fault), archs) in zip(names, faults.items(), strict=True):
        print(f"{name} for {', '.join(archs)}: {fault}")
    print(f"{count} kernels of {len(objects)} objects, {len(faults)} faults")
    return 1 if faults or not count else 0


def main(mode: str, *arguments: str) -> int:
    """Runs one of the two modes; returns the exit status."""
    if mode == "record":
        return record(list(arguments))
    build = Path(arguments[0]) if arguments else last_build()
    if build is None:
        print("skipped: the package was built without CUDA kernels")
        return 0
    return check(build)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
