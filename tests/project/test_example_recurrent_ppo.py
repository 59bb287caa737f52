"""The recurrent PPO example runs, and its rollouts, advantages and log-probabilities are right."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from helpers import load_example, max_error, run_example
from torch import Tensor, nn

SCRIPT = Path(__file__).parents[2] / "examples" / "recurrent_ppo.py"
MISSING = [
    name for name in ("gymnasium", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the example needs {' and '.join(MISSING)}")

SEED, NUM_STEPS, TIME_LIMIT = 3, 30, 15


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return load_example(SCRIPT)


@pytest.fixture
def short_episodes(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit that many episodes of an untrained agent reach, and many do not."""
    limited = functools.partial(example.gymnasium.make_vec, max_episode_steps=TIME_LIMIT)
    monkeypatch.setattr(example.gymnasium, "make_vec", limited)


def two_rollouts(example: ModuleType, agent: nn.Module) -> tuple:
    player = example.Player(agent, SEED)
    return player.play(NUM_STEPS), player.play(NUM_STEPS), player


def test_tiny_run(tmp_path: Path) -> None:
    arguments = ["--steps", "2048", "--rounds", "1", "--check"]
    result = run_example(SCRIPT, arguments, tmp_path)
    # One update is too few to learn anything: that, and nothing else, is what --check finds.
    failures = [line for line in result.stderr.splitlines() if "expected" in line]
    assert len(failures) == 1, result.stderr
    assert re.fullmatch(r"mean return: expected at least 200, got \d+\.\d", failures[0])
    assert result.returncode == 1
    differences = re.findall(r"apart by +(\S+)", result.stdout)
    assert len(differences) == 3, result.stdout
    assert max(float(value) for value in differences) <= 1e-5
    assert len(re.findall(r"\d frames a second", result.stdout)) == 2
    assert re.search(r"times as fast +\d+\.\d\n", result.stdout)


def test_check_passes_and_fails(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "ROLLOUT_STEPS", 40)
    monkeypatch.setattr(example, "FRAMES", 40 * example.NUM_ENVS)
    monkeypatch.setattr(example, "MIN_RETURN", 1.0)
    monkeypatch.setattr(example, "plot", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["program", "--steps", "1", "--rounds", "1", "--check"])
    example.main()

    def without_resets(self: nn.LSTM, x: Tensor, state: tuple, *, resets: Tensor) -> tuple:
        return nn.LSTM.forward(self, x, state)

    monkeypatch.setattr(example.StepwiseLSTM, "forward", without_resets)
    with pytest.raises(SystemExit, match="log-probs of both kinds: expected within 1e-05"):
        example.main()


def test_failures_names_every_expectation(example: ModuleType) -> None:
    assert example.failures({"this": 1e-5}, 200.0) == []
    assert len(example.failures({"this": 1.1e-5, "that": float("nan")}, 199.0)) == 3
    assert len(example.failures({}, float("nan"))) == 1


