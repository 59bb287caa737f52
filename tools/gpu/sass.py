"""Holds the persistent kernels' machine code to few instructions a step: `make test-cuda-build`.

    python -m tools.gpu.sass [BUILD]

Reads the cubins for sm_90 that check_resources.py kept in the last build, or in that folder, by
nvdisasm (of the CUDA toolkit, or of the package nvidia-cuda-nvdisasm). A step is the loop around
the matrix products. What is counted is the longest way through it that a warp can take: a segment
ends in it, but none begins; nobody waits long; loops within it, which the exchange has with more
than four blocks, are gone through once. A team of one block has nobody to exchange with, and its
kernels have none of the exchange's instructions.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tools.gpu.check_resources import last_build

ROOT = Path(__file__).resolve().parents[2]

BRANCH = re.compile(
    r"^(?P<guard>@!?U?P\w+\s+)?BRA(?P<kind>\.\S+)?\s+(?P<condition>!?U?[PR]\w+,\s*)?`\((?P<to>\.\w+)\)"
)
# Of LSTM in bfloat16 the kernel of team.h's lists that a size gets, as the tests in the emulator
# have it, and the most instructions a step that it may have where it saves for the backward pass.
SIZES = {
    ("forward", 128): (1, 350),
    ("forward", 256): (8, 450),
    ("forward", 512): (9, 490),
    ("backward", 128): (5, 860),
    ("backward", 256): (13, 700),
    ("backward", 512): (14, 720),
}

# What only blocks of a rare kind have: the states that a segment begins with are read from memory,
# a wait that takes long looks at the clock, one without an end tells the host.
RARE = re.compile(r"\bLDG\b|GLOBALTIMER|\bMEMBAR\b|\bEXIT\b")
# Of a pass that saves for the backward pass alone: values of float32, two at a time.
SAVES = re.compile(r"\bSTG\.E\.64\b")
PRODUCT = re.compile(r"\bHMMA\b")
# Mbarriers, stores to other blocks, addresses there, barriers of the cluster.
EXCHANGE = re.compile(r"\bSYNCS\b|\bSTAS\b|\bUCGABAR_|\bPRMT \S+, \S+, 0x654,")


@dataclass
class Block:
    """Instructions that are executed one after the other, and where the last one goes on."""

    lines: list[str]
    next: list[int]


def nvdisasm() -> str | None:
    """The program, or None."""
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found else ():
        for path in Path(folder).glob("*/bin/nvdisasm"):
            return str(path)
    return shutil.which("nvdisasm")


def listing(program: str, cubin: Path) -> str:
    return subprocess.run([program, str(cubin)], check=True, capture_output=True, text=True).stdout


def instruction(line: str) -> str:
    """The label or instruction of a line, without its address and encoding; or nothing."""
    if line.startswith(".L"):
        return line
    address, found, rest = line.partition("*/")
    return rest.partition("/*")[0].strip() if found and address.lstrip().startswith("/*") else ""


def functions(text: str) -> dict[str, list[str]]:
    """Labels and instructions of a listing's persistent kernels, by their mangled names."""
    found = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        name, _, body = part.partition(",")
        if "persistent_" in name:
            found[name] = [line for line in map(instruction, body.splitlines()) if line]
    return found


def blocks_of(lines: Sequence[str]) -> list[Block]:
    """The control flow."""
    blocks, labels = [Block([], [])], {}
    for line in lines:
        if line.startswith(".L"):
            blocks.append(Block([], []))
            labels[line.partition(":")[0]] = len(blocks) - 1
        else:
            blocks[-1].lines.append(line)
            if re.search(r"\b(BRA|EXIT)\b", line):
                blocks.append(Block([], []))
    for at, block in enumerate(blocks):
        last = block.lines[-1] if block.lines else ""
        behind = [at + 1] if at + 1 < len(blocks) else []
        branch = BRANCH.match(last)
        if branch and branch["kind"] == ".DIV":
            block.next = behind  # a warp that is not together: never here
        elif branch:
            block.next = [labels[branch["to"]]]
            block.next += behind if branch["guard"] or branch["condition"] else []
        elif not last.startswith("EXIT"):
            block.next = behind
    return blocks


