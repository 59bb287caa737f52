"""Music: separation, beats, transcription; and a codec."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.packages.check import Example


def openunmix() -> Example:
    """Separates one instrument, on spectrograms of 64 frames."""
    from openunmix.model import OpenUnmix

    spectrograms = torch.rand(4, 2, 2049, 64)
    model = OpenUnmix(nb_bins=2049, nb_channels=2, max_bin=1487)
    return Example(model, lambda model: model(spectrograms))


def demucs() -> Example:
    """The hybrid model, with half of its channels, on a second of stereo."""
    from demucs.hdemucs import HDemucs

    waveforms = torch.randn(1, 2, 44100)
    model = HDemucs(["drums", "bass", "other", "vocals"], channels=24)
    return Example(model, lambda model: model(waveforms))


def beatnet() -> Example:
    """Beats and downbeats with the weights that the package ships; the model keeps its states."""
    import BeatNet
    from BeatNet.model import BDA

    model = BDA(272, 150, 2, "cpu")
    weights = Path(BeatNet.__file__).parent / "models" / "model_1_weights.pt"
    model.load_state_dict(torch.load(weights), strict=False)
    features = torch.randn(1, 500, 272)  # 10 s

    def run(model: BDA) -> torch.Tensor:
        model.hidden, model.cell = torch.zeros(2, 2, 1, 150)
        return model(features)

    return Example(model, run)


def piano_transcription() -> Example:
    """Notes of the piano, of half a second."""
    from piano_transcription_inference.models import Regress_onset_offset_frame_velocity_CRNN

    waveforms = torch.randn(1, 8000)
    model = Regress_onset_offset_frame_velocity_CRNN(frames_per_second=100, classes_num=88)
    return Example(model, lambda model: model(waveforms))


def transformers() -> Example:
    """Encodec, a codec whose encoder and decoder hold LSTMs, with a quarter of its filters."""
    from transformers import EncodecConfig, EncodecModel

    model = EncodecModel(EncodecConfig(num_filters=8))
    waveforms = torch.randn(2, 1, 24000)

    def run(model: EncodecModel) -> torch.Tensor:
        return model.decoder(model.encoder(waveforms))  # without the codebooks, which are discrete

    return Example(model, run)