@pytest.mark.usefixtures("short_episodes")
def test_rollouts_are_what_separate_episodes_give(example: ModuleType) -> None:
    """Every environment again by itself, and every episode alone through torch's LSTM."""
    agent = example.Agent()
    first, second, player = two_rollouts(example, agent)
    names = ("obs", "actions", "log_probs", "values", "rewards", "dones")
    got = {name: torch.cat((getattr(first, name), getattr(second, name))) for name in names}
    lstm = nn.LSTM(2, example.HIDDEN_SIZE)
    lstm.load_state_dict(agent.lstm.state_dict())

    def alone(episode: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Log-probabilities of both actions, and values, at every step of one episode."""
        with torch.no_grad():
            features, _ = lstm(torch.stack(episode))
            return agent.actor(features).log_softmax(-1), agent.critic(features)[:, 0]

    kinds, returns = set(), []
    for b in range(example.NUM_ENVS):
        env = example.gymnasium.make("CartPole-v1", max_episode_steps=TIME_LIMIT)
        obs, _ = env.reset(seed=SEED + b)
        episode, start = [], 0
        for t in range(2 * NUM_STEPS):
            episode.append(torch.tensor([obs[0] / 0.5, obs[2] / 0.05], dtype=torch.float32))
            assert torch.equal(got["obs"][t, b], episode[-1])
            obs, reward, terminated, truncated, _ = env.step(got["actions"][t, b].item())
            done = terminated or truncated
            assert got["dones"][t, b] == done
            steps = slice(start, t + 1)
            last = t + 1 == 2 * NUM_STEPS
            expected_reward = 0.01 * reward
            if done or last:
                log_probs, values = alone(episode)
                actions = got["actions"][steps, b, None]
                chosen = log_probs.gather(1, actions)[:, 0]
                assert max_error(got["log_probs"][steps, b], chosen) <= 1e-6
                assert max_error(got["values"][steps, b], values) <= 1e-6
            if done:
                kinds.add((terminated, truncated))
                returns.append(len(episode))
                if not terminated:
                    end = torch.tensor([obs[0] / 0.5, obs[2] / 0.05], dtype=torch.float32)
                    expected_reward += 0.99 * alone([*episode, end])[1][-1].item()
                episode, start = [], t + 1
                obs, _ = env.reset()
            assert got["rewards"][t, b].item() == pytest.approx(expected_reward, abs=1e-6)
        end = torch.tensor([obs[0] / 0.5, obs[2] / 0.05], dtype=torch.float32)
        value = alone([*episode, end])[1][-1].item()
        assert second.next_value[b].item() == pytest.approx(value, abs=1e-6)
        env.close()
    assert {(True, False), (False, True)} <= kinds
    assert sorted(returns) == sorted(total for _, total in player.ended)


@pytest.mark.usefixtures("short_episodes")
@pytest.mark.parametrize("kind", ["VarLenLSTM", "StepwiseLSTM"])
def test_first_minibatch_repeats_the_log_probs_of_acting(example: ModuleType, kind: str) -> None:
    agent = example.Agent(getattr(example, kind))
    first, second, _ = two_rollouts(example, agent)
    assert second.starts.any()
    assert not second.starts.all()
    for rollout in (first, second):
        state = {name: value.clone() for name, value in agent.state_dict().items()}
        losses, log_ratio = example.update(agent, rollout)
        assert losses.shape == (16,)
        assert losses.isfinite().all()
        assert log_ratio.shape == (NUM_STEPS, 4)
        assert log_ratio.abs().max() <= 1e-6
        assert any(
            not torch.equal(state[name], value) for name, value in agent.state_dict().items()
        )
        agent.load_state_dict(state)


def test_without_memory_only_the_present_counts(example: ModuleType) -> None:
    agent = example.Agent(memory=False)
    obs, state = torch.randn(5, 3, 2), (torch.randn(1, 3, 64), torch.randn(1, 3, 64))
    resets = torch.zeros(5, 3, dtype=torch.bool)
    policy, values, _ = agent(obs, state, resets)
    obs[:4] += 1
    other_policy, other_values, _ = agent(obs, state, resets)
    assert torch.equal(policy.logits[4], other_policy.logits[4])
    assert torch.equal(values[4], other_values[4])
    assert not torch.equal(values[:4], other_values[:4])


def test_advantages_are_discounted_sums_of_errors(example: ModuleType) -> None:
    shape = (9, 5)
    values, rewards = torch.randn(shape), torch.randn(shape)
    dones, next_value = torch.rand(shape) < 0.25, torch.randn(5)
    rollout = example.Rollout(
        obs=torch.zeros(*shape, 2),
        actions=torch.zeros(shape),
        log_probs=torch.zeros(shape),
        values=values,
        rewards=rewards,
        dones=dones,
        starts=torch.zeros(5, dtype=torch.bool),
        state=(torch.zeros(1, 5, 64), torch.zeros(1, 5, 64)),
        next_value=next_value,
    )
    expected = torch.zeros(shape)
    for b in range(5):
        for t in range(9):
            weight = 1.0
            for k in range(t, 9):
                following = values[k + 1, b] if k < 8 else next_value[b]
                future = 0.0 if dones[k, b] else 0.99 * following
                expected[t, b] += weight * (rewards[k, b] + future - values[k, b])
                if dones[k, b]:
                    break
                weight *= 0.99 * 0.95
    assert max_error(rollout.advantages(), expected) <= 1e-5