def step_instructions(lines: Sequence[str], *, training: bool) -> int:
    """Of a warp and step, at most (see above); ``training``: with what is saved."""
    blocks = blocks_of(lines)
    products = [at for at, block in enumerate(blocks) if any(map(PRODUCT.search, block.lines))]
    loops = [(to, at) for at, block in enumerate(blocks) for to in block.next if to <= at]
    around = [(to, at) for to, at in loops if to <= products[0] and at >= products[-1]]
    first, last = min(around, key=lambda loop: loop[1] - loop[0])

    def is_rare(at: int) -> bool:
        lines = blocks[at].lines
        return any(map(RARE.search, lines)) or (not training and any(map(SAVES.search, lines)))

    @functools.cache
    def longest(at: int) -> int:
        ahead = [to for to in blocks[at].next if at < to <= last and not is_rare(to)]
        rest = 0 if at == last else max((longest(to) for to in ahead), default=-(10**9))
        return len(blocks[at].lines) + rest

    return longest(first)


def exchange_instructions(lines: Sequence[str]) -> int:
    return sum(bool(EXCHANGE.search(line)) for line in lines)


class Kernel(NamedTuple):
    """A persistent kernel: its place in team.h's list of its pass."""

    is_backward: bool
    index: int
    lines: list[str]


def kernels_of(program: str, cubin: Path) -> list[Kernel]:
    found = functions(listing(program, cubin))
    return [
        Kernel("backward" in name, int(re.findall(r"ELi(\d+)E", name)[0]), lines)
        for name, lines in found.items()
    ]


def alone() -> dict[bool, list[bool]]:
    """Of team.h's kernels, by whether they are of the backward pass: is it for one block?"""
    text = (ROOT / "csrc" / "cuda" / "team.h").read_text()
    return {
        is_backward: [
            flag == "true"
            for flag in re.findall(
                r"\{[\d, ]+, (true|false)\}",
                text.partition(f"k{name}Variants[] = {{")[2].partition("};")[0] + "}",
            )
        ]
        for is_backward, name in ((False, "Forward"), (True, "Backward"))
    }


def main(folder: str | None = None) -> int:
    """Prints the counts; returns the exit status."""
    build, program = Path(folder) if folder else last_build(), nvdisasm()
    cubins = sorted(build.glob("**/persistent_*.cubin")) if build else []
    if not cubins:
        print("skipped: there is no build with kernels for sm_90")
        return 0
    if program is None:
        print("skipped: there is no nvdisasm")
        return 0
    is_alone, faults, count = alone(), 0, 0
    for cubin in cubins:
        kernels = kernels_of(program, cubin)
        count += len(kernels)
        for kernel in kernels:
            found = exchange_instructions(kernel.lines)
            if is_alone[kernel.is_backward][kernel.index] == (found > 0):
                faults += 1
                print(f"{cubin.name}: {kernel[:2]} has {found} instructions of the exchange")
        if "persistent_lstm_bf16" not in cubin.name:
            continue
        lines = {(kernel.is_backward, kernel.index): kernel.lines for kernel in kernels}
        print("instructions of a warp and step, LSTM in bfloat16: inference, training, at most")
        for (name, size), (index, most) in SIZES.items():
            of_kernel = lines[name == "backward", index]
            inference, training = (step_instructions(of_kernel, training=t) for t in (False, True))
            shown = f"{inference:5}" if name == "forward" else "     "
            print(f"{name:>9} H = {size}: {shown} {training:5} {most:5}")
            faults += training > most
    print(f"{count} kernels of {len(cubins)} objects, {faults} faults")
    return 1 if faults or not count else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
