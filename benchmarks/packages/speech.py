"""Speech: speakers, separation, recognition, synthesis; and earthquakes."""

from __future__ import annotations

import torch

from benchmarks.packages.check import Example


def resemblyzer() -> Example:
    """The speaker encoder with the weights that the package ships."""
    from resemblyzer import VoiceEncoder

    mels = torch.rand(10, 160, 40)  # utterances of 1.6 s
    return Example(VoiceEncoder("cpu", verbose=False), lambda model: model(mels))


def pyannote() -> Example:
    """Speaker segmentation: who speaks when, in windows of two seconds."""
    from pyannote.audio.core.task import Problem, Resolution, Specifications
    from pyannote.audio.models.segmentation import PyanNet

    model = PyanNet()
    model.specifications = Specifications(
        problem=Problem.MULTI_LABEL_CLASSIFICATION,
        resolution=Resolution.FRAME,
        duration=2.0,
        classes=["speaker 1", "speaker 2", "speaker 3"],
    )
    model.build()
    waveforms = torch.randn(8, 1, 32000)
    return Example(model, lambda model: model(waveforms))


def asteroid() -> Example:
    """Separation of two speakers; the recipe has six repeats."""
    from asteroid.models import DPRNNTasNet

    waveforms = torch.randn(2, 8000)
    return Example(DPRNNTasNet(n_src=2, n_repeats=2), lambda model: model(waveforms))


def speechbrain() -> Example:
    """The encoder of the speech recognition recipes, as their `hparams` with LSTM have it."""
    from speechbrain.lobes.models.CRDNN import CRDNN
    from speechbrain.nnet.RNN import LSTM

    features = torch.randn(4, 100, 40)
    model = CRDNN(
        input_shape=features.shape,
        rnn_class=LSTM,
        rnn_layers=4,
        rnn_neurons=256,
        rnn_bidirectional=True,
        cnn_channels=[16, 32],
        dnn_neurons=128,
    )
    return Example(model, lambda model: model(features))


def torchaudio() -> Example:
    """Text to spectrogram, with teacher forcing; its decoder is a loop over `nn.LSTMCell`."""
    from torchaudio.models import Tacotron2

    text, text_lengths = torch.randint(0, 148, (4, 100)), torch.tensor([100, 87, 64, 30])
    mels, mel_lengths = torch.randn(4, 80, 20), torch.tensor([20, 16, 12, 9])

    def run(model: Tacotron2) -> object:
        return model(text, text_lengths, mels, mel_lengths)

    return Example(Tacotron2(), run)


def seisbench() -> Example:
    """Picks the phases of an earthquake out of a seismogram."""
    from seisbench.models import EQTransformer

    seismograms = torch.randn(4, 3, 6000)
    return Example(EQTransformer(), lambda model: model(seismograms))
