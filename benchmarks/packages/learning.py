"""Reinforcement learning."""

from __future__ import annotations

import torch

from benchmarks.packages.check import Example


def sb3_contrib() -> Example:
    """Recurrent PPO's policy, on rollouts of 4 environments in which episodes end."""
    from sb3_contrib import RecurrentPPO
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu").policy
    observations, actions = torch.randn(4 * 128, 4), torch.randint(0, 2, (4 * 128,))
    starts = (torch.rand(4 * 128) < 0.02).float()
    zeros = (torch.zeros(1, 4, 256), torch.zeros(1, 4, 256))

    def run(model: torch.nn.Module) -> object:
        return model.evaluate_actions(observations, actions, RNNStates(zeros, zeros), starts)

    return Example(model, run)


def torchrl() -> Example:
    """An LSTMModule before an MLP, on rollouts of 16 environments in which episodes end.

    It packs episodes for an `nn.LSTM`; other layers, such as ours, get them padded, with `mask`.
    """
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.modules import MLP, LSTMModule, set_recurrent_mode

    lstm = LSTMModule(
        input_size=3,
        hidden_size=64,
        in_keys=["observation", "rs_h", "rs_c"],
        out_keys=["intermediate", ("next", "rs_h"), ("next", "rs_c")],
    )
    mlp = MLP(in_features=64, num_cells=[64], out_features=1)
    policy = TensorDictSequential(
        lstm, TensorDictModule(mlp, in_keys=["intermediate"], out_keys=["action"])
    )
    rollout = TensorDict(
        observation=torch.randn(16, 100, 3),
        rs_h=torch.zeros(16, 100, 1, 64),
        rs_c=torch.zeros(16, 100, 1, 64),
        is_init=torch.rand(16, 100, 1) < 0.02,
        batch_size=[16, 100],
    )

    def run(policy: TensorDictSequential) -> torch.Tensor:
        with set_recurrent_mode(True):
            return policy(rollout.clone())["action"]

    return Example(policy, run)
