"""Every package and every recipe that is compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.packages import language, learning, music, recipes, series, speech
from benchmarks.packages.check import Example


@dataclass(frozen=True)
class Case:
    """What is compared: a model of a package, or a recipe for it."""

    package: str  # as `requirements.txt` has it
    build: Callable[[], Example]
    recipe: bool = False


CASES = {
    "Resemblyzer": Case("Resemblyzer", speech.resemblyzer),
    "pyannote-audio": Case("pyannote-audio", speech.pyannote),
    "asteroid": Case("asteroid", speech.asteroid),
    "speechbrain": Case("speechbrain", speech.speechbrain),
    "torchaudio": Case("torchaudio", speech.torchaudio),
    "seisbench": Case("seisbench", speech.seisbench),
    "openunmix": Case("openunmix", music.openunmix),
    "demucs": Case("demucs", music.demucs),
    "BeatNet": Case("BeatNet", music.beatnet),
    "piano-transcription-inference": Case(
        "piano-transcription-inference", music.piano_transcription
    ),
    "transformers": Case("transformers", music.transformers),
    "allennlp-light": Case("allennlp-light", language.allennlp),
    "stanza": Case("stanza", language.stanza),
    "flair": Case("flair", language.flair),
    "gluonts": Case("gluonts", series.gluonts),
    "neuralforecast": Case("neuralforecast", series.neuralforecast),
    "darts": Case("darts", series.darts),
    "skorch": Case("skorch", series.skorch),
    "torch-geometric": Case("torch-geometric", series.torch_geometric),
    "sb3-contrib": Case("sb3-contrib", learning.sb3_contrib),
    "torchrl": Case("torchrl", learning.torchrl),
    "one call instead of a loop over steps": Case(
        "sb3-contrib", recipes.resets_instead_of_a_loop, recipe=True
    ),
    "resets instead of splitting": Case(
        "torchrl", recipes.resets_instead_of_splitting, recipe=True
    ),
    "mask instead of packing": Case("allennlp-light", recipes.mask_instead_of_packing, recipe=True),
    "convert after from_pretrained": Case(
        "transformers", recipes.convert_after_loading, recipe=True
    ),
    "convert, then hooks": Case("accelerate", recipes.convert_then_hooks, recipe=True),
    "convert, then offload": Case("accelerate", recipes.convert_then_offload, recipe=True),
    "replacing_torch": Case("darts", recipes.build_late, recipe=True),
}
