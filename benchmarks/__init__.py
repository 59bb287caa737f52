"""How fast varlen_rnn and others are on the same batches: `python -m benchmarks.run`."""
