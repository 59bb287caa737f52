"""What the persistent kernels are in machine code: instructions of a step, and of the exchange.

nvdisasm (of the CUDA toolkit, or of the package nvidia-cuda-nvdisasm) lists a cubin's instructions.
A step is the loop around the matrix products. What is counted is the longest way through it that a
warp can take: a segment ends in it, but none begins; nobody waits long; loops within it, which the
exchange has with more than four blocks, are gone through once.
"""

from __future__ import annotations

import functools
import importlib.util
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BRANCH = re.compile(
    r"^(?P<guard>@!?U?P\w+\s+)?BRA(?P<kind>\.\S+)?\s+(?P<condition>!?U?[PR]\w+,\s*)?`\((?P<to>\.\w+)\)"
)
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


def measure(cubin: Path) -> Mapping[str, dict[str, int]]:
    """The counts of every persistent kernel in a cubin; nothing where there is no nvdisasm."""
    program = nvdisasm()
    if program is None:
        return {}
    return {
        name: {
            "inference": step_instructions(lines, training=False),
            "training": step_instructions(lines, training=True),
            "exchange": exchange_instructions(lines),
        }
        for name, lines in functions(listing(program, cubin)).items()
    }
