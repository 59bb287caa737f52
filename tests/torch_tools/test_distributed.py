"""Many processes: DDP and FSDP2 on ragged batches that differ a rank train as one process does."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_worker import (
    CASES,
    DTYPES,
    LEARNING_RATE,
    NUM_FEATURES,
    NUM_TAGS,
    Tagger,
    batch,
    seed_of,
    steps_of,
    sum_of_losses,
)
from helpers import HAS_EXTENSION, TORCH, child_environment, largest, max_error, torch_packed
from torch import distributed

WORKER = Path(__file__).with_name("distributed_worker.py")
SECONDS = 180
# Of a gradient to the model's largest, and of a weight.
TOLERANCES = {"float64": 1e-12, "float32": 1e-6}

Results = dict[str, Any]

pytestmark = pytest.mark.skipif(
    not distributed.is_available() or not distributed.is_gloo_available(),
    reason="torch was built without torch.distributed and gloo",
)


def run_ranks(mode: str, backend: str, num_ranks: int, folder: Path) -> list[dict[Any, Results]]:
    """Runs the worker in as many processes, none of which outlives this call."""
    variables = {} if HAS_EXTENSION else {"VARLEN_RNN_DISABLE_EXTENSION": "1"}
    with ExitStack() as stack:
        children = []
        logs = []
        for rank in range(num_ranks):
            log = stack.enter_context((folder / f"rank{rank}.log").open("w+"))
            child = subprocess.Popen(
                [sys.executable, str(WORKER), mode, str(folder)],
                env=child_environment(
                    RANK=str(rank), WORLD_SIZE=str(num_ranks), BACKEND=backend, **variables
                ),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(child.wait)
            stack.callback(child.kill)
            children.append(child)
            logs.append(log)
        deadline = time.monotonic() + SECONDS
        codes = [child.poll() for child in children]
        # One that failed leaves the others waiting.
        while None in codes and not any(codes) and time.monotonic() < deadline:
            time.sleep(0.1)
            codes = [child.poll() for child in children]
    said = "\n".join(Path(log.name).read_text() for log in logs)
    assert codes == [0] * num_ranks, f"exit codes {codes} (None: killed)\n{said}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(num_ranks)]


BACKENDS = [
    "gloo",
    pytest.param(
        "nccl",
        marks=pytest.mark.skipif(
            not (torch.cuda.is_available() and distributed.is_nccl_available()),
            reason="needs NCCL and a GPU (one is enough, two show more)",
        ),
    ),
]


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", params=["ddp", "fsdp"])
def ranks(
    request: pytest.FixtureRequest, backend: str, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[Any, Results]]:
    """What every rank found, in all cases."""
    num_ranks = 2 if backend == "gloo" else min(2, torch.cuda.device_count())
    return run_ranks(request.param, backend, num_ranks, tmp_path_factory.mktemp(request.param))


def trained_by_torch(case: tuple[str, str, str], num_ranks: int) -> Results:
    """The truth: one process, torch's module, and the union of the ranks' batches in each step."""
    cell, name, dtype = case
    model = Tagger(TORCH, cell, DTYPES[dtype])
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    results: Results = {"gradients": [], "weights": []}
    for step, lengths_of_ranks in enumerate(steps_of(name, num_ranks)):
        lengths = [length for own_lengths in lengths_of_ranks for length in own_lengths]
        x = torch.full((len(lengths), max(lengths), NUM_FEATURES), torch.nan, dtype=DTYPES[dtype])
        targets = x.new_full((len(lengths), max(lengths), NUM_TAGS), torch.nan)
        start = 0
        for rank, own_lengths in enumerate(lengths_of_ranks):
            own_x, own_targets, _ = batch(own_lengths, seed_of(step, rank), DTYPES[dtype])
            rows = slice(start, start + len(own_lengths))
            x[rows, : own_x.shape[1]] = own_x
            targets[rows, : own_x.shape[1]] = own_targets
            start = rows.stop
        out, _ = torch_packed(model.rnn, x, [], lengths)
        loss = sum_of_losses(model.head(out), targets, torch.tensor(lengths)) / sum(lengths)
        optimizer.zero_grad()
        loss.backward()
        results["gradients"].append({k: p.grad.clone() for k, p in model.named_parameters()})
        optimizer.step()
        results["weights"].append({k: v.clone() for k, v in model.state_dict().items()})
    return results


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case))
def test_ranks_train_as_one_process_on_the_union_of_their_batches(
    case: tuple[str, str, str], ranks: list[dict[Any, Results]]
) -> None:
    expected = trained_by_torch(case, len(ranks))
    for step, gradients in enumerate(expected["gradients"]):
        largest_gradient = max(largest(gradient) for gradient in gradients.values())
        assert largest_gradient > 0.1
        for what, scale in (("gradients", largest_gradient), ("weights", 1.0)):
            for rank in ranks:
                got, truth = rank[case][what][step], expected[what][step]
                assert got.keys() == truth.keys()
                for name, value in truth.items():
                    error = max_error(got[name], value)
                    assert error <= TOLERANCES[case[2]] * scale, f"{what} of {name}: {error:.1e}"


def test_fsdp_divides_every_weight(ranks: list[dict[Any, Results]]) -> None:
    shares = [
        rank[case]["own share"] for rank in ranks for case in CASES if "own share" in rank[case]
    ]
    if not shares:
        pytest.skip("is about FSDP")
    assert {share for weights in shares for share in weights.values()} == {1 / len(ranks)}
