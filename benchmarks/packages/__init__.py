"""Public packages' models before and after `varlen_rnn.convert`: `make test-packages`."""
