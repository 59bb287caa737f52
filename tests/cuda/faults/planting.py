"""What a planted fault is, and how the sources mark the places of such.

A line of its own names a place, ``//~ wait`` for example: the one statement behind it, up to the
semicolon or the closing brace that ends it. A fault puts something else there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKER = re.compile(r"^ *//~ (.+)\n", re.MULTILINE)
# What brackets may not be counted in, and brackets.
_TOKENS = re.compile(r"""//[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|[()\[\]{};]""")
# What goes on behind a closing brace.
_GOES_ON = re.compile(r"\s*(?:else\b|[;,.){])")


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Attributes:
        name: says what is wrong.
        place: a file of csrc/cuda and a marker in it, "plan.cu: idle turn".
        new: stands in place of the statement.
        why: what goes wrong.
        sources: are compiled with it.
        tests: are enough to catch it, the quickest ones first.
        lines: of the statement that ``new`` is for, 0 for all of it.
    """

    name: str
    place: str
    new: str
    why: str
    sources: tuple[str, ...]
    tests: tuple[str, ...]
    lines: int = 0

    @property
    def file(self) -> str:
        return self.place.partition(": ")[0]

    @property
    def marker(self) -> str:
        return self.place.partition(": ")[2]


def markers_of(text: str) -> list[str]:
    """The places that a source has, by name."""
    return _MARKER.findall(text)


def statement_at(text: str, begin: int) -> int:
    """Where the statement that begins there ends."""
    depth = 0
    for token in _TOKENS.finditer(text, begin):
        sign = token.group()
        if len(sign) > 1:
            continue
        depth += (sign in "([{") - (sign in ")]}")
        if depth < 0:
            break
        is_end = sign == ";" or (sign == "}" and not _GOES_ON.match(text, token.end()))
        if depth == 0 and is_end:
            return token.end()
    raise ValueError(f"no statement ends behind {text[begin : begin + 60]!r}")


def planted(text: str, mutant: Mutant) -> str:
    """The source with the fault."""
    found = [match for match in _MARKER.finditer(text) if match[1] == mutant.marker]
    if len(found) != 1:
        raise ValueError(
            f"{mutant.name}: {mutant.place} must be marked once, is {len(found)} times"
        )
    begin = found[0].end()
    end = statement_at(text, begin)
    if mutant.lines:
        end = begin + sum(map(len, text[begin:].splitlines(keepends=True)[: mutant.lines])) - 1
    return text[:begin] + mutant.new + text[end:]
