"""What the pages of `docs/` say to write, with the real libraries: each as a user would."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from torch import Tensor

import varlen_rnn
from benchmarks.packages import language, learning, music, series
from benchmarks.packages.check import Example


def resets_instead_of_a_loop() -> Example:
    """A recurrent PPO's policy that goes over a rollout in one call, not step by step."""
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    class Policy(RecurrentActorCriticPolicy):
        @staticmethod
        def _process_sequence(
            features: Tensor, states: tuple[Tensor, Tensor], episode_starts: Tensor, lstm: Any
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            rows = states[0].shape[1]
            steps = features.reshape(rows, -1, lstm.input_size).swapaxes(0, 1)
            resets = episode_starts.reshape(rows, -1).swapaxes(0, 1)
            out, states = lstm(steps, states, resets=resets)
            return out.transpose(0, 1).flatten(0, 1), states

    def convert(policy: Any) -> Any:
        policy.__class__ = Policy  # for RecurrentPPO(Policy, ...)
        return varlen_rnn.convert(policy)

    example = learning.sb3_contrib()
    return Example(example.model, example.run, convert)


def resets_instead_of_splitting() -> Example:
    """TorchRL's layer on rollouts: `is_init` as resets, where LSTMModule cuts, pads and joins."""
    from tensordict import TensorDict
    from torchrl.modules import LSTMModule, set_recurrent_mode

    module = LSTMModule(input_size=3, hidden_size=64, in_key="observation", out_key="features")
    observation, is_init = torch.randn(16, 100, 3), torch.rand(16, 100, 1) < 0.02

    def run(module: Any) -> Tensor:
        rollout = TensorDict(observation=observation, is_init=is_init, batch_size=[16, 100])
        with set_recurrent_mode(True):
            return module(rollout)["features"]

    def run_ours(module: Any) -> Tensor:
        return module.lstm(observation, resets=is_init)[0]

    return Example(module, run, run_ours=run_ours)


def mask_instead_of_packing() -> Example:
    """AllenNLP's encoder, whose mask goes to the layer: no sorting, packing and unpacking."""
    embedded = torch.randn(32, 60, 100)
    mask = torch.arange(60) < torch.randint(1, 61, (32, 1))
    model = language.allennlp().model

    def run_ours(model: Any) -> Tensor:
        return model._module(embedded, mask=mask)[0]

    return Example(model, lambda model: model(embedded, mask), run_ours=run_ours)


def convert_after_loading() -> Example:
    """A pretrained model of transformers: `from_pretrained` first, from a folder saved here."""
    from transformers import EncodecModel

    example = music.transformers()
    with tempfile.TemporaryDirectory() as folder:
        example.model.save_pretrained(folder)
        loaded = EncodecModel.from_pretrained(folder)
    return Example(example.model, example.run, lambda _: varlen_rnn.convert(loaded.eval()))


def convert_then_hooks() -> Example:
    """Accelerate's hooks, which replace each module's `forward`: added to a converted model."""
    from accelerate.hooks import attach_align_device_hook

    def convert(model: Any) -> Any:
        varlen_rnn.convert(model)
        attach_align_device_hook(model, execution_device="cpu")
        return model

    example = music.transformers()
    return Example(example.model, example.run, convert)


def convert_then_offload() -> Example:
    """The same with weights that are there during a call only."""
    from accelerate import cpu_offload

    example = music.transformers()
    return Example(
        example.model,
        example.run,
        lambda model: cpu_offload(varlen_rnn.convert(model), execution_device="cpu"),
        inference_only=True,
    )


def build_late() -> Example:
    """Darts builds its layers when it is fitted: fitted as ours, with the weights of torch's."""
    example = series.darts()

    def convert(model: Any) -> Any:
        with varlen_rnn.replacing_torch():
            late: Any = series.darts().model
        late.load_state_dict(model.state_dict())
        return late.eval()

    return Example(example.model, example.run, convert)
