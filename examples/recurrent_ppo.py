"""Memory for a policy: recurrent PPO on a cart-pole whose velocities are hidden.

Gymnasium's CartPole-v1 shows position, angle and both velocities. This agent sees position and
angle only: one look does not tell where the pole is falling, so it needs a memory. It is PPO
(Schulman et al. 2017, https://arxiv.org/abs/1707.06347) with one VarLenLSTM for actor and critic.

A rollout holds many episodes, and no memory may pass from one to the next. `resets=` says where
they begin, so the update runs all steps of a rollout in ONE call. Where a module knows no resets,
it takes one `nn.LSTM` call a step, with the state multiplied by 0 in between: both are compared
and timed first, on one rollout and the same weights. Then two agents learn, of which one is reset
at every step and so has no memory.

Usage:
    python examples/recurrent_ppo.py [--steps 100000] [--output returns.png] [--check]
"""

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
import torch
from bars import draw_bars
from gymnasium.vector import AutoresetMode
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Categorical
from tqdm import tqdm

from varlen_rnn import VarLenLSTM
from varlen_rnn.masking import dones_to_resets

NUM_ENVS = 16  # B
ROLLOUT_STEPS = 128  # T
FRAMES = NUM_ENVS * ROLLOUT_STEPS  # of a rollout
HIDDEN_SIZE = 64  # H
EPOCHS, ENVS_A_MINIBATCH, LEARNING_RATE = 4, 4, 1e-3
GAMMA, GAE_LAMBDA = 0.99, 0.95
REWARD_SCALE = 1 - GAMMA  # values stay below 1: the critic's loss must not drown the actor's
CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, MAX_GRADIENT_NORM = 0.2, 0.5, 0.01, 0.5

RECENT = 100  # episodes in a mean return
MIN_RETURN = 200.0  # several times what is reached without memory
MAX_DIFFERENCE = 1e-5

State = tuple[Tensor, Tensor]
Speeds = dict[str, list[float]]  # frames a second of each round, by kind of LSTM
Differences = dict[str, float]  # the largest, by what was compared


class StepwiseLSTM(nn.LSTM):
    """What stands here without VarLenLSTM: one nn.LSTM call a step, as in CleanRL's PPO."""

    def forward(self, x: Tensor, state: State, *, resets: Tensor) -> tuple[Tensor, State]:
        outputs = []
        for x_t, keep in zip(x, (~resets).to(x.dtype).unsqueeze(-1), strict=True):
            out, state = super().forward(x_t[None], (keep * state[0], keep * state[1]))
            outputs.append(out)
        return torch.cat(outputs), state


KINDS = {
    "one nn.LSTM call a step": StepwiseLSTM,
    "one VarLenLSTM call with resets": VarLenLSTM,
}


class Agent(nn.Module):
    """Actor and critic on one LSTM; without `memory` it is reset at every step."""

    def __init__(self, lstm: type[nn.RNNBase] = VarLenLSTM, memory: bool = True) -> None:
        super().__init__()
        self.lstm = lstm(2, HIDDEN_SIZE)
        self.actor = nn.Linear(HIDDEN_SIZE, 2)
        self.critic = nn.Linear(HIDDEN_SIZE, 1)
        self.memory = memory
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, eps=1e-5)

    def forward(
        self, obs: Tensor, state: State, resets: Tensor
    ) -> tuple[Categorical, Tensor, State]:
        """Map observations `[T, B, 2]` to a policy over the actions and values `[T, B]`.

        `resets [T, B]` is True where an episode begins: the state is zero before that step.
        """
        if not self.memory:
            resets = torch.ones_like(resets)
        features, state = self.lstm(obs, state, resets=resets)
        policy = Categorical(logits=self.actor(features), validate_args=False)
        return policy, self.critic(features).squeeze(-1), state


@dataclass
class Rollout:
    """T steps of B environments, and what came before and after them."""

    obs: Tensor  # [T, B, 2]
    actions: Tensor  # [T, B]
    log_probs: Tensor  # [T, B], of the actions, by the policy that took them
    values: Tensor  # [T, B]
    rewards: Tensor  # [T, B], scaled; with the value of what a time limit cut off
    dones: Tensor  # [T, B], the episode ended AFTER step t
    starts: Tensor  # [B], an episode begins at step 0
    state: State  # [1, B, H] each, before step 0
    next_value: Tensor  # [B], of the observation after the last step

    def advantages(self) -> Tensor:
        """`[T, B]`, by generalised advantage estimation (https://arxiv.org/abs/1506.02438)."""
        goes_on = (~self.dones).float()
        next_values = goes_on * torch.cat((self.values[1:], self.next_value[None]))
        errors = self.rewards + GAMMA * next_values - self.values
        advantages = torch.empty_like(errors)
        advantage = torch.zeros_like(self.next_value)
        for t in reversed(range(len(errors))):
            advantage = errors[t] + GAMMA * GAE_LAMBDA * goes_on[t] * advantage
            advantages[t] = advantage
        return advantages


