"""Names in 24 languages, from the Unicode CLDR.

The package Babel carries them (`Locale("de").territories` and the like) under the Unicode License
v3: see `locale-data/LICENSE.unicode` there.

To be fair to the test, a name that several of the languages share is left out, notes in brackets
are cut, equal names count once, and no territory, language, script or currency is in both training
and test: "Frankreich" and "Ranska" are on one side. Related words may be on both ("Finnish" and
"Finland"), as may names of the same form ("... franc").
"""

import re
import zlib
from collections import Counter
from dataclasses import dataclass
from itertools import chain

import torch
from babel import Locale
from torch import Tensor

# Related languages beside each other: Slavic, Baltic, Germanic, Romance, Uralic, and two others.
LANGUAGES = [
    *("cs", "sk", "pl", "sl", "hr"),
    *("lt", "lv"),
    *("de", "nl", "en", "da", "nb", "sv", "is"),
    *("fr", "es", "pt", "it", "ro"),
    *("et", "fi", "hu"),
    *("tr", "id"),
]
KINDS = ("territories", "languages", "scripts", "currencies")
PADDING, UNKNOWN, FIRST_CHARACTER = 0, 1, 2


@dataclass(frozen=True)
class Names:
    """R names: their texts, their characters' ids `[length]` each, and their languages `[R]`."""

    texts: list[str]
    ids: list[Tensor]
    labels: Tensor


def english_name(language: int | Tensor) -> str:
    """What English calls a language."""
    return str(Locale(LANGUAGES[language]).english_name)


def load(every: int) -> tuple[Names, Names, int]:
    """Make the training names, the test names, and count the ids; use only every n-th name."""
    read = read_names()[::every]
    characters = sorted({c for text, _, concept in read if not is_test(concept) for c in text})
    id_of = {character: n for n, character in enumerate(characters, start=FIRST_CHARACTER)}

    def part(wanted: bool) -> Names:
        rows = [(text, label) for text, label, concept in read if is_test(concept) == wanted]
        ids = [torch.tensor([id_of.get(c, UNKNOWN) for c in text]) for text, _ in rows]
        return Names([text for text, _ in rows], ids, torch.tensor([label for _, label in rows]))

    return part(False), part(True), FIRST_CHARACTER + len(characters)


def read_names() -> list[tuple[str, int, str]]:
    """Read every name that only one language has, as (text, language, concept)."""
    by_language: list[dict[str, tuple[str, str]]] = []
    for code in LANGUAGES:
        names: dict[str, tuple[str, str]] = {}
        for kind in KINDS:
            for concept, name in sorted(getattr(Locale(code), kind).items()):
                text = re.sub(r"\s*\([^)]*\)", "", name).strip()
                if text:
                    names.setdefault(text.casefold(), (text, f"{kind}/{concept}"))
        by_language.append(names)
    languages_with = Counter(chain.from_iterable(by_language))
    return [
        (text, language, concept)
        for language, names in enumerate(by_language)
        for key, (text, concept) in names.items()
        if languages_with[key] == 1
    ]


def is_test(concept: str) -> bool:
    """Choose about one concept in five, the same in every run and every language."""
    return zlib.crc32(concept.encode()) % 5 == 0
