"""Our modules against torch.nn in float64, on a random grid and every instruction set."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch
from configs import GRID, Config, our_results, torch_results
from helpers import assert_close64


def test_the_grid_has_every_form_and_option_many_times() -> None:
    for cell, configs in GRID.items():
        assert len(configs) >= 200
        assert len({str(config) for config in configs}) == len(configs)
        for field in ("form", "num_layers", "bidirectional", "bias", "batch_first", "with_hx"):
            counts = defaultdict(int)
            for config in configs:
                counts[getattr(config, field)] += 1
            assert len(counts) >= 2
            assert min(counts.values()) >= 20, (cell, field, counts)
        assert {1, 3, 7, 17, 33, 100, 129} <= {c.hidden_size for c in configs}
        assert sum(0 in c.lengths for c in configs) >= 20
        assert sum(max(c.lengths) >= 100 for c in configs) >= 5
        assert sum(len(c.lengths) > 64 for c in configs) >= 5
        assert sum(c.proj_size > 0 for c in configs) >= (20 if cell == "lstm" else 0)


@pytest.mark.parametrize("config", [c for configs in GRID.values() for c in configs], ids=str)
def test_outputs_states_and_gradients_equal_those_of_torch(config: Config, one_isa: str) -> None:
    expected = torch_results(config, torch.float64, rounded_to=torch.float32)
    assert_close64(our_results(config, torch.float64), expected)