def visible(obs: np.ndarray) -> Tensor:
    """Position and angle `[B, 2]` out of observations `[B, 4]`, in units of usual deviations."""
    return torch.from_numpy(obs[:, [0, 2]] / np.array([0.5, 0.05], dtype=np.float32))


class Player:
    """B environments, and where each stands: observation, state, whether an episode begins.

    In Gymnasium's SAME_STEP mode the step that ends an episode returns the first observation of the
    next one, and the last one of the old as `final_obs`. So every step is a true transition; in the
    default mode the step after an end takes no action and would have to be left out.
    """

    def __init__(self, agent: Agent, seed: int) -> None:
        self.agent = agent
        self.envs = gymnasium.make_vec(
            "CartPole-v1",
            NUM_ENVS,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
        self.obs = visible(self.envs.reset(seed=seed)[0])
        self.starts = torch.ones(NUM_ENVS, dtype=torch.bool)
        self.state: State = (torch.zeros(1, NUM_ENVS, HIDDEN_SIZE),) * 2
        self.frames = 0
        self.running = np.zeros(NUM_ENVS)  # return so far of each episode
        self.ended: list[tuple[int, float]] = []  # of each ended episode: frames until then, return

    @torch.no_grad()
    def play(self, num_steps: int) -> Rollout:
        """Take `num_steps` steps, with one call of the agent each."""
        starts, state = self.starts, self.state
        steps = []
        for _ in range(num_steps):
            obs = self.obs
            policy, value, self.state = self.agent(obs[None], self.state, self.starts[None])
            action = policy.sample()
            next_obs, reward, terminated, truncated, info = self.envs.step(action[0].numpy())
            done = terminated | truncated
            self.frames += NUM_ENVS
            self.running += reward
            self.ended += [(self.frames, total) for total in self.running[done].tolist()]
            self.running[done] = 0

            gained = REWARD_SCALE * torch.from_numpy(reward).float()
            if truncated.any():
                # Out of time, not fallen: what would have come counts by the critic's estimate.
                final_obs = next_obs.copy()
                final_obs[truncated] = np.stack(info["final_obs"][truncated])
                goes_on = torch.zeros(1, NUM_ENVS, dtype=torch.bool)
                _, future, _ = self.agent(visible(final_obs)[None], self.state, goes_on)
                gained += GAMMA * future[0] * torch.from_numpy(truncated & ~terminated)
            self.obs, self.starts = visible(next_obs), torch.from_numpy(done)
            log_prob = policy.log_prob(action)
            steps.append((obs, action[0], log_prob[0], value[0], gained, self.starts))
        _, next_value, _ = self.agent(self.obs[None], self.state, self.starts[None])
        columns = (torch.stack(column) for column in zip(*steps, strict=True))
        return Rollout(*columns, starts, state, next_value[0])

    def mean_return(self, frames: float = float("inf")) -> float:
        """Mean return of the last episodes that had ended after so many frames."""
        returns = [value for when, value in self.ended if when <= frames][-RECENT:]
        return statistics.fmean(returns) if returns else float("nan")


def update(agent: Agent, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Improve the agent on a rollout; a minibatch is all T steps of some environments.

    Returns each minibatch's loss, and the first one's log-probabilities minus those of acting,
    which is 0 but for rounding: no weight has changed yet.
    """
    # From "an episode ended after step t" to "an episode begins at step t".
    resets = dones_to_resets(rollout.dones, previous=rollout.starts, batch_first=False)
    advantages = rollout.advantages()
    returns = advantages + rollout.values
    losses, log_ratios = [], []
    for _ in range(EPOCHS):
        for envs in torch.randperm(NUM_ENVS).split(ENVS_A_MINIBATCH):
            h_0, c_0 = (state[:, envs] for state in rollout.state)
            # The point of this example: all steps in one call, however many episodes they hold.
            policy, values, _ = agent(rollout.obs[:, envs], (h_0, c_0), resets[:, envs])

            log_ratio = policy.log_prob(rollout.actions[:, envs]) - rollout.log_probs[:, envs]
            ratio = log_ratio.exp()
            advantage = advantages[:, envs]
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
            loss = (
                -gain.mean()
                + VALUE_WEIGHT * nn.functional.mse_loss(values, returns[:, envs])
                - ENTROPY_WEIGHT * policy.entropy().mean()
            )
            agent.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRADIENT_NORM)
            agent.optimizer.step()
            losses.append(loss.detach())
            log_ratios.append(log_ratio.detach())
    return torch.stack(losses), log_ratios[0]


def train(num_updates: int, seed: int, memory: bool) -> tuple[Player, float]:
    """Play and update in turn; return too how far log-probs of acting and update were apart."""
    torch.manual_seed(seed)
    agent = Agent(memory=memory)
    player = Player(agent, seed)
    decay = torch.optim.lr_scheduler.LinearLR(agent.optimizer, 1.0, 0.0, total_iters=num_updates)
    difference = 0.0
    name = "with memory" if memory else "without memory"
    options = {"unit": " frames", "desc": name, "disable": None, "dynamic_ncols": True}
    with tqdm(total=num_updates * FRAMES, **options) as progress:
        for _ in range(num_updates):
            _, log_ratio = update(agent, player.play(ROLLOUT_STEPS))
            decay.step()
            difference = max(difference, log_ratio.abs().max().item())
            progress.update(FRAMES)
            progress.set_postfix(mean_return=f"{player.mean_return():.1f}")
    return player, difference


def compare(rounds: int, seed: int) -> tuple[Speeds, Differences]:
    """Repeat the first update with both kinds of LSTM, in turns, always from the same weights."""
    torch.manual_seed(seed)
    agent = Agent()
    rollout = Player(agent, seed).play(ROLLOUT_STEPS)
    speeds: Speeds = {name: [] for name in KINDS}
    differences = {"losses of both kinds": 0.0, "log-probs of both kinds": 0.0}
    what = "both kinds of update"
    for minibatches in tqdm(range(rounds), desc=what, disable=None, dynamic_ncols=True):
        results = []
        for name, lstm in KINDS.items():
            model = Agent(lstm)
            model.load_state_dict(agent.state_dict())
            torch.manual_seed(minibatches)
            begin = time.perf_counter()
            results.append(update(model, rollout))
            speeds[name].append(FRAMES / (time.perf_counter() - begin))
        for what, one, other in zip(differences, *results, strict=True):
            differences[what] = max(differences[what], (one - other).abs().max().item())
    return speeds, differences


def report(speeds: Speeds, differences: Differences, player: Player, memoryless: Player) -> None:
    """Print speeds, differences, and the returns over time."""
    print(f"\nan update: {EPOCHS} epochs over {FRAMES} frames, median")
    slow, fast = (statistics.median(rounds) for rounds in speeds.values())
    for name, median in zip(speeds, (slow, fast), strict=True):
        print(f"{name:40}{median:10,.0f} frames a second")
    print(f"{'times as fast':40}{fast / slow:10.1f}")
    for what, value in differences.items():
        print(f"{f'{what}, apart by':40}{value:10.1e}")
    print(f"\nmean return of the last {RECENT} episodes\n    frames    memory   without")
    for frames in np.linspace(0, player.frames, 9)[1:]:
        means = player.mean_return(frames), memoryless.mean_return(frames)
        print(f"{frames:10,.0f}{means[0]:10.1f}{means[1]:10.1f}")


def plot(speeds: Speeds, player: Player, memoryless: Player, output: Path) -> None:
    """Draw the returns over frames, and the speed of both kinds of update."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    returns, speed = figure.subplots(1, 2, width_ratios=(2, 1))
    for who, colour, label in (
        (player, "tab:blue", "with memory"),
        (memoryless, "tab:gray", "reset at every step"),
    ):
        frames, totals = np.array(who.ended).T
        returns.plot(frames, totals, ".", color=colour, alpha=0.2, markersize=3)
        times = np.linspace(0, who.frames, 100)[1:]
        returns.plot(times, [who.mean_return(t) for t in times], color=colour, label=label)
    returns.set(title=f"Return of each episode, and mean of the last {RECENT}")
    returns.set(xlabel="frames played", ylabel="return (at most 500)")
    returns.xaxis.set_major_formatter("{x:,.0f}")
    returns.legend(loc="upper left")
    named = {name.replace(" call ", "\ncall "): rounds for name, rounds in speeds.items()}
    draw_bars(speed, named, "frames/s", rates=True)
    speed.set(title="Update, frames a second (bar: median)")
    figure.savefig(output, dpi=120)


def failures(differences: Differences, mean_return: float) -> list[str]:
    """State each expectation on agreement and return that does not hold."""
    found = [
        f"{what}: expected within {MAX_DIFFERENCE:g}, got {value:.1e} apart"
        for what, value in differences.items()
        if not value <= MAX_DIFFERENCE
    ]
    if not mean_return >= MIN_RETURN:
        found.append(f"mean return: expected at least {MIN_RETURN:g}, got {mean_return:.1f}")
    return found


def main() -> None:
    """Compare, train, report, plot; with --check exit non-zero where an expectation fails."""
    parser = argparse.ArgumentParser(description="Recurrent PPO where velocities are hidden.")
    parser.add_argument("--steps", type=int, default=100_000, help="frames that each agent plays")
    parser.add_argument("--rounds", type=int, default=5, help="timed updates of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--check", action="store_true", help="fail on low returns or disagreement")
    args = parser.parse_args()

    print("Times updates of a policy with memory, then trains it: half a minute.")
    speeds, differences = compare(args.rounds, args.seed)
    num_updates = max(1, args.steps // FRAMES)
    player, differences["log-probs of acting and update"] = train(
        num_updates, args.seed, memory=True
    )
    memoryless, _ = train(num_updates, args.seed, memory=False)
    report(speeds, differences, player, memoryless)
    plot(speeds, player, memoryless, args.output)
    print(f"plot: {args.output}")
    if args.check and (found := failures(differences, player.mean_return())):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
