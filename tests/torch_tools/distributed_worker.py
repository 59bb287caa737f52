"""One rank of test_distributed.py: trains a tagger on its own batches, in DDP or FSDP.

Usage: python distributed_worker.py MODE FOLDER, with RANK and WORLD_SIZE in the environment.
Leaves ``rank<r>.pt`` in the folder, which the ranks also meet in.
"""

from __future__ import annotations

import gc
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from helpers import CELLS, OURS
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

# Of every step, the lengths that each of two ranks has: every batch has its own B and T.
BATCHES = {
    "ragged": [([7, 0, 3], [2, 11, 1, 5]), ([1, 2], [9, 9, 4])],
    "one rank's rows are empty": [([4, 6], [0, 0, 0]), ([0], [3, 5])],
    "one rank has no rows": [([4, 6, 1], []), ([], [2, 2])],
}
DTYPES = {"float64": torch.float64, "float32": torch.float32}
CASES = [(cell, name, dtype) for cell in CELLS for name in BATCHES for dtype in DTYPES]
NUM_FEATURES, NUM_HIDDEN, NUM_TAGS = 3, 6, 2
LEARNING_RATE = 0.5
TIMEOUT = timedelta(seconds=60)


class Tagger(nn.Module):
    """Two layers in both directions, and a linear layer on every token."""

    def __init__(self, cells: dict[str, type[nn.RNNBase]], cell: str, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        options: dict[str, Any] = {"batch_first": True, "bidirectional": True, "dtype": dtype}
        self.rnn = cells[cell](NUM_FEATURES, NUM_HIDDEN, 2, **options)
        self.head = nn.Linear(2 * NUM_HIDDEN, NUM_TAGS, dtype=dtype)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        out, _ = self.rnn(x, lengths=lengths)
        tags: Tensor = self.head(out)
        return tags


def batch(lengths: list[int], seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[B, T, 3]`` with NaN in padding, tags ``[B, T, 2]``, lengths ``[B]``."""
    generator = torch.Generator().manual_seed(seed)
    num_steps = max(lengths, default=0)
    x = torch.randn(len(lengths), num_steps, NUM_FEATURES + NUM_TAGS, generator=generator).to(dtype)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = torch.nan
    return x[..., :NUM_FEATURES], x[..., NUM_FEATURES:], torch.tensor(lengths, dtype=torch.int64)


def steps_of(name: str, num_ranks: int) -> list[tuple[list[int], ...]]:
    """The batches of every step; where there is one rank, it has all rows."""
    steps = BATCHES[name]
    return steps if num_ranks == 2 else [(first + second,) for first, second in steps]


def seed_of(step: int, rank: int) -> int:
    """Every batch its own values."""
    return 10 * step + rank


def sum_of_losses(tags: Tensor, targets: Tensor, lengths: Tensor) -> Tensor:
    """Squared errors over valid tokens."""
    valid = torch.arange(tags.shape[1], device=tags.device) < lengths[:, None]
    return (tags - targets)[valid].square().sum()


def whole(tensor: Tensor) -> Tensor:
    """What the ranks hold together."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone()


def train(case: tuple[str, str, str], mode: str, device: torch.device) -> dict[str, Any]:
    """Two steps of SGD: each step's gradients, and the weights after it."""
    cell, name, dtype_name = case
    rank, num_ranks = distributed.get_rank(), distributed.get_world_size()
    model = Tagger(OURS, cell, DTYPES[dtype_name]).to(device)
    shapes = {key: parameter.shape for key, parameter in model.named_parameters()}
    if mode == "ddp":
        wrapped: nn.Module = DistributedDataParallel(model)
    else:
        fully_shard(model.rnn)
        wrapped = fully_shard(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=LEARNING_RATE)
    results: dict[str, Any] = {"gradients": [], "weights": []}
    for step, lengths_of_ranks in enumerate(steps_of(name, num_ranks)):
        own = batch(lengths_of_ranks[rank], seed_of(step, rank), DTYPES[dtype_name])
        x, targets, lengths = (tensor.to(device) for tensor in own)
        num_tokens = lengths.sum()
        distributed.all_reduce(num_tokens)
        loss = sum_of_losses(wrapped(x, lengths), targets, lengths)
        optimizer.zero_grad()
        (loss * num_ranks / num_tokens).backward()
        assert all(p.grad is not None for p in model.parameters())
        results["gradients"].append({k: whole(p.grad) for k, p in model.named_parameters()})
        optimizer.step()
        options = StateDictOptions(full_state_dict=True)
        weights = get_model_state_dict(wrapped, options=options)
        results["weights"].append({key: whole(value) for key, value in weights.items()})
    if mode == "fsdp":
        results["own share"] = {
            key: parameter.to_local().numel() / shapes[key].numel()
            for key, parameter in model.named_parameters()
        }
    return results


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cpu")
    if os.environ["BACKEND"] == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    distributed.init_process_group(
        os.environ["BACKEND"],
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=num_ranks,
        timeout=TIMEOUT,
    )
    try:
        results = {case: train(case, mode, device) for case in CASES}
        torch.save(results, folder / f"rank{rank}.pt")
    finally:
        distributed.destroy_process_group()
        gc.collect()  # ends gloo's threads, which may not free tensors while Python exits


if __name__ == "__main__":
    main()
