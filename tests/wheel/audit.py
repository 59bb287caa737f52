"""Audits wheels: audit.py [--release] dist/*.whl; says what is wrong, and exits 1 if anything is.

One binary is to run with every torch that the wheel's metadata admits, CPU or CUDA build. So it
takes C functions of torch's stable ABI only, and none that the oldest of these lacks; it links what
every torch and every Linux has; and the wheel brings no library of torch's or CUDA's. A release's
must also run on every Linux that its image stands for, which pyproject.toml names.
"""

from __future__ import annotations

import argparse
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

from elftools.elf.elffile import ELFFile
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info < (3, 11):
    print("no audit of the wheel: torch-abi-audit needs Python 3.11")
    sys.exit()
import tomllib
from torch_abi_audit import inspect_extension

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
LINKED = re.compile(
    r"libtorch(_cpu)?\.so|(libc|libm|libdl|librt|libpthread|libgcc_s|libstdc\+\+|ld-linux.*)\.so\.\d+"
)
MODULE = re.compile(r"varlen_rnn/(_C|_C_cuda)\.[^/]*so")


def oldest_torch(metadata: str) -> Version:
    """The oldest torch that a wheel's METADATA admits."""
    requirements = map(Requirement, Parser().parsestr(metadata).get_all("Requires-Dist", []))
    (torch,) = (requirement for requirement in requirements if requirement.name == "torch")
    (bound,) = (bound for bound in torch.specifier if bound.operator == ">=")
    return Version(bound.version)


def linked_libraries(module: Path) -> list[str]:
    """Those that the loader will look for; none for a binary that is not Linux's."""
    with module.open("rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
        tags = ELFFile(file).get_section_by_name(".dynamic").iter_tags("DT_NEEDED")
        return [tag.needed for tag in tags]


def module_faults(module: Path, oldest: Version) -> Iterator[str]:
    """What keeps a compiled module from running with every torch from ``oldest`` on."""
    torch = inspect_extension(module).torch
    if not torch.stable_shim_count:
        yield "takes no function of torch's stable ABI: it cannot hold the ops"
    for symbol in torch.unstable_symbols:
        yield f"takes {symbol}, which is not of torch's stable ABI"
    for symbol in torch.unknown_shim_symbols:
        yield f"takes {symbol}, which torch-abi-audit does not know of"
    if torch.min_torch_version and Version(torch.min_torch_version) > oldest:
        symbols = ", ".join(torch.version_defining_symbols)
        yield f"takes {symbols}, there since torch {torch.min_torch_version}, expected {oldest}"
    for library in linked_libraries(module):
        if not LINKED.fullmatch(library):
            yield f"links {library}, which not every torch and every Linux has"


def wheel_faults(wheel: Path) -> Iterator[str]:
    """What is wrong with a wheel."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        oldest = oldest_torch(archive.read(metadata).decode())
        modules = [name for name in names if MODULE.fullmatch(name)]
        if not any("/_C." in name for name in modules):
            yield "varlen_rnn/_C is missing"
        for name in modules:
            for fault in module_faults(Path(archive.extract(name, folder)), oldest):
                yield f"{name} {fault}"
        for name in names:
            if name not in modules and re.search(r"\.(so|dylib|dll)\b", name):
                yield f"brings {name}"


def platform_of(wheel: Path) -> str | None:
    """The oldest Linux that it runs on, by the versions of the C and C++ libraries' symbols."""
    show = [sys.executable, "-m", "auditwheel", "show", str(wheel)]
    said = subprocess.run(show, capture_output=True, text=True, check=False).stdout
    tags = re.findall(r'"(manylinux_\d+_\d+)_\w+"', said)
    return tags[-1] if tags else None


def platform_faults(found: str | None) -> Iterator[str]:
    """What keeps a wheel from running on every Linux that a release is for."""
    settings = tomllib.loads(PROJECT.read_text())["tool"]["cibuildwheel"]["linux"]
    expected = settings[f"manylinux-{platform.machine()}-image"]

    def glibc(tag: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", tag)]

    if found is None:
        yield f"is of no manylinux platform, expected {expected}"
    elif glibc(found) > glibc(expected):
        yield f"is for {found}, expected {expected} or older"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--release", action="store_true", help="check the platform, too")
    parser.add_argument("wheels", nargs="+", type=Path)
    arguments = parser.parse_args()
    count = 0
    for wheel in arguments.wheels:
        faults = list(wheel_faults(wheel))
        said = ""
        if sys.platform == "linux":
            found = platform_of(wheel)
            said = f", {f'for {found} by its symbols' if found else 'of no manylinux platform'}"
            faults += platform_faults(found) if arguments.release else []
        for fault in faults:
            print(f"{wheel.name}: {fault}")
        print(f"{wheel.name}{said}: {len(faults)} faults")
        count += len(faults)
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
