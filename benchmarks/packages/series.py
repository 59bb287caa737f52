"""Forecasting, and graphs."""

from __future__ import annotations

import torch

from benchmarks.packages.check import Example


def gluonts() -> Example:
    """DeepAR's likelihood of hourly data."""
    from gluonts.torch.model.deepar.module import DeepARModel

    model = DeepARModel(freq="h", context_length=48, prediction_length=24, num_parallel_samples=10)
    sizes = {name: spec.shape for name, spec in model.describe_inputs(16).data.items()}
    inputs = {name: torch.rand(size) for name, size in sizes.items()}
    inputs["feat_static_cat"] = torch.zeros(sizes["feat_static_cat"], dtype=torch.long)
    inputs["past_observed_values"] = torch.ones(sizes["past_observed_values"])
    future = {"future_target": torch.rand(16, 24), "future_observed_values": torch.ones(16, 24)}
    return Example(model, lambda model: model.loss(**inputs, **future))


def neuralforecast() -> Example:
    """A GRU that forecasts 12 months from 36."""
    from neuralforecast.models import GRU

    series = {"insample_y": torch.randn(32, 36, 1)}
    windows = series | {"futr_exog": None, "hist_exog": None, "stat_exog": None}
    return Example(GRU(h=12, input_size=36), lambda model: model(windows))


def darts() -> Example:
    """The block RNN, built when it is fitted: here to a sine, for one epoch."""
    from darts.models import BlockRNNModel
    from darts.utils.data.torch_datasets.utils import PLModuleInput
    from darts.utils.timeseries_generation import sine_timeseries

    forecaster = BlockRNNModel(
        input_chunk_length=48,
        output_chunk_length=12,
        model="LSTM",
        hidden_dim=64,
        n_rnn_layers=2,
        n_epochs=1,
        pl_trainer_kwargs={"accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    )
    forecaster.fit(sine_timeseries(length=200).astype("float32"))
    past = torch.randn(32, 48, 1)
    return Example(
        forecaster.model, lambda model: model(PLModuleInput(past_target=past)).prediction
    )


def skorch() -> Example:
    """The classifier of its tutorial on RNNs, built when the net is initialised."""
    from skorch import NeuralNetClassifier
    from torch import nn

    class RNNClassifier(nn.Module):
        def __init__(self, embedding_dim: int = 128, rec_layer: str = "GRU", units: int = 128):
            super().__init__()
            self.emb = nn.Embedding(1001, embedding_dim, padding_idx=0)
            self.rec = getattr(nn, rec_layer)(embedding_dim, units, batch_first=True)
            self.output = nn.Linear(units, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out, _ = self.rec(self.emb(x))
            return torch.softmax(self.output(out[:, -1]), dim=-1)

    net = NeuralNetClassifier(RNNClassifier, module__units=100).initialize()
    words = torch.randint(1, 1001, (32, 80))
    return Example(net.module_, lambda model: model(words))


def torch_geometric() -> Example:
    """A graph network whose layers are joined by an LSTM ("jumping knowledge")."""
    from torch_geometric.nn import GCN

    model = GCN(in_channels=32, hidden_channels=64, num_layers=4, out_channels=7, jk="lstm")
    nodes, edges = torch.randn(500, 32), torch.randint(0, 500, (2, 3000))
    return Example(model, lambda model: model(nodes, edges))
